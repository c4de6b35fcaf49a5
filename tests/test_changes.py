"""What a person does to items, and how a person names them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal
from unicodedata import normalize

import pytest

from commands.changes import Change, ManualChanges
from store import Rules, Status, Store
from support import ASSET, OTHER_ASSET, Clock

KEY = (ASSET, "analyze")
STATUSES = [value for name, value in vars(Status).items() if not name.startswith("_")]


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    store = Store(tmp_path / "items.db", Rules(), listener=True, clock=clock)
    yield store
    store.close()


@pytest.fixture
def changes(store: Store) -> ManualChanges:
    return ManualChanges(store)


def add(store: Store, object_id: str = ASSET, title: str | None = "a.mov", **columns: Any) -> None:
    store.add_asset(object_id, title)
    store.proxy_closed(object_id)
    for name, value in columns.items():
        store.database.run(f"UPDATE items SET {name} = :value WHERE object_id = :id", value=value, id=object_id)


def row(store: Store) -> dict[str, Any]:
    return dict(store.database.run("SELECT * FROM items WHERE object_id = :id", id=ASSET)[0])


def only(found: list[Change]) -> Change:
    [change] = found
    return change


# Names.


@pytest.mark.parametrize(
    "text",
    [
        ASSET,
        ASSET.upper(),
        f"https://app.iconik.io/asset/{ASSET}",
        f"https://app.iconik.io/asset/{ASSET}/?tab=info",
        "holiday.mov",
        "2b45a8ca",
        "2B45A8CA-F0B4",
        "holid",
        "HOLIDAY",
    ],
)
def test_an_asset_is_known_by_what_a_person_calls_it(store: Store, changes: ManualChanges, text: str) -> None:
    add(store, ASSET, "holiday.mov")
    add(store, OTHER_ASSET, "interview.mov")
    assert [match.object_id for match in changes.find(text)] == [ASSET]


@pytest.mark.parametrize("text", ["", "100%", "_", "x.mov", "2b45a8c", OTHER_ASSET])
def test_what_names_nothing_finds_nothing(store: Store, changes: ManualChanges, text: str) -> None:
    add(store, ASSET, "holiday.mov")
    assert changes.find(text) == []


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("stored", ["NFC", "NFD"])
@pytest.mark.parametrize("text", ["Grüße.mov", "grüße.mov", "RÜSSE", "rüß"])
def test_a_title_is_found_however_its_letters_are_written(
    store: Store, changes: ManualChanges, form: Literal["NFC", "NFD"], stored: Literal["NFC", "NFD"], text: str
) -> None:
    """A Mac writes "ü" as two characters, and an earlier version stored it so."""
    add(store, ASSET, normalize(stored, "Grüße.mov"))
    add(store, OTHER_ASSET, "interview.mov")
    assert [match.object_id for match in changes.find(normalize(form, text))] == [ASSET]


@pytest.mark.parametrize("title", ["Grüße.mov", "100%", None])
def test_the_link_of_an_asset_in_a_collection_names_the_asset(
    store: Store, changes: ManualChanges, title: str | None
) -> None:
    add(store, ASSET, title)
    add(store, OTHER_ASSET, "interview.mov")
    link = f"https://app.iconik.io/collection/{OTHER_ASSET}/asset/{ASSET.upper()}?x={OTHER_ASSET}"
    assert [match.object_id for match in changes.find(link)] == [ASSET]


def test_an_exact_title_goes_before_parts_of_others(store: Store, changes: ManualChanges) -> None:
    add(store, ASSET, "a.mov")
    add(store, OTHER_ASSET, "aa.mov")
    assert [match.object_id for match in changes.find("a.mov")] == [ASSET]
    assert len(changes.find("mov")) == 2
    assert changes.find("mov", parts=False) == []


# Retry, again and skip.


@pytest.mark.parametrize("status", STATUSES)
def test_retry_changes_what_failed_was_skipped_or_waits(store: Store, changes: ManualChanges, status: str) -> None:
    add(store, status=status, waited=99, error="why")
    change = only(changes.retry([KEY]))
    expected = {Status.FAILED: Status.READY, Status.SKIPPED: Status.READY}.get(status, status)
    assert change.status == status
    assert row(store)["status"] == expected
    assert change.is_changed == (status in ("failed", "skipped", "ready", "awaiting_proxy"))
    if change.is_changed:
        assert row(store)["waited"] == 0
        assert row(store)["next_attempt_at"] == store.now()


def test_what_was_skipped_before_its_proxy_awaits_it_again(store: Store, changes: ManualChanges) -> None:
    store.add_asset(ASSET, "a.mov")
    changes.skip([KEY])
    changes.retry([KEY])
    assert row(store)["status"] == Status.AWAITING_PROXY


def test_a_retry_of_a_failed_job_is_a_run_of_its_own(store: Store, changes: ManualChanges) -> None:
    add(store, status="failed", job_id="old", counted_on="2026-11-01")
    changes.retry([KEY])
    found = row(store)
    assert (found["old_job_id"], found["job_id"], found["counted_on"], found["asked"]) == ("old", None, None, 1)


def test_a_retry_of_an_item_in_doubt_keeps_doubt_and_delay(store: Store, changes: ManualChanges, clock: Clock) -> None:
    add(store, status="failed", in_doubt_since=store.now(), last_attempt_at=store.now(), counted_on="2026-11-01")
    changes.retry([KEY])
    found = row(store)
    assert found["in_doubt_since"] and found["counted_on"]
    assert found["next_attempt_at"] == store.now(90)


@pytest.mark.parametrize("status", STATUSES)
def test_again_changes_what_is_finished(store: Store, changes: ManualChanges, status: str) -> None:
    add(store, status=status)
    change = only(changes.again([KEY]))
    assert change.is_changed == (status in ("submitted", "done", "failed", "skipped"))
    assert row(store)["asked"] == (2 if change.is_changed else 0)


def test_a_second_again_within_ten_minutes_changes_nothing(store: Store, changes: ManualChanges, clock: Clock) -> None:
    add(store, status="done")
    assert only(changes.again([KEY])).is_changed
    store.database.run("UPDATE items SET status = 'done', asked = 0")
    clock.advance(599)
    assert not only(changes.again([KEY])).is_changed
    clock.advance(2)
    assert only(changes.again([KEY])).is_changed


@pytest.mark.parametrize("status", STATUSES)
def test_skip_changes_what_is_not_finished(store: Store, changes: ManualChanges, status: str) -> None:
    add(store, status=status)
    change = only(changes.skip([KEY], reason="not ours"))
    assert change.is_changed == (status in ("failed", "ready", "awaiting_proxy", "awaiting_create"))
    if change.is_changed:
        assert (row(store)["status"], row(store)["error"]) == (Status.SKIPPED, "not ours")


@pytest.mark.parametrize(("in_doubt", "started"), [(None, 0), ("2026-11-26T00:00:00.000Z", 1)])
def test_a_skip_gives_a_reservation_back(
    store: Store, changes: ManualChanges, in_doubt: str | None, started: int
) -> None:
    add(store, counted_on="2026-11-26", in_doubt_since=in_doubt)
    store.database.run("INSERT INTO usage VALUES ('2026-11-26', 'analyze', 1, 0)")
    changes.skip([KEY])
    [found] = store.database.run("SELECT started FROM usage")
    assert found["started"] == started


def test_no_command_touches_what_is_submitting(store: Store, changes: ManualChanges) -> None:
    add(store, status="submitting")
    before = row(store)
    for change in (changes.retry, changes.skip, changes.again):
        assert not only(change([KEY])).is_changed
    assert row(store) == before


def test_an_asset_that_was_never_seen_is_added_to_be_done(store: Store, changes: ManualChanges) -> None:
    assert changes.add([ASSET], again=True) == [ASSET]
    assert (row(store)["status"], row(store)["asked"]) == (Status.AWAITING_PROXY, 2)
