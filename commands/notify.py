"""Telling people by mail or chat what check finds, through Apprise: https://github.com/caronc/apprise

Apprise is optional, so it is imported only where somebody is to be told.
"""

import json
import logging
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from store import DAY_SECONDS
from system.database_files import protect
from system.text import UUID, command, in_container, one_line, pluralize, without_ids
from version import __version__

SEND_SECONDS = 20.0  # for all addresses together
MAX_MESSAGES, MESSAGES_SECONDS = 10, 6 * 3600.0  # in so long at most so many: a fault may come and go
ROOT = Path(__file__).parent.parent
INSTALLED = Path("/opt/iconik-listener")
# Why an address took no message, by what Python says of it. The first that fits.
REASONS = {
    "Name or service not known|No address associated": "its host is not in DNS",
    "Temporary failure in name resolution": "this machine cannot look up names just now",
    "Connection refused": "the connection was refused",
    "timed out": "no answer in time",
    "CERTIFICATE_VERIFY_FAILED": "its certificate is not accepted",
    "SSLError|SSL:": "TLS failed",
    r"^\(535,": "535: the user or the password is not accepted",
}


class NotInstalled(Exception):
    """Apprise is not installed. `str()` says how to install it."""


@dataclass(frozen=True)
class Message:
    """What people are told.

    :ivar kind: failure, success or info: some services show it as a colour
    """

    title: str
    body: str
    kind: str


@dataclass
class Told:
    """What people were told last.

    :ivar faults: what was wrong; empty if all was well, or if nobody was told of anything yet
    :ivar times: when messages were sent, in seconds since 1970, the newest last
    """

    faults: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def next_message(self, faults: Sequence[str], now: float) -> Message | None:
        """What is to be told now: what has changed, once a day what stays, and once that all is well again.

        Numbers and ids do not count as a change.
        """
        recent = [sent for sent in self.times if 0 <= now - sent < MESSAGES_SECONDS]
        if len(recent) >= MAX_MESSAGES:
            return None
        is_changed = {without_ids(fault) for fault in faults} != {without_ids(fault) for fault in self.faults}
        is_old = not self.times or not 0 <= now - self.times[-1] < DAY_SECONDS
        if faults and is_changed:
            return _message(faults, "is wrong", "are wrong")
        if faults and is_old:
            return _message(faults, "is still wrong", "are still wrong")
        if not faults and is_changed:
            return Message(f"{_sender()}: all is well again", _body(self.faults, "This is over:"), "success")
        return None


class Memory:
    """What people were told last, in a file beside items.db.

    It is not in items.db, because that may be what is wrong, and it is written in place, because the disk may be full.
    """

    def __init__(self, database: Path) -> None:
        self._path = database.with_name(f"{database.name}.told")

    def read(self) -> Told:
        """What people were told last. A file that cannot be read tells nothing."""
        with suppress(OSError, ValueError, TypeError, AttributeError):
            told = json.loads(self._path.read_text(encoding="utf-8"))
            return Told([str(fault) for fault in told["faults"]], [float(sent) for sent in told["times"]])
        return Told()

    def write(self, told: Told) -> None:
        """Note it.

        :raises OSError: it cannot be written
        """
        text = json.dumps({"faults": told.faults, "times": told.times[-MAX_MESSAGES:]})
        if not self._path.exists():
            self._path.touch(mode=0o600)
            protect(self._path)
        with self._path.open("r+", encoding="utf-8") as file:
            file.write(text)
            file.truncate()


def tell(addresses: Sequence[str], database: Path, faults: Sequence[str], report: Callable[[str], None]) -> None:
    """Tell people what has changed, if it has. What goes wrong with that is told to `report`, a line each.

    An address that fails is not tried again as long as another one takes the message.
    """
    memory = Memory(database)
    told = memory.read()
    now = time.time()
    faults = [UUID.sub("…", fault) for fault in faults]
    message = told.next_message(faults, now)
    if message is None:
        return
    try:
        failures = send(addresses, message)
    except NotInstalled as error:
        report(str(error))
        return
    for failure in failures:
        report(failure)
    if len(failures) < len(addresses):
        try:
            memory.write(Told(faults, [*told.times, now]))
        except OSError as error:
            report(f"What people were told cannot be noted, so they may be told again: {error.strerror}")


def trial() -> Message:
    """A message for `check --notify --test`."""
    return Message(f"{_sender()}: a test", "This is what check will send when something is wrong.", "info")


