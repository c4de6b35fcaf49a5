"""What a person does to items: find, retry, skip, again."""

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from commands.changes import AGAIN_SECONDS, MAX_MATCHES, ManualChanges
from store import Item, Outcome, Rules, Status, Store
from support import ASSET, OTHER_ASSET, Clock, new_id, rows
from system.text import format_utc

KEY = (ASSET, "analyze")
DOUBT_DELAY = 90.0
DAY = 86400.0
ICONIK_NOW = 1_795_000_000.0


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    store = Store(tmp_path / "items.db", Rules(doubt_delay=DOUBT_DELAY), listener=True, clock=clock)
    yield store
    store.close()


@pytest.fixture
def changes(store: Store) -> ManualChanges:
    return ManualChanges(store)


@pytest.fixture
def row(store: Store, tmp_path: Path) -> Callable[..., sqlite3.Row]:
    def read(object_id: str = ASSET) -> sqlite3.Row:
        [row] = rows(tmp_path / "items.db", f"object_id = '{object_id}'")
        return row

    return read


Row = Callable[..., sqlite3.Row]


def claim(store: Store, object_id: str = ASSET) -> Item:
    store.add_asset(object_id, "a.mov")
    store.proxy_closed(object_id)
    item = store.claim_new()
    assert item is not None
    return item


def bring_to(store: Store, status: str, object_id: str = ASSET) -> None:
    """Bring a new item to a status. `waiting` is ready after a failure, `reserved` the same with a reservation."""
    if status == Status.AWAITING_CREATE:
        store.proxy_closed(object_id)
    elif status == Status.AWAITING_PROXY:
        store.add_asset(object_id, "a.mov")
    else:
        item = claim(store, object_id)
        delay = {"ready": 0.0, "waiting": 900.0, "reserved": 900.0, "in doubt": 900.0}.get(status)
        if status not in ("ready", "waiting"):
            assert store.reserve(item, ICONIK_NOW, "")
        if delay is not None:
            outcome = Outcome(Status.READY, "503", "503", delay, delay, delay, in_doubt=status == "in doubt")
            store.end_attempt(item, outcome)
        elif status != Status.SUBMITTING:
            nothing = status in (Status.SKIPPED, Status.FAILED)
            store.end_attempt(item, Outcome(status, "why", "why", job_id="job", started_nothing=nothing))


# How a person names an asset


@pytest.fixture
def named(store: Store) -> dict[str, str]:
    """Assets by their titles."""
    ids = {
        "holiday.mov": "aaaaaaaa-0000-4000-8000-000000000001",
        "holiday.mov 2": "aaaaaaaa-0000-4000-8000-000000000002",
        "100%_sure": "bbbbbbbb-0000-4000-8000-000000000003",
        "aaaaaaaa": "cccccccc-0000-4000-8000-000000000004",
    }
    for title, object_id in ids.items():
        store.add_asset(object_id, title)
    return ids


@pytest.mark.parametrize(
    ("text", "titles"),
    [
        ("aaaaaaaa-0000-4000-8000-000000000001", ["holiday.mov"]),
        ("AAAAAAAA-0000-4000-8000-000000000001", ["holiday.mov"]),
        ("https://app.iconik.io/asset/aaaaaaaa-0000-4000-8000-000000000001?x=1", ["holiday.mov"]),
        ("holiday.mov", ["holiday.mov"]),  # the exact title, though it is a part of another, too
        ("  holiday.mov ", ["holiday.mov"]),
        ("aaaaaaaa", ["aaaaaaaa"]),  # the exact title before the beginning of ids
        ("bbbbbbbb", ["100%_sure"]),
        ("BBBBBBBB-00", ["100%_sure"]),
        ("aaaaaaaa-0", ["holiday.mov", "holiday.mov 2"]),
        ("bbbbbbb", []),  # fewer than eight characters name no id
        ("oliday", ["holiday.mov", "holiday.mov 2"]),
        ("%_s", ["100%_sure"]),
        ("%", ["100%_sure"]),
        ("_", ["100%_sure"]),
        ("\\", []),
        ("nothing.mov", []),
        ("", []),
        ("   ", []),
        ("dddddddd-0000-4000-8000-000000000009", []),
    ],
)
def test_an_asset_is_found_by_what_a_person_knows(
    changes: ManualChanges, named: dict[str, str], text: str, titles: list[str]
) -> None:
    found = changes.find(text)
    assert sorted(match.title or "" for match in found) == titles
    assert {match.object_id for match in found} == {named[title] for title in titles}


