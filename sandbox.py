"""A stand-in for iconik, over real HTTP on this machine: for the demo, the tests, and trying an installation.

It knows the calls that the listener makes, sends the webhooks that are registered with it, and keeps count:
each analyze call that it takes is one job more, as iconik would bill it. `python sandbox.py` runs it by itself.
"""

import json
import re
import sys
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import requests

Json = dict[str, Any]
ROLES = {
    "can_analyze_content",
    "can_read_assets",
    "can_read_proxies",
    "can_search",
    "can_read_webhooks",
    "can_write_webhooks",
}


@dataclass
class Fault:
    """What goes wrong with the next `times` requests whose "METHOD /path" contains `match`."""

    match: str = ""
    status: int = 503
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b'{"errors": ["Out of order"]}'
    after_work: bool = False  # the request does its work first; only its answer goes wrong
    cut: bool = False  # the connection ends without an answer
    hang: bool = False  # the answer does not come while the sandbox runs
    times: float = 1


class Refusal(Exception):
    """An answer other than success."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Sandbox:
    """The stand-in, while in its `with`. Its attributes are iconik's state, free to be looked at and changed."""

    app_id = "11111111-2222-3333-4444-555555555555"
    auth_token = "sandbox-token"  # noqa: S105 everybody may know it

    def __init__(self, port: int = 0, verbose: bool = False) -> None:
        self.assets: dict[str, Json] = {}
        self.proxies: dict[str, list[Json]] = {}
        self.jobs: list[str] = []  # the ids of the assets, one for each job taken
        self.webhooks: dict[str, Json] = {}
        self.profiles: list[Json] = []
        self.roles = set(ROLES)
        self.requests: list[str] = []  # "METHOD /path"
        self.deliveries: list[tuple[str, str, int]] = []  # a webhook's path, object_id, and the answer's status
        self.faults: list[Fault] = []
        self.latency = 0.0  # seconds
        self.makes_up_assets = False  # each that is asked for
        self.verbose = verbose
        self.changed = threading.Condition()
        self.stopping = threading.Event()
        self._server = _Server(("127.0.0.1", port), _Handler)
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
        """Wait until `condition` holds; it is looked at after each request and delivery."""
        with self.changed:
            return self.changed.wait_for(condition, seconds)

    # What happens in iconik: each sends the webhooks that are registered for it.

    def create_asset(self, title: str, asset_id: str | None = None, *, send: bool = True) -> str:
        asset_id = asset_id or str(uuid.uuid4())
        self.assets[asset_id] = {
            "id": asset_id,
            "title": title,
            "type": "ASSET",
            "status": "ACTIVE",
            "analyze_status": "N/A",
            "date_created": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
        }
        if send:
            self.send("create", "entity", asset_id, self.assets[asset_id])
        return asset_id

    def set_proxy(self, asset_id: str, status: str = "CLOSED", *, send: bool = True) -> None:
        proxy = {"id": str(uuid.uuid4()), "asset_id": asset_id, "status": status}
        self.proxies.setdefault(asset_id, []).append(proxy)
        if send:
            self.send("update", "proxies", asset_id, proxy)

    def send(self, operation: str, realm: str, object_id: str, data: Json) -> None:
        """POST the event to every webhook that is for it, once, as iconik does."""
        event = {
            "data": data,
            "event_type": "assets",
            "object_id": object_id,
            "operation": operation,
            "realm": realm,
            "system_domain_id": "bf0b8c12-7ccc-11e7-8d93-0a580a00022b",
        }
        for webhook in list(self.webhooks.values()):
            wanted = re.fullmatch(r'data\.(\w+)="(.*)"', webhook.get("query") or "")
            if (
                webhook["status"] == "ENABLED"
                and webhook.get("operation") in (None, operation)
                and webhook.get("realm") in (None, realm)
                and (wanted is None or data.get(wanted[1]) == wanted[2])
            ):
                answer = requests.post(webhook["url"], json=event, headers=webhook.get("headers"), timeout=30)
                with self.changed:
                    self.deliveries.append((urlsplit(webhook["url"]).path, object_id, answer.status_code))
                    self.changed.notify_all()

    def register(self, base_url: str, headers: dict[str, str] | None = None) -> None:
        """Define the two webhooks, as a person would in iconik's admin."""
        self._save_webhook({"url": f"{base_url}/create", "operation": "create", "realm": "entity", "headers": headers})
        self._save_webhook(
            {
                "url": f"{base_url}/proxy",
                "operation": "update",
                "realm": "proxies",
                "headers": headers,
                "query": 'data.status="CLOSED"',
            }
        )

    # The API. Each takes the path's ids, the query and the body, and returns status and answer.

    def analyze(self, ids: list[str], query: Json, body: Json) -> tuple[int, Json]:
        asset = self._asset(ids[0])
        if len(ids) > 1 and ids[1] not in ("default", *(profile["id"] for profile in self.profiles)):
            raise Refusal(400, "No such analysis profile")
        asset["analyze_status"] = "REQUESTED"
        self.jobs.append(ids[0])
        return 201, {"id": str(uuid.uuid4()), "type": "ANALYZE", "status": "READY", "title": asset["title"]}

    def read_asset(self, ids: list[str], query: Json, body: Json) -> tuple[int, Json]:
        return 200, self._asset(ids[0])

    def list_proxies(self, ids: list[str], query: Json, body: Json) -> tuple[int, Json]:
        proxies = self.proxies.get(ids[0])
        if not proxies:
            raise Refusal(404, "Proxies for this asset doesn't exist")
        start = [proxy["id"] for proxy in proxies].index(query["last_id"]) + 1 if "last_id" in query else 0
        return 200, {"objects": proxies[start : start + int(query.get("per_page", 10))]}

    def read_user(self, ids: list[str], query: Json, body: Json) -> tuple[int, Json]:
        return 200, {"id": str(uuid.UUID(int=1)), "email": "listener@example.com", "first_name": "Listener"}

    def list_roles(self, ids: list[str], query: Json, body: Json) -> tuple[int, Json]:
        return 200, {"objects": sorted(self.roles)}

    def list_profiles(self, ids: list[str], query: Json, body: Json) -> tuple[int, Json]:
        return 200, {"objects": self.profiles}

    def list_webhooks(self, ids: list[str], query: Json, body: Json) -> tuple[int, Json]:
        return 200, {"objects": list(self.webhooks.values())}

    def create_webhook(self, ids: list[str], query: Json, body: Json) -> tuple[int, Json]:
        return 201, self._save_webhook(body)

    def update_webhook(self, ids: list[str], query: Json, body: Json) -> tuple[int, Json]:
        return 200, self._save_webhook({**body, "id": ids[0]})

    def search(self, ids: list[str], query: Json, body: Json) -> tuple[int, Json]:
        [term] = body["filter"]["terms"]
        bounds = term["range"]
        found = sorted(
            (asset["date_created"], asset["id"])
            for asset in self.assets.values()
            if bounds.get("min", "") <= asset["date_created"] <= bounds.get("max", "9")
        )
        after = tuple(body.get("search_after", ()))
        page = [key for key in found if key > after][: int(query.get("per_page", 10))]
        objects = [{**self.assets[asset_id], "_sort": [date, asset_id]} for date, asset_id in page]
        return 200, {"objects": objects, "total": len(found)}

    def _asset(self, asset_id: str) -> Json:
        if asset_id not in self.assets and self.makes_up_assets:
            self.create_asset("Made up", asset_id, send=False)
        if asset_id not in self.assets:
            raise Refusal(404, f"Asset {asset_id} doesn't exist")
        return self.assets[asset_id]

    def _save_webhook(self, webhook: Json) -> Json:
        saved = {"id": str(uuid.uuid4()), "event_type": "assets", "status": "ENABLED", **webhook}
        self.webhooks[saved["id"]] = saved
        return saved


