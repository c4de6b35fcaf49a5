"""The worker threads, which start the job of each ready item, once."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from circuit_breaker import CircuitBreaker, Permission
from config import Config
from events import title_of, version_of
from iconik_client import (
    DATE_SECONDS,
    IconikClient,
    IconikDenied,
    IconikError,
    IconikForbidden,
    IconikJob,
    IconikRateLimited,
    IconikRefused,
    IconikUnavailable,
)
from jobs import FINISHED, JOBS, NOT_STARTED, UNDER_WAY, Job, Json, status_of, version_for
from limits import Limits
from profiles import DEFAULT, Profile, ProfileMissing, ProfileNotForMediaType, Profiles
from store import DAY_SECONDS, Item, Outcome, Source, Status, Store
from system.database import StoreRefused, StoreUnavailable
from system.runtime import Runtime
from system.text import command, format_utc, named, one_line, parse_time, pluralize, without_ids

log = logging.getLogger("iconik_listener")

POLL_SECONDS = 30.0  # for what other programs write into items.db: what this process writes wakes the workers
STOP_SECONDS = 10.0
DOUBT_MARGIN = 300.0  # by how much iconik's clocks may differ among themselves
ABSENT_SECONDS = 300.0  # between two looks that find nothing of a request in doubt
ABSENT_WITHOUT_JOBS_SECONDS = 3600.0  # the same, where only the asset's status can be read
MAX_DOUBT_SECONDS = 7 * DAY_SECONDS
DELETED_SECONDS = DAY_SECONDS  # for which an asset that iconik does not find is looked for
REFUSED_DELAY = DAY_SECONDS  # the longest delay after a refusal
NOT_YET_DELAY = 3600.0  # the longest delay while iconik's search does not know an asset yet
PROBE_SECONDS = 600.0  # between two attempts at finding out whether what was refused is accepted by now
ONLY_SECONDS = 600.0  # for which the number of assets that `only` finds is believed
# How iconik's jobs end, from its API document.
JOB_DONE = ("FINISHED", "FINISHED_WITH_WARNING")
JOB_FAILED = ("FAILED", "ABORTED", "SKIPPED")


@dataclass(frozen=True)
class Facts:
    """What an attempt has learned about an asset: its media type and duration (seconds), and the profile to use."""

    profile: Profile = Profile("", "")
    media_type: str | None = None
    duration: float | None = None


@dataclass
class Call:
    """Where an attempt is, for when one of its calls fails.

    :ivar source: what the call under way is about: the item, or a kind of call that it shares with others
    :ivar is_sent: whether the job's request was sent
    :ivar title: the asset's, once it was read
    """

    source: str
    is_sent: bool = False
    title: str | None = None
    facts: Facts = Facts()


class NotNow(Exception):
    """The job cannot be started now. It carries the outcome."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.error)
        self.outcome = outcome


