import itertools
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from store import Store
from support import APP, ASSET, OTHER_ASSET, let_everybody_in, new_id, rows
from system import database, database_files
from system.database import StoreError, StoreRefused, StoreUnavailable, listener_runs, lock_path
from system.errors import ListenerError


def test_what_is_stored_is_synced_to_the_disk_before_the_method_returns(store: Store) -> None:
    [mode] = store.database.run("PRAGMA journal_mode")
    [synchronous] = store.database.run("PRAGMA synchronous")
    assert (mode[0], synchronous[0]) == ("wal", 2)


def test_two_stores_may_be_used_by_many_threads_and_a_person(store: Store, tmp_path: Path) -> None:
    with closing(Store(tmp_path / "items.db")) as person:
        assert person.add_asset(ASSET, None) == "awaiting_proxy"
        assert store.proxy_closed(ASSET) == "ready"


def test_a_write_waits_for_another_program_then_gives_up_and_leaves_no_trace(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store.database, "max_wait", 0.05)
    with closing(sqlite3.connect(tmp_path / "items.db", isolation_level=None)) as person:
        person.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="locked"):
            store.add_asset(ASSET, None)
        assert store.overview() == []  # reading goes on
        person.execute("COMMIT")
        assert store.add_asset(ASSET, None) == "awaiting_proxy"


def test_one_thread_waits_for_another_no_longer_than_five_seconds(store: Store) -> None:
    assert store.database.max_wait == database.BUSY_SECONDS == 5
    with (
        store.database.waiting_up_to(0.02),
        store.database.transaction(),
        pytest.raises(StoreUnavailable, match="locked"),
    ):
        store.overview()


def test_an_impatient_database_does_not_wait(store: Store, tmp_path: Path) -> None:
    with (
        closing(sqlite3.connect(tmp_path / "items.db", isolation_level=None)) as person,
        store.database.waiting_up_to(0.1),
    ):
        person.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="locked"):
            store.add_asset(ASSET, None)
    assert store.database.max_wait == 5


def test_a_transaction_is_written_whole_or_not_at_all(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), store.database.transaction() as db:
        db.execute("INSERT INTO state VALUES ('a', '1')")
        _ = 1 / 0
    assert store.state("a") is None
    with pytest.raises(StoreUnavailable), store.database.transaction() as db:
        db.execute("INSERT INTO state VALUES ('a', '1')")
        db.execute("INSERT INTO nonsense VALUES (1)")
    assert store.state("a") is None
    store.set_state("a", "2")


def test_text_that_is_not_utf_8_stops_neither_start_nor_claim_nor_webhook(tmp_path: Path) -> None:
    """A byte that a person wrote into one row is that row's trouble."""
    path, bad = tmp_path / "items.db", "CAST(x'ff41fe' AS TEXT)"
    with closing(Store(path, listener=True)) as store:
        columns = [column["name"] for column in store.database.run("PRAGMA table_info(items)")]
    times = [name for name in columns if name.endswith(("_at", "_since"))]
    for column, status in itertools.product(times, ("ready", "submitting", "awaiting_proxy", "submitted")):
        object_id = new_id()
        with closing(sqlite3.connect(path)) as person:
            person.execute(
                "INSERT INTO items (object_id, job, status, next_attempt_at, last_attempt_at)"
                " VALUES (?, 'analyze', ?, '2999', '2026')",
                [object_id, status],
            )
            person.execute(f"UPDATE items SET {column} = {bad}, title = {bad} WHERE object_id = ?", [object_id])
            person.commit()
        with closing(Store(path, listener=True)) as store:
            store.recover()
            while store.claim_retry() or store.claim_new() or store.claim_poll():
                pass
            store.health()
            store.overview()
            assert store.proxy_closed(object_id)
            assert store.add_asset(new_id(), None) == "awaiting_proxy"
            assert store.database.run(f"SELECT {bad} AS text")[0]["text"] == "\ufffdA\ufffd"


