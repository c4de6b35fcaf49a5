"""status: how many items are where, and what is wrong, on a terminal of 80 columns."""

import json
import re
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from faulty_iconik import Fault, FaultyIconik
from store import Store
from support import ASSET, OTHER_ASSET, ListenerHere, create_event, new_id, proxy_event, wait_until

UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"


def lines(listener: ListenerHere) -> list[str]:
    """What it prints; nothing is wider than the terminal but links and paths, which must not be cut."""
    result = listener.command("status")
    assert (result.returncode, result.stderr) == (0, "")
    printed = result.stdout.splitlines()
    assert max(len(line) for line in printed if "/" not in line) <= 80
    return printed


@pytest.fixture
def troubled(listener_here: ListenerHere, sandbox: FaultyIconik) -> ListenerHere:
    """A listener with an item that failed, one that awaits its proxy, and one that is done."""
    listener_here.upload(OTHER_ASSET)
    listener_here.post("/create", create_event(title="a title " * 20))
    sandbox.faults.append(Fault(ASSET, status=404, body=b'{"errors": ["No such\\u001b[2J asset"]}'))
    listener_here.post("/proxy", proxy_event())
    listener_here.post("/create", create_event(new_id()))
    wait_until(lambda: listener_here.rows("status = 'failed'") and listener_here.rows("status = 'submitted'"))
    return listener_here


def test_an_empty_table_is_said_to_be_empty(listener_here: ListenerHere) -> None:
    first, second, *rest = lines(listener_here)
    assert " ".join([first, second]).endswith("No webhook has come since.")
    assert rest == ["", "items.db holds no items yet."]


def test_status_shows_counts_and_ages(troubled: ListenerHere) -> None:
    printed = lines(troubled)
    start = printed.index("")
    assert printed[start + 1 : start + 5] == [
        "status              items  oldest",
        "awaiting_proxy          1  0 min",
        "submitted               1",
        "failed                  1  0 min",
    ]


def test_each_problem_is_shown_whole_with_a_link_to_its_asset(troubled: ListenerHere, sandbox: FaultyIconik) -> None:
    printed = lines(troubled)
    problem = printed[printed.index(f"{ASSET}  failed, 1 attempt") + 1 :]
    assert all(line.startswith("  ") for line in problem)
    title = ("a title " * 20).strip()
    said = f"{title} iconik answered 404: No such [2J asset {sandbox.url}/asset/{ASSET}"
    assert " ".join(line.strip() for line in problem) == said


@pytest.mark.usefixtures("berlin")
def test_what_is_retried_is_shown_with_the_time_of_the_next_attempt_by_this_machines_clock(
    listeners_here: Callable[..., ListenerHere], sandbox: FaultyIconik
) -> None:
    listener = listeners_here(submitter__retry_delay=60, submitter__max_retry_delay=60).start()
    sandbox.faults.append(Fault(status=500))
    listener.upload(ASSET)
    wait_until(lambda: listener.rows("error IS NOT NULL"))
    printed = lines(listener)
    start = printed.index(f"{ASSET}  ready, 1 attempt")
    assert printed[start + 1] == "  1_zps7uj5xqff.jpg"
    assert printed[start + 2] == "  iconik answered 500: Out of order"
    assert re.fullmatch(r"  The next attempt is due at 20[\d: -]+ CES?T\.", printed[start + 3])


def test_of_many_problems_the_first_are_shown_and_how_to_see_them_all(
    troubled: ListenerHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["commands.status"], "MAX_PROBLEMS", 2)
    add = "INSERT INTO items (object_id, status, created_at, attempts, error) VALUES (:id, 'failed', :now, 7, 'x')"
    troubled.store.database.run(add, id=new_id(), now=troubled.store.now())
    assert "There are more. To see them all:" not in lines(troubled)
    troubled.store.database.run(add, id=new_id(), now=troubled.store.now())
    printed = lines(troubled)
    assert sum(bool(re.match(f"{UUID}  failed, ", line)) for line in printed) == 2
    assert printed[-2:] == ["There are more. To see them all:", f'sqlite3 {troubled.database} "SELECT * FROM problems"']
    assert len(json.loads(troubled.command("status", "--json").stdout)["problems"]) == 2


