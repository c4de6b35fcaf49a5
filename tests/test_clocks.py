"""A wrong wall clock under the real listener: nothing older is billed, and nothing that comes is lost.

Debian's faketime moves the wall clock of a process, while it runs, too, and leaves the monotonic one alone.
"""

import signal
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from faulty_iconik import Fault, FaultyIconik
from reconciliation.reconciler import ASSETS_FLOOR
from support import Listener, needs, wait_until
from system.text import format_utc, parse_time

pytestmark = pytest.mark.long

DAY = 86400
YEAR_1970 = -int(time.time()) + DAY  # as of a machine without a battery
LIST_OF_WEBHOOKS = "GET /API/notifications/v1/webhooks/?"


class Machine:
    """A listener whose wall clock is moved, and an iconik with an archive of 300 assets, whose own clock is right."""

    def __init__(self, folder: Path, sandbox: FaultyIconik, listener: Listener) -> None:
        self.sandbox, self.listener = sandbox, listener
        self._file = folder / "faketime"
        self.clock(0)
        preloaded = subprocess.run(
            ["faketime", "-f", "+0", "printenv", "LD_PRELOAD"], capture_output=True, text=True, check=True
        )
        listener.environment = {
            "LD_PRELOAD": preloaded.stdout.strip(),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }
        now = time.time()
        for number in range(300):
            date = format_utc(now - 40 * DAY + number * 40 * DAY / 300)
            asset_id = sandbox.create_asset("archived.mov", send=False, date_created=date, date_imported=date)
            sandbox.set_proxy(asset_id, send=False)
        self.archive = set(sandbox.assets)
        self.uploaded: set[str] = set()

    def clock(self, ahead: int) -> None:
        """Set the machine's clock: by how many seconds it is ahead of iconik's."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{ahead:+d}\n")
        new.replace(self._file)

    def start(self) -> None:
        self.listener.start()

    def stop(self) -> None:
        assert self.listener.end() == 0

    def kill(self) -> None:
        self.listener.end(signal.SIGKILL)

    def register(self) -> None:
        """As a person does, with the same clock. The listener keeps its port only until its next start."""
        assert self.listener.run("register", "--insecure", self.listener.url).returncode == 0

    def look(self) -> None:
        """Let the listener go through all of its reconciler's steps, and upload an asset meanwhile."""
        begun = self.asked(LIST_OF_WEBHOOKS)
        self.upload()
        wait_until(lambda: self.asked(LIST_OF_WEBHOOKS) >= begun + 2, 30)

    def iconik_is_away(self) -> None:
        self.sandbox.faults.append(Fault(cut=True, times=float("inf")))

    def fail_to_look(self) -> None:
        wait_until(lambda: self.listener.logged("Cannot check missed assets at iconik"), 30)
        self.upload()

    def iconik_is_back(self) -> None:
        self.sandbox.faults.clear()

    def upload(self) -> None:
        """An asset whose webhooks come."""
        asset_id = self.sandbox.create_asset("a.mov", send=False)
        self.listener.upload(asset_id)
        self.uploaded.add(asset_id)

    def asked(self, call: str) -> int:
        return sum(request.startswith(call) for request in self.sandbox.requests)

    def floor(self) -> float | None:
        with closing(sqlite3.connect(self.listener.database)) as db:
            row = db.execute("SELECT value FROM state WHERE key = ?", (ASSETS_FLOOR,)).fetchone()
            return parse_time(row[0]) if row else None

    def is_well(self) -> None:
        """Nothing of the archive is billed, all that was uploaded is, once, and what is missed from now on is found."""
        floor = self.floor()
        assert floor
        wait_until(lambda: time.time() > floor + 0.1)
        missed = {self.sandbox.create_asset("missed.mov", send=False) for _ in range(3)}
        for asset_id in missed:
            self.sandbox.set_proxy(asset_id, send=False)
        wanted = missed | self.uploaded
        wait_until(lambda: set(self.sandbox.jobs) >= wanted, 30)
        begun = self.asked(LIST_OF_WEBHOOKS)
        wait_until(lambda: self.asked(LIST_OF_WEBHOOKS) >= begun + 2, 30)
        assert Counter(self.sandbox.jobs) == dict.fromkeys(wanted, 1)
        assert {row["object_id"] for row in self.listener.rows()} == wanted


Step = Callable[[Machine], None]
start, stop, kill, register, look = Machine.start, Machine.stop, Machine.kill, Machine.register, Machine.look


def clock(days: float) -> Step:
    return lambda machine: machine.clock(int(days * DAY))


HISTORIES: dict[str, list[Step]] = {
    "ahead at the first start": [clock(20), start, register, look, clock(0), look],
    "behind at the first start": [clock(-20), start, register, look, clock(0), look],
    "behind until register": [clock(-20), start, look, clock(0), register, look],
    "behind at register only": [start, look, clock(-20), register, clock(0), look],
    "behind for two looks": [start, register, look, clock(-30), look, look, clock(0), look],
    "ahead for two looks": [start, register, look, clock(30), look, look, clock(0), look],
    "behind at a boot": [start, register, look, stop, clock(-30), start, look, clock(0), look],
    "ahead at a boot": [start, register, look, kill, clock(30), start, look, clock(0), look],
    "1970 until the time server answers": [clock(YEAR_1970 / DAY), start, register, look, clock(0), look],
    "behind while iconik cannot be reached": [
        clock(-30),
        Machine.iconik_is_away,
        start,
        Machine.fail_to_look,
        clock(0),
        Machine.iconik_is_back,
        register,
        look,
    ],
    "to and fro": [
        clock(400),
        start,
        look,
        clock(-400),
        register,
        look,
        kill,
        clock(2),
        start,
        look,
        clock(-0.5),
        look,
        clock(0),
        look,
    ],
}


@pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES)
def test_the_archive_is_never_billed_whatever_the_clock_says(
    listeners: Callable[..., Listener], sandbox: FaultyIconik, tmp_path: Path, history: list[Step]
) -> None:
    needs("faketime")
    machine = Machine(tmp_path, sandbox, listeners(reconciler__interval=0.3, reconciler__min_age=0))
    for step in history:
        step(machine)
        assert not machine.archive & set(sandbox.jobs)
    machine.is_well()
