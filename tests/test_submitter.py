import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import submitter as submitter_module
from circuit_breaker import CircuitBreaker
from faulty_iconik import Fault, FaultyIconik
from iconik_client import IconikClient, IconikRateLimited, IconikServerError, IconikUnavailable
from reconciliation.changes import Corrections
from simulation import wait_by
from store import Store
from submitter import Submitter
from support import ASSET, OTHER_ASSET, Clock, make_config, new_id, rows, wait_until
from system.text import format_utc, parse_time

DAY = 24 * 3600.0
MIN_AGE = 600.0
FOR_EVER = float("inf")
OK_JSON, HTML = b'{"id": "a job"}', b"<html>Sorry"
REFUSAL, NO_ERRORS = b'{"errors": ["No such thing"]}', b'{"message": "No such thing"}'
TROUBLE = IconikServerError("iconik answered 503", status=503)


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    store = Store(tmp_path / "items.db", listener=True, clock=clock)
    yield store
    store.close()


@pytest.fixture
def make(
    store: Store, sandbox: FaultyIconik, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Submitter]:
    """Makes submitters with the default delays and without chance, by a clock of ours, whose `_work_once` is called."""
    monkeypatch.setattr("random.uniform", lambda low, high: low)

    def make(**values: object) -> Submitter:
        delays = {"submitter__retry_delay": 10, "submitter__max_retry_delay": 900}
        config = make_config(tmp_path, sandbox, **{**delays, **values})
        breaker = wait_by(clock, CircuitBreaker(config.submitter, clock))
        return Submitter(store, IconikClient(config.iconik), breaker, config)

    return make


@pytest.fixture
def submitter(make: Callable[..., Submitter]) -> Submitter:
    return make()


@pytest.fixture
def row(tmp_path: Path) -> Callable[..., sqlite3.Row]:
    def read(asset_id: str = ASSET) -> sqlite3.Row:
        [row] = rows(tmp_path / "items.db", f"object_id = '{asset_id}'")
        return row

    return read


Make = Callable[..., Submitter]
Submitters = Callable[..., Submitter]  # running ones, with short delays
Row = Callable[..., sqlite3.Row]


def ready(store: Store, sandbox: FaultyIconik, *asset_ids: str, **fields: Any) -> None:
    """Create assets at iconik, with these fields, and ready items of them."""
    for asset_id in asset_ids:
        sandbox.create_asset("a.mov", asset_id, **fields)
        store.add_asset(asset_id, "a.mov", MIN_AGE)
        assert store.proxy_closed(asset_id) == "ready"


def make_old(store: Store, *asset_ids: str, in_doubt: bool = False) -> None:
    """Let the first attempt at ready items have failed. They are due again at once."""
    for _ in asset_ids:
        item = store.claim_new()
        assert item
        store.postpone(item.object_id, 0, "iconik answered 503", in_doubt=in_doubt)


def methods(sandbox: FaultyIconik) -> list[str]:
    return [request.split()[0] for request in sandbox.requests]


def fail_others(submitter: Submitter, count: int) -> None:
    """Let the breaker know of that many other items that failed."""
    for _ in range(count):
        with submitter._breaker.permission() as permission:
            assert permission
            permission.failed(TROUBLE, new_id())


def open_breaker(submitter: Submitter) -> None:
    fail_others(submitter, 10)
    assert submitter._breaker.state == "open"


def what_the_breaker_hears(submitter: Submitter) -> str:
    """Of the next attempt: "success", "failure" or "nothing"."""
    fail_others(submitter, 9)
    submitter._work_once()
    if submitter._breaker.state == "open":
        return "failure"
    fail_others(submitter, 1)
    return "nothing" if submitter._breaker.state == "open" else "success"


# What the asset says


def test_a_ready_item_is_looked_at_and_submitted(
    store: Store, sandbox: FaultyIconik, submitter: Submitter, row: Row
) -> None:
    ready(store, sandbox, ASSET)
    assert what_the_breaker_hears(submitter) == "success"
    assert sandbox.requests == [
        f"GET /API/assets/v1/assets/{ASSET}/",
        f"POST /API/transcode/v1/analyze/assets/{ASSET}/",
    ]
    assert (row()["status"], row()["job_id"]) == ("submitted", sandbox.latest_job[ASSET])
    assert (row()["error"], row()["finished"]) == (None, "True")


@pytest.mark.parametrize(
    ("fields", "skip_types", "reason"),
    [
        ({"status": "DELETED"}, "SUBCLIP", "the asset is deleted"),
        ({"type": "SUBCLIP"}, "SUBCLIP", "assets of type SUBCLIP are not analyzed (skip_types in config.ini)"),
        ({"type": "LINK"}, "sequence, LINK", "assets of type LINK are not analyzed (skip_types in config.ini)"),
        ({"type": "SUBCLIP", "analyze_status": "DONE"}, "SUBCLIP", "assets of type SUBCLIP are not analyzed"),
    ],
)
def test_what_is_deleted_or_of_a_type_that_is_not_analyzed_is_skipped(
    store: Store, sandbox: FaultyIconik, make: Make, row: Row, fields: dict[str, str], skip_types: str, reason: str
) -> None:
    ready(store, sandbox, ASSET, **fields)
    assert what_the_breaker_hears(make(iconik__skip_types=skip_types)) == "nothing"
    assert row()["status"] == "skipped"
    assert row()["error"].startswith(reason)
    assert sandbox.jobs == []


@pytest.mark.parametrize("type_", ["ASSET", "SUBCLIP", "ANYTHING_NEW", None, ["LINK"], {}, 7])
def test_every_other_type_is_analyzed(store: Store, sandbox: FaultyIconik, make: Make, row: Row, type_: Any) -> None:
    ready(store, sandbox, ASSET, type=type_)
    make(iconik__skip_types="LINK")._work_once()
    assert row()["status"] == "submitted"


