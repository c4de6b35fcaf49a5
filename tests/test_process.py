"""The real `python app.py`, as a process."""

import json
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import requests

from sandbox import Fault, Sandbox
from support import (
    APP,
    ARTICLE_CREATE,
    ARTICLE_PROXY,
    ASSET,
    SECRET,
    Listener,
    create_event,
    new_id,
    run,
    wait_until,
    write_config,
)

MIB = 1024 * 1024


def curl(url: str, event: object, *options: str) -> str:
    command = ["curl", "-sS", "-H", f"X-Webhook-Secret: {SECRET}", "--data-binary", "@-", *options, url]
    return subprocess.run(command, input=json.dumps(event), capture_output=True, text=True, check=True).stdout


def test_the_articles_payloads_by_curl_lead_to_one_job_and_a_finished_row(listener: Listener, sandbox: Sandbox) -> None:
    """The article's two payloads are of two assets; here the proxy is one of the asset that was created."""
    sandbox.create_asset("1_zps7uj5xqff.jpg", ASSET)
    assert json.loads(curl(listener.url + "/create", ARTICLE_CREATE))["item"] == "pending"
    assert json.loads(curl(listener.url + "/proxy", {**ARTICLE_PROXY, "object_id": ASSET}))["item"] == "ready"
    wait_until(lambda: listener.rows("status = 'submitted'"))
    query = "select object_id, title, finished from items"
    shown = subprocess.run(["sqlite3", listener.database, query], capture_output=True, text=True, check=True).stdout
    assert shown == f"{ASSET}|1_zps7uj5xqff.jpg|True\n"
    assert sandbox.requests == [f"POST /API/transcode/v1/analyze/assets/{ASSET}/"]
    assert [line.partition(" INFO ")[2] for line in listener.log[1:]] == [
        f"Creating new queue item for object_id {ASSET}\n",
        f"Found object {ASSET} in finished proxy queue\n",
        f"Submitting Analyze Job for {ASSET}\n",
        f"Submitted Analyze Job for {ASSET}\n",
    ]


def test_the_articles_payloads_as_they_stand_are_of_two_assets_and_analyze_nothing(
    listener: Listener, sandbox: Sandbox
) -> None:
    assert json.loads(curl(listener.url + "/create", ARTICLE_CREATE))["item"] == "pending"
    assert json.loads(curl(listener.url + "/proxy", ARTICLE_PROXY))["item"] == "early"
    assert listener.end() == 0
    assert sandbox.requests == []


# Start


