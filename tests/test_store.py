import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

import store as store_module
from store import Store, StoreError, StoreUnavailable, utc_text
from support import ASSET, OTHER_ASSET, Clock, new_id, rows


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    store = Store(tmp_path / "items.db", listener=True, clock=clock)
    yield store
    store.close()


@pytest.fixture
def row(store: Store, tmp_path: Path) -> Callable[[], sqlite3.Row]:
    """The asset's row, as another program sees it."""

    def read() -> sqlite3.Row:
        [row] = rows(tmp_path / "items.db", f"object_id = '{ASSET}'")
        return row

    return read


Row = Callable[[], sqlite3.Row]


# An item's life


def test_a_created_asset_is_pending(store: Store, row: Row, clock: Clock) -> None:
    assert store.created(ASSET, "a.mov") == "pending"
    assert (row()["status"], row()["title"], row()["created_at"]) == ("pending", "a.mov", utc_text(clock.now))
    assert store.claim() is None


def test_a_closed_proxy_makes_a_pending_item_ready(store: Store, row: Row, clock: Clock) -> None:
    store.created(ASSET, None)
    clock.now += 5
    assert store.proxy_closed(ASSET) == "ready"
    assert row()["proxy_closed_at"] == row()["next_attempt_at"] == utc_text(clock.now)


def test_a_proxy_that_overtakes_its_create_is_not_lost(store: Store, row: Row) -> None:
    assert store.proxy_closed(ASSET) == "early"
    assert store.claim() is None
    assert store.created(ASSET, "a.mov") == "ready"
    assert (row()["title"], row()["proxy_closed_at"] is None) == ("a.mov", False)


def test_a_closed_proxy_of_an_asset_never_created_here_is_never_claimed(store: Store, clock: Clock) -> None:
    store.proxy_closed(ASSET)
    clock.now += 365 * 24 * 3600
    assert store.claim() is None


def test_an_early_item_is_deleted_after_a_day_and_nothing_else_is(store: Store, clock: Clock, tmp_path: Path) -> None:
    store.proxy_closed(ASSET)
    store.created(OTHER_ASSET, None)
    clock.now += 24 * 3600
    store.delete_early(24 * 3600)
    assert len(rows(tmp_path / "items.db")) == 2
    clock.now += 0.001
    store.delete_early(24 * 3600)
    assert [row["object_id"] for row in rows(tmp_path / "items.db")] == [OTHER_ASSET]


def test_claiming_makes_a_due_item_submitting_and_counts_the_attempt(store: Store, row: Row) -> None:
    store.created(ASSET, None)
    store.proxy_closed(ASSET)
    item = store.claim()
    assert item is not None
    assert (item.object_id, item.attempts, item.server_errors) == (ASSET, 1, 0)
    assert (row()["status"], row()["attempts"]) == ("submitting", 1)
    assert store.claim() is None


def test_the_earliest_due_item_is_claimed_first(store: Store, clock: Clock) -> None:
    ids = [new_id() for _ in range(5)]
    for object_id in ids:
        clock.now += 1
        store.created(object_id, None)
        store.proxy_closed(object_id)
    assert [item.object_id for item in iter(store.claim, None) if item] == ids


def test_a_postponed_item_is_due_after_its_delay(store: Store, row: Row, clock: Clock) -> None:
    ready(store)
    store.postponed(ASSET, 10, "iconik answered 503")
    assert (row()["status"], row()["error"], row()["server_errors"]) == ("ready", "iconik answered 503", 0)
    assert store.seconds_until_due() == pytest.approx(10, abs=0.01)
    clock.now += 9.9
    assert store.claim() is None
    clock.now += 0.2
    item = store.claim()
    assert item is not None
    assert item.attempts == 2


def test_errors_of_iconik_over_an_item_are_counted(store: Store, clock: Clock) -> None:
    ready(store)
    store.postponed(ASSET, 0, "iconik answered 500", server_error=True)
    item = store.claim()
    assert item is not None
    assert item.server_errors == 1


