"""What the webhooks did not tell: once after the start and then every hour, iconik is asked for it."""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from circuit_breaker import CircuitBreaker
from config import Config
from iconik_client import IconikDenied, IconikError, IconikRefused, Json
from reconciliation import webhooks
from reconciliation.catalog import IconikCatalog, created_until, ids_and_titles
from reconciliation.changes import BATCH_SIZE, Corrections
from reconciliation.webhooks import CREATE, REGISTERED_URL, WebhookDefinition
from store import Store
from submitter import Submitter
from system.database import StoreUnavailable
from system.text import UUID, command, number_of, one_line, seconds_of, utc_text

log = logging.getLogger("iconik_listener")
Answer = TypeVar("Answer")

DAY = 24 * 3600.0
DEFAULT_INTERVAL = 3600.0  # of what does not ask iconik, if the interval is 0
PERSON_SECONDS = 5 * 3600.0  # who disables a webhook sooner after it was enabled is not iconik, which takes longer
SEARCH_LAG = DAY  # by which iconik's search index may be behind
JOBS_OVERLAP = 3600.0
PAUSE_SECONDS = 0.05  # between two batches of deletions
STOP_SECONDS = 1.0

# Keys of items.db's state.
FIRST_STARTED_AT = "first_started_at"
ASSETS_SEEN_UNTIL = "assets_seen_until"
ASSETS_RESUME_AT = "assets_resume_at"  # how far a search has come that is not done
ASSETS_FLOOR = "assets_floor"  # nothing that was created before is added
ASSETS_PASSED_OVER = "assets_passed_over"  # at the last look, missed assets were not to be added
JOBS_SEEN_UNTIL = "jobs_seen_until"


class Stopped(Exception):
    """The listener ends."""