@pytest.mark.parametrize(
    "value", ["NULL", "x'ff'", "'9999-12-31T23:59:59Z'", "7", "1e300", "''", "CAST(x'ff' AS TEXT)"]
)
def test_no_value_is_too_odd_for_arithmetic_with_times(store: Store, value: str) -> None:
    value = f"CAST({value} AS BLOB)"
    for other in ("NULL", "1e12", "1e300", "'x'", "x'00'", "'2026-11-23T16:47:00Z'", value):
        [row] = store.database.run(
            f"""SELECT later({value}, {other}) AS later,
                seconds_between({value}, {other}) AS a, seconds_between({other}, {value}) AS b"""
        )
        assert row["later"] is None
        assert row["a"] is None or row["a"] == -row["b"]


def test_a_row_that_a_trigger_protects_is_refused_not_unavailable(store: Store) -> None:
    store.add_asset(ASSET, None)
    store.database.run("CREATE TRIGGER mine BEFORE UPDATE ON items BEGIN SELECT raise(ABORT, 'hands off'); END")
    with pytest.raises(StoreRefused, match="the database refuses to change this row: hands off"):
        store.proxy_closed(ASSET)
    with pytest.raises(StoreRefused, match="hands off"), store.database.transaction() as db:
        db.execute("INSERT INTO state (key, value) VALUES ('a', '1')")
        db.execute("UPDATE items SET title = 'x'")
    assert (store.state("a"), store.database.error) == (None, None)
    assert store.add_asset(OTHER_ASSET, None) == "awaiting_proxy"


def test_a_transaction_waits_as_long_as_it_says(store: Store, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "items.db", isolation_level=None)) as person:
        person.execute("BEGIN IMMEDIATE")
        start = time.monotonic()
        with pytest.raises(StoreUnavailable, match="locked"), store.database.transaction(wait=0.05):
            pass
        assert time.monotonic() - start < database.BUSY_SECONDS / 2
        assert store.database.run("PRAGMA busy_timeout")[0][0] == 5000


# One listener


def test_a_second_listener_is_refused_until_the_first_has_ended(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_files, "LOCK_SECONDS", 0.02)
    with pytest.raises(StoreError, match="another listener is running on it"):
        Store(tmp_path / "items.db", listener=True)
    store.close()
    Store(tmp_path / "items.db", listener=True).close()


