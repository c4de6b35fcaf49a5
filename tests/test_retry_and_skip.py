"""retry and skip, as a person types them."""

from collections.abc import Callable

import pytest

from faulty_iconik import FaultyIconik
from limits import Limits
from support import ASSET, OTHER_ASSET, ListenerHere, new_id, wait_until


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("commands.items.MIN_PAUSE", 0)


def run(listener: ListenerHere, *arguments: str, code: int = 0) -> str:
    result = listener.command(*arguments)
    assert result.returncode == code, result.stdout + result.stderr
    return result.stdout + result.stderr


def fail(listener: ListenerHere, object_id: str, title: str = "a.mov") -> None:
    listener.store.add_asset(object_id, title)
    listener.store.proxy_closed(object_id)
    listener.store.database.run(
        "UPDATE items SET status = 'failed', error = 'Codec unknown' WHERE object_id = :id", id=object_id
    )


@pytest.fixture
def listener(listener_here: ListenerHere) -> ListenerHere:
    """A listener whose workers do nothing by themselves: it is stopped."""
    listener_here.submitter.stop()
    return listener_here


@pytest.mark.parametrize("name", ["holiday.mov", ASSET, ASSET[:8], "oliday", f"https://app.iconik.io/asset/{ASSET}"])
def test_an_asset_is_retried_by_whatever_names_it(listener: ListenerHere, name: str) -> None:
    fail(listener, ASSET, "holiday.mov")
    told = f'{ASSET} "holiday.mov" will be tried again\nThe listener takes it up within half a minute.\n'
    assert run(listener, "retry", name) == told
    assert listener.rows()[0]["status"] == "ready"


def test_the_reason_for_a_retry_is_kept(listener: ListenerHere) -> None:
    fail(listener, ASSET)
    run(listener, "retry", ASSET, "--reason", "new codec pack")
    assert listener.rows()[0]["error"] == "retried: new codec pack"
    assert "new codec pack" in run(listener, "show", ASSET)


def test_several_matches_are_listed_and_nothing_is_changed(listener: ListenerHere) -> None:
    fail(listener, ASSET, "one.mov")
    fail(listener, OTHER_ASSET, "two.mov")
    text = run(listener, "retry", ".mov", code=1)
    assert ASSET in text and OTHER_ASSET in text
    assert len(listener.rows("status = 'failed'")) == 2
    text = run(listener, "retry", "--again", "one", code=1)
    assert text.startswith("one is no whole title and no id, which --again needs. It may mean:\n")
    assert f"  {ASSET}  added 20" in text and text.endswith("one.mov\n")
    assert "is not in items.db" in run(listener, "retry", "--again", "three", code=1)


def test_what_stays_as_it_is_is_told_with_the_reason(listener: ListenerHere) -> None:
    fail(listener, ASSET)
    listener.store.database.run("UPDATE items SET status = 'done'")
    text = run(listener, "retry", ASSET, code=1)
    assert "is done and stays as it is: iconik has finished the job. To start it again: " in text
    remedy = text.rpartition(": ")[2].split()
    assert "will be started again\n" in run(listener, *remedy[remedy.index("retry") :])
    assert "its run is not finished yet" in run(listener, "retry", "--again", ASSET, code=1)


@pytest.mark.parametrize(
    ("holds", "told"),
    [
        ("nothing", "The listener takes it up within half a minute."),
        ("a pause", "It waits until somebody resumes, because ada paused the starting of jobs at 20"),
        ("no listener", "It is taken up once a listener is running."),
    ],
)
def test_when_it_is_taken_up_is_told(listener: ListenerHere, holds: str, told: str) -> None:
    fail(listener, ASSET)
    if holds == "a pause":
        Limits(listener.store).pause("ada", "")
    if holds == "no listener":
        listener.end()
    assert told in " ".join(run(listener, "retry", ASSET).split())


def test_nothing_is_promised_where_nothing_was_retried_or_only_a_poll_is_due(listener: ListenerHere) -> None:
    assert run(listener, "retry", "--all") == "0 items changed\n"
    listener.store.add_asset(ASSET, "a.mov")
    assert run(listener, "retry", ASSET).endswith("is due now: iconik will be polled for its proxy\n")