def test_a_submitted_item_is_finished(store: Store, row: Row, clock: Clock) -> None:
    ready(store)
    store.postponed(ASSET, 0, "some error")
    store.claim()
    store.submitted(ASSET, "job")
    assert (row()["status"], row()["job_id"], row()["error"]) == ("submitted", "job", None)
    assert (row()["submitted_at"], row()["finished"]) == (utc_text(clock.now), "True")


def test_a_failed_item_keeps_its_error(store: Store, row: Row) -> None:
    ready(store)
    store.failed(ASSET, "iconik answered 404: no asset")
    assert (row()["status"], row()["error"], row()["finished"]) == ("failed", "iconik answered 404: no asset", "False")


def test_items_under_way_when_the_process_ended_become_due_again(store: Store, row: Row, clock: Clock) -> None:
    ready(store)
    assert store.recover(10) == 1
    assert (row()["status"], row()["next_attempt_at"]) == ("ready", utc_text(clock.now + 10))
    assert row()["error"] == "the listener ended before iconik answered"
    clock.now += 10
    item = store.claim()
    assert item is not None
    assert item.attempts == 2


@pytest.mark.parametrize("status", ["pending", "early", "ready", "submitting", "submitted", "failed"])
def test_every_other_event_changes_nothing(store: Store, row: Row, clock: Clock, status: str) -> None:
    if status == "early":
        store.proxy_closed(ASSET)
    else:
        store.created(ASSET, "a.mov")
    if status not in ("early", "pending"):
        store.proxy_closed(ASSET)
    if status in ("submitting", "submitted", "failed"):
        store.claim()
    if status == "submitted":
        store.submitted(ASSET, "job")
    if status == "failed":
        store.failed(ASSET, "error")
    before = tuple(row())
    assert row()["status"] == status
    clock.now += 1
    if status != "early":
        assert store.created(ASSET, "b.mov") == "unchanged"
    if status != "pending":
        assert store.proxy_closed(ASSET) == "unchanged"
    if status != "submitting":
        store.submitted(ASSET, "job2")
        store.failed(ASSET, "error2")
        store.postponed(ASSET, 1, "error2")
        assert store.recover(1) == 0
    assert tuple(row()) == before


def test_a_status_of_another_name_cannot_be_written(store: Store, tmp_path: Path) -> None:
    store.created(ASSET, None)
    with closing(sqlite3.connect(tmp_path / "items.db")) as db:
        for change in ("status = 'done'", "status = 'ready'"):  # ready, but never due
            with pytest.raises(sqlite3.IntegrityError):
                db.execute(f"UPDATE items SET {change}")


def test_pending_items_come_oldest_first_within_their_ages(store: Store, clock: Clock) -> None:
    ids = []
    for _ in range(6):
        ids.append(new_id())
        store.created(ids[-1], None)
        clock.now += 10
    store.proxy_closed(ids[2])
    found = []
    item = store.next_pending(15, 55)
    while item:
        found.append(item.object_id)
        item = store.next_pending(15, 55, after=item)
    assert found == [ids[1], ids[3], ids[4]]


def test_pending_items_of_the_same_moment_are_each_found_once(store: Store, clock: Clock) -> None:
    ids = sorted(new_id() for _ in range(3))
    for object_id in ids:
        store.created(object_id, None)
    found = []
    item = store.next_pending(0, 60)
    while item:
        found.append(item.object_id)
        item = store.next_pending(0, 60, after=item)
    assert found == ids


# For people


def test_the_views_show_problems_and_a_summary(store: Store, tmp_path: Path) -> None:
    ready(store)
    store.failed(ASSET, "refused")
    ready(store, OTHER_ASSET)
    store.postponed(OTHER_ASSET, 60, "503")
    for _ in range(2):
        store.created(new_id(), None)
    with closing(sqlite3.connect(tmp_path / "items.db")) as db:
        problems = db.execute("SELECT object_id, status, error FROM problems").fetchall()
        assert sorted(problems) == sorted([(ASSET, "failed", "refused"), (OTHER_ASSET, "ready", "503")])
        assert dict(db.execute("SELECT * FROM summary").fetchall()) == {"failed": 1, "pending": 2, "ready": 1}


