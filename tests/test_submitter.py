"""One attempt at a time, on the stand-in over HTTP, by a clock of the test's."""

import logging
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from commands.changes import ManualChanges
from faulty_iconik import Fault, FaultyIconik
from sandbox import profile
from store import Outcome, Source, Status
from support import ASSET, SECRET, ListenerHere, new_id, wait_until
from system.database import StoreUnavailable
from system.text import format_utc
from world import World

LIST_OF_JOBS = "GET /API/jobs/v1/jobs/"
SEARCH = "POST /API/search/"
ANALYZE = "POST /API/transcode/v1/analyze/"
NO_ANSWER: dict[str, Any] = {"cut": True}


# The ordinary way.


def test_a_job_without_trouble_takes_two_requests(world: World) -> None:
    world.ready()
    world.work()
    assert world.sandbox.requests == [
        f"GET /API/assets/v1/assets/{ASSET}/",
        f"POST /API/transcode/v1/analyze/assets/{ASSET}/",
    ]
    row = world.row()
    assert row["status"] == Status.SUBMITTED
    assert row["job_id"] == world.sandbox.latest_job[ASSET]
    assert row["counted_on"] == format_utc(world.clock.now)[:10]
    assert row["in_doubt_since"] is None
    assert world.started_today() == 1


@pytest.mark.parametrize("names", [("id",), ("job_id",), ("id", "job_id")])
def test_the_job_is_known_by_either_name_of_its_id(world: World, names: tuple[str, ...]) -> None:
    world.sandbox.job_id_names = names
    world.ready()
    world.work()
    assert world.row()["job_id"] == world.sandbox.latest_job[ASSET]


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("REQUESTED", Status.SUBMITTED),
        ("IN_PROGRESS", Status.SUBMITTED),
        ("DONE", Status.DONE),
        ("FAILED", Status.FAILED),
    ],
)
@pytest.mark.parametrize("holder", ["asset", "version"])
def test_what_iconik_has_already_is_not_started(world: World, status: str, expected: str, holder: str) -> None:
    world.ready()
    asset = world.sandbox.assets[ASSET]
    (asset if holder == "asset" else asset["versions"][0])["analyze_status"] = status
    world.work()
    assert world.status() == expected
    assert world.sandbox.jobs == []
    assert world.started_today() == 0


def test_a_job_found_there_is_counted_as_found(world: World) -> None:
    world.ready(analyze_status="DONE")
    world.work()
    [row] = world.store.database.run("SELECT started, found FROM usage")
    assert (row["started"], row["found"]) == (0, 1)


@pytest.mark.parametrize(
    ("fields", "error"), [({"status": "DELETED"}, "the asset is deleted"), ({"type": "SUBCLIP"}, "type SUBCLIP")]
)
def test_deleted_assets_and_skipped_types_get_no_job(world: World, fields: dict[str, Any], error: str) -> None:
    world.ready(**fields)
    world.work()
    assert world.status() == Status.SKIPPED
    assert error in world.row()["error"]
    assert world.sandbox.jobs == []


def test_a_status_that_is_no_word_of_iconiks_starts_nothing(world: World) -> None:
    world.ready(analyze_status="PAUSED")
    world.work()
    assert world.status() == Status.READY
    assert "analyze_status PAUSED" in world.row()["error"]
    assert world.sandbox.jobs == []


@pytest.mark.parametrize(
    ("source", "is_fresh", "asks"),
    [(Source.WEBHOOK, True, 0), (Source.WEBHOOK, False, 1), (Source.SEARCH, True, 1)],
)
def test_a_missing_status_needs_the_list_of_jobs(world: World, source: str, is_fresh: bool, asks: int) -> None:
    """Unless the asset's own webhooks came to this very process: nothing can have been started before."""
    world.ready()
    world.store.database.run("UPDATE items SET source = :source", source=source)
    if not is_fresh:
        world.clock.advance(1)
        world.restart()
    for holder in (world.sandbox.assets[ASSET], *world.sandbox.assets[ASSET]["versions"]):
        holder.pop("analyze_status")
    world.work()
    assert world.requests(LIST_OF_JOBS) == asks
    assert world.status() == Status.SUBMITTED


def test_a_missing_status_needs_the_list_though_a_clock_was_ahead(world: World) -> None:
    """The webhooks came to an earlier process, whose clock was wrong."""
    world.clock.step(3600)
    world.ready()
    world.clock.step(-3600)
    world.restart()
    for holder in (world.sandbox.assets[ASSET], *world.sandbox.assets[ASSET]["versions"]):
        holder.pop("analyze_status")
    world.work()
    assert world.requests(LIST_OF_JOBS) == 1


def test_a_missing_status_with_a_job_in_the_list_starts_nothing(world: World) -> None:
    world.ready()
    world.sandbox.finish_job(world.sandbox.start_job(ASSET))
    world.store.database.run("UPDATE items SET source = 'search'")
    for holder in (world.sandbox.assets[ASSET], *world.sandbox.assets[ASSET]["versions"]):
        holder.pop("analyze_status")
    world.work()
    assert world.status() == Status.DONE
    assert len(world.sandbox.jobs) == 1


# What goes wrong.


@pytest.mark.parametrize("status", [500, 502, 503, 504, 408, 302, 404])
@pytest.mark.parametrize("call", ["GET /API/assets", ANALYZE])
def test_a_failure_backs_off_and_is_made_good(world: World, status: int, call: str) -> None:
    world.sandbox.faults.append(Fault(call, status=status, body=b"<html>"))
    world.ready()
    world.work()
    assert world.status() == Status.READY
    world.work_for(2000)
    assert world.status() == Status.SUBMITTED
    assert world.sandbox.jobs == [ASSET]
    assert world.row()["waited"] == 0


def test_the_backoff_doubles_up_to_max_retry_delay(world: World) -> None:
    world.sandbox.faults.append(Fault("GET /API/assets", status=500, times=99))
    world.ready()
    delays = []
    for _ in range(9):
        world.work()
        delays.append(world.row()["backoff"])
        world.clock.advance(world.row()["backoff"] + 0.01)
    assert delays == [10, 20, 40, 80, 160, 320, 640, 900, 900]


