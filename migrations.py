"""The way from each older form of items.db to today's schema, and which files belong to the listener."""

import os
import re
import shutil
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from filecmp import cmp
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from system.errors import ListenerError
from system.text import format_utc, one_line

APPLICATION_ID = 1768124011  # "icnk"
SCHEMA = (Path(__file__).parent / "schema.sql").read_text(encoding="utf-8")
WEEK_SECONDS = 7 * 24 * 3600.0
PROGRESS_SECONDS = 3.0  # the commit, which cannot say that it goes on, comes on top
PROGRESS_INSTRUCTIONS = 100_000  # of SQLite's virtual machine: some milliseconds
BACKUP_PAGES = 2000
DISK_ERROR = re.compile("disk is full|disk I/O error|No space left|File too large|quota")
UUID_GLOB = "-".join("[0-9a-f]" * length for length in (8, 4, 4, 4, 12))
TIME_GLOB = "[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]T*"  # SQLite takes a number for a time, too
RETIRED = {"items_pending", "items_early", "items_ready"}  # indexes that older schemas had and today's does not

Progress = Callable[[str], None]


class MigrationError(ListenerError):
    """The file is not ours, or could not be brought to today's schema. It was left as it was."""


@dataclass(frozen=True)
class Step:
    """How one schema becomes the next.

    The tables other than items are carried over as they are, with every column that both schemas have.

    :ivar items: a query on the items of the one, which gives those of the next
    :ivar then: statements on today's tables, once they are filled
    """

    items: str
    then: str = ""


class Addition(NamedTuple):
    """A view, an index or a trigger that a person added."""

    kind: str
    name: str
    table: str
    sql: str


# To add a step 4: change schema.sql, its user_version too, and append the Step to STEPS. An index or a view that is
# given up goes into RETIRED.

# The article's script may have died between its request and its update, so its attempt counts as made.
LEGACY_TO_1 = f"""
    SELECT lower(object_id) AS object_id, NULL AS title,
        CASE WHEN max(finished = 'True') THEN 'submitted'
            WHEN lower(object_id) GLOB '{UUID_GLOB}' THEN 'pending' ELSE 'failed' END AS status,
        :now AS created_at, NULL AS proxy_closed_at, 1 AS attempts, 0 AS server_errors,
        NULL AS next_attempt_at, NULL AS submitted_at, NULL AS job_id,
        CASE WHEN lower(object_id) NOT GLOB '{UUID_GLOB}' THEN 'object_id is not a UUID' END AS error {{extra}}
    FROM {{items}} WHERE object_id IS NOT NULL GROUP BY lower(object_id)"""  # noqa: S608

# Version 1.0 counted attempts, but noted neither when they were made nor whether iconik had answered them, and what its
# catch-up found had one as well. So any job may be that of such an item, however old it is.
SCHEMA_1_TO_2 = """
    SELECT object_id, title,
        CASE status WHEN 'pending' THEN 'awaiting_proxy' WHEN 'early' THEN 'awaiting_create' ELSE status END AS status,
        created_at, proxy_closed_at,
        CASE WHEN status NOT IN ('submitted', 'failed') AND attempts > 0 THEN '2000-01-01T00:00:00.000Z'
            WHEN status = 'ready' THEN :now END AS ready_at,
        CASE WHEN status IN ('pending', 'early') THEN 0 ELSE attempts END AS attempts,
        status NOT IN ('submitted', 'failed') AND attempts > 0 AS in_doubt,
        CASE WHEN status = 'submitting' OR status = 'ready' AND attempts > 0 THEN :now END AS last_attempt_at,
        CASE status WHEN 'pending' THEN iif(created_at < :week_ago, NULL, :now)
            WHEN 'ready' THEN coalesce(next_attempt_at, :now) ELSE next_attempt_at END AS next_attempt_at,
        submitted_at, job_id, error {extra} FROM {items}"""

