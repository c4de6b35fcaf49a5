"""What several test modules use: iconik's events, and the real listener as a process."""

import io
import os
import random
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import requests

import app
from circuit_breaker import CircuitBreaker
from config import CONFIG_CHANGED_AT, Config, load
from faulty_iconik import FaultyIconik
from iconik_client import IconikClient
from menu import MENU
from resources import Services, create_app
from store import Rules, Store
from submitter import Submitter
from system.runtime import Runtime
from system.server import Server

APP = Path(__file__).parent.parent / "app.py"
SECRET = "s3cret%-with;#oddities"
ARTICLE_CREATE: dict[str, Any] = {
    "data": {
        "analyze_status": "N/A",
        "created_by_user": "f1b89efa-6cb5-11e7-b50b-0a580a0000f8",
        "date_created": "2018-01-03T18:30:26.885375+00:00",
        "date_deleted": None,
        "date_modified": "2018-01-03T18:30:26.885390+00:00",
        "deleted_by_user": None,
        "external_id": None,
        "id": "2b45a8ca-f0b4-11e7-a36b-0a580a00054a",
        "status": "ACTIVE",
        "title": "1_zps7uj5xqff.jpg",
        "type": "ASSET",
    },
    "event_type": "assets",
    "object_id": "2b45a8ca-f0b4-11e7-a36b-0a580a00054a",
    "operation": "create",
    "realm": "entity",
    "system_domain_id": "bf0b8c12-7ccc-11e7-8d93-0a580a00022b",
}
ARTICLE_PROXY: dict[str, Any] = {
    "data": {
        "asset_id": "c521e01a-f0a2-11e7-b528-0a580a000257",
        "bit_rate": 8,
        "codec": "JPEG",
        "filename": "c87231ac-f0a2-11e7-9777-0a580a000756.jpg",
        "format": "JPEG",
        "frame_rate": "0",
        "id": "c87231ac-f0a2-11e7-9777-0a580a000756",
        "is_drop_frame": False,
        "name": "2015-Mille-lowres.jpg",
        "resolution": {"height": 720, "width": 1280},
        "start_time_code": None,
        "status": "CLOSED",
        "storage_id": "f7d92dd8-7ccc-11e7-8801-0a580a000229",
    },
    "event_type": "assets",
    "object_id": "c521e01a-f0a2-11e7-b528-0a580a000257",
    "operation": "update",
    "realm": "proxies",
    "system_domain_id": "bf0b8c12-7ccc-11e7-8d93-0a580a00022b",
}
ASSET: str = ARTICLE_CREATE["object_id"]
OTHER_ASSET: str = ARTICLE_PROXY["object_id"]


def create_event(object_id: str = ASSET, **data: Any) -> dict[str, Any]:
    return {**ARTICLE_CREATE, "object_id": object_id, "data": {**ARTICLE_CREATE["data"], **data}}


def proxy_event(object_id: str = ASSET, status: Any = "CLOSED") -> dict[str, Any]:
    return {**ARTICLE_PROXY, "object_id": object_id, "data": {**ARTICLE_PROXY["data"], "status": status}}


def needs(*programs: str) -> None:
    """Skip the test where a program is missing."""
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


def new_id() -> str:
    return str(uuid.uuid4())


def free_port() -> int:
    """One that no connection takes by chance before the listener has it: those are above 32767."""
    while True:
        with closing(socket.socket()) as one:
            try:
                one.bind(("127.0.0.1", random.randint(20000, 32000)))
            except OSError:
                continue
            return int(one.getsockname()[1])


