import logging
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

import store as store_module
import submitter as submitter_module
from config import SubmitterConfig, SweepConfig
from iconik_client import IconikClient, IconikDenied, IconikRateLimited, IconikUnavailable
from sandbox import Fault, Sandbox
from store import Store
from submitter import MOST_SERVER_ERRORS, Pauses, Submitter, Sweep, backoff
from support import ASSET, OTHER_ASSET, Clock, new_id, rows, wait_until

Submitters = Callable[..., Submitter]


def ready(store: Store, sandbox: Sandbox, *asset_ids: str) -> None:
    for asset_id in asset_ids:
        sandbox.create_asset("a.mov", asset_id)
        store.created(asset_id, "a.mov")
        store.proxy_closed(asset_id)


@pytest.fixture
def row(tmp_path: Path) -> Callable[..., sqlite3.Row]:
    def read(asset_id: str = ASSET) -> sqlite3.Row:
        [row] = rows(tmp_path / "items.db", f"object_id = '{asset_id}'")
        return row

    return read


Row = Callable[..., sqlite3.Row]


# What iconik's answers do to the item


def test_a_ready_item_is_submitted_once(store: Store, sandbox: Sandbox, submitters: Submitters, row: Row) -> None:
    ready(store, sandbox, ASSET)
    submitters().start()
    wait_until(lambda: row()["status"] == "submitted")
    assert sandbox.requests == [f"POST /API/transcode/v1/analyze/assets/{ASSET}/"]
    assert len(row()["job_id"]) == 36


@pytest.mark.parametrize("status", [401, 403, 429, 302, 307, 408, 502, 503, 504])
def test_an_answer_that_concerns_everybody_pauses_everybody(
    store: Store, sandbox: Sandbox, submitters: Submitters, row: Row, status: int
) -> None:
    ready(store, sandbox, ASSET, OTHER_ASSET)
    sandbox.faults.append(Fault(status=status))
    submitter = submitters(workers=1, retry_delay=60, max_retry_delay=60)
    submitter.start()
    wait_until(lambda: row()["error"])
    assert (row()["status"], row(OTHER_ASSET)["status"]) == ("ready", "ready")
    assert submitter._pauses.paused
    assert len(sandbox.requests) == 1
    assert (row()["server_errors"], row(OTHER_ASSET)["attempts"]) == (0, 0)


@pytest.mark.parametrize(
    "fault",
    [
        *[Fault(status=status, times=3) for status in (401, 403, 429, 302, 408, 500, 502, 503, 504, 520)],
        Fault(cut=True, times=3),
    ],
    ids=lambda fault: str(fault.status) if not fault.cut else "cut",
)
def test_after_trouble_the_item_is_submitted_once(
    store: Store, sandbox: Sandbox, submitters: Submitters, row: Row, fault: Fault
) -> None:
    ready(store, sandbox, ASSET)
    sandbox.faults.append(fault)
    submitters().start()
    wait_until(lambda: row()["status"] == "submitted")
    assert sandbox.jobs == [ASSET]
    assert row()["error"] is None


@pytest.mark.parametrize("status", [500, 501, 520])
def test_another_5xx_delays_this_item_only(
    store: Store, sandbox: Sandbox, submitters: Submitters, row: Row, status: int
) -> None:
    ready(store, sandbox, ASSET, OTHER_ASSET)
    sandbox.faults.append(Fault(match=ASSET, status=status))
    submitter = submitters(workers=1, retry_delay=60, max_retry_delay=60)
    submitter.start()
    wait_until(lambda: row(OTHER_ASSET)["status"] == "submitted")
    assert (row()["status"], row()["server_errors"]) == ("ready", 1)
    assert row()["error"] == f"iconik answered {status}: Out of order"
    assert not submitter._pauses.paused


