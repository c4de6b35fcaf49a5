"""The real `python app.py`, as a process: how it starts, what it does for the article's assets, and how it ends."""

import ast
import ctypes
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest
import requests
from click.testing import CliRunner

import app
from faulty_iconik import Fault, FaultyIconik
from store import Store
from support import (
    APP,
    ARTICLE_CREATE,
    ARTICLE_PROXY,
    ASSET,
    OTHER_ASSET,
    SECRET,
    Listener,
    create_event,
    held_by_a_person,
    needs,
    new_id,
    rows,
    run,
    unread_bytes,
    wait_until,
)
from test_migrations import VERSION_1_0, write
from version import __version__

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


def messages(listener: Listener, begin: int = 0) -> list[str]:
    """The lines of the log from that one on, without their times."""
    return [line.partition(" ")[2].rstrip("\n") for line in listener.log[begin:]]


# The article's payloads


def curl(url: str, event: object) -> str:
    command = ["curl", "-sS", "-H", f"X-Webhook-Secret: {SECRET}", "--data-binary", "@-", url]
    answer = subprocess.run(command, input=json.dumps(event), capture_output=True, text=True, check=True).stdout
    return str(json.loads(answer)["item"])


def test_the_articles_payloads_are_of_two_assets_and_a_proxy_of_the_first_leads_to_one_job(
    listener: Listener, sandbox: FaultyIconik
) -> None:
    needs("curl", "sqlite3")
    sandbox.create_asset("1_zps7uj5xqff.jpg", ASSET)
    assert curl(f"{listener.url}/proxy", ARTICLE_PROXY) == "awaiting_create"
    assert curl(f"{listener.url}/create", ARTICLE_CREATE) == "awaiting_proxy"
    assert curl(f"{listener.url}/proxy", {**ARTICLE_PROXY, "object_id": ASSET}) == "ready"
    wait_until(lambda: listener.rows("status = 'submitted'"))
    query = "select object_id, title, finished from items order by finished desc"
    shown = subprocess.run(["sqlite3", listener.database, query], capture_output=True, text=True, check=True).stdout
    assert shown == f"{ASSET}|1_zps7uj5xqff.jpg|True\n{OTHER_ASSET}||False\n"
    assert [request for request in sandbox.requests if "/assets/" in request] == [
        f"GET /API/assets/v1/assets/{ASSET}/",
        f"POST /API/transcode/v1/analyze/assets/{ASSET}/",
    ]
    wait_until(lambda: listener.logged("Submitted Analyze Job"))
    assert [line for line in messages(listener) if ASSET in line] == [
        f'INFO Creating new queue item for object_id {ASSET} "1_zps7uj5xqff.jpg"',
        f"INFO Found object {ASSET} in finished proxy queue",
        f'INFO Submitting Analyze Job for {ASSET} "1_zps7uj5xqff.jpg"',
        f'INFO Submitted Analyze Job for {ASSET} "1_zps7uj5xqff.jpg"',
    ]


# How it starts


def test_the_first_line_says_version_address_database_with_its_counts_and_iconik(
    listeners: Callable[..., Listener], tmp_path: Path, sandbox: FaultyIconik
) -> None:
    listener = listeners(reconciler__interval=0).start()
    listener.upload(ASSET)
    assert listener.post("/create", create_event(OTHER_ASSET)).status_code == 200
    wait_until(lambda: listener.rows("status = 'submitted'"))
    assert listener.end() == 0
    again = len(listener.log)
    listener.start()
    for line, counts in ((listener.log[0], "empty"), (listener.log[again], "1 awaiting_proxy, 1 submitted")):
        assert re.fullmatch(
            rf"{TIME} INFO Listening on 127\.0\.0\.1:\d+: iconik-listener {re.escape(__version__)},"
            rf" database {tmp_path}/items\.db \({counts}\), iconik at {sandbox.url}\n",
            line,
        )


