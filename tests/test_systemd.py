"""What systemd is told, on a real socket, by the real process."""

import math
import os
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import requests

from faulty_iconik import Fault, FaultyIconik
from support import ASSET, OTHER_ASSET, Listener, create_event, new_id, wait_until
from system import systemd
from test_migrations import VERSION_1_0, write

WATCHDOG = "WATCHDOG=1"
WATCHDOG_SECONDS = 0.06  # half of this is the time between two signs of life
# A call of iconik's counts as hanging after 0.2 s, though its timeout is 10 s, and a database that is held is given up.
HURRIED = "import app\nfrom system import database\napp.MAX_CALL_EXCESS = -9.8\ndatabase.BUSY_SECONDS = 0.2"
HANGING = """
import socket, threading
look_up = socket.getaddrinfo
def getaddrinfo(*address, **options):
    is_to_listen = threading.current_thread() is threading.main_thread()
    return look_up(*address, **options) if is_to_listen else threading.Event().wait()
socket.getaddrinfo = getaddrinfo
"""
GONE = """
import threading
from system.runtime import Runtime
class Gone(threading.Thread):
    def start(self):
        super().start()
        self.join()
thread = Runtime.thread
Runtime.thread = lambda self, run: Gone() if "Reconciler" in run.__qualname__ else thread(self, run)
"""


class Systemd:
    """The end of NOTIFY_SOCKET that systemd has."""

    def __init__(self, address: str) -> None:
        self.messages: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address.replace("@", "\0", 1) if address.startswith("@") else address)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        while message := self._socket.recv(4096):
            self.messages += message.decode().splitlines()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RD)  # ends recv
        self._reader.join()
        self._socket.close()

    def signs_of_life(self) -> int:
        return self.messages.count(WATCHDOG)


@contextmanager
def listening_at(address: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Systemd]:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    monkeypatch.setenv("WATCHDOG_USEC", f"{WATCHDOG_SECONDS * 1e6:.0f}")
    with closing(Systemd(address)) as manager:
        yield manager


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Systemd]:
    with listening_at(str(tmp_path / "notify"), monkeypatch) as manager:
        yield manager


# From the start to the end


def test_it_is_ready_when_it_listens_shows_that_it_lives_and_says_that_it_stops(
    manager: Systemd, listener: Listener
) -> None:
    assert requests.get(f"{listener.url}/health").ok
    wait_until(lambda: manager.signs_of_life() >= 3)
    assert listener.end() == 0
    wait_until(lambda: manager.messages[-1] == "STOPPING=1")
    status = "STATUS=The circuit breaker is closed"
    count = manager.signs_of_life()
    assert manager.messages == ["READY=1", *[WATCHDOG, status] * count, "STOPPING=1"]


@pytest.mark.long
def test_a_long_upgrade_asks_for_the_time_that_it_takes(
    manager: Systemd, listeners: Callable[..., Listener], tmp_path: Path
) -> None:
    write(tmp_path / "items.db", VERSION_1_0)
    listeners().start(prelude="import migrations\nmigrations.PROGRESS_SECONDS = migrations.PROGRESS_INSTRUCTIONS = 1")
    wait_until(lambda: "READY=1" in manager.messages)
    before = manager.messages[: manager.messages.index("READY=1")]
    assert len(before) >= 2
    assert set(before) == {"EXTEND_TIMEOUT_USEC=300000000"}


# The watchdog


def lives_on(manager: Systemd) -> None:
    """It goes on showing that it lives for longer than a call may hang here."""
    enough = manager.signs_of_life() + 10
    wait_until(lambda: manager.signs_of_life() >= enough)


@pytest.mark.long
def test_a_call_that_hangs_for_longer_than_any_can_last_shows_no_life(
    manager: Systemd, listeners: Callable[..., Listener]
) -> None:
    listener = listeners().start(prelude=f"{HURRIED}\n{HANGING}")
    wait_until(lambda: sum("ERROR A call to iconik has hung for 0 s" in line for line in listener.log) >= 2)
    signs_of_life = manager.signs_of_life()
    wait_until(lambda: sum("has hung" in line for line in listener.log) >= 6)
    assert 1 <= manager.signs_of_life() == signs_of_life
    listener.end(signal.SIGKILL)