def test_an_item_is_given_up_when_it_has_waited_long_enough(worlds: Callable[..., World]) -> None:
    world = worlds(submitter__give_up_after=3600)
    world.sandbox.faults.append(Fault("GET /API/assets", status=500, times=99))
    world.ready()
    world.work_for(7200, step=60)
    assert world.status() == Status.FAILED
    assert world.row()["error"].startswith("given up after")
    assert "may have been started" not in world.row()["error"]


@pytest.mark.parametrize("days", [8, 4000])
def test_a_clock_that_jumps_gives_nothing_up(world: World, days: int) -> None:
    """A VM slept for 8 days, or its clock was wrong (T2)."""
    world.sandbox.faults.append(Fault("GET /API/assets", status=500, times=5))
    world.ready()
    world.work()
    world.clock.step(days * 24 * 3600)
    world.work_for(100)
    assert world.status() == Status.READY
    world.clock.step(-days * 24 * 3600)
    world.work_for(1000)
    assert world.status() == Status.SUBMITTED


def test_a_start_brings_failures_forward_and_does_not_count_that(world: World) -> None:
    world.sandbox.faults.append(Fault("GET /API/assets", status=500, times=9))
    world.ready()
    world.work_for(2500)
    waited, backoff = world.row()["waited"], world.row()["backoff"]
    world.restart()
    row = world.row()
    assert row["next_attempt_at"] <= format_utc(world.clock.now)
    assert waited - backoff <= row["waited"] < waited


@pytest.mark.parametrize("status", [400, 402, 403, 404, 409, 422, 423, 425])
def test_a_refusal_that_passes_is_made_good(world: World, status: int) -> None:
    """Not yet is not never (W4)."""
    world.sandbox.refuse_jobs = status, "Not now"
    world.ready()
    world.work_for(100)
    assert world.status() == Status.READY
    assert world.row()["refused"] == 1
    assert world.started_today() == 0
    world.sandbox.refuse_jobs = None
    world.work_for(1000)
    assert world.status() == Status.SUBMITTED
    assert world.row()["refused"] == 0


def test_a_refusal_backs_off_up_to_a_day_and_is_given_up_after_a_week(world: World) -> None:
    world.sandbox.refuse_jobs = 400, "Unsupported file"
    world.ready()
    world.work_for(6 * 24 * 3600, step=600)
    assert world.status() == Status.READY
    assert world.row()["backoff"] == 24 * 3600
    assert world.requests(ANALYZE) < 25
    world.work_for(6 * 24 * 3600, step=600)
    assert world.status() == Status.FAILED
    assert "Unsupported file" in world.row()["error"]


@pytest.mark.long
def test_credits_that_are_bought_start_everything_within_minutes(world: World) -> None:
    """After three days of 402 (F5): needs nobody, and no new asset."""
    world.sandbox.refuse_jobs = 402, "Insufficient credits"
    ids = [world.ready(new_id()) for _ in range(12)]
    world.work_for(3 * 24 * 3600, step=300)
    assert world.started_today() == 0
    world.sandbox.refuse_jobs = None
    world.work_for(900, step=10)
    assert sorted(world.sandbox.jobs) == sorted(ids)


def test_a_new_asset_that_is_accepted_releases_what_was_refused(world: World) -> None:
    world.sandbox.refuse_jobs = 402, "Insufficient credits"
    world.ready()
    world.work_for(3 * 24 * 3600, step=300)
    world.sandbox.refuse_jobs = None
    world.clock.advance(601)
    world.ready(new_id())
    world.work_for(60)
    assert world.status() == Status.SUBMITTED


def test_one_bad_file_is_not_tried_at_each_acceptance(world: World) -> None:
    world.ready()
    world.sandbox.asset_faults[ASSET] = Fault("", status=422, body=b'{"errors": ["No"]}')
    world.sandbox.faults.append(Fault(ANALYZE + f"assets/{ASSET}", status=422, body=b'{"errors": ["No"]}', times=999))
    world.sandbox.asset_faults.clear()
    for _ in range(60):
        world.ready(new_id())
        world.work_for(60)
    assert world.requests(f"analyze/assets/{ASSET}/") <= 14


@pytest.mark.parametrize("title", ["memo.wav", "script.pdf"])
def test_a_media_type_that_the_job_cannot_serve_is_skipped(world: World, title: str) -> None:
    world.ready(title=title)
    world.work()
    assert world.status() == Status.SKIPPED
    assert world.row()["error"].startswith("analyze does not support")
    assert world.row()["media_type"] in ("audio", "document")


def test_an_asset_that_a_replica_does_not_know_yet_is_analyzed(world: World) -> None:
    world.sandbox.replica_lag = 3
    world.ready()
    world.work_for(60)
    assert world.status() == Status.SUBMITTED


def test_an_asset_that_is_not_found_for_a_day_is_skipped(world: World) -> None:
    world.ready()
    del world.sandbox.assets[ASSET]
    world.work_for(10 * 3600, step=300)
    assert world.status() == Status.READY
    for _ in range(20):
        world.ready(new_id())
        world.work_for(6 * 3600, step=300)
    assert world.status() == Status.SKIPPED
    assert "deleted" in world.row()["error"]


def test_a_day_of_other_trouble_is_no_day_in_which_it_was_not_found(world: World) -> None:
    asset_id = world.ready(new_id())
    world.sandbox.faults.append(Fault(ANALYZE, 402, body=b'{"errors": ["Insufficient credits"]}', times=float("inf")))
    world.work_for(3 * 24 * 3600, step=3600)
    assert world.row(asset_id)["waited"] > 24 * 3600
    world.sandbox.faults.clear()
    asset = world.sandbox.assets.pop(asset_id)
    for _ in range(4):
        world.ready(new_id())
        world.work_for(3600, step=300)
    assert world.row(asset_id)["absent_since"] is not None
    assert world.status(asset_id) == Status.READY
    world.sandbox.assets[asset_id] = asset
    world.work_for(25 * 3600, step=300)
    assert world.status(asset_id) == Status.SUBMITTED


def test_a_clock_that_jumps_ahead_deletes_no_asset(world: World) -> None:
    world.ready()
    asset = world.sandbox.assets.pop(ASSET)
    world.work()
    world.clock.step(2 * 24 * 3600)
    for _ in range(4):
        world.ready(new_id())
        world.work_for(600)
    assert world.status() == Status.READY
    world.sandbox.assets[ASSET] = asset
    world.work_for(24 * 3600, step=300)
    assert world.status() == Status.SUBMITTED


