"""status, show and report: what a person asks, answered by one command each."""

import json
from collections.abc import Callable

import pytest

from commands.status import problem_groups
from faulty_iconik import Fault, FaultyIconik
from limits import Limits
from sandbox import profile
from store import DAY_SECONDS
from support import ASSET, OTHER_ASSET, ListenerHere, create_event, new_id, wait_until

Listeners = Callable[..., ListenerHere]
SLOW = {"submitter__retry_delay": 60, "submitter__max_retry_delay": 60}


@pytest.fixture(autouse=True)
def how_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ICONIK_LISTENER_COMMAND", "iconik-listener")


def run(listener: ListenerHere, *arguments: str, code: int = 0) -> str:
    result = listener.command(*arguments)
    assert result.returncode == code, result.stdout + result.stderr
    return result.stdout + result.stderr


# status


def test_an_empty_table_is_said_to_be_empty(listener_here: ListenerHere) -> None:
    text = run(listener_here, "status")
    assert "items.db holds no items yet." in text
    assert "0 analyses were started today (UTC), 0 this month." in text
    assert "No webhook has come yet." in text


def test_the_eight_questions_are_answered_at_a_glance(listeners_here: Listeners, sandbox: FaultyIconik) -> None:
    listener = listeners_here(limits__max_per_day=50).start()
    listener.upload(ASSET, OTHER_ASSET)
    wait_until(lambda: len(listener.rows("status = 'submitted'")) == 2)
    text = " ".join(run(listener, "status").split())
    assert "2 of 50 analyses were started today (UTC), 2 this month. The last one was accepted at 20" in text
    assert "The listener (" in text and "has been running since" in text
    assert "The last webhook came at 20" in text
    assert "submitted 2" in text


def test_failures_are_grouped_by_reason_with_names(listener_here: ListenerHere) -> None:
    store = listener_here.store
    for number in range(60):
        object_id = new_id()
        store.add_asset(object_id, f"clip{number}.mov")
        reason = "Codec unknown" if number % 3 else "File is empty"
        store.database.run(
            """UPDATE items SET status = 'failed', error = :error, reason = :reason, last_attempt_at = :at
            WHERE object_id = :object_id""",
            error=f"{reason} {object_id}",
            reason=reason,
            at=store.now(number),
            object_id=object_id,
        )
    lines = run(listener_here, "status").splitlines()
    assert len(lines) < 30
    first = lines.index("  Codec unknown")
    assert lines[first - 1].startswith("40 items failed, since 20")
    assert lines[first + 1] == "  clip59.mov, clip58.mov, clip56.mov and 37 more"
    assert any(line.startswith("20 items failed") for line in lines)
    assert "To check everything: iconik-listener check" in " ".join(lines)
    assert run(listener_here, "status", "--all").count("Codec unknown") > 40


def test_what_is_retried_is_shown_with_its_reason(listeners_here: Listeners, sandbox: FaultyIconik) -> None:
    listener_here = listeners_here(submitter__retry_delay=60, submitter__max_retry_delay=60).start()
    sandbox.asset_faults[ASSET] = Fault(status=503, times=float("inf"))
    listener_here.upload(ASSET)
    wait_until(lambda: listener_here.rows("attempts > 0 AND status = 'ready'"))
    text = run(listener_here, "status")
    assert "1 item waiting to be retried" in text
    assert "iconik answered 503: Out of order" in text


def test_since_when_items_wait_stays_though_they_are_tried_again(listener_here: ListenerHere) -> None:
    store = listener_here.store
    store.database.run(  # in one statement, and not due: no worker comes in between
        """INSERT INTO items (object_id, title, status, created_at, proxy_closed_at, last_attempt_at, next_attempt_at,
            attempts, backoff, error, reason)
        VALUES (:id, 'a.mov', 'ready', '2026-11-20T08:00:00.000Z', '2026-11-20T09:00:00.000Z', :now, :tomorrow,
            9, 86400, 'No credits', 'No credits')""",
        id=ASSET,
        now=store.now(),
        tomorrow=store.now(86400),
    )
    assert run(listener_here, "status").startswith("1 item waiting to be retried, since 2026-11-20 09:00:00 UTC:\n")
    assert f'{ASSET} "a.mov"  ready since 2026-11-20 09:00:00 UTC, 9 attempts' in run(listener_here, "status", "--all")