@pytest.mark.parametrize("in_doubt", [True, False])
@pytest.mark.parametrize("analyze_status", ["REQUESTED", "IN_PROGRESS", "DONE"])
def test_what_iconik_analyzes_already_gets_no_second_job(
    store: Store, sandbox: FaultyIconik, submitter: Submitter, row: Row, analyze_status: str, in_doubt: bool
) -> None:
    ready(store, sandbox, ASSET, analyze_status=analyze_status)
    if in_doubt:
        make_old(store, ASSET, in_doubt=True)
    assert what_the_breaker_hears(submitter) == "nothing"
    assert (row()["status"], row()["job_id"], row()["error"]) == ("submitted", None, None)
    assert methods(sandbox) == ["GET"]


def test_an_analysis_that_failed_after_a_post_of_ours_that_is_in_doubt_is_the_items_end(
    store: Store, sandbox: FaultyIconik, submitter: Submitter, row: Row
) -> None:
    ready(store, sandbox, ASSET, analyze_status="FAILED")
    make_old(store, ASSET, in_doubt=True)
    assert what_the_breaker_hears(submitter) == "nothing"
    assert (row()["status"], row()["error"]) == ("failed", "iconik's analysis failed")
    assert sandbox.jobs == []


@pytest.mark.parametrize("analyze_status", ["FAILED", "N/A", "", None])
def test_what_is_not_analyzed_or_failed_by_no_doing_of_ours_is_posted(
    store: Store, sandbox: FaultyIconik, submitter: Submitter, row: Row, analyze_status: str | None
) -> None:
    ready(store, sandbox, ASSET, analyze_status=analyze_status)
    submitter._work_once()
    assert row()["status"] == "submitted"
    assert sandbox.jobs == [ASSET]


@pytest.mark.parametrize("analyze_status", ["PAUSED", "done", 7, ["DONE"], "two\nlines"])
def test_any_other_word_fails_the_item_which_names_it(
    store: Store, sandbox: FaultyIconik, submitter: Submitter, row: Row, analyze_status: Any
) -> None:
    ready(store, sandbox, ASSET, analyze_status=analyze_status)
    assert what_the_breaker_hears(submitter) == "nothing"
    assert row()["status"] == "failed"
    assert row()["error"] == f"iconik says analyze_status {str(analyze_status).replace(chr(10), ' ')}"
    assert sandbox.jobs == []


# What iconik answers


@pytest.mark.parametrize(
    ("fault", "job_id"),
    [
        (Fault(status=200, body=OK_JSON), "a job"),
        (Fault(status=202, body=b"{}"), None),
        (Fault(status=201, body=HTML), None),
        (Fault(status=201, body=b""), None),
        (Fault(status=201, body=OK_JSON, headers={"Content-Length": "99"}), None),
        (Fault(status=201, body=b'{"id": 7}'), None),
    ],
    ids=["200", "202", "201 with HTML", "201 without a body", "201 that is cut off", "201 without a job's id"],
)
def test_a_2xx_with_a_json_object_and_any_201_to_the_post_is_a_job(
    store: Store, sandbox: FaultyIconik, submitter: Submitter, row: Row, fault: Fault, job_id: str | None
) -> None:
    ready(store, sandbox, ASSET)
    fault.match = "POST"
    sandbox.faults.append(fault)
    assert what_the_breaker_hears(submitter) == "success"
    assert (row()["status"], row()["job_id"], row()["in_doubt"]) == ("submitted", job_id, 0)


@pytest.mark.parametrize("status", [400, 404, 422])
@pytest.mark.parametrize(("method", "heard"), [("GET", "nothing"), ("POST", "success")])
def test_iconiks_own_4xx_is_final_and_the_posts_a_sign_of_life(
    store: Store, sandbox: FaultyIconik, submitter: Submitter, row: Row, status: int, method: str, heard: str
) -> None:
    ready(store, sandbox, ASSET)
    sandbox.faults.append(Fault(method, status=status, body=REFUSAL))
    assert what_the_breaker_hears(submitter) == heard
    assert (row()["status"], row()["error"]) == ("failed", f"iconik answered {status}: No such thing")
    assert sandbox.jobs == []


# What settles nothing, and whether a POST that is answered like that may have been taken.
UNSETTLED = {
    **{str(status): (Fault(status=status, body=REFUSAL), status >= 500) for status in (401, 403, 500, 501, 502, 504)},
    "408": (Fault(status=408, body=REFUSAL), True),
    "503": (Fault(status=503, body=HTML), True),
    "520": (Fault(status=520, body=HTML), True),
    "302": (Fault(status=302, headers={"Location": "/"}), False),
    "307": (Fault(status=307, headers={"Location": "/"}, body=OK_JSON), False),
    "a gateway's 404": (Fault(status=404, body=HTML), False),
    "a 400 without errors": (Fault(status=400, body=NO_ERRORS), False),
    "a 422 with no errors in it": (Fault(status=422, body=b'{"errors": []}'), False),
    "a maintenance page": (Fault(status=200, body=HTML), True),
    "a list": (Fault(status=200, body=b"[]"), True),
    "an empty 204": (Fault(status=204, body=b""), True),
    "no answer": (Fault(cut=True), True),
}


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(("fault", "may_be_taken"), UNSETTLED.values(), ids=UNSETTLED.keys())
def test_all_else_is_this_items_trouble_and_tried_again(
    store: Store,
    sandbox: FaultyIconik,
    submitter: Submitter,
    row: Row,
    clock: Clock,
    fault: Fault,
    may_be_taken: bool,
    method: str,
) -> None:
    ready(store, sandbox, ASSET)
    sandbox.faults.append(Fault(**{**vars(fault), "match": method}))
    assert what_the_breaker_hears(submitter) == "failure"
    assert (row()["status"], row()["attempts"]) == ("ready", 1)
    assert row()["next_attempt_at"] == format_utc(clock.now + 10)
    assert row()["error"].startswith("iconik ")
    assert row()["in_doubt"] == (may_be_taken and method == "POST")
    clock.now += 30
    submitter._work_once()
    assert row()["status"] == "submitted"
    assert sandbox.jobs == [ASSET]


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_call_that_hangs_is_this_items_trouble(
    store: Store, sandbox: FaultyIconik, make: Make, row: Row, method: str
) -> None:
    ready(store, sandbox, ASSET)
    sandbox.faults.append(Fault(method, hang=True))
    assert what_the_breaker_hears(make(iconik__timeout=0.1)) == "failure"
    assert (row()["status"], row()["in_doubt"]) == ("ready", method == "POST")
    assert "no answer" in row()["error"]