def send(addresses: Sequence[str], message: Message) -> list[str]:
    """Send a message to all addresses at once. Returns a line for each that did not take it, within 20 s in all.

    :raises NotInstalled: Apprise is missing
    """
    sinks = [_sink(address) for address in addresses]
    taken: dict[int, str] = {}  # by the number of the address: why not, empty if it was taken

    def send_one(number: int, sink: Any) -> None:
        taken[number] = _send_one(sink, message)

    # Daemons, because one that hangs must not keep the process from its end.
    threads = [
        threading.Thread(target=send_one, args=(number, sink), daemon=True) for number, sink in enumerate(sinks) if sink
    ]
    deadline = time.monotonic() + SEND_SECONDS
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return [
        f"{describe(number, address)} {taken.get(number, f'has not taken the message within {SEND_SECONDS:g} s')}"
        if sinks[number]
        else f"{describe(number, address)} {NOT_UNDERSTOOD}"
        for number, address in enumerate(addresses)
        if taken.get(number) != ""
    ]


NOT_UNDERSTOOD = "is not one that Apprise understands: see https://appriseit.com/services/"


def not_understood(addresses: Sequence[str]) -> list[str]:
    """A line for each address that Apprise does not understand.

    :raises NotInstalled: Apprise is missing
    """
    sinks = [_sink(address) for address in addresses]
    return [f"{describe(number, addresses[number])} {NOT_UNDERSTOOD}" for number, sink in enumerate(sinks) if not sink]


def describe(number: int, address: str) -> str:
    """An address without its secrets: `address 2 of [notify] to (slack)`."""
    return f"address {number + 1} of [notify] to ({address.partition(':')[0].lower()})"


def _apprise() -> Any:
    try:
        import apprise
    except ImportError:
        pip = f"{sys.executable} -m pip install -r {ROOT / 'requirements-notify.txt'}"
        remedy = f"sudo {INSTALLED}/deploy/install.sh" if ROOT == INSTALLED else pip
        if in_container():
            remedy = "this image does not have it"
        raise NotInstalled(f"[notify] to is set, and Apprise is not installed: {remedy}") from None
    logging.getLogger("apprise").propagate = False  # what it logs may show an address
    logging.getLogger("apprise").setLevel(logging.DEBUG)  # and is where it says why something failed
    return apprise


def _sink(address: str) -> Any:
    """What takes messages for an address; None if Apprise does not understand it."""
    apprise = _apprise()
    # Without its own limit of time, it makes no threads that would have to end before this process can.
    asset = apprise.AppriseAsset(app_id="iconik-listener", app_desc="iconik-listener", service_timeout=0)
    return apprise.Apprise.instantiate(address, asset=asset, suppress_exceptions=True)


def _send_one(sink: Any, message: Message) -> str:
    """Send a message to one address. Returns why that failed, empty if it did not."""
    apprise = _apprise()
    sender = apprise.Apprise(asset=sink.asset)
    sender.add(sink)
    try:
        result = sender.notify(
            title=message.title,
            body=message.body,
            notify_type=apprise.NotifyType(message.kind),
            body_format=apprise.NotifyFormat.TEXT,
            log_level=logging.DEBUG,
        )
        if result:
            return ""
        reason = _reason(" ".join(entry.message for entry in result.logs()))
        return f"has not taken the message{f' ({reason})' if reason else ''}"
    except Exception as error:
        return f"has not taken the message ({type(error).__name__})"


def _reason(logged: str) -> str:
    """Why a message was not taken, from what Apprise has logged; empty if that does not say it.

    It is said in our words, because Apprise's may show parts of the address.
    """
    if status := re.search(r"\berror=(\d{3})\b", logged):
        return status[1]
    exception = logged.partition("Socket Exception: ")[2]
    for words, reason in REASONS.items():
        if re.search(words, exception):
            return reason
    return ""


def _message(faults: Sequence[str], one: str, several: str) -> Message:
    title = f"{_sender()}: {pluralize(len(faults), 'thing')} {one if len(faults) == 1 else several}"
    return Message(title, _body(faults, ""), "failure")


def _body(faults: Sequence[str], heading: str) -> str:
    lines = [*([heading] if heading else []), *(f"- {one_line(fault, 500)}" for fault in faults)]
    return "\n".join([*lines, "", f"To check everything: {command('check')}", f"iconik-listener {__version__}"])


def _sender() -> str:
    return f"iconik-listener on {one_line(socket.gethostname(), 80)}"
