"""The files of items.db, deleted, replaced, emptied and copied over: with the real listener as a process."""

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from faulty_iconik import FaultyIconik
from store import Store
from support import ASSET, Listener, create_event, new_id, rows, wait_until
from system.database import StoreError, StoreUnavailable, listener_runs, lock_path, network_file_system
from system.database_files import explain

KILLED = """
import os, signal, sys
from pathlib import Path
from store import Store
store = Store(Path(sys.argv[1]), listener=True)
store.add_asset("x", None)
os.kill(os.getpid(), signal.SIGKILL)
"""


def post(listener: Listener, object_id: str = "") -> int:
    return listener.post("/create", create_event(object_id or new_id())).status_code


def whole(path: Path) -> str:
    with closing(sqlite3.connect(path)) as db:
        return str(db.execute("PRAGMA integrity_check(1)").fetchone()[0])


def refused(path: Path) -> str:
    """The line with which a listener does not start here."""
    with pytest.raises(StoreError) as caught:
        Store(path, listener=True)
    line = str(caught.value)
    assert "\n" not in line
    return line


# Deleted and replaced


@pytest.mark.long
@pytest.mark.parametrize("ending", [".lock", "-shm", "-wal"])
@pytest.mark.parametrize("change", ["deleted", "replaced"])
def test_a_file_that_goes_is_told_before_the_next_200(listener: Listener, ending: str, change: str) -> None:
    assert post(listener) == 200
    file = Path(f"{listener.database}{ending}")
    if change == "replaced":
        shutil.copy(file, f"{file}.copy")
        Path(f"{file}.copy").replace(file)
    else:
        file.unlink()
    assert post(listener) == 503
    wait_until(lambda: listener.logged(f"{ending} {'file ' if ending == '-wal' else ''}was deleted or replaced under"))


@pytest.mark.long
def test_what_others_write_beside_a_lost_shm_is_kept(listener: Listener) -> None:
    """Closing a connection whose -shm is not that of the others would undo what they wrote, or tear the file."""
    ids = [new_id() for _ in range(20)]
    assert {post(listener, object_id) for object_id in ids} == {200}
    Path(f"{listener.database}-shm").unlink()
    with closing(sqlite3.connect(listener.database, isolation_level=None)) as person:
        for _ in range(300):
            person.execute("INSERT INTO items (object_id, status) VALUES (?, 'awaiting_proxy')", [new_id()])
    assert post(listener) == 503
    assert listener.end() == 0
    assert len(rows(listener.database)) == 320
    assert whole(listener.database) == "ok"
    listener.start()
    assert post(listener) == 200


@pytest.mark.long
def test_a_second_listener_finds_the_first_without_its_lock(listener: Listener) -> None:
    lock_path(listener.database).unlink()
    assert listener_runs(listener.database)
    second = listener.run()
    assert second.returncode == 1
    assert second.stderr.endswith(f"Error: {listener.database}: another listener is running on it\n")
    assert listener.end() == 0
    assert not listener_runs(listener.database)
    listener.start()
    assert post(listener) == 200


@pytest.mark.long
def test_a_link_to_a_database_is_that_database(listener: Listener, tmp_path: Path) -> None:
    link = tmp_path / "folder" / "link.db"
    link.parent.mkdir()
    link.symlink_to(listener.database)
    assert listener_runs(link)
    with closing(Store(link)) as store:
        assert store.database.path == listener.database
    assert "another listener is running on it" in refused(link)
    assert [file.name for file in link.parent.iterdir()] == ["link.db"]


# Copied over


def backup_of(path: Path) -> Path:
    copy = path.with_name("backup.db")
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    return copy


@pytest.mark.long
def test_a_backup_copied_over_is_told_before_the_next_200(listener: Listener) -> None:
    assert post(listener) == 200
    backup = backup_of(listener.database)
    assert {post(listener) for _ in range(250)} == {200}
    shutil.copyfile(backup, listener.database)
    assert post(listener) == 503
    wait_until(
        lambda: (
            listener.logged("items.db was overwritten")
            or listener.logged("items.db: was overwritten under the listener")
        )
    )
    assert listener.end() == 0
    assert "was overwritten under the listener: stop it, restore the backup again" in refused(listener.database)
    for ending in ("-wal", "-shm"):
        Path(f"{listener.database}{ending}").unlink(missing_ok=True)
    shutil.copyfile(backup, listener.database)
    listener.start()
    assert post(listener) == 200
    assert len(rows(listener.database)) == 2


