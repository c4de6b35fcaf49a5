"""The stand-in for iconik with everything that can go wrong with an answer."""

import random
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import sandbox
from sandbox import server

CHUNK_BYTES = 65536
TIME = r"\d{4}-\d\d-\d\dT[\d:.]+"  # a call that is repeated may ask about another time


@dataclass
class Fault(sandbox.Fault):
    """What goes wrong with a request that matches, in all its kinds."""

    work_delay: float = 0  # with after_work: it is done only this many seconds later, whatever was answered before
    cut: bool = False  # the connection ends without an answer
    hang: bool = False  # no answer comes as long as the stand-in runs
    delay: float = 0  # seconds until the answer begins
    drip: float = 0  # seconds between two bytes of the answer
    drip_from: str = "status"  # "status", "headers" or "body": what comes before that is sent at once
    endless: bool = False  # the body is repeated until the client goes away
    share: float = 1  # the probability that a request which matches meets the fault


TOO_MANY = Fault(status=429, headers={"Retry-After": "1"}, body=b'{"errors": ["Too many requests"]}')


class FaultyIconik(sandbox.Sandbox):
    """The stand-in. Its faults are free to be changed."""

    def __init__(self, port: int = 0, verbose: bool = False, clock: Callable[[], float] = time.time) -> None:
        super().__init__(port, verbose, clock)
        self.asset_faults: dict[str, Fault] = {}  # what goes wrong with every request whose path names that id
        self.fail_each_once: Fault | None = None  # what goes wrong with each different call, the first time
        self.rate_limit: float | None = None  # requests a second; past that 429
        self.slow: dict[str, Callable[[], float]] = {}  # how many seconds pass before such a request is done
        self.at_request: dict[str, Callable[[], object]] = {}  # what a test does at the next such request
        self.pages: Callable[[str, list[Any]], list[Any]] = lambda path, objects: objects  # what a page becomes
        self.random = random.Random(1)
        self._failed_once: set[str] = set()
        self._recent: deque[float] = deque()  # when the requests of the last second came
        self.server.handle_with(FaultyHandler)

    def take_fault(self, request: str, body: bytes) -> sandbox.Fault | None:
        for match in [match for match in self.at_request if match in request]:
            self.at_request.pop(match)()
        now = time.monotonic()
        while self._recent and self._recent[0] <= now - 1:
            self._recent.popleft()
        if self.rate_limit is not None and len(self._recent) >= self.rate_limit:
            return TOO_MANY
        self._recent.append(now)
        for part in request.split("?")[0].split("/") if self.asset_faults else ():
            if part in self.asset_faults:
                return self.asset_faults[part]
        for fault in self.faults:
            share = getattr(fault, "share", 1)
            if fault.match in request and fault.times > 0 and (share == 1 or self.random.random() < share):
                fault.times -= 1
                return fault
        call = re.sub(TIME, "", unquote(f"{request} {body!r}"))
        if self.fail_each_once and call not in self._failed_once:
            self._failed_once.add(call)
            return self.fail_each_once
        return None

    def seconds_before(self, request: str) -> float:
        return sum(seconds() for match, seconds in self.slow.items() if match in request)

    def answer(
        self, method: str, url: str, credentials: tuple[str | None, str | None], body: bytes
    ) -> tuple[int, dict[str, Any] | None]:
        status, content = super().answer(method, url, credentials, body)
        if content and isinstance(content.get("objects"), list):
            content = {**content, "objects": self.pages(url, content["objects"])}
        return status, content


class FaultyHandler(server.RequestHandler):
    """Answers as late, as slowly and as badly as a fault says."""

    def do_GET(self) -> None:
        iconik = self.server.sandbox
        assert isinstance(iconik, FaultyIconik)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        time.sleep(iconik.latency + iconik.seconds_before(f"{self.command} {self.path}"))
        status, content = 0, b""
        with iconik.changed:
            iconik.requests.append(f"{self.command} {self.path}")
            simple = iconik.take_fault(iconik.requests[-1], body)
            fault = simple if isinstance(simple, Fault) or simple is None else Fault(**vars(simple))
            if fault and fault.after_work and fault.work_delay:
                timer = threading.Timer(fault.work_delay, self.work, (self.command, self.path, body))
                timer.daemon = True
                timer.start()
            elif fault is None or fault.after_work or fault.status is None:
                status, content = self.work(self.command, self.path, body)
            iconik.changed.notify_all()
        if fault:
            iconik.stopping.wait(None if fault.hang else fault.delay)
            if fault.hang or fault.cut:
                self.close_connection = True
                return
            if fault.status is not None:
                status, content = fault.status, fault.body
        self._send(status, content, fault or Fault(status=None))

    do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815 the names are http.server's

    def _send(self, status: int, content: bytes, fault: Fault) -> None:
        if fault.endless or "Transfer-Encoding" in fault.headers or "Content-Length" in fault.headers:
            more = {"Connection": "close"}  # the body may not end where the headers say
            self.close_connection = True
        else:
            more = {"Content-Length": str(len(content))}
        head = self.head(status, content, fault.headers, more)
        status_line = head.index(b"\r\n") + 2
        at_once = {"status": 0, "headers": status_line, "body": len(head)}[fault.drip_from]
        data = head + content
        self._write(data[:at_once], 0)
        self._write(data[at_once:], fault.drip)
        while fault.endless and not self.server.sandbox.stopping.is_set():
            self._write(content if fault.drip else content * (CHUNK_BYTES // len(content) + 1), fault.drip)

    def _write(self, data: bytes, drip: float) -> None:
        if not drip:
            self.connection.sendall(data)
            return
        for byte in data:
            self.connection.sendall(bytes([byte]))
            if self.server.sandbox.stopping.wait(drip):
                raise ConnectionAbortedError
