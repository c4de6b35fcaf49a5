"""The limit: through a real Submitter, and its ledger on a clock that moves over midnight both ways."""

import logging
import random
import threading
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path

import pytest

from faulty_iconik import Fault, FaultyIconik
from limits import Limits
from reconciliation.changes import ALLOWED_DAYS, USAGE_DAYS, ReconciledChanges
from store import ALLOWED, PAUSED, Item, Outcome, Rules, Status, Store
from submitter import Submitter
from support import Clock, new_id, wait_until
from system.text import command, format_local, format_utc

DAY = 86400.0
NOON = 1_795_003_200.0 - 1_795_003_200.0 % DAY + DAY / 2
ANALYZE = "POST /API/transcode/v1/analyze/"
ACCEPTED = Outcome(Status.SUBMITTED, job_id="job")
NOTHING = Outcome(Status.READY, "iconik answered 503", delay=10, started_nothing=True)
DOUBT = Outcome(Status.READY, "no answer", delay=10, in_doubt=True)


@pytest.fixture
def manual(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    """A store on a clock of the test's. It is noon, and two jobs may be started a day."""
    clock.now = NOON
    store = Store(tmp_path / "manual.db", Rules(max_per_day=2), listener=True, clock=clock)
    yield store
    store.close()


def add(store: Store, count: int) -> list[str]:
    ids = [new_id() for _ in range(count)]
    for object_id in ids:
        store.add_asset(object_id, "a.mov")
        store.proxy_closed(object_id)
    return ids


def start(store: Store, outcome: Outcome) -> bool:
    """One attempt, whose request is sent if the limit allows. Returns whether it was."""
    item = store.claim_retry() or store.claim_new()
    if item is None:
        return False
    is_sent = store.reserve(item, NOON, "")
    store.end_attempt(item, outcome if is_sent else Outcome(Status.READY, is_attempt=False))
    return is_sent


def started(store: Store) -> dict[str, int]:
    """The ledger, by day."""
    rows = store.database.run("SELECT day, sum(started) AS started FROM usage GROUP BY day")
    return {row["day"]: row["started"] for row in rows}


def counted(store: Store) -> dict[str, int]:
    """How many items hold a reservation of each day."""
    rows = store.database.run(
        "SELECT counted_on AS day, count(*) AS items FROM items WHERE counted_on IS NOT NULL GROUP BY day"
    )
    return {row["day"]: row["items"] for row in rows}


# Through a real Submitter


def test_eight_workers_start_just_as_many_as_the_limit_allows(
    sandbox: FaultyIconik, store: Store, submitters: Callable[..., Submitter]
) -> None:
    """300 assets, of which 50 may be analyzed, and of whose requests some fail."""
    submitter = submitters(submitter__workers=8, limits__max_per_day=50)
    for object_id in add(store, 300):
        sandbox.create_asset("a.mov", object_id, send=False)
    sandbox.faults += [
        Fault(ANALYZE, status=400, body=b'{"errors": ["Not now"]}', times=5),
        Fault(ANALYZE, status=503, times=5),
    ]
    submitter.start()
    wait_until(lambda: len(sandbox.jobs) == 50 and store.health()["submitting"] == 0, 60)
    reads = len(sandbox.requests)
    submitter.wake()
    wait_until(lambda: store.seconds_until_due() is None)
    assert (len(sandbox.jobs), len(set(sandbox.jobs))) == (50, 50)
    assert len(sandbox.requests) == reads  # no request is spent on what is held
    health = store.health()
    assert (health["jobs_today"], health["held"], health["ready"], health["oldest_due_at"]) == (50, 250, 250, None)
    assert sum(counted(store).values()) == 50

    Limits(store).allow(7)
    submitter.wake()
    wait_until(lambda: len(sandbox.jobs) == 57 and store.health()["submitting"] == 0, 60)
    assert (store.health()["jobs_today"], store.health()["held"]) == (57, 243)


def test_a_pause_stops_real_workers_and_resume_lets_them_go_on(
    sandbox: FaultyIconik, store: Store, submitters: Callable[..., Submitter]
) -> None:
    submitter = submitters(submitter__workers=4)
    Limits(store).pause("a person", "")
    for object_id in add(store, 10):
        sandbox.create_asset("a.mov", object_id, send=False)
    assert submitter.work_once() > 0
    assert sandbox.requests == []
    submitter.start()
    Limits(store).resume()
    submitter.wake()
    wait_until(lambda: len(sandbox.jobs) == 10)


# The ledger


def test_a_retry_on_another_day_takes_no_second_reservation(manual: Store, clock: Clock) -> None:
    add(manual, 1)
    today = manual.today()
    assert start(manual, DOUBT)
    clock.advance(DAY)
    assert start(manual, DOUBT)
    assert started(manual) == counted(manual) == {today: 1}
    clock.advance(DAY)
    assert start(manual, NOTHING)  # what was taken on that day is given back to it
    assert started(manual) == {today: 0}
    assert counted(manual) == {}


def test_what_is_held_goes_on_at_midnight(manual: Store, clock: Clock) -> None:
    add(manual, 5)
    assert [start(manual, ACCEPTED) for _ in range(3)] == [True, True, False]
    clock.advance(DAY / 2 - 1)
    assert not start(manual, ACCEPTED)
    clock.advance(1)
    assert [start(manual, ACCEPTED) for _ in range(3)] == [True, True, False]
    assert list(started(manual).values()) == [2, 2]


def test_a_clock_that_goes_back_over_midnight_lets_no_more_through(manual: Store, clock: Clock) -> None:
    add(manual, 10)
    for seconds in (0, DAY, -DAY, DAY, -DAY):
        clock.step(seconds)
        while start(manual, ACCEPTED):
            pass
    assert list(started(manual).values()) == [2, 2]


@pytest.mark.long
@pytest.mark.parametrize("seed", range(5))
def test_the_ledger_is_exact_whatever_the_clock_and_the_answers_do(manual: Store, clock: Clock, seed: int) -> None:
    """By chance: attempts that end in every way, a clock that steps over midnight both ways, kills, new limits."""
    chance = random.Random(seed)
    add(manual, 40)
    claimed: list[Item] = []
    for _ in range(400):
        step = chance.random()
        if step < 0.1:
            clock.step(chance.choice([-1, 1]) * DAY * chance.random())
        elif step < 0.2:
            clock.advance(chance.random() * DAY)
        elif step < 0.23:
            manual.recover()
            claimed.clear()
        elif step < 0.26:
            manual.rules = Rules(max_per_day=chance.choice([1, 2, 5]))
        elif step < 0.7 or not claimed:
            item = manual.claim_retry() or manual.claim_new()
            if item and manual.reserve(item, clock.now, ""):
                claimed.append(item)
            elif item:
                manual.end_attempt(item, Outcome(Status.READY, is_attempt=False))
        else:
            item = claimed.pop(chance.randrange(len(claimed)))
            manual.end_attempt(item, chance.choice([ACCEPTED, NOTHING, NOTHING, DOUBT]))
        assert {day: count for day, count in started(manual).items() if count} == counted(manual)
        assert max(started(manual).values(), default=0) <= 5


# What people read and do


def test_the_limit_says_how_much_is_used_and_when_that_is_much(manual: Store) -> None:
    limits = Limits(manual)
    manual.rules = Rules(max_per_day=5)
    add(manual, 7)
    found = []
    for _ in range(6):
        limit = limits.now()
        found.append((limit.started, limit.total, limit.held, limit.is_near, limit.is_reached))
        start(manual, ACCEPTED)
    assert found == [
        (0, 5, 0, False, False),
        (1, 5, 0, False, False),
        (2, 5, 0, False, False),
        (3, 5, 0, False, False),
        (4, 5, 0, True, False),
        (5, 5, 2, True, True),
    ]
    assert limits.allow(5) == 5
    assert (limits.now().total, limits.now().is_near, limits.now().is_reached) == (10, False, False)
    assert limits.now().describe() == ""


@pytest.mark.parametrize("years", [3, -3])
def test_a_clock_that_is_wrong_for_a_moment_deletes_nothing_of_today(manual: Store, clock: Clock, years: int) -> None:
    add(manual, 4)
    Limits(manual).allow(1)
    assert [start(manual, ACCEPTED) for _ in range(4)] == [True, True, True, False]
    clock.step(years * 366 * DAY)
    ReconciledChanges(manual).delete_old_usage()
    clock.step(-years * 366 * DAY)
    assert started(manual) == {manual.today(): 3}
    assert not start(manual, ACCEPTED)
    assert Limits(manual).now().allowed == 1


def test_the_ledger_keeps_two_years_of_days_and_what_was_allowed_on_ten(manual: Store) -> None:
    days = [(date(2026, 11, 27) - timedelta(days=number)).isoformat() for number in range(USAGE_DAYS + 3)]
    for day in days:
        for job in ("analyze", "faces"):
            manual.database.run("INSERT INTO usage VALUES (:day, :job, 1, 0)", day=day, job=job)
        manual.set_state(ALLOWED + day, "1")
    ReconciledChanges(manual).delete_old_usage()
    assert list(started(manual)) == sorted(days)[3:]
    rows = manual.database.run("SELECT key FROM state WHERE key GLOB 'allowed *' ORDER BY key")
    assert [row["key"] for row in rows] == [ALLOWED + day for day in sorted(days)[-ALLOWED_DAYS:]]


def test_without_a_limit_none_is_reached(manual: Store) -> None:
    manual.rules = Rules(max_per_day=0)
    add(manual, 3)
    assert [start(manual, ACCEPTED) for _ in range(3)] == [True] * 3
    limit = Limits(manual).now()
    assert (limit.started, limit.is_near, limit.is_reached, limit.describe()) == (3, False, False, "")


def test_a_pause_says_who_and_survives_a_restart(manual: Store, clock: Clock, tmp_path: Path) -> None:
    Limits(manual).pause("ada", "the invoice")
    manual.close()
    again = Store(tmp_path / "manual.db", listener=True, clock=clock)
    reason = f"ada paused the starting of jobs at {format_local(format_utc(clock.now))} (the invoice)"
    remedy = f"To start jobs again: {command('resume')}"
    assert Limits(again).now().describe() == f"{reason}. Nothing waits so far. {remedy}"
    assert Limits(again).now().describe_wait() == f"It waits until somebody resumes, because {reason}."
    Limits(again).resume()
    assert Limits(again).pause_state() is None
    again.close()


@pytest.mark.parametrize("written", ["x", "{}", "[]", '{"since": 1}', '{"since": 1, "by": 2}', "5"])
def test_a_pause_that_a_person_wrote_by_hand_is_one(manual: Store, written: str) -> None:
    manual.set_state(PAUSED, written)
    pause = Limits(manual).pause_state()
    assert pause is not None
    assert pause.by == "somebody"
    assert Limits(manual).now().reason == "somebody paused the starting of jobs"


@pytest.mark.parametrize("written", ["", "x", "1e3", "-5", "2.5"])
def test_what_a_person_writes_as_allowed_is_harmless(manual: Store, written: str) -> None:
    manual.set_state(ALLOWED + manual.today(), written)
    add(manual, 1)
    assert Limits(manual).now().day == manual.today()
    manual.claim_new()


def test_the_limit_is_logged_when_it_is_reached_and_when_it_goes_on(
    manual: Store, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    limits = Limits(manual)
    add(manual, 3)
    for _ in range(3):
        limits.log_changes()
        start(manual, ACCEPTED)
    limits.log_changes()
    limits.log_changes()
    clock.advance(DAY)
    limits.log_changes()
    limits.pause("ada", "")
    limits.log_changes()
    limits.resume()
    limits.log_changes()
    since = format_local(format_utc(clock.now))
    remedy = f". To start jobs again: {command('resume')}"
    found = [record.getMessage().partition(". To let")[0].partition(remedy)[0] for record in caplog.records]
    assert found == [
        "2 jobs started today, as many as max_per_day allows. 1 item waits until 00:00 UTC",
        "Jobs are started again. Ready: 1 item",
        f"ada paused the starting of jobs at {since}. 1 item waits until somebody resumes",
        "Jobs are started again. Ready: 1 item",
    ]


def test_many_idle_workers_log_a_change_once(manual: Store, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    limits = Limits(manual)
    limits.pause("ada", "")
    threads = [threading.Thread(target=limits.log_changes) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(caplog.records) == 1
