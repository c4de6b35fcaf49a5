"""transport.py against real servers on loopback, which misbehave byte by byte."""

import gzip
import itertools
import re
import select
import shutil
import socket
import ssl
import subprocess
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from system import transport
from system.transport import Answer, Transport, TransportError

SHORT = 0.1  # seconds, for calls that get no answer
TIMEOUT = 0.3  # for those that get a part of one, which a busy machine must send in that time
SLACK = 2.0  # by which a busy machine may be late
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
LONG = (b"1",) * 200  # four seconds of dripping


class Connection:
    """The server's end of a connection."""

    def __init__(self, server: "Server", sock: socket.socket) -> None:
        self.server, self.sock = server, sock

    def request(self) -> bytes:
        """Read the next request, with its body; empty at the end."""
        data = b""
        while b"\r\n\r\n" not in data and (more := self.sock.recv(65536)):
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        for line in head.split(b"\r\n"):
            if line.lower().startswith(b"content-length:"):
                while len(body) < int(line.split(b":")[1]):
                    body += self.sock.recv(65536)
        data = head + b"\r\n\r\n" + body if data else b""
        if data:
            self.server.requests.append(data)
        return data

    def drip(self, pieces: Iterable[bytes], pause: float = 0.02) -> None:
        for piece in pieces:
            self.sock.sendall(piece)
            self.server.sent += len(piece)
            if self.server.stopping.wait(pause):
                return


Handler = Callable[[Connection], None]


class Server:
    """Hands each connection to the handler, in a thread."""

    def __init__(self, handler: Handler, tls: ssl.SSLContext | None) -> None:
        self.handler, self.tls = handler, tls
        self.requests: list[bytes] = []
        self.sent = 0
        self.connections = 0
        self.closed = threading.Semaphore(0)  # counts the connections that are over
        self.stopping = threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self.threads = [threading.Thread(target=self._accept)]
        self.threads[0].start()

    def _accept(self) -> None:
        while True:
            sock, _ = self.listener.accept()
            if self.stopping.is_set():
                sock.close()
                return
            self.connections += 1
            self.threads.append(threading.Thread(target=self._handle, args=(sock,)))
            self.threads[-1].start()

    def _handle(self, sock: socket.socket) -> None:
        sock.settimeout(5)
        with suppress(OSError):
            try:
                if self.tls:
                    sock = self.tls.wrap_socket(sock, server_side=True)
                self.handler(Connection(self, sock))
            finally:
                sock.close()
        self.closed.release()

    def stop(self) -> None:
        self.stopping.set()
        socket.create_connection(("127.0.0.1", self.port)).close()
        for thread in self.threads:
            thread.join()
        self.listener.close()


@pytest.fixture
def servers() -> Iterator[Callable[..., Server]]:
    """Makes Servers, and stops them in the end."""
    made = []

    def make(handler: Handler, tls: ssl.SSLContext | None = None) -> Server:
        made.append(Server(handler, tls))
        return made[-1]

    yield make
    for server in made:
        server.stop()


@pytest.fixture
def transports() -> Iterator[Callable[..., Transport]]:
    """Makes Transports, and closes this thread's connection of each in the end."""
    made = []

    def make(server: Server | str, timeout: float = 5, **headers: str) -> Transport:
        made.append(Transport(server if isinstance(server, str) else server.url, headers, timeout))
        return made[-1]

    yield make
    for one in made:
        one.close()  # the servers wait for it


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "requests_ca_bundle", "curl_ca_bundle"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a certificate for 127.0.0.1 and its key."""
    if not shutil.which("openssl"):
        pytest.skip("there is no openssl to make a certificate with")
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    command = f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -keyout {path}.key"
    command += f" -out {path} -subj /CN=sandbox -addext subjectAltName=IP:127.0.0.1"
    command += " -addext keyUsage=critical,digitalSignature,keyCertSign"
    subprocess.run(command.split(), check=True, capture_output=True)
    return path


@pytest.fixture
def tls(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """For servers whose certificate the transport accepts."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, f"{certificate}.key")
    return context


