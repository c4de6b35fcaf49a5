"""The item state machine: each transition is one SQL statement, which stands beside its method."""

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import migrations
from config import Config
from jobs import DEFAULT_JOB
from system.database import Database, Progress, Row, StoreRefused, StoreUnavailable
from system.text import format_utc, one_line, parse_time

log = logging.getLogger("iconik_listener")

Key = tuple[str, str]  # an item: the asset's id, and the job
DAY_SECONDS = 24 * 3600.0
MISDATED_SECONDS = 60.0  # between two looks for what is due too late
MAX_RELEASED = 200  # items that one statement makes due, so that no webhook waits long for its turn
MAX_COUNT = 1e15  # what the ledger shows at most: a person may have written there what is no number of jobs
UNCHANGED = "unchanged"
# Keys of items.db's state.
PAUSED = "paused"  # by a person: JSON, `since` and `by`; empty if not
ALLOWED = "allowed "  # and a day: how many more jobs than max_per_day a person allows on it


class Status:
    """The statuses of an item. schema.sql says what each means."""

    AWAITING_PROXY = "awaiting_proxy"
    AWAITING_CREATE = "awaiting_create"
    READY = "ready"
    SUBMITTING = "submitting"
    SUBMITTED = "submitted"
    DONE = "done"
    SKIPPED = "skipped"
    FAILED = "failed"


class Source:
    """How an asset was found."""

    WEBHOOK = "webhook"
    SEARCH = "search"
    CATCH_UP = "catch-up"
    MENU = "menu"


@dataclass(frozen=True)
class Rules:
    """What config.ini says that a transition depends on. Durations are in seconds.

    :ivar jobs: the names of the jobs that each asset gets
    :ivar min_age: after its create, when iconik is polled for an asset's proxy; doubled each time
    :ivar max_age: after its create, when the last poll is due
    :ivar max_retry_delay: how long an item waits at most after a failure
    :ivar doubt_delay: how long an item in doubt waits at least, after the request and after a start
    :ivar max_per_day: how many jobs may be started on a day; 0 for no limit
    """

    jobs: tuple[str, ...] = (DEFAULT_JOB.name,)
    min_age: float = 600.0
    max_age: float = 7 * DAY_SECONDS
    retry_delay: float = 10.0
    max_retry_delay: float = 900.0
    doubt_delay: float = 90.0
    max_per_day: int = 0

    @classmethod
    def of(cls, config: Config) -> "Rules":
        """The rules of a configuration."""
        return cls(
            jobs=config.submitter.jobs,
            min_age=config.reconciler.min_age,
            max_age=config.reconciler.max_age,
            retry_delay=config.submitter.retry_delay,
            max_retry_delay=config.submitter.max_retry_delay,
            doubt_delay=3 * config.iconik.timeout,
            max_per_day=config.limits.max_per_day,
        )


@dataclass(frozen=True)
class Item:
    """One row of items.db: an asset and a job. The columns are explained in schema.sql."""

    object_id: str
    job: str
    title: str | None
    status: str
    source: str | None
    proxy_closed_at: str | None
    created_at: str | None
    version_id: str | None
    attempts: int
    last_attempt_at: str | None
    backoff: float
    waited: float
    refused: int
    asked: int
    asked_at: str | None
    in_doubt_since: str | None
    absent_since: str | None
    counted_on: str | None
    submitted_at: str | None
    job_id: str | None
    old_job_id: str | None
    profile: str | None
    media_type: str | None
    reason: str | None


ITEM_COLUMNS = tuple(field.name for field in fields(Item))
NUMBERS = ("attempts", "backoff", "waited", "refused", "asked")


@dataclass(frozen=True)
class Outcome:
    """The result of an attempt.

    :ivar status: the item's next status: submitted, done, skipped, failed, or ready for another attempt
    :ivar error: why it is skipped, failed or has to wait
    :ivar reason: the same without ids and numbers
    :ivar delay: for ready: seconds until the next attempt
    :ivar backoff: for ready: the delay that the next one doubles; None leaves it
    :ivar waited: for ready: the seconds by which `delay` counts towards giving up
    :ivar is_refusal: iconik refused the job
    :ivar is_attempt: False if nothing was tried: the item is as if it had not been claimed
    :ivar in_doubt: iconik may have accepted a request that it did not answer
    :ivar is_absent: iconik says that it has no such asset or, in doubt, no such job
    :ivar started_nothing: certainly no job of ours was started, so the limit gets its reservation back
    :ivar found: the job had been started by others
    :ivar submitted_at: when iconik accepted the job, by its clock, as UTC text
    :ivar counted_on: the day on which the run that is under way was counted, if it is an earlier one of ours
    :ivar title: the asset's, as iconik shows it now
    """

    status: str
    error: str | None = None
    reason: str | None = None
    delay: float = 0.0
    backoff: float | None = None
    waited: float = 0.0
    is_refusal: bool = False
    is_attempt: bool = True
    in_doubt: bool = False
    is_absent: bool = False
    started_nothing: bool = False
    found: bool = False
    submitted_at: str | None = None
    counted_on: str | None = None
    job_id: str | None = None
    title: str | None = None
    media_type: str | None = None
    duration: float | None = None


