"""The promises of 2.0 on the real process, against the stand-in over HTTP: mixed libraries, several jobs, limits."""

import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable

import pytest

from faulty_iconik import Fault, FaultyIconik
from sandbox import profile
from support import SECRET, Listener, create_event, proxy_event, wait_until
from system.text import parse_time

pytestmark = pytest.mark.long

Listeners = Callable[..., Listener]
JOBS = ("analyze", "transcribe", "faces")


def upload(listener: Listener, sandbox: FaultyIconik, title: str) -> str:
    """An asset at iconik whose two webhooks are answered 200."""
    asset_id = sandbox.create_asset(title, send=False)
    sandbox.set_proxy(asset_id, send=False)
    assert listener.post("/create", create_event(asset_id, title=title)).status_code == 200
    assert listener.post("/proxy", proxy_event(asset_id)).status_code == 200
    return asset_id


def test_a_mixed_library_ends_done_or_skipped_and_check_is_content(listeners: Listeners, sandbox: FaultyIconik) -> None:
    sandbox.profiles += [profile("Stills", "image"), profile("Clips", "video")]
    listener = listeners(analyze__profile="Stills, Clips", reconciler__interval=0.2, limits__max_per_day=1000).start()
    assert listener.command("register", "--insecure", listener.url).returncode == 0
    titles = [f"{number}.{kind}" for number in range(5) for kind in ("jpg", "mov", "wav", "pdf")]
    ids = {upload(listener, sandbox, title): title for title in titles}
    wait_until(lambda: len(listener.rows("finished = 'True'")) == len(ids))
    with sandbox.changed:
        sandbox.finish_all()
    wait_until(lambda: not listener.rows("status = 'submitted'"))
    names = {one["id"]: one["name"] for one in sandbox.profiles}
    for row in listener.rows():
        kind = ids[row["object_id"]].partition(".")[2]
        if kind in ("jpg", "mov"):
            expected = "Stills" if kind == "jpg" else "Clips"
            assert (row["status"], row["profile"]) == ("done", expected)
            assert names[sandbox.used_profiles[row["object_id"]]] == expected
        else:
            assert row["status"] == "skipped"
            assert row["error"].startswith("no profile in [analyze] is for ")
    assert Counter(sandbox.jobs) == {asset_id: 1 for asset_id in ids if ids[asset_id].endswith(("jpg", "mov"))}
    checked = listener.run("check")
    assert checked.returncode == 0, checked.stdout