def test_what_has_no_title_gets_that_of_the_asset(world: World) -> None:
    """iconik's menu tells none, and people know nothing else."""
    world.sandbox.create_asset("holiday.mov", ASSET, send=False)
    world.sandbox.set_proxy(ASSET, send=False)
    ManualChanges(world.store).add([ASSET], again=True)
    world.work()
    assert world.row()["title"] == "holiday.mov"


def test_a_title_stays_that_of_the_upload(world: World) -> None:
    world.ready()
    world.sandbox.assets[ASSET]["title"] = "renamed.mov"
    world.work()
    assert world.row()["title"] == "a.mov"


@pytest.mark.parametrize("odd", ["protected", "no key of iconik's"])
def test_under_a_limit_a_row_that_cannot_be_claimed_holds_no_retry_back(worlds: Callable[..., World], odd: str) -> None:
    world = worlds(limits__max_per_day=1000)
    world.sandbox.faults.append(Fault(ANALYZE, 503))
    older = world.ready(new_id())
    world.work()
    assert world.status(older) == Status.READY
    world.clock.advance(1)
    newer = world.ready(new_id())
    if odd == "protected":
        world.store.database.run(
            f"CREATE TRIGGER hers BEFORE UPDATE ON items WHEN OLD.object_id = '{newer}' "
            "BEGIN SELECT RAISE(ABORT, 'hers'); END"
        )
    else:
        world.store.database.run("UPDATE items SET object_id = 'é' WHERE object_id = :id", id=newer)
    world.work_for(60)
    assert world.status(older) == Status.SUBMITTED
    assert world.store.seconds_until_due() != 0


def test_a_retry_of_a_failed_job_survives_a_503_and_a_restart(world: World) -> None:
    """W5: what a person asked for stays asked for."""
    world.ready()
    world.work()
    world.sandbox.fail_job(world.sandbox.latest_job[ASSET])
    world.store.database.run("UPDATE items SET status = 'failed'")
    world.store.database.run(
        "UPDATE items SET status = 'ready', asked = 1, job_id = NULL, counted_on = NULL, next_attempt_at = :now",
        now=world.store.now(),
    )
    world.sandbox.faults.append(Fault("GET /API/assets", status=503))
    world.work()
    world.restart()
    world.work_for(60)
    assert world.sandbox.jobs == [ASSET, ASSET]
    assert world.row()["asked"] == 0


# 429, 401 and the circuit breaker.


def test_one_asset_that_always_gets_429_delays_nobody(world: World) -> None:
    """R2: however often that is."""
    world.sandbox.asset_faults[ASSET] = Fault(status=429, headers={"Retry-After": "60"}, body=b"{}")
    world.ready()
    for attempts in (1, 2, 3):
        others = [world.ready(new_id()) for _ in range(3)]
        now = world.clock.now
        world.work()
        assert set(others) <= set(world.sandbox.jobs)
        assert world.clock.now == now, "the breaker was open"
        assert world.requests(ASSET) == attempts
        assert world.row()["next_attempt_at"] >= format_utc(now + 60)
        world.clock.advance(300)


def test_429_of_two_assets_opens_the_breaker_for_retry_after(world: World) -> None:
    ids = [world.ready(new_id()) for _ in range(2)]
    for asset_id in ids:
        world.sandbox.asset_faults[asset_id] = Fault(status=429, headers={"Retry-After": "60"}, body=b"{}")
    world.submitter.work_once()
    assert not world.breaker.is_open
    world.submitter.work_once()
    assert world.breaker.is_open


@pytest.mark.parametrize(
    ("call", "profile"), [(SEARCH, "Clips, Stills"), ("GET /API/files/v1/analysis/profiles", "Clips")]
)
def test_429_of_one_kind_of_call_stops_no_job(worlds: Callable[..., World], call: str, profile: str) -> None:
    """R2: items that need the search, or the profiles, wait; the others go on. The reconciler searches, too."""
    world = worlds(submitter__jobs="analyze faces", analyze__profile=profile, reconciler__min_age=0)
    world.sandbox.register("http://127.0.0.1:1", {"X-Webhook-Secret": SECRET})
    world.sandbox.faults.append(Fault(call, status=429, times=999, body=b"{}", headers={"Retry-After": "60"}))
    for number in range(5):
        world.clock.advance(70)
        asset_id = world.ready(new_id())
        now = world.clock.now
        world.reconcile()
        world.work()
        assert world.sandbox.started[number:] == [("faces", asset_id)]
        assert world.clock.now == now, "the breaker was open"


def test_a_401_opens_the_breaker_at_once(world: World) -> None:
    world.ready()
    world.sandbox.faults.append(Fault("GET /API/assets", status=401, body=b'{"errors": ["Token"]}'))
    world.submitter.work_once()
    assert world.breaker.is_open
    assert world.row()["waited"] == 0
    world.work_for(60)
    assert world.status() == Status.SUBMITTED


def test_ten_failing_assets_open_the_breaker_and_forbidden_ones_do_not(world: World) -> None:
    for _ in range(20):
        asset_id = world.ready(new_id())
        world.sandbox.asset_faults[asset_id] = Fault(status=403, body=b'{"errors": ["Forbidden"]}')
    world.work()
    assert not world.breaker.is_open
    for _ in range(10):
        world.sandbox.asset_faults[world.ready(new_id())] = Fault(status=500, body=b"{}")
    for _ in range(10):
        world.submitter.work_once()
    assert world.breaker.is_open


# Doubt.


DOUBTFUL = [
    pytest.param({"cut": True}, id="no answer"),
    pytest.param({"status": 500}, id="500"),
    pytest.param({"status": 502, "body": b"<html>"}, id="502"),
    pytest.param({"status": 504, "body": b"<html>"}, id="504"),
    pytest.param({"status": 200, "body": b'{"errors": ["No"]}'}, id="200 with errors"),
    pytest.param({"status": 200, "body": b"{}"}, id="200 without a job"),
    pytest.param({"status": 202, "body": b'{"x": 1}'}, id="202"),
    pytest.param({"status": 207, "body": b"[]"}, id="207"),
    pytest.param({"status": 201, "body": b'{"errors": ["No"], "id": "x"}'}, id="201 with errors"),
]


