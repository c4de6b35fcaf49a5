"""Every call to iconik, on requests. What goes wrong ends here as an error that the caller decides on."""

import json
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote

import requests

CONNECT_SECONDS = 5.0
# Clouds drop idle connections without a word; a request sent into one waits its timeout out for nothing.
IDLE_SECONDS = 30.0
LONGEST_ANSWER = 16 * 1024 * 1024  # bytes
LONGEST_RETRY_AFTER = 3600.0  # seconds
LONGEST_TITLE = 255
ITEMS_A_PAGE = 100


class IconikError(Exception):
    """A call that did not succeed. `str()` is one line for people, with iconik's own message.

    `summary` is the same without it: no id and nothing from outside.
    """

    def __init__(self, summary: str, message: str = "", *, status: int | None = None) -> None:
        super().__init__(f"{summary}: {message}" if message else summary)
        self.summary = summary
        self.status = status


class IconikDenied(IconikError):
    """401, 403: the credentials are refused, or lack the role that the call needs."""


class IconikRateLimited(IconikError):
    """429. `retry_after`: the seconds that iconik asks to wait, if it says so."""

    retry_after: float | None = None


class IconikUnavailable(IconikError):
    """No connection, no answer in time, 408, 502, 503, 504, a redirect, an answer that is not iconik's."""


class IconikBroken(IconikError):
    """Another 5xx: iconik broke down over this request."""


class IconikRefused(IconikError):
    """Another 4xx: iconik will never take this request."""


def one_line(text: str, longest: int = 200) -> str:
    """Text from outside, fit for a log and a terminal: no control characters, not too long."""
    text = "".join(char if char.isprintable() else " " for char in text[: 4 * longest])
    text = " ".join(text.split())
    return text if len(text) <= longest else text[: longest - 1] + "…"


def asset_title(asset: dict[str, Any]) -> str | None:
    """An asset's title as one line; None if it has none that is text."""
    title = asset.get("title")
    return one_line(title, LONGEST_TITLE) if isinstance(title, str) else None


class IconikClient:
    """iconik's API for one application. Any number of threads may share it; each has a session of its own.

    Every method raises an IconikError if the call did not succeed.
    """

    def __init__(
        self, url: str, app_id: str, auth_token: str, *, analysis_profile: str = "", timeout: float = 30.0
    ) -> None:
        """
        :param url: scheme and host, `https://app.iconik.io`
        :param app_id: the application token's App-ID
        :param auth_token: its Auth-Token
        :param analysis_profile: "" for iconik's choice, "default", or the profile's UUID
        :param timeout: seconds to wait for an answer
        """
        self._url = url
        self._headers = {
            "App-ID": app_id,
            "Auth-Token": auth_token,
            "Accept": "application/json",
            "Content-Type": "application/json",
            "User-Agent": "iconik-listener",
        }
        self._profile = f"profiles/{quote(analysis_profile, safe='')}/" if analysis_profile else ""
        self._timeout = timeout
        self._local = threading.local()

    def analyze(self, asset_id: str) -> str | None:
        """Start an analyze job, which iconik bills. Returns its UUID; None if the answer does not name it."""
        path = f"transcode/v1/analyze/assets/{quote(asset_id, safe='')}/{self._profile}"
        job_id = self._call("POST", path, "can_analyze_content", body={}, must_answer=False).get("id")
        return one_line(job_id) if isinstance(job_id, str) else None

    def analyze_status(self, asset_id: str) -> str:
        """The asset's analyze_status: N/A, REQUESTED, IN_PROGRESS, FAILED or DONE."""
        asset = self._call("GET", f"assets/v1/assets/{quote(asset_id, safe='')}/", "can_read_assets")
        if str(asset.get("id")).lower() != asset_id:  # to take it for N/A could have the asset analyzed twice
            raise IconikUnavailable("iconik answered 200 without the asset")
        return str(asset.get("analyze_status") or "N/A")

    def has_closed_proxy(self, asset_id: str) -> bool:
        """Whether one of the asset's proxies is CLOSED."""
        path = f"files/v1/assets/{quote(asset_id, safe='')}/proxies/"
        query = {"per_page": str(ITEMS_A_PAGE), "generate_signed_url": "false"}
        while True:
            proxies = self._list(path, "can_read_proxies", query)
            if any(proxy.get("status") == "CLOSED" for proxy in proxies):
                return True
            last_id = str(proxies[-1].get("id")) if len(proxies) == ITEMS_A_PAGE else None
            if last_id is None or last_id == query.get("last_id"):
                return False
            query["last_id"] = last_id

    def user(self) -> str:
        """Who the credentials belong to: an e-mail address, or failing that a name or UUID."""
        user = self._call("GET", "users/v1/users/current/", "")
        return one_line(str(user.get("email") or user.get("first_name") or user.get("id")))

    def roles(self) -> set[str]:
        """The roles that the credentials have."""
        answer = self._call("GET", "users/v1/users/current/roles/", "")
        roles = answer.get("objects")
        return {role for role in roles if isinstance(role, str)} if isinstance(roles, list) else set()

    def analysis_profiles(self) -> list[dict[str, Any]]:
        """The analysis profiles: `id`, `name`, `enabled`, `is_default`."""
        return self._list("files/v1/analysis/profiles/", "", {"per_page": str(ITEMS_A_PAGE)})

    def webhooks(self) -> list[dict[str, Any]]:
        """The webhook definitions, as in iconik's WebhookSchema."""
        return self._list("notifications/v1/webhooks/", "can_read_webhooks")

    def save_webhook(self, webhook: dict[str, Any], webhook_id: str | None = None) -> None:
        """Create a webhook definition, or update the one of that id."""
        path = (
            f"notifications/v1/webhooks/{quote(webhook_id, safe='')}/" if webhook_id else "notifications/v1/webhooks/"
        )
        self._call("PUT" if webhook_id else "POST", path, "can_write_webhooks", body=webhook, must_answer=False)

    def assets_created(self, since: str, until: str) -> Iterator[dict[str, Any]]:
        """The assets created in that time (UTC, ISO 8601), oldest first: `id`, `title`, `date_created`."""
        times = {"name": "date_created", "range": {"min": since, "max": until}}
        body: dict[str, Any] = {
            "doc_types": ["assets"],
            "filter": {"operator": "AND", "terms": [times]},
            "sort": [{"name": "date_created", "order": "asc"}],
            "include_fields": ["id", "title", "date_created"],
        }
        query = {"per_page": str(ITEMS_A_PAGE), "generate_signed_url": "false", "save_search_history": "false"}
        while True:
            page = self._list("search/v1/search/", "can_search", query, method="POST", body=body)
            yield from page
            if len(page) < ITEMS_A_PAGE:
                return
            after = page[-1].get("_sort")
            if not after or after == body.get("search_after"):
                raise IconikUnavailable("iconik's search does not lead to its next page")
            body["search_after"] = after

    def _list(
        self,
        path: str,
        role: str,
        query: dict[str, str] | None = None,
        *,
        method: str = "GET",
        body: dict[str, Any] | None = None,
    ) -> list[dict[str, Any]]:
        """The objects of an answer that lists some; iconik may answer 404 if there are none."""
        try:
            objects = self._call(method, path, role, query=query, body=body).get("objects")
        except IconikRefused as error:
            if error.status != 404:
                raise
            return []
        return [one for one in objects if isinstance(one, dict)] if isinstance(objects, list) else []

    def _call(
        self,
        method: str,
        path: str,
        role: str,
        *,
        query: dict[str, str] | None = None,
        body: dict[str, Any] | None = None,
        must_answer: bool = True,
    ) -> dict[str, Any]:
        """One request.

        :param role: the role that iconik documents for it
        :param must_answer: a success must come with a JSON object
        """
        deadline = time.monotonic() + self._timeout
        try:
            with self._session().request(
                method,
                f"{self._url}/API/{path}",
                params=query,
                json=body,
                headers=self._headers,
                timeout=(CONNECT_SECONDS, self._timeout),
                allow_redirects=False,  # it would carry the credentials to another host
                stream=True,
            ) as response:
                answer = _json_object(response, deadline)
        except (requests.RequestException, ValueError) as error:
            raise IconikUnavailable("iconik cannot be reached", _cause(error)) from None
        if not 200 <= response.status_code < 300:
            raise _error(response, answer, role)
        if must_answer and answer is None:
            raise IconikUnavailable(f"iconik answered {response.status_code} without a JSON object")
        return answer or {}

    def _session(self) -> requests.Session:
        now = time.monotonic()
        if not hasattr(self._local, "session"):
            self._local.session = requests.Session()
        elif now - self._local.used > IDLE_SECONDS:
            self._local.session.close()
        self._local.used = now
        session: requests.Session = self._local.session
        return session


