"""The HTTP server: waitress in this process, with settings for a port that faces the internet, and its draining."""

import errno
import json
import resource
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from flask import Flask
from waitress import wasyncore
from waitress.channel import HTTPChannel
from waitress.server import create_server
from waitress.task import ErrorTask

from system.errors import ListenerError

MAX_BODY = 1024 * 1024  # bytes
MAX_CONNECTIONS = 1000
RESERVED_DESCRIPTORS = 150  # for the database, the log, and iconik's connections of 32 workers
TICK_SECONDS = 30.0
DRAIN_SECONDS = 8.0

# Measured with 400 clients that drip a byte a second: like this webhooks go on in milliseconds; with
# waitress's defaults nothing is answered.
SETTINGS = {
    "threads": 4,
    "max_request_body_size": MAX_BODY + 1,
    "asyncore_use_poll": True,
    "channel_timeout": 30,
    "cleanup_interval": 10,
    "log_socket_errors": False,
    "ident": None,
    "clear_untrusted_proxy_headers": False,  # X-Forwarded-For, for the log only
}


NO_SUCH_HOST = (socket.EAI_NONAME, socket.EAI_AGAIN, socket.EAI_FAIL)


class CannotListen(ListenerError):
    """Another program listens there, or the address is not this machine's."""


class JsonErrorTask(ErrorTask):
    """What waitress answers by itself, such as 413, in the form of all our errors."""

    def execute(self) -> None:
        error = self.request.error
        body = json.dumps({"message": error.reason}).encode() + b"\n"
        self.status = f"{error.code} {error.reason}"
        self.response_headers.append(("Content-Type", "application/json"))
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)


class Channel(HTTPChannel):
    """A connection. Once the server drains, nothing more is read from it."""

    error_task_class = JsonErrorTask

    def readable(self) -> bool:
        return bool(not self.server.is_draining and super().readable())

    def writable(self) -> bool:
        """Not while a worker is sending: it does that alone, and wakes the server afterwards.

        waitress's own answer is yes, and so it polls again and again until the worker is done, and takes the CPU from
        it. Measured with 4 connections: 18 polls a request instead of 2.
        """
        if not super().writable() or not self.outbuf_lock.acquire(blocking=False):
            return False
        self.outbuf_lock.release()
        return True

    @property
    def is_busy(self) -> bool:
        """Whether a request that was read has not been answered, or not all of its answer has been sent."""
        return bool(self.requests or self.total_outbufs_len)


def _host_remedy(error: OSError) -> str:
    """What to do about a host that is no address of this machine's, such as the public one of a VM."""
    if error.errno not in (errno.EADDRNOTAVAIL, *NO_SUCH_HOST):
        return ""
    return ". host must be an address of this machine: 127.0.0.1 behind Caddy, 0.0.0.0 for all"


class Server:
    """Listens from its construction on, and answers while `run` runs.

    :ivar address: where it listens, as `127.0.0.1:8000`
    """

    def __init__(self, app: Flask, host: str, port: int) -> None:
        """
        :param port: 0 for any that is free
        :raises CannotListen: the address or port cannot be had
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            listening = socket.create_server((host, port), family=family, backlog=1024)
        except OSError as error:
            reason = str(error.strerror).partition(" (while")[0]
            raise CannotListen(f"cannot listen on {host}, port {port}: {reason}{_host_remedy(error)}") from None
        self._waitress: Any = create_server(app, sockets=[listening], connection_limit=_connection_limit(), **SETTINGS)
        self._waitress.channel_class = Channel
        self._waitress.is_draining = False
        self._stopping = False
        host = str(self._waitress.effective_host)
        self.address = (
            f"[{host}]:{self._waitress.effective_port}" if ":" in host else f"{host}:{self._waitress.effective_port}"
        )

    def run(self, on_tick: Callable[[], None], tick_seconds: float = TICK_SECONDS) -> None:
        """Serve until `stop` is called, and call `on_tick` every `tick_seconds`, or every 30 s if that is shorter."""
        tick_seconds = min(tick_seconds, TICK_SECONDS)
        next_tick = 0.0
        while not self._stopping:
            if time.monotonic() >= next_tick:
                on_tick()
                next_tick = time.monotonic() + tick_seconds
            self._serve_once(tick_seconds)

    def stop(self) -> None:
        """Make `run` return. May be called from a signal handler, and again when all is closed already."""
        if not self._stopping:
            self._stopping = True
            self._waitress.pull_trigger()

    def drain(self) -> None:
        """Take no more requests, and answer those that were read."""
        self._waitress.is_draining = True
        wasyncore.dispatcher.close(self._waitress)  # the listening socket only
        deadline = time.monotonic() + DRAIN_SECONDS
        while any(channel.is_busy for channel in self._channels()) and time.monotonic() < deadline:
            self._serve_once(0.1)
        self._waitress.task_dispatcher.shutdown(timeout=1)
        for channel in self._channels():
            channel.handle_close()
        self._waitress.trigger.close()

    def _channels(self) -> list[Channel]:
        return list(self._waitress.active_channels.values())

    def _serve_once(self, seconds: float) -> None:
        wasyncore.loop(seconds, use_poll=True, map=self._waitress._map, count=1)


def _connection_limit() -> int:
    """As many as the system's file descriptors allow: when those run out, waitress spins and answers nothing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + RESERVED_DESCRIPTORS
    if soft < wanted:
        with suppress(OSError, ValueError):
            soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(10, min(MAX_CONNECTIONS, soft - RESERVED_DESCRIPTORS))
