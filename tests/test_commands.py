"""The operator's commands, against the sandbox and a running listener."""

import json
import os
import pty
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from datetime import datetime, timedelta, timezone

import pytest

from sandbox import Fault, Sandbox
from support import APP, ASSET, OTHER_ASSET, SECRET, Listener, create_event, new_id, wait_until

PUBLIC = "https://listener.example.com"
PROFILE = "d0d0d0d0-0000-11e7-a36b-0a580a00054a"


@pytest.fixture
def registered(listener: Listener, sandbox: Sandbox) -> Listener:
    """A running listener whose webhooks are registered."""
    sandbox.register(PUBLIC, {"X-Webhook-Secret": SECRET})
    return listener


@pytest.fixture
def unstarted(listeners: Callable[..., Listener]) -> Listener:
    return listeners()


def wrong(listener: Listener) -> list[str]:
    """What `check` finds wrong; its exit code must say so too."""
    result = listener.command("check")
    assert result.stderr == ""
    lines = [line.removeprefix("WRONG  ") for line in result.stdout.splitlines() if line.startswith("WRONG")]
    assert result.returncode == (1 if lines else 0), result.stdout
    return lines


# check


def test_check_says_ok_to_each_fact_when_all_is_well(registered: Listener) -> None:
    result = registered.command("check")
    assert result.returncode == 0
    lines = result.stdout.splitlines()
    assert all(line.startswith("ok ") for line in lines)
    facts = ("config.ini", "can be written: no items yet", "a listener is running", "listener@example.com", "roles")
    for words in (*facts, f"{PUBLIC}/create is ENABLED", f"{PUBLIC}/proxy is ENABLED"):
        assert words in result.stdout
    assert SECRET not in result.stdout


def test_check_finds_what_is_wrong_with_config_ini(registered: Listener) -> None:
    registered.config.chmod(0o644)
    assert wrong(registered) == [
        f"{registered.config} holds credentials and everybody can read it: chmod o-r {registered.config}"
    ]
    registered.config.write_text("[iconik]\n")
    assert wrong(registered) == [f"{registered.config}: [iconik] app_id: is missing"]


def test_check_finds_that_no_listener_runs_and_no_database_is_there(registered: Listener) -> None:
    registered.end()
    assert wrong(registered) == ["no listener is running on it: start it with python app.py, or its service"]
    for file in registered.database.parent.glob("items.db*"):
        file.unlink()
    assert wrong(registered)[0].endswith("items.db does not exist: the listener makes it at its first start")


def test_check_finds_a_database_that_is_not_ours(registered: Listener) -> None:
    registered.end()
    registered.database.write_bytes(b"Dear diary" * 100)
    assert wrong(registered)[0].endswith("items.db: file is not a database")


