"""Days of trouble at iconik on a simulated clock: the real workers, breaker, client and store, an iconik of ours."""

import json
import logging
import random
import re
import statistics
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from circuit_breaker import CircuitBreaker
from config import Config, load
from iconik_client import IconikClient
from simulation import HANGING, HTML, LATENCY, OUTAGES, Reply, SimulatedRuntime, Simulation
from store import ADD_ASSET, Rules, Source, Store
from submitter import Submitter
from support import rows, write_config
from system.text import format_utc
from system.transport import Answer, TransportError

pytestmark = pytest.mark.long

MINUTE, HOUR, DAY = 60.0, 3600.0, 24 * 3600.0
# After iconik's return: an item's own backoff, or the wait for evidence about one in doubt, and what is under way then.
BACK = 900 + 3 * 30 + 300 + MINUTE
Decide = Callable[[str, str], "Reply | None"]


class Iconik:
    """iconik, in the place of the HTTP transport. `trouble` decides about each request."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self.trouble: Decide = lambda method, asset_id: None
        self.requests: list[tuple[float, str, str]] = []  # when, method, asset
        self.polls = 0
        self.jobs: dict[str, list[float]] = {}  # when each asset's were taken

    def longest_call(self) -> float:
        return 0.0

    def send(self, method: str, path: str, *, query: Mapping[str, str] | None = None, json: object = None) -> Answer:
        if "/jobs/" in path:
            return self._list_jobs((query or {})["object_id"])
        if "/search/" in path:  # after a refusal: what media type is the asset of?
            self._simulation.sleep(LATENCY)
            [asset_id] = re.findall("[a-z0-9]+-[0-9]{6}", str(json))
            return _json_answer(200, {"objects": [{"id": asset_id, "media_type": "video"}], "total": 1})
        if "/proxies/" in path:
            self.polls += 1
            self._simulation.sleep(LATENCY)
            return _json_answer(200, {"objects": []})
        asset_id = path.split("/assets/")[1].split("/")[0] if method == "POST" else path.rstrip("/").split("/")[-1]
        self.requests.append((self._simulation.now, method, asset_id))
        reply = self.trouble(method, asset_id)
        self._simulation.sleep(reply.seconds if reply else LATENCY)
        if reply is None or reply.after_work:
            done = self._do(method, asset_id)
        if reply is None:
            return done
        if reply.status is None:
            raise TransportError("no answer")
        return Answer(reply.status, "", reply.headers, reply.body)

    def _list_jobs(self, asset_id: str) -> Answer:
        reply = self.trouble("GET", asset_id)
        self._simulation.sleep(reply.seconds if reply else LATENCY)
        if reply and reply.status is None:
            raise TransportError("no answer")
        if reply:
            return Answer(reply.status or 0, "", reply.headers, reply.body)
        taken = self.jobs.get(asset_id, [])
        jobs = [{"id": "j", "object_id": asset_id, "status": "STARTED", "date_created": format_utc(at)} for at in taken]
        return _json_answer(200, {"objects": jobs, "pages": 1})

    def _do(self, method: str, asset_id: str) -> Answer:
        if method == "POST":
            self.jobs.setdefault(asset_id, []).append(self._simulation.now)
            return _json_answer(201, {"id": f"job of {asset_id}"})
        analyze_status = "IN_PROGRESS" if asset_id in self.jobs else "N/A"
        return _json_answer(
            200, {"id": asset_id, "type": "ASSET", "status": "ACTIVE", "analyze_status": analyze_status}
        )


def _json_answer(status: int, content: dict[str, Any]) -> Answer:
    return Answer(status, "", {}, json.dumps(content).encode())


class Day:
    """A listener with default delays and four workers, and its iconik, on a simulated clock."""

    def __init__(self, folder: Path) -> None:
        self.simulation = Simulation()
        self.iconik = Iconik(self.simulation)
        self.config: Config = load(write_config(folder))
        self.store = Store(folder / "items.db", Rules.of(self.config), listener=True, clock=self.simulation)
        self.store.database.run("PRAGMA synchronous = OFF")
        runtime = SimulatedRuntime(self.simulation)
        client = IconikClient(self.config.iconik, sender=self.iconik, runtime=runtime)
        self.breaker = CircuitBreaker(self.config.submitter, runtime)
        self.submitter = Submitter(self.store, client, self.breaker, self.config, runtime=runtime)
        self.ready_at: dict[str, float] = {}
        self._database = folder / "items.db"
        self.submitter.start()

    def end(self) -> None:
        self.simulation.kill()
        self.store.close()

    def upload(self, name: str = "good") -> str:
        """An asset and its proxy: both webhooks come."""
        asset_id = f"{name}-{len(self.ready_at):06}"
        self.store.add_asset(asset_id, None)
        self.store.proxy_closed(asset_id)
        self.ready_at[asset_id] = self.simulation.now
        self.submitter.wake()
        return asset_id

    def upload_each(self, seconds: float, until: float, name: str = "good") -> None:
        """Begin to upload an asset each so many seconds, for as long."""
        end = self.simulation.now + until

        def upload() -> None:
            while self.simulation.now < end:
                self.upload(name)
                self.simulation.sleep(seconds)

        self.simulation.spawn(upload)

    def run_until(self, condition: Callable[[], bool], at_most: float) -> float:
        """Let time pass until that holds. Returns how long it took."""
        start = self.simulation.now
        while not condition():
            self.simulation.run_for(0.5)
            assert self.simulation.now - start <= at_most
        return self.simulation.now - start

    def waits(self, name: str = "good", since: float = 0) -> list[float]:
        """Seconds from each such asset's proxy to its job; until now if there is none."""
        return [
            self.iconik.jobs.get(asset_id, [self.simulation.now])[0] - ready_at
            for asset_id, ready_at in self.ready_at.items()
            if asset_id.startswith(name) and ready_at >= since
        ]

    def rows(self, where: str = "1") -> list[Any]:
        return rows(self._database, where)

    def assert_all_analyzed_once(self, name: str = "good") -> None:
        assets = {asset_id for asset_id in self.ready_at if asset_id.startswith(name)}
        assert self.rows(f"object_id LIKE '{name}%' AND status NOT IN ('submitted', 'done')") == []
        assert {asset_id for asset_id in self.iconik.jobs if asset_id.startswith(name)} == assets
        assert all(len(jobs) == 1 for jobs in self.iconik.jobs.values())