def test_the_last_job_is_still_the_last_one_after_it_failed(listeners_here: Listeners) -> None:
    listener = listeners_here().start()
    listener.upload(ASSET)
    wait_until(lambda: listener.rows("status = 'submitted'"))
    accepted = " ".join(run(listener, "status").split()).partition(" The last one was accepted at ")[2][:23]
    assert accepted.startswith("20")
    listener.store.database.run("UPDATE items SET status = 'failed'")
    assert f"The last one was accepted at {accepted}" in " ".join(run(listener, "status").split())


def test_most_of_the_limit_is_told_in_percent(listeners_here: Listeners) -> None:
    listener = listeners_here(limits__max_per_day=6).start()
    listener.upload(*(new_id() for _ in range(4)))
    wait_until(lambda: len(listener.rows("status = 'submitted'")) == 4)
    assert "4 of 6 analyses were started today (UTC), 4 this month." in run(listener, "status")
    listener.upload(new_id())
    wait_until(lambda: len(listener.rows("status = 'submitted'")) == 5)
    assert "5 of 6 analyses were started today (UTC, 83 %), 5 this month." in run(listener, "status")
    assert json.loads(run(listener, "status", "--json"))["limit_is_near"] is True


def test_jobs_are_told_apart_where_there_are_several(listeners_here: Listeners, sandbox: FaultyIconik) -> None:
    listener = listeners_here(submitter__jobs="analyze transcribe faces", **SLOW).start()
    sandbox.faults.append(Fault("POST /API/transcode/v1/transcribe", status=503, times=9))
    listener.upload(ASSET)
    wait_until(lambda: not listener.rows("status = 'submitting' OR status = 'ready' AND attempts = 0"))
    lines = run(listener, "status").splitlines()
    assert lines[0].startswith("1 item (transcribe) waiting to be retried, since 20")
    assert "2 jobs were started today (UTC), 2 this month." in " ".join(lines)
    assert "Today: 1 analyze, 0 transcribe, 1 faces." in " ".join(lines)
    heads = next(number for number, line in enumerate(lines) if line.startswith("status"))
    assert lines[heads].split() == ["status", "items", "analyze", "transcribe", "faces", "oldest"]
    assert [line.split()[:5] for line in lines[heads + 1 : heads + 3]] == [
        ["ready", "1", "0", "1", "0"],
        ["submitted", "2", "1", "0", "1"],
    ]
    assert f'{ASSET} "1_zps7uj5xqff.jpg"  transcribe, ready since 20' in run(listener, "status", "--all")


def fail_with(listener: ListenerHere, object_id: str, title: str, reason: str) -> None:
    listener.store.add_asset(object_id, title)
    listener.store.proxy_closed(object_id)
    listener.store.database.run(
        """UPDATE items SET status = 'failed', error = :reason, reason = :reason, last_attempt_at = :now, attempts = 3
        WHERE object_id = :object_id""",
        reason=reason,
        now=listener.store.now(),
        object_id=object_id,
    )


def test_after_a_retry_the_old_reason_is_marked_as_old(listener_here: ListenerHere) -> None:
    """N12."""
    listener_here.submitter.stop()
    fail_with(listener_here, ASSET, "a.mov", "Codec unknown")
    run(listener_here, "retry", ASSET)
    text = run(listener_here, "status")
    assert "failed" not in text and "waiting to be retried" not in text
    assert "1 item to be tried again, as somebody asked. The old reason was:\n  Codec unknown\n" in text
    assert "  The old reason was: Codec unknown\n" in run(listener_here, "status", "--all")