def test_a_thread_that_is_gone_shows_no_life(manager: Systemd, listeners: Callable[..., Listener]) -> None:
    listener = listeners().start(prelude=GONE)
    wait_until(lambda: "READY=1" in manager.messages)
    assert requests.get(f"{listener.url}/health").ok
    assert listener.end() == 0
    wait_until(lambda: "STOPPING=1" in manager.messages)
    assert manager.messages == ["READY=1", "STOPPING=1"]


@pytest.mark.long
def test_a_worker_that_waits_to_write_its_outcome_or_for_iconik_to_come_back_lives(
    manager: Systemd, listeners: Callable[..., Listener], sandbox: FaultyIconik
) -> None:
    listener = listeners().start(prelude=HURRIED)
    with closing(sqlite3.connect(listener.database, isolation_level=None)) as person:
        with sandbox.changed:  # until this is released, iconik does not answer
            listener.upload(ASSET)
            wait_until(lambda: listener.rows("status = 'submitting'"))
            person.execute("BEGIN IMMEDIATE")
        wait_until(lambda: listener.logged("Cannot record an outcome yet"))
        assert listener.post("/create", create_event(OTHER_ASSET)).status_code == 503
        lives_on(manager)
        person.execute("COMMIT")
    wait_until(lambda: listener.rows("status = 'submitted'"))
    sandbox.faults += [Fault("analyze/assets", status=429, headers={"Retry-After": "3600"}) for _ in range(2)]
    listener.upload(OTHER_ASSET, new_id())
    wait_until(lambda: "circuit breaker has been open since" in manager.messages[-1])
    assert manager.messages[-1].endswith(": iconik answered 429")
    lives_on(manager)
    assert len(listener.rows("status = 'submitted'")) == 1


# By itself


@pytest.mark.parametrize("is_abstract", [False, True])
def test_a_socket_has_a_path_or_an_abstract_name(
    is_abstract: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"@iconik-listener/{new_id()}" if is_abstract else str(tmp_path / "notify@home")
    with listening_at(address, monkeypatch) as manager:
        systemd.notify("READY=1", "STATUS=Grüße")
        systemd.extend_timeout(1.5)
        wait_until(lambda: len(manager.messages) == 3)
    assert manager.messages == ["READY=1", "STATUS=Grüße", "EXTEND_TIMEOUT_USEC=1500000"]


@pytest.mark.parametrize("address", [None, "", "vsock:2:1234", "/there/is/no/such/socket", "@nobody", "/" + "x" * 200])
def test_without_systemd_nothing_happens(address: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if address is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    systemd.notify("READY=1")


def test_a_systemd_that_does_not_read_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setattr(systemd, "SEND_SECONDS", 0.01)
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as unread:
        unread.bind(str(tmp_path / "notify"))
        with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as others:
            others.setblocking(False)
            with pytest.raises(BlockingIOError):
                while True:
                    others.sendto(b"x", str(tmp_path / "notify"))
        begin = time.monotonic()
        systemd.notify("READY=1")
        assert time.monotonic() - begin < 10


@pytest.mark.parametrize(
    ("microseconds", "pid", "seconds"),
    [
        ("120000000", None, 60),
        ("120000000", "ours", 60),
        ("120000000", "1", math.inf),
        (None, None, math.inf),
        ("", None, math.inf),
        ("0", None, math.inf),
        ("-5", None, math.inf),
        ("soon", None, math.inf),
    ],
)
def test_a_sign_of_life_is_due_after_half_of_systemds_limit(
    microseconds: str | None, pid: str | None, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("WATCHDOG_USEC", microseconds), ("WATCHDOG_PID", pid)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, str(os.getpid()) if value == "ours" else value)
    assert systemd.watchdog_interval() == seconds
