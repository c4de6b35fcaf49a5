"""The promise under any order of events: chance and death at every step, with the real parts and a clock of ours."""

import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from app import create_app
from config import SubmitterConfig, SweepConfig
from iconik_client import IconikClient
from sandbox import Fault, Sandbox
from store import Item, Store, utc_text
from submitter import EARLY_SECONDS, Pauses, Submitter, Sweep
from support import Clock, create_event, proxy_event, rows

CONFIG = SubmitterConfig(workers=1, timeout=10, retry_delay=10, max_retry_delay=900)
LONGEST_DELAY = 3600.0  # iconik's longest Retry-After; ours are shorter
ASSETS = [f"00000000-0000-0000-0000-{number:012}" for number in range(3)]
PROXY_STATUSES = ["OPEN", "GROWING", "AWAITED", "CLOSED", "FAILED", "ARCHIVED", "MISSING", "REDISCOVERED", "DELETED"]
assets = st.sampled_from(ASSETS)
answers = st.one_of(
    st.just(None),  # success
    st.builds(
        Fault,
        status=st.sampled_from([201, 302, 400, 401, 403, 404, 408, 429, 500, 502, 503, 504, 520]),
        headers=st.sampled_from([{}, {"Retry-After": "120"}]),
        body=st.sampled_from([b"{}", b"<html>", b'{"errors": ["No"]}']),
        cut=st.booleans(),
        after_work=st.booleans(),
    ),
)


class Death(BaseException):
    """The process ends here."""


