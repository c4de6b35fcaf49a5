"""The transitions of items in a real file, by a clock of the test's."""

import itertools
import re
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from reconciliation.changes import ReconciledChanges
from store import (
    ADD_ASSET,
    ALLOWED,
    NEWEST_RETRY,
    NEWEST_UPLOAD,
    PAUSED,
    WANTED_AGAIN,
    Item,
    Outcome,
    Rules,
    Source,
    Status,
    Store,
)
from support import ASSET, OTHER_ASSET, Clock, new_id
from system.database import StoreRefused, StoreUnavailable
from system.text import format_utc

JOBS = ("analyze", "transcribe", "faces")
DAY = 86400.0
VERSION = "11111111-0000-0000-0000-000000000000"

Stores = Callable[..., Store]


@pytest.fixture
def stores(tmp_path: Path, clock: Clock) -> Iterator[Stores]:
    made: list[Store] = []

    def make(**rules: Any) -> Store:
        for store in made:
            store.close()
        made.append(Store(tmp_path / "items.db", Rules(**rules), listener=True, clock=clock))
        return made[-1]

    yield make
    made[-1].close()


@pytest.fixture
def store(stores: Stores) -> Store:
    return stores()


def row(store: Store, object_id: str = ASSET, job: str = "analyze") -> dict[str, Any]:
    rows = store.database.run("SELECT * FROM items WHERE object_id = :id AND job = :job", id=object_id, job=job)
    return dict(rows[0])


def ready(store: Store, count: int = 1) -> list[str]:
    ids = [new_id() for _ in range(count)]
    for object_id in ids:
        store.add_asset(object_id, "a.mov")
        store.proxy_closed(object_id)
    return ids


def claimed(store: Store) -> Item:
    item = store.claim_new()
    assert item
    return item


def used(store: Store) -> list[tuple[str, int, int]]:
    return [(one["day"], one["started"], one["found"]) for one in store.database.run("SELECT * FROM usage")]


# Webhooks.


@pytest.mark.parametrize("jobs", [("analyze",), JOBS])
@pytest.mark.parametrize("order", list(itertools.product(["create", "proxy"], repeat=4)))
def test_webhooks_in_any_order_and_repetition_lead_to_one_item_a_job(
    stores: Stores, jobs: tuple[str, ...], order: tuple[str, ...]
) -> None:
    store = stores(jobs=jobs)
    for kind in order:
        if kind == "create":
            store.add_asset(ASSET, "a.mov")
        else:
            store.proxy_closed(ASSET, VERSION)
    expected = {
        frozenset(["create", "proxy"]): Status.READY,
        frozenset(["create"]): Status.AWAITING_PROXY,
        frozenset(["proxy"]): Status.AWAITING_CREATE,
    }[frozenset(order)]
    rows = store.database.run("SELECT job, status FROM items")
    assert {(one["job"], one["status"]) for one in rows} == {(job, expected) for job in jobs}


def test_what_a_webhook_changed_is_what_it_returns(store: Store) -> None:
    assert store.add_asset(ASSET, "a.mov") == Status.AWAITING_PROXY
    assert store.add_asset(ASSET, "a.mov") == "unchanged"
    assert store.proxy_closed(ASSET, VERSION) == Status.READY
    assert store.proxy_closed(ASSET, VERSION) == "unchanged"
    assert store.known_version(ASSET) == (VERSION, "a.mov")


def jobs_of(store: Store, object_id: str) -> list[str]:
    return [one["job"] for one in store.database.run("SELECT job FROM items WHERE object_id = :id", id=object_id)]


@pytest.mark.parametrize("step", [0, -3600.0, 3600.0])
def test_a_job_that_is_added_later_is_not_for_older_assets(stores: Stores, clock: Clock, step: float) -> None:
    """Neither a webhook that comes twice nor the reconciler's overlap adds it, whatever the clock; catch-up does."""
    store = stores()
    store.add_asset(ASSET, "a.mov")
    clock.step(step)
    store = stores(jobs=("analyze", "faces"))
    store.add_asset(ASSET, "a.mov")
    store.proxy_closed(ASSET)
    store.proxy_closed(ASSET)
    store.database.run(ADD_ASSET, **store.asset_values(ASSET, "a.mov", Source.SEARCH))
    assert jobs_of(store, ASSET) == ["analyze"]
    store.add_asset(OTHER_ASSET, "b.mov")
    assert jobs_of(store, OTHER_ASSET) == ["analyze", "faces"]
    store.database.run(ADD_ASSET, **store.asset_values(ASSET, "a.mov", Source.CATCH_UP))
    assert jobs_of(store, ASSET) == ["analyze", "faces"]


