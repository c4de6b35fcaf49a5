"""iconik's API: the calls that a job needs, and what can go wrong with any call.

The errors, from which the caller decides what to do:

    ListenerError
    └── IconikError               a call that did not succeed
        ├── IconikRefused         a 4xx with iconik's own `errors`
        │   └── IconikForbidden   403: a role is missing, or the user may not access this asset
        ├── IconikRateLimited     429: too many requests
        └── IconikUnavailable     everything else: no answer, or one that settles nothing
            ├── IconikDenied      401: the credentials are not accepted
            └── IconikServerError 5xx

What we know about iconik's API, and from where, is in docs/iconik.md.
"""

import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote

from config import IconikConfig
from jobs import Job, Json, newest_version
from system.errors import ListenerError
from system.runtime import Runtime
from system.text import format_utc, one_line, parse_time
from system.transport import Answer, NotConnected, Transport, TransportError
from version import __version__

PAGE_SIZE = 100
MAX_PAGES = 100_000  # of any list: iconik's own `pages` or an empty page ends it long before
SEARCH_QUERY = {"generate_signed_url": "false", "save_search_history": "false"}
NOT_ENABLED = "is not enabled"  # what iconik says in a 403 about a kind of job that the account does not have
DATE_SECONDS = 1.0  # a Date is in whole seconds
MAX_CLOCK_DIFFERENCE = 300.0  # seconds between iconik's clock and ours that are worth a warning


class IconikError(ListenerError):
    """A call that did not succeed. `str()` is one line for people, with iconik's own message in it.

    :ivar summary: the same without iconik's message: it holds no id and nothing from outside
    :ivar status: the answer's HTTP status; None if there was no answer
    :ivar retry_after: the seconds that iconik asks to wait; None if it does not say
    :ivar may_have_been_done: whether iconik may have done what it was asked to
    """

    def __init__(
        self,
        summary: str,
        message: str = "",
        *,
        status: int | None = None,
        retry_after: float | None = None,
        may_have_been_done: bool = False,
    ) -> None:
        super().__init__(f"{summary}: {message}" if message else summary)
        self.summary = summary
        self.status = status
        self.retry_after = retry_after
        self.may_have_been_done = may_have_been_done


class IconikRefused(IconikError):
    """A 4xx with iconik's own `errors` in it."""


class IconikForbidden(IconikRefused):
    """403: a role is missing, or the user may not access this asset."""


class IconikRateLimited(IconikError):
    """429: there were too many requests."""


class IconikUnavailable(IconikError):
    """No connection, no whole answer in time, a redirect, 408, or an answer that is not iconik's."""


class IconikDenied(IconikUnavailable):
    """401: the credentials are not accepted."""


class IconikServerError(IconikUnavailable):
    """5xx."""


class Sender(Protocol):
    """What sends requests: a Transport is one."""

    def send(
        self, method: str, path: str, *, query: Mapping[str, str] | None = None, json: object | None = None
    ) -> Answer:
        """Send one request. Raises TransportError if no answer came."""

    def longest_call(self) -> float:
        """How many seconds the longest call under way has taken so far."""


@dataclass(frozen=True)
class IconikJob:
    """One of iconik's jobs, as its list of jobs shows it.

    :ivar created_at: by iconik's clock, in seconds since 1970; None if iconik does not say
    :ivar message: iconik's own words about how it ended
    """

    id: str
    object_id: str
    status: str
    created_at: float | None
    message: str

    @classmethod
    def of(cls, fields: Json) -> "IconikJob":
        """Read one object of the list."""
        message = fields.get("error_message") or fields.get("message") or "iconik does not say why"
        return cls(
            id=one_line(str(fields.get("id") or fields.get("job_id") or "")),
            object_id=str(fields.get("object_id")).lower(),
            status=one_line(str(fields.get("status")), 40),
            created_at=parse_time(fields.get("date_created")),
            message=one_line(str(message)),
        )