@pytest.mark.parametrize("fault", DOUBTFUL)
@pytest.mark.parametrize("is_taken", [True, False])
def test_doubt_is_settled_by_evidence(world: World, fault: dict[str, Any], is_taken: bool) -> None:
    world.sandbox.faults.append(Fault(ANALYZE, after_work=is_taken, **fault))
    world.ready()
    world.work()
    row = world.row()
    assert row["status"] == Status.READY
    assert row["in_doubt_since"] is not None
    assert world.started_today() == 1
    requests = len(world.sandbox.requests)
    world.work_for(29)  # timeout is 10 s
    assert len(world.sandbox.requests) == requests, "it was looked at too early"
    world.work_for(600)
    assert world.status() in (Status.SUBMITTED, Status.DONE)
    assert world.sandbox.jobs == [ASSET]
    assert world.started_today() == 1
    assert world.row()["in_doubt_since"] is None


def test_reads_that_lag_behind_double_nothing(world: World) -> None:
    """iconik shows neither the status nor the job for a minute after it accepted the request it did not answer."""
    world.sandbox.read_lag = 60
    world.sandbox.faults.append(Fault(ANALYZE, after_work=True, **NO_ANSWER))
    world.ready()
    world.work_for(1000)
    assert world.sandbox.jobs == [ASSET]
    assert world.status() == Status.SUBMITTED


def test_a_missing_status_settles_no_doubt(world: World) -> None:
    """A4: the list of jobs does."""
    world.sandbox.faults.append(Fault(ANALYZE, after_work=True, **NO_ANSWER))
    world.ready()
    world.work()
    for holder in (world.sandbox.assets[ASSET], *world.sandbox.assets[ASSET]["versions"]):
        holder.pop("analyze_status", None)
    world.work_for(1000)
    assert world.sandbox.jobs == [ASSET]
    assert world.row()["job_id"] == world.sandbox.latest_job[ASSET]


def test_two_looks_five_minutes_apart_precede_a_second_request(world: World) -> None:
    world.sandbox.faults.append(Fault(ANALYZE, **NO_ANSWER))
    world.ready()
    world.work()
    sent_at = world.clock.now
    while len(world.sandbox.jobs) == 0:
        world.clock.advance(1)
        world.work()
    assert world.clock.now - sent_at >= 30 + 300
    assert world.requests(LIST_OF_JOBS) == 2


@pytest.mark.parametrize("step", [30.0, 3600.0, -3600.0])
def test_a_clock_that_steps_brings_nothing_forward_that_is_in_doubt(world: World, step: float) -> None:
    """T4: the wall clock steps while iconik is still taking the request."""
    world.sandbox.faults.append(Fault(ANALYZE, **NO_ANSWER))
    world.ready()
    world.work()
    requests = len(world.sandbox.requests)
    world.clock.step(step)
    world.sandbox.clock = lambda: world.clock.now - step
    world.work_for(29)
    assert len(world.sandbox.requests) == requests


@pytest.mark.parametrize("reserved", [True, False])
def test_a_kill_leaves_doubt_only_after_the_reservation(world: World, reserved: bool) -> None:
    world.ready()
    item = world.store.claim_new()
    assert item
    if reserved:
        assert world.store.reserve(item, world.client.now(), "")
    world.restart()
    assert (world.row()["in_doubt_since"] is not None) == reserved
    world.work()
    assert len(world.sandbox.jobs) == (0 if reserved else 1)
    world.work_for(600)
    assert world.sandbox.jobs == [ASSET]
    assert world.started_today() == 1


def test_a_second_process_waits_before_it_looks(world: World) -> None:
    """W1: a restart while iconik takes its time for the request."""
    world.ready()
    item = world.store.claim_new()
    assert item
    world.store.reserve(item, world.client.now(), "")
    world.restart()
    world.work_for(22)
    assert world.sandbox.requests == [], "it was looked at too early"
    world.sandbox.start_job(ASSET)  # iconik has taken it at last
    world.work_for(600)
    assert world.sandbox.jobs == [ASSET]


@pytest.mark.parametrize(
    ("end", "expected"), [("FINISHED", Status.DONE), ("FAILED", Status.FAILED), ("ABORTED", Status.FAILED)]
)
def test_what_became_of_the_request_in_doubt_counts(world: World, end: str, expected: str) -> None:
    world.sandbox.faults.append(Fault(ANALYZE, after_work=True, **NO_ANSWER))
    world.ready()
    world.work()
    job_id = world.sandbox.latest_job[ASSET]
    if end == "FINISHED":
        world.sandbox.finish_job(job_id)
    else:
        world.sandbox.fail_job(job_id, status=end)
    world.sandbox.assets[ASSET]["analyze_status"] = "N/A"
    world.sandbox.assets[ASSET]["versions"][0]["analyze_status"] = "N/A"
    world.work_for(60)
    assert world.status() == expected
    assert world.row()["job_id"] == job_id


def test_a_job_that_failed_without_an_answer_is_known_by_its_id(world: World) -> None:
    """So a retry can tell it from its own run."""
    world.sandbox.faults.append(Fault(ANALYZE, after_work=True, **NO_ANSWER))
    world.ready()
    world.work()
    job_id = world.sandbox.latest_job[ASSET]
    world.sandbox.fail_job(job_id)
    world.work_for(120)
    assert world.status() == Status.FAILED
    assert world.row()["job_id"] == job_id
    assert "The file cannot be decoded" in world.row()["error"]
    assert world.started_today() == 1


def test_a_deleted_asset_in_doubt_keeps_its_reservation(world: World) -> None:
    """Its job may have been started."""
    world.sandbox.faults.append(Fault(ANALYZE, after_work=True, **NO_ANSWER))
    world.ready()
    world.work()
    world.sandbox.assets[ASSET]["status"] = "DELETED"
    world.work_for(120)
    assert world.status() == Status.SKIPPED
    assert world.started_today() == 1


def test_what_is_put_back_keeps_its_place(world: World) -> None:
    world.ready()
    before = world.row()["next_attempt_at"]
    item = world.store.claim_new()
    assert item
    world.clock.advance(60)
    world.store.end_attempt(item, Outcome(Status.READY, is_attempt=False))
    assert world.row()["next_attempt_at"] == before


def test_a_job_of_an_earlier_run_is_no_evidence(world: World) -> None:
    world.ready()
    world.work()
    world.sandbox.fail_job(world.sandbox.latest_job[ASSET])
    world.store.database.run(
        """UPDATE items SET status = 'ready', asked = 1, old_job_id = job_id, job_id = NULL, counted_on = NULL,
        next_attempt_at = :now""",
        now=world.store.now(),
    )
    world.sandbox.faults.append(Fault(ANALYZE, **NO_ANSWER))
    world.work_for(600)
    assert world.sandbox.jobs == [ASSET, ASSET]
    assert world.status() == Status.SUBMITTED