def test_an_answer_about_another_asset_settles_nothing(
    store: Store, sandbox: FaultyIconik, submitter: Submitter, row: Row
) -> None:
    ready(store, sandbox, ASSET)
    sandbox.faults.append(Fault(status=200, body=b'{"id": "another", "analyze_status": "DONE"}'))
    submitter._work_once()
    assert (row()["status"], sandbox.jobs) == ("ready", [])


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(("headers", "seconds"), [({}, 10), ({"Retry-After": "77"}, 77)])
def test_a_429_opens_the_breaker_and_its_item_is_due_when_that_lets_go(
    store: Store,
    sandbox: FaultyIconik,
    submitter: Submitter,
    row: Row,
    clock: Clock,
    headers: dict[str, str],
    seconds: int,
    method: str,
) -> None:
    ready(store, sandbox, ASSET)
    sandbox.faults.append(Fault(method, status=429, headers=headers, body=REFUSAL))
    submitter._work_once()
    assert submitter._breaker.seconds_until_half_open() == seconds
    assert (row()["status"], row()["attempts"], row()["in_doubt"]) == ("ready", 0, 0)
    assert row()["next_attempt_at"] == format_utc(clock.now + seconds)
    submitter._work_once()
    assert (row()["status"], submitter._breaker.state) == ("submitted", "closed")


@pytest.mark.parametrize("status", [503, 500, 403])
def test_no_attempt_comes_before_iconiks_retry_after_and_others_go_on(
    store: Store, sandbox: FaultyIconik, submitter: Submitter, row: Row, clock: Clock, status: int
) -> None:
    ready(store, sandbox, ASSET, OTHER_ASSET)
    sandbox.asset_faults[ASSET] = Fault(status=status, headers={"Retry-After": "300"})
    for _ in range(2):
        submitter._work_once()
    assert row(OTHER_ASSET)["status"] == "submitted"
    assert row()["next_attempt_at"] == format_utc(clock.now + 300)


def test_a_retry_after_that_is_short_makes_no_backoff_shorter(
    store: Store, sandbox: FaultyIconik, submitter: Submitter, row: Row, clock: Clock
) -> None:
    ready(store, sandbox, ASSET)
    sandbox.faults.append(Fault(status=503, headers={"Retry-After": "1"}))
    submitter._work_once()
    assert row()["next_attempt_at"] == format_utc(clock.now + 10)


# Backoff, and giving up


def attempt_delays(submitter: Submitter, row: Row, clock: Clock, count: int) -> list[int]:
    """Attempt the one item so many times, each when it is due. Returns after which delays."""
    delays = []
    for _ in range(count):
        submitter._work_once()
        due = row()["next_attempt_at"]
        seconds = 0
        while format_utc(clock.now + seconds) < due:
            seconds += 1
        delays.append(seconds)
        clock.now += seconds
    return delays


def test_an_items_backoff_doubles_up_to_max_retry_delay_and_is_its_own(
    store: Store, sandbox: FaultyIconik, submitter: Submitter, row: Row, clock: Clock
) -> None:
    ready(store, sandbox, ASSET)
    sandbox.faults.append(Fault("POST", status=500, times=FOR_EVER))
    assert attempt_delays(submitter, row, clock, 9) == [10, 20, 40, 80, 160, 320, 640, 900, 900]
    ready(store, sandbox, OTHER_ASSET)
    submitter._work_once()
    assert row(OTHER_ASSET)["next_attempt_at"] == format_utc(clock.now + 10)


def test_the_breakers_probe_doubles_nobodys_backoff(
    store: Store, sandbox: FaultyIconik, submitter: Submitter, row: Row, clock: Clock
) -> None:
    ready(store, sandbox, ASSET)
    sandbox.faults.append(Fault("POST", status=503, times=FOR_EVER))
    assert attempt_delays(submitter, row, clock, 2) == [10, 20]
    for _ in range(5):
        open_breaker(submitter)
        clock.now += 60
        submitter._work_once()
        assert (row()["attempts"], row()["next_attempt_at"]) == (2, format_utc(clock.now + 20))
        clock.now += 60
        with submitter._breaker.permission() as permission:
            assert permission
            permission.succeeded()
    assert attempt_delays(submitter, row, clock, 2) == [40, 80]