ANALYZE = r"/API/transcode/v1/analyze/assets/([^/]+)/"
WEBHOOKS = r"/API/notifications/v1/webhooks/"
Call = Callable[[Sandbox, list[str], Json, Json], tuple[int, Json]]
CALLS: list[tuple[str, str, str, Call]] = [
    ("POST", ANALYZE, "can_analyze_content", Sandbox.analyze),
    ("POST", ANALYZE + r"profiles/([^/]+)/", "can_analyze_content", Sandbox.analyze),
    ("GET", r"/API/assets/v1/assets/([^/]+)/", "can_read_assets", Sandbox.read_asset),
    ("GET", r"/API/files/v1/assets/([^/]+)/proxies/", "can_read_proxies", Sandbox.list_proxies),
    ("GET", r"/API/files/v1/analysis/profiles/", "", Sandbox.list_profiles),
    ("POST", r"/API/search/v1/search/", "can_search", Sandbox.search),
    ("GET", r"/API/users/v1/users/current/", "", Sandbox.read_user),
    ("GET", r"/API/users/v1/users/current/roles/", "", Sandbox.list_roles),
    ("GET", WEBHOOKS, "can_read_webhooks", Sandbox.list_webhooks),
    ("POST", WEBHOOKS, "can_write_webhooks", Sandbox.create_webhook),
    ("PUT", WEBHOOKS + r"([^/]+)/", "can_write_webhooks", Sandbox.update_webhook),
]


