"""Copy a SQLite database that is in use, check the copy, and keep the newest seven.

python backup.py DATABASE FOLDER
"""

import os
import shutil
import sqlite3
import sys
from contextlib import closing, suppress
from datetime import datetime, timezone
from pathlib import Path

KEPT = 7
BUSY_SECONDS = 60
# What a copy must leave free on its disk, so that the listener can go on writing.
MIN_FREE_BYTES = 50 * 1024 * 1024


class BackupError(Exception):
    """One line for the operator."""


def back_up(database: Path, folder: Path) -> Path:
    """Copy `database` into `folder`, as NAME-2026-11-23.db, and delete all such copies but the newest seven.

    The copy has its name only once it is whole, checked and on the disk. Returns its path.

    :raises BackupError: no copy was made; the earlier ones are untouched
    """
    if not database.is_file():
        raise BackupError(f"{database} does not exist")
    day = datetime.now(timezone.utc).date().isoformat()
    copy = folder / f"{database.stem}-{day}.db"
    unfinished = copy.with_suffix(".unfinished")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        _remove_unfinished(folder)
        _check_room(database, folder)
        _copy(database, unfinished)
        _check(unfinished)
        _flush(unfinished)
        unfinished.replace(copy)
        _flush(folder)
        for old in sorted(folder.glob(f"{database.stem}-????-??-??.db"))[:-KEPT]:
            old.unlink()
    except OSError as error:
        raise BackupError(f"{error.filename or folder}: {error.strerror}") from None
    except sqlite3.Error as error:
        raise BackupError(f"{database} cannot be copied to {copy}: {error}") from None
    finally:
        with suppress(OSError):
            _remove_unfinished(folder)
    return copy


def _remove_unfinished(folder: Path) -> None:
    for path in folder.glob("*.unfinished*"):  # and SQLite's own files beside it
        path.unlink(missing_ok=True)


def _check_room(database: Path, folder: Path) -> None:
    log = database.with_name(f"{database.name}-wal")
    size = sum(path.stat().st_size for path in (database, log) if path.exists())
    free = shutil.disk_usage(folder).free
    if free - size < MIN_FREE_BYTES:
        raise BackupError(
            f"{folder}: {_megabytes(free)} MB are free on its disk; "
            f"a copy needs {_megabytes(size)}, and {_megabytes(MIN_FREE_BYTES)} must be left"
        )


def _megabytes(size: int) -> int:
    return -(-size // (1024 * 1024))


def _copy(database: Path, target: Path) -> None:
    with (
        closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=rw", timeout=BUSY_SECONDS, uri=True)) as source,
        closing(sqlite3.connect(target)) as destination,
    ):
        source.backup(destination)
        destination.execute("PRAGMA journal_mode = DELETE")  # one file, without a -wal beside it


def _check(copy: Path) -> None:
    with closing(sqlite3.connect(copy)) as connection:
        verdict = str(connection.execute("PRAGMA integrity_check(1)").fetchone()[0])
    if verdict != "ok":
        raise BackupError(f"the database is damaged, and its copy was not kept: {' '.join(verdict.split())}")


def _flush(path: Path) -> None:
    """See `path`, a file or a folder, written to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def main() -> None:
    if len(sys.argv) != 3:
        print("Usage: backup.py DATABASE FOLDER", file=sys.stderr)
        sys.exit(2)
    os.umask(0o077)
    try:
        copy = back_up(Path(sys.argv[1]), Path(sys.argv[2]))
    except BackupError as error:
        sys.exit(f"Error: {error}")
    print(f"{copy}: {_megabytes(copy.stat().st_size)} MB, whole")


if __name__ == "__main__":
    main()