def test_without_the_role_for_jobs_an_hour_passes_between_two_looks(world: World) -> None:
    world.sandbox.roles.discard("can_read_jobs")
    world.sandbox.faults.append(Fault(ANALYZE, **NO_ANSWER))
    world.ready()
    world.work_for(3500, step=60)
    assert world.sandbox.jobs == []
    world.work_for(300, step=60)
    assert world.sandbox.jobs == [ASSET]


def test_a_clock_that_jumps_ahead_shortens_no_doubt(world: World) -> None:
    """The request may still be on its way, so by the wall clock alone it is not looked at again."""
    world.clock.advance(3600)  # long after the start, after which nothing in doubt is looked at for a while
    world.sandbox.faults.append(Fault(ANALYZE, **NO_ANSWER))
    world.ready()
    world.work()
    asked = len(world.sandbox.requests)
    world.clock.step(7200)
    world.work()
    assert (len(world.sandbox.requests), world.status()) == (asked, Status.READY)
    world.work_for(world.store.rules.doubt_delay + 1)
    assert len(world.sandbox.requests) > asked


@pytest.mark.long
def test_a_list_that_cannot_be_read_ends_after_a_week_as_failed(world: World) -> None:
    world.sandbox.faults.append(Fault(ANALYZE, **NO_ANSWER))
    world.sandbox.faults.append(Fault(LIST_OF_JOBS, status=500, times=99999))
    world.ready()
    world.work_for(6 * 24 * 3600, step=900)
    assert world.status() == Status.READY
    world.work_for(2 * 24 * 3600, step=900)
    assert world.status() == Status.FAILED
    assert "may have been started" in world.row()["error"]
    assert world.row()["counted_on"], "it may be billed, so it counts"
    assert world.sandbox.jobs == []


@pytest.mark.parametrize("status", [503, 429, 400, 404])
def test_a_definite_answer_leaves_no_doubt(world: World, status: int) -> None:
    world.sandbox.faults.append(Fault(ANALYZE, status=status))
    world.ready()
    world.work()
    row = world.row()
    assert row["in_doubt_since"] is None
    assert row["counted_on"] is None
    assert world.started_today() == 0


def test_a_job_that_a_503_hid_is_known_after_a_new_version(worlds: Callable[..., World], sandbox: FaultyIconik) -> None:
    """A transcript is only known by the version that it was made of."""
    world = worlds(submitter__jobs="transcribe")
    sandbox.faults.append(Fault("POST /API/transcode/v1/transcribe", status=503, after_work=True))
    world.ready()
    world.store.database.run("UPDATE items SET version_id = NULL")  # not every event names it
    world.work()
    assert world.row(job="transcribe")["in_doubt_since"] is None
    sandbox.new_version(ASSET)
    world.work_for(600)
    assert sandbox.started == [("transcribe", ASSET)]
    assert world.status(job="transcribe") == Status.SUBMITTED


def test_a_connection_that_could_not_be_made_leaves_no_doubt(worlds: Callable[..., World]) -> None:
    world = worlds()
    world.ready()
    world.sandbox.server.stop()
    world.work()
    assert world.row()["in_doubt_since"] is None
    assert "cannot be reached" in world.row()["error"]


# Profiles and `only`.


def test_each_media_type_gets_its_own_profile(worlds: Callable[..., World], sandbox: FaultyIconik) -> None:
    sandbox.profiles += [profile("Stills", "image"), profile("Clips", "video"), profile("Speech", "transcription")]
    world = worlds(analyze__profile="stills, Clips")
    titles = {world.ready(new_id(), title): title for title in ("a.mov", "b.jpg", "c.wav", "d.pdf")}
    world.work()
    ids = {one["id"]: one["name"] for one in sandbox.profiles}
    used = {titles[asset_id]: ids[used] for asset_id, used in sandbox.used_profiles.items()}
    assert used == {"a.mov": "Clips", "b.jpg": "Stills"}
    skipped = {titles[asset_id]: world.row(asset_id) for asset_id in titles if world.status(asset_id) == Status.SKIPPED}
    assert skipped.keys() == {"c.wav", "d.pdf"}
    assert skipped["c.wav"]["error"] == "no profile in [analyze] is for audio"
    assert world.row(next(one for one in titles if titles[one] == "b.jpg"))["profile"] == "Stills"


def test_a_single_profile_needs_no_search(worlds: Callable[..., World], sandbox: FaultyIconik) -> None:
    sandbox.profiles.append(profile("Clips", "video"))
    world = worlds(analyze__profile="Clips")
    world.ready()
    world.work()
    assert world.requests(SEARCH) == 0
    assert world.status() == Status.SUBMITTED


def test_an_image_is_skipped_by_a_single_profile_for_video(worlds: Callable[..., World], sandbox: FaultyIconik) -> None:
    sandbox.profiles.append(profile("Clips", "video"))
    world = worlds(analyze__profile="Clips")
    world.ready(title="a.jpg")
    world.work()
    assert world.row()["error"] == "no profile in [analyze] is for image"


def test_a_profile_that_iconik_does_not_have_starts_nothing(worlds: Callable[..., World]) -> None:
    world = worlds(analyze__profile="Clip")
    world.ready()
    world.work_for(100)
    assert world.status() == Status.READY
    assert 'no analysis profile "Clip"' in world.row()["error"]
    world.sandbox.profiles.append(profile("Clip", "video"))
    world.work_for(1000)
    assert world.status() == Status.SUBMITTED


def test_only_what_matches_the_query_is_started(worlds: Callable[..., World]) -> None:
    world = worlds(analyze__only="in_collections:news")
    wanted = world.ready(new_id(), in_collections=["news"])
    other = world.ready(new_id())
    world.work_for(1300)
    assert world.sandbox.jobs == [wanted]
    assert world.row(other)["error"] == 'does not match "only" of [analyze]'


def test_a_collection_that_comes_two_minutes_later_counts(worlds: Callable[..., World]) -> None:
    world = worlds(analyze__only="in_collections:news")
    world.sandbox.create_asset("old.mov", send=False, in_collections=["news"])
    world.ready()
    world.work_for(120)
    world.sandbox.assets[ASSET]["in_collections"].append("news")
    world.work_for(600)
    assert world.sandbox.jobs == [ASSET]