def test_parts_count_only_where_they_may(changes: ManualChanges, named: dict[str, str]) -> None:
    assert changes.find("bbbbbbbb", parts=False) == changes.find("oliday", parts=False) == []
    assert len(changes.find("holiday.mov", parts=False)) == 1
    assert len(changes.find(named["holiday.mov"], parts=False)) == 1


def test_of_many_matches_one_more_than_are_shown_is_found(store: Store, changes: ManualChanges) -> None:
    for number in range(MAX_MATCHES + 5):
        store.add_asset(new_id(), f"clip {number}")
    assert len(changes.find("clip")) == MAX_MATCHES + 1


def test_an_asset_with_several_jobs_is_one_match(store: Store, changes: ManualChanges) -> None:
    store.rules = Rules(jobs=("analyze", "transcribe", "faces"))
    store.add_asset(ASSET, "a.mov")
    assert [match.object_id for match in changes.find("a.mov")] == [ASSET]
    assert sorted(changes.keys_of(ASSET, None)) == [(ASSET, job) for job in ("analyze", "faces", "transcribe")]
    assert changes.keys_of(ASSET, "faces") == [(ASSET, "faces")]
    assert changes.keys_of(OTHER_ASSET, None) == []


# Each change, for each status

ALL = [
    "awaiting_create",
    "awaiting_proxy",
    "ready",
    "waiting",
    "in doubt",
    "submitting",
    "submitted",
    "done",
    "skipped",
    "failed",
]
RETRIED = ("awaiting_proxy", "ready", "waiting", "in doubt", "skipped", "failed")
SKIPPED = ("awaiting_create", "awaiting_proxy", "ready", "waiting", "in doubt", "failed")
REPEATED = ("submitted", "done", "skipped", "failed")


@pytest.mark.parametrize("status", ALL)
@pytest.mark.parametrize(
    ("action", "changed"), [("retry", RETRIED), ("skip", SKIPPED), ("again", REPEATED)], ids=["retry", "skip", "again"]
)
def test_each_change_touches_just_the_statuses_that_it_is_for(
    store: Store, changes: ManualChanges, row: Row, clock: Clock, action: str, changed: tuple[str, ...], status: str
) -> None:
    bring_to(store, status)
    clock.advance(5)
    before = row()
    [change] = getattr(changes, action)([KEY, (OTHER_ASSET, "analyze")])
    assert change.is_changed == (status in changed)
    assert change.status == before["status"]
    if not change.is_changed:
        assert tuple(row()) == tuple(before)
    elif action == "skip":
        assert (row()["status"], row()["error"]) == ("skipped", "skipped by a person")
    else:
        expected = before["status"] if status == "awaiting_proxy" else "ready"
        assert row()["status"] == expected
        assert row()["asked"] == (2 if action == "again" else int(status != "awaiting_proxy"))
        assert (row()["waited"], row()["backoff"]) == (0, 0)
        is_delayed = status == "in doubt"
        assert (row()["next_attempt_at"] > format_utc(clock.now)) == is_delayed


def test_what_was_skipped_before_its_proxy_came_awaits_it_again(store: Store, changes: ManualChanges) -> None:
    bring_to(store, "awaiting_proxy")
    changes.skip([KEY])
    [change] = changes.retry([KEY])
    assert change.is_changed
    assert store.proxy_closed(ASSET) == Status.READY


def test_a_reason_is_kept_in_one_line(changes: ManualChanges, store: Store, row: Row) -> None:
    bring_to(store, "failed")
    changes.skip([KEY], reason="  sold\nto others ")
    assert row()["error"] == row()["reason"] == "sold to others"


def test_only_what_still_has_the_status_is_changed(store: Store, changes: ManualChanges, row: Row) -> None:
    bring_to(store, "failed")
    [change] = changes.skip([KEY], status=Status.READY)
    assert not change.is_changed
    assert row()["status"] == "failed"


# Money


@pytest.mark.parametrize(("seconds", "is_changed"), [(0, False), (AGAIN_SECONDS - 1, False), (AGAIN_SECONDS + 1, True)])
def test_again_changes_nothing_within_ten_minutes_of_the_last(
    store: Store, changes: ManualChanges, clock: Clock, seconds: float, is_changed: bool
) -> None:
    bring_to(store, "done")
    assert changes.again([KEY])[0].is_changed
    assert not changes.again([KEY])[0].is_changed  # the run is unfinished
    item = store.claim_retry() or store.claim_new()
    assert item is not None
    store.end_attempt(item, Outcome(Status.DONE, job_id="second"))
    clock.advance(seconds)
    assert changes.again([KEY])[0].is_changed == is_changed


