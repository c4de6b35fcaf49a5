"""The items: each transition by itself, on a clock of the test's."""

import itertools
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from limits import Limits
from reconciliation.catalog import FoundAsset
from reconciliation.changes import ReconciledChanges
from store import JOB_FLOOR, UNCHANGED, Item, Outcome, Rules, Source, Status, Store
from support import ASSET, OTHER_ASSET, Clock, new_id, rows
from system.text import format_utc

DAY = 86400.0
JOBS = ("analyze", "transcribe", "faces")
FAILURE = Outcome(Status.READY, "iconik answered 503", "iconik answered 503", 10, 10, 10, started_nothing=True)
REFUSAL = replace(FAILURE, error="iconik answered 400: No credits", reason="No credits", is_refusal=True)
DOUBT = replace(FAILURE, error="no answer", reason="no answer", started_nothing=False, in_doubt=True)
FOUND = FoundAsset(ASSET, "a.mov", "2026-11-23T16:47:00Z", "video", 60.0, {})
ACCEPTED = Outcome(Status.SUBMITTED, job_id="job")


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    store = Store(tmp_path / "items.db", listener=True, clock=clock)
    yield store
    store.close()


@pytest.fixture
def row(store: Store, tmp_path: Path) -> Callable[..., sqlite3.Row]:
    """An item's row, as another program sees it."""

    def read(object_id: str = ASSET, job: str = "analyze") -> sqlite3.Row:
        [row] = rows(tmp_path / "items.db", f"object_id = '{object_id}' AND job = '{job}'")
        return row

    return read


Row = Callable[..., sqlite3.Row]


def make_ready(store: Store, object_id: str = ASSET) -> str:
    store.add_asset(object_id, "a.mov")
    assert store.proxy_closed(object_id, "v1") == Status.READY
    return object_id


def claim(store: Store, object_id: str = ASSET) -> Item:
    """Create an item, and claim it."""
    make_ready(store, object_id)
    item = store.claim_new()
    assert item is not None
    assert item.object_id == object_id
    return item


def reserve(store: Store, object_id: str = ASSET) -> Item:
    item = claim(store, object_id)
    assert store.reserve(item, 1_795_000_000.0, "p")
    return item


def id_of(item: Item | None) -> str | None:
    return item.object_id if item else None


def used(store: Store) -> int:
    return int(store.health()["jobs_today"])


# What webhooks bring


@pytest.mark.parametrize("jobs", [JOBS[:1], JOBS])
@pytest.mark.parametrize(
    "events", [events for length in (2, 3, 4) for events in itertools.product("cp", repeat=length)], ids="".join
)
def test_webhooks_in_every_order_and_repetition_make_it_ready_once(
    store: Store, row: Row, jobs: tuple[str, ...], events: tuple[str, ...]
) -> None:
    store.rules = Rules(jobs=jobs)
    became = []
    for event in events:
        became.append(store.add_asset(ASSET, "a.mov") if event == "c" else store.proxy_closed(ASSET, "v1"))
    first = Status.AWAITING_PROXY if events[0] == "c" else Status.AWAITING_CREATE
    is_complete = len(set(events)) == 2
    completes = events.index("p" if events[0] == "c" else "c") if is_complete else -1
    expected = [UNCHANGED] * len(events)
    expected[0] = first
    if is_complete:
        expected[completes] = Status.READY
    assert became == expected
    for job in jobs:
        assert row(job=job)["status"] == (Status.READY if is_complete else first)
    if is_complete:
        assert {row(job=job)["version_id"] for job in jobs} == {"v1"}
        assert store.known_version(ASSET) == "v1"
        assert sorted(item.job for item in iter(store.claim_new, None)) == sorted(jobs)


def test_a_created_asset_awaits_its_proxy(store: Store, row: Row, clock: Clock) -> None:
    store.add_asset(ASSET, "a.mov")
    assert (row()["title"], row()["source"], row()["created_at"]) == ("a.mov", Source.WEBHOOK, format_utc(clock.now))
    assert row()["next_attempt_at"] == format_utc(clock.now + store.rules.min_age)
    assert store.claim_new() is store.claim_retry() is store.claim_poll() is None