class Submitter:
    """Worker threads. Each claims an item, reads its asset, starts the job if it has to, and records the outcome."""

    def __init__(
        self,
        store: Store,
        client: IconikClient,
        breaker: CircuitBreaker,
        config: Config,
        *,
        profiles: Profiles | None = None,
        runtime: Runtime | None = None,
    ) -> None:
        self._store = store
        self._client = client
        self._breaker = breaker
        self._config = config
        self._runtime = runtime or Runtime()
        self._limits = Limits(store)
        self._profiles = profiles or Profiles(client, self._runtime)
        # Retries may hang, so they may use at most half of the workers.
        self._retry_slots = threading.Semaphore((config.submitter.workers + 1) // 2)
        self._stopping = self._runtime.event()
        self._wake_condition = self._runtime.condition()
        self._wake_count = 0
        self._threads = [self._runtime.thread(self._work) for _ in range(config.submitter.workers)]
        self._started_at = self._runtime.monotonic()
        self._started_at_text = store.now()
        # By the monotonic clock, because a wall clock that steps must not bring forward what is in doubt.
        self._doubts: dict[tuple[str, str], float] = {}  # when an item in doubt may be looked at
        self._absences: dict[tuple[str, str], float] = {}  # since when nothing of its request is to be found
        self._only_counts: dict[str, tuple[float, int]] = {}  # what `only` finds, and when that was asked
        self._probed_at = self._runtime.monotonic()
        self._read_at: float | None = None  # when an asset was last read
        self._missed_by_only: dict[tuple[str, str], float] = {}  # when an asset first did not match
        self.last_error: str | None = None  # of the latest attempt, without anything from outside

    def start(self) -> None:
        """Take up what the last process left under way, and begin.

        :raises StoreUnavailable: items.db cannot be written
        """
        if interrupted := self._store.recover():
            log.warning(
                "Under way when the listener ended: %s. Checking first whether iconik accepted them",
                pluralize(interrupted, "item"),
            )
        if skipped := self._store.skip_other_jobs():
            log.warning("Skipped %s of jobs that are no longer in [submitter] jobs", pluralize(skipped, "item"))
        for thread in self._threads:
            thread.start()

    def wake(self) -> None:
        """Something became due."""
        with self._wake_condition:
            self._wake_count += 1
            self._wake_condition.notify()

    def is_alive(self) -> bool:
        """Whether every worker's thread is running."""
        return all(thread.is_alive() for thread in self._threads)

    def stop(self) -> None:
        """Begin nothing new, and wait up to 10 s for what is under way.

        What iconik has not answered by then is in doubt at the next start.
        """
        self._stopping.set()
        with self._wake_condition:
            self._wake_condition.notify_all()
        deadline = time.monotonic() + STOP_SECONDS
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0, deadline - time.monotonic()))

    def _work(self) -> None:
        while not self._stopping.is_set():
            wake_count = self._wake_count
            seconds = min(self._config.submitter.retry_delay, POLL_SECONDS)
            try:
                seconds = self.work_once()
            except StoreUnavailable as error:
                log.error("%s. No job can be started", error, extra={"topic": ("claim", str(error))})
            except StoreRefused as error:
                log.error("%s. The item is left alone until the next start", error)
                continue
            except Exception:  # a mistake of ours must neither end this thread nor spin
                log.exception("A worker met an unexpected error")
            with self._wake_condition:
                self._wake_condition.wait_for(
                    lambda: self._stopping.is_set() or self._wake_count != wake_count,  # noqa: B023
                    seconds,
                )

    def work_once(self) -> float:
        """Do what is due next, if anything is. Returns the seconds until it is worth looking again.

        New items go first, then retries, then polls. Under a limit retries are asked for before new items, because some
        of them hold reservations, or are of newer assets.
        """
        permission = self._breaker.wait()
        if permission is None or self._stopping.is_set():
            return 0
        steps = [self._start_new, self._start_retry, self._poll_proxy]
        if self._store.rules.max_per_day:
            steps = [self._start_retry, self._start_new, self._poll_proxy]
        if any(step(permission) for step in steps):
            return 0
        return self._seconds_to_wait()

    def _start_new(self, permission: Permission) -> bool:
        item = self._store.claim_new()
        if item:
            self._work_on(item, permission)
        return item is not None

    def _start_retry(self, permission: Permission) -> bool:
        with self._retry_slot() as has_slot:
            item = self._store.claim_retry() if has_slot else None
            if item:
                self._work_on(item, permission)
            return item is not None

    @contextmanager
    def _retry_slot(self) -> Iterator[bool]:
        """Take a slot for a retry or a poll. Yields whether one was free."""
        has_slot = self._retry_slots.acquire(blocking=False)
        try:
            yield has_slot
        finally:
            if has_slot:
                self._retry_slots.release()

    def _seconds_to_wait(self) -> float:
        with self._retry_slot() as has_slot:
            if not has_slot:  # the workers that have the slots go on with what is due
                return POLL_SECONDS
        self._limits.log_changes()
        due = self._store.seconds_until_due()
        return POLL_SECONDS if due is None else min(due + 0.001, POLL_SECONDS)

    # One attempt.

    def _work_on(self, item: Item, permission: Permission) -> None:
        outcome = self._attempt(item, permission)
        self._record(item, outcome)
        if outcome.status == Status.SUBMITTED and not outcome.found:
            self._release_refused(item)

    def _attempt(self, item: Item, permission: Permission) -> Outcome:
        """One attempt at starting an item's job.

        1. An item in doubt waits until its request must have arrived at iconik.
        2. Read the asset. It may be deleted, of a type that is skipped, or have the job already; and an item in doubt
           needs evidence that nothing was started.
        3. Find out which profile it gets and, if only some assets are wanted, whether it is one of them.
        4. Reserve one of today's jobs. If none is left, the item is held.
        5. Start the job, and return what became of it.

        The caller writes the outcome. An unexpected error becomes an outcome that is retried.
        """
        if (seconds := self._seconds_in_doubt(item)) > 0:
            return Outcome(Status.READY, delay=seconds, is_attempt=False, in_doubt=True)
        job = JOBS.get(item.job) if item.job in self._store.rules.jobs else None
        if job is None:  # a person has retried it
            is_in_doubt = item.in_doubt_since is not None
            return _final(Status.SKIPPED, f"{one_line(item.job)} is not in jobs", started_nothing=not is_in_doubt)
        log.info("Submitting %s Job for %s", job.label, named(item.object_id, item.title))  # as the article logs it
        call = Call(item.object_id)
        try:
            outcome = self._try(item, job, permission, call)
        except StoreUnavailable as error:
            log.error("%s. No job can be started", error, extra={"topic": ("claim", str(error))})
            outcome = self._put_back(item, call)
        except Exception as error:  # a person's trigger, or a value that no listener wrote: the item stops no other
            if isinstance(error, StoreRefused):
                log.error("%s. %s is left alone until the next start", error, named(item.object_id, item.title))
            else:
                log.exception("%s is left alone until the next start", named(item.object_id, item.title))
            self._store.leave_alone(item)
            outcome = self._put_back(item, call)
        if item.in_doubt_since and outcome.status == Status.READY and not outcome.in_doubt:
            outcome = replace(outcome, in_doubt=True, started_nothing=False)  # the earlier request is still in doubt
        self._note_doubt(item, outcome, call)
        return replace(outcome, title=call.title)

    def _try(self, item: Item, job: Job, permission: Permission, call: Call) -> Outcome:
        try:
            asset = self._read_asset(item)
            call.title = title_of(asset)
            outcome = self._outcome_without_job(item, job, asset, call)
            if outcome is None:
                facts = self._find_facts(item, job, call)
                call.source = item.object_id
                outcome = self._start(item, job, asset, facts, call)
            return outcome
        except NotNow as reason:
            return reason.outcome
        except IconikError as error:
            return self._after_error(item, job, error, permission, call)
        except (StoreUnavailable, StoreRefused):
            raise
        except Exception as mistake:
            log.exception("%s: unexpected error", named(item.object_id, item.title))
            wrapped = IconikUnavailable(f"unexpected {type(mistake).__name__}, see the log", may_have_been_done=True)
            return self._after_error(item, job, wrapped, permission, call)

    def _put_back(self, item: Item, call: Call) -> Outcome:
        """The item is as if it had not been claimed, but for what iconik may have done meanwhile."""
        delay = self._config.submitter.retry_delay
        in_doubt = call.is_sent or item.in_doubt_since is not None
        if in_doubt:
            delay = max(delay, self._store.rules.doubt_delay)
        return Outcome(Status.READY, delay=delay, is_attempt=False, in_doubt=in_doubt)

    def _read_asset(self, item: Item) -> Json:
        asset = self._client.asset(item.object_id)
        self._read_at = self._runtime.monotonic()
        return asset

    def _outcome_without_job(self, item: Item, job: Job, asset: Json, call: Call) -> Outcome | None:
        """The outcome if no job is to be started; None if one is.

        1. A deleted asset and one of a type in skip_types are skipped.
        2. A job that is under way or finished was started by others or by an earlier request of ours. Who wants it
           done again (`retry --again`) does not mind one that is finished.
        3. An item in doubt needs evidence. What became of its own request is in iconik's list of jobs.
        4. A job that failed at iconik is started again only if a person asked for that.
        5. What a person asked for may have been done since: after a restore, for example, items.db does not know that.
        6. An asset without the status needs evidence, too, unless it is known to be new: a field that is missing does
           not say that nothing was started.
        """
        is_in_doubt = item.in_doubt_since is not None
        if asset.get("status") == "DELETED":
            return _final(Status.SKIPPED, "the asset is deleted", started_nothing=not is_in_doubt)
        if str(asset.get("type")) in self._config.skip_types and item.asked < 2:
            error = f"assets of type {asset['type']} are skipped (skip_types in config.ini)"
            return _final(Status.SKIPPED, error, started_nothing=not is_in_doubt)
        was_tried = item.last_attempt_at is not None and item.asked < 2
        status = status_of(job, asset, (item.version_id, self._version(item, job, asset)), was_tried=was_tried)
        if status in UNDER_WAY and item.asked == 2 and item.submitted_at and not is_in_doubt:
            return _latest_run(item)
        # What is in doubt is our own: the reconciler looks for its job from the request on.
        there = Outcome(
            Status.SUBMITTED,
            submitted_at=item.in_doubt_since,
            found=not is_in_doubt,
            started_nothing=not is_in_doubt,
        )
        if status in UNDER_WAY:
            return there
        if status == FINISHED and item.asked < 2:
            return replace(there, status=Status.DONE)
        if status not in (*NOT_STARTED, FINISHED, None):
            return self._refusal(item, f"iconik says {job.status_field} {one_line(str(status), 40)}")
        if is_in_doubt and (outcome := self._evidence(item, job, call)):
            return outcome
        if status == "FAILED" and not item.asked:
            return _final(Status.FAILED, f"iconik's {job.name} job failed", started_nothing=not is_in_doubt)
        return None if is_in_doubt else self._listed_job(item, job, status, call)

    def _version(self, item: Item, job: Job, asset: Json) -> str | None:
        """The asset's version that the job is for: the item's own or, where that cannot be chosen, the newest."""
        return version_for(asset, item.version_id if job.needs_version and item.asked < 2 else None)

    def _listed_job(self, item: Item, job: Job, status: str | None, call: Call) -> Outcome | None:
        """What iconik's list of jobs says where the asset's status is not enough; None if a job is to be started."""
        was_never_started = item.asked == 1 and status == "N/A" and not item.old_job_id and not item.submitted_at
        if item.asked and not was_never_started and (outcome := self._done_since_asked(item, job, call)):
            return outcome
        if status is None and not self._is_new(item):
            return self._second_source(item, job, call)
        return None

    def _asked_at(self, item: Item) -> float | None:
        """When a person asked for it, or a second before, by iconik's clock."""
        asked_at = parse_time(item.asked_at)
        ahead = self._client.now() - DATE_SECONDS - (parse_time(self._store.now()) or 0)
        return None if asked_at is None or not item.asked else asked_at + ahead

    def _done_since_asked(self, item: Item, job: Job, call: Call) -> Outcome | None:
        """What became of a job that was started since a person asked for one; None if there is none."""
        since = self._asked_at(item)
        if since is None:
            return None
        call.source = "jobs"
        try:
            jobs = self._client.jobs_of(item.object_id, job, since)
        except IconikRefused:
            return None  # nobody can know
        started = [one for one in jobs if one.id != item.old_job_id and (one.created_at or 0) >= since]
        if not started:
            return None
        newest = max(started, key=lambda one: one.created_at or 0)
        submitted_at = format_utc(newest.created_at or since)
        return replace(job_outcome(job, newest, submitted_at), found=True, started_nothing=True)

    def _is_new(self, item: Item) -> bool:
        """Whether the asset's own webhooks came to this process, so that nothing can have been started before."""
        closed_at = item.proxy_closed_at or ""
        return item.source == Source.WEBHOOK and self._started_at_text <= closed_at <= self._store.now()

    def _second_source(self, item: Item, job: Job, call: Call) -> Outcome | None:
        """The asset does not say whether the job was started: ask iconik's list of jobs.

        Who wants the job done again does not mind one that is finished.
        """
        call.source = "jobs"
        listed = self._client.jobs_of(item.object_id, job, 0)
        done = [one for one in listed if one.status in JOB_DONE and item.asked < 2]
        under_way = [one for one in listed if one.status not in (*JOB_DONE, *JOB_FAILED)]
        if not done and not under_way:
            return None
        status, found = (Status.DONE, done) if done else (Status.SUBMITTED, under_way)
        return Outcome(status, found=True, started_nothing=True, job_id=found[-1].id)

    # Doubt: evidence before money.

    def _seconds_in_doubt(self, item: Item) -> float:
        """How long an item in doubt must not be looked at yet."""
        if item.in_doubt_since is None:
            return 0.0
        after_start = self._started_at + self._store.rules.doubt_delay
        return self._doubts.get((item.object_id, item.job), after_start) - self._runtime.monotonic()

    def _evidence(self, item: Item, job: Job, call: Call) -> Outcome | None:
        """What became of a request that iconik did not answer; None if it is to be sent again.

        1. A job in iconik's list that was created since then, and is not that of an earlier run, is ours.
        2. If there is none, that is noted. Only if there is none five minutes later either, the request is sent again.
        3. Without the role for the list, the asset's status alone counts, an hour apart. Where the job is to be done
           again, that says nothing of a request that is finished, so a person has to look, and to retry it.
        4. A list that cannot be read is waited for. After 7 days the item fails: a person has to look.
        """
        in_doubt_since = parse_time(item.in_doubt_since) or self._client.now()
        since = in_doubt_since - DOUBT_MARGIN
        seconds = min(ABSENT_SECONDS, self._config.submitter.max_retry_delay)
        call.source, forbidden = "jobs", ""
        try:
            jobs = self._client.jobs_of(item.object_id, job, since)
        except IconikForbidden as error:
            if item.asked == 2 and (item.asked_at or "") > (item.last_attempt_at or ""):
                return None  # a person has looked since
            forbidden, jobs = str(error), []
            seconds = ABSENT_WITHOUT_JOBS_SECONDS
        except IconikRateLimited:
            raise
        except IconikError as error:
            return self._list_unreadable(item, job, error, max(in_doubt_since, self._asked_at(item) or 0))
        ours = [one for one in jobs if one.id != item.old_job_id and (one.created_at or since) >= since]
        if ours:
            return job_outcome(job, max(ours, key=lambda one: one.created_at or 0), item.in_doubt_since)
        key = item.object_id, item.job
        now = self._runtime.monotonic()
        noted = self._absences.setdefault(key, now)
        if now - noted >= seconds:
            del self._absences[key]
            return self._doubtful(job, forbidden) if forbidden and item.asked == 2 else None
        so_far = f"iconik did not answer when the {job.name} job was started, and does not list the job yet"
        delay = seconds - (now - noted)
        return Outcome(Status.READY, so_far, so_far, delay=delay, in_doubt=True, is_absent=True)

    def _list_unreadable(self, item: Item, job: Job, error: IconikError, since: float) -> Outcome:
        if self._client.now() - since > MAX_DOUBT_SECONDS:
            return self._doubtful(job, str(error))
        message = f"iconik's list of jobs cannot be read: {error}"
        delay = self._backoff(item, self._config.submitter.max_retry_delay)
        delay = max(delay, error.retry_after or 0)
        return Outcome(Status.READY, message, without_ids(message), delay=delay, backoff=delay, in_doubt=True)

    def _doubtful(self, job: Job, error: str) -> Outcome:
        """A person has to look whether the request was done."""
        message = f"the {job.name} job may have been started: iconik did not answer, and its list of jobs"
        failed = _final(Status.FAILED, f"{message} cannot be read: {error}", started_nothing=False)
        return replace(failed, in_doubt=True)

    def _note_doubt(self, item: Item, outcome: Outcome, call: Call) -> None:
        """Remember, by the monotonic clock, when an item in doubt may be looked at again."""
        key = item.object_id, item.job
        if not outcome.is_absent:
            self._absences.pop(key, None)
        if outcome.in_doubt and outcome.status == Status.READY and (outcome.is_attempt or call.is_sent):
            self._doubts[key] = self._runtime.monotonic() + outcome.delay
        elif not outcome.in_doubt:
            self._doubts.pop(key, None)

    # Which assets, with which profile.

    def _find_facts(self, item: Item, job: Job, call: Call) -> Facts:
        """Which profile the asset gets. iconik's search is asked only if the configuration needs that.

        :raises NotNow: the search does not know the asset yet, or it is not to be done
        """
        section = self._config.of(job)
        only = section.only if item.asked < 2 else ""
        media_type, duration = item.media_type, None
        call.source = "profiles"
        if only or self._profiles.are_several(section.profile):
            call.source = "search"
            document = self._client.document(item.object_id)
            media_type = _media_type(document)
            duration = _duration(document)
            if media_type is None:
                raise NotNow(self._not_yet(item, "iconik's search does not know the asset, or its media type, yet"))
            if only:
                self._check_only(item, job, only)
        call.source = "profiles"
        try:
            profile = self._profiles.choose(job, section.profile, media_type)
        except ProfileMissing as error:
            raise NotNow(self._refusal(item, str(error))) from None
        except ProfileNotForMediaType as error:
            raise NotNow(replace(_final(Status.SKIPPED, str(error)), media_type=media_type)) from None
        return Facts(profile, media_type, duration)

    def _check_only(self, item: Item, job: Job, only: str) -> None:
        """Check that an asset matches `only`. iconik evaluates it.

        An asset that does not match is skipped, but only at a second look, `min_age` later: metadata and collections
        come later than the file. And never while the query finds no asset at all, or iconik refuses it.

        :raises NotNow: it does not match, or not yet
        """
        key = item.object_id, item.job
        try:
            if self._client.document(item.object_id, only):
                self._missed_by_only.pop(key, None)
                return
            is_useful = self._finds_something(only)
        except IconikForbidden:
            raise
        except IconikRefused as error:
            raise NotNow(self._not_yet(item, f'iconik refuses the query "only" of [{job.name}]: {error}')) from None
        if not is_useful:
            raise NotNow(self._not_yet(item, f'the query "only" of [{job.name}] finds no asset at all'))
        now = self._runtime.monotonic()
        missed_at = self._missed_by_only.setdefault(key, now)
        if (seconds := missed_at + self._config.reconciler.min_age - now) > 0:
            so_far = f'does not match "only" of [{job.name}] so far'
            raise NotNow(Outcome(Status.READY, so_far, so_far, delay=seconds))
        del self._missed_by_only[key]
        raise NotNow(_final(Status.SKIPPED, f'does not match "only" of [{job.name}]'))

    def _finds_something(self, only: str) -> bool:
        now = self._runtime.monotonic()
        asked_at, count = self._only_counts.get(only, (float("-inf"), 0))
        if now - asked_at > ONLY_SECONDS or not count:
            count = self._client.count(only)
            self._only_counts[only] = now, count
        return count > 0

    def _not_yet(self, item: Item, error: str) -> Outcome:
        """The item waits for something that is not its own trouble, so that does not count towards giving up."""
        delay = self._backoff(item, NOT_YET_DELAY)
        return Outcome(Status.READY, error, without_ids(error), delay=delay, backoff=delay)

    # The request that costs money.

    def _start(self, item: Item, job: Job, asset: Json, facts: Facts, call: Call) -> Outcome:
        call.facts = facts
        version_id = self._version(item, job, asset)
        if job.needs_version and version_id is None:
            raise NotNow(self._refusal(item, "iconik shows no version of the asset that is ACTIVE"))
        if not self._store.reserve(item, self._client.now(), facts.profile.name or facts.profile.id):
            is_in_doubt = item.in_doubt_since is not None
            return Outcome(Status.READY, is_attempt=False, in_doubt=is_in_doubt)
        call.is_sent = True
        options: Json = {"force": True} if item.asked == 2 else {}
        path = ""
        if job.has_profile and "{profile}" in job.path:
            path = f"profiles/{facts.profile.id}/" if facts.profile.id else ""
        elif job.has_profile and facts.profile.id not in ("", DEFAULT):
            options["profile_id"] = facts.profile.id
        if language := self._config.of(job).language:
            options["language"] = language
        job_id = self._client.start(job, asset, version_id=version_id, options=options, profile=path)
        self._breaker.succeeded()
        self.last_error = None
        return Outcome(
            Status.SUBMITTED,
            submitted_at=format_utc(self._client.now()),
            job_id=job_id,
            media_type=facts.media_type,
            duration=facts.duration,
        )

    def _release_refused(self, item: Item) -> None:
        """A job was accepted: what was refused in the same words as its item before is due, and one of each other.

        If that cannot be written, they wait for their own delays. The acceptance must not be lost over it.
        """
        try:
            if item.refused and item.reason:
                self._store.release_refused(item.reason)
            if self._runtime.monotonic() - self._probed_at > PROBE_SECONDS / 10:
                self._probed_at = self._runtime.monotonic()
                self._store.probe_refused(PROBE_SECONDS)
        except (StoreUnavailable, StoreRefused) as error:
            log.warning("%s. What was refused waits for its own delay", error, extra={"topic": ("release", str(error))})

    # What went wrong.

    def _after_error(self, item: Item, job: Job, error: IconikError, permission: Permission, call: Call) -> Outcome:
        """The outcome of an attempt at which a call failed, and what the circuit breaker learns from it."""
        self.last_error = error.summary
        if isinstance(error, IconikRefused):
            if call.is_sent:
                self._breaker.succeeded()  # a refusal proves that iconik works
                return self._refused_job(item, job, error, call)
            return self._refused_read(item, error, call)
        if isinstance(error, IconikDenied) and call.source == item.object_id and not call.is_sent:
            self._breaker.credentials_refused(permission, error)
            delay = self._config.submitter.retry_delay
            return Outcome(Status.READY, str(error), without_ids(str(error)), delay=delay)
        self._breaker.failed(permission, error, call.source, is_item=call.source == item.object_id)
        return self._failure(item, error, call)

    def _failure(self, item: Item, error: IconikError, call: Call) -> Outcome:
        """Schedule the next attempt: the item's backoff, but not before Retry-After, and later if it is in doubt."""
        may_be_done = error.may_have_been_done
        if item.asked == 2:  # the look before the next request tells nothing of this one once it is finished
            may_be_done = may_be_done or (error.status or 0) >= 500
        in_doubt = item.in_doubt_since is not None or (call.is_sent and may_be_done)
        if item.waited > self._config.submitter.give_up_after:
            return self._given_up(item, str(error), in_doubt=in_doubt)
        delay = self._backoff(item, self._config.submitter.max_retry_delay)
        waited = delay = max(delay, error.retry_after or 0)
        if in_doubt:
            delay = max(delay, self._store.rules.doubt_delay)
        return Outcome(
            Status.READY,
            str(error),
            without_ids(str(error)),
            delay=delay,
            backoff=waited,
            waited=waited,
            in_doubt=in_doubt,
            started_nothing=not in_doubt,
        )

    def _refused_job(self, item: Item, job: Job, error: IconikRefused, call: Call) -> Outcome:
        """iconik refused to start the job. If that can never be done for the asset's media type, it is skipped."""
        facts = call.facts
        media_type, duration = facts.media_type or item.media_type, facts.duration
        if media_type is None:
            try:
                document = self._client.document(item.object_id)
                media_type, duration = _media_type(document), _duration(document)
            except IconikError:
                pass  # it is asked again at the next refusal
        profile_type = self._profiles.media_type_of(facts.profile)
        if media_type and not job.serves(media_type):
            outcome = _final(Status.SKIPPED, f"{job.name} does not support {media_type}")
        elif media_type and profile_type and profile_type != job.profile_types[media_type]:
            outcome = _final(Status.SKIPPED, f"no profile in [{job.name}] is for {media_type}")
        else:
            outcome = self._refusal(item, str(error), retry_after=error.retry_after)
        return replace(outcome, media_type=media_type, duration=duration)

    def _refused_read(self, item: Item, error: IconikRefused, call: Call) -> Outcome:
        """iconik refused a question about the asset. One that it has not found for a day is deleted."""
        if error.status != 404 or call.source != item.object_id:
            return self._refusal(item, str(error), retry_after=error.retry_after)
        others_are_read = self._read_at is not None and self._runtime.monotonic() - self._read_at < DELETED_SECONDS
        absent_since = parse_time(item.absent_since)
        is_long = absent_since is not None and (
            # by the clock, which may have been set meanwhile, and by its delays, some of which may be of other trouble
            min(item.waited, (parse_time(self._store.now()) or 0) - absent_since) >= DELETED_SECONDS
        )
        if is_long and others_are_read and item.in_doubt_since is None:
            return _final(Status.SKIPPED, "the asset is deleted: iconik has not found it for a day")
        return replace(self._refusal(item, str(error), is_tried_early=False), is_absent=item.in_doubt_since is None)

    def _refusal(
        self, item: Item, error: str, *, retry_after: float | None = None, is_tried_early: bool = True
    ) -> Outcome:
        """Schedule the next attempt after a refusal: the backoff doubles up to a day.

        While several items wait for the same reason, one of them is tried at least every `max_retry_delay`.
        """
        in_doubt = item.in_doubt_since is not None
        if item.waited > self._config.submitter.give_up_after:
            return self._given_up(item, error, in_doubt=in_doubt)
        reason = without_ids(error)
        delay = backoff = max(self._backoff(item, REFUSED_DELAY, is_refusal=True), retry_after or 0)
        if is_tried_early and not self._store.is_refused_alone(item, reason):
            delay = min(delay, self._config.submitter.max_retry_delay)
        return Outcome(
            Status.READY,
            error,
            reason,
            delay=delay,
            backoff=backoff,
            waited=delay,
            is_refusal=True,
            in_doubt=in_doubt,
            started_nothing=not in_doubt,
        )

    def _given_up(self, item: Item, error: str, *, in_doubt: bool) -> Outcome:
        message = f"given up after {pluralize(item.attempts, 'attempt')}: {error}"
        if in_doubt:
            message += ". The job may have been started"
        return replace(_final(Status.FAILED, message), in_doubt=in_doubt, started_nothing=not in_doubt)

    def _backoff(self, item: Item, longest: float, *, is_refusal: bool = False) -> float:
        """Seconds until the next attempt: twice the latest delay, if that was for the same kind of trouble."""
        first = self._config.submitter.retry_delay
        is_same_kind = bool(item.refused) == is_refusal
        delay = max(first, 2 * item.backoff) if is_same_kind else first
        return min(delay * self._runtime.uniform(1, 1.2), longest)

    # Polls.

    def _poll_proxy(self, permission: Permission) -> bool:
        """Ask iconik for the proxy of an asset whose webhook did not come. Returns whether one was due."""
        with self._retry_slot() as has_slot:
            item = self._store.claim_poll() if has_slot else None
            if item is None:
                return False
            name = named(item.object_id, item.title)
            try:
                proxy = self._client.closed_proxy(item.object_id)
            except IconikRefused as error:  # about this asset; the next poll is due when it has waited twice as long
                log.warning("%s: iconik does not show its proxies: %s", name, error)
                return True
            except IconikError as error:
                self._breaker.failed(permission, error, "proxies", is_item=False)
                delay = max(self._config.submitter.max_retry_delay, error.retry_after or 0)
                log.log(_level(error), "%s: its proxies cannot be read: %s. Next poll in %.0f s", name, error, delay)
                self._store.postpone_poll(item, delay)
                return True
            if proxy:
                self._store.proxy_closed(item.object_id, version_of(proxy))
                log.info("Found object %s in finished proxy queue: the webhook for its proxy was missed", name)
            return True

    # Recording.

    def _record(self, item: Item, outcome: Outcome) -> None:
        """Write an outcome. While that is impossible, keep it and write it again."""
        _log_outcome(item, outcome, with_job=len(self._store.rules.jobs) > 1)
        while True:
            was_stopping = self._stopping.is_set()
            try:
                self._store.end_attempt(item, outcome)
                return
            except StoreRefused as error:
                log.error("%s. %s is left alone until the next start", error, named(item.object_id, item.title))
                return
            except StoreUnavailable as error:
                log.error("%s. Cannot record an outcome yet", error, extra={"topic": ("record", str(error))})
            if was_stopping:
                log.error("An outcome was not recorded: the next start asks iconik for it")
                return
            self._stopping.wait(min(self._config.submitter.retry_delay, POLL_SECONDS))