def test_an_item_is_given_up_after_7_days_with_the_reason_of_its_last_attempt(
    store: Store, sandbox: FaultyIconik, submitter: Submitter, row: Row, clock: Clock
) -> None:
    ready(store, sandbox, ASSET)
    sandbox.faults.append(Fault("POST", status=500, times=FOR_EVER))
    submitter._work_once()
    clock.now += 7 * DAY - 1
    submitter._work_once()
    assert row()["status"] == "ready"
    sandbox.faults[0].status = 504
    clock.now += 901
    submitter._work_once()
    assert row()["status"] == "failed"
    assert row()["error"] == "given up after 3 attempts: iconik answered 504: Out of order"


def test_too_many_requests_are_nobodys_end(
    store: Store, sandbox: FaultyIconik, submitter: Submitter, row: Row, clock: Clock
) -> None:
    ready(store, sandbox, ASSET)
    sandbox.faults.append(Fault(status=429, times=FOR_EVER))
    submitter._work_once()
    clock.now += 8 * DAY
    submitter._work_once()
    assert row()["status"] == "ready"


def test_a_persons_retry_begins_the_7_days_anew(
    store: Store, sandbox: FaultyIconik, submitter: Submitter, row: Row, clock: Clock
) -> None:
    ready(store, sandbox, ASSET)
    sandbox.faults.append(Fault("POST", status=500, times=3))
    submitter._work_once()
    clock.now += 8 * DAY
    submitter._work_once()
    assert row()["status"] == "failed"
    Corrections(store).retry(ASSET, 10)
    clock.now += 10.1
    submitter._work_once()
    assert (row()["status"], row()["attempts"]) == ("ready", 1)


def test_days_in_which_the_listener_was_not_there_give_up_nothing_that_was_under_way(
    store: Store, sandbox: FaultyIconik, submitter: Submitter, row: Row, clock: Clock
) -> None:
    ready(store, sandbox, ASSET)
    assert store.claim_new()
    clock.now += 8 * DAY
    store.recover(10)
    clock.now += 10.1
    sandbox.faults.append(Fault(status=503))
    submitter._work_once()
    assert row()["status"] == "ready"


def test_a_clock_that_ran_ahead_at_an_attempt_makes_no_item_older(
    store: Store, sandbox: FaultyIconik, submitter: Submitter, row: Row, clock: Clock
) -> None:
    ready(store, sandbox, ASSET)
    assert store.claim_new()
    clock.now += 30 * DAY
    store.postpone(ASSET, 10, "iconik answered 503")
    clock.now -= 30 * DAY
    store.recover(10)
    submitter._seconds_to_wait()
    clock.now += 10.1
    sandbox.faults.append(Fault(status=503))
    submitter._work_once()
    assert row()["status"] == "ready"


# In doubt


@pytest.mark.parametrize(
    "fault",
    [Fault(cut=True), Fault(status=500), Fault(status=503), Fault(status=408), Fault(hang=True), Fault(status=200)],
    ids=["cut", "500", "503", "408", "hanging", "200 without a job"],
)
@pytest.mark.parametrize("is_taken", [True, False])
def test_after_a_post_without_an_answer_iconik_is_asked_and_nothing_is_doubled_or_lost(
    store: Store, sandbox: FaultyIconik, make: Make, row: Row, clock: Clock, fault: Fault, is_taken: bool
) -> None:
    ready(store, sandbox, ASSET)
    body = HTML if fault.status == 200 else fault.body
    sandbox.faults.append(Fault(**{**vars(fault), "match": "POST", "body": body, "after_work": is_taken}))
    submitter = make(iconik__timeout=0.1 if fault.hang else 10)
    submitter._work_once()
    clock.now += 9.9
    submitter._work_once()
    assert methods(sandbox) == ["GET", "POST"]
    clock.now += 0.2
    submitter._work_once()
    assert methods(sandbox) == ["GET", "POST", "GET"] + ["POST"] * (not is_taken)
    assert (row()["status"], sandbox.jobs) == ("submitted", [ASSET])


def test_whatever_the_breaker_does_what_is_in_doubt_waits_for_retry_delay(
    store: Store, sandbox: FaultyIconik, submitter: Submitter, row: Row, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready(store, sandbox, ASSET)

    def analyze(asset_id: str) -> str:
        clock.now += 5
        with submitter._breaker.permission() as permission:  # another worker's
            assert permission
            permission.failed(IconikRateLimited("iconik answered 429", status=429, retry_after=0.1), OTHER_ASSET)
        raise IconikUnavailable("iconik cannot be reached", "it cut the connection")

    monkeypatch.setattr(submitter._client, "analyze", analyze)
    submitter._work_once()
    assert (row()["in_doubt"], row()["next_attempt_at"]) == (1, format_utc(clock.now + 10))


def test_neither_starts_nor_retries_look_too_early_at_what_is_in_doubt(
    store: Store, sandbox: FaultyIconik, make: Make, clock: Clock
) -> None:
    ready(store, sandbox, ASSET)
    sandbox.faults.append(Fault("POST", cut=True, after_work=True))
    make()._work_once()
    for _ in range(3):
        clock.now += 3
        store.recover(10)  # as a start does
        Corrections(store).retry(ASSET, 10)
        make()._work_once()
    assert methods(sandbox) == ["GET", "POST"]
    clock.now += 1.1
    make()._work_once()
    assert methods(sandbox) == ["GET", "POST", "GET"]


# Claims in order


def test_what_is_new_never_waits_behind_what_is_in_trouble(
    store: Store, sandbox: FaultyIconik, submitter: Submitter, clock: Clock
) -> None:
    old = [new_id() for _ in range(3)]
    ready(store, sandbox, *old)
    make_old(store, *old)
    store.add_asset(new_id(), None, 0)  # to be asked about
    clock.now += DAY
    new = [new_id() for _ in range(3)]
    for asset_id in new:
        clock.now += 1
        ready(store, sandbox, asset_id)
    for _ in range(6):
        submitter._work_once()
    assert sandbox.jobs[:3] == new
    assert sorted(sandbox.jobs[3:]) <= sorted(old)


def test_the_newest_item_is_tried_first_when_the_breaker_is_half_open_and_then_the_earliest(
    store: Store, sandbox: FaultyIconik, submitter: Submitter, clock: Clock
) -> None:
    ids = [new_id() for _ in range(5)]
    for asset_id in ids:
        clock.now += 1
        ready(store, sandbox, asset_id)
    make_old(store, ids[0])
    open_breaker(submitter)
    sandbox.asset_faults[ids[4]] = Fault(status=503)
    for _ in range(3):
        submitter._work_once()
    assert sandbox.jobs == [ids[3], ids[1]]


def test_half_open_an_old_item_is_the_probe_if_there_is_no_new_one(
    store: Store, sandbox: FaultyIconik, submitter: Submitter
) -> None:
    ready(store, sandbox, ASSET)
    make_old(store, ASSET)
    open_breaker(submitter)
    submitter._work_once()
    assert (sandbox.jobs, submitter._breaker.state) == ([ASSET], "closed")


def test_half_open_and_without_work_nothing_is_sent_and_no_probe_is_kept(submitter: Submitter) -> None:
    open_breaker(submitter)
    for _ in range(2):
        assert submitter._work_once() == 30
    assert submitter._breaker.state == "half-open"


@pytest.fixture
def hasty_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submitter_module, "STOP_SECONDS", 0.05)


