"""Provisional."""

import sqlite3
from collections.abc import Callable
from pathlib import Path

from errors import ListenerError


class MigrationError(ListenerError):
    pass


def inspect(path: Path) -> None:
    pass


def prepare(connection: sqlite3.Connection, path: Path, *, may_write: bool, progress: Callable[[str], None]) -> None:
    if not connection.execute("SELECT 1 FROM sqlite_master").fetchone():
        connection.executescript((Path(__file__).parent / "schema.sql").read_text())