class Store:
    """The items, in one SQLite file. Any thread may use it.

    Every method raises StoreUnavailable if the file cannot be read or written within 5 s, and StoreRefused if a
    person's constraint or trigger does not let a row change. When one that writes returns, what it wrote is on the
    disk. Delays and ages are in seconds, times UTC text.
    """

    def __init__(
        self,
        path: Path,
        rules: Rules = Rules(),
        *,
        listener: bool = False,
        clock: Callable[[], float] = time.time,
        progress: Progress = lambda line: None,
    ) -> None:
        """`clock`: seconds since 1970. All else, and the StoreError that this may raise, is Database's."""
        self.rules = rules
        self._clock = clock
        self.has_creates = False  # whether an asset's own webhook came to this process
        self.failed_creates = 0  # how many of them could not be stored, so that iconik was answered an error
        self._looked_for_misdated_at: dict[str, float] = {}
        self._left_alone: set[Key] = set()  # items whose row a person's trigger does not let us change
        self._refused_alone: set[Key] = set()  # items that were tried because others had been accepted
        self._unfinished: set[Key] = set()  # items whose claim may have been written although it failed
        self.database = Database(path, migrations, listener=listener, progress=progress)

    def close(self) -> None:
        self.database.close()

    def now(self, delay: float = 0) -> str:
        """The time, or that in `delay` seconds, as text."""
        return format_utc(self._clock() + delay)

    def today(self) -> str:
        """The day (UTC) that jobs are counted on: `2026-11-23`."""
        return self.now()[:10]

    # What webhooks bring.

    def add_asset(self, object_id: str, title: str | None) -> str:
        """An asset was created. Without a webhook about its proxy, iconik is polled for one after `min_age`.

        :returns: the new status of its items, or "unchanged"
        """
        self.has_creates = True
        try:
            values = self.asset_values(object_id, title, Source.WEBHOOK, self.rules.min_age)
            rows = self.database.run(ADD_ASSET, **values)
            if not rows and title is not None:
                self.database.run(SET_TITLE, object_id=object_id, title=title)
        except (StoreUnavailable, StoreRefused):
            self.failed_creates += 1
            raise
        return str(rows[0]["status"]) if rows else UNCHANGED

    def asset_values(
        self, object_id: str, title: str | None, source: str, poll_in: float = 0, jobs: Sequence[str] | None = None
    ) -> dict[str, Any]:
        """The values of ADD_ASSET. `jobs`: None for all that are configured."""
        return {
            "object_id": object_id,
            "title": title,
            "source": source,
            "jobs": json.dumps(self.rules.jobs if jobs is None else jobs),
            "now": self.now(),
            "poll_in": poll_in,
            "poll_at": self.now(poll_in),
        }

    def proxy_closed(self, object_id: str, version_id: str | None = None) -> str:
        """A proxy of the asset is CLOSED. Returns the new status of its items, or "unchanged"."""
        rows = self.database.run(
            """INSERT INTO items (object_id, job, status, proxy_closed_at, version_id)
            SELECT :object_id, value, 'awaiting_create', :now, :version_id FROM json_each(:jobs)
            WHERE NOT EXISTS (SELECT 1 FROM items WHERE object_id = :object_id AND status <> 'awaiting_create')
                OR EXISTS (SELECT 1 FROM items WHERE object_id = :object_id AND job = json_each.value)
            ON CONFLICT (object_id, job) DO UPDATE SET status = 'ready', proxy_closed_at = :now,
                version_id = :version_id, next_attempt_at = :now, attempts = 0, waited = 0
                WHERE status = 'awaiting_proxy'
            RETURNING status""",
            object_id=object_id,
            version_id=version_id,
            jobs=json.dumps(self.rules.jobs),
            now=self.now(),
        )
        return str(rows[0]["status"]) if rows else UNCHANGED

    def known_version(self, object_id: str) -> tuple[str | None, str | None]:
        """The version whose proxy completed the asset's items, and the asset's title; None for what is not known."""
        rows = self.database.run(
            "SELECT version_id, title FROM items WHERE object_id = :object_id AND version_id IS NOT NULL LIMIT 1",
            object_id=object_id,
        )
        return (typed(rows[0]["version_id"], "version_id"), typed(rows[0]["title"], "title")) if rows else (None, None)

    # What the submitter does.

    def recover(self) -> int:
        """At a start: take up what was under way when the process ended, and bring failures forward.

        An item whose request may have reached iconik is in doubt, and waits for `doubt_delay`. What waited because
        iconik was in trouble is due now, because the start may be what ended the trouble; refusals wait on.

        :returns: how many items were under way
        """
        values = {"now": self.now(), "looked_at": self.now(self.rules.doubt_delay)}
        interrupted, *_ = self._change_all(RECOVER, ("submitting", "ready"), values)
        return interrupted

    def skip_other_jobs(self) -> int:
        """At a start: skip the unfinished items of jobs that are no longer configured. Returns how many."""
        values = {"jobs": json.dumps(self.rules.jobs)}
        return sum(self._change_all(SKIP_OTHER_JOBS, ("awaiting_proxy", "ready"), values))

    def _change_all(self, statements: Sequence[str], statuses: Sequence[str], values: dict[str, Any]) -> list[int]:
        """Execute statements that change all items of these statuses for which they hold.

        An item that a person's trigger does not let us change keeps no other from it: they are changed one by one then.

        :returns: how many items each statement changed
        """
        try:
            with self.database.transaction() as db:
                return [db.execute(one, {**values, "object_id": None, "job": None}).rowcount for one in statements]
        except StoreRefused:
            rows = self.database.run(
                "SELECT object_id, job FROM items WHERE +status IN (SELECT value FROM json_each(:statuses))",
                statuses=json.dumps(statuses),
            )
            keys = [(row["object_id"], row["job"]) for row in rows]
            return [self.change_each(statement, keys, values) for statement in statements]

    def change_each(self, statement: str, keys: Sequence[Key], values: dict[str, Any]) -> int:
        """Execute a statement for each of some items. One that a constraint or trigger protects is logged and left.

        :returns: how many items were changed
        """
        if not keys:
            return 0
        try:
            with self.database.transaction() as db:
                return sum(
                    db.execute(statement, {**values, "object_id": object_id, "job": job}).rowcount
                    for object_id, job in keys
                )
        except StoreRefused as error:
            if len(keys) == 1:
                log.error("%s. %s is left alone until the next start", error, one_line(keys[0][0]))
                self._left_alone.add(keys[0])
                return 0
            half = len(keys) // 2
            return self.change_each(statement, keys[:half], values) + self.change_each(statement, keys[half:], values)

    def claim_new(self) -> Item | None:
        """Take an item that was never attempted: the earliest or, under a limit, the newest.

        Under a limit, what `catch-up` added comes last: its assets are older than all that is uploaded now.
        """
        searches = [NEWEST_UPLOAD, NEWEST] if self.rules.max_per_day else [OLDEST]
        return self._claim([(one, {}) for one in searches], needs_room=True)

    def claim_retry(self) -> Item | None:
        """Take an item whose next attempt is due: one that holds a reservation first, then the one due longest.

        Under a limit, what a person wants done again comes first. Another one without a reservation is taken only if
        its asset is as new as the newest that was never attempted, and of several the newest: a morning of refusals
        turns a whole backlog into retries, and today's assets must not wait behind it. What is due later than its
        delays allow is due, too: the clock was wrong when that was written.
        """
        longest = max(self.rules.max_retry_delay, self.rules.min_age, self.rules.doubt_delay)
        due = {"now": self.now(), "longest": longest}
        should_look = self._should_look_for_misdated("retries")
        misdated = [MISDATED_RETRY] if should_look else []
        item = self._claim([(one, {**due, "reserved": 1}) for one in (RETRY, *misdated)])
        if item is None:
            under_limit = [WANTED_AGAIN, NEWEST_RETRY, UNDATED_RETRY, OLDER_RETRY]
            retries = under_limit if self.rules.max_per_day else [RETRY]
            item = self._claim([(one, {**due, "reserved": 0}) for one in (*retries, *misdated)], needs_room=True)
        if should_look and item is None:
            self._looked_for_misdated_at["retries"] = self._clock()
        return item

    def _claim(self, searches: Sequence[tuple[str, dict[str, Any]]], *, needs_room: bool = False) -> Item | None:
        """Take the first item that one of the searches finds, for an attempt that starts now.

        It is looked for before anything is locked, so a look that finds nothing waits for nobody.
        """
        item: Key | None = None
        try:
            if self._unfinished:
                self._put_back_unfinished()
            with self.database.reading() as db:
                if not self._find(db, searches, needs_room=needs_room):
                    return None
            with self.database.transaction() as db:
                item = self._find(db, searches, needs_room=needs_room)
                rows = db.execute(CLAIM, item).fetchall() if item else []
                if item and not rows:
                    self._left_alone.add(item)  # its key is not text, so no statement finds it again
                return _item(rows[0]) if rows else None
        except StoreRefused:
            if item:
                self._left_alone.add(item)
            raise
        except StoreUnavailable:
            if item:
                self._unfinished.add(item)  # it may have been written all the same
            raise

    def _put_back_unfinished(self) -> None:
        """Items whose claim was written, but could not be handed out: no worker has them."""
        keys = list(self._unfinished)
        self.change_each(
            """UPDATE items SET status = 'ready', attempts = max(0, attempts - 1)
            WHERE object_id = :object_id AND job = :job AND status = 'submitting'""",
            keys,
            {},
        )
        self._unfinished.difference_update(keys)

    def leave_alone(self, item: Item) -> None:
        """Do not claim an item again before the next start."""
        self._left_alone.add((item.object_id, item.job))

    def _find(self, db: Any, searches: Sequence[tuple[str, dict[str, Any]]], *, needs_room: bool) -> Key | None:
        """The item that is to be claimed; None if there is none, or if nothing may be started."""
        if self._is_paused(db) or (needs_room and not self._has_room(db)):
            return None
        for statement, values in searches:
            found = db.execute(statement, {**values, "left_alone": self._left_alone_json()}).fetchone()
            if found:
                return found["object_id"], found["job"]
        return None

    def _left_alone_json(self) -> str:
        return json.dumps([f"{object_id} {job}" for object_id, job in self._left_alone])

    def _is_paused(self, db: Any) -> bool:
        return bool(db.execute("SELECT 1 FROM state WHERE key = 'paused' AND value <> ''").fetchone())

    def _has_room(self, db: Any, *, with_those_under_way: bool = True) -> bool:
        """Whether the limit leaves room for one more job than those started and those under way."""
        if not self.rules.max_per_day:
            return True
        [row] = db.execute(
            """SELECT (SELECT total(started) FROM usage WHERE day = :day)
                + CASE WHEN :with_those_under_way
                    THEN (SELECT count(*) FROM items WHERE status = 'submitting' AND counted_on IS NULL) ELSE 0 END
                < :max_per_day + (SELECT total(value) FROM state WHERE key = 'allowed ' || :day) AS has_room""",
            {
                "day": self.today(),
                "max_per_day": self.rules.max_per_day,
                "with_those_under_way": with_those_under_way,
            },
        ).fetchall()
        return bool(row["has_room"])

    def claim_poll(self) -> Item | None:
        """Take the asset that has been due longest for a poll for its proxy. It stays awaiting_proxy.

        The next poll is due when the asset has waited twice as long, and the last one after `max_age`. That is counted
        in delays, so no reading of a clock ends it. The Item's `waited` is that of before.
        """
        values = {"now": self.now(), "left_alone": self._left_alone_json(), "longest": self.rules.max_retry_delay}
        object_id: str | None = None
        try:
            with self.database.reading() as db:
                found = db.execute(POLL, values).fetchone()
                if found is None and self._should_look_for_misdated("polls"):
                    found = db.execute(MISDATED_POLL, values).fetchone()
                    if found is None:
                        self._looked_for_misdated_at["polls"] = self._clock()
            if found is None:
                return None
            with self.database.transaction() as db:
                object_id = str(found["object_id"])
                rows = db.execute(
                    """UPDATE items SET
                        next_attempt_at = CASE WHEN waited < :max_age
                            THEN later(:now, min(max(waited, :min_age), :max_age - waited)) END,
                        waited = min(:max_age, waited + max(waited, :min_age)),
                        created_at = min(created_at, :now)
                    WHERE object_id = :object_id AND status = 'awaiting_proxy' AND EXISTS (
                        SELECT 1 FROM items  -- unless another worker has taken it meanwhile
                        WHERE object_id = :object_id AND job = :job AND next_attempt_at IS :next_attempt_at)
                    RETURNING *""",
                    {
                        **found,
                        "now": self.now(),
                        "min_age": max(self.rules.min_age, 1.0),
                        "max_age": self.rules.max_age,
                    },
                ).fetchall()
        except StoreRefused:
            self._left_alone |= {(object_id, job) for job in self.rules.jobs if object_id}
            raise
        return replace(_item(rows[0]), waited=typed(found["waited"], "waited")) if rows else None

    def _should_look_for_misdated(self, kind: str) -> bool:
        """Whether a minute has passed since a look, which reads all that waits, found none, or the clock stepped."""
        looked_at = self._looked_for_misdated_at.get(kind)
        return looked_at is None or abs(self._clock() - looked_at) > MISDATED_SECONDS

    def postpone_poll(self, item: Item, delay: float) -> None:
        """Poll for the proxy of claim_poll's item again in `delay` seconds, because the poll under way failed.

        Until then it has waited that long, and not twice as long as before.
        """
        self.database.run(
            """UPDATE items SET next_attempt_at = :next, waited = min(waited, :waited)
            WHERE object_id = :object_id AND status = 'awaiting_proxy'""",
            object_id=item.object_id,
            next=self.now(delay) if item.waited < self.rules.max_age else None,
            waited=item.waited + delay,
        )

    def seconds_until_due(self) -> float | None:
        """Seconds until claim_retry or claim_poll has something; 0 if one has now, None if that is not known."""
        with self.database.reading() as db:
            is_paused = self._is_paused(db)
            [row] = db.execute(
                """SELECT min(due) AS due, min(due) <= :now AS is_due FROM (
                    SELECT min(next_attempt_at) AS due FROM items
                        WHERE :may_start AND status = 'ready' AND last_attempt_at IS NOT NULL
                            AND (counted_on IS NOT NULL) = 1
                            AND object_id || ' ' || job NOT GLOB '*[^ -~]*'
                            AND object_id || ' ' || job NOT IN (SELECT value FROM json_each(:left_alone))
                    UNION ALL SELECT min(next_attempt_at) FROM items
                        WHERE :has_room AND status = 'ready' AND last_attempt_at IS NOT NULL
                            AND (counted_on IS NOT NULL) = 0
                            AND object_id || ' ' || job NOT GLOB '*[^ -~]*'
                            AND object_id || ' ' || job NOT IN (SELECT value FROM json_each(:left_alone))
                    UNION ALL SELECT min(next_attempt_at) FROM items
                        WHERE status = 'awaiting_proxy'
                            AND object_id || ' ' || job NOT GLOB '*[^ -~]*'
                            AND object_id || ' ' || job NOT IN (SELECT value FROM json_each(:left_alone)))""",
                {
                    "now": self.now(),
                    "may_start": not is_paused,
                    "has_room": not is_paused and self._has_room(db),
                    "left_alone": self._left_alone_json(),
                },
            ).fetchall()
        if row["is_due"]:
            return 0.0
        due = parse_time(row["due"])  # a person may have written something else there
        if due is None:
            return None
        seconds = due - self._clock()
        return max(0.0, seconds) if seconds > -1 else None  # it may have become due a moment ago

    def held_by(self) -> str:
        """What holds back items that are ready: `paused`, a day whose jobs are used up, or nothing."""
        with self.database.reading() as db:
            if self._is_paused(db):
                return "paused"
            if not self.rules.max_per_day or self._has_room(db, with_those_under_way=False):
                return ""
            [row] = db.execute(
                """SELECT EXISTS (SELECT 1 FROM items WHERE status = 'ready' AND last_attempt_at IS NULL)
                    OR EXISTS (SELECT 1 FROM items WHERE status = 'ready' AND last_attempt_at IS NOT NULL
                        AND (counted_on IS NOT NULL) = 0) AS is_any_held"""
            ).fetchall()
            return self.today() if row["is_any_held"] else ""

    def reserve(self, item: Item, iconik_now: float, profile: str) -> bool:
        """Count the item's job against today's limit, and note that from now on it may be started.

        An item that holds a reservation keeps it.

        :param iconik_now: iconik's time, in seconds since 1970
        :returns: False if the limit is reached or a person has paused the listener: nothing was changed then
        """
        values = {
            "object_id": item.object_id,
            "job": item.job,
            "day": self.today(),
            "max_per_day": self.rules.max_per_day,
            "iconik_now": format_utc(iconik_now),
            "profile": profile,
        }
        with self.database.transaction() as db:
            rows = db.execute(
                """UPDATE items SET counted_on = coalesce(counted_on, :day), profile = :profile, absent_since = NULL,
                    in_doubt_since = coalesce(in_doubt_since, :iconik_now)
                WHERE object_id = :object_id AND job = :job AND status = 'submitting'
                    AND NOT EXISTS (SELECT 1 FROM state WHERE key = 'paused' AND value <> '')
                    AND (counted_on IS NOT NULL OR :max_per_day = 0
                        OR (SELECT total(started) FROM usage WHERE day = :day)
                            < :max_per_day + (SELECT total(value) FROM state WHERE key = 'allowed ' || :day))
                RETURNING object_id""",
                values,
            ).fetchall()
            if rows and item.counted_on is None:
                db.execute(COUNT, {**values, "started": 1, "found": 0})
        return bool(rows)

    def end_attempt(self, item: Item, outcome: Outcome) -> None:
        """Record what became of an attempt at an item that is submitting."""
        values = {
            **{key: getattr(outcome, key) for key in OUTCOME_VALUES},
            "object_id": item.object_id,
            "job": item.job,
            "now": self.now(),
            "next": self.now(outcome.delay) if outcome.status == Status.READY else None,
        }
        try:
            with self.database.transaction() as db:
                before = db.execute(
                    """SELECT counted_on FROM items
                    WHERE object_id = :object_id AND job = :job AND status = 'submitting'""",
                    values,
                ).fetchone()
                if before is None:
                    return
                if outcome.started_nothing and before["counted_on"]:
                    db.execute(COUNT, {**values, "day": before["counted_on"], "started": -1, "found": 0})
                if outcome.found:
                    db.execute(COUNT, {**values, "day": self.today(), "started": 0, "found": 1})
                db.execute(END_ATTEMPT, values)
        except StoreRefused:
            self._left_alone.add((item.object_id, item.job))
            raise

    # Refusals that affect every item, such as insufficient credits.

    def is_refused_alone(self, item: Item, reason: str) -> bool:
        """Whether no other item was refused in the same words and is due within `max_retry_delay`.

        While several wait for the same reason, one of them is tried that often, to see whether it is over.
        """
        [row] = self.database.run(
            """SELECT count(*) > 0 AS has_others, min(next_attempt_at) <= :soon AS is_tried FROM items
            WHERE status = 'ready' AND refused = 1 AND reason = :reason AND object_id <> :object_id""",
            reason=reason,
            object_id=item.object_id,
            soon=self.now(self.rules.max_retry_delay),
        )
        return not row["has_others"] or bool(row["is_tried"])

    def release_refused(self, reason: str) -> None:
        """Make items due that were refused in these words, because one of them has been accepted."""
        rows = self.database.run(
            """SELECT object_id, job FROM items
            WHERE status = 'ready' AND refused = 1 AND reason = :reason AND next_attempt_at > :now
                AND in_doubt_since IS NULL
            LIMIT :limit""",
            reason=reason,
            now=self.now(),
            limit=MAX_RELEASED,
        )
        self._make_due(rows)

    def probe_refused(self, seconds: float) -> None:
        """Make one item due of each reason for which none has been attempted for that long.

        One that waits for its reason alone, and was refused once more when others were accepted, may be a bad file: it
        is attempted four times as often as it would be, and no oftener.
        """
        rows = self.database.run(
            """SELECT object_id, job, count(*) AS items FROM items AS one WHERE status = 'ready' AND refused = 1
                AND in_doubt_since IS NULL
            GROUP BY reason HAVING max(last_attempt_at) < :since AND min(next_attempt_at) > :now""",
            now=self.now(),
            since=self.now(-seconds),
        )
        alone = {(row["object_id"], row["job"]) for row in rows if row["items"] == 1}
        bad = alone & self._refused_alone
        self._refused_alone |= alone
        self._make_due([row for row in rows if (row["object_id"], row["job"]) not in bad])
        self._make_due([row for row in rows if (row["object_id"], row["job"]) in bad], share=0.25)

    def _make_due(self, rows: Sequence[Row], share: float = 0.0) -> None:
        """Bring the next attempts forward. What has not been waited does not count towards giving up.

        :param share: only those that have waited that share of their backoff
        """
        self.change_each(
            """UPDATE items SET next_attempt_at = :now, waited = max(0, waited - max(0, min(backoff,
                coalesce(seconds_between(:now, CAST(next_attempt_at AS BLOB)), 0))))
            WHERE object_id = :object_id AND job = :job AND status = 'ready' AND refused = 1
                AND coalesce(seconds_between(CAST(last_attempt_at AS BLOB), :now), backoff) >= :share * backoff""",
            [(row["object_id"], row["job"]) for row in rows],
            {"now": self.now(), "share": share},
        )

    # Persistent state and queries.

    def state(self, key: str) -> str | None:
        """What was remembered under that key."""
        rows = self.database.run("SELECT value FROM state WHERE key = :key", key=key)
        return str(rows[0]["value"]) if rows else None

    def set_state(self, key: str, value: str) -> None:
        """Remember a value."""
        self.database.run(SET_STATE, key=key, value=value)

    def overview(self) -> list[Row]:
        """For each status that there is: how many `items`, and since when the `oldest` of them is here."""
        return self.database.run("SELECT * FROM summary")

    def health(self) -> dict[str, Any]:
        """How many items are `ready`, `submitting` and `failed`, and since when the `oldest_due_at` has been due.

        What the limit or a pause holds is `held`, and is not due. If the last write failed, this first tries one: a
        disk that is full can be read all the same.
        """
        if self.database.error:
            self.set_state("written_at", self.now())
        with self.database.reading() as db:
            is_paused = self._is_paused(db)
            is_held = is_paused or not self._has_room(db)
            [row] = db.execute(
                """SELECT (SELECT count(*) FROM items WHERE status = 'ready' AND last_attempt_at IS NULL)
                        + (SELECT count(*) FROM items WHERE status = 'ready' AND last_attempt_at IS NOT NULL) AS ready,
                    (SELECT count(*) FROM items WHERE status = 'submitting') AS submitting,
                    (SELECT count(*) FROM items WHERE status = 'failed') AS failed,
                    CASE WHEN :is_paused THEN
                        (SELECT count(*) FROM items WHERE status = 'ready' AND last_attempt_at IS NULL)
                        + (SELECT count(*) FROM items WHERE status = 'ready' AND last_attempt_at IS NOT NULL)
                    WHEN :is_held THEN
                        (SELECT count(*) FROM items WHERE status = 'ready' AND last_attempt_at IS NULL)
                        + (SELECT count(*) FROM items WHERE status = 'ready' AND last_attempt_at IS NOT NULL
                            AND (counted_on IS NOT NULL) = 0)
                    ELSE 0 END AS held,
                    (SELECT total(started) FROM usage WHERE day = :day) AS jobs_today,
                    (SELECT min(due) FROM (
                        SELECT min(next_attempt_at) AS due FROM items
                            WHERE NOT :is_held AND status = 'ready' AND last_attempt_at IS NULL
                        UNION ALL SELECT min(next_attempt_at) FROM items
                            WHERE NOT :is_held AND status = 'ready' AND last_attempt_at IS NOT NULL
                                AND (counted_on IS NOT NULL) = 0
                        UNION ALL SELECT min(next_attempt_at) FROM items
                            WHERE NOT :is_paused AND status = 'ready' AND last_attempt_at IS NOT NULL
                                AND (counted_on IS NOT NULL) = 1)
                        WHERE due <= :now) AS oldest_due_at""",
                {"now": self.now(), "is_held": is_held, "is_paused": is_paused, "day": self.today()},
            ).fetchall()
        return {
            **dict(row),
            "jobs_today": int(min(row["jobs_today"], MAX_COUNT)),
            "max_per_day": self.rules.max_per_day,
        }