def test_the_articles_query_keeps_working(store: Store, tmp_path: Path) -> None:
    ready(store)
    store.submitted(ASSET, None)
    store.created(OTHER_ASSET, None)
    with closing(sqlite3.connect(tmp_path / "items.db")) as db:
        assert db.execute("select object_id from items where finished='False'").fetchall() == [(OTHER_ASSET,)]


# Durability, and other programs


def test_what_is_stored_is_synced_to_the_disk_before_the_method_returns(store: Store, tmp_path: Path) -> None:
    [mode] = store._run("PRAGMA journal_mode")
    [synchronous] = store._run("PRAGMA synchronous")
    assert (mode[0], synchronous[0]) == ("wal", 2)


def test_no_statement_of_the_service_reads_the_whole_table(store: Store) -> None:
    statements: list[str] = []
    store._connection.set_trace_callback(statements.append)
    store.created(ASSET, None)
    store.proxy_closed(ASSET)
    store.seconds_until_due()
    store.claim()
    store.postponed(ASSET, 0, "error")
    store.claim()
    store.submitted(ASSET, "job")
    store.failed(ASSET, "error")
    store.recover(1)
    store.counts()
    pending = store_module.Pending(ASSET, "2026")
    store.next_pending(1, 2, after=pending)
    store.delete_early(1)
    store._connection.set_trace_callback(None)
    plans = [
        (step["detail"], statement)
        for statement in statements
        if not statement.startswith(("PRAGMA", "--"))
        for step in store._run(f"EXPLAIN QUERY PLAN {statement}")
    ]
    assert len(plans) > 10
    # A partial index holds only what the service still has to look at: to scan that one is no scan of the table.
    scans = [plan for plan in plans if "SCAN" in plan[0] and "INDEX" not in plan[0] and "CONSTANT ROW" not in plan[0]]
    assert scans == []
    assert [plan for plan in plans if "TEMP B-TREE" in plan[0]] == []


def test_two_stores_may_be_used_by_many_threads_and_a_person(store: Store, tmp_path: Path) -> None:
    person = Store(tmp_path / "items.db")
    assert person.created(ASSET, None) == "pending"
    assert store.proxy_closed(ASSET) == "ready"
    person.close()


def test_a_write_waits_for_another_program_then_gives_up_and_leaves_no_trace(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "BUSY_SECONDS", 0.05)
    with closing(sqlite3.connect(tmp_path / "items.db", isolation_level=None)) as person:
        person.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="locked"):
            store.created(ASSET, None)
        assert store.counts()["ready"] == 0  # reading goes on
        person.execute("COMMIT")
        assert store.created(ASSET, None) == "pending"


def test_the_wait_for_other_threads_and_other_programs_is_one_wait(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "BUSY_SECONDS", 0.05)
    with store._exclusively(), pytest.raises(StoreUnavailable, match="locked"):
        store.counts()
    monkeypatch.setattr(store_module, "BUSY_SECONDS", 5)
    store._lock.acquire()
    threading.Timer(0.1, store._lock.release).start()
    [timeout] = store._run("PRAGMA busy_timeout")
    assert 4000 < timeout[0] <= 4900


def test_a_second_listener_is_refused_until_the_first_has_ended(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="another listener is running on it"):
        Store(tmp_path / "items.db", listener=True)
    store.close()
    Store(tmp_path / "items.db", listener=True).close()


# Files that are there already


def article_table(path: Path, *items: tuple[object, object]) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("create table items (object_id,finished);")
        db.executemany("insert into items values (?, ?)", items)
        db.commit()


