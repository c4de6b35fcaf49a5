"""What no webhook told is found: the real listener after an outage, and nobody does anything."""

import json
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing

import pytest

from events import SECRET_HEADER
from faulty_iconik import Fault, FaultyIconik
from support import SECRET, Listener, free_port, wait_until
from system.text import parse_time

pytestmark = pytest.mark.long

LIST_OF_WEBHOOKS = "GET /API/notifications/v1/webhooks/?"
SEARCH = "POST /API/search/"
JOBS = "GET /API/jobs/"

Listeners = Callable[..., Listener]


@pytest.fixture
def new_listener(listeners: Listeners, sandbox: FaultyIconik) -> Callable[..., Listener]:
    """Makes a listener whose webhooks a person has defined, that has had its first start and its first look by now."""

    def make(**values: object) -> Listener:
        port = free_port()
        listener = listeners(**{"listener__port": port, "reconciler__min_age": 0, "iconik__timeout": 1, **values})
        sandbox.register(f"http://127.0.0.1:{port}", {SECRET_HEADER: SECRET})
        listener.start()
        wait_until(lambda: noted(listener, "assets_floor"))
        return listener

    return make


def noted(listener: Listener, key: str) -> str:
    """What the listener has noted under that key of items.db's state."""
    with closing(sqlite3.connect(listener.database)) as db:
        row = db.execute("SELECT value FROM state WHERE key = ?", (key,)).fetchone()
        return str(row[0]) if row else ""


def asked(sandbox: FaultyIconik, call: str) -> int:
    """How often iconik was asked that."""
    return sum(request.startswith(call) for request in sandbox.requests)


def upload_in_vain(sandbox: FaultyIconik, count: int) -> set[str]:
    """Upload assets while nobody answers, for so long that iconik disables both webhooks. Returns their ids."""
    ids = set()
    for number in range(count):
        asset_id = sandbox.create_asset("a.mov")
        sandbox.set_proxy(asset_id)
        ids.add(asset_id)
        if number == min(count, 20) - 1:
            sandbox.disable_failing_webhooks()
    assert not any(status for _, _, status in sandbox.deliveries)
    assert [webhook["status"] for webhook in sandbox.webhooks.values()] == ["DISABLED"] * 2
    return ids


def set_query(sandbox: FaultyIconik, query: str) -> None:
    """Have the /create webhook let only some assets through; with an empty query, all."""
    [create] = [webhook for webhook in sandbox.webhooks.values() if webhook["url"].endswith("/create")]
    create["query"] = query


def mended(listener: Listener, sandbox: FaultyIconik, ids: set[str]) -> None:
    """Each of these assets gets its one job, nothing else gets any, and both webhooks are in use."""
    wait_until(lambda: len(listener.rows("status = 'submitted'")) >= len(ids), 60)
    assert {row["object_id"] for row in listener.rows()} == ids
    assert Counter(sandbox.jobs) == Counter(ids)
    assert [webhook["status"] for webhook in sandbox.webhooks.values()] == ["ENABLED"] * 2


def test_after_an_outage_all_is_caught_up_with_in_one_look(
    new_listener: Callable[..., Listener], sandbox: FaultyIconik
) -> None:
    listener = new_listener(submitter__workers=8)
    listener.end()
    ids = upload_in_vain(sandbox, 300)
    listener.start()
    mended(listener, sandbox, ids)
    assert asked(sandbox, LIST_OF_WEBHOOKS) == 2  # one for each start
    wait_until(lambda: listener.logged("enabled again"))
    wait_until(lambda: listener.logged(f"Added {len(ids)} assets whose webhooks were missed"))
    sandbox.set_proxy(sandbox.create_asset("c.mov"))  # from now on, webhooks tell
    assert [status for _, _, status in sandbox.deliveries[-2:]] == [200, 200]


