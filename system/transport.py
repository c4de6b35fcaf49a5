"""HTTP on requests, bounded in time and size. It knows nothing of iconik.

The timeouts of requests bound each read, so that a server that drips a byte a second holds a call for ever. Here each
operation on a socket gets only the time that is left of its call.
"""

import http
import http.client
import os
import re
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import timezone
from email.utils import parsedate_to_datetime
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from requests.exceptions import InvalidProxyURL, InvalidSchema
from requests.utils import DEFAULT_CA_BUNDLE_PATH, should_bypass_proxies
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, ProxyManager
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ProxyError

from system.text import one_line

MAX_ANSWER = 16 * 1024 * 1024  # bytes of a 2xx
MAX_ERROR = 64 * 1024  # bytes of any other answer
READ_SIZE = 64 * 1024
CONNECT_SECONDS = 5.0
MAX_RETRY_AFTER = 3600.0  # seconds
TOO_LARGE = "the answer is too large"
CUT_OFF = "the answer was cut off"
# How a compressed answer is unpacked: zlib.decompressobj's wbits. Some servers leave out deflate's own header.
ZIPPED = {"gzip": (47,), "x-gzip": (47,), "deflate": (47, -15)}
IDLE_SECONDS = 30.0  # after which a connection is not used again: the server may be closing it at that moment


class TransportError(Exception):
    """No answer came. `str()` is one short line that holds no URL and no secret."""


class NotConnected(TransportError):
    """There was no connection, so nothing was sent."""


@dataclass(frozen=True)
class Answer:
    """What a server answered.

    :ivar fault: why the body is not whole: it was cut off, late, too large, compressed in a way that was not asked for,
        or a redirect's, which is left unread. Status and headers hold all the same. None if it is whole.
    """

    status: int
    reason: str
    headers: Mapping[str, str]
    body: bytes
    fault: str | None = None

    @property
    def is_whole(self) -> bool:
        return self.fault is None

    @property
    def date(self) -> float | None:
        """The server's time, its `Date`, in seconds since 1970. None if there is none, or if a cache has kept it."""
        if "Age" in self.headers:
            return None
        return _seconds_of(self.headers.get("Date", ""))

    @property
    def retry_after(self) -> float | None:
        """The seconds that Retry-After, in either of its forms, asks to wait, but at most an hour; None if none."""
        value = self.headers.get("Retry-After", "")
        try:
            seconds = float(value)
        except ValueError:
            if (date := _seconds_of(value)) is None:
                return None
            seconds = date - time.time()
        return min(seconds, MAX_RETRY_AFTER) if seconds > 0 else None


def _seconds_of(date: str) -> float | None:
    """A date of HTTP's as seconds since 1970. None if it is none."""
    try:
        parsed = parsedate_to_datetime(date)
        return (parsed if parsed.tzinfo else parsed.replace(tzinfo=timezone.utc)).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None


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
        self._context: ssl.SSLContext | None = None  # with the CA's certificates, once they could be read

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
                )
            except Exception as error:  # whatever requests, urllib3, http.client, ssl or the system raise
                kind = NotConnected if any(isinstance(cause, NOT_SENT) for cause in _causes(error)) else TransportError
                raise kind(_reason(error, self._timeout)) from None
            with closing(response):
                body, fault = _body(response, self._timeout)
            if fault or response.status_code < 200:
                session.close()  # leftover bytes must not be read as the next request's answer
            return Answer(response.status_code, response.reason or "", response.headers, body, fault)

    @contextmanager
    def _call(self) -> Iterator[None]:
        thread, now = threading.get_ident(), time.monotonic()
        outer, _this_thread.deadline = _this_thread.deadline, now + self._timeout
        with self._lock:
            self._started[thread] = now
        try:
            yield
        finally:
            _this_thread.deadline = outer
            self._local.used_at = time.monotonic()
            with self._lock:
                del self._started[thread]

    def close(self) -> None:
        """Close this thread's connection. Its next call makes another."""
        if hasattr(self._local, "session"):
            self._local.session.close()

    def _session(self) -> requests.Session:
        """This thread's session, without a connection that has been idle for too long."""
        if not hasattr(self._local, "session"):
            self._local.session, self._local.used_at = _Session(self._tls_context()), time.monotonic()
        if time.monotonic() - self._local.used_at > IDLE_SECONDS:
            self._local.session.close()
        session: requests.Session = self._local.session
        return session

    def _tls_context(self) -> ssl.SSLContext | None:
        """For all threads, because reading the CA's certificates takes longer than a call. None for plain HTTP."""
        with self._lock:
            if self._context is None and _is_https(self._url):
                self._context = _new_context()
            return self._context


def _body(response: requests.Response, timeout: float) -> tuple[bytes, str | None]:
    """The body, and why it is not whole. It is read and unpacked up to a limit: a kilobyte may hold a gigabyte."""
    status, encoding = response.status_code, _encoding(response)
    if 300 <= status < 400:
        return b"", "redirects are not followed"
    if encoding not in ("", *ZIPPED):
        return b"", f"the answer is compressed with {one_line(encoding, 40)}"
    limit = MAX_ANSWER if 200 <= status < 300 else MAX_ERROR
    body = bytearray()
    try:
        while piece := response.raw.read(READ_SIZE, decode_content=False):
            body += piece
            if len(body) > limit:
                return bytes(body[:limit]), TOO_LARGE
    except Exception as error:  # as in send()
        is_late = any(isinstance(cause, TimeoutError) for cause in _causes(error))
        return bytes(body), f"the answer did not end within {timeout:g} s" if is_late else CUT_OFF
    return _unzip(bytes(body), encoding, limit) if encoding and body else (bytes(body), None)


