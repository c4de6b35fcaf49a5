"""check: whatever is made wrong here, it has to say so, and what to do."""

import json
import os
import resource
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from commands.check import OTHER_ROLES, SERVICE_ROLES
from faulty_iconik import Fault, FaultyIconik
from sandbox import profile
from store import Store
from support import ASSET, OTHER_ASSET, SECRET, ListenerHere, create_event, new_id, wait_until
from system import database

OURS = {"X-Webhook-Secret": SECRET}
Json = dict[str, Any]
TWIN = "http://127.0.0.1:1"  # nobody listens there
LOG = "If it does not start, its log says why: sudo journalctl -u iconik-listener -n 20 -o cat"
RESTART = "restart the listener: sudo systemctl restart iconik-listener"


@pytest.fixture(autouse=True)
def how_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ICONIK_LISTENER_COMMAND", "iconik-listener")


@pytest.fixture
def listener(listener_here: ListenerHere) -> ListenerHere:
    """A running listener, whose webhooks are not registered."""
    return listener_here


@pytest.fixture
def well(listener: ListenerHere, sandbox: FaultyIconik) -> ListenerHere:
    """A running listener, with which all is well."""
    sandbox.register(listener.url, OURS)
    listener.store.set_state("registered_url", listener.url)
    return listener


NO_LIMIT = "no limit is set (max_per_day): a bulk import would be analyzed, and billed, as a whole"


def facts(listener: ListenerHere, kind: str, *arguments: str) -> list[str]:
    """What `check` says that is `ok`, `note` or `WRONG`; its exit code must fit."""
    result = listener.command("check", *arguments)
    assert result.stderr == ""
    assert result.returncode == ("WRONG" in result.stdout), result.stdout
    assert SECRET not in result.stdout
    lines = [line.split(maxsplit=1) for line in result.stdout.splitlines()]
    assert {word for word, _ in lines} <= {"ok", "note", "WRONG"}
    return [fact for word, fact in lines if word == kind]


def wrong(listener: ListenerHere) -> list[str]:
    return facts(listener, "WRONG")


def test_check_says_ok_to_each_fact_when_all_is_well(well: ListenerHere, sandbox: FaultyIconik) -> None:
    lines = facts(well, "ok")
    expected = (
        f"{well.config} is complete and private",
        f"{well.database} can be written: no items yet",
        "the listener has been running since 20",
        f"iconik answers at {sandbox.url}, and accepts the credentials (listener@example.com)",
        "the credentials have all the roles that the listener needs",
        f"the webhook to {well.url}/create is ENABLED",
        f"{well.url}/create reaches this listener, and the secret is right",
        f"the webhook to {well.url}/proxy is ENABLED, for events with data.status=\"CLOSED\"",
        f"{well.url}/proxy reaches this listener, and the secret is right",
        'iconik has an enabled profile for image: "Default image"',
        'iconik has an enabled profile for video: "Default video"',
    )  # fmt: skip
    ordered = [*expected[:5], *expected[9:], *expected[5:9]]
    assert len(lines) == len(expected)
    assert all(line.startswith(words) for line, words in zip(lines, ordered)), lines
    assert facts(well, "note") == [NO_LIMIT, "no webhook has come yet"]


@pytest.mark.usefixtures("berlin")
def test_check_tells_how_many_items_there_are_and_when_the_last_webhook_came_by_which_clock(well: ListenerHere) -> None:
    well.post("/create", create_event())
    assert f"{well.database} can be written: 1 awaiting_proxy" in facts(well, "ok")
    [_, note] = facts(well, "note")
    assert note.startswith("the last webhook came at 20")
    assert note.endswith((" CET", " CEST"))


# The files


def test_check_finds_what_is_wrong_with_config_ini(well: ListenerHere) -> None:
    well.config.chmod(0o644)
    assert wrong(well) == [f"{well.config} contains credentials and is readable by every user: chmod 600 {well.config}"]
    well.config.write_text("[iconik]\n")
    assert wrong(well) == [f"{well.config}: [iconik] app_id and auth_token: are missing"]
    well.config.unlink()
    assert wrong(well)[0].startswith(f"{well.config} does not exist: copy config.example.ini")


def test_a_key_that_has_moved_is_a_note(listeners_here: Callable[..., ListenerHere], sandbox: FaultyIconik) -> None:
    listener = listeners_here(sweep__min_age=600).start()
    sandbox.register(listener.url, OURS)
    assert any("min_age of [sweep] is now min_age of [reconciler]" in note for note in facts(listener, "note"))


def test_check_finds_that_no_listener_runs_and_no_database_is_there(well: ListenerHere) -> None:
    well.end()
    assert f"no listener is running on {well.database}: sudo systemctl start iconik-listener. {LOG}" in wrong(well)
    for file in well.database.parent.glob("items.db*"):
        file.unlink()
    assert f"{well.database} does not exist: the listener creates it at its first start" in wrong(well)