def deliver_in_any_order(listener: Listener, sandbox: FaultyIconik, count: int, chance: random.Random) -> list[str]:
    """Assets whose webhooks are shuffled and doubled. Of a tenth one is lost: the listener finds that by itself."""
    ids = [sandbox.create_asset("a.mov", send=False) for _ in range(count)]
    events = []
    for number, asset_id in enumerate(ids):
        sandbox.set_proxy(asset_id, send=False)
        both = [("/create", create_event(asset_id)), ("/proxy", proxy_event(asset_id))]
        events += both[number % 2 : number % 2 + 1] if number % 10 == 0 else both * chance.choice([1, 2])
    chance.shuffle(events)
    for number, (path, event) in enumerate(events):
        if number % (len(events) // 5) == len(events) // 10:
            listener.end(signal.SIGKILL)
            listener.start()
        assert listener.post(path, event).status_code == 200
    return ids


@pytest.mark.parametrize("jobs", [JOBS, ("analyze",)], ids=" ".join)
def test_each_job_is_started_once_whatever_happens(
    listeners: Listeners, sandbox: FaultyIconik, jobs: tuple[str, ...]
) -> None:
    """300 assets whose webhooks are shuffled, doubled and partly lost; a fifth of iconik's calls fail; five kills."""
    listener = listeners(
        submitter__jobs=" ".join(jobs),
        submitter__workers=16,
        submitter__retry_delay=0.1,
        submitter__max_retry_delay=0.5,
        iconik__timeout=1,
        reconciler__interval=1,
        reconciler__min_age=1,
    ).start()
    sandbox.register(listener.url, {"X-Webhook-Secret": SECRET})
    listener.end()
    listener.start()
    wait_until(lambda: sandbox.requests)
    sandbox.faults.append(Fault(status=503, share=0.2, times=float("inf")))
    sandbox.faults.insert(0, Fault("POST /API/t", cut=True, after_work=True, share=0.05, times=30))
    ids = deliver_in_any_order(listener, sandbox, 300, random.Random(3))
    wait_until(lambda: len(listener.rows("status IN ('submitted', 'done')")) == len(jobs) * len(ids), 240)
    with sandbox.changed:
        sandbox.finish_all()
    wait_until(lambda: len(listener.rows("status = 'done'")) == len(jobs) * len(ids), 240)
    assert Counter(sandbox.started) == {(job, asset_id): 1 for job in jobs for asset_id in ids}


def test_a_restored_backup_starts_no_job_again(listeners: Listeners, sandbox: FaultyIconik) -> None:
    """Those that failed at iconik included (D3)."""
    listener = listeners(submitter__jobs=" ".join(JOBS), reconciler__interval=0.2).start()
    assert listener.command("pause").returncode == 0
    ids = [upload(listener, sandbox, "a.mov") for _ in range(3)]
    assert listener.end() == 0
    backup = shutil.copy(listener.database, listener.database.with_name("backup"))
    listener.start()
    assert listener.command("resume").returncode == 0
    upload(listener, sandbox, "b.mov")  # it wakes the workers
    wait_until(lambda: len(listener.rows("status = 'submitted'")) == 12)
    with sandbox.changed:
        for job_id, job in list(sandbox.job_details.items()):
            if job["object_id"] == ids[0]:
                sandbox.fail_job(job_id)
        sandbox.finish_all()
    wait_until(lambda: not listener.rows("status = 'submitted'"))
    started = list(sandbox.started)
    assert listener.end() == 0
    for ending in ("-wal", "-shm"):
        listener.database.with_name(f"items.db{ending}").unlink(missing_ok=True)
    shutil.copy(backup, listener.database)
    listener.start()
    assert listener.command("resume").returncode == 0
    upload(listener, sandbox, "c.mov")
    wait_until(lambda: not listener.rows("status IN ('ready', 'submitting')"))
    assert len(sandbox.started) == len(started) + 3
    statuses = Counter(row["status"] for row in listener.rows(f"object_id = '{ids[0]}'"))
    assert statuses == {"failed": 3}


def test_pause_stops_the_next_job_within_a_second_and_survives_a_restart(
    listeners: Listeners, sandbox: FaultyIconik
) -> None:
    """While eight workers are at it."""
    listener = listeners(submitter__workers=8).start()
    sandbox.latency = 0.4
    ids = [upload(listener, sandbox, "a.mov") for _ in range(30)]
    wait_until(lambda: sandbox.started)
    assert listener.command("pause").returncode == 0
    paused_at = time.time()
    ids.append(upload(listener, sandbox, "b.mov"))
    wait_until(lambda: not listener.rows("status = 'submitting'"))
    assert listener.end() == 0
    listener.start()
    ids.append(upload(listener, sandbox, "c.mov"))
    held = f'"held": {len(ids) - len(sandbox.started)}'
    wait_until(lambda: held in listener.command("status", "--json").stdout)
    started_at = [parse_time(job["date_created"]) or 0 for job in sandbox.job_details.values()]
    assert 0 < len(started_at) < 30
    assert max(started_at) < paused_at + 1
    sandbox.latency = 0
    assert listener.command("resume").returncode == 0
    ids += [upload(listener, sandbox, "d.mov") for _ in range(8)]  # each wakes a worker
    wait_until(lambda: len(listener.rows("status = 'submitted'")) == len(ids))
    assert sorted(sandbox.jobs) == sorted(ids)
