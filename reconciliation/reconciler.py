"""Polls iconik, at the start and hourly, for what the webhooks missed."""

import json
import logging
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any, TypeVar

from circuit_breaker import CircuitBreaker
from config import Config
from events import CREATE
from iconik_client import (
    DATE_SECONDS,
    MAX_CLOCK_DIFFERENCE,
    IconikClient,
    IconikDenied,
    IconikError,
    IconikForbidden,
    IconikJob,
    IconikRefused,
    IconikUnavailable,
)
from jobs import JOBS
from reconciliation import webhooks
from reconciliation.catalog import MAX_IDS, IconikCatalog
from reconciliation.changes import BATCH_SIZE, OUTCOME_SECONDS, ReconciledChanges, SubmittedItem
from reconciliation.webhooks import REGISTERED_URL, WebhookDefinition
from store import DAY_SECONDS, Outcome, Source, Status, Store
from submitter import DOUBT_MARGIN, Submitter, job_outcome
from system.database import StoreRefused, StoreUnavailable
from system.runtime import Runtime
from system.text import command, format_utc, named, parse_time, pluralize

log = logging.getLogger("iconik_listener")
Answer = TypeVar("Answer")

DEFAULT_INTERVAL = 3600.0  # of what needs no call to iconik, if the interval is 0
# A webhook that is disabled again within 5 h was disabled by a person: iconik needs 5 h of failures.
MIN_ICONIK_DISABLE_SECONDS = 5 * 3600.0
SEARCH_LAG = DAY_SECONDS  # by which iconik's search index may be behind
PAUSE_SECONDS = 0.05  # between two batches of deletions
STOP_SECONDS = 1.0
MAX_LOOKS = 3  # in which the same number of assets, fewer than iconik's total, is believed
MAX_LISTED = 200  # items without a known job whose jobs are listed in one look, a request each

# Keys of items.db's state. The times are iconik's.
ASSETS_FLOOR = "assets_floor"  # nothing that was created before is added
ASSETS_SEEN_UNTIL = "assets_seen_until"  # the mark: missed assets have been found until then
ASSETS_SHORT = "assets_short"  # how many were found, and in how many looks, when that was fewer than iconik's total
FINGERPRINT = "webhook_fingerprint"  # of the definition for /create, as JSON
WEBHOOKS_SEEN_AT = "webhooks_seen_at"  # when that was
OUTCOMES_SEEN_AT = "outcomes_seen_at"  # when all jobs that iconik had accepted were last looked at
PASSED_OVER = "passed_over"  # the time in which assets were passed over, as JSON, for `check`
FIRST_LOOK_PASSES_OVER = "pass_over_until_seen"  # version 1.1 was passing over when it was upgraded


class Wanted(Enum):
    """Whether missed assets may be added."""

    YES = "yes"
    NO = "no"  # a person keeps them out
    UNKNOWN = "unknown"


class Stopped(Exception):
    """The listener ends."""


