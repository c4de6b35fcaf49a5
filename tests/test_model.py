"""The promise under any order of events: chance, trouble and death at every step, on a simulated clock.

The service's own threads run here, on the stand-in for iconik without the HTTP between them.
"""

import json as json_module
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from circuit_breaker import CircuitBreaker
from commands.changes import ManualChanges
from config import load
from events import SECRET_HEADER
from faulty_iconik import FaultyIconik
from iconik_client import IconikClient
from jobs import JOBS
from reconciliation.reconciler import Reconciler
from reconciliation.webhooks import REGISTERED_URL
from resources import Services, create_app
from simulation import HANGING, LATENCY, OUTAGES, Reply, SimulatedRuntime, Simulation, Task
from store import Rules, Store
from submitter import Submitter
from support import SECRET, create_event, proxy_event, write_config
from system.transport import Answer, TransportError

HOUR, DAY = 3600.0, 24 * 3600.0
RETRY_DELAY, LONGEST_DELAY, WORKERS = 10.0, 900.0, 4
DOUBT, ABSENCE, MAX_STEP = 90.0, 300.0, 7200.0
MIN_AGE, INTERVAL = 600.0, 1000.0  # of the reconciler
URL = "http://listener.example.com"
HEADERS = {SECRET_HEADER: SECRET}
ASSETS = [f"00000000-0000-0000-0000-{number:012}" for number in range(14)]
OLD_ASSET = "ffffffff-0000-0000-0000-000000000000"  # it was at iconik before the listener's first start
PROXY_STATUSES = ["OPEN", "GROWING", "AWAITED", "CLOSED", "FAILED", "ARCHIVED", "MISSING", "REDISCOVERED", "DELETED"]
ODD_LISTS: dict[str, Callable[[list[Any]], list[Any]]] = {
    "none": lambda objects: objects,
    "empty": lambda objects: [],
    "short": lambda objects: objects[:-1] if len(objects) > 1 else objects,
    "at most 3": lambda objects: objects[:3],
    "null": lambda objects: [None, *objects] if objects else objects,
}
PEOPLES_COLUMNS = ("title", "error", "reason", "profile", "media_type", "created_at", "proxy_closed_at")
REFUSAL = Reply(422, b'{"errors": ["No"]}')

Key = tuple[str, str]  # an asset and a job

assets = st.sampled_from(ASSETS)
numbers = st.integers(0, len(JOBS) - 1)  # of one of the configured jobs
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
    job: str  # that it starts, or empty
    is_first: bool  # of its permission
    is_old: bool  # for an item that was attempted before, or a question for a proxy
    began_at: float
    reply: Reply | None = None  # what it is to be answered instead of what it asks for
    is_due: bool = False  # it is answered now; if this stays so, it hangs


def job_of(path: str) -> str:
    """The job that a POST to that path starts."""
    return next(job.name for job in JOBS.values() if path.startswith(f"/API/{job.path.partition('{')[0]}"))


def is_answer(reply: Reply) -> bool:
    """Whether it says what became of a POST: iconik does not take that any more once it has answered so."""
    return reply.status is not None and (reply.status == 503 or (300 <= reply.status < 500 and reply.status != 408))


class Wire:
    """In the place of the HTTP transport."""

    def __init__(self, promise: "Promise") -> None:
        self._promise = promise

    def longest_call(self) -> float:
        return 0.0

    def send(self, method: str, path: str, *, query: Mapping[str, str] | None = None, json: Any = None) -> Answer:
        promise = self._promise
        call = promise.begin_call(method, path)
        promise.simulation.wait()
        promise.calls.remove(call)
        reply = call.reply if call.is_due else HANGING
        if promise.is_done_at_once(reply):
            status, content = promise.do(method, path, query, json)
        elif reply and reply.after_work and call.job and not is_answer(reply):
            promise.to_be_taken.append((promise.simulation.now + promise.late, (call.asset_id, call.job)))
        if reply is None:
            return Answer(status, "", promise.date(), json_module.dumps(content).encode())
        promise.note_answer(call, reply)
        if reply.status is None:
            raise TransportError("no answer")
        return Answer(reply.status, "", {**promise.date(), **reply.headers}, reply.body)


