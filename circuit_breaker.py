"""Whether requests to iconik may go out."""

import logging
from dataclasses import dataclass

from config import SubmitterConfig
from iconik_client import IconikError, IconikRateLimited
from system.runtime import Runtime
from system.text import format_utc

log = logging.getLogger("iconik_listener")

MAX_FAILURES = 10  # different items that fail in a row before the breaker opens
MAX_OPEN_SECONDS = 60.0
RATE_LIMITED_SECONDS = 10.0  # for which a 429 that does not say for how long keeps the breaker open


@dataclass(frozen=True)
class Permission:
    """Permission to send the requests of one attempt, poll or step.

    :ivar openings: how often the breaker had opened when it was given
    """

    openings: int


class CircuitBreaker:
    """Closed, requests go out freely. Open, none goes out for a while; then it is closed again.

    1. It opens when `MAX_FAILURES` different items have failed in a row. One item never opens it, however often it
       fails. It is open for `retry_delay`, doubled each time that no success came between, up to a minute or
       `max_retry_delay`, whichever is shorter.
    2. Then it is closed with an empty streak, and everything may go out.
    3. A success ends the streak and the doubling. One that comes while the breaker is open was sent before it opened,
       so iconik works, and the breaker closes at once, unless iconik asked for the pause itself.
    4. A failure of an attempt that began before the breaker last opened counts for nothing.
    5. A 429 counts when two different items or kinds of calls got one since the last success: then the breaker opens
       for as long as iconik asks.
    """

    def __init__(self, config: SubmitterConfig, runtime: Runtime | None = None) -> None:
        self._config = config
        self._runtime = runtime or Runtime()
        self._changed = self._runtime.condition()
        self._stopped = False
        self._streak: set[str] = set()  # the items that failed since the last success
        self._rate_limited: set[str] = set()  # the items and kinds of calls that got a 429 since the last success
        self._openings = 0  # in all
        self._openings_in_a_row = 0  # without a success between them
        self._open_until = 0.0  # by the monotonic clock
        self._is_rate_limit = False  # whether iconik asked for this pause
        self._opened_at: str | None = None  # UTC text, of the first opening in a row
        self._reason: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether no request may go out."""
        return self._runtime.monotonic() < self._open_until

    @property
    def opened_at(self) -> str | None:
        """When it opened, as UTC text, if no success has come since. It may be closed by now."""
        return self._opened_at if self._openings_in_a_row else None

    @property
    def reason(self) -> str | None:
        """Why it opened last."""
        return self._reason

    def describe(self) -> str:
        """Its state as a sentence."""
        with self._changed:
            if self.is_open:
                return f"The circuit breaker has been open since {self._opened_at}: {self._reason}"
            return "The circuit breaker is closed"

    def wait(self) -> Permission | None:
        """Wait until requests may go out. Returns None once the breaker has been stopped."""
        with self._changed:
            while not self._stopped and (seconds := self._open_until - self._runtime.monotonic()) > 0:
                self._changed.wait(seconds)
            return None if self._stopped else Permission(self._openings)

    def stop(self) -> None:
        """Let nothing go out any more."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def succeeded(self) -> None:
        """iconik accepted a job or refused it: either is a sign of life."""
        with self._changed:
            self._streak.clear()
            self._rate_limited.clear()
            if self._is_rate_limit and self.is_open:  # iconik asked for the pause: a success does not end it
                return
            if self._openings_in_a_row:
                log.info("iconik takes jobs again: the circuit breaker closes (it opened at %s)", self._opened_at)
            self._openings_in_a_row = 0
            self._open_until = 0.0
            self._changed.notify_all()

    def failed(self, permission: Permission, error: IconikError, source: str, *, is_item: bool = True) -> None:
        """A call failed.

        :param source: the item, or the kind of call
        :param is_item: whether the failure is one of an attempt at an item; of other calls only a 429 counts
        """
        with self._changed:
            if permission.openings != self._openings:
                return
            if isinstance(error, IconikRateLimited):
                self._rate_limited.add(source)
                if len(self._rate_limited) >= 2:
                    self._open(error, error.retry_after or RATE_LIMITED_SECONDS, is_rate_limit=True)
            elif is_item:
                self._streak.add(source)
                if len(self._streak) >= MAX_FAILURES:
                    self._open(error, self._next_pause())

    def credentials_refused(self, permission: Permission, error: IconikError) -> None:
        """iconik does not accept the credentials. That is never about one asset, so the breaker opens at once."""
        with self._changed:
            if permission.openings == self._openings:
                self._open(error, self._next_pause())

    def _next_pause(self) -> float:
        longest = max(self._config.retry_delay, min(MAX_OPEN_SECONDS, self._config.max_retry_delay))
        seconds = self._config.retry_delay * 2.0 ** min(self._openings_in_a_row, 30)
        return min(seconds * self._runtime.uniform(1, 1.2), longest)

    def _open(self, error: IconikError, seconds: float, *, is_rate_limit: bool = False) -> None:
        is_first = self._openings_in_a_row == 0
        self._openings += 1
        self._openings_in_a_row += 1
        self._open_until = self._runtime.monotonic() + seconds
        self._is_rate_limit = is_rate_limit
        if is_first:
            self._opened_at = format_utc(self._runtime.time())
            log.error("The circuit breaker opens: %s. Nothing is sent for %.0f s", error.summary, seconds)
        elif error.summary != self._reason:
            log.error("The circuit breaker opens again (first at %s): %s", self._opened_at, error.summary)
        self._reason = error.summary
        self._streak.clear()
        self._rate_limited.clear()
        self._changed.notify_all()
