"""items.db: every statement that touches it. Each transition of an item is one statement."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import migrations
from system.database import Database, Progress, Row
from system.text import seconds_of, utc_text

UNCHANGED = "unchanged"
# SQL: the ready items that were never attempted, and those that were; written as the index items_ready has it.
NEW = "status = 'ready' AND (last_attempt_at IS NOT NULL) = 0"
TRIED = "status = 'ready' AND (last_attempt_at IS NOT NULL) = 1"
# SQL: when an item may be attempted again at the earliest. Its last attempt may have reached iconik without an answer.
SOONEST = "max(:now, coalesce(later(last_attempt_at, :retry_delay), :now))"
# SQL: when an item became ready, moved on by the time in which nobody tried: from its last attempt, if any, until now.
READY_AT = "min(:now, coalesce(later(ready_at, max(0, seconds_between(last_attempt_at, :now))), :now))"


@dataclass(frozen=True)
class Item:
    """An item claimed for an attempt (`status` is submitting), or to be asked about (awaiting_proxy).

    `attempts` counts this one, `in_doubt` says that iconik may have taken an earlier one that it did not answer,
    `age` is the seconds since the item became ready.
    """

    object_id: str
    status: str
    attempts: int
    in_doubt: int
    age: float


class Store:
    """The items, in one SQLite file. Any thread may use it.

    Every method raises StoreUnavailable if the file cannot be read or written within 5 s;
    when one that writes returns, what it wrote is on the disk. Delays and ages are in seconds, times UTC text.
    """

    def __init__(
        self,
        path: Path,
        *,
        listener: bool = False,
        clock: Callable[[], float] = time.time,
        progress: Progress = lambda line: None,
    ) -> None:
        """`clock`: seconds since 1970. All else, and the StoreError that this may raise, is Database's."""
        self._clock = clock
        self.database = Database(path, migrations, listener=listener, progress=progress)

    def close(self) -> None:
        self.database.close()

    # What webhooks tell. Each of these returns the item's new status, or "unchanged".

    def add_asset(self, object_id: str, title: str | None, proxy_due_in: float = 0) -> str:
        """An asset was created. Without a word about its proxy, iconik is asked for it in `proxy_due_in` seconds."""
        rows = self.database.run(ADD_ASSET, **self.asset_values(object_id, title, proxy_due_in))
        return str(rows[0]["status"]) if rows else UNCHANGED

    def asset_values(self, object_id: str, title: str | None, proxy_due_in: float = 0) -> dict[str, Any]:
        """The values of ADD_ASSET."""
        return {"object_id": object_id, "title": title, "now": self.now(), "due": self.now(proxy_due_in)}

    def proxy_closed(self, object_id: str) -> str:
        """A proxy of the asset is CLOSED."""
        rows = self.database.run(
            """INSERT INTO items (object_id, status, proxy_closed_at) VALUES (:object_id, 'awaiting_create', :now)
            ON CONFLICT (object_id) DO UPDATE
                SET status = 'ready', proxy_closed_at = :now, ready_at = :now, next_attempt_at = :now
                WHERE status = 'awaiting_proxy' RETURNING status""",
            object_id=object_id,
            now=self.now(),
        )
        return str(rows[0]["status"]) if rows else UNCHANGED

    # What the submitter does.

    def recover(self, retry_delay: float) -> int:
        """At a start, make due what was under way when the process ended, and what waits for iconik's trouble to end.

        Nothing is attempted sooner than `retry_delay` after its last attempt. The time in which nobody tried does
        not count towards giving up. Returns how many items were under way.
        """
        values = {"now": self.now(), "retry_delay": retry_delay}
        with self.database.transaction() as db:
            interrupted = db.execute(
                f"""UPDATE items SET status = 'ready', in_doubt = 1, last_attempt_at = :now, next_attempt_at = '~',
                    ready_at = {READY_AT}, error = coalesce(error, 'the listener ended before iconik answered')
                WHERE status = 'submitting'""",  # noqa: S608
                values,
            ).rowcount
            db.execute(
                f"""UPDATE items SET next_attempt_at = min(next_attempt_at, {SOONEST}), ready_at = {READY_AT}
                WHERE status = 'ready'""",  # noqa: S608
                values,
            )
        return interrupted

    def claim_new(self, *, newest: bool = False) -> Item | None:
        """Take the earliest item that was never attempted, or the newest, for an attempt that starts now."""
        return self._claim(CLAIM_NEWEST if newest else CLAIM_NEW)

    def claim_due(self, min_age: float, max_age: float) -> Item | None:
        """Take what has been due longest: an item for its next attempt, or one to be asked about.

        The latter is due again when it is twice as old, but `min_age` from now at the earliest, and never
        beyond `max_age`.
        """
        return self._claim(CLAIM_DUE, min_age=min_age, max_age=max_age)

    def _claim(self, statement: str, **values: Any) -> Item | None:
        rows = self.database.run(statement, now=self.now(), **values)
        return Item(**dict(rows[0])) if rows else None

    def seconds_until_due(self) -> float | None:
        """Seconds until claim_due has something; 0 if it has now, None if that is not known."""
        [row] = self.database.run(
            f"""SELECT min(due) AS due, min(due) <= :now AS is_due FROM (
                SELECT min(next_attempt_at) AS due FROM items WHERE {TRIED}
                UNION ALL SELECT min(next_attempt_at) FROM items WHERE status = 'awaiting_proxy')""",  # noqa: S608
            now=self.now(),
        )
        if row["is_due"]:
            return 0.0
        due = seconds_of(row["due"])  # a person may have written something else there
        return due - self._clock() if due and due > self._clock() else None

    def disbelieve_clock(self, retry_delay: float, max_delay: float, max_age: float) -> None:
        """Make due what is due later than any delay of ours: the clock ran ahead when that was written.

        :param max_delay: the longest that an item waits for its next attempt
        :param max_age: the longest that one waits to be asked about
        """
        self.database.run(
            f"""UPDATE items SET next_attempt_at = :soon, ready_at = min(ready_at, :now)
            WHERE {TRIED} AND next_attempt_at > :latest""",  # noqa: S608
            now=self.now(),
            soon=self.now(retry_delay),
            latest=self.now(max_delay),
        )
        self.database.run(
            """UPDATE items SET next_attempt_at = :now, created_at = min(created_at, :now)
            WHERE status = 'awaiting_proxy' AND next_attempt_at > :latest""",
            now=self.now(),
            latest=self.now(max_age),
        )

    def mark_submitted(self, object_id: str, job_id: str | None) -> None:
        """iconik has the job."""
        self._end_attempt(
            "status = 'submitted', submitted_at = :now, job_id = :job_id, in_doubt = 0, error = NULL",
            object_id,
            job_id=job_id,
        )

    def mark_skipped(self, object_id: str, reason: str) -> None:
        """The asset is not to be analyzed."""
        self._end_attempt("status = 'skipped', error = :reason", object_id, reason=reason)

    def mark_failed(self, object_id: str, error: str) -> None:
        """The item needs a person."""
        self._end_attempt("status = 'failed', error = :error", object_id, error=error)

    def postpone(
        self, object_id: str, delay: float, error: str, *, in_doubt: bool = False, counts: bool = True
    ) -> None:
        """Another attempt is due in `delay` seconds.

        :param in_doubt: iconik may have taken a POST that it did not answer
        :param counts: whether this attempt makes the wait after the next one longer
        """
        self._end_attempt(
            """status = 'ready', next_attempt_at = :next, error = :error, in_doubt = max(in_doubt, :in_doubt),
                attempts = max(0, attempts - :discount)""",
            object_id,
            next=self.now(delay),
            error=error,
            in_doubt=int(in_doubt),
            discount=int(not counts),
        )

    def _end_attempt(self, outcome: str, object_id: str, **values: Any) -> None:
        self.database.run(
            f"""UPDATE items SET {outcome}, last_attempt_at = :now
            WHERE object_id = :object_id AND status = 'submitting'""",  # noqa: S608
            object_id=object_id,
            now=self.now(),
            **values,
        )

    def postpone_question(self, object_id: str, delay: float, max_age: float) -> None:
        """Ask for the item's proxy again in `delay` seconds, unless it is older than `max_age` by now."""
        self.database.run(
            """UPDATE items SET next_attempt_at = :next
            WHERE object_id = :object_id AND status = 'awaiting_proxy' AND created_at > :oldest""",
            object_id=object_id,
            next=self.now(delay),
            oldest=self.now(-max_age),
        )

    # What must be remembered, and what is asked.

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

        If the last write failed, this first tries one: a disk that is full can be read all the same.
        """
        if self.database.error:
            self.set_state("written_at", self.now())
        [row] = self.database.run(
            f"""SELECT (SELECT count(*) FROM items WHERE status = 'ready') AS ready,
                (SELECT count(*) FROM items WHERE status = 'submitting') AS submitting,
                (SELECT count(*) FROM items WHERE status = 'failed') AS failed,
                (SELECT min(due) FROM (SELECT min(next_attempt_at) AS due FROM items WHERE {NEW}
                    UNION ALL SELECT min(next_attempt_at) FROM items WHERE {TRIED})
                    WHERE due <= :now) AS oldest_due_at""",  # noqa: S608
            now=self.now(),
        )
        return dict(row)

    def now(self, delay: float = 0) -> str:
        """The time, or that in `delay` seconds, as text."""
        return utc_text(self._clock() + delay)


SET_STATE = "INSERT INTO state VALUES (:key, :value) ON CONFLICT (key) DO UPDATE SET value = :value"

ADD_ASSET = """INSERT INTO items (object_id, title, status, created_at, next_attempt_at)
VALUES (:object_id, :title, 'awaiting_proxy', :now, :due)
ON CONFLICT (object_id) DO UPDATE
    SET status = 'ready', title = :title, created_at = :now, ready_at = :now, next_attempt_at = :now
    WHERE status = 'awaiting_create' RETURNING status"""

_CLAIM = """UPDATE items SET status = 'submitting', attempts = attempts + 1, last_attempt_at = :now,
    next_attempt_at = NULL
