"""Whether more jobs may be started today. iconik bills each of them, and has no limit of its own."""

import json
import logging
from dataclasses import dataclass
from threading import Lock

from store import ALLOWED, PAUSED, Store
from system.text import command, pluralize

log = logging.getLogger("iconik_listener")

NEARLY = 0.8  # the share of the limit from which on it is worth a note


@dataclass(frozen=True)
class Pause:
    """A person stopped the starting of jobs.

    :ivar since: UTC text
    :ivar by: who did it
    """

    since: str
    by: str
    reason: str = ""


@dataclass(frozen=True)
class Limit:
    """The limit, as it is now.

    :ivar started: how many jobs were started today, possibly started ones included
    :ivar max_per_day: 0 for no limit; what a person has allowed on top of it today is `allowed`
    :ivar held: how many items wait for tomorrow, or for the end of the pause
    """

    day: str
    started: int
    max_per_day: int
    allowed: int
    held: int
    pause: Pause | None

    @property
    def total(self) -> int:
        """How many jobs may be started today."""
        return self.max_per_day + self.allowed

    @property
    def is_reached(self) -> bool:
        """Whether no more jobs are started today."""
        return bool(self.max_per_day) and self.started >= self.total

    @property
    def is_near(self) -> bool:
        """Whether most of the limit is used up."""
        return bool(self.max_per_day) and self.started >= NEARLY * self.total

    def describe(self) -> str:
        """Why jobs are held, as a sentence; empty if none is."""
        if self.pause:
            why = f" ({self.pause.reason})" if self.pause.reason else ""
            return f"{self.pause.by} paused the starting of jobs at {self.pause.since}{why}: {command('resume')}"
        if self.is_reached:
            held = f"{pluralize(self.held, 'item')} held until 00:00 UTC"
            started = f"{pluralize(self.started, 'job')} started today, as many as max_per_day allows"
            return f"{started}: {held}. To let more through now: {command('allow', '100')}"
        return ""


class Limits:
    """Reads and changes the limit in items.db. Raises StoreUnavailable like Store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = Lock()
        self._logged = ""

    def now(self) -> Limit:
        """The limit, as it is now."""
        health = self._store.health()
        day = self._store.today()
        return Limit(
            day=day,
            started=health["jobs_today"],
            max_per_day=health["max_per_day"],
            allowed=self._allowed_on(day),
            held=health["held"],
            pause=self.pause_state(),
        )

    def _allowed_on(self, day: str) -> int:
        """How many more jobs a person allowed on that day, as the claims read it, whatever was written by hand."""
        [row] = self._store.database.run(
            "SELECT CAST(total(value) AS INTEGER) AS allowed FROM state WHERE key = :key", key=ALLOWED + day
        )
        return int(row["allowed"])

    def pause_state(self) -> Pause | None:
        """Who paused the starting of jobs, and since when; None if nobody did."""
        text = self._store.state(PAUSED)
        if not text:
            return None
        try:
            return Pause(**json.loads(text))
        except (ValueError, TypeError):  # written by hand
            return Pause(self._store.now(), "somebody")

    def allow(self, count: int) -> int:
        """Let `count` more jobs be started today. Returns how many that are in all today."""
        rows = self._store.database.run(
            """INSERT INTO state VALUES (:key, :count)
            ON CONFLICT (key) DO UPDATE SET value = CAST(value AS INTEGER) + :count RETURNING value""",
            key=ALLOWED + self._store.today(),
            count=count,
        )
        return int(rows[0]["value"])

    def pause(self, by: str, reason: str) -> None:
        """Start no more jobs until `resume`. Requests that were sent go on."""
        since = self._store.now()
        self._store.set_state(PAUSED, json.dumps({"since": since, "by": by, "reason": reason}))

    def resume(self) -> None:
        """Start jobs again."""
        self._store.set_state(PAUSED, "")

    def log_changes(self) -> None:
        """Log once when the limit is reached, when a person pauses, and when it goes on."""
        limit = self.now()
        state = "paused" if limit.pause else f"reached {limit.day}" if limit.is_reached and limit.held else ""
        with self._lock:
            if state == self._logged:
                return
            self._logged = state
        log.warning("%s", limit.describe() if state else "Jobs are started again")
