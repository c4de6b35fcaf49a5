"""Trouble that lasts for hours or days: nothing is given up early, waits for ever, or is tried without end."""

import math
from collections.abc import Callable

import pytest

from commands.changes import ManualChanges
from faulty_iconik import Fault
from reconciliation.catalog import FoundAsset
from reconciliation.changes import ReconciledChanges
from store import Source, Status
from support import ASSET, new_id
from world import World

HOUR, DAY = 3600.0, 86400.0
ANALYZE = "POST /API/transcode/v1/analyze/"
PAUSE = '{"since": "2026-11-20T00:00:00.000Z", "by": "ann", "reason": ""}'


def trouble(path: str, status: int, error: str = "Sorry") -> Fault:
    body = b'{"errors": ["%s"]}' % error.encode() if status < 500 else b""
    return Fault(path, status, body=body, times=math.inf)


def go_on(world: World, seconds: float, *, until: Callable[[], bool] = lambda: False) -> float:
    """Let time pass, in which an asset is uploaded, and accepted, every five minutes. Returns how much did."""
    begin = world.clock.monotonic
    while world.clock.monotonic - begin < seconds and not until():
        world.ready(new_id())
        world.work()
        world.clock.advance(300)
    return world.clock.monotonic - begin


def catch_up(world: World, *asset_ids: str) -> None:
    found = [FoundAsset(asset_id, "archive.mov", "2020-01-01", None, None, {}) for asset_id in asset_ids]
    ReconciledChanges(world.store).add_assets(found, Source.CATCH_UP, {})


# Polls


@pytest.mark.parametrize(("path", "status"), [("/proxies/", 503), ("", 401)])
def test_a_poll_that_fails_is_no_longer_a_delay_than_it_was(world: World, path: str, status: int) -> None:
    """The asset's webhook is lost, and its proxy is there an hour after the outage."""
    world.sandbox.create_asset("a.mov", ASSET, send=False)
    world.store.add_asset(ASSET, "a.mov")
    world.sandbox.faults.append(trouble(path, status))
    world.work_for(6 * HOUR, 30)
    world.sandbox.faults.clear()
    assert world.row()["waited"] < 7 * HOUR
    world.work_for(HOUR, 30)
    world.sandbox.set_proxy(ASSET, send=False)
    world.work_for(8 * HOUR, 30)
    assert world.sandbox.jobs == [ASSET]


def test_an_asset_whose_polls_always_fail_is_polled_for_7_days(world: World) -> None:
    world.sandbox.create_asset("a.mov", ASSET, send=False)
    world.store.add_asset(ASSET, "a.mov")
    world.sandbox.faults.append(trouble("/proxies/", 500))
    world.work_for(6.5 * DAY, 900)
    assert world.row()["next_attempt_at"] is not None
    world.work_for(DAY, 900)
    assert (world.row()["next_attempt_at"], world.status()) == (None, Status.AWAITING_PROXY)


def test_polls_that_fail_are_as_rare_as_the_longest_delay(worlds: Callable[..., World]) -> None:
    world = worlds(submitter__max_retry_delay=4 * HOUR)
    world.sandbox.create_asset("a.mov", ASSET, send=False)
    world.store.add_asset(ASSET, "a.mov")
    world.sandbox.faults.append(trouble("/proxies/", 503))
    world.work_for(12 * HOUR, 60)
    assert 3 <= world.requests("/proxies/") <= 5


# Refusals, while other assets are accepted


@pytest.mark.long
def test_an_asset_that_is_refused_is_given_up_after_7_days(world: World) -> None:
    asset_id = world.ready(new_id())
    world.sandbox.faults.append(trouble(f"{ANALYZE}assets/{asset_id}", 409, "The asset is locked"))
    passed = go_on(world, 9 * DAY, until=lambda: world.status(asset_id) == Status.FAILED)
    assert 6.5 * DAY < passed < 8.5 * DAY


