"""The circuit breaker by itself, on a clock of the test's: DESIGN.md's rules, one after the other."""

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from circuit_breaker import MAX_FAILURES, MAX_OPEN_SECONDS, RATE_LIMITED_SECONDS, CircuitBreaker, Permission
from config import load
from iconik_client import IconikDenied, IconikRateLimited, IconikServerError
from support import Clock, ManualRuntime, new_id, wait_until, write_config
from system.runtime import Runtime
from system.text import format_utc

TROUBLE = IconikServerError("iconik answered 503", status=503)
DENIED = IconikDenied("iconik answered 401", status=401)
Breakers = Callable[..., CircuitBreaker]


@pytest.fixture
def breakers(tmp_path: Path, clock: Clock) -> Breakers:
    """Makes closed breakers: `retry_delay` is 10 s and `max_retry_delay` 900 s unless the test says otherwise."""

    def make(**values: Any) -> CircuitBreaker:
        values = {"submitter__retry_delay": 10, "submitter__max_retry_delay": 900, **values}
        return CircuitBreaker(load(write_config(tmp_path, **values)).submitter, ManualRuntime(clock))

    return make


@pytest.fixture
def breaker(breakers: Breakers) -> CircuitBreaker:
    return breakers()


def permission(breaker: CircuitBreaker) -> Permission:
    given = breaker.wait()
    assert given is not None
    return given


def fail(breaker: CircuitBreaker, count: int = MAX_FAILURES, given: Permission | None = None) -> None:
    """Let that many different items fail, one after the other."""
    for _ in range(count):
        breaker.failed(given or permission(breaker), TROUBLE, new_id())


def too_many(breaker: CircuitBreaker, source: str, seconds: float | None = None, *, is_item: bool = True) -> None:
    error = IconikRateLimited("iconik answered 429", status=429, retry_after=seconds)
    breaker.failed(permission(breaker), error, source, is_item=is_item)


def seconds_open(breaker: CircuitBreaker, clock: Clock) -> float:
    """Wait until requests may go out. Returns for how long that was."""
    begin = clock.monotonic
    permission(breaker)
    assert not breaker.is_open
    return clock.monotonic - begin


def test_ten_different_items_that_fail_in_a_row_open_it(breaker: CircuitBreaker, clock: Clock) -> None:
    fail(breaker, MAX_FAILURES - 1)
    assert not breaker.is_open
    assert seconds_open(breaker, clock) == 0
    breaker.failed(permission(breaker), TROUBLE, "the tenth")
    assert breaker.is_open
    assert breaker.describe() == (
        f"The circuit breaker has been open since {format_utc(clock.now)}: iconik answered 503"
    )
    assert seconds_open(breaker, clock) == 10


def test_one_item_never_opens_it_however_often_it_fails(breaker: CircuitBreaker) -> None:
    for _ in range(100):
        breaker.failed(permission(breaker), TROUBLE, "the same")
    assert breaker.reason is None  # it has never opened


def test_a_success_empties_the_streak(breaker: CircuitBreaker) -> None:
    fail(breaker, MAX_FAILURES - 1)
    breaker.succeeded()
    fail(breaker, MAX_FAILURES - 1)
    assert breaker.reason is None  # it has never opened


def test_failures_of_other_calls_than_attempts_never_open_it(breaker: CircuitBreaker) -> None:
    for number in range(100):
        breaker.failed(permission(breaker), TROUBLE, f"kind {number}", is_item=False)
    assert breaker.reason is None  # it has never opened


def test_it_closes_with_an_empty_streak(breaker: CircuitBreaker, clock: Clock) -> None:
    fail(breaker)
    seconds_open(breaker, clock)
    fail(breaker, MAX_FAILURES - 1)
    assert not breaker.is_open


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, [10, 20, 40, MAX_OPEN_SECONDS, MAX_OPEN_SECONDS]),
        ({"submitter__max_retry_delay": 15}, [10, 15, 15]),
        ({"submitter__retry_delay": 100}, [100, 100]),
    ],
    ids=["up to a minute", "up to max_retry_delay", "never less than retry_delay"],
)
def test_each_opening_without_a_success_between_is_twice_as_long(
    breakers: Breakers, clock: Clock, values: dict[str, Any], expected: list[float]
) -> None:
    breaker = breakers(**values)
    found = []
    for _ in expected:
        fail(breaker)
        found.append(seconds_open(breaker, clock))
    assert found == expected
    breaker.succeeded()
    fail(breaker)
    assert seconds_open(breaker, clock) == expected[0]