@pytest.fixture
def day(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Day]:
    caplog.set_level(logging.CRITICAL, "iconik_listener")  # a day of trouble has many lines
    day = Day(tmp_path)
    yield day
    day.end()


def failing(
    share: float, methods: Iterable[str] = ("GET", "POST"), reply: Reply = OUTAGES["503"], *, seed: int = 1
) -> Decide:
    """That share of the calls meets trouble, by a chance that is the same in every run."""
    chance = random.Random(seed)
    return lambda method, asset_id: reply if method in methods and chance.random() < share else None


def troubled(replies: dict[str, Reply], methods: Iterable[str] = ("GET", "POST")) -> Decide:
    """The assets of those names always meet their trouble."""
    return lambda method, asset_id: replies.get(asset_id.split("-")[0]) if method in methods else None


def percentile_95(waits: list[float]) -> float:
    return statistics.quantiles(waits, n=20)[-1]


# An iconik that fails by chance


@pytest.mark.parametrize("share", [0, 0.01, 0.05, 0.2, 0.5, 1])
def test_a_day_of_an_iconik_that_fails_a_share_of_all_calls_and_comes_back(day: Day, share: float) -> None:
    day.iconik.trouble = failing(share)
    day.upload_each(60, until=DAY)
    day.simulation.run_for(DAY)
    if share <= 0.2:
        assert statistics.median(day.waits()) <= 3 * LATENCY
        assert percentile_95(day.waits()) < MINUTE
    if share <= 0.5:
        assert statistics.median(day.waits()) < 5 * MINUTE
    day.iconik.trouble = failing(0)
    day.run_until(lambda: day.breaker.opened_at is None, at_most=BACK)
    day.simulation.run_for(HOUR)
    day.assert_all_analyzed_once()


