"""Measure what the listener costs: `python benchmarks/run.py`. Prints tables in Markdown; see README.md."""

import argparse
import os
import platform
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import drain
import footprint
import growth
import ingest
import pages
import rivals
import strangers
import trouble
from bench import Bench

BENCHMARKS = {
    "ingest": ingest.run,
    "rivals": rivals.run,
    "growth": growth.run,
    "drain": drain.run,
    "trouble": trouble.run,
    "footprint": footprint.run,
    "strangers": strangers.run,
    "page": pages.run,
}
THIS_CHECKOUT = Path(__file__).resolve().parent.parent


def main() -> None:
    options = _options()
    checkouts = [path.resolve() for path in (options.service, options.against) if path]
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder:
        bench = Bench({_version(path): path for path in checkouts}, Path(folder), options.long)
        print(_machine(), flush=True)
        for name in options.names or BENCHMARKS:
            started = time.monotonic()
            print(f"\n## {name.capitalize()}\n\n{BENCHMARKS[name](bench)}", flush=True)
            print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure what the listener costs.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which benchmarks: {', '.join(BENCHMARKS)}")
    parser.add_argument("--service", type=Path, default=THIS_CHECKOUT, help="the checkout to measure (this one)")
    parser.add_argument("--against", type=Path, help="another checkout, to be measured with it")
    parser.add_argument("--long", action="store_true", help="take half an hour, and more items")
    options = parser.parse_args()
    for name in set(options.names) - set(BENCHMARKS):
        parser.error(f"{name} is not one of: {', '.join(BENCHMARKS)}")
    for path in (options.service, options.against):
        if path and not (path / "app.py").exists():
            parser.error(f"{path} is not a checkout of the listener: it has no app.py")
    return options


def _version(checkout: Path) -> str:
    """What a checkout is called in the tables: its version, or its folder where it does not tell."""
    command = [sys.executable, str(checkout / "app.py"), "--version"]
    answer = subprocess.run(command, capture_output=True, text=True)
    return answer.stdout.split()[-1] if answer.returncode == 0 else checkout.name


def _machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    versions = f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}"
    return f"Measured on {time.strftime('%Y-%m-%d')}: {model}, {os.cpu_count()} CPUs, {platform.release()}, {versions}."


if __name__ == "__main__":
    main()