class Reconciler:
    """A thread that compares what iconik has with items.db. Its steps can be cut off and repeated at any point."""

    def __init__(
        self,
        store: Store,
        client: IconikClient,
        breaker: CircuitBreaker,
        submitter: Submitter,
        config: Config,
        *,
        runtime: Runtime | None = None,
    ) -> None:
        self._store = store
        self._client = client
        self._catalog = IconikCatalog(client)
        self._breaker = breaker
        self._submitter = submitter
        self._config = config
        self._runtime = runtime or Runtime()
        self._changes = ReconciledChanges(store)
        self._stopping = self._runtime.event()
        self._logged: set[str] = set()  # what is logged once in a process
        self._listed_until = "", ""  # the item whose jobs the latest look listed last
        self._started_at = self._runtime.monotonic()
        self._has_looked = False  # at our webhooks, in this process
        self._failed_creates = 0  # how many creates had been answered with an error at the last look
        self._thread = self._runtime.thread(self._run)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def is_alive(self) -> bool:
        """Whether its thread is running."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Ask iconik for nothing more, and wait up to 1 s. A request under way may go on: it can be repeated."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        while not self._stopping.is_set():
            interval = self._config.reconciler.interval or DEFAULT_INTERVAL
            is_done = self.reconcile()
            self._stopping.wait(interval if is_done else min(interval, self._config.submitter.max_retry_delay))

    def reconcile(self) -> bool:
        """Go through all steps once. Returns whether each was done; if not, another try before long is worth it.

        1. Our webhooks at iconik.
        2. The assets whose webhooks were missed.
        3. What became of the jobs that iconik accepted.
        4. Old rows.

        With an interval of 0, only the last step is done, and the time until it is set again is passed over.
        """
        if not self._config.reconciler.interval:
            return bool(self._step("deleting old rows", self._delete_old) and self._forget_look())
        wanted = self._step("the webhooks", self._look_after_webhooks)
        is_done = [
            wanted is not None,
            self._step("missed assets", lambda: self._add_missed_assets(wanted or Wanted.UNKNOWN)),
            self._step("the jobs", self._find_outcomes),
            self._step("deleting old rows", self._delete_old),
        ]
        self._compare_clocks()
        return all(is_done)

    def _step(self, name: str, step: Callable[[], Answer]) -> Answer | None:
        """Do one step. Returns what it returns; None if it was not done."""
        try:
            return step()
        except Stopped:
            pass
        except (IconikDenied, IconikForbidden) as error:
            self._log_once(logging.ERROR, f"Cannot check {name} at iconik: {error}", name + error.summary)
        except (IconikError, StoreUnavailable, StoreRefused) as error:
            if not self._stopping.is_set():
                log.warning(
                    "Cannot check %s at iconik, will try again: %s", name, error, extra={"topic": (name, str(error))}
                )
        except Exception:  # something that iconik has never answered before must not end the service
            log.exception("Cannot check %s at iconik: unexpected error", name)
        return None

    def _ask(self, kind: str, call: Callable[[], Answer]) -> Answer:
        """One request to iconik, when the circuit breaker permits it.

        :param kind: what it is about, by the same names as the submitter's calls: a 429 counts once for a kind
        """
        permission = self._breaker.wait()
        if permission is None or self._stopping.is_set():
            raise Stopped
        try:
            return call()
        except IconikRefused:
            raise
        except IconikError as error:
            self._breaker.failed(permission, error, kind, is_item=False)
            raise

    def _each(self, pages: Iterator[Answer]) -> Iterator[Answer]:
        while (page := self._ask("search", lambda: next(pages, None))) is not None:
            yield page

    # Step 1: our webhooks.

    def _look_after_webhooks(self) -> Wanted:
        """Enable the webhooks that iconik disabled, and find out whether missed assets are wanted.

        1. Which definitions are ours is known by the URL that `register` noted or, failing that, by their secret.
        2. If a person keeps assets out (the definition for /create is disabled or has a filter), the time until now is
           passed over. If a person had it so at some time since the last look, the time since then is.
        3. If ours is not in the list, that says nothing: nothing is added, and nothing is passed over.
        """
        found = self._ask("webhooks", self._catalog.webhooks)
        own = webhooks.ours(found, self._store.state(REGISTERED_URL), self._config.listener.webhook_secret)
        if not own and not self._has_registered(found):
            line = "iconik has no webhooks of this listener yet"
            self._log_once(logging.INFO, f"{line}: {command('register', 'URL')}")
            return Wanted.UNKNOWN
        if not own:
            line = "Cannot tell which of iconik's webhooks belong to this listener, so missed assets are not added"
            self._log_once(logging.WARNING, f"{line}: {command('register', 'URL')}")
            return Wanted.UNKNOWN
        wanted = self._are_assets_wanted([webhook for webhook in own if webhook.kind is CREATE])
        failure: IconikError | None = None
        for webhook in own:
            try:
                self._keep_enabled(webhook)
            except IconikError as error:  # try the other webhook anyway
                failure = error
        if failure:
            raise failure
        return wanted

    def _has_registered(self, found: list[dict[str, Any]]) -> bool:
        """Whether iconik has, or had, webhooks that may be ours. At a first start it has none, and all is well."""
        secrets = self._config.listener.webhook_secret
        with_our_secret = (webhook.secret in secrets for webhook in webhooks.of_our_kinds(found))
        return bool(self._store.state(REGISTERED_URL)) or not secrets or any(with_our_secret)

    def _are_assets_wanted(self, creates: list[WebhookDefinition]) -> Wanted:
        if not creates or not self._catalog.knows_time:
            return Wanted.UNKNOWN
        now = self._catalog.now()
        open_ones = [webhook for webhook in creates if webhook.lets_all_through and not self._is_left_disabled(webhook)]
        chosen = chosen_one(open_ones or creates)
        if not open_ones:
            self._pass_over(now, "somebody has disabled or filtered the /create webhook", is_over=False)
        elif self._was_otherwise(chosen):
            self._pass_over(now, "somebody had changed the /create webhook meanwhile", is_over=True)
        note_fingerprint(self._store, now, chosen)
        self._failed_creates = self._store.failed_creates
        self._has_looked = True
        return Wanted.YES if open_ones else Wanted.NO

    def _was_otherwise(self, webhook: WebhookDefinition) -> bool:
        """Whether a person had it otherwise since the last look.

        If a webhook of ours may have failed since then and iconik may have recovered, the date of its last change says
        nothing: outages are common. That is so when we answered one with an error, and at the first look of a process
        to which webhooks have come already.
        """
        if self._store.state(FIRST_LOOK_PASSES_OVER):
            return True
        may_have_failed = self._store.failed_creates != self._failed_creates
        may_have_recovered = not self._has_looked and self._store.has_creates
        return was_otherwise(self._store, webhook, is_date_known=not may_have_failed and not may_have_recovered)

    def _pass_over(self, now: float, why: str, *, is_over: bool) -> None:
        """Add what was created up to the last look, when all was well. What was created since then is passed over."""
        seen_at = parse_time(self._store.state(WEBHOOKS_SEEN_AT))
        if seen_at is not None:
            try:
                self._search(min(seen_at, now) - DATE_SECONDS)
            except IconikRefused as error:
                log.warning("Cannot check missed assets at iconik: %s", error)
        pass_over(self._store, now, why, is_over=is_over)

    def _forget_look(self) -> bool:
        """With an interval of 0 nobody looks: the time until the next look is passed over."""
        self._store.set_state(FIRST_LOOK_PASSES_OVER, "1")
        return True

    def _keep_enabled(self, webhook: WebhookDefinition) -> None:
        """Enable a webhook that iconik disabled for failing, and leave alone one that a person disabled."""
        if webhook.status == "FAILING":
            log.warning("iconik cannot deliver to %s: %s", webhook.url, webhook.last_error)
        if self._is_left_disabled(webhook):
            line = f"Somebody disabled the webhook to {webhook.url} in iconik, so it is left disabled. To enable it:"
            self._log_once(logging.WARNING, f"{line} {command('register', 'URL')}")
        elif webhook.status == "DISABLED":
            now = WebhookDefinition(webhook.kind, self._ask("webhooks", lambda: self._catalog.webhook(webhook.id)))
            if now.fields != webhook.fields:
                log.warning("The webhook to %s has just been changed, so it is left as it is", webhook.url)
                return
            forget_fingerprint(self._store, webhook)
            written = self._ask("webhooks", lambda: self._catalog.save_webhook(webhook.enabled(), webhook.id))
            note_written(self._store, self._catalog.now(), WebhookDefinition(webhook.kind, written))
            self._store.set_state(_enabled_key(webhook), format_utc(self._catalog.now()))
            log.warning("iconik had disabled the webhook to %s for failing: it is enabled again", webhook.url)

    def _is_left_disabled(self, webhook: WebhookDefinition) -> bool:
        """Whether a person disabled the webhook. That is remembered until it is not disabled any more."""
        key = f"webhook_left_disabled {webhook.id}"
        was_left = bool(self._store.state(key))
        if webhook.status != "DISABLED":
            is_left = False
        else:
            enabled_at = parse_time(self._store.state(_enabled_key(webhook))) or 0.0
            again_so_soon = self._catalog.now() - enabled_at < MIN_ICONIK_DISABLE_SECONDS
            is_left = was_left or again_so_soon or not webhook.disabled_by_iconik or self._was_well(webhook)
        if is_left != was_left:
            self._store.set_state(key, "1" if is_left else "")
        return is_left

    def _was_well(self, webhook: WebhookDefinition) -> bool:
        """Whether nothing failed since the last look, so that an error in the definition is an old one."""
        before = _fingerprint(self._store)
        return before is not None and before.get("id") == webhook.id and not webhook.failed_since(before)

    # Step 2: missed assets.

    def _add_missed_assets(self, wanted: Wanted) -> bool:
        """Add the assets that iconik has and items.db does not.

        1. Nothing that was created before the floor is added. The floor is iconik's time at the first start.
        2. The search begins a day before the mark, because iconik's index may be behind.
        3. The mark moves only if as many assets were read as iconik says that there are, or the same number in three
           looks. What a look could not read is searched again in the next one.
        """
        self._floor()
        if wanted is not Wanted.YES:
            return True
        until = self._catalog.now() - self._config.reconciler.min_age
        if self._search(until):
            mark = parse_time(self._store.state(ASSETS_SEEN_UNTIL)) or until
            self._store.set_state(ASSETS_SEEN_UNTIL, format_utc(max(mark, until)))
        return True

    def _search(self, until: float) -> bool:
        """Add what was created since the mark and up to then. Returns whether all of it was read."""
        floor = self._floor()
        mark = min(parse_time(self._store.state(ASSETS_SEEN_UNTIL)) or floor, self._catalog.now())
        since = max(floor, mark - SEARCH_LAG)
        return since < until and self._add_assets(since, until, floor)

    def _floor(self) -> float:
        """When the first asset was created that may be added, by iconik's clock. It never moves back."""
        noted = parse_time(self._store.state(ASSETS_FLOOR))
        if noted is not None:
            return noted
        if not self._client.knows_time:
            self._ask("user", self._catalog.user)
        if not self._client.knows_time:  # our own clock may be wrong, and what is older would be billed
            raise IconikUnavailable("iconik's answers do not say its time")
        floor = self._catalog.now() - DATE_SECONDS - (self._runtime.monotonic() - self._started_at)
        self._store.set_state(ASSETS_FLOOR, format_utc(floor))
        return floor

    def _add_assets(self, since: float, until: float, floor: float) -> bool:
        """Add the assets created or imported in that time. Returns whether all were read.

        One that was imported before the floor is not new, whatever a client wrote as the date of its creation.
        """
        added = read = 0
        total: int | None = None
        try:
            for page in self._each(self._catalog.assets(format_utc(since), format_utc(until))):
                read += page.read
                total = page.total if total is None else total
                new = [one for one in page.assets if floor <= (parse_time(one.imported_at) or floor) <= until]
                for start in range(0, len(new), BATCH_SIZE):
                    batch = new[start : start + BATCH_SIZE]
                    added += self._changes.add_assets(batch, Source.SEARCH, {})
                self._submitter.wake()
        finally:
            if added:
                text = "Added %s whose webhooks were missed, created since %s"
                log.warning(text, pluralize(added, "asset"), format_utc(since))
        return self._is_complete(read, total)

    def _is_complete(self, read: int, total: int | None) -> bool:
        if total is not None and read >= total:
            self._store.set_state(ASSETS_SHORT, "")
            return True
        number, looks = _numbers(self._store.state(ASSETS_SHORT))
        looks = looks + 1 if number == read else 1
        if looks >= MAX_LOOKS:
            log.warning("iconik's search keeps returning only %d of %s assets: skipping the rest", read, total)
            self._store.set_state(ASSETS_SHORT, "")
            return True
        self._store.set_state(ASSETS_SHORT, json.dumps([read, looks]))
        return False

    # Step 3: what became of the jobs.

    def _find_outcomes(self) -> bool:
        """Find out how the jobs ended that iconik accepted in the 7 days before the last look, or since.

        1. Those whose ids are known are asked for by id, 100 in a request.
        2. The others are asked for by asset and kind of job, a request each, and up to 200 in a look. The next look
           goes on after the last of them.
        3. The media types and durations of what is done are asked of the search, 100 in a request.
        """
        now = self._catalog.now()
        seen_at = parse_time(self._store.state(OUTCOMES_SEEN_AT))
        since = 0.0 if seen_at is None else min(now, seen_at) - OUTCOME_SECONDS
        after, listed, listed_after = ("", ""), 0, self._listed_until
        while items := self._changes.submitted(after, since):
            after = items[-1].object_id, items[-1].job
            found = {job.id: job for job in self._jobs_by_id([item.job_id for item in items if item.job_id])}
            for item in items:
                job = found.get(item.job_id or "")
                key = item.object_id, item.job
                if job is None and listed < MAX_LISTED and key > listed_after:
                    listed += 1
                    self._listed_until = key
                    job = self._newest_job(item)
                if job:
                    self._end_job(item, job)
        if listed < MAX_LISTED:
            self._listed_until = "", ""
            self._store.set_state(OUTCOMES_SEEN_AT, format_utc(now))
        self._measure(since)
        return True

    def _jobs_by_id(self, job_ids: list[str]) -> list[IconikJob]:
        """The jobs with these ids, half of them at a time where iconik refuses so many."""
        if not job_ids:
            return []
        try:
            return self._ask("jobs", lambda: self._catalog.jobs(job_ids[:MAX_IDS]))
        except IconikForbidden:
            raise
        except IconikRefused as error:
            if error.status == 404:
                return []
            if len(job_ids) == 1:
                return []
            half = len(job_ids) // 2
            return self._jobs_by_id(job_ids[:half]) + self._jobs_by_id(job_ids[half:])

    def _newest_job(self, item: SubmittedItem) -> IconikJob | None:
        """The newest job of an item's kind; of our own run only, if we started it."""
        job = JOBS.get(item.job)
        if job is None:
            return None
        since = (parse_time(item.submitted_at) or 0) - DOUBT_MARGIN if item.is_ours else 0.0
        try:
            found = self._ask("jobs", lambda: self._client.jobs_of(item.object_id, job, since))
        except IconikForbidden:
            raise
        except IconikRefused:
            return None
        candidates = [one for one in found if one.id != item.old_job_id and (one.created_at or since) >= since]
        return max(candidates, key=lambda one: one.created_at or 0, default=None)

    def _end_job(self, item: SubmittedItem, found: IconikJob) -> None:
        outcome: Outcome = job_outcome(JOBS[item.job], found) if item.job in JOBS else Outcome(Status.SUBMITTED)
        try:
            if outcome.status == Status.SUBMITTED:
                if item.job_id != found.id:
                    self._changes.note_job_id(item, found.id)
                return
            is_ended = self._changes.end_job(item, outcome)
        except StoreRefused as error:
            log.error("%s: %s", named(item.object_id, item.title), error, extra={"topic": ("outcome", item.object_id)})
            return
        if is_ended and outcome.status == Status.FAILED:
            name, remedy = named(item.object_id, item.title), command("retry", item.object_id)
            log.error("%s failed: %s. Once the cause is fixed: %s", name, outcome.error, remedy)

    def _measure(self, since: float) -> None:
        after = ""
        while object_ids := self._changes.unmeasured(after, since):
            after = object_ids[-1]
            found = self._ask("search", lambda: self._catalog.measures(object_ids))
            for asset in found:
                try:
                    if asset.media_type:
                        self._changes.measure(asset)
                except StoreRefused as error:
                    log.error("%s: %s", asset.object_id, error, extra={"topic": ("measure", asset.object_id)})

    # Step 4: old rows.

    def _delete_old(self) -> bool:
        """Delete closed proxies whose create has not come for a day, and old days of the ledger."""
        deleted = 0
        try:
            while batch := self._changes.delete_awaiting_create():
                deleted += batch
                if batch == BATCH_SIZE and self._stopping.wait(PAUSE_SECONDS):
                    raise Stopped
            self._changes.delete_old_usage()
        finally:
            if deleted:
                log.info(
                    "Deleted %s whose create webhook did not arrive within a day of the proxy",
                    pluralize(deleted, "item"),
                )
        return True

    def _compare_clocks(self) -> None:
        difference = self._client.clock_difference()
        if abs(difference) > MAX_CLOCK_DIFFERENCE:
            line = (
                f"This machine's clock is {abs(difference):.0f} s {'ahead of' if difference > 0 else 'behind'} iconik's"
            )
            log.warning("%s: set it, for example with timedatectl set-ntp true", line, extra={"topic": ("clock",)})

    def _log_once(self, level: int, line: str, topic: str = "") -> None:
        """Log a line if none of that topic (without one: no such line) has been logged since the start."""
        if (topic or line) not in self._logged:
            self._logged.add(topic or line)
            log.log(level, line)