# At a half it matters when chance opens the breaker.
@pytest.mark.parametrize(
    ("share", "least", "seed"),
    [(0.01, 0.98, 1), (0.05, 0.94, 1), (0.2, 0.79, 1), (0.5, 0.45, 1), (0.5, 0.45, 2), (0.7, 0.15, 1), (0.8, 0.04, 1)],
)
def test_while_a_backlog_lasts_a_share_of_refusals_costs_little_more_than_itself(
    day: Day, share: float, least: float, seed: int
) -> None:
    seconds, workers = 10 * MINUTE, 4
    at_best = workers * seconds / (2 * LATENCY)  # a look and a POST for each job
    for _ in range(int(at_best)):
        day.upload()
    day.iconik.trouble = failing(share, ["POST"], seed=seed)
    day.simulation.run_for(seconds)
    assert len(day.iconik.jobs) >= least * at_best


# Poisonous assets


def test_300_forbidden_assets_in_front_of_a_good_one_a_minute(day: Day) -> None:
    day.iconik.trouble = troubled({"forbidden": OUTAGES["403"]})
    for _ in range(300):
        day.upload("forbidden")
    day.upload_each(MINUTE, until=DAY)
    day.simulation.run_for(HOUR)
    assert statistics.median(day.waits()) < 2 * MINUTE
    day.simulation.run_for(DAY)
    assert statistics.median(day.waits()) < 2 * MINUTE
    day.assert_all_analyzed_once()
    assert len(day.rows("status = 'ready'")) == 300


POISON = {"504": Reply(504, HTML, seconds=1), "403": OUTAGES["403"], "500": OUTAGES["500"], "hanging": HANGING}


@pytest.mark.parametrize("methods", [("GET", "POST"), ("POST",)], ids=["every call", "analyze only"])
def test_poisonous_assets_are_attempted_ten_times_in_their_first_hour_and_delay_no_other(
    day: Day, methods: tuple[str, ...]
) -> None:
    day.iconik.trouble = troubled(POISON, methods)
    bad = [day.upload(name) for name in POISON]
    day.upload_each(5, until=HOUR)
    day.simulation.run_for(HOUR)
    attempts = [asset_id for _, method, asset_id in day.iconik.requests if method == "GET"]
    assert all(3 <= attempts.count(asset_id) <= 24 for asset_id in bad)
    assert percentile_95(day.waits()) < 1.2 * 2 * LATENCY
    day.assert_all_analyzed_once()
    assert len(day.rows("status = 'ready'")) == len(POISON)


# Outages of a day


def begin_outage(day: Day, reply: Reply, methods: Iterable[str], waiting: int) -> None:
    """After a good hour, iconik answers that; `waiting` assets come in the first minutes of it."""
    day.upload_each(MINUTE, until=HOUR)
    day.simulation.run_for(HOUR)
    day.iconik.trouble = failing(1, methods, reply)
    day.upload_each(10, until=10 * waiting)


def most_requests_in_a_minute(day: Day, since: float) -> int:
    """In whichever minute it is that begins then or later."""
    times = [at for at, _, _ in day.iconik.requests if at >= since]
    return max(bisect_left(times, at + MINUTE) - index for index, at in enumerate(times))


EVERY_CALL, ANALYZE_ONLY = ("GET", "POST"), ("POST",)
DAYS_OF_OUTAGE: list[tuple[str, int, tuple[str, ...]]] = [(kind, 0, EVERY_CALL) for kind in OUTAGES]
# What hangs may have begun at any moment before iconik's return.
DAYS_OF_OUTAGE += [("no answer", 20, EVERY_CALL), ("no answer", 40, ANALYZE_ONLY)]
DAYS_OF_OUTAGE += [("429", 0, ANALYZE_ONLY), ("503", 0, ANALYZE_ONLY)]


