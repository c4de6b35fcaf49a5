"""What all commands have in common: help, exit codes, and one line instead of a traceback, whatever happens."""

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing, nullcontext
from pathlib import Path

import pytest

import commands
from faulty_iconik import Fault, FaultyIconik
from page.command import page
from store import Outcome, Status, Store
from support import APP, ASSET, SECRET, ListenerHere, new_id, run
from system import database
from version import __version__

NOBODY = 65534
PUBLIC = "https://127.0.0.1:1"
EACH = [
    ["check"],
    ["register", "--yes", PUBLIC],
    ["register", "--remove", PUBLIC],
    ["status"],
    ["status", "--json"],
    ["retry", ASSET],
    ["retry", "--all"],
    ["skip", ASSET],
    ["skip", "--all", "failed"],
    ["show", ASSET],
    ["report"],
    ["pause"],
    ["resume"],
    ["catch-up", "--since", "2020-01-01", "--yes"],
    ["catch-up", "--since", "2020-01-01", "--dry-run"],
]
each_command = pytest.mark.parametrize("command", EACH, ids=" ".join)
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("commands.items.MIN_PAUSE", 0)
    monkeypatch.setenv("ICONIK_LISTENER_COMMAND", "iconik-listener")


@pytest.fixture(scope="module")
def two_failed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with two items, which failed."""
    path = tmp_path_factory.mktemp("two_failed") / "items.db"
    with closing(Store(path, listener=True)) as store:
        for object_id in (ASSET, new_id()):
            store.add_asset(object_id, "a title")
            store.proxy_closed(object_id)
            item = store.claim_new()
            assert item
            store.end_attempt(item, Outcome(Status.FAILED, "iconik answered 404", "iconik answered 404"))
    return path


@pytest.fixture
def listener(
    listeners_here: Callable[..., ListenerHere], sandbox: FaultyIconik, tmp_path: Path, two_failed: Path
) -> ListenerHere:
    """A listener that is not running, with two failed items in its database, and registered webhooks."""
    sandbox.register(PUBLIC, {"X-Webhook-Secret": SECRET})
    shutil.copy(two_failed, tmp_path)
    return listeners_here()


def is_told(result: "subprocess.CompletedProcess[str]", *words: str) -> None:
    """What went wrong is one line: of `check` one that begins with WRONG, of all others one on stderr."""
    assert "Traceback" not in result.stdout + result.stderr
    assert result.returncode == 1
    lines = result.stderr.splitlines()
    if not lines:
        lines = [line for line in result.stdout.splitlines() if line.startswith("WRONG  ")]
    assert any(all(word in line for word in words) for line in lines), result
    assert len(result.stderr.splitlines()) <= 1


# Help and wrong use


def test_there_are_as_many_commands_as_modules_for_them() -> None:
    named = {(command.name or "").replace("-", "_") for command in commands.ALL}
    modules = {path.stem for path in Path(commands.__file__).parent.glob("*.py")}
    helpers = {"__init__", "changes", "items", "limit", "menu", "notify", "route", "running"}
    assert named - {"allow", "pause", "resume", "version"} == modules - helpers


@pytest.mark.parametrize("command", [command.name for command in (*commands.ALL, page)])
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_every_command_has_help_within_80_columns(
    listener: ListenerHere, monkeypatch: pytest.MonkeyPatch, command: str, option: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = listener.command(command, option)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert len(lines) > 5
    assert max(map(len, lines)) <= 80
    assert listener.command("help", command).stdout == result.stdout


def test_help_and_version_are_commands_too(listener: ListenerHere) -> None:
    """N10."""
    listener.config.unlink()
    for arguments in (["help"], ["--help"], ["-h"]):
        result = listener.command(*arguments)
        assert (result.returncode, result.stderr) == (0, "")
        assert "  check     Check everything, one line each, and say what to do.\n" in result.stdout
        assert not re.search(r"[a-z]\.\.\.$", result.stdout, re.MULTILINE), "a command is explained by half a sentence"
    assert (
        listener.command("version").stdout == listener.command("--version").stdout == f"iconik-listener {__version__}\n"
    )
    assert "There is no command 'chekc'. To see all: iconik-listener help" in listener.command("help", "chekc").stderr
    assert "Did you mean 'check'?" in listener.command("chekc").stderr


def test_an_option_of_the_program_behind_a_command_is_told_where_it_belongs(listener: ListenerHere) -> None:
    """N23."""
    for arguments in (["check", "--config", "x"], ["retry", "a.mov", "--config=x"]):
        result = listener.command(*arguments)
        assert result.returncode == 2
        assert "--config goes before the command: iconik-listener --config …" in result.stderr


@pytest.mark.long
@pytest.mark.parametrize("command", ["show", "retry", "skip"])
def test_an_argument_that_is_not_utf_8_is_one_line_and_nothing_is_changed(listener: ListenerHere, command: str) -> None:
    """As in a Latin-1 terminal, which is no reason for a traceback after half of the work."""
    done = subprocess.run(
        [sys.executable, str(APP), "--config", str(listener.config), command, ASSET, b"M\xfcller.mov"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    line = r"Error: M\xfcller.mov is not UTF-8: set the terminal to that, or give the asset's id"
    assert done.stderr.splitlines()[-1] == line
    assert len(listener.rows("status = 'failed'")) == 2


@pytest.mark.long
def test_help_in_a_process_of_its_own_says_the_same_as_the_option(listener: ListenerHere) -> None:
    assert listener.run("help", "retry").stdout == listener.run("retry", "--help").stdout


@pytest.mark.parametrize(
    "arguments", [["no-such-command"], ["check", "all"], ["register"], ["status", "--xml"], ["catch-up"], ["--conf"]]
)
def test_wrong_use_is_exit_code_2(listener: ListenerHere, arguments: list[str]) -> None:
    result = listener.command(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert "Error: " in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["retry", "--all", "ready", "a.mov"], "name the assets or give --all, not both"),
        (["skip", "--all", "ready", "a.mov"], "name the assets or give --all, not both"),
        (["retry"], "name the assets, or give --all"),
        (["skip"], "name the assets, or give --all with a status"),
        (["skip", "--all"], "is not one of 'failed', 'ready', 'awaiting_proxy', 'awaiting_create'"),
        (["report", "--days", "7", "--month", "2026-11"], "give --month or --days, not both"),
        (["allow", "1,000"], "'1,000' is not a number from 1 to 1000000, in digits only"),
        (["allow", "0"], "'0' is not a number from 1 to 1000000, in digits only"),
    ],
    ids=str,
)
def test_wrong_use_is_told_what_is_wrong_and_changes_nothing(
    listener: ListenerHere, arguments: list[str], words: str
) -> None:
    result = listener.command(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.rstrip(".\n").endswith(words)
    assert len(listener.rows("status = 'failed'")) == 2


@each_command
def test_without_a_configuration_each_says_what_to_do(listener: ListenerHere, command: list[str]) -> None:
    listener.config.unlink()
    result = listener.command(*command)
    assert result.returncode == (1 if command == ["check"] else 2)
    assert f"{listener.config} does not exist: copy config.example.ini to config.ini" in result.stdout + result.stderr


# Trouble with the files


@each_command
def test_without_a_database_each_says_when_there_will_be_one_and_makes_none(
    listener: ListenerHere, command: list[str]
) -> None:
    for file in listener.database.parent.glob("items.db*"):
        file.unlink()
    result = listener.command(*command)
    if command[0] == "register":  # it can be done all the same
        assert result.returncode == 0
    else:
        is_told(result, f"{listener.database} does not exist: the listener creates it at its first start")
    assert list(listener.database.parent.glob("items.db*")) == []


@each_command
def test_each_refuses_a_database_that_is_not_ours(listener: ListenerHere, command: list[str]) -> None:
    listener.database.write_bytes(b"Dear diary" * 1000)
    is_told(listener.command(*command), f"{listener.database} is not the listener's")
    assert listener.database.read_bytes() == b"Dear diary" * 1000


@each_command
def test_a_database_that_is_held_is_told(
    listener: ListenerHere, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.02)
    with closing(sqlite3.connect(listener.database, isolation_level=None)) as person:
        person.execute("BEGIN IMMEDIATE")
        is_told(listener.command(*command), str(listener.database), "database is locked")


def run_as_nobody(listener: ListenerHere) -> list[str]:
    """Run each command as a user without rights. Returns what each of them printed, the exit code at its end."""
    folder = listener.config.parent
    os.chown(listener.config, NOBODY, NOBODY)
    program = f"""