def test_an_earlier_again_of_the_future_does_not_forbid_one(store: Store, changes: ManualChanges, clock: Clock) -> None:
    """The clock was wrong when that was written."""
    clock.step(DAY)
    bring_to(store, "done")
    changes.again([KEY])
    item = store.claim_retry() or store.claim_new()
    assert item is not None
    store.end_attempt(item, Outcome(Status.DONE))
    clock.step(-DAY)
    assert changes.again([KEY])[0].is_changed


def test_again_for_an_asset_never_seen_adds_it(store: Store, changes: ManualChanges, row: Row) -> None:
    assert changes.add_again(ASSET)
    assert (row()["status"], row()["asked"], row()["source"]) == ("awaiting_proxy", 2, "menu")
    assert not changes.add_again(ASSET)


def test_again_remembers_the_job_of_the_run_before(store: Store, changes: ManualChanges, row: Row) -> None:
    bring_to(store, "done")
    changes.again([KEY])
    assert (row()["job_id"], row()["old_job_id"]) == (None, "job")
    assert row()["counted_on"] is None  # another run is another job to be counted


def test_a_skip_gives_a_reservation_back_once(store: Store, changes: ManualChanges, row: Row) -> None:
    bring_to(store, "reserved")
    assert store.health()["jobs_today"] == 1
    for _ in range(2):
        changes.skip([KEY])
        assert store.health()["jobs_today"] == 0
        assert row()["counted_on"] is None


@pytest.mark.parametrize("action", ["skip", "retry", "again"])
@pytest.mark.parametrize("status", [Status.READY, Status.FAILED])
def test_what_may_have_been_started_keeps_its_reservation(
    store: Store, changes: ManualChanges, row: Row, action: str, status: str
) -> None:
    item = claim(store)
    store.reserve(item, ICONIK_NOW, "")
    store.end_attempt(item, Outcome(status, "no answer", in_doubt=True))
    getattr(changes, action)([KEY])
    assert store.health()["jobs_today"] == 1
    assert row()["counted_on"] is not None


@pytest.mark.parametrize("gives_up", [True, False])
def test_retry_never_brings_forward_what_is_in_doubt(
    store: Store, changes: ManualChanges, clock: Clock, gives_up: bool
) -> None:
    item = claim(store)
    store.reserve(item, clock.now, "")
    status = Status.FAILED if gives_up else Status.READY
    store.end_attempt(item, Outcome(status, "no answer", delay=DOUBT_DELAY, in_doubt=True))
    for _ in range(3):
        clock.advance(10)
        changes.retry([KEY])
        assert store.claim_retry() is None
    clock.advance(DOUBT_DELAY)
    assert store.claim_retry() is not None


def test_what_is_due_already_keeps_its_place(store: Store, changes: ManualChanges, clock: Clock) -> None:
    for object_id in (ASSET, OTHER_ASSET):
        store.add_asset(object_id, "a.mov")
        store.proxy_closed(object_id)
        clock.advance(1)
    changes.retry([KEY])
    item = store.claim_new()
    assert item is not None
    assert item.object_id == ASSET


# All of a status


def test_who_asks_on_for_the_next_items_gets_each_once(store: Store, changes: ManualChanges) -> None:
    """Whatever becomes of the items meanwhile: here, they fail again."""
    ids = {new_id() for _ in range(410)}
    with store.database.transaction() as db:
        for object_id in ids:
            db.execute(
                "INSERT INTO items (object_id, job, status, proxy_closed_at) VALUES (?, 'analyze', 'failed', '2026')",
                (object_id,),
            )
    bring_to(store, "submitting")
    sizes, seen, last = [], set(), ("", "")
    while keys := changes.next_keys(Status.FAILED, last):
        assert all(change.is_changed for change in changes.retry(keys, status=Status.FAILED))
        store.database.run("UPDATE items SET status = 'failed' WHERE status = 'ready'")
        sizes.append(len(keys))
        seen |= {object_id for object_id, _ in keys}
        last = keys[-1]
    assert (sizes, seen) == ([200, 200, 10], ids)


def test_the_next_items_may_be_those_of_a_job_or_a_reason(store: Store, changes: ManualChanges) -> None:
    store.rules = Rules(jobs=("analyze", "faces"))
    store.proxy_closed(ASSET)
    store.add_asset(ASSET, "a.mov")
    for _ in range(2):
        item = store.claim_new()
        assert item is not None
        store.end_attempt(item, Outcome(Status.FAILED, item.job, item.job))
    assert changes.next_keys("failed", ("", ""), job="faces") == [(ASSET, "faces")]
    assert changes.next_keys("failed", ("", ""), reason="analyze") == [(ASSET, "analyze")]
    assert changes.next_keys("failed", (ASSET, "analyze")) == [(ASSET, "faces")]
    assert changes.next_keys("ready", ("", "")) == []
