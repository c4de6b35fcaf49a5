"""A program that is measured: started, watched through /proc, stopped."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

START_SECONDS = 120.0
STOP_SECONDS = 30.0
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class Process:
    """A server on a port of 127.0.0.1 that runs while in its `with`. What it prints goes to the file `log`.

    :ivar seconds_to_listen: from its start until it listened
    """

    def __init__(self, command: Sequence[str], folder: Path, port: int, listening_line: str = "") -> None:
        """
        :param folder: where it runs
        :param listening_line: what it prints once it listens; without it, that is when it accepts a connection
        """
        self.command, self.folder, self.port = command, folder, port
        self.log = folder / "log"
        self.seconds_to_listen = 0.0
        self._listening_line = listening_line

    def __enter__(self) -> "Process":
        self.log.unlink(missing_ok=True)
        started = time.monotonic()
        with self.log.open("w") as log:
            self._process = subprocess.Popen(self.command, cwd=self.folder, stdout=log, stderr=log)
        while not self._listens():
            if self._process.poll() is not None or time.monotonic() - started > START_SECONDS:
                self.__exit__()
                raise SystemExit(f"{' '.join(self.command)} does not listen:\n{self.log.read_text()[-2000:]}")
            time.sleep(0.002)
        self.seconds_to_listen = time.monotonic() - started
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _listens(self) -> bool:
        if self._listening_line:
            return self._listening_line in self.log.read_text()
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) == 0

    def cpu_seconds(self) -> float:
        """CPU time until now, in user and system mode, with that of its children that have ended."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / TICKS_PER_SECOND

    def memory(self, kind: str = "Rss") -> float:
        """MB of memory. `kind`: "Rss" or, with what it shares with others divided among them, "Pss"."""
        for line in Path(f"/proc/{self._process.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(f"{kind}:"):
                return int(line.split()[1]) / 1024
        raise LookupError(kind)

    def peak_memory(self) -> float:
        """MB of memory (Rss) that it has had at most."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def python(script: str, *arguments: object) -> list[str]:
    """The command line of a script of this folder."""
    return [sys.executable, str(Path(__file__).with_name(script)), *map(str, arguments)]


def free_port() -> int:
    """A port on which nobody listens just now."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])
