"""The breaker on a clock of the test's: when nothing goes out, and for how long."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

import pytest

from circuit_breaker import CircuitBreaker, Permission
from config import Config
from iconik_client import IconikDenied, IconikRateLimited, IconikUnavailable
from support import Clock, ManualRuntime, wait_until

FAILURE = IconikUnavailable("iconik answered 503", status=503)
DENIED = IconikDenied("iconik answered 401", status=401)


@pytest.fixture
def breaker(configs: Callable[..., Config], clock: Clock) -> CircuitBreaker:
    config = configs(submitter__retry_delay=10, submitter__max_retry_delay=900)
    return CircuitBreaker(config.submitter, ManualRuntime(clock))


def permission(breaker: CircuitBreaker) -> Permission:
    given = breaker.wait()
    assert given
    return given


def fail(breaker: CircuitBreaker, items: int = 10) -> None:
    """Let that many different items fail."""
    given = permission(breaker)
    for number in range(items):
        breaker.failed(given, FAILURE, str(number))


def test_ten_different_items_that_fail_in_a_row_open_it(breaker: CircuitBreaker) -> None:
    fail(breaker, 9)
    assert not breaker.is_open
    breaker.failed(permission(breaker), FAILURE, "9")
    assert breaker.is_open


def test_one_item_never_opens_it(breaker: CircuitBreaker) -> None:
    for _ in range(1000):
        breaker.failed(permission(breaker), FAILURE, "same")
    assert not breaker.is_open


def test_a_success_ends_the_streak(breaker: CircuitBreaker) -> None:
    fail(breaker, 9)
    breaker.succeeded()
    fail(breaker, 9)
    assert not breaker.is_open


def test_it_is_open_for_retry_delay_doubled_up_to_a_minute(breaker: CircuitBreaker, clock: Clock) -> None:
    pauses = []
    for _ in range(5):
        fail(breaker)
        opened = clock.monotonic
        permission(breaker)  # waits by letting the clock go on
        pauses.append(clock.monotonic - opened)
    assert pauses == [10, 20, 40, 60, 60]
    breaker.succeeded()
    fail(breaker)
    opened = clock.monotonic
    permission(breaker)
    assert clock.monotonic - opened == 10


def test_a_pause_is_never_longer_than_max_retry_delay(configs: Callable[..., Config], clock: Clock) -> None:
    config = configs(submitter__retry_delay=10, submitter__max_retry_delay=15)
    breaker = CircuitBreaker(config.submitter, ManualRuntime(clock))
    for _ in range(4):
        fail(breaker)
        opened = clock.monotonic
        permission(breaker)
    assert clock.monotonic - opened == 15


def test_after_the_pause_it_is_closed_with_an_empty_streak(breaker: CircuitBreaker) -> None:
    fail(breaker)
    fail(breaker, 9)
    assert not breaker.is_open


def test_a_success_that_was_sent_before_it_opened_closes_it(breaker: CircuitBreaker) -> None:
    fail(breaker)
    assert breaker.is_open
    breaker.succeeded()
    assert not breaker.is_open
    assert breaker.opened_at is None


def test_failures_from_before_it_opened_count_for_nothing(breaker: CircuitBreaker) -> None:
    old = permission(breaker)
    fail(breaker)
    permission(breaker)
    for number in range(20):
        breaker.failed(old, FAILURE, f"old {number}")
    assert not breaker.is_open


def test_a_401_opens_it_at_once(breaker: CircuitBreaker) -> None:
    breaker.credentials_refused(permission(breaker), DENIED)
    assert breaker.is_open
    assert breaker.reason == "iconik answered 401"


def test_a_429_counts_when_two_items_or_kinds_of_calls_got_one(breaker: CircuitBreaker, clock: Clock) -> None:
    limited = IconikRateLimited("iconik answered 429", retry_after=77)
    for _ in range(5):
        breaker.failed(permission(breaker), limited, "item")
    assert not breaker.is_open
    breaker.failed(permission(breaker), limited, "search", is_item=False)
    assert breaker.is_open
    opened = clock.monotonic
    permission(breaker)
    assert clock.monotonic - opened == 77


def test_a_success_does_not_end_a_pause_that_iconik_asked_for(
    breaker: CircuitBreaker, caplog: pytest.LogCaptureFixture
) -> None:
    limited = IconikRateLimited("iconik answered 429", retry_after=77)
    for item in ("a", "b"):
        breaker.failed(permission(breaker), limited, item)
    with caplog.at_level("INFO"):
        breaker.succeeded()
    assert breaker.is_open
    assert breaker.opened_at is not None
    assert "closes" not in caplog.text


def test_failures_of_other_calls_do_not_count(breaker: CircuitBreaker) -> None:
    for number in range(50):
        breaker.failed(permission(breaker), FAILURE, str(number), is_item=False)
    assert not breaker.is_open


def test_it_says_since_when_and_why(breaker: CircuitBreaker, caplog: pytest.LogCaptureFixture) -> None:
    assert breaker.describe() == "The circuit breaker is closed"
    fail(breaker)
    assert "has been open since" in breaker.describe()
    assert "iconik answered 503" in breaker.describe()
    assert "The circuit breaker opens: iconik answered 503. Nothing is sent for 10 s" in caplog.text


def test_when_it_opens_again_the_log_says_so_only_of_another_reason(
    breaker: CircuitBreaker, caplog: pytest.LogCaptureFixture
) -> None:
    for error in (DENIED, DENIED, FAILURE, FAILURE):
        breaker.credentials_refused(permission(breaker), error)
    first, again = (record.getMessage() for record in caplog.records)
    assert first.startswith("The circuit breaker opens: iconik answered 401.")
    assert again.startswith("The circuit breaker opens again (first at ") and again.endswith("): iconik answered 503")


def test_stop_lets_nobody_wait(configs: Callable[..., Config]) -> None:
    breaker = CircuitBreaker(configs(submitter__retry_delay=60, submitter__max_retry_delay=60).submitter)
    fail(breaker)
    given: list[Permission | None] = []
    thread = threading.Thread(target=lambda: given.append(breaker.wait()))
    thread.start()
    breaker.stop()
    thread.join(10)
    wait_until(lambda: given == [None])


def test_it_is_not_described_while_it_is_just_opening(configs: Callable[..., Config], clock: Clock) -> None:
    described: list[Future[str]] = []

    class DescribingRuntime(ManualRuntime):
        def time(self) -> float:  # is asked while the breaker opens
            described.append(pool.submit(breaker.describe))
            wait(described, timeout=0.1)
            return super().time()

    breaker = CircuitBreaker(configs().submitter, DescribingRuntime(clock))
    with ThreadPoolExecutor() as pool:
        fail(breaker)
        assert described[0].result().endswith(": iconik answered 503")