def test_check_finds_a_database_that_cannot_be_written(registered: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("store.BUSY_SECONDS", 0.05)
    with closing(sqlite3.connect(registered.database, isolation_level=None)) as person:
        person.execute("BEGIN IMMEDIATE")
        assert wrong(registered) == [f"{registered.database}: database is locked"]


def test_check_finds_credentials_that_are_refused(registered: Listener, sandbox: Sandbox) -> None:
    sandbox.auth_token = "another"
    assert wrong(registered) == [
        f"{sandbox.url}: iconik answered 401: app_id and auth_token are not accepted: Token is invalid"
    ]


def test_check_finds_that_iconik_is_away(registered: Listener, sandbox: Sandbox) -> None:
    sandbox.faults.append(Fault("users", status=503))
    assert wrong(registered) == [f"{sandbox.url}: iconik answered 503: Out of order"]


@pytest.mark.parametrize("role", ["can_analyze_content", "can_read_assets", "can_read_proxies"])
def test_check_finds_a_role_that_the_service_lacks(registered: Listener, sandbox: Sandbox, role: str) -> None:
    sandbox.roles.discard(role)
    [line] = wrong(registered)
    assert line.startswith(f"the role {role} is missing: ")


@pytest.mark.parametrize("role", ["can_search", "can_read_webhooks", "can_write_webhooks"])
def test_a_role_that_only_a_command_needs_is_a_remark(registered: Listener, sandbox: Sandbox, role: str) -> None:
    sandbox.roles.discard(role)
    result = registered.command("check")
    assert result.returncode == 0
    assert f"note   the role {role} is missing: only " in result.stdout


@pytest.mark.parametrize("profile", ["default", PROFILE])
def test_check_finds_that_the_analysis_profile_is_missing(
    listeners: Callable[..., Listener], sandbox: Sandbox, profile: str
) -> None:
    listener = listeners(iconik__analysis_profile=profile).start()
    sandbox.register(PUBLIC, {"X-Webhook-Secret": SECRET})
    assert wrong(listener) == [f"iconik has no analysis profile {profile}: see analysis_profile in config.ini"]
    sandbox.profiles.append({"id": PROFILE, "is_default": True})
    assert wrong(listener) == []


def test_check_finds_webhooks_that_are_missing(listener: Listener) -> None:
    assert wrong(listener) == [
        "no webhook for /create (assets, create, entity): python app.py register URL",
        "no webhook for /proxy (assets, update, proxies): python app.py register URL",
    ]


@pytest.mark.parametrize("status", ["FAILING", "DISABLED"])
def test_check_finds_a_webhook_out_of_use_and_shows_iconiks_last_error(
    registered: Listener, sandbox: Sandbox, status: str
) -> None:
    next(iter(sandbox.webhooks.values())).update(status=status, last_error="Connection\nrefused")
    assert wrong(registered) == [
        f"the webhook to {PUBLIC}/create is {status}: Connection refused. Mend that, then: python app.py register URL"
    ]


def test_check_finds_a_webhook_without_our_secret_and_does_not_show_it(registered: Listener, sandbox: Sandbox) -> None:
    create, proxy = sandbox.webhooks.values()
    create["headers"] = {"X-Webhook-Secret": "another"}
    proxy["headers"] = None
    assert wrong(registered) == [
        f"the webhook to {PUBLIC}/{path} does not send webhook_secret as X-Webhook-Secret: python app.py register URL"
        for path in ("create", "proxy")
    ]


def test_check_finds_webhooks_at_different_hosts(registered: Listener, sandbox: Sandbox) -> None:
    next(iter(sandbox.webhooks.values()))["url"] = "https://old.example.com/create"
    assert wrong(registered) == ["the webhooks point at different hosts: listener.example.com, old.example.com"]


# register


def definitions(sandbox: Sandbox) -> list[tuple[str, ...]]:
    keys = ("url", "event_type", "operation", "realm", "query", "status")
    return [tuple(webhook.get(key) or "" for key in keys) for webhook in sandbox.webhooks.values()]


DEFINED = [
    (f"{PUBLIC}/create", "assets", "create", "entity", "", "ENABLED"),
    (f"{PUBLIC}/proxy", "assets", "update", "proxies", 'data.status="CLOSED"', "ENABLED"),
]


def test_register_creates_the_two_webhooks_and_a_second_run_changes_nothing(
    listener: Listener, sandbox: Sandbox
) -> None:
    result = listener.command("register", PUBLIC)
    assert (result.returncode, result.stdout) == (0, f"{PUBLIC}/create: created\n{PUBLIC}/proxy: created\n")
    assert definitions(sandbox) == DEFINED
    assert all(webhook["headers"] == {"X-Webhook-Secret": SECRET} for webhook in sandbox.webhooks.values())
    assert all(webhook["name"].startswith("iconik-listener: ") for webhook in sandbox.webhooks.values())
    result = listener.command("register", PUBLIC + "/")
    assert result.stdout == f"{PUBLIC}/create: as it should be\n{PUBLIC}/proxy: as it should be\n"
    assert len([request for request in sandbox.requests if request.startswith(("POST", "PUT"))]) == 2
    assert wrong(listener) == []


def test_register_puts_a_disabled_webhook_back_in_use_and_keeps_what_is_not_ours(
    registered: Listener, sandbox: Sandbox
) -> None:
    create, proxy = sandbox.webhooks.values()
    create.update(status="DISABLED", name="Mine", headers={"X-Mine": "1", "x-webhook-secret": "old"})
    proxy.update(query="")
    result = registered.command("register", PUBLIC)
    assert result.stdout == f"{PUBLIC}/create: updated (it was DISABLED)\n{PUBLIC}/proxy: updated (it was ENABLED)\n"
    assert definitions(sandbox) == DEFINED
    create, _ = sandbox.webhooks.values()
    assert (create["name"], create["headers"]) == ("Mine", {"X-Mine": "1", "X-Webhook-Secret": SECRET})


def test_registered_webhooks_reach_the_listener(listener: Listener, sandbox: Sandbox) -> None:
    assert listener.command("register", "--insecure", listener.url).returncode == 0
    asset_id = sandbox.create_asset("a.mov")
    sandbox.set_proxy(asset_id, "OPEN")
    sandbox.set_proxy(asset_id)
    assert [(path, status) for path, _, status in sandbox.deliveries] == [("/create", 200), ("/proxy", 200)]
    wait_until(lambda: listener.rows("status = 'submitted'"))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://listener.example.com", "--insecure"),
        ("listener.example.com", "https://"),
        (f"{PUBLIC}/create", "without /create or /proxy"),
    ],
)
def test_register_refuses_a_url_that_will_not_do(unstarted: Listener, sandbox: Sandbox, url: str, words: str) -> None:
    result = unstarted.command("register", url)
    assert result.returncode == 2
    assert words in result.stderr
    assert sandbox.requests == []