def answering(*answers: bytes) -> Handler:
    """Answers the requests of each connection with these, the last one again and again."""

    def handle(connection: Connection) -> None:
        for answer in itertools.chain(answers, itertools.repeat(answers[-1])):
            if not connection.request():
                return
            connection.sock.sendall(answer)

    return handle


def dripping(start: bytes, rest: Iterable[bytes] = LONG) -> Handler:
    """Answers with the start at once and then with the rest, a byte at a time."""

    def handle(connection: Connection) -> None:
        connection.request()
        connection.sock.sendall(start)
        connection.drip(rest)

    return handle


def closing_after(answer: bytes) -> Handler:
    """Answers one request and closes the connection."""
    return dripping(answer, ())


def failure(transport: Transport, **call: object) -> str:
    """What is told of a call that gets no answer. It ends in time."""
    start = time.monotonic()
    with pytest.raises(TransportError) as caught:
        transport.send("POST", "/secret-path/", json=call)
    assert time.monotonic() - start < SHORT + SLACK
    return str(caught.value)


def part(transport: Transport) -> Answer:
    """An answer that does not come whole. The call ends in time."""
    start = time.monotonic()
    answer = transport.send("POST", "/")
    assert time.monotonic() - start < TIMEOUT + SLACK
    assert not answer.is_whole
    return answer


LATE_HEADS = {
    "status line": b"HTTP/1.1 200 ",
    "header": b"HTTP/1.1 201 Created\r\nX-Long: ",
    "headers": b"HTTP/1.1 201 Created\r\n",
    "informational answers": b"",
}
LATE_BODIES = {
    "body": b"Content-Length: 1000\r\n\r\n",
    "body without a length": b"\r\n",
    "chunk": b"Transfer-Encoding: chunked\r\n\r\nff\r\n",
    "chunk size": b"Transfer-Encoding: chunked\r\n\r\n",
    "trailer": b"Transfer-Encoding: chunked\r\n\r\n0\r\nX-Long: ",
}


@pytest.mark.parametrize("place", LATE_HEADS)
def test_a_head_that_drips_is_no_answer(
    servers: Callable[..., Server], transports: Callable[..., Transport], place: str
) -> None:
    piece = {"headers": b"X: y\r\n", "informational answers": b"HTTP/1.1 100 Continue\r\n\r\n"}.get(place, b"1")
    server = servers(dripping(LATE_HEADS[place], (piece,) * 90))
    assert failure(transports(server, SHORT)) == "no answer within 0.1 s"


@pytest.mark.parametrize("place", LATE_BODIES)
def test_a_body_that_drips_is_given_up_and_its_status_is_not(
    servers: Callable[..., Server], transports: Callable[..., Transport], place: str
) -> None:
    server = servers(dripping(b"HTTP/1.1 201 Created\r\n" + LATE_BODIES[place]))
    answer = part(transports(server, TIMEOUT))
    assert (answer.status, answer.reason) == (201, "Created")
    assert answer.fault == "the answer did not end within 0.3 s"


def test_over_tls_an_answer_is_bounded_too(
    servers: Callable[..., Server], transports: Callable[..., Transport], tls: ssl.SSLContext
) -> None:
    late_head = servers(dripping(b"HTTP/1.1 201 "), tls)
    assert failure(transports(late_head, SHORT)) == "no answer within 0.1 s"
    late_body = servers(dripping(b"HTTP/1.1 201 Created\r\n\r\n"), tls)
    assert part(transports(late_body, TIMEOUT)).status == 201