@pytest.mark.parametrize("status", [Status.SUBMITTED, Status.DONE, Status.SKIPPED, Status.FAILED, Status.SUBMITTING])
def test_late_events_and_outcomes_change_nothing(store: Store, row: Row, clock: Clock, status: str) -> None:
    item = claim(store)
    if status != Status.SUBMITTING:
        store.end_attempt(item, Outcome(status, "why"))
    before = tuple(row())
    clock.advance(1)
    assert store.add_asset(ASSET, "b.mov") == store.proxy_closed(ASSET, "v2") == UNCHANGED
    store.postpone_poll(ASSET, 5)
    if status != Status.SUBMITTING:
        store.end_attempt(item, FAILURE)
        assert not store.reserve(item, clock.now, "")
    assert tuple(row()) == before


def test_what_the_schema_forbids_cannot_be_written(store: Store, tmp_path: Path) -> None:
    store.add_asset(ASSET, None)
    with closing(sqlite3.connect(tmp_path / "items.db")) as db:
        for change in ("status = 'other'", "status = 'ready', next_attempt_at = NULL"):  # ready, but never due
            with pytest.raises(sqlite3.IntegrityError):
                db.execute(f"UPDATE items SET {change}")


# Jobs that are added or removed


def test_a_job_is_not_added_to_assets_older_than_its_floor(store: Store, clock: Clock, tmp_path: Path) -> None:
    store.add_asset(ASSET, "a.mov")
    clock.advance(60)
    store.rules = Rules(jobs=("analyze", "faces"))
    store.set_state(f"{JOB_FLOOR}faces", format_utc(clock.now))
    assert store.proxy_closed(ASSET) == Status.READY
    store.add_asset(ASSET, "a.mov")
    ReconciledChanges(store).add_assets([FOUND], Source.SEARCH, {})
    assert [one["job"] for one in rows(tmp_path / "items.db")] == ["analyze"]
    make_ready(store, OTHER_ASSET)
    assert len(rows(tmp_path / "items.db", f"object_id = '{OTHER_ASSET}'")) == 2
    assert ReconciledChanges(store).add_assets([FOUND], Source.CATCH_UP, {}) == 1
    assert len(rows(tmp_path / "items.db", f"object_id = '{ASSET}'")) == 2


def test_a_start_skips_unfinished_items_of_jobs_not_configured(store: Store, row: Row) -> None:
    store.rules = Rules(jobs=JOBS)
    make_ready(store)
    items = {item.job: item for item in iter(store.claim_new, None)}
    store.end_attempt(items["transcribe"], ACCEPTED)
    store.end_attempt(items["faces"], FAILURE)
    store.end_attempt(items["analyze"], FAILURE)
    store.add_asset(OTHER_ASSET, None)
    store.rules = Rules(jobs=("analyze",))
    assert store.skip_other_jobs() == 3
    assert [row(job=job)["status"] for job in JOBS] == ["ready", "submitted", "skipped"]
    assert row(job="faces")["error"] == "faces is not in jobs"
    assert [row(OTHER_ASSET, job)["status"] for job in JOBS] == ["awaiting_proxy", "skipped", "skipped"]
    assert store.skip_other_jobs() == 0


# Claims


@pytest.mark.parametrize(("limit", "order"), [(0, [0, 1, 2]), (10, [2, 1, 0])], ids=["without", "with"])
def test_new_items_are_claimed_the_earliest_first_or_under_a_limit_last(
    store: Store, clock: Clock, limit: int, order: list[int]
) -> None:
    store.rules = Rules(max_per_day=limit)
    ids = []
    for _ in range(3):
        ids.append(make_ready(store, new_id()))
        clock.advance(1)
    assert [id_of(store.claim_new()) for _ in range(4)] == [*(ids[number] for number in order), None]


def test_claiming_counts_the_attempt_and_takes_an_item_once(store: Store, row: Row) -> None:
    item = claim(store)
    assert (item.status, item.attempts, item.title, item.version_id) == (Status.SUBMITTING, 1, "a.mov", "v1")
    assert row()["status"] == Status.SUBMITTING
    assert store.claim_new() is store.claim_retry() is store.claim_poll() is None


