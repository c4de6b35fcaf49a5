"""The listener against what people would run instead: the article's script, and adnanh/webhook with a shell script."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from bench import Bench
from load import load
from process import Process, free_port, python
from service import Iconik, Service, copy_of, new_database, new_folder
from table import figure, table

WAITING = (0, 20_000)
ICONIK_SECONDS = 0.05
SECONDS = 5.0


def run(bench: Bench) -> str:
    rows = []
    for waiting in WAITING:
        for name, prepare in _programs(bench, waiting).items():
            with Iconik(bench.folder, latency=ICONIK_SECONDS) as iconik, prepare(iconik) as server:
                before = server.cpu_seconds()
                came = load(server.port, 20 if bench.long else SECONDS, pairs=True)
                cost = (server.cpu_seconds() - before) / came.requests * 1000
            times = [f"{came.median:,.0f}", f"{came.slowest:,.0f}"]
            rows.append([name, f"{waiting:,}", figure(came.rate), came.failed, *times, figure(cost)])
    heads = ["", "waiting", "webhooks/s", "failed", "median, ms", "slowest, ms", "CPU a webhook, ms"]
    text = "As many creates as proxies over 16 connections; iconik answers in 50 ms.\n\n" + table(heads, rows)
    return text if shutil.which("webhook") else text + "\n\nadnanh/webhook is not installed, and was left out."


def _programs(bench: Bench, waiting: int) -> dict[str, Callable[[Iconik], Process]]:
    """What makes each program ready to be started, its database with that many items waiting for a proxy."""
    programs: dict[str, Callable[[Iconik], Process]] = {}
    for name, checkout in bench.checkouts.items():
        new_database(checkout, bench.folder / "template", awaiting_proxy=waiting)
        folder = copy_of(bench.folder / "template", name)
        programs[name] = lambda iconik, checkout=checkout, folder=folder: Service(checkout, folder, iconik)  # type: ignore[misc]
    programs["the article's"] = lambda iconik: _article(bench.folder, waiting, iconik)
    if shutil.which("webhook"):
        programs["adnanh/webhook"] = lambda iconik: _webhook(bench.folder, waiting, iconik)
    return programs


def _article(parent: Path, waiting: int, iconik: Iconik) -> Process:
    folder, port = new_folder(parent, "article"), free_port()
    _fill(folder / "items.db", waiting)
    return Process(python("article.py", port, iconik.url), folder, port)


def _webhook(parent: Path, waiting: int, iconik: Iconik) -> Process:
    folder, port = new_folder(parent, "webhook"), free_port()
    _fill(folder / "items.db", waiting)
    payload = [{"source": "payload", "name": name} for name in ("object_id", "data.status")]
    hooks = [
        {
            "id": name,
            "execute-command": str(Path(__file__).with_name("hook.sh")),
            "command-working-directory": str(folder),
            "pass-arguments-to-command": [{"source": "string", "name": text} for text in (iconik.url, name)] + payload,
            "include-command-output-in-response": True,  # or it would answer before anything is stored
        }
        for name in ("create", "proxy")
    ]
    (folder / "hooks.json").write_text(json.dumps(hooks))
    command = ["webhook", "-hooks", "hooks.json", "-ip", "127.0.0.1", "-port", str(port), "-urlprefix", ""]
    return Process(command, folder, port)


def _fill(database: Path, waiting: int) -> None:
    with closing(sqlite3.connect(database)) as db, db:
        db.execute("CREATE TABLE items (object_id,finished)")
        db.executemany(
            "INSERT INTO items VALUES (?, 'False')",
            ([f"00000000-0000-4000-8000-{number:012x}"] for number in range(waiting)),
        )
