"""Jobs out: the threads that submit ready items to iconik, their pauses, and the sweep for missed proxies."""

import logging
import random
import threading
import time
from collections.abc import Callable
from functools import partial

from config import SubmitterConfig, SweepConfig
from iconik_client import (
    IconikBroken,
    IconikClient,
    IconikDenied,
    IconikError,
    IconikRateLimited,
    IconikRefused,
    IconikUnavailable,
)
from store import Item, Store, StoreUnavailable, utc_text

log = logging.getLogger("iconik_listener")

SWEEPS_PER_SECOND = 5
EARLY_SECONDS = 24 * 3600.0  # how long a closed proxy waits for the create that it overtook
POLL_SECONDS = 30.0  # for what others write into items.db: what this process writes wakes the workers
MOST_SERVER_ERRORS = 20
STOP_SECONDS = 10.0


def backoff(config: SubmitterConfig, failures: int) -> float:
    """Seconds to wait after so many failures in a row: doubling, and a little more by chance."""
    delay = config.retry_delay * 2.0 ** min(failures - 1, 30)
    return min(delay, config.max_retry_delay) * random.uniform(1, 1.25)  # noqa: S311


class Pauses:
    """Says when requests to iconik may go out: at any time, or, while it is in trouble, one after each wait.

    Who sends first takes a turn, and gives it back with what came of it. A turn is the number of the pause
    that it was given in: what a request meets that was sent before a pause says nothing about that pause.
    """

    def __init__(self, config: SubmitterConfig, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: seconds, monotonic."""
        self._config, self._clock = config, clock
        self._changed = threading.Condition()
        self._closed = False
        self._number = 0
        self._failures = 0  # in a row; 0: no pause
        self._until = 0.0  # by the clock
        self._probing = False
        self._since = ""  # UTC, for people
        self._call = ""

    @property
    def paused(self) -> bool:
        return self._failures > 0

    def enter(self) -> int | None:
        """Wait until a request may go out. Returns the turn, None once closed."""
        with self._changed:
            while not self._closed:
                left = self._until - self._clock() if self.paused else 0
                if left <= 0 and not self._probing:
                    self._probing = self.paused
                    return self._number
                self._changed.wait(left if left > 0 else None)
            return None

    def leave(self, turn: int) -> None:
        """Nothing was sent, or the answer says nothing about the others."""
        with self._changed:
            if turn == self._number:
                self._probing = False
                self._changed.notify_all()

    def begin(self, turn: int, call: str, error: IconikError) -> float:
        """iconik is in trouble: nobody sends for a while. Returns how many seconds that is."""
        asked = error.retry_after if isinstance(error, IconikRateLimited) else None
        with self._changed:
            if turn == self._number:
                self._number += 1
                self._failures += 1
                self._probing = False
                self._call = call
                self._since = self._since or utc_text(time.time())
                delay = asked or backoff(self._config, self._failures)
                self._until = self._clock() + delay
                level = logging.ERROR if isinstance(error, IconikDenied) else logging.WARNING
                topic = {"topic": f"pause: {type(error).__name__}"}
                log.log(level, "%s. No requests for %.0f s (trouble since %s)", error, delay, self._since, extra=topic)
            elif asked:
                self._until = max(self._until, self._clock() + asked)
            self._changed.notify_all()
            left = self._until - self._clock()
            return left if left > 0 else self._config.retry_delay

    def end(self, turn: int, call: str) -> None:
        """A call succeeded. That ends any pause if it was analyze, else only one that the same call began:
        iconik may well answer the one and not the other."""
        with self._changed:
            if turn == self._number and self.paused and call in ("analyze", self._call):
                log.info("iconik takes requests again (trouble since %s)", self._since, extra={"topic": "resume"})
                self._failures = 0
                self._since = ""
        self.leave(turn)

    def close(self) -> None:
        """Let nobody in any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class Submitter:
    """Worker threads that ask iconik to analyze each ready item, once."""

    def __init__(self, store: Store, client: IconikClient, pauses: Pauses, config: SubmitterConfig) -> None:
        self._store, self._client, self._pauses = store, client, pauses
        self._config = config
        self._changed = threading.Condition()
        self._stopping = False
        self._wakes = 0
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(config.workers)]
        self.last_error: str | None = None  # the last answer's, without anything from outside

    def start(self) -> None:
        """Take up what the last process left under way, and begin.

        :raises StoreUnavailable: items.db cannot be written
        """
        interrupted = self._store.recover(self._config.retry_delay)
        if interrupted:
            log.warning("%d items were under way when the listener ended: iconik will be asked", interrupted)
        for thread in self._threads:
            thread.start()

    def wake(self) -> None:
        """An item became ready."""
        with self._changed:
            self._wakes += 1
            self._changed.notify_all()

    def stop(self) -> None:
        """Begin nothing new, and wait up to 10 s for what is under way.

        What is not answered by then is asked for at the next start.
        """
        self._pauses.close()
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        deadline = time.monotonic() + STOP_SECONDS
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0, deadline - time.monotonic()))

    def _work(self) -> None:
        while (turn := self._pauses.enter()) is not None:
            wakes = self._wakes
            try:
                item = self._store.claim()
                seconds = 0 if item else self._seconds_to_wait()
            except StoreUnavailable as error:
                log.error("items.db: %s", error, extra={"topic": "claim"})
                item, seconds = None, self._config.retry_delay
            if item:
                self._submit(item, turn)
            else:
                self._pauses.leave(turn)
                with self._changed:
                    self._changed.wait_for(lambda: self._stopping or self._wakes != wakes, seconds)  # noqa: B023

    def _seconds_to_wait(self) -> float:
        due = self._store.seconds_until_due()
        return POLL_SECONDS if due is None else min(max(due, 0) + 0.001, POLL_SECONDS)

    def _submit(self, item: Item, turn: int) -> None:
        """One attempt for one claimed item: the one place where iconik's answers are decided on."""
        log.info("Submitting Analyze Job for %s", item.object_id)
        outcome: Callable[[], None]
        try:
            job_id = self._analyze(item)
        except (IconikDenied, IconikRateLimited, IconikUnavailable) as error:
            self.last_error = error.summary
            delay = self._pauses.begin(turn, "analyze", error)
            outcome = partial(self._store.postponed, item.object_id, delay, str(error))
        except IconikRefused as error:
            self.last_error = error.summary
            self._pauses.leave(turn)
            outcome = self._failed(item, str(error))
        except IconikBroken as error:
            self.last_error = error.summary
            self._pauses.leave(turn)
            outcome = self._later(item, str(error))
        except Exception as error:  # a mistake of ours: it must neither end this thread nor spin
            log.exception("%s: unexpected", item.object_id)
            self.last_error = type(error).__name__
            self._pauses.leave(turn)
            outcome = self._later(item, f"unexpected {type(error).__name__}, see the log")
        else:
            log.info("Submitted Analyze Job for %s", item.object_id)
            self.last_error = None
            self._pauses.end(turn, "analyze")
            outcome = partial(self._store.submitted, item.object_id, job_id)
        self._record(item, outcome)

    def _analyze(self, item: Item) -> str | None:
        """Returns the job's UUID, None if it is not known."""
        # An earlier attempt may have been taken though its answer was lost. It would be billed twice.
        if item.attempts > 1 and self._client.analyze_status(item.object_id) != "N/A":
            log.info("Found that iconik took an earlier Analyze Job for %s", item.object_id)
            return None
        return self._client.analyze(item.object_id)

    def _later(self, item: Item, error: str) -> Callable[[], None]:
        failures = item.server_errors + 1
        if failures >= MOST_SERVER_ERRORS:
            return self._failed(item, error)
        delay = backoff(self._config, failures)
        log.warning("%s: %s. Next attempt in %.0f s", item.object_id, error, delay, extra={"topic": "broken"})
        return partial(self._store.postponed, item.object_id, delay, error, server_error=True)

    def _failed(self, item: Item, error: str) -> Callable[[], None]:
        log.error(
            "%s failed: %s. Once the cause is mended: python app.py retry %s", item.object_id, error, item.object_id
        )
        return partial(self._store.failed, item.object_id, error)

    def _record(self, item: Item, outcome: Callable[[], None]) -> None:
        """Write an outcome; while that is impossible, keep it and write it again."""
        while True:
            try:
                outcome()
                return
            except StoreUnavailable as error:
                log.error("items.db: %s. An outcome waits to be written", error, extra={"topic": "record"})
            with self._changed:
                if self._changed.wait_for(lambda: self._stopping, self._config.retry_delay):
                    log.error("%s: outcome not written: the next start asks iconik", item.object_id)
                    return