@pytest.mark.usefixtures("hasty_end")
@pytest.mark.parametrize(("workers", "at_once"), [(4, 2), (3, 2), (2, 1)])
def test_calls_that_hang_for_old_items_leave_workers_to_new_ones_even_after_retry_all(
    store: Store,
    sandbox: FaultyIconik,
    submitters: Submitters,
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
    at_once: int,
) -> None:
    old = [new_id() for _ in range(8)]
    ready(store, sandbox, *old)
    make_old(store, *old)
    for asset_id in old[:4]:
        assert store.claim_due(MIN_AGE, DAY)
        store.mark_failed(asset_id, "error")
    for asset_id in old:
        Corrections(store).retry(asset_id, 0)
        sandbox.asset_faults[asset_id] = Fault(hang=True)
    submitter = submitters(submitter__workers=workers)
    submitter.start()
    assert sandbox.wait_for(lambda: len(sandbox.requests) == at_once)
    for _ in range(5):
        asset_id = new_id()
        ready(store, sandbox, asset_id)
        submitter.wake()
        assert sandbox.wait_for(lambda: asset_id in sandbox.jobs)  # noqa: B023
    assert sum(any(asset_id in request for asset_id in old) for request in sandbox.requests) == at_once
    submitter.stop()
    sandbox.stopping.set()


def test_one_worker_does_what_is_old_too(store: Store, sandbox: FaultyIconik, make: Make) -> None:
    submitter = make(submitter__workers=1)
    ready(store, sandbox, ASSET)
    make_old(store, ASSET)
    submitter._work_once()
    assert sandbox.jobs == [ASSET]


# Missed proxies