def test_all_that_waits_or_failed_is_listed_on_demand(listener_here: ListenerHere) -> None:
    listener_here.submitter.stop()
    fail_with(listener_here, ASSET, "broken.mov", "Codec unknown")
    listener_here.store.add_asset(OTHER_ASSET, "early.mov")
    done, held, orphan = new_id(), new_id(), new_id()
    for object_id in (done, held):
        listener_here.store.add_asset(object_id, "a.mov")
        listener_here.store.proxy_closed(object_id)
    listener_here.store.database.run("UPDATE items SET status = 'done' WHERE object_id = :id", id=done)
    listener_here.store.proxy_closed(orphan)
    text = run(listener_here, "status", "--all")
    assert f'{ASSET} "broken.mov"  failed since 20' in text
    assert f'{OTHER_ASSET} "early.mov"  awaiting_proxy since 20' in text and ", polled at 20" in text
    assert f'{held} "a.mov"  ready since 20' in text
    assert f"{orphan}  awaiting_create since 20" in text
    assert done not in text


def test_what_the_limit_holds_is_told(listeners_here: Listeners) -> None:
    listener = listeners_here(limits__max_per_day=1).start()
    listener.upload(*(new_id() for _ in range(4)))
    wait_until(lambda: listener.rows("status = 'submitted'"))
    text = run(listener, "status")
    assert "(3 held)" in text
    assert "iconik-listener allow 100" in text
    assert run(listener, "allow", "1", "--yes").endswith("Tomorrow it is 1 again.\n")
    listener.submitter.wake()
    wait_until(lambda: len(listener.rows("status = 'submitted'")) == 2)


def test_a_pause_holds_everything_until_resume(listeners_here: Listeners, monkeypatch: pytest.MonkeyPatch) -> None:
    listener = listeners_here().start()
    monkeypatch.setenv("SUDO_USER", "ada")  # the command runs as the service's user
    assert "No more jobs are started" in run(listener, "pause", "--reason", "budget")
    assert run(listener, "pause").startswith("ada paused it already, at 20")
    listener.upload(ASSET)
    assert "ada paused the starting of jobs at 20" in run(listener, "status")
    assert "(budget)" in run(listener, "status")
    found = json.loads(run(listener, "status", "--json"))
    assert (found["paused_by"], found["paused_by_person"], found["held"]) == ("ada", True, 1)
    assert "(1 held)" in run(listener, "status")
    listener.submitter.wake()
    assert "started again" in run(listener, "resume")
    listener.submitter.wake()
    wait_until(lambda: listener.rows("status = 'submitted'"))
    assert "Nobody has paused it." in run(listener, "resume")


def test_status_for_programs_is_json(listener_here: ListenerHere) -> None:
    listener_here.post("/create", create_event(ASSET))
    found = json.loads(run(listener_here, "status", "--json"))
    assert found["statuses"]["awaiting_proxy"]["items"] == 1
    assert found["listener"]["status"] == "ok"
    assert found["jobs_today"] == found["held"] == 0


def test_that_no_listener_runs_is_shown(listener_here: ListenerHere) -> None:
    listener_here.end()
    assert "No listener is running." in run(listener_here, "status")


@pytest.mark.parametrize("title", ["CAST(x'ff41' AS TEXT)", "x'00ff'", "12", "NULL", "'a' || char(10) || 'b'"])
def test_a_title_that_is_no_text_breaks_no_command(listener_here: ListenerHere, title: str) -> None:
    listener_here.store.add_asset(ASSET, "a.mov")
    listener_here.store.database.run(
        f"UPDATE items SET title = {title}, status = 'failed', error = 'x', reason = 'x', last_attempt_at = created_at"
    )
    run(listener_here, "status")
    run(listener_here, "status", "--all")
    run(listener_here, "show", ASSET)
    run(listener_here, "retry", ASSET)


def test_counting_what_waits_and_what_failed_reads_no_rows(listeners_here: Listeners) -> None:
    """With 100,000 items that wait for the same reason, /health took a second and status eight."""
    store = listeners_here(limits__max_per_day=1).start().store
    statements: list[str] = []
    with store.database.transaction() as db:
        db.set_trace_callback(statements.append)
    store.health()
    problem_groups(store)
    with store.database.transaction() as db:
        db.set_trace_callback(None)
        for statement in [one for one in statements if "count(*)" in one]:
            plan = [row["detail"] for row in db.execute(f"EXPLAIN QUERY PLAN {statement}")]
            assert [step for step in plan if " items" in step and "COVERING INDEX" not in step] == []


# show


