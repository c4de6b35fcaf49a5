"""A stand-in for iconik over real HTTP on this machine, for the demo, the tests and rehearsals by hand.

It answers the calls that the listener makes, delivers to the webhooks that are defined at it, and keeps count:
each analyze call that it takes is one more job, as iconik would bill it. `python -m sandbox [PORT]` runs it by itself.
"""

import json
import random
import re
import sys
import threading
import time
import uuid
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from http.client import responses
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from operator import itemgetter
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import requests

Json = dict[str, Any]
Handler = Callable[..., Json]
ANALYZE = "/API/transcode/v1/analyze/assets/<asset_id>/"
CHUNK_BYTES = 65536
DEFAULT_PORT = 9000
DELIVERY_SECONDS = 30.0
DISABLE_AFTER_SECONDS = 5 * 3600.0
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
FAILURE = ("first_failed_at", "last_error")  # the fields of a webhook that only iconik writes
MAX_JOBS_PER_PAGE = 100
ROUTES: list[tuple[str, re.Pattern[str], str, int, Handler]] = []  # method, path, role, status of success, handler
SEARCH_SORT = [{"name": "date_created", "order": "asc"}]
TIME = r"\d{4}-\d\d-\d\dT[\d:.]+"  # a call that is repeated may ask about another time
WEBHOOKS = "/API/notifications/v1/webhooks/"


@dataclass
class Fault:
    """What goes wrong with the next `times` requests whose "METHOD /path?query" contains `match`."""

    match: str = ""
    status: int | None = 503  # None: the request is done and gets its own answer, which may be late or drip
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b'{"errors": ["Out of order"]}'
    after_work: bool = False  # the request is done all the same; only its answer goes wrong
    work_delay: float = 0  # with after_work: it is done only this many seconds later, whatever was answered before
    cut: bool = False  # the connection ends without an answer
    hang: bool = False  # no answer comes as long as the sandbox runs
    delay: float = 0  # seconds until the answer begins
    drip: float = 0  # seconds between two bytes of the answer
    drip_from: str = "status"  # "status", "headers" or "body": what comes before that is sent at once
    endless: bool = False  # the body is repeated until the client goes away
    share: float = 1  # the probability that a request which matches meets the fault
    times: float = 1


NO_FAULT = Fault(status=None)
TOO_MANY = Fault(status=429, headers={"Retry-After": "1"}, body=b'{"errors": ["Too many requests"]}')


