"""The SQLite file: one lock per process, one shared connection, durable commits."""

import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol
from unicodedata import normalize

from system.database_files import (
    ListenerLock,
    StoreError,
    beside,
    check_place,
    create,
    damaged,
    explain,
    explain_missing,
    listener_runs,
    lock_path,
    network_file_system,
    no_checkpoint,
)
from system.errors import ListenerError
from system.text import FIRST_SECOND, LAST_SECOND, format_utc, one_line, parse_time

__all__ = [
    "Database",
    "StoreError",
    "StoreRefused",
    "StoreUnavailable",
    "explain",
    "listener_runs",
    "lock_path",
    "network_file_system",
]

BUSY_SECONDS = 5.0  # a person may hold the database in sqlite3; then iconik gets a 503
MAX_WAL_BYTES = 16 * 1024 * 1024  # to which the file is cut back once nobody reads in it any more
MIN_SQLITE = (3, 35)
CHECKPOINT_WRITES = 200  # a fifth of the pages, or so, at which SQLite itself moves them into items.db
MARK = "checkpoint"  # the key in `state`, which every Schema has, of what changes at each checkpoint of ours
SET_MARK = "INSERT INTO state (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
OVERWRITTEN = "was overwritten under the listener: stop it, restore the backup again, start it"
SETTLE_SECONDS = 1.0  # in which a checkpoint of another program ends

Row = sqlite3.Row
Progress = Callable[[str], None]


class StoreUnavailable(ListenerError):
    """The database could not be read or written just now. Either nothing was written, or the write may not survive."""


class StoreRefused(ListenerError):
    """A constraint, or a trigger that a person added, does not let a row change. Nothing was written."""


class Schema(Protocol):
    """What brings a file to the schema that its user needs: the module migrations is one."""

    def inspect(self, path: Path) -> None:
        """Look at a file before it is opened for writing. Raises what `prepare` raises."""

    def prepare(self, connection: sqlite3.Connection, path: Path, *, may_write: bool, progress: Progress) -> None:
        """Bring an open file to the schema. Raises a ListenerError, OSError or sqlite3.Error if that is impossible."""


