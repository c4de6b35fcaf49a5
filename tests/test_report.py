"""The report's sums equal the stand-in's counts, whatever happens: chance, trouble, death and people."""

import json as json_module
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from circuit_breaker import CircuitBreaker
from commands.changes import ManualChanges
from commands.report import lines
from config import load
from faulty_iconik import FaultyIconik
from iconik_client import IconikClient
from jobs import JOBS
from limits import Limits
from reconciliation.reconciler import Reconciler
from store import Rules, Store
from submitter import Submitter
from support import Clock, ManualRuntime, write_config
from system.transport import Answer, NotConnected, TransportError

HOUR, DAY = 3600.0, 24 * 3600.0
TITLES = ("a.mov", "a.jpg", "a.wav", "a.pdf")
TROUBLES = ("", "503", "402", "no connection", "lost", "taken", "killed before", "killed after")


class Killed(BaseException):
    """The process ends in the middle of a request."""


class Direct:
    """iconik without the HTTP between, in the place of the transport. Only the starting of jobs meets trouble."""

    def __init__(self, iconik: FaultyIconik) -> None:
        self.iconik = iconik
        self.trouble = ""
        self.sent = 0
        self.ours: list[tuple[str, str]] = []  # the kind and the asset of each job that we started

    def longest_call(self) -> float:
        return 0.0

    def send(self, method: str, path: str, *, query: Mapping[str, str] | None = None, json: Any = None) -> Answer:
        self.sent += 1
        is_start = method == "POST" and "/search/" not in path
        trouble = self.trouble if is_start else ""
        if trouble in ("503", "402"):
            return Answer(int(trouble), "", {}, b'{"errors": ["Not now"]}')
        if trouble == "no connection":
            raise NotConnected("refused")
        if trouble == "lost":
            raise TransportError("no answer")
        if trouble == "killed before":
            raise Killed
        before = len(self.iconik.started)
        credentials = (self.iconik.app_id, self.iconik.auth_token)
        url = f"{path}?{urlencode(query or {})}"
        status, content = self.iconik.answer(method, url, credentials, json_module.dumps(json or {}).encode())
        self.ours += self.iconik.started[before:]
        if trouble == "killed after":
            raise Killed
        if trouble == "taken":
            raise TransportError("no answer")
        return Answer(status, "", {}, b"" if content is None else json_module.dumps(content).encode())


class World:
    """A listener without threads, the stand-in, and a person, on one clock."""

    def __init__(self, folder: Path, jobs: list[str]) -> None:
        self.clock = Clock()
        self.iconik = FaultyIconik(clock=self.clock)  # its server does not run
        self.direct = Direct(self.iconik)
        self.config = load(write_config(folder, submitter__jobs=" ".join(jobs), submitter__workers=1))
        self.store = Store(folder / "items.db", Rules.of(self.config), listener=True, clock=self.clock)
        self.store.database.run("PRAGMA synchronous = OFF")
        self.changes = ManualChanges(self.store)
        self.theirs: set[tuple[str, str]] = set()  # what others have started
        self.start()

    def start(self) -> None:
        runtime = ManualRuntime(self.clock)
        client = IconikClient(self.config.iconik, sender=self.direct, runtime=runtime)
        breaker = CircuitBreaker(self.config.submitter, runtime)
        self.submitter = Submitter(self.store, client, breaker, self.config, runtime=runtime)
        self.reconciler = Reconciler(self.store, client, breaker, self.submitter, self.config, runtime=runtime)
        self.store.recover()

    def work(self, looks: int = 40) -> None:
        try:
            while looks and self.submitter.work_once() == 0:
                looks -= 1
        except Killed:
            self.direct.trouble = ""
            self.start()

    def rows(self, where: str) -> list[dict[str, Any]]:
        return [dict(row) for row in self.store.database.run(f"SELECT * FROM items WHERE {where}")]

    def choose(self, data: st.DataObject, where: str) -> list[tuple[str, str]]:
        """One of the items of which that is so; none if there is none."""
        keys = [(row["object_id"], row["job"]) for row in self.rows(f"{where} ORDER BY created_at, object_id, job")]
        return [keys[data.draw(st.integers(0, len(keys) - 1))]] if keys else []

    # What happens

    def an_upload(self, data: st.DataObject) -> None:
        asset_id = self.iconik.create_asset(data.draw(st.sampled_from(TITLES)), send=False)
        self.clock.advance(0.01)
        self.store.add_asset(asset_id, "a")
        self.store.proxy_closed(asset_id, self.iconik.assets[asset_id]["versions"][0]["id"])

    def work_in_trouble(self, data: st.DataObject) -> None:
        self.direct.trouble = data.draw(st.sampled_from(TROUBLES))
        self.work(data.draw(st.sampled_from([1, 3, 40])))

    def time_passes(self, data: st.DataObject) -> None:
        self.clock.advance(data.draw(st.sampled_from([20.0, 100.0, 400.0, HOUR, DAY])))
        self.work()

    def a_restart(self, data: st.DataObject) -> None:
        self.start()

    def others_start_a_job(self, data: st.DataObject) -> None:
        for asset_id, job in self.choose(data, "status = 'ready' AND attempts = 0 AND asked = 0"):
            if JOBS[job].serves(self.iconik.media[asset_id][0]) and (job, asset_id) not in self.theirs:
                self.theirs.add((job, asset_id))
                self.iconik.start_job(asset_id, job)

    def a_job_ends(self, data: st.DataObject) -> None:
        running = [one for one, job in self.iconik.job_details.items() if job["status"] == "READY"]
        if running:
            job_id = data.draw(st.sampled_from(running))
            job = self.iconik.job_details[job_id]
            if (job["kind"], job["object_id"]) in self.theirs or data.draw(st.booleans()):
                self.iconik.finish_job(job_id)
            else:
                self.iconik.fail_job(job_id)

    def a_look(self, data: st.DataObject) -> None:
        self.reconciler.reconcile()

    def a_person_retries(self, data: st.DataObject) -> None:
        self.changes.retry(self.choose(data, "status IN ('failed', 'skipped', 'ready')"))

    def a_person_wants_it_again(self, data: st.DataObject) -> None:
        keys = self.choose(data, "status IN ('done', 'failed')")
        self.changes.again([(asset_id, job) for asset_id, job in keys if (job, asset_id) not in self.theirs])

    def a_person_skips(self, data: st.DataObject) -> None:
        self.changes.skip(self.choose(data, "status IN ('ready', 'failed')"))

    def the_limit_changes(self, data: st.DataObject) -> None:
        self.store.rules = Rules(jobs=self.store.rules.jobs, max_per_day=data.draw(st.sampled_from([0, 2, 5, 50])))

    def a_person_pauses_and_resumes(self, data: st.DataObject) -> None:
        limits = Limits(self.store)
        limits.pause("ada", "")
        before = self.direct.sent
        self.work()
        assert self.direct.sent == before
        limits.resume()

    def all_is_well_again(self) -> None:
        """Everything is tried until it is settled, and all jobs end."""
        self.direct.trouble = ""
        self.store.rules = Rules(jobs=self.store.rules.jobs)
        for _ in range(12):
            self.changes.retry([(row["object_id"], row["job"]) for row in self.rows("status IN ('failed', 'ready')")])
            self.changes.retry(
                [
                    (row["object_id"], row["job"])
                    for row in self.rows("status = 'skipped' AND reason = 'skipped by a person'")
                ]
            )
            self.clock.advance(400)
            self.work(1000)
            if not self.rows("status NOT IN ('submitted', 'done', 'skipped')"):
                break
        assert self.rows("status NOT IN ('submitted', 'done', 'skipped')") == []
        self.iconik.finish_all()
        self.clock.advance(HOUR)
        self.reconciler.reconcile()


