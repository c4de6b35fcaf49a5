"""What the service needs by itself: memory, CPU while nothing happens, time to start."""

import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from statistics import median

from bench import Bench
from load import load
from service import Iconik, Service, copy_of, new_database
from table import figure, table

JOBS, LONG_JOBS = 5_000, 100_000
WEBHOOK_SECONDS, LONG_WEBHOOK_SECONDS = 10, 120
IDLE_SECONDS, LONG_IDLE_SECONDS = 10, 60
STARTS = 5
PACKAGES = 12


def run(bench: Bench) -> str:
    rows = [[name, *_measure(bench, checkout)] for name, checkout in bench.checkouts.items()]
    heads = ["", "at rest, MB (PSS)", "after webhooks, MB", "after jobs, MB", "idle, CPU s", "start, s"]
    imports = [f"Imports of {name}, ms: {_imports(checkout)}" for name, checkout in bench.checkouts.items()]
    return "\n\n".join([f"Memory is VmRSS; starts: median of {STARTS}.", table(heads, rows), *imports])


def _measure(bench: Bench, checkout: Path) -> list[str]:
    empty = new_database(checkout, bench.folder / "empty")
    starts = []
    with Iconik(bench.folder) as iconik:
        for _ in range(STARTS - 1):
            with Service(checkout, empty, iconik) as service:
                starts.append(service.seconds_to_listen)
        with Service(checkout, empty, iconik) as service:
            starts.append(service.seconds_to_listen)
            time.sleep(2)
            at_rest = f"{figure(service.memory())} ({figure(service.memory('Pss'))})"
            before = service.cpu_seconds()
            seconds = LONG_IDLE_SECONDS if bench.long else IDLE_SECONDS
            time.sleep(seconds)
            idle = f"{service.cpu_seconds() - before:.2f} in {seconds} s"
            came = load(service.port, LONG_WEBHOOK_SECONDS if bench.long else WEBHOOK_SECONDS)
            after_webhooks = f"{figure(service.memory())} ({came.requests:,})"
    return [at_rest, after_webhooks, _memory_after_jobs(bench, checkout), idle, figure(median(starts))]


def _memory_after_jobs(bench: Bench, checkout: Path) -> str:
    jobs = LONG_JOBS if bench.long else JOBS
    new_database(checkout, bench.folder / "backlog", ready=jobs)
    folder = copy_of(bench.folder / "backlog", "jobs")
    with Iconik(bench.folder) as iconik, Service(checkout, folder, iconik) as service:
        iconik.wait_for_jobs(jobs, jobs / 20)
        return f"{figure(service.memory())} ({iconik.jobs():,})"


def _imports(checkout: Path) -> str:
    """What importing each package takes, the packages that it imports in turn left out."""
    command = [sys.executable, "-X", "importtime", "-c", "import app"]
    lines = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=True).stderr.splitlines()
    microseconds: Counter[str] = Counter()
    for line in lines:
        if match := re.match(r"import time:\s+(\d+) \|\s+\d+ \|\s+([\w.]+)", line):
            microseconds[match[2].partition(".")[0]] += int(match[1])
    most = [f"{name} {time / 1000:.0f}" for name, time in microseconds.most_common(PACKAGES)]
    return f"{', '.join(most)}; all {microseconds.total() / 1000:.0f}"
