"""What a person asked for twice, took back, or asked for before a restore: each order is carried out once."""

import math
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from commands.changes import ManualChanges
from commands.report import lines
from faulty_iconik import Fault
from store import Status
from support import ASSET
from world import World

AGAIN_AFTER = 660.0  # seconds: a second order within ten minutes counts as a double click
NO_ANSWER = Fault("POST /API/transcode/v1/", cut=True, after_work=True)
PAUSE = '{"since": "2026-11-20T00:00:00.000Z", "by": "ann", "reason": ""}'


def key(world: World) -> tuple[str, str]:
    return ASSET, world.config.submitter.jobs[0]


def again(world: World) -> bool:
    [change] = ManualChanges(world.store).again([key(world)])
    return change.is_changed


def retry(world: World) -> None:
    ManualChanges(world.store).retry([key(world)])


def done(world: World) -> World:
    """A first run that iconik has finished."""
    world.ready()
    world.work()
    world.sandbox.finish_all()
    world.reconcile()
    assert world.status(job=key(world)[1]) == Status.DONE
    return world


def runs(world: World) -> int:
    return len(world.sandbox.started)


def back_up(world: World, to: Path) -> None:
    with closing(sqlite3.connect(world.folder / "items.db")) as db, closing(sqlite3.connect(to)) as backup:
        db.backup(backup)


def restore(world: World, backup: Path) -> None:
    world.store.close()
    for file in world.folder.glob("items.db*"):
        file.unlink()
    shutil.copy(backup, world.folder / "items.db")
    world.open()
    world.start()
    world.store.recover()


# Taken back.


def test_a_skip_takes_back_that_it_was_to_be_done_again(world: World) -> None:
    done(world)
    world.store.set_state("paused", PAUSE)
    assert again(world)
    ManualChanges(world.store).skip([key(world)])
    world.store.set_state("paused", "")
    world.clock.advance(30 * 24 * 3600)
    retry(world)
    world.work()
    assert (world.status(), runs(world)) == (Status.DONE, 1)


def test_a_retry_of_what_failed_before_it_was_done_again_does_it_again(world: World) -> None:
    done(world)
    assert again(world)
    world.store.database.run("UPDATE items SET status = 'failed'")
    retry(world)
    world.work()
    assert runs(world) == 2


def test_an_order_that_the_listener_skipped_is_still_one(worlds: Callable[..., World]) -> None:
    """jobs in config.ini was changed for a while."""
    world = done(worlds())
    world.store.set_state("paused", PAUSE)
    assert again(world)
    world.store.rules = replace(world.store.rules, jobs=("faces",))
    assert world.store.skip_other_jobs() == 1
    world.store.rules = replace(world.store.rules, jobs=("analyze",))
    world.store.set_state("paused", "")
    retry(world)
    world.work()
    assert runs(world) == 2


@pytest.mark.parametrize("between", ["retry", "skip"])
def test_neither_a_retry_nor_a_skip_is_the_first_click_of_two(world: World, between: str) -> None:
    done(world)
    if between == "retry":
        world.store.database.run("UPDATE items SET status = 'failed'")
        retry(world)
        world.work()
        assert world.status() == Status.DONE
    else:
        assert again(world)
        ManualChanges(world.store).skip([key(world)])
    assert again(world)
    world.work()
    assert runs(world) == 2


# A run that is not finished.


def test_a_run_that_is_not_finished_keeps_its_day_its_job_and_its_figures(world: World) -> None:
    world.ready()
    world.work()
    before = world.row()
    assert again(world)
    world.work()
    after = world.row()
    for column in ("status", "counted_on", "job_id", "submitted_at"):
        assert after[column] == before[column], column
    world.sandbox.finish_all()
    world.reconcile()
    [line] = lines(world.store, "2020-01-01", "2030-01-01")
    assert (line.started, line.done, line.found) == (1, 1, 0)
    assert line.video_hours > 0


def test_a_run_that_others_started_is_not_counted_as_ours(world: World) -> None:
    world.ready(analyze_status="IN_PROGRESS")
    world.work()
    assert again(world)
    world.work()
    assert (world.status(), world.row()["counted_on"], runs(world)) == (Status.SUBMITTED, None, 0)