def test_a_missed_proxy_is_asked_about_when_it_is_due_and_then_its_asset_analyzed(
    store: Store, sandbox: FaultyIconik, submitter: Submitter, row: Row, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    sandbox.create_asset("a.mov", ASSET)
    store.add_asset(ASSET, "a.mov", MIN_AGE)
    clock.now += MIN_AGE - 1
    assert submitter._work_once() == pytest.approx(1.001, abs=0.01)
    sandbox.set_proxy(ASSET, "OPEN")
    clock.now += 1
    assert submitter._work_once() == 0
    assert row()["status"] == "awaiting_proxy"
    sandbox.set_proxy(ASSET)
    clock.now += MIN_AGE
    submitter._work_once()
    assert f"Found object {ASSET} in finished proxy queue" in caplog.text
    submitter._work_once()
    assert (row()["status"], sandbox.jobs) == ("submitted", [ASSET])


def test_an_asset_that_never_gets_a_proxy_costs_ten_requests_in_7_days(
    store: Store, sandbox: FaultyIconik, submitter: Submitter, row: Row, clock: Clock
) -> None:
    store.add_asset(ASSET, None, MIN_AGE)
    start = clock.now
    asked: list[int] = []
    while due := parse_time(row()["next_attempt_at"]):
        clock.now = due - 1
        submitter._work_once()
        assert len(sandbox.requests) == len(asked)
        clock.now = due + 0.001
        submitter._work_once()
        asked.append(round((clock.now - start) / 60))
    assert len(sandbox.requests) == len(asked)
    assert asked == [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5120]
    assert row()["status"] == "awaiting_proxy"


def test_what_an_answer_says_changes_nothing_that_a_webhook_changed_meanwhile(
    store: Store, sandbox: FaultyIconik, submitter: Submitter, row: Row, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox.create_asset("a.mov", ASSET)
    store.add_asset(ASSET, "a.mov")

    def has_closed_proxy(asset_id: str) -> bool:
        assert store.proxy_closed(asset_id) == "ready"
        raise TROUBLE

    monkeypatch.setattr(submitter._client, "has_closed_proxy", has_closed_proxy)
    submitter._work_once()
    assert (row()["status"], row()["next_attempt_at"]) == ("ready", format_utc(clock.now))
    submitter._work_once()
    assert sandbox.jobs == [ASSET]


def wait_for_proxy(store: Store, sandbox: FaultyIconik, fault: Fault) -> None:
    """An item about whose proxy iconik is to be asked, and what is wrong with the answer."""
    sandbox.create_asset("a.mov", ASSET)
    store.add_asset(ASSET, "a.mov")
    sandbox.faults.append(fault)


@pytest.mark.parametrize("kind", ["403", "503", "a gateway's 404", "a maintenance page", "no answer"])
def test_a_question_that_fails_is_put_again_after_max_retry_delay_and_pauses_nothing(
    store: Store, sandbox: FaultyIconik, submitter: Submitter, row: Row, clock: Clock, kind: str
) -> None:
    wait_for_proxy(store, sandbox, Fault(**vars(UNSETTLED[kind][0])))
    assert what_the_breaker_hears(submitter) == "nothing"
    assert (row()["status"], row()["error"]) == ("awaiting_proxy", None)
    assert row()["next_attempt_at"] == format_utc(clock.now + 900)


def test_a_question_waits_for_retry_after(
    store: Store, sandbox: FaultyIconik, make: Make, row: Row, clock: Clock
) -> None:
    wait_for_proxy(store, sandbox, Fault(status=503, headers={"Retry-After": "1800"}))
    make()._work_once()
    assert row()["next_attempt_at"] == format_utc(clock.now + 1800)


def test_a_question_that_is_refused_is_told_and_put_again_when_the_item_is_twice_as_old(
    store: Store, sandbox: FaultyIconik, submitter: Submitter, row: Row, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    wait_for_proxy(store, sandbox, Fault(status=400, body=REFUSAL))
    clock.now += 1000
    assert what_the_breaker_hears(submitter) == "nothing"
    assert row()["next_attempt_at"] == format_utc(clock.now + 1000)
    assert f"{ASSET}: its proxies cannot be read: iconik answered 400: No such thing" in caplog.text


def test_half_open_a_question_that_fails_reopens_the_breaker_and_one_that_succeeds_says_nothing(
    store: Store, sandbox: FaultyIconik, submitter: Submitter, clock: Clock
) -> None:
    wait_for_proxy(store, sandbox, Fault(status=503))
    open_breaker(submitter)
    submitter._work_once()
    assert submitter._breaker.state == "open"
    clock.now += 1000
    submitter._work_once()
    assert submitter._breaker.state == "half-open"


def test_a_429_to_a_question_opens_the_breaker(store: Store, sandbox: FaultyIconik, submitter: Submitter) -> None:
    wait_for_proxy(store, sandbox, Fault(status=429))
    submitter._work_once()
    assert submitter._breaker.state == "open"


# What people write into items.db


@pytest.mark.parametrize(
    "written", [b"\xff\x00", 7, "soon", "2026-11-18T18:40:00+01:00", "9999-12-31T23:59:59Z"], ids=repr
)
@pytest.mark.parametrize("column", ["next_attempt_at", "created_at", "ready_at", "last_attempt_at"])
def test_whatever_a_person_writes_as_a_time_neither_spins_nor_stops_a_worker(
    store: Store, sandbox: FaultyIconik, make: Make, clock: Clock, column: str, written: object
) -> None:
    submitter = make(reconciler__min_age=0)
    fresh = new_id()
    ready(store, sandbox, ASSET)
    make_old(store, ASSET)
    ready(store, sandbox, fresh)
    sandbox.create_asset("a.mov", OTHER_ASSET)
    store.add_asset(OTHER_ASSET, None)
    store.database.run(f"UPDATE items SET {column} = :written", written=written)
    for _ in range(60):
        clock.now += max(0.01, submitter._work_once())
    assert sorted(sandbox.jobs) == sorted([ASSET, fresh])
    assert len(sandbox.requests) < 40


@pytest.mark.parametrize(("column", "written"), [("attempts", "x"), ("attempts", 1e300), ("in_doubt", b"x")])
def test_whatever_a_person_writes_as_a_number_is_survived(
    store: Store, sandbox: FaultyIconik, submitter: Submitter, clock: Clock, column: str, written: object
) -> None:
    ready(store, sandbox, ASSET)
    sandbox.faults.append(Fault(status=503))
    store.database.run(f"UPDATE items SET {column} = :written", written=written)
    submitter._work_once()
    clock.now += 1000
    submitter._work_once()
    assert sandbox.jobs == [ASSET]


# What the log says


OUTCOMES: dict[str, tuple[Fault | None, int, str]] = {
    "submitted": (None, logging.INFO, f"Submitted Analyze Job for {ASSET}"),
    "refused": (
        Fault(status=404, body=REFUSAL),
        logging.ERROR,
        f"{ASSET} failed: iconik answered 404: No such thing. Once the cause is fixed: COMMAND retry {ASSET}",
    ),
    "503": (Fault(), logging.WARNING, f"{ASSET}: iconik answered 503: Out of order. Next attempt in 10 s"),
    "429": (Fault(status=429), logging.WARNING, f"{ASSET}: iconik answered 429: Out of order. Next attempt in 10 s"),
    "cut": (Fault(cut=True), logging.WARNING, f"{ASSET}: iconik cannot be reached: "),
    "401": (
        Fault("GET", status=401, body=REFUSAL),
        logging.ERROR,
        f"{ASSET}: iconik answered 401: app_id and auth_token are not accepted, or lack the role can_read_assets: ",
    ),
    "403": (
        Fault("POST", status=403, body=REFUSAL),
        logging.ERROR,
        f"{ASSET}: iconik answered 403: app_id and auth_token are not accepted, or lack the role can_analyze_content, "
        "or may not touch this asset: No such thing. Next attempt in 10 s",
    ),
}


@pytest.mark.parametrize(("fault", "level", "line"), OUTCOMES.values(), ids=OUTCOMES.keys())
def test_each_attempt_has_an_outcome_line(
    store: Store,
    sandbox: FaultyIconik,
    submitter: Submitter,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault | None,
    level: int,
    line: str,
) -> None:
    monkeypatch.setenv("ICONIK_LISTENER_COMMAND", "COMMAND")
    caplog.set_level(logging.INFO)
    ready(store, sandbox, ASSET)
    sandbox.faults += [Fault(**vars(fault))] if fault else []
    submitter._work_once()
    first, *_, last = (record for record in caplog.records if ASSET in record.getMessage())
    assert (first.levelno, first.getMessage()) == (logging.INFO, f"Submitting Analyze Job for {ASSET}")
    assert last.levelno == level
    assert last.getMessage().startswith(line)
    assert not hasattr(last, "topic")  # nothing holds it back


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"analyze_status": "DONE"}, f"Found that iconik has an Analyze Job for {ASSET} already"),
        ({"status": "DELETED"}, f"Skipped {ASSET}: the asset is deleted"),
    ],
)
def test_an_attempt_without_a_post_has_an_outcome_line_too(
    store: Store, sandbox: FaultyIconik, submitter: Submitter, caplog: pytest.LogCaptureFixture, fields: Any, line: str
) -> None:
    caplog.set_level(logging.INFO)
    ready(store, sandbox, ASSET, **fields)
    submitter._work_once()
    assert [record.getMessage() for record in caplog.records][-1] == line