def test_a_job_that_was_away_is_not_for_the_assets_of_that_time(stores: Stores) -> None:
    stores(jobs=("analyze", "faces")).add_asset(new_id(), "before.mov")
    stores().add_asset(ASSET, "a.mov")
    store = stores(jobs=("analyze", "faces"))
    store.add_asset(ASSET, "a.mov")
    store.proxy_closed(ASSET)
    assert jobs_of(store, ASSET) == ["analyze"]


def test_a_job_that_is_added_between_proxy_and_create_is_for_that_asset(stores: Stores) -> None:
    stores().proxy_closed(ASSET)
    store = stores(jobs=("analyze", "faces"))
    store.add_asset(ASSET, "a.mov")
    store.proxy_closed(ASSET)
    assert {row["status"] for row in store.database.run("SELECT status FROM items")} == {Status.READY}
    assert jobs_of(store, ASSET) == ["analyze", "faces"]


def test_a_job_that_is_added_between_a_proxy_and_its_create_is_for_that_asset(stores: Stores) -> None:
    store = stores()
    store.proxy_closed(ASSET)
    store = stores(jobs=("analyze", "faces"))
    store.add_asset(ASSET, "a.mov")
    assert row(store)["status"] == Status.READY
    assert row(store, job="faces")["status"] == Status.AWAITING_PROXY


# Claims.


def test_new_items_are_claimed_in_order_and_under_a_limit_the_newest(stores: Stores, clock: Clock) -> None:
    store = stores()
    ids = []
    for _ in range(3):
        ids += ready(store)
        clock.advance(1)
    assert claimed(store).object_id == ids[0]
    store = stores(max_per_day=10)
    assert claimed(store).object_id == ids[2]


def test_what_becomes_due_during_the_look_is_due_at_once(tmp_path: Path) -> None:
    """Otherwise every worker would wait half a minute for it."""
    seconds_per_look = 0.0
    now = 1_795_000_000.0

    def clock() -> float:
        nonlocal now
        now += seconds_per_look
        return now

    store = Store(tmp_path / "items.db", listener=True, clock=clock)
    ready(store)
    store.end_attempt(claimed(store), Outcome(Status.READY, "no", delay=0.5))
    seconds_per_look = 0.3
    assert store.seconds_until_due() == 0
    store.close()


def test_under_a_limit_the_newest_assets_go_first_retried_or_not(stores: Stores, clock: Clock) -> None:
    """Yesterday's were all refused; of today's, one failed once."""
    store = stores(max_per_day=10)
    yesterday = ready(store, 3)
    for _ in yesterday:
        clock.advance(1)
        store.end_attempt(claimed(store), Outcome(Status.READY, "no", delay=10, is_refusal=True))
    clock.advance(24 * 3600)
    today = ready(store, 1)
    store.end_attempt(claimed(store), Outcome(Status.READY, "503", delay=10))
    clock.advance(60)
    later, taken = ready(store, 1), []
    assert store.claim_retry() is None  # the newest is new
    taken.append(claimed(store).object_id)
    while retried := store.claim_retry():
        taken.append(retried.object_id)
    assert taken[:2] == [*later, *today]
    assert sorted(taken[2:]) == sorted(yesterday)


def test_under_a_limit_a_retry_without_a_date_is_claimed(stores: Stores) -> None:
    store = stores(max_per_day=10)
    ready(store)
    store.end_attempt(claimed(store), Outcome(Status.READY, "no"))
    store.database.run("UPDATE items SET created_at = NULL")
    assert store.claim_retry()


def test_a_retry_is_claimed_when_it_is_due(store: Store, clock: Clock) -> None:
    ready(store)
    store.end_attempt(claimed(store), Outcome(Status.READY, "no", delay=10))
    assert store.claim_new() is None
    assert store.claim_retry() is None
    assert store.seconds_until_due() == pytest.approx(10)
    clock.advance(10)
    assert store.seconds_until_due() == 0
    item = store.claim_retry()
    assert item
    assert item.attempts == 2