class _Server(ThreadingHTTPServer):
    sandbox: Sandbox
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that is gone is no error here: the tests kill some."""

    request_queue_size = 128


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet

    def do_GET(self) -> None:
        sandbox = self.server.sandbox
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        line = f"{self.command} {self.path}"
        time.sleep(sandbox.latency)
        with sandbox.changed:
            sandbox.requests.append(line)
            fault = next((one for one in sandbox.faults if one.match in line and one.times > 0), None)
            if fault:
                fault.times -= 1
            if fault is None or fault.after_work:
                status, answer = self._call(body)
            sandbox.changed.notify_all()
        if fault is None:
            self._answer(status, json.dumps(answer).encode())
        elif fault.hang:
            sandbox.stopping.wait()
            self.close_connection = True
        elif fault.cut:
            self.close_connection = True
        else:
            self._answer(fault.status, fault.body, fault.headers)

    do_POST = do_PUT = do_GET  # noqa: N815 the names are http.server's

    def _call(self, body: bytes) -> tuple[int, Json]:
        sandbox = self.server.sandbox
        url = urlsplit(self.path)
        if (self.headers["App-ID"], self.headers["Auth-Token"]) != (sandbox.app_id, sandbox.auth_token):
            return 401, {"errors": ["Token is invalid"]}
        for method, pattern, role, call in CALLS:
            match = re.fullmatch(pattern, url.path)
            if match and method == self.command:
                if role and role not in sandbox.roles:
                    return 403, {"errors": [f"Required roles: {role}"]}
                try:
                    return call(sandbox, list(match.groups()), dict(parse_qsl(url.query)), json.loads(body or b"{}"))
                except Refusal as refusal:
                    return refusal.status, {"errors": [str(refusal)]}
        return 404, {"errors": ["Not found"]}

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 the name is http.server's
        if self.server.sandbox.verbose:
            print(format % args, flush=True)


def main() -> None:
    with Sandbox(port=9000, verbose=True) as sandbox:
        sandbox.makes_up_assets = True
        print(f"iconik's stand-in: url = {sandbox.url}")
        print(f"app_id = {sandbox.app_id}, auth_token = {sandbox.auth_token}")
        print("A line here is the title of an asset to upload; Ctrl-C ends it.", flush=True)
        for title in sys.stdin:
            asset_id = sandbox.create_asset(title.strip())
            sandbox.set_proxy(asset_id)
            print(f"Uploaded {asset_id}: {len(sandbox.deliveries)} webhooks sent so far", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
