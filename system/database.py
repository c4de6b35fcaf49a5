"""The SQLite file: kept by one listener, on one connection that any thread may use; what goes wrong is noticed."""

import fcntl
import math
import os
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from pwd import getpwuid
from shlex import quote
from typing import Any, Protocol, TextIO

from system.errors import ListenerError
from system.text import format_utc, one_line, parse_time

BUSY_SECONDS = 5.0  # a person may hold the database in sqlite3; then iconik gets a 503
LOCK_SECONDS = 1.0  # listener_runs(), in another process, holds the lock for an instant
MAX_WAL_BYTES = 16 * 1024 * 1024  # to which the file is cut back once nobody reads in it any more
MIN_SQLITE = (3, 35)

Row = sqlite3.Row
Progress = Callable[[str], None]


class StoreError(ListenerError):
    """The database cannot be used as it is."""


class StoreUnavailable(ListenerError):
    """The database could not be read or written just now. Nothing was changed, or it is not certain to last."""


class StoreRefused(ListenerError):
    """A constraint or a trigger that a person added does not let a row change. Nothing was written."""


class Schema(Protocol):
    """What brings a file to the schema that its user needs: the module migrations is one."""

    def inspect(self, path: Path) -> None:
        """Look at a file before it is opened for writing. Raises what `prepare` raises."""

    def prepare(self, connection: sqlite3.Connection, path: Path, *, may_write: bool, progress: Progress) -> None:
        """Bring an open file to the schema. Raises a ListenerError, OSError or sqlite3.Error if that is impossible."""


class Database:
    """One connection to the file: WAL, and each commit is on the disk before it returns.

    The methods raise StoreUnavailable if the file cannot be read or written within 5 s.
    """

    def __init__(self, path: Path, schema: Schema, *, listener: bool, progress: Progress) -> None:
        """
        :param schema: what creates the tables, or brings an older file to them
        :param listener: be the one listener on this file: create it or migrate it if need be, and keep all others out
        :param progress: is told in a line what takes long
        :raises StoreError: the file is not ours or is damaged, or another listener runs on it; it was left as it was
        """
        self.path, self._file_name, self._schema = path, str(path), schema
        self.error: str | None = None  # what went wrong, until something could be written again
        self._max_wait = BUSY_SECONDS
        self._mutex = threading.Lock()
        self._busy_milliseconds = 0
        self._listener_lock: TextIO | None = None
        if sqlite3.sqlite_version_info < MIN_SQLITE:
            raise StoreError(f"SQLite is {sqlite3.sqlite_version} here: 3.35 or newer is needed")
        try:
            if listener:
                _check_folder(path)
                self._listener_lock = _lock(path)
            elif not path.exists():
                raise StoreError(f"{path} does not exist: {_remedy_if_missing(path)}")
            self._connection = self._open(listener, progress)
            self._identity = self._files()
        except (OSError, sqlite3.Error) as error:
            self._unlock()
            raise StoreError(explain(path, error)) from None
        except ListenerError:
            self._unlock()
            raise

    def _open(self, listener: bool, progress: Progress) -> sqlite3.Connection:
        self._schema.inspect(self.path)
        wal = self.path.with_name(self.path.name + "-wal")
        was_cut_off = listener and wal.exists() and wal.stat().st_size > 0
        is_new = not self.path.exists()
        db = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            if is_new:
                _give_to_folder_owner(self.path)
            db.row_factory = sqlite3.Row
            db.create_function("later", 2, _later, deterministic=True)
            db.create_function("seconds_between", 2, _seconds_between, deterministic=True)
            self._schema.prepare(db, self.path, may_write=listener, progress=progress)
            if was_cut_off:
                progress("The last listener on this database was cut off: checking that it is whole")
                _check_whole(db, self.path)
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.execute(f"PRAGMA journal_size_limit = {MAX_WAL_BYTES}")
            db.execute("UPDATE state SET value = value WHERE key = ''")  # changes nothing, but makes the -wal file
        except BaseException:
            db.close()
            raise
        return db

    def close(self) -> None:
        """Close the connection, and let another listener have the file."""
        with self._mutex:
            self._connection.close()
        self._unlock()

    @contextmanager
    def waiting_up_to(self, seconds: float) -> Iterator[None]:
        """Meanwhile, wait that long, and not 5 s, for a database that somebody else holds."""
        self._max_wait = seconds
        try:
            yield
        finally:
            self._max_wait = BUSY_SECONDS

    def _unlock(self) -> None:
        if self._listener_lock:
            self._listener_lock.close()

    def run(self, statement: str, **values: Any) -> list[Row]:
        """Execute one statement. When it returns, what it wrote is on the disk."""
        with self._exclusively() as db:
            return db.execute(statement, values).fetchall()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Write several statements' worth, or nothing of it."""
        with self._exclusively() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")

    @contextmanager
    def _exclusively(self) -> Iterator[sqlite3.Connection]:
        """The connection, for one thread at a time. The waits for that and for other programs are one wait."""
        deadline = time.monotonic() + self._max_wait
        if not self._mutex.acquire(timeout=self._max_wait):
            raise StoreUnavailable(f"{self.path}: database is locked")
        db = self._connection
        try:
            changes = db.total_changes
            self._set_busy_timeout(deadline - time.monotonic())
            yield db
            self._check_files()
            if db.total_changes != changes:
                self.error = None
        except sqlite3.IntegrityError as error:
            raise StoreRefused(f"{self.path} does not let this row change: {one_line(str(error))}") from None
        except (sqlite3.Error, OSError) as error:
            self.error = explain(self.path, error)
            raise StoreUnavailable(self.error) from None
        finally:
            self._mutex.release()

    def _set_busy_timeout(self, seconds: float) -> None:
        """In steps, because it costs as much as a short statement and is nearly always the same."""
        milliseconds = max(0, math.ceil(seconds * 4) * 250)
        if milliseconds != self._busy_milliseconds:
            self._connection.execute(f"PRAGMA busy_timeout = {milliseconds}")
            self._busy_milliseconds = milliseconds

    def _files(self) -> list[tuple[int, int]]:
        """What tells the files that are open here from others of the same names."""
        stats = [os.stat(self._file_name), os.stat(f"{self._file_name}-wal")]  # noqa: PTH116 it is asked at each webhook
        return [(stat.st_dev, stat.st_ino) for stat in stats]

    def _check_files(self) -> None:
        """What is written into a file that has been deleted is lost, and SQLite does not notice."""
        with suppress(FileNotFoundError):
            if self._files() == self._identity:
                return
        raise OSError(None, "was deleted or replaced under the listener: stop it, put the file back, start it")


