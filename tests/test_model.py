"""The promise under any order of events: chance, trouble and death at every step, on a simulated clock.

The service's own threads run here, on the stand-in for iconik without the HTTP between them.
"""

import json as json_module
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest
from flask.testing import FlaskClient
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from circuit_breaker import CircuitBreaker
from config import load
from faulty_iconik import FaultyIconik
from iconik_client import IconikClient
from reconciliation.catalog import IconikCatalog
from reconciliation.changes import Corrections
from reconciliation.reconciler import Reconciler
from reconciliation.webhooks import REGISTERED_URL, SECRET_HEADER
from resources import Listening, create_app
from simulation import (
    HANGING,
    LATENCY,
    OUTAGES,
    Reply,
    SimulatedCondition,
    SimulatedEvent,
    SimulatedThread,
    Simulation,
    Task,
)
from store import Store
from submitter import Submitter
from support import SECRET, create_event, proxy_event, write_config
from system.text import format_utc
from system.transport import Answer, Transport, TransportError

HOUR, DAY = 3600.0, 24 * 3600.0
RETRY_DELAY, LONGEST_DELAY, WORKERS = 10.0, 900.0, 4
MIN_AGE, INTERVAL = 600.0, 1000.0  # of the reconciler
URL = "http://listener.example.com"
HEADERS = {SECRET_HEADER: SECRET}
ASSETS = [f"00000000-0000-0000-0000-{number:012}" for number in range(14)]
OLD_ASSET = "ffffffff-0000-0000-0000-000000000000"  # it was at iconik before the listener's first start
PROXY_STATUSES = ["OPEN", "GROWING", "AWAITED", "CLOSED", "FAILED", "ARCHIVED", "MISSING", "REDISCOVERED", "DELETED"]
REFUSAL = Reply(422, b'{"errors": ["No"]}')

assets = st.sampled_from(ASSETS)
troubles = st.sampled_from(list(OUTAGES.values()))
taken = st.booleans()  # whether iconik does what it does not answer well
late = st.sampled_from([0, 0.9, 9.5])  # and how long after it, at most


@dataclass(frozen=True)
class Trouble:
    """What iconik answers, to every call or to analyze calls only."""

    reply: Reply
    posts_only: bool


@dataclass(eq=False)
class Call:
    """A request of the service's that iconik has not answered yet."""

    task: Task
    method: str
    asset_id: str  # or empty
    is_first: bool  # of its permission
    is_old: bool  # for an item that was attempted before, or a question for a proxy
    began_at: float
    reply: Reply | None = None  # what it is to be answered instead of what it asks for
    is_due: bool = False  # it is answered now; if this stays so, it hangs


def is_answer(reply: Reply) -> bool:
    """Whether it says what became of a POST: iconik does not take that any more once it has answered so."""
    return reply.status is not None and 300 <= reply.status < 500 and reply.status != 408


class Wire:
    """In the place of the HTTP transport."""

    def __init__(self, promise: "Promise") -> None:
        self._promise = promise

    def longest_call(self) -> float:
        return 0.0

    def send(self, method: str, path: str, *, query: dict[str, str] | None = None, json: Any = None) -> Answer:
        promise = self._promise
        call = promise.begin_call(method, path)
        promise.simulation.wait()
        promise.calls.remove(call)
        reply = call.reply if call.is_due else HANGING
        if reply is None or (reply.after_work and (is_answer(reply) or not promise.late)):
            status, content = promise.do(method, path, query, json)
        elif reply.after_work and method == "POST" and call.asset_id:
            promise.to_be_taken.append((promise.simulation.now + promise.late, call.asset_id))
        if reply is None:
            return Answer(status, "", {}, json_module.dumps(content).encode(), is_whole=True)
        promise.note_answer(call, reply)
        if reply.status is None:
            raise TransportError("no answer")
        return Answer(reply.status, "", reply.headers, reply.body, is_whole=True)