# Version 1.1 knew one job, and noted of a doubt only when the item had become ready. It never learned what became of a
# job; iconik is asked about those of the last 7 days.
SCHEMA_2_TO_3 = f"""
    SELECT object_id, 'analyze' AS job, title,
        CASE WHEN status = 'submitted' AND coalesce(submitted_at, '') < :week_ago THEN 'done' ELSE status END AS status,
        NULL AS source, created_at, proxy_closed_at, NULL AS version_id, attempts, 0 AS backoff,
        CASE WHEN status = 'awaiting_proxy' AND created_at GLOB '{TIME_GLOB}' AND next_attempt_at GLOB '{TIME_GLOB}'
            THEN max(0, coalesce(round((julianday(next_attempt_at) - julianday(created_at)) * 86400, 3), 0))
            ELSE 0 END AS waited,
        0 AS refused, 0 AS asked, NULL AS asked_at,
        CASE WHEN in_doubt THEN coalesce(ready_at, last_attempt_at, created_at, :now)
            WHEN status = 'submitting' THEN coalesce(last_attempt_at, ready_at, :now) END AS in_doubt_since,
        NULL AS absent_since, NULL AS counted_on, last_attempt_at,
        CASE WHEN status = 'ready' OR (status = 'awaiting_proxy' AND created_at > :week_ago)
            THEN coalesce(next_attempt_at, :now) ELSE next_attempt_at END AS next_attempt_at,
        submitted_at, CASE WHEN status = 'submitted' AND submitted_at < :week_ago THEN submitted_at END AS done_at,
        job_id, NULL AS old_job_id, NULL AS profile, NULL AS media_type, NULL AS duration, error, error AS reason
        {{extra}} FROM {{items}}"""  # noqa: S608

# The keys that the reconciler has of version 1.1. That one may have been passing over what a person kept out.
STATE_2_TO_3 = f"""
    INSERT OR REPLACE INTO state (key, value)
        SELECT 'assets_floor', floor FROM (
            SELECT max(strftime('%Y-%m-%dT%H:%M:%fZ', value)) AS floor FROM state
            WHERE key IN ('assets_floor', 'first_started_at') AND value GLOB '{TIME_GLOB}')
        WHERE floor IS NOT NULL;
    INSERT OR REPLACE INTO state (key, value)
        SELECT column1, column2 FROM (VALUES ('pass_over_until_seen', '1'), ('webhook_fingerprint', ''))
        WHERE EXISTS (SELECT 1 FROM state WHERE key = 'assets_passed_over' AND value <> '');
    DELETE FROM state
        WHERE key IN ('first_started_at', 'assets_resume_at', 'jobs_seen_until', 'assets_passed_over');"""  # noqa: S608

STEPS = (Step(LEGACY_TO_1), Step(SCHEMA_1_TO_2), Step(SCHEMA_2_TO_3, STATE_2_TO_3))


