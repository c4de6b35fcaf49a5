"""The HTTP server by itself: what waitress is told to do, and the draining that it cannot do alone."""

import math
import resource
import shlex
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress

import pytest
import requests
from flask import Flask, request
from waitress import wasyncore

from support import needs, unread_bytes, wait_until
from system import server as server_module
from system.server import (
    MAX_BODY,
    MAX_CONNECTIONS,
    RESERVED_DESCRIPTORS,
    CannotListen,
    Refusal,
    Server,
    connection_limit,
)


class Site:
    """A server that runs in a thread, with an application whose /slow waits until it may go on.

    :ivar judged: the path, the headers and the sender of each request with a body; those to /refused are refused
    """

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.judged: list[tuple[str, dict[str, str], str]] = []
        app = Flask("test", static_folder=None)
        app.add_url_rule("/", "size", lambda: f"{request.content_length} {len(request.get_data())}", methods=["POST"])
        app.add_url_rule("/sender", "sender", lambda: request.headers["X-Forwarded-For"])
        app.add_url_rule("/large", "large", lambda: "x" * 8_000_000)
        app.add_url_rule("/slow", "slow", lambda: str(self.go_on.wait(20)))
        self.server = Server(app, "127.0.0.1", 0, self.judge)
        self.url = f"http://{self.server.address}"
        self._thread = threading.Thread(target=self.server.run, args=(lambda: None,))
        self._thread.start()

    def judge(self, path: str, headers: Mapping[str, str], sender: str) -> Refusal | None:
        self.judged.append((path, dict(headers), sender))
        return Refusal(401, "Not you") if path == "/refused" else None

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
        return sum(channel.is_busy for channel in self.server.connections())

    def incomplete(self) -> int:
        """How many requests have begun to come in."""
        return sum(bool(channel.kept) for channel in self.server.connections())

    def is_sending(self) -> bool:
        """Whether an answer is ready that its client does not read."""
        return any(channel.total_outbufs_len and not channel.requests for channel in self.server.connections())

    def stop(self) -> None:
        self.server.stop()
        self._thread.join()

    def end(self) -> None:
        self.go_on.set()
        if self._thread.is_alive():
            self.stop()
            self.server.drain()


@contextmanager
def running_site() -> Iterator[Site]:
    site = Site()
    try:
        yield site
    finally:
        site.end()


@pytest.fixture
def site() -> Iterator[Site]:
    with running_site() as site:
        yield site


def read_all(connection: socket.socket) -> bytes:
    answer = b""
    while part := connection.recv(65536):
        answer += part
    return answer


# What it answers by itself


def test_a_body_of_64_kib_is_read(site: Site) -> None:
    assert requests.post(site.url, data=b" " * MAX_BODY).text == "65536 65536"


def in_chunks(size: int) -> Iterator[bytes]:
    yield from (b" " * 1000 for _ in range(size // 1000))


@pytest.mark.parametrize("data", [b" " * (MAX_BODY + 1), b" " * 3_000_000, in_chunks(66_000), in_chunks(3_000_000)])
def test_of_a_larger_body_the_application_gets_the_length_only(site: Site, data: bytes | Iterator[bytes]) -> None:
    with requests.Session() as session:
        length, kept = session.post(site.url, data=data).text.split()
        assert int(length) > MAX_BODY
        assert kept == "0"
        assert session.post(site.url, data=b"next").text == "4 4"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: " + "9" * 40 + "\r\n\r\n", "413 Request Entity Too Large"),
        ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: " + "9" * 5000 + "\r\n\r\n", "400 Bad Request"),
        ("POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: x\r\n\r\n", "400 Bad Request"),
        ("GET / HTTP/1.1\r\nX: " + "x" * 16384, "431 Request Header Fields Too Large"),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;" + "x" * 2000, "400 Bad Request"),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: " + "x" * 2000, "400 Bad Request"),
    ],
)
def test_what_is_out_of_all_bounds_is_an_error_in_json(site: Site, data: str, status: str) -> None:
    answer = site.exchange(data.encode())
    assert answer.split(b" ", 1)[1].startswith(f"{status}\r\n".encode())
    assert b"\r\nContent-Type: application/json\r\n" in answer
    assert answer.endswith(b'{"message": "%s"}\n' % status[4:].encode())


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


# Whose body is read

REFUSED = b"POST /refused HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\nX-Secret: y\r\n"


@pytest.mark.parametrize(
    "rest", [b"\r\n", b"\r\n{", b"Expect: 100-continue\r\n\r\n", b"\r\nPOST / HTTP/1.1\r\nContent-Length: 1\r\n\r\nx"]
)
def test_a_body_that_is_not_wanted_is_refused_without_being_read(site: Site, rest: bytes) -> None:
    answer = site.exchange(REFUSED + rest)
    assert answer.startswith(b"HTTP/1.1 401 Unauthorized\r\nConnection: close\r\n")
    assert answer.endswith(b'\r\n\r\n{"message": "Not you"}\n')
    [(path, headers, sender)] = site.judged
    assert (path, headers["X_SECRET"], sender) == ("/refused", "y", "127.0.0.1")


def test_who_is_refused_while_sending_gets_the_answer_nevertheless(site: Site) -> None:
    with closing(site.connect()) as client:
        client.sendall(REFUSED + b"\r\n")
        client.recv(1, socket.MSG_PEEK)
        for _ in range(50):
            client.sendall(b"x" * 1000)
        assert read_all(client).startswith(b"HTTP/1.1 401 ")