STEPS = (
    World.an_upload,
    World.an_upload,
    World.work_in_trouble,
    World.work_in_trouble,
    World.time_passes,
    World.a_restart,
    World.others_start_a_job,
    World.a_job_ends,
    World.a_look,
    World.a_person_retries,
    World.a_person_wants_it_again,
    World.a_person_skips,
    World.the_limit_changes,
    World.a_person_pauses_and_resumes,
)


anything = given(
    data=st.data(),
    jobs=st.lists(st.sampled_from(list(JOBS)), min_size=1, unique=True),
    steps=st.lists(st.sampled_from(STEPS), min_size=10, max_size=40),
)


@pytest.mark.long
@anything
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_reports_sums_are_the_stand_ins_counts(data: st.DataObject, jobs: list[str], steps: list[Any]) -> None:
    check_sums(data, jobs, steps)


@pytest.mark.long
@anything
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_reports_sums_are_right_at_length(data: st.DataObject, jobs: list[str], steps: list[Any]) -> None:
    check_sums(data, jobs, steps)


def check_sums(data: st.DataObject, jobs: list[str], steps: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder), jobs)
        try:
            for step in steps:
                step(world, data)
                check_bounds(world)
            world.all_is_well_again()
            assert reported(world) == counted(world)
        finally:
            world.store.close()
            world.iconik.server.close()


def check_bounds(world: World) -> None:
    """At any time, no more is reported than was started and is in doubt: what was refused is given back."""
    for job, counts in reported(world).items():
        ours = sum(kind == job for kind, _ in world.direct.ours)
        assert ours <= counts["started"] <= ours + len(world.rows(f"job = '{job}' AND in_doubt_since IS NOT NULL"))


def reported(world: World) -> dict[str, Counter[str]]:
    """What the report says, by job."""
    found: dict[str, Counter[str]] = {job: Counter() for job in world.store.rules.jobs}
    for line in lines(world.store, "2000-01-01", "2100-01-01"):
        found[line.job].update(
            started=line.started,
            found=line.found,
            done=line.done,
            failed=line.failed,
            open=line.under_way,
            images=line.images,
            video_minutes=round(line.video_hours * 60),
            audio_minutes=round(line.audio_hours * 60),
        )
    return {job: +counts for job, counts in found.items()}


def counted(world: World) -> dict[str, Counter[str]]:
    """What the stand-in has counted. Of a job that was done again, only the latest run is in the units."""
    found: dict[str, Counter[str]] = {job: Counter() for job in world.store.rules.jobs}
    for job, _ in world.direct.ours:
        found[job]["started"] += 1
    latest = {(job["kind"], job["object_id"]): job["status"] for job in world.iconik.job_details.values()}
    for job, asset_id in set(world.direct.ours):
        media_type, milliseconds = world.iconik.media[asset_id]
        found[job]["failed" if latest[job, asset_id] == "FAILED" else "done"] += 1
        found[job]["images"] += media_type == "image"
        if media_type in ("video", "audio"):
            found[job][f"{media_type}_minutes"] += milliseconds // 60_000
    for job, _ in world.theirs:
        found[job]["found"] += 1
    return {job: +counts for job, counts in found.items()}