@dataclass(frozen=True)
class Migrations:
    """What brings a file to a schema.

    :ivar schema: the SQL that creates it
    :ivar steps: from the article's table (0) to 1, from 1 to 2, and so on up to that schema
    :ivar clock: seconds since 1970
    """

    schema: str = SCHEMA
    steps: Sequence[Step] = STEPS
    clock: Callable[[], float] = time.time

    @property
    def version(self) -> int:
        """The number of the schema."""
        return len(self.steps)

    def inspect(self, path: Path) -> None:
        """Look at a file before it is opened for writing. Not a byte of it changes.

        :raises MigrationError: it is not ours
        :raises OSError, sqlite3.Error: it cannot be read
        """
        if path.exists() and not path.is_file():
            raise MigrationError(f"{path} is not a file: change [listener] database")
        if not path.exists() or path.stat().st_size == 0:
            return
        with path.open("rb") as stream:
            header = stream.read(100)
        if not header.startswith(b"SQLite format 3\0"):
            raise _not_ours(path, "it is not an SQLite database")
        application_id = int.from_bytes(header[68:72], "big")
        self._check_application(path, application_id, int.from_bytes(header[60:64], "big"))
        if application_id == APPLICATION_ID and _size(_beside(path, "-journal")):
            return  # an upgrade was cut off: `prepare` looks, when SQLite has undone it
        # Without a -wal file, read-only access alone would create one.
        how = "mode=ro" if _size(_beside(path, "-wal")) else "immutable=1"
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True)) as db:
            self._version(db, path)

    def prepare(self, connection: sqlite3.Connection, path: Path, *, may_write: bool, progress: Progress) -> None:
        """Bring an open database to the schema.

        :param connection: in autocommit mode
        :param may_write: False for the operator's commands, which leave an upgrade to the listener
        :param progress: called with one-line progress messages, every few seconds
        :raises MigrationError: the file is not ours or cannot be upgraded; it was left as it was
        :raises OSError, sqlite3.Error: it cannot be read or written; it was left as it was
        """
        version = self._version(connection, path)
        if version == self.version:
            if may_write:
                self._add_indexes(connection)
            return
        if not may_write:
            raise MigrationError(f"{path} is not upgraded to this version yet: start the listener once, it does that")
        factor = 3 if version else 7  # for the copy, and for what is written; the article's rows are short
        needed = factor * (_size(path) + _size(_beside(path, "-wal")))
        _check_space(path, needed)
        with suppress(sqlite3.OperationalError):  # somebody else has the database open
            # A -wal file would grow to the size of all that is written, before that goes into the database.
            connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("PRAGMA secure_delete = OFF")  # which writes every page that is given up
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute("PRAGMA legacy_alter_table = ON")  # what refers to a renamed table refers to its name still
        try:
            connection.execute("BEGIN IMMEDIATE")
            if version is None:
                _execute(connection, self.schema)
                connection.execute("COMMIT")
            else:
                outcome = _Upgrade(self, connection, path, version, progress).run()
                connection.execute("COMMIT")
                progress(outcome)
        except (OSError, sqlite3.Error) as error:
            if not DISK_ERROR.search(str(error)):
                raise
            reason = getattr(error, "strerror", None) or error
            raise _no_space(path, f"could not be upgraded and is as it was ({reason})", needed) from None
        finally:
            connection.set_progress_handler(None, 0)
            with suppress(sqlite3.Error):
                connection.rollback()  # which, after some errors, leaves the work to whoever reads next
                connection.execute("SELECT 1 FROM sqlite_master").fetchone()
            connection.execute("PRAGMA legacy_alter_table = OFF")

    def _add_indexes(self, connection: sqlite3.Connection) -> None:
        """Add the indexes that a file of an earlier release lacks. Without them, all works, and some of it slowly."""
        with suppress(sqlite3.Error):
            for statement in re.findall("(?m)^CREATE INDEX [^;]*", self.schema):
                connection.execute(statement.replace("CREATE INDEX", "CREATE INDEX IF NOT EXISTS", 1))

    def items_query(self, items: str, start: int, end: int, extra: str = "") -> str:
        """The steps from one version to another as one query, which also gives the columns `extra` of `items`."""
        for step in self.steps[start:end]:
            items = f"({step.items.format(items=items, extra=extra)})"
        return items

    def values(self) -> dict[str, str]:
        """The values of the steps' parameters."""
        return {"now": format_utc(self.clock()), "week_ago": format_utc(self.clock() - WEEK_SECONDS)}

    def items_columns(self, version: int) -> list[str]:
        """The columns that the items of a version have."""
        query = self.items_query("(SELECT NULL AS object_id, NULL AS finished)", 0, version)
        with closing(sqlite3.connect(":memory:")) as db:
            columns = db.execute(f"SELECT * FROM {query}", self.values()).description  # noqa: S608
        return sorted({"finished", *(column[0] for column in columns)})

    def names(self) -> dict[str, str]:
        """Each name in the schema, and what it is the name of: a table, an index or a view."""
        with closing(sqlite3.connect(":memory:")) as db:
            _execute(db, self.schema)
            return dict(db.execute("SELECT name, type FROM sqlite_master WHERE sql IS NOT NULL").fetchall())

    def _version(self, db: sqlite3.Connection, path: Path) -> int | None:
        """The version of the schema: 0 for the article's table; None if there is nothing in the file yet."""
        [application_id] = db.execute("PRAGMA application_id").fetchone()
        [version] = db.execute("PRAGMA user_version").fetchone()
        self._check_application(path, application_id, version)
        if version == 0 and not db.execute("SELECT 1 FROM sqlite_master").fetchone():
            return None
        tables = _tables(db)
        is_legacy = tables == {"items"} and sorted(_columns(db, "items")) == self.items_columns(0)
        is_marked = application_id == APPLICATION_ID or version == 1  # version 1.0 set no application_id
        if "items" not in tables or not (is_legacy if version == 0 else is_marked):
            raise _not_ours(path, "it is another program's")
        wanted = {"items": self.items_columns(version)}
        if version == self.version:
            with closing(sqlite3.connect(":memory:")) as new:
                _execute(new, self.schema)
                wanted = {table: _columns(new, table) for table in _tables(new)}
        for table, columns in wanted.items():
            missing = set(columns) - set(_columns(db, table))
            if missing:
                raise _not_ours(path, f"its table {table} has no {min(missing)}")
        return int(version)

    def _check_application(self, path: Path, application_id: int, version: int) -> None:
        if application_id == APPLICATION_ID and version > self.version:
            known = f"this version of the listener knows schema {self.version} at most"
            raise MigrationError(f"{path} has schema {version}, and {known}: install the newer version again")
        if application_id not in (0, APPLICATION_ID) or not 0 <= version <= self.version:
            raise _not_ours(path, "it is another program's")