def wait_until(condition: Callable[[], Any], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def unread_bytes(port: int) -> list[int]:
    """What the server has not read yet, of each connection to the port."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [int(line[4].split(":")[1], 16) for line in lines if line[1].endswith(f":{port:04X}") and line[3] == "01"]


def bytes_on_their_way(port: int) -> int:
    """What was sent to the port and the server's program has not got yet, in the buffers of both ends."""
    end, waiting = f":{port:04X}", 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        local, remote, state, queues = line.split()[1:5]
        to_be_sent, to_be_read = (int(count, 16) for count in queues.split(":"))
        if state == "01" and end in (local[-5:], remote[-5:]):
            waiting += to_be_read if local.endswith(end) else to_be_sent
    return waiting


def full_pipe() -> tuple[int, int]:
    """The descriptors of a pipe's two ends. It has taken full stops until it was full."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    for size in (1000, 1):
        with suppress(BlockingIOError):
            while True:
                os.write(write_end, b"." * size)
    os.set_blocking(write_end, True)
    return read_end, write_end


def let_everybody_in(folder: Path) -> None:
    """Open a folder of a test's, and those of pytest's around it, to a user without rights."""
    for closed in (folder, *folder.parents):
        if not closed.stat().st_mode & 0o077:
            closed.chmod(0o755)


class Clock:
    """Seconds that only pass when a test says so. Call it for the wall clock."""

    def __init__(self, now: float = 1_795_000_000.0) -> None:
        self.now = now
        self.monotonic = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds
        self.monotonic += seconds

    def step(self, seconds: float) -> None:
        """Set the wall clock, while no time passes."""
        self.now += seconds


class ManualRuntime(Runtime):
    """Waits by letting the clock go on, and has no chance in it."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def time(self) -> float:
        return self.clock.now

    def monotonic(self) -> float:
        return self.clock.monotonic

    def uniform(self, low: float, high: float) -> float:
        return low

    def condition(self) -> threading.Condition:
        return _WaitingCondition(self.clock)


class _WaitingCondition(threading.Condition):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None, "this would wait for ever"
        self._clock.advance(timeout)
        return False


def write_config(folder: Path, **values: object) -> Path:
    """A config.ini of `section__key=value`, with the two credentials unless they are given as None."""
    values = {"iconik__app_id": "app", "iconik__auth_token": "to%ken", **values}
    lines = []
    for section in (
        "iconik",
        "listener",
        "submitter",
        "analyze",
        "transcribe",
        "faces",
        "limits",
        "reconciler",
        "notify",
        "sweep",
    ):
        if section in ("iconik", "listener", "submitter", "reconciler") or any(
            name.startswith(f"{section}__") for name in values
        ):
            lines.append(f"[{section}]")
        for name, value in values.items():
            if name.startswith(f"{section}__") and value is not None:
                lines.append(f"{name.removeprefix(f'{section}__')} = {value}")
    path = folder / "config.ini"
    path.write_text("\n".join(lines), encoding="utf-8")
    path.chmod(0o600)
    return path


def write_sandbox_config(folder: Path, sandbox: FaultyIconik, **values: object) -> Path:
    """A config.ini for a sandbox, with short delays."""
    return write_config(
        folder,
        **{
            "iconik__url": sandbox.url,
            "iconik__app_id": sandbox.app_id,
            "iconik__auth_token": sandbox.auth_token,
            "iconik__timeout": 10,
            "listener__host": "127.0.0.1",
            "listener__port": 0,
            "listener__webhook_secret": SECRET,
            "submitter__retry_delay": 0.05,
            "submitter__max_retry_delay": 0.2,
            **values,
        },
    )


def make_config(folder: Path, sandbox: FaultyIconik, **values: object) -> Config:
    """The same, read."""
    return load(write_sandbox_config(folder, sandbox, **values))


class Listener:
    """The real `python app.py` in a process of its own, set up for a sandbox."""

    def __init__(self, folder: Path, sandbox: FaultyIconik, **values: object) -> None:
        self.sandbox = sandbox
        self.database = folder / "items.db"
        self.config = write_sandbox_config(folder, sandbox, **values)
        self.log: list[str] = []
        self.url = ""
        self.environment: dict[str, str] = {}  # on top of this process's
        self.process: subprocess.Popen[str] | None = None

    def start(self, preexec_fn: Callable[[], None] | None = None, prelude: str = "") -> "Listener":
        """Start it, and wait until it listens. `prelude`: Python that the process executes first."""
        program = ["-c", f"{prelude}\nimport app\napp.main()"] if prelude else [str(APP)]
        self.process = subprocess.Popen(
            [sys.executable, "-W", "default", *program, "--config", str(self.config)],
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=preexec_fn,
            cwd=self.config.parent,
            env={**os.environ, "PYTHONPATH": str(APP.parent), **self.environment},
        )
        begin = len(self.log)
        self._reader = threading.Thread(target=self._read, args=(self.process,))
        self._reader.start()
        wait_until(lambda: self.process_ended() or self.logged("Listening on", begin))
        listening = re.search(r"Listening on (\S+):", "".join(self.log[begin:]))
        assert listening, "".join(self.log)
        self.url = f"http://{listening[1]}"
        return self

    def _read(self, process: "subprocess.Popen[str]") -> None:
        assert process.stderr
        with process.stderr:
            for line in process.stderr:
                self.log.append(line)

    def process_ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def logged(self, text: str, begin: int = 0) -> bool:
        return any(text in line for line in self.log[begin:])

    def post(self, path: str, event: dict[str, Any], secret: str = SECRET) -> requests.Response:
        return requests.post(self.url + path, json=event, headers={"X-Webhook-Secret": secret}, timeout=30)

    def upload(self, *asset_ids: str) -> None:
        """Create assets at iconik, with closed proxies, and deliver their webhooks: each must be answered 200."""
        for asset_id in asset_ids:
            self.sandbox.create_asset("a.mov", asset_id, send=False)
            self.sandbox.set_proxy(asset_id, send=False)
            assert self.post("/create", create_event(asset_id)).status_code == 200
            assert self.post("/proxy", proxy_event(asset_id)).status_code == 200

    def rows(self, where: str = "1") -> list[sqlite3.Row]:
        return rows(self.database, where)

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Send the signal, wait for the end, and return the exit code."""
        if self.process is None:
            return 0
        self.process.send_signal(how)
        code = self.process.wait(30)
        self._reader.join()
        self.process = None
        return code

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Another `python app.py` with the same configuration, until its end."""
        return run("--config", str(self.config), *arguments, cwd=self.config.parent, env=self.environment)

    def command(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """The same without a process of its own, which is faster."""
        command = ["app.py", "--config", str(self.config), *arguments]
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err), patch.object(sys, "argv", command):
            try:
                app.main()
                code = 0
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 1
        return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())