class IconikClient:
    """iconik's API for one application: the calls that a job needs, and `call` and `pages` for the others.

    Any number of threads may share it. Every method raises an IconikError if the call did not succeed.
    """

    def __init__(self, config: IconikConfig, *, sender: Sender | None = None, runtime: Runtime | None = None) -> None:
        headers = {
            "App-ID": config.app_id,
            "Auth-Token": config.auth_token,
            "Accept": "application/json",
            "Content-Type": "application/json",
            "User-Agent": f"iconik-listener/{__version__}",
        }
        self._sender = sender or Transport(config.url, headers, config.timeout)
        self._runtime = runtime or Runtime()
        self._lock = threading.Lock()
        self._told: tuple[float, float] | None = None  # iconik's time, and when it came by the monotonic clock

    def longest_call(self) -> float:
        """How many seconds the longest call under way has taken so far; 0 if none is."""
        return self._sender.longest_call()

    def now(self) -> float:
        """iconik's time, in seconds since 1970: the `Date` of its latest JSON answer, and what has passed since.

        It may be up to a second ahead, because a Date has no fractions. Our own time as long as iconik has not said its
        own.
        """
        with self._lock:
            if self._told is None:
                return self._runtime.time()
            told, at = self._told
            return told + DATE_SECONDS + self._runtime.monotonic() - at

    @property
    def knows_time(self) -> bool:
        """Whether iconik has said its time."""
        return self._told is not None

    def clock_difference(self) -> float:
        """By how many seconds our clock is ahead of iconik's; 0 as long as that is not known."""
        return self._runtime.time() - self.now() if self.knows_time else 0.0

    def asset(self, asset_id: str) -> Json:
        """The asset: `id`, `title`, `type`, `status`, `versions`, `analyze_status`, `face_recognition_status`."""
        asset = self.call("GET", f"assets/v1/assets/{quote(asset_id, safe='')}/", "can_read_assets")
        if str(asset.get("id")).lower() != asset_id:  # anything else could be read as "not analyzed yet"
            raise IconikUnavailable("iconik answered 200 without the asset", status=200)
        return asset

    def start(
        self, job: Job, asset: Json, *, version_id: str | None = None, options: Json | None = None, profile: str = ""
    ) -> str | None:
        """Start a job for an asset, which iconik bills. Returns the job's UUID; None if the answer does not name it.

        :param version_id: the version to do it for, where the job needs one; None for the asset's newest
        :param options: iconik's options, such as `force`
        :param profile: the part of the path that chooses the profile, such as `profiles/default/`
        """
        version_id = version_id or newest_version(asset)
        if job.needs_version and not version_id:
            raise IconikUnavailable("iconik shows no version of the asset that is ACTIVE")
        ids = {"asset": quote(str(asset["id"]).lower(), safe=""), "version": quote(version_id or "", safe="")}
        path = job.path.format(**ids, profile=profile)
        if job.takes_query:
            query = {name: str(value).lower() for name, value in (options or {}).items()}
            answer = self._send("POST", path, job.role, query, None)
        else:
            answer = self._send("POST", path, job.role, None, options or {})
        return _started_job(job, answer)

    def jobs_of(self, asset_id: str, job: Job, since: float) -> list[IconikJob]:
        """iconik's jobs of that kind for an asset that were created since then (seconds since 1970, iconik's)."""
        query = {
            "object_id": asset_id,
            "type": job.iconik_type,
            "date_created": f"{format_utc(since)};*",
            "facets": "false",
        }
        found = [
            IconikJob.of(fields) for page in self.pages("jobs/v1/jobs/", "can_read_jobs", query) for fields in page
        ]
        return [one for one in found if one.object_id == asset_id and one.id]

    def document(self, asset_id: str, only: str = "") -> Json | None:
        """The asset as iconik's search finds it: `id`, `media_type`, `duration_milliseconds`. None: not found.

        :param only: a query in iconik's search language that it must match, too
        """
        body = search_body({"name": "id", "value_in": [asset_id]}, ["id", "media_type", "duration_milliseconds"])
        answer = self.search({**body, "query": only} if only else body, per_page=10)
        objects = [one for one in answer["objects"] if isinstance(one, dict)]
        return next((one for one in objects if str(one.get("id")).lower() == asset_id), None)

    def count(self, query: str) -> int:
        """How many assets a query in iconik's search language finds."""
        body = {"doc_types": ["assets"], "query": query, "include_fields": ["id"]}
        total = self.search(body, per_page=1).get("total")
        if not isinstance(total, int):
            raise IconikUnavailable("iconik's search does not say how many assets it found", status=200)
        return total

    def search(self, body: Json, *, per_page: int = PAGE_SIZE, page: int = 1) -> Json:
        """One page of a search: `objects`, `total`."""
        query = {"per_page": str(per_page), "page": str(page), **SEARCH_QUERY}
        answer = self.call("POST", "search/v1/search/", "can_search", query, body)
        if not isinstance(answer.get("objects"), list):
            raise IconikUnavailable("iconik answered 200 without the list", status=200)
        return answer

    def profiles(self) -> list[Json]:
        """The analysis profiles: `id`, `name`, `media_type`, `enabled`, `is_default`."""
        found: dict[str, Json] = {}
        last_id = ""
        for _ in range(MAX_PAGES):
            query = {"per_page": str(PAGE_SIZE), **({"last_id": last_id} if last_id else {})}
            objects = self.objects("files/v1/analysis/profiles/", "", query)
            new = {str(one.get("id")): one for one in objects if str(one.get("id")) not in found}
            if not new:
                break
            found |= new
            last_id = str(objects[-1].get("id"))
        return list(found.values())

    def closed_proxy(self, asset_id: str) -> Json | None:
        """The newest of the asset's proxies that are CLOSED: `id`, `version_id`. None: iconik shows none."""
        path = f"files/v1/assets/{quote(asset_id, safe='')}/proxies/"
        query = {"per_page": str(PAGE_SIZE), "generate_signed_url": "false"}
        closed: list[Json] = []
        for _ in range(MAX_PAGES):
            try:
                proxies = self.objects(path, "can_read_proxies", query)
            except IconikError:
                if closed:  # one is enough
                    break
                raise
            closed += [proxy for proxy in proxies if proxy.get("status") == "CLOSED"]
            # A short page may hide a proxy. That costs nothing but another poll.
            last_id = str(proxies[-1].get("id")) if len(proxies) == PAGE_SIZE else None
            if last_id is None or last_id == query.get("last_id"):
                break
            query["last_id"] = last_id
        dated = [(str(proxy.get("date_created") or ""), number) for number, proxy in enumerate(closed)]
        return closed[max(dated)[1]] if dated else None

    def pages(self, path: str, role: str, query: Mapping[str, str] | None = None) -> Iterator[list[Json]]:
        """The pages of a list that is numbered from 1: to iconik's own `pages`, or to the first empty page.

        A short page is not the last one, because iconik may leave out what we are not to see.
        """
        previous: list[Any] = []
        for number in range(1, MAX_PAGES):
            numbers = {"per_page": str(PAGE_SIZE), "page": str(number)}
            try:
                answer = self.call("GET", path, role, {**(query or {}), **numbers})
            except IconikRefused as error:
                # iconik answers 404 to a page after the last one, so an empty page and a 404 both end it here.
                if error.status == 404 and number > 1:
                    return
                raise
            objects = answer.get("objects")
            if not isinstance(objects, list):
                raise IconikUnavailable("iconik answered 200 without the list", status=200)
            if not objects or objects == previous:
                return
            yield [one for one in objects if isinstance(one, dict)]
            pages = answer.get("pages")
            if isinstance(pages, int) and number >= pages:
                return
            previous = objects

    def objects(self, path: str, role: str, query: Mapping[str, str] | None = None) -> list[Json]:
        """The `objects` of one answer. iconik answers 404 where there are none."""
        try:
            objects = self.call("GET", path, role, query).get("objects")
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
        answer = self._send(method, path, role, query, body)
        content = _json_object(answer)
        if content is None and (answer.body or not may_be_empty):
            summary = f"iconik answered {answer.status} without a JSON object"
            raise IconikUnavailable(summary, answer.fault or "", status=answer.status, may_have_been_done=True)
        return content or {}

    def _send(self, method: str, path: str, role: str, query: Mapping[str, str] | None, body: Json | None) -> Answer:
        """Send a request, and return its answer if that is a 2xx."""
        try:
            answer = self._sender.send(method, f"/API/{path}", query=query, json=body)
        except NotConnected as error:
            raise IconikUnavailable("iconik cannot be reached", str(error)) from None
        except TransportError as error:
            raise IconikUnavailable("iconik cannot be reached", str(error), may_have_been_done=True) from None
        content = _json_object(answer)
        if content is not None and answer.date is not None:
            with self._lock:
                self._told = answer.date, self._runtime.monotonic()
        if not 200 <= answer.status < 300:
            raise _error(answer, content, role)
        return answer