def test_a_retry_that_holds_a_reservation_goes_first(store: Store, clock: Clock) -> None:
    """Of two of the same kind, it is the one that has been due longer."""
    ids = [new_id() for _ in range(4)]
    for number, object_id in enumerate(ids):
        item = reserve(store, object_id) if number >= 2 else claim(store, object_id)
        store.end_attempt(item, DOUBT if number >= 2 else FAILURE)
        clock.advance(1)
    assert store.claim_retry() is None
    clock.advance(10)
    assert [id_of(store.claim_retry()) for _ in range(5)] == [ids[2], ids[3], ids[0], ids[1], None]


def test_new_items_and_retries_are_claimed_apart(store: Store, clock: Clock) -> None:
    store.end_attempt(claim(store), FAILURE)
    make_ready(store, OTHER_ASSET)
    clock.advance(100)
    assert id_of(store.claim_retry()) == ASSET
    assert store.claim_retry() is None
    assert id_of(store.claim_new()) == OTHER_ASSET


def test_what_was_dated_by_a_clock_far_ahead_is_due_now(store: Store, clock: Clock) -> None:
    clock.step(30 * DAY)
    store.end_attempt(claim(store), FAILURE)
    make_ready(store, OTHER_ASSET)
    polled = new_id()
    store.add_asset(polled, None)
    clock.step(-30 * DAY)
    assert id_of(store.claim_retry()) == ASSET
    assert id_of(store.claim_new()) == OTHER_ASSET
    assert id_of(store.claim_poll()) == polled


def test_polls_double_and_the_last_is_at_max_age(store: Store, clock: Clock) -> None:
    store.add_asset(ASSET, None)
    begin, polls = clock.now, []
    while clock.now < begin + 30 * DAY:
        if store.claim_poll():
            polls.append(round((clock.now - begin) / 60))
        clock.advance(300)
    assert polls == [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5120, 10080]


def test_a_poll_leaves_its_item_as_it_is_and_can_be_put_off(store: Store, row: Row, clock: Clock) -> None:
    store.add_asset(ASSET, None)
    clock.advance(600)
    assert store.seconds_until_due() == 0
    assert id_of(store.claim_poll()) == ASSET
    assert (row()["status"], row()["attempts"], row()["last_attempt_at"]) == ("awaiting_proxy", 0, None)
    store.postpone_poll(ASSET, 5)
    assert store.seconds_until_due() == pytest.approx(5, abs=0.01)
    assert store.claim_poll() is None
    clock.advance(5)
    assert id_of(store.claim_poll()) == ASSET


# Outcomes


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (ACCEPTED, {"status": "submitted", "job_id": "job", "finished": "True", "error": None, "is_counted": 1}),
        (replace(ACCEPTED, status=Status.DONE), {"status": "done", "finished": "True", "is_counted": 1}),
        (Outcome(Status.SKIPPED, "why", "why", started_nothing=True), {"status": "skipped", "error": "why"}),
        (Outcome(Status.FAILED, "why", "why", started_nothing=True), {"status": "failed", "finished": "False"}),
        (FAILURE, {"status": "ready", "waited": 10, "backoff": 10, "refused": 0, "in_doubt": False}),
        (REFUSAL, {"status": "ready", "waited": 10, "refused": 1, "reason": "No credits"}),
        (DOUBT, {"status": "ready", "in_doubt": True, "is_counted": 1}),
        (
            Outcome(Status.READY, is_attempt=False, started_nothing=True),
            {"status": "ready", "attempts": 0, "last_attempt_at": None, "error": None},
        ),
        (
            Outcome(Status.SUBMITTED, job_id="theirs", found=True, started_nothing=True),
            {"status": "submitted", "job_id": "theirs", "is_counted": 0},
        ),
        (Outcome(Status.FAILED, "why", in_doubt=True), {"status": "failed", "in_doubt": True, "is_counted": 1}),
    ],
    ids=["accepted", "done", "skipped", "failed", "failure", "refusal", "doubt", "given back", "found", "given up"],
)
def test_each_outcome_is_recorded_whole(store: Store, row: Row, outcome: Outcome, expected: dict[str, Any]) -> None:
    store.end_attempt(reserve(store), outcome)
    found = {**dict(row()), "in_doubt": row()["in_doubt_since"] is not None, "is_counted": used(store)}
    expected = {"attempts": 1, "in_doubt": False, "is_counted": 0, **expected}
    assert {key: found[key] for key in expected} == expected
    assert (row()["counted_on"] is not None) == bool(expected["is_counted"])