def test_show_tells_an_assets_story(listeners_here: Listeners, sandbox: FaultyIconik) -> None:
    sandbox.profiles += [profile("Stills", "image"), profile("Clips", "video")]
    listener = listeners_here(analyze__profile="Stills, Clips").start()
    listener.upload(ASSET)
    wait_until(lambda: listener.rows("status = 'submitted'"))
    text = " ".join(run(listener, "show", "1_zps7uj5xqff.jpg").split())
    assert f"{sandbox.url}/asset/{ASSET}" in text
    assert "the asset was added: reported by iconik's webhook." in text
    assert "its proxy was ready" in text
    assert f"iconik accepted the job with the profile Clips (job {sandbox.latest_job[ASSET]})" in text
    assert "Its media type is video, 1.0 minutes." in text


def test_show_says_what_is_next_and_when(listener_here: ListenerHere) -> None:
    listener_here.post("/create", create_event(ASSET))
    text = run(listener_here, "show", ASSET[:8])
    assert "It awaits its proxy. If its webhook does not come, iconik is polled at 20" in text


@pytest.mark.parametrize("attempts", [0, 3])
@pytest.mark.parametrize("holds", ["a pause", "the limit", "no listener"])
def test_show_says_what_holds_an_item(listeners_here: Listeners, holds: str, attempts: int) -> None:
    listener = listeners_here(limits__max_per_day=1).start()
    listener.submitter.stop()
    listener.store.add_asset(ASSET, "held.mov")
    listener.store.proxy_closed(ASSET)
    listener.store.database.run("UPDATE items SET attempts = :attempts, error = 'no credits'", attempts=attempts)
    limits = Limits(listener.store)
    if holds == "a pause":
        limits.pause("ada", "budget")
        told = "It waits until somebody resumes, because ada paused the starting of jobs at 20"
    elif holds == "the limit":
        day = listener.store.today()
        listener.store.database.run("INSERT INTO usage VALUES (:day, 'analyze', 1, 0)", day=day)
        told = "It waits until 00:00 UTC, because 1 job started today, as many as max_per_day allows."
    else:
        listener.end()
        told = "No listener is running."
    assert told in " ".join(run(listener, "show", "held.mov").split())


def test_show_says_that_the_circuit_breaker_is_open(listeners_here: Listeners, sandbox: FaultyIconik) -> None:
    listener = listeners_here(**SLOW).start()
    sandbox.auth_token = "another"
    listener.upload(ASSET, *(new_id() for _ in range(10)))
    told = "(iconik answered 401: app_id and auth_token are not accepted). It tries again by itself."
    wait_until(lambda: told in " ".join(run(listener, "show", ASSET).split()))
    assert "It has sent nothing to iconik since 20" in " ".join(run(listener, "status").split())


@pytest.mark.parametrize(
    ("interval", "days", "told"),
    [
        (3600, 0, "The listener looks every hour."),
        (600, 0, "The listener looks every 10 minutes."),
        (0, 0, "The listener does not look how it ends, because interval is 0."),
        (3600, 8, "The listener looked how it ends for 7 days, and looks no more."),
    ],
)
def test_show_says_whether_the_end_of_a_job_is_looked_for(
    listeners_here: Listeners, interval: int, days: int, told: str
) -> None:
    listener = listeners_here(reconciler__interval=interval).start()
    listener.store.add_asset(ASSET, "a.mov")
    submitted_at = listener.store.now(-days * DAY_SECONDS)
    listener.store.database.run("UPDATE items SET status = 'submitted', submitted_at = :at", at=submitted_at)
    assert told in " ".join(run(listener, "show", ASSET).split())


def test_show_does_not_say_of_what_version_1_started_that_others_did(listener_here: ListenerHere) -> None:
    listener_here.store.add_asset(ASSET, "a.mov")
    listener_here.store.database.run("UPDATE items SET status = 'done', source = NULL, submitted_at = created_at")
    assert "iconik accepted the job" in run(listener_here, "show", ASSET)


def test_what_failed_for_more_than_ten_reasons_is_counted(listener_here: ListenerHere) -> None:
    for number in range(13):
        fail_with(listener_here, new_id(), "a.mov", f"Codec {chr(65 + number)} unknown")
    text = run(listener_here, "status")
    assert text.count("1 item failed, since") == 10
    assert "3 more items for 3 other reasons failed: iconik-listener status --all\n" in text


