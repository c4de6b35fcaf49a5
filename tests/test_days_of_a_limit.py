"""The limit on the real process: days whose midnight the listener's clock passes in both directions, and mornings."""

import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import requests

from faulty_iconik import Fault, FaultyIconik
from store import ADD_ASSET, Source, Store
from support import Listener, create_event, proxy_event, wait_until

Listeners = Callable[..., Listener]
FIRST_DAY = datetime(2027, 1, 10, tzinfo=timezone.utc)
ASSETS, LIMIT = 20_000, 500
QUICK = {"submitter__retry_delay": 0.1, "submitter__max_retry_delay": 0.5, "iconik__timeout": 1}


class ListenersClock:
    """The wall clock of a listener's process, which a test sets at any time. What waits, waits by another clock."""

    prelude = (
        "import threading, time\ntime.sleep = lambda seconds: threading.Event().wait(seconds)"  # faketime breaks it
    )

    def __init__(self, folder: Path, listener: Listener) -> None:
        self._file = folder / "clock"
        asked = ["faketime", "-m", "-f", "+0d", "printenv", "LD_PRELOAD"]
        library = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
        listener.environment = {
            "LD_PRELOAD": library,
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_FORCE_MONOTONIC_FIX": "0",  # or a lock that is contended takes a hundred times as long
            "NO_FAKE_STAT": "1",
        }

    def set(self, day: int, **time_of_day: float) -> None:
        """Set it to a time of that day, counted from 1."""
        wanted = FIRST_DAY + timedelta(days=day - 1, **time_of_day)
        new = self._file.with_suffix(".new")
        new.write_text(f"{wanted.timestamp() - time.time():+.0f}")
        new.replace(self._file)


def fill(listener: Listener, sandbox: FaultyIconik, count: int, at: datetime) -> None:
    """Assets both of whose webhooks came at that time: as many webhooks would take minutes."""
    ids = [sandbox.create_asset("a.mov", send=False) for _ in range(count)]
    store = Store(listener.database, listener=True, clock=at.timestamp)
    store.database.run("PRAGMA synchronous = OFF")
    with store.database.transaction() as db:
        for asset_id in ids:
            db.execute(ADD_ASSET, store.asset_values(asset_id, "a.mov", Source.WEBHOOK))
        db.execute("UPDATE items SET status = 'ready', proxy_closed_at = created_at, next_attempt_at = created_at")
    store.close()


def upload(listener: Listener, sandbox: FaultyIconik, count: int) -> list[str]:
    ids = [sandbox.create_asset("a.mov", send=False) for _ in range(count)]
    with requests.Session() as session:
        session.headers["X-Webhook-Secret"] = "s3cret%-with;#oddities"
        for asset_id in ids:
            sandbox.set_proxy(asset_id, send=False)
            for path, event in (("/create", create_event(asset_id)), ("/proxy", proxy_event(asset_id))):
                assert session.post(listener.url + path, json=event, timeout=30).status_code == 200
    return ids


def health(listener: Listener) -> dict[str, object]:
    found: dict[str, object] = requests.get(f"{listener.url}/health", timeout=30).json()
    return found


def ledger(listener: Listener) -> dict[str, int]:
    store = Store(listener.database)
    rows = store.database.run("SELECT day, started FROM usage")
    store.close()
    return {row["day"]: row["started"] for row in rows}


def assets_read(sandbox: FaultyIconik) -> set[str]:
    return {request.split("/")[-2] for request in sandbox.requests if request.startswith("GET /API/assets/")}


