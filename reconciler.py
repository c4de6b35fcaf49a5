"""What the webhooks did not tell: once after the start and then every hour, iconik is asked for it."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import webhooks
from circuit_breaker import CircuitBreaker
from config import Config
from corrections import BATCH_SIZE, Corrections
from database import StoreUnavailable
from iconik_catalog import IconikCatalog, created_until, ids_and_titles
from iconik_client import IconikDenied, IconikError, IconikRefused, Json
from store import Store
from submitter import Submitter
from text import UUID, command, one_line, seconds_of, utc_text
from webhooks import CREATE, REGISTERED_URL, WebhookDefinition

log = logging.getLogger("iconik_listener")
Answer = TypeVar("Answer")

DAY = 24 * 3600.0
DEFAULT_INTERVAL = 3600.0  # of what does not ask iconik, if the interval is 0
PERSON_SECONDS = 5 * 3600.0  # who disables a webhook sooner after it was enabled is not iconik, which takes longer
SEARCH_LAG = DAY  # by which iconik's search index may be behind
JOBS_OVERLAP = 3600.0
PAUSE_SECONDS = 0.05  # between two batches of deletions

# Keys of items.db's state.
FIRST_STARTED_AT = "first_started_at"
ASSETS_SEEN_UNTIL = "assets_seen_until"
ASSETS_RESUME_AT = "assets_resume_at"  # how far a search has come that is not done
ASSETS_FLOOR = "assets_floor"  # nothing that was created before is added
CREATE_WEBHOOK_IS_OFF = "create_webhook_is_off"
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
        """Ask for nothing more, and wait for a moment. A request under way may go on: it can be repeated."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(1)

    def _run(self) -> None:
        while not self._stopping.is_set():
            interval = self._config.reconciler.interval or DEFAULT_INTERVAL
            done = self.reconcile()
            self._stopping.wait(interval if done else min(interval, self._config.submitter.max_retry_delay))

    def reconcile(self) -> bool:
        """Go through all steps once. Returns whether each was done; what was not is worth another try before long."""
        if not self._config.reconciler.interval:
            return self._step("deleting old rows", self._delete_old)
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
            self._tell_once(logging.ERROR, f"Reconciling, {name}: left out: {error}")
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
        own = self._own_webhooks()
        if not own:
            line = "Which webhooks at iconik are this listener's cannot be told, so missed assets are not looked for"
            self._tell_once(logging.WARNING, f"{line}: {command('register', 'URL')}")
        for webhook in own:
            self._keep_enabled(webhook)

    def _own_webhooks(self) -> list[WebhookDefinition]:
        found = self._ask(self._catalog.webhooks)
        return webhooks.ours(found, self._store.state(REGISTERED_URL), self._config.listener.webhook_secret)

    def _keep_enabled(self, webhook: WebhookDefinition) -> None:
        """Enable a webhook that iconik disabled for failing, and leave alone one that a person disabled."""
        enabled_key, person_key = f"webhook_enabled_at {webhook.id}", _left_disabled_key(webhook)
        if webhook.status != "DISABLED":
            if self._store.state(person_key):
                self._store.set_state(person_key, "")
            if webhook.status == "FAILING":
                log.warning("iconik cannot deliver to %s: %s", webhook.url, webhook.last_error)
            return
        enabled_at = self._store.state(enabled_key)
        again_so_soon = enabled_at is not None and enabled_at > self._store.now(-PERSON_SECONDS)
        if not webhook.disabled_by_iconik or again_so_soon or self._store.state(person_key):
            self._store.set_state(person_key, "1")
            line = f"A person disabled the webhook to {webhook.url}, and it stays so. To enable it:"
            self._tell_once(logging.WARNING, f"{line} {command('register', 'URL')}")
            return
        self._ask(lambda: self._catalog.save_webhook(webhook.enabled(), webhook.id))
        self._store.set_state(enabled_key, self._store.now())
        log.warning("iconik had disabled the webhook to %s for failing: it is enabled again", webhook.url)

    # Step 2: missed assets.

    def _add_missed_assets(self) -> None:
        creates = [webhook for webhook in self._own_webhooks() if webhook.kind is CREATE]
        if not any(one.lets_all_through and not self._store.state(_left_disabled_key(one)) for one in creates):
            self._store.set_state(CREATE_WEBHOOK_IS_OFF, "1")
            self._store.set_state(ASSETS_FLOOR, self._store.now())
            return
        if self._store.state(CREATE_WEBHOOK_IS_OFF):  # it was put back at some time since the last look
            self._store.set_state(ASSETS_FLOOR, self._store.now())
            self._store.set_state(CREATE_WEBHOOK_IS_OFF, "")
        now = self._store.now()
        floor = self._store.state(ASSETS_FLOOR) or self._store.state(FIRST_STARTED_AT) or now
        seen_until = min(self._store.state(ASSETS_SEEN_UNTIL) or floor, now)
        resume_at = self._store.state(ASSETS_RESUME_AT) or _later(seen_until, -SEARCH_LAG)
        since, until = max(floor, resume_at), self._store.now(-self._config.reconciler.min_age)
        if since < until:
            self._add_assets(since, until)
            self._store.set_state(ASSETS_SEEN_UNTIL, until)
            self._store.set_state(ASSETS_RESUME_AT, "")

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
                log.warning("Added %d assets whose webhooks were missed, created since %s", added, since)

    # Step 3: failed jobs.

    def _fail_jobs(self) -> None:
        """What iconik took and could not do afterwards is not finished."""
        now = self._store.now()
        seen_until = min(self._store.state(JOBS_SEEN_UNTIL) or self._store.state(FIRST_STARTED_AT) or now, now)
        for page in self._pages(self._catalog.failed_analyze_jobs(_later(seen_until, -JOBS_OVERLAP))):
            for job in page:
                self._fail_job(job)
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
        while self._corrections.delete_awaiting_create() == BATCH_SIZE:
            if self._stopping.wait(PAUSE_SECONDS):
                raise Stopped

    def _tell_once(self, level: int, line: str) -> None:
        if line not in self._told:
            self._told.add(line)
            log.log(level, line)


def _left_disabled_key(webhook: WebhookDefinition) -> str:
    """The key in items.db's state that says that a person disabled that webhook."""
    return f"webhook_left_disabled {webhook.id}"


def _later(time_text: str, seconds: float) -> str:
    return utc_text((seconds_of(time_text) or time.time()) + seconds)