def test_check_finds_that_the_database_was_deleted_under_the_listener(well: ListenerHere) -> None:
    well.database.unlink()
    remedy = "restore a backup, as docs/operating.md says"
    assert f"{well.database} does not exist: it was deleted under the running listener: {remedy}" in wrong(well)


@pytest.mark.parametrize(
    ("command", "remedy"),
    [
        ("iconik-listener", "sudo systemctl restart iconik-listener. {LOG}"),
        ("iconik-listener --system b", "sudo systemctl restart iconik-listener@b. {LOG}"),
        ("app.py", "stop it, if it still runs, and start it. If it does not start, its log says why"),
    ],
)
def test_the_remedy_works_although_a_listener_still_runs_whose_files_were_all_deleted(
    well: ListenerHere, monkeypatch: pytest.MonkeyPatch, command: str, remedy: str
) -> None:
    """No lock shows that one, and systemctl start does nothing."""
    monkeypatch.setenv("ICONIK_LISTENER_COMMAND", command)
    for file in well.database.parent.glob("items.db*"):
        file.unlink()
    assert well.post("/create", create_event()).status_code == 503
    log = LOG.replace("-u iconik-listener", f"-u {remedy.split()[3].rstrip('.')}") if "sudo" in remedy else ""
    assert f"no listener is running on {well.database}: {remedy.format(LOG=log)}" in wrong(well)
    well.end()
    well.start()
    assert well.post("/create", create_event()).status_code == 200


def test_check_finds_a_damaged_database_and_says_what_to_do(well: ListenerHere) -> None:
    well.end()
    size = well.database.stat().st_size
    with well.database.open("r+b") as file:
        file.seek(4096)  # the first page has the schema
        file.write(b"\xff" * (size - 4096))
    [fact] = [fact for fact in wrong(well) if "is damaged" in fact]
    assert fact.endswith("restore a backup, as docs/operating.md says")


def test_check_finds_a_database_that_is_not_ours_and_goes_on(well: ListenerHere) -> None:
    well.end()
    well.database.write_bytes(b"Dear diary" * 100)
    first, *_ = wrong(well)
    assert first.startswith(f"{well.database} is not the listener's (it is not an SQLite database)")
    assert any("iconik answers at" in fact for fact in facts(well, "ok"))


