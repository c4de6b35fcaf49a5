"""retry and skip: what a person does about items, and what is said of each."""

import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from faulty_iconik import Fault, FaultyIconik
from reconciliation import changes as corrections
from support import ASSET, OTHER_ASSET, ListenerHere, new_id, rows, wait_until
from system.text import format_utc, parse_time

STATUSES = ("awaiting_proxy", "awaiting_create", "ready", "submitting", "submitted", "skipped", "failed")
NOW, LATER = "2026-11-23T16:47:00.123Z", "2999-01-01T00:00:00.000Z"


@pytest.fixture
def listener(listeners_here: Callable[..., ListenerHere], tmp_path: Path, empty_database: Path) -> ListenerHere:
    """A listener that is not running, with an empty database."""
    shutil.copy(empty_database, tmp_path)
    return listeners_here(submitter__retry_delay=10, submitter__max_retry_delay=900)


def add(listener: ListenerHere, status: str, object_id: str | None = None, **fields: object) -> str:
    """Add an item with that status, which is not due for centuries. Returns its id."""
    object_id = object_id or new_id()
    due = LATER if status in ("ready", "awaiting_proxy") else None
    values = {"object_id": object_id, "status": status, "created_at": NOW, "next_attempt_at": due, **fields}
    names = ", ".join(values)
    with closing(sqlite3.connect(listener.database)) as db:
        db.execute("PRAGMA synchronous = OFF")
        db.execute(f"INSERT INTO items ({names}) VALUES (:{', :'.join(values)})", values)
        db.commit()
    return object_id


def row_of(listener: ListenerHere, object_id: str) -> dict[str, object]:
    [row] = listener.rows(f"object_id = '{object_id}'")
    return dict(row)


HURRIED = "is due now, but no sooner than 10 s after its last attempt"
ASKED_ABOUT = "is due now: iconik will be asked for its proxy"
NOT_SKIPPED = "is not skipped any more"


# One by one


@pytest.mark.parametrize(
    ("status", "words", "becomes"),
    [
        ("failed", "is ready again", "ready"),
        ("skipped", NOT_SKIPPED, "awaiting_proxy"),
        ("ready", HURRIED, "ready"),
        ("awaiting_proxy", ASKED_ABOUT, "awaiting_proxy"),
    ],
)
def test_retry_says_of_each_item_what_it_did(listener: ListenerHere, status: str, words: str, becomes: str) -> None:
    first, second = add(listener, status), add(listener, status)
    result = listener.command("retry", first, second.upper())
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"{first} {words}\n{second.upper()} {words}\n"
    for object_id in (first, second):
        row = row_of(listener, object_id)
        assert row["status"] == becomes
        assert str(row["next_attempt_at"]) < LATER


@pytest.mark.parametrize("status", ["submitting", "submitted", "awaiting_create"])
def test_retry_leaves_an_item_alone_and_says_so(listener: ListenerHere, status: str) -> None:
    good, object_id = add(listener, "failed"), add(listener, status)
    before = row_of(listener, object_id)
    result = listener.command("retry", object_id, good)
    assert result.returncode == 1
    assert result.stdout == f"{good} is ready again\n"
    assert result.stderr == f"{object_id} is {status}: it stays as it is\n"
    assert row_of(listener, object_id) == before


@pytest.mark.parametrize("status", corrections.SKIPPED)
def test_skip_settles_an_item_and_says_so(listener: ListenerHere, status: str) -> None:
    object_id = add(listener, status)
    for _ in range(2):  # what is skipped already is as it should be
        result = listener.command("skip", object_id.upper())
        assert (result.returncode, result.stdout, result.stderr) == (0, f"{object_id.upper()} is skipped\n", "")
        row = row_of(listener, object_id)
        assert (row["status"], row["error"]) == ("skipped", "skipped by a person")
    assert listener.command("retry", object_id).stdout == f"{object_id} {NOT_SKIPPED}\n"


@pytest.mark.parametrize("status", ["submitting", "submitted"])
def test_skip_leaves_alone_what_iconik_has_or_may_have(listener: ListenerHere, status: str) -> None:
    object_id = add(listener, status)
    before = row_of(listener, object_id)
    result = listener.command("skip", object_id)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"{object_id} is {status}: it stays as it is\n"
    assert row_of(listener, object_id) == before


@pytest.mark.parametrize("command", ["retry", "skip"])
@pytest.mark.parametrize("object_id", [ASSET, "a\x1b[2Jb", "' OR 1 --"])
def test_what_is_not_there_is_named(listener: ListenerHere, command: str, object_id: str) -> None:
    result = listener.command(command, object_id)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"{object_id} is not in items.db\n".replace("\x1b", " ")


