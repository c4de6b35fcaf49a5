import os
import re
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
from migrations import APPLICATION_ID, SCHEMA, STEPS, MigrationError, Migrations, Step
from support import ASSET, OTHER_ASSET, new_id, rows
from system.database import Database
from system.errors import ListenerError

ROOT = Path(migrations.__file__).parent
DATA = Path(__file__).parent / "data"
VERSION_1_0 = (DATA / "version_1_0.sql").read_text(encoding="utf-8")
VERSION_1_1 = (DATA / "version_1_1.sql").read_text(encoding="utf-8")
NOW = "2026-11-20T12:00:00.000Z"  # shortly after both were cut off: the moment of the upgrade in these tests
AT_NOW = Migrations(clock=lambda: 1795176000.0)
ANY_TIME = "2000-01-01T00:00:00.000Z"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "items.db"


def write(path: Path, script: str, journal_mode: str = "WAL") -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA journal_mode = {journal_mode}")
        db.executescript(script)


def upgrade(path: Path, goal: Migrations = AT_NOW) -> list[str]:
    """Open the database as the listener does, and close it again. Returns the lines about it."""
    lines: list[str] = []
    Database(path, goal, listener=True, progress=lines.append).close()
    return [line for line in lines if not line.endswith("checking that it is whole")]


def left_out(lines: list[str]) -> list[str]:
    """What comes between the first line of an upgrade and the last."""
    return lines[1:-1]