@pytest.mark.parametrize("status", ["ready", "awaiting_proxy"])
def test_a_row_that_cannot_be_claimed_keeps_no_worker_awake(store: Store, status: str) -> None:
    """A person's trigger protects one, and the key of the other is not UTF-8."""
    for key in ("'protected'", "CAST(x'ff41' AS TEXT)"):
        store.database.run(
            f"""INSERT INTO items (object_id, status, last_attempt_at, next_attempt_at)
            VALUES ({key}, :status, :now, :now)""",
            status=status,
            now=store.now(),
        )
    store.database.run("CREATE TRIGGER hers BEFORE UPDATE ON items BEGIN SELECT RAISE(ABORT, 'hands off'); END")
    claim = store.claim_retry if status == "ready" else store.claim_poll
    with pytest.raises(StoreRefused):
        claim()
    assert claim() is None
    assert store.seconds_until_due() is None


@pytest.mark.parametrize("wrong_by", [2 * 3600.0, 30 * DAY, 4000 * DAY])
@pytest.mark.parametrize("is_start", [False, True])
def test_a_retry_that_is_due_later_than_its_delay_is_due_now(
    store: Store, clock: Clock, wrong_by: float, is_start: bool
) -> None:
    """The clock was ahead when that was written, as when a VM boots whose clock is on local time."""
    ready(store)
    store.end_attempt(claimed(store), Outcome(Status.READY, "no", delay=10, backoff=10))
    assert store.claim_retry() is None
    clock.step(wrong_by)
    if is_start:
        store.recover()
    else:
        item = store.claim_retry()
        assert item
        store.end_attempt(item, Outcome(Status.READY, "no", delay=20, backoff=20))
    clock.step(-wrong_by)
    clock.advance(61)
    assert store.claim_retry()


def test_a_refusal_of_a_day_is_not_taken_for_a_wrong_clock(store: Store, clock: Clock) -> None:
    ready(store)
    store.end_attempt(claimed(store), Outcome(Status.READY, "no", delay=DAY, backoff=DAY, is_refusal=True))
    clock.advance(3600)
    assert store.claim_retry() is None


def test_while_a_person_paused_nothing_is_claimed_but_polls(store: Store, clock: Clock) -> None:
    ready(store)
    store.end_attempt(claimed(store), Outcome(Status.READY, "no", delay=1))
    ready(store)
    store.add_asset(ASSET, None)
    clock.advance(700)
    store.set_state(PAUSED, '{"since": "", "by": "me"}')
    assert (store.claim_new(), store.claim_retry()) == (None, None)
    assert store.claim_poll()
    health = store.health()
    assert (health["held"], health["oldest_due_at"]) == (2, None)
    store.set_state(PAUSED, "")
    assert store.claim_new()
    assert store.claim_retry()


def test_a_claim_is_for_one_worker(stores: Stores) -> None:
    store = stores()
    ids = ready(store, 40)
    found: list[str] = []

    def work() -> None:
        while item := store.claim_new():
            found.append(item.object_id)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted(ids)


def test_a_claim_that_was_written_and_then_fails_is_put_back(store: Store, tmp_path: Path) -> None:
    """R5: the file is moved away in that moment, and comes back."""
    [object_id] = ready(store)
    file, away = tmp_path / "items.db", tmp_path / "away"

    def move_away(statement: str) -> None:
        if statement == "COMMIT":
            file.rename(away)

    with store.database.reading() as connection:
        connection.set_trace_callback(move_away)
    with pytest.raises(StoreUnavailable):
        store.claim_new()
    connection.set_trace_callback(None)
    away.rename(file)
    assert row(store, object_id)["status"] == Status.SUBMITTING
    item = store.claim_new()
    assert item
    assert (item.object_id, item.attempts) == (object_id, 1)
    assert store.claim_new() is None