@pytest.mark.parametrize("only", ["in_collections:nwes", "in_collections:(news"])
def test_a_query_that_finds_nothing_or_is_refused_skips_nothing(worlds: Callable[..., World], only: str) -> None:
    world = worlds(analyze__only=only)
    world.ready(in_collections=["news"])
    world.work_for(24 * 3600, step=300)
    assert world.status() == Status.READY
    assert 'the query "only" of [analyze]' in world.row()["error"]
    assert world.row()["waited"] == 0


def test_an_asset_that_is_not_in_the_index_yet_waits(worlds: Callable[..., World]) -> None:
    world = worlds(analyze__only="media_type:video")
    world.sandbox.index_lag = 300
    world.ready()
    world.work_for(200)
    assert world.sandbox.jobs == []
    assert world.status() == Status.READY
    world.work_for(500)
    assert world.sandbox.jobs == [ASSET]


# Again, versions and other jobs.


def test_again_forces_a_second_run(world: World) -> None:
    world.ready()
    world.work()
    assert world.sandbox.forced == []
    world.sandbox.finish_job(world.sandbox.latest_job[ASSET])
    world.store.database.run(
        "UPDATE items SET status = 'ready', asked = 2, counted_on = NULL, next_attempt_at = :now", now=world.store.now()
    )
    world.work()
    assert world.sandbox.jobs == [ASSET, ASSET]
    assert world.sandbox.forced == [ASSET]
    assert world.row()["asked"] == 0


def test_again_does_not_start_a_run_that_is_under_way(world: World) -> None:
    """Nor does it lose that run, or count it as somebody else's."""
    world.ready()
    world.work()
    before = world.row()
    [change] = ManualChanges(world.store).again([(ASSET, "analyze")])
    assert change.is_changed
    world.work()
    assert world.sandbox.jobs == [ASSET]
    after = world.row()
    assert [after[name] for name in ("status", "job_id", "submitted_at")] == [
        before[name] for name in ("status", "job_id", "submitted_at")
    ]
    [row] = world.store.database.run("SELECT started, found FROM usage")
    assert (row["started"], row["found"]) == (1, 0)


def test_three_jobs_are_started_once_each(worlds: Callable[..., World]) -> None:
    world = worlds(submitter__jobs="analyze transcribe faces", transcribe__language="en")
    world.ready()
    world.work()
    assert sorted(world.sandbox.started) == [("analyze", ASSET), ("faces", ASSET), ("transcribe", ASSET)]
    assert {world.status(ASSET, job) for job in ("analyze", "transcribe", "faces")} == {Status.SUBMITTED}
    assert world.row(ASSET, "faces")["job_id"] is None


def test_audio_is_transcribed_and_skipped_by_the_other_jobs(worlds: Callable[..., World]) -> None:
    world = worlds(submitter__jobs="analyze transcribe faces")
    world.ready(title="memo.wav")
    world.work()
    assert world.sandbox.started == [("transcribe", ASSET)]
    assert world.status(ASSET, "analyze") == world.status(ASSET, "faces") == Status.SKIPPED


def test_a_poll_is_one_request_whatever_the_number_of_jobs(worlds: Callable[..., World]) -> None:
    world = worlds(submitter__jobs="analyze transcribe faces")
    world.sandbox.create_asset("a.mov", ASSET, send=False)
    world.sandbox.set_proxy(ASSET, send=False)
    world.store.add_asset(ASSET, "a.mov")
    world.work_for(700)
    assert world.requests("/proxies/") == 1
    assert len(world.sandbox.started) == 3


def test_a_job_that_is_no_longer_configured_stops(worlds: Callable[..., World]) -> None:
    world = worlds(submitter__jobs="analyze faces")
    world.ready()
    world.store.close()
    world = worlds(submitter__jobs="analyze")
    world.restart()
    world.work()
    assert world.sandbox.started == [("analyze", ASSET)]
    assert world.row(ASSET, "faces")["error"] == "faces is not in jobs"
    ManualChanges(world.store).retry([(ASSET, "faces")])
    requests = len(world.sandbox.requests)
    world.work()
    assert world.row(ASSET, "faces")["error"] == "faces is not in jobs"
    assert len(world.sandbox.requests) == requests


def test_faces_are_for_the_items_version_while_it_is_active(worlds: Callable[..., World]) -> None:
    world = worlds(submitter__jobs="faces")
    for is_active, number in ((True, 0), (False, 1)):
        asset_id = world.ready(new_id())
        versions = world.sandbox.assets[asset_id]["versions"]
        world.sandbox.new_version(asset_id)
        if not is_active:
            versions[0]["status"] = "DELETED"
        world.work()
        assert f"/assets/{asset_id}/versions/{versions[number]['id']}/" in world.sandbox.requests[-1]
        assert world.status(asset_id, "faces") == Status.SUBMITTED


def test_assets_without_an_active_version_do_not_open_the_breaker(worlds: Callable[..., World]) -> None:
    world = worlds(submitter__jobs="faces", limits__max_per_day=20)
    for _ in range(12):
        asset_id = world.ready(new_id())
        world.sandbox.assets[asset_id]["versions"][0]["status"] = "DELETED"
    world.work()
    assert not world.breaker.is_open
    assert world.started_today() == 0
    assert "no version of the asset that is ACTIVE" in world.row(asset_id, "faces")["error"]