def test_resume_says_what_still_holds(listeners_here: Callable[..., ListenerHere]) -> None:
    listener = listeners_here(limits__max_per_day=1).start()
    listener.store.database.run("INSERT INTO usage VALUES (:day, 'analyze', 1, 0)", day=listener.store.today())
    run(listener, "pause")
    assert run(listener, "resume").startswith("1 job started today, as many as max_per_day allows.")
    listener.end()
    run(listener, "pause")
    assert run(listener, "resume") == "Jobs are started again once a listener is running.\n"


def test_again_within_ten_minutes_is_told_though_it_was_skipped(listener: ListenerHere) -> None:
    fail(listener, ASSET)
    run(listener, "retry", "--again", ASSET)
    listener.store.database.run("UPDATE items SET status = 'skipped'")
    told = "was started again within the last ten minutes, so nothing is changed"
    assert told in run(listener, "retry", "--again", ASSET, code=1)


def test_what_is_skipped_or_started_is_told_when_it_is_to_be_skipped(listener: ListenerHere) -> None:
    fail(listener, ASSET)
    run(listener, "skip", ASSET, "--reason", "not ours")
    assert "was skipped before, and stays as it is: not ours" in run(listener, "skip", ASSET, code=1)
    listener.store.database.run("UPDATE items SET status = 'submitted'")
    assert "is submitted and stays as it is: iconik has the job" in run(listener, "skip", ASSET, code=1)


def test_a_skipped_subclip_is_said_to_have_been_skipped(listener: ListenerHere) -> None:
    """N17: it will be skipped again, unless skip_types changes."""
    fail(listener, ASSET)
    listener.store.database.run("UPDATE items SET status = 'skipped', error = 'assets of type SUBCLIP are skipped'")
    text = run(listener, "retry", ASSET)
    assert "will be looked at again. It was skipped: assets of type SUBCLIP are skipped" in text


@pytest.mark.parametrize(("command", "status", "after"), [("retry", "failed", "ready"), ("skip", "failed", "skipped")])
def test_all_of_a_status_are_changed_in_batches(listener: ListenerHere, command: str, status: str, after: str) -> None:
    for _ in range(230):
        fail(listener, new_id())
    text = run(listener, command, "--all", status)
    assert "230 items changed" in text.splitlines()[-2:]
    assert len(listener.rows(f"status = '{after}'")) == 230


def test_skip_keeps_the_reason(listener: ListenerHere) -> None:
    fail(listener, ASSET)
    assert run(listener, "skip", ASSET, "--reason", "not ours").endswith("is skipped\n")
    assert listener.rows()[0]["error"] == "not ours"


def test_one_job_of_several_is_changed(listeners_here: Callable[..., ListenerHere]) -> None:
    listener = listeners_here(submitter__jobs="analyze faces").start()
    listener.submitter.stop()
    fail(listener, ASSET)
    text = run(listener, "retry", ASSET, "--job", "faces")
    assert "(faces) will be tried again\n" in text
    assert {row["job"]: row["status"] for row in listener.rows()} == {"analyze": "failed", "faces": "ready"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["retry"],
        ["skip"],
        ["retry", "a", "--all"],
        ["retry", "--again", "--all"],
        ["retry", "--again", "a", "--reason", "b"],
    ],
)
def test_what_is_meant_must_be_clear(listener: ListenerHere, arguments: list[str]) -> None:
    assert "Usage:" in run(listener, *arguments, code=2)


def test_a_retried_job_is_started_once_more(listener_here: ListenerHere, sandbox: FaultyIconik) -> None:
    listener_here.upload(ASSET)
    wait_until(lambda: listener_here.rows("status = 'submitted'"))
    sandbox.fail_job(sandbox.latest_job[ASSET])
    listener_here.store.database.run("UPDATE items SET status = 'failed'")
    run(listener_here, "retry", ASSET)
    listener_here.submitter.wake()
    wait_until(lambda: listener_here.rows("status = 'submitted'"))
    assert sandbox.jobs == [ASSET, ASSET]
