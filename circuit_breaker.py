"""Whether requests to iconik may go out, and how long what failed has to wait."""

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from config import SubmitterConfig
from iconik_client import IconikError, IconikRateLimited
from system.text import utc_text

log = logging.getLogger("iconik_listener")

MAX_FAILURES = 10  # different items that fail in a row before the breaker opens
MAX_OPEN_SECONDS = 60.0


def backoff(attempts: int, first: float, longest: float) -> float:
    """Seconds to wait after so many attempts: `first`, doubled with each, and some more by chance, up to `longest`."""
    return min(first * 2.0 ** min(attempts - 1, 60) * random.uniform(1, 1.2), longest)  # noqa: S311


@dataclass(frozen=True)
class Permission:
    """Leave to send one item's requests, and the place to say what came of them.

    `is_probe`: the breaker is half-open, and this is the one call that tries whether iconik is back.
    """

    is_probe: bool
    generation: int
    given_at: float  # by the breaker's clock
    breaker: "CircuitBreaker"

    def succeeded(self) -> None:
        """iconik answered the POST."""
        self.breaker._succeeded(self)

    def failed(self, error: IconikError, object_id: str | None = None) -> None:
        """iconik did not do what it was asked to for that item. Without one, that counts for a probe and a 429 only."""
        self.breaker._failed(self, error, object_id)


class CircuitBreaker:
    """Closed, requests go out freely. Open, none does for a while. Half-open, one at a time, until one succeeds.

    It opens when `MAX_FAILURES` different items have failed in a row: one item, however often it fails, never opens it.
    A success ends the row, even one that is still under way when the breaker opens. Anything else that comes of a
    request counts only if the breaker has not changed since it was sent.
    """

    def __init__(self, config: SubmitterConfig, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: seconds, monotonic."""
        self._config, self._clock = config, clock
        self._changed = threading.Condition()
        self._stopped = False
        self._generation = 0  # of the state: one more each time that it opens or closes
        self._failed_items: set[str] = set()  # in a row, since the last success
        self._row_generation: int | None = None  # the one that such a row ended, until a probe fails
        self._openings = 0  # in a row; 0 means closed
        self._open_until = 0.0  # by the clock
        self._probe_is_out = False
        self.paused_since: str | None = None  # UTC text; None while closed
        self.reason: str | None = None  # why it opened or, if iconik says something else by now, that

    @property
    def state(self) -> str:
        """`closed`, `open` or `half-open`."""
        if not self._openings:
            return "closed"
        return "open" if self._clock() < self._open_until else "half-open"

    def describe(self) -> str:
        """The state as a sentence."""
        since = f" since {self.paused_since}: {self.reason}" if self._openings else ""
        return f"The circuit breaker is {self.state}{since}"

    def seconds_until_half_open(self) -> float:
        """How long nothing is sent yet: 0 unless the breaker is open."""
        return max(0.0, self._open_until - self._clock()) if self._openings else 0.0

    @contextmanager
    def permission(self) -> Iterator[Permission | None]:
        """Wait until a request may go out. Yields None once the breaker has been stopped."""
        permission = self._wait()
        try:
            yield permission
        finally:
            if permission and permission.is_probe:
                with self._changed:
                    if permission.generation == self._generation:
                        self._probe_is_out = False
                        self._changed.notify_all()

    def stop(self) -> None:
        """Let nobody send anything any more."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _wait(self) -> Permission | None:
        with self._changed:
            while not self._stopped:
                seconds = self.seconds_until_half_open()
                if not seconds and not self._probe_is_out:
                    self._probe_is_out = self._openings > 0
                    return Permission(self._probe_is_out, self._generation, self._clock(), self)
                self._changed.wait(seconds or None)
            return None

    def _succeeded(self, permission: Permission) -> None:
        with self._changed:
            if permission.generation not in (self._generation, self._row_generation):
                return
            self._failed_items.clear()
            if self._openings:
                log.info("iconik takes jobs again: the circuit breaker closes (it opened at %s)", self.paused_since)
                self._openings = 0
                self.paused_since = self.reason = None
                self._change()

    def _failed(self, permission: Permission, error: IconikError, object_id: str | None) -> None:
        with self._changed:
            if permission.generation != self._generation:
                return
            is_limited = isinstance(error, IconikRateLimited)
            if object_id and not is_limited:
                self._failed_items.add(object_id)
            is_row = len(self._failed_items) >= MAX_FAILURES
            if permission.is_probe or is_limited or is_row:
                self._row_generation = self._generation if is_row else None
                self._open(error, self._clock() - permission.given_at)

    def _open(self, error: IconikError, call_seconds: float) -> None:
        self._openings += 1
        asked_to_wait = error.retry_after if isinstance(error, IconikRateLimited) else None
        first, longest = self._config.retry_delay, max(MAX_OPEN_SECONDS, self._config.retry_delay)
        # A call that hung is part of the wait, or one that began just before iconik's return would cost a minute more.
        delay = max(first, backoff(self._openings, first, longest) - call_seconds)
        if asked_to_wait:  # at first that long, even if it is short; an iconik that says so for ever is not believed
            delay = asked_to_wait if self._openings == 1 else max(asked_to_wait, delay)
        self._open_until = self._clock() + delay
        if self.paused_since is None:
            self.paused_since = utc_text(time.time())
            log.error("The circuit breaker opens: %s. Nothing is sent for %.0f s", error.summary, delay)
        elif error.summary != self.reason:
            log.error("The circuit breaker stays open (since %s): now %s", self.paused_since, error.summary)
        self.reason = error.summary
        self._failed_items.clear()
        self._change()

    def _change(self) -> None:
        self._generation += 1
        self._probe_is_out = False
        self._changed.notify_all()