class Promise(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name, "items.db")
        self.simulation = Simulation()
        self.sandbox = FaultyIconik(clock=self.simulation)  # its server does not run
        self.sandbox.register(URL, HEADERS)
        self.sandbox.create_asset("a.mov", OLD_ASSET, send=False)
        self.simulation.run_for(2 * DAY)
        # iconik's side
        self.calls: list[Call] = []
        self.violations: list[str] = []
        self.on_old_ones: dict[Task, bool] = {}
        self.outage: Trouble | None = None
        self.poison: dict[str, Trouble] = {}
        self.is_held = False  # calls wait to be answered one by one
        self.hanging_are_taken, self.late = False, 0.0
        self.to_be_taken: list[tuple[float, str]] = []
        self.failed_jobs: dict[str, int] = dict.fromkeys(ASSETS, 0)
        # What has been told and done
        self.created: set[str] = set()  # their webhook was answered 200
        self.closed: dict[str, float] = {}  # the same, with the time of the first
        self.attempted: set[str] = set()
        self.refused: set[str] = set()
        self.skipped: set[str] = set()
        self.in_doubt_since: dict[str, float] = {}
        self.store: Store | None = None
        self.start()

    def start(self) -> None:
        """A process begins."""
        self.store = Store(self.path, listener=True, clock=self.simulation)
        self.store.database._connection.execute("PRAGMA synchronous = OFF")
        self.store.set_state(REGISTERED_URL, URL)
        config = load(
            write_config(Path(self.folder.name), listener__webhook_secret=SECRET, reconciler__interval=INTERVAL)
        )
        client = IconikClient(config.iconik)
        client._transport = cast(Transport, Wire(self))
        self.breaker = CircuitBreaker(config.submitter, clock=self.simulation)
        self.breaker._changed = SimulatedCondition(self.simulation)
        self.submitter = Submitter(self.store, client, self.breaker, config)
        self.submitter._woken = SimulatedCondition(self.simulation)
        self.submitter._threads = [SimulatedThread(self.simulation, self.submitter._work) for _ in range(WORKERS)]
        reconciler = Reconciler(self.store, IconikCatalog(client), self.breaker, self.submitter, config)
        reconciler._stopping = SimulatedEvent(self.simulation)
        reconciler._thread = SimulatedThread(self.simulation, reconciler._run)
        listening = Listening(self.store, self.submitter, self.breaker, (SECRET,), config.reconciler.min_age)
        self.web: FlaskClient = create_app(listening).test_client()
        self.corrections = Corrections(self.store)
        self.submitter.start()
        reconciler.start()
        self.simulation.run_for(0)

    def kill(self, *, is_taken: bool) -> None:
        """The process ends. iconik may have got what was under way."""
        assert self.store
        posts = [call.asset_id for call in self.calls if call.method == "POST" and call.asset_id]
        self.calls.clear()
        self.simulation.kill()
        self.store.close()
        for asset_id in posts:
            self.in_doubt_since[asset_id] = self.simulation.now
            if is_taken:
                self.to_be_taken.append((self.simulation.now + self.late, asset_id))

    # iconik's side of a call

    def begin_call(self, method: str, path: str) -> Call:
        """Check that this call may be made, and remember it."""
        simulation, parts = self.simulation, path.split("/")
        asset_id = next((part for part in parts if part in (*ASSETS, OLD_ASSET)), "")
        is_first = not (method == "POST" and asset_id)
        assert simulation.current
        if is_first:
            self.on_old_ones[simulation.current] = "proxies" in parts or asset_id in self.attempted
        is_old = self.on_old_ones[simulation.current]
        call = Call(simulation.current, method, asset_id, is_first, is_old, simulation.now)
        if is_first:
            self.assert_permitted()
        if asset_id and "proxies" not in parts:
            since = self.in_doubt_since.get(asset_id)
            self.check(since is None or simulation.now >= since + RETRY_DELAY - 0.002, "it was looked at too early")
            self.in_doubt_since.pop(asset_id, None)
        if asset_id and is_first and is_old:
            self.check(not self.fresh(), "a fresh item waited for an old one")
        if asset_id and is_first and not is_old:
            self.attempted.add(asset_id)
        self.calls.append(call)
        if not self.is_held:
            call.reply, call.is_due = self.reply_to(call), True
            simulation.schedule(call.task, call.reply.seconds if call.reply else LATENCY)
        else:
            simulation.schedule(call.task, HANGING.seconds)
        return call

    def assert_permitted(self) -> None:
        """What is sent suits the breaker: nothing while it is open, one call at a time when it is half-open."""
        self.check(self.breaker.state != "open", "open, it lets a call out")
        if self.breaker.state == "half-open":
            since = self.breaker._open_until
            others = [call for call in self.calls if call.began_at >= since]
            self.check(not others, "half-open, there are two calls")

    def check(self, holds: bool, violation: str) -> None:
        """Remember what is wrong about a call: raised there, it would be taken for trouble with iconik."""
        if not holds:
            self.violations.append(violation)

    def reply_to(self, call: Call) -> Reply | None:
        for trouble in (self.poison.get(call.asset_id), self.outage):
            if trouble and (call.method == "POST" or not trouble.posts_only):
                return trouble.reply
        return None

    def do(self, method: str, path: str, query: dict[str, str] | None, body: Any) -> tuple[int, Any]:
        url = path + "?" + "&".join(f"{key}={value}" for key, value in (query or {}).items())
        credentials = (self.sandbox.app_id, self.sandbox.auth_token)
        return self.sandbox.answer(method, url, credentials, json_module.dumps(body or {}).encode())

    def note_answer(self, call: Call, reply: Reply) -> None:
        if call.asset_id and reply == REFUSAL:
            self.refused.add(call.asset_id)
        if call.method == "POST" and call.asset_id and not is_answer(reply):
            self.in_doubt_since[call.asset_id] = self.simulation.now

    # What is in items.db

    def row(self, asset_id: str) -> Any:
        return next(iter(self.rows(f"object_id = '{asset_id}'")), None)

    def rows(self, where: str = "1") -> list[Any]:
        assert self.store
        return self.store.database.run(f"SELECT * FROM items WHERE {where}")

    def fresh(self) -> list[Any]:
        return self.rows("status = 'ready' AND last_attempt_at IS NULL")

    # Webhooks

    def appear(self, asset_id: str) -> None:
        if asset_id not in self.sandbox.assets:
            self.sandbox.create_asset("a.mov", asset_id, send=False)

    @rule(asset_id=assets)
    def create(self, asset_id: str) -> None:
        self.appear(asset_id)
        assert self.web.post("/create", json=create_event(asset_id), headers=HEADERS).status_code == 200
        self.created.add(asset_id)
        self.simulation.run_for(0)

    @rule(asset_id=st.sampled_from([*ASSETS, OLD_ASSET]), status=st.sampled_from(PROXY_STATUSES))
    def proxy_of_any_status(self, asset_id: str, status: str) -> None:
        self.appear(asset_id)
        self.sandbox.set_proxy(asset_id, status, send=False)
        assert self.web.post("/proxy", json=proxy_event(asset_id, status), headers=HEADERS).status_code == 200
        if status == "CLOSED":
            self.closed.setdefault(asset_id, self.simulation.now)
        self.simulation.run_for(0)

    @rule(asset_id=assets, in_order=st.booleans())
    def upload(self, asset_id: str, in_order: bool) -> None:
        if in_order:
            self.create(asset_id)
        self.proxy_of_any_status(asset_id, "CLOSED")
        if not in_order:
            self.create(asset_id)

    @rule(asset_ids=st.lists(assets, min_size=4, max_size=14, unique=True))
    def upload_many(self, asset_ids: list[str]) -> None:
        for asset_id in asset_ids:
            self.upload(asset_id, True)

    @rule(asset_id=assets, create=st.booleans())
    def upload_whose_webhooks_are_lost(self, asset_id: str, create: bool) -> None:
        self.appear(asset_id)
        self.sandbox.set_proxy(asset_id, send=False)
        if create:
            self.create(asset_id)

    # Time, and iconik's trouble

    def run_for(self, seconds: float) -> None:
        end, is_over = self.simulation.now + seconds, False
        while not is_over:
            for at, asset_id in sorted(self.to_be_taken):
                if at <= self.simulation.now:
                    self.to_be_taken.remove((at, asset_id))
                    self.sandbox.start_job(asset_id)
            count = len(self.to_be_taken)
            next_at = min((at for at, _ in self.to_be_taken), default=end)
            self.simulation.run_until(min(next_at, end), stop=lambda: len(self.to_be_taken) > count)  # noqa: B023
            is_over = self.simulation.now >= end and all(at > end for at, _ in self.to_be_taken)

    @rule(seconds=st.sampled_from([0.001, 0.1, 1, 9.9, 10, 31, 100, LONGEST_DELAY]))
    def time_passes(self, seconds: float) -> None:
        self.run_for(seconds)

    @rule(reply=st.one_of(st.none(), troubles), posts_only=st.booleans(), is_taken=taken, late=late)
    def everybodys_trouble(self, reply: Reply | None, posts_only: bool, is_taken: bool, late: float) -> None:
        self.late = late
        self.outage = Trouble(replace(reply, after_work=is_taken), posts_only) if reply else None

    @rule(
        asset_ids=st.lists(assets, min_size=1, max_size=12, unique=True),
        reply=troubles,
        posts_only=st.booleans(),
        is_taken=taken,
        late=late,
        seconds=st.sampled_from([0.15, 1, 40]),
    )
    def assets_come_in_everybodys_trouble(
        self, asset_ids: list[str], reply: Reply, posts_only: bool, is_taken: bool, late: float, seconds: float
    ) -> None:
        """What leads deepest, as one step."""
        self.everybodys_trouble(reply, posts_only, is_taken, late)
        self.upload_many(asset_ids)
        self.run_for(seconds)

    @rule(asset_id=assets, reply=st.one_of(st.just(REFUSAL), troubles), posts_only=st.booleans(), is_taken=taken)
    def one_assets_trouble(self, asset_id: str, reply: Reply, posts_only: bool, is_taken: bool) -> None:
        self.poison[asset_id] = Trouble(replace(reply, after_work=is_taken and reply != REFUSAL), posts_only)

    @precondition(lambda self: self.poison)
    @rule()
    def no_assets_trouble(self) -> None:
        self.poison.clear()

    @rule(is_held=st.booleans())
    def calls_wait(self, is_held: bool) -> None:
        self.is_held = is_held

    def held(self) -> list[Call]:
        return [call for call in self.calls if not call.is_due]

    @precondition(lambda self: self.held())
    @rule(data=st.data(), reply=st.one_of(st.none(), st.just(REFUSAL), troubles), is_taken=taken, late=late)
    def one_call_is_answered(self, data: st.DataObject, reply: Reply | None, is_taken: bool, late: float) -> None:
        call = data.draw(st.sampled_from(self.held()))
        self.late = late
        self.answer(call, replace(reply, after_work=is_taken and reply != REFUSAL) if reply else None)

    def answer(self, call: Call, reply: Reply | None) -> None:
        call.reply, call.is_due = reply, True
        self.simulation.schedule(call.task, 0)
        self.simulation.run_for(0)

    @rule(asset_id=assets)
    def an_asset_is_deleted(self, asset_id: str) -> None:
        if asset_id in self.sandbox.assets:
            self.sandbox.assets[asset_id]["status"] = "DELETED"

    @precondition(lambda self: self.sandbox.jobs)
    @rule(data=st.data(), works=st.booleans())
    def a_job_ends(self, data: st.DataObject, works: bool) -> None:
        asset_id = data.draw(st.sampled_from(self.sandbox.jobs))
        job_id = self.sandbox.latest_job[asset_id]
        if self.sandbox.job_details[job_id]["status"] != "READY":
            return
        if works:
            self.sandbox.finish_job(job_id)
        else:
            self.sandbox.fail_job(job_id)
            self.failed_jobs[asset_id] += 1

    # Our own trouble

    @rule(is_taken=taken, late=late, seconds=st.sampled_from([0, 5, HOUR, 8 * DAY]))
    def the_process_is_killed_and_started(self, is_taken: bool, late: float, seconds: float) -> None:
        self.late = late
        self.kill(is_taken=is_taken)
        self.run_for(seconds)
        self.start()

    @rule(asset_id=assets, is_taken=taken, late=late, seconds=st.sampled_from([0, 5]))
    def the_process_is_killed_in_a_post(self, asset_id: str, is_taken: bool, late: float, seconds: float) -> None:
        """What leads deepest, as one step."""
        self.upload(asset_id, True)
        for call in self.held():
            self.answer(call, None)
        self.run_for(LATENCY * 1.5)
        self.the_process_is_killed_and_started(is_taken, late, seconds)

    @rule(asset_id=assets)
    def a_person_retries(self, asset_id: str) -> None:
        if self.corrections.retry(asset_id, RETRY_DELAY) == "skipped":
            self.skipped.discard(asset_id)

    @rule(asset_id=assets)
    def a_person_skips(self, asset_id: str) -> None:
        if self.corrections.skip(asset_id) in ("failed", "ready", "awaiting_proxy", "awaiting_create"):
            self.skipped.add(asset_id)

    # What always holds

    @invariant()
    def no_call_was_wrong(self) -> None:
        assert self.violations == []

    @invariant()
    def no_asset_gets_two_jobs_but_for_those_that_failed(self) -> None:
        for asset_id in set(self.sandbox.jobs):
            assert self.sandbox.jobs.count(asset_id) <= 1 + self.failed_jobs[asset_id]

    @invariant()
    def nothing_from_before_the_first_start_is_analyzed(self) -> None:
        assert OLD_ASSET not in self.sandbox.jobs

    @invariant()
    def no_acknowledged_asset_is_forgotten(self) -> None:
        for asset_id in self.created:
            assert self.row(asset_id)["status"] != "awaiting_create"
        for asset_id, since in self.closed.items():
            if self.row(asset_id) is None:
                assert asset_id not in self.created
                assert self.simulation.now - since > DAY

    @invariant()
    def every_item_has_a_status_for_a_reason(self) -> None:
        now = self.simulation.now
        under_way = {call.asset_id for call in self.calls}
        for row in self.rows():
            object_id, status = row["object_id"], row["status"]
            assert "unexpected" not in (row["error"] or "")
            if status == "ready":
                assert row["next_attempt_at"] <= format_utc(now + LONGEST_DELAY)
            elif status == "submitting":
                assert object_id in under_way
            elif status == "submitted":
                assert object_id in self.sandbox.jobs
            elif status == "skipped":
                assert object_id in self.skipped or self.sandbox.assets[object_id]["status"] == "DELETED"
            elif status == "failed":
                # No process of these lives for the 7 days after which an item is given up.
                assert object_id in self.refused or self.failed_jobs[object_id]

    @invariant()
    def old_ones_leave_half_of_the_workers_to_new_ones(self) -> None:
        of_workers = [call for call in self.calls if call.asset_id]
        assert sum(call.is_old for call in of_workers) <= WORKERS // 2
        if self.breaker.state == "closed" and self.fresh():
            in_reconciler = len(self.calls) - len(of_workers)
            assert len(self.calls) - in_reconciler == WORKERS, "a worker is idle, and there is work"

    def teardown(self) -> None:
        """Once all is well again, whatever is due gets done: each asset has its job, or a reason to have none."""
        if not hasattr(self, "store"):
            return
        assert self.store
        try:
            self.kill(is_taken=False)
            self.outage, self.is_held = None, False
            self.poison.clear()
            self.run_for(MIN_AGE + 1)  # or the reconciler would look for the latest assets in its next round only
            self.start()
            self.run_for(LONGEST_DELAY)
            for asset_id in ASSETS:
                row = self.row(asset_id)
                if row and row["status"] == "awaiting_proxy":  # whose next question may be days away
                    self.corrections.retry(asset_id, RETRY_DELAY)
            self.run_for(2 * RETRY_DELAY + 30)  # what a person writes is seen at the next poll
            self.no_call_was_wrong()
            self.every_item_has_a_status_for_a_reason()
            self.no_asset_gets_two_jobs_but_for_those_that_failed()
            for asset_id in ASSETS:
                self.assert_done(asset_id)
        finally:
            self.simulation.kill()
            self.store.close()
            self.sandbox._server.server_close()
            self.folder.cleanup()

    def assert_done(self, asset_id: str) -> None:
        row = self.row(asset_id)
        is_closed = any(proxy["status"] == "CLOSED" for proxy in self.sandbox.proxies.get(asset_id, []))
        if asset_id not in self.sandbox.assets:
            assert row is None
        elif row is None:
            raise AssertionError("the reconciler has not found it")
        elif is_closed:
            assert row["status"] in ("submitted", "skipped", "failed")
        else:
            assert row["status"] in ("awaiting_proxy", "skipped")


TestPromise = Promise.TestCase
TestPromise.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.long
class TestPromiseAtLength(Promise.TestCase):  # type: ignore[misc,valid-type]
    settings = settings(
        max_examples=250, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
    )