def test_log_lines_tell_jobs_apart_where_there_are_several(
    worlds: Callable[..., World], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for jobs, name in (("analyze faces", f'{ASSET} "a.wav" (analyze): '), ("analyze", f'{ASSET} "a.wav": ')):
        world = worlds(submitter__jobs=jobs)
        world.store.database.run("DELETE FROM items")
        world.ready(title="a.wav")
        caplog.clear()
        world.work()
        assert f"Skipped {name}analyze does not support audio" in caplog.messages
        world.store.close()


def test_what_was_held_for_ten_days_is_not_given_up_after_one_503(worlds: Callable[..., World]) -> None:
    world = worlds(limits__max_per_day=1)
    held = world.ready()
    for _ in range(10):
        world.clock.advance(60)
        newer = world.ready(new_id())
        world.work()
        assert world.status(newer) == Status.SUBMITTED
        world.clock.advance(24 * 3600)
    assert world.requests(held) == 0
    assert world.store.health()["oldest_due_at"] == world.row(held)["next_attempt_at"]  # it is due now
    world.sandbox.faults.append(Fault("GET /API/assets", status=503))
    world.work()
    row = world.row(held)
    assert (row["status"], row["attempts"], row["waited"]) == (Status.READY, 1, 10)
    world.work_for(20)
    assert world.status(held) == Status.SUBMITTED


def test_a_limit_that_is_reached_while_the_asset_is_read_leaves_no_doubt(worlds: Callable[..., World]) -> None:
    world = worlds(limits__max_per_day=1)
    world.ready()

    def reach_the_limit() -> None:
        world.store.database.run("INSERT INTO usage VALUES (:day, 'analyze', 1, 0)", day=world.store.today())

    world.sandbox.at_request["GET /API/assets"] = reach_the_limit
    world.work()
    row = world.row()
    assert (row["status"], row["in_doubt_since"], row["attempts"]) == (Status.READY, None, 0)
    assert (world.sandbox.jobs, world.store.health()["held"]) == ([], 1)


# Polls, and who waits for whom.


def test_polls_double_and_end_at_max_age(world: World) -> None:
    world.sandbox.create_asset("a.mov", ASSET, send=False)
    world.store.add_asset(ASSET, "a.mov")
    start, polled = world.clock.now, []
    while world.clock.now - start < 20 * 24 * 3600:
        before = world.requests("/proxies/")
        world.work()
        if world.requests("/proxies/") > before:
            polled.append(round(world.clock.now - start))
        world.clock.advance(600)
    assert polled[:4] == [600, 1200, 2400, 4800]
    assert polled[-1] == 7 * 24 * 3600
    assert world.row()["next_attempt_at"] is None


@pytest.mark.parametrize("days", [4, 10, 4000])
def test_a_clock_that_is_ahead_for_an_instant_ends_no_polling(world: World, days: int) -> None:
    """T3: no single reading of a clock writes "never"."""
    world.sandbox.create_asset("a.mov", ASSET, send=False)
    world.store.add_asset(ASSET, "a.mov")
    world.clock.step(days * 24 * 3600)
    world.work()
    world.clock.step(-days * 24 * 3600)
    world.sandbox.set_proxy(ASSET, send=False)
    world.work_for(3600, step=60)
    assert world.sandbox.jobs == [ASSET]


def test_a_retry_does_not_wait_for_thousands_of_polls(world: World) -> None:
    """R3"""
    for _ in range(50):
        asset_id = world.sandbox.create_asset("a.mov", send=False)
        world.store.add_asset(asset_id, "a.mov")
    world.sandbox.faults.append(Fault("GET /API/assets", status=503))
    world.clock.advance(601)
    world.ready()
    world.submitter.work_once()
    world.clock.advance(11)
    world.submitter.work_once()
    assert world.sandbox.jobs == [ASSET]
    assert world.requests("/proxies/") == 0


def test_new_items_go_before_retries_and_polls(world: World) -> None:
    world.sandbox.faults.append(Fault("GET /API/assets", status=503))
    world.ready()
    world.submitter.work_once()
    world.clock.advance(11)
    new = world.ready(new_id())
    world.submitter.work_once()
    assert world.sandbox.jobs == [new]


def test_retries_that_hang_leave_half_of_the_workers_to_new_items(
    listeners_here: Callable[..., ListenerHere],
) -> None:
    listener = listeners_here(submitter__workers=4, iconik__timeout=30).start()
    sandbox = listener.sandbox
    retries = [new_id() for _ in range(6)]
    for asset_id in retries:
        sandbox.asset_faults[asset_id] = Fault(hang=True)
        listener.store.database.run(
            "INSERT INTO items (object_id, status, last_attempt_at, next_attempt_at) VALUES (:id, 'ready', :now, :now)",
            id=asset_id,
            now=listener.store.now(),
        )
    for _ in range(4):
        listener.submitter.wake()
    wait_until(lambda: len(listener.rows("status = 'submitting'")) >= 2)
    listener.upload(new := new_id())
    wait_until(lambda: sandbox.jobs == [new])
    sandbox.stopping.set()  # what hangs is cut


# A row's trouble ends in that row.


PROTECTED = {
    "everything": f"BEFORE UPDATE ON items WHEN old.object_id = '{ASSET}'",
    "the claim": f"BEFORE UPDATE OF status ON items WHEN old.object_id = '{ASSET}' AND new.status = 'submitting'",
    "the reservation": f"BEFORE UPDATE OF in_doubt_since ON items WHEN old.object_id = '{ASSET}'",
    "the outcome": f"BEFORE UPDATE OF status ON items WHEN old.object_id = '{ASSET}' AND old.status = 'submitting'",
}


@pytest.mark.parametrize("event", PROTECTED.values(), ids=PROTECTED)
def test_a_row_that_a_trigger_protects_stops_nobody(world: World, event: str, caplog: pytest.LogCaptureFixture) -> None:
    """R4: a person's trigger refuses the claim, the reservation or the outcome, and the next start's change, too."""
    world.ready()
    world.store.database.run(f"CREATE TRIGGER hers {event} BEGIN SELECT RAISE(ABORT, 'hands off'); END")
    others = []
    for _ in range(2):
        others += [world.ready(new_id()) for _ in range(3)]
        world.work()
        assert set(others) <= set(world.sandbox.jobs)
        assert "hands off" in caplog.text
        caplog.clear()
        world.restart()
    assert world.sandbox.jobs.count(ASSET) <= 1
    world.store.database.run("DROP TRIGGER hers")
    world.restart()
    world.work_for(60 + 300)
    assert world.status() == Status.SUBMITTED
    assert world.sandbox.jobs.count(ASSET) == 1


@pytest.mark.parametrize("event", PROTECTED.values(), ids=PROTECTED)
def test_as_many_protected_rows_as_workers_block_none_of_them(
    listeners_here: Callable[..., ListenerHere], event: str
) -> None:
    """R4"""
    listener = listeners_here(submitter__workers=2).start()
    protected, others = [new_id() for _ in range(4)], [new_id() for _ in range(4)]
    for number, asset_id in enumerate(protected):
        trigger = f"CREATE TRIGGER hers_{number} {event.replace(ASSET, asset_id)} BEGIN SELECT RAISE(ABORT, 'no'); END"
        listener.store.database.run(trigger)
        listener.sandbox.create_asset("a.mov", asset_id, send=False)
        listener.store.database.run(
            "INSERT INTO items (object_id, status, next_attempt_at) VALUES (:id, 'ready', :now)",
            id=asset_id,
            now=listener.store.now(),
        )
    listener.upload(*others)
    wait_until(lambda: len(listener.rows("status = 'submitted'")) >= len(others))
    assert set(others) <= set(listener.sandbox.jobs)


def test_a_row_that_a_trigger_protects_keeps_no_acceptance_from_being_noted(world: World) -> None:
    """An accepted job makes due what was refused before, and one of those rows is protected."""
    world.sandbox.refuse_jobs = 402, "Insufficient credits"
    refused = [world.ready(new_id()) for _ in range(3)]
    world.work()
    world.store.database.run(
        "UPDATE items SET next_attempt_at = :later WHERE object_id <> :one",
        later=world.store.now(3600),
        one=refused[0],
    )
    protected = refused[1]
    world.store.database.run(
        f"""CREATE TRIGGER hers BEFORE UPDATE ON items WHEN old.object_id = '{protected}'
        BEGIN SELECT RAISE(ABORT, 'hands off'); END"""
    )
    world.sandbox.refuse_jobs = None
    world.clock.advance(15)
    world.submitter.work_once()
    [accepted] = world.sandbox.jobs
    assert world.status(accepted) == Status.SUBMITTED
    world.work_for(10, step=1)
    assert sorted(world.sandbox.jobs) == sorted(set(refused) - {protected})


def test_an_acceptance_is_noted_though_a_person_holds_the_database(worlds: Callable[..., World]) -> None:
    """At that moment, what was refused before is to be made due, and iconik's reads lag behind."""
    world = worlds(submitter__retry_delay=0.05)
    world.sandbox.read_lag = 3600
    world.sandbox.refuse_jobs = 402, "Insufficient credits"
    refused = world.ready(new_id())
    world.work()
    world.sandbox.refuse_jobs = None
    world.clock.advance(700)
    world.store.database.run("UPDATE items SET next_attempt_at = :later", later=world.store.now(300))
    world.ready()
    person = sqlite3.connect(world.folder / "items.db", isolation_level=None, check_same_thread=False)
    with closing(person), world.store.database.waiting_up_to(0.05):
        world.sandbox.at_request[ANALYZE] = lambda: person.execute("BEGIN IMMEDIATE")
        timer = threading.Timer(0.5, lambda: person.execute("COMMIT"))
        timer.start()
        world.submitter.work_once()
        timer.join()
    assert world.status() == Status.SUBMITTED
    world.work_for(1000)
    assert sorted(world.sandbox.jobs) == sorted([ASSET, refused])


def test_an_attempt_that_cannot_be_finished_is_put_back(worlds: Callable[..., World]) -> None:
    """R5: the file is moved away while iconik answers, and comes back."""
    world = worlds(submitter__retry_delay=0.05)
    world.sandbox.faults.append(Fault("GET /API/assets", status=400, body=b'{"errors": ["Not now"]}'))
    world.ready()
    file, away = world.folder / "items.db", world.folder / "away"
    timer = threading.Timer(0.5, lambda: away.rename(file))

    def move_away() -> None:
        file.rename(away)
        timer.start()

    world.sandbox.at_request["GET /API/assets"] = move_away
    world.submitter.work_once()
    timer.join()
    assert world.status() == Status.READY
    world.work_for(60)
    assert world.sandbox.jobs == [ASSET]


@pytest.mark.parametrize(
    "column", ["object_id", "job", "status", "title", "error", "created_at", "next_attempt_at", "in_doubt_since"]
)
@pytest.mark.parametrize(
    "value", ["NULL", "'x'", "x'ff00fe'", "CAST(x'ff41' AS TEXT)", "12", "-1.5", "'9999-12-31T23:59:59Z'"]
)
def test_no_content_of_a_row_stops_a_worker_or_a_start(world: World, column: str, value: str) -> None:
    world.ready()
    try:
        world.store.database.run(f"UPDATE items SET {column} = {value}")
    except Exception as error:
        pytest.skip(f"the schema refuses it: {error}")
    world.clock.advance(1)  # what is new queues behind that row
    other = world.ready(new_id())
    world.restart()
    world.work_for(120)
    assert other in world.sandbox.jobs
    assert world.sandbox.jobs.count(ASSET) <= 1


# The database fails in the middle of an attempt.


def unavailable(*_: Any, **__: Any) -> Any:
    raise StoreUnavailable("database is locked")


def test_an_accepted_job_is_recorded_whatever_follows(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world.store, "probe_refused", unavailable)
    world.sandbox.read_lag = 60
    world.ready()
    world.work()
    assert world.status() == Status.SUBMITTED
    world.work_for(600)
    assert world.sandbox.jobs == [ASSET]
    assert world.started_today() == 1


def test_a_refusal_is_recorded_though_the_database_is_busy(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as busy:
        busy.setattr(world.store, "is_refused_alone", unavailable)
        world.sandbox.faults.append(Fault(ANALYZE, status=400))
        world.ready()
        world.work()
    assert world.status() == Status.READY
    world.work_for(1200)
    assert world.status() == Status.SUBMITTED
    assert world.sandbox.jobs == [ASSET]


def test_a_job_found_after_a_kill_has_the_time_of_its_request(world: World) -> None:
    """Otherwise its end is looked for among later jobs only, and it stays submitted for ever."""
    world.sandbox.faults.append(Fault(ANALYZE, after_work=True, **NO_ANSWER))
    world.ready()
    world.work()
    since = world.row()["in_doubt_since"]
    world.clock.advance(3600)
    world.restart()
    world.work_for(60)
    assert world.status() == Status.SUBMITTED
    assert world.row()["submitted_at"] == since


def test_again_needs_no_status_field(world: World) -> None:
    world.ready()
    world.work()
    world.sandbox.finish_job(world.sandbox.latest_job[ASSET])
    for holder in (world.sandbox.assets[ASSET], *world.sandbox.assets[ASSET]["versions"]):
        holder.pop("analyze_status", None)
    world.store.database.run(
        """UPDATE items SET status = 'ready', asked = 2, old_job_id = job_id, job_id = NULL, counted_on = NULL,
        source = 'search', next_attempt_at = :now""",
        now=world.store.now(),
    )
    world.work()
    assert world.sandbox.forced == [ASSET]
