"""Messages to systemd, if that runs us: sd_notify(3) without a library."""

import math
import os
import socket
from contextlib import suppress


def notify(*messages: str) -> None:
    """Send messages such as `READY=1` and `STATUS=…`. Without systemd nothing happens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        channel.sendto("\n".join(messages).encode(), address.replace("@", "\0", 1) if address[0] == "@" else address)


def extend_timeout(seconds: float) -> None:
    """Ask systemd for more time to start, or to stop, from now on."""
    notify(f"EXTEND_TIMEOUT_USEC={seconds * 1e6:.0f}")


def watchdog_interval() -> float:
    """Every how many seconds systemd wants a sign of life; infinity if it does not watch this process."""
    is_watched = os.environ.get("WATCHDOG_PID") in (None, str(os.getpid()))
    try:
        return int(os.environ["WATCHDOG_USEC"]) / 1e6 / 2 if is_watched else math.inf
    except (KeyError, ValueError):
        return math.inf