def fetch(path: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as db:
        return db.execute(query).fetchall()


def state(path: Path) -> dict[str, str]:
    """What is remembered, without what the database itself notes there."""
    return dict(fetch(path, "SELECT key, value FROM state WHERE key <> 'checkpoint'"))


def content(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as db:
        return list(db.iterdump())


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file() and file.suffix != ".lock"}


# What becomes of the items


@pytest.mark.parametrize(
    "title, expected",
    [
        ("given up.mov", {"status": "awaiting_proxy", "next_attempt_at": None, "in_doubt_since": None}),
        ("waits for its proxy.mov", {"status": "awaiting_proxy", "next_attempt_at": NOW, "waited": 3 * 86400}),
        ("found by catch-up.mov", {"status": "awaiting_proxy", "in_doubt_since": ANY_TIME, "attempts": 0}),
        ("tried.mov", {"status": "ready", "in_doubt_since": ANY_TIME, "attempts": 1, "last_attempt_at": NOW}),
        ("tried.mov", {"error": "504: Gateway Time-out", "next_attempt_at": "2026-11-20T12:43:40.375Z"}),
        ("found by catch-up, and complete.mov", {"status": "ready", "in_doubt_since": ANY_TIME}),
        ("cut off.mov", {"status": "submitting", "in_doubt_since": ANY_TIME, "last_attempt_at": NOW}),
        ("", {"status": "failed", "error": "404: Asset does not exist", "attempts": 1, "finished": "False"}),
        ("Grüße aus Köln, 東京 🎬.mov", {"status": "done", "finished": "True", "in_doubt_since": None}),
        ("Grüße aus Köln, 東京 🎬.mov", {"submitted_at": "2026-10-21T12:00:20.375Z"}),
        ("Grüße aus Köln, 東京 🎬.mov", {"job_id": "c0ffee00-f0b4-11e7-a36b-0a580a00054a"}),
    ],
)
def test_an_item_of_version_1_0_keeps_its_meaning(path: Path, title: str, expected: dict[str, Any]) -> None:
    write(path, VERSION_1_0)
    upgrade(path)
    [item] = [row for row in rows(path) if row["title"] == title]
    assert {key: item[key] for key in expected} == expected


@pytest.mark.parametrize(
    "title, expected",
    [
        ("Grüße aus Köln, 東京 🎬.mov", {"status": "done", "done_at": "2026-10-21T12:00:20.375Z"}),
        ("""It's "submitted"; -- its job's id was lost.mov""", {"status": "submitted", "done_at": None}),
        ("", {"status": "failed", "error": "404: Asset does not exist", "reason": "404: Asset does not exist"}),
        ("failed in doubt.mov", {"status": "failed", "in_doubt_since": "2026-10-24T12:00:20.000Z"}),
        ("a subclip", {"status": "skipped", "finished": "True", "in_doubt_since": None}),
        ("retried by a person.mov", {"status": "ready", "in_doubt_since": None, "asked": 0, "refused": 0}),
        ("polled no more.mov", {"status": "awaiting_proxy", "next_attempt_at": None, "waited": 0}),
        ("polled.mov", {"next_attempt_at": "2026-11-21T12:00:00.000Z", "waited": 4 * 86400}),
        ("cut off in doubt.mov", {"status": "submitting", "in_doubt_since": "2026-11-20T09:30:20.000Z"}),
        ("cut off.mov", {"status": "submitting", "in_doubt_since": "2026-11-20T11:40:20.125Z"}),
        ("tried.mov", {"status": "ready", "in_doubt_since": None, "backoff": 0, "waited": 0, "source": None}),
        ("in doubt.mov", {"status": "ready", "in_doubt_since": "2026-11-20T11:45:20.000Z", "attempts": 1}),
        (None, {"status": "ready", "last_attempt_at": None, "next_attempt_at": "2026-11-20T11:47:00.000Z"}),
    ],
)
def test_an_item_of_version_1_1_keeps_its_meaning(path: Path, title: str, expected: dict[str, Any]) -> None:
    write(path, VERSION_1_1)
    upgrade(path)
    [item] = [row for row in rows(path) if row["title"] == title and row["created_at"]]
    assert {key: item[key] for key in expected} == expected
    assert item["job"] == "analyze"


@pytest.mark.parametrize("script", [VERSION_1_0, VERSION_1_1], ids=["1.0", "1.1"])
def test_every_row_is_carried_over(path: Path, script: str) -> None:
    kept = "SELECT object_id, title, created_at, proxy_closed_at, submitted_at, job_id, error FROM items"
    write(path, script)
    before = fetch(path, kept)
    upgrade(path)
    assert fetch(path, kept) == before
    [early] = rows(path, "status = 'awaiting_create'")
    assert early["proxy_closed_at"] and not early["next_attempt_at"]


@pytest.mark.parametrize("script", [VERSION_1_0, VERSION_1_1], ids=["1.0", "1.1"])
@pytest.mark.parametrize("time", ["NULL", "'soon'", "x'ff00'", "7", "'9999-99-99T00:00:00Z'", "cast(x'ff' AS TEXT)"])
def test_a_time_that_is_none_stops_nothing(path: Path, script: str, time: str) -> None:
    """A person wrote it. Only a ready item must have one."""
    kept = "SELECT object_id, hex(created_at), typeof(created_at), hex(submitted_at) FROM items"
    values = ", ".join(
        f"{name} = {time}" for name in ("created_at", "proxy_closed_at", "next_attempt_at", "submitted_at")
    )
    write(
        path,
        f"{script} PRAGMA ignore_check_constraints = ON; UPDATE items SET {values}",
    )
    before = fetch(path, kept)
    upgrade(path)
    assert fetch(path, kept) == before
    assert fetch(path, "SELECT count(*) FROM items WHERE waited <> 0") == [(0,)]
    assert fetch(path, "SELECT count(*) FROM items WHERE status = 'ready' AND next_attempt_at IS NULL") == [(0,)]


def test_the_articles_table_is_taken_over(path: Path) -> None:
    third = new_id()
    write(
        path,
        f"""create table items (object_id,finished);
        insert into items values ('{ASSET.upper()}', 'False'), ('{ASSET}', 'True'), ('{OTHER_ASSET}', 'False'),
            ('{OTHER_ASSET}', 'False'), ('{third}', 'True'), ('junk', 'False'), (NULL, 'False'), (7, 'True');
        create view todo as select * from items where finished='False'; create index i on items (finished); analyze""",
        "DELETE",
    )
    assert left_out(upgrade(path)) == []
    items = {row["object_id"]: (row["status"], row["in_doubt_since"], row["next_attempt_at"]) for row in rows(path)}
    assert items == {
        ASSET: ("done", None, None),
        OTHER_ASSET: ("awaiting_proxy", ANY_TIME, NOW),
        third: ("done", None, None),
        "junk": ("failed", None, None),
        "7": ("done", None, None),
    }
    assert {row["created_at"] for row in rows(path)} == {NOW}
    assert fetch(path, "SELECT error FROM items WHERE object_id = 'junk'") == [("object_id is not a UUID",)]
    assert fetch(path, "SELECT object_id FROM todo ORDER BY 1") == sorted([(OTHER_ASSET,), ("junk",)])


# What is remembered

KEPT = {
    "assets_seen_until": "2026-11-20T11:00:00.000Z",
    "registered_url": "https://listener.example.com/iconik/webhook",
    "webhook_enabled_at 7e3c2a9e-f0b4-11e7-a36b-0a580a00054a": "2026-11-01T12:00:00.000Z",
    "webhook_left_disabled 7e3c2a9e-f0b4-11e7-a36b-0a580a00054a": "1",
    "catch_up": "",
    "checked_at": "2026-11-20T08:00:00.000Z",
    "listening_at": "127.0.0.1:5005",
}


@pytest.mark.parametrize(
    "floor, first_start, expected",
    [
        ("2026-10-25T12:00:00.000Z", "2026-10-20T12:00:00.000Z", "2026-10-25T12:00:00.000Z"),
        ("2026-10-20T12:00:00.000Z", "2026-10-25T13:00:00+01:00", "2026-10-25T12:00:00.000Z"),
        ("", "2026-10-25T12:00:00.000Z", "2026-10-25T12:00:00.000Z"),
        ("2026-10-25T12:00:00.000Z", "yesterday", "2026-10-25T12:00:00.000Z"),
        ("2026-10-25T12:00:00.000Z", "9999-99-99T99", "2026-10-25T12:00:00.000Z"),
    ],
)
def test_the_later_floor_of_version_1_1_is_kept(path: Path, floor: str, first_start: str, expected: str) -> None:
    write(
        path,
        f"""{VERSION_1_1} UPDATE state SET value = '{floor}' WHERE key = 'assets_floor';
        UPDATE state SET value = '{first_start}' WHERE key = 'first_started_at'""",
    )
    upgrade(path)
    assert state(path) == {**KEPT, "assets_floor": expected}


@pytest.mark.parametrize(
    ("created_at", "expected"),
    [("2026-11-18T12:00:00.000Z", NOW), ("2026-11-10T12:00:00.000Z", None), (None, None)],
)
def test_what_version_1_1_polled_no_more_within_a_week_is_polled(
    path: Path, created_at: str | None, expected: str | None
) -> None:
    """Its clock was ahead for a moment, or it took half of the time for all of it."""
    write(path, VERSION_1_1)
    with closing(sqlite3.connect(path)) as db:
        values = (created_at, "polled no more.mov")
        db.execute(
            "UPDATE items SET status = 'awaiting_proxy', next_attempt_at = NULL, created_at = ? WHERE title = ?", values
        )
        db.commit()
    upgrade(path)
    assert fetch(path, "SELECT next_attempt_at FROM items WHERE title = 'polled no more.mov'") == [(expected,)]


def test_a_file_of_this_schema_gets_the_indexes_that_it_lacks(path: Path) -> None:
    upgrade(path)
    query = "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL ORDER BY name"
    before = fetch(path, query)
    with closing(sqlite3.connect(path)) as db:
        db.execute("DROP INDEX items_new_uploads")
    upgrade(path)
    assert fetch(path, query) == before


def test_a_listener_that_passed_assets_over_does_so_until_its_first_look(path: Path) -> None:
    write(path, VERSION_1_1 + "UPDATE state SET value = '1' WHERE key = 'assets_passed_over'")
    upgrade(path)
    floor = {"assets_floor": "2026-10-25T12:00:00.000Z"}
    assert state(path) == {**KEPT, **floor, "pass_over_until_seen": "1", "webhook_fingerprint": ""}


def test_without_floors_none_is_made_up(path: Path) -> None:
    write(path, VERSION_1_1 + "DELETE FROM state")
    upgrade(path)
    assert state(path) == {}


def test_a_step_to_an_imaginary_schema_4_loses_nothing(path: Path, tmp_path: Path) -> None:
    """Every table is filled, and every column of items."""
    write(path, VERSION_1_1)
    upgrade(path)
    write(
        path,
        """ALTER TABLE items ADD COLUMN note; ALTER TABLE usage ADD COLUMN note;
        INSERT INTO usage VALUES ('2026-11-19', 'analyze', 7, 2, 'busy'), ('2026-11-20', 'faces', 1, 0, NULL);
        UPDATE items SET source = 'search', version_id = 'v', backoff = 20, waited = 30, refused = 1, asked = 2,
            asked_at = 'a', absent_since = 'b', counted_on = 'c', old_job_id = 'd', profile = 'e', media_type = 'video',
            duration = 1.5, reason = 'f', note = 'g'""",
    )
    columns = ", ".join(column for column in AT_NOW.items_columns(3) if column != "finished")
    before, usage = state(path), fetch(path, "SELECT * FROM usage")
    items = fetch(path, f"SELECT {columns}, upper(title), note FROM items")
    schema = SCHEMA.replace("user_version = 3", "user_version = 4")
    schema = schema.replace("    title           TEXT,\n", "    title TEXT,\n    loud TEXT,\n")
    schema = schema.replace(
        "    found   INTEGER NOT NULL DEFAULT 0,\n", "    found INTEGER,\n    lost INTEGER DEFAULT 5,\n"
    )
    step = Step(f"SELECT {columns}, upper(title) AS loud {{extra}} FROM {{items}}", "UPDATE usage SET lost = lost + 1;")
    lines = upgrade(path, Migrations(schema, (*STEPS, step)))
    assert left_out(lines) == []
    assert fetch(path, f"SELECT {columns}, loud, note FROM items") == items
    assert fetch(path, "SELECT day, job, started, found, note FROM usage") == usage
    assert fetch(path, "SELECT DISTINCT lost FROM usage") == [(6,)]
    assert state(path) == before
    assert {"items.db", "items.db.before-3", "items.db.before-4"} <= set(files(tmp_path))


# The file afterwards


@pytest.mark.parametrize("script", [VERSION_1_0, VERSION_1_1], ids=["1.0", "1.1"])
def test_an_upgraded_database_has_the_schema_of_a_new_one(path: Path, tmp_path: Path, script: str) -> None:
    write(path, script)
    upgrade(path)
    upgrade(tmp_path / "new.db")
    schemas = []
    for file in (path, tmp_path / "new.db"):
        marks = fetch(file, "PRAGMA application_id") + fetch(file, "PRAGMA user_version")
        schemas.append((marks, set(fetch(file, "SELECT type, name, sql FROM sqlite_master"))))
        assert fetch(file, "PRAGMA integrity_check") == [("ok",)]
    assert schemas[0] == schemas[1]
    assert schemas[0][0] == [(APPLICATION_ID,), (3,)]


def test_a_second_start_changes_nothing(path: Path, tmp_path: Path) -> None:
    write(path, VERSION_1_0)
    assert len(upgrade(path)) == 2
    before = rows(path)
    assert upgrade(path) == []
    assert rows(path) == before
    assert sorted(files(tmp_path)) == ["items.db", "items.db.before-3"]


def test_what_was_written_last_is_not_lost_when_version_1_0_was_killed(path: Path) -> None:
    leave_wal(VERSION_1_0, "items.db", "items.db-wal")(path)
    upgrade(path)
    assert len(rows(path)) == 12


def test_the_copy_has_the_content_and_the_mode_of_the_file(path: Path, tmp_path: Path) -> None:
    write(path, VERSION_1_0)
    before = content(path)
    path.chmod(0o640)
    lines = upgrade(path)
    copy = tmp_path / "items.db.before-3"
    assert lines[-1].endswith(f"what it was before is kept as {copy}")
    assert copy.stat().st_mode & 0o777 == 0o640
    assert content(copy) == before
    assert fetch(copy, "PRAGMA user_version") == [(1,)]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a file away")
def test_the_copy_belongs_to_whom_the_file_belongs(path: Path, tmp_path: Path) -> None:
    write(path, VERSION_1_0)
    os.chown(path, 65534, 65534)
    upgrade(path)
    stat = (tmp_path / "items.db.before-3").stat()
    assert (stat.st_uid, stat.st_gid) == (65534, 65534)


def test_earlier_copies_are_not_overwritten(path: Path, tmp_path: Path) -> None:
    write(path, VERSION_1_0)
    for name in ("items.db.before-2", "items.db.before-3"):
        (tmp_path / name).write_text("precious")
    assert upgrade(path)[-1].endswith("items.db.before-3.1")
    assert files(tmp_path)["items.db.before-2"] == files(tmp_path)["items.db.before-3"] == b"precious"


def test_the_copy_can_be_put_back_and_upgraded_again(path: Path, tmp_path: Path) -> None:
    write(path, VERSION_1_0)
    upgrade(path)
    write(tmp_path / "items.db.before-3", "", "DELETE")
    for name in ("items.db", "items.db.lock"):
        (tmp_path / name).unlink()
    shutil.copy(tmp_path / "items.db.before-3", path)
    upgrade(path)
    assert len(rows(path)) == 12
    assert sorted(files(tmp_path)) == ["items.db", "items.db.before-3"]


def test_a_new_database_needs_no_copy(path: Path, tmp_path: Path) -> None:
    write(path, "VACUUM")  # as version 1.0 left it when it was killed at its first start
    assert upgrade(path) == []
    assert sorted(files(tmp_path)) == ["items.db"]


# What people added


@pytest.fixture
def people(path: Path) -> Callable[[str], list[str]]:
    """Upgrades a database of version 1.1 to which people added that. Returns the lines between first and last."""

    def upgraded(script: str) -> list[str]:
        write(path, VERSION_1_1 + script)
        return left_out(upgrade(path))

    return upgraded


def test_peoples_columns_keep_types_defaults_and_values(people: Callable[[str], list[str]], path: Path) -> None:
    lines = people(
        """ALTER TABLE items ADD COLUMN "my note" TEXT NOT NULL DEFAULT 'it''s new';
        ALTER TABLE items ADD COLUMN price DECIMAL(10,2);
        ALTER TABLE items ADD COLUMN Source INTEGER DEFAULT "two";
        ALTER TABLE items ADD COLUMN double AS (attempts * 2);
        ALTER TABLE state ADD COLUMN why;
        UPDATE state SET why = 'because'; UPDATE items SET price = 1.5, Source = 42 WHERE title = 'tried.mov'"""
    )
    write(path, f"INSERT INTO items (object_id, status) VALUES ('{ASSET}', 'awaiting_proxy')")
    query = """SELECT "my note", price, source, Source_before_3 FROM items WHERE"""
    assert fetch(path, f"{query} title = 'tried.mov'") == [("it's new", 1.5, None, 42)]
    assert fetch(path, f"{query} object_id = '{ASSET}'") == [("it's new", None, None, "two")]
    assert fetch(path, "SELECT why FROM state WHERE key = 'catch_up'") == [("because",)]
    assert lines == [
        "The column Source is named Source_before_3 now: the listener needs its name",
        f"The column double is left out (it is generated); {path}.before-3 has it",
    ]


def test_a_column_named_like_one_that_came_and_went_is_kept(path: Path) -> None:
    write(path, VERSION_1_0 + "ALTER TABLE items ADD COLUMN ready_at; UPDATE items SET ready_at = 'mine'")
    assert left_out(upgrade(path)) == []
    assert fetch(path, "SELECT DISTINCT ready_at FROM items") == [("mine",)]


def test_a_default_may_be_an_expression(people: Callable[[str], list[str]], path: Path) -> None:
    people("DELETE FROM items; ALTER TABLE items ADD COLUMN day DEFAULT (1 + 1)")
    write(path, f"INSERT INTO items (object_id, status) VALUES ('{ASSET}', 'awaiting_proxy')")
    assert fetch(path, "SELECT day FROM items") == [(2,)]


def test_peoples_tables_indexes_triggers_and_views_go_on(people: Callable[[str], list[str]], path: Path) -> None:
    lines = people(
        """CREATE TABLE log (object_id REFERENCES items (object_id), status);
        CREATE TRIGGER noted AFTER UPDATE OF status ON items
            BEGIN INSERT INTO log VALUES (new.object_id, new.status); END;
        CREATE UNIQUE INDEX by_title ON items (title, object_id);
        ALTER TABLE items ADD COLUMN "my note";
        CREATE VIEW latest AS SELECT * FROM created_later;
        CREATE VIEW created_later AS SELECT title FROM items WHERE created_at > '2026-11';
        CREATE TRIGGER typed INSTEAD OF INSERT ON latest BEGIN INSERT INTO log VALUES (new.title, ''); END;"""
    )
    assert lines == []
    assert fetch(path, "SELECT * FROM log") == []
    assert len(fetch(path, "SELECT * FROM latest")) > 5
    write(path, "INSERT INTO latest VALUES ('typed'); UPDATE items SET status = 'failed' WHERE title = 'tried.mov'")
    assert [status for _, status in fetch(path, "SELECT * FROM log")] == ["", "failed"]
    assert fetch(path, "SELECT tbl_name FROM sqlite_master WHERE name = 'by_title'") == [("items",)]


def test_a_trigger_that_refuses_every_write_stops_no_upgrade(people: Callable[[str], list[str]], path: Path) -> None:
    refuse = "BEGIN SELECT raise(ABORT, 'no'); END;"
    assert (
        people(f"CREATE TRIGGER a BEFORE INSERT ON items {refuse} CREATE TRIGGER b BEFORE UPDATE ON state {refuse}")
        == []
    )
    with pytest.raises(sqlite3.IntegrityError, match="no"):
        write(path, "INSERT INTO items (object_id, status) VALUES ('', 'failed')")


@pytest.mark.parametrize(
    "kind, script",
    [
        ("view", "CREATE VIEW mine AS SELECT ready_at FROM items"),
        ("view", "CREATE VIEW usage AS SELECT 1 AS mine"),
        ("index", "CREATE INDEX mine ON items (in_doubt)"),
        ("trigger", "CREATE TRIGGER mine AFTER UPDATE OF job_id ON items BEGIN SELECT new.ready_at; END"),
        ("trigger", "CREATE TRIGGER mine AFTER INSERT ON items WHEN new.in_doubt BEGIN SELECT 1; END"),
        ("view", 'CREATE VIEW "mi\nne" AS SELECT ready_at FROM items'),
    ],
)
def test_what_does_not_fit_any_more_is_named(
    people: Callable[[str], list[str]], path: Path, tmp_path: Path, kind: str, script: str
) -> None:
    [line] = people(script)
    assert re.match(rf"The {kind} (mine|mi ne|usage) is left out \(", line)
    assert line.endswith("items.db.before-3 has it")
    assert "\n" not in line
    write(path, "INSERT INTO items (object_id, status) VALUES ('', 'failed'); UPDATE items SET job_id = 'a'")
    assert (script,) in fetch(tmp_path / "items.db.before-3", "SELECT sql FROM sqlite_master")


def test_peoples_tables_make_room_for_those_of_the_listener(people: Callable[[str], list[str]], path: Path) -> None:
    lines = people(
        """CREATE TABLE Usage (a); INSERT INTO Usage VALUES (1); CREATE TABLE items_done (b);
        CREATE TABLE mine (c); CREATE INDEX items_refused ON mine (c); CREATE INDEX kept ON mine (c)"""
    )
    assert lines == [
        "The table items_done is named items_done_before_3 now: the listener needs its name",
        "The table usage is named usage_before_3 now: the listener needs its name",
        "The index items_refused is left out (index items_refused already exists); " + f"{path}.before-3 has it",
    ]
    assert fetch(path, "SELECT a FROM usage_before_3") == [(1,)]
    assert fetch(path, "SELECT tbl_name FROM sqlite_master WHERE name = 'kept'") == [("mine",)]


def test_a_database_is_called_upgraded_only_once_that_is_committed(path: Path) -> None:
    write(path, VERSION_1_0)
    seen = []
    Database(
        path,
        AT_NOW,
        listener=True,
        progress=lambda line: seen.append((line.split()[1], fetch(path, "PRAGMA user_version"))),
    ).close()
    assert seen == [(str(path), [(1,)]), ("is", [(3,)])]


def test_an_upgrade_that_fails_leaves_nothing_half_done(path: Path) -> None:
    write(path, VERSION_1_0 + "CREATE TABLE items_before_3 (a)")
    before = content(path)
    with pytest.raises(ListenerError, match="already another table"):
        upgrade(path)
    assert content(path) == before


def test_foreign_keys_of_peoples_tables_do_not_bar_the_upgrade(path: Path) -> None:
    notes = "CREATE TABLE notes (id, FOREIGN KEY (id) REFERENCES items (object_id) ON DELETE CASCADE)"
    write(path, f"{VERSION_1_0} {notes}; INSERT INTO notes SELECT object_id FROM items")
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA foreign_keys = ON")  # as some builds of SQLite have it
        migrations.prepare(db, path, may_write=True, progress=print)
        assert db.execute("SELECT count(*) FROM notes JOIN items ON id = object_id").fetchone() == (12,)
        assert db.execute("PRAGMA legacy_alter_table").fetchone() == (0,)


def test_what_people_add_to_todays_schema_disturbs_nothing(path: Path) -> None:
    upgrade(path)
    write(path, "ALTER TABLE items ADD COLUMN note; ALTER TABLE state ADD COLUMN note; CREATE TABLE mine (a)")
    assert upgrade(path) == []


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
        shutil.rmtree(elsewhere)

    return make


def leave_journal(path: Path, script: str, *changes: str) -> None:
    """A database whose program was killed in the middle of a transaction."""
    write(path, script, "DELETE")
    subprocess.run([sys.executable, "-c", LEAVE_JOURNAL, str(path), *changes], check=False, timeout=30)
    assert (path.parent / "items.db-journal").stat().st_size


LEAVE_JOURNAL = """
import os, signal, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA cache_size = 1")
for statement in ("BEGIN", *sys.argv[2:]):
    db.execute(statement)
db.executemany("INSERT INTO b VALUES (?)", [("x" * 5000,)] * 50)
os.kill(os.getpid(), signal.SIGKILL)
"""

FOREIGN = "CREATE TABLE items (a); CREATE TABLE b (c);"
NEWER = f"{SCHEMA} PRAGMA user_version = 4;"
MARKED = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = 2;"
OTHERS = "it is another program's"
REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "text": (lambda path: path.write_text("object_id,finished\n"), "it is not an SQLite database"),
    "a few bytes": (lambda path: path.write_bytes(b"SQLite"), "it is not an SQLite database"),
    "another program's": (database(FOREIGN), OTHERS),
    "another program's, no WAL": (database(FOREIGN, "DELETE"), OTHERS),
    "another program's, killed": (leave_wal(FOREIGN, "items.db", "items.db-wal"), OTHERS),
    "another program's, killed without WAL": (lambda path: leave_journal(path, FOREIGN), OTHERS),
    "another program's, running": (leave_wal(FOREIGN, "items.db", "items.db-wal", "items.db-shm"), OTHERS),
    "another application's": (database("PRAGMA application_id = 7; CREATE TABLE a (b)"), OTHERS),
    "only a view": (database("CREATE VIEW items AS SELECT 1 AS object_id, 2 AS finished"), OTHERS),
    "nearly the article's": (database("CREATE TABLE items (object_id, finished, a)"), OTHERS),
    "the article's and more": (database("CREATE TABLE items (object_id, finished); CREATE TABLE a (b)"), OTHERS),
    "version 1 of another's": (database(FOREIGN + "PRAGMA user_version = 1"), "its table items has no "),
    "version 2 of another's": (database(FOREIGN + "PRAGMA user_version = 2"), OTHERS),
    "marked, with other items": (database(FOREIGN + MARKED), "its table items has no "),
    "newer": (database(NEWER), "has schema 4, and this version of the listener knows schema 3 at most"),
    "newer, killed": (leave_wal(NEWER, "items.db", "items.db-wal"), "has schema 4, and this version"),
    "negative": (database("PRAGMA user_version = -1; CREATE TABLE a (b)"), OTHERS),
    "without a column": (database(SCHEMA + "ALTER TABLE state DROP COLUMN value"), "its table state has no value"),
    "without a table": (database(SCHEMA + "DROP TABLE usage"), "its table usage has no day"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("listener", [True, False], ids=["listener", "command"])
def test_a_file_that_is_not_ours_is_refused_in_one_line(path: Path, tmp_path: Path, kind: str, listener: bool) -> None:
    """Not a byte changes. Beside the file there may be an -shm afterwards, and only if there was a -wal."""
    make, reason = REFUSED[kind]
    make(path)
    before = files(tmp_path)
    with pytest.raises(MigrationError, match=reason) as refused:
        Database(path, migrations, listener=listener, progress=print)
    assert str(refused.value).startswith(f"{path} ")
    assert "\n" not in str(refused.value)
    after = files(tmp_path)
    if "items.db-wal" in before:
        before.pop("items.db-shm", None)
        after.pop("items.db-shm", None)
    assert after == before


def test_a_transaction_that_was_cut_off_is_undone_before_the_upgrade(path: Path) -> None:
    leave_journal(path, VERSION_1_1, "CREATE TABLE b (c)", "DROP TABLE state", "DROP TABLE items")
    upgrade(path)
    assert len(rows(path)) == 15
    assert state(path)["registered_url"] == KEPT["registered_url"]


def test_a_folder_and_a_pipe_are_refused(path: Path) -> None:
    os.mkfifo(path)
    for file in (path, path.parent):
        with pytest.raises(MigrationError, match="is not a file"):
            migrations.inspect(file)


def test_a_command_leaves_the_upgrade_to_the_listener(path: Path, tmp_path: Path) -> None:
    write(path, VERSION_1_0)
    before = files(tmp_path)
    with pytest.raises(MigrationError, match="is not upgraded to this version yet: start the listener once"):
        Database(path, migrations, listener=False, progress=print)
    assert files(tmp_path) == before


def test_a_database_that_a_person_holds_is_upgraded_later(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("system.database.BUSY_SECONDS", 0.02)
    write(path, VERSION_1_1)
    with closing(sqlite3.connect(path, isolation_level=None)) as person:
        person.execute("BEGIN IMMEDIATE")
        with pytest.raises(ListenerError, match="locked"):
            upgrade(path)
        person.execute("COMMIT")
        assert len(upgrade(path)) == 2  # while the person only has it open


# Little space, and cut off in the middle

MANY = 50_000


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of version 1.1 with 50,000 items, in all statuses, and a view that does not fit any more."""
    path = tmp_path_factory.mktemp("large") / "items.db"
    write(
        path,
        f"""{VERSION_1_1} CREATE VIEW old AS SELECT ready_at FROM items;
        PRAGMA synchronous = OFF;
        WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {MANY - 15})
        INSERT INTO items (object_id, title, status, created_at, attempts, next_attempt_at)
        SELECT printf('%08x-0000-11e7-a36b-%012x', n * 2654435761 % 4294967296, n), 'item ' || n,
            CASE n % 10 WHEN 0 THEN 'awaiting_proxy' WHEN 1 THEN 'ready' WHEN 2 THEN 'failed' ELSE 'submitted' END,
            '{NOW}', n % 3, '{NOW}' FROM numbers""",
    )
    return path


@pytest.fixture
def large_copy(large: Path, path: Path) -> Path:
    shutil.copy(large, path)
    return path


def check_upgraded(path: Path) -> None:
    assert fetch(path, "SELECT count(*), count(DISTINCT title) FROM items") == [(MANY, MANY - 2)]
    assert fetch(path, "SELECT count(*) FROM items WHERE status = 'ready'") == [(5003,)]
    assert fetch(path, "PRAGMA integrity_check") == [("ok",)]
    assert sorted(files(path.parent)) == ["items.db", "items.db.before-3"]


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
    if len(lines) == int(sys.argv[2]) or sys.argv[3] in line:
        os.kill(os.getpid(), signal.SIGKILL)
Database(Path(sys.argv[1]), migrations, listener=True, progress=progress)
"""


@pytest.mark.long
@pytest.mark.parametrize(
    "lines, line, left",
    [
        (10, "is left out", {"items.db.before-3.part"}),
        (120, "is left out", {"items.db-journal", "items.db.before-3"}),
        (0, "is left out", {"items.db-journal", "items.db.before-3"}),
        (0, "is upgraded", {"items.db.before-3"}),
    ],
    ids=["copying", "filling", "just before the commit", "just after the commit"],
)
def test_an_upgrade_that_is_killed_is_done_at_the_next_start(
    large_copy: Path, tmp_path: Path, lines: int, line: str, left: set[str]
) -> None:
    process = [sys.executable, "-c", UPGRADE_AND_DIE, str(large_copy), str(lines), line]
    assert subprocess.run(process, cwd=ROOT, check=False, timeout=60).returncode == -signal.SIGKILL
    assert files(tmp_path).keys() == {"items.db", *left}
    upgrade(large_copy)
    check_upgraded(large_copy)
    copy = tmp_path / "items.db.before-3"
    assert fetch(copy, "PRAGMA user_version") == [(2,)]
    assert fetch(copy, "SELECT count(*) FROM items") == [(MANY,)]


def test_too_little_space_is_one_line_before_anything_changes(path: Path, tmp_path: Path) -> None:
    write(path, VERSION_1_1)
    before = path.read_bytes()
    size = shutil.disk_usage(tmp_path).free // 2
    os.truncate(path, size)  # the rest is a hole
    with pytest.raises(MigrationError, match=r"its disk has \d+ MB free.*, then start the listener again") as refused:
        upgrade(path)
    assert f" has {3 * size // 1_000_000 + 1} MB free," in str(refused.value)
    assert "\n" not in str(refused.value)
    assert path.stat().st_size == size
    with path.open("rb") as stream:
        assert stream.read(len(before)) == before
    assert {file.name for file in tmp_path.iterdir()} <= {"items.db", "items.db.lock"}


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.long
@pytest.mark.parametrize("part", [0.5, 1.1], ids=["copying", "filling"])
def test_on_a_disk_that_gets_full_the_database_stays_as_it_is(large: Path, large_copy: Path, part: float) -> None:
    size = large.stat().st_size
    before = content(large)
    with (
        largest_file(int(size * part)),
        pytest.raises(MigrationError, match=r"could not be upgraded and is as it was \(.* has (\d+) MB free") as full,
    ):
        upgrade(large_copy)
    assert "\n" not in str(full.value)
    assert f" {3 * size // 1_000_000 + 1} MB free, then start the listener again" in str(full.value)
    assert content(large_copy) == before
    assert fetch(large_copy, "PRAGMA user_version") == [(2,)]
    upgrade(large_copy)
    check_upgraded(large_copy)


def test_long_work_is_told_of_all_the_time(large_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrations, "PROGRESS_SECONDS", 0)
    lines = left_out(upgrade(large_copy))
    assert len(lines) > 50
    assert {line for line in lines if "left out" not in line} == {f"Still upgrading {large_copy}"}
