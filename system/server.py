"""The HTTP server: waitress in this process, made fit for a port that faces the internet, and its draining.

A request's body is read only if it is wanted, and no body of more than 64 KiB is kept. A request has 30 s to come.
While there are too many connections, or too much is kept of requests that are not complete, those are closed that have
taken longest. What all connections may cost together follows from the numbers below: 16 MiB for requests that are
coming in, at most 64 KiB for each that waits for a thread, and about 10 KB for each connection.
"""

import errno
import io
import json
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any

from flask import Flask
from waitress import wasyncore
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.server import create_server
from waitress.task import ErrorTask
from waitress.utilities import BadRequest

from system.errors import ListenerError
from system.log import OUR_LOGGER

MAX_HEAD = 16 * 1024  # bytes of a request's first line and headers
MAX_BODY = 64 * 1024  # bytes; an event has a few KB
MAX_CHUNK_LINE = 1024  # bytes between two chunks of a body, or after the last one
MAX_INCOMPLETE = 16 * 1024 * 1024  # bytes that are kept of all requests that are not complete
MAX_CONNECTIONS = 1000
SPARE_CONNECTIONS = 50  # beyond those, until the oldest are closed
RESERVED_DESCRIPTORS = 150  # for the database, the log, and iconik's connections of 32 workers
RECEIVE_BUFFER = 16 * 1024  # bytes; the kernel's memory counts as the service's, too
REQUEST_SECONDS = 30.0  # from a request's first byte to its last; iconik itself gives up after about 10
IDLE_SECONDS = 30.0  # between two requests; Caddy closes after 10
LINGER_SECONDS = 2.0
SWEEP_SECONDS = 1.0
TICK_SECONDS = 30.0
DRAIN_SECONDS = 8.0

log = logging.getLogger(OUR_LOGGER)
TOO_MUCH = "Too many connections, or too many requests that do not end: the oldest are closed"

SETTINGS = {
    "threads": 4,
    "max_request_header_size": MAX_HEAD,
    "max_request_body_size": sys.maxsize,  # Request sees to it
    "inbuf_overflow": sys.maxsize,  # no body becomes a temporary file
    "asyncore_use_poll": True,
    "channel_timeout": sys.maxsize,  # Server sees to it, by a clock that does not step
    "log_socket_errors": False,
    "ident": None,
    "clear_untrusted_proxy_headers": False,  # X-Forwarded-For, for the log only
}


HOST_REMEDY = "host must be an address of this machine: 127.0.0.1 behind Caddy, 0.0.0.0 for all"
NO_SUCH_HOST = (socket.EAI_NONAME, socket.EAI_AGAIN, socket.EAI_FAIL)


class CannotListen(ListenerError):
    """Another program listens there, or the address is not this machine's."""


@dataclass(frozen=True)
class Refusal:
    """The answer to a request whose body is not wanted."""

    code: int
    message: str

    @property
    def reason(self) -> str:
        return HTTPStatus(self.code).phrase


Judge = Callable[[str, Mapping[str, str], str], Refusal | None]


class JsonErrorTask(ErrorTask):
    """What is answered without the application, such as 400, in the form of all our errors."""

    def execute(self) -> None:
        error = self.request.error
        body = json.dumps({"message": getattr(error, "message", error.reason)}).encode() + b"\n"
        self.status = f"{error.code} {error.reason}"
        self.response_headers.append(("Content-Type", "application/json"))
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)


class Request(HTTPRequestParser):
    """A request that is being received. Once its headers are there, it is decided what becomes of its body."""

    _is_judged = _is_discarded = False

    def __init__(self, adjustments: object, judge: Judge, sender: str) -> None:
        super().__init__(adjustments)
        self._judge = judge
        self._sender = sender

    def received(self, data: bytes) -> int:
        """Take bytes of the request. Returns how many were its own."""
        try:
            consumed: int = super().received(data)
        except ValueError:  # a number of thousands of digits
            self.error = BadRequest("Content-Length is invalid")
        if self.headers_finished and self.body_rcv is not None and not self.error:
            self._see_to_body()
        if not self.error:
            return consumed
        self.completed, self.expect_continue = True, False  # or waitress would ask for the body
        return len(data)

    def _see_to_body(self) -> None:
        if not self._is_judged:
            self._is_judged, self.error = True, self._judge(self.path, self.headers, self._sender)
        if not self._is_discarded and len(self.body_rcv) > MAX_BODY:
            self._is_discarded, self.body_rcv.buf = True, _Discarded(len(self.body_rcv))
        if self.chunked and len(self.body_rcv.control_line) + len(self.body_rcv.trailer) > MAX_CHUNK_LINE:
            self.error = BadRequest("Invalid chunk")

    @property
    def kept(self) -> int:
        """How many bytes are kept of it."""
        body = 0 if self.body_rcv is None or self._is_discarded else len(self.body_rcv)
        return len(self.header_plus) + body


