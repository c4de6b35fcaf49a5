"""Jobs out: the worker threads that have iconik analyze each ready item, once."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from circuit_breaker import CircuitBreaker, Permission, backoff
from config import Config
from iconik_client import (
    IconikClient,
    IconikDenied,
    IconikError,
    IconikRateLimited,
    IconikRefused,
    IconikUnavailable,
    Json,
)
from store import Item, Store
from system.database import StoreUnavailable
from system.text import command, number_of, one_line
from system.transport import MAX_RETRY_AFTER

log = logging.getLogger("iconik_listener")

POLL_SECONDS = 30.0  # for what others write into items.db: what this process writes wakes the workers
STOP_SECONDS = 10.0
ANALYZED = ("REQUESTED", "IN_PROGRESS", "DONE")


@dataclass(frozen=True)
class Outcome:
    """What came of an attempt: how to write that into items.db, and a line for the log."""

    write: Callable[[], object]
    line: str = ""
    level: int = logging.INFO


class Submitter:
    """Worker threads. Each takes an item, looks at its asset, posts the job if it has to, and records the outcome."""

    def __init__(self, store: Store, client: IconikClient, breaker: CircuitBreaker, config: Config) -> None:
        self._store, self._client, self._breaker = store, client, breaker
        self._config, self._skip_types = config.submitter, config.iconik.skip_types
        self._min_age, self._max_age = config.reconciler.min_age, config.reconciler.max_age
        # What is in trouble may make its calls hang: it leaves half of the workers to what is new.
        self._old_ones = threading.Semaphore((self._config.workers + 1) // 2)
        self._stopping = threading.Event()
        self._woken = threading.Condition()
        self._wakes = 0
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(self._config.workers)]
        self.last_error: str | None = None  # the last answer's, without anything from outside

    def start(self) -> None:
        """Take up what the last process left under way, and begin.

        :raises StoreUnavailable: items.db cannot be written
        """
        if interrupted := self._store.recover(self._config.retry_delay):
            log.warning("Under way when the listener ended: %s. iconik is asked first", number_of(interrupted, "item"))
        for thread in self._threads:
            thread.start()

    def wake(self) -> None:
        """Something became due."""
        with self._woken:
            self._wakes += 1
            self._woken.notify()

    def is_alive(self) -> bool:
        """Whether every worker's thread is running."""
        return all(thread.is_alive() for thread in self._threads)

    def stop(self) -> None:
        """Begin nothing new, and wait up to 10 s for what is under way.

        What is not answered by then is asked for at the next start.
        """
        self._stopping.set()
        with self._woken:
            self._woken.notify_all()
        self._breaker.stop()
        deadline = time.monotonic() + STOP_SECONDS
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0, deadline - time.monotonic()))

    def _work(self) -> None:
        while not self._stopping.is_set():
            wakes, seconds = self._wakes, min(self._config.retry_delay, POLL_SECONDS)
            try:
                seconds = self._work_once()
            except StoreUnavailable as error:
                log.error("%s. Nothing can be submitted", error, extra={"topic": ("claim", str(error))})
            except Exception:  # a mistake of ours must neither end this thread nor spin
                log.exception("Unexpected")
            with self._woken:
                self._woken.wait_for(lambda: self._stopping.is_set() or self._wakes != wakes, seconds)  # noqa: B023

    def _work_once(self) -> float:
        """Do what is to be done next, if there is something. Returns the seconds until it is worth looking again."""
        outcome = None
        with self._breaker.permission() as permission:
            if permission is None:
                return 0
            item = self._store.claim_new(newest=permission.is_probe)
            if item:
                outcome = self._submit(item, permission)
            elif not self._old_ones.acquire(blocking=False):
                return POLL_SECONDS  # those who may do it go on with what is due
            else:
                try:
                    outcome = self._continue(permission)
                finally:
                    self._old_ones.release()
        if outcome is None:
            return self._seconds_to_wait()
        self._record(outcome)
        return 0

    def _continue(self, permission: Permission) -> Outcome | None:
        """The next attempt at an item, or a question for a proxy, whatever has been due longest."""
        item = self._store.claim_due(self._min_age, self._max_age)
        if item is None:
            return None
        return self._submit(item, permission) if item.status == "submitting" else self._ask(item, permission)

    def _seconds_to_wait(self) -> float:
        longest = max(self._config.max_retry_delay, MAX_RETRY_AFTER)
        self._store.disbelieve_clock(self._config.retry_delay, longest, max(self._max_age, self._min_age, longest))
        due = self._store.seconds_until_due()
        return POLL_SECONDS if due is None else min(due + 0.001, POLL_SECONDS)

    def _submit(self, item: Item, permission: Permission) -> Outcome:
        """One attempt at one item: the one place where the asset, and iconik's answers, are decided on."""
        log.info("Submitting Analyze Job for %s", item.object_id)
        has_posted = False
        try:
            outcome = self._settled(item, self._client.asset(item.object_id))
            if outcome is None:
                has_posted = True
                job_id = self._client.analyze(item.object_id)
                permission.succeeded()
                write = partial(self._store.mark_submitted, item.object_id, job_id)
                outcome = Outcome(write, f"Submitted Analyze Job for {item.object_id}")
            self.last_error = None
            return outcome
        except IconikRefused as error:
            self.last_error = error.summary
            if has_posted:
                permission.succeeded()  # it is a sign of life
            return self._failed(item, str(error))
        except IconikError as error:
            return self._retried(item, error, permission, has_posted)
        except Exception as mistake:
            log.exception("%s: unexpected", item.object_id)
            wrapped = IconikUnavailable(f"unexpected {type(mistake).__name__}, see the log")
            return self._retried(item, wrapped, permission, has_posted)

    def _settled(self, item: Item, asset: Json) -> Outcome | None:
        """What the asset itself says is to become of its item. None: the job is to be posted."""
        if asset.get("status") == "DELETED":
            return self._skipped(item, "the asset is deleted")
        if str(asset.get("type")) in self._skip_types:
            return self._skipped(item, f"assets of type {asset['type']} are not analyzed (skip_types in config.ini)")
        analyze_status = asset.get("analyze_status") or "N/A"
        if analyze_status in ANALYZED:
            line = f"Found that iconik has an Analyze Job for {item.object_id} already"
            return Outcome(partial(self._store.mark_submitted, item.object_id, None), line)
        if analyze_status == "FAILED" and item.in_doubt:
            return self._failed(item, "iconik's analysis failed")
        if analyze_status not in ("N/A", "FAILED"):
            return self._failed(item, f"iconik says analyze_status {one_line(str(analyze_status), 40)}")
        return None

    def _skipped(self, item: Item, reason: str) -> Outcome:
        write = partial(self._store.mark_skipped, item.object_id, reason)
        return Outcome(write, f"Skipped {item.object_id}: {reason}")

    def _failed(self, item: Item, error: str) -> Outcome:
        remedy = f"Once the cause is fixed: {command('retry', item.object_id)}"
        write = partial(self._store.mark_failed, item.object_id, error)
        return Outcome(write, f"{item.object_id} failed: {error}. {remedy}", logging.ERROR)

    def _retried(self, item: Item, error: IconikError, permission: Permission, has_posted: bool) -> Outcome:
        """After its own backoff, which a probe does not double, and not before iconik wants it; not for ever."""
        self.last_error = error.summary
        permission.failed(error, item.object_id)
        counts = not (permission.is_probe or isinstance(error, IconikRateLimited))
        if isinstance(error, IconikRateLimited):
            delay = self._breaker.seconds_until_half_open()
        elif item.age > self._config.give_up_after:
            return self._failed(item, f"given up after {item.attempts} attempts: {error}")
        else:
            attempts = max(1, item.attempts - permission.is_probe)
            delay = backoff(attempts, self._config.retry_delay, self._config.max_retry_delay)
            delay = max(delay, error.retry_after or 0)
        in_doubt = has_posted and (error.status == 408 or error.status not in range(300, 500))
        write = partial(self._store.postpone, item.object_id, delay, str(error), in_doubt=in_doubt, counts=counts)
        return Outcome(write, f"{item.object_id}: {error}. Next attempt in {delay:.0f} s", _level(error))

    def _ask(self, item: Item, permission: Permission) -> Outcome:
        """Ask iconik for a proxy whose webhook did not come."""
        object_id = item.object_id
        try:
            if not self._client.has_closed_proxy(object_id):
                return Outcome(lambda: None)
        except IconikRefused as error:  # about this asset; it is due again when it is twice as old
            return Outcome(lambda: None, f"{object_id}: its proxies cannot be read: {error}", logging.WARNING)
        except IconikError as error:
            permission.failed(error)
            delay = max(self._config.max_retry_delay, error.retry_after or 0)
            write = partial(self._store.postpone_question, object_id, delay, self._max_age)
            line = f"{object_id}: its proxies cannot be read: {error}. Next question in {delay:.0f} s"
            return Outcome(write, line, _level(error))
        line = f"Found object {object_id} in finished proxy queue: iconik has its proxy, the webhook was missed"
        return Outcome(partial(self._store.proxy_closed, object_id), line)

    def _record(self, outcome: Outcome) -> None:
        """Write an outcome. While that is impossible, keep it and write it again."""
        if outcome.line:
            log.log(outcome.level, outcome.line)
        while True:
            was_stopping = self._stopping.is_set()
            try:
                outcome.write()
                return
            except StoreUnavailable as error:
                log.error("%s. An outcome waits to be written", error, extra={"topic": ("record", str(error))})
            if was_stopping:
                log.error("An outcome was not written: the next start asks iconik for it")
                return
            self._stopping.wait(min(self._config.retry_delay, POLL_SECONDS))


def _level(error: IconikError) -> int:
    """The log's: what is wrong with the credentials needs a person."""
    return logging.ERROR if isinstance(error, IconikDenied) else logging.WARNING
