"""Whether more jobs may be started today. iconik bills each of them, and has no limit of its own."""

import json
import logging
import threading
from dataclasses import dataclass
from typing import Any

from store import ALLOWED, DAY_SECONDS, PAUSED, Store
from system.text import command, format_local, format_utc, one_line, parse_time, pluralize

log = logging.getLogger("iconik_listener")

NEARLY = 0.8  # the share of the limit from which on it is worth a note


@dataclass(frozen=True)
class Pause:
    """A person stopped the starting of jobs.

    :ivar since: UTC text; None if that is not known
    :ivar by: who did it
    """

    since: str | None
    by: str
    reason: str = ""


@dataclass(frozen=True)
class Limit:
    """The limit, as it is now.

    :ivar day: today, by UTC
    :ivar started: how many jobs were started today, possibly started ones included
    :ivar max_per_day: 0 for no limit; what a person has allowed on top of it today is `allowed`
    :ivar held: how many items wait for tomorrow, or for the end of the pause
    :ivar ready: how many items are ready to be started, what is held included
    """

    day: str
    started: int
    max_per_day: int
    allowed: int
    held: int
    ready: int
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

    @property
    def percent(self) -> int:
        """How much of the limit is used up."""
        return 100 * self.started // max(1, self.total)

    @property
    def goes_on_at(self) -> str | None:
        """When jobs are started again by themselves, as UTC text; None if they are, or if a person has to resume."""
        if self.pause or not self.is_reached:
            return None
        return format_utc((parse_time(f"{self.day}T00:00:00Z") or 0) + DAY_SECONDS)

    @property
    def reason(self) -> str:
        """Why no more jobs are started, as a sentence without its end; empty if they are."""
        if self.pause:
            since = f" at {format_local(self.pause.since)}" if self.pause.since else ""
            why = f" ({self.pause.reason})" if self.pause.reason else ""
            return f"{self.pause.by} paused the starting of jobs{since}{why}"
        if self.is_reached:
            return f"{pluralize(self.started, 'job')} started today, as many as max_per_day allows"
        return ""

    def describe(self) -> str:
        """Why no more jobs are started, what waits for that, and what to do, as sentences; empty if they are."""
        if self.pause:
            waits = f"{_wait(self.held)} until somebody resumes" if self.held else "Nothing waits so far"
            return f"{self.reason}. {waits}. To start jobs again: {command('resume')}"
        if self.is_reached:
            waits = f"{_wait(self.held)} until 00:00 UTC" if self.held else "What comes now waits until 00:00 UTC"
            return f"{self.reason}. {waits}. To let more through now: {command('allow', '100')}"
        return ""

    def describe_wait(self) -> str:
        """Why an item that is ready is not started, as a sentence; empty if it is."""
        until = "until somebody resumes" if self.pause else "until 00:00 UTC"
        return f"It waits {until}, because {self.reason}." if self.reason else ""

    def for_programs(self) -> dict[str, Any]:
        """The same for programs, without what people wrote: /health shows it to everybody on this machine."""
        return {
            "jobs_today": self.started,
            "max_per_day": self.max_per_day,
            "allowed_today": self.allowed,
            "limit_is_near": self.is_near,
            "limit_is_reached": self.is_reached,
            "held": self.held,
            "goes_on_at": self.goes_on_at,
            "paused_by_person": self.pause is not None,
            "paused_by_person_since": self.pause.since if self.pause else None,
        }


class Limits:
    """Reads and changes the limit in items.db. Raises StoreUnavailable like Store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._logged = ""

    def now(self, health: dict[str, Any] | None = None) -> Limit:
        """The limit, as it is now. `health`: what Store.health() has just said."""
        health = health or self._store.health()
        day = self._store.today()
        return Limit(
            day=day,
            started=health["jobs_today"],
            max_per_day=health["max_per_day"],
            allowed=self._allowed_on(day),
            held=health["held"],
            ready=health["ready"],
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
            pause = Pause(**json.loads(text))
            is_ours = all(isinstance(part, str) for part in (pause.since, pause.by, pause.reason))
        except (ValueError, TypeError):
            is_ours = False
        return pause if is_ours else Pause(None, "somebody")  # it was written by hand

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
        self._store.set_state(PAUSED, json.dumps({"since": since, "by": one_line(by), "reason": one_line(reason)}))

    def resume(self) -> None:
        """Start jobs again."""
        self._store.set_state(PAUSED, "")

    def log_changes(self) -> None:
        """Log once when the limit is reached, when a person pauses, and when it goes on.

        Whoever becomes idle calls this, so what is held is counted only if there is something to log.
        """
        with self._lock:
            state = self._store.held_by()
            if state == self._logged:
                return
            limit = self.now()
            if not state:
                log.warning("Jobs are started again. Ready: %s", pluralize(limit.ready, "item"))
            elif text := limit.describe():
                log.warning("%s", text)
            self._logged = state


def _wait(count: int) -> str:
    return f"{pluralize(count, 'item')} {'waits' if count == 1 else 'wait'}"