@pytest.mark.parametrize(("kind", "more", "methods"), DAYS_OF_OUTAGE)
def test_an_outage_of_24_hours_costs_no_item_and_hardly_a_request_and_ends_with_iconiks_return(
    day: Day, kind: str, more: float, methods: tuple[str, ...]
) -> None:
    begin_outage(day, OUTAGES[kind], methods, waiting=30)
    is_refusal = kind == "403"  # with iconik's own errors: a sign of life, which never opens the breaker
    if not is_refusal:
        day.run_until(lambda: day.breaker.is_open, at_most=10 * MINUTE)
    opened_at = day.simulation.now
    day.simulation.run_for(DAY + more)
    assert is_refusal or day.breaker.opened_at is not None
    assert most_requests_in_a_minute(day, opened_at + 5 * MINUTE) <= 45
    assert len(day.rows("status IN ('ready', 'submitting')")) == 30
    day.iconik.trouble = failing(0)
    day.run_until(lambda: day.breaker.opened_at is None, at_most=BACK)
    day.simulation.run_for(HOUR)
    day.assert_all_analyzed_once()


@pytest.mark.parametrize("kind", OUTAGES)
def test_with_few_items_waiting_the_first_is_through_within_max_retry_delay(day: Day, kind: str) -> None:
    begin_outage(day, OUTAGES[kind], ["GET", "POST"], waiting=3)
    day.simulation.run_for(10 * MINUTE)
    started_at = day.simulation.now
    day.simulation.run_for(4 * HOUR)
    assert most_requests_in_a_minute(day, started_at) <= 24
    before = len(day.iconik.jobs)
    day.iconik.trouble = failing(0)
    under_way = OUTAGES[kind].seconds  # a call may have begun just before iconik's return
    day.run_until(lambda: len(day.iconik.jobs) > before, at_most=BACK + under_way)
    day.simulation.run_for(HOUR)
    day.assert_all_analyzed_once()


@pytest.mark.parametrize("kind", ["500", "503", "408", "a maintenance page", "no answer"])
def test_an_outage_that_takes_the_jobs_without_saying_so_doubles_none(day: Day, kind: str) -> None:
    begin_outage(day, replace(OUTAGES[kind], after_work=True), ["POST"], waiting=30)
    day.simulation.run_for(2 * HOUR)
    day.iconik.trouble = failing(0)
    day.simulation.run_for(2 * HOUR)
    day.assert_all_analyzed_once()


# Polls


def wait_of_a_retry(day: Day) -> float:
    """How long an asset waits whose first request is answered 503."""
    day.iconik.trouble = failing(1)
    asset_id = day.upload("unlucky")
    day.run_until(lambda: bool(day.rows("last_attempt_at IS NOT NULL")), at_most=MINUTE)
    day.iconik.trouble = failing(0)
    day.run_until(lambda: asset_id in day.iconik.jobs, at_most=HOUR)
    return day.iconik.jobs[asset_id][0] - day.ready_at[asset_id]


def test_with_6000_polls_due_a_retry_waits_no_longer_than_without(day: Day) -> None:
    """R3: as after a catch-up."""
    with day.store.database.transaction() as db:
        for number in range(6000):
            db.execute(ADD_ASSET, day.store.asset_values(f"polled-{number:06}", None, Source.CATCH_UP))
    wait = wait_of_a_retry(day)
    longest = 1.2 * day.config.submitter.retry_delay  # the backoff, and what chance adds
    assert wait <= longest + 4 * LATENCY  # the two requests, the one that failed, and the poll under way
    assert 100 < day.iconik.polls < 5000
    day.upload("new")
    day.simulation.run_for(1)
    assert max(day.waits("new")) <= 3 * LATENCY