def test_whether_a_listener_runs_can_be_told_without_disturbing_it(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "items.db"
    lock_path(path).chmod(0o444)
    assert listener_runs(path)
    store.close()
    assert not listener_runs(path)
    assert not listener_runs(tmp_path / "other.db")
    assert not lock_path(tmp_path / "other.db").exists()


# Files that are gone, or damaged


@pytest.mark.parametrize("name", ["items.db", "items.db-wal", "items.db-shm", "items.db.lock"])
def test_a_file_that_is_deleted_is_noticed_by_the_next_write(store: Store, tmp_path: Path, name: str) -> None:
    store.add_asset(ASSET, None)
    (tmp_path / name).unlink()
    with pytest.raises(StoreUnavailable, match=r"was deleted or replaced under the listener: (stop|restart) it"):
        store.add_asset(OTHER_ASSET, None)
    with pytest.raises(StoreUnavailable):
        store.health()


@pytest.mark.parametrize("name", ["items.db", "items.db-wal", "items.db-shm", "items.db.lock"])
def test_a_file_that_is_deleted_is_noticed_without_a_write(store: Store, tmp_path: Path, name: str) -> None:
    store.add_asset(ASSET, None)
    (tmp_path / name).unlink()
    with pytest.raises(StoreUnavailable, match="was deleted"):
        store.health()
    with pytest.raises(StoreUnavailable, match="was deleted"):
        store.add_asset(ASSET, None)  # it would change nothing, and its answer be 200


@pytest.mark.parametrize("name", ["items.db", "items.db-wal", "items.db-shm", "items.db.lock"])
def test_right_after_a_write_nothing_is_written_beside_a_file_that_is_gone(
    store: Store, tmp_path: Path, name: str
) -> None:
    """D1: another program may write there by now, and what is written without its -shm would undo that."""
    store.add_asset(ASSET, None)
    (tmp_path / name).unlink()
    wal = tmp_path / "items.db-wal"
    before = wal.read_bytes() if wal.exists() else b""
    with pytest.raises(StoreUnavailable, match="was deleted or replaced under the listener"):
        store.add_asset(OTHER_ASSET, None)
    assert (wal.read_bytes() if wal.exists() else b"") == before


def test_a_file_that_goes_during_a_write_is_noticed_before_it_is_answered(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="was deleted or replaced"), store.database.transaction() as db:
        db.execute("INSERT INTO items (object_id, status) VALUES (?, 'awaiting_proxy')", [ASSET])
        (tmp_path / "items.db").unlink()


def test_a_file_that_is_replaced_is_noticed_by_the_next_write(store: Store, tmp_path: Path) -> None:
    shutil.copy(tmp_path / "items.db", tmp_path / "copy")
    (tmp_path / "copy").rename(tmp_path / "items.db")
    with pytest.raises(StoreUnavailable, match="was deleted or replaced"):
        store.add_asset(ASSET, None)


def test_a_restore_beside_an_old_wal_does_not_end_in_service(tmp_path: Path) -> None:
    path = tmp_path / "items.db"
    with closing(Store(path, listener=True)) as store:
        store.database.run("PRAGMA synchronous = OFF")
        for number in range(2000):
            store.add_asset(new_id(), "a.mov")
            if number == 500:
                with closing(sqlite3.connect(path)) as person, closing(sqlite3.connect(tmp_path / "backup")) as backup:
                    person.backup(backup)
        store.database.run("PRAGMA wal_checkpoint(TRUNCATE)")
        for _ in range(100):
            store.add_asset(new_id(), "b.mov")
        shutil.copy(f"{path}-wal", tmp_path / "old-wal")  # what a kill leaves behind
    shutil.copy(tmp_path / "backup", path)
    shutil.copy(tmp_path / "old-wal", f"{path}-wal")
    refused_as_damaged(path)


def test_an_index_that_lacks_a_row_does_not_end_in_service(tmp_path: Path) -> None:
    """This too is what such a restore leads to, and PRAGMA quick_check does not see it."""
    path = tmp_path / "items.db"
    Store(path, listener=True).close()
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        index = db.execute("SELECT * FROM sqlite_master WHERE name = 'items_awaiting_proxy'").fetchone()
        db.execute("PRAGMA writable_schema = ON")
        db.execute("DELETE FROM sqlite_master WHERE name = 'items_awaiting_proxy'")
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("INSERT INTO items (object_id, status) VALUES (?, 'awaiting_proxy')", [ASSET])
        db.execute("PRAGMA writable_schema = ON")
        db.execute("INSERT INTO sqlite_master VALUES (?, ?, ?, ?, ?)", index)
        shutil.copy(f"{path}-wal", tmp_path / "old-wal")
    shutil.copy(tmp_path / "old-wal", f"{path}-wal")
    refused_as_damaged(path)


def refused_as_damaged(path: Path) -> None:
    with pytest.raises(StoreError, match=r"items\.db is damaged \(.+\): restore a backup, as docs/operating\.md says$"):
        Store(path, listener=True)


def test_the_wal_shrinks_again_after_a_reader_is_gone(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [limit] = store.database.run("PRAGMA journal_size_limit")
    assert limit[0] == database.MAX_WAL_BYTES
    store.database.run("PRAGMA journal_size_limit = 100000")
    wal = tmp_path / "items.db-wal"
    with closing(sqlite3.connect(tmp_path / "items.db", isolation_level=None)) as person:
        person.execute("BEGIN")
        person.execute("SELECT * FROM items").fetchall()
        for _ in range(200):
            store.add_asset(new_id(), "x" * 200)
        assert wal.stat().st_size > 1_000_000
    store.database.run("PRAGMA wal_checkpoint(RESTART)")
    store.add_asset(ASSET, None)
    assert wal.stat().st_size <= 100_000


# Places


def test_only_the_listener_creates_a_database(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="does not exist: the listener creates it"):
        Store(tmp_path / "items.db")
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_is_gone_is_not_taken_for_one_that_was_never_there(tmp_path: Path) -> None:
    (tmp_path / "backups").mkdir()
    (tmp_path / "backups" / "items-2026-11-26T101502Z.db").touch()
    remedy = r"restore a backup, as docs/operating\.md says"
    with pytest.raises(StoreError, match=f"does not exist, and there are backups of it: {remedy}$"):
        Store(tmp_path / "items.db")
    (tmp_path / "items.db-wal").write_bytes(b"what was not in items.db yet")
    with pytest.raises(StoreError, match=r"is missing, but its -wal file is there: its items are lost"):
        Store(tmp_path / "items.db")


def test_an_empty_file_becomes_a_database(tmp_path: Path) -> None:
    (tmp_path / "items.db").touch()
    Store(tmp_path / "items.db", listener=True).close()
    assert rows(tmp_path / "items.db") == []


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=rf"the folder {tmp_path}/missing does not exist"):
        Store(tmp_path / "missing" / "items.db", listener=True)


def test_a_folder_is_not_a_database(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ListenerError, match=r"folder"):
        Store(tmp_path / "folder", listener=True)


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user")
AS_NOBODY = """
import os, sys
import urllib.parse  # which pathlib imports when it needs it, and nobody may not, if this Python is root's
from pathlib import Path
from system.database import StoreUnavailable
from system.errors import ListenerError
from store import Store
os.setgid(65534); os.setuid(65534)
try:
    Store(Path(sys.argv[1]), listener=sys.argv[2] == "listener").set_state("a", "1")
except ListenerError as error:
    print(error)
"""


@pytest.fixture
def as_nobody(tmp_path: Path) -> Callable[[str], str]:
    """What a user without rights is told who opens the database."""
    let_everybody_in(tmp_path)

    def run(role: str) -> str:
        command = [sys.executable, "-c", AS_NOBODY, str(tmp_path / "items.db"), role]
        done = subprocess.run(command, cwd=APP.parent, capture_output=True, text=True, timeout=30, check=False)
        assert done.stderr == ""
        return done.stdout

    return run


@as_root
def test_a_folder_of_another_user_is_named_with_its_owner(as_nobody: Callable[[str], str], tmp_path: Path) -> None:
    assert as_nobody("listener").startswith(f"{tmp_path} belongs to root, and nobody cannot write it: sudo chown ")


@as_root
@pytest.mark.parametrize("name", ["items.db", "items.db.lock"])
def test_a_file_of_another_user_is_named_with_its_owner(
    as_nobody: Callable[[str], str], tmp_path: Path, name: str
) -> None:
    Store(tmp_path / "items.db", listener=True).close()
    for file in (tmp_path, *tmp_path.iterdir()):
        os.chown(file, 65534, 65534)
    os.chown(tmp_path / name, 0, 0)
    line = as_nobody("listener")
    assert line.startswith(f"{tmp_path / name} belongs to root, and nobody cannot write it: sudo chown nobody:nogroup ")
    assert line.count("\n") == 1


@as_root
def test_what_root_creates_belongs_to_the_folders_owner(as_nobody: Callable[[str], str], tmp_path: Path) -> None:
    os.chown(tmp_path, 65534, 65534)
    Store(tmp_path / "items.db", listener=True).close()
    assert {file.stat().st_uid for file in tmp_path.iterdir()} == {65534}
    assert as_nobody("listener") == ""


def test_on_a_full_disk_nothing_is_stored_and_the_error_stays_until_a_write_succeeds(
    store: Store, tmp_path: Path
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "items.db-wal").stat().st_size, limits[1]))
    try:
        with pytest.raises(StoreUnavailable):
            store.add_asset(ASSET, None)
        assert store.database.error
        store.overview()  # reading goes on, and says nothing of writing
        assert store.database.error
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    store.add_asset(ASSET, None)
    assert store.database.error is None


def test_a_file_of_ones_own_that_is_read_only_has_another_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "my items.db"
    path.touch()
    monkeypatch.setattr(os, "access", lambda file, mode: file != path)
    assert f"sudo chmod 600 '{path}'" in database.explain(path, PermissionError(13, "Permission denied"))