def test_an_acceptance_ends_delays_doubt_and_a_persons_wish(store: Store, row: Row, clock: Clock) -> None:
    store.end_attempt(reserve(store), DOUBT)
    store.database.run("UPDATE items SET asked = 2")
    clock.advance(10)
    item = store.claim_retry()
    assert item is not None
    store.end_attempt(item, ACCEPTED)
    assert [row()[name] for name in ("waited", "backoff", "asked", "in_doubt_since")] == [0, 0, 0, None]
    assert row()["submitted_at"] == format_utc(clock.now)


def test_absence_is_dated_once_and_a_new_request_ends_it(store: Store, row: Row, clock: Clock) -> None:
    store.end_attempt(reserve(store), DOUBT)
    since = format_utc(clock.now + 10)
    for _ in range(2):
        clock.advance(10)
        item = store.claim_retry()
        assert item is not None
        store.end_attempt(item, replace(DOUBT, is_absent=True))
        assert row()["absent_since"] == since
    clock.advance(10)
    item = store.claim_retry()
    assert item is not None
    assert store.reserve(item, clock.now, "")
    assert row()["absent_since"] is None


def test_a_failure_waits_for_its_delay(store: Store, clock: Clock) -> None:
    store.end_attempt(claim(store), FAILURE)
    assert store.seconds_until_due() == pytest.approx(10, abs=0.01)
    clock.advance(9.9)
    assert store.claim_retry() is None
    clock.advance(0.2)
    assert store.seconds_until_due() == 0
    item = store.claim_retry()
    assert item is not None
    assert (item.attempts, item.waited) == (2, 10)


def test_what_is_accepted_makes_due_what_was_refused_in_its_words(store: Store, row: Row, clock: Clock) -> None:
    others = replace(REFUSAL, reason="No role", delay=900)
    for object_id, outcome in ((ASSET, replace(REFUSAL, delay=900)), (OTHER_ASSET, others)):
        store.end_attempt(claim(store, object_id), outcome)
    store.release_refused("No credits")
    assert id_of(store.claim_retry()) == ASSET
    assert store.claim_retry() is None
    clock.advance(100)
    store.probe_refused(200)
    assert store.claim_retry() is None
    store.probe_refused(50)
    assert id_of(store.claim_retry()) == OTHER_ASSET


def test_an_item_is_refused_alone_if_no_other_waits_for_the_same(store: Store, clock: Clock) -> None:
    item, other = claim(store), claim(store, OTHER_ASSET)
    store.end_attempt(item, replace(REFUSAL, delay=DAY))
    assert store.is_refused_alone(item, "No credits")
    assert not store.is_refused_alone(other, "No credits")
    clock.advance(DAY - 60)  # the other one is tried soon, so this one need not be
    assert store.is_refused_alone(other, "No credits")


# The limit


def test_32_threads_never_reserve_more_than_the_limit(store: Store) -> None:
    store.rules = Rules(max_per_day=0)
    items = [claim(store, new_id()) for _ in range(64)]
    store.rules = Rules(max_per_day=20)
    barrier = threading.Barrier(32)
    reserved: list[bool] = []

    def run(mine: list[Item]) -> None:
        barrier.wait()
        reserved.extend(store.reserve(item, 1_795_000_000.0, "") for item in mine)

    threads = [threading.Thread(target=run, args=(items[number::32],)) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(reserved), sum(reserved), used(store)) == (64, 20, 20)


def test_no_more_new_items_are_claimed_than_the_limit_has_room_for(store: Store) -> None:
    store.rules = Rules(max_per_day=2)
    for _ in range(4):
        make_ready(store, new_id())
    items = [store.claim_new() for _ in range(3)]
    assert [item is not None for item in items] == [True, True, False]
    assert items[0] is not None
    store.end_attempt(items[0], FAILURE)  # nothing was started, so there is room again
    assert store.claim_new() is not None


def test_a_reservation_is_kept_and_goes_on_when_the_limit_is_reached(store: Store, clock: Clock) -> None:
    store.rules = Rules(max_per_day=1)
    store.end_attempt(reserve(store), DOUBT)
    make_ready(store, OTHER_ASSET)
    clock.advance(10)
    assert store.claim_new() is None
    item = store.claim_retry()
    assert item is not None
    assert store.reserve(item, clock.now, "")
    assert used(store) == 1