def test_a_run_of_others_after_our_own_is_not_taken_for_ours(world: World) -> None:
    done(world)
    world.clock.advance(8 * 24 * 3600)
    theirs = world.sandbox.start_job(ASSET)
    world.clock.advance(60)
    assert again(world)
    world.work()
    assert (world.status(), world.row()["counted_on"], runs(world)) == (Status.SUBMITTED, None, 2)
    world.sandbox.fail_job(theirs)
    world.reconcile()
    assert world.status() == Status.FAILED


def test_a_run_of_others_stays_theirs_when_it_is_wanted_again_twice(world: World) -> None:
    done(world)
    world.clock.advance(3600)
    theirs = world.sandbox.start_job(ASSET)
    world.clock.advance(3600)
    for _ in range(2):
        assert again(world)
        world.work()
        world.clock.advance(AGAIN_AFTER)
    assert (world.status(), world.row()["counted_on"], runs(world)) == (Status.SUBMITTED, None, 2)
    world.sandbox.fail_job(theirs)
    world.reconcile()
    assert world.status() == Status.FAILED


def test_a_run_whose_job_is_not_known_ends_by_its_own_job(worlds: Callable[..., World]) -> None:
    """iconik accepts faces without an id, so the job that is known is that of an earlier run."""
    world = done(worlds(submitter__jobs="faces"))
    world.clock.advance(3600)
    assert again(world)
    world.work()
    world.clock.advance(AGAIN_AFTER)
    assert again(world)
    world.work()
    world.reconcile()
    assert (world.status(job="faces"), runs(world)) == (Status.SUBMITTED, 2)
    world.sandbox.fail_job(list(world.sandbox.job_details)[-1])
    world.reconcile()
    assert world.status(job="faces") == Status.FAILED


# A new version: the call for a transcript takes none, so iconik does it for the newest.


def test_a_run_for_a_new_version_counts_as_under_way(worlds: Callable[..., World]) -> None:
    world = done(worlds(submitter__jobs="transcribe"))
    world.sandbox.new_version(ASSET)
    assert again(world)
    world.work()
    world.clock.advance(AGAIN_AFTER)
    assert again(world)
    world.work()
    assert runs(world) == 2


def test_what_an_automation_did_for_a_new_version_is_not_done_again(worlds: Callable[..., World]) -> None:
    world = worlds(submitter__jobs="transcribe")
    world.store.set_state("paused", PAUSE)
    world.ready()
    world.sandbox.new_version(ASSET)
    world.sandbox.finish_job(world.sandbox.start_job(ASSET, "transcribe"))
    world.store.set_state("paused", "")
    world.work()
    assert (world.status(job="transcribe"), runs(world)) == (Status.DONE, 1)


# No answer, or one that says nothing.


@pytest.mark.parametrize("status", [500, 503])
@pytest.mark.parametrize("is_finished", [True, False])
def test_an_error_from_iconik_puts_it_in_doubt(world: World, status: int, is_finished: bool) -> None:
    """The status of a finished run is that of the one before, so the next attempt could not tell."""
    done(world)
    assert again(world)
    world.sandbox.faults.append(Fault("POST /API/transcode/", status, after_work=True))
    world.work()
    assert world.row()["in_doubt_since"] is not None
    if is_finished:
        world.sandbox.finish_all()
    world.work_for(2 * 3600)
    assert runs(world) == 2


def test_without_the_list_of_jobs_a_person_has_to_look(world: World) -> None:
    done(world)
    world.sandbox.roles.discard("can_read_jobs")
    assert again(world)
    world.sandbox.faults.append(NO_ANSWER)
    world.work()
    world.sandbox.finish_all()
    world.work_for(3 * 3600)
    assert (world.status(), runs(world)) == (Status.FAILED, 2)
    assert "the analyze job may have been started: iconik did not answer" in world.row()["error"]
    assert "can_read_jobs" in world.row()["error"]
    retry(world)  # having looked
    world.sandbox.faults.append(Fault("POST /API/transcode/", 500, after_work=True))
    world.work()
    world.sandbox.finish_all()
    world.work_for(24 * 3600)
    assert (world.status(), runs(world)) == (Status.FAILED, 3)
    retry(world)
    world.work_for(3600)
    assert (world.status(), runs(world)) == (Status.SUBMITTED, 4)


