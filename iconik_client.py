"""Every call to iconik, and what can go wrong with one.

The errors, from which the caller decides what to do:

    ListenerError
    └── IconikError               a call that did not succeed
        ├── IconikRefused         a 4xx with iconik's own `errors`: it will never take this request
        ├── IconikRateLimited     429: too many requests
        └── IconikUnavailable     everything else: no answer, or one that settles nothing
            ├── IconikDenied      401, 403: the credentials, or the role that the call needs
            └── IconikServerError 5xx

What is known of iconik's API, and from where, is in docs/iconik.md.
"""

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from config import IconikConfig
from system.errors import ListenerError
from system.text import one_line
from system.transport import Answer, Transport, TransportError
from version import __version__

PAGE_SIZE = 100
Json = dict[str, Any]


class IconikError(ListenerError):
    """A call that did not succeed. `str()` is one line for people, with iconik's own message in it.

    :ivar summary: the same without iconik's message: it holds no id and nothing from outside
    :ivar status: the answer's HTTP status; None if there was no answer
    :ivar retry_after: the seconds that iconik asks to wait; None if it does not say
    """

    def __init__(
        self, summary: str, message: str = "", *, status: int | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(f"{summary}: {message}" if message else summary)
        self.summary = summary
        self.status = status
        self.retry_after = retry_after


class IconikRefused(IconikError):
    """A 4xx with iconik's own `errors` in it: iconik will never take this request."""


class IconikRateLimited(IconikError):
    """429: there were too many requests."""


class IconikUnavailable(IconikError):
    """No connection, no whole answer in time, a redirect, 408, or an answer that is not iconik's."""


class IconikDenied(IconikUnavailable):
    """401 or 403: the credentials are not accepted, lack the role that the call needs, or may not touch this asset."""


class IconikServerError(IconikUnavailable):
    """5xx."""


class IconikClient:
    """iconik's API for one application: the calls of an item's way to its job, and `call` for the others.

    Any number of threads may share it. Every method raises an IconikError if the call did not succeed.
    """

    def __init__(self, config: IconikConfig) -> None:
        headers = {
            "App-ID": config.app_id,
            "Auth-Token": config.auth_token,
            "Accept": "application/json",
            "Content-Type": "application/json",
            "User-Agent": f"iconik-listener/{__version__}",
        }
        self._transport = Transport(config.url, headers, config.timeout)
        self._profile = f"profiles/{quote(config.analysis_profile, safe='')}/" if config.analysis_profile else ""

    def longest_call(self) -> float:
        """How many seconds the longest call under way has taken so far; 0 if none is."""
        return self._transport.longest_call()

    def asset(self, asset_id: str) -> Json:
        """The asset: `id`, `title`, `type`, `status`, `analyze_status`."""
        asset = self.call("GET", f"assets/v1/assets/{quote(asset_id, safe='')}/", "can_read_assets")
        if str(asset.get("id")).lower() != asset_id:  # anything else could be read as "not analyzed yet"
            raise IconikUnavailable("iconik answered 200 without the asset", status=200)
        return asset

    def analyze(self, asset_id: str) -> str | None:
        """Start an analyze job, which iconik bills. Returns the job's UUID; None if the answer does not name it."""
        path = f"transcode/v1/analyze/assets/{quote(asset_id, safe='')}/{self._profile}"
        job_id = self.call("POST", path, "can_analyze_content", body={}).get("id")
        return one_line(job_id) if isinstance(job_id, str) else None

    def has_closed_proxy(self, asset_id: str) -> bool:
        """Whether one of the asset's proxies is CLOSED."""
        path = f"files/v1/assets/{quote(asset_id, safe='')}/proxies/"
        query = {"per_page": str(PAGE_SIZE), "generate_signed_url": "false"}
        while True:
            proxies = self.objects("GET", path, "can_read_proxies", query)
            if any(proxy.get("status") == "CLOSED" for proxy in proxies):
                return True
            last_id = str(proxies[-1].get("id")) if len(proxies) == PAGE_SIZE else None
            if last_id is None or last_id == query.get("last_id"):
                return False
            query["last_id"] = last_id

    def objects(
        self, method: str, path: str, role: str, query: Mapping[str, str] | None = None, body: Json | None = None
    ) -> list[Json]:
        """The `objects` of an answer. iconik answers 404 where there are none, or no such page."""
        try:
            objects = self.call(method, path, role, query, body).get("objects")
        except IconikRefused as error:
            if error.status != 404:
                raise
            return []
        if not isinstance(objects, list):
            raise IconikUnavailable("iconik answered 200 without the list", status=200)
        return [one for one in objects if isinstance(one, dict)]

    def call(
        self,
        method: str,
        path: str,
        role: str,
        query: Mapping[str, str] | None = None,
        body: Json | None = None,
        *,
        may_be_empty: bool = False,
    ) -> Json:
        """One request. `role` is the one that iconik documents for it, `may_be_empty` whether a 2xx needs no body."""
        try:
            answer = self._transport.send(method, f"/API/{path}", query=query, json=body)
        except TransportError as error:
            raise IconikUnavailable("iconik cannot be reached", str(error)) from None
        content = _json_object(answer)
        if not 200 <= answer.status < 300:
            raise _error(answer, content, role)
        # A 201 says that iconik did it, whatever became of the rest of the answer.
        if content is None and answer.status != 201 and (answer.body or not may_be_empty):
            raise IconikUnavailable(f"iconik answered {answer.status} without a JSON object", status=answer.status)
        return content or {}


def _json_object(answer: Answer) -> Json | None:
    """The answer's body, if it came whole and is a JSON object."""
    try:
        content = json.loads(answer.body) if answer.is_whole else None
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _error(answer: Answer, content: Json | None, role: str) -> IconikError:
    status = answer.status
    summary = f"iconik answered {status}"
    kind: type[IconikError] = IconikUnavailable
    if status in (401, 403):
        summary += ": app_id and auth_token are not accepted" + (f", or lack the role {role}" if role else "")
        summary += ", or may not touch this asset" if status == 403 else ""
        kind = IconikDenied
    elif status == 429:
        kind = IconikRateLimited
    elif status >= 500:
        kind = IconikServerError
    elif status >= 400 and status != 408 and content and content.get("errors"):
        kind = IconikRefused
    return kind(summary, _message(content) or one_line(answer.reason), status=status, retry_after=answer.retry_after)


def _message(content: Json | None) -> str:
    """iconik's own words: {"errors": ["…"]} or {"errors": {"field": "…"}}."""
    errors = (content or {}).get("errors")
    if isinstance(errors, dict):
        errors = [f"{field}: {error}" for field, error in errors.items()]
    if not isinstance(errors, list):
        errors = [errors] if errors else []
    return one_line("; ".join(str(error) for error in errors))