def test_without_a_configuration_it_says_what_to_do(tmp_path: Path) -> None:
    result = run(cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr == (
        "Error: config.ini does not exist: copy config.example.ini to config.ini and fill it in,"
        " or try: python app.py demo\n"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("values", "code", "words"),
    [
        ({"listener__port": "x"}, 2, r"\[listener\] port: is 'x': must be a number"),
        ({"listener__database": "no/items.db"}, 1, "the folder .*/no does not exist: create it"),
    ],
)
def test_what_is_wrong_at_the_start_is_one_line(
    listeners: Callable[..., Listener], values: dict[str, object], code: int, words: str
) -> None:
    result = listeners(**values).run()
    assert result.returncode == code
    assert re.fullmatch(f"Error: [^\n]*{words}[^\n]*\n", result.stderr)


@pytest.mark.long
def test_a_mistake_at_the_start_is_a_line_of_the_log_under_systemd(listeners: Callable[..., Listener]) -> None:
    """N25: with its time, and with the priority that `journalctl -p err` shows."""
    listener = listeners(listener__port="x")
    with listener.config.with_name("journal").open("w+b") as journal:
        stream = os.fstat(journal.fileno())
        environment = {**os.environ, "JOURNAL_STREAM": f"{stream.st_dev}:{stream.st_ino}"}
        command = [sys.executable, str(APP), "--config", str(listener.config), "serve"]
        done = subprocess.run(command, stderr=journal, env=environment, check=False, timeout=30)
        journal.seek(0)
        line = journal.read().decode()
    assert done.returncode == 2  # after which the unit does not start it again
    assert re.fullmatch(rf"<2>{TIME} CRITICAL [^\n]*\[listener\] port: is 'x': must be a number\n", line)
    assert "RestartPreventExitStatus=2\n" in (APP.parent / "deploy" / "iconik-listener.service").read_text()


PR_CAPBSET_DROP, CAP_SYS_ADMIN, CAP_SYS_RESOURCE = 24, 21, 24
NO_MORE_THREADS = "no more threads can be started: another program may use them up, or TasksMax is too low"


def allow_no_threads() -> None:
    """In a process that is to execute a program: the system's own limit, which does not concern root."""
    if os.geteuid() == 0:
        for capability in (CAP_SYS_ADMIN, CAP_SYS_RESOURCE):
            ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
        os.setresuid(100_000 + os.getpid(), 0, 0)  # the limit is that of the real user, who has nothing else
    resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))


@pytest.mark.long
@pytest.mark.parametrize("is_service", [False, True])
def test_where_no_thread_can_be_started_it_ends_with_one_line(
    listeners: Callable[..., Listener], tmp_path: Path, is_service: bool
) -> None:
    """P10."""
    listener = listeners()
    with (tmp_path / "log").open("w+b") as log:
        stream = os.fstat(log.fileno())
        variables = {"JOURNAL_STREAM": f"{stream.st_dev}:{stream.st_ino}"} if is_service else {}
        environment = {**os.environ, **variables}
        command = [sys.executable, str(APP), "--config", str(listener.config), "serve"]
        done = subprocess.run(command, stderr=log, env=environment, preexec_fn=allow_no_threads, timeout=30)
        log.seek(0)
        line = log.read().decode()
    assert done.returncode == 1
    assert re.fullmatch(
        f"<2>{TIME} CRITICAL {NO_MORE_THREADS}\n" if is_service else f"Error: {NO_MORE_THREADS}\n", line
    )


def test_a_safer_path_of_pythons_is_no_traceback(tmp_path: Path) -> None:
    """P9."""
    done = run("--version", cwd=tmp_path, env={"PYTHONSAFEPATH": "1"})
    assert (done.stdout, done.stderr) == (f"iconik-listener {__version__}\n", "")


@pytest.mark.long
def test_no_file_gets_the_keys_of_a_commands_encryption(
    listeners: Callable[..., Listener], sandbox: FaultyIconik, tmp_path: Path
) -> None:
    """P9: nor does a missing folder change what is said."""
    listener = listeners()
    before = set(tmp_path.iterdir())
    for file in (tmp_path / "keys", tmp_path / "missing" / "keys"):
        listener.environment["SSLKEYLOGFILE"] = str(file)
        done = listener.run("check", "--ping", sandbox.url.replace("http:", "https:"))
        assert done.stderr == "The monitor at 127.0.0.1 cannot be reached: SSLError\n"
        assert set(tmp_path.iterdir()) == before


@pytest.mark.long
def test_a_listener_leaves_nothing_beside_another_programs_file(listeners: Callable[..., Listener]) -> None:
    """N24."""
    listener = listeners()
    listener.database.write_bytes(b"Dear diary")
    result = listener.run()
    assert result.returncode == 1
    assert result.stderr.startswith(f"Error: {listener.database} is not the listener's")
    assert sorted(file.name for file in listener.database.parent.iterdir()) == ["config.ini", "items.db"]


@pytest.mark.long
def test_the_first_start_warns_of_nothing(listener: Listener, sandbox: FaultyIconik) -> None:
    """N21: that no webhooks are registered yet is no fault."""
    wait_until(lambda: listener.logged("iconik has no webhooks of this listener yet: "))
    assert not any(f" {level} " in line for line in listener.log for level in ("WARNING", "ERROR", "CRITICAL"))