def _encoding(response: requests.Response) -> str:
    """How the body is compressed, although it was asked for as it is. Some servers name what is no compression."""
    names = [name.strip().lower() for name in response.headers.get("Content-Encoding", "").split(",")]
    return ", ".join(name for name in names if name not in ("", "identity", "none", "utf-8"))


def _unzip(body: bytes, encoding: str, limit: int) -> tuple[bytes, str | None]:
    for window in ZIPPED[encoding]:
        unzip = zlib.decompressobj(window)
        with suppress(zlib.error):
            text = unzip.decompress(body, limit + 1)
            return text[:limit], TOO_LARGE if len(text) > limit else None if unzip.eof else CUT_OFF
    return b"", f"the answer is said to be compressed with {encoding}, and is not"


def _proxies(url: str) -> dict[str, str]:
    """The environment's proxy for https. Plain http is never proxied: a proxy would see our secrets."""
    proxy = os.environ.get("https_proxy") or os.environ.get("HTTPS_PROXY")
    return {"https": proxy} if proxy and _is_https(url) and not should_bypass_proxies(url, no_proxy=None) else {}


def _is_https(url: str) -> bool:
    return url.lower().startswith("https:")


def _new_context() -> ssl.SSLContext:
    """Made here, because those of ssl and of urllib3 read the environment: SSLKEYLOGFILE, SSL_CERT_FILE."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.sslsocket_class = _TLSSocket
    path = os.environ.get("REQUESTS_CA_BUNDLE") or DEFAULT_CA_BUNDLE_PATH
    with suppress(OSError):  # which an SSLError is, too
        context.load_verify_locations(**{"capath" if Path(path).is_dir() else "cafile": path})
        return context
    raise _NoConnection(f"the CA file {path} cannot be read")


def _reason(error: BaseException, timeout: float) -> str:
    """What went wrong, told from the error and its causes without their own texts, which hold URLs."""
    causes = _causes(error)
    for cause in causes:
        for kind, reason in REASONS.items():
            if isinstance(cause, kind):
                return reason.format(error=cause, timeout=timeout, tls=_tls_reason(cause))
    return f"the request failed: {type(causes[0]).__name__}"


def _tls_reason(error: BaseException) -> str:
    """What OpenSSL says, without its own names and lines. Its words for an answer that is plain HTTP mislead."""
    if getattr(error, "reason", None) in NOT_TLS:
        return "that port does not speak TLS"
    words = re.sub(r"^\[[^]]*\] *| *\(_ssl\.c:\d+\)$", "", str(getattr(error, "strerror", None) or ""))
    return f"TLS failed: {one_line(words, 100)}" if words else "TLS failed"


def _causes(error: BaseException) -> list[BaseException]:
    """The error and what led to it, the first cause first."""
    causes: list[BaseException] = []
    cause: object = error
    while isinstance(cause, BaseException) and cause not in causes:
        causes.insert(0, cause)
        cause = cause.__cause__ or cause.__context__ or (cause.args or [None])[0]  # urllib3 wraps some as an argument
    return causes


class _NoConnection(OSError):
    """A connection could not be made. `str()` may be shown."""


NOT_SENT = (_NoConnection, ssl.SSLCertVerificationError, ProxyError)  # causes from before the request was sent

# What OpenSSL's versions say of an answer that is plain HTTP.
NOT_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE")
REASONS: dict[type[Exception], str] = {  # the first that fits
    _NoConnection: "{error}",
    ssl.SSLCertVerificationError: "the certificate is not accepted: {error.verify_message}",
    ssl.SSLError: "{tls}",
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


class _Response(http.client.HTTPResponse):
    def begin(self) -> None:
        """Read up to the answer itself: http.client takes all that may precede it, but 100, for the answer."""
        super().begin()
        while 100 < self.status < 200 and self.status != http.HTTPStatus.SWITCHING_PROTOCOLS:
            self.headers = self.msg = None  # type: ignore[assignment] # begin() begins only then
            super().begin()


class _Connection(HTTPConnection):
    _new_conn = _connect
    response_class = _Response


class _TLSConnection(HTTPSConnection):
    _new_conn = _connect
    response_class = _Response


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TLSPool(HTTPSConnectionPool):
    ConnectionCls = _TLSConnection


class _Adapter(HTTPAdapter):
    """requests' adapter, with the connections above, and with one context for TLS to the server and to a proxy."""

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self._context = context
        super().__init__(pool_connections=1, pool_maxsize=1)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs, ssl_context=self._context)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TLSPool}

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> ProxyManager:
        contexts = {"ssl_context": self._context, "proxy_ssl_context": self._context}
        manager: ProxyManager = super().proxy_manager_for(proxy, **kwargs, **contexts)
        manager.pool_classes_by_scheme = {"http": _Pool, "https": _TLSPool}
        return manager

    def cert_verify(self, conn: Any, *_: Any) -> None:
        """Certificates are verified with the context's, which are read once; requests would read them each time."""
        conn.cert_reqs = "CERT_REQUIRED"


class _Session(requests.Session):
    """A session that takes no credentials from the environment, keeps no cookies and leaves redirects alone."""

    def __init__(self, context: ssl.SSLContext | None) -> None:
        super().__init__()
        self.trust_env = False
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        for scheme in ("https://", "http://"):
            self.mount(scheme, _Adapter(context))

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Find none: requests would read the whole body of a redirect, even of one that it is not to follow."""
