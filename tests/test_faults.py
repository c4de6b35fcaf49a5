"""Nothing lost, nothing twice: the real listener under what can happen to it."""

import json
import os
import random
import re
import resource
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import requests

from faulty_iconik import Fault, FaultyIconik
from support import ASSET, SECRET, Listener, create_event, held_by_a_person, new_id, proxy_event, wait_until

pytestmark = pytest.mark.long

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (INFO|WARNING|ERROR) [^\n]+\n")


def analyzed_once(listener: Listener, sandbox: FaultyIconik, ids: set[str]) -> None:
    """All of these assets get their one job and their row, and every line of the log is as it should be."""
    wait_until(lambda: {row["object_id"] for row in listener.rows("status = 'submitted'")} >= ids, 60)
    counts = Counter(sandbox.jobs)
    assert {asset_id: counts[asset_id] for asset_id in ids if counts[asset_id] != 1} == {}
    assert max(counts.values()) == 1
    assert [line for line in listener.log if not LINE.fullmatch(line)] == []


class Uploads:
    """Assets that stream in over several connections, as iconik sends them: each webhook once, and no repeats."""

    def __init__(self, listener: Listener, sandbox: FaultyIconik, connections: int = 4) -> None:
        self.listener, self.sandbox = listener, sandbox
        self.sent = 0
        self.answered: set[str] = set()  # both webhooks were answered 200
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._stream) for _ in range(connections)]

    def __enter__(self) -> "Uploads":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _stream(self) -> None:
        while not self._over.is_set():
            asset_id = self.sandbox.create_asset("a.mov", send=False)
            self.sandbox.set_proxy(asset_id, send=False)
            events = [("/create", create_event(asset_id)), ("/proxy", proxy_event(asset_id))]
            random.shuffle(events)
            self.sent += 1
            try:
                answers = [self.listener.post(path, event).status_code for path, event in events]
            except requests.RequestException:
                self._over.wait(0.02)  # the listener is away: iconik would note a failure
                continue
            if answers == [200, 200]:
                self.answered.add(asset_id)


def restart_at_random_moments(
    listeners: Callable[..., Listener], sandbox: FaultyIconik, how: signal.Signals, times: int
) -> None:
    # iconik must have taken a request that was cut off by the time it is asked about it: see the README.
    sandbox.latency = 0.02
    listener = listeners(iconik__timeout=1, submitter__retry_delay=0.3, submitter__max_retry_delay=1).start()
    with Uploads(listener, sandbox) as uploads:
        for _ in range(times):
            enough = len(uploads.answered) + random.randint(1, 30)
            wait_until(lambda: len(uploads.answered) >= enough)  # noqa: B023
            assert listener.end(how) == (0 if how == signal.SIGTERM else -how)
            listener.start()
    print(f"{uploads.sent} assets sent, {len(uploads.answered)} answered 200, {len(sandbox.jobs)} jobs")
    analyzed_once(listener, sandbox, uploads.answered)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_each_asset_is_analyzed_once_though_the_process_ends_while_webhooks_stream_in(
    listeners: Callable[..., Listener], sandbox: FaultyIconik, how: signal.Signals
) -> None:
    restart_at_random_moments(listeners, sandbox, how, 2 if how == signal.SIGKILL else 1)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_each_asset_is_analyzed_once_however_often_the_process_ends(
    listeners: Callable[..., Listener], sandbox: FaultyIconik, how: signal.Signals
) -> None:
    restart_at_random_moments(listeners, sandbox, how, 15)


# items.db that cannot be written


def test_items_db_held_for_3_seconds_is_noticed_by_nobody(listener: Listener, sandbox: FaultyIconik) -> None:
    with Uploads(listener, sandbox) as uploads:
        wait_until(lambda: len(uploads.answered) > 10)
        with held_by_a_person(listener.database):
            time.sleep(3)
        after = len(uploads.answered) + 10
        wait_until(lambda: len(uploads.answered) > after)
    assert len(uploads.answered) == uploads.sent
    analyzed_once(listener, sandbox, uploads.answered)
    assert not listener.logged(" ERROR ")


@pytest.mark.parametrize(
    "prelude",
    ["from system import database; database.BUSY_SECONDS = 0.6", pytest.param("", marks=pytest.mark.long)],
)
def test_items_db_held_for_longer_gets_503_and_then_goes_on_as_before(
    listeners: Callable[..., Listener], sandbox: FaultyIconik, prelude: str
) -> None:
    listener, late = listeners().start(prelude=prelude), new_id()
    with ExitStack() as person:
        with iconik_at_work(listener, sandbox):
            person.enter_context(held_by_a_person(listener.database))
        assert listener.post("/create", create_event(late)).status_code == 503
        wait_until(lambda: listener.logged("Cannot record an outcome yet"))
        assert listener.post("/proxy", proxy_event(late)).status_code == 503
        assert listener.rows() != []  # reading goes on
    listener.upload(late)
    analyzed_once(listener, sandbox, {ASSET, late})
    assert len(analyze_calls(sandbox)) == 2


