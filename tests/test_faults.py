"""Nothing lost, nothing twice: the real listener under what can happen to it."""

import json
import random
import re
import resource
import signal
import socket
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import requests

from config import SubmitterConfig
from iconik_client import IconikUnavailable
from sandbox import Fault, Sandbox
from submitter import Pauses
from support import ASSET, SECRET, Clock, Listener, create_event, new_id, proxy_event, wait_until

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (INFO|WARNING|ERROR) [^\n]+\n")


def analyzed_once(listener: Listener, sandbox: Sandbox, ids: set[str]) -> None:
    """All of these assets get their one job and their row, and every line of the log is as it should be."""
    wait_until(lambda: {row["object_id"] for row in listener.rows("status = 'submitted'")} >= ids, 60)
    counts = Counter(sandbox.jobs)
    assert {asset_id: counts[asset_id] for asset_id in ids if counts[asset_id] != 1} == {}
    assert max(counts.values()) == 1
    assert [line for line in listener.log if not LINE.fullmatch(line)] == []


class Uploads:
    """Assets that stream in over several connections, as iconik sends them: each webhook once, and no repeats."""

    def __init__(self, listener: Listener, sandbox: Sandbox, connections: int = 4) -> None:
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


def kill_at_random_moments(listeners: Callable[..., Listener], sandbox: Sandbox, kills: int) -> None:
    # iconik must have taken a request that was cut off by the time it is asked about it: see the README.
    sandbox.latency = 0.02
    listener = listeners(submitter__retry_delay=0.3, submitter__max_retry_delay=1).start()
    with Uploads(listener, sandbox) as uploads:
        for _ in range(kills):
            enough = len(uploads.answered) + random.randint(1, 30)
            wait_until(lambda: len(uploads.answered) >= enough)  # noqa: B023
            listener.end(signal.SIGKILL)
            listener.start()
    print(f"{kills} kills, {uploads.sent} assets sent, {len(uploads.answered)} answered 200, {len(sandbox.jobs)} jobs")
    analyzed_once(listener, sandbox, uploads.answered)


def test_killed_while_assets_stream_in(listeners: Callable[..., Listener], sandbox: Sandbox) -> None:
    kill_at_random_moments(listeners, sandbox, 3)


@pytest.mark.long
def test_killed_many_times_while_assets_stream_in(listeners: Callable[..., Listener], sandbox: Sandbox) -> None:
    kill_at_random_moments(listeners, sandbox, 40)


@pytest.mark.long
def test_ended_and_started_while_assets_stream_in(listeners: Callable[..., Listener], sandbox: Sandbox) -> None:
    sandbox.latency = 0.02
    listener = listeners().start()
    with Uploads(listener, sandbox) as uploads:
        for _ in range(20):
            enough = len(uploads.answered) + random.randint(1, 30)
            wait_until(lambda: len(uploads.answered) >= enough)  # noqa: B023
            assert listener.run().returncode == 1  # a second start on the same database
            assert listener.end() == 0
            listener.start()
    analyzed_once(listener, sandbox, uploads.answered)


# Another program in items.db


@contextmanager
def held_by_a_person(database: Path) -> Iterator[None]:
    with closing(sqlite3.connect(database, isolation_level=None)) as person:
        person.execute("BEGIN IMMEDIATE")
        yield
        person.execute("COMMIT")


@pytest.mark.long
def test_items_db_held_for_3_seconds_is_noticed_by_nobody(listener: Listener, sandbox: Sandbox) -> None:
    with Uploads(listener, sandbox) as uploads:
        wait_until(lambda: len(uploads.answered) > 10)
        with held_by_a_person(listener.database):
            time.sleep(3)
        after = len(uploads.answered) + 10
        wait_until(lambda: len(uploads.answered) > after)
    assert len(uploads.answered) == uploads.sent
    analyzed_once(listener, sandbox, uploads.answered)
    assert not listener.logged("ERROR")


@pytest.mark.long
def test_items_db_held_for_longer_gets_503_and_then_goes_on_as_before(listener: Listener, sandbox: Sandbox) -> None:
    sandbox.latency = 0.5
    listener.upload(ASSET)
    assert sandbox.wait_for(lambda: len(sandbox.requests) == 1)  # its outcome will come while nothing can be written
    with held_by_a_person(listener.database):
        late = new_id()
        assert listener.post("/create", create_event(late)).status_code == 503
        assert sandbox.wait_for(lambda: sandbox.jobs == [ASSET])
        assert listener.post("/proxy", proxy_event(late)).status_code == 503
    listener.upload(late)
    analyzed_once(listener, sandbox, {ASSET, late})
    assert len([request for request in sandbox.requests if ASSET in request]) == 1
    assert listener.logged("An outcome waits to be written")