class Sweep:
    """A thread that asks iconik, now and then, for proxies whose webhook never came; it also clears `early` items."""

    def __init__(
        self, store: Store, client: IconikClient, pauses: Pauses, submitter: Submitter, config: SweepConfig
    ) -> None:
        self._store, self._client, self._pauses, self._submitter = store, client, pauses, submitter
        self._config = config
        self._stopping = threading.Event()

        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ask for nothing more. A request under way may go on: it changes nothing at iconik."""
        self._stopping.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._sweep()
            self._stopping.wait(self._config.interval or 3600)

    def _sweep(self) -> None:
        try:
            self._store.delete_early(EARLY_SECONDS)
            if self._config.interval:
                self._ask_for_proxies()
        except StoreUnavailable as error:
            if not self._stopping.is_set():  # while stopping, it may be closed already
                log.error("items.db: %s. The look for missed proxies ends early", error)

    def _ask_for_proxies(self) -> None:
        item = self._store.next_pending(self._config.min_age, self._config.max_age)
        while item and self._ask(item.object_id) and not self._stopping.wait(1 / SWEEPS_PER_SECOND):
            item = self._store.next_pending(self._config.min_age, self._config.max_age, after=item)

    def _ask(self, object_id: str) -> bool:
        """Ask for one asset's proxies. Returns whether to go on."""
        turn = self._pauses.enter()
        if turn is None:
            return False
        try:
            closed = self._client.has_closed_proxy(object_id)
        except (IconikRateLimited, IconikUnavailable) as error:
            self._pauses.begin(turn, "proxies", error)
            return True
        except IconikDenied as error:  # no reason for the jobs to pause: they may need another role
            self._pauses.leave(turn)
            log.error("%s. Missed proxies cannot be looked for", error)
            return False
        except Exception as error:  # iconik's trouble with this asset, or a mistake of ours: on to the next
            self._pauses.leave(turn)
            log.warning("%s: its proxies cannot be read: %s", object_id, error, extra={"topic": "proxies"})
            return True
        self._pauses.end(turn, "proxies")
        if closed and self._store.proxy_closed(object_id) == "ready":
            log.info("Found object %s in finished proxy queue: iconik has its proxy, the webhook was missed", object_id)
            self._submitter.wake()
        return True
