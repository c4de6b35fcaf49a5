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
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote

from config import IconikConfig
from errors import ListenerError
from text import one_line
from transport import Answer, Transport, TransportError
from version import __version__

MAX_RETRY_AFTER = 3600.0  # seconds
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
    """iconik's API for one application. Any number of threads may share it.

    Every method raises an IconikError if the call did not succeed.
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
        asset = self._call("GET", f"assets/v1/assets/{quote(asset_id, safe='')}/", "can_read_assets")
        if str(asset.get("id")).lower() != asset_id:  # anything else could be read as "not analyzed yet"
            raise IconikUnavailable("iconik answered 200 without the asset")
        return asset

    def analyze(self, asset_id: str) -> str | None:
        """Start an analyze job, which iconik bills. Returns the job's UUID; None if the answer does not name it."""
        path = f"transcode/v1/analyze/assets/{quote(asset_id, safe='')}/{self._profile}"
        job_id = self._call("POST", path, "can_analyze_content", body={}).get("id")
        return one_line(job_id) if isinstance(job_id, str) else None

    def has_closed_proxy(self, asset_id: str) -> bool:
        """Whether one of the asset's proxies is CLOSED."""
        path = f"files/v1/assets/{quote(asset_id, safe='')}/proxies/"
        query = {"per_page": str(PAGE_SIZE), "generate_signed_url": "false"}
        while True:
            proxies = self._list("GET", path, "can_read_proxies", query)
            if any(proxy.get("status") == "CLOSED" for proxy in proxies):
                return True
            last_id = str(proxies[-1].get("id")) if len(proxies) == PAGE_SIZE else None
            if last_id is None or last_id == query.get("last_id"):
                return False
            query["last_id"] = last_id

    def assets_created(self, since: str, until: str) -> Iterator[list[Json]]:
        """The assets created in that time (UTC, ISO 8601), oldest first, in pages: `id`, `title`, `date_created`.

        An asset may come twice, on two pages.
        """
        body = _search_body(since, until)
        while page := self._search(body, 1):
            yield page
            if len(page) < PAGE_SIZE:
                return
            after, date = page[-1].get("_sort"), str(page[-1].get("date_created"))
            if not after or after == body.get("search_after"):
                raise IconikUnavailable("iconik's search does not lead to its next page")
            if len(after) < 2:  # only the date: search_after would skip the rest of those created at that moment
                yield from self._assets_created_at(date)
            body["search_after"] = after

    def _assets_created_at(self, date: str) -> Iterator[list[Json]]:
        number = 1
        while page := self._search(_search_body(date, date), number):
            yield page
            number += 1

    def count_assets_created(self, since: str, until: str) -> int:
        """How many assets were created in that time (UTC, ISO 8601)."""
        query = {"per_page": "1", **SEARCH_QUERY}
        total = self._call("POST", "search/v1/search/", "can_search", query, _search_body(since, until)).get("total")
        return total if isinstance(total, int) else 0

    def failed_analyze_jobs(self, since: str) -> Iterator[list[Json]]:
        """The ANALYZE jobs that failed since then (UTC, ISO 8601), in pages: `id`, `object_id`, `error_message`, …"""
        query = {"type": "ANALYZE", "status": "FAILED", "object_type": "assets", "date_modified": since}
        query |= {"sort": "date_modified,asc", "per_page": str(PAGE_SIZE), "facets": "false"}
        number = 1
        while page := self._list("GET", "jobs/v1/jobs/", "can_read_jobs", query | {"page": str(number)}):
            yield page
            if len(page) < PAGE_SIZE:
                return
            number += 1

    def automations(self) -> list[Json]:
        """iconik's own automations: `name`, `status`, `triggers`, `actions`."""
        return self._list("GET", "automations/v1/automations/", "can_read_automations")

    def user(self) -> str:
        """Who the credentials belong to: an e-mail address or, failing that, a name or a UUID."""
        user = self._call("GET", "users/v1/users/current/", "")
        return one_line(str(user.get("email") or user.get("first_name") or user.get("id")))

    def roles(self) -> set[str]:
        """The roles that the credentials have."""
        roles = self._call("GET", "users/v1/users/current/roles/", "").get("objects")
        return {role for role in roles if isinstance(role, str)} if isinstance(roles, list) else set()

    def analysis_profiles(self) -> list[Json]:
        """The analysis profiles: `id`, `name`, `enabled`, `is_default`."""
        return self._list("GET", "files/v1/analysis/profiles/", "", {"per_page": str(PAGE_SIZE)})

    def webhooks(self) -> list[Json]:
        """The webhook definitions, as in iconik's WebhookSchema."""
        return self._list("GET", "notifications/v1/webhooks/", "can_read_webhooks")

    def save_webhook(self, webhook: Json, webhook_id: str | None = None) -> None:
        """Create a webhook definition, or update the one with that id."""
        method, path = ("PUT", f"{quote(webhook_id, safe='')}/") if webhook_id else ("POST", "")
        self._call(method, f"notifications/v1/webhooks/{path}", "can_write_webhooks", body=webhook, may_be_empty=True)

    def delete_webhook(self, webhook_id: str) -> None:
        """Delete a webhook definition."""
        path = f"notifications/v1/webhooks/{quote(webhook_id, safe='')}/"
        self._call("DELETE", path, "can_delete_webhooks", may_be_empty=True)

    def _search(self, body: Json, page: int) -> list[Json]:
        query = {"per_page": str(PAGE_SIZE), "page": str(page), **SEARCH_QUERY}
        return self._list("POST", "search/v1/search/", "can_search", query, body)

    def _list(
        self, method: str, path: str, role: str, query: Mapping[str, str] | None = None, body: Json | None = None
    ) -> list[Json]:
        """The `objects` of an answer. iconik answers 404 where there are none, or no such page."""
        try:
            objects = self._call(method, path, role, query, body).get("objects")
        except IconikRefused as error:
            if error.status != 404:
                raise
            return []
        if not isinstance(objects, list):
            raise IconikUnavailable("iconik answered 200 without the list")
        return [one for one in objects if isinstance(one, dict)]

    def _call(
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
        if content is None and answer.status != 201 and not may_be_empty:
            raise IconikUnavailable(f"iconik answered {answer.status} without a JSON object", status=answer.status)
        return content or {}


SEARCH_QUERY = {"generate_signed_url": "false", "save_search_history": "false"}


def _search_body(since: str, until: str) -> Json:
    return {
        "doc_types": ["assets"],
        "filter": {"operator": "AND", "terms": [{"name": "date_created", "range": {"min": since, "max": until}}]},
        "sort": [{"name": "date_created", "order": "asc"}],
        "include_fields": ["id", "title", "date_created"],
    }


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
    message = _message(content) or one_line(answer.reason)
    retry_after = _retry_after(answer.headers.get("Retry-After"))
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
    return kind(summary, message, status=status, retry_after=retry_after)


def _message(content: Json | None) -> str:
    """iconik's own words: {"errors": ["…"]} or {"errors": {"field": "…"}}."""
    errors = (content or {}).get("errors")
    if isinstance(errors, dict):
        errors = [f"{field}: {error}" for field, error in errors.items()]
    if not isinstance(errors, list):
        errors = [errors] if errors else []
    return one_line("; ".join(str(error) for error in errors))


def _retry_after(value: str | None) -> float | None:
    """Seconds from now, read from seconds or an HTTP date; None unless that lies in the future."""
    try:
        seconds = float(value or "")
    except ValueError:
        try:
            date = parsedate_to_datetime(value or "")
        except (ValueError, TypeError, OverflowError):
            return None
        date = date if date.tzinfo else date.replace(tzinfo=timezone.utc)
        seconds = (date - datetime.now(timezone.utc)).total_seconds()
    return min(seconds, MAX_RETRY_AFTER) if seconds > 0 else None