def test_the_last_error_is_kept_until_iconik_answers_well_and_holds_nothing_from_outside(
    store: Store, sandbox: FaultyIconik, submitter: Submitter, clock: Clock
) -> None:
    ready(store, sandbox, ASSET)
    assert submitter.last_error is None
    sandbox.faults += [Fault(status=503), Fault(status=404, body=REFUSAL)]
    submitter._work_once()
    assert submitter.last_error == "iconik answered 503"
    clock.now += 10.1
    submitter._work_once()
    assert submitter.last_error == "iconik answered 404"
    ready(store, sandbox, OTHER_ASSET)
    submitter._work_once()
    assert submitter.last_error is None


# Mistakes of ours


@pytest.mark.parametrize("call", ["asset", "analyze"])
def test_a_mistake_of_ours_in_an_attempt_is_that_items_trouble(
    store: Store,
    sandbox: FaultyIconik,
    submitter: Submitter,
    row: Row,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    call: str,
) -> None:
    ready(store, sandbox, ASSET)
    with monkeypatch.context() as broken:
        broken.setattr(submitter._client, call, lambda asset_id: 1 / 0)
        assert what_the_breaker_hears(submitter) == "failure"
    assert (row()["status"], row()["in_doubt"]) == ("ready", call == "analyze")
    assert row()["error"] == "unexpected ZeroDivisionError, see the log"
    assert f"{ASSET}: unexpected" in caplog.text
    clock.now += 30
    submitter._work_once()
    assert row()["status"] == "submitted"