class _Discarded:
    """In place of waitress's buffer for a body that is too large. Only its length is known afterwards."""

    def __init__(self, length: int) -> None:
        self._length = length

    def append(self, data: bytes) -> None:
        self._length += len(data)

    def __len__(self) -> int:
        return self._length

    def getfile(self) -> io.BytesIO:
        return io.BytesIO()

    def close(self) -> None:
        pass


class Channel(HTTPChannel):
    """A connection. Once the server drains, nothing more is read from it.

    :ivar deadline: when it is closed, in monotonic time, unless a thread is on its request
    """

    error_task_class = JsonErrorTask
    _is_to_linger = _lingers = False

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.deadline = time.monotonic() + IDLE_SECONDS
        super().__init__(*arguments, **options)
        self.parser_class = partial(Request, judge=self.server.judge, sender=self.addr[0])

    def received(self, data: bytes) -> bool:
        if self.request is None and not self._lingers:
            self.deadline = time.monotonic() + REQUEST_SECONDS
        return bool(super().received(data))

    def service(self) -> None:
        self.deadline = time.monotonic() + IDLE_SECONDS
        self._is_to_linger = self.requests[0].error is not None
        super().service()

    def readable(self) -> bool:
        return self._lingers or bool(not self.server.is_draining and super().readable())

    def writable(self) -> bool:
        """Not while a worker is sending: it does that alone, and wakes the server afterwards.

        waitress's own answer is yes, and so it polls again and again until the worker is done, and takes the CPU from
        it. Measured with 4 connections: 18 polls a request instead of 2.
        """
        if self._lingers or not super().writable() or not self.outbuf_lock.acquire(blocking=False):
            return False
        self.outbuf_lock.release()
        return True

    def handle_close(self) -> None:
        """Close it or, after a refusal, stop sending and wait for the client to close it.

        The client may be sending the body. If it met a closed connection, it would lose the answer. What it sends is
        thrown away by waitress.
        """
        if not self._is_to_linger:
            super().handle_close()
            return
        self._is_to_linger, self._lingers = False, True
        self.deadline = time.monotonic() + LINGER_SECONDS
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def handle_expt(self) -> None:
        """Urgent data, which HTTP does not have. It would be reported again and again."""
        self.close_now()

    def close_now(self) -> None:
        """Close it, whatever is under way."""
        self._is_to_linger = False
        self.handle_close()

    @property
    def kept(self) -> int:
        """How many bytes are kept of a request that is not complete."""
        request = self.request
        return request.kept if request else 0

    @property
    def is_busy(self) -> bool:
        """Whether a request that was read has not been answered, or not all of its answer has been sent."""
        return bool(self.requests or self.total_outbufs_len)


def _host_remedy(error: OSError) -> str:
    """What to do about a host that is no address of this machine's, such as the public one of a VM."""
    if error.errno not in (errno.EADDRNOTAVAIL, *NO_SUCH_HOST):
        return ""
    return f". {HOST_REMEDY}"