def test_retry_does_not_hurry_what_is_in_doubt(listener: ListenerHere) -> None:
    """iconik may be taking the POST that it did not answer: it is not looked at before retry_delay is over."""
    attempted, now = format_utc(time.time() - 4), format_utc(time.time())
    add(listener, "ready", ASSET, attempts=1, last_attempt_at=attempted, in_doubt=1)
    add(listener, "failed", OTHER_ASSET, attempts=1, last_attempt_at=attempted, in_doubt=1)
    assert listener.command("retry", ASSET, OTHER_ASSET).returncode == 0
    for object_id in (ASSET, OTHER_ASSET):
        due = parse_time(row_of(listener, object_id)["next_attempt_at"])
        assert due is not None
        assert due - (parse_time(now) or 0) == pytest.approx(6, abs=0.1)


# All of a status


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["retry", "--all"], "failed", "is ready again"),
        (["retry", "--all", "failed"], "failed", "is ready again"),
        (["retry", "--all", "skipped"], "skipped", NOT_SKIPPED),
        (["retry", "--all", "ready"], "ready", HURRIED),
        (["retry", "--all", "awaiting_proxy"], "awaiting_proxy", ASKED_ABOUT),
        *((["skip", "--all", status], status, "is skipped") for status in corrections.SKIPPED),
    ],
)
def test_all_of_a_status_are_changed_and_listed_and_no_other(
    listener: ListenerHere, monkeypatch: pytest.MonkeyPatch, arguments: list[str], status: str, words: str
) -> None:
    monkeypatch.setattr(corrections, "BATCH_SIZE", 2)
    monkeypatch.setattr("commands.items.MIN_PAUSE", 0)
    ids = [add(listener, status) for _ in range(5)]
    others = [add(listener, other) for other in STATUSES if other != status]
    before = [row_of(listener, other) for other in others]
    result = listener.command(*arguments)
    assert (result.returncode, result.stderr) == (0, "")
    *lines, last = result.stdout.splitlines()
    assert sorted(lines) == sorted(f"{object_id} {words}" for object_id in ids)
    assert last == "5 items changed"
    assert [row_of(listener, other) for other in others] == before


def test_all_of_one_and_all_of_none_are_counted_too(listener: ListenerHere) -> None:
    object_id = add(listener, "failed")
    assert listener.command("skip", "--all", "failed").stdout == f"{object_id} is skipped\n1 item changed\n"
    result = listener.command("retry", "--all")
    assert (result.returncode, result.stdout) == (0, "0 items changed\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["retry"],
        ["retry", "--all", "failed", ASSET],
        ["retry", "--all", "submitting"],
        ["retry", "--all", "awaiting_create"],
        ["skip"],
        ["skip", "--all", "failed", ASSET],
        ["skip", "--all", "submitting"],
        ["skip", "--all", "submitted"],
        ["skip", "--all"],
    ],
)
def test_wrong_use_changes_nothing(listener: ListenerHere, arguments: list[str]) -> None:
    for status in STATUSES:
        add(listener, status)
    before = [tuple(row) for row in rows(listener.database)]
    result = listener.command(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert [tuple(row) for row in rows(listener.database)] == before


# With the listener running


@pytest.mark.parametrize("arguments", [[ASSET], ["--all"]])
def test_a_running_listener_takes_up_what_is_retried(
    listener_here: ListenerHere, sandbox: FaultyIconik, arguments: list[str]
) -> None:
    sandbox.faults.append(Fault(f"analyze/assets/{ASSET}", status=404, body=b'{"errors": ["No such asset"]}'))
    listener_here.upload(ASSET)
    wait_until(lambda: listener_here.rows("status = 'failed'"))
    listener_here.command("retry", *arguments)
    listener_here.submitter.wake()  # of itself it looks within half a minute
    wait_until(lambda: listener_here.rows("status = 'submitted'"))
    assert sandbox.jobs == [ASSET]


def test_a_running_listener_asks_for_the_proxies_of_what_is_retried_once(
    listener_here: ListenerHere, sandbox: FaultyIconik, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not again and again: with each question the next one is due later, but this command goes over each once."""
    monkeypatch.setattr(corrections, "BATCH_SIZE", 2)
    ids = [sandbox.create_asset("a.mov") for _ in range(5)]
    for object_id in ids:
        listener_here.store.add_asset(object_id, "a.mov", 600)
    result = listener_here.command("retry", "--all", "awaiting_proxy")
    assert result.stdout.endswith("\n5 items changed\n")
    listener_here.submitter.wake()
    wait_until(lambda: sum("/proxies/" in request for request in sandbox.requests) == 5)