@pytest.mark.long
def test_a_copy_over_an_idle_database_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "items.db"
    with closing(Store(path, listener=True)) as store:
        backup = backup_of(path)
        store.add_asset(ASSET, None)
    with closing(Store(path, listener=True)) as store:
        shutil.copyfile(backup, path)
        with pytest.raises(StoreUnavailable, match="was overwritten under the listener"):
            store.overview()


@pytest.mark.parametrize("later", [0, 3])
def test_a_copy_that_holds_all_of_items_db_does_no_harm(store: Store, tmp_path: Path, later: int) -> None:
    """Since the backup, nothing was moved from the -wal file into items.db: it is not noticed, and nothing is lost."""
    backup = backup_of(tmp_path / "items.db")
    for _ in range(later):
        store.add_asset(new_id(), None)
    shutil.copyfile(backup, tmp_path / "items.db")
    for _ in range(300):
        store.add_asset(new_id(), None)
    store.close()
    assert len(rows(tmp_path / "items.db")) == 300 + later
    assert whole(tmp_path / "items.db") == "ok"


@pytest.mark.parametrize("statement", ["PRAGMA wal_checkpoint(TRUNCATE)", "PRAGMA wal_checkpoint(RESTART)", "VACUUM"])
def test_another_programs_checkpoint_is_no_alarm(store: Store, tmp_path: Path, statement: str) -> None:
    for _ in range(3):
        with closing(sqlite3.connect(tmp_path / "items.db", isolation_level=None)) as person:
            person.execute("INSERT INTO items (object_id, status) VALUES (?, 'awaiting_proxy')", [new_id()])
            person.execute(statement)
        (tmp_path / "items.db").chmod(0o640)
        for _ in range(150):
            store.add_asset(new_id(), None)


@pytest.mark.long
def test_a_reader_who_holds_up_checkpoints_is_no_alarm(store: Store, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "items.db", isolation_level=None)) as person:
        person.execute("BEGIN")
        person.execute("SELECT * FROM items").fetchall()
        for _ in range(450):
            store.add_asset(new_id(), None)
        person.execute("COMMIT")
    for _ in range(450):
        store.add_asset(new_id(), None)
    with pytest.raises(StoreUnavailable, match="overwritten"):
        (tmp_path / "items.db").write_bytes(b"")
        store.add_asset(ASSET, None)


def test_a_file_that_is_copied_into_in_part_is_no_alarm(store: Store, tmp_path: Path) -> None:
    """While a person reads, items.db may get its new first page, which counts pages that it does not have yet."""
    for _ in range(30):
        store.add_asset(new_id(), None)
    with closing(sqlite3.connect(tmp_path / "items.db", isolation_level=None)) as person:
        person.execute("BEGIN")
        person.execute("SELECT * FROM items").fetchall()
        for number in range(450):  # changes the last pages, and not the first
            store.database.run("UPDATE items SET title = :number", number=number)
    assert store.database.error is None


# What is found at a start


def test_what_is_not_as_it_was_left_is_checked_at_the_start(tmp_path: Path) -> None:
    path, lines = tmp_path / "items.db", list[str]()
    Store(path, listener=True).close()
    Store(path, listener=True, progress=lines.append).close()
    assert lines == []
    shutil.copyfile(backup_of(path), path)
    Store(path, listener=True, progress=lines.append).close()
    assert lines == [f"{path} is not as the last listener left it: checking that it is whole"]
    with path.open("r+b") as stream:
        stream.seek(4096)
        stream.write(b"x" * 4096)
    assert refused(path).startswith(f"{path} is damaged (")


def test_what_a_kill_left_is_checked_at_the_start(tmp_path: Path) -> None:
    path, lines = tmp_path / "items.db", list[str]()
    subprocess.run([sys.executable, "-c", KILLED, path], cwd=Path(__file__).parent.parent, check=False)
    Store(path, listener=True, progress=lines.append).close()
    assert lines == ["The last listener on this database was cut off: checking that it is whole"]


LOST = {
    "is empty": lambda path: path.write_bytes(b""),
    "is full of zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
}


