"""What people did, and who, so that everybody can see it."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from events import AGAIN
from faulty_iconik import FaultyIconik
from history import HISTORY, MAX_KEPT, HistoryEntry, add_to_history, latest_history
from store import Store
from support import ASSET, ListenerHere, wait_until

Listeners = Callable[..., ListenerHere]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store(tmp_path / "items.db", listener=True)) as store:
        yield store


@pytest.fixture(autouse=True)
def she_types_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_USER", "ada")  # the commands run as the service's user


def entries(listener: ListenerHere) -> list[tuple[str, str]]:
    return [(entry.by, entry.what) for entry in latest_history(listener.store, MAX_KEPT)]


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["allow", "5", "--yes"], "allow 5"),
        (["pause", "--reason", "budget"], "pause (budget)"),
        (["retry", "a.mov"], f'retry {ASSET} "a.mov"'),
        (["retry", "a.mov", "--reason", "new codec"], f'retry (new codec) {ASSET} "a.mov"'),
        (["retry", "--again", "a.mov"], f'retry --again {ASSET} "a.mov"'),
        (["retry", "--all"], "retry --all failed: 1 item"),
        (["skip", "a.mov", "--reason", "not ours"], f'skip (not ours) {ASSET} "a.mov"'),
        (["skip", "--all", "failed"], "skip --all failed: 1 item"),
    ],
)
def test_what_a_command_changed_is_noted_with_who_did_it(
    listeners_here: Listeners, arguments: list[str], what: str
) -> None:
    listener = listeners_here(limits__max_per_day=1).start()
    listener.submitter.stop()
    listener.store.add_asset(ASSET, "a.mov")
    listener.store.database.run("UPDATE items SET status = 'failed', proxy_closed_at = created_at")
    assert listener.command(*arguments).returncode == 0
    assert entries(listener) == [("ada", what)]
    text = " ".join(listener.command("status").stdout.split())
    assert "What people did lately: 20" in text
    assert f"UTC: ada: {what}" in text


def test_resume_is_noted(listener_here: ListenerHere) -> None:
    listener_here.command("pause")
    listener_here.command("resume")
    assert entries(listener_here) == [("ada", "pause"), ("ada", "resume")]


def test_a_catch_up_is_noted(listener_here: ListenerHere, sandbox: FaultyIconik) -> None:
    sandbox.create_asset("old.mov", send=False, date_created="2020-01-01T00:00:00+00:00")
    listener_here.command("catch-up", "--since", "2019-12-31T00:00Z", "--until", "2020-01-02T00:00Z", "--yes")
    [(by, what)] = entries(listener_here)
    assert (by, what) == ("ada", "catch-up from 2019-12-31T00:00:00.000Z until 2020-01-02T00:00:00.000Z: 1 asset")


def test_what_was_chosen_in_iconiks_menu_is_noted(listener_here: ListenerHere, sandbox: FaultyIconik) -> None:
    listener_here.command("register", "--actions", "--insecure", listener_here.url)
    listener_here.upload(ASSET)
    wait_until(lambda: listener_here.rows("status = 'submitted'"))
    sandbox.run_action(sandbox.menu("ASSET")[AGAIN.title], (ASSET,), ())
    [(by, what)] = entries(listener_here)
    assert by.startswith("user ") and by.endswith(", in iconik's menu")
    assert what.startswith(f"Analyze again, for {ASSET}")


@pytest.mark.parametrize("arguments", [["retry", "a.mov"], ["skip", "none.mov"], ["resume"], ["status"], ["check"]])
def test_what_changed_nothing_is_not_noted(listener_here: ListenerHere, arguments: list[str]) -> None:
    listener_here.store.add_asset(ASSET, "a.mov")
    listener_here.store.database.run("UPDATE items SET status = 'done'")
    listener_here.command(*arguments)
    assert entries(listener_here) == []


def test_the_latest_fifty_are_kept(store: Store) -> None:
    for number in range(MAX_KEPT + 3):
        add_to_history(store, "ada", f"allow {number}")
    assert [entry.what for entry in latest_history(store, 2)] == [f"allow {MAX_KEPT + 1}", f"allow {MAX_KEPT + 2}"]
    assert len(latest_history(store, 1000)) == MAX_KEPT


def test_an_entry_that_cannot_be_noted_is_done_all_the_same(store: Store, tmp_path: Path) -> None:
    with (
        closing(sqlite3.connect(tmp_path / "items.db", isolation_level=None)) as person,
        store.database.waiting_up_to(0.05),
    ):
        person.execute("BEGIN IMMEDIATE")
        add_to_history(store, "ada", "allow 1")
    assert latest_history(store, 5) == []


@pytest.mark.parametrize("written", ["", "x", "null", "[1]", '[{"at": 1}]', '[{"at": 1, "by": 2, "what": 3}]', "{}"])
def test_what_a_person_wrote_there_is_harmless(store: Store, written: str) -> None:
    store.set_state(HISTORY, written)
    assert latest_history(store, 5) == []
    add_to_history(store, "ada\n", "allow 1\x1b")
    [entry] = latest_history(store, 5)
    assert entry == HistoryEntry(entry.at, "ada", "allow 1")