class Refusal(Exception):
    """An answer other than success, with iconik's `errors`."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def route(method: str, path: str, role: str = "", status: int = 200) -> Callable[[Handler], Handler]:
    """Make a method of the sandbox answer a call. What stands for a `<name>` in the path becomes that argument."""
    pattern = re.compile(re.sub(r"<(\w+)>", r"(?P<\1>[^/]+)", path))

    def add(handler: Handler) -> Handler:
        ROUTES.append((method, pattern, role, status, handler))
        return handler

    return add


class Sandbox:
    """The stand-in, while in its `with`. Its attributes are iconik's state, free to be read and changed."""

    app_id = "11111111-2222-3333-4444-555555555555"
    auth_token = "sandbox-token"  # noqa: S105 it protects nothing

    def __init__(self, port: int = 0, verbose: bool = False, clock: Callable[[], float] = time.time) -> None:
        """Take the port, or for 0 any that is free. Raises OSError if it is taken."""
        self.assets: dict[str, Json] = {}
        self.proxies: dict[str, list[Json]] = {}  # by asset
        self.jobs: list[str] = []  # the asset of each job, in the order in which they were started
        self.job_details: dict[str, Json] = {}  # the jobs by their own ids
        self.latest_job: dict[str, str] = {}  # the id of each asset's last job
        self.webhooks: dict[str, Json] = {}
        self.profiles: list[Json] = []
        self.automations: list[Json] = []
        self.roles = {role for _, _, role, _, _ in ROUTES if role}
        self.sort_keys: tuple[str, ...] = ("date_created", "id")  # what the `_sort` of a search holds
        self.makes_up_assets = False  # each that is asked for
        self.disable_after = DISABLE_AFTER_SECONDS
        self.requests: list[str] = []  # "METHOD /path?query"
        self.deliveries: list[tuple[str, str, int]] = []  # a webhook's path, object_id, the answer's status or 0
        self.faults: list[Fault] = []
        self.asset_faults: dict[str, Fault] = {}  # what goes wrong with every request whose path names that id
        self.fail_each_once: Fault | None = None  # what goes wrong with each different call, the first time
        self.rate_limit: float | None = None  # requests a second; past that 429
        self.latency = 0.0  # seconds
        self.random = random.Random(1)  # noqa: S311 it decides about each fault's share, the same in every run
        self.verbose = verbose
        self.changed = threading.Condition()
        self.stopping = threading.Event()
        self._clock = clock
        self._failed_once: set[str] = set()
        self._recent: deque[float] = deque()  # when the requests of the last second came
        self._job_changes = 0
        self._results: dict[str, tuple[Any, list[Any]]] = {}
        self._server = _HttpServer(("127.0.0.1", port), _RequestHandler)
        self._server.sandbox = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "Sandbox":
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()

    def wait_for(self, condition: Callable[[], bool], seconds: float = 20) -> bool:
        """Wait until `condition` holds. It is tried after each request and each delivery."""
        with self.changed:
            return self.changed.wait_for(condition, seconds)

    # What happens in iconik, and the webhooks that it sends then.

    def create_asset(self, title: str, asset_id: str | None = None, *, send: bool = True, **fields: Any) -> str:
        """Add an asset, whose `fields` (type, status, analyze_status, date_created …) may be given. Returns its id."""
        asset_id = asset_id or str(uuid.uuid4())
        asset = {"id": asset_id, "title": title, "type": "ASSET", "status": "ACTIVE", "analyze_status": "N/A"}
        self.assets[asset_id] = {**asset, "date_created": self._now(), **fields}
        if send:
            self.send("create", "entity", asset_id, self.assets[asset_id])
        return asset_id

    def set_proxy(self, asset_id: str, status: str = "CLOSED", *, send: bool = True) -> None:
        """Give the asset one more proxy."""
        proxy = {"id": str(uuid.uuid4()), "asset_id": asset_id, "status": status}
        self.proxies.setdefault(asset_id, []).append(proxy)
        if send:
            self.send("update", "proxies", asset_id, proxy)

    def start_job(self, asset_id: str) -> str:
        """Start an analyze job, as a person or an automation may do too. Returns its id."""
        job_id, now = str(uuid.uuid4()), self._now()
        job = {"id": job_id, "object_id": asset_id, "object_type": "assets", "type": "ANALYZE", "error_message": ""}
        self.job_details[job_id] = {**job, "date_created": now}
        self.jobs.append(asset_id)
        self.latest_job[asset_id] = job_id
        self._set_job(job_id, "READY", "REQUESTED")
        return job_id

    def finish_job(self, job_id: str) -> None:
        """Let a job succeed."""
        self._set_job(job_id, "FINISHED", "DONE")

    def fail_job(self, job_id: str, message: str = "The file cannot be decoded") -> None:
        """Let a job fail."""
        self._set_job(job_id, "FAILED", "FAILED", message)

    def _set_job(self, job_id: str, status: str, analyze_status: str, message: str = "") -> None:
        job = self.job_details[job_id]
        job.update(status=status, error_message=message, date_modified=self._now())
        self.assets[job["object_id"]]["analyze_status"] = analyze_status
        self._job_changes += 1

    def register(self, base_url: str, headers: dict[str, str] | None = None) -> None:
        """Define the listener's two webhooks, as a person would in iconik's admin pages."""
        kinds = [("create", "create", "entity", ""), ("proxy", "update", "proxies", 'data.status="CLOSED"')]
        for path, operation, realm, query in kinds:
            webhook = {"url": f"{base_url}/{path}", "event_type": "assets", "operation": operation, "realm": realm}
            self._save_webhook({**webhook, "query": query, "status": "ENABLED", "headers": headers or {}})

    def disable_failing_webhooks(self) -> None:
        """Do what iconik does after five hours of failing."""
        for webhook in list(self.webhooks.values()):
            if webhook["status"] == "FAILING":
                webhook["status"] = "DISABLED"

    def send(self, operation: str, realm: str, object_id: str, data: Json) -> None:
        """POST the event once, as iconik does, to every webhook that is for it."""
        event = {"data": data, "event_type": "assets", "object_id": object_id, "operation": operation, "realm": realm}
        event["system_domain_id"] = "bf0b8c12-7ccc-11e7-8d93-0a580a00022b"
        for webhook in list(self.webhooks.values()):
            if _is_for(webhook, event):
                self._deliver(webhook, event)

    def _deliver(self, webhook: Json, event: Json) -> None:
        url, status, error = webhook["url"], 0, ""
        try:
            with requests.Session() as session:
                session.trust_env = False  # no http_proxy: the listener is on this machine
                options: Json = {"timeout": DELIVERY_SECONDS, "allow_redirects": False}
                answer = session.post(url, json=event, headers=webhook.get("headers"), **options)
            status = answer.status_code
            error = "" if 200 <= status < 300 else f"{status} {answer.reason}"
        except (requests.RequestException, ValueError) as failure:
            error = type(failure).__name__
        with self.changed:
            self._note_delivery(webhook, error)
            self.deliveries.append((urlsplit(url).path, event["object_id"], status))
            self.changed.notify_all()
        if self.verbose:
            print(f"Webhook to {url}: {error or status}. It is {webhook['status']}", flush=True)

    def _note_delivery(self, webhook: Json, error: str) -> None:
        """Let a success put a webhook back to ENABLED, and failures disable it in the end."""
        if webhook["status"] not in ("ENABLED", "FAILING"):
            return  # it was disabled meanwhile
        if not error:
            webhook.update(status="ENABLED", first_failed_at=None, last_error=None)
            return
        first_failed_at = webhook.get("first_failed_at") or self._now()
        is_disabled = self._clock() - _milliseconds(first_failed_at) / 1000 >= self.disable_after
        status = "DISABLED" if is_disabled else "FAILING"
        webhook.update(status=status, first_failed_at=first_failed_at, last_error=error)

    # The calls of the API. Each returns the body of its answer.

    @route("POST", ANALYZE, "can_analyze_content", status=201)
    @route("POST", f"{ANALYZE}profiles/<profile_id>/", "can_analyze_content", status=201)
    def analyze(self, query: Json, body: Json, asset_id: str, profile_id: str = "default") -> Json:
        self._asset(asset_id)
        if profile_id not in ("default", *(profile["id"] for profile in self.profiles)):
            raise Refusal(400, "No such analysis profile")
        return self.job_details[self.start_job(asset_id)]

    @route("GET", "/API/assets/v1/assets/<asset_id>/", "can_read_assets")
    def read_asset(self, query: Json, body: Json, asset_id: str) -> Json:
        return self._asset(asset_id)

    @route("GET", "/API/files/v1/assets/<asset_id>/proxies/", "can_read_proxies")
    def list_proxies(self, query: Json, body: Json, asset_id: str) -> Json:
        proxies = self.proxies.get(asset_id)
        if not proxies:
            raise Refusal(404, "Proxies for this asset doesn't exist")
        start = [proxy["id"] for proxy in proxies].index(query["last_id"]) + 1 if "last_id" in query else 0
        return {"objects": proxies[start : start + int(query.get("per_page", 10))]}

    @route("POST", "/API/search/v1/search/", "can_search")
    def search(self, query: Json, body: Json) -> Json:
        """The assets created in a range of time, both ends included, by date and id; a time is cut to milliseconds."""
        [term] = body["filter"]["terms"]
        if term["name"] != "date_created" or body.get("sort", SEARCH_SORT) != SEARCH_SORT:
            raise Refusal(400, "The stand-in searches and sorts by date_created only")
        bounds, after = term["range"], tuple(body.get("search_after", ()))
        is_first_page = not after and query.get("page", "1") == "1"
        order = self._found("assets", len(self.assets), is_first_page, self._assets_by_date)
        start = bisect_left(order, (_milliseconds(bounds["min"]),)) if "min" in bounds else 0
        end = bisect_left(order, (_milliseconds(bounds["max"]) + 1,)) if "max" in bounds else len(order)
        first = max(start, bisect_right(order, after, key=lambda key: key[: len(after)])) if after else start
        page = _page(range(first, max(first, end)), query)
        page["objects"] = [self._document(order[index], body.get("include_fields")) for index in page["objects"]]
        return {**page, "total": max(0, end - start)}

    def _assets_by_date(self) -> list[tuple[int, str]]:
        return sorted((_milliseconds(asset["date_created"]), asset["id"]) for asset in list(self.assets.values()))

    def _document(self, key: tuple[int, str], fields: list[str] | None) -> Json:
        """An asset as a search finds it."""
        asset, keys = self.assets[key[1]], dict(zip(("date_created", "id"), key))
        document = {name: value for name, value in asset.items() if not fields or name in fields}
        return {**document, "_sort": [keys[name] for name in self.sort_keys]}

    @route("GET", "/API/jobs/v1/jobs/", "can_read_jobs")
    def list_jobs(self, query: Json, body: Json) -> Json:
        if int(query.get("per_page", 10)) > MAX_JOBS_PER_PAGE:
            raise Refusal(400, f"per_page: at most {MAX_JOBS_PER_PAGE}")
        wanted = {name: value for name, value in query.items() if name not in ("page", "per_page", "facets")}
        version, is_first_page = (wanted, self._job_changes), query.get("page", "1") == "1"
        return _page(self._found("jobs", version, is_first_page, lambda: self._find_jobs(**wanted)), query)

    def _find_jobs(self, sort: str = "", date_modified: str = "*", **fields: str) -> list[Json]:
        """The jobs with these fields. One date means since then, two with a `;` between them a range."""
        since, _, until = date_modified.partition(";")
        first = _milliseconds(since) if since != "*" else float("-inf")
        last = _milliseconds(until) if until not in ("", "*") else float("inf")
        found = [job for job in list(self.job_details.values()) if all(job[name] == fields[name] for name in fields)]
        found = [job for job in found if first <= _milliseconds(job["date_modified"]) <= last]
        for name, _, order in reversed([part.partition(",") for part in sort.split(";") if part]):
            found.sort(key=itemgetter(name), reverse=order == "desc")
        return found

    @route("GET", "/API/automations/v1/automations/", "can_read_automations")
    def list_automations(self, query: Json, body: Json) -> Json:
        return {"objects": self.automations, "page": 1, "pages": 1}

    @route("GET", "/API/files/v1/analysis/profiles/")
    def list_profiles(self, query: Json, body: Json) -> Json:
        return {"objects": self.profiles}

    @route("GET", "/API/users/v1/users/current/")
    def read_user(self, query: Json, body: Json) -> Json:
        return {"id": str(uuid.UUID(int=1)), "email": "listener@example.com", "first_name": "Listener"}

    @route("GET", "/API/users/v1/users/current/roles/")
    def list_roles(self, query: Json, body: Json) -> Json:
        return {"objects": sorted(self.roles)}

    @route("GET", WEBHOOKS, "can_read_webhooks")
    def list_webhooks(self, query: Json, body: Json) -> Json:
        return {"objects": list(self.webhooks.values())}

    @route("POST", WEBHOOKS, "can_write_webhooks", status=201)
    def create_webhook(self, query: Json, body: Json) -> Json:
        return self._save_webhook(body)

    @route("GET", f"{WEBHOOKS}<webhook_id>/", "can_read_webhooks")
    def read_webhook(self, query: Json, body: Json, webhook_id: str) -> Json:
        return _one(self.webhooks, "Webhook", webhook_id)

    @route("PUT", f"{WEBHOOKS}<webhook_id>/", "can_write_webhooks")
    def update_webhook(self, query: Json, body: Json, webhook_id: str) -> Json:
        return self._save_webhook(body, _one(self.webhooks, "Webhook", webhook_id))

    @route("DELETE", f"{WEBHOOKS}<webhook_id>/", "can_delete_webhooks", status=204)
    def delete_webhook(self, query: Json, body: Json, webhook_id: str) -> Json:
        return self.webhooks.pop(_one(self.webhooks, "Webhook", webhook_id)["id"])

    def _save_webhook(self, fields: Json, former: Json | None = None) -> Json:
        """Define a webhook, in the place of the former. A failure is forgotten when a person sets another status."""
        if missing := [name for name in ("event_type", "status", "url") if not fields.get(name)]:
            raise Refusal(400, f"Missing data for required field: {', '.join(missing)}")
        former = former or {"id": str(uuid.uuid4())}
        kept = ("id", *FAILURE) if fields["status"] == former.get("status") else ("id",)
        webhook = {name: value for name, value in fields.items() if name not in FAILURE}
        webhook.update((name, former[name]) for name in kept if name in former)
        self.webhooks[webhook["id"]] = webhook
        return webhook

    def _asset(self, asset_id: str) -> Json:
        if asset_id not in self.assets and self.makes_up_assets:
            self.create_asset("Made up", asset_id, send=False)
        return _one(self.assets, "Asset", asset_id)

    def _now(self) -> str:
        return datetime.fromtimestamp(self._clock(), timezone.utc).isoformat(timespec="microseconds")

    def _found(self, kind: str, version: object, is_first_page: bool, find: Callable[[], list[Any]]) -> list[Any]:
        """What `find` returns. Later pages go on in what the first page found, as long as that is the same version."""
        if is_first_page or self._results.get(kind, (None, []))[0] != version:
            self._results[kind] = version, find()
        return self._results[kind][1]

    # How requests are answered, and what goes wrong with them.

    def take_fault(self, request: str, body: bytes) -> Fault:
        """What goes wrong with this request ("METHOD /path?query")."""
        now = time.monotonic()
        while self._recent and self._recent[0] <= now - 1:
            self._recent.popleft()
        if self.rate_limit is not None and len(self._recent) >= self.rate_limit:
            return TOO_MANY
        self._recent.append(now)
        for part in request.split("?")[0].split("/") if self.asset_faults else ():
            if part in self.asset_faults:
                return self.asset_faults[part]
        for fault in self.faults:
            if fault.match in request and fault.times > 0 and (fault.share == 1 or self.random.random() < fault.share):
                fault.times -= 1
                return fault
        call = re.sub(TIME, "", unquote(f"{request} {body!r}"))
        if self.fail_each_once and call not in self._failed_once:
            self._failed_once.add(call)
            return self.fail_each_once
        return NO_FAULT

    def answer(
        self, method: str, url: str, credentials: tuple[str | None, str | None], body: bytes
    ) -> tuple[int, Json]:
        """Do what a request asks for. Returns the status and the body of the answer."""
        if credentials != (self.app_id, self.auth_token):
            return 401, {"errors": ["Token is invalid"]}
        path, query = urlsplit(url).path, dict(parse_qsl(urlsplit(url).query))
        for route_method, pattern, role, status, handler in ROUTES:
            match = pattern.fullmatch(path) if route_method == method else None
            if match and role and role not in self.roles:
                return 403, {"errors": [f"Required roles: {role}"]}
            if match:
                try:
                    return status, handler(self, query, json.loads(body or b"{}"), **match.groupdict())
                except Refusal as refusal:
                    return refusal.status, {"errors": [str(refusal)]}
                except (AttributeError, KeyError, TypeError, ValueError) as error:
                    return 400, {"errors": [f"The stand-in does not understand this call: {error!r}"]}
        return 404, {"errors": ["Not found"]}