class _Upgrade:
    """The steps of one file, inside one transaction."""

    def __init__(self, goal: Migrations, db: sqlite3.Connection, path: Path, version: int, progress: Progress) -> None:
        self._goal = goal
        self._db = db
        self._path = path
        self._version = version
        self._progress = progress
        self._told_at = time.monotonic()
        self._suffix = f"_before_{goal.version}"  # ends the name of what is in the way of today's schema

    def run(self) -> str:
        """Take every step. Returns what to tell once that is committed."""
        goal, db = self._goal, self._db
        self._progress(f"Upgrading {self._path} from schema {self._version} to schema {goal.version}")
        self._copy = _copy(self._path, goal.version, self._tick)
        db.set_progress_handler(self._tick, PROGRESS_INSTRUCTIONS)
        names = goal.names()
        additions = self._take_away_additions(names)
        in_the_way = sorted(names.keys() & _tables(db))
        for name in in_the_way:
            db.execute(f"ALTER TABLE {name} RENAME TO {name}{self._suffix}")
        _execute(db, goal.schema)
        for name in in_the_way:
            if names[name] == "table" and _is_ours(db, name, f"{name}{self._suffix}"):
                self._carry_over(name)
            else:
                self._tell_renamed("table", name, f"{name}{self._suffix}")
        for step in goal.steps[self._version :]:
            _execute(db, step.then)
        self._put_back(additions)
        [items] = db.execute("SELECT count(*) FROM items").fetchone()
        return f"{self._path} is upgraded ({items} items); what it was before is kept as {self._copy}"

    def _tick(self, *_: object) -> int:
        if time.monotonic() - self._told_at > PROGRESS_SECONDS:
            self._told_at = time.monotonic()
            self._progress(f"Still upgrading {self._path}")
        return 0

    def _tell_left_out(self, kind: str, name: str, reason: object) -> None:
        self._progress(f"{one_line(f'The {kind} {name} is left out ({reason})')}; {self._copy} has it")

    def _tell_renamed(self, kind: str, name: str, new: str) -> None:
        self._progress(f"{one_line(f'The {kind} {name} is named {new} now')}: the listener needs its name")

    def _carry_over(self, table: str) -> None:
        """Fill a table of ours from the one that had its name, and drop that."""
        db, goal, old = self._db, self._goal, f"{table}{self._suffix}"
        if table == "items":
            ours = [column for column in _columns(db, table) if column != "finished"]
            ours_before = goal.items_columns(self._version)
        else:
            ours = ours_before = [column for column in _columns(db, table) if column in _columns(db, old)]
        people = self._add_columns(table, ours_before)
        aliased = "".join(f", {_quoted(name)} AS people_{number}" for number, name in enumerate(people))
        extra = "".join(f", people_{number}" for number in range(len(people)))
        rows = f"(SELECT *{aliased} FROM {old})"  # noqa: S608
        if table == "items":
            rows = goal.items_query(rows, self._version, goal.version, extra)
        names = ", ".join([*ours, *(_quoted(name) for name in people.values())])
        values = ", ".join(ours) + extra
        db.execute(f"INSERT INTO {table} ({names}) SELECT {values} FROM {rows}", goal.values())  # noqa: S608
        db.execute(f"DROP TABLE {old}")

    def _add_columns(self, table: str, ours_before: list[str]) -> dict[str, str]:
        """Add people's own columns. Returns the name that each had with the one that it gets."""
        db, ours, names = self._db, _columns(self._db, table), {}
        for _, name, kind, _, default, _, is_generated in _table_info(db, f"{table}{self._suffix}"):
            if name.lower() in ours_before:
                continue
            new = f"{name}{self._suffix}" if name.lower() in ours else name
            error: object = "it is generated"
            definitions = [f"{kind} DEFAULT {default or 'NULL'}", f"{kind} DEFAULT ({default})", ""]
            for definition in [] if is_generated else definitions:
                if not (error := _failure(db, f"ALTER TABLE {table} ADD {_quoted(new)} {definition}")):
                    names[name] = new
                    break
            if error:
                self._tell_left_out("column", name, error)
            elif new != name:
                self._tell_renamed("column", name, new)
        return names

    def _take_away_additions(self, names: dict[str, str]) -> list[Addition]:
        """Drop the views, and the indexes and triggers of our tables and of views. Returns those that are people's."""
        query = "SELECT type, name, lower(tbl_name), sql FROM sqlite_master WHERE sql IS NOT NULL"
        rows = self._db.execute(query).fetchall()
        ours = {name for name, kind in names.items() if kind == "table"}
        views = {table for kind, _, table, _ in rows if kind == "view"}
        additions = []
        for kind, name, table, sql in rows:
            if kind == "table" or not (table in ours | views or name.lower() in names):
                continue
            self._db.execute(f"DROP {kind} IF EXISTS {_quoted(name)}")
            is_ours = table in {"items", *views} and (names.get(name) == kind or name in RETIRED)
            if self._version == 0 or not is_ours:
                additions.append(Addition(kind, name, table, sql))
        return additions

    def _put_back(self, additions: list[Addition]) -> None:
        """Create people's views, indexes and triggers again, but for those that fail."""
        # Views need one another in any order. Of triggers, those of views come first: others may need them.
        tables = _tables(self._db)
        views = [addition for addition in additions if addition.kind == "view"]
        on_views = [addition for addition in additions if addition.kind == "trigger" and addition.table not in tables]
        on_tables = [addition for addition in additions if addition.kind != "view" and addition.table in tables]
        for group in (views, *([addition] for addition in on_views + on_tables)):
            for addition in [addition for addition in group if self._is_created(addition)]:
                self._check(addition)

    def _is_created(self, addition: Addition) -> bool:
        error = _failure(self._db, addition.sql)
        if error:
            self._tell_left_out(addition.kind, addition.name, error)
        return not error

    def _check(self, addition: Addition) -> None:
        """Drop what SQLite lets be created and cannot use, such as a trigger that needs a column that is gone."""
        kind, name, table, _ = addition
        uses = []
        if kind == "view":
            uses = [f"SELECT * FROM {_quoted(name)}"]  # noqa: S608
        elif kind == "trigger" and table in _tables(self._db):
            columns = [_quoted(column) for column in _columns(self._db, table) if column != "finished"]
            same = ", ".join(f"{column} = {column}" for column in columns)
            uses = [f"INSERT INTO {table} DEFAULT VALUES", f"UPDATE {table} SET {same}", f"DELETE FROM {table}"]  # noqa: S608
        for use in uses:
            if error := _failure(self._db, f"EXPLAIN {use}"):
                self._db.execute(f"DROP {kind} {_quoted(name)}")
                self._tell_left_out(kind, name, error)
                return