class Database:
    """One connection to the file: WAL, and each commit is on the disk before it returns.

    The methods raise StoreUnavailable if the file cannot be read or written within 5 s, and StoreRefused if a
    constraint or a trigger forbids what they write. They look at the files before each statement, so that nothing is
    written into files that are not in their places any more, and after each write, so that it is known to be there.

    :ivar max_wait: how many seconds each of them waits for a database that somebody else holds
    """

    def __init__(self, path: Path, schema: Schema, *, listener: bool, progress: Progress) -> None:
        """
        :param schema: what creates the tables, or brings an older file to them
        :param listener: be the one listener on this file: create it or migrate it if need be, and keep all others out
        :param progress: called with a one-line message during slow operations
        :raises StoreError: the file is not ours or is damaged, or another listener runs on it; it was left as it was
        """
        self.path = Path(os.path.realpath(path))  # SQLite's own files are beside the target of a link, so ours are, too
        self.error: str | None = None  # what went wrong, until something could be written again
        self.max_wait = BUSY_SECONDS
        self._busy_timeout = BUSY_SECONDS
        self._mutex = threading.Lock()
        self._lock: ListenerLock | None = None
        self._marks: list[str | None] = []  # those that may be in items.db by now, the oldest first
        self._writes = 0
        self._seen = (0, 0)  # size and time of items.db when its mark was looked at
        self._is_overwritten = False
        if sqlite3.sqlite_version_info < MIN_SQLITE:
            raise StoreError(f"SQLite is {sqlite3.sqlite_version} here: 3.35 or newer is needed")
        try:
            if not listener and not self.path.exists():
                raise StoreError(explain_missing(self.path))
            check_place(self.path)
            schema.inspect(self.path)  # before there is a lock file, which does not belong beside a foreign file
            if listener:
                self._lock = ListenerLock(self.path)
            self._connection = self._open(schema, progress)
        except (OSError, sqlite3.Error) as error:
            self._unlock()
            raise StoreError(explain(self.path, error)) from None
        except ListenerError:
            self._unlock()
            raise

    def _open(self, schema: Schema, progress: Progress) -> sqlite3.Connection:
        is_new = not self.path.exists()
        if is_new:
            create(self.path)
        reason_to_check = None if is_new else self._reason_to_check()
        db = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            db.row_factory = sqlite3.Row
            db.text_factory = _text
            db.create_function("later", 2, _later, deterministic=True)
            db.create_function("seconds_between", 2, _seconds_between, deterministic=True)
            db.create_function("folded", 1, _folded, deterministic=True)
            if reason_to_check:
                progress(f"{reason_to_check}: checking that it is whole")
                _check_whole(db, self.path)
            schema.prepare(db, self.path, may_write=self._lock is not None, progress=progress)
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.execute(f"PRAGMA journal_size_limit = {MAX_WAL_BYTES}")
            db.execute("UPDATE state SET value = value WHERE key = ''")  # changes nothing, but makes the -wal file
            self._watch(db)
        except BaseException:
            db.close()
            raise
        return db

    def _reason_to_check(self) -> str | None:
        if self._lock is None or self.path.stat().st_size == 0:
            return None
        if self._lock.noted() == self._lock.text_of("overwritten"):
            raise StoreError(f"{self.path} {OVERWRITTEN}")
        wal = beside(self.path, "-wal")
        if (wal.exists() and wal.stat().st_size > 0) or self._lock.noted().startswith("in service"):
            return "The last listener on this database was cut off"
        if self._lock.noted() not in ("", self._lock.text_of("closed")):  # version 1.1 noted nothing
            return f"{self.path} is not as the last listener left it"
        return None

    def _watch(self, db: sqlite3.Connection) -> None:
        """From now on the files are in service. Their identities are noted, and items.db gets its first mark."""
        self._names = [f"{self.path}{ending}" for ending in ("", "-wal", "-shm")]
        if self._lock:
            self._names.append(f"{self.path}.lock")
            self._lock.hold_wal()
        self._identities = [(stat.st_dev, stat.st_ino) for stat in map(os.stat, self._names)]
        main = self.path.stat()
        self._seen = (main.st_size, main.st_ctime_ns)
        if self._lock:
            self._marks = [self._mark_in_file()]
            if db.total_changes or self._lock.noted() != self._lock.text_of("closed"):
                self._checkpoint(db, "TRUNCATE")
            self._lock.note("in service")

    def close(self) -> None:
        """Close the connection, and let another listener have the file."""
        with self._mutex:
            if is_in_place := self._is_in_place():
                if self._lock and self._writes:
                    self._checkpoint_if_possible(self._connection)
                self._connection.close()
            else:
                with no_checkpoint(self.path):  # by what this connection knows of -wal, which others may have changed
                    self._connection.close()
            with suppress(OSError):
                if self._lock and self._is_overwritten:
                    self._lock.note("overwritten")
                elif self._lock and is_in_place and not beside(self.path, "-wal").exists():
                    self._lock.note("closed")
        self._unlock()

    def _is_in_place(self) -> bool:
        try:
            self._check_files()
        except OSError:
            return False
        return True

    @contextmanager
    def waiting_up_to(self, seconds: float) -> Iterator[None]:
        """Meanwhile, every thread waits that long, and not 5 s, for a database that somebody else holds: at the end."""
        self.max_wait = seconds
        try:
            yield
        finally:
            self.max_wait = BUSY_SECONDS

    def _unlock(self) -> None:
        if self._lock:
            self._lock.release()
            self._lock = None

    def run(self, statement: str, **values: Any) -> list[Row]:
        """Execute one statement. When it returns, what it wrote is on the disk."""
        with self._exclusively() as db:
            return db.execute(statement, values).fetchall()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Read several statements' worth of one state of the file. It waits for nobody who writes."""
        with self._exclusively() as db:
            db.execute("BEGIN")
            try:
                yield db
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")

    @contextmanager
    def transaction(self, wait: float | None = None) -> Iterator[sqlite3.Connection]:
        """Write several statements' worth, or nothing of it.

        :param wait: the seconds to wait, instead of 5, for a database that somebody else holds
        """
        with self._exclusively(wait) as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")

    @contextmanager
    def _exclusively(self, wait: float | None = None) -> Iterator[sqlite3.Connection]:
        """The connection, for one thread at a time."""
        seconds = self.max_wait if wait is None else wait
        if not self._mutex.acquire(timeout=seconds):
            raise StoreUnavailable(f"{self.path}: database is locked")
        db = self._connection
        try:
            self._set_busy_timeout(db, seconds)
            self._check_files()  # first: what is written into files that are not in their places harms the new ones
            changes = db.total_changes
            yield db
            if db.total_changes != changes:
                self._check_files()  # again: what went into a file that was deleted meanwhile must not be answered 200
                self.error = None
                self._count_write(db)
        except sqlite3.IntegrityError as error:
            raise StoreRefused(f"the database refuses to change this row: {one_line(str(error))}") from None
        except (sqlite3.Error, OSError) as error:
            self.error = explain(self.path, error)
            raise StoreUnavailable(self.error) from None
        finally:
            self._mutex.release()

    def _set_busy_timeout(self, db: sqlite3.Connection, seconds: float) -> None:
        if seconds != self._busy_timeout:  # the PRAGMA costs as much as a short statement
            db.execute(f"PRAGMA busy_timeout = {round(seconds * 1000)}")
            self._busy_timeout = seconds

    def _check_files(self) -> None:
        """What is written into a file that has been deleted is lost, and SQLite does not notice.

        Nobody else replaces -wal or -shm while this connection is open: SQLite deletes them with the last one.
        """
        for name, identity in zip(self._names, self._identities):
            try:
                stat = os.stat(name)  # noqa: PTH116 it is asked at each webhook
            except FileNotFoundError:
                stat = None
            if stat is None or (stat.st_dev, stat.st_ino) != identity:
                raise OSError(None, _gone(name))
            if name == self._names[0] and self._marks and (stat.st_size, stat.st_ctime_ns) != self._seen:
                self._check_mark(stat)

    # In the WAL mode, items.db itself changes only when pages are moved into it from the -wal file (a checkpoint), by
    # this connection or another program's. What else changes it, such as `cp` of a backup over it, destroys it, and
    # SQLite does not notice. So before each checkpoint of ours a new mark is written, and whenever items.db has changed
    # it must have a mark that it may have by now: not an older one, as a backup has.

    def _count_write(self, db: sqlite3.Connection) -> None:
        self._writes += 1
        if self._lock and self._writes >= CHECKPOINT_WRITES:
            self._checkpoint_if_possible(db)

    def _checkpoint_if_possible(self, db: sqlite3.Connection) -> None:
        with suppress(sqlite3.Error):  # what was to be written is, and the next checkpoint will do
            self._set_busy_timeout(db, 0)
            self._checkpoint(db)

    def _checkpoint(self, db: sqlite3.Connection, mode: str = "PASSIVE") -> None:
        self._writes = 0
        mark = secrets.token_hex(8)
        self._marks.append(mark)
        db.execute(SET_MARK, (MARK, mark))
        db.execute(f"PRAGMA wal_checkpoint({mode})")
        self._check_mark(self.path.stat())
        self._writes = 0

    def _check_mark(self, stat: os.stat_result) -> None:
        deadline = time.monotonic() + SETTLE_SECONDS
        while not self._is_overwritten:
            mark = self._mark_in_file()
            if mark in self._marks:
                del self._marks[: self._marks.index(mark)]
                self._seen = (stat.st_size, stat.st_ctime_ns)
                self._writes = CHECKPOINT_WRITES  # a checkpoint of another program: ours is to follow soon
                return
            if time.monotonic() > deadline:
                self._is_overwritten = True
            time.sleep(SETTLE_SECONDS / 20)
        raise OSError(None, OVERWRITTEN)

    def _mark_in_file(self) -> str | None:
        """The mark that items.db itself has, without the -wal file. None if it cannot be read."""
        try:
            # Through SQLite, because only SQLite can close the file without losing this process's locks on it.
            with closing(sqlite3.connect(f"{self.path.as_uri()}?mode=ro&immutable=1", uri=True)) as db:
                # A checkpoint leaves out pages that a reader holds up. Then the first page may count pages that are
                # only in the -wal file, and SQLite refuses such a file, but not with this.
                db.execute("PRAGMA writable_schema = ON")
                [[mark]] = db.execute("SELECT value FROM state WHERE key = ?", (MARK,)).fetchall()
                return str(mark)
        except (sqlite3.Error, ValueError):
            return None


