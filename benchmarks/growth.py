"""Whether anything takes longer because there are more items."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from statistics import median

from bench import Bench
from load import Client, new_id
from service import Iconik, Service, add_rows, new_database
from table import figure, table

SIZES = (1_000, 100_000, 1_000_000)
LONG_SIZES = (*SIZES, 5_000_000)
FAILED, WAITING_SHARE = 100, 0.02  # some are always waiting; what failed is looked after by a person
REQUESTS = 300
JOBS = 300


def run(bench: Bench) -> str:
    rows = []
    for size in LONG_SIZES if bench.long else SIZES:
        for name, checkout in bench.checkouts.items():
            rows.append([name, f"{size:,}", *map(figure, _measure(bench, checkout, size))])
    heads = ["", "items", "/create, ms", "/proxy, ms", "/health, ms", "a job, ms"]
    heads += ["start, s", "status, s", "bytes an item"]
    note = f"""Medians of {REQUESTS} requests one after the other. "A job" is claimed, done and recorded by one worker,
with an iconik that answers at once: the median of {JOBS} in a row. `status` is the whole command."""
    return f"{note}\n\n{table(heads, rows)}"


def _measure(bench: Bench, checkout: Path, size: int) -> list[float]:
    waiting = int(size * WAITING_SHARE)
    rows = {"submitted": size - waiting - FAILED, "awaiting_proxy": waiting, "failed": FAILED}
    folder = new_database(checkout, bench.folder / "growth", **rows)
    database = folder / "items.db"
    size_in_bytes = database.stat().st_size
    with Iconik(bench.folder) as iconik, Service(checkout, folder, iconik) as service:
        client = Client(service.port)
        ids = [new_id() for _ in range(REQUESTS)]
        create = _median(lambda object_id: client.send("/create", object_id), ids)
        proxy = _median(lambda object_id: client.send("/proxy", object_id), ids)
        iconik.wait_for_jobs(REQUESTS, 60)
        health = _median(lambda _: client.ask("GET", "/health")[0], ids)
        first_start = service.seconds_to_listen
    command = [sys.executable, str(checkout / "app.py"), "--config", str(folder / "config.ini"), "status"]
    started = time.monotonic()
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    status = time.monotonic() - started
    add_rows(database, "ready", JOBS)
    with Iconik(bench.folder) as iconik, Service(checkout, folder, iconik, workers=1) as service:
        iconik.wait_for_jobs(JOBS, 60)
        report = iconik.report()
    jobs = [answer[0] for answer in report["answers"] if answer[3] == 201]
    job = median(later - earlier for earlier, later in pairwise(jobs)) * 1000
    start = min(first_start, service.seconds_to_listen)
    return [create, proxy, health, job, start, status, size_in_bytes / size]


def _median(request: Callable[[str], float], ids: Iterable[str]) -> float:
    return median(request(object_id) for object_id in ids)