@pytest.mark.long
def test_a_second_listener_is_refused_and_harms_nothing(listener: Listener) -> None:
    result = listener.run()
    assert (result.returncode, result.stderr) == (1, f"Error: {listener.database}: another listener is running on it\n")
    assert listener.post("/create", create_event()).status_code == 200


def test_a_python_that_is_too_old_is_told_which_one_is_needed(tmp_path: Path) -> None:
    ast.parse(APP.read_text(encoding="utf-8"), feature_version=(3, 8))  # what it could not read it could not say
    program = f"import runpy, sys; sys.version_info = (3, 9, 2); runpy.run_path({str(APP)!r}, run_name='__main__')"
    result = subprocess.run([sys.executable, "-S", "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.startswith(f"Error: Python 3.10 or newer is needed; {sys.executable} is ")


def test_help_is_there() -> None:
    result = CliRunner().invoke(app.cli, ["--help"])
    assert result.exit_code == 0
    assert "`serve` listens for iconik's webhooks, and so does app.py without a command." in " ".join(
        result.output.split()
    )
    assert CliRunner().invoke(app.cli, ["no-such-command"]).exit_code == 2


# What it finds in items.db


@pytest.mark.long
def test_a_database_and_a_configuration_of_version_1_0_are_taken_over_by_a_start(
    listeners: Callable[..., Listener], sandbox: FaultyIconik
) -> None:
    sandbox.makes_up_assets = True
    listener = listeners(
        iconik__timeout=None, submitter__timeout=1, sweep__interval=3600, listener__webhook_secret=None
    )
    write(listener.database, VERSION_1_0)
    submitted_before = {row["object_id"] for row in rows(listener.database, "status = 'submitted'")}
    due = {row["object_id"] for row in rows(listener.database, "status IN ('ready', 'submitting')")}
    listener.start()
    wait_until(lambda: not listener.rows("status IN ('ready', 'submitting')"))
    assert Counter(sandbox.jobs) == dict.fromkeys(due, 1)
    assert len(listener.rows("status <> 'awaiting_create'")) == 11  # a lone proxy of the other day is deleted by now
    assert {row["object_id"] for row in listener.rows("finished = 'True'")} == submitted_before | due
    assert listener.database.with_name("items.db.before-3").exists()
    assert f"INFO {listener.database} is upgraded (12 items); what it was before is kept as" in "".join(listener.log)
    assert messages(listener)[:3] == [
        "WARNING No webhook_secret is set: anybody who finds the port can start analyses",
        f"WARNING {listener.config}: timeout of [submitter] is now timeout of [iconik]: move it there",
        f"WARNING {listener.config}: interval of [sweep] is now interval of [reconciler]: move it there",
    ]


def test_a_file_that_is_not_the_listeners_is_refused_with_one_line_and_left_as_it_is(
    listeners: Callable[..., Listener],
) -> None:
    listener = listeners()
    listener.database.write_bytes(b"Dear diary" * 100)
    result = listener.run()
    assert result.returncode == 1
    assert re.fullmatch(
        f"Error: {listener.database} is not the listener's [^\n]*not an SQLite database[^\n]*\n", result.stderr
    )
    assert listener.database.read_bytes() == b"Dear diary" * 100


@pytest.mark.long
def test_a_damaged_file_does_not_end_in_service(listeners: Callable[..., Listener]) -> None:
    """As after a restore of items.db beside the old items.db-wal, which a kill leaves there."""
    listener = listeners()
    wal, old_wal = (listener.database.with_name(name) for name in ("items.db-wal", "old-wal"))
    with closing(Store(listener.database, listener=True)) as store:
        store.add_asset(ASSET, "a.mov")
        [index] = store.database.run("SELECT rootpage FROM sqlite_master WHERE name = 'items_awaiting_proxy'")
        store.database.run("PRAGMA wal_checkpoint(TRUNCATE)")
        store.set_state("a", "1")
        shutil.copy(wal, old_wal)
    with listener.database.open("r+b") as file:
        file.seek(4096 * (index["rootpage"] - 1))
        file.write(b"\xff" * 4096)
    old_wal.rename(wal)
    result = listener.run()
    assert result.returncode == 1
    line = result.stderr.splitlines()[-1]
    assert line.startswith(f"Error: {listener.database} is damaged (")
    assert line.endswith("): restore a backup, as docs/operating.md says")


@pytest.mark.long
def test_an_asset_that_comes_back_with_a_backup_is_not_billed_twice(
    listeners: Callable[..., Listener], sandbox: FaultyIconik
) -> None:
    listener = listeners()
    with closing(Store(listener.database, listener=True)) as store:
        store.add_asset(ASSET, "a.mov")
        store.proxy_closed(ASSET)
    backup = shutil.copy(listener.database, listener.database.with_name("backup"))
    sandbox.create_asset("a.mov", ASSET)
    listener.start()
    wait_until(lambda: listener.rows("status = 'submitted'"))
    assert listener.end() == 0
    shutil.copy(backup, listener.database)
    [row] = listener.rows("status = 'ready'")
    assert row["attempts"] == 0
    listener.start()
    wait_until(lambda: listener.rows("status = 'submitted'"))
    assert sandbox.jobs == [ASSET]
    found = f'INFO iconik already has the Analyze Job for {ASSET} "a.mov"'
    wait_until(lambda: found in messages(listener))


@pytest.mark.long
def test_a_database_that_is_deleted_under_it_is_told_of_at_once(listener: Listener) -> None:
    assert listener.post("/create", create_event()).status_code == 200
    listener.database.unlink()
    assert requests.get(f"{listener.url}/health").status_code == 503
    assert listener.post("/create", create_event()).status_code == 503  # though it would change nothing
    assert listener.post("/create", create_event(OTHER_ASSET)).status_code == 503
    wait_until(lambda: listener.logged("ERROR"))
    error = next(line for line in messages(listener) if line.startswith("ERROR"))
    assert f"{listener.database}: was deleted or replaced under the listener: stop it, put the file back" in error


@pytest.mark.long
def test_proxies_whose_create_never_came_are_deleted_in_batches_between_which_webhooks_are_answered(
    listeners: Callable[..., Listener],
) -> None:
    old = "2020-01-01T00:00:00.000Z"
    listener = listeners(reconciler__interval=0)
    with closing(Store(listener.database, listener=True)) as store, store.database.transaction() as db:
        statement = "INSERT INTO items (object_id, status, proxy_closed_at) VALUES (?, 'awaiting_create', ?)"
        db.executemany(statement, [(new_id(), old) for _ in range(1500)])
    listener.start()
    left: list[int] = []
    while not left or left[-1]:
        assert listener.post("/create", create_event(new_id())).status_code == 200
        left.append(len(listener.rows(f"proxy_closed_at = '{old}'")))
    assert len({count for count in left if 0 < count < 1500}) >= 2


# How it ends


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])  # P10: a terminal that is closed, or logrotate
def test_it_ends_with_0_and_records_what_is_under_way(
    listeners: Callable[..., Listener], sandbox: FaultyIconik, number: signal.Signals
) -> None:
    listener = listeners(submitter__workers=2).start()
    with sandbox.changed:  # until this is released, iconik does not answer
        listener.upload(*(new_id() for _ in range(4)))
        wait_until(lambda: len(listener.rows("status = 'submitting'")) == 2)
        interrupt(listener, number)
    assert listener.end(number) == 0  # though it gets the signal twice
    assert sorted(sandbox.jobs) == sorted(row["object_id"] for row in listener.rows("status = 'submitted'"))
    assert len(listener.rows("status = 'submitted'")) == len(listener.rows("status = 'ready'")) == 2
    assert listener.log[-1].endswith("\n")
    assert not listener.logged("Traceback")