def job_outcome(job: Job, found: IconikJob, submitted_at: str | None = None) -> Outcome:
    """What one of iconik's jobs says about its item."""
    outcome = Outcome(Status.SUBMITTED, submitted_at=submitted_at, job_id=found.id)
    if found.status in JOB_DONE:
        return replace(outcome, status=Status.DONE)
    if found.status in JOB_FAILED:
        error = f"iconik's {job.name} job {_how_it_failed(found)}"
        return replace(outcome, status=Status.FAILED, error=error, reason=without_ids(error))
    return outcome


def _latest_run(item: Item) -> Outcome:
    """The item as it was before a person wanted it done again: its run is not finished yet."""
    is_ours = item.profile is not None  # which is written when a job of ours is started
    return Outcome(
        Status.SUBMITTED,
        submitted_at=item.submitted_at,
        counted_on=(item.submitted_at or "")[:10] if is_ours else None,
        job_id=item.old_job_id,
    )


def _how_it_failed(found: IconikJob) -> str:
    words = {"ABORTED": "was aborted at iconik", "SKIPPED": "was skipped at iconik"}
    return words.get(found.status, f"failed: {found.message}")


def _final(status: str, error: str, *, started_nothing: bool = True) -> Outcome:
    return Outcome(status, error, without_ids(error), started_nothing=started_nothing)


