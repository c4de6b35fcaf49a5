"""HTTP on requests, bounded in time and size. It knows nothing of iconik.

The timeouts of requests bound each read, so that a server that drips a byte a second holds a call for ever. Here each
operation on a socket gets only the time that is left of its call.
"""

import http.client
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from requests.exceptions import InvalidProxyURL, InvalidSchema
from requests.utils import DEFAULT_CA_BUNDLE_PATH, get_environ_proxies, select_proxy
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, ProxyManager
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ProxyError
from urllib3.util.ssl_ import create_urllib3_context

MAX_ANSWER = 16 * 1024 * 1024  # bytes of a 2xx
MAX_ERROR = 64 * 1024  # bytes of any other answer
READ_SIZE = 64 * 1024
CONNECT_SECONDS = 5.0
MAX_RETRY_AFTER = 3600.0  # seconds
IDLE_SECONDS = 30.0  # after which a connection is not used again: the server may be closing it at that moment


class TransportError(Exception):
    """No answer came. `str()` is one short line that holds no URL and no secret."""


class NotConnected(TransportError):
    """There was no connection, so nothing was sent."""


@dataclass(frozen=True)
class Answer:
    """What a server answered.

    :ivar is_whole: False if the body was cut off, late, too large or compressed, or was left unread as that of a
        redirect. Status and headers hold all the same.
    """

    status: int
    reason: str
    headers: Mapping[str, str]
    body: bytes
    is_whole: bool

    @property
    def date(self) -> float | None:
        """The server's time, in seconds since 1970: its `Date`. None if there is none, or if a cache has kept it."""
        if self.headers.get("Age"):
            return None
        try:
            return parsedate_to_datetime(self.headers.get("Date", "")).timestamp()
        except (ValueError, TypeError, OverflowError):
            return None

    @property
    def retry_after(self) -> float | None:
        """The seconds that Retry-After, in either of its forms, asks to wait, but at most an hour; None if none."""
        value = self.headers.get("Retry-After", "")
        try:
            seconds = float(value)
        except ValueError:
            try:
                date = parsedate_to_datetime(value)
            except (ValueError, TypeError, OverflowError):
                return None
            date = date if date.tzinfo else date.replace(tzinfo=timezone.utc)
            seconds = (date - datetime.now(timezone.utc)).total_seconds()
        return min(seconds, MAX_RETRY_AFTER) if seconds > 0 else None


class Transport:
    """Calls to one server. Any number of threads may share it; each has its own connection.

    :param url: scheme and host; the path of each call is appended to it
    :param headers: sent with every request
    :param timeout: the seconds that a call may take, from connecting to the last byte of the answer. Only the system's
        resolver has its own limits.
    """

    def __init__(self, url: str, headers: Mapping[str, str], timeout: float) -> None:
        self._url = url
        self._headers = {**headers, "Accept-Encoding": "identity"}
        self._timeout = timeout
        self._local = threading.local()
        self._lock = threading.Lock()
        self._started: dict[int, float] = {}  # the calls under way, by thread

    def longest_call(self) -> float:
        """How many seconds the longest call under way has taken so far; 0 if none is."""
        with self._lock:
            return time.monotonic() - min(self._started.values()) if self._started else 0.0

    def send(
        self, method: str, path: str, *, query: Mapping[str, str] | None = None, json: object | None = None
    ) -> Answer:
        """Send one request, never twice, and read its answer. Redirects are not followed.

        :raises TransportError: if the status line and the headers did not come in time
        """
        with self._call():
            try:
                session = self._session()
                response = session.request(
                    method,
                    self._url + path,
                    params=query,
                    json=json,
                    headers=self._headers,
                    timeout=self._timeout,
                    allow_redirects=False,
                    stream=True,
                    proxies=_proxies(self._url),
                    verify=_ca_path(),
                )
            except Exception as error:  # whatever requests, urllib3, http.client, ssl or the system raise
                kind = NotConnected if any(isinstance(cause, NOT_SENT) for cause in _causes(error)) else TransportError
                raise kind(_reason(error, self._url, self._timeout)) from None
            with closing(response):
                body, is_whole = _body(response)
            if not is_whole or response.status_code < 200:
                session.close()  # what may still come is not the next request's answer
            return Answer(response.status_code, response.reason or "", response.headers, body, is_whole)

    @contextmanager
    def _call(self) -> Iterator[None]:
        thread, now = threading.get_ident(), time.monotonic()
        _this_thread.deadline = now + self._timeout
        with self._lock:
            self._started[thread] = now
        try:
            yield
        finally:
            self._local.used_at = time.monotonic()
            with self._lock:
                del self._started[thread]

    def _session(self) -> requests.Session:
        """This thread's session, without a connection that has been idle for too long."""
        if not hasattr(self._local, "session"):
            self._local.session, self._local.used_at = _Session(), time.monotonic()
        if time.monotonic() - self._local.used_at > IDLE_SECONDS:
            self._local.session.close()
        session: requests.Session = self._local.session
        return session