@pytest.mark.parametrize("fault", [{"status": 500}, {"status": 404, "body": b'{"errors": ["No jobs"]}'}])
def test_a_broken_list_of_jobs_stops_no_retry_of_what_was_never_started(world: World, fault: dict[str, Any]) -> None:
    world.ready()
    world.store.database.run("UPDATE items SET status = 'failed', error = 'given up', last_attempt_at = created_at")
    world.sandbox.faults.append(Fault("GET /API/jobs/", times=math.inf, **fault))
    retry(world)
    world.work()
    assert (world.status(), runs(world)) == (Status.SUBMITTED, 1)


def test_an_order_is_carried_out_though_the_list_of_jobs_is_refused(world: World) -> None:
    done(world)
    world.sandbox.faults.append(Fault("GET /API/jobs/", 404, body=b'{"errors": ["No jobs"]}', times=math.inf))
    assert again(world)
    world.work()
    assert runs(world) == 2


def test_a_second_retry_is_a_new_order(world: World) -> None:
    """What others had run, and what failed, before that is not its outcome."""
    world.ready()
    world.work()
    world.sandbox.fail_job(world.sandbox.latest_job[ASSET])
    world.reconcile()
    world.store.set_state("paused", PAUSE)
    retry(world)
    world.clock.advance(3600)
    world.sandbox.fail_job(world.sandbox.start_job(ASSET))
    world.clock.advance(3600)
    retry(world)
    world.store.set_state("paused", "")
    world.work()
    assert (world.status(), runs(world)) == (Status.SUBMITTED, 3)


# Done since, as after a restore.


@pytest.mark.parametrize("is_finished", [True, False])
def test_a_restored_backup_does_not_do_again_what_was_done_since(
    world: World, tmp_path: Path, is_finished: bool
) -> None:
    """The backup is from a night in which the limit held it."""
    done(world)
    assert again(world)
    back_up(world, tmp_path / "backup.db")
    world.work()
    assert runs(world) == 2
    if is_finished:
        world.sandbox.finish_all()
    world.clock.advance(24 * 3600)
    restore(world, tmp_path / "backup.db")
    world.work()
    assert (world.status(), runs(world)) == (Status.DONE if is_finished else Status.SUBMITTED, 2)


def test_a_restored_backup_does_not_retry_what_failed_since(world: World, tmp_path: Path) -> None:
    world.ready()
    world.work()
    world.sandbox.fail_job(world.sandbox.latest_job[ASSET])
    world.reconcile()
    retry(world)
    back_up(world, tmp_path / "backup.db")
    world.work()
    world.sandbox.fail_job(world.sandbox.latest_job[ASSET], "Once more")
    world.clock.advance(24 * 3600)
    restore(world, tmp_path / "backup.db")
    world.work()
    assert (world.status(), world.row()["error"], runs(world)) == (
        Status.FAILED,
        "iconik's analyze job failed: Once more",
        2,
    )


def test_an_order_is_carried_out_right_after_the_run_before(world: World) -> None:
    """The run before is not taken for one since the order, though iconik's times have no fractions."""
    done(world)
    assert again(world)
    world.work()
    assert runs(world) == 2


def test_where_the_list_of_jobs_may_not_be_read_an_order_is_carried_out(world: World) -> None:
    done(world)
    world.sandbox.roles.discard("can_read_jobs")
    assert again(world)
    world.work()
    assert runs(world) == 2


# What the configuration keeps out.


def test_again_is_for_the_jobs_that_were_done(worlds: Callable[..., World]) -> None:
    world = worlds(submitter__jobs="analyze transcribe")
    done(world)
    world.store.database.run("UPDATE items SET status = 'skipped', error = 'x' WHERE job = 'transcribe'")
    changes = ManualChanges(world.store)
    keys = changes.keys_of_all([ASSET])
    assert {change.job: change.is_changed for change in changes.again(keys)} == {"analyze": True, "transcribe": False}
    assert [change.is_changed for change in changes.again([(ASSET, "transcribe")], with_skipped="transcribe")] == [True]


def test_again_is_for_all_jobs_of_an_asset_of_which_none_was_done(worlds: Callable[..., World]) -> None:
    """Of a subclip, for example, which skip_types keeps out."""
    world = worlds(submitter__jobs="analyze transcribe")
    world.ready(type="SUBCLIP")
    world.work()
    changes = ManualChanges(world.store)
    assert [change.is_changed for change in changes.again(changes.keys_of_all([ASSET]))] == [True, True]