FORKER = """
import os, random, sys, app
{prelude}
for line in sys.stdin:
    pid = os.fork()
    if not pid:
        random.seed()
        sys.argv = ["app.py", *{arguments}]
        try:
            app.main()
        except SystemExit as end:
            os._exit(end.code if isinstance(end.code, int) else 1)
        os._exit(0)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class ForkingListener(Listener):
    """The listener as processes that are forked from one that has imported it: many starts take little time."""

    forked = 0  # the process that was started last, if it runs

    def prepare(self, prelude: str = "") -> "ForkingListener":
        """`prelude`: Python that is executed before the first start."""
        program = FORKER.format(prelude=prelude, arguments=["--config", str(self.config)])
        self._forker = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.config.parent,
            env={**os.environ, "PYTHONPATH": str(APP.parent)},
        )
        self._reader = threading.Thread(target=self._read, args=(self._forker,))
        self._reader.start()
        return self

    def fork(self) -> None:
        """Start one, and do not wait."""
        assert self._forker.stdin
        assert self._forker.stdout
        self._forker.stdin.write("start\n")
        self._forker.stdin.flush()
        self.forked = int(self._forker.stdout.readline())

    def kill(self, how: signal.Signals) -> int:
        """Send the one that was started last a signal, wait for its end, and return the exit code."""
        assert self._forker.stdout
        os.kill(self.forked, how)
        self.forked = 0
        return int(self._forker.stdout.readline())

    def end(self, how: signal.Signals = signal.SIGKILL) -> int:
        """End all of its processes."""
        if self.forked:
            self.kill(how)
        for pipe in (self._forker.stdin, self._forker.stdout):
            assert pipe
            pipe.close()
        code = self._forker.wait(30)
        self._reader.join()
        return code


class ListenerHere(Listener):
    """The listener in this process, which is quicker to start. Nothing of it is another than app.py's."""

    def start(self, *_: object) -> "ListenerHere":
        config = load(self.config)
        self.store = Store(config.listener.database, Rules.of(config), listener=True)
        breaker, client = CircuitBreaker(config.submitter), IconikClient(config.iconik)
        self.submitter = Submitter(self.store, client, breaker, config)
        self.breaker = breaker
        services = Services(self.store, self.submitter, breaker, config.listener.webhook_secret)
        host, port = config.listener.host, config.listener.port
        self.server = Server(create_app(services, MENU), host, port, services.judge)
        self.store.set_state(CONFIG_CHANGED_AT, str(config.changed_at))
        self.store.set_state("listening_at", self.server.address)
        self.url = f"http://{self.server.address}"
        self.submitter.start()
        self.thread = threading.Thread(target=self.server.run, args=(lambda: None,))
        self.thread.start()
        return self

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        if self.url:
            self.server.stop()
            self.thread.join()
            self.server.drain()
            self.breaker.stop()
            self.submitter.stop()
            self.store.close()
            self.url = ""
        return 0


def run(
    *arguments: str, cwd: Path, env: dict[str, str] | None = None, **options: Any
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-W", "error", str(APP), *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "COLUMNS": "80", **(env or {})},
        **options,
    )


@contextmanager
def held_by_a_person(database: Path) -> Iterator[None]:
    """Meanwhile, nobody else can write: as with sqlite3 inside a transaction."""
    with closing(sqlite3.connect(database, isolation_level=None)) as person:
        person.execute("BEGIN IMMEDIATE")
        yield
        person.execute("COMMIT")


def rows(database: Path, where: str = "1") -> list[sqlite3.Row]:
    """The items, read as a person would: with another connection."""
    connection = sqlite3.connect(database)
    try:
        connection.row_factory = sqlite3.Row
        return connection.execute(f"SELECT * FROM items WHERE {where}").fetchall()
    finally:
        connection.close()