def test_a_mistake_of_ours_anywhere_else_ends_no_worker_and_does_not_spin(
    store: Store, sandbox: FaultyIconik, submitters: Submitters, row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def has_closed_proxy(asset_id: str) -> bool:
        calls.append(asset_id)
        raise ZeroDivisionError

    submitter = submitters(submitter__workers=1, submitter__retry_delay=0.02)
    monkeypatch.setattr(submitter._client, "has_closed_proxy", has_closed_proxy)
    store.add_asset(OTHER_ASSET, None)
    submitter.start()
    wait_until(lambda: calls)
    ready(store, sandbox, ASSET)
    submitter.wake()
    wait_until(lambda: row()["status"] == "submitted")
    assert submitter.is_alive()
    assert calls == [OTHER_ASSET]


# Waking, starting and stopping


def test_waking_takes_up_a_new_item_at_once(store: Store, sandbox: FaultyIconik, submitters: Submitters) -> None:
    submitter = submitters()
    submitter.start()
    for asset_id in (new_id() for _ in range(20)):
        ready(store, sandbox, asset_id)
        submitter.wake()
        assert sandbox.wait_for(lambda: asset_id in sandbox.jobs, 5)  # noqa: B023


def test_an_item_that_comes_while_a_worker_looks_for_one_is_taken_up_at_once(
    store: Store, sandbox: FaultyIconik, submitters: Submitters, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitter = submitters(submitter__workers=1)
    looked = threading.Event()

    def seconds_until_due() -> None:
        if not looked.is_set():
            ready(store, sandbox, ASSET)
            submitter.wake()
            looked.set()

    monkeypatch.setattr(store, "seconds_until_due", seconds_until_due)
    submitter.start()
    assert sandbox.wait_for(lambda: sandbox.jobs == [ASSET], 5)


def test_what_another_program_makes_ready_is_taken_up_without_waking(
    store: Store, sandbox: FaultyIconik, submitters: Submitters, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert submitter_module.POLL_SECONDS == 30
    monkeypatch.setattr(submitter_module, "POLL_SECONDS", 0.02)
    submitters().start()
    ready(store, sandbox, ASSET)
    assert sandbox.wait_for(lambda: sandbox.jobs == [ASSET])


def test_an_idle_submitter_asks_the_database_no_more_than_every_30_seconds(
    store: Store, sandbox: FaultyIconik, submitter: Submitter
) -> None:
    assert submitter._work_once() == 30
    ready(store, sandbox, ASSET)
    make_old(store, ASSET)
    assert store.claim_due(MIN_AGE, DAY)
    store.postpone(ASSET, 3600, "error")
    assert submitter._work_once() == 30


def test_a_worker_that_may_not_do_what_is_old_does_not_spin(
    store: Store, sandbox: FaultyIconik, submitter: Submitter
) -> None:
    ready(store, sandbox, ASSET)
    make_old(store, ASSET)
    for _ in range(2):
        submitter._old_ones.acquire()
    assert submitter._work_once() == 30
    assert sandbox.requests == []


def test_an_item_that_was_under_way_when_the_process_was_killed_is_asked_about(
    store: Store, sandbox: FaultyIconik, make: Make, row: Row, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    ready(store, sandbox, ASSET, OTHER_ASSET)
    for _ in range(2):
        assert store.claim_new()
    sandbox.start_job(ASSET)
    submitter = make()
    submitter._threads = []
    submitter.start()
    assert "Under way when the listener ended: 2 items" in caplog.text
    assert row()["in_doubt"] == 1
    assert submitter._work_once() == pytest.approx(10, abs=0.1)
    clock.now += 10.1
    for _ in range(2):
        submitter._work_once()
    assert row()["status"] == row(OTHER_ASSET)["status"] == "submitted"
    assert sorted(sandbox.jobs) == sorted([ASSET, OTHER_ASSET])


def test_a_start_makes_due_what_waits_for_iconiks_trouble_to_end(
    store: Store, sandbox: FaultyIconik, make: Make, clock: Clock
) -> None:
    ready(store, sandbox, ASSET)
    sandbox.faults.append(Fault(status=401, headers={"Retry-After": "3000"}))
    make()._work_once()
    clock.now += 60
    make()._work_once()
    assert sandbox.jobs == []
    submitter = make()
    submitter._threads = []
    submitter.start()
    submitter._work_once()
    assert sandbox.jobs == [ASSET]


def test_stopping_lets_requests_under_way_finish_records_them_and_begins_nothing(
    store: Store, sandbox: FaultyIconik, submitters: Submitters, row: Row
) -> None:
    ready(store, sandbox, ASSET, OTHER_ASSET)
    sandbox.latency = 0.1
    submitter = submitters(submitter__workers=1)
    submitter.start()
    wait_until(lambda: "submitting" in (row()["status"], row(OTHER_ASSET)["status"]))
    submitter.stop()
    assert sorted((row()["status"], row(OTHER_ASSET)["status"])) == ["ready", "submitted"]
    assert len(sandbox.jobs) == 1
    assert not submitter.is_alive()


@pytest.mark.usefixtures("hasty_end")
def test_stopping_waits_for_no_answer_that_never_comes(
    store: Store, sandbox: FaultyIconik, submitters: Submitters, row: Row
) -> None:
    ready(store, sandbox, ASSET)
    sandbox.faults.append(Fault(hang=True))
    submitter = submitters()
    submitter.start()
    assert sandbox.wait_for(lambda: len(sandbox.requests) == 1)
    submitter.stop()
    assert row()["status"] == "submitting"
    sandbox.stopping.set()


def test_stopping_ends_those_who_wait_for_the_breaker(submitters: Submitters) -> None:
    submitter = submitters(submitter__retry_delay=600, submitter__max_retry_delay=900)
    open_breaker(submitter)
    submitter.start()
    submitter.stop()
    assert not any(thread.is_alive() for thread in submitter._threads)


# Outcomes that cannot be written


def test_an_outcome_that_cannot_be_written_is_kept_and_written_later(
    store: Store, sandbox: FaultyIconik, submitters: Submitters, row: Row, tmp_path: Path
) -> None:
    ready(store, sandbox, ASSET)
    store.database._max_wait = 0.02
    sandbox.latency = 0.1
    with closing(sqlite3.connect(tmp_path / "items.db", isolation_level=None)) as person:
        submitters().start()
        wait_until(lambda: row()["status"] == "submitting")
        person.execute("BEGIN IMMEDIATE")
        assert sandbox.wait_for(lambda: sandbox.jobs == [ASSET])
        with pytest.raises(AssertionError):
            wait_until(lambda: row()["status"] != "submitting", 0.2)
        person.execute("COMMIT")
    wait_until(lambda: row()["status"] == "submitted")
    assert methods(sandbox) == ["GET", "POST"]


def test_a_stop_while_nothing_can_be_written_leaves_the_item_to_the_next_start(
    store: Store,
    sandbox: FaultyIconik,
    submitters: Submitters,
    row: Row,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ready(store, sandbox, ASSET)
    store.database._max_wait = 0.02
    sandbox.latency = 0.1
    submitter = submitters(submitter__workers=1)
    with closing(sqlite3.connect(tmp_path / "items.db", isolation_level=None)) as person:
        submitter.start()
        wait_until(lambda: row()["status"] == "submitting")
        person.execute("BEGIN IMMEDIATE")
        wait_until(lambda: "An outcome waits to be written" in caplog.text)
        submitter.stop()
        assert not submitter.is_alive()
        person.execute("COMMIT")
    assert "An outcome was not written: the next start asks iconik for it" in caplog.text
    assert row()["status"] == "submitting"


def test_while_nothing_can_be_claimed_a_worker_tells_and_does_not_spin(
    store: Store, sandbox: FaultyIconik, submitters: Submitters, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ready(store, sandbox, ASSET)
    store.database._max_wait = 0.02
    with closing(sqlite3.connect(tmp_path / "items.db", isolation_level=None)) as person:
        person.execute("BEGIN IMMEDIATE")
        submitter = submitters(submitter__workers=1)
        # A start could not write either.
        submitter._threads[0].start()
        wait_until(lambda: caplog.text.count("Nothing can be submitted") >= 2)
        began = time.monotonic()
        assert caplog.text.count("Nothing can be submitted") <= 2 + (time.monotonic() - began) / 0.05
        person.execute("COMMIT")
    assert sandbox.wait_for(lambda: sandbox.jobs == [ASSET])