# A person added it in iconik's menu, which tells no titles.
SET_TITLE = "UPDATE items SET title = :title WHERE object_id = :object_id AND title IS NULL"
SET_STATE = "INSERT INTO state VALUES (:key, :value) ON CONFLICT (key) DO UPDATE SET value = :value"

# Adds the items of all configured jobs, if the asset is new. A job that was added to the configuration later is not for
# an asset whose create has come before, unless a person asks for that. No clock decides that.
ADD_ASSET = """INSERT INTO items (object_id, job, title, status, source, created_at, waited, next_attempt_at)
SELECT :object_id, value, :title, 'awaiting_proxy', :source, :now, :poll_in, :poll_at FROM json_each(:jobs)
WHERE :source IN ('catch-up', 'menu')
    OR NOT EXISTS (SELECT 1 FROM items WHERE object_id = :object_id AND status <> 'awaiting_create')
    OR EXISTS (SELECT 1 FROM items WHERE object_id = :object_id AND job = json_each.value)
ON CONFLICT (object_id, job) DO UPDATE SET status = 'ready', title = :title, source = :source, created_at = :now,
    next_attempt_at = :now
    WHERE status = 'awaiting_create'
RETURNING status, job"""

# What these change is all items or, if :object_id is given, one of them. First what was under way.
RECOVER = (
    """UPDATE items SET status = 'ready',
        next_attempt_at = CASE WHEN in_doubt_since IS NULL THEN :now ELSE :looked_at END,
        last_attempt_at = CASE WHEN in_doubt_since IS NULL THEN last_attempt_at ELSE :now END,
        error = coalesce(error, 'the listener ended before iconik answered'),
        reason = coalesce(reason, 'the listener ended before iconik answered')
    WHERE status = 'submitting'
        AND (:object_id IS NULL OR (object_id = :object_id AND job = :job))""",
    """UPDATE items SET next_attempt_at = :looked_at
    WHERE status = 'ready' AND last_attempt_at IS NOT NULL AND in_doubt_since IS NOT NULL
        AND (:object_id IS NULL OR (object_id = :object_id AND job = :job))""",
    """UPDATE items SET next_attempt_at = :looked_at, last_attempt_at = :now
    WHERE status = 'ready' AND last_attempt_at IS NULL AND in_doubt_since IS NOT NULL
        AND (:object_id IS NULL OR (object_id = :object_id AND job = :job))""",
    """UPDATE items SET next_attempt_at = :now,
        waited = max(0, waited - max(0, min(backoff,
            coalesce(seconds_between(:now, CAST(next_attempt_at AS BLOB)), 0))))
    WHERE status = 'ready' AND last_attempt_at IS NOT NULL AND in_doubt_since IS NULL AND refused = 0
        AND next_attempt_at > :now
        AND (:object_id IS NULL OR (object_id = :object_id AND job = :job))""",
)