def _json_object(response: requests.Response, deadline: float) -> dict[str, Any] | None:
    """The answer's body, if it is a JSON object that came whole, in time and not too long."""
    body = bytearray()
    try:
        for chunk in response.iter_content(64 * 1024):
            body += chunk
            if len(body) > LONGEST_ANSWER or time.monotonic() > deadline:
                return None
        answer = json.loads(body)
    except (requests.RequestException, ValueError, RecursionError):
        return None
    return answer if isinstance(answer, dict) else None


def _error(response: requests.Response, answer: dict[str, Any] | None, role: str) -> IconikError:
    status = response.status_code
    summary = f"iconik answered {status}"
    message = _message(answer) or one_line(response.reason or "")
    if status in (401, 403):
        summary += ": app_id and auth_token are not accepted" + (f", or lack the role {role}" if role else "")
        return IconikDenied(summary, message, status=status)
    if status == 429:
        limited = IconikRateLimited(summary, message, status=status)
        limited.retry_after = _retry_after(response.headers.get("Retry-After"))
        return limited
    if status < 400 or status in (408, 502, 503, 504):
        return IconikUnavailable(summary, message, status=status)
    return (IconikBroken if status >= 500 else IconikRefused)(summary, message, status=status)


def _message(answer: dict[str, Any] | None) -> str:
    """iconik's own words: {"errors": ["…"]} or {"errors": {"field": "…"}}."""
    errors = (answer or {}).get("errors")
    if isinstance(errors, dict):
        errors = [f"{field}: {error}" for field, error in errors.items()]
    if not isinstance(errors, list):
        errors = [errors] if errors else []
    return one_line("; ".join(str(error) for error in errors))


def _retry_after(value: str | None) -> float | None:
    """Seconds from now, of seconds or an HTTP date; None unless that is some time to come."""
    try:
        seconds = float(value or "")
    except ValueError:
        try:
            date = parsedate_to_datetime(value or "")
        except (ValueError, TypeError, OverflowError):
            return None
        seconds = (date.replace(tzinfo=timezone.utc) - datetime.now(timezone.utc)).total_seconds()
    return min(seconds, LONGEST_RETRY_AFTER) if seconds > 0 else None


def _cause(error: BaseException) -> str:
    """What is at the bottom of it, in short: `[Errno 111] Connection refused`.

    Only for these two kinds: others may quote a header, and with it the token.
    """
    if not isinstance(error, (requests.ConnectionError, requests.Timeout)):
        return type(error).__name__
    while error.__context__ is not None:
        error = error.__context__
    return one_line(str(error)) or type(error).__name__
