"""What people did lately, for `status` and the page: who let more jobs through, or skipped an asset, and when."""

import getpass
import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass

from store import SET_STATE, Store
from system.database import StoreRefused, StoreUnavailable
from system.text import format_local, one_line

HISTORY = "history"  # the key in items.db's state: a JSON list
MAX_KEPT = 50


@dataclass(frozen=True)
class HistoryEntry:
    """Something that a person did.

    :ivar at: when, as UTC text
    :ivar what: the command, and what became of it
    """

    at: str
    by: str
    what: str

    def describe(self) -> str:
        """The entry, as a line."""
        return f"{format_local(self.at)}: {self.by}: {self.what}"


def add_to_history(store: Store, by: str, what: str) -> None:
    """Note what a person did, if that can be written: it is done in any case."""
    entry = HistoryEntry(store.now(), one_line(by, 80), one_line(what))
    with suppress(StoreUnavailable, StoreRefused), store.database.transaction() as db:
        row = db.execute("SELECT value FROM state WHERE key = :key", {"key": HISTORY}).fetchone()
        kept = [*_read(row["value"] if row else ""), entry][-MAX_KEPT:]
        db.execute(SET_STATE, {"key": HISTORY, "value": json.dumps([asdict(one) for one in kept])})


def latest_history(store: Store, count: int) -> list[HistoryEntry]:
    """The latest of what people did, the newest last."""
    return _read(store.state(HISTORY) or "")[-count:]


def person() -> str:
    """Who runs this command, before sudo made that the service's user."""
    with suppress(KeyError, OSError):
        return os.environ.get("SUDO_USER") or getpass.getuser()
    return f"user {os.getuid()}"  # who has no name, as in a container


def _read(text: str) -> list[HistoryEntry]:
    try:
        entries = [HistoryEntry(**one) for one in json.loads(text)]
        return [entry for entry in entries if all(isinstance(part, str) for part in (entry.at, entry.by, entry.what))]
    except (ValueError, TypeError, RecursionError):  # empty, or written by hand
        return []
