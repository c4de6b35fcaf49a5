"""sd_notify(3): readiness, watchdog and status, without a dependency."""

import math
import os
import re
import socket
from contextlib import suppress

SEND_SECONDS = 1.0  # a systemd that does not read its messages must not hold us up


def notify(*messages: str) -> None:
    """Send messages such as `READY=1` and `STATUS=…`. Without systemd nothing happens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        channel.settimeout(SEND_SECONDS)
        channel.sendto("\n".join(messages).encode(), address.replace("@", "\0", 1) if address[0] == "@" else address)


def extend_timeout(seconds: float) -> None:
    """Ask systemd for more time to start, or to stop, from now on."""
    notify(f"EXTEND_TIMEOUT_USEC={seconds * 1e6:.0f}")


def watchdog_interval() -> float:
    """After how many seconds to show systemd each sign of life, half of its limit; infinity if it does not watch us."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    is_watched = os.environ.get("WATCHDOG_PID") in (None, str(os.getpid()))
    return int(microseconds) / 1e6 / 2 if is_watched and re.fullmatch("0*[1-9][0-9]*", microseconds) else math.inf