class Promise(RuleBasedStateMachine):
    @initialize(jobs=st.lists(st.sampled_from(list(JOBS)), min_size=1, unique=True))
    def begin(self, jobs: list[str]) -> None:
        self.jobs = jobs
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name, "items.db")
        self.simulation = Simulation()
        self.slept = 0.0  # how long our machine has slept
        self.sandbox = FaultyIconik(clock=self.iconiks_time)  # its server does not run
        self.sandbox.register(URL, HEADERS)
        self.sandbox.create_asset("a.mov", OLD_ASSET, send=False)
        self.simulation.run_for(2 * DAY)
        # iconik's side
        self.calls: list[Call] = []
        self.violations: list[str] = []
        self.on_old_ones: dict[Task, bool] = {}
        self.works_on: dict[Task, str] = {}  # the asset that each worker read last
        self.outage: Trouble | None = None
        self.poison: dict[str, Trouble] = {}
        self.is_held = False  # calls wait to be answered one by one
        self.hanging_are_taken, self.late = False, 0.0
        self.to_be_taken: list[tuple[float, Key]] = []
        self.failed_jobs: Counter[Key] = Counter()
        # What has been told and done
        self.created: set[str] = set()  # their webhook was answered 200
        self.closed: dict[str, float] = {}  # the same, with the time of the first
        self.skipped: set[Key] = set()
        self.in_doubt_since: dict[Key, float] = {}
        self.store: Store | None = None
        self.start()
        self.run_for(5)  # the first look notes iconik's time: nothing from before is added

    def start(self) -> None:
        """A process begins."""
        folder = Path(self.folder.name)
        values = {"listener__webhook_secret": SECRET, "reconciler__interval": INTERVAL}
        config = load(write_config(folder, submitter__jobs=" ".join(self.jobs), **values))
        self.store = Store(self.path, Rules.of(config), listener=True, clock=self.simulation)
        self.store.database.run("PRAGMA synchronous = OFF")
        self.store.set_state(REGISTERED_URL, URL)
        runtime = SimulatedRuntime(self.simulation)
        client = IconikClient(config.iconik, sender=Wire(self), runtime=runtime)
        self.breaker = CircuitBreaker(config.submitter, runtime)
        self.submitter = Submitter(self.store, client, self.breaker, config, runtime=runtime)
        reconciler = Reconciler(self.store, client, self.breaker, self.submitter, config, runtime=runtime)
        services = Services(self.store, self.submitter, self.breaker, (SECRET,), runtime)
        self.web: FlaskClient = create_app(services).test_client()
        self.changes = ManualChanges(self.store)
        self.submitter.start()
        reconciler.start()
        self.simulation.run_for(0)

    def iconiks_time(self) -> float:
        return self.simulation.now + self.slept

    def date(self) -> dict[str, str]:
        """iconik's time, as it writes it into an answer."""
        return {"Date": format_datetime(datetime.fromtimestamp(self.iconiks_time(), timezone.utc), usegmt=True)}

    def kill(self, *, is_taken: bool) -> None:
        """The process ends. iconik may have got what was under way."""
        assert self.store
        posts = [(call.asset_id, call.job) for call in self.calls if call.job]
        self.calls.clear()
        self.simulation.kill()
        self.store.close()
        for key in posts:
            self.in_doubt_since[key] = self.simulation.now
            if is_taken:
                self.to_be_taken.append((self.simulation.now + self.late, key))

    # iconik's side of a call

    def begin_call(self, method: str, path: str) -> Call:
        """Check that this call may be made, and remember it."""
        simulation, parts = self.simulation, path.split("/")
        asset_id = next((part for part in parts if part in (*ASSETS, OLD_ASSET)), "")
        is_first = bool(asset_id) and method == "GET"
        task = simulation.current
        assert task
        claimed = self.rows(f"object_id = '{asset_id}' AND status = 'submitting'") if is_first else []
        if is_first:  # for one of them
            self.on_old_ones[task] = "proxies" in parts or all(row["last_attempt_at"] for row in claimed)
            self.works_on[task] = asset_id
            self.assert_permitted()
        is_old = self.on_old_ones.get(task, False)
        job = job_of(path) if method == "POST" and asset_id else ""
        call = Call(task, method, asset_id, job, is_first, is_old, simulation.now)
        if is_first and "proxies" not in parts:
            doubts = [self.in_doubt_since.get((asset_id, row["job"]), -DOUBT) for row in claimed]
            self.check(simulation.now >= min(doubts) + DOUBT - 0.002, "it was looked at too early")
        if is_first and is_old:
            self.check(not self.fresh(), "a fresh item waited for an old one")
        self.calls.append(call)
        if not self.is_held:
            call.reply, call.is_due = self.reply_to(call), True
            simulation.schedule(call.task, call.reply.seconds if call.reply else LATENCY)
        else:
            simulation.schedule(call.task, HANGING.seconds)
        return call

    def assert_permitted(self) -> None:
        """Nothing new is sent while the breaker is open."""
        self.check(not self.breaker.is_open, "open, it lets a call out")

    def check(self, holds: bool, violation: str) -> None:
        """Remember what is wrong about a call: raised there, it would be taken for trouble with iconik."""
        if not holds:
            self.violations.append(violation)

    def reply_to(self, call: Call) -> Reply | None:
        for trouble in (self.poison.get(call.asset_id), self.outage):
            if trouble and (call.method == "POST" or not trouble.posts_only):
                return trouble.reply
        return None

    def do(self, method: str, path: str, query: Mapping[str, str] | None, body: Any) -> tuple[int, Any]:
        url = path + "?" + "&".join(f"{key}={value}" for key, value in (query or {}).items())
        credentials = (self.sandbox.app_id, self.sandbox.auth_token)
        return self.sandbox.answer(method, url, credentials, json_module.dumps(body or {}).encode())

    def is_done_at_once(self, reply: Reply | None) -> bool:
        """Whether iconik does what it is asked for before it answers.

        It may do so and answer that it did not: only the look before the next request shows that, while reads are up to
        date. Against both at once nothing helps.
        """
        if reply is None or not reply.after_work:
            return reply is None
        return not (self.sandbox.read_lag if is_answer(reply) else self.late)

    def note_answer(self, call: Call, reply: Reply) -> None:
        if call.job and is_answer(reply):
            self.in_doubt_since.pop((call.asset_id, call.job), None)
        elif call.job:
            self.in_doubt_since[call.asset_id, call.job] = self.simulation.now

    # What is in items.db

    def items(self, asset_id: str) -> list[Any]:
        return self.rows(f"object_id = '{asset_id}'")

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
            self.closed.setdefault(asset_id, self.iconiks_time())
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
            for at, key in sorted(self.to_be_taken):
                if at <= self.simulation.now:
                    self.to_be_taken.remove((at, key))
                    self.sandbox.start_job(*key)
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

    @precondition(lambda self: self.sandbox.started)
    @rule(data=st.data(), works=st.booleans())
    def a_job_ends(self, data: st.DataObject, works: bool) -> None:
        job_id, job = data.draw(st.sampled_from(list(self.sandbox.job_details.items())))
        if job["status"] != "READY":
            return
        if works:
            self.sandbox.finish_job(job_id)
        else:
            self.sandbox.fail_job(job_id)
            self.failed_jobs[job["object_id"], job["kind"]] += 1

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

    @rule(asset_id=assets, number=numbers)
    def a_person_retries(self, asset_id: str, number: int) -> None:
        for change in self.changes.retry([(asset_id, self.jobs[number % len(self.jobs)])]):
            if change.status == "skipped":
                self.skipped.discard((asset_id, change.job))

    @rule(asset_id=assets, number=numbers)
    def a_person_skips(self, asset_id: str, number: int) -> None:
        for change in self.changes.skip([(asset_id, self.jobs[number % len(self.jobs)])]):
            if change.is_changed:
                self.skipped.add((asset_id, change.job))

    @rule(seconds=st.sampled_from([30.0, 3600.0, -30.0, -3600.0]))
    def the_clock_is_set(self, seconds: float) -> None:
        """Ours, and not iconik's: the wall clock steps, while no time passes."""
        if abs(self.simulation.ahead - self.slept + seconds) <= MAX_STEP:
            self.simulation.ahead += seconds

    @rule(asset_id=assets)
    def a_new_version_is_uploaded(self, asset_id: str) -> None:
        """New files in the same asset: they get no job of their own."""
        if asset_id in self.sandbox.assets:
            version_id = self.sandbox.new_version(asset_id)
            self.sandbox.set_proxy(asset_id, send=False)
            event = proxy_event(asset_id)
            event["data"]["version_id"] = version_id
            assert self.web.post("/proxy", json=event, headers=HEADERS).status_code == 200
            self.closed.setdefault(asset_id, self.iconiks_time())
            self.simulation.run_for(0)

    @rule(seconds=st.sampled_from([0.0, 20.0]))
    def reads_lag_behind(self, seconds: float) -> None:
        """So long, reads and lists do not show that a job was started."""
        self.sandbox.read_lag = seconds

    @rule(odd=st.sampled_from(list(ODD_LISTS.values())))
    def lists_are_odd(self, odd: Callable[[list[Any]], list[Any]]) -> None:
        """Those of the search, and of the webhooks."""
        self.sandbox.pages = lambda url, objects: objects if "/jobs/" in url or "/files/" in url else odd(objects)

    @rule(asset_id=assets, column=st.sampled_from(PEOPLES_COLUMNS), value=st.sampled_from(["x", b"\xff", 7.5, None]))
    def a_person_edits_a_row(self, asset_id: str, column: str, value: object) -> None:
        """What is not the listener's to decide by."""
        assert self.store
        self.store.database.run(f"UPDATE items SET {column} = :value WHERE object_id = :id", value=value, id=asset_id)

    @rule(seconds=st.sampled_from([HOUR, 8 * DAY]))
    def the_machine_sleeps(self, seconds: float) -> None:
        """Its monotonic clock stands still meanwhile, and iconik's does not."""
        self.slept += seconds
        self.simulation.ahead += seconds

    @rule(is_refused=st.booleans())
    def everybody_is_refused(self, is_refused: bool) -> None:
        """The account has no credits, or has them again."""
        self.sandbox.refuse_jobs = (402, "Insufficient credits") if is_refused else None

    # What always holds

    @invariant()
    def no_call_was_wrong(self) -> None:
        assert self.violations == [], self.violations

    @invariant()
    def no_job_is_started_twice_but_for_those_that_failed(self) -> None:
        for (job, asset_id), count in Counter(self.sandbox.started).items():
            assert count <= 1 + self.failed_jobs[asset_id, job]

    @invariant()
    def nothing_else_is_started(self) -> None:
        """Neither for an asset from before the first start nor of a kind that is not configured."""
        assert {asset_id for _, asset_id in self.sandbox.started} <= {*ASSETS}
        assert {job for job, _ in self.sandbox.started} <= {*self.jobs}

    @invariant()
    def no_acknowledged_asset_is_forgotten(self) -> None:
        for asset_id in self.created:
            items = self.items(asset_id)
            assert {item["job"] for item in items} == {*self.jobs}
            assert "awaiting_create" not in {item["status"] for item in items}
        for asset_id, since in self.closed.items():
            if not self.items(asset_id):
                assert asset_id not in self.created
                assert self.iconiks_time() - since > DAY - 2 * MAX_STEP - 1

    @invariant()
    def every_item_has_a_status_for_a_reason(self) -> None:
        under_way = {self.works_on.get(call.task) for call in self.calls}
        for row in self.rows():
            object_id, job, status = row["object_id"], row["job"], row["status"]
            assert "unexpected" not in str(row["error"])
            if status == "submitting":
                assert object_id in under_way
            elif status in ("submitted", "done"):
                assert (job, object_id) in self.sandbox.started
            elif status == "skipped":
                assert (object_id, job) in self.skipped or self.sandbox.assets[object_id]["status"] == "DELETED"
            elif status == "failed":
                assert self.failed_jobs[object_id, job] or str(row["error"]).startswith("given up")

    @invariant()
    def the_ledger_counts_what_was_started(self) -> None:
        """Never fewer than were started: those in doubt count until that is settled."""
        assert self.store
        [row] = self.store.database.run("SELECT total(started) AS started FROM usage")
        held = len(self.rows("counted_on IS NOT NULL"))
        assert row["started"] >= held

    @invariant()
    def old_ones_leave_half_of_the_workers_to_new_ones(self) -> None:
        assert sum(call.is_old for call in self.calls if call.task in self.works_on) <= WORKERS // 2

    def teardown(self) -> None:
        """Once all is well again, whatever is due gets done: each asset has its job, or a reason to have none."""
        if not hasattr(self, "store"):
            return
        assert self.store
        try:
            self.kill(is_taken=False)
            self.outage, self.is_held, self.sandbox.refuse_jobs = None, False, None
            self.sandbox.read_lag, self.sandbox.pages = 0.0, lambda url, objects: objects
            self.poison.clear()
            self.run_for(MIN_AGE + 1)  # or the reconciler would look for the latest assets in its next round only
            self.start()
            for _ in range(3):
                self.run_for(DOUBT + ABSENCE + 60)
                for row in self.rows("status IN ('awaiting_proxy', 'ready')"):  # the next may be a day away
                    self.changes.retry([(row["object_id"], row["job"])])
            self.run_for(2 * RETRY_DELAY + 60)  # what a person writes is seen at the next poll
            self.no_call_was_wrong()
            self.every_item_has_a_status_for_a_reason()
            self.no_job_is_started_twice_but_for_those_that_failed()
            for asset_id in ASSETS:
                self.assert_done(asset_id)
        finally:
            self.simulation.kill()
            self.store.close()
            self.sandbox.server.close()
            self.folder.cleanup()

    def assert_done(self, asset_id: str) -> None:
        items = self.items(asset_id)
        is_closed = any(proxy["status"] == "CLOSED" for proxy in self.sandbox.proxies.get(asset_id, []))
        statuses = {item["status"] for item in items}
        if asset_id not in self.sandbox.assets:
            assert not items
        elif not items:
            assert self.store
            state = {row["key"]: row["value"] for row in self.store.database.run("SELECT * FROM state")}
            raise AssertionError(f"the reconciler has not found it: {self.sandbox.assets[asset_id]}, {state}")
        else:
            assert len(items) == len(self.jobs)
            assert statuses <= (
                {"submitted", "done", "skipped", "failed"} if is_closed else {"awaiting_proxy", "skipped"}
            )


TestPromise = Promise.TestCase
TestPromise.settings = settings(
    max_examples=6, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.long
class TestPromiseAtLength(Promise.TestCase):  # type: ignore[misc,valid-type]
    settings = settings(max_examples=70, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck))