import encodings.idna, encodings.utf_8_sig, os, pathlib, sys  # that user may not be allowed to read libraries later
sys.path.append({str(Path(__file__).parent)!r})
import app
from support import let_everybody_in
let_everybody_in(pathlib.Path({str(folder)!r}))
os.setgid({NOBODY}); os.setuid({NOBODY})
for command in {EACH!r}:
    sys.argv = ["app.py", "--config", {str(listener.config)!r}, *command]
    try:
        app.main()
        print("-- exit code 0", flush=True)
    except SystemExit as end:
        print(f"-- exit code {{end.code}}", flush=True)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=APP.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    assert "Traceback" not in done.stdout
    return re.findall("(?s).*?-- exit code [0-9]+\n", done.stdout)


@pytest.mark.long
@as_root
@pytest.mark.parametrize("name", [".", "items.db", "items.db.lock", "items.db-shm"])
def test_files_of_another_user_are_named_with_their_owner_and_how_to_put_it_right(
    listener: ListenerHere, name: str
) -> None:
    listener.database.with_name("items.db.lock").touch()
    with closing(Store(listener.database)) if name == "items.db-shm" else nullcontext():  # which makes that file
        for file in (listener.config.parent, *listener.config.parent.iterdir()):
            os.chown(file, NOBODY, NOBODY)
        file = listener.config.parent / name
        os.chown(file, 0, 0)
        file.chmod(0o755 if file.is_dir() else 0o600)
        printed = run_as_nobody(listener)
    failed = [one for one in printed if one.endswith("-- exit code 1\n")]
    told = f"{re.escape(str(file))} belongs to root, and nobody cannot .*sudo chown nobody:nogroup {file} && sudo chmod"
    assert len(printed) == len(EACH)
    assert failed
    assert [one for one in failed if not re.search(told, one)] == []