# The same. One for each index, because SQLite uses none of them for all together. What awaits its create stays: it is
# deleted after a day and, until then, must not look as if the asset had been there before the jobs of today.
SKIP_OTHER_JOBS = (
    """UPDATE items SET status = 'skipped', error = job || ' is not in jobs', reason = job || ' is not in jobs'
    WHERE status = 'awaiting_proxy' AND job NOT IN (SELECT value FROM json_each(:jobs))
        AND (:object_id IS NULL OR (object_id = :object_id AND job = :job))""",
    """UPDATE items SET status = 'skipped', error = job || ' is not in jobs', reason = job || ' is not in jobs'
    WHERE status = 'ready' AND last_attempt_at IS NULL AND job NOT IN (SELECT value FROM json_each(:jobs))
        AND (:object_id IS NULL OR (object_id = :object_id AND job = :job))""",
    """UPDATE items SET status = 'skipped', error = job || ' is not in jobs', reason = job || ' is not in jobs'
    WHERE status = 'ready' AND last_attempt_at IS NOT NULL AND job NOT IN (SELECT value FROM json_each(:jobs))
        AND (:object_id IS NULL OR (object_id = :object_id AND job = :job))""",
)

# What is to be claimed is never a row whose key is not ASCII: a person wrote that, and no statement finds it again.
OLDEST = """SELECT object_id, job FROM items WHERE status = 'ready' AND last_attempt_at IS NULL
    AND object_id || ' ' || job NOT GLOB '*[^ -~]*'
    AND object_id || ' ' || job NOT IN (SELECT value FROM json_each(:left_alone))
ORDER BY next_attempt_at, created_at LIMIT 1"""