def _body(response: requests.Response) -> tuple[bytes, bool]:
    """The body, and whether it is whole. It is never decompressed: a kilobyte may hold a gigabyte."""
    status, encoding = response.status_code, response.headers.get("Content-Encoding", "identity")
    if 300 <= status < 400 or encoding.lower() != "identity":
        return b"", False
    limit = MAX_ANSWER if 200 <= status < 300 else MAX_ERROR
    body = bytearray()
    try:
        while piece := response.raw.read(READ_SIZE, decode_content=False):
            body += piece
            if len(body) > limit:
                return bytes(body[:limit]), False
    except Exception:  # as in send()
        return bytes(body), False
    return bytes(body), True


def _ca_path() -> str:
    return os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or DEFAULT_CA_BUNDLE_PATH


def _proxies(url: str) -> dict[str, str]:
    """The environment's proxy for https. Plain http goes to this machine, or shows our secrets to the proxy."""
    proxy = select_proxy(url, get_environ_proxies(url)) if _is_https(url) else None
    return {"https": proxy} if proxy else {}


def _is_https(url: str) -> bool:
    return url.lower().startswith("https:")


def _reason(error: BaseException, url: str, timeout: float) -> str:
    """What went wrong, told from the error and its causes without their own texts, which hold URLs."""
    if _is_https(url) and not _can_read_certificates():
        return f"the CA file {_ca_path()} cannot be read"
    causes = _causes(error)
    for cause in causes:
        for kind, reason in REASONS.items():
            if isinstance(cause, kind):
                return reason.format(error=cause, timeout=timeout)
    system = [cause.strerror for cause in causes if isinstance(cause, OSError) and cause.strerror]
    return f"the request failed: {system[0] if system else type(causes[0]).__name__}"


def _causes(error: BaseException) -> list[BaseException]:
    """The error and what led to it, the first cause first."""
    causes: list[BaseException] = []
    cause: object = error
    while isinstance(cause, BaseException) and cause not in causes:
        causes.insert(0, cause)
        cause = cause.__cause__ or cause.__context__ or (cause.args or [None])[0]  # urllib3 wraps some as an argument
    return causes


