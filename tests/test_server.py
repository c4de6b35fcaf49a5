"""The HTTP server by itself: what waitress is told to do, and the draining that it cannot do alone."""

import math
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import pytest
import requests
from flask import Flask, request

from support import wait_until
from system import server as server_module
from system.server import MAX_BODY, MAX_CONNECTIONS, RESERVED_DESCRIPTORS, CannotListen, Server, _connection_limit


class Site:
    """A server that runs in a thread, with an application whose /slow waits until it may go on."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        app = Flask("test", static_folder=None)
        app.add_url_rule("/", "size", lambda: str(len(request.get_data())), methods=["POST"])
        app.add_url_rule("/sender", "sender", lambda: request.headers["X-Forwarded-For"])
        app.add_url_rule("/slow", "slow", lambda: str(self.go_on.wait(20)))
        self.server = Server(app, "127.0.0.1", 0)
        self.url = f"http://{self.server.address}"
        self._thread = threading.Thread(target=self.server.run, args=(lambda: None,))
        self._thread.start()

    def connect(self) -> socket.socket:
        host, port = self.server.address.split(":")
        return socket.create_connection((host, int(port)), timeout=20)

    def exchange(self, data: bytes) -> bytes:
        """Send bytes, and read what is answered until the server closes the connection."""
        with self.connect() as connection:
            connection.sendall(data)
            return read_all(connection)

    def under_way(self) -> int:
        """How many requests have been read and are not answered yet."""
        return sum(channel.is_busy for channel in self.server._channels())

    def stop(self) -> None:
        self.server.stop()
        self._thread.join()

    def end(self) -> None:
        self.go_on.set()
        if self._thread.is_alive():
            self.stop()
            self.server.drain()


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.end()


def read_all(connection: socket.socket) -> bytes:
    answer = b""
    while part := connection.recv(65536):
        answer += part
    return answer


# What it answers by itself


def test_a_body_of_1_mib_is_read(site: Site) -> None:
    assert requests.post(site.url, data=b" " * MAX_BODY).text == str(MAX_BODY) == "1048576"


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (f"Content-Length: {MAX_BODY + 1}", b""),
        ("Content-Length: " + "9" * 40, b""),
        ("Transfer-Encoding: chunked", b"100010\r\n" + b" " * (MAX_BODY + 16)),
    ],
)
def test_a_larger_body_is_a_413_in_json_without_being_read(site: Site, head: str, body: bytes) -> None:
    answer = site.exchange(f"POST / HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n".encode() + body)
    assert answer.startswith(b"HTTP/1.1 413 Request Entity Too Large\r\n")
    assert b"\r\nContent-Type: application/json\r\n" in answer
    assert answer.endswith(b'\r\n\r\n{"message": "Request Entity Too Large"}\n')


@pytest.mark.parametrize(
    "data", [b"\x16\x03\x01\x02\x00\x01\r\n\r\n", b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n", b"nonsense\r\n\r\n"]
)
def test_what_is_not_http_is_a_400_in_json(site: Site, data: bytes) -> None:
    answer = site.exchange(data)
    assert answer.split(b" ", 1)[1].startswith(b"400 Bad Request\r\n")
    assert answer.endswith(b'{"message": "Bad Request"}\n')


def test_the_application_is_told_for_whom_a_proxy_asks(site: Site) -> None:
    assert requests.get(f"{site.url}/sender", headers={"X-Forwarded-For": "203.0.113.9"}).text == "203.0.113.9"


def test_no_answer_tells_what_the_server_is(site: Site) -> None:
    assert "Server" not in requests.post(site.url).headers
    assert b"waitress" not in site.exchange(b"nonsense\r\n\r\n").lower()


# Where it listens


def test_an_address_of_ipv6_is_written_as_in_a_url() -> None:
    try:
        server = Server(Flask("test"), "::1", 0)
    except CannotListen:
        pytest.skip("this machine has no IPv6")
    assert server.address.startswith("[::1]:")
    server.drain()


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("198.51.100.1", "Cannot assign requested address"),
        ("no..host", "Name or service not known"),
        ("https://a.example.com", "Name or service not known"),
    ],
)
def test_an_address_that_cannot_be_had_is_named(host: str, reason: str) -> None:
    """N23: what a new user writes there is the VM's public address, or the host's name."""
    remedy = "host must be an address of this machine: 127.0.0.1 behind Caddy, 0.0.0.0 for all$"
    with pytest.raises(CannotListen, match=rf"cannot listen on {host}, port 0: {reason}\. {remedy}"):
        Server(Flask("test"), host, 0)


def test_a_port_that_is_taken_is_named(site: Site) -> None:
    port = int(site.server.address.rpartition(":")[2])
    with pytest.raises(CannotListen, match=rf"cannot listen on 127\.0\.0\.1, port {port}: Address already in use$"):
        Server(Flask("test"), "127.0.0.1", port)


# How long it runs


def test_it_ticks_once_at_the_start_and_then_regularly_though_nobody_connects() -> None:
    ticks: list[int] = []
    server = Server(Flask("test"), "127.0.0.1", 0)

    def tick() -> None:
        ticks.append(len(ticks))
        if len(ticks) == 3:
            server.stop()

    server.run(tick, 0.001)
    server.drain()
    assert ticks == [0, 1, 2]


def test_it_ticks_every_30_seconds_if_nothing_shorter_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing wakes an idle listener more often."""
    waits = []
    server = Server(Flask("test"), "127.0.0.1", 0)

    def serve_once(seconds: float) -> None:
        waits.append(seconds)
        server.stop()

    monkeypatch.setattr(server, "_serve_once", serve_once)
    server.run(lambda: None, math.inf)
    monkeypatch.undo()
    server.drain()
    assert waits == [30]