NEWEST = """SELECT object_id, job FROM items WHERE status = 'ready' AND last_attempt_at IS NULL
    AND object_id || ' ' || job NOT GLOB '*[^ -~]*'
    AND object_id || ' ' || job NOT IN (SELECT value FROM json_each(:left_alone))
ORDER BY next_attempt_at DESC, created_at DESC LIMIT 1"""

NEWEST_UPLOAD = """SELECT object_id, job FROM items
WHERE status = 'ready' AND last_attempt_at IS NULL AND source IS NOT 'catch-up'
    AND object_id || ' ' || job NOT GLOB '*[^ -~]*'
    AND object_id || ' ' || job NOT IN (SELECT value FROM json_each(:left_alone))
ORDER BY next_attempt_at DESC, created_at DESC LIMIT 1"""

RETRY = """SELECT object_id, job FROM items
WHERE status = 'ready' AND last_attempt_at IS NOT NULL AND (counted_on IS NOT NULL) = :reserved
    AND next_attempt_at <= :now
    AND object_id || ' ' || job NOT GLOB '*[^ -~]*'
    AND object_id || ' ' || job NOT IN (SELECT value FROM json_each(:left_alone))
ORDER BY next_attempt_at, created_at LIMIT 1"""

WANTED_AGAIN = """SELECT object_id, job FROM items
WHERE status = 'ready' AND asked = 2 AND counted_on IS NULL AND next_attempt_at <= :now
    AND object_id || ' ' || job NOT GLOB '*[^ -~]*'
    AND object_id || ' ' || job NOT IN (SELECT value FROM json_each(:left_alone))
ORDER BY next_attempt_at LIMIT 1"""