def was_otherwise(store: Store, webhook: WebhookDefinition, *, is_date_known: bool = True) -> bool:
    """Whether a person had the definition for /create otherwise at some time since the last look.

    :param is_date_known: whether a change of its date means that a person changed it
    """
    before = _fingerprint(store)
    if before is None:
        return False
    return webhook.was_otherwise(before if is_date_known else {**before, "is_failing": True})


def chosen_one(creates: list[WebhookDefinition]) -> WebhookDefinition:
    """Of several definitions for /create the one that is watched, whatever their order in iconik's list."""
    return min(creates, key=lambda webhook: webhook.id)


def _fingerprint(store: Store) -> dict[str, Any] | None:
    try:
        before = json.loads(store.state(FINGERPRINT) or "null")
    except (ValueError, RecursionError):
        return None
    return before if isinstance(before, dict) else None


def note_fingerprint(store: Store, now: float, webhook: WebhookDefinition) -> None:
    """Note how the definition for /create is at that time (iconik's)."""
    store.set_state(FINGERPRINT, json.dumps(webhook.fingerprint()))
    store.set_state(WEBHOOKS_SEEN_AT, format_utc(now))


def webhook_state(store: Store) -> dict[str, str]:
    """What about_to_register and forget_fingerprint change, to be put back if nothing could be written at iconik."""
    return {key: store.state(key) or "" for key in (FINGERPRINT, FIRST_LOOK_PASSES_OVER)}


