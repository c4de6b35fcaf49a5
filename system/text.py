"""Parsing and formatting of ids, times and one-line text."""

import os
import re
import shlex
import textwrap
from contextlib import suppress
from datetime import datetime, timezone

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE | re.ASCII)
MAX_TITLE_IN_LOG = 80
FIRST_SECOND, LAST_SECOND = -62_135_596_800.0, 253_402_300_799.0  # of the years 1 and 9999


def one_line(text: object, max_length: int = 200) -> str:
    """Make text from outside fit for a log and a terminal: no control characters, and at most `max_length` long."""
    text = text if isinstance(text, str) else str(text)  # a person may have written a number or bytes into items.db
    if len(text) <= max_length and text.isprintable() and "  " not in text:
        return text.strip(" ")
    printable = "".join(char if char.isprintable() else " " for char in text[: 4 * max_length])
    line = " ".join(printable.split())
    return line if len(line) <= max_length else line[: max_length - 1] + "…"


def wrapped(text: str, indent: str = "", hanging: str | None = None) -> str:
    """A paragraph of lines of up to 100 characters. Ids and commands are not cut at their hyphens.

    :param hanging: the indent of all lines but the first; None for the same
    """
    rest = indent if hanging is None else hanging
    return textwrap.fill(
        text, 100, initial_indent=indent, subsequent_indent=rest, break_on_hyphens=False, break_long_words=False
    )


def pluralize(count: int, noun: str, plural: str = "") -> str:
    """`1 item`, `2 items`; `plural` is for a noun that takes no s."""
    return f"{count} {noun if count == 1 else plural or noun + 's'}"


def named(object_id: str, title: object) -> str:
    """An id and a title as the log shows them: `2b45a8ca-… "holiday.mov"`."""
    return f'{one_line(object_id)} "{one_line(str(title), MAX_TITLE_IN_LOG)}"' if title else one_line(object_id)


def without_ids(text: str) -> str:
    """A message without the ids and numbers in it, to group messages by. The status that iconik answered stays."""
    text = re.sub(UUID, "…", text)
    return re.sub(r"(?<!answered )\b\d[\d.,:]*\b", "…", text)


def format_utc(seconds: float) -> str:
    """Write seconds since 1970 as items.db and the log do: `2026-11-23T16:47:00.123Z`. The years end at 1 and 9999."""
    seconds = min(max(seconds, FIRST_SECOND), LAST_SECOND)
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def format_local(time: object) -> str:
    """Write an ISO 8601 time by this machine's clock, and say by which: `2026-11-23 17:47:00 CET`."""
    seconds = parse_time(time)
    with suppress(ValueError, OverflowError):  # by this machine's clock it may be in the year 10000
        if seconds is not None:
            return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
    return one_line(str(time))


def parse_time(text: object, *, local: bool = False) -> float | None:
    """Read an ISO 8601 time as seconds since 1970. None if `text` is not such a time.

    :param local: a time without an offset is by this machine's clock; it is UTC otherwise
    """
    try:
        # Python 3.10 reads neither a Z nor a fraction of any other length than three or six digits.
        plain = re.sub(r"[zZ]$", "+00:00", str(text))
        plain = re.sub(r"\.(\d+)", lambda fraction: f".{fraction[1]:0<6.6}", plain)
        time = datetime.fromisoformat(plain)
        time = time if time.tzinfo or local else time.replace(tzinfo=timezone.utc)
        return time.astimezone(timezone.utc).timestamp()  # what is not in the years 1 to 9999 of UTC is no time
    except (ValueError, OverflowError):
        return None


def in_container() -> bool:
    """Whether this is the image. There, whoever runs it restarts what ends, and people's own commands are elsewhere."""
    return os.environ.get("ICONIK_LISTENER_CONTAINER") == "1"


def system_name() -> str | None:
    """The name that was given with `--system`, empty without it; None where install.sh has not installed this."""
    words = os.environ.get("ICONIK_LISTENER_COMMAND", "").split()
    if words[:1] != ["iconik-listener"] or in_container():
        return None
    return words[2] if words[1:2] == ["--system"] and len(words) > 2 else ""


def service_name() -> str:
    """The systemd service; empty where install.sh has not installed it."""
    name = system_name()
    return "" if name is None else f"iconik-listener{'@' if name else ''}{name}"


def service_command(action: str) -> str:
    """The command that starts, stops or restarts the service; empty where install.sh has not installed it."""
    return f"sudo systemctl {action} {service_name()}" if service_name() else ""


def restart_it() -> str:
    """What a person has to do so that the listener reads config.ini again."""
    remedy = service_command("restart")
    return f"restart the listener: {remedy}" if remedy else "restart the listener"


def start_it(*, may_run: bool = False) -> str:
    """What a person has to do so that a listener runs, and where it says why if it does not start.

    :param may_run: whether one may run that cannot be seen: to start that does nothing
    """
    start, log = service_command("restart" if may_run else "start"), "If it does not start, its log says why"
    if start:
        return f"{start}. {log}: sudo journalctl -u {service_name()} -n 20 -o cat"
    return f"{'stop it, if it still runs, and ' if may_run else ''}start it. {log}"


def command(*words: str) -> str:
    """A command of this program, as a line that can be pasted on this machine: `iconik-listener retry --all`."""
    return f"{os.environ.get('ICONIK_LISTENER_COMMAND', 'python app.py')} {shlex.join(words)}".rstrip()