def test_register_names_the_role_that_is_missing(listener: Listener, sandbox: Sandbox) -> None:
    sandbox.roles.discard("can_write_webhooks")
    result = listener.command("register", PUBLIC)
    assert result.returncode == 1
    assert "can_write_webhooks" in result.stderr


# status and retry


@pytest.fixture
def troubled(listener: Listener, sandbox: Sandbox) -> Listener:
    """A listener with an item that failed, one that is pending, and one that is done."""
    listener.upload(OTHER_ASSET)
    listener.post("/create", create_event(title="a title " * 20))
    sandbox.faults.append(Fault(ASSET, status=404, body=b'{"errors": ["No such asset"]}'))
    sandbox.set_proxy(ASSET, send=False)
    listener.post("/proxy", {"object_id": ASSET, "data": {"status": "CLOSED"}})
    listener.post("/create", create_event(new_id()))
    wait_until(lambda: listener.rows("status = 'failed'") and listener.rows("status = 'submitted'"))
    return listener


def test_status_shows_counts_ages_and_problems_within_80_columns(troubled: Listener) -> None:
    result = troubled.command("status")
    assert result.returncode == 0
    lines = result.stdout.splitlines()
    assert lines[:4] == [
        "status         items  oldest",
        "failed             1  0 min",
        "pending            1  0 min",
        "submitted          1",
    ]
    assert f"{ASSET}  failed, 1 attempt" in lines
    assert "  iconik answered 404: No such asset" in lines
    assert max(map(len, lines)) <= 80


def test_status_shows_what_is_being_retried_and_when(listeners: Callable[..., Listener], sandbox: Sandbox) -> None:
    listener = listeners(submitter__retry_delay=60, submitter__max_retry_delay=60).start()
    sandbox.faults.append(Fault(status=500))
    listener.upload(ASSET)
    wait_until(lambda: listener.rows("error IS NOT NULL"))
    assert f"{ASSET}  ready, 1 attempt, next at 20" in listener.command("status").stdout


def test_status_for_programs_is_json(troubled: Listener) -> None:
    answer = json.loads(troubled.command("status", "--json").stdout)
    assert answer["statuses"]["failed"]["items"] == 1
    [problem] = answer["problems"]
    assert (problem["object_id"], problem["status"], problem["attempts"]) == (ASSET, "failed", 1)


def test_an_age_is_told_in_the_two_largest_units(listener: Listener) -> None:
    with closing(sqlite3.connect(listener.database)) as db:
        for days, hours in ((0, 3), (2, 5)):
            created = datetime.now(timezone.utc) - timedelta(days=days, hours=hours, seconds=1)
            db.execute(
                "INSERT OR REPLACE INTO items (object_id, status, created_at) VALUES (?, 'pending', ?)",
                (ASSET, created.strftime("%Y-%m-%dT%H:%M:%S.000Z")),
            )
            db.commit()
            wanted = f"{days} d {hours} h" if days else f"{hours} h 0 min"
            assert f"pending            1  {wanted}\n" in listener.command("status").stdout


@pytest.mark.parametrize("arguments", [[ASSET.upper()], ["--all"]])
def test_retry_makes_failed_items_ready_and_a_running_listener_takes_them_up(
    troubled: Listener, sandbox: Sandbox, arguments: list[str]
) -> None:
    sandbox.create_asset("a.mov", ASSET, send=False)
    result = troubled.command("retry", *arguments)
    assert (result.returncode, result.stderr) == (0, "")
    assert "ready again" in result.stdout
    troubled.upload(new_id())  # which has the listener look now; of itself it does within half a minute
    wait_until(lambda: troubled.rows(f"object_id = '{ASSET}' AND status = 'submitted'"))
    assert sandbox.jobs.count(ASSET) == 1


def test_retry_names_what_it_cannot_retry(troubled: Listener) -> None:
    unknown = new_id()
    result = troubled.command("retry", unknown, ASSET, OTHER_ASSET)
    assert result.returncode == 1
    assert result.stdout == f"{ASSET} is ready again\n"
    assert result.stderr == f"{unknown} is not in items.db\n{OTHER_ASSET} is submitted, not failed\n"


@pytest.mark.parametrize("arguments", [[], ["--all", ASSET]])
def test_retry_wants_either_items_or_all(troubled: Listener, arguments: list[str]) -> None:
    assert troubled.command("retry", *arguments).returncode == 2


# catch-up


def ago(**duration: float) -> str:
    return (datetime.now(timezone.utc) - timedelta(**duration)).strftime("%Y-%m-%dT%H:%M:%S+00:00")


