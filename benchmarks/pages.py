"""How long the operator's page takes with 100,000 items, alone and beside webhooks, and what webhooks notice of it."""

import http.client
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

from bench import Bench
from load import Client, new_id
from process import free_port
from service import Iconik, Service, new_database
from table import figure, table

ITEMS, LONG_ITEMS = 100_000, 1_000_000
WEBHOOKS, SENDERS = 500, 8  # a second, from so many connections
SECONDS, LONG_SECONDS = 10.0, 60.0
PATHS = {
    "overview": "/",
    "search by title": "/search?q=clip+99",
    "search, one hit": "/search?q=clip+77777.mov",
    "what failed": "/items/failed",
    "what is done": "/items/done",
    "an asset": "/asset/00012fd1-0000-4000-8000-000000000000",
}
# Most of them were done this month, and one in twenty failed.
FILL = """WITH RECURSIVE numbers AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM numbers WHERE n < :count)
INSERT INTO items (object_id, job, title, status, source, created_at, proxy_closed_at, attempts, last_attempt_at,
    submitted_at, done_at, counted_on, media_type, duration, error, reason)
SELECT printf('%08x-0000-4000-8000-000000000000', n), 'analyze', 'clip ' || n || '.mov',
    CASE WHEN n % 20 = 0 THEN 'failed' ELSE 'done' END, 'webhook', time, time, 1, time, time, time, substr(time, 1, 10),
    'video', 60.0, CASE WHEN n % 20 = 0 THEN 'Codec unknown' END, CASE WHEN n % 20 = 0 THEN 'Codec unknown' END
FROM (SELECT n, strftime('%Y-%m-%dT%H:%M:%S.000Z', 'now', '-' || (n % 30) || ' days') AS time FROM numbers)"""
FILL_LEDGER = "INSERT INTO usage SELECT counted_on, job, count(*), 0 FROM items GROUP BY counted_on, job"


def run(bench: Bench) -> str:
    checkout = next(iter(bench.checkouts.values()))
    items, seconds = (LONG_ITEMS, LONG_SECONDS) if bench.long else (ITEMS, SECONDS)
    folder = new_database(checkout, bench.folder / "page")
    with closing(sqlite3.connect(folder / "items.db")) as db, db:
        db.execute(FILL, {"count": items})
        db.execute(FILL_LEDGER)
    with Iconik(bench.folder) as iconik, Service(checkout, folder, iconik) as service:
        with _page(checkout, folder) as get:
            alone = _look(get, seconds)
            with _webhooks(service.port) as times:
                beside = _look(get, seconds)
        both = _figures(times, seconds)
        with _webhooks(service.port) as times:
            time.sleep(seconds)
        webhooks = [["beside the page", *both], ["alone", *_figures(times, seconds)]]
    pages = [
        [name, *map(figure, (median(alone[name]), max(alone[name]), median(beside[name]), max(beside[name])))]
        for name in PATHS
    ]
    heads = ["", "median, ms", "slowest, ms", "beside webhooks, ms", "slowest, ms"]
    text = f"{items:,} items, somebody who asks for one page after the other for {seconds:.0f} s, first alone and then"
    text += f" beside {WEBHOOKS} webhooks a second from {SENDERS} connections."
    return "\n\n".join(
        (text, table(heads, pages), table(["webhooks", "answered a second", "median, ms", "slowest, ms"], webhooks))
    )


def _figures(times: list[float], seconds: float) -> list[str]:
    return [figure(len(times) / seconds), figure(median(times)), figure(max(times))]


@contextmanager
def _page(checkout: Path, folder: Path) -> Iterator[Callable[[str], float]]:
    """`python app.py page`, logged in. Gives a function that fetches a path, and returns the milliseconds."""
    command = [sys.executable, str(checkout / "app.py"), "--config", str(folder / "config.ini"), "page", "--port"]
    with subprocess.Popen([*command, str(free_port())], stdout=subprocess.PIPE, text=True) as process:
        lines = iter(process.stdout or ())
        next(lines)
        link = urlsplit(next(lines).strip())
        connection = http.client.HTTPConnection(link.netloc, timeout=60)
        connection.request("GET", f"/?{link.query}")
        response = connection.getresponse()
        response.read()
        cookie = {"Cookie": response.headers["Set-Cookie"].partition(";")[0]}

        def get(path: str) -> float:
            started = time.monotonic()
            connection.request("GET", path, headers=cookie)
            answer = connection.getresponse()
            answer.read()
            if answer.status not in (200, 303):
                raise ConnectionError(f"{path} was answered {answer.status}")
            return (time.monotonic() - started) * 1000

        try:
            yield get
        finally:
            process.kill()


def _look(get: Callable[[str], float], seconds: float) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in PATHS}
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for name, path in PATHS.items():
            times[name].append(get(path))
    return times


@contextmanager
def _webhooks(port: int) -> Iterator[list[float]]:
    """Webhooks at their rate, or as many as are answered. Gives a list that takes the milliseconds of each."""
    times: list[float] = []
    end = threading.Event()

    def send() -> None:
        client, started, sent = Client(port), time.monotonic(), 0
        while not end.wait(max(0.0, started + sent * SENDERS / WEBHOOKS - time.monotonic())):
            times.append(client.send("/create", new_id()))
            sent += 1

    threads = [threading.Thread(target=send) for _ in range(SENDERS)]
    for thread in threads:
        thread.start()
    try:
        yield times
    finally:
        end.set()
        for thread in threads:
            thread.join()