def _gone(name: str) -> str:
    if name.endswith(("-shm", ".lock")):
        return f"{Path(name).name} was deleted or replaced under the listener: restart it"
    of_wal = "its -wal file " if name.endswith("-wal") else ""
    return f"{of_wal}was deleted or replaced under the listener: stop it, put the file back, start it"


def _text(raw: bytes) -> str:
    """Text from the file. A person may have written there what is not UTF-8."""
    return raw.decode("utf-8", "replace")


def _later(time: object, seconds: object) -> str | None:
    """SQL: that many seconds after a time, as text; NULL if one of them is none."""
    start = _seconds_of(time)
    if start is None or not isinstance(seconds, (int, float)):
        return None
    is_possible = FIRST_SECOND <= start + seconds <= LAST_SECOND
    return format_utc(start + seconds) if is_possible else None


def _folded(text: Any) -> str:
    """Text as it is compared where case does not matter, nor how a letter with an accent is written."""
    return normalize("NFC", normalize("NFC", str(text)).casefold())


def _seconds_between(start: object, end: object) -> float | None:
    """SQL: the seconds from one time to another; NULL if one of them is none, like what a person may have written."""
    first, last = _seconds_of(start), _seconds_of(end)
    return None if first is None or last is None else last - first


def _seconds_of(time: object) -> float | None:
    """SQLite cannot hand on text that is not UTF-8, so columns have to be cast: `later(CAST(due AS BLOB), 5)`."""
    return parse_time(_text(time) if isinstance(time, bytes) else time)


def _check_whole(db: sqlite3.Connection, path: Path) -> None:
    """A restore beside an old -wal file, for one, leaves a file that is damaged and can be opened all the same.

    quick_check misses the damage in one such file out of four. For a million items this takes about 3 s, quick_check 2.
    """
    try:
        [[result]] = db.execute("PRAGMA integrity_check(1)").fetchall()
    except sqlite3.DatabaseError as error:
        result = str(error)
    if result != "ok":
        raise StoreError(damaged(path, result))