def _failure(db: sqlite3.Connection, sql: str) -> sqlite3.Error | None:
    """Execute a statement. Returns why it failed, if it did so because of what it says."""
    try:
        db.execute(sql)
    except sqlite3.Error as error:
        if re.search("interrupted|locked", str(error)) or DISK_ERROR.search(str(error)):
            raise
        return error
    return None


def _is_ours(db: sqlite3.Connection, table: str, old: str) -> bool:
    """Whether the old table of that name was the listener's: a person's has no such key."""
    key = {row[1].lower() for row in _table_info(db, table) if row[5]} if table != "items" else {"object_id"}
    return key <= set(_columns(db, old))


def _execute(db: sqlite3.Connection, script: str) -> None:
    """Execute one statement after the other, because executescript would commit first."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            db.execute(statement)
            statement = ""


def _tables(db: sqlite3.Connection) -> set[str]:
    rows = db.execute("SELECT lower(name) FROM sqlite_master WHERE type = 'table'")
    return {name for [name] in rows if not name.startswith("sqlite_")}


def _table_info(db: sqlite3.Connection, table: str) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in db.execute(f"PRAGMA table_xinfo({_quoted(table)})")]


def _columns(db: sqlite3.Connection, table: str) -> list[str]:
    return [row[1].lower() for row in _table_info(db, table)]


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _not_ours(path: Path, reason: str) -> MigrationError:
    return MigrationError(f"{path} is not the listener's ({reason}) and was left as it is: change [listener] database")


def _check_space(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise _no_space(path, f"is not upgraded and is as it was (its disk has {free // 1_000_000} MB free)", needed)


def _no_space(path: Path, what: str, needed: int) -> MigrationError:
    remedy = f"make sure that its disk has {needed // 1_000_000 + 1} MB free, then start the listener again"
    return MigrationError(f"{path} {what}: {remedy}")


def _copy(path: Path, version: int, tick: Callable[..., object]) -> Path:
    """Copy the database, whole or not at all, beside earlier copies of other content. Returns where the copy is."""
    first = copy = _beside(path, f".before-{version}")
    part = _beside(copy, ".part")
    os.close(os.open(part, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600))
    try:
        with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(part)) as target:
            target.execute("PRAGMA journal_mode = OFF")
            source.backup(target, pages=BACKUP_PAGES, progress=tick)
        with suppress(PermissionError):
            os.chown(part, path.stat().st_uid, path.stat().st_gid)
        shutil.copymode(path, part)
        _sync(part)
        numbers = count(1)
        while copy.exists() and not cmp(part, copy, shallow=False):
            copy = _beside(first, f".{next(numbers)}")
        part.replace(copy)
        _sync(path.parent)
    finally:
        part.unlink(missing_ok=True)
    return copy


def _sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


MIGRATIONS = Migrations()
SCHEMA_VERSION = MIGRATIONS.version
inspect = MIGRATIONS.inspect
prepare = MIGRATIONS.prepare