def test_a_disk_that_is_full_and_then_is_not(listener: Listener, sandbox: FaultyIconik) -> None:
    unlimited = resource.RLIM_INFINITY
    assert listener.process
    with iconik_at_work(listener, sandbox):
        size = max(file.stat().st_size for file in listener.database.parent.glob("items.db*"))
        resource.prlimit(listener.process.pid, resource.RLIMIT_FSIZE, (size, unlimited))
        answered: set[str] = set()
        refused: set[str] = set()
        while not refused:
            asset_id = new_id()
            status = listener.post("/create", create_event(asset_id, title="x" * 250)).status_code
            assert status in (200, 503)
            (answered if status == 200 else refused).add(asset_id)
    wait_until(lambda: listener.logged("Cannot record an outcome yet"))
    # The write that /health tries is small, so a few of them may still fit.
    wait_until(lambda: requests.get(f"{listener.url}/health", timeout=20).status_code == 503)
    resource.prlimit(listener.process.pid, resource.RLIMIT_FSIZE, (unlimited, unlimited))
    assert requests.get(f"{listener.url}/health", timeout=20).status_code == 200
    listener.upload(*answered, *refused)
    analyzed_once(listener, sandbox, {ASSET, *answered, *refused})
    assert len(analyze_calls(sandbox)) == len(sandbox.jobs)
    assert listener.end() == 0


@contextmanager
def iconik_at_work(listener: Listener, sandbox: FaultyIconik) -> Iterator[None]:
    """An item is being submitted, and iconik answers to that only after the block."""
    with sandbox.changed:
        listener.upload(ASSET)
        wait_until(lambda: listener.rows("status = 'submitting'"))
        yield


def analyze_calls(sandbox: FaultyIconik) -> list[str]:
    return [request for request in sandbox.requests if "/analyze/" in request]


# iconik's faults

ELSEWHERE = "http://127.0.0.1:9/API/"
FAULTS = [
    Fault(status=500),
    Fault(status=501),
    Fault(status=502, body=b"<html><body>Bad Gateway</body></html>", headers={"Content-Type": "text/html"}),
    Fault(status=503),
    Fault(status=504),
    Fault(status=520),
    Fault(status=408),
    Fault(status=429, headers={"Retry-After": "1"}),
    Fault(status=429, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
    Fault(status=429),
    Fault(cut=True),
    Fault(hang=True),
    Fault(status=401),
    Fault(status=403),
    Fault(status=302, headers={"Location": ELSEWHERE}),
    Fault(status=307, headers={"Location": ELSEWHERE}),
    Fault(status=200, body=b"<html><body>Down for maintenance</body></html>"),
    Fault(status=404, body=b"<html><body>Not Found</body></html>"),
]


def test_every_fault_of_iconik_before_and_after_it_did_the_work_once_and_twice_in_a_row(
    listeners: Callable[..., Listener], sandbox: FaultyIconik
) -> None:
    listener = listeners(iconik__timeout=0.3, submitter__retry_delay=0.01, submitter__max_retry_delay=0.1).start()
    ids = set()
    for fault, request, after_work, times in product(FAULTS, ("GET", "POST"), (False, True), (1, 2)):
        asset_id = new_id()
        ids.add(asset_id)
        match = f"v1/assets/{asset_id}" if request == "GET" else f"analyze/assets/{asset_id}"
        sandbox.faults[:] = [replace(fault, match=match, after_work=after_work, times=times)]
        listener.upload(asset_id)
        wait_until(lambda: listener.rows(f"object_id = '{asset_id}' AND status = 'submitted'"))  # noqa: B023
        assert sandbox.faults[0].times < times
    print(f"{len(ids)} faults, {len(sandbox.jobs)} jobs")
    analyzed_once(listener, sandbox, ids)


def test_a_job_taken_with_an_answer_that_makes_no_sense_is_submitted(
    listeners: Callable[..., Listener], sandbox: FaultyIconik
) -> None:
    listener = listeners(iconik__timeout=1).start()
    ids = []
    for body in (b"", b"<html>", b"[]", b"{}", b'{"id": null}', b'{"id": ["x"]}'):
        ids.append(new_id())
        sandbox.faults.append(Fault(f"analyze/assets/{ids[-1]}", status=201, body=body, after_work=True))
    listener.upload(*ids)
    analyzed_once(listener, sandbox, set(ids))
    assert len(analyze_calls(sandbox)) == len(ids)


def test_webhooks_are_answered_while_iconik_does_not_answer(
    listeners: Callable[..., Listener], sandbox: FaultyIconik
) -> None:
    listener = listeners(iconik__timeout=60).start()
    sandbox.faults.append(Fault("v1/assets/", hang=True, times=float("inf")))
    listener.upload(*(new_id() for _ in range(8)))  # more than there are workers
    wait_until(lambda: len(listener.rows("status = 'submitting'")) == 4)
    listener.upload(*(new_id() for _ in range(50)))
    health = requests.get(f"{listener.url}/health").json()
    assert (health["submitting"], health["ready"]) == (4, 54)
    sandbox.stopping.set()


def test_an_outage_costs_no_item_and_ends_by_itself(listener: Listener, sandbox: FaultyIconik) -> None:
    sandbox.faults.append(Fault("v1/assets/", status=503, times=float("inf")))
    ids = {new_id() for _ in range(12)}
    listener.upload(*ids)
    wait_until(lambda: listener.logged("ERROR The circuit breaker opens: iconik answered 503"))
    assert requests.get(f"{listener.url}/health").json()["status"] == "paused"
    sandbox.faults.clear()
    analyzed_once(listener, sandbox, ids)
    wait_until(lambda: listener.logged("INFO iconik takes jobs again: the circuit breaker closes"))
    assert requests.get(f"{listener.url}/health").json()["status"] == "ok"
    assert listener.rows("status = 'failed'") == []


# What the world sends


def connect(listener: Listener) -> socket.socket:
    host, port = listener.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


@pytest.mark.parametrize(("descriptors", "connections"), [(200, 120), pytest.param(1024, 1100, marks=pytest.mark.long)])
def test_more_connections_than_file_descriptors_stop_nothing_and_cost_nothing(
    listeners: Callable[..., Listener], sandbox: FaultyIconik, descriptors: int, connections: int
) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))

    listener = listeners(submitter__workers=32).start(limit)
    with descriptors_for(connections), ExitStack() as stack:
        for _ in range(connections):
            stack.enter_context(closing(connect(listener)))
        wait_until(lambda: listener.logged("Too many connections"))
        sandbox.create_asset("a.mov", ASSET, send=False)
        for path, event in (("/create", create_event()), ("/proxy", proxy_event())):
            assert listener.post(path, event).ok
        analyzed_once(listener, sandbox, {ASSET})
        begin, used = time.monotonic(), cpu_seconds(listener)
        wait_until(lambda: time.monotonic() > begin + 0.4)
        assert cpu_seconds(listener) - used < 0.2  # it would use all of it, if it tried to accept and could not
    other = new_id()
    listener.upload(other)
    analyzed_once(listener, sandbox, {ASSET, other})