def _is_for(webhook: Json, event: Json) -> bool:
    """Whether a webhook gets an event. Only queries of the form data.key="VALUE" count."""
    query = re.fullmatch(r'\s*data\.(\w+)\s*=\s*"(.*)"\s*', webhook.get("query") or "")
    names = ("event_type", "operation", "realm", "object_id")
    return (
        webhook["status"] in ("ENABLED", "FAILING")
        and all(webhook.get(name) in (None, "", event[name]) for name in names)
        and (query is None or event["data"].get(query[1]) == query[2])
    )


def _one(objects: dict[str, Json], kind: str, object_id: str) -> Json:
    if object_id not in objects:
        raise Refusal(404, f"{kind} {object_id} doesn't exist")
    return objects[object_id]


def _page(found: Sequence[Any], query: Json) -> Json:
    size, number = int(query.get("per_page", 10)), int(query.get("page", 1))
    pages = -(-len(found) // size)
    if number > max(pages, 1):
        raise Refusal(404, "Requested page does not exist")
    objects = list(found[(number - 1) * size : number * size])
    return {"objects": objects, "page": number, "pages": pages, "per_page": size, "total": len(found)}


@lru_cache(maxsize=1_000_000)
def _milliseconds(text: str) -> int:
    """An ISO 8601 time as milliseconds since 1970, as search engines keep it. Without an offset it is UTC."""
    date = datetime.fromisoformat(text.replace("Z", "+00:00"))
    return ((date if date.tzinfo else date.replace(tzinfo=timezone.utc)) - EPOCH) // timedelta(milliseconds=1)


class _HttpServer(ThreadingHTTPServer):
    sandbox: Sandbox
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no error here: the tests kill some."""


class _RequestHandler(BaseHTTPRequestHandler):
    server: _HttpServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or bytes that drip would be sent together

    def do_GET(self) -> None:
        sandbox = self.server.sandbox
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        time.sleep(sandbox.latency)
        status, answer = 0, b""
        with sandbox.changed:
            sandbox.requests.append(f"{self.command} {self.path}")
            fault = sandbox.take_fault(sandbox.requests[-1], body)
            if fault.after_work and fault.work_delay:
                timer = threading.Timer(fault.work_delay, self._work, (self.command, self.path, body))
                timer.daemon = True
                timer.start()
            elif fault.after_work or fault.status is None:
                status, answer = self._work(self.command, self.path, body)
            sandbox.changed.notify_all()
        sandbox.stopping.wait(None if fault.hang else fault.delay)
        if fault.hang or fault.cut:
            self.close_connection = True
        elif fault.status is None:
            self._send(status, answer, fault)
        else:
            self._send(fault.status, fault.body, fault)

    do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815 the names are http.server's

    def _work(self, method: str, url: str, body: bytes) -> tuple[int, bytes]:
        sandbox = self.server.sandbox
        with sandbox.changed:
            status, answer = sandbox.answer(method, url, (self.headers["App-ID"], self.headers["Auth-Token"]), body)
            sandbox.changed.notify_all()
            return status, b"" if status == 204 else json.dumps(answer).encode()

    def _send(self, status: int, body: bytes, fault: Fault) -> None:
        headers = {"Content-Type": "text/html" if body.startswith(b"<") else "application/json", **fault.headers}
        if fault.endless or "Transfer-Encoding" in headers or "Content-Length" in headers:
            headers["Connection"] = "close"  # the body may not end where the headers say
            self.close_connection = True
        else:
            headers["Content-Length"] = str(len(body))
        status_line = f"HTTP/1.1 {status} {responses.get(status, '')}\r\n"
        head = status_line + "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n"
        if self.server.sandbox.verbose:
            print(f"{self.requestline} -> {status}", flush=True)
        data, at_once = head.encode("latin-1") + body, {"status": 0, "headers": len(status_line), "body": len(head)}
        self._write(data[: at_once[fault.drip_from]], 0)
        self._write(data[at_once[fault.drip_from] :], fault.drip)
        while fault.endless and not self.server.sandbox.stopping.is_set():
            self._write(body if fault.drip else body * (CHUNK_BYTES // len(body) + 1), fault.drip)

    def _write(self, data: bytes, drip: float) -> None:
        if not drip:
            self.connection.sendall(data)
            return
        for byte in data:
            self.connection.sendall(bytes([byte]))
            if self.server.sandbox.stopping.wait(drip):
                raise ConnectionAbortedError

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 the name is http.server's
        """It is silent: what is worth a line was printed."""


def main(arguments: list[str]) -> int:
    """Run the stand-in until Ctrl-C or the end of stdin, with a line of it for each asset. Returns the exit code."""
    port = arguments[0] if arguments else str(DEFAULT_PORT)
    if len(arguments) > 1 or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        print("Usage: python -m sandbox [PORT]", file=sys.stderr)
        return 2
    try:
        sandbox = Sandbox(int(port), verbose=True)
    except OSError as error:
        print(f"Error: port {port} of 127.0.0.1: {error.strerror}. Use python -m sandbox PORT", file=sys.stderr)
        return 1
    with suppress(KeyboardInterrupt, BrokenPipeError), sandbox:
        sandbox.makes_up_assets = True
        print(f"A stand-in for iconik, on this machine only. For config.ini:\n\n[iconik]\nurl = {sandbox.url}")
        print(f"app_id = {sandbox.app_id}\nauth_token = {sandbox.auth_token}\n")
        print("Each line typed here is the title of an asset to upload. Ctrl-C ends it.", flush=True)
        for line in sys.stdin.buffer:
            if title := line.decode(errors="replace").strip():
                delivered = len(sandbox.deliveries)
                asset_id = sandbox.create_asset(title)
                sandbox.set_proxy(asset_id)
                print(f"Uploaded {asset_id}", flush=True)
                if len(sandbox.deliveries) == delivered:
                    print("No webhook is enabled for it. To define them: python app.py register URL", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