def test_allow_lets_more_through_today_and_only_today(store: Store, clock: Clock) -> None:
    store.rules = Rules(max_per_day=1)
    store.end_attempt(reserve(store), ACCEPTED)
    for _ in range(4):
        make_ready(store, new_id())
    assert store.claim_new() is None
    assert (Limits(store).allow(1), Limits(store).allow(1)) == (1, 2)
    assert [store.claim_new() is not None for _ in range(3)] == [True, True, False]
    store.recover()
    clock.advance(DAY)
    assert [(store.claim_new() or store.claim_retry()) is not None for _ in range(2)] == [True, False]


def test_while_a_person_has_paused_it_nothing_is_started(store: Store, clock: Clock) -> None:
    item = claim(store)
    make_ready(store, OTHER_ASSET)
    polled = new_id()
    store.add_asset(polled, None)
    Limits(store).pause("a person", "")
    assert not store.reserve(item, clock.now, "")
    store.end_attempt(item, Outcome(Status.READY, is_attempt=False))
    assert store.claim_new() is store.claim_retry() is None
    clock.advance(600)
    assert id_of(store.claim_poll()) == polled  # webhooks and polls go on
    Limits(store).resume()
    assert {id_of(store.claim_new()), id_of(store.claim_new())} == {ASSET, OTHER_ASSET}


# A start


def test_a_start_doubts_only_what_had_reserved_its_request(store: Store, row: Row, clock: Clock) -> None:
    reserve(store)
    claim(store, OTHER_ASSET)
    assert store.recover() == 2
    assert row()["in_doubt_since"] is not None
    assert row(OTHER_ASSET)["in_doubt_since"] is None
    assert id_of(store.claim_new()) == OTHER_ASSET
    assert store.claim_retry() is None
    clock.advance(store.rules.doubt_delay)
    assert id_of(store.claim_retry()) == ASSET


def test_a_start_brings_failures_forward_but_no_refusals_nor_doubt(store: Store, row: Row, clock: Clock) -> None:
    refused, doubted = new_id(), new_id()
    store.end_attempt(claim(store), replace(FAILURE, delay=900, backoff=900, waited=900))
    store.end_attempt(claim(store, refused), replace(REFUSAL, delay=900))
    store.end_attempt(reserve(store, doubted), replace(DOUBT, delay=900))
    clock.advance(100)
    assert store.recover() == 0
    assert row()["waited"] == pytest.approx(100, abs=1)  # what it did not wait does not count
    assert [id_of(store.claim_retry()) for _ in range(2)] == [ASSET, None]
    clock.advance(store.rules.doubt_delay)
    assert [id_of(store.claim_retry()) for _ in range(2)] == [doubted, None]


# For people


def test_health_says_what_is_due_and_what_is_held(store: Store, clock: Clock) -> None:
    nothing = {"ready": 0, "submitting": 0, "failed": 0, "held": 0, "jobs_today": 0, "oldest_due_at": None}
    assert store.health() == {**nothing, "max_per_day": 0}
    store.end_attempt(claim(store), replace(FAILURE, delay=60))
    assert store.health()["oldest_due_at"] is None
    clock.advance(30)
    since = format_utc(clock.now)
    make_ready(store, OTHER_ASSET)
    clock.advance(60)
    assert store.health() == {**nothing, "ready": 2, "oldest_due_at": since, "max_per_day": 0}


def test_what_the_limit_holds_is_not_due(store: Store, clock: Clock) -> None:
    store.rules = Rules(max_per_day=1)
    store.end_attempt(reserve(store), DOUBT)
    make_ready(store, OTHER_ASSET)
    clock.advance(5)
    assert (store.health()["held"], store.health()["oldest_due_at"]) == (1, None)
    clock.advance(10)  # the one that holds the reservation is due
    assert store.health()["oldest_due_at"] == format_utc(clock.now - 5)
    Limits(store).pause("a person", "")
    assert (store.health()["held"], store.health()["oldest_due_at"]) == (2, None)
    assert store.seconds_until_due() is None