def test_what_was_read_is_answered_before_the_end_and_nobody_else_is_let_in(site: Site) -> None:
    with ExitStack() as stack:
        waiting = [stack.enter_context(closing(site.connect())) for _ in range(12)]  # three times the threads
        for client in waiting:
            client.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        idle, half_sent = (stack.enter_context(closing(site.connect())) for _ in range(2))
        half_sent.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
        wait_until(lambda: site.under_way() == 12)
        site.stop()
        draining = threading.Thread(target=site.server.drain)
        draining.start()
        wait_until(lambda: refuses(site.connect))
        half_sent.sendall(b"too late ")
        site.go_on.set()
        draining.join()
        assert [read_all(client)[:12] for client in waiting] == [b"HTTP/1.1 200"] * 12
        assert read_all(idle) == b""
        with pytest.raises(ConnectionResetError):
            read_all(half_sent)


def test_it_may_be_stopped_twice(site: Site) -> None:
    """A person presses Ctrl-C again, and by then the file descriptor that wakes waitress is closed, or another's."""
    site.stop()
    site.server.drain()
    site.server.stop()


def test_what_does_not_get_an_answer_in_time_does_not_keep_it_from_ending(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "DRAIN_SECONDS", 0.05)
    monkeypatch.setattr(site.server._waitress.task_dispatcher, "shutdown", lambda timeout: None)
    with closing(site.connect()) as client:
        client.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_until(lambda: site.under_way() == 1)
        site.stop()
        site.server.drain()
        assert read_all(client) == b""


def refuses(connect: Callable[[], socket.socket]) -> bool:
    try:
        connect().close()
    except ConnectionRefusedError:
        return True
    return False


# File descriptors

UNLIMITED = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("soft", "hard", "raised_to", "connections"),
    [
        (1024, 524288, MAX_CONNECTIONS + RESERVED_DESCRIPTORS, MAX_CONNECTIONS),
        (1024, UNLIMITED, MAX_CONNECTIONS + RESERVED_DESCRIPTORS, MAX_CONNECTIONS),
        (1024, 1024, 1024, 1024 - RESERVED_DESCRIPTORS),
        (256, 512, 512, 512 - RESERVED_DESCRIPTORS),
        (8192, 8192, 8192, MAX_CONNECTIONS),
        (64, 64, 64, 10),
    ],
)
def test_it_takes_the_descriptors_that_the_system_allows_and_fewer_connections_than_that(
    soft: int, hard: int, raised_to: int, connections: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = [(soft, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda which: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda which, new: limits.append(new))
    assert _connection_limit() == connections
    assert limits[-1] == (raised_to, hard)


def test_descriptors_that_cannot_be_had_are_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(which: int, limits: tuple[int, int]) -> None:
        raise PermissionError

    monkeypatch.setattr(resource, "getrlimit", lambda which: (300, 4096))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert _connection_limit() == 150