def search_body(term: Json, include_fields: list[str]) -> Json:
    """The body of a search for assets."""
    return {"doc_types": ["assets"], "filter": {"operator": "AND", "terms": [term]}, "include_fields": include_fields}


def _started_job(job: Job, answer: Answer) -> str | None:
    """The id of the job that an answer says was started; None if it does not name it.

    A 2xx with an id and without `errors`, a bare 201, and a 202 without a body (faces) are an acceptance. Any other 2xx
    says nothing certain.
    """
    content = _json_object(answer)
    summary = f"iconik answered {answer.status} without naming a job"
    if content and content.get("errors"):
        raise IconikUnavailable(summary, _message(content), status=answer.status, may_have_been_done=True)
    job_id = (content or {}).get("job_id") or (content or {}).get("id")
    if isinstance(job_id, str) and job_id:
        return one_line(job_id)
    is_bare = not content and answer.status == 201
    is_bare = is_bare or (job.is_answered_without_id and answer.status == 202 and not answer.body)
    if not is_bare:
        raise IconikUnavailable(summary, status=answer.status, may_have_been_done=True)
    return None


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
    is_iconiks = bool(content and content.get("errors"))
    if status == 401:
        summary, kind = f"{summary}: app_id and auth_token are not accepted", IconikDenied
    elif status == 403 and is_iconiks:
        kind = IconikForbidden
        if NOT_ENABLED not in _message(content):
            missing = f"the role {role} is missing, or " if role else ""
            summary = f"{summary}: {missing}the user may not access this"
    elif status == 429:
        kind = IconikRateLimited
    elif status >= 500:
        kind = IconikServerError
    elif status >= 400 and status != 408 and is_iconiks:
        kind = IconikRefused
    return kind(
        summary,
        _message(content) or one_line(answer.reason),
        status=status,
        retry_after=answer.retry_after,
        may_have_been_done=status in (408, 500) or (status > 500 and status != 503),
    )


def _message(content: Json | None) -> str:
    """iconik's own words: {"errors": ["…"]} or {"errors": {"field": "…"}}."""
    errors = (content or {}).get("errors")
    if isinstance(errors, dict):
        errors = [f"{field}: {error}" for field, error in errors.items()]
    if not isinstance(errors, list):
        errors = [errors] if errors else []
    return one_line("; ".join(str(error) for error in errors))