@contextmanager
def descriptors_for(connections: int) -> Iterator[None]:
    """This process may have so many, and what else it needs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, connections + 500), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def cpu_seconds(listener: Listener) -> float:
    assert listener.process
    fields = Path(f"/proc/{listener.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_400_clients_that_drip_a_byte_a_second_hold_nobody_up(listener: Listener, sandbox: FaultyIconik) -> None:
    head = f"POST /create HTTP/1.1\r\nX-Webhook-Secret: {SECRET}\r\nContent-Length: 10000\r\nX-Slow: ".encode()
    clients = [connect(listener) for _ in range(400)]
    for number, client in enumerate(clients):
        client.sendall(head if number % 2 else head + b"\r\n\r\n")
    over = threading.Event()

    def drip() -> None:
        while not over.wait(1):
            for client in clients:
                client.sendall(b"x")

    dripping = threading.Thread(target=drip)
    dripping.start()
    try:
        with Uploads(listener, sandbox) as uploads:
            wait_until(lambda: len(uploads.answered) >= 500)
    finally:
        over.set()
        dripping.join()
        for client in clients:
            client.close()
    assert len(uploads.answered) == uploads.sent
    analyzed_once(listener, sandbox, uploads.answered)


def test_bytes_of_any_kind_on_the_port_leave_it_well(listener: Listener, sandbox: FaultyIconik) -> None:
    chance = random.Random(7)
    body = json.dumps(create_event()).encode()
    head = f"POST /create HTTP/1.1\r\nHost: x\r\nX-Webhook-Secret: {SECRET}\r\n".encode()
    head += f"Content-Length: {len(body)}\r\n\r\n".encode()
    oddities = [
        head.replace(str(len(body)).encode(), b"9" * 5000) + body,
        head.replace(b"Content-Length", b"Transfer-Encoding: chunked\r\nX") + b"zz\r\n",
        head.replace(b"Host: x", b"Host: [::1") + body,
        head.replace(b"Host: x", b"Host: \xff") + body,
        head.replace(b"/create", b"/%ff%00/../create?\xe2\x98\x83") + body,
        head.replace(b"/create", b"//create") + body,
        head.replace(b"POST", b"P\x00ST") + body,
        head.replace(b"HTTP/1.1", b"HTTP/9.9") + body,
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 60_000,
    ]
    for _ in range(300):
        wrong = bytearray(head + body)
        for _ in range(chance.randint(1, 20)):
            wrong[chance.randrange(len(head))] = chance.randrange(256)
        oddities.append(bytes(wrong))
    answers: Counter[bytes] = Counter()
    for request in oddities:
        with connect(listener) as client:
            try:
                client.sendall(request)
                client.shutdown(socket.SHUT_WR)
                answers[client.recv(65536)[9:12]] += 1
            except OSError:
                answers[b"cut"] += 1
    print(dict(answers))
    assert [status for status in answers if status.startswith(b"5")] in ([], [b"501"])
    assert {row["object_id"] for row in listener.rows()} <= {ASSET}
    other = new_id()
    listener.upload(other)
    analyzed_once(listener, sandbox, {other})
