"""Who may see the page: whoever opened the one-time link or, behind Caddy, whoever Caddy asked for a password."""

import hashlib
import hmac
import re
import secrets
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from flask import Request

from system.text import one_line

KEY_HEADER = "X-Page-Key"  # by which the page knows Caddy: other users of the machine reach its port, too
USER_HEADER = "X-Page-User"
LOCAL_HOST = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d{1,5})?")


class Access(Protocol):
    """Who may see the page."""

    def is_our_host(self, host: str) -> bool:
        """Whether the browser means this page. A foreign name may lead to this machine, too (DNS rebinding)."""

    def origin(self, host: str) -> str:
        """Where a form of ours comes from, as the browser says it in `Origin`."""

    def user(self, request: Request) -> str | None:
        """Who asks; None if they may not see the page."""

    def log_in(self, token: str) -> str | None:
        """The cookie for whoever opened the link; None if it is not a link, or was used before."""

    def hint(self) -> str:
        """What to do for somebody who may not see the page, as a sentence."""


class LinkAccess:
    """A one-time link that becomes a cookie."""

    def __init__(self, announce: Callable[[str], None]) -> None:
        """`announce`: is told the token of each link: of the first at `start`, and of the next once one was used."""
        self._announce = announce
        self._lock = threading.Lock()
        self._cookies: set[str] = set()
        self._token = ""

    def start(self) -> None:
        """Make the first link."""
        with self._lock:
            self._new_token()

    def _new_token(self) -> None:
        self._token = secrets.token_urlsafe(24)
        self._announce(self._token)

    def is_our_host(self, host: str) -> bool:
        return LOCAL_HOST.fullmatch(host) is not None

    def origin(self, host: str) -> str:
        return f"http://{host}"

    def user(self, request: Request) -> str | None:
        given = request.cookies.get(cookie_name(request), "")
        return "somebody with the link" if given in self._cookies else None

    def log_in(self, token: str) -> str | None:
        with self._lock:
            if not self._token or not hmac.compare_digest(token.encode("utf-8", "replace"), self._token.encode()):
                return None
            cookie = secrets.token_urlsafe(24)
            self._cookies.add(cookie)
            self._new_token()
            return cookie

    def hint(self) -> str:
        return "Open the link that the terminal shows. Each works once; after its use the terminal shows the next."


class ProxyAccess:
    """Caddy asks for a password, and says who gave it."""

    def __init__(self, host: str, webhook_secrets: Sequence[str]) -> None:
        """`host`: the name under which Caddy has the page, as in the address bar."""
        self._host = host.lower()
        self._keys = [proxy_key(secret) for secret in webhook_secrets]

    def is_our_host(self, host: str) -> bool:
        return host.lower() == self._host

    def origin(self, host: str) -> str:
        return f"https://{self._host}"

    def user(self, request: Request) -> str | None:
        given = request.headers.get(KEY_HEADER, "").encode("latin-1", "replace")
        is_caddy = any(hmac.compare_digest(given, key.encode()) for key in self._keys)
        user = one_line(request.headers.get(USER_HEADER, ""), 60)
        # Without a password in the Caddyfile there is no user: Caddy then sends the name of its variable as it is.
        return user if is_caddy and user and not user.startswith("{") else None

    def log_in(self, token: str) -> str | None:
        return None

    def hint(self) -> str:
        return "Caddy must ask for a password and send the page's key: see docs/page.md"


def proxy_key(webhook_secret: str) -> str:
    """By what the page knows Caddy. It says nothing about the secret that it is made from."""
    return hmac.new(webhook_secret.encode(), b"iconik-listener page", hashlib.sha256).hexdigest()[:40]


def cookie_name(request: Request) -> str:
    """The cookie's name. Cookies are shared by all ports of a machine, so it holds the browser's port."""
    _, _, port = request.headers.get("Host", "").rpartition(":")
    return f"iconik_listener_{port if port.isdigit() else 80}"
