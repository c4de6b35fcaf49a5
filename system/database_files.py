"""The files of an SQLite database: who holds them, whether they are as they were left, what is wrong with them."""

import fcntl
import os
import re
import sqlite3
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from grp import getgrgid
from pathlib import Path
from pwd import getpwuid
from shlex import quote
from typing import BinaryIO

from system.errors import ListenerError
from system.text import in_container, one_line

LOCK_SECONDS = 1.0  # listener_runs(), in another process, holds a lock for an instant
SHARED_BYTES = (0x40000002, 510)  # of the database, which SQLite locks: the first of them, and how many
NETWORK_FILE_SYSTEMS = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse", "9p", "virtiofs", "ceph", "afs"}
RESTORE = "restore a backup, as docs/operating.md says"


class StoreError(ListenerError):
    """The database cannot be used as it is."""


class LockedElsewhereError(StoreError):
    """Another listener has the database."""


def lock_path(path: Path) -> Path:
    """The file that says, by being locked, that a listener runs on the database `path`."""
    return beside(path, ".lock")


def beside(path: Path, ending: str) -> Path:
    """The file of that ending beside a database, which is where SQLite has its own: beside the target of a link."""
    target = Path(os.path.realpath(path))
    return target.with_name(target.name + ending)


class ListenerLock:
    """Keeps every other listener off a database, until the process ends, however that ends.

    Two files are locked: items.db.lock, and items.db-wal as soon as it is there, because the first looks like something
    left over, and a listener whose lock was deleted still runs. Neither items.db nor -shm can serve: SQLite locks them
    with fcntl(), and a process loses such locks when it closes any descriptor of the file.

    The lock file also keeps, from a stop to the next start, what tells whether items.db is the one that was left.
    """

    def __init__(self, path: Path) -> None:
        """:raises LockedElsewhereError: another listener has it"""
        self._path = path
        self._wal_lock: BinaryIO | None = None
        is_new = not lock_path(path).exists()
        self._lock = lock_path(path).open("a+b")
        try:
            if is_new:
                protect(lock_path(path))
            _wait_for_lock(self._lock, path)
            if beside(path, "-wal").exists():
                self.hold_wal()
        except BaseException:
            self.release()
            raise

    def hold_wal(self) -> None:
        """Lock items.db-wal, too. SQLite replaces it only when nobody has the database open."""
        if self._wal_lock:
            self._wal_lock.close()
        self._wal_lock = beside(self._path, "-wal").open("rb")
        _wait_for_lock(self._wal_lock, self._path)

    def noted(self) -> str:
        """What was noted last; empty if nothing was."""
        self._lock.seek(0)
        return self._lock.read().decode("utf-8", "replace")

    def note(self, state: str) -> None:
        """Note what is to be known of items.db at the next start: in service, closed or overwritten."""
        self._lock.truncate(0)
        self._lock.write(self.text_of(state).encode())  # opened with "a": at the end
        self._lock.flush()

    def text_of(self, state: str) -> str:
        """What is noted of an items.db that is as it is now."""
        stat = self._path.stat()
        return f"{state}, {stat.st_size} bytes, changed at {stat.st_mtime_ns}\n"

    def release(self) -> None:
        """Let another listener have the database."""
        if self._wal_lock:
            self._wal_lock.close()
        self._lock.close()


def _wait_for_lock(file: BinaryIO, path: Path) -> None:
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise LockedElsewhereError(f"{path}: another listener is running on it") from None
            time.sleep(LOCK_SECONDS / 20)


def listener_runs(path: Path) -> bool:
    """Whether a listener is running on this database. Changes nothing, and needs no more than to read the locks.

    :raises StoreError: the locks cannot be read
    """
    try:
        return any(_is_locked(file) for file in (lock_path(path), beside(path, "-wal")))
    except OSError as error:
        raise StoreError(explain(path, error)) from None