class Promise(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name, "items.db")
        self.clock = Clock()
        self.sandbox = Sandbox().__enter__()
        for asset_id in ASSETS:
            self.sandbox.create_asset("a.mov", asset_id)
        self.created: set[str] = set()  # their webhook was answered 200
        self.closed: dict[str, float] = {}  # the same, with the time
        self.refused: set[str] = set()  # iconik said no to them at least once, or broke down over them
        self.submitted: set[str] = set()
        self.store: Store | None = None
        self.start()

    def start(self) -> None:
        """A process begins."""
        if self.store:
            self.store.close()
        self.store = Store(self.path, listener=True, clock=self.clock)
        client = IconikClient(self.sandbox.url, self.sandbox.app_id, self.sandbox.auth_token)
        self.pauses = Pauses(CONFIG, self.clock)
        self.submitter = Submitter(self.store, client, self.pauses, CONFIG)
        self.sweep = Sweep(self.store, client, self.pauses, self.submitter, SweepConfig(3600, 600, 604800))
        self.web = create_app(self.store, self.submitter, self.pauses, "").test_client()
        self.claimed: list[tuple[Item, int]] = []
        self.store.recover(CONFIG.retry_delay)

    def row(self, asset_id: str) -> Any:
        return next(iter(rows(self.path, f"object_id = '{asset_id}'")), None)

    @rule(asset_id=assets)
    def create(self, asset_id: str) -> None:
        assert self.web.post("/create", json=create_event(asset_id)).status_code == 200
        self.created.add(asset_id)

    @rule(asset_id=assets, status=st.sampled_from(PROXY_STATUSES))
    def proxy_of_any_status(self, asset_id: str, status: str) -> None:
        self.sandbox.set_proxy(asset_id, status, send=False)
        assert self.web.post("/proxy", json=proxy_event(asset_id, status)).status_code == 200
        if status == "CLOSED":
            self.closed.setdefault(asset_id, self.clock.now)

    @rule(asset_id=assets)
    def proxy(self, asset_id: str) -> None:
        self.proxy_of_any_status(asset_id, "CLOSED")

    @rule(asset_id=assets)
    def proxy_whose_webhook_is_lost(self, asset_id: str) -> None:
        self.sandbox.set_proxy(asset_id, "CLOSED", send=False)

    @rule(asset_id=assets, in_order=st.booleans())
    def upload(self, asset_id: str, in_order: bool) -> None:
        for webhook in (self.create, self.proxy) if in_order else (self.proxy, self.create):
            webhook(asset_id)

    @rule(seconds=st.sampled_from([0.001, 1, 10, 100, 1000, 4000, EARLY_SECONDS]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    def is_open(self) -> bool:
        return not self.pauses._probing and (not self.pauses.paused or self.pauses._until <= self.clock.now)

    @precondition(is_open)
    @rule()
    def claim(self) -> None:
        assert self.store
        turn = self.pauses.enter()
        assert turn is not None
        item = self.store.claim()
        if item:
            self.claimed.append((item, turn))
        else:
            self.pauses.leave(turn)

    @precondition(lambda self: not self.claimed)
    @rule(data=st.data(), answer=answers, to_asking=st.booleans(), death=st.booleans())
    def attempt_whatever_there_is(
        self, data: st.DataObject, answer: Fault | None, to_asking: bool, death: bool
    ) -> None:
        """What leads deepest, as one step: time passes, an item is claimed, and its request answered."""
        self.clock.now += LONGEST_DELAY
        if self.is_open():
            self.claim()
        if self.claimed:
            self.attempt(data, answer, to_asking, death)

    @precondition(lambda self: self.claimed)
    @rule(data=st.data(), answer=answers, to_asking=st.booleans(), death=st.booleans())
    def attempt(self, data: st.DataObject, answer: Fault | None, to_asking: bool, death: bool) -> None:
        """One of the requests under way is answered; the process may end before the outcome is written."""
        item, turn = data.draw(st.sampled_from(self.claimed))
        self.claimed.remove((item, turn))
        if answer:
            # A proxy that answers 2xx for iconik although iconik did not work is beyond what can be promised.
            answer.after_work = answer.after_work or answer.status == 201
            answer.match = "GET" if to_asking else "POST"
            if not answer.cut and answer.status in (400, 404, 500, 520):
                self.refused.add(item.object_id)
            self.sandbox.faults.append(answer)
        try:
            with mock.patch.object(self.submitter, "_record", side_effect=Death) if death else mock.MagicMock():
                self.submitter._submit(item, turn)
        except Death:
            self.start()
        self.sandbox.faults.clear()

    @rule()
    def process_ends_and_starts(self) -> None:
        self.start()

    @precondition(is_open)
    @rule(answer=answers)
    def look_for_missed_proxies(self, answer: Fault | None) -> None:
        self.sandbox.faults += [answer] if answer else []
        # One item a sweep is enough here: the next would wait for a pause that may have begun.
        item = self.store.next_pending(600, 604800) if self.store else None
        if item:
            self.sweep._ask(item.object_id)
        self.sandbox.faults.clear()

    @rule()
    def early_items_are_cleared(self) -> None:
        assert self.store
        self.store.delete_early(EARLY_SECONDS)

    @invariant()
    def no_acknowledged_asset_is_forgotten(self) -> None:
        for asset_id in self.created:
            assert self.row(asset_id)["status"] != "early"
        for asset_id, since in self.closed.items():
            if self.row(asset_id) is None:
                assert asset_id not in self.created
                assert self.clock.now - since > EARLY_SECONDS

    @invariant()
    def no_asset_gets_two_jobs(self) -> None:
        assert len(self.sandbox.jobs) == len(set(self.sandbox.jobs))

    @invariant()
    def nothing_is_analyzed_that_was_not_created_here(self) -> None:
        assert set(self.sandbox.jobs) <= self.created

    @invariant()
    def every_item_that_is_not_final_has_something_that_moves_it_on(self) -> None:
        for row in rows(self.path):
            object_id, status = row["object_id"], row["status"]
            if status == "ready":
                assert row["next_attempt_at"] <= utc_text(self.clock.now + LONGEST_DELAY)
            elif status == "submitting":
                assert object_id in [item.object_id for item, _ in self.claimed]
            elif status == "pending":
                closed = self.closed.get(object_id)
                assert closed is None or self.clock.now - closed > EARLY_SECONDS  # else it would be ready
            elif status == "failed":
                assert object_id in self.refused
            elif status == "submitted":
                assert object_id in self.sandbox.jobs
                self.submitted.add(object_id)

    @invariant()
    def what_is_submitted_stays_so(self) -> None:
        for asset_id in self.submitted:
            assert self.row(asset_id)["status"] == "submitted"

    def teardown(self) -> None:
        """Once all is well again, whatever is due gets done: each asset has its job, or iconik's refusal."""
        if not hasattr(self, "store"):
            return
        assert self.store
        self.start()
        for _ in range(4 * len(ASSETS)):
            self.clock.now += LONGEST_DELAY
            self.claim()
            for item, turn in self.claimed:
                self.submitter._submit(item, turn)
            self.claimed.clear()
        for asset_id in self.created & set(self.closed):
            row = self.row(asset_id)
            if row["status"] == "submitted":
                assert self.sandbox.jobs.count(asset_id) == 1
            elif row["status"] == "pending":  # the proxy's row was cleared before the create came: the sweep's case
                assert self.clock.now - self.closed[asset_id] > EARLY_SECONDS
            else:
                assert row["status"] == "failed"
        self.store.close()
        self.sandbox.__exit__()
        self.folder.cleanup()


TestPromise = Promise.TestCase
TestPromise.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.long
class TestPromiseAtLength(Promise.TestCase):  # type: ignore[misc,valid-type]
    settings = settings(
        max_examples=300, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
    )
