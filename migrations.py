"""The way from each older form of items.db to today's schema, and which files are ours at all."""

import os
import re
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable
from contextlib import closing, suppress
from filecmp import cmp
from itertools import count
from pathlib import Path

from system.errors import ListenerError
from system.text import format_utc, one_line

APPLICATION_ID = 1768124011  # "icnk"
SCHEMA_VERSION = 3
SCHEMA = (Path(__file__).parent / "schema.sql").read_text(encoding="utf-8")
BEFORE = f"_before_{SCHEMA_VERSION}"  # ends the name of what is in the way of today's schema
OLD_ITEMS = f"items{BEFORE}"
GIVE_UP_SECONDS = 7 * 24 * 3600.0  # after which version 1.0 asked no more about a missing proxy
PROGRESS_SECONDS = 5.0
PROGRESS_INSTRUCTIONS = 100_000  # of SQLite's virtual machine: some milliseconds
BACKUP_PAGES = 2000
UUID_GLOB = "-".join("[0-9a-f]" * length for length in (8, 4, 4, 4, 12))

# Each step is a query on the items of one schema that gives those of the next; schema.sql is what they end in. To add a
# step 3: change schema.sql, raise SCHEMA_VERSION, and append the query here, and to OLD_COLUMNS and OLD_NAMES what the
# items of schema 2 had. The table `state`, which schema 2 brought, is then to be carried over in _upgrade.

# The article's script may have died between its request and its update, so its attempt counts as made.
LEGACY_TO_1 = f"""
    SELECT lower(object_id) AS object_id, NULL AS title,
        CASE WHEN max(finished = 'True') THEN 'submitted'
            WHEN lower(object_id) GLOB '{UUID_GLOB}' THEN 'pending' ELSE 'failed' END AS status,
        :now AS created_at, NULL AS proxy_closed_at, 1 AS attempts, 0 AS server_errors,
        NULL AS next_attempt_at, NULL AS submitted_at, NULL AS job_id,
        CASE WHEN lower(object_id) NOT GLOB '{UUID_GLOB}' THEN 'object_id is not a UUID' END AS error {{extra}}
    FROM {{items}} WHERE object_id IS NOT NULL GROUP BY lower(object_id)"""  # noqa: S608

# Version 1.0 counted attempts, but noted neither when they were made nor whether iconik had answered them.
SCHEMA_1_TO_2 = """
    SELECT object_id, title,
        CASE status WHEN 'pending' THEN 'awaiting_proxy' WHEN 'early' THEN 'awaiting_create' ELSE status END AS status,
        created_at, proxy_closed_at, CASE WHEN status IN ('ready', 'submitting') THEN :now END AS ready_at,
        CASE WHEN status IN ('pending', 'early') THEN 0 ELSE attempts END AS attempts,
        status = 'submitting' OR status IN ('pending', 'early', 'ready') AND attempts > 0 AS in_doubt,
        CASE WHEN status = 'submitting' OR status = 'ready' AND attempts > 0 THEN :now END AS last_attempt_at,
        CASE status WHEN 'pending' THEN iif(created_at < :given_up, NULL, :now)
            WHEN 'ready' THEN coalesce(next_attempt_at, :now) ELSE next_attempt_at END AS next_attempt_at,
        submitted_at, job_id, error {extra} FROM {items}"""

# Version 1.1 knew one job. A doubt dates from when the item became ready.
SCHEMA_2_TO_3 = """
    SELECT object_id, 'analyze' AS job, title,
        CASE WHEN status = 'submitted' AND submitted_at < :given_up THEN 'done' ELSE status END AS status,
        NULL AS source, created_at, proxy_closed_at, NULL AS version_id, attempts, 0 AS backoff,
        CASE WHEN status = 'awaiting_proxy' THEN max(0, coalesce(seconds_between(created_at, next_attempt_at), 0)) ELSE 0
            END AS waited,
        0 AS refused, 0 AS asked, NULL AS asked_at,
        CASE WHEN in_doubt = 1 AND status IN ('ready', 'submitting', 'failed') OR status = 'submitting'
            THEN coalesce(ready_at, last_attempt_at, created_at, :now) END AS in_doubt_since,
        NULL AS absent_since, NULL AS counted_on, last_attempt_at,
        CASE WHEN status = 'ready' THEN coalesce(next_attempt_at, :now) ELSE next_attempt_at END AS next_attempt_at,
        submitted_at, CASE WHEN status = 'submitted' AND submitted_at < :given_up THEN submitted_at END AS done_at,
        job_id, NULL AS old_job_id, NULL AS profile, NULL AS media_type, NULL AS duration, error, error AS reason {extra}
    FROM {items}"""

