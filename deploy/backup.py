"""Copy a SQLite database that is in use, check the copy, and keep the copies of the newest seven days.

python backup.py DATABASE FOLDER
python backup.py --config CONFIG_INI      copies its `database` into the folder `backups` beside it
"""

import configparser
import os
import re
import shutil
import sqlite3
import sys
from contextlib import closing, suppress
from datetime import datetime, timezone
from pathlib import Path

KEPT_DAYS = 7
# NAME-2026-11-23T031502Z.db, and version 1.1's NAME-2026-11-23.db.
COPY = re.compile(r".+-(\d{4}-\d\d-\d\d)(T\d{6}Z)?\.db")
BUSY_SECONDS = 60
# What a copy must leave free on its disk, so that the listener can go on writing.
MIN_FREE_BYTES = 50 * 1024 * 1024


class BackupError(Exception):
    """One line for the operator."""


def back_up(database: Path, folder: Path) -> Path:
    """Copy `database` into `folder`, as NAME-2026-11-23T031502Z.db, and delete the copies of all but seven days.

    The copy gets its name only after it was checked and flushed to the disk. Returns its path.

    :raises BackupError: no copy was made; the earlier ones are untouched
    """
    if not database.is_file():
        raise BackupError(f"{database} does not exist")
    copy = folder / f"{database.stem}-{datetime.now(timezone.utc):%Y-%m-%dT%H%M%SZ}.db"
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
        _remove_old(database.stem, folder)
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


def _remove_old(name: str, folder: Path) -> None:
    """A second copy of a day must not push out the copy of another day, so days are counted, not copies."""
    days = {path: found[1] for path in folder.glob(f"{name}-*.db") if (found := COPY.fullmatch(path.name))}
    kept = sorted(set(days.values()))[-KEPT_DAYS:]
    for path, day in days.items():
        if day not in kept:
            path.unlink()


def _check_room(database: Path, folder: Path) -> None:
    log = database.with_name(f"{database.name}-wal")
    size = sum(path.stat().st_size for path in (database, log) if path.exists())
    free = shutil.disk_usage(folder).free
    if free - size < MIN_FREE_BYTES:
        raise BackupError(
            f"{folder}: {_size(free)} are free on its disk; a copy needs {_size(size)}, and {_size(MIN_FREE_BYTES)} "
            "must be left"
        )


def _size(count: int) -> str:
    """Bytes in the unit that fits, rounded up."""
    kilobytes = -(-count // 1024)
    return f"{kilobytes} KB" if kilobytes < 1024 else f"{-(-kilobytes // 1024)} MB"


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
        raise BackupError(f"the database is damaged, so its copy was deleted: {' '.join(verdict.split())}")


def _flush(path: Path) -> None:
    """Make sure that `path`, a file or a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _paths(arguments: list[str]) -> tuple[Path, Path]:
    """The database and the folder of its copies, from the command line.

    :raises BackupError: if there is no such config.ini, or it names no database
    """
    if arguments[0] != "--config":
        return Path(arguments[0]), Path(arguments[1])
    path = Path(arguments[1])
    parser = configparser.ConfigParser(interpolation=None, default_section="")
    try:
        parser.read_string(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise BackupError(f"{path}: {error.strerror}") from None
    except (configparser.Error, UnicodeDecodeError):  # whose own messages may quote a secret
        raise BackupError(f"{path} is not a valid config.ini. To see why: iconik-listener check") from None
    name = parser.get("listener", "database", fallback="items.db").strip()
    database = path.absolute().parent / name
    if not database.exists():  # a config.ini that is a link: see config.py
        database = path.resolve().parent / name
    return database, database.parent / "backups"


def main() -> None:
    if len(sys.argv) != 3:
        print("Usage: backup.py DATABASE FOLDER, or backup.py --config CONFIG_INI", file=sys.stderr)
        sys.exit(2)
    os.umask(0o077)
    try:
        copy = back_up(*_paths(sys.argv[1:]))
    except BackupError as error:
        sys.exit(f"Error: {error}")
    print(f"{copy}: {_size(copy.stat().st_size)}, checked")


if __name__ == "__main__":
    main()