def test_the_views_and_the_articles_query_keep_working(store: Store, tmp_path: Path) -> None:
    store.end_attempt(claim(store), Outcome(Status.FAILED, "refused"))
    store.end_attempt(claim(store, OTHER_ASSET), FAILURE)
    done = new_id()
    store.end_attempt(claim(store, done), ACCEPTED)
    with closing(sqlite3.connect(tmp_path / "items.db")) as db:
        problems = db.execute("SELECT object_id, status, error FROM problems").fetchall()
        assert problems == [(ASSET, "failed", "refused"), (OTHER_ASSET, "ready", "iconik answered 503")]
        unfinished = db.execute("select object_id from items where finished='False'").fetchall()
        assert sorted(unfinished) == sorted([(ASSET,), (OTHER_ASSET,)])
    assert {one["status"]: one["items"] for one in store.overview()} == {"ready": 1, "submitted": 1, "failed": 1}


def test_what_must_be_remembered_is(store: Store, tmp_path: Path) -> None:
    assert store.state("a") is None
    store.set_state("a", "1")
    store.set_state("a", "2")
    with closing(Store(tmp_path / "items.db")) as other:
        assert other.state("a") == "2"


@pytest.mark.parametrize("written", ["", "soon", "9999-12-31T23:59:59Z", "0000", "~", "2026-13-45", "1e99", "\x00"])
@pytest.mark.parametrize("column", ["next_attempt_at", "created_at", "last_attempt_at", "in_doubt_since", "counted_on"])
def test_whatever_a_person_writes_as_a_time_is_harmless(store: Store, clock: Clock, column: str, written: str) -> None:
    """A worker neither spins nor leaves the item for ever."""
    store.end_attempt(reserve(store), DOUBT)
    store.add_asset(OTHER_ASSET, None)
    store.database.run(f"UPDATE items SET {column} = :written", written=written)
    store.recover()
    claimed = set()
    for _ in range(100):
        seconds = store.seconds_until_due()
        item = store.claim_retry() or store.claim_poll()
        assert seconds != 0 or item is not None
        if item and item.status == Status.SUBMITTING:
            store.end_attempt(item, FAILURE)
        claimed.add(id_of(item))
        clock.advance(3600)
    assert ASSET in claimed


# Queries


def everything_the_service_asks(store: Store, clock: Clock) -> None:
    """Each query that the webhooks, the submitter and the reconciler make, with rows that it finds."""
    changes = ReconciledChanges(store)
    for limit in (0, 5):
        store.rules = Rules(max_per_day=limit)
        item = reserve(store, new_id())
        store.end_attempt(item, REFUSAL)
        clock.advance(DAY)
        store.seconds_until_due()
        store.add_asset(new_id(), None)
        store.claim_retry()
        store.claim_poll()
        store.postpone_poll(ASSET, 5)
        store.is_refused_alone(item, "No credits")
        store.release_refused("No credits")
        store.probe_refused(600)
        store.known_version(ASSET)
        store.recover()
        store.skip_other_jobs()
        store.health()
        store.overview()
        Limits(store).now()
        changes.add_assets([FOUND], Source.SEARCH, {"key": "value"})
        changes.is_known(ASSET)
        for found in changes.submitted(("", ""), 0):
            changes.note_job_id(found, "job")
            changes.end_job(found, Outcome(Status.DONE))
        changes.unmeasured(0)
        changes.measure(FOUND)
        changes.delete_awaiting_create()
        changes.delete_old_usage()
        store.end_attempt(reserve(store, new_id()), ACCEPTED)


def test_every_query_of_the_service_uses_an_index(store: Store, clock: Clock) -> None:
    """A partial index holds only the items of one status: to scan that one is no scan of the table."""
    statements: list[str] = []
    with store.database.transaction() as db:
        db.set_trace_callback(statements.append)
    everything_the_service_asks(store, clock)
    with store.database.transaction() as db:
        db.set_trace_callback(None)
    asked = {one for one in statements if one.split()[0] in ("SELECT", "UPDATE", "INSERT", "DELETE")}
    plans = [
        (step["detail"], statement)
        for statement in sorted(asked)
        for step in store.database.run(f"EXPLAIN QUERY PLAN {statement}")
    ]
    assert len(plans) > 60
    assert [plan for plan in plans if plan[0].startswith("SCAN items") and "INDEX" not in plan[0]] == []
