import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

import migrations
from migrations import APPLICATION_ID, MigrationError
from store import Store
from support import ASSET, OTHER_ASSET, new_id, rows
from system.database import Database
from system.errors import ListenerError

ROOT = Path(migrations.__file__).parent
VERSION_1_0 = (Path(__file__).parent / "data" / "version_1_0.sql").read_text(encoding="utf-8")
CREATED = "2026-11-20T12:00:00.000Z"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "items.db"


def write(path: Path, script: str, journal_mode: str = "WAL") -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA journal_mode = {journal_mode}")
        db.executescript(script)


def upgrade(path: Path) -> list[str]:
    """Open the database as the listener does, and close it again. Returns what was told meanwhile."""
    lines: list[str] = []
    Database(path, migrations, listener=True, progress=lines.append).close()
    return lines


def by_title(path: Path) -> dict[str | None, sqlite3.Row]:
    return {row["title"]: row for row in rows(path)}


def content(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as db:
        return list(db.iterdump())


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file() and file.suffix != ".lock"}


# What version 1.0 wrote


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> str:
    """A moment shortly after version 1.0 ended, at which the upgrade takes place."""
    monkeypatch.setattr("migrations.time.time", lambda: 1795176000.0)
    return "2026-11-20T12:00:00.000Z"


@pytest.mark.parametrize(
    "title, expected",
    [
        ("given up.mov", {"status": "awaiting_proxy", "next_attempt_at": None, "in_doubt": 0}),
        ("waits for its proxy.mov", {"status": "awaiting_proxy", "next_attempt_at": "now", "in_doubt": 0}),
        ("found by catch-up.mov", {"status": "awaiting_proxy", "next_attempt_at": "now", "in_doubt": 1, "attempts": 0}),
        ("tried.mov", {"status": "ready", "in_doubt": 1, "attempts": 1, "last_attempt_at": "now", "ready_at": "now"}),
        ("tried.mov", {"error": "504: Gateway Time-out", "next_attempt_at": "2026-11-20T12:43:40.375Z"}),
        ("retried by a person.mov", {"status": "ready", "in_doubt": 1, "last_attempt_at": "now", "ready_at": "now"}),
        ("found by catch-up, and complete.mov", {"status": "ready", "in_doubt": 1, "last_attempt_at": "now"}),
        ("cut off.mov", {"status": "submitting", "in_doubt": 1, "last_attempt_at": "now", "ready_at": "now"}),
        ("", {"status": "failed", "error": "404: Asset does not exist", "attempts": 1, "finished": "False"}),
        ("Grüße aus Köln, 東京 🎬.mov", {"status": "submitted", "finished": "True", "in_doubt": 0}),
        ("Grüße aus Köln, 東京 🎬.mov", {"job_id": "c0ffee00-f0b4-11e7-a36b-0a580a00054a"}),
        ("Grüße aus Köln, 東京 🎬.mov", {"submitted_at": "2026-10-21T12:00:20.375Z"}),
        ("""It's "submitted"; -- its job's id was lost.mov""", {"status": "submitted", "job_id": None}),
    ],
)
def test_an_item_of_version_1_0_becomes_what_it_was(path: Path, now: str, title: str, expected: dict[str, Any]) -> None:
    write(path, VERSION_1_0)
    upgrade(path)
    item = by_title(path)[title]
    assert {key: item[key] for key in expected} == {k: now if v == "now" else v for k, v in expected.items()}


def test_a_ready_item_that_was_never_attempted_and_a_lone_proxy_are_carried_over(path: Path, now: str) -> None:
    write(path, VERSION_1_0)
    upgrade(path)
    [early] = rows(path, "status = 'awaiting_create'")
    assert (early["proxy_closed_at"], early["created_at"], early["next_attempt_at"]) == (
        "2026-11-19T12:00:00.000Z",
        None,
        None,
    )
    [new] = rows(path, "status = 'ready' AND last_attempt_at IS NULL")
    assert (new["in_doubt"], new["attempts"], new["ready_at"]) == (0, 0, now)
    assert (new["created_at"], new["next_attempt_at"]) == ("2026-11-20T11:46:40.000Z", "2026-11-20T11:47:00.000Z")