def _is_locked(file: Path) -> bool:
    try:
        with file.open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def create(path: Path) -> None:
    """Make an empty file for a database that is not there yet."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    protect(path)


def protect(path: Path) -> None:
    """Let only its user read a new file. What root creates must not keep out whom the service runs as later."""
    path.chmod(0o600)
    if os.geteuid() == 0:
        folder = path.parent.stat()
        os.chown(path, folder.st_uid, folder.st_gid)


def check_place(path: Path) -> None:
    """See that what is at `path` is not what a power failure or a full disk has left of a database.

    :raises StoreError: a listener has run there, and the file is empty or missing; or its folder does not exist
    """
    if not path.parent.is_dir():
        raise StoreError(f"{path}: the folder {path.parent} does not exist: create it, or change [listener] database")
    wal = beside(path, "-wal")
    has_wal = wal.exists() and wal.stat().st_size > 0
    if not path.exists():
        state = "is missing, but its -wal file is there" if has_wal else ""
    elif not path.is_file() or not (has_wal or lock_path(path).exists()):
        state = ""
    elif path.stat().st_size == 0:
        state = "is empty, although a listener has run on it"
    else:
        with path.open("rb") as stream:
            state = "" if any(stream.read(100)) else "is full of zeros, although a listener has run on it"
    if state:
        raise StoreError(
            f"{path} {state}: its items are lost, as by a power failure or a full disk. {_remedy_if_lost(path)}"
        )


def _remedy_if_lost(path: Path) -> str:
    if listener_runs(path):
        return RESTORE.capitalize()
    files = [beside(path, ending) for ending in ("", "-wal", "-shm", ".lock")]
    existing = [quote(str(file)) for file in files if file.exists()]
    remove = f"remove {', '.join(existing)}" if in_container() else f"sudo rm {' '.join(existing)}"
    return f"{RESTORE.capitalize()}; or begin anew, without what it knew: {remove}"


@contextmanager
def no_checkpoint(path: Path) -> Iterator[None]:
    """Meanwhile, closing SQLite's last connection moves nothing from the -wal file into the database.

    For that, SQLite would need the lock of which this holds a part. Python can ask SQLite for it only since 3.12.
    """
    file: BinaryIO | None = None
    with suppress(OSError):
        file = path.open("rb")
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, *SHARED_BYTES, 0))
    try:
        yield
    finally:
        if file:
            file.close()


def explain_missing(path: Path) -> str:
    """One line on a database that a command does not find, and what to do.

    :raises StoreError: it was lost while no listener ran
    """
    if listener_runs(path):
        return f"{path} does not exist: it was deleted under the running listener: {RESTORE}"
    check_place(path)
    if any(path.parent.glob(f"backups/{path.stem}-*.db")):
        return f"{path} does not exist, and there are backups of it: {RESTORE}"
    return f"{path} does not exist: the listener creates it at its first start"


def network_file_system(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str | None:
    """The type of the file system of `path`, if it is one on which SQLite's WAL and its locks cannot be relied on.

    :param mounts: where the kernel tells what is mounted
    """
    existing = next(place for place in (path, *path.parents) if place.exists())
    device = existing.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        mount, _, file_system = line.partition(" - ")
        if mount.split()[2:3] == [number]:
            kind = file_system.split(" ", 1)[0]
            if kind.split(".")[0] in NETWORK_FILE_SYSTEMS:  # fuse.sshfs is one of fuse's
                return kind
    return None


def explain(path: Path, error: OSError | sqlite3.Error) -> str:
    """One line on what is wrong with the database `path`: who owns what, where that is the cause, and what to do."""
    reason = one_line(error.strerror or str(error) if isinstance(error, OSError) else str(error))
    for file in (path.parent, *(beside(path, ending) for ending in ("", ".lock", "-wal", "-shm"))):
        with suppress(OSError):
            if os.statvfs(file).f_flag & os.ST_RDONLY:
                return f"{file} is on a read-only file system ({reason}): {_remedy_if_read_only(path.parent)}"
            if not os.access(file, os.R_OK | os.W_OK):
                user, owner = _user_name(os.geteuid()), _user_name(file.stat().st_uid)
                return f"{file} belongs to {owner}, and {user} cannot write it: {_remedy_if_closed(file)} ({reason})"
    if re.search("malformed|not a database", reason):
        return damaged(path, reason)
    return f"{path}: {reason}"


def damaged(path: Path, reason: str) -> str:
    """One line on a file that is not whole."""
    return f"{path} is damaged ({one_line(reason)}): {RESTORE}"


def _is_service() -> bool:
    return "INVOCATION_ID" in os.environ  # systemd's


def _remedy_if_read_only(folder: Path) -> str:
    if _is_service():
        return f"systemd lets the service write there only with ReadWritePaths={folder}, as docs/operating.md says"
    return "mount it to be written, or change [listener] database"


def _remedy_if_closed(file: Path) -> str:
    """For files of root's, change their owner. Those of another user are the service's, who is to keep them."""
    owner, user = file.stat().st_uid, os.geteuid()
    if in_container():
        return f"on the host, give what is mounted there to the user {user}, with chown -R"
    name, mode = quote(str(file)), "u+rwx" if file.is_dir() else "600"
    if owner == user:
        return f"sudo chmod {mode} {name}"
    if owner and not _is_service():
        return f"run this as {_user_name(owner)}, with sudo -u {_user_name(owner)}"
    return f"sudo chown {_user_name(user)}:{_group_name(os.getegid())} {name} && sudo chmod {mode} {name}"


def _user_name(user_id: int) -> str:
    try:
        return getpwuid(user_id).pw_name
    except KeyError:
        return str(user_id)


def _group_name(group_id: int) -> str:
    try:
        return getgrgid(group_id).gr_name
    except KeyError:
        return str(group_id)