def test_check_finds_a_database_that_is_held_by_a_person(well: ListenerHere, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    with closing(sqlite3.connect(well.database, isolation_level=None)) as person:
        person.execute("BEGIN IMMEDIATE")
        assert wrong(well) == [f"{well.database}: database is locked"]


def test_check_finds_a_disk_that_takes_no_more(well: ListenerHere) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = well.database.with_name("items.db-wal").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        assert any(fact.startswith(f"{well.database}: ") for fact in wrong(well))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert wrong(well) == []


def test_check_finds_a_listener_that_cannot_write(well: ListenerHere) -> None:
    other = well.database.with_name("other.db")
    with closing(Store(other, listener=True)) as store:
        store.set_state("listening_at", well.server.address)
    for file in well.database.parent.glob("items.db-*"):
        file.unlink()
    other.replace(well.database)
    assert well.post("/create", create_event()).status_code == 503
    line = "a listener is running and is not well: The database cannot be read or written. Its log says more"
    assert wrong(well) == [line]


def test_check_finds_a_read_only_file_system(well: ListenerHere, tmp_path: Path) -> None:
    well.end()
    folder = tmp_path / "mounted"
    folder.mkdir()
    shutil.copy(well.database, folder)
    mount = 'mount --bind "$1" "$1" 2>/dev/null && mount -o remount,bind,ro "$1"'
    if subprocess.run(["sh", "-c", mount, "sh", folder], check=False).returncode:
        pytest.skip("needs the right to mount")
    try:
        listener = well.config.read_text().replace("[listener]", "[listener]\ndatabase = mounted/items.db")
        well.config.write_text(listener)
        assert any(fact.startswith(f"{folder} is on a read-only file system (") for fact in wrong(well))
        assert well.command("status").stderr.startswith(f"Error: {folder} is on a read-only file system (")
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_database_on_a_network_file_system_is_wrong(well: ListenerHere, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["commands.check"]  # as an attribute of its package, that name is the command
    monkeypatch.setattr(module, "network_file_system", lambda path: "nfs4" if path == well.database else None)
    damaged = "where SQLite files are damaged sooner or later: move it to a local disk"
    assert wrong(well) == [f"{well.database} is on nfs4, {damaged}"]


def test_check_tells_of_a_large_wal_file(well: ListenerHere) -> None:
    os.truncate(well.database.with_name("items.db-wal"), 70 * 2**20)
    assert facts(well, "note")[0].startswith(f"{well.database}-wal has grown to 70 MiB: another program has ")


# The listener that is running


def pause(listener: ListenerHere) -> None:
    """Have ten items in a row refused, which opens the circuit breaker."""
    listener.sandbox.auth_token = "another"
    listener.upload(*(new_id() for _ in range(10)))
    wait_until(lambda: listener.command("status", "--json").stdout.count('"status": "paused"'))


def test_the_webhooks_of_another_listener_are_not_taken_for_ours(
    listeners_here: Callable[..., ListenerHere], sandbox: FaultyIconik
) -> None:
    """They lead to a listener, and send the right secret: that one's."""
    listener = listeners_here().start()
    sandbox.register("https://first.example.com", {"X-Webhook-Secret": "that of the first one"})
    [fact] = wrong(listener)
    assert fact.startswith("iconik has no webhooks of this listener yet: ")
    assert fact.endswith(" register URL")
    told = "the webhooks to https://first.example.com send another secret: they may be another listener's"
    assert told in facts(listener, "note")


def test_a_corrected_token_without_a_restart_is_not_well(
    listeners_here: Callable[..., ListenerHere], sandbox: FaultyIconik
) -> None:
    listener = listeners_here(submitter__retry_delay=60, submitter__max_retry_delay=60).start()
    sandbox.register(listener.url, OURS)
    pause(listener)
    listener.config.write_text(listener.config.read_text().replace("sandbox-token", "another"))
    config_line, pause_line = wrong(listener)
    assert config_line == f"{listener.config} was changed after the listener was started: {RESTART}"
    assert pause_line.startswith("the listener has sent nothing to iconik since 20")
    assert ": iconik answered 401: app_id and auth_token are not accepted" in pause_line


def test_a_clock_that_was_set_is_no_change_of_config_ini(
    listeners_here: Callable[..., ListenerHere], sandbox: FaultyIconik
) -> None:
    """P11: a VM may write it, and start the listener, with a wrong clock."""
    listener = listeners_here()
    for hours in (5, -5):
        hours_away = time.time() + hours * 3600
        os.utime(listener.config, (hours_away, hours_away))
        listener.start()
        sandbox.register(listener.url, OURS)
        assert wrong(listener) == []
        os.utime(listener.config, (hours_away - 60, hours_away - 60))  # an edit, after the clock was set back
        assert wrong(listener) == [f"{listener.config} was changed after the listener was started: {RESTART}"]
        listener.end()
        sandbox.webhooks.clear()


def test_an_item_that_has_been_due_for_over_a_quarter_of_an_hour_is_wrong(
    listeners_here: Callable[..., ListenerHere], sandbox: FaultyIconik
) -> None:
    listener = listeners_here(submitter__retry_delay=60, submitter__max_retry_delay=60).start()
    sandbox.register(listener.url, OURS)
    pause(listener)
    sandbox.auth_token = FaultyIconik.auth_token
    listener.upload(ASSET)
    for minutes, is_wrong in ((14, False), (16, True)):
        due = listener.store.now(-minutes * 60)
        listener.store.database.run("UPDATE items SET next_attempt_at = :due WHERE attempts = 0", due=due)
        lines = [line for line in wrong(listener) if line.startswith("an item has been due since 20")]
        assert len(lines) == is_wrong
        assert all(line.endswith(": iconik-listener status") for line in lines)


def test_assets_that_were_passed_over_are_a_note_for_a_week(well: ListenerHere) -> None:
    for days, is_noted in ((6.9, True), (7.1, False)):
        until = well.store.now(-days * 86400)
        since = well.store.now(-8 * 86400)
        period = {"since": since, "until": until, "why": "there was no /create webhook at that URL"}
        well.store.set_state("passed_over", json.dumps(period))
        assert any("were passed over" in note for note in facts(well, "note")) == is_noted


@pytest.mark.parametrize(
    ("since", "options", "is_over"),
    [
        ("2026-11-20T08:00Z", [], True),
        ("2026-11-20T09:00Z", [], False),
        ("2026-11-20T08:00Z", ["--until", "2026-11-20T09:00Z"], False),
        ("2026-11-20T08:00Z", ["--query", "title:a"], False),
        ("2026-11-20T08:00Z", ["--dry-run"], False),
    ],
)
@pytest.mark.parametrize("is_known", [True, False])
def test_the_catch_up_for_assets_that_were_passed_over_ends_their_note(
    well: ListenerHere, sandbox: FaultyIconik, since: str, options: list[str], is_over: bool, is_known: bool
) -> None:
    sandbox.create_asset("a", ASSET, send=False, date_created="2026-11-20T10:00:00+00:00")
    if is_known:
        well.store.add_asset(ASSET, "a")
    period = {"since": "2026-11-20T08:00:00.000Z", "until": "2026-11-20T12:00:00.000Z", "why": "a test"}
    well.store.set_state("passed_over", json.dumps(period))
    result = well.command("catch-up", "--since", since, *options, "--yes")
    assert result.returncode == 0, result.stderr
    assert (well.store.state("passed_over") == "") == is_over


def test_failed_items_are_wrong_for_a_day(well: ListenerHere, sandbox: FaultyIconik) -> None:
    well.upload(ASSET)
    wait_until(lambda: well.rows("status = 'submitted'"))
    well.store.database.run("UPDATE items SET status = 'failed', last_attempt_at = :now", now=well.store.now())
    assert wrong(well) == ["1 item failed. To see why: iconik-listener status"]
    well.store.database.run("UPDATE items SET last_attempt_at = :then", then=well.store.now(-25 * 3600))
    assert wrong(well) == []
    assert any(note.startswith("1 item failed, none of them in the last day.") for note in facts(well, "note"))


def test_another_version_that_is_running_is_wrong(well: ListenerHere, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["commands.check"], "__version__", "9.9")
    [line] = wrong(well)
    assert line.startswith("version ")
    assert line.endswith(f" is running, and 9.9 is installed: {RESTART}")


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_a_listener_that_does_not_answer_is_wrong(listener: ListenerHere, sandbox: FaultyIconik) -> None:
    """It holds the lock, and its address is not its own, or not yet."""
    start = "a listener is running and is not well: "
    port = closed_port()
    listener.store.set_state("listening_at", f"127.0.0.1:{port}")
    reason = "the connection was refused. It may still be starting. Its log says more"
    assert f"{start}http://127.0.0.1:{port}/health: {reason}" in wrong(listener)
    listener.store.set_state("listening_at", "")
    assert f"{start}it is still starting. Its log says more" in wrong(listener)
    listener.store.set_state("listening_at", sandbox.url.removeprefix("http://"))
    assert f"{start}something else answers at {sandbox.url}/health. Its log says more" in wrong(listener)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_a_listener_on_all_addresses_is_asked_on_this_machine(
    listeners_here: Callable[..., ListenerHere], host: str
) -> None:
    try:
        listener = listeners_here(listener__host=host).start()
    except Exception:
        pytest.skip("there is no IPv6 here")
    assert any(fact.startswith("the listener has been running since ") for fact in facts(listener, "ok"))


def test_plain_http_that_is_open_to_the_network_is_a_note(
    listeners_here: Callable[..., ListenerHere], monkeypatch: pytest.MonkeyPatch
) -> None:
    """N9. In a container, only the proxy's container reaches the port."""
    listener = listeners_here(listener__host="0.0.0.0").start()
    [note] = [note for note in facts(listener, "note") if "open to the network" in note]
    remedy = f"Behind Caddy, set host = 127.0.0.1 in {listener.config}, and {RESTART}"
    assert note == f"port 0 is open to the network (0.0.0.0), without encryption. {remedy}"
    monkeypatch.setenv("ICONIK_LISTENER_CONTAINER", "1")
    assert not any("open to the network" in note for note in facts(listener, "note"))


@pytest.mark.parametrize("host", ["198.51.100.1", "no..host", "https://a.example.com"])
def test_a_host_that_is_not_this_machines_is_wrong(well: ListenerHere, host: str) -> None:
    """N23: before a restart that would fail, and it is no port that is open."""
    text = well.config.read_text()
    assert "\nhost = 127.0.0.1\n" in text
    well.config.write_text(text.replace("\nhost = 127.0.0.1\n", f"\nhost = {host}\n"))
    [line] = [line for line in wrong(well) if "[listener] host" in line]
    assert line.startswith(
        f"{well.config}: [listener] host = {host}: host must be an address of this machine: 127.0.0.1"
    )
    assert not any("open to the network" in note for note in facts(well, "note"))


def test_that_no_listener_runs_is_told_where_the_database_cannot_be_opened(well: ListenerHere) -> None:
    """N16."""
    well.end()
    well.database.write_bytes(b"Dear diary" * 1000)
    assert f"no listener is running on {well.database}: sudo systemctl start iconik-listener. {LOG}" in wrong(well)


# iconik, the credentials and what they may


def test_check_finds_credentials_that_are_refused(well: ListenerHere, sandbox: FaultyIconik) -> None:
    sandbox.auth_token = "another"
    reason = "iconik answered 401: app_id and auth_token are not accepted: Token is invalid"
    assert wrong(well) == [f"{sandbox.url}: {reason}. Correct them in {well.config}, and {RESTART}"]


def test_check_finds_that_iconik_is_away(well: ListenerHere, sandbox: FaultyIconik) -> None:
    sandbox.faults.append(Fault("users", status=503))
    assert wrong(well) == [f"{sandbox.url}: iconik answered 503: Out of order"]


def test_a_question_that_iconik_does_not_answer_keeps_no_other_from_being_asked(
    well: ListenerHere, sandbox: FaultyIconik
) -> None:
    sandbox.faults.append(Fault("automations", status=500))
    next(iter(sandbox.webhooks.values()))["status"] = "DISABLED"
    first, second = wrong(well)
    assert first == f"{sandbox.url}: iconik answered 500: Out of order"
    assert second.startswith(f"the webhook to {well.url}/create is DISABLED")


def test_check_finds_each_role_that_is_missing(well: ListenerHere, sandbox: FaultyIconik) -> None:
    for role, loss in SERVICE_ROLES.items():
        sandbox.roles.discard(role)
        assert wrong(well) == [f"the role {role} is missing: {loss}"]
        sandbox.roles.add(role)


def test_a_role_that_only_a_command_needs_is_a_note(well: ListenerHere, sandbox: FaultyIconik) -> None:
    for role, loss in OTHER_ROLES.items():
        sandbox.roles.discard(role)
        assert f"the role {role} is missing: {loss}" in facts(well, "note")
    assert wrong(well) == []


@pytest.mark.parametrize(
    ("change", "level", "words"),
    [
        ({}, "ok", 'the profile "Clips" of [analyze] is for video, and is enabled'),
        ({"enabled": False}, "WRONG", 'the profile "Clips" of [analyze] is disabled in iconik'),
        ({"media_type": "transcription"}, "WRONG", 'the profile "Clips" of [analyze] is for transcription, which'),
        ({"name": "Other"}, "WRONG", '[analyze] profile: iconik has no profile "clips". It has: '),
    ],
)
def test_check_says_of_a_profile_what_it_is_for(
    listeners_here: Callable[..., ListenerHere], sandbox: FaultyIconik, change: Json, level: str, words: str
) -> None:
    listener = listeners_here(analyze__profile="clips").start()
    sandbox.register(listener.url, OURS)
    sandbox.profiles.append({**profile("Clips", "video"), **change})
    assert any(fact.startswith(words) for fact in facts(listener, level))


@pytest.mark.parametrize("kinds", [["transcription"], ["video", "transcription"]])
@pytest.mark.parametrize("configured", ["", "default"])
def test_check_finds_that_iconik_has_no_profile_for_a_media_type(
    listeners_here: Callable[..., ListenerHere], sandbox: FaultyIconik, kinds: list[str], configured: str
) -> None:
    """F1, F5: a disabled or a transcription default is none for images."""
    listener = listeners_here(analyze__profile=configured).start()
    sandbox.register(listener.url, OURS)
    sandbox.profiles = [profile(kind, kind, is_default=True) for kind in kinds]
    missing = [fact for fact in wrong(listener) if "so it refuses the analyze jobs" in fact]
    assert len(missing) == (1 if "video" in kinds else 2)


@pytest.mark.parametrize(
    ("only", "level", "words"),
    [
        ("media_type:video", "ok", 'the query "only" of [analyze] finds 1 asset today'),
        ("media_type:vidoe", "WRONG", 'the query "only" of [analyze] finds no asset at all'),
        ("media_type:(video", "WRONG", 'iconik refuses the query "only" of [analyze]: '),
    ],
)
def test_check_says_how_many_assets_only_finds(
    listeners_here: Callable[..., ListenerHere], sandbox: FaultyIconik, only: str, level: str, words: str
) -> None:
    listener = listeners_here(analyze__only=only).start()
    sandbox.register(listener.url, OURS)
    sandbox.create_asset("a.mov", send=False)
    assert any(fact.startswith(words) for fact in facts(listener, level))


def test_check_tells_the_limit(
    listeners_here: Callable[..., ListenerHere], sandbox: FaultyIconik, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = listeners_here(limits__max_per_day=5).start()
    sandbox.register(listener.url, OURS)
    assert NO_LIMIT not in facts(listener, "note")
    listener.upload(*(new_id() for _ in range(4)))
    wait_until(lambda: len(listener.rows("status = 'submitted'")) == 4)
    assert "4 of 5 jobs a day were started today (UTC)" in facts(listener, "note")
    listener.upload(new_id())
    wait_until(lambda: len(listener.rows("status = 'submitted'")) == 5)
    [fact] = wrong(listener)
    reached = "5 jobs started today, as many as max_per_day allows"
    assert fact.startswith(f"{reached}. What comes now waits until 00:00 UTC. To let more through now: ")
    listener.upload(*(new_id() for _ in range(2)))
    [fact] = wrong(listener)
    assert fact.startswith(f"{reached}. 2 items wait until 00:00 UTC. To let more through now: ")
    assert fact.endswith(" skip --all ready")
    monkeypatch.setenv("SUDO_USER", "ada")  # the command runs as the service's user
    assert listener.command("pause", "--reason", "budget").returncode == 0
    [fact] = wrong(listener)
    assert fact.startswith("ada paused the starting of jobs at 20")
    assert "(budget). 2 items wait until somebody resumes. To start jobs again: " in fact


def test_what_iconik_refuses_everybody_is_wrong(
    listeners_here: Callable[..., ListenerHere], sandbox: FaultyIconik
) -> None:
    listener = listeners_here(submitter__retry_delay=60, submitter__max_retry_delay=60).start()
    sandbox.register(listener.url, OURS)
    sandbox.refuse_jobs = 402, "Insufficient credits"
    listener.upload(*(new_id() for _ in range(10)))
    wait_until(lambda: len(listener.rows("refused = 1")) == 10)
    [fact] = wrong(listener)
    assert fact.startswith("iconik refuses 10 items: iconik answered 402: Insufficient credits. They are tried again")
    one = listener.rows()[0]["object_id"]
    listener.store.database.run("DELETE FROM items WHERE object_id <> :one", one=one)
    [fact] = wrong(listener)
    assert fact.startswith("iconik refuses 1 item: iconik answered 402: Insufficient credits. It is tried again")


@pytest.mark.parametrize(
    ("job", "words"), [("transcribe", "transcription is not enabled"), ("faces", "face recognition is not enabled")]
)
def test_a_kind_of_job_that_iconik_has_not_enabled_is_wrong(
    listeners_here: Callable[..., ListenerHere], sandbox: FaultyIconik, job: str, words: str
) -> None:
    slow = {"submitter__retry_delay": 60, "submitter__max_retry_delay": 60}
    listener = listeners_here(submitter__jobs=f"analyze {job}", **slow).start()
    sandbox.register(listener.url, OURS)
    sandbox.not_enabled.add(job)
    listener.upload(ASSET, OTHER_ASSET)
    wait_until(lambda: len(listener.rows("refused = 1")) == len(listener.rows("status = 'submitted'")) == 2)
    remedy = f"have iconik enable it, or take {job} out of [submitter] jobs"
    assert wrong(listener) == [f"{words} at iconik, which refuses 2 items: {remedy}"]
    assert "role" not in listener.rows("refused = 1")[0]["error"]
    sandbox.not_enabled.clear()
    listener.command("retry", "--all", "ready")
    listener.submitter.wake()
    wait_until(lambda: len(listener.rows("status = 'submitted'")) == 4)
    assert wrong(listener) == []


def test_check_knows_the_roles_and_profiles_of_the_configured_jobs(
    listeners_here: Callable[..., ListenerHere], sandbox: FaultyIconik
) -> None:
    listener = listeners_here(submitter__jobs="transcribe faces").start()
    sandbox.register(listener.url, OURS)
    assert wrong(listener) == []
    sandbox.roles -= {"can_analyze_content", "can_transcribe_content", "can_trigger_face_recognition"}
    for one in sandbox.profiles:
        one["enabled"] = one["media_type"] in ("image", "video")
    assert wrong(listener) == [
        "the role can_transcribe_content is missing: no transcribe job can be started",
        "the role can_trigger_face_recognition is missing: no faces job can be started",
        "iconik has no enabled profile for transcription, so it refuses the transcribe jobs ([transcribe] profile)",
        "iconik has no enabled profile for face_image, so it refuses the faces jobs",
        "iconik has no enabled profile for face_video, so it refuses the faces jobs",
    ]


def test_check_for_programs_is_json(well: ListenerHere) -> None:
    found = json.loads(well.command("check", "--json").stdout)
    assert found["ok"] is True
    assert {"level": "note", "text": NO_LIMIT} in found["facts"]


@pytest.mark.parametrize(
    ("status", "actions", "is_noted"),
    [
        ("ACTIVE", [{"type": "ANALYZE"}], True),
        ("INACTIVE", [{"type": "ANALYZE"}], False),
        ("ACTIVE", [{"type": "TRANSCODE"}, "?"], False),
        ("ACTIVE", None, False),
    ],
)
def test_an_automation_of_iconiks_that_analyzes_too_is_a_note(
    well: ListenerHere, sandbox: FaultyIconik, status: str, actions: Any, is_noted: bool
) -> None:
    sandbox.automations.append({"name": "All\nin", "status": status, "actions": actions})
    line = 'iconik\'s automation "All in" also starts jobs: some assets may be billed twice'
    assert (line in facts(well, "note")) == is_noted


def test_an_automation_for_other_jobs_is_not_noted(well: ListenerHere, sandbox: FaultyIconik) -> None:
    sandbox.automations.append({"name": "Faces", "status": "ACTIVE", "actions": [{"type": "EXTRACT_FACES"}]})
    assert not any("Faces" in line for line in facts(well, "note"))


# The webhooks


def test_check_finds_webhooks_that_are_missing(listener: ListenerHere) -> None:
    create, proxy = "/create (assets, create, entity)", "/proxy (assets, update, proxies)"
    assert wrong(listener) == [
        f"iconik has no webhook for {what}: iconik-listener register URL" for what in (create, proxy)
    ]
    listener.store.set_state("registered_url", "https://listener.example.com")
    at = "at https://listener.example.com: iconik-listener register https://listener.example.com"
    assert wrong(listener) == [f"iconik has no webhook for {what} {at}" for what in (create, proxy)]


def test_another_listeners_webhooks_are_not_taken_for_ours(listener: ListenerHere, sandbox: FaultyIconik) -> None:
    sandbox.register(TWIN, OURS)
    listener.store.set_state("registered_url", listener.url)
    assert [line.split(" (")[0] for line in wrong(listener)] == [
        "iconik has no webhook for /create",
        "iconik has no webhook for /proxy",
    ]
    sandbox.register(listener.url, OURS)
    assert wrong(listener) == []


def test_a_webhook_that_sends_our_secret_elsewhere_is_a_note(well: ListenerHere, sandbox: FaultyIconik) -> None:
    """N8: a wrong host that was registered once."""
    remedy = f"iconik-listener register --remove {TWIN}"
    line = f"another webhook sends our secret, to {TWIN}. If nobody listens there: {remedy}"
    assert line not in facts(well, "note")
    sandbox.register(TWIN, OURS)
    assert facts(well, "note").count(line) == 1
    sandbox.webhooks.clear()
    sandbox.register(well.url, OURS)
    sandbox.register(TWIN, {"X-Webhook-Secret": "another"})
    assert line not in facts(well, "note")


def test_check_finds_that_our_webhooks_cannot_be_told_from_anothers(
    listener: ListenerHere, sandbox: FaultyIconik
) -> None:
    """The listener does not know which are its own, either: nothing mends itself then."""
    sandbox.register(listener.url, OURS)
    assert wrong(listener) == []
    sandbox.register(TWIN, OURS)
    lines = wrong(listener)
    assert lines[0].startswith("cannot tell which of iconik's webhooks belong to this listener, so those that iconik ")
    assert lines[0].endswith(": iconik-listener register URL")
    hosts = ", ".join(sorted([listener.url.removeprefix("http://"), TWIN.removeprefix("http://")]))
    assert lines[1] == f"the webhooks point at different hosts ({hosts}): iconik-listener register URL"


@pytest.mark.parametrize(
    ("path", "change", "problem"),
    [
        ("create", {"status": "FAILING", "last_error": "Connection\nrefused"}, "is FAILING (Connection refused)"),
        ("proxy", {"status": "DISABLED", "last_error": "500"}, "is DISABLED (500)"),
        ("create", {"status": "DISABLED"}, "is DISABLED (iconik does not say why)"),
        ("proxy", {"headers": {"X-Webhook-Secret": "another"}}, "does not send webhook_secret as X-Webhook-Secret"),
        ("create", {"headers": None}, "does not send webhook_secret as X-Webhook-Secret"),
        ("proxy", {"object_id": ASSET}, f"is for one asset only ({ASSET})"),
    ],
)
def test_check_finds_a_webhook_that_brings_us_nothing(
    well: ListenerHere, sandbox: FaultyIconik, path: str, change: dict[str, Any], problem: str
) -> None:
    webhook = next(one for one in sandbox.webhooks.values() if one["url"].endswith(path))
    webhook.update(change)
    remedy = f"Once the cause is fixed: iconik-listener register --insecure {well.url}"
    first, *others = wrong(well)
    assert first == f"the webhook to {well.url}/{path} {problem}. {remedy}"
    refused = "the listener there does not accept the secret that iconik sends:"
    refused += f" iconik-listener register --insecure {well.url}"
    assert others == ([f"{well.url}/{path}: {refused}"] if "headers" in change else [])


def test_check_finds_a_changed_query(well: ListenerHere, sandbox: FaultyIconik) -> None:
    create, proxy = sandbox.webhooks.values()
    proxy["query"] = 'data.status="closed"'
    [line] = wrong(well)
    assert line.startswith(f'the webhook to {well.url}/proxy has a query of its own: data.status="closed". Once ')
    proxy["query"] = ""
    create["query"] = 'data.title="news"'
    lines = facts(well, "ok")
    assert f"the webhook to {well.url}/proxy is ENABLED" in lines
    only = 'for events with data.title="news"; so missed assets are not found'
    assert f"the webhook to {well.url}/create is ENABLED, {only}" in lines


# The way from iconik to us


def test_the_way_is_tried_and_changes_nothing(well: ListenerHere) -> None:
    assert wrong(well) == []
    assert well.rows() == []
    assert json.loads(well.command("status", "--json").stdout)["listener"]["last_webhook_at"] is None


def names_that_do_not_exist(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    real = socket.getaddrinfo

    def look_up(host: Any, *arguments: Any, **options: Any) -> Any:
        if str(host).endswith("example.com"):
            raise socket.gaierror(number, "no")
        return real(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


def test_check_finds_webhooks_at_a_host_that_does_not_exist(
    listener: ListenerHere, sandbox: FaultyIconik, monkeypatch: pytest.MonkeyPatch
) -> None:
    names_that_do_not_exist(monkeypatch, socket.EAI_NONAME)
    sandbox.register("https://listner.example.com", OURS)
    remedy = "create its DNS entry or, if the name is wrong, register the right one and remove this:"
    remedy += " iconik-listener register --remove https://listner.example.com"
    assert wrong(listener) == [f"listner.example.com is not in DNS: {remedy}"]


def test_a_machine_that_cannot_look_up_names_says_so_and_goes_on(
    listener: ListenerHere, sandbox: FaultyIconik, monkeypatch: pytest.MonkeyPatch
) -> None:
    names_that_do_not_exist(monkeypatch, socket.EAI_AGAIN)
    sandbox.register("https://listener.example.com", OURS)
    words = "cannot be tried: this machine cannot look up names just now"
    assert f"https://listener.example.com {words}" in facts(listener, "note")


def test_what_is_refused_at_an_address_of_this_machine_is_wrong(listener: ListenerHere, sandbox: FaultyIconik) -> None:
    """N5: Caddy is not running."""
    port = closed_port()
    sandbox.register(f"http://127.0.0.1:{port}", OURS)
    words = f"nothing listens on port {port} of this machine: start what listens there"
    assert wrong(listener) == [f"http://127.0.0.1:{port}: {words}"]


def test_check_finds_that_something_else_answers_there(listener: ListenerHere, sandbox: FaultyIconik) -> None:
    sandbox.register(sandbox.url, OURS)
    assert wrong(listener) == [
        f"{sandbox.url}/{path}: something other than this listener answers there (401)" for path in ("create", "proxy")
    ]


def test_check_finds_that_the_running_listener_refuses_the_secret_that_iconik_sends(
    well: ListenerHere, sandbox: FaultyIconik
) -> None:
    well.config.write_text(well.config.read_text().replace(SECRET, "new"))
    for webhook in sandbox.webhooks.values():
        webhook["headers"] = {"X-Webhook-Secret": "new"}
    lines = wrong(well)
    assert f"{well.config} was changed after the listener was started: {RESTART}" in lines
    assert f"{well.url}/create: the listener there does not accept the secret that iconik sends: {RESTART}" in lines


# Monitoring


@dataclass
class Recorder:
    """An HTTP server that takes down what is asked of it, as "METHOD path" and body."""

    url: str
    status: int = 200
    body: bytes = b"OK"
    requests: list[tuple[str, bytes]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            told.requests.append((f"{self.command} {self.path}", body))
            told.headers.append(dict(self.headers))
            self.send_response(told.status)
            self.send_header("Content-Length", str(len(told.body)))
            self.end_headers()
            self.wfile.write(told.body)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        told = Recorder(f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield told
        server.shutdown()


def test_the_way_goes_to_the_whole_url_with_all_headers_and_the_event_is_harmless(
    listener: ListenerHere, sandbox: FaultyIconik, recorder: Recorder
) -> None:
    recorder.body = b'{"object_id": null, "item": "ignored"}'
    sandbox.register(f"{recorder.url}/behind/a", {**OURS, "X-Gateway": "let me in"})
    assert wrong(listener) == []
    assert [request for request, _ in recorder.requests] == ["POST /behind/a/create", "POST /behind/a/proxy"]
    assert all(headers["X-Gateway"] == "let me in" for headers in recorder.headers)
    assert all(headers["X-Webhook-Secret"] == SECRET for headers in recorder.headers)
    events = [json.loads(body) for _, body in recorder.requests]
    assert all(event["event_type"] != "assets" and event["object_id"] is None for event in events)


def test_a_monitor_is_told_that_all_is_well(well: ListenerHere, recorder: Recorder) -> None:
    assert facts(well, "WRONG", "--ping", f"{recorder.url}/abc") == []
    assert recorder.requests == [("GET /abc", b"")]


def test_a_monitor_is_told_what_is_wrong(well: ListenerHere, sandbox: FaultyIconik, recorder: Recorder) -> None:
    sandbox.roles -= {"can_search", "can_read_jobs"}
    lines = facts(well, "WRONG", "--ping", f"{recorder.url}/abc?create=1")
    assert len(lines) == 2
    assert recorder.requests == [("POST /abc/fail?create=1", "\n".join(lines).encode())]


def test_a_monitor_is_told_no_ids(well: ListenerHere, sandbox: FaultyIconik, recorder: Recorder) -> None:
    next(iter(sandbox.webhooks.values()))["object_id"] = ASSET
    assert any(ASSET in line for line in facts(well, "WRONG", "--ping", f"{recorder.url}/abc"))
    [(_, body)] = recorder.requests
    assert b"is for one asset only (\xe2\x80\xa6)" in body


@pytest.mark.parametrize(
    ("url", "is_well", "line"),
    [
        ("{recorder.url}/abc", True, "The monitor at 127.0.0.1 answered 404\n"),
        ("{recorder.url}/abc", False, "The monitor at 127.0.0.1 answered 404\n"),
        ("http://127.0.0.1:{closed_port}/", True, "The monitor at 127.0.0.1 cannot be reached: ConnectionError\n"),
    ],
)
def test_a_ping_that_fails_is_one_line_and_changes_nothing_else(
    well: ListenerHere, recorder: Recorder, sandbox: FaultyIconik, url: str, is_well: bool, line: str
) -> None:
    recorder.status = 404
    if not is_well:
        sandbox.roles.discard("can_search")
    result = well.command("check", "--ping", url.format(recorder=recorder, closed_port=closed_port()))
    assert result.stderr == line
    assert result.returncode == (not is_well)


@pytest.mark.parametrize("url", ["hc-ping.com/abc", "https://[", "ftp://hc-ping.com/abc", "https://"])
def test_a_monitors_url_must_be_one(well: ListenerHere, url: str) -> None:
    result = well.command("check", "--ping", url)
    assert result.returncode == 2
    assert "it must be a URL like https://hc-ping.com/" in result.stderr


def test_check_writes_to_the_disk(well: ListenerHere) -> None:
    wrong(well)
    first = str(well.store.state("checked_at"))
    assert first.startswith("20")
    wait_until(lambda: well.store.now() > first)
    wrong(well)
    assert str(well.store.state("checked_at")) > first