@pytest.mark.long
def test_a_second_signal_while_python_itself_ends_changes_nothing(listeners: Callable[..., Listener]) -> None:
    late = "import os, time\nclass Late:\n    def __del__(self, os=os, time=time):"
    late += "\n        os.write(2, b'Python ends\\n')\n        time.sleep(0.3)\nlate = Late()"
    listener = listeners().start(prelude=late)
    interrupt(listener, signal.SIGTERM)
    wait_until(lambda: listener.logged("Python ends"))
    assert listener.end() == 0


@pytest.mark.long
def test_a_signal_that_another_thread_gets_ends_it_at_once(listener: Listener) -> None:
    """The main thread, which waits for the network meanwhile, is not interrupted by it."""
    assert listener.process
    pid = listener.process.pid
    wait_until(lambda: answers_at_once(listener))
    other = max(int(task.name) for task in Path(f"/proc/{pid}/task").iterdir())
    assert other != pid
    assert ctypes.CDLL(None).tgkill(pid, other, signal.SIGTERM) == 0
    assert listener.process.wait(15) == 0


EVENT = json.dumps(create_event()).encode()
CREATE = f"POST /create HTTP/1.1\r\nX-Webhook-Secret: {SECRET}\r\nContent-Length: {len(EVENT)}\r\n\r\n".encode() + EVENT