def _can_read_certificates() -> bool:
    try:
        _load_certificates(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    except OSError:
        return False
    return True


def _load_certificates(context: ssl.SSLContext) -> None:
    path = _ca_path()
    context.load_verify_locations(**{"capath" if Path(path).is_dir() else "cafile": path})


class _NoConnection(OSError):
    """A connection could not be made. `str()` may be shown."""


NOT_SENT = (_NoConnection, ssl.SSLCertVerificationError, ProxyError)  # causes from before the request was sent

REASONS: dict[type[Exception], str] = {  # the first that fits
    _NoConnection: "{error}",
    ssl.SSLCertVerificationError: "the certificate is not accepted: {error.verify_message}",
    ssl.SSLError: "TLS failed: {error.strerror}",
    TimeoutError: "no answer within {timeout:g} s",
    ConnectionError: "the connection was closed without an answer",
    http.client.HTTPException: "the answer is not HTTP",
    ProxyError: "the proxy does not let the connection through",
    InvalidProxyURL: "the proxy that the environment names cannot be used",
    InvalidSchema: "the proxy that the environment names cannot be used",  # our own URLs' schemes are valid
}


class _ThisThread(threading.local):
    deadline = 0.0  # of the call under way, as time.monotonic() tells it

    def remaining(self) -> float:
        """The seconds that the call has left.

        :raises TimeoutError: if it has none
        """
        seconds = self.deadline - time.monotonic()
        if seconds <= 0:
            raise TimeoutError
        return seconds


_this_thread = _ThisThread()


class _Socket(socket.socket):
    """A socket whose every operation ends with the deadline of this thread's call."""

    def recv(self, *args: Any) -> bytes:
        self.settimeout(_this_thread.remaining())
        return super().recv(*args)

    def recv_into(self, *args: Any) -> int:
        self.settimeout(_this_thread.remaining())
        return super().recv_into(*args)

    def send(self, *args: Any) -> int:
        self.settimeout(_this_thread.remaining())
        return super().send(*args)

    def sendall(self, *args: Any) -> None:
        self.settimeout(_this_thread.remaining())
        super().sendall(*args)


class _TLSSocket(_Socket, ssl.SSLSocket):
    def do_handshake(self, block: bool = False) -> None:
        self.settimeout(_this_thread.remaining())
        super().do_handshake(block)


def _connect(connection: HTTPConnection) -> _Socket:
    """Connect to the first of the host's addresses that answers, all of them within CONNECT_SECONDS."""
    try:
        addresses = socket.getaddrinfo(connection.host, connection.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        addresses = []
    reason = f"the name {connection.host} is not known"
    seconds = min(CONNECT_SECONDS, _this_thread.remaining())
    for family, kind, protocol, _, address in addresses:
        sock = _Socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(seconds / len(addresses))
            sock.connect(address)
            return sock
        except TimeoutError:
            reason = f"no connection within {round(seconds, 1):g} s"
        except ConnectionRefusedError:
            reason = "the connection was refused"
        except OSError as error:
            reason = f"no connection: {error.strerror}"
        sock.close()
    raise _NoConnection(f"the proxy: {reason}" if connection.proxy else reason)


class _Connection(HTTPConnection):
    _new_conn = _connect


class _TLSConnection(HTTPSConnection):
    _new_conn = _connect


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TLSPool(HTTPSConnectionPool):
    ConnectionCls = _TLSConnection


class _Adapter(HTTPAdapter):
    """requests' adapter, with the connections above."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        self._context = create_urllib3_context()
        self._context.sslsocket_class = _TLSSocket
        super().init_poolmanager(*args, **kwargs, ssl_context=self._context)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TLSPool}

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> ProxyManager:
        if proxy not in self.proxy_manager:
            _load_certificates(self._context)  # urllib3 does it only for the connection inside the tunnel
        contexts = {"ssl_context": self._context, "proxy_ssl_context": self._context}
        manager: ProxyManager = super().proxy_manager_for(proxy, **kwargs, **contexts)
        manager.pool_classes_by_scheme = {"http": _Pool, "https": _TLSPool}
        return manager


class _Session(requests.Session):
    """A session that takes no credentials from the environment, keeps no cookies and leaves redirects alone."""

    def __init__(self) -> None:
        super().__init__()
        self.trust_env = False
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        for scheme in ("https://", "http://"):
            self.mount(scheme, _Adapter(pool_connections=1, pool_maxsize=1))

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Find none: requests would read the whole body of a redirect, even of one that it is not to follow."""