def test_an_asset_that_is_not_found_is_deleted_after_a_day(world: World) -> None:
    asset_id = world.ready(new_id())
    world.sandbox.faults.append(trouble(f"GET /API/assets/v1/assets/{asset_id}", 404, "Asset does not exist"))
    passed = go_on(world, 4 * DAY, until=lambda: world.status(asset_id) == Status.SKIPPED)
    assert DAY < passed < 3 * DAY
    assert "deleted" in world.row(asset_id)["error"]


def test_one_bad_file_costs_a_few_requests_a_day(world: World) -> None:
    asset_id = world.ready(new_id())
    world.sandbox.faults.append(trouble(f"{ANALYZE}assets/{asset_id}", 409, "The asset is locked"))
    go_on(world, DAY)
    before = world.requests(f"{ANALYZE}assets/{asset_id}")
    go_on(world, DAY)
    assert 1 <= world.requests(f"{ANALYZE}assets/{asset_id}") - before <= 8


def test_credits_that_are_bought_one_by_one_make_nothing_fail(world: World) -> None:
    """Each acceptance makes all that was refused in those words due, and each of them is refused once more."""
    for _ in range(20):
        world.ready(new_id())
    world.sandbox.faults.append(trouble(ANALYZE, 402, "Insufficient credits"))
    for _ in range(16):
        world.work_for(HOUR, 300)
        world.sandbox.faults.insert(0, Fault(ANALYZE, status=None))
    [row] = world.store.database.run(
        "SELECT count(*) AS items, max(waited) AS waited FROM items WHERE status = 'ready'"
    )
    assert row["items"] >= 3
    assert row["waited"] < 2 * DAY
    assert world.store.database.run("SELECT * FROM items WHERE status = 'failed'") == []


def test_after_the_search_was_behind_assets_wait_an_hour_at_most(worlds: Callable[..., World]) -> None:
    world = worlds(analyze__only="title:a.mov")
    world.ready()
    hidden = world.sandbox.assets.pop(ASSET)
    world.sandbox.faults.append(Fault("search/", 200, body=b'{"objects": [], "total": 0}', times=math.inf))
    world.sandbox.assets[ASSET] = hidden
    world.work_for(12 * HOUR, 300)
    world.sandbox.faults.clear()
    world.work_for(HOUR + 600, 60)
    assert world.status() == Status.SUBMITTED


# The end of jobs


def test_jobs_of_before_an_outage_of_any_length_end(world: World) -> None:
    world.reconcile()
    world.ready()
    world.work()
    world.sandbox.fail_job(world.sandbox.latest_job[ASSET])
    world.clock.advance(30 * DAY)
    world.restart()
    world.reconcile()
    assert world.status() == Status.FAILED


def test_a_job_without_an_end_is_not_asked_for_for_ever(world: World) -> None:
    world.ready()
    world.work()
    for _ in range(2):
        world.clock.advance(8 * DAY)
        world.reconcile()
    before = world.requests("/jobs/")
    world.reconcile()
    assert world.requests("/jobs/") == before
    assert world.status() == Status.SUBMITTED


def test_a_job_that_others_started_long_before_ends(world: World) -> None:
    world.store.set_state("paused", PAUSE)
    world.ready()
    world.sandbox.start_job(ASSET)
    world.clock.advance(2 * HOUR)
    world.store.set_state("paused", "")
    world.work()
    assert (world.status(), world.row()["counted_on"]) == (Status.SUBMITTED, None)
    world.sandbox.fail_job(world.sandbox.latest_job[ASSET])
    world.reconcile()
    assert world.status() == Status.FAILED


def test_under_a_limit_what_a_person_wants_done_again_goes_before_newer_uploads(worlds: Callable[..., World]) -> None:
    """Of which there may be more than the limit, every day."""
    world = worlds(limits__max_per_day=1)
    world.ready()
    world.work()
    world.sandbox.finish_all()
    world.reconcile()
    ManualChanges(world.store).again([(ASSET, "analyze")])
    for _ in range(3):
        world.clock.advance(60)
        world.ready(new_id())
    world.work_for(DAY, HOUR)
    assert world.sandbox.jobs == [ASSET, ASSET]