MIGRATIONS = [LEGACY_TO_1, SCHEMA_1_TO_2, SCHEMA_2_TO_3]
OLD_COLUMNS = [
    "object_id finished",
    "object_id title status created_at proxy_closed_at attempts server_errors next_attempt_at submitted_at job_id error"
    " finished",
    "object_id title status created_at proxy_closed_at ready_at attempts in_doubt last_attempt_at next_attempt_at"
    " submitted_at job_id error finished",
]
OLD_NAMES = [
    "",
    "items_pending items_early items_ready items_submitting items_failed problems summary",
    "items_awaiting_proxy items_awaiting_create items_ready items_submitting items_submitted items_skipped items_failed"
    " problems summary",
]

Progress = Callable[[str], None]
Addition = tuple[str, str, str]  # its kind, name and SQL
LeftOut = Callable[[str, str, object], None]


class MigrationError(ListenerError):
    """The file is not ours, or could not be brought to today's schema. It was left as it was."""


def inspect(path: Path) -> None:
    """Look at a file before it is opened for writing, which leaves no trace on it or beside it.

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
    _check_application(path, application_id, int.from_bytes(header[60:64], "big"))
    wal, shm, journal = (path.with_name(path.name + end) for end in ("-wal", "-shm", "-journal"))
    unfinished = [file for file in (wal, journal) if file.exists() and file.stat().st_size]
    if wal.exists() and shm.exists():
        _look(path, path, "mode=ro")
    elif not unfinished:
        _look(path, path, "immutable=1")  # read-only alone would create a -wal and a -shm
    elif application_id != APPLICATION_ID:
        # A program was killed: its last transaction has to be completed or undone before the file can be read.
        with tempfile.TemporaryDirectory() as folder:
            for file in (path, *unfinished):
                shutil.copy(file, folder)
            _look(path, Path(folder) / path.name, "mode=rw")


def _look(path: Path, file: Path, how: str) -> None:
    with closing(sqlite3.connect(f"{file.absolute().as_uri()}?{how}", uri=True)) as db:
        _version(db, path)


def prepare(connection: sqlite3.Connection, path: Path, *, may_write: bool, progress: Progress) -> None:
    """Bring an open database to today's schema.

    :param connection: in autocommit mode
    :param may_write: False for the operator's commands, which leave an upgrade to the listener
    :param progress: is told in a line what takes long, and every few seconds that it goes on
    :raises MigrationError: the file is not ours or cannot be upgraded; it was left as it was
    :raises OSError, sqlite3.Error: it cannot be read or written; it was left as it was
    """
    version = _version(connection, path)
    if version == SCHEMA_VERSION:
        return
    if not may_write:
        raise MigrationError(f"{path} is not upgraded to this version yet: start the listener once, it does that")
    size = path.stat().st_size
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = OFF")
    connection.execute("PRAGMA legacy_alter_table = ON")  # what refers to a renamed table keeps referring to its name
    try:
        connection.execute("BEGIN IMMEDIATE")
        if version is None:
            _create(connection)
            connection.execute("COMMIT")
        else:
            outcome = _upgrade(connection, path, version, progress)
            connection.execute("COMMIT")
            progress(outcome)
    except (OSError, sqlite3.Error) as error:
        if not re.search("disk is full|disk I/O error|No space left|File too large|quota", str(error)):
            raise
        raise MigrationError(
            f"{path} could not be upgraded and is as it was ({getattr(error, 'strerror', None) or error}): make sure"
            f" that its disk has {size // 100_000 + 1} MB free, then start the listener again"
        ) from None
    finally:
        connection.set_progress_handler(None, 0)
        with suppress(sqlite3.Error):
            connection.rollback()  # which, after some errors, leaves the work to whoever reads next
            connection.execute("SELECT 1 FROM sqlite_master").fetchone()
        connection.execute("PRAGMA legacy_alter_table = OFF")


def _version(db: sqlite3.Connection, path: Path) -> int | None:
    """The version of the schema: 0 for the legacy table, the article's; None if there is nothing in the file yet."""
    [application_id] = db.execute("PRAGMA application_id").fetchone()
    [version] = db.execute("PRAGMA user_version").fetchone()
    _check_application(path, application_id, version)
    if version == 0 and not db.execute("SELECT 1 FROM sqlite_master").fetchone():
        return None
    tables = _tables(db)
    is_legacy = tables - {"sqlite_stat1"} == {"items"} and _columns(db, "items") == OLD_COLUMNS[0].split()
    is_marked = application_id == APPLICATION_ID or version == 1  # version 1.0 set no application_id
    if "items" not in tables or not (is_legacy if version == 0 else is_marked):
        raise _not_ours(path, "it is another program's")
    wanted = {"items": OLD_COLUMNS[version].split()} if version < SCHEMA_VERSION else _todays_columns()
    for table in wanted.keys() & {"items", "state"}:
        missing = set(wanted[table]) - set(_columns(db, table))
        if missing:
            raise _not_ours(path, f"its table {table} has no {min(missing)}")
    return int(version)