@pytest.mark.parametrize(
    ("age", "shown"),
    [
        ({"minutes": 59}, "59 min"),
        ({"hours": 3}, "3 h 0 min"),
        ({"days": 2, "hours": 5}, "2 d 5 h"),
        ({"days": -30}, "0 min"),  # a clock ran ahead
        ("a while", "a while"),  # a person wrote that
    ],
)
def test_an_age_is_told_in_the_two_largest_units(listener_here: ListenerHere, age: Any, shown: str) -> None:
    if isinstance(age, dict):
        age = (datetime.now(timezone.utc) - timedelta(seconds=1, **age)).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    with closing(sqlite3.connect(listener_here.database)) as db:
        add = "INSERT INTO items (object_id, status, created_at) VALUES (?, 'failed', ?)"
        db.execute(add, (ASSET, age))
        db.commit()
    assert f"failed                  1  {shown}" in lines(listener_here)


def test_status_for_programs_is_json_with_times_in_utc(troubled: ListenerHere) -> None:
    answer = json.loads(troubled.command("status", "--json").stdout)
    assert answer["listener"]["status"] == "ok"
    assert answer["listener"]["failed"] == 1
    assert answer["statuses"]["failed"]["items"] == 1
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT[\d:.]+Z", answer["statuses"]["failed"]["oldest"])
    assert answer["statuses"]["submitted"]["oldest"] is None
    [problem] = answer["problems"]
    assert (problem["object_id"], problem["status"], problem["attempts"]) == (ASSET, "failed", 1)


# The listener


@pytest.mark.usefixtures("berlin")
def test_the_running_listener_is_shown(listener_here: ListenerHere) -> None:
    listener_here.post("/create", create_event())
    shown = " ".join(lines(listener_here)).partition("  ")[0]
    clock = r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d CES?T\."
    sentences = rf"The listener \(1\.\S+\) has been running since {clock} The last webhook came at {clock}"
    assert re.fullmatch(sentences, shown)


def test_a_paused_listener_is_shown_with_the_reason(
    listeners_here: Callable[..., ListenerHere], sandbox: FaultyIconik
) -> None:
    listener = listeners_here(submitter__retry_delay=60, submitter__max_retry_delay=60).start()
    sandbox.auth_token = "another"
    listener.upload(*(new_id() for _ in range(10)))
    wait_until(lambda: "It has been paused since" in " ".join(lines(listener)))
    assert ": iconik answered 401: app_id and auth_token are not accepted, or lack the role" in " ".join(
        lines(listener)
    )


def test_that_no_listener_runs_is_shown(listener_here: ListenerHere) -> None:
    listener_here.end()
    assert lines(listener_here)[0] == "No listener is running."
    assert json.loads(listener_here.command("status", "--json").stdout)["listener"] is None


def test_a_listener_that_does_not_answer_is_shown(listener_here: ListenerHere) -> None:
    listener_here.store.set_state("listening_at", "127.0.0.1:1")
    shown = " ".join(lines(listener_here)).partition("  ")[0]
    assert shown == (
        "A listener is running, and is not well: http://127.0.0.1:1/health: "
        "the connection was refused. It may still be starting."
    )
    assert json.loads(listener_here.command("status", "--json").stdout)["listener"]["status"] == "unreachable"


# Files that are not as they should be


def test_without_a_database_status_says_how_one_comes_to_be(listeners_here: Callable[..., ListenerHere]) -> None:
    listener = listeners_here()
    result = listener.command("status")
    expected = f"Error: {listener.database} does not exist: the listener creates it at its first start\n"
    assert (result.returncode, result.stdout, result.stderr) == (1, "", expected)


def test_a_corrupt_database_is_one_line(tmp_path: Path, listeners_here: Callable[..., ListenerHere]) -> None:
    listener = listeners_here()
    with closing(Store(listener.database, listener=True)) as store:
        for _ in range(200):
            store.add_asset(new_id(), "a title")
    with listener.database.open("r+b") as file:
        for page in range(2, listener.database.stat().st_size // 4096):
            file.seek(page * 4096)
            file.write(b"\xff" * 4096)
    for command in (["status"], ["retry", ASSET], ["retry", "--all", "awaiting_proxy"], ["skip", "--all", "failed"]):
        result = listener.command(*command)
        assert result.returncode in (0, 1)
        assert "Traceback" not in result.stderr
        assert result.stderr.count("\n") <= 1
    damaged = f"{listener.database} is damaged (database disk image is malformed)"
    assert listener.command("status").stderr == f"Error: {damaged}: restore a backup, as the README says\n"