def test_who_is_refused_and_goes_on_sending_is_cut_off(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "LINGER_SECONDS", 0.05)
    monkeypatch.setattr(server_module, "SWEEP_SECONDS", 0.05)
    with closing(site.connect()) as client:
        client.sendall(REFUSED + b"\r\n")
        wait_until(lambda: is_cut_off(client))


def is_cut_off(client: socket.socket) -> bool:
    try:
        client.sendall(b"x")
    except ConnectionError:
        return True
    return False


# What connections may cost

HALF_SENT = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n" + b"x" * 50_000


@pytest.mark.parametrize("data", [b"", b"POST / HTTP/1.1\r\n", HALF_SENT])
def test_a_request_that_does_not_end_is_cut_off_though_it_drips(
    site: Site, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "REQUEST_SECONDS", 0.1)
    monkeypatch.setattr(server_module, "SWEEP_SECONDS", 0.05)
    with closing(site.connect()) as client:
        client.sendall(data)
        wait_until(lambda: is_cut_off(client))


def test_a_connection_that_sends_nothing_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "IDLE_SECONDS", 0.1)
    monkeypatch.setattr(server_module, "SWEEP_SECONDS", 0.05)
    with running_site() as site, closing(site.connect()) as new, closing(site.connect()) as used:
        used.sendall(b"POST / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert used.recv(12) == b"HTTP/1.1 200"
        assert read_all(new) == b""
        assert read_all(used).endswith(b"None 0")


def test_when_there_are_too_many_connections_the_oldest_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "MAX_CONNECTIONS", 10)
    with running_site() as site, ExitStack() as stack:
        busy, reading, *waiting = (stack.enter_context(closing(site.connect())) for _ in range(10))
        busy.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        reading.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        wait_until(lambda: site.under_way() == 2 and site.is_sending())
        for client in waiting:
            client.sendall(b"POST / HTTP/1.1\r\n")
        wait_until(lambda: site.incomplete() == len(waiting))  # they are older than what follows
        assert requests.post(site.url, data=b"x", headers={"Connection": "close"}).text == "1 1"
        assert read_until_cut_off(waiting[0]) == b""
        waiting[1].sendall(b"Host: x\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx")
        assert read_all(waiting[1]).endswith(b"1 1")
        assert read_all(reading).endswith(b"x" * 8_000_000)
        site.go_on.set()
        assert busy.recv(12) == b"HTTP/1.1 200"


def test_when_too_much_is_kept_of_incomplete_requests_the_oldest_is_closed(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "MAX_INCOMPLETE", 120_000)
    with ExitStack() as stack:
        idle, *clients = (stack.enter_context(closing(site.connect())) for _ in range(4))
        for client in clients:
            client.sendall(HALF_SENT)
        assert read_until_cut_off(clients[0]) == b""
        for client in clients[1:]:
            client.sendall(b"x" * 10_000)
            assert client.recv(12) == b"HTTP/1.1 200"
        idle.sendall(b"POST / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert idle.recv(12) == b"HTTP/1.1 200"


def test_what_is_sent_behind_a_request_takes_little_of_the_kernels_memory(site: Site) -> None:
    port = int(site.server.address.rpartition(":")[2])
    with closing(site.connect()) as client:
        client.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_until(lambda: site.under_way() == 1)
        client.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                client.send(b"x" * 1000)
        assert 0 < max(unread_bytes(port)) <= 2 * server_module.RECEIVE_BUFFER


def test_urgent_data_which_would_be_reported_for_ever_ends_a_connection(site: Site) -> None:
    with closing(site.connect()) as client:
        client.send(b"x", socket.MSG_OOB)
        assert read_until_cut_off(client) == b""


def read_until_cut_off(client: socket.socket) -> bytes:
    with suppress(ConnectionResetError):
        return read_all(client)
    return b""


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
    with pytest.raises(CannotListen) as caught:
        Server(Flask("test"), "127.0.0.1", port)
    command = f"sudo ss -ltnp 'sport = :{port}'"
    assert str(caught.value) == (
        f"cannot listen on 127.0.0.1, port {port}: Address already in use. To see which program has it: {command}."
        " Or change port in config.ini"
    )
    needs("ss")
    shown = subprocess.run(shlex.split(command.removeprefix("sudo ")), capture_output=True, text=True, check=True)
    assert f":{port} " in shown.stdout


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

    def wait(seconds: float, **_: object) -> None:
        waits.append(seconds)
        server.stop()

    monkeypatch.setattr(wasyncore, "loop", wait)
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
        half_sent.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nt")
        wait_until(lambda: site.under_way() == 12 and site.incomplete() == 1)  # all 14 are accepted
        site.stop()
        draining = threading.Thread(target=site.server.drain)
        draining.start()
        wait_until(lambda: refuses(site.connect))
        half_sent.sendall(b"oo late ")
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


def test_what_does_not_get_an_answer_in_time_does_not_keep_it_from_ending(site: Site) -> None:
    with closing(site.connect()) as client:
        client.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_until(lambda: site.under_way() == 1)
        site.stop()
        site.server.drain(0.05, end_seconds=0)
        assert read_all(client) == b""


def refuses(connect: Callable[[], socket.socket]) -> bool:
    try:
        connect().close()
    except ConnectionError:
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
    assert connection_limit() == connections
    assert limits[-1] == (raised_to, hard)


def test_descriptors_that_cannot_be_had_are_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(which: int, limits: tuple[int, int]) -> None:
        raise PermissionError

    monkeypatch.setattr(resource, "getrlimit", lambda which: (300, 4096))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert connection_limit() == 150