def test_a_success_that_was_sent_before_it_opened_closes_it(breaker: CircuitBreaker, clock: Clock) -> None:
    fail(breaker)
    breaker.succeeded()
    assert not breaker.is_open
    assert breaker.opened_at is None
    assert seconds_open(breaker, clock) == 0


def test_failures_that_began_before_it_opened_count_for_nothing(breaker: CircuitBreaker, clock: Clock) -> None:
    before = permission(breaker)
    fail(breaker)
    seconds_open(breaker, clock)
    fail(breaker, given=before)
    breaker.credentials_refused(before, DENIED)
    assert not breaker.is_open


def test_refused_credentials_open_it_at_once(breaker: CircuitBreaker, clock: Clock) -> None:
    breaker.credentials_refused(permission(breaker), DENIED)
    assert breaker.reason == "iconik answered 401"
    assert seconds_open(breaker, clock) == 10


@pytest.mark.parametrize(("asked", "seconds"), [(300, 300), (2, 2), (None, RATE_LIMITED_SECONDS)])
def test_a_429_to_two_sources_opens_it_for_as_long_as_iconik_asks(
    breaker: CircuitBreaker, clock: Clock, asked: float | None, seconds: float
) -> None:
    too_many(breaker, "item", asked)
    too_many(breaker, "item", asked)
    assert not breaker.is_open
    too_many(breaker, "search", asked, is_item=False)
    assert breaker.is_open
    breaker.succeeded()  # iconik asked for the pause itself, so a late success does not end it
    assert seconds_open(breaker, clock) == seconds


def test_a_success_between_two_429s_keeps_it_closed(breaker: CircuitBreaker) -> None:
    too_many(breaker, "one", 60)
    breaker.succeeded()
    too_many(breaker, "other", 60)
    assert breaker.reason is None  # it has never opened


def test_a_clock_that_steps_neither_opens_nor_closes_it(breaker: CircuitBreaker, clock: Clock) -> None:
    fail(breaker)
    clock.step(30 * 86400)
    assert breaker.is_open
    clock.step(-60 * 86400)
    assert seconds_open(breaker, clock) == 10


def test_it_is_known_since_when_until_a_success_comes(breaker: CircuitBreaker, clock: Clock) -> None:
    opened_at = format_utc(clock.now)
    for _ in range(2):
        fail(breaker)
        seconds_open(breaker, clock)
    assert breaker.opened_at == opened_at
    assert breaker.describe() == "The circuit breaker is closed"
    breaker.succeeded()
    assert breaker.opened_at is None


def test_a_long_outage_is_logged_when_it_begins_changes_and_ends(
    breaker: CircuitBreaker, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    opened_at = format_utc(clock.now)
    for _ in range(3):
        fail(breaker)
        seconds_open(breaker, clock)
    breaker.credentials_refused(permission(breaker), DENIED)
    breaker.succeeded()
    assert [record.getMessage() for record in caplog.records] == [
        "The circuit breaker opens: iconik answered 503. Nothing is sent for 10 s",
        f"The circuit breaker opens again (first at {opened_at}): iconik answered 401",
        f"iconik takes jobs again: the circuit breaker closes (it opened at {opened_at})",
    ]


class CountingRuntime(Runtime):
    """Real time. It counts who waits."""

    def __init__(self) -> None:
        self.waiting = 0

    def condition(self) -> threading.Condition:
        runtime = self

        class Counting(threading.Condition):
            def wait(self, timeout: float | None = None) -> bool:
                runtime.waiting += 1
                return super().wait(timeout)

        return Counting()


@pytest.mark.parametrize("end", [CircuitBreaker.succeeded, CircuitBreaker.stop])
def test_who_waits_goes_on_when_it_closes_or_is_stopped(tmp_path: Path, end: Callable[[CircuitBreaker], None]) -> None:
    """The pause is a minute, and nobody waits for its end."""
    runtime = CountingRuntime()
    breaker = CircuitBreaker(load(write_config(tmp_path, submitter__retry_delay=60)).submitter, runtime)
    fail(breaker)
    results: list[Permission | None] = []
    threads = [threading.Thread(target=lambda: results.append(breaker.wait()), daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    wait_until(lambda: runtime.waiting == len(threads))
    end(breaker)
    wait_until(lambda: len(results) == len(threads))
    assert [result is None for result in results] == [end is CircuitBreaker.stop] * 3


def test_nothing_goes_out_once_it_was_stopped(breaker: CircuitBreaker) -> None:
    breaker.stop()
    assert breaker.wait() is None