@pytest.mark.long
@pytest.mark.skipif(shutil.which("faketime") is None, reason="faketime is not installed")
def test_exactly_the_limit_is_started_on_each_day_whatever_the_clock(
    listeners: Listeners, sandbox: FaultyIconik, tmp_path: Path
) -> None:
    """20,000 assets, 500 a day, 32 workers, five kills, and a clock that moves over midnight in both directions."""
    listener = listeners(submitter__workers=32, limits__max_per_day=LIMIT, reconciler__interval=0, **QUICK)
    clock = ListenersClock(tmp_path, listener)
    fill(listener, sandbox, ASSETS, FIRST_DAY - timedelta(hours=12))
    started = sandbox.started

    def restart(*, after: int) -> None:
        wait_until(lambda: len(started) >= after, 60)
        listener.end(signal.SIGKILL)
        listener.start(prelude=clock.prelude)

    def it_goes_on() -> list[str]:
        """Each webhook wakes a worker."""
        before, uploaded = len(started), list[str]()
        deadline = time.monotonic() + 60
        while len(started) == before:
            assert time.monotonic() < deadline
            uploaded += upload(listener, sandbox, 1)
            sandbox.wait_for(lambda: len(started) > before, 0.2)  # or they would be more than the day's jobs
        return uploaded

    def the_day_ends(day: int) -> None:
        wait_until(lambda: len(started) >= day * LIMIT and not health(listener)["submitting"], 60)
        assert len(started) == day * LIMIT
        assert ledger(listener)[(FIRST_DAY + timedelta(days=day - 1)).date().isoformat()] == LIMIT

    clock.set(1, hours=8)
    listener.start(prelude=clock.prelude)
    restart(after=150)
    restart(after=350)
    the_day_ends(1)
    todays = upload(listener, sandbox, 60)

    clock.set(1, hours=23, minutes=59, seconds=58)  # midnight comes by itself
    todays += it_goes_on()
    restart(after=LIMIT + 120)
    wait_until(lambda: len(started) >= LIMIT + 240, 60)
    clock.set(1, hours=23)  # back over midnight: that day is used up
    wait_until(lambda: health(listener)["limit_is_reached"] and not health(listener)["submitting"], 60)
    restart(after=LIMIT + 240)
    todays += upload(listener, sandbox, 40)
    assert len(started) < 2 * LIMIT
    clock.set(2, hours=1)
    todays += it_goes_on()
    restart(after=LIMIT + 360)
    the_day_ends(2)

    assert set(Counter(started).values()) == {1}
    assert assets_read(sandbox) == {asset_id for _, asset_id in started}  # none is read that is not started
    positions = {asset_id: number for number, (_, asset_id) in enumerate(started)}
    assert set(todays) <= positions.keys()  # they do not wait behind the backlog, which is larger than the day
    assert set(ledger(listener).values()) == {LIMIT}
    report = listener.command("report", "--csv", "--month", "2027-01").stdout.splitlines()[1:]
    assert [line.split(",")[2] for line in report] == ["500", "500"]


@pytest.mark.long
def test_a_morning_of_trouble_leaves_the_days_jobs_for_the_afternoon(
    listeners: Listeners, sandbox: FaultyIconik
) -> None:
    limit = 100
    listener = listeners(submitter__workers=32, limits__max_per_day=limit, reconciler__interval=0, **QUICK)
    fill(listener, sandbox, 2 * limit, datetime.now(timezone.utc) - timedelta(days=1))
    sandbox.faults.append(Fault("POST /API/transcode", status=503, share=0.5, times=float("inf")))
    sandbox.refuse_jobs = 402, "Insufficient credits"
    listener.start()
    wait_until(lambda: sum("POST /API/transcode" in request for request in sandbox.requests) > 2 * limit, 60)
    assert sandbox.started == []
    assert health(listener)["jobs_today"] == 0 or health(listener)["submitting"]
    with sandbox.changed:  # until this is released, iconik answers nothing, so all of today's come before the afternoon
        todays = upload(listener, sandbox, 30)
        sandbox.refuse_jobs = None
        sandbox.faults.clear()
    wait_until(lambda: len(sandbox.started) >= limit and not health(listener)["submitting"], 60)
    found = health(listener)
    assert (len(sandbox.started), found["jobs_today"], found["held"]) == (limit, limit, limit + 30)
    assert {asset_id for _, asset_id in sandbox.started} >= set(todays)
