"""Webhooks, as many as will be answered: by wrk, or, where that is not installed, by threads of this process."""

import http.client
import json
import random
import shutil
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

CONNECTIONS = 16
HEADERS = {"Content-Type": "application/json", "X-Webhook-Secret": "benchmark"}


@dataclass(frozen=True)
class Load:
    """What came of a load. `median`, `slowest`: how long a webhook took, in ms."""

    requests: int
    seconds: float
    failed: int
    median: float
    slowest: float

    @property
    def rate(self) -> float:
        """Answers a second that were a success."""
        return (self.requests - self.failed) / self.seconds


def load(port: int, seconds: float, *, pairs: bool = False) -> Load:
    """Send webhooks over 16 connections: new assets only or, in `pairs`, each asset's proxy as well."""
    wrk = shutil.which("wrk")
    if wrk is None:
        print("wrk is not installed: this process makes the load, and is measured with it", file=sys.stderr)
        return _load_by_threads(port, seconds, pairs)
    command = [wrk, "-t1", f"-c{CONNECTIONS}", f"-d{seconds:.0f}s", "--timeout", "10s", "--script"]
    command += [str(Path(__file__).with_name("load.lua")), f"http://127.0.0.1:{port}/", "--"]
    command += ["pairs" if pairs else "create", str(random.randrange(2**31))]  # noqa: S311
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return Load(**json.loads(output.partition("RESULT ")[2]))


def event(path: str, object_id: str) -> bytes:
    """The body of the webhook that goes to /create or /proxy."""
    operation, realm = ("create", "entity") if path == "/create" else ("update", "proxies")
    data = {"title": "1_zps7uj5xqff.jpg"} if path == "/create" else {"status": "CLOSED"}
    return json.dumps(
        {"data": data, "event_type": "assets", "object_id": object_id, "operation": operation, "realm": realm}
    ).encode()


class Client:
    """One connection that is kept open. It may be used by one thread."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def send(self, path: str, object_id: str) -> float:
        """Send a webhook, and wait for its answer. Returns the milliseconds; raises OSError for any but a 200."""
        return self.ask("POST", path, event(path, object_id))[0]

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[float, Any]:
        """A request. Returns the milliseconds that it took, and the answer's JSON."""
        started = time.monotonic()
        try:
            self._connection.request(method, path, body, HEADERS)
            response = self._connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise ConnectionError(str(error)) from None
        if response.status != 200:
            raise ConnectionError(f"{method} {path} was answered {response.status}")
        return (time.monotonic() - started) * 1000, json.loads(answer)


def new_id() -> str:
    return str(uuid.uuid4())


def _load_by_threads(port: int, seconds: float, pairs: bool) -> Load:
    times: list[float] = []
    failures: list[str] = []
    deadline = time.monotonic() + seconds

    def send() -> None:
        client = Client(port)
        while time.monotonic() < deadline:
            object_id = new_id()
            for path in ("/create", "/proxy") if pairs else ("/create",):
                try:
                    times.append(client.send(path, object_id))
                except ConnectionError as error:
                    failures.append(str(error))

    threads = [threading.Thread(target=send) for _ in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Load(len(times) + len(failures), seconds, len(failures), median(times or [0]), max(times or [0]))