def test_an_item_over_which_iconik_breaks_down_20_times_has_failed(
    store: Store, sandbox: Sandbox, submitters: Submitters, row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    delays = []

    def short(config: SubmitterConfig, failures: int) -> float:
        delays.append(failures)
        return 0.001

    monkeypatch.setattr(submitter_module, "backoff", short)
    ready(store, sandbox, ASSET)
    sandbox.faults.append(Fault(status=500, times=float("inf")))
    submitters().start()
    wait_until(lambda: row()["status"] == "failed")
    assert (row()["attempts"], row()["server_errors"]) == (20, 19)
    assert delays == list(range(1, MOST_SERVER_ERRORS))
    assert len(sandbox.requests) == 20


@pytest.mark.parametrize("status", [400, 404, 405, 409, 422])
def test_another_4xx_fails_this_item_only(
    store: Store, sandbox: Sandbox, submitters: Submitters, row: Row, status: int
) -> None:
    ready(store, sandbox, ASSET, OTHER_ASSET)
    sandbox.faults.append(Fault(match=ASSET, status=status, body=b'{"errors": ["No such thing"]}'))
    submitters(workers=1).start()
    wait_until(lambda: row(OTHER_ASSET)["status"] == "submitted")
    assert (row()["status"], row()["error"]) == ("failed", f"iconik answered {status}: No such thing")
    assert sandbox.jobs == [OTHER_ASSET]


def test_an_outage_uses_up_no_attempts(store: Store, sandbox: Sandbox, submitters: Submitters, row: Row) -> None:
    ready(store, sandbox, ASSET)
    sandbox.faults.append(Fault(status=503, times=3 * MOST_SERVER_ERRORS))
    submitters(retry_delay=0.001, max_retry_delay=0.001).start()
    wait_until(lambda: row()["status"] == "submitted")
    assert row()["attempts"] == 3 * MOST_SERVER_ERRORS + 1
    assert sandbox.jobs == [ASSET]


def test_a_denial_is_an_error_in_the_log_that_names_credentials_and_role(
    store: Store, sandbox: Sandbox, submitters: Submitters, row: Row, caplog: pytest.LogCaptureFixture
) -> None:
    ready(store, sandbox, ASSET)
    sandbox.roles.discard("can_analyze_content")
    submitters(retry_delay=60, max_retry_delay=60).start()
    wait_until(lambda: row()["error"])
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    for words in ("app_id", "auth_token", "can_analyze_content"):
        assert words in record.getMessage()


def test_a_mistake_of_ours_ends_no_worker(
    store: Store, sandbox: Sandbox, submitters: Submitters, row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready(store, sandbox, ASSET)
    submitter = submitters(workers=1)
    analyze = submitter._client.analyze
    monkeypatch.setattr(submitter._client, "analyze", lambda asset_id: 1 / 0)
    submitter.start()
    wait_until(lambda: row()["error"])
    assert row()["error"] == "unexpected ZeroDivisionError, see the log"
    monkeypatch.setattr(submitter._client, "analyze", analyze)
    wait_until(lambda: row()["status"] == "submitted")


# Asking before any attempt but the first


@pytest.mark.parametrize(
    "fault",
    [
        Fault("POST", cut=True, after_work=True),
        Fault("POST", status=502, after_work=True),
        Fault("POST", status=500, after_work=True),
        Fault("POST", status=408, after_work=True),
        Fault("POST", hang=True, after_work=True),
    ],
    ids=["cut", "502", "500", "408", "no answer"],
)
def test_a_job_that_was_taken_although_its_answer_was_lost_is_not_posted_again(
    store: Store, sandbox: Sandbox, client: IconikClient, submitters: Submitters, row: Row, fault: Fault
) -> None:
    ready(store, sandbox, ASSET)
    sandbox.faults.append(fault)
    client._timeout = 0.1
    submitters().start()
    wait_until(lambda: row()["status"] == "submitted")
    assert sandbox.jobs == [ASSET]
    assert [request.split()[0] for request in sandbox.requests] == ["POST", "GET"]
    assert row()["job_id"] is None


def test_a_job_that_was_not_taken_is_posted_again_once_iconik_has_said_so(
    store: Store, sandbox: Sandbox, submitters: Submitters, row: Row
) -> None:
    ready(store, sandbox, ASSET)
    sandbox.faults.append(Fault("POST", cut=True))
    submitters().start()
    wait_until(lambda: row()["status"] == "submitted")
    assert [request.split()[0] for request in sandbox.requests] == ["POST", "GET", "POST"]


def test_an_item_that_was_under_way_when_the_process_ended_is_asked_for(
    store: Store, sandbox: Sandbox, submitters: Submitters, row: Row
) -> None:
    ready(store, sandbox, ASSET, OTHER_ASSET)
    store.claim()
    store.claim()
    sandbox.assets[ASSET]["analyze_status"] = "IN_PROGRESS"
    submitters().start()
    wait_until(lambda: row()["status"] == row(OTHER_ASSET)["status"] == "submitted")
    assert sandbox.jobs == [OTHER_ASSET]


@pytest.mark.parametrize("status", [401, 503])
def test_nothing_is_posted_while_asking_does_not_work(
    store: Store, sandbox: Sandbox, submitters: Submitters, row: Row, status: int
) -> None:
    ready(store, sandbox, ASSET)
    sandbox.faults += [Fault("POST", status=503), Fault("GET", status=status, times=3)]
    submitters().start()
    wait_until(lambda: row()["status"] == "submitted")
    assert [request.split()[0] for request in sandbox.requests] == ["POST", *["GET"] * 4, "POST"]


# Outcomes, waking and stopping


def test_an_outcome_that_cannot_be_written_is_kept_and_written_later(
    store: Store, sandbox: Sandbox, submitters: Submitters, row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "BUSY_SECONDS", 0.02)
    ready(store, sandbox, ASSET)
    sandbox.latency = 0.1
    with closing(sqlite3.connect(tmp_path / "items.db", isolation_level=None)) as person:
        submitters().start()
        wait_until(lambda: row()["status"] == "submitting")
        person.execute("BEGIN IMMEDIATE")
        assert sandbox.wait_for(lambda: sandbox.jobs == [ASSET])
        with pytest.raises(AssertionError):
            wait_until(lambda: row()["status"] != "submitting", 0.2)
        person.execute("COMMIT")
    wait_until(lambda: row()["status"] == "submitted")
    assert len(sandbox.requests) == 1


def test_waking_takes_up_a_new_item_at_once(store: Store, sandbox: Sandbox, submitters: Submitters, row: Row) -> None:
    submitter = submitters()
    submitter.start()
    wait_until(lambda: all(thread.is_alive() for thread in submitter._threads))
    for asset_id in (new_id() for _ in range(20)):
        ready(store, sandbox, asset_id)
        submitter.wake()
        wait_until(lambda: asset_id in sandbox.jobs, 5)  # noqa: B023


def test_what_another_program_makes_ready_is_taken_up_without_waking(
    store: Store, sandbox: Sandbox, submitters: Submitters, row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert submitter_module.POLL_SECONDS == 30
    monkeypatch.setattr(submitter_module, "POLL_SECONDS", 0.02)
    submitters().start()
    ready(store, sandbox, ASSET)
    wait_until(lambda: row()["status"] == "submitted")


def test_an_idle_submitter_asks_the_database_no_more_than_every_30_seconds(
    store: Store, submitters: Submitters
) -> None:
    assert submitters()._seconds_to_wait() == 30
    store.created(ASSET, None)
    store.proxy_closed(ASSET)
    store.claim()
    store.postponed(ASSET, 3600, "error")
    assert submitters()._seconds_to_wait() == 30


def test_stopping_lets_requests_under_way_finish_and_records_them(
    store: Store, sandbox: Sandbox, submitters: Submitters, row: Row
) -> None:
    ready(store, sandbox, ASSET, OTHER_ASSET)
    sandbox.latency = 0.2
    submitter = submitters(workers=1)
    submitter.start()
    wait_until(lambda: "submitting" in (row()["status"], row(OTHER_ASSET)["status"]))
    submitter.stop()
    assert sorted((row()["status"], row(OTHER_ASSET)["status"])) == ["ready", "submitted"]
    assert len(sandbox.jobs) == 1


def test_stopping_waits_for_no_answer_that_never_comes(
    store: Store, sandbox: Sandbox, submitters: Submitters, row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submitter_module, "STOP_SECONDS", 0.05)
    ready(store, sandbox, ASSET)
    sandbox.faults.append(Fault(hang=True))
    submitter = submitters()
    submitter.start()
    assert sandbox.wait_for(lambda: len(sandbox.requests) == 1)
    submitter.stop()
    assert row()["status"] == "submitting"
    sandbox.stopping.set()


# Pauses

CONFIG = SubmitterConfig(workers=4, timeout=30, retry_delay=10, max_retry_delay=900)
TROUBLE = IconikUnavailable("iconik answered 503")


@pytest.fixture
def pauses(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Pauses:
    monkeypatch.setattr("random.uniform", lambda low, high: low)
    return Pauses(CONFIG, clock)


def turn(pauses: Pauses) -> int:
    turn = pauses.enter()
    assert turn is not None
    return turn


def is_open(pauses: Pauses) -> bool:
    """Whether a request may go out now."""
    entered = threading.Thread(target=pauses.enter, daemon=True)
    entered.start()
    entered.join(0.1)
    return not entered.is_alive()


def limited(seconds: float | None) -> IconikRateLimited:
    error = IconikRateLimited("iconik answered 429")
    error.retry_after = seconds
    return error


def test_pauses_double_up_to_the_longest_and_begin_anew_after_a_success(pauses: Pauses, clock: Clock) -> None:
    for _ in range(2):
        lengths = []
        for _ in range(9):
            lengths.append(pauses.begin(turn(pauses), "analyze", TROUBLE))
            clock.now += lengths[-1]
        assert lengths == [10, 20, 40, 80, 160, 320, 640, 900, 900]
        assert pauses.paused
        pauses.end(turn(pauses), "analyze")
        assert not pauses.paused


def test_delays_vary_by_chance_and_are_never_shorter_than_configured() -> None:
    delays = {backoff(CONFIG, 2) for _ in range(100)}
    assert len(delays) > 50
    assert min(delays) >= 20
    assert max(delays) <= 25
    assert 900 <= backoff(CONFIG, 10_000) <= 900 * 1.25


def test_a_pause_lasts_as_long_as_iconik_asks_for(pauses: Pauses, clock: Clock) -> None:
    assert pauses.begin(turn(pauses), "analyze", limited(77)) == 77
    clock.now += 77
    assert pauses.begin(turn(pauses), "analyze", limited(None)) == 20


def test_while_paused_nothing_goes_out_then_one_request_at_a_time(pauses: Pauses, clock: Clock) -> None:
    assert is_open(pauses)
    pauses.begin(turn(pauses), "analyze", TROUBLE)
    assert not is_open(pauses)
    clock.now += 10
    probe = turn(pauses)
    assert not is_open(pauses)
    pauses.leave(probe)  # an answer that is neither trouble nor success: the next one at a time
    probe = turn(pauses)
    assert not is_open(pauses)
    pauses.end(probe, "analyze")
    assert is_open(pauses)


def test_the_end_of_a_pause_lets_those_in_who_wait(pauses: Pauses, clock: Clock) -> None:
    pauses.begin(turn(pauses), "analyze", TROUBLE)
    clock.now += 10
    probe = turn(pauses)
    waiting = [threading.Thread(target=pauses.enter, daemon=True) for _ in range(3)]
    for thread in waiting:
        thread.start()
    pauses.end(probe, "analyze")
    for thread in waiting:
        thread.join(5)
        assert not thread.is_alive()


def test_answers_to_requests_from_before_the_pause_neither_lengthen_nor_end_it(pauses: Pauses, clock: Clock) -> None:
    turns = [turn(pauses) for _ in range(4)]
    assert pauses.begin(turns[0], "analyze", TROUBLE) == 10
    clock.now += 4
    assert pauses.begin(turns[1], "analyze", TROUBLE) == 6
    pauses.end(turns[2], "analyze")
    assert pauses.paused
    assert pauses.begin(turns[3], "analyze", limited(50)) == 50  # but what iconik asks for is kept
    clock.now += 50
    assert pauses.begin(turn(pauses), "analyze", TROUBLE) == 20


def test_late_news_of_an_outage_that_is_over_begins_no_pause(pauses: Pauses, clock: Clock) -> None:
    turns = [turn(pauses) for _ in range(2)]
    pauses.begin(turns[0], "analyze", TROUBLE)
    clock.now += 10
    pauses.end(turn(pauses), "analyze")
    assert pauses.begin(turns[1], "analyze", TROUBLE) == 10  # for its item
    assert not pauses.paused


def test_reading_proxies_ends_no_pause_that_analyzing_began_but_its_own(pauses: Pauses, clock: Clock) -> None:
    pauses.begin(turn(pauses), "analyze", TROUBLE)
    clock.now += 10
    pauses.end(turn(pauses), "proxies")
    assert pauses.paused
    pauses.end(turn(pauses), "analyze")
    pauses.begin(turn(pauses), "proxies", TROUBLE)
    clock.now += 10
    pauses.end(turn(pauses), "proxies")
    assert not pauses.paused


def test_closed_pauses_let_nobody_in(pauses: Pauses, clock: Clock) -> None:
    pauses.begin(turn(pauses), "analyze", TROUBLE)
    waiting = threading.Thread(target=pauses.enter)
    waiting.start()
    pauses.close()
    waiting.join(5)
    assert not waiting.is_alive()
    assert pauses.enter() is None


def test_the_log_tells_of_trouble_since_when_and_of_its_end(
    pauses: Pauses, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    pauses.begin(turn(pauses), "analyze", TROUBLE)
    clock.now += 10
    pauses.begin(turn(pauses), "analyze", IconikDenied("iconik answered 403"))
    clock.now += 20
    pauses.end(turn(pauses), "analyze")
    first, second, third = (record.getMessage() for record in caplog.records)
    since = first.partition("(")[2]
    assert first.startswith("iconik answered 503. No requests for 10 s (trouble since 20")
    assert second == f"iconik answered 403. No requests for 20 s ({since}"
    assert third == f"iconik takes requests again ({since}"
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR", "INFO"]


# The sweep


@pytest.fixture
def sweeps(
    store: Store, client: IconikClient, submitters: Submitters, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Sweep]:
    """Makes sweeps, each with its submitter started."""
    monkeypatch.setattr(submitter_module, "SWEEPS_PER_SECOND", 1000)

    def make(**values: float) -> Sweep:
        submitter = submitters()
        submitter.start()
        config = SweepConfig(**{"interval": 3600, "min_age": 0, "max_age": 3600, **values})
        return Sweep(store, client, submitter._pauses, submitter, config)

    return make


def proxy_requests(sandbox: Sandbox) -> list[str]:
    return [request.split("/")[5] for request in sandbox.requests if "/proxies/" in request]


def test_a_missed_proxy_is_found_and_its_asset_analyzed(
    store: Store, sandbox: Sandbox, sweeps: Callable[..., Sweep], row: Row, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    sandbox.create_asset("a.mov", ASSET)
    sandbox.set_proxy(ASSET, "OPEN")
    sandbox.set_proxy(ASSET)
    store.created(ASSET, "a.mov")
    sweeps()._sweep()
    wait_until(lambda: row()["status"] == "submitted")
    assert sandbox.jobs == [ASSET]
    assert "the webhook was missed" in caplog.text


def test_an_item_without_a_closed_proxy_stays_pending_and_is_asked_for_once_a_sweep(
    store: Store, sandbox: Sandbox, sweeps: Callable[..., Sweep], row: Row
) -> None:
    ids = [new_id() for _ in range(30)]
    for asset_id in ids:
        store.created(asset_id, None)
        sandbox.set_proxy(asset_id, "OPEN")
    sweep = sweeps()
    sweep._sweep()
    assert sorted(proxy_requests(sandbox)) == sorted(ids)
    sweep._sweep()
    assert len(proxy_requests(sandbox)) == 60
    assert row(ids[0])["status"] == "pending"


def test_only_items_of_the_right_age_are_asked_for_oldest_first(
    sandbox: Sandbox, store: Store, sweeps: Callable[..., Sweep], tmp_path: Path
) -> None:
    ids = [new_id() for _ in range(4)]
    ages = [604_700, 605_000, 700, 500]
    with closing(sqlite3.connect(tmp_path / "items.db")) as db:
        for asset_id, age in zip(ids, ages):
            store.created(asset_id, None)
            created_at = f"strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-{age} seconds')"
            db.execute(f"UPDATE items SET created_at = {created_at} WHERE object_id = '{asset_id}'")
            db.commit()
    sweeps(min_age=600, max_age=604_800)._sweep()
    assert proxy_requests(sandbox) == [ids[0], ids[2]]


def test_a_sweep_is_done_at_the_start_and_after_each_interval(
    store: Store, sandbox: Sandbox, sweeps: Callable[..., Sweep]
) -> None:
    store.created(ASSET, None)
    sweep = sweeps(interval=0.05)
    sweep.start()
    assert sandbox.wait_for(lambda: len(proxy_requests(sandbox)) >= 3)
    sweep.stop()


def test_with_interval_0_iconik_is_not_asked_but_early_items_still_go(
    store: Store, sandbox: Sandbox, sweeps: Callable[..., Sweep], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submitter_module, "EARLY_SECONDS", -1)
    store.created(ASSET, None)
    store.proxy_closed(OTHER_ASSET)
    sweeps(interval=0)._sweep()
    assert sandbox.requests == []
    assert [row["object_id"] for row in rows(tmp_path / "items.db")] == [ASSET]


def test_a_sweep_asks_at_most_5_times_a_second(
    store: Store, sandbox: Sandbox, sweeps: Callable[..., Sweep], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    waits = []
    sweep = sweeps()
    monkeypatch.setattr(submitter_module, "SWEEPS_PER_SECOND", 5)
    monkeypatch.setattr(sweep._stopping, "wait", lambda seconds: waits.append(seconds))
    for _ in range(3):
        store.created(new_id(), None)
    sweep._sweep()
    assert waits == [0.2, 0.2, 0.2]
    assert len(sandbox.requests) == 3


def test_a_sweep_stops_in_the_middle(store: Store, sandbox: Sandbox, sweeps: Callable[..., Sweep]) -> None:
    for _ in range(50):
        store.created(new_id(), None)
    sweep = sweeps()
    sandbox.latency = 0.02
    sweep.start()
    assert sandbox.wait_for(lambda: len(sandbox.requests) >= 3)
    sweep.stop()
    sweep._thread.join(10)
    assert len(sandbox.requests) < 50


@pytest.mark.parametrize(
    "fault",
    [Fault(status=503), Fault(status=429), Fault(cut=True), Fault(status=302), Fault(status=200, body=b"<html>")],
)
def test_trouble_met_in_a_sweep_pauses_and_the_sweep_goes_on_after_it(
    store: Store, sandbox: Sandbox, sweeps: Callable[..., Sweep], fault: Fault, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    ids = [new_id() for _ in range(3)]
    for asset_id in ids:
        store.created(asset_id, None)
    fault.times = 1
    sandbox.faults.append(fault)
    sweep = sweeps()
    sweep._sweep()
    assert sorted(proxy_requests(sandbox)) == sorted(ids)
    assert not sweep._pauses.paused
    assert "No requests for" in caplog.text


@pytest.mark.parametrize("fault", [Fault(status=500), Fault(status=400)])
def test_iconiks_trouble_with_one_asset_does_not_hold_the_others_up(
    store: Store, sandbox: Sandbox, sweeps: Callable[..., Sweep], fault: Fault
) -> None:
    for _ in range(3):
        store.created(new_id(), None)
    sandbox.faults.append(fault)
    sweep = sweeps()
    sweep._sweep()
    assert len(sandbox.requests) == 3
    assert not sweep._pauses.paused


def test_a_missing_role_ends_the_sweep_and_pauses_no_jobs(
    store: Store, sandbox: Sandbox, sweeps: Callable[..., Sweep], caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        store.created(new_id(), None)
    sandbox.roles.discard("can_read_proxies")
    sweep = sweeps()
    sweep._sweep()
    assert len(sandbox.requests) == 1
    assert not sweep._pauses.paused
    assert "can_read_proxies" in caplog.text


def test_a_sweep_survives_a_database_that_is_locked(
    store: Store, sandbox: Sandbox, sweeps: Callable[..., Sweep], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "BUSY_SECONDS", 0.01)
    store.created(ASSET, None)
    sweep = sweeps(interval=0.05)
    with closing(sqlite3.connect(tmp_path / "items.db", isolation_level=None)) as person:
        person.execute("BEGIN IMMEDIATE")
        sweep._sweep()
        assert sandbox.requests == []
        person.execute("COMMIT")
    sweep._sweep()
    assert len(sandbox.requests) == 1


@pytest.mark.long
def test_thousands_of_items_that_never_get_a_proxy_are_each_asked_for_once_oldest_first(
    store: Store, sandbox: Sandbox, sweeps: Callable[..., Sweep], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submitter_module, "SWEEPS_PER_SECOND", 1e9)
    clock = Clock(store._clock() - 3000)
    monkeypatch.setattr(store, "_clock", clock)
    ids = []
    for _ in range(3000):
        ids.append(new_id())
        store.created(ids[-1], None)
        clock.now += 0.5
    sweeps()._sweep()
    assert proxy_requests(sandbox) == ids
