"""The real listener, and connections that never end a request: directly, and through Caddy as deploy/ sets it up."""

import json
import selectors
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import cast

import pytest
import requests

from support import (
    ASSET,
    SECRET,
    Listener,
    bytes_on_their_way,
    create_event,
    held_by_a_person,
    needs,
    new_id,
    wait_until,
)

CADDYFILE = Path(__file__).parent.parent / "deploy" / "Caddyfile"
MAX_MB = 25  # 16 MiB for incomplete requests, and what Python needs beside
MAX_MB_OF_COMPLETE = 100


def begin(secret: str, length: int, sent: int) -> bytes:
    """A webhook of which that much is sent."""
    head = f"POST /create HTTP/1.1\r\nHost: x\r\nX-Webhook-Secret: {secret}\r\nContent-Length: {length}\r\n\r\n"
    return head.encode() + b"x" * sent


@contextmanager
def strangers(url: str, count: int, data: bytes) -> Iterator[list[socket.socket]]:
    """Connections that send this and then nothing."""
    host, port = url.removeprefix("http://").split(":")
    with ExitStack() as stack:
        clients = []
        for _ in range(count):
            clients.append(stack.enter_context(closing(socket.create_connection((host, int(port)), timeout=20))))
            with suppress(ConnectionError):
                clients[-1].sendall(data)
        yield clients


def peak_memory(listener: Listener) -> float:
    """MB that the process has had at most."""
    assert listener.process
    status = Path(f"/proc/{listener.process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


@pytest.mark.long
@pytest.mark.parametrize(
    ("count", "data"),
    [
        (100, begin("wrong", 500_000, 499_999)),
        (100, begin(SECRET, 500_000, 499_999)),
        (500, begin(SECRET, 65_536, 65_535)),
        (200, b"POST /create HTTP/1.1\r\nX: " + b"x" * 250_000),
    ],
    ids=["wrong secret", "too large", "many", "headers"],
)
def test_requests_that_do_not_end_take_little_memory_and_webhooks_go_on(
    listener: Listener, count: int, data: bytes
) -> None:
    assert listener.post("/create", create_event(new_id())).status_code == 200
    before = peak_memory(listener)
    with strangers(listener.url, count, data):
        assert listener.post("/create", create_event()).status_code == 200
        assert requests.get(f"{listener.url}/health").ok
        wait_until(lambda: bytes_on_their_way(int(listener.url.rpartition(":")[2])) == 0)
        assert peak_memory(listener) - before < MAX_MB
    assert not listener.logged("ERROR")


def first_answer(clients: list[socket.socket]) -> bytes:
    """The first that any of them gets. The oldest may have been closed: how many are incomplete at a time is chance."""
    with selectors.DefaultSelector() as selector:
        for client in clients:
            selector.register(client, selectors.EVENT_READ)
        while ready := selector.select(timeout=20):
            for key, _ in ready:
                with suppress(ConnectionError):
                    if answer := cast(socket.socket, key.fileobj).recv(12):
                        return answer
                selector.unregister(key.fileobj)
    raise AssertionError("nobody is answered")


@pytest.mark.long
def test_a_thousand_large_events_that_wait_for_the_database_stay_within_the_units_limit(listener: Listener) -> None:
    event = json.dumps(create_event()).ljust(65_536)
    head = f"POST /create HTTP/1.1\r\nX-Webhook-Secret: {SECRET}\r\nContent-Length: {len(event)}\r\n"
    head += "".join(f"X-{number}: {'x' * 1000}\r\n" for number in range(15))
    before = peak_memory(listener)
    with held_by_a_person(listener.database), strangers(listener.url, 1000, f"{head}\r\n{event}".encode()) as clients:
        assert first_answer(clients) == b"HTTP/1.1 503"
        assert peak_memory(listener) - before < MAX_MB_OF_COMPLETE


def test_who_has_another_secret_is_refused_before_the_body_is_there(listener: Listener) -> None:
    with strangers(listener.url, 3, begin("wrong", 500_000, 100)) as clients:
        assert [client.recv(12) for client in clients] == [b"HTTP/1.1 401"] * 3


@pytest.mark.long
def test_a_thousand_strangers_do_not_keep_a_webhook_out(listener: Listener) -> None:
    with strangers(listener.url, 1100, b"POST /create HTTP/1.1\r\n"):
        assert listener.post("/create", create_event()).status_code == 200
    wait_until(
        lambda: listener.logged(
            "WARNING Too many connections, or too many requests that do not end: the oldest are closed"
        )
    )


@pytest.fixture
def caddy(listener: Listener, tmp_path: Path) -> Iterator[str]:
    """The URL of a Caddy before the listener, with deploy/Caddyfile but for the addresses."""
    needs("caddy")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    text = CADDYFILE.read_text().replace("127.0.0.1:8000", listener.url.removeprefix("http://"))
    text = text.replace("iconik-listener.example.com", f"http://:{port}")
    (tmp_path / "Caddyfile").write_text(text.replace("{", "{\n\tadmin off\n\tauto_https off\n", 1))
    command = ["caddy", "run", "--config", str(tmp_path / "Caddyfile"), "--adapter", "caddyfile"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: answers(port))
        yield f"http://127.0.0.1:{port}"
        process.terminate()


def answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.long
def test_through_caddy_who_has_another_secret_gets_a_401_whatever_is_sent(listener: Listener, caddy: str) -> None:
    """And not Caddy's own 502, from which `check` could not tell that the secrets differ."""
    with strangers(caddy, 20, begin("wrong", 500_000, 499_999)):
        for length in (2, 60_000, 500_000) * 5:
            answer = requests.post(f"{caddy}/create", data=b" " * length, headers={"X-Webhook-Secret": "wrong"})
            assert answer.json() == {"message": "The header X-Webhook-Secret is missing or wrong"}
        assert requests.post(f"{caddy}/create", json=create_event(), headers={"X-Webhook-Secret": SECRET}).ok
    assert [row["object_id"] for row in listener.rows()] == [ASSET]


@pytest.mark.long
def test_through_caddy_a_large_event_is_ignored_so_iconik_does_not_disable_the_webhook(
    listener: Listener, caddy: str
) -> None:
    body = json.dumps(create_event(metadata="x" * 1_000_000)).encode()
    for data in (body, (part for part in (body[:10], body[10:]))):  # with its length, and in chunks
        answer = requests.post(f"{caddy}/create", data=data, headers={"X-Webhook-Secret": SECRET})
        assert (answer.status_code, answer.json()) == (200, {"object_id": None, "item": "ignored"})
    assert listener.rows() == []
    wait_until(lambda: listener.logged(f"WARNING Ignored an event of {len(body)} bytes at /create"))