class Reconciler:
    """A thread that compares what iconik knows with items.db. Its steps can be cut off and repeated at any point."""

    def __init__(
        self, store: Store, catalog: IconikCatalog, breaker: CircuitBreaker, submitter: Submitter, config: Config
    ) -> None:
        self._store, self._catalog, self._breaker, self._submitter = store, catalog, breaker, submitter
        self._corrections = Corrections(store)
        self._config = config
        self._stopping = threading.Event()
        self._told: set[str] = set()  # what is said once a start
        self._missed_assets_are_wanted: bool | None = None  # None: this look could not tell
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin.

        :raises StoreUnavailable: items.db cannot be written
        """
        if self._store.state(FIRST_STARTED_AT) is None:
            self._store.set_state(FIRST_STARTED_AT, self._store.now())
        self._thread.start()

    def is_alive(self) -> bool:
        """Whether its thread is running."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Ask for nothing more, and wait up to 1 s. A request under way may go on: it can be repeated."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        while not self._stopping.is_set():
            interval = self._config.reconciler.interval or DEFAULT_INTERVAL
            done = self.reconcile()
            self._stopping.wait(interval if done else min(interval, self._config.submitter.max_retry_delay))

    def reconcile(self) -> bool:
        """Go through all steps once. Returns whether each was done; what was not is worth another try before long."""
        if not self._config.reconciler.interval:  # a person wants nothing of the other steps
            done = self._step("missed assets", self._pass_over_missed_assets)
            return self._step("deleting old rows", self._delete_old) and done
        done = self._step("our webhooks", self._enable_webhooks)
        done &= self._step("missed assets", self._add_missed_assets)
        done &= self._step("failed jobs", self._fail_jobs)
        return self._step("deleting old rows", self._delete_old) and done

    def _step(self, name: str, step: Callable[[], None]) -> bool:
        try:
            step()
            return True
        except Stopped:
            pass
        except IconikDenied as error:
            self._tell_once(logging.ERROR, f"Reconciling, {name}: left out: {error}", name + error.summary)
        except (IconikError, StoreUnavailable) as error:
            if not self._stopping.is_set():
                log.warning(
                    "Reconciling, %s: %s. It will be tried again", name, error, extra={"topic": (name, str(error))}
                )
        except Exception:  # something that iconik has never answered before must not end the service
            log.exception("Reconciling, %s: unexpected", name)
        return False

    def _ask(self, call: Callable[[], Answer]) -> Answer:
        """One request to iconik, when the circuit breaker permits it."""
        with self._breaker.permission() as permission:
            if permission is None or self._stopping.is_set():
                raise Stopped
            try:
                return call()
            except IconikRefused:
                raise
            except IconikError as error:
                permission.failed(error)
                raise

    def _pages(self, pages: Iterator[list[Json]]) -> Iterator[list[Json]]:
        while (page := self._ask(lambda: next(pages, None))) is not None:
            yield page

    # Step 1: our webhooks.

    def _enable_webhooks(self) -> None:
        self._missed_assets_are_wanted = None
        found = self._ask(self._catalog.webhooks)
        own = webhooks.ours(found, self._store.state(REGISTERED_URL), self._config.listener.webhook_secret)
        # Judged before anything is changed: iconik's list may show what was just changed as it was.
        self._missed_assets_are_wanted = any(
            webhook.kind is CREATE and webhook.lets_all_through and not self._is_left_disabled(webhook)
            for webhook in own
        )
        if not own:
            line = "Which webhooks at iconik are this listener's cannot be told, so missed assets are not looked for"
            self._tell_once(logging.WARNING, f"{line}: {command('register', 'URL')}")
        failure: IconikError | None = None
        for webhook in own:
            try:
                self._keep_enabled(webhook)
            except IconikError as error:  # the other one can do with or without it
                failure = error
        if failure:
            raise failure

    def _keep_enabled(self, webhook: WebhookDefinition) -> None:
        """Enable a webhook that iconik disabled for failing, and leave alone one that a person disabled."""
        if webhook.status == "FAILING":
            log.warning("iconik cannot deliver to %s: %s", webhook.url, webhook.last_error)
        if self._is_left_disabled(webhook):
            line = f"A person disabled the webhook to {webhook.url}, and it stays so. To enable it:"
            self._tell_once(logging.WARNING, f"{line} {command('register', 'URL')}")
        elif webhook.status == "DISABLED":
            self._ask(lambda: self._catalog.save_webhook(webhook.enabled(), webhook.id))
            self._store.set_state(_enabled_key(webhook), self._store.now())
            log.warning("iconik had disabled the webhook to %s for failing: it is enabled again", webhook.url)

    def _is_left_disabled(self, webhook: WebhookDefinition) -> bool:
        """Whether a person disabled the webhook. That is remembered until it is not disabled any more."""
        key = f"webhook_left_disabled {webhook.id}"
        was_left = bool(self._store.state(key))
        if webhook.status != "DISABLED":
            is_left = False
        else:
            enabled_at = self._store.state(_enabled_key(webhook)) or ""
            again_so_soon = self._store.now(-PERSON_SECONDS) < enabled_at <= self._store.now()
            is_left = was_left or again_so_soon or not webhook.disabled_by_iconik
        if is_left != was_left:
            self._store.set_state(key, "1" if is_left else "")
        return is_left

    # Step 2: missed assets.

    def _add_missed_assets(self) -> None:
        if self._missed_assets_are_wanted is None:
            return
        if not self._missed_assets_are_wanted:
            self._pass_over_missed_assets()
            return
        floor, until = self._assets_floor(), self._store.now(-self._config.reconciler.min_age)
        since = self._noted_time(ASSETS_RESUME_AT)
        if since is None or since >= until:
            since = _later(self._noted_time(ASSETS_SEEN_UNTIL) or floor, -SEARCH_LAG)
        since = max(since, floor)
        if since < until:
            self._add_assets(since, until)
            self._corrections.note({ASSETS_SEEN_UNTIL: until, ASSETS_RESUME_AT: ""})

    def _pass_over_missed_assets(self) -> None:
        """Add nothing now, nor ever what was created until the first look that adds something again."""
        if not self._store.state(ASSETS_PASSED_OVER):
            self._store.set_state(ASSETS_PASSED_OVER, "1")

    def _assets_floor(self) -> str:
        """When the first asset was created that may be added. That is now if assets were passed over until now."""
        noted, passed_over = self._store.state(ASSETS_FLOOR), self._store.state(ASSETS_PASSED_OVER)
        floor = None if passed_over else self._noted_time(ASSETS_FLOOR) or self._noted_time(FIRST_STARTED_AT)
        floor = floor or self._store.now()
        if passed_over or floor != noted:
            self._corrections.note({ASSETS_FLOOR: floor, ASSETS_PASSED_OVER: ""})
        return floor

    def _noted_time(self, key: str) -> str | None:
        """A time in items.db's state; None if there is none.

        It is never later than now, whatever the clock was when it was noted; what is not a time counts as now.
        """
        text, now = self._store.state(key), self._store.now()
        seconds = seconds_of(text)
        if not text:
            return None
        return now if seconds is None or seconds < 0 else min(utc_text(seconds), now)

    def _add_assets(self, since: str, until: str) -> None:
        """Add the assets created in that time, and note after each page how far this has come."""
        added = 0
        try:
            for page in self._pages(self._catalog.assets_created(since, until)):
                reached = created_until(page)
                state = {ASSETS_RESUME_AT: reached} if reached else {}
                added += self._corrections.add_assets(ids_and_titles(page), state)
                self._submitter.wake()
        finally:
            if added:
                log.warning("Added %s whose webhooks were missed, created since %s", number_of(added, "asset"), since)

    # Step 3: failed jobs.

    def _fail_jobs(self) -> None:
        """What iconik took and could not do afterwards is not finished."""
        now = self._store.now()
        seen_until = self._noted_time(JOBS_SEEN_UNTIL) or self._noted_time(FIRST_STARTED_AT) or now
        for page in self._pages(self._catalog.failed_analyze_jobs(_later(seen_until, -JOBS_OVERLAP))):
            for job in page:
                self._fail_job(job)
            reached = _in_order_until([seconds_of(job.get("date_modified")) for job in page])
            if reached is not None:
                self._store.set_state(JOBS_SEEN_UNTIL, utc_text(reached))
        self._store.set_state(JOBS_SEEN_UNTIL, now)

    def _fail_job(self, job: Json) -> None:
        object_id, job_id = str(job.get("object_id")).lower(), one_line(str(job.get("id")))
        reason = one_line(str(job.get("error_message") or job.get("message") or "iconik does not say why"))
        failed_at = seconds_of(job.get("date_modified"))
        failed_at_text = self._store.now() if failed_at is None else utc_text(failed_at)
        error = f"iconik's analysis failed: {reason}"
        if UUID.fullmatch(object_id) and self._corrections.fail_submitted(object_id, job_id, failed_at_text, error):
            log.error("%s failed: %s. Once the cause is fixed: %s", object_id, error, command("retry", object_id))

    # Step 4: old rows.

    def _delete_old(self) -> None:
        deleted = 0
        try:
            while batch := self._corrections.delete_awaiting_create():
                deleted += batch
                if batch == BATCH_SIZE and self._stopping.wait(PAUSE_SECONDS):
                    raise Stopped
        finally:
            if deleted:
                log.info("Deleted %s whose create has not come for a day after the proxy", number_of(deleted, "item"))

    def _tell_once(self, level: int, line: str, topic: str = "") -> None:
        """Log a line if none of that topic (without one: no such line) has been logged since the start."""
        if (topic or line) not in self._told:
            self._told.add(topic or line)
            log.log(level, line)


def _enabled_key(webhook: WebhookDefinition) -> str:
    """The key in items.db's state under which it is noted when the reconciler enabled that webhook."""
    return f"webhook_enabled_at {webhook.id}"


def _in_order_until(times: Sequence[float | None]) -> float | None:
    """The last of these times, if they are in order; None if they are not, or one is missing."""
    known = [time for time in times if time is not None]
    return known[-1] if known and known == sorted(known) and len(known) == len(times) else None


def _later(time_text: str, seconds: float) -> str:
    return utc_text((seconds_of(time_text) or 0) + seconds)