# Outcomes.


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (Outcome(Status.SUBMITTED, job_id="j"), {"status": "submitted", "job_id": "j", "asked": 0, "waited": 0}),
        (Outcome(Status.DONE, found=True), {"status": "done", "finished": "True"}),
        (Outcome(Status.SKIPPED, "why"), {"status": "skipped", "error": "why", "finished": "True"}),
        (Outcome(Status.FAILED, "why"), {"status": "failed", "error": "why", "finished": "False"}),
        (
            Outcome(Status.READY, "why", "w", delay=9, backoff=9, waited=9, is_refusal=True),
            {"status": "ready", "backoff": 9, "waited": 14, "refused": 1, "reason": "w", "attempts": 1},
        ),
        (Outcome(Status.READY, is_attempt=False), {"status": "ready", "attempts": 0, "last_attempt_at": None}),
        (Outcome(Status.READY, "why", delay=9, is_absent=True), {"waited": 5, "absent_since": "now"}),
    ],
)
def test_an_outcome_is_written_whole(store: Store, outcome: Outcome, expected: dict[str, Any]) -> None:
    ready(store)
    store.database.run("UPDATE items SET waited = 5, asked = 1")
    item = claimed(store)
    store.end_attempt(item, outcome)
    found = row(store, item.object_id)
    expected = {key: store.now() if value == "now" else value for key, value in expected.items()}
    assert {key: found[key] for key in expected} == expected


def test_an_outcome_changes_only_an_item_that_is_submitting(store: Store) -> None:
    ready(store)
    item = claimed(store)
    store.database.run("UPDATE items SET status = 'skipped'")
    store.end_attempt(item, Outcome(Status.SUBMITTED, started_nothing=True, found=True))
    assert row(store, item.object_id)["status"] == Status.SKIPPED
    assert used(store) == []


# The limit.


def test_a_reservation_is_taken_once_and_given_back_once(stores: Stores, clock: Clock) -> None:
    store = stores(max_per_day=1)
    ready(store)
    item = claimed(store)
    assert store.reserve(item, clock.now, "")
    store.end_attempt(item, Outcome(Status.READY, "no answer", delay=0.5, in_doubt=True))
    clock.advance(24 * 3600)
    again = store.claim_retry()
    assert again
    assert store.reserve(again, clock.now, "")
    [(day, started, _)] = used(store)
    assert (day, started) == (format_utc(clock.now - 24 * 3600)[:10], 1)
    store.end_attempt(again, Outcome(Status.READY, "refused", delay=1, started_nothing=True))
    assert [started for _, started, _ in used(store)] == [0]


def test_a_job_under_way_counts_so_no_asset_is_read_in_vain(stores: Stores, clock: Clock) -> None:
    store = stores(max_per_day=2)
    ready(store, 5)
    first, second = claimed(store), claimed(store)
    assert store.claim_new() is None
    assert store.held_by() == "", "none of them was started yet"
    store.end_attempt(first, Outcome(Status.SKIPPED, "deleted"))
    third = claimed(store)
    assert store.reserve(second, clock.now, "")
    assert store.reserve(third, clock.now, "")
    assert store.claim_new() is None
    assert store.held_by() == store.today()
    assert store.health()["held"] == 2


def test_a_reserved_retry_goes_on_when_the_limit_is_reached(stores: Stores, clock: Clock) -> None:
    store = stores(max_per_day=1)
    ready(store, 2)
    item = claimed(store)
    store.reserve(item, clock.now, "")
    store.end_attempt(item, Outcome(Status.READY, "no answer", delay=1, in_doubt=True))
    clock.advance(1)
    assert store.claim_new() is None
    retry = store.claim_retry()
    assert retry
    assert retry.object_id == item.object_id


def test_allow_and_the_next_day_let_more_through(stores: Stores, clock: Clock) -> None:
    store = stores(max_per_day=1)
    ready(store, 3)
    store.reserve(claimed(store), clock.now, "")
    assert store.claim_new() is None
    store.set_state(ALLOWED + store.today(), "1")
    store.reserve(claimed(store), clock.now, "")
    assert store.claim_new() is None
    clock.advance(24 * 3600)
    assert store.claim_new()


def test_threads_never_exceed_the_limit_over_midnight_both_ways(stores: Stores, clock: Clock) -> None:
    store = stores(max_per_day=25)
    ready(store, 120)

    def work() -> None:
        while item := store.claim_new():
            if store.reserve(item, clock.now, ""):
                store.end_attempt(item, Outcome(Status.SUBMITTED))
            else:
                store.end_attempt(item, Outcome(Status.READY, is_attempt=False))

    for step in (0, 24 * 3600, -24 * 3600, 24 * 3600, 24 * 3600):
        clock.step(step)
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [started for _, started, _ in used(store)] == [25, 25, 25]
    assert len(store.database.run("SELECT 1 FROM items WHERE status = 'submitted'")) == 75