def test_the_articles_table_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "items.db"
    unfinished, both, upper, finished = (new_id() for _ in range(4))
    article_table(
        path,
        (unfinished, "False"),
        (unfinished, "False"),
        (both, "False"),
        (both, "True"),
        (both, "False"),
        (upper.upper(), "False"),
        (finished, "True"),
        (None, "False"),
        ("../../users", "False"),
    )
    Store(path, listener=True).close()
    assert {row["object_id"]: row["status"] for row in rows(path)} == {
        unfinished: "pending",
        both: "submitted",
        upper: "pending",
        finished: "submitted",
        "../../users": "failed",
    }
    assert rows(path, "status = 'failed'")[0]["error"] == "object_id is no UUID"


def test_what_the_articles_script_may_have_begun_is_asked_for_before_it_is_submitted(tmp_path: Path) -> None:
    article_table(tmp_path / "items.db", (ASSET, "False"))
    with closing(Store(tmp_path / "items.db", listener=True)) as store:
        assert store.next_pending(0, 60) is not None
        store.proxy_closed(ASSET)
        item = store.claim()
    assert item is not None
    assert item.attempts == 2


def test_a_take_over_that_fails_leaves_the_articles_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "items.db"
    article_table(path, (ASSET, "False"))
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE VIEW summary AS SELECT 1")  # a name that ours need
        db.commit()
    with pytest.raises(StoreError, match="summary"):
        Store(path, listener=True)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT * FROM items").fetchall() == [(ASSET, "False")]
        db.execute("DROP VIEW summary")
    Store(path, listener=True).close()


@pytest.mark.parametrize(
    "schema",
    [
        "CREATE TABLE other (a)",
        "CREATE TABLE items (object_id, finished, more)",
        "CREATE TABLE items (object_id, finished); CREATE TABLE other (a)",
        "CREATE TABLE items (object_id, finished); PRAGMA user_version = 1",
        f"{store_module.SCHEMA}; PRAGMA user_version = 2",
        f"{store_module.SCHEMA}; ALTER TABLE items ADD COLUMN more",
        "PRAGMA user_version = 7",
    ],
)
def test_any_other_schema_is_refused_and_nothing_is_changed(tmp_path: Path, schema: str) -> None:
    path = tmp_path / "items.db"
    with closing(sqlite3.connect(path)) as db:
        db.executescript(schema)
    before = path.read_bytes()
    for listener in (True, False):
        with pytest.raises(StoreError, match=r"holds no items of this version of the listener; it was left as it is$"):
            Store(path, listener=listener)
    assert path.read_bytes() == before
    assert {file.name for file in tmp_path.iterdir()} == {"items.db", "items.db.lock"}


def test_a_file_that_is_no_database_is_refused_and_nothing_is_changed(tmp_path: Path) -> None:
    path = tmp_path / "items.db"
    path.write_bytes(b"Dear diary, " * 100)
    with pytest.raises(StoreError, match=r"^\S+items.db: file is not a database$"):
        Store(path, listener=True)
    assert path.read_bytes() == b"Dear diary, " * 100


def test_a_place_where_no_database_can_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="No such file or directory"):
        Store(tmp_path / "missing" / "items.db", listener=True)
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreError, match="unable to open database file"):
        Store(tmp_path / "folder", listener=True)


def test_only_the_listener_makes_a_database(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="does not exist: the listener makes it"):
        Store(tmp_path / "items.db")
    article_table(tmp_path / "old.db", (ASSET, "False"))
    with pytest.raises(StoreError, match="it was left as it is"):
        Store(tmp_path / "old.db")


def test_an_empty_file_becomes_a_database(tmp_path: Path) -> None:
    (tmp_path / "items.db").touch()
    Store(tmp_path / "items.db", listener=True).close()
    assert rows(tmp_path / "items.db") == []


def ready(store: Store, object_id: str = ASSET) -> None:
    """Create an item, and claim it."""
    store.created(object_id, None)
    store.proxy_closed(object_id)
    assert store.claim() is not None
