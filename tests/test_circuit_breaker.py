import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from circuit_breaker import CircuitBreaker, Permission, backoff
from config import SubmitterConfig
from iconik_client import IconikDenied, IconikError, IconikRateLimited, IconikServerError
from simulation import wait_by
from support import Clock, new_id, wait_until
from system.text import format_utc

CONFIG = SubmitterConfig(workers=4, retry_delay=10, max_retry_delay=900, give_up_after=604800)
TROUBLE = IconikServerError("iconik answered 503", "Out of order", status=503)


def limited(retry_after: float | None = None) -> IconikRateLimited:
    return IconikRateLimited("iconik answered 429", status=429, retry_after=retry_after)


@pytest.fixture
def breaker(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> CircuitBreaker:
    """One without chance, which waits by letting the clock go on."""
    monkeypatch.setattr("random.uniform", lambda low, high: low)
    monkeypatch.setattr("circuit_breaker.time", SimpleNamespace(time=clock))
    return wait_by(clock, CircuitBreaker(CONFIG, clock))


@contextmanager
def permitted(breaker: CircuitBreaker) -> Iterator[Permission]:
    with breaker.permission() as permission:
        assert permission
        yield permission


def fail(breaker: CircuitBreaker, object_id: str | None = None, error: IconikError = TROUBLE) -> None:
    """An attempt at that item, or at another one, fails."""
    with permitted(breaker) as permission:
        permission.failed(error, object_id or new_id())


def succeed(breaker: CircuitBreaker) -> None:
    with permitted(breaker) as permission:
        permission.succeeded()


def fail_lookup(breaker: CircuitBreaker, error: IconikError = TROUBLE) -> None:
    with permitted(breaker) as permission:
        permission.failed(error)


def open_it(breaker: CircuitBreaker, error: IconikError = TROUBLE) -> None:
    for _ in range(10):
        fail(breaker, error=error)
    assert breaker.state == "open"


def half_open(breaker: CircuitBreaker, clock: Clock) -> None:
    open_it(breaker)
    clock.now += breaker.seconds_until_half_open()
    assert breaker.state == "half-open"


# Opening


def test_ten_different_items_that_fail_in_a_row_open_it(breaker: CircuitBreaker) -> None:
    for _ in range(9):
        fail(breaker)
    assert breaker.state == "closed"
    fail(breaker)
    assert breaker.state == "open"


def test_one_item_however_often_it_fails_never_opens_it(breaker: CircuitBreaker) -> None:
    ids = [new_id() for _ in range(9)]
    for _ in range(100):
        for object_id in ids:
            fail(breaker, object_id)
    assert breaker.state == "closed"


def test_a_success_between_begins_the_count_anew(breaker: CircuitBreaker) -> None:
    for _ in range(9):
        fail(breaker)
    succeed(breaker)
    for _ in range(9):
        fail(breaker)
    assert breaker.state == "closed"
    fail(breaker)
    assert breaker.state == "open"


@pytest.mark.parametrize("retry_after", [0.5, 77, 3600])
def test_a_429_opens_it_at_once_for_as_long_as_iconik_asks(breaker: CircuitBreaker, retry_after: float) -> None:
    fail(breaker, error=limited(retry_after))
    assert breaker.state == "open"
    assert breaker.seconds_until_half_open() == pytest.approx(retry_after)


def test_a_429_without_retry_after_opens_it_for_retry_delay(breaker: CircuitBreaker) -> None:
    fail(breaker, error=limited())
    assert breaker.seconds_until_half_open() == 10


def test_a_look_ups_429_opens_it_too(breaker: CircuitBreaker) -> None:
    fail_lookup(breaker, limited(20))
    assert breaker.seconds_until_half_open() == pytest.approx(20)


def test_another_errors_retry_after_is_its_items_alone(breaker: CircuitBreaker) -> None:
    open_it(breaker, IconikServerError("iconik answered 503", status=503, retry_after=3600))
    assert breaker.seconds_until_half_open() == 10


def test_look_ups_that_fail_do_not_open_it(breaker: CircuitBreaker) -> None:
    for _ in range(100):
        fail_lookup(breaker)
    for _ in range(9):
        fail(breaker)
    fail_lookup(breaker)
    assert breaker.state == "closed"


def test_a_look_up_that_succeeds_says_nothing(breaker: CircuitBreaker) -> None:
    for _ in range(9):
        fail(breaker)
    with permitted(breaker):
        pass
    fail(breaker)
    assert breaker.state == "open"


# Open


def test_while_it_is_open_nothing_is_sent(breaker: CircuitBreaker, clock: Clock) -> None:
    open_it(breaker)
    start = clock.now
    with permitted(breaker):
        assert clock.now == pytest.approx(start + 10)


def openings(breaker: CircuitBreaker, count: int) -> list[int]:
    """For how long it is open each time while iconik stays away."""
    open_it(breaker)
    seconds = []
    for _ in range(count):
        seconds.append(round(breaker.seconds_until_half_open()))
        fail(breaker)  # after waiting until it is half-open
    return seconds


def test_it_stays_open_for_retry_delay_doubled_each_time_up_to_60_seconds(breaker: CircuitBreaker) -> None:
    for _ in range(2):
        assert openings(breaker, 6) == [10, 20, 40, 60, 60, 60]
        succeed(breaker)


def test_a_retry_delay_of_over_60_seconds_is_kept(breaker: CircuitBreaker) -> None:
    breaker._config = SubmitterConfig(workers=4, retry_delay=90, max_retry_delay=900, give_up_after=604800)
    assert openings(breaker, 3) == [90, 90, 90]


def test_a_probe_that_hung_has_been_part_of_the_wait_but_for_retry_delay(breaker: CircuitBreaker, clock: Clock) -> None:
    openings(breaker, 4)
    with permitted(breaker) as probe:
        clock.now += 25
        probe.failed(TROUBLE, new_id())
    assert breaker.seconds_until_half_open() == pytest.approx(35)
    with permitted(breaker) as probe:
        clock.now += 55
        probe.failed(TROUBLE, new_id())
    assert breaker.seconds_until_half_open() == pytest.approx(10)


def test_a_short_retry_after_that_comes_again_and_again_is_no_reason_to_hurry(breaker: CircuitBreaker) -> None:
    seconds = []
    for _ in range(5):
        fail(breaker, error=limited(1))
        seconds.append(round(breaker.seconds_until_half_open()))
    assert seconds == [1, 20, 40, 60, 60]
    fail(breaker, error=limited(120))
    assert round(breaker.seconds_until_half_open()) == 120


def test_no_instant_between_open_and_half_open_makes_a_thread_wait_for_another(breaker: CircuitBreaker) -> None:
    open_it(breaker)
    times = iter([breaker._open_until - 1e-6] + 10 * [breaker._open_until])
    breaker._clock = lambda: next(times)
    with permitted(breaker) as permission:
        assert permission.is_probe


# Half-open


def test_half_open_lets_one_call_out_at_a_time(breaker: CircuitBreaker, clock: Clock) -> None:
    half_open(breaker, clock)
    with permitted(breaker) as permission:
        assert permission.is_probe
        with pytest.raises(AssertionError, match="wait for another thread"), permitted(breaker):
            pass
    with permitted(breaker) as permission:  # the first told neither failure nor success
        assert permission.is_probe


def test_a_success_closes_it(breaker: CircuitBreaker, clock: Clock) -> None:
    half_open(breaker, clock)
    succeed(breaker)
    assert breaker.state == "closed"
    assert breaker.paused_since is breaker.reason is None
    with permitted(breaker) as first, permitted(breaker) as second:
        assert not first.is_probe
        assert not second.is_probe


def test_any_failed_call_reopens_it(breaker: CircuitBreaker, clock: Clock) -> None:
    half_open(breaker, clock)
    fail(breaker)
    assert breaker.state == "open"
    clock.now += 20
    assert breaker.state == "half-open"
    fail_lookup(breaker)
    assert breaker.state == "open"


def test_a_look_up_that_succeeds_leaves_it_half_open(breaker: CircuitBreaker, clock: Clock) -> None:
    half_open(breaker, clock)
    with permitted(breaker):
        pass
    assert breaker.state == "half-open"


def test_after_it_closed_ten_items_have_to_fail_again(breaker: CircuitBreaker, clock: Clock) -> None:
    half_open(breaker, clock)
    succeed(breaker)
    for _ in range(9):
        fail(breaker)
    assert breaker.state == "closed"


# Outcomes that come late


@pytest.mark.parametrize("seconds", [0, 9, 10, 30], ids="after {} s".format)
def test_a_success_that_was_under_way_when_ten_had_failed_still_ends_their_row(
    breaker: CircuitBreaker, clock: Clock, seconds: float
) -> None:
    with permitted(breaker) as first:
        open_it(breaker)
        clock.now += seconds
        first.succeeded()
    assert breaker.state == "closed"
    for _ in range(9):
        fail(breaker)
    assert breaker.state == "closed"


def test_it_is_the_last_row_that_a_success_still_ends(breaker: CircuitBreaker) -> None:
    with permitted(breaker) as first:
        open_it(breaker)
        succeed(breaker)
        open_it(breaker)
        first.succeeded()
        assert breaker.state == "open"


def test_after_a_failed_probe_no_request_from_before_closes_it(breaker: CircuitBreaker) -> None:
    with permitted(breaker) as first:
        open_it(breaker)
        fail(breaker)
        first.succeeded()
        assert breaker.state == "open"


def test_after_a_429_no_request_from_before_closes_it(breaker: CircuitBreaker) -> None:
    with permitted(breaker) as first, permitted(breaker) as second:
        for _ in range(9):
            fail(breaker)
        fail(breaker, error=limited(500))  # it is no failure of an item
        first.succeeded()
        assert breaker.seconds_until_half_open() == pytest.approx(500)
        open_until = breaker._open_until
        second.succeeded()
        assert breaker._open_until == open_until


def test_failures_of_requests_from_before_it_opened_do_not_lengthen_it(breaker: CircuitBreaker) -> None:
    with permitted(breaker) as first, permitted(breaker) as second:
        open_it(breaker)
        first.failed(TROUBLE, new_id())
        second.failed(limited(500), new_id())
        assert breaker.seconds_until_half_open() == 10


def test_a_probe_that_is_out_when_a_late_success_closes_it_counts_for_nothing(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    with permitted(breaker) as first:
        half_open(breaker, clock)
        with permitted(breaker) as probe:
            first.succeeded()
            probe.failed(TROUBLE, new_id())
            probe.failed(limited(), new_id())
    assert breaker.state == "closed"
    with permitted(breaker) as second, permitted(breaker) as third:
        assert not second.is_probe
        assert not third.is_probe


def test_failures_from_before_it_closed_do_not_count(breaker: CircuitBreaker, clock: Clock) -> None:
    with permitted(breaker) as early:
        half_open(breaker, clock)
        succeed(breaker)
        for _ in range(10):
            early.failed(TROUBLE, new_id())
        early.failed(limited(), new_id())
    assert breaker.state == "closed"


def test_a_probe_of_an_earlier_time_gives_no_other_probe_s_permission_back(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    half_open(breaker, clock)
    early = breaker.permission()
    permission = early.__enter__()
    assert permission
    permission.failed(TROUBLE, new_id())
    clock.now += 20
    with permitted(breaker):
        early.__exit__(None, None, None)
        with pytest.raises(AssertionError, match="wait for another thread"), permitted(breaker):
            pass


# The permission comes back by itself


def test_an_exception_gives_the_permission_back(breaker: CircuitBreaker, clock: Clock) -> None:
    half_open(breaker, clock)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), permitted(breaker) as permission:
            assert permission.is_probe
            raise ZeroDivisionError
    assert breaker.state == "half-open"


class Threads:
    """Threads that ask for permission, and what each got: "probe", "free" or "none". They keep it until told."""

    def __init__(self, breaker: CircuitBreaker, count: int) -> None:
        self.got: list[str] = []
        self.give_back = threading.Semaphore(0)
        self._threads = [threading.Thread(target=self._ask, args=(breaker,), daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()
        wait_until(lambda: len(self.got) + len(breaker._changed._waiters) == count)  # type: ignore[attr-defined]

    def _ask(self, breaker: CircuitBreaker) -> None:
        with breaker.permission() as permission:
            self.got.append("none" if permission is None else "probe" if permission.is_probe else "free")
            self.give_back.acquire()

    def join(self) -> None:
        self.give_back.release(len(self._threads))
        for thread in self._threads:
            thread.join(5)
            assert not thread.is_alive()


def test_whoever_waits_goes_on_when_a_probe_comes_back_or_succeeds(clock: Clock) -> None:
    breaker = CircuitBreaker(CONFIG, clock)
    half_open(breaker, clock)
    with permitted(breaker) as probe:
        waiting = Threads(breaker, 3)
        assert waiting.got == []
    wait_until(lambda: waiting.got == ["probe"])
    waiting.give_back.release()
    wait_until(lambda: waiting.got == ["probe", "probe"])
    probe.succeeded()
    wait_until(lambda: waiting.got == ["probe", "probe", "free"])
    waiting.join()


def test_whoever_waits_goes_on_when_the_time_is_over() -> None:
    config = SubmitterConfig(workers=4, retry_delay=0.05, max_retry_delay=900, give_up_after=604800)
    breaker = CircuitBreaker(config)
    fail(breaker, error=limited())
    waiting = Threads(breaker, 2)
    wait_until(lambda: waiting.got == ["probe"])
    waiting.give_back.release()
    wait_until(lambda: waiting.got == ["probe", "probe"])
    waiting.join()


def test_once_stopped_it_lets_nobody_out(clock: Clock) -> None:
    breaker = CircuitBreaker(CONFIG, clock)
    open_it(breaker)
    waiting = Threads(breaker, 3)
    breaker.stop()
    wait_until(lambda: waiting.got == ["none"] * 3)
    waiting.join()
    with breaker.permission() as permission:
        assert permission is None


# What it tells


def messages(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(record.levelname, record.getMessage()) for record in caplog.records]


def test_its_opening_and_its_closing_are_one_line_each(
    breaker: CircuitBreaker, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    since = format_utc(clock.now)
    openings(breaker, 5)
    clock.now += 60
    succeed(breaker)
    assert messages(caplog) == [
        ("ERROR", "The circuit breaker opens: iconik answered 503. Nothing is sent for 10 s"),
        ("INFO", f"iconik takes jobs again: the circuit breaker closes (it opened at {since})"),
    ]
    # Nothing holds them back, like what may be told once a minute only.
    assert not any(hasattr(record, "topic") for record in caplog.records)


def test_a_reason_that_changes_is_told_at_once_and_without_what_comes_from_outside(
    breaker: CircuitBreaker, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    since = format_utc(clock.now)
    open_it(breaker)
    caplog.clear()
    for error in (IconikDenied("iconik answered 401", "their words", status=401), TROUBLE, TROUBLE):
        fail(breaker, error=error)
    assert messages(caplog) == [
        ("ERROR", f"The circuit breaker stays open (since {since}): now iconik answered 401"),
        ("ERROR", f"The circuit breaker stays open (since {since}): now iconik answered 503"),
    ]


def test_it_says_how_it_is_since_when_and_why(breaker: CircuitBreaker, clock: Clock) -> None:
    assert breaker.describe() == "The circuit breaker is closed"
    since = format_utc(clock.now)
    open_it(breaker)
    assert (breaker.paused_since, breaker.reason) == (since, "iconik answered 503")
    assert breaker.describe() == f"The circuit breaker is open since {since}: iconik answered 503"
    clock.now += 10
    assert breaker.describe() == f"The circuit breaker is half-open since {since}: iconik answered 503"
    succeed(breaker)
    assert breaker.describe() == "The circuit breaker is closed"


# Backoff


def test_a_backoff_doubles_from_the_first_delay_to_the_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: low)
    assert [backoff(attempts, 10, 900) for attempts in range(1, 10)] == [10, 20, 40, 80, 160, 320, 640, 900, 900]


def test_a_backoff_varies_by_chance_but_is_never_shorter_than_the_first_nor_longer_than_the_longest() -> None:
    delays = {backoff(2, 10, 900) for _ in range(100)}
    assert len(delays) > 50
    assert min(delays) >= 20
    assert max(delays) <= 25
    assert all(backoff(1, 10, 900) >= 10 for _ in range(100))
    assert backoff(10_000, 10, 900) == 900