WHERE object_id = (SELECT object_id FROM items WHERE {new} ORDER BY next_attempt_at {order}, created_at {order} LIMIT 1)
{returning}"""
_RETURNING = "RETURNING object_id, status, attempts, in_doubt, coalesce(seconds_between(ready_at, :now), 0) AS age"
CLAIM_NEW = _CLAIM.format(new=NEW, order="", returning=_RETURNING)
CLAIM_NEWEST = _CLAIM.format(new=NEW, order="DESC", returning=_RETURNING)

CLAIM_DUE = f"""UPDATE items SET
    next_attempt_at = CASE WHEN status = 'awaiting_proxy' AND 2 * seconds_between(created_at, :now) <= :max_age
        THEN later(:now, max(:min_age, seconds_between(created_at, :now))) END,
    created_at = min(created_at, :now), attempts = attempts + (status = 'ready'),
    last_attempt_at = CASE status WHEN 'ready' THEN :now END,
    status = CASE status WHEN 'ready' THEN 'submitting' ELSE status END
WHERE object_id = (
    SELECT object_id FROM (
        SELECT * FROM (SELECT object_id, next_attempt_at FROM items
            WHERE {TRIED} AND next_attempt_at <= :now
            ORDER BY next_attempt_at, created_at LIMIT 1)
        UNION ALL
        SELECT * FROM (SELECT object_id, next_attempt_at FROM items
            WHERE status = 'awaiting_proxy' AND next_attempt_at <= :now
            ORDER BY next_attempt_at, created_at LIMIT 1))
    ORDER BY next_attempt_at LIMIT 1)
{_RETURNING}"""  # noqa: S608