@pytest.mark.parametrize("hello", [b"", b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc"])
def test_a_tls_handshake_that_drips_is_given_up(
    servers: Callable[..., Server], transports: Callable[..., Transport], hello: bytes
) -> None:
    def drip(connection: Connection) -> None:
        connection.sock.sendall(hello)
        connection.drip(LONG if hello else [b""] * 200)

    assert failure(transports(servers(drip).url.replace("http", "https"), SHORT)) == "no answer within 0.1 s"


def test_a_server_that_does_not_read_is_given_up(
    servers: Callable[..., Server], transports: Callable[..., Transport], tls: ssl.SSLContext
) -> None:
    def read_slowly(connection: Connection) -> None:
        for _ in LONG:
            connection.sock.recv(1000)
            if connection.server.stopping.wait(0.02):
                return

    for context in (None, tls):
        reason = failure(transports(servers(read_slowly, context), SHORT), text="x" * 2**24)
        assert reason == "no answer within 0.1 s"


def test_a_server_that_does_not_accept_is_given_up(transports: Callable[..., Transport]) -> None:
    with closing(socket.create_server(("127.0.0.1", 0), backlog=0)) as full:
        waiting = [socket.socket() for _ in range(3)]
        for sock in waiting:
            sock.setblocking(False)
            sock.connect_ex(full.getsockname())
        transport = transports(f"http://127.0.0.1:{full.getsockname()[1]}", SHORT)
        assert re.fullmatch(r"no connection within 0(\.1)? s", failure(transport))  # what is left of 0.1 s
        for sock in waiting:
            sock.close()


def test_a_request_and_its_answer_come_through_whole(
    servers: Callable[..., Server], transports: Callable[..., Transport]
) -> None:
    chunked = b"HTTP/1.1 404 Nothing here\r\nX-A: b\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{}\n\r\n0\r\n\r\n"
    server = servers(answering(OK, chunked, b"HTTP/1.1 204 No Content\r\n\r\n"))
    transport = transports(server, **{"App-ID": "an id"})
    answer = transport.send("GET", "/API/x%2Fy/", query={"per_page": "1", "q": "a&b"})
    assert answer == Answer(200, "OK", answer.headers, b"ok")
    answer = transport.send("POST", "/", json={})
    assert (answer.status, answer.reason, answer.headers["x-a"]) == (404, "Nothing here", "b")
    assert (answer.body, answer.is_whole) == (b"{}\n", True)
    answer = transport.send("DELETE", "/")
    assert (answer.status, answer.body, answer.is_whole) == (204, b"", True)
    get, post, delete = server.requests
    assert get.startswith(b"GET /API/x%2Fy/?per_page=1&q=a%26b HTTP/1.1\r\n")
    assert b"App-ID: an id\r\n" in get
    assert b"Accept-Encoding: identity\r\n" in get
    assert post.endswith(b"\r\n\r\n{}")
    assert delete.endswith(b"\r\n\r\n")
    assert server.connections == 1


def test_a_redirect_is_not_followed_and_its_body_not_read(
    servers: Callable[..., Server], transports: Callable[..., Transport]
) -> None:
    target = servers(answering(OK))

    def redirect(connection: Connection) -> None:
        connection.request()
        connection.sock.sendall(f"HTTP/1.1 302 Found\r\nLocation: {target.url}\r\n\r\n".encode())
        connection.drip(itertools.repeat(bytes(65536)), pause=0)

    server = servers(redirect)
    answer = transports(server).send("POST", "/")
    assert (answer.status, answer.body, answer.is_whole) == (302, b"", False)
    assert server.closed.acquire(timeout=5)
    assert server.sent < 2**25  # what the kernel's buffers hold
    assert target.connections == 0


def encoded(encoding: str, body: bytes, status: int = 200) -> Handler:
    head = f"HTTP/1.1 {status} So\r\nContent-Encoding: {encoding}\r\nContent-Length: {len(body)}\r\n\r\n"
    return answering(head.encode() + body)


def raw_deflate(data: bytes) -> bytes:
    zipper = zlib.compressobj(wbits=-15)
    return zipper.compress(data) + zipper.flush()


TEXT = b'{"id": "x"}' * 1000
ENCODED = {
    "": TEXT,
    "identity": TEXT,
    "none": TEXT,
    "UTF-8": TEXT,
    "gzip": gzip.compress(TEXT, mtime=0),
    "X-GZip": gzip.compress(TEXT, mtime=0),
    "identity, gzip": gzip.compress(TEXT, mtime=0),
    "deflate": zlib.compress(TEXT),
    " deflate ": raw_deflate(TEXT),
}


@pytest.mark.parametrize("encoding", ENCODED)
def test_an_answer_is_read_whatever_its_encoding_is_called(
    servers: Callable[..., Server], transports: Callable[..., Transport], encoding: str
) -> None:
    transport = transports(servers(encoded(encoding, ENCODED[encoding])))
    for _ in range(2):
        answer = transport.send("GET", "/")
        assert (answer.status, answer.body, answer.fault, answer.is_whole) == (200, TEXT, None, True)
    empty = transports(servers(encoded(encoding, b""))).send("GET", "/")
    assert (empty.body, empty.is_whole) == (b"", True)


@pytest.mark.parametrize(
    ("encoding", "body", "fault"),
    [
        ("br", b"x", "the answer is compressed with br"),
        (
            "gzip, gzip",
            gzip.compress(gzip.compress(TEXT, mtime=0), mtime=0),
            "the answer is compressed with gzip, gzip",
        ),
        ("gzip", TEXT, "the answer is said to be compressed with gzip, and is not"),
        ("gzip", gzip.compress(TEXT, mtime=0)[:-9], "the answer was cut off"),
        ("zstd" + "\t" + "x" * 100, b"x", f"the answer is compressed with zstd {'x' * 34}…"),
    ],
)
def test_why_a_compressed_answer_cannot_be_read_is_told(
    servers: Callable[..., Server], transports: Callable[..., Transport], encoding: str, body: bytes, fault: str
) -> None:
    answer = transports(servers(encoded(encoding, body))).send("GET", "/")
    assert (answer.status, answer.fault, answer.is_whole) == (200, fault, False)


@pytest.mark.parametrize(("status", "limit"), [(200, transport.MAX_ANSWER), (503, transport.MAX_ERROR)])
def test_a_compressed_bomb_is_unpacked_up_to_the_limit(
    servers: Callable[..., Server], transports: Callable[..., Transport], status: int, limit: int
) -> None:
    server = servers(encoded("gzip", gzip.compress(bytes(100_000_000), mtime=0), status))
    tracemalloc.start()
    answer = transports(server).send("GET", "/")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * limit + 5_000_000
    assert (answer.status, len(answer.body), answer.fault) == (status, limit, "the answer is too large")
    exact = gzip.compress(bytes(limit), mtime=0)
    assert transports(servers(encoded("gzip", exact, status))).send("GET", "/").is_whole


@pytest.mark.parametrize(("status", "limit"), [(200, 100_000), (503, transport.MAX_ERROR)])
@pytest.mark.parametrize("head", [b"\r\n", b"Content-Length: 99999999999\r\n\r\n"])
def test_a_body_that_is_too_large_is_cut(
    servers: Callable[..., Server],
    transports: Callable[..., Transport],
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    limit: int,
    head: bytes,
) -> None:
    monkeypatch.setattr(transport, "MAX_ANSWER", 100_000)

    def endless(connection: Connection) -> None:
        connection.request()
        connection.sock.sendall(f"HTTP/1.1 {status} So\r\n".encode() + head)
        connection.drip(itertools.repeat(bytes(65536)), pause=0)

    server = servers(endless)
    answer = transports(server).send("GET", "/")
    assert (answer.status, len(answer.body), answer.fault) == (status, limit, "the answer is too large")
    assert server.closed.acquire(timeout=5)


@pytest.mark.parametrize("rest", [b"Content-Length: 9\r\n\r\n{}", b"Transfer-Encoding: chunked\r\n\r\n9\r\n{}"])
def test_a_body_that_is_cut_off_is_not_whole(
    servers: Callable[..., Server], transports: Callable[..., Transport], rest: bytes
) -> None:
    answer = transports(servers(closing_after(b"HTTP/1.1 201 Created\r\n" + rest))).send("POST", "/")
    assert (answer.status, answer.fault) == (201, "the answer was cut off")


@pytest.mark.parametrize("status", ["100 Continue", "102 Processing", "103 Early Hints"])
@pytest.mark.parametrize(
    "end", [b"Content-Length: 2\r\n\r\nok", b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"]
)
def test_an_answer_after_an_informational_one_is_read(
    servers: Callable[..., Server], transports: Callable[..., Transport], status: str, end: bytes
) -> None:
    informational = f"HTTP/1.1 {status}\r\nLink: </a>; rel=preload\r\nContent-Length: 9\r\n\r\n".encode()
    server = servers(answering(informational * 2 + b"HTTP/1.1 201 Created\r\nX-A: b\r\n" + end))
    transport = transports(server)
    for _ in range(2):
        answer = transport.send("POST", "/")
        assert (answer.status, answer.body, answer.headers["X-A"], answer.is_whole) == (201, b"ok", "b", True)
        assert "Link" not in answer.headers
    assert server.connections == 1


def test_what_comes_after_a_switch_is_not_the_next_answer(
    servers: Callable[..., Server], transports: Callable[..., Transport]
) -> None:
    server = servers(answering(b"HTTP/1.1 101 Switching Protocols\r\n\r\n"))
    transport = transports(server)
    assert [transport.send("POST", "/").status for _ in range(2)] == [101, 101]
    assert server.connections == 2


@pytest.mark.parametrize(
    ("headers", "date"),
    [
        ("Date: Mon, 23 Nov 2026 16:47:00 GMT", 1795452420.0),
        ("Date: Mon, 23 Nov 2026 17:47:00 +0100", 1795452420.0),
        ("Date: Mon, 23 Nov 2026 16:47:00 -0000", 1795452420.0),
        ("Date: 2026-11-23T16:47:00Z", None),
        ("Date: Mon, 23 Nov 99999 16:47:00 GMT", None),
        ("Date:", None),
        ("X: y", None),
        ("Date: Mon, 23 Nov 2026 16:47:00 GMT\r\nAge: 0", None),
    ],
)
def test_the_server_s_time_is_its_date(
    servers: Callable[..., Server], transports: Callable[..., Transport], headers: str, date: float | None
) -> None:
    """Not that of an answer which a cache has kept."""
    server = servers(answering(f"HTTP/1.1 204 No Content\r\n{headers}\r\n\r\n".encode()))
    assert transports(server).send("GET", "/").date == date


def test_a_connection_that_was_idle_for_long_is_not_used_again(
    servers: Callable[..., Server], transports: Callable[..., Transport], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = servers(answering(OK))
    one = transports(server)
    one.send("POST", "/")
    one.send("POST", "/")
    assert server.connections == 1
    monkeypatch.setattr(transport, "IDLE_SECONDS", -1.0)
    one.send("POST", "/")
    assert server.connections == 2


def test_a_connection_that_the_server_closed_is_replaced(
    servers: Callable[..., Server], transports: Callable[..., Transport]
) -> None:
    server = servers(closing_after(OK))
    transport = transports(server)
    assert transport.send("POST", "/").is_whole
    assert server.closed.acquire(timeout=5)
    assert transport.send("POST", "/").is_whole
    assert len(server.requests) == server.connections == 2


def test_a_post_that_gets_no_answer_is_not_sent_again(
    servers: Callable[..., Server], transports: Callable[..., Transport]
) -> None:
    def answer_only_once(connection: Connection) -> None:
        connection.request()
        connection.sock.sendall(OK)
        connection.request()

    server = servers(answer_only_once)
    transport = transports(server)
    transport.send("POST", "/")
    assert failure(transport) == "the connection was closed without an answer"
    assert (len(server.requests), server.connections) == (2, 1)


def test_threads_do_not_wait_for_each_other_and_the_longest_call_is_known(
    servers: Callable[..., Server], transports: Callable[..., Transport]
) -> None:
    all_are_there = threading.Barrier(9)

    def answer_together(connection: Connection) -> None:
        connection.request()
        all_are_there.wait(5)
        all_are_there.wait(5)
        connection.sock.sendall(OK)

    transport = transports(servers(answer_together))
    assert transport.longest_call() == 0
    before = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(transport.send, "GET", "/") for _ in range(8)]
        all_are_there.wait(5)
        assert 0 < transport.longest_call() <= time.monotonic() - before
        all_are_there.wait(5)
        assert all(call.result().is_whole for call in calls)
    assert transport.longest_call() == 0


def test_a_call_inside_a_call_does_not_change_its_deadline(
    servers: Callable[..., Server], transports: Callable[..., Transport]
) -> None:
    inner = transports(servers(answering(OK)))

    class Query(dict[str, str]):
        def items(self) -> Any:
            inner.send("GET", "/")
            return super().items()

    assert transports(servers(answering(OK))).send("GET", "/", query=Query(a="b")).is_whole
    late = transports(servers(dripping(b"HTTP/1.1 200 ")), SHORT)
    start = time.monotonic()
    with pytest.raises(TransportError, match=r"no answer within 0\.1 s"):
        late.send("GET", "/", query=Query(a="b"))
    assert time.monotonic() - start < SHORT + SLACK


def test_no_password_comes_from_netrc_and_no_cookie_goes_back(
    servers: Callable[..., Server],
    transports: Callable[..., Transport],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "netrc").write_text("default login somebody password netrc-password\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    server = servers(answering(b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nContent-Length: 0\r\n\r\n"))
    transport = transports(server)
    transport.send("GET", "/")
    transport.send("GET", "/")
    assert not any(b"authorization" in request.lower() or b"cookie" in request.lower() for request in server.requests)
    assert len(server.requests) == 2


def test_plain_http_never_goes_through_a_proxy(
    servers: Callable[..., Server], transports: Callable[..., Transport], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, server = servers(answering(OK)), servers(answering(OK))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, proxy.url)
    assert transports(server).send("GET", "/").is_whole
    assert (proxy.connections, server.connections) == (0, 1)


def tunnel(connection: Connection) -> None:
    """What a proxy does with CONNECT."""
    client = connection.sock
    host, port = connection.request().split()[1].decode().split(":")
    with socket.create_connection((host, int(port))) as server:
        client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        other = {client: server, server: client}
        while True:
            is_decrypted = isinstance(client, ssl.SSLSocket) and client.pending()
            for source in [client] if is_decrypted else select.select(other, [], [])[0]:
                if not (data := source.recv(65536)):
                    return
                other[source].sendall(data)


@pytest.mark.parametrize("proxy_scheme", ["http", "https"])
def test_https_goes_through_the_environment_s_proxy_in_time(
    servers: Callable[..., Server],
    transports: Callable[..., Transport],
    tls: ssl.SSLContext,
    monkeypatch: pytest.MonkeyPatch,
    proxy_scheme: str,
) -> None:
    proxy = servers(tunnel, tls if proxy_scheme == "https" else None)
    monkeypatch.setenv("https_proxy", proxy.url)
    assert transports(servers(answering(OK), tls)).send("POST", "/", json={}).body == b"ok"
    assert proxy.requests[0].startswith(b"CONNECT 127.0.0.1:")
    part(transports(servers(dripping(b"HTTP/1.1 201 Created\r\n\r\n"), tls), TIMEOUT))
    assert proxy.connections == 2
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert transports(servers(answering(OK), tls)).send("GET", "/").is_whole
    assert proxy.connections == 2


def test_a_proxy_s_failures_are_told(
    servers: Callable[..., Server], transports: Callable[..., Transport], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", servers(dripping(b"HTTP/1.1 200 ")).url)
    assert failure(transports("https://127.0.0.1:1", SHORT)) == "no answer within 0.1 s"
    transport = transports("https://127.0.0.1:1")
    refusing = servers(closing_after(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"))
    for proxy, reason in {
        refusing.url: "the proxy does not let the connection through",
        "http://127.0.0.1:1": "the proxy: the connection was refused",
        "http://": "the proxy that the environment names cannot be used",
        "socks5://127.0.0.1:1": "the proxy that the environment names cannot be used",
    }.items():
        monkeypatch.setenv("https_proxy", proxy)
        assert failure(transport) == reason
    monkeypatch.setenv("https_proxy", "http://user:proxy-password@")
    assert "proxy-password" not in failure(transport)


def test_only_documented_variables_matter(
    servers: Callable[..., Server],
    transports: Callable[..., Transport],
    tls: ssl.SSLContext,
    certificate: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A folder that is missing must not stop all calls, and no file may get the keys of the token's encryption."""
    keys = tmp_path / "keys"
    server = servers(answering(OK), tls)
    for name in ("ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for file in (keys, tmp_path / "missing" / "keys"):
        monkeypatch.setenv("SSLKEYLOGFILE", str(file))
        assert transports(server).send("POST", "/").is_whole
    assert not keys.exists()
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    for name in ("SSL_CERT_FILE", "CURL_CA_BUNDLE"):
        monkeypatch.setenv(name, str(certificate))
    assert failure(transports(server)).startswith("the certificate is not accepted: self")


def test_certificates_are_read_once_for_all_threads(
    servers: Callable[..., Server],
    transports: Callable[..., Transport],
    tls: ssl.SSLContext,
    tmp_path: Path,
    certificate: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("requests.adapters.DEFAULT_CA_BUNDLE_PATH", str(tmp_path / "missing"))
    bundle = Path(shutil.copy(certificate, tmp_path / "ca.pem"))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
    server = servers(answering(OK), tls)
    transport = transports(server)
    assert transport.send("GET", "/").is_whole
    bundle.unlink()

    def call() -> Answer:
        with closing(transport):
            return transport.send("GET", "/")

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(call).result().is_whole
    transport.close()
    assert transport.send("GET", "/").is_whole
    assert server.connections == 3


def test_a_certificate_that_is_not_accepted_is_told(
    servers: Callable[..., Server],
    transports: Callable[..., Transport],
    tls: ssl.SSLContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = servers(answering(OK), tls)
    # Another name for 127.0.0.1: a bare Debian in a container does not even know localhost.
    wrong_name = failure(transports(server.url.replace("127.0.0.1", "127.1")))
    assert wrong_name.startswith("the certificate is not accepted: Hostname mismatch")
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    untrusted = failure(transports(server))
    assert untrusted.startswith("the certificate is not accepted: self")
    monkeypatch.setenv("https_proxy", server.url)
    assert failure(transports("https://127.0.0.1:1")) == untrusted
    assert server.requests == []


def test_a_ca_file_that_is_missing_or_no_ca_file_is_told(
    servers: Callable[..., Server],
    transports: Callable[..., Transport],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "ca.pem"
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(path))
    transport = transports(servers(answering(OK)).url.replace("http", "https"))
    assert failure(transport) == f"the CA file {path} cannot be read"
    path.write_text("half of a file")
    assert failure(transport) == f"the CA file {path} cannot be read"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "the connection was closed without an answer"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "the answer is not HTTP"),
        (b"HTTP/1.1 20\r\n\r\n", "the answer is not HTTP"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n", "the answer is not HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n", "the answer is not HTTP"),
    ],
)
def test_an_answer_that_is_not_http_is_told(
    servers: Callable[..., Server], transports: Callable[..., Transport], answer: bytes, reason: str
) -> None:
    assert failure(transports(servers(closing_after(answer)))) == reason


def test_what_is_wrong_with_an_address_is_told_without_it(
    servers: Callable[..., Server], transports: Callable[..., Transport]
) -> None:
    assert failure(transports("http://127.0.0.1:1")) == "the connection was refused"
    assert failure(transports("http://no-such-host.invalid")) == "the name no-such-host.invalid is not known"
    plain = servers(lambda connection: connection.drip(iter([OK] * 5))).url.replace("http", "https")
    assert failure(transports(plain)).startswith("that port does not speak TLS")
    for url in ("http://[oops", "http://127.0.0.1:99999", f"http://{'a' * 300}.invalid", "ftp://127.0.0.1", "http://"):
        assert "secret-path" not in failure(transports(url))
    assert "tok\nen" not in failure(transports("http://127.0.0.1:1", **{"Auth-Token": "tok\nen"}))
    assert "tok€n" not in failure(transports("http://127.0.0.1:1", **{"Auth-Token": "tok€n"}))
