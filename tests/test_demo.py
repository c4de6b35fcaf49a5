"""demo: the listener at work on a stand-in for iconik, as the README begins with."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support import APP, wait_until

UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"


def start(folder: Path, **options: Any) -> "subprocess.Popen[str]":
    """The demo, in a process of its own, with temporary files in `folder` only."""
    environment = {**os.environ, "TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"}
    pipe = subprocess.PIPE
    command = [sys.executable, "-W", "error", str(APP), "demo"]
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=folder, env=environment, **options)


def listener_of(folder: Path) -> list[str]:
    """The processes that are running with a configuration in that folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if f"{folder}/".encode() in process.read_bytes():
                found.append(process.parent.name)
        except OSError:  # it has ended
            continue
    return found


@pytest.mark.long
def test_the_demo_shows_three_assets_analyzed_once(tmp_path: Path) -> None:
    with start(tmp_path) as demo:
        printed, errors = demo.communicate(timeout=60)
    assert (demo.returncode, errors) == (0, "")
    for words in ("Creating new queue item", "Found object", "iconik answered 503", "plain.mov", "unlucky.mov"):
        assert words in printed
    assert printed.endswith("\n3 assets uploaded, 3 analyze jobs at iconik\n")
    log, _, table = printed.partition("\nitems.db:\n")
    last_job, stopping = log.splitlines()[-2:]
    assert "INFO Submitted Analyze Job for" in last_job
    assert stopping.endswith(" INFO Stopping")
    head, *rows, _, _ = table.splitlines()
    assert head.split() == ["object_id", "title", "status", "attempts", "finished"]
    assert [re.sub(UUID, "…", row).split() for row in rows] == [
        ["…", "plain.mov", "submitted", "1", "True"],
        ["…", "swapped.mov", "submitted", "1", "True"],
        ["…", "unlucky.mov", "submitted", "2", "True"],
    ]
    assert max(map(len, table.splitlines())) <= 80
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, None])
def test_a_demo_that_is_cut_short_leaves_nothing_behind(tmp_path: Path, how: signal.Signals | None) -> None:
    """By a signal, or by `demo | head -1`."""
    with start(tmp_path) as demo:
        assert demo.stdout and demo.stderr
        assert demo.stdout.readline().startswith("A stand-in for iconik runs at ")
        wait_until(lambda: listener_of(tmp_path))
        if how is None:
            demo.stdout.close()
        else:
            demo.send_signal(how)
        errors = demo.stderr.read()
        demo.wait(30)
    assert demo.returncode == 1
    assert errors == ("Aborted!\n" if how else "")
    assert listener_of(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_a_demo_whose_listener_does_not_start_says_so_at_once(tmp_path: Path) -> None:
    program = "import app, sys; sys.modules['commands.demo'].APP = 'missing.py'; app.main()"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", program, "demo"]
    done = subprocess.run(command, cwd=APP.parent, env=environment, capture_output=True, text=True, timeout=10)
    assert (done.returncode, done.stderr) == (1, "Error: the listener did not start\n")
    assert "No such file or directory" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_the_lines_to_try_it_work_as_they_stand_in_the_readme(tmp_path: Path) -> None:
    """N11: but for the two ports, which may be taken here, and the virtual environment."""
    readme = (APP.parent / "README.md").read_text(encoding="utf-8")
    [block] = re.findall(r"paste this into a terminal.*?^```\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    assert block.count("\n") == 5
    iconik, port = free_port(), free_port()
    script = block.replace("9000", str(iconik)).replace("'host = 127.0.0.1'", f"'host = 127.0.0.1' 'port = {port}'")
    script = script.replace(":8000", f":{port}").replace(".venv/bin/python", sys.executable)
    script = script.replace(" app.py", f" {APP}")
    until = 'until grep -q "Submitted.*interview" try/listener.log; do sleep 0.1; done;'
    script = script.replace("sleep 5;", until)
    output = tmp_path / "output"
    with output.open("w") as file:
        environment = {**os.environ, "PYTHONPATH": str(APP.parent)}
        shell = subprocess.Popen(
            ["bash", "-c", script], cwd=tmp_path, env=environment, stdout=file, stderr=file, start_new_session=True
        )
        try:
            shell.wait(50)
        finally:
            os.killpg(shell.pid, signal.SIGTERM)  # and what it has left in the background
    printed = output.read_text()
    assert printed.startswith(f"http://127.0.0.1:{port}/create: created\n"), printed  # and nothing in vain before it
    assert "Error" not in printed
    assert "holiday.mov\n" in printed and "iconik accepted the job" in printed
    assert "2 analyses were started today" in printed
    assert "Traceback" not in printed


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