def test_a_ready_item_without_a_time_is_due_at_once(path: Path, now: str) -> None:
    write(path, VERSION_1_0 + "PRAGMA ignore_check_constraints = ON; UPDATE items SET next_attempt_at = NULL")
    upgrade(path)
    assert {row["next_attempt_at"] for row in rows(path, "status = 'ready'")} == {now}


def test_every_row_of_version_1_0_is_carried_over_and_the_service_goes_on(path: Path) -> None:
    write(path, VERSION_1_0)
    with closing(sqlite3.connect(path)) as db:
        before = db.execute("SELECT object_id, title, created_at, proxy_closed_at, job_id FROM items").fetchall()
    with closing(Store(path, listener=True)) as store:
        kept = store.database.run("SELECT object_id, title, created_at, proxy_closed_at, job_id FROM items")
        assert [tuple(row) for row in kept] == before
        assert store.recover(10) == 1
        item = store.claim_new()
        assert item and item.status == "submitting"
        store.mark_submitted(item.object_id, None)
        assert store.add_asset(ASSET, "a.mov") == "awaiting_proxy"
        assert store.proxy_closed(ASSET) == "ready"


def test_an_upgraded_database_has_the_schema_of_a_new_one(path: Path, tmp_path: Path) -> None:
    write(path, VERSION_1_0)
    upgrade(path)
    upgrade(tmp_path / "new.db")
    schemas = []
    for file in (path, tmp_path / "new.db"):
        with closing(sqlite3.connect(file)) as db:
            marks = db.execute("PRAGMA application_id").fetchone() + db.execute("PRAGMA user_version").fetchone()
            schemas.append((marks, set(db.execute("SELECT type, name, sql FROM sqlite_master"))))
            assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert schemas[0] == schemas[1]
    assert schemas[0][0] == (APPLICATION_ID, 2)


def test_a_second_start_changes_nothing_and_tells_nothing(path: Path, tmp_path: Path) -> None:
    write(path, VERSION_1_0)
    assert len(upgrade(path)) == 2
    before = content(path)
    assert upgrade(path) == []
    assert content(path) == before
    assert sorted(files(tmp_path)) == ["items.db", "items.db.before-2"]


def test_what_version_1_0_wrote_last_is_not_lost_when_it_was_killed(path: Path, tmp_path: Path) -> None:
    (tmp_path / "v1").mkdir()
    with closing(sqlite3.connect(tmp_path / "v1" / "items.db")) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript(VERSION_1_0)  # all of it is in the -wal
        for name in ("items.db", "items.db-wal"):
            shutil.copy(tmp_path / "v1" / name, tmp_path)
    upgrade(path)
    assert len(rows(path)) == 12


# The article's table


def test_the_articles_table_is_taken_over(path: Path, now: str) -> None:
    third = new_id()
    write(
        path,
        f"""create table items (object_id,finished);
        insert into items values ('{ASSET.upper()}', 'False'), ('{ASSET}', 'True'), ('{OTHER_ASSET}', 'False'),
            ('{OTHER_ASSET}', 'False'), ('{third}', 'True'), ('junk', 'False'), (NULL, 'False'), (7, 'True')""",
        "DELETE",
    )
    upgrade(path)
    items = {row["object_id"]: (row["status"], row["in_doubt"], row["next_attempt_at"]) for row in rows(path)}
    assert items == {
        ASSET: ("submitted", 0, None),
        OTHER_ASSET: ("awaiting_proxy", 1, now),
        third: ("submitted", 0, None),
        "junk": ("failed", 0, None),
        "7": ("submitted", 0, None),
    }
    assert {row["created_at"] for row in rows(path)} == {now}
    [junk] = rows(path, "object_id = 'junk'")
    assert junk["error"] == "object_id is not a UUID"


def test_a_view_and_an_index_of_the_articles_table_go_on(path: Path) -> None:
    write(
        path,
        f"""create table items (object_id,finished); insert into items values ('{ASSET}', 'False');
        create view todo as select * from items where finished='False'; create index i on items (finished); analyze""",
    )
    assert len(upgrade(path)) == 2
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT object_id FROM todo").fetchall() == [(ASSET,)]
        assert db.execute("SELECT tbl_name FROM sqlite_master WHERE name = 'i'").fetchone() == ("items",)