def _check_application(path: Path, application_id: int, version: int) -> None:
    if application_id == APPLICATION_ID and version > SCHEMA_VERSION:
        known = f"this version of the listener knows schema {SCHEMA_VERSION} at most"
        raise MigrationError(f"{path} has schema {version}, and {known}: install the newer version again")
    if application_id not in (0, APPLICATION_ID) or not 0 <= version <= SCHEMA_VERSION:
        raise _not_ours(path, "it is another program's")


def _not_ours(path: Path, reason: str) -> MigrationError:
    return MigrationError(f"{path} is not the listener's ({reason}) and was left as it is: change [listener] database")


def _todays_columns() -> dict[str, list[str]]:
    """Every name in today's schema, with the columns of tables and views."""
    with closing(sqlite3.connect(":memory:")) as db:
        _create(db)
        names = db.execute("SELECT name FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
        return {name: _columns(db, name) for [name] in names}


def _tables(db: sqlite3.Connection) -> set[str]:
    return {name.lower() for [name] in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def _columns(db: sqlite3.Connection, table: str) -> list[str]:
    return [row[1].lower() for row in db.execute(f"PRAGMA table_xinfo({_quoted(table)})")]


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _create(db: sqlite3.Connection) -> None:
    """Execute schema.sql one statement after the other, because executescript would commit first."""
    statement = ""
    for line in SCHEMA.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            db.execute(statement)
            statement = ""


def _upgrade(db: sqlite3.Connection, path: Path, version: int, progress: Progress) -> str:
    """Take every step up to today's schema. Returns what to tell once that is committed."""
    progress(f"Upgrading {path} from schema {version} to schema {SCHEMA_VERSION}")
    last_told = time.monotonic()

    def tick(*_: object) -> int:
        nonlocal last_told
        if time.monotonic() - last_told > PROGRESS_SECONDS:
            last_told = time.monotonic()
            progress(f"Still upgrading {path}")
        return 0

    def left_out(kind: str, name: str, reason: object) -> None:
        progress(f"{one_line(f'The {kind} {name} is left out ({reason})')}; {copy} has it")

    copy = _copy(path, tick)
    db.set_progress_handler(tick, PROGRESS_INSTRUCTIONS)
    additions = _take_away_additions(db, version)
    for table in _todays_columns().keys() & _tables(db):
        db.execute(f"ALTER TABLE {table} RENAME TO {table}{BEFORE}")
        if table != "items":
            progress(f"The table {table} is named {table}{BEFORE} now: the listener needs its name")
    _create(db)
    _fill(db, version, _add_columns(db, version, left_out))
    db.execute(f"DROP TABLE {OLD_ITEMS}")
    _put_back_additions(db, additions, left_out)
    [items] = db.execute("SELECT count(*) FROM items").fetchone()
    return f"{path} is upgraded ({items} items); what it was before is kept as {copy}"


def _fill(db: sqlite3.Connection, version: int, additions: dict[str, str]) -> None:
    """Copy the items; `additions` are people's own columns: the name that each had, and the one that it gets."""
    extra = "".join(f", {_quoted(name)}" for name in additions.values())
    renamed = "".join(f", {_quoted(name)} AS {_quoted(new)}" for name, new in additions.items() if name != new)
    rows = f"(SELECT *{renamed} FROM {OLD_ITEMS})"  # noqa: S608
    for step in MIGRATIONS[version:]:
        rows = f"({step.format(items=rows, extra=extra)})"
    names = ", ".join(name for name in _todays_columns()["items"] if name != "finished")
    now = time.time()
    db.execute(
        f"INSERT INTO items ({names}{extra}) SELECT {names}{extra} FROM {rows} ORDER BY object_id",  # noqa: S608
        {"now": format_utc(now), "given_up": format_utc(now - GIVE_UP_SECONDS)},
    )


def _copy(path: Path, tick: Callable[..., object]) -> Path:
    """Copy the database, whole or not at all, beside earlier copies of other content. Returns where the copy is."""
    copy = path.with_name(f"{path.name}.before-{SCHEMA_VERSION}")
    part = copy.with_name(copy.name + ".part")
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
            copy = path.with_name(f"{path.name}.before-{SCHEMA_VERSION}.{next(numbers)}")
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


def _take_away_additions(db: sqlite3.Connection, version: int) -> list[Addition]:
    """Drop all indexes and views, and the triggers on items and on views. Returns those that are not ours."""
    found = db.execute(
        """SELECT type, name, sql FROM sqlite_master
        WHERE type = 'view' OR type = 'index' AND sql IS NOT NULL OR type = 'trigger'
            AND (lower(tbl_name) = 'items' OR tbl_name IN (SELECT name FROM sqlite_master WHERE type = 'view'))"""
    ).fetchall()
    for kind, name, _ in found:
        db.execute(f"DROP {kind} IF EXISTS {_quoted(name)}")
    return [(kind, name, sql) for kind, name, sql in found if name not in OLD_NAMES[version].split()]


def _put_back_additions(db: sqlite3.Connection, additions: list[Addition], left_out: LeftOut) -> None:
    """Create them again, whichever of them needs which, and leave out those that do not fit any more."""
    while additions:
        errors = [(addition, error) for addition in additions if (error := _add(db, *addition))]
        if len(errors) == len(additions):
            for (kind, name, _), error in errors:
                left_out(kind, name, error)
            return
        additions = [addition for addition, _ in errors]


def _add_columns(db: sqlite3.Connection, version: int, left_out: LeftOut) -> dict[str, str]:
    """Add people's own columns. Returns the name that each had with the one that it gets."""
    ours, names = _columns(db, "items"), {}
    for _, name, kind, _, default, _, hidden in db.execute(f"PRAGMA table_xinfo({OLD_ITEMS})").fetchall():
        if name.lower() in OLD_COLUMNS[version].split():
            continue
        new = f"{name}{BEFORE}" if name.lower() in ours else name
        error: object = "it is generated"
        for definition in () if hidden else (f"{kind} DEFAULT {default or 'NULL'}", f"{kind} DEFAULT ({default})", ""):
            error = _add(db, "column", name, f"ALTER TABLE items ADD {_quoted(new)} {definition}")
            if not error:
                names[name] = new
                break
        else:
            left_out("column", name, error)
    return names


def _add(db: sqlite3.Connection, kind: str, name: str, sql: str) -> sqlite3.Error | None:
    """Execute the statement, and undo it if items could not be written after it. Returns the error then."""
    columns = _todays_columns()["items"]
    unchanged = ", ".join(f"{name} = {name}" for name in columns if name not in ("object_id", "status", "finished"))
    error = None
    db.execute("SAVEPOINT addition")
    try:
        db.execute(sql)
        if kind == "view":
            db.execute(f"SELECT * FROM {_quoted(name)} LIMIT 0")  # noqa: S608
        db.execute("SAVEPOINT trial")
        db.execute("INSERT INTO items (object_id, status) VALUES ('', 'awaiting_proxy')")
        for status in ("submitting", "submitted", "skipped", "failed"):
            db.execute(f"UPDATE items SET status = '{status}', {unchanged} WHERE object_id = ''")  # noqa: S608
        db.execute("DELETE FROM items WHERE object_id = ''")
        db.execute("ROLLBACK TO trial")
    except sqlite3.Error as caught:
        if re.search("disk|interrupted", str(caught)):
            raise
        error = caught
        db.execute("ROLLBACK TO addition")
    db.execute("RELEASE addition")
    return error
