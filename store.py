"""items.db: every statement that touches it. Each transition of an item is one statement."""

import fcntl
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TextIO

SCHEMA = (Path(__file__).parent / "schema.sql").read_text(encoding="utf-8")
UUID_GLOB = "-".join("[0-9a-f]" * length for length in (8, 4, 4, 4, 12))
BUSY_SECONDS = 5.0  # a person may hold the database in sqlite3; then iconik gets a 503


class StoreError(Exception):
    """items.db cannot be used as it is: one line for the operator."""


class StoreUnavailable(Exception):
    """items.db could not be read or written just now; nothing was changed."""


@dataclass(frozen=True)
class Item:
    """An item claimed for one attempt, this one counted in `attempts`."""

    object_id: str
    attempts: int
    server_errors: int


@dataclass(frozen=True)
class Pending:
    """An item that waits for its proxy since `created_at`."""

    object_id: str
    created_at: str


def utc_text(seconds: float) -> str:
    """Seconds since 1970 as `2026-11-23T16:47:00.123Z`."""
    text = datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


class Store:
    """The items, in one SQLite file, on one connection that any thread may use.

    Every method raises StoreUnavailable if the file cannot be read or written within 5 s;
    when one that writes returns, what it wrote is on the disk.
    """

    def __init__(self, path: Path, *, listener: bool = False, clock: Callable[[], float] = time.time) -> None:
        """
        :param path: the SQLite file
        :param listener: be the one listener on this file: make it if need be, and keep all others out
        :param clock: seconds since 1970
        :raises StoreError: no database of ours, or another listener runs on it; it was left as it was
        """
        self._clock = clock
        self._lock = threading.Lock()
        self._listener_lock: TextIO | None = None
        if not listener and not path.exists():
            raise StoreError(f"{path} does not exist: the listener makes it at its first start")
        if sqlite3.sqlite_version_info < (3, 35):
            raise StoreError(f"SQLite is {sqlite3.sqlite_version} here: 3.35 or newer is needed")
        try:
            if listener:
                self._listener_lock = _lock(path)
            self._connection = sqlite3.connect(
                path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
        except (OSError, sqlite3.Error) as error:
            self._unlock()
            raise StoreError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
        try:
            self._connection.row_factory = sqlite3.Row
            self._prepare(path, may_create=listener)
        except sqlite3.Error as error:
            self.close()
            raise StoreError(f"{path}: {error}") from None
        except StoreError:
            self.close()
            raise

    def close(self) -> None:
        with self._lock:
            self._connection.close()
        self._unlock()

    def _unlock(self) -> None:
        if self._listener_lock:
            self._listener_lock.close()

    def _prepare(self, path: Path, *, may_create: bool) -> None:
        """Look before anything is written: a file that is not ours stays as it is."""
        db = self._connection
        version = db.execute("PRAGMA user_version").fetchone()[0]
        tables = [row["name"] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        columns = _columns(db)
        with closing(sqlite3.connect(":memory:")) as expected:
            expected.executescript(SCHEMA)
            ours = (expected.execute("PRAGMA user_version").fetchone()[0], _columns(expected))
        empty = version == 0 and not tables
        articles = version == 0 and tables == ["items"] and columns == ["object_id", "finished"]
        if (version, columns) != ours and not (may_create and (empty or articles)):
            raise StoreError(f"{path} holds no items of this version of the listener; it was left as it is")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        if empty:
            db.executescript(f"BEGIN IMMEDIATE; {SCHEMA} COMMIT;")
        elif articles:
            self._take_over()

    def _take_over(self) -> None:
        """Make the article's table of two columns, with its repeated rows, one of ours.

        An attempt counts as made: its script may have died between the request and the update.
        """
        db = self._connection
        db.executescript(f"BEGIN IMMEDIATE; ALTER TABLE items RENAME TO article; {SCHEMA}")
        db.execute(
            """INSERT INTO items (object_id, status, created_at, attempts, error)
            SELECT lower(object_id) AS id,
                CASE WHEN max(finished = 'True') THEN 'submitted'
                    WHEN lower(object_id) GLOB :uuid THEN 'pending' ELSE 'failed' END,
                :now, 1, CASE WHEN lower(object_id) NOT GLOB :uuid THEN 'object_id is no UUID' END
            FROM article WHERE object_id IS NOT NULL GROUP BY id""",
            {"uuid": UUID_GLOB, "now": self._now()},
        )
        db.execute("DROP TABLE article")
        db.execute("COMMIT")  # not commit by executescript, which would end the transaction first

    # What webhooks do: each returns the item's new status, or "unchanged".

    def created(self, object_id: str, title: str | None, *, maybe_analyzed: bool = False) -> str:
        """`maybe_analyzed`: count an attempt as made, so that iconik is asked before the first of ours."""
        return self._change(
            """INSERT INTO items (object_id, title, status, created_at, attempts)
            VALUES (:object_id, :title, 'pending', :now, :attempts)
            ON CONFLICT (object_id) DO UPDATE SET status = 'ready', title = :title, created_at = :now,
                next_attempt_at = :now, attempts = :attempts
            WHERE status = 'early' RETURNING status""",
            object_id=object_id,
            title=title,
            attempts=int(maybe_analyzed),
        )

    def proxy_closed(self, object_id: str) -> str:
        return self._change(
            """INSERT INTO items (object_id, status, proxy_closed_at) VALUES (:object_id, 'early', :now)
            ON CONFLICT (object_id) DO UPDATE SET status = 'ready', proxy_closed_at = :now,
                next_attempt_at = :now
            WHERE status = 'pending' RETURNING status""",
            object_id=object_id,
        )

    # What the submitter does.

    def recover(self, delay: float) -> int:
        """Make due, `delay` seconds from now, what was under way when the process ended. Returns how many."""
        return len(
            self._run(
                """UPDATE items SET status = 'ready', next_attempt_at = :next_attempt_at,
                    error = coalesce(error, 'the listener ended before iconik answered')
                WHERE status = 'submitting' RETURNING object_id""",
                next_attempt_at=self._now(delay),
            )
        )

    def claim(self) -> Item | None:
        """Take the earliest item that is due, if there is one, for an attempt that starts now."""
        rows = self._run(
            """UPDATE items SET status = 'submitting', attempts = attempts + 1
            WHERE object_id = (SELECT object_id FROM items WHERE status = 'ready'
                AND next_attempt_at <= :now ORDER BY next_attempt_at LIMIT 1)
            RETURNING object_id, attempts, server_errors""",
            now=self._now(),
        )
        return Item(**dict(rows[0])) if rows else None

    def seconds_until_due(self) -> float | None:
        """Seconds until an item is due; less than 0 if one already is, None if none ever will be."""
        [row] = self._run(
            """SELECT (julianday(min(next_attempt_at)) - julianday(:now)) * 86400 AS seconds
            FROM items WHERE status = 'ready'""",
            now=self._now(),
        )
        seconds: float | None = row["seconds"]
        return seconds

    def submitted(self, object_id: str, job_id: str | None) -> None:
        self._run(
            """UPDATE items SET status = 'submitted', submitted_at = :now, job_id = :job_id, error = NULL
            WHERE object_id = :object_id AND status = 'submitting'""",
            object_id=object_id,
            job_id=job_id,
            now=self._now(),
        )

    def postponed(self, object_id: str, delay: float, error: str, *, server_error: bool = False) -> None:
        """Another attempt is due in `delay` seconds; `server_error`: iconik broke down over this item."""
        self._run(
            """UPDATE items SET status = 'ready', next_attempt_at = :next_attempt_at, error = :error,
                server_errors = server_errors + :server_error
            WHERE object_id = :object_id AND status = 'submitting'""",
            object_id=object_id,
            next_attempt_at=self._now(delay),
            error=error,
            server_error=server_error,
        )

    def failed(self, object_id: str, error: str) -> None:
        self._run(
            """UPDATE items SET status = 'failed', error = :error
            WHERE object_id = :object_id AND status = 'submitting'""",
            object_id=object_id,
            error=error,
        )

    # What the sweep does.

    def next_pending(self, min_age: float, max_age: float, after: Pending | None = None) -> Pending | None:
        """The oldest pending item created `min_age` to `max_age` seconds ago, or the next oldest `after` another."""
        rows = self._run(
            """SELECT object_id, created_at FROM items WHERE status = 'pending'
                AND created_at BETWEEN :oldest AND :newest AND (created_at, object_id) > (:created_at, :object_id)
            ORDER BY created_at, object_id LIMIT 1""",
            oldest=self._now(-max_age),
            newest=self._now(-min_age),
            created_at=after.created_at if after else "",
            object_id=after.object_id if after else "",
        )
        return Pending(**dict(rows[0])) if rows else None

    def delete_early(self, age: float) -> None:
        """Delete the early items whose proxy closed more than `age` seconds ago."""
        self._run("DELETE FROM items WHERE status = 'early' AND proxy_closed_at < :before", before=self._now(-age))

    # What the operator does.

    def retry(self, object_id: str) -> str:
        """Make a failed item ready. Returns the status that it had, "unknown" if it is not here."""
        rows = self._run("SELECT status FROM items WHERE object_id = :object_id", object_id=object_id)
        self._retry("object_id = :object_id", object_id=object_id)
        return rows[0]["status"] if rows else "unknown"

    def retry_all(self) -> int:
        """Make all failed items ready. Returns how many."""
        return len(self._retry("1"))

    def _retry(self, where: str, **values: str) -> list[sqlite3.Row]:
        return self._run(
            f"""UPDATE items SET status = 'ready', next_attempt_at = :now, server_errors = 0
            WHERE status = 'failed' AND {where} RETURNING object_id""",  # noqa: S608 both are above
            now=self._now(),
            **values,
        )

    def check_writable(self) -> None:
        self._run("DELETE FROM items WHERE 0")

    # What is asked of it.

    def knows(self, object_id: str) -> bool:
        """Whether the asset was created here."""
        statement = "SELECT 1 FROM items WHERE object_id = :object_id AND status <> 'early'"
        return bool(self._run(statement, object_id=object_id))

    def overview(self) -> list[sqlite3.Row]:
        """For each status that there is: how many `items`, and since when the `oldest` of them is here."""
        return self._run(
            """SELECT status, count(*) AS items, min(coalesce(created_at, proxy_closed_at)) AS oldest
            FROM items GROUP BY status ORDER BY min(created_at IS NULL), status"""
        )

    def problems(self) -> list[sqlite3.Row]:
        """What failed or is being retried, as in the view of that name."""
        return self._run("SELECT * FROM problems")

    def counts(self) -> dict[str, int]:
        """How many items are ready, submitting and failed."""
        [row] = self._run(
            """SELECT (SELECT count(*) FROM items WHERE status = 'ready') AS ready,
                (SELECT count(*) FROM items WHERE status = 'submitting') AS submitting,
                (SELECT count(*) FROM items WHERE status = 'failed') AS failed"""
        )
        return dict(row)

    def latest(self, count: int) -> list[sqlite3.Row]:
        """The items that came last, oldest first, with all their columns."""
        return self._run(
            """SELECT * FROM (SELECT * FROM items ORDER BY coalesce(created_at, proxy_closed_at) DESC LIMIT :count)
            ORDER BY coalesce(created_at, proxy_closed_at)""",
            count=count,
        )

    def _now(self, delay: float = 0) -> str:
        return utc_text(self._clock() + delay)

    def _change(self, statement: str, **values: Any) -> str:
        rows = self._run(statement, now=self._now(), **values)
        return rows[0]["status"] if rows else "unchanged"

    def _run(self, statement: str, **values: Any) -> list[sqlite3.Row]:
        with self._exclusively() as db:
            return db.execute(statement, values).fetchall()

    @contextmanager
    def _exclusively(self) -> Iterator[sqlite3.Connection]:
        """The connection, for one thread at a time; the wait for that and for other programs is one wait."""
        deadline = time.monotonic() + BUSY_SECONDS
        if not self._lock.acquire(timeout=BUSY_SECONDS):
            raise StoreUnavailable("database is locked")
        try:
            milliseconds = max(0, int((deadline - time.monotonic()) * 1000))
            self._connection.execute(f"PRAGMA busy_timeout = {milliseconds}")
            yield self._connection
        except sqlite3.Error as error:
            raise StoreUnavailable(str(error)) from None
        finally:
            self._lock.release()


def _lock(path: Path) -> TextIO:
    """An exclusive lock that ends with the process, however that ends."""
    lock = path.with_name(path.name + ".lock").open("a", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise StoreError(f"{path}: another listener is running on it") from None
    return lock


def listener_runs(path: Path) -> bool:
    """Whether a listener is running on this database."""
    if not path.with_name(path.name + ".lock").exists():
        return False
    try:
        _lock(path).close()
    except StoreError:
        return True
    return False


def _columns(db: sqlite3.Connection) -> list[str]:
    return [row[1] for row in db.execute("PRAGMA table_xinfo(items)")]