# The copy


def test_the_copy_is_what_the_file_was_with_its_mode_and_is_on_the_disk(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(path, VERSION_1_0)
    before = content(path)
    path.chmod(0o640)
    synced: list[str] = []
    monkeypatch.setattr(
        "migrations.os.fsync", lambda file: synced.append(str(Path(f"/proc/self/fd/{file}").readlink()))
    )
    lines = upgrade(path)
    copy = tmp_path / "items.db.before-2"
    assert synced == [f"{copy}.part", str(tmp_path)]
    assert lines[-1].endswith(f"what it was before is kept as {copy}")
    assert copy.stat().st_mode & 0o777 == 0o640
    assert content(copy) == before
    with closing(sqlite3.connect(copy)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (1,)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a file away")
def test_the_copy_belongs_to_whom_the_file_belongs(path: Path, tmp_path: Path) -> None:
    write(path, VERSION_1_0)
    os.chown(path, 65534, 65534)
    upgrade(path)
    stat = (tmp_path / "items.db.before-2").stat()
    assert (stat.st_uid, stat.st_gid) == (65534, 65534)


def test_an_earlier_copy_of_something_else_is_not_overwritten(path: Path, tmp_path: Path) -> None:
    write(path, VERSION_1_0)
    (tmp_path / "items.db.before-2").write_text("precious")
    assert upgrade(path)[-1].endswith("items.db.before-2.1")
    assert (tmp_path / "items.db.before-2").read_text() == "precious"


def test_the_copy_can_be_put_back_and_upgraded_again(path: Path, tmp_path: Path) -> None:
    write(path, VERSION_1_0)
    upgrade(path)
    shutil.copy(tmp_path / "items.db.before-2", path)
    upgrade(path)
    assert sorted(files(tmp_path)) == ["items.db", "items.db.before-2"]


def test_a_new_database_needs_no_copy(path: Path, tmp_path: Path) -> None:
    write(path, "VACUUM")  # as version 1.0 left it when it was killed at its first start
    assert upgrade(path) == []
    assert sorted(files(tmp_path)) == ["items.db"]


# What people added


@pytest.fixture
def people(path: Path) -> Callable[[str], list[str]]:
    """Upgrades a database of version 1.0 to which people added that."""

    def upgraded(script: str) -> list[str]:
        write(path, VERSION_1_0 + script)
        return upgrade(path)

    return upgraded


def test_peoples_columns_are_kept_with_their_types_defaults_and_values(
    people: Callable[[str], list[str]], path: Path
) -> None:
    people(
        """ALTER TABLE items ADD COLUMN "my note" TEXT NOT NULL DEFAULT 'it''s new';
        ALTER TABLE items ADD COLUMN price DECIMAL(10,2);
        ALTER TABLE items ADD COLUMN Ready_At INTEGER DEFAULT "two";
        UPDATE items SET price = 1.5, Ready_At = 42 WHERE title = 'tried.mov'"""
    )
    with closing(Store(path, listener=True)) as store:
        store.add_asset(ASSET, "new.mov")
    tried, new = by_title(path)["tried.mov"], by_title(path)["new.mov"]
    assert (tried["my note"], tried["price"], tried["Ready_At_before_2"]) == ("it's new", 1.5, 42)
    assert tried["ready_at"] > CREATED
    assert (new["my note"], new["price"], new["Ready_At_before_2"]) == ("it's new", None, "two")


def test_a_default_may_be_an_expression(people: Callable[[str], list[str]], path: Path) -> None:
    people("DELETE FROM items; ALTER TABLE items ADD COLUMN day DEFAULT (1 + 1)")
    with closing(Store(path, listener=True)) as store:
        store.add_asset(ASSET, None)
    assert [row["day"] for row in rows(path)] == [2]


def test_peoples_tables_indexes_triggers_and_views_go_on(people: Callable[[str], list[str]], path: Path) -> None:
    lines = people(
        """CREATE TABLE log (object_id REFERENCES items (object_id), status);
        CREATE TRIGGER noted AFTER UPDATE OF status ON items
            BEGIN INSERT INTO log VALUES (new.object_id, new.status); END;
        CREATE UNIQUE INDEX by_title ON items (title, object_id);
        CREATE VIEW a AS SELECT 1;
        CREATE VIEW latest AS SELECT * FROM later_dropped;
        CREATE VIEW later_dropped AS SELECT title FROM items WHERE created_at > '2026-11';
        CREATE TRIGGER typed INSTEAD OF INSERT ON latest BEGIN INSERT INTO log VALUES (new.title, ''); END;"""
    )
    assert len(lines) == 2
    with closing(Store(path, listener=True)) as store:
        claimed = store.claim_new()
    with closing(sqlite3.connect(path)) as db:
        assert claimed
        assert db.execute("SELECT * FROM log").fetchall() == [(claimed.object_id, "submitting")]
        assert len(db.execute("SELECT * FROM latest").fetchall()) > 5
        db.execute("INSERT INTO latest VALUES ('typed')")
        names = {name for [name] in db.execute("SELECT name FROM sqlite_master")}
        assert {"log", "noted", "by_title", "latest", "typed"} <= names
        [sql] = db.execute("SELECT sql FROM sqlite_master WHERE name = 'log'").fetchone()
        assert "REFERENCES items (" in sql


@pytest.mark.parametrize(
    "kind, script",
    [
        ("view", "CREATE VIEW mine AS SELECT server_errors FROM items"),
        ("index", "CREATE INDEX mine ON items (server_errors)"),
        ("trigger", "CREATE TRIGGER mine AFTER UPDATE ON items WHEN new.server_errors > 1 BEGIN SELECT 1; END"),
        ("trigger", "CREATE TRIGGER mine AFTER UPDATE OF job_id ON items BEGIN SELECT new.server_errors; END"),
        ("trigger", "CREATE TRIGGER mine BEFORE INSERT ON items BEGIN SELECT raise(ABORT, 'no'); END"),
        ("column", "ALTER TABLE items ADD COLUMN mine AS (server_errors + 1)"),
    ],
)
def test_what_does_not_fit_any_more_is_left_out_and_told(
    people: Callable[[str], list[str]], path: Path, tmp_path: Path, kind: str, script: str
) -> None:
    lines = people(script)
    assert [line for line in lines if line.startswith(f"The {kind} mine")]
    assert all(line.endswith("items.db.before-2 has it") for line in lines[1:-1])
    with closing(Store(path, listener=True)) as store:
        assert store.add_asset(ASSET, None) == "awaiting_proxy"
    assert "mine" in "".join(content(tmp_path / "items.db.before-2"))


def test_peoples_tables_make_room_for_those_of_the_listener(people: Callable[[str], list[str]], path: Path) -> None:
    lines = people(
        """CREATE TABLE State (a); INSERT INTO State VALUES (1); CREATE TABLE items_skipped (b);
        CREATE TABLE mine (c); CREATE INDEX items_submitted ON mine (c)"""
    )
    assert sum("is named" in line for line in lines) == 2
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT a FROM state_before_2").fetchall() == [(1,)]
        assert db.execute("SELECT b FROM items_skipped_before_2").fetchall() == []
    with closing(Store(path, listener=True)) as store:
        store.set_state("a", "1")


def test_an_index_of_a_persons_table_may_have_a_name_that_the_listener_needs(
    people: Callable[[str], list[str]], path: Path
) -> None:
    lines = people("CREATE TABLE mine (a); CREATE INDEX state ON mine (a); CREATE INDEX kept ON mine (a)")
    assert [line.split(";")[0] for line in lines[1:-1]] == [
        "The index state is left out (there is already a table named state)"
    ]
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT tbl_name FROM sqlite_master WHERE name = 'kept'").fetchone() == ("mine",)


def test_a_column_is_never_lost_without_a_word(people: Callable[[str], list[str]], path: Path) -> None:
    lines = people("ALTER TABLE items ADD COLUMN ready_at; ALTER TABLE items ADD COLUMN ready_at_before_2")
    assert "The column ready_at_before_2 is left out (duplicate column name" in lines[1]
    assert len(rows(path)) == 12


def test_what_is_told_is_one_line_whatever_people_named_things(people: Callable[[str], list[str]]) -> None:
    lines = people('CREATE VIEW "two\nlines" AS SELECT server_errors FROM items')
    assert lines[1].startswith("The view two lines is left out (")
    assert not any("\n" in line for line in lines)


def test_a_database_is_called_upgraded_only_once_that_is_committed(path: Path) -> None:
    write(path, VERSION_1_0)
    seen: list[tuple[str, int]] = []

    def progress(line: str) -> None:
        with closing(sqlite3.connect(path)) as db:
            seen.append((line.split()[1], db.execute("PRAGMA user_version").fetchone()[0]))

    Database(path, migrations, listener=True, progress=progress).close()
    assert seen == [(str(path), 1), ("is", 2)]


def test_an_upgrade_that_fails_leaves_nothing_half_done(path: Path) -> None:
    write(path, VERSION_1_0 + "CREATE TABLE items_before_2 (a)")
    before = content(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        with pytest.raises(sqlite3.OperationalError, match="already another table"):
            migrations.prepare(db, path, may_write=True, progress=print)
        assert not db.in_transaction
    assert content(path) == before


def test_foreign_keys_of_peoples_tables_do_not_bar_the_upgrade(path: Path) -> None:
    write(path, VERSION_1_0 + "CREATE TABLE notes (id REFERENCES items); INSERT INTO notes SELECT object_id FROM items")
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA foreign_keys = ON")  # as some builds of SQLite have it
        migrations.prepare(db, path, may_write=True, progress=print)
        assert db.execute("SELECT count(*) FROM notes JOIN items ON id = object_id").fetchone() == (12,)
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []
        assert db.execute("PRAGMA legacy_alter_table").fetchone() == (0,)


def test_columns_that_people_add_to_schema_2_disturb_nothing(path: Path) -> None:
    upgrade(path)
    write(path, "ALTER TABLE items ADD COLUMN note; ALTER TABLE state ADD COLUMN note; CREATE TABLE mine (a)")
    assert upgrade(path) == [f"{path} is not as the last listener left it: checking that it is whole"]


# Files that are refused


def database(script: str, journal_mode: str = "WAL") -> Callable[[Path], None]:
    return lambda path: write(path, script, journal_mode)


def leave_wal(script: str, *names: str) -> Callable[[Path], None]:
    """A database whose program was killed."""

    def make(path: Path) -> None:
        elsewhere = path.parent / "elsewhere"
        elsewhere.mkdir()
        with closing(sqlite3.connect(elsewhere / path.name)) as db:
            db.execute("PRAGMA journal_mode = WAL")
            db.executescript(script)
            for name in names:
                shutil.copy(elsewhere / name, path.parent)

    return make


FOREIGN = "CREATE TABLE items (a); CREATE TABLE b (c);"
NEWER = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = 3;"
TODAYS = (ROOT / "schema.sql").read_text()
REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "text": (lambda path: path.write_text("object_id,finished\n"), "it is not an SQLite database"),
    "a few bytes": (lambda path: path.write_bytes(b"SQLite"), "it is not an SQLite database"),
    "another program's": (database(FOREIGN), "it is another program's"),
    "another program's, no WAL": (database(FOREIGN, "DELETE"), "it is another program's"),
    "another program's, killed": (leave_wal(FOREIGN, "items.db", "items.db-wal"), "it is another program's"),
    "another program's, running": (
        leave_wal(FOREIGN, "items.db", "items.db-wal", "items.db-shm"),
        "it is another program's",
    ),
    "another application's": (database("PRAGMA application_id = 7; CREATE TABLE a (b)"), "it is another program's"),
    "only a view": (database("CREATE VIEW items AS SELECT 1 AS object_id, 2 AS finished"), "another program's"),
    "nearly the article's": (database("CREATE TABLE items (object_id, finished, a)"), "it is another program's"),
    "the article's and more": (
        database("CREATE TABLE items (object_id, finished); CREATE TABLE a (b)"),
        "it is another program's",
    ),
    "version 1 of another's": (database(FOREIGN + "PRAGMA user_version = 1"), "its table items has no "),
    "version 2 of another's": (database(FOREIGN + "PRAGMA user_version = 2"), "it is another program's"),
    "newer": (database(NEWER), "has schema 3, and this version of the listener knows schema 2 at most"),
    "negative": (database("PRAGMA user_version = -1; CREATE TABLE a (b)"), "it is another program's"),
    "without a column": (database(TODAYS + "ALTER TABLE state DROP COLUMN value"), "its table state has no value"),
    "without a table": (database(TODAYS + "DROP TABLE state"), "its table state has no key"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("listener", [True, False], ids=["listener", "command"])
def test_a_file_that_is_not_ours_is_refused_in_one_line_and_left_as_it_is(
    path: Path, tmp_path: Path, kind: str, listener: bool
) -> None:
    make, reason = REFUSED[kind]
    make(path)
    shutil.rmtree(tmp_path / "elsewhere", ignore_errors=True)
    before = files(tmp_path)
    with pytest.raises(MigrationError, match=reason) as refused:
        Database(path, migrations, listener=listener, progress=print)
    assert str(refused.value).startswith(f"{path} ")
    assert "\n" not in str(refused.value)
    after = files(tmp_path)
    for found in (before, after):
        found.pop("items.db-shm", None)  # holds the locks of whoever reads
    assert after == before


def test_a_folder_and_a_pipe_are_refused(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(MigrationError, match="is not a file"):
        migrations.inspect(path)
    with pytest.raises(MigrationError, match="is not a file"):
        migrations.inspect(path.parent)


def test_a_journal_that_its_program_left_is_not_touched_in_a_foreign_file(path: Path, tmp_path: Path) -> None:
    write(path, FOREIGN, "DELETE")
    subprocess.run([sys.executable, "-c", LEAVE_JOURNAL, str(path)], check=False, timeout=30)
    before = files(tmp_path)
    assert before["items.db-journal"]
    with pytest.raises(MigrationError, match="another program's"):
        migrations.inspect(path)
    assert files(tmp_path) == before


LEAVE_JOURNAL = """
import os, signal, sqlite3, sys
db = sqlite3.connect(sys.argv[1])
db.execute("PRAGMA cache_size = 1")
db.executemany("INSERT INTO b VALUES (?)", [("x" * 5000,)] * 50)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_command_leaves_the_upgrade_to_the_listener(path: Path, tmp_path: Path) -> None:
    write(path, VERSION_1_0)
    before = files(tmp_path)
    with pytest.raises(MigrationError, match="is not upgraded to this version yet: start the listener once"):
        Store(path)
    assert files(tmp_path) == before
    upgrade(path)
    Store(path).close()


def test_a_database_that_a_person_holds_is_upgraded_later(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("system.database.BUSY_SECONDS", 0.02)
    write(path, VERSION_1_0)
    with closing(sqlite3.connect(path, isolation_level=None)) as person:
        person.execute("BEGIN IMMEDIATE")
        with pytest.raises(ListenerError, match="locked"):
            upgrade(path)
    assert len(upgrade(path)) == 2


# Cut off in the middle

MANY = 100_000


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of version 1.0 with 100,000 items, in all statuses."""
    path = tmp_path_factory.mktemp("large") / "items.db"
    write(
        path,
        f"""{VERSION_1_0}
        PRAGMA synchronous = OFF;
        WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {MANY - 12})
        INSERT INTO items (object_id, title, status, created_at, attempts, next_attempt_at)
        SELECT printf('%08x-0000-11e7-a36b-%012x', n * 2654435761 % 4294967296, n), 'item ' || n,
            CASE n % 10 WHEN 0 THEN 'pending' WHEN 1 THEN 'ready' WHEN 2 THEN 'failed' ELSE 'submitted' END,
            '{CREATED}', n % 3, '{CREATED}' FROM numbers""",
    )
    return path


@pytest.fixture
def large_copy(large: Path, path: Path) -> Path:
    shutil.copy(large, path)
    return path


UPGRADE_AND_DIE = """
import os, signal, sys
from pathlib import Path
import migrations
from system.database import Database
migrations.PROGRESS_SECONDS = 0
migrations.BACKUP_PAGES = 100
lines = []
def progress(line):
    lines.append(line)
    if len(lines) == int(sys.argv[2]) or "is upgraded" in line:
        os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "-1":
    migrations._put_back_additions = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
Database(Path(sys.argv[1]), migrations, listener=True, progress=progress)
"""


def check_large(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(*), count(DISTINCT title) FROM items").fetchone() == (MANY, MANY - 2)
        assert db.execute("SELECT count(*) FROM items WHERE status = 'awaiting_proxy'").fetchone() == (10001,)
        assert db.execute("PRAGMA quick_check").fetchone() == ("ok",)


@pytest.mark.parametrize(
    "lines, left",
    [
        (10, {"items.db", "items.db.before-2.part"}),
        (60, {"items.db", "items.db-wal", "items.db-shm", "items.db.before-2"}),
        (-1, {"items.db", "items.db-wal", "items.db-shm", "items.db.before-2"}),
        (1_000_000, {"items.db", "items.db-wal", "items.db-shm", "items.db.before-2"}),
    ],
    ids=["copying", "filling", "just before the commit", "just after the commit"],
)
def test_an_upgrade_that_is_killed_is_done_again_at_the_next_start(
    large: Path, large_copy: Path, tmp_path: Path, lines: int, left: set[str]
) -> None:
    process = [sys.executable, "-c", UPGRADE_AND_DIE, str(large_copy), str(lines)]
    assert subprocess.run(process, cwd=ROOT, check=False, timeout=60).returncode == -signal.SIGKILL
    assert left <= files(tmp_path).keys() <= left | {"items.db-wal", "items.db-shm"}
    upgrade(large_copy)
    check_large(large_copy)
    assert sorted(files(tmp_path)) == ["items.db", "items.db.before-2"]
    with closing(sqlite3.connect(tmp_path / "items.db.before-2")) as copy:
        assert copy.execute("PRAGMA user_version").fetchone() == (1,)
        assert copy.execute("SELECT count(*) FROM items").fetchone() == (MANY,)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("part", [0.5, 1.1], ids=["copying", "filling"])
def test_on_a_full_disk_the_database_stays_as_it_is_and_the_next_start_upgrades_it(
    large: Path, large_copy: Path, tmp_path: Path, part: float
) -> None:
    with (
        largest_file(int(large.stat().st_size * part)),
        pytest.raises(MigrationError, match=r"could not be upgraded and is as it was \(.* has (\d+) MB free") as full,
    ):
        upgrade(large_copy)
    assert "\n" not in str(full.value)
    assert f" {large.stat().st_size // 100_000 + 1} MB free, then start the listener again" in str(full.value)
    assert large_copy.read_bytes() == large.read_bytes()
    assert set(files(tmp_path)) <= {"items.db", *(["items.db.before-2"] if part > 1 else [])}
    upgrade(large_copy)
    check_large(large_copy)
    assert sorted(files(tmp_path)) == ["items.db", "items.db.before-2"]


def test_on_a_full_disk_the_articles_table_is_as_it_was_at_once(path: Path, tmp_path: Path) -> None:
    numbers = "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 20000)"
    insert = f"{numbers} INSERT INTO items SELECT '{ASSET[:-5]}' || (10000 + n), 'False' FROM numbers"
    write(path, f"create table items (object_id,finished); {insert}", "DELETE")
    before = files(tmp_path)
    with largest_file(3 * len(before["items.db"])), pytest.raises(MigrationError, match="is as it was"):
        upgrade(path)
    after = files(tmp_path)
    assert after.pop("items.db.before-2")
    assert after == before
    upgrade(path)
    assert len(rows(path)) == 20000


def test_long_work_is_told_of_all_the_time(large_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrations, "PROGRESS_SECONDS", 0)
    lines = upgrade(large_copy)
    assert len(lines) > 50
    assert set(lines[1:-1]) == {f"Still upgrading {large_copy}"}