def test_catch_up_adds_what_was_missed_and_has_it_analyzed(listener: Listener, sandbox: Sandbox) -> None:
    old, known, waiting, closed = (new_id() for _ in range(4))
    listener.upload(known)
    for asset_id in (old, waiting, closed):
        sandbox.create_asset("a.mov", asset_id, send=False)
    sandbox.assets[old]["date_created"] = ago(days=2)
    sandbox.set_proxy(closed, send=False)
    result = listener.command("catch-up", "--since", ago(hours=1), "--until", ago(hours=-1))
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("3 assets were created in that time, 2 of them are not in items.db\n")
    assert result.stdout.endswith("2 added: 1 are ready, 1 wait for their proxy\n")
    listener.upload(other := new_id())  # which has the listener look now; of itself it does within half a minute
    wait_until(lambda: len(listener.rows("status = 'submitted'")) == 3)
    assert sorted(sandbox.jobs) == sorted([known, closed, other])
    assert listener.rows(f"object_id = '{waiting}'")[0]["status"] == "pending"
    assert listener.rows(f"object_id = '{old}'") == []


def test_catch_up_has_nothing_analyzed_that_was_analyzed_already(listener: Listener, sandbox: Sandbox) -> None:
    sandbox.create_asset("a.mov", ASSET, send=False)
    sandbox.set_proxy(ASSET, send=False)
    sandbox.assets[ASSET]["analyze_status"] = "DONE"  # items.db may have been lost
    assert listener.command("catch-up", "--since", ago(hours=1)).returncode == 0
    listener.upload(other := new_id())
    wait_until(lambda: len(listener.rows("status = 'submitted'")) == 2)
    assert sandbox.jobs == [other]


def test_catch_up_pages_through_any_number_and_a_dry_run_only_lists(listener: Listener, sandbox: Sandbox) -> None:
    ids = {sandbox.create_asset(f"{number}\x1b.mov", send=False) for number in range(250)}
    result = listener.command("catch-up", "--since", ago(hours=1), "--until", ago(hours=-1), "--dry-run")
    lines = result.stdout.splitlines()
    assert lines[0] == "250 assets were created in that time, 250 of them are not in items.db"
    assert {line.split()[0] for line in lines[1:]} == ids
    assert "\x1b" not in result.stdout
    assert len(sandbox.requests) == 3
    assert listener.rows() == []


def test_catch_up_asks_on_a_terminal_and_adds_nothing_without_a_yes(listener: Listener, sandbox: Sandbox) -> None:
    sandbox.create_asset("a.mov", ASSET, send=False)
    command = [sys.executable, str(APP), "--config", str(listener.config), "catch-up", "--since", ago(hours=1)]
    for answer, code in (b"n\n", 1), (b"y\n", 0):
        terminal, inside = pty.openpty()
        process = subprocess.Popen(command, stdin=inside, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        os.write(terminal, answer)
        assert b"Add them? iconik bills each analysis" in process.communicate(timeout=30)[0]
        assert process.returncode == code
        os.close(terminal)
        os.close(inside)
        assert len(listener.rows()) == (code == 0)


@pytest.mark.parametrize("since", ["yesterday", "2026-13-01", ago(hours=-1)])
def test_catch_up_wants_a_time_that_has_been(unstarted: Listener, sandbox: Sandbox, since: str) -> None:
    assert unstarted.command("catch-up", "--since", since).returncode == 2
    assert sandbox.requests == []


@pytest.mark.parametrize(
    "since", ["2026-11-23", "2026-11-23T16:47", "2026-11-23T16:47:00Z", "2026-11-23T16:47:00+01:00"]
)
def test_catch_up_takes_times_of_iso_8601(listener: Listener, since: str) -> None:
    assert listener.command("catch-up", "--since", since, "--dry-run").returncode == 0


def test_catch_up_that_meets_trouble_has_added_all_and_says_so(listener: Listener, sandbox: Sandbox) -> None:
    for _ in range(3):
        sandbox.create_asset("a.mov", send=False)
    sandbox.faults.append(Fault("/proxies/", status=503))
    result = listener.command("catch-up", "--since", ago(hours=1))
    assert result.returncode == 1
    assert "All are added; the listener will ask for their proxies" in result.stderr
    assert len(listener.rows("status = 'pending'")) == 3


def test_catch_up_names_the_role_that_is_missing(listener: Listener, sandbox: Sandbox) -> None:
    sandbox.roles.discard("can_search")
    result = listener.command("catch-up", "--since", ago(hours=1))
    assert result.returncode == 1
    assert "can_search" in result.stderr


@pytest.mark.parametrize("command", ["check", "register", "status", "retry", "catch-up", "demo"])
def test_every_command_has_help(unstarted: Listener, command: str) -> None:
    result = unstarted.command(command, "--help")
    assert result.returncode == 0
    assert len(result.stdout.splitlines()) > 5