def test_creates_that_are_lost_while_it_runs_are_found(
    new_listener: Callable[..., Listener], sandbox: FaultyIconik
) -> None:
    listener = new_listener(reconciler__interval=0.3)
    ids = {sandbox.create_asset("a.mov", send=False) for _ in range(40)}
    for number, asset_id in enumerate(sorted(ids)):
        sandbox.set_proxy(asset_id, send=number % 2 == 0)  # of every other asset, both webhooks are lost
    mended(listener, sandbox, ids)


def start_and_kill(listener: Listener, sandbox: FaultyIconik, condition: Callable[[], bool]) -> None:
    """Start, and kill as soon as the condition holds."""
    listener.start()
    assert sandbox.wait_for(condition)
    listener.end(signal.SIGKILL)


def test_killed_in_the_middle_of_a_look_it_goes_on_after_the_next_start(
    new_listener: Callable[..., Listener], sandbox: FaultyIconik
) -> None:
    listener = new_listener(submitter__retry_delay=0.3, submitter__max_retry_delay=1, submitter__workers=8)
    listener.end()
    ids = upload_in_vain(sandbox, 110)
    sandbox.latency = 0.02  # iconik must have taken a request that was cut off by the time it is asked about it
    searches = asked(sandbox, SEARCH)
    start_and_kill(listener, sandbox, lambda: asked(sandbox, SEARCH) == searches + 2)
    assert len(listener.rows()) > 0
    listener.start()
    mended(listener, sandbox, ids)


def test_killed_after_each_of_its_first_requests(new_listener: Callable[..., Listener], sandbox: FaultyIconik) -> None:
    listener = new_listener(submitter__retry_delay=0.3, submitter__max_retry_delay=1)
    listener.end()
    ids = upload_in_vain(sandbox, 250)
    sandbox.latency = 0.02
    for requests in (1, 1, 2, 2, 3, 4, 5, 6, 7, 8, 9, 10, 15, 20, 30, 40):
        enough = len(sandbox.requests) + requests
        start_and_kill(listener, sandbox, lambda: len(sandbox.requests) >= enough)  # noqa: B023
    listener.start()
    mended(listener, sandbox, ids)


FAULTS = {"503": Fault(), "cut": Fault(cut=True), "lost answer": Fault(after_work=True, cut=True)}


@pytest.mark.parametrize(
    "fault", ["503", *(pytest.param(name, marks=pytest.mark.long) for name in ("cut", "lost answer"))]
)
def test_an_iconik_that_fails_each_of_its_calls_once_only_delays(
    new_listener: Callable[..., Listener], sandbox: FaultyIconik, fault: str
) -> None:
    listener = new_listener()
    listener.end()
    # Fewer than open the circuit breaker, for which each of its probes would be a call that fails for the first time.
    ids = upload_in_vain(sandbox, 9)
    sandbox.fail_each_once = FAULTS[fault]
    listener.start()
    mended(listener, sandbox, ids)


@pytest.mark.parametrize("fault", FAULTS)
def test_three_hundred_assets_though_each_call_of_the_look_fails_once(
    new_listener: Callable[..., Listener], sandbox: FaultyIconik, fault: str
) -> None:
    listener = new_listener(submitter__workers=8)
    listener.end()
    ids = upload_in_vain(sandbox, 300)
    one = FAULTS[fault]
    calls = [LIST_OF_WEBHOOKS, *(f"PUT /API/notifications/v1/webhooks/{webhook}" for webhook in sandbox.webhooks)]
    for call in (*calls, SEARCH, JOBS):
        sandbox.faults.append(Fault(call, one.status, after_work=one.after_work, cut=one.cut))
    sandbox.faults.insert(0, Fault(SEARCH, status=None))  # the second page is the one that fails
    listener.start()
    mended(listener, sandbox, ids)
    assert not any(fault.times for fault in sandbox.faults)