# What catch-up adds


def held(world: World) -> list[str]:
    """Two assets use the day up, and two more are held."""
    for _ in range(2):
        world.ready(new_id())
    world.work()
    return [world.ready(new_id()) for _ in range(2)]


@pytest.mark.parametrize("were_tried", [False, True])
def test_under_a_limit_uploads_go_before_what_catch_up_added_later(
    worlds: Callable[..., World], were_tried: bool
) -> None:
    world = worlds(limits__max_per_day=2)
    uploads = held(world)
    if were_tried:  # they are retries then, while what is caught up was never attempted
        world.store.database.run("UPDATE items SET last_attempt_at = next_attempt_at WHERE status = 'ready'")
    archive = [new_id() for _ in range(4)]
    for asset_id in archive:
        world.sandbox.create_asset("archive.mov", asset_id, send=False)
        world.sandbox.set_proxy(asset_id, send=False)
    world.clock.advance(HOUR)
    catch_up(world, *archive)
    world.work_for(600)
    assert {world.status(asset_id) for asset_id in archive} == {Status.READY}
    world.work_for(DAY, HOUR)
    assert {world.status(asset_id) for asset_id in uploads} == {Status.SUBMITTED}
    world.work_for(2 * DAY, HOUR)
    assert {world.status(asset_id) for asset_id in archive} == {Status.SUBMITTED}


def test_what_catch_up_added_and_was_refused_goes_after_uploads_and_before_the_rest(
    worlds: Callable[..., World],
) -> None:
    world = worlds(limits__max_per_day=2)
    held(world)
    world.store.database.run(
        "UPDATE items SET source = 'catch-up', last_attempt_at = :now WHERE status = 'ready'", now=world.store.now()
    )
    upload = world.ready(new_id())
    world.work_for(DAY, HOUR)
    assert world.status(upload) == Status.SUBMITTED
    assert len(world.store.database.run("SELECT * FROM items WHERE status = 'ready'")) == 1
    world.work_for(DAY, HOUR)
    assert world.store.database.run("SELECT * FROM items WHERE status = 'ready'") == []


@pytest.mark.parametrize("job", ["transcribe", "faces"])
def test_what_is_caught_up_gets_a_job_for_its_newest_version(worlds: Callable[..., World], job: str) -> None:
    world = worlds(submitter__jobs=job)
    world.sandbox.create_asset("archive.mov", ASSET, send=False)
    world.sandbox.set_proxy(ASSET, send=False)
    newest = world.sandbox.new_version(ASSET)
    world.sandbox.set_proxy(ASSET, send=False)
    catch_up(world, ASSET)
    world.work_for(60)
    assert world.row(job=job)["version_id"] == newest
    assert world.status(job=job) == Status.SUBMITTED


def test_what_is_caught_up_and_transcribed_already_is_not_transcribed_again(worlds: Callable[..., World]) -> None:
    world = worlds(submitter__jobs="transcribe")
    world.sandbox.create_asset("archive.mov", ASSET, send=False)
    world.sandbox.set_proxy(ASSET, send=False)
    world.sandbox.new_version(ASSET)
    world.sandbox.finish_job(world.sandbox.start_job(ASSET, "transcribe"))
    catch_up(world, ASSET)
    world.work_for(60)
    assert (world.status(job="transcribe"), len(world.sandbox.started)) == (Status.DONE, 1)


def test_a_person_may_skip_what_is_refused_for_days(world: World) -> None:
    world.ready()
    world.sandbox.faults.append(trouble(ANALYZE, 409, "The asset is locked"))
    world.work_for(2 * DAY, HOUR)
    ManualChanges(world.store).skip([(ASSET, "analyze")])
    world.sandbox.faults.clear()
    world.work_for(2 * DAY, HOUR)
    assert (world.status(), world.sandbox.jobs) == (Status.SKIPPED, [])
