"""How fast a backlog is worked off, by number of workers, and how long webhooks take meanwhile."""

import time
from pathlib import Path
from statistics import median
from threading import Event, Thread

from bench import Bench
from load import Client, new_id
from service import Iconik, Service, copy_of, new_database
from table import figure, table

BACKLOG = 5_000
LATENCIES = (0.05, 0.1, 0.2, 1.0)  # seconds
WORKERS = (1, 2, 4, 8, 16, 32)
SECONDS = 3.0
WEBHOOKS_PER_SECOND = 50


def run(bench: Bench) -> str:
    rows = []
    for name, checkout in bench.checkouts.items():
        new_database(checkout, bench.folder / "backlog", ready=BACKLOG)
        for latency in LATENCIES:
            for workers in WORKERS:
                rows.append([name, f"{latency * 1000:.0f}", workers, *_measure(bench, checkout, latency, workers)])
    heads = ["", "iconik, ms", "workers", "jobs/s", "requests/s", "of workers ÷ latency"]
    heads += ["webhook median, ms", "slowest, ms"]
    return f"""A backlog of {BACKLOG:,}, and {WEBHOOKS_PER_SECOND} webhooks a second meanwhile.
iconik allows about 50 requests a second.

{table(heads, rows)}"""


def _measure(bench: Bench, checkout: Path, latency: float, workers: int) -> list[str]:
    folder = copy_of(bench.folder / "backlog", "drain")
    seconds = max(20 if bench.long else SECONDS, 6 * latency)
    with (
        Iconik(bench.folder, latency=latency) as iconik,
        Service(checkout, folder, iconik, workers=workers) as service,
        _Webhooks(service.port) as webhooks,
    ):
        iconik.wait_for_jobs(BACKLOG, seconds)
        webhooks.stop()
        report = iconik.report()
    first = report["first_request_at"]
    jobs = [at for at, _, _, status in report["answers"] if status == 201]
    # The workers go in step: what is counted ends with a whole number of their steps.
    jobs = jobs[: len(jobs) // workers * workers]
    requests = sum(call in ("asset", "analyze") and at <= jobs[-1] for at, call, _, _ in report["answers"])
    rate = requests / (jobs[-1] - first)
    share = rate / (workers / latency)
    times = [figure(median(webhooks.times)), figure(max(webhooks.times))]
    return [figure(len(jobs) / (jobs[-1] - first)), figure(rate), f"{share:.2f}", *times]


class _Webhooks:
    """A new asset now and then, while in its `with`.

    :ivar times: milliseconds that each webhook took
    """

    def __init__(self, port: int) -> None:
        self.times: list[float] = []
        self._port = port
        self._stopping = Event()
        self._thread = Thread(target=self._send)

    def __enter__(self) -> "_Webhooks":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def _send(self) -> None:
        client = Client(self._port)
        due = time.monotonic()
        while not self._stopping.wait(max(0, due - time.monotonic())):
            self.times.append(client.send("/create", new_id()))
            due += 1 / WEBHOOKS_PER_SECOND