@pytest.mark.parametrize("by", ["hand", "register"])
@pytest.mark.parametrize("moment", ["running", "stopped"])
@pytest.mark.parametrize("edit", [{"status": "DISABLED"}, {"query": 'data.title="x"'}], ids=["disabled", "filtered"])
def test_what_a_person_kept_out_is_billed_only_by_the_catch_up_that_the_log_names(
    new_listener: Callable[..., Listener], sandbox: FaultyIconik, edit: dict[str, str], moment: str, by: str
) -> None:
    """The webhook is put back before the next look (W2)."""
    listener = new_listener(reconciler__interval=2)
    wait_until(lambda: noted(listener, "webhook_fingerprint"))
    wait_until(lambda: time.time() > seconds(noted(listener, "webhooks_seen_at")))
    if moment == "stopped":
        listener.end()
    [create_id] = [one["id"] for one in sandbox.webhooks.values() if one["url"].endswith("/create")]
    sandbox.edit_webhook(create_id, **edit)
    kept_out = {sandbox.create_asset("a.mov") for _ in range(20)}  # no webhook comes for its create
    for asset_id in kept_out:
        sandbox.set_proxy(asset_id, send=False)
    if by == "register":
        assert listener.command("register", "--insecure", "--yes", listener.url).returncode == 0
    if by == "hand" or "query" in edit:  # which register leaves as it is
        sandbox.edit_webhook(create_id, status="ENABLED", query="")
    put_back_at = time.time()
    if moment == "stopped":
        listener.start()
    wait_until(lambda: seconds(noted(listener, "webhooks_seen_at")) > put_back_at + 3, 60)  # two looks
    assert sandbox.jobs == []
    period = json.loads(noted(listener, "passed_over"))
    remedy = ["catch-up", "--since", period["since"], "--until", period["until"]]
    lines = "".join(listener.log)
    assert " ".join(remedy) in lines or by == "register"  # which says so itself
    assert listener.command(*remedy, "--yes").returncode == 0
    mended(listener, sandbox, kept_out)
    sandbox.set_proxy(sandbox.create_asset("b.mov"))  # from now on, webhooks tell
    wait_until(lambda: len(sandbox.jobs) == 21)


def seconds(time_as_text: str) -> float:
    found = parse_time(time_as_text)
    assert found is not None
    return found


def test_while_a_query_is_on_the_create_webhook_nothing_is_added(
    new_listener: Callable[..., Listener], sandbox: FaultyIconik
) -> None:
    listener = new_listener()
    listener.end()
    set_query(sandbox, 'data.type="ASSET"')
    upload_in_vain(sandbox, 20)
    listener.start()
    wait_until(lambda: "data.type" in noted(listener, "webhook_fingerprint"))
    listener.end()
    assert listener.rows() == []
    set_query(sandbox, "")
    listener.start()
    wait_until(lambda: '"query": ""' in noted(listener, "webhook_fingerprint"))
    listener.end()
    assert listener.rows() == []
    assert sandbox.jobs == []


def test_a_job_that_failed_at_iconik_is_told_and_a_retry_analyzes_once_more(
    new_listener: Callable[..., Listener], sandbox: FaultyIconik
) -> None:
    listener = new_listener(reconciler__interval=0.2)
    failing, good = sandbox.create_asset("a.mov"), sandbox.create_asset("b.mov")
    sandbox.set_proxy(failing)
    wait_until(lambda: listener.rows("status = 'submitted'"))
    sandbox.fail_job(sandbox.latest_job[failing], "Codec unknown")
    wait_until(lambda: listener.rows("status = 'failed'"))
    assert listener.rows("status = 'failed'")[0]["error"] == "iconik's analyze job failed: Codec unknown"
    assert listener.command("retry", failing).returncode == 0
    sandbox.set_proxy(good)  # the listener need not look by itself, which it does every half minute
    wait_until(lambda: len(listener.rows("status = 'submitted'")) == 2)
    looks = asked(sandbox, JOBS) + 2
    assert sandbox.wait_for(lambda: asked(sandbox, JOBS) >= looks)  # the old job's failure is not this run's
    assert len(listener.rows("status = 'submitted'")) == 2
    assert Counter(sandbox.jobs) == {failing: 2, good: 1}
    assert sum("analyze job failed" in line for line in listener.log) == 1