def test_without_a_configuration_it_says_what_to_do(tmp_path: Path) -> None:
    result = run(cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr == (
        "Error: config.ini does not exist: copy config.example.ini to config.ini and fill it in,"
        " or try: python app.py demo\n"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("values", "code"), [({"listener__port": "x"}, 2), ({"listener__database": "no/items.db"}, 1)])
def test_what_is_wrong_at_the_start_is_one_line(tmp_path: Path, values: dict[str, object], code: int) -> None:
    path = write_config(tmp_path, listener__webhook_secret="s", **values)
    result = run("--config", str(path), cwd=tmp_path)
    assert result.returncode == code
    assert result.stderr.startswith(f"Error: {tmp_path}")
    assert result.stderr.count("\n") == 1


def test_a_file_that_is_no_database_is_refused_with_one_line(tmp_path: Path) -> None:
    path = write_config(tmp_path, listener__webhook_secret="s")
    (tmp_path / "items.db").write_bytes(b"Dear diary" * 100)
    result = run("--config", str(path), cwd=tmp_path)
    assert (result.returncode, result.stderr) == (1, f"Error: {tmp_path}/items.db: file is not a database\n")


def test_a_second_listener_is_refused_and_harms_nothing(listener: Listener) -> None:
    result = listener.run()
    assert (result.returncode, result.stderr) == (1, f"Error: {listener.database}: another listener is running on it\n")
    assert listener.post("/create", create_event()).status_code == 200


def test_a_port_that_is_taken_is_named(listener: Listener, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    port = listener.url.rpartition(":")[2]
    path = write_config(
        tmp_path / "other", listener__host="127.0.0.1", listener__port=port, listener__webhook_secret="s"
    )
    result = run("--config", str(path), cwd=tmp_path)
    assert (result.returncode, result.stderr) == (
        1,
        f"Error: cannot listen on 127.0.0.1, port {port}: Address already in use\n",
    )


def test_a_missing_secret_is_warned_of_at_the_start(listeners: Callable[..., Listener]) -> None:
    assert listeners(listener__webhook_secret="").start().logged("WARNING No webhook_secret is set")


def test_help_is_there(tmp_path: Path) -> None:
    result = run("--help", cwd=tmp_path)
    assert result.returncode == 0
    assert "demo" in result.stdout
    assert run("no-such-command", cwd=tmp_path).returncode == 2


# The server


def test_a_body_over_1_mib_is_a_413_in_json_whatever_the_secret(listener: Listener) -> None:
    fits = json.dumps(create_event()).encode().ljust(MIB)
    assert requests.post(listener.url + "/create", data=fits, headers={"X-Webhook-Secret": SECRET}).status_code == 200
    for head in (f"Content-Length: {MIB + 1}", "Transfer-Encoding: chunked"):
        request = f"POST /create HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n".encode()
        if "chunked" in head:
            request += b"100010\r\n" + b" " * (MIB + 16)
        answer = exchange(listener, request)
        assert answer.startswith(b"HTTP/1.1 413 Request Entity Too Large\r\n")
        assert answer.endswith(b'\r\n\r\n{"message": "Request Entity Too Large"}\n')
    assert [row["object_id"] for row in listener.rows()] == [ASSET]


def test_what_is_no_http_is_a_400_in_json(listener: Listener) -> None:
    for request in (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", b"POST /create HTTP/1.1\r\nContent-Length: x\r\n\r\n"):
        answer = exchange(listener, request)
        assert answer.split(b" ", 1)[1].startswith(b"400 Bad Request\r\n")
        assert answer.endswith(b'{"message": "Bad Request"}\n')


def test_a_refused_sender_is_named_though_it_comes_through_a_proxy(listener: Listener) -> None:
    headers = {"X-Webhook-Secret": "wrong", "X-Forwarded-For": "203.0.113.9"}
    for _ in range(3):
        assert requests.post(listener.url + "/create", json={}, headers=headers).status_code == 401
    listener.end()
    [line] = [line for line in listener.log if "WARNING" in line]  # the others within the minute are not told
    assert "Refused a webhook from 203.0.113.9, 127.0.0.1: its header X-Webhook-Secret is not webhook_secret" in line


def test_an_answer_does_not_tell_what_the_server_is(listener: Listener) -> None:
    answer = requests.get(listener.url + "/health")
    assert "Server" not in answer.headers
    assert "waitress" not in exchange(listener, b"nonsense\r\n\r\n").decode()


def exchange(listener: Listener, request: bytes) -> bytes:
    """Send bytes, and read the answer to its end."""
    host, port = listener.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(request)
        answer = b""
        while part := connection.recv(65536):
            answer += part
        return answer


def healthy(listener: Listener) -> bool:
    try:
        return requests.get(listener.url + "/health", timeout=0.2).ok
    except requests.Timeout:
        return False


# Stop


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_with_0_and_records_what_is_under_way(
    listeners: Callable[..., Listener], sandbox: Sandbox, how: signal.Signals
) -> None:
    listener = listeners(submitter__workers=2).start()
    sandbox.latency = 0.3
    ids = [new_id() for _ in range(4)]
    listener.upload(*ids)
    wait_until(lambda: len(listener.rows("status = 'submitting'")) == 2)
    assert listener.end(how) == 0
    assert sorted(sandbox.jobs) == sorted(row["object_id"] for row in listener.rows("status = 'submitted'"))
    assert len(listener.rows("status = 'submitted'")) == len(listener.rows("status = 'ready'")) == 2
    assert listener.log[-1].endswith("\n")
    assert not listener.logged("Traceback")


def test_a_webhook_under_way_is_answered_before_the_end(listener: Listener) -> None:
    with closing(sqlite3.connect(listener.database, isolation_level=None)) as person:
        person.execute("BEGIN IMMEDIATE")
        host, port = listener.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            body = json.dumps(create_event()).encode()
            head = f"POST /create HTTP/1.1\r\nX-Webhook-Secret: {SECRET}\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body)
            wait_until(lambda: not healthy(listener))  # the webhook is being served, and waits for the person
            assert listener.process
            listener.process.send_signal(signal.SIGTERM)
            person.execute("COMMIT")
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 OK")
    assert listener.process.wait(20) == 0
    assert [row["object_id"] for row in listener.rows()] == [ASSET]


def test_after_a_kill_the_next_start_finishes_the_work(listeners: Callable[..., Listener], sandbox: Sandbox) -> None:
    listener = listeners().start()
    sandbox.faults += [Fault("POST", hang=True, after_work=True), Fault("POST", hang=True)]
    ids = [new_id() for _ in range(2)]
    listener.upload(*ids)
    assert sandbox.wait_for(lambda: len(sandbox.requests) == 2)
    listener.end(signal.SIGKILL)
    listener.start()
    wait_until(lambda: len(listener.rows("status = 'submitted'")) == 2)
    assert sorted(sandbox.jobs) == sorted(ids)
    assert listener.logged("WARNING 2 items were under way when the listener ended: iconik will be asked")


def test_the_demo_shows_three_assets_analyzed_once(tmp_path: Path) -> None:
    result = run("demo", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    for words in ("Creating new queue item", "Found object", "iconik answered 503", "plain.mov", "unlucky.mov"):
        assert words in result.stdout
    assert result.stdout.endswith("3 assets uploaded, 3 analyze jobs at iconik\n")
    assert list(tmp_path.iterdir()) == []


def test_a_thread_that_dies_by_a_mistake_ends_the_process_with_one_line(tmp_path: Path) -> None:
    """systemd starts it again, which loses nothing; without that thread it would only seem to work."""
    program = (
        "import app, threading; app.set_up_logging(); threading.excepthook = app._end_process;"
        "thread = threading.Thread(target=lambda: 1 / 0); thread.start(); thread.join()"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=APP.parent, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "CRITICAL Ending: ZeroDivisionError" in result.stderr