def _later(time: object, seconds: float | None) -> str | None:
    """SQL: that many seconds after a time, as text; NULL if one of them is none."""
    start = parse_time(time)
    try:
        return None if start is None or seconds is None else format_utc(start + seconds)
    except (ValueError, OverflowError):  # beyond the year 9999
        return None


def _seconds_between(start: object, end: object) -> float | None:
    """SQL: the seconds from one time to another; NULL if one of them is none, like what a person may have written."""
    first, last = parse_time(start), parse_time(end)
    return None if first is None or last is None else last - first


def listener_runs(path: Path) -> bool:
    """Whether a listener is running on this database. Changes nothing, and needs no more than to read the lock.

    :raises StoreError: the lock cannot be read
    """
    try:
        with lock_path(path).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except OSError as error:
        raise StoreError(explain(path, error)) from None
    return False


def lock_path(path: Path) -> Path:
    """The file that says, by being locked, that a listener runs on the database `path`."""
    return path.with_name(path.name + ".lock")


def _lock(path: Path) -> TextIO:
    """Take an exclusive lock that ends with the process, however that ends."""
    is_new = not lock_path(path).exists()
    lock = lock_path(path).open("a", encoding="utf-8")
    if is_new:
        _give_to_folder_owner(lock_path(path))
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            if time.monotonic() > deadline:
                lock.close()
                raise StoreError(f"{path}: another listener is running on it") from None
            time.sleep(LOCK_SECONDS / 20)


def _give_to_folder_owner(path: Path) -> None:
    """A file that root creates must not keep out the user whom the service runs as later."""
    if os.geteuid() == 0:
        folder = path.parent.stat()
        path.touch()
        os.chown(path, folder.st_uid, folder.st_gid)


def _check_folder(path: Path) -> None:
    if not path.parent.is_dir():
        raise StoreError(f"{path}: the folder {path.parent} does not exist: create it, or change [listener] database")


def _remedy_if_missing(path: Path) -> str:
    if listener_runs(path):
        return "it was deleted under the running listener: stop that, put the file back, and start it"
    return "the listener creates it at its first start"


def _user_name(user_id: int) -> str:
    try:
        return getpwuid(user_id).pw_name
    except KeyError:
        return str(user_id)


def _check_whole(db: sqlite3.Connection, path: Path) -> None:
    """A restore beside an old -wal file, for one, leaves a file that is damaged and can be opened all the same.

    Of such files, quick_check takes one in four for whole. For a million items this takes about 3 s, quick_check 2.
    """
    try:
        [[result]] = db.execute("PRAGMA integrity_check(1)").fetchall()
    except sqlite3.DatabaseError as error:
        result = str(error)
    if result != "ok":
        raise StoreError(_damaged(path, result))


def _damaged(path: Path, reason: str) -> str:
    return f"{path} is damaged ({one_line(reason)}): restore a backup, as the README says"


def explain(path: Path, error: OSError | sqlite3.Error) -> str:
    """One line on what is wrong with the database `path`: who owns what, where that is the cause."""
    reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
    for file in (path.parent, path, lock_path(path), *(path.with_name(path.name + end) for end in ("-wal", "-shm"))):
        with suppress(OSError):
            if os.statvfs(file).f_flag & os.ST_RDONLY:
                return f"{file} is on a read-only file system ({reason})"
            if not os.access(file, os.R_OK | os.W_OK):
                user, owner = _user_name(os.geteuid()), _user_name(file.stat().st_uid)
                remedy = f"chmod u+rw {quote(str(file))}" if user == owner else f"chown {user} {quote(str(file))}"
                return f"{file} belongs to {owner}, and {user} cannot write it: sudo {remedy} ({reason})"
    if re.search("malformed|not a database", reason):
        return _damaged(path, reason)
    return f"{path}: {one_line(reason)}"