def test_a_disk_that_is_full_and_then_is_not(listeners: Callable[..., Listener], sandbox: Sandbox) -> None:
    unlimited = resource.RLIM_INFINITY
    sandbox.latency = 0.3
    listener = listeners().start()
    assert listener.process
    listener.upload(ASSET)
    assert sandbox.wait_for(lambda: len(sandbox.requests) == 1)  # its outcome will come while the disk is full
    size = max(file.stat().st_size for file in listener.database.parent.glob("items.db*"))
    resource.prlimit(listener.process.pid, resource.RLIMIT_FSIZE, (size, unlimited))
    answered: set[str] = set()
    refused: set[str] = set()
    while not refused:
        asset_id = new_id()
        status = listener.post("/create", create_event(asset_id, title="x" * 250)).status_code
        assert status in (200, 503)
        (answered if status == 200 else refused).add(asset_id)
    assert sandbox.wait_for(lambda: sandbox.jobs == [ASSET])
    wait_until(lambda: listener.logged("An outcome waits to be written"))
    assert requests.get(listener.url + "/health", timeout=20).status_code == 200
    resource.prlimit(listener.process.pid, resource.RLIMIT_FSIZE, (unlimited, unlimited))
    listener.upload(*answered, *refused)
    analyzed_once(listener, sandbox, {ASSET, *answered, *refused})
    assert len([request for request in sandbox.requests if ASSET in request]) == 1
    assert listener.end() == 0


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
]


@pytest.mark.long
def test_every_fault_of_iconik_before_and_after_it_did_the_work(
    listeners: Callable[..., Listener], sandbox: Sandbox
) -> None:
    listener = listeners(submitter__timeout=0.3, submitter__retry_delay=0.01, submitter__max_retry_delay=0.02).start()
    ids = set()
    for fault in FAULTS:
        for after_work in (False, True):
            for times in (1, 2):
                asset_id = new_id()
                ids.add(asset_id)
                fault.match, fault.after_work, fault.times = f"analyze/assets/{asset_id}", after_work, times
                sandbox.faults[:] = [fault]
                listener.upload(asset_id)
                wait_until(lambda: listener.rows(f"object_id = '{asset_id}' AND status = 'submitted'"))  # noqa: B023
    print(f"{len(ids)} faults, {len(sandbox.jobs)} jobs")
    analyzed_once(listener, sandbox, ids)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"{}", b'{"id": null}'])
def test_a_job_taken_with_an_answer_that_makes_no_sense(listener: Listener, sandbox: Sandbox, body: bytes) -> None:
    sandbox.faults.append(Fault("POST", status=201, body=body, after_work=True))
    listener.upload(ASSET)
    analyzed_once(listener, sandbox, {ASSET})
    assert len(sandbox.requests) == 1


def test_an_asset_that_iconik_does_not_know_fails_and_is_left_alone(listener: Listener, sandbox: Sandbox) -> None:
    listener.post("/create", create_event())
    listener.post("/proxy", proxy_event())
    wait_until(lambda: listener.rows("status = 'failed'"))
    listener.post("/create", create_event())
    listener.post("/proxy", proxy_event())
    other = new_id()
    listener.upload(other)
    analyzed_once(listener, sandbox, {other})
    assert len(sandbox.requests) == 2
    assert listener.logged(f"{ASSET} failed: iconik answered 404: Asset {ASSET} doesn't exist")


def test_webhooks_are_answered_while_iconik_is_not(listeners: Callable[..., Listener], sandbox: Sandbox) -> None:
    listener = listeners(submitter__timeout=60).start()
    sandbox.faults.append(Fault(hang=True, times=float("inf")))
    listener.upload(*(new_id() for _ in range(8)))  # more than there are workers
    assert sandbox.wait_for(lambda: len(sandbox.requests) == 4)
    listener.upload(*(new_id() for _ in range(50)))
    health = requests.get(listener.url + "/health").json()
    assert (health["submitting"], health["ready"]) == (4, 54)
    sandbox.stopping.set()


def test_an_outage_costs_no_item_and_is_asked_about_one_request_at_a_time(
    listeners: Callable[..., Listener], sandbox: Sandbox
) -> None:
    listener = listeners(submitter__max_retry_delay=0.05).start()
    sandbox.faults.append(Fault(status=503, times=float("inf")))
    ids = {new_id() for _ in range(10)}
    listener.upload(*ids)
    assert sandbox.wait_for(lambda: len(sandbox.requests) >= 15)
    sandbox.faults.clear()
    analyzed_once(listener, sandbox, ids)
    assert listener.rows("status = 'failed'") == []


def test_an_outage_of_a_day_is_a_handful_of_requests_a_minute(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: low)
    pauses = Pauses(SubmitterConfig(workers=4, timeout=30, retry_delay=10, max_retry_delay=900), clock)
    begin, sent = clock.now, []
    while clock.now < begin + 24 * 3600:
        turn = pauses.enter()
        assert turn is not None
        sent.append(clock.now - begin)
        clock.now += pauses.begin(turn, "analyze", IconikUnavailable("iconik answered 503"))
    assert max(sum(1 for moment in sent if start <= moment < start + 60) for start in sent) == 3
    assert len(sent) == 7 + (24 * 3600 - 1270) // 900 + 1


# What the world sends


def connect(listener: Listener) -> socket.socket:
    host, port = listener.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


@pytest.mark.long
def test_400_clients_that_drip_a_byte_a_second_hold_nobody_up(listener: Listener, sandbox: Sandbox) -> None:
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


@pytest.mark.long
def test_bytes_of_any_kind_on_the_port_leave_it_well(listener: Listener, sandbox: Sandbox) -> None:
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