def forget_fingerprint(store: Store, webhook: WebhookDefinition) -> None:
    """Before we write a definition ourselves: what changes is no person's doing."""
    if webhook.kind is CREATE:
        store.set_state(FINGERPRINT, "")


def note_written(store: Store, now: float, webhook: WebhookDefinition) -> None:
    """After we wrote a definition: from now on, a person may have it otherwise. iconik need not say what it wrote."""
    if webhook.kind is CREATE and webhook.id and webhook.fields.get("status") and webhook.fields.get("date_modified"):
        note_fingerprint(store, now, webhook)


def pass_over(store: Store, now: float, why: str, *, is_over: bool, not_added_since: float | None = None) -> None:
    """Add nothing that was created until now (iconik's time), because a person keeps or kept it out.

    The time since the last look is noted, for the log and for `check`, with the command that adds its assets.

    :param is_over: whether the person has put it back
    :param not_added_since: from when on missed assets have not been added, if that is before the last look
    """
    floor = max(now, parse_time(store.state(ASSETS_FLOOR)) or 0)
    mark = max(floor, parse_time(store.state(ASSETS_SEEN_UNTIL)) or 0)
    store.set_state(ASSETS_FLOOR, format_utc(floor))
    store.set_state(ASSETS_SEEN_UNTIL, format_utc(mark))
    store.set_state(FIRST_LOOK_PASSES_OVER, "")
    seen_at = parse_time(store.state(WEBHOOKS_SEEN_AT))
    if seen_at is None:
        return
    since, until = format_utc(min(seen_at, not_added_since or seen_at)), format_utc(now)
    before = passed_over(store)
    goes_on = before is not None and before["until"] == format_utc(seen_at)
    if before and goes_on:
        since = before["since"]
    if is_over or not goes_on:
        period = ("--since", since, "--until", until) if is_over else ("--since", since)
        remedy = command("catch-up", *period)
        log.warning("Assets created since %s are passed over, because %s. To add them: %s", since, why, remedy)
    store.set_state(PASSED_OVER, json.dumps({"since": since, "until": until, "why": why}))