# The newest that is due, if it is as new as the newest upload that was never attempted and can be claimed. The first
# condition spares a look through all of them when none is due.
NEWEST_RETRY = """SELECT object_id, job FROM items
WHERE EXISTS (
        SELECT 1 FROM items AS due WHERE due.status = 'ready' AND due.last_attempt_at IS NOT NULL
            AND (due.counted_on IS NOT NULL) = 0 AND due.next_attempt_at <= :now)
    AND status = 'ready' AND last_attempt_at IS NOT NULL AND counted_on IS NULL AND source IS NOT 'catch-up'
    AND created_at >= coalesce((
        SELECT new.created_at FROM items AS new
        WHERE new.status = 'ready' AND new.last_attempt_at IS NULL AND new.source IS NOT 'catch-up'
            AND new.object_id || ' ' || new.job NOT GLOB '*[^ -~]*'
            AND new.object_id || ' ' || new.job NOT IN (SELECT value FROM json_each(:left_alone))
        ORDER BY new.next_attempt_at DESC, new.created_at DESC LIMIT 1), '')
    AND next_attempt_at <= :now
    AND object_id || ' ' || job NOT GLOB '*[^ -~]*'
    AND object_id || ' ' || job NOT IN (SELECT value FROM json_each(:left_alone))
ORDER BY created_at DESC LIMIT 1"""

