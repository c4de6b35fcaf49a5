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
from iconik_client import IconikClient, IconikDenied, IconikError, IconikRateLimited, IconikRefused, Json
from store import Store
from submitter import Submitter
from text import UUID, command, one_line, seconds_of, title_of, utc_text
from webhooks import CREATE, REGISTERED_URL, WebhookDefinition

log = logging.getLogger("iconik_listener")
Answer = TypeVar("Answer")

DAY = 24 * 3600.0
DEFAULT_INTERVAL = 3600.0  # of what does not ask iconik, if the interval is 0
PERSON_SECONDS = (
    5 * 3600.0
)  # iconik fails for longer than this before it disables a webhook; a person needs no such time
SEARCH_LAG = DAY  # by which iconik's search index may be behind
JOBS_OVERLAP = 3600.0
PAUSE_SECONDS = 0.05  # between two batches of deletions

# Keys of items.db's state.
FIRST_STARTED_AT = "first_started_at"
ASSETS_SEEN_UNTIL = "assets_seen_until"
ASSETS_FLOOR = "assets_floor"  # nothing that was created before is added
CREATE_WEBHOOK_IS_OFF = "create_webhook_is_off"
JOBS_SEEN_UNTIL = "jobs_seen_until"


class Stopped(Exception):
    """The listener ends."""


class Reconciler:
    """A thread that compares what iconik knows with items.db. Its steps can be cut off and repeated at any point."""

    def __init__(
        self, store: Store, client: IconikClient, breaker: CircuitBreaker, submitter: Submitter, config: Config
    ) -> None:
        self._store, self._client, self._breaker, self._submitter = store, client, breaker, submitter
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
        done = self._step("our webhooks and missed assets", self._webhooks_and_assets)
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
            except IconikRateLimited as error:
                permission.rate_limited(error.summary, error.retry_after)
                raise
            except IconikRefused:
                raise
            except IconikError as error:
                permission.probe_failed(error.summary)
                raise

    def _pages(self, pages: Iterator[list[Json]]) -> Iterator[list[Json]]:
        while (page := self._ask(lambda: next(pages, None))) is not None:
            yield page

    # Step 1: our webhooks, and step 2, which depends on how they are.

    def _webhooks_and_assets(self) -> None:
        found = self._ask(self._client.webhooks)
        registered_url = self._store.state(REGISTERED_URL)
        own = webhooks.ours(found, registered_url, self._config.listener.webhook_secret)
        if not own:
            self._tell_once(
                logging.WARNING,
                f"Which webhooks at iconik are this listener's cannot be told: {command('register', 'URL')}",
            )
        creates = [
            self._keep_enabled(webhook) and webhook.lets_all_through for webhook in own if webhook.kind is CREATE
        ]
        for webhook in own:
            if webhook.kind is not CREATE:
                self._keep_enabled(webhook)
        if any(creates):
            self._add_missed_assets()
        else:
            self._move_on()

    def _keep_enabled(self, webhook: WebhookDefinition) -> bool:
        """Enable a webhook that iconik disabled. Returns whether it is in use now: False if a person disabled it."""
        enabled_key, person_key = f"webhook_enabled_at {webhook.id}", f"webhook_left_disabled {webhook.id}"
        if webhook.status != "DISABLED":
            if self._store.state(person_key):
                self._store.set_state(person_key, "")
            if webhook.status == "FAILING":
                log.warning("iconik cannot deliver to %s: %s", webhook.url, webhook.last_error)
            return True
        enabled_at = self._store.state(enabled_key)
        again_so_soon = enabled_at is not None and enabled_at > self._store.now(-PERSON_SECONDS)
        if not webhook.disabled_by_iconik or again_so_soon or self._store.state(person_key):
            self._store.set_state(person_key, "1")
            line = f"A person disabled the webhook to {webhook.url}, and it stays so. To enable it:"
            self._tell_once(logging.WARNING, f"{line} {command('register', 'URL')}")
            return False
        self._ask(lambda: self._client.save_webhook(webhook.enabled(), webhook.id))
        self._store.set_state(enabled_key, self._store.now())
        log.warning("iconik had disabled the webhook to %s for failing: it is enabled again", webhook.url)
        return True

    def _move_on(self) -> None:
        """Who keeps iconik from telling us of assets must not be billed for those of that time."""
        self._store.set_state(CREATE_WEBHOOK_IS_OFF, "1")
        self._store.set_state(ASSETS_FLOOR, self._store.now())

    def _add_missed_assets(self) -> None:
        if self._store.state(CREATE_WEBHOOK_IS_OFF):
            self._move_on()  # it was put back at some time since the last look
            self._store.set_state(CREATE_WEBHOOK_IS_OFF, "")
        now = self._store.now()
        floor = self._store.state(ASSETS_FLOOR) or self._store.state(FIRST_STARTED_AT) or now
        seen_until = min(self._store.state(ASSETS_SEEN_UNTIL) or floor, now)
        since, until = max(floor, _later(seen_until, -SEARCH_LAG)), self._store.now(-self._config.reconciler.min_age)
        if since >= until:
            return
        added = 0
        for page in self._pages(self._client.assets_created(since, until)):
            assets = [(str(asset.get("id")).lower(), title_of(asset)) for asset in page]
            added += self._corrections.add_assets([(one, title) for one, title in assets if UUID.fullmatch(one)], {})
            self._submitter.wake()
        self._store.set_state(ASSETS_SEEN_UNTIL, until)
        if added:
            log.warning("Added %d assets whose webhooks were missed, created since %s", added, since)

    # Step 3.

    def _fail_jobs(self) -> None:
        """What iconik took and could not do afterwards is not finished."""
        now = self._store.now()
        seen_until = min(self._store.state(JOBS_SEEN_UNTIL) or self._store.state(FIRST_STARTED_AT) or now, now)
        for page in self._pages(self._client.failed_analyze_jobs(_later(seen_until, -JOBS_OVERLAP))):
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

    # Step 4.

    def _delete_old(self) -> None:
        while self._corrections.delete_awaiting_create() == BATCH_SIZE:
            if self._stopping.wait(PAUSE_SECONDS):
                raise Stopped

    def _tell_once(self, level: int, line: str) -> None:
        if line not in self._told:
            self._told.add(line)
            log.log(level, line)


def _later(time_text: str, seconds: float) -> str:
    return utc_text((seconds_of(time_text) or time.time()) + seconds)