def passed_over(store: Store) -> dict[str, str] | None:
    """The latest time in which assets were passed over: `since`, `until` and `why`. None if there was none."""
    try:
        period = json.loads(store.state(PASSED_OVER) or "null")
    except ValueError:
        return None
    return period if isinstance(period, dict) and period.keys() == {"since", "until", "why"} else None


def forget_passed_over(store: Store, since: str, until: str) -> None:
    """A person has added what was created from `since` to `until` (UTC): `check` proposes it no longer."""
    period = passed_over(store)
    if not period:
        return
    first, last = (parse_time(time) or 0 for time in (since, until))
    if first <= (parse_time(period["since"]) or 0) and (parse_time(period["until"]) or 0) <= last:
        store.set_state(PASSED_OVER, "")


def about_to_register(store: Store, creates: list[WebhookDefinition]) -> str | None:
    """Before `register` writes the definition for /create: why the time before it is to be passed over; None if not.

    That is so if there is no such definition yet, if a person disabled or filtered it, or had it so at some time since
    the last look. If `register` is cut off, the next look passes over that time.

    :param creates: the definitions for /create that iconik has at that URL
    """
    why = None
    if not creates:
        why = "there was no /create webhook at that URL"
    elif not any(webhook.lets_all_through for webhook in creates):
        why = "somebody had disabled or filtered the /create webhook"
    elif was_otherwise(store, chosen_one([webhook for webhook in creates if webhook.lets_all_through])):
        why = "somebody had changed the /create webhook meanwhile"
    if why:
        store.set_state(FIRST_LOOK_PASSES_OVER, "1")
    return why


def registered(store: Store, catalog: IconikCatalog, creates: list[WebhookDefinition], why: str | None) -> None:
    """After `register` has written what it had to.

    :param creates: the definitions for /create, as they are now
    :param why: what about_to_register returned
    """
    if not catalog.knows_time:  # then the next look passes over that time
        return
    now = catalog.now()
    open_ones = [webhook for webhook in creates if webhook.lets_all_through]
    if why:
        # Unlike a look, this has not added what was created between the mark and the last look.
        mark = store.state(ASSETS_SEEN_UNTIL) or store.state(ASSETS_FLOOR)
        pass_over(store, now, why, is_over=bool(open_ones), not_added_since=parse_time(mark))
    if creates:
        note_written(store, now, chosen_one(open_ones or creates))


def _enabled_key(webhook: WebhookDefinition) -> str:
    """The key in items.db's state under which it is noted when the reconciler enabled that webhook."""
    return f"webhook_enabled_at {webhook.id}"


def _numbers(text: str | None) -> tuple[int, int]:
    try:
        number, looks = json.loads(text or "[-1, 0]")
        return int(number), int(looks)
    except (ValueError, TypeError):
        return -1, 0
