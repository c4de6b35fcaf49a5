"""check --notify: people are told what has changed, and no address delays, breaks or shows anything."""

import json
import logging
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from commands import notify
from commands.notify import MAX_MESSAGES, Memory, Told
from config import ConfigError, load
from faulty_iconik import FaultyIconik
from support import ASSET, SECRET, ListenerHere, write_config

needs_apprise = pytest.mark.usefixtures("apprise")
DAY = 24 * 3600.0
OURS = {"X-Webhook-Secret": SECRET}


@pytest.fixture
def apprise() -> None:
    """Skips where the optional package is missing."""
    pytest.importorskip("apprise")


@pytest.fixture(autouse=True)
def how_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ICONIK_LISTENER_COMMAND", "iconik-listener")


@dataclass
class Sink:
    """A chat: an HTTP server that keeps the messages that are sent to its address.

    :ivar status: what it answers; None if it never answers
    """

    address: str
    status: int | None = 200
    messages: list[dict[str, Any]] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def sink() -> Iterator[Sink]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            chat.messages.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            if chat.status is None:
                chat.released.wait(60)
            self.send_response(chat.status or 200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        chat = Sink(f"json://hush:hush@127.0.0.1:{server.server_port}/hush")
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield chat
        chat.released.set()
        server.shutdown()


@pytest.fixture
def listener(listeners_here: Callable[..., ListenerHere], sandbox: FaultyIconik, sink: Sink) -> ListenerHere:
    """A listener with which all is well, whose check tells the sink."""
    listener = listeners_here(notify__to=sink.address).start()
    sandbox.register(listener.url, OURS)
    return listener


class Collector(logging.Handler):
    """Keeps what is logged."""

    def __init__(self, records: list[logging.LogRecord]) -> None:
        super().__init__()
        self._records = records

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(record)


def check(listener: ListenerHere, code: int = 0) -> str:
    """Check as the timer does. Returns what was printed on stderr."""
    result = listener.command("check", "--notify")
    assert result.returncode == code, result.stdout
    assert "hush" not in result.stdout + result.stderr
    return result.stderr


# When


def next_title(told: Told, faults: list[str], now: float) -> str:
    """The title of the next message, without its sender; empty if there is none."""
    message = told.next_message(faults, now)
    return message.title.partition(": ")[2] if message else ""


def test_what_has_changed_is_told_once() -> None:
    told = Told(["one"], [1000.0])
    assert next_title(told, ["one"], 1600) == ""
    assert next_title(told, ["one", "two"], 1600) == "2 things are wrong"
    assert next_title(told, ["two"], 1600) == "1 thing is wrong"
    assert next_title(told, [], 1600) == "all is well again"
    assert next_title(Told([], [1000.0]), [], 1600) == ""
    assert next_title(Told(), [], 1600) == ""
    assert next_title(Told(), ["one"], 1600) == "1 thing is wrong"


def test_what_stays_is_told_once_a_day() -> None:
    told = Told(["one"], [1000.0])
    assert next_title(told, ["one"], 1000 + DAY - 1) == ""
    assert next_title(told, ["one"], 1000 + DAY) == "1 thing is still wrong"
    assert next_title(Told([], [1000.0]), [], 1000 + DAY) == ""


def test_a_clock_that_was_ahead_silences_nobody() -> None:
    assert next_title(Told(["one"], [1000 + 30 * DAY]), ["one"], 1600) == "1 thing is still wrong"


def test_numbers_and_ids_are_no_change() -> None:
    told = Told([f"the webhook is for {ASSET}, 3 items failed since 2026-11-26 10:00:00 UTC"], [1000.0])
    other = "the webhook is for 5acf2b56-f748-46c6-92e5-2a17a33b97d0, 14 items failed since 2026-11-26 10:10:00 UTC"
    assert next_title(told, [other], 1600) == ""
    assert next_title(Told(["iconik answered 401"], [1000.0]), ["iconik answered 402"], 1600) == "1 thing is wrong"


def test_a_fault_that_comes_and_goes_is_not_told_for_ever() -> None:
    told, messages = Told(), 0
    for minute in range(0, 24 * 60, 10):
        faults = ["one"] if minute % 20 else []
        if told.next_message(faults, minute * 60.0):
            messages += 1
            told = Told(faults, [*told.times, minute * 60.0])
    assert MAX_MESSAGES <= messages <= 4 * MAX_MESSAGES


def test_what_was_told_is_remembered_in_a_private_file(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "items.db")
    assert memory.read() == Told()
    memory.write(Told(["one" * 100], [1.0, 2.0]))
    memory.write(Told(["two"], [3.0]))
    assert memory.read() == Told(["two"], [3.0])
    [path] = tmp_path.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    for text in ("", "[]", '{"faults": 1, "times": 1}', "\x00"):
        path.write_text(text)
        assert memory.read() == Told()


# What, and to whom


@pytest.mark.long
@needs_apprise
def test_people_are_told_what_is_wrong_and_that_it_is_over(
    listener: ListenerHere, sandbox: FaultyIconik, sink: Sink
) -> None:
    assert check(listener) == ""
    assert sink.messages == []
    sandbox.roles.discard("can_search")
    for _ in range(2):
        assert check(listener, 1) == ""
        [message] = sink.messages
    assert message["title"] == f"iconik-listener on {socket.gethostname()}: 1 thing is wrong"
    assert message["type"] == "failure"
    assert message["message"].startswith("- the role can_search is missing: missed assets are not found")
    assert "To check everything: iconik-listener check\niconik-listener 2." in message["message"]
    sandbox.roles.add("can_search")
    assert check(listener) == check(listener) == ""
    _, over = sink.messages
    assert (over["title"].partition(": ")[2], over["type"]) == ("all is well again", "success")
    assert over["message"].startswith("This is over:\n- the role can_search is missing")


@needs_apprise
def test_no_message_has_an_id_or_a_title(listener: ListenerHere, sandbox: FaultyIconik, sink: Sink) -> None:
    listener.store.add_asset(ASSET, "holiday.mov")
    listener.store.database.run(
        "UPDATE items SET status = 'failed', error = 'x', reason = 'x', last_attempt_at = :now",
        now=listener.store.now(),
    )
    for webhook in sandbox.webhooks.values():
        webhook["object_id"] = ASSET
    check(listener, 1)
    [message] = sink.messages
    assert "is for one asset only (…)" in message["message"]
    assert "1 item failed" in message["message"]
    assert "holiday" not in str(message) and ASSET not in str(message)


@needs_apprise
def test_a_mistake_elsewhere_in_config_ini_is_told_too(listener: ListenerHere, sink: Sink) -> None:
    text = listener.config.read_text()
    listener.config.write_text(text.replace("[submitter]", "[submitter]\nworkers = many"))
    assert check(listener, 1) == ""
    assert "[submitter] workers: is 'many': must be a number" in sink.messages[0]["message"]


@needs_apprise
def test_nobody_is_told_without_notify(listener: ListenerHere, sandbox: FaultyIconik, sink: Sink) -> None:
    sandbox.roles.discard("can_search")
    assert listener.command("check").returncode == 1
    assert sink.messages == []


def test_without_addresses_nothing_is_told_and_nothing_is_needed(
    listeners_here: Callable[..., ListenerHere], sandbox: FaultyIconik, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "apprise", None)
    listener = listeners_here().start()
    assert check(listener, 1) == ""
    assert not list(listener.database.parent.glob("*.told"))


@needs_apprise
def test_a_test_message_is_sent_on_demand(listener: ListenerHere, sink: Sink) -> None:
    result = listener.command("check", "--notify", "--test")
    assert (result.returncode, result.stdout, result.stderr) == (0, "1 address of 1 took the message.\n", "")
    [message] = sink.messages
    assert message["title"].endswith(": a test")
    sink.status = 403
    result = listener.command("check", "--notify", "--test")
    assert (result.returncode, result.stdout) == (1, "0 addresses of 1 took the message.\n")
    assert result.stderr == "address 1 of [notify] to (json) has not taken the message (403)\n"
    assert listener.command("check", "--test").returncode == 2
    listener.config.write_text(listener.config.read_text().replace(sink.address, ""))
    result = listener.command("check", "--notify", "--test")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.endswith("[notify] to is empty, so nobody is told\n")


@needs_apprise
def test_mail_is_sent(listener: ListenerHere, sandbox: FaultyIconik, sink: Sink) -> None:
    received: list[str] = []

    class Mail(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"220 mail\r\n")
            for line in self.rfile:
                word = line.split()[0].upper()
                if word == b"DATA":
                    self.wfile.write(b"354 go on\r\n")
                    received.append(b"".join(iter(self.rfile.readline, b".\r\n")).decode())
                self.wfile.write(b"221 bye\r\n" if word == b"QUIT" else b"250 ok\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Mail) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        port = server.server_address[1]
        address = f"mailto://127.0.0.1:{port}?from=listener@example.com&to=you@example.com&mode=insecure&format=text"
        listener.config.write_text(listener.config.read_text().replace(sink.address, address))
        sandbox.roles.discard("can_search")
        assert "has not taken" not in check(listener, 1)
        server.shutdown()
    [mail] = received
    assert "To: you@example.com" in mail
    assert f"iconik-listener on {socket.gethostname()}" in mail


# What goes wrong with it


@needs_apprise
def test_why_an_address_takes_nothing_is_said_without_its_secrets(
    listener: ListenerHere, sink: Sink, capfd: pytest.CaptureFixture[str]
) -> None:
    """38: whether the name is wrong, the password, or the server is down, is for a person to mend."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    text, mail = listener.config.read_text(), "from=hush@example.com&to=hush@example.com&mode=insecure"
    with refusing_mail_server() as mail_port:
        for address, reason in (
            ("json://hush:hush@no-such-host.invalid/hush", "(json) has not taken the message (its host is not in DNS)"),
            (f"json://127.0.0.1:{port}/hush", "(json) has not taken the message (the connection was refused)"),
            (f"mailto://127.0.0.1:{port}?{mail}", "(mailto) has not taken the message (the connection was refused)"),
            (
                f"jsons://127.0.0.1:{sink.address.partition('@')[2].split(':')[1]}",
                "(jsons) has not taken the message (TLS failed)",
            ),
            (
                f"mailto://hush:hush@127.0.0.1:{mail_port}?{mail}",
                "(mailto) has not taken the message (535: the user or the password is not accepted)",
            ),
        ):
            listener.config.write_text(text.replace(sink.address, address))
            result = listener.command("check", "--notify", "--test")
            assert (result.returncode, result.stderr) == (1, f"address 1 of [notify] to {reason}\n")
    assert "hush" not in "".join(capfd.readouterr())


@contextmanager
def refusing_mail_server() -> Iterator[int]:
    """A mail server that accepts no password."""

    class Mail(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"220 mail\r\n")
            for line in self.rfile:
                word = line.split()[0].upper()
                answers = {
                    b"EHLO": b"250-mail\r\n250 AUTH PLAIN LOGIN",
                    b"AUTH": b"535 5.7.8 hush",
                    b"QUIT": b"221 bye",
                }
                self.wfile.write(answers.get(word, b"535 hush") + b"\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Mail) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield server.server_address[1]
        server.shutdown()


@needs_apprise
def test_an_address_that_hangs_delays_nothing(
    listener: ListenerHere, sandbox: FaultyIconik, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread is left behind, and the other address has its message."""
    monkeypatch.setattr(notify, "SEND_SECONDS", 0.3)
    other = socket.create_server(("127.0.0.1", 0))
    hanging = f"json://127.0.0.1:{other.getsockname()[1]}/hush"
    text = listener.config.read_text().replace(sink.address, f"{hanging} {sink.address}")
    listener.config.write_text(text)
    sandbox.roles.discard("can_search")
    with other:
        line = check(listener, 1)
    assert line.startswith("address 1 of [notify] to (json) has not taken the message within 0.3 s")
    assert len(sink.messages) == 1
    listener.config.write_text(listener.config.read_text().replace(f"{hanging} ", ""))
    assert check(listener, 1) == ""
    assert len(sink.messages) == 1


@pytest.mark.long
@needs_apprise
def test_a_process_ends_although_an_address_hangs(listener: ListenerHere, sink: Sink) -> None:
    """Apprise's own threads would keep it. Its own limit for a read is beyond the test's here."""
    sink.status = None
    listener.config.write_text(listener.config.read_text().replace(sink.address, f"{sink.address}?rto=60"))
    text = "import sys, app; import commands.notify as n; n.SEND_SECONDS = 0.2; app.main()"
    command = [sys.executable, "-c", text, "--config", str(listener.config), "check", "--notify", "--test"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=45, cwd=Path(__file__).parent.parent, check=False
    )
    assert (done.returncode, done.stdout) == (1, "0 addresses of 1 took the message.\n")


@needs_apprise
def test_a_message_that_nobody_took_is_sent_again(listener: ListenerHere, sandbox: FaultyIconik, sink: Sink) -> None:
    sandbox.roles.discard("can_search")
    sink.status = 500
    assert check(listener, 1) == "address 1 of [notify] to (json) has not taken the message (500)\n"
    sink.status = 200
    check(listener, 1)
    check(listener, 1)
    assert len(sink.messages) == 2


@needs_apprise
def test_an_address_that_cannot_be_understood_is_wrong(
    listener: ListenerHere, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Apprise would log it, and a program that logs at all would show that."""
    logged: list[logging.LogRecord] = []
    monkeypatch.setattr(logging.getLogger(), "handlers", [Collector(logged)])
    monkeypatch.setattr(logging.getLogger(), "level", logging.DEBUG)
    listener.config.write_text(listener.config.read_text().replace(sink.address, f"{sink.address} slack://hush/hush"))
    words = "address 2 of [notify] to (slack) is not one that Apprise understands"
    result = listener.command("check")
    assert f"WRONG  {words}" in result.stdout
    assert check(listener, 1).startswith(words)
    assert len(sink.messages) == 1
    assert [record for record in logged if record.name == "apprise"] == []


def test_that_apprise_is_not_installed_is_wrong_with_the_remedy(
    listener: ListenerHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "apprise", None)
    result = listener.command("check")
    assert "WRONG  [notify] to is set, and Apprise is not installed: " in result.stdout
    assert "-m pip install -r " in result.stdout and "requirements-notify.txt" in result.stdout
    assert check(listener, 1).startswith("[notify] to is set, and Apprise is not installed: ")
    assert "Apprise is not installed" in listener.command("check", "--notify", "--test").stderr
    monkeypatch.setattr(notify, "ROOT", notify.INSTALLED)
    assert "not installed: sudo /opt/iconik-listener/deploy/install.sh" in listener.command("check").stdout


@needs_apprise
def test_where_nothing_can_be_noted_people_are_told_all_the_same(
    listener: ListenerHere, sandbox: FaultyIconik, sink: Sink
) -> None:
    listener.database.with_name("items.db.told").mkdir()
    sandbox.roles.discard("can_search")
    assert check(listener, 1).startswith("What people were told cannot be noted, so they may be told again: ")
    assert len(sink.messages) == 1


def test_addresses_are_secrets(tmp_path: Path) -> None:
    config = load(write_config(tmp_path, notify__to="ntfy://hush,  slack://hush/b"))
    assert config.notify.to == ("ntfy://hush", "slack://hush/b")
    assert "hush" not in repr(config)
    for text in ("hush", "ntfy://hush hush", "ntfy://hüsh", '"ntfy://hush"'):
        with pytest.raises(ConfigError) as caught:
            load(write_config(tmp_path, notify__to=text))
        assert "[notify] to: " in str(caught.value) and "hush" not in str(caught.value)