def test_after_ctrl_c_a_webhook_under_way_is_answered_before_the_end(listener: Listener) -> None:
    with closing(connect(listener)) as webhook:
        with held_by_a_person(listener.database):
            webhook.sendall(CREATE)
            wait_until(lambda: unread_bytes(webhook.getpeername()[1]) == [0])  # it is served, and waits for the person
            interrupt(listener, signal.SIGINT)
        assert webhook.recv(65536)[:12] == b"HTTP/1.1 200"
    assert listener.end() == 0
    assert [row["object_id"] for row in listener.rows()] == [ASSET]


def connect(listener: Listener) -> socket.socket:
    host, port = listener.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def interrupt(listener: Listener, how: signal.Signals) -> None:
    """Send the signal, and wait until it has its effect."""
    assert listener.process
    listener.process.send_signal(how)
    wait_until(lambda: listener.logged("INFO Stopping"))


def answers_at_once(listener: Listener) -> bool:
    try:
        return requests.get(f"{listener.url}/health", timeout=0.2).ok
    except requests.Timeout:
        return False


@pytest.mark.long
def test_webhooks_that_were_read_are_answered_though_a_person_holds_the_database(listener: Listener) -> None:
    with held_by_a_person(listener.database), ExitStack() as stack:
        webhooks = [stack.enter_context(closing(connect(listener))) for _ in range(12)]
        for webhook in webhooks:
            webhook.sendall(CREATE)
        wait_until(lambda: unread_bytes(webhooks[0].getpeername()[1]) == [0] * 12)
        interrupt(listener, signal.SIGTERM)
        assert [webhook.recv(65536)[:12] for webhook in webhooks] == [b"HTTP/1.1 503"] * 12
        assert listener.end() == 0


def test_the_last_webhook_is_known_after_a_restart(listener: Listener) -> None:
    def last_webhook() -> str:
        return str(requests.get(f"{listener.url}/health", timeout=10).json()["last_webhook_at"])

    for _ in range(2):  # the second is within a minute of the first
        listener.post("/create", create_event(new_id()))
    before = last_webhook()
    listener.end()
    listener.start()
    assert last_webhook() == before


@pytest.mark.long
def test_check_knows_which_config_ini_the_listener_has_read(listener: Listener) -> None:
    """P11: by what the file system says of it, and not by the time of the start, which may have been wrong."""
    changed = f"WRONG  {listener.config} was changed after the listener was started"
    assert changed not in listener.command("check").stdout
    os.utime(listener.config, (1, 1))
    assert changed in listener.command("check").stdout


def test_after_a_kill_the_next_start_finishes_the_work(
    listeners: Callable[..., Listener], sandbox: FaultyIconik
) -> None:
    listener = listeners(iconik__timeout=1).start()
    sandbox.faults += [Fault("analyze/", hang=True, after_work=True), Fault("analyze/", hang=True)]
    ids = [new_id() for _ in range(2)]
    listener.upload(*ids)
    assert sandbox.wait_for(lambda: len([request for request in sandbox.requests if "analyze/" in request]) == 2)
    listener.end(signal.SIGKILL)
    listener.start()
    wait_until(lambda: len(listener.rows("status = 'submitted'")) == 2)
    assert sorted(sandbox.jobs) == sorted(ids)
    wait_until(lambda: listener.logged("WARNING Under way when the listener ended: 2 items. Checking first whether"))


DYING_WORKERS = """
import threading
from submitter import Submitter
from system.runtime import Runtime
woken = threading.Event()
Submitter.wake = lambda self: woken.set()
thread = Runtime.thread
def die(): woken.wait() and 1 / 0
Runtime.thread = lambda self, run: thread(self, die if "Submitter" in run.__qualname__ else run)
"""


@pytest.mark.long
def test_a_thread_that_dies_by_a_mistake_ends_the_process_with_one_line(listeners: Callable[..., Listener]) -> None:
    """systemd starts it again, which loses nothing; without that thread it would only seem to work."""
    listener = listeners().start(prelude=DYING_WORKERS)
    with suppress(requests.RequestException):  # the answer may be cut off in its middle
        listener.upload(ASSET)
    wait_until(listener.process_ended)
    assert listener.end() == 1
    assert "CRITICAL Ending: ZeroDivisionError at <string>:8" in messages(listener)
    assert not listener.logged("Traceback")
