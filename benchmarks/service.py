"""A checkout's listener with an iconik to ask, and items.db files with as many rows as are wanted."""

import random
import shutil
import sqlite3
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from load import Client
from process import Process, free_port, python

CONFIG = """\
[iconik]
url = http://127.0.0.1:{iconik_port}
app_id = benchmark
auth_token = benchmark
[listener]
host = 127.0.0.1
port = {port}
webhook_secret = benchmark
[submitter]
workers = {workers}
"""


class Iconik(Process):
    """The stand-in for iconik.

    :ivar url: where it is
    """

    def __init__(self, folder: Path, *, latency: float = 0.0, share: float = 0.0) -> None:
        """
        :param latency: seconds that each answer takes
        :param share: of the analyze calls that are refused with 503, 0 to 1
        """
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        super().__init__(python("stand_in.py", port, latency, share), new_folder(folder, "iconik"), port)

    def __enter__(self) -> "Iconik":
        super().__enter__()
        return self

    def jobs(self) -> int:
        """How many jobs it has taken."""
        return int(Client(self.port).ask("GET", "/jobs")[1])

    def report(self) -> dict[str, Any]:
        """All that it was asked: see stand_in.py."""
        report: dict[str, Any] = Client(self.port).ask("GET", "/report")[1]
        return report

    def wait_for_jobs(self, jobs: int, seconds: float) -> None:
        """Wait until it has taken so many jobs, but no longer than `seconds`."""
        deadline = time.monotonic() + seconds
        while self.jobs() < jobs and time.monotonic() < deadline:
            time.sleep(0.05)


class Service(Process):
    """The listener of the version in the folder `checkout`."""

    def __init__(self, checkout: Path, folder: Path, iconik: Iconik, *, workers: int = 4) -> None:
        """`folder`: for config.ini and items.db. One that is there already is taken."""
        port = free_port()
        folder.mkdir(exist_ok=True)
        config = folder / "config.ini"
        config.write_text(CONFIG.format(iconik_port=iconik.port, port=port, workers=workers))
        config.chmod(0o600)
        command = [sys.executable, str(checkout.resolve() / "app.py"), "--config", str(config)]
        super().__init__(command, folder, port, listening_line="Listening on")
        self.database = folder / "items.db"


def new_folder(parent: Path, name: str) -> Path:
    """A folder of that name that is empty."""
    folder = parent / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def new_database(checkout: Path, folder: Path, **rows: int) -> Path:
    """Have the service make its items.db in a new `folder`, and add rows as `add_rows` does. Returns the folder."""
    with Iconik(folder.parent) as iconik, Service(checkout, new_folder(folder.parent, folder.name), iconik) as service:
        pass
    for status, count in rows.items():
        add_rows(service.folder / "items.db", status, count)
    return folder


def copy_of(folder: Path, name: str) -> Path:
    """A new folder of that name, next to `folder`, with a copy of its items.db."""
    copy = new_folder(folder.parent, name)
    shutil.copy(folder / "items.db", copy)
    return copy


def add_rows(database: Path, status: str, count: int) -> None:
    """Insert items straight into an items.db that no listener has open, whatever its schema.

    :param status: "submitted", "failed", "ready" (due, never attempted) or "awaiting_proxy" (created just now)
    """
    with closing(sqlite3.connect(database)) as db:
        db.execute("PRAGMA journal_mode = OFF")
        db.execute("PRAGMA synchronous = OFF")
        db.execute("PRAGMA cache_size = -1000000")
        [schema] = db.execute("SELECT sql FROM sqlite_master WHERE name = 'items'").fetchone()
        if f"'{status}'" not in schema:
            status = {"awaiting_proxy": "pending"}[status]  # as version 1.0 calls it
        columns = [row[1] for row in db.execute("PRAGMA table_info(items)") if row[1] in ALL_COLUMNS]
        places = ", ".join(f":{column}" for column in columns)
        with db:
            db.executemany(
                f"INSERT INTO items ({', '.join(columns)}) VALUES ({places})",  # noqa: S608
                ({**row, "status": status} for row in _rows(status, count)),
            )
        db.execute("PRAGMA journal_mode = WAL")


def _rows(status: str, count: int) -> Iterator[dict[str, Any]]:
    chance = random.Random()  # noqa: S311
    now = datetime.now(timezone.utc)
    for number in range(count):
        # Those that are over and done with came in the last three years, the others just now.
        is_over = status in ("submitted", "failed")
        created = now - timedelta(days=chance.uniform(1, 1000)) if is_over else now
        has_proxy = status not in ("awaiting_proxy", "pending")
        time_text = created.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        due_at = (created + timedelta(minutes=10)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        yield {
            "object_id": str(uuid.UUID(int=chance.getrandbits(128), version=4)),
            "title": f"A001_C{number:07}.mov",
            "created_at": time_text,
            "proxy_closed_at": time_text if has_proxy else None,
            "ready_at": time_text if has_proxy else None,
            "attempts": int(is_over),
            "last_attempt_at": time_text if is_over else None,
            "next_attempt_at": None if is_over else time_text if status == "ready" else due_at,
            "submitted_at": time_text if status == "submitted" else None,
            "job_id": str(uuid.UUID(int=chance.getrandbits(128), version=4)) if status == "submitted" else None,
            "error": "iconik answered 400: Bad request" if status == "failed" else None,
        }


ALL_COLUMNS = {*next(_rows("submitted", 1)), "status"}