def is_address_here(host: str) -> bool:
    """Whether a server of this machine can listen on that host."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(address)
    except UnicodeError:
        return False
    except OSError as error:
        return not _host_remedy(error)
    return True


class Server:
    """Listens from its construction on, and answers while `run` runs.

    :ivar address: where it listens, as `127.0.0.1:8000`
    """

    def __init__(
        self, app: Flask, host: str, port: int, judge: Judge = lambda *_: None, *, setting: str = "port in config.ini"
    ) -> None:
        """
        :param port: 0 for any that is free
        :param judge: whether a request's body is wanted, by the path, the headers, whose names are like
            X_WEBHOOK_SECRET, and the sender's address. Gives the answer if it is not: then the body is not read, and
            the connection is closed. Of a wanted body of more than 64 KiB, `app` gets the Content-Length only.
        :param setting: where a person chooses the port
        :raises CannotListen: the address or port cannot be had
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            listening = socket.create_server((host, port), family=family, backlog=1024)
        except OSError as error:
            reason = str(error.strerror).partition(" (while")[0]
            remedy = _host_remedy(error)
            if error.errno == errno.EADDRINUSE:
                remedy = f". To see which program has it: sudo ss -ltnp 'sport = :{port}'. Or change {setting}"
            raise CannotListen(f"cannot listen on {host}, port {port}: {reason}{remedy}") from None
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)  # that of each connection, too
        self._max_connections = connection_limit()
        limit = self._max_connections + SPARE_CONNECTIONS
        self._waitress: Any = create_server(app, sockets=[listening], connection_limit=limit, **SETTINGS)
        self._waitress.judge = judge
        self._waitress.channel_class = Channel
        self._accept_one, self._waitress.handle_accept = self._waitress.handle_accept, self._accept
        self._waitress.is_draining = False
        self._stopping = False
        self._next_sweep = 0.0
        self._wakes_for_signals = False
        host = str(self._waitress.effective_host)
        self.address = (
            f"[{host}]:{self._waitress.effective_port}" if ":" in host else f"{host}:{self._waitress.effective_port}"
        )

    def wake_for_signals(self) -> None:
        """Have any signal end the wait for the network. Called by the main thread.

        Without it, a signal that comes just before the wait begins, or that the system gives to another thread, is
        noticed at the next tick only.
        """
        wakes = self._waitress.trigger.trigger
        os.set_blocking(wakes, False)
        signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
        self._wakes_for_signals = True

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

    def drain(self, seconds: float = DRAIN_SECONDS, end_seconds: float = 1.0) -> None:
        """Take no more requests, and answer those that were read.

        :param seconds: how long to wait for the answers
        :param end_seconds: how long to wait for the threads that give them, after that
        """
        self._waitress.is_draining = True
        wasyncore.dispatcher.close(self._waitress)  # the listening socket only
        deadline = time.monotonic() + seconds
        while any(channel.is_busy for channel in self.connections()) and time.monotonic() < deadline:
            self._serve_once(0.1)
        self._waitress.task_dispatcher.shutdown(timeout=end_seconds)
        for channel in self.connections():
            channel.close_now()
        if self._wakes_for_signals:
            signal.set_wakeup_fd(-1)
        self._waitress.trigger.close()

    def connections(self) -> list[Channel]:
        """Those that are open."""
        return list(self._waitress.active_channels.values())

    def _serve_once(self, seconds: float) -> None:
        seconds = min(seconds, SWEEP_SECONDS) if self._waitress.active_channels else seconds
        wasyncore.loop(seconds, use_poll=True, map=self._waitress._map, count=1)
        self._close_what_costs_too_much()

    def _accept(self) -> None:
        """Accept many of those that wait. waitress accepts one at a time, and looks at all connections in between."""
        channels = self._waitress.active_channels
        for count in range(len(channels), self._max_connections + SPARE_CONNECTIONS):
            if len(channels) < count:
                break
            self._accept_one()

    def _close_what_costs_too_much(self) -> None:
        """Close what has taken too long and, while all of it is too much, what has taken longest."""
        count, now = len(self._waitress.active_channels), time.monotonic()
        if now < self._next_sweep and count <= min(self._max_connections, MAX_INCOMPLETE // (MAX_HEAD + MAX_BODY)):
            return
        self._next_sweep = now + SWEEP_SECONDS
        channels = self.connections()
        kept = sum(channel.kept for channel in channels)
        for channel in sorted(channels, key=lambda channel: channel.deadline):
            is_too_much = count > self._max_connections or (kept > MAX_INCOMPLETE and channel.kept)
            if channel.requests or not (channel.deadline < now or (is_too_much and not channel.is_busy)):
                continue
            if is_too_much:
                log.warning(TOO_MUCH, extra={"topic": (TOO_MUCH,)})
            count, kept = count - 1, kept - channel.kept
            channel.close_now()


def connection_limit() -> int:
    """As many as the system's file descriptors allow: when those run out, waitress spins and answers nothing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + RESERVED_DESCRIPTORS
    if soft < wanted:
        with suppress(OSError, ValueError):
            soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(10, min(MAX_CONNECTIONS, soft - RESERVED_DESCRIPTORS))