@pytest.mark.long
@as_root
def test_what_root_does_leaves_no_file_that_the_services_user_cannot_write(
    listener: ListenerHere, sandbox: FaultyIconik
) -> None:
    folder = listener.config.parent
    for file in (folder, *folder.iterdir()):
        os.chown(file, NOBODY, NOBODY)
    sandbox.create_asset("a.mov", send=False)
    for command in EACH:
        process = run("--config", str(listener.config), *command, cwd=folder) if command == ["check"] else None
        assert (process or listener.command(*command)).returncode in (0, 1)
        assert {file.name: file.stat().st_uid for file in folder.iterdir() if file.stat().st_uid != NOBODY} == {}


# iconik


@pytest.mark.parametrize(
    "fault",
    [
        Fault(times=99),
        Fault(status=401, body=b'{"errors": ["Token is invalid"]}', times=99),
        Fault(status=200, body=b"<html>maintenance</html>", times=99),
        Fault(status=200, body=b'{"objects": "?", "total": "?"}', times=99),
        Fault(status=200, body=b'{"objects": [1, null, {"id": 1, "url": 1}], "total": 1}', times=99),
        Fault(status=302, headers={"Location": "/"}, times=99),
        Fault(cut=True, times=99),
    ],
    ids=str,
)
def test_nothing_that_iconik_answers_is_a_traceback(
    listener: ListenerHere, sandbox: FaultyIconik, fault: Fault
) -> None:
    sandbox.faults.append(fault)
    for command in EACH:
        result = listener.command(*command)
        assert result.returncode in (0, 1)
        assert "Traceback" not in result.stdout + result.stderr
        if command[0] in ("check", "register", "catch-up") and fault.body != Fault().body:
            assert result.returncode == 1 or "total" in str(fault.body), (command, result)


def test_an_iconik_that_cannot_be_reached_is_told(listener: ListenerHere, sandbox: FaultyIconik) -> None:
    listener.config.write_text(listener.config.read_text().replace(sandbox.url, "http://127.0.0.1:1"))
    for command in (["check"], ["register", "--yes", PUBLIC], ["catch-up", "--since", "2020-01-01", "--yes"]):
        is_told(listener.command(*command), "iconik cannot be reached: the connection was refused")


# Pipes, signals, and other Pythons


def shell(script: str, listener: ListenerHere, **options: str) -> "subprocess.CompletedProcess[str]":
    """Run a shell script in which "$@" is the program with its configuration."""
    command = ["bash", "-c", script, "bash", sys.executable, str(APP), "--config", str(listener.config)]
    environment = {**os.environ, **options}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)


@pytest.mark.long
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_pipes_that_end_early_and_closed_or_full_files_are_no_traceback(
    listener: ListenerHere, unbuffered: str
) -> None:
    """N1: Python writes what is in its buffer at the very end."""
    script = """
    "$@" retry --all | true
    "$@" check <&- >&- 2>&-
    "$@" catch-up --since 2020-01-01 --yes >&-
    "$@" status >/dev/full
    """
    result = shell(script, listener, PYTHONUNBUFFERED=unbuffered)
    assert (result.stdout, result.stderr) == ("", "Error: [Errno 28] No space left on device\n")


@pytest.mark.long
@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 1), (signal.SIGTERM, -15)])
def test_a_signal_ends_a_command_without_a_traceback(
    listener: ListenerHere, sandbox: FaultyIconik, how: signal.Signals, code: int
) -> None:
    sandbox.faults.append(Fault(hang=True))
    command = [sys.executable, str(APP), "--config", str(listener.config), "check"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        sandbox.wait_for(lambda: bool(sandbox.requests))
        process.send_signal(how)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == code
    assert errors == ("\nAborted!\n" if how == signal.SIGINT else "")


@pytest.mark.long
def test_a_terminal_that_lacks_a_titles_characters_shows_the_rest(listener: ListenerHere) -> None:
    with closing(Store(listener.database)) as store:
        store.add_asset(new_id(), "Café ✂.mov")
        store.database.run("UPDATE items SET status = 'failed', error = 'x', reason = 'x'")
    command = [sys.executable, str(APP), "--config", str(listener.config), "status"]
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    done = subprocess.run(command, capture_output=True, env=environment, encoding="latin-1")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Café \\u2702.mov" in done.stdout


def test_a_path_that_leads_nowhere_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "loop.ini").symlink_to(tmp_path / "loop.ini")
    done = subprocess.run(
        [sys.executable, str(APP), "--config", str(tmp_path / "loop.ini"), "check"], capture_output=True, text=True
    )
    assert done.returncode in (1, 2)
    assert done.stdout + done.stderr == (done.stdout + done.stderr).splitlines()[0] + "\n"


def test_a_python_without_the_packages_is_told_in_one_line(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-S", str(APP), "check"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"Error: click is not installed for {sys.executable}: use the virtual environment's ")
    assert done.stderr.count("\n") == 1