# The same of what `catch-up` added, if no upload waits.
OLDER_RETRY = """SELECT object_id, job FROM items
WHERE EXISTS (
        SELECT 1 FROM items AS due WHERE due.status = 'ready' AND due.last_attempt_at IS NOT NULL
            AND (due.counted_on IS NOT NULL) = 0 AND due.next_attempt_at <= :now)
    AND NOT EXISTS (
        SELECT 1 FROM items AS new
        WHERE new.status = 'ready' AND new.last_attempt_at IS NULL AND new.source IS NOT 'catch-up'
            AND new.object_id || ' ' || new.job NOT GLOB '*[^ -~]*'
            AND new.object_id || ' ' || new.job NOT IN (SELECT value FROM json_each(:left_alone)))
    AND status = 'ready' AND last_attempt_at IS NOT NULL AND counted_on IS NULL
    AND created_at >= coalesce((
        SELECT new.created_at FROM items AS new WHERE new.status = 'ready' AND new.last_attempt_at IS NULL
            AND new.object_id || ' ' || new.job NOT GLOB '*[^ -~]*'
            AND new.object_id || ' ' || new.job NOT IN (SELECT value FROM json_each(:left_alone))
        ORDER BY new.next_attempt_at DESC, new.created_at DESC LIMIT 1), '')
    AND next_attempt_at <= :now
    AND object_id || ' ' || job NOT GLOB '*[^ -~]*'
    AND object_id || ' ' || job NOT IN (SELECT value FROM json_each(:left_alone))
ORDER BY created_at DESC LIMIT 1"""