@pytest.mark.long
@pytest.mark.parametrize("state", LOST)
@pytest.mark.parametrize("is_killed", [False, True])
def test_an_items_db_that_was_lost_does_not_begin_anew(
    listeners: Callable[..., Listener], tmp_path: Path, state: str, is_killed: bool
) -> None:
    listener, path = listeners(), tmp_path / "items.db"
    if is_killed:
        subprocess.run([sys.executable, "-c", KILLED, path], cwd=Path(__file__).parent.parent, check=False)
        lock_path(path).unlink()  # what is left in -wal tells it, too
    else:
        Store(path, listener=True).close()
    LOST[state](path)
    before = {file: file.read_bytes() for file in tmp_path.iterdir() if file != listener.config}
    done = listener.run()
    assert done.returncode == 1
    [line] = [line for line in done.stderr.splitlines() if "Error" in line]
    assert f"Error: {path} {state}, although a listener has run on it: its items are lost" in line
    assert before == {file: file.read_bytes() for file in before}
    command = line.partition("without what it knew: sudo ")[2]
    subprocess.run(command, shell=True, check=True)
    Store(path, listener=True).close()
    assert rows(path) == []


def test_a_wal_without_its_items_db_is_not_discarded(tmp_path: Path) -> None:
    path = tmp_path / "items.db"
    subprocess.run([sys.executable, "-c", KILLED, path], cwd=Path(__file__).parent.parent, check=False)
    path.unlink()
    assert refused(path).startswith(f"{path} is missing, but its -wal file is there: its items are lost")
    assert Path(f"{path}-wal").stat().st_size > 0


@pytest.mark.long
def test_a_wrong_path_leaves_nothing_beside_a_foreign_file(sandbox: FaultyIconik, tmp_path: Path) -> None:
    foreign = tmp_path / "elsewhere" / "passwd"
    foreign.parent.mkdir()
    foreign.write_text("root:x:0:0:root:/root:/bin/bash\n")
    listener = Listener(tmp_path, sandbox, listener__database=foreign)
    done = listener.run()
    assert done.returncode == 1
    assert f"Error: {foreign}" in done.stderr
    assert list(foreign.parent.iterdir()) == [foreign]


@pytest.mark.long
def test_only_its_user_may_read_a_new_database(listeners: Callable[..., Listener], tmp_path: Path) -> None:
    listeners().start(prelude="import os; os.umask(0)")
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.glob("items.db*")}
    assert modes == dict.fromkeys(["items.db", "items.db-shm", "items.db-wal", "items.db.lock"], 0o600)


# Places


def test_a_network_file_system_is_told_by_its_type(tmp_path: Path) -> None:
    device = tmp_path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    mounts = tmp_path / "mountinfo"
    for kind, told in {"nfs4": "nfs4", "fuse.sshfs": "fuse.sshfs", "9p": "9p", "ext4": None, "fuseblk": None}.items():
        mounts.write_text(
            f"22 1 0:99 / / rw,relatime shared:1 - cifs //other rw\n36 22 {number} / /mnt rw - {kind} server:/x rw\n"
        )
        assert network_file_system(tmp_path / "not" / "there" / "items.db", mounts) == told
    assert network_file_system(tmp_path, tmp_path / "missing") is None
    assert network_file_system(Path("/proc/self")) is None


def test_a_disk_that_systemd_made_read_only_has_its_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """N16."""
    with read_only(tmp_path / "disk") as folder:
        error = OSError(30, "Read-only file system")
        monkeypatch.delenv("INVOCATION_ID", raising=False)
        assert "mount it to be written" in explain(folder / "items.db", error)
        monkeypatch.setenv("INVOCATION_ID", "1")
        assert f"ReadWritePaths={folder}, as docs/operating.md says" in explain(folder / "items.db", error)


@contextmanager
def read_only(folder: Path) -> Iterator[Path]:
    """A folder on a read-only file system: this one, where that may be mounted, or one that the system has."""
    folder.mkdir()
    mount = 'mount --bind "$1" "$1" 2>/dev/null && mount -o remount,bind,ro "$1"'
    is_mounted = subprocess.run(["sh", "-c", mount, "sh", folder], check=False).returncode == 0
    places = [path for path in (folder, Path("/sys"), Path("/proc/sys")) if os.statvfs(path).f_flag & os.ST_RDONLY]
    try:
        if not places:
            pytest.skip("there is no read-only file system here")
        yield places[0]
    finally:
        if is_mounted:
            subprocess.run(["umount", folder], check=True)