@pytest.mark.parametrize(
    ("statement", "index"),
    [
        (NEWEST_UPLOAD, "items_new_uploads"),
        (NEWEST_RETRY, "items_upload_retries"),
        (NEWEST_RETRY, "items_new_uploads"),
        (WANTED_AGAIN, "items_wanted_again"),
    ],
)
def test_what_catch_up_added_is_not_read_where_uploads_go_first(store: Store, statement: str, index: str) -> None:
    """There may be a hundred thousand of them, and this is asked before each job."""
    with store.database.reading() as db:
        plan = [row["detail"] for row in db.execute(f"EXPLAIN QUERY PLAN {statement}", {"now": "", "left_alone": "[]"})]
    assert [step for step in plan if f"USING COVERING INDEX {index}" in step], plan


# Starts.


def test_a_start_skips_unfinished_items_of_other_jobs(stores: Stores) -> None:
    store = stores(jobs=JOBS)
    ready(store)
    store.add_asset(new_id(), "its proxy is not closed.mov")
    store = stores(jobs=("analyze",))
    early = new_id()
    store.proxy_closed(early)
    assert store.skip_other_jobs() == 4
    store.rules = Rules(jobs=("faces",))
    assert store.add_asset(early, "its proxy came before the jobs changed.mov") == "awaiting_proxy"
    rows = store.database.run("SELECT job, error FROM items WHERE status = 'skipped' ORDER BY job")
    assert [one["error"] for one in rows] == ["faces is not in jobs"] * 2 + ["transcribe is not in jobs"] * 2


def test_a_start_makes_what_was_under_way_ready(stores: Stores, clock: Clock) -> None:
    store = stores()
    ready(store, 3)
    sent, not_sent, in_doubt = claimed(store), claimed(store), claimed(store)
    store.reserve(sent, clock.now, "")
    store.reserve(in_doubt, clock.now, "")
    store.end_attempt(in_doubt, Outcome(Status.READY, "no answer", delay=1, in_doubt=True))
    store = stores()
    assert store.recover() == 2
    assert row(store, sent.object_id)["next_attempt_at"] == store.now(90)
    assert row(store, in_doubt.object_id)["next_attempt_at"] == store.now(90)
    assert row(store, not_sent.object_id)["next_attempt_at"] == store.now()


def test_a_start_does_not_bring_refusals_forward(store: Store) -> None:
    ready(store)
    store.end_attempt(claimed(store), Outcome(Status.READY, "no", delay=5000, backoff=5000, is_refusal=True))
    store.recover()
    assert store.claim_retry() is None


# What the service asks itself uses an index.


def test_every_query_of_the_service_uses_an_index(stores: Stores, clock: Clock, tmp_path: Path) -> None:
    store = stores(max_per_day=5, jobs=JOBS)
    statements: list[str] = []
    with store.database.transaction() as connection:
        connection.set_trace_callback(statements.append)
    ready(store, 2)
    item = claimed(store)
    store.reserve(item, clock.now, "")
    store.end_attempt(item, Outcome(Status.READY, "no", "no", delay=1, is_refusal=True))
    clock.advance(2)
    store.claim_retry()
    store.claim_poll()
    store.seconds_until_due()
    store.is_refused_alone(item, "no")
    store.release_refused("no")
    store.probe_refused(600)
    store.health()
    store.overview()
    store.known_version(ASSET)
    store.recover()
    store.skip_other_jobs()
    store.rules = Rules(max_per_day=1, jobs=JOBS)
    assert store.held_by() == store.today()
    changes = ReconciledChanges(store)
    changes.submitted(("", ""), 0)
    changes.unmeasured("", 0)
    changes.delete_awaiting_create()
    changes.delete_old_usage()
    connection.set_trace_callback(None)
    asked = {one for one in statements if re.match("SELECT|UPDATE|INSERT|DELETE", one.strip())}
    assert len(asked) > 15
    with closing(sqlite3.connect(tmp_path / "items.db")) as db:
        for name, count in (("later", 2), ("seconds_between", 2)):
            db.create_function(name, count, lambda *_: None, deterministic=True)
        for statement in asked:
            plan = [step[3] for step in db.execute(f"EXPLAIN QUERY PLAN {statement}")]
            scans = [step for step in plan if re.match(r"SCAN (items|one)\b", step) and "INDEX" not in step]
            assert scans == [], f"{statement}\n{plan}"