UNDATED_RETRY = """SELECT object_id, job FROM items  -- of before version 1.0
WHERE status = 'ready' AND last_attempt_at IS NOT NULL AND counted_on IS NULL AND created_at IS NULL
    AND next_attempt_at <= :now
    AND object_id || ' ' || job NOT GLOB '*[^ -~]*'
    AND object_id || ' ' || job NOT IN (SELECT value FROM json_each(:left_alone))
LIMIT 1"""

# Due later than the delay that was written, or the longest of the others: an hour for one in doubt.
MISDATED_RETRY = """SELECT object_id, job FROM items
WHERE status = 'ready' AND last_attempt_at IS NOT NULL AND (counted_on IS NOT NULL) = :reserved
    AND next_attempt_at > :now
    AND ((julianday(next_attempt_at) - julianday(:now)) * 86400
        > max(:longest, backoff, CASE WHEN in_doubt_since IS NULL THEN 0 ELSE 3600 END) + 60)
    AND object_id || ' ' || job NOT GLOB '*[^ -~]*'
    AND object_id || ' ' || job NOT IN (SELECT value FROM json_each(:left_alone))
ORDER BY next_attempt_at, created_at LIMIT 1"""

POLL = """SELECT object_id, job, next_attempt_at, waited FROM items
WHERE status = 'awaiting_proxy' AND next_attempt_at <= :now
    AND object_id || ' ' || job NOT GLOB '*[^ -~]*'
    AND object_id || ' ' || job NOT IN (SELECT value FROM json_each(:left_alone))
ORDER BY next_attempt_at, created_at LIMIT 1"""

# Due later than its own delay allows, or iconik's Retry-After: the clock was wrong when that was written.
MISDATED_POLL = """SELECT object_id, job, next_attempt_at, waited FROM items
WHERE status = 'awaiting_proxy' AND next_attempt_at > :now
    AND (julianday(next_attempt_at) - julianday(:now)) * 86400 > max(waited, :longest, 3600) + 60
    AND object_id || ' ' || job NOT GLOB '*[^ -~]*'
    AND object_id || ' ' || job NOT IN (SELECT value FROM json_each(:left_alone))
LIMIT 1"""

CLAIM = """UPDATE items SET status = 'submitting', attempts = attempts + 1
WHERE object_id = ? AND job = ? AND status = 'ready' RETURNING *"""

OUTCOME_VALUES = tuple(field.name for field in fields(Outcome))

# An acceptance ends what led to it: delays, a person's wish, doubt.
END_ATTEMPT = """UPDATE items SET
    status = :status,
    attempts = CASE WHEN :is_attempt THEN attempts ELSE max(0, attempts - 1) END,
    backoff = CASE WHEN :status IN ('submitted', 'done') THEN 0 ELSE coalesce(:backoff, backoff) END,
    waited = CASE WHEN :status IN ('submitted', 'done') THEN 0 ELSE waited + :waited END,
    asked = CASE WHEN :status IN ('submitted', 'done') THEN 0 ELSE asked END,
    asked_at = CASE WHEN :status IN ('submitted', 'done') AND asked < 2 THEN NULL ELSE asked_at END,
    refused = CASE WHEN :is_attempt THEN :is_refusal ELSE refused END,
    in_doubt_since = CASE WHEN :in_doubt THEN in_doubt_since END,
    absent_since = CASE WHEN :is_absent THEN coalesce(absent_since, :now) END,
    counted_on = CASE WHEN :started_nothing THEN NULL ELSE coalesce(counted_on, :counted_on) END,
    last_attempt_at = CASE WHEN :is_attempt THEN :now
        WHEN :delay > 0 THEN coalesce(last_attempt_at, :now)  -- it is not new any more, or it would not wait
        ELSE last_attempt_at END,
    next_attempt_at = CASE WHEN :is_attempt OR :delay > 0 THEN :next ELSE next_attempt_at END,
    submitted_at = CASE WHEN :status IN ('submitted', 'done') THEN coalesce(:submitted_at, :now) ELSE submitted_at END,
    done_at = CASE WHEN :status = 'done' THEN :now END,
    job_id = CASE WHEN :status IN ('submitted', 'done') THEN :job_id ELSE coalesce(:job_id, job_id) END,
    profile = CASE WHEN NOT :found THEN profile END,
    title = coalesce(title, :title),
    media_type = coalesce(:media_type, media_type),
    duration = coalesce(:duration, duration),
    error = CASE WHEN :is_attempt THEN :error ELSE error END,
    reason = CASE WHEN :is_attempt THEN :reason ELSE reason END
WHERE object_id = :object_id AND job = :job AND status = 'submitting'"""

COUNT = """INSERT INTO usage (day, job, started, found) VALUES (:day, :job, max(0, :started), :found)
ON CONFLICT (day, job) DO UPDATE SET started = max(0, started + :started), found = found + :found"""


def _item(row: Row) -> Item:
    return Item(
        **{name: row[name] if name in ("object_id", "job") else typed(row[name], name) for name in ITEM_COLUMNS}
    )


def typed(value: Any, column: str) -> Any:
    """A value of a row as its column's type says, whatever a person wrote there: 0 if it is no number, or its text.

    Only the key stays as it is, or no statement would find the row again.
    """
    if column in ("object_id", "job"):
        return value
    if column in NUMBERS:
        return value if isinstance(value, int | float) else 0
    return value if value is None or isinstance(value, str) else one_line(value)