def test_show_says_which_profile_was_used_where_iconik_chose(listener_here: ListenerHere) -> None:
    listener_here.upload(ASSET)
    wait_until(lambda: listener_here.rows("status = 'submitted'"))
    assert "iconik accepted the job with iconik's choice of profile (job " in " ".join(
        run(listener_here, "show", ASSET).split()
    )


def test_show_says_when_it_failed_and_how_to_go_on(listener_here: ListenerHere) -> None:
    fail_with(listener_here, ASSET, "a.mov", "Codec unknown")
    text = " ".join(run(listener_here, "show", ASSET).split())
    assert "UTC: it failed: Codec unknown. Once the cause is fixed: iconik-listener retry " + ASSET in text


def test_show_lists_what_may_be_meant(listener_here: ListenerHere) -> None:
    for object_id, title in ((ASSET, "holiday one.mov"), (OTHER_ASSET, "holiday two.mov")):
        listener_here.store.add_asset(object_id, title)
    text = run(listener_here, "show", "holiday", code=1)
    assert ASSET in text and OTHER_ASSET in text


def test_show_says_what_becomes_of_an_asset_that_it_does_not_know(listener_here: ListenerHere) -> None:
    text = run(listener_here, "show", "nothing.mov", code=1)
    assert text.startswith("nothing.mov is not in items.db. Titles are those of the upload; iconik's link to the asset")
    assert text.endswith(" If the asset was there before register: iconik-listener catch-up --since TIME\n")


# report


def test_a_report_is_in_iconiks_units(listener_here: ListenerHere, sandbox: FaultyIconik) -> None:
    listener_here.upload(ASSET, OTHER_ASSET)
    wait_until(lambda: len(listener_here.rows("status = 'submitted'")) == 2)
    store = listener_here.store
    store.database.run("UPDATE items SET status = 'done', media_type = 'video', duration = 1800")
    text = run(listener_here, "report")
    heads, day, total, *_ = text.splitlines()
    units = ["images", "video", "h", "audio", "h"]
    assert heads.split() == ["day", "started", "done", "failed", "open", *units, "found"]
    assert day.split() == [store.today(), "2", "2", "0", "0", "0", "1.00", "0.00", "0"]
    assert total.split() == ["in", "all", "2", "2", "0", "0", "0", "1.00", "0.00", "0"]
    assert "iconik's own meters, as they are now: 0 images analyzed, 0.0333333 hours of video analyzed" in text
    csv = run(listener_here, "report", "--days", "2", "--csv").splitlines()
    assert csv == [
        "day,job,started,found,done,failed,under_way,images,video_hours,audio_hours",
        f"{store.today()},analyze,2,0,2,0,0,0,1.0,0.0",
    ]


def test_the_report_tells_repeated_and_skipped_jobs_apart(listener_here: ListenerHere) -> None:
    listener_here.upload(ASSET, OTHER_ASSET)
    wait_until(lambda: len(listener_here.rows("status = 'submitted'")) == 2)
    store = listener_here.store
    assert "had another one" not in run(listener_here, "report")
    store.database.run("UPDATE usage SET started = 5")
    store.database.run("UPDATE items SET status = 'skipped' WHERE object_id = :id", id=ASSET)
    _, day, _, _, repeated, *_ = run(listener_here, "report").splitlines()
    assert day.split()[1:5] == ["5", "0", "1", "1"]
    assert repeated.startswith("3 jobs had another one for the same asset later.")


def test_a_month_without_jobs_says_so(listener_here: ListenerHere, sandbox: FaultyIconik) -> None:
    sandbox.roles.discard("can_read_stats")
    text = run(listener_here, "report", "--month", "2020-02")
    assert "No job was started from 2020-02-01 to 2020-02-29." in text
    assert "meters" not in text  # iconik tells those of now only
    assert "iconik's own meters cannot be read" in run(listener_here, "report")
    for month in ("2020-13", "2020-1"):
        assert "is not a month" in run(listener_here, "report", "--month", month, code=2)