def _media_type(document: Json | None) -> str | None:
    media_type = (document or {}).get("media_type")
    return one_line(media_type, 40).lower() if isinstance(media_type, str) and media_type else None


def _duration(document: Json | None) -> float | None:
    milliseconds = (document or {}).get("duration_milliseconds")
    return milliseconds / 1000 if isinstance(milliseconds, int | float) else None


def _log_outcome(item: Item, outcome: Outcome, *, with_job: bool) -> None:
    """Log what became of an attempt. `with_job`: whether several jobs are to be told apart."""
    name = named(item.object_id, item.title)
    label = JOBS[item.job].label if item.job in JOBS else item.job
    if not outcome.is_attempt:
        return
    if outcome.status in (Status.SUBMITTED, Status.DONE):
        if outcome.submitted_at and outcome.submitted_at == item.submitted_at:
            log.info("iconik has not finished the %s Job for %s yet, so it is not started again", label, name)
        elif outcome.found:
            log.info("iconik already has the %s Job for %s", label, name)
        else:
            log.info("Submitted %s Job for %s", label, name)
        return
    if with_job:
        name = f"{name} ({item.job})"
    if outcome.status == Status.SKIPPED:
        log.info("Skipped %s: %s", name, outcome.error)
    elif outcome.status == Status.FAILED:
        remedy = command("retry", *(("--job", item.job) if with_job else ()), item.object_id)
        log.error("%s failed: %s. Once the cause is fixed: %s", name, outcome.error, remedy)
    else:
        log.warning("%s: %s. Next attempt in %.0f s", name, outcome.error, outcome.delay)


def _level(error: IconikError) -> int:
    """The log's: what is wrong with the credentials needs a person."""
    return logging.ERROR if isinstance(error, IconikDenied) else logging.WARNING
