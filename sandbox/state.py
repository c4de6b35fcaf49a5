"""What the stand-in for iconik has: assets, jobs, webhooks and profiles, and what happens to them."""

import json
import random
import re
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import requests

from jobs import DEFAULT_JOB, JOBS
from sandbox.server import Server

Json = dict[str, Any]
DELIVERY_SECONDS = 10.0
DISABLE_AFTER_SECONDS = 5 * 3600.0
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
FAILURE = ("first_failed_at", "last_error", "last_payload")  # the fields of a webhook that only iconik writes
MEDIA_TYPES = {
    "image": ("jpg", "jpeg", "png", "tif", "tiff", "gif"),
    "audio": ("wav", "mp3", "aac", "flac"),
    "document": ("pdf", "doc", "docx", "txt"),
}
PROFILE_MEDIA_TYPES = ("image", "video", "transcription", "face_image", "face_video")


@dataclass
class Fault:
    """What goes wrong with the next `times` requests whose "METHOD /path?query" contains `match`."""

    match: str = ""
    status: int | None = 503  # None: the request is done and gets its own answer
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b'{"errors": ["Out of order"]}'
    after_work: bool = False  # the request is done all the same; only its answer goes wrong
    times: float = 1


class Refusal(Exception):
    """An answer other than success, with iconik's `errors`."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Sandbox:
    """The stand-in, while in its `with`. Its attributes are iconik's state, free to be read and changed."""

    app_id = "11111111-2222-3333-4444-555555555555"
    auth_token = "sandbox-token"  # noqa: S105 it protects nothing

    def __init__(self, port: int = 0, verbose: bool = False, clock: Callable[[], float] = time.time) -> None:
        """Take the port, or for 0 any that is free. Raises OSError if it is taken."""
        from sandbox.api import ROLES

        self.assets: dict[str, Json] = {}
        self.proxies: dict[str, list[Json]] = {}  # by asset
        self.media: dict[str, tuple[str, int]] = {}  # media type and milliseconds by asset: only the search shows them
        self.jobs: list[str] = []  # the asset of each analyze job, in the order in which they were started
        self.started: list[tuple[str, str]] = []  # the kind and the asset of each job
        self.forced: list[str] = []  # the assets of the jobs that were started with `force`
        self.used_profiles: dict[str, str] = {}  # the profile of each asset's last analyze job
        self.job_details: dict[str, Json] = {}  # the jobs by their own ids
        self.latest_job: dict[str, str] = {}  # the id of each asset's last analyze job
        self.webhooks: dict[str, Json] = {}
        self.custom_actions: dict[str, Json] = {}
        self.profiles: list[Json] = [profile(f"Default {kind}", kind, is_default=True) for kind in PROFILE_MEDIA_TYPES]
        self.automations: list[Json] = []
        self.roles = set(ROLES)
        self.sort_keys: tuple[str, ...] = ("date_created", "id")  # what the `_sort` of a search holds
        self.job_id_names: tuple[str, ...] = ("id",)  # what the answer to a job's start calls the job's id
        self.object_type: str | None = "assets"  # of jobs
        self.refuse_jobs: tuple[int, str] | None = None  # what every start of a job is answered
        self.not_enabled: set[str] = set()  # the kinds of jobs that the account does not have
        self.list_page_size = 100  # of the lists that come in pages
        self.replica_lag = 0.0  # seconds for which a new asset is a 404
        self.index_lag = 0.0  # seconds after which the search finds a new asset
        self.read_lag = 0.0  # seconds after which reads and lists show that a job was started
        self.makes_up_assets = False  # each that is asked for
        self.disable_after = DISABLE_AFTER_SECONDS
        self.requests: list[str] = []  # "METHOD /path?query"
        self.deliveries: list[tuple[str, str, int]] = []  # a webhook's path, object_id, the answer's status or 0
        self.faults: list[Fault] = []
        self.latency = 0.0  # seconds
        self.random = random.Random(1)  # noqa: S311 what it decides is the same in every run
        self.verbose = verbose
        self.changed = threading.Condition()
        self.stopping = threading.Event()
        self.job_changes = 0
        self.results: dict[str, tuple[Any, list[Any]]] = {}
        self.clock = clock
        self._later: list[tuple[float, Json, str, str]] = []  # what reads show later: when, where, field, value
        self.server = Server(self, port)
        self.url = self.server.url

    def __enter__(self) -> "Sandbox":
        self.server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self.server.stop()

    def wait_for(self, condition: Callable[[], bool], seconds: float = 20) -> bool:
        """Wait until `condition` holds. It is tried after each request and each delivery."""
        with self.changed:
            return self.changed.wait_for(condition, seconds)

    # What happens in iconik, and the webhooks that it sends then.

    def create_asset(
        self,
        title: str,
        asset_id: str | None = None,
        *,
        send: bool = True,
        media_type: str | None = None,
        duration: int = 60_000,
        **fields: Any,
    ) -> str:
        """Add an asset, whose `fields` (type, status, analyze_status, date_created …) may be given. Returns its id.

        :param media_type: known by the title's extension if it is not given
        :param duration: in milliseconds
        """
        asset_id = asset_id or str(uuid.uuid4())
        now = self.now_text()
        asset: Json = {"id": asset_id, "title": title, "type": "ASSET", "status": "ACTIVE"}
        asset |= {job.status_field: "N/A" for job in JOBS.values() if job.is_on_asset}
        asset |= {"date_created": now, "date_imported": now, "in_collections": []}
        self.assets[asset_id] = {**asset, "versions": [], **fields}
        self.new_version(asset_id)
        self.media[asset_id] = media_type or media_type_of(title), duration
        if send:
            self.send("create", "entity", asset_id, self.assets[asset_id])
        return asset_id

    def new_version(self, asset_id: str) -> str:
        """Give the asset one more version, which is new files. Returns its id."""
        versions = self.assets[asset_id]["versions"]
        statuses = {job.status_field: "N/A" for job in JOBS.values()}
        version = {"id": str(uuid.uuid4()), "status": "ACTIVE", "version_number": len(versions) + 1, **statuses}
        versions.append(version)
        return str(version["id"])

    def set_proxy(self, asset_id: str, status: str = "CLOSED", *, send: bool = True) -> None:
        """Give the asset's newest version one more proxy."""
        version_id = self.assets[asset_id]["versions"][-1]["id"] if asset_id in self.assets else None
        proxy = {"id": str(uuid.uuid4()), "asset_id": asset_id, "status": status, "version_id": version_id}
        proxy["date_created"] = self.now_text()
        self.proxies.setdefault(asset_id, []).append(proxy)
        if send:
            self.send("update", "proxies", asset_id, proxy)

    def start_job(self, asset_id: str, kind: str = DEFAULT_JOB.name) -> str:
        """Start a job, as a person or an automation may do too. Returns its id."""
        job_id, now = str(uuid.uuid4()), self.now_text()
        job = {"id": job_id, "object_id": asset_id, "object_type": self.object_type, "error_message": ""}
        self.job_details[job_id] = {**job, "type": JOBS[kind].iconik_type, "date_created": now, "kind": kind}
        self.started.append((kind, asset_id))
        if kind == DEFAULT_JOB.name:
            self.jobs.append(asset_id)
            self.latest_job[asset_id] = job_id
        self._set_job(job_id, "READY", "REQUESTED", seconds=self.read_lag)
        return job_id

    def finish_job(self, job_id: str, status: str = "FINISHED") -> None:
        """Let a job succeed."""
        self._set_job(job_id, status, "DONE")

    def fail_job(self, job_id: str, message: str = "The file cannot be decoded", status: str = "FAILED") -> None:
        """Let a job fail, or end as ABORTED or SKIPPED."""
        self._set_job(job_id, status, "FAILED" if status == "FAILED" else "N/A", message)

    def finish_all(self) -> None:
        """Let every job succeed that has not ended."""
        for job_id, job in list(self.job_details.items()):
            if job["status"] == "READY":
                self.finish_job(job_id)

    def _set_job(self, job_id: str, status: str, asset_status: str, message: str = "", seconds: float = 0.0) -> None:
        job = self.job_details[job_id]
        job.update(status=status, error_message=message, date_modified=self.now_text())
        asset, status_field = self.assets[job["object_id"]], JOBS[job["kind"]].status_field
        holders = [asset] if status_field in asset else []
        for holder in [*holders, *asset["versions"][-1:]]:
            self._later.append((self.clock() + seconds, holder, status_field, asset_status))
        self.show_due()
        self.job_changes += 1

    def show_due(self) -> None:
        """Let reads show what is old enough."""
        due = [change for change in self._later if change[0] <= self.clock()]
        self._later = [change for change in self._later if change[0] > self.clock()]
        for _, holder, name, value in due:
            holder[name] = value

    def register(self, base_url: str, headers: dict[str, str] | None = None) -> None:
        """Define the listener's two webhooks, as a person would in iconik's admin pages."""
        kinds = [("create", "create", "entity", ""), ("proxy", "update", "proxies", 'data.status="CLOSED"')]
        for path, operation, realm, query in kinds:
            webhook = {"url": f"{base_url}/{path}", "event_type": "assets", "operation": operation, "realm": realm}
            self.save_webhook({**webhook, "query": query, "status": "ENABLED", "headers": headers or {}})

    def edit_webhook(self, webhook_id: str, **fields: Any) -> None:
        """Change a webhook's definition, as a person would in iconik's admin pages."""
        webhook = self.webhooks[webhook_id]
        self.save_webhook({**webhook, **fields}, webhook)

    def save_webhook(self, fields: Json, former: Json | None = None) -> Json:
        """Define a webhook, in the place of the former. A failure is forgotten when a person sets another status."""
        if missing := [name for name in ("event_type", "status", "url") if not fields.get(name)]:
            raise Refusal(400, f"Missing data for required field: {', '.join(missing)}")
        former = former or {"id": str(uuid.uuid4())}
        kept = ("id", *FAILURE) if fields["status"] == former.get("status") else ("id",)
        webhook = {name: value for name, value in fields.items() if name not in FAILURE}
        webhook.update((name, former[name]) for name in kept if name in former)
        webhook["date_modified"] = self.now_text()
        self.webhooks[webhook["id"]] = webhook
        return webhook

    def disable_failing_webhooks(self) -> None:
        """Do what iconik does after five hours of failing."""
        for webhook in list(self.webhooks.values()):
            if webhook["status"] == "FAILING":
                webhook.update(status="DISABLED", date_modified=self.now_text())

    def send(self, operation: str, realm: str, object_id: str, data: Json) -> None:
        """POST the event once, as iconik does, to every webhook that is for it."""
        event = {"data": data, "event_type": "assets", "object_id": object_id, "operation": operation, "realm": realm}
        event["system_domain_id"] = "bf0b8c12-7ccc-11e7-8d93-0a580a00022b"
        for webhook in list(self.webhooks.values()):
            if is_for(webhook, event):
                self._deliver(webhook, event)

    def menu(self, context: str) -> dict[str, str]:
        """What a person sees in iconik's menu: the ids of the custom actions by their titles."""
        actions = self.custom_actions.values()
        return {one["title"]: one["id"] for one in actions if one["context"] == context and not one.get("disabled")}

    def run_action(
        self, action_id: str, asset_ids: Sequence[str], collection_ids: Sequence[str] = ()
    ) -> requests.Response:
        """Start a custom action, as a person does from iconik's menu. Returns the answer to it."""
        action = self.custom_actions[action_id]
        body: Json = {"context": action["context"], "action_id": action_id, "auth_token": "a-persons-own-token"}
        body |= {"asset_ids": list(asset_ids), "collection_ids": list(collection_ids)}
        body |= {"user_id": str(uuid.UUID(int=2)), "system_domain_id": str(uuid.UUID(int=3))}
        with requests.Session() as session:
            session.trust_env = False
            answer = session.post(action["url"], json=body, headers=action.get("headers"), timeout=DELIVERY_SECONDS)
        action["status"] = "HEALTHY" if answer.ok else "FAILING"
        action["last_error"] = "" if answer.ok else f"{answer.status_code} {answer.reason}"
        return answer

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
            self._note_delivery(webhook, event, error)
            self.deliveries.append((urlsplit(url).path, event["object_id"], status))
            self.changed.notify_all()
        if self.verbose:
            print(f"Webhook to {url}: {error or status}. It is {webhook['status']}", flush=True)

    def _note_delivery(self, webhook: Json, event: Json, error: str) -> None:
        """Let a success put a webhook back to ENABLED, and failures disable it in the end."""
        if webhook["status"] not in ("ENABLED", "FAILING"):
            return  # it was disabled meanwhile
        if not error:
            if webhook["status"] != "ENABLED":
                webhook.update(status="ENABLED", first_failed_at=None, last_error=None, date_modified=self.now_text())
            return
        first_failed_at = webhook.get("first_failed_at") or self.now_text()
        is_disabled = self.clock() - milliseconds(first_failed_at) / 1000 >= self.disable_after
        status = "DISABLED" if is_disabled else "FAILING"
        webhook.update(status=status, first_failed_at=first_failed_at, last_error=error)
        webhook["last_payload"] = json.dumps(event)
        webhook["date_modified"] = self.now_text()

    def asset(self, asset_id: str) -> Json:
        """The asset of that id. Raises Refusal if there is none, or if a replica does not know it yet."""
        if asset_id not in self.assets and self.makes_up_assets:
            self.create_asset("Made up", asset_id, send=False)
        asset = one_of(self.assets, "Asset", asset_id)
        if self.replica_lag and self.clock() - milliseconds(asset["date_imported"]) / 1000 < self.replica_lag:
            raise Refusal(404, f"Asset {asset_id} doesn't exist")
        return asset

    def now_text(self) -> str:
        """iconik's time, as it writes it."""
        return datetime.fromtimestamp(self.clock(), timezone.utc).isoformat(timespec="microseconds")

    def take_fault(self, request: str, body: bytes) -> Fault | None:
        """What goes wrong with this request ("METHOD /path?query"); None if nothing does."""
        for fault in self.faults:
            if fault.match in request and fault.times > 0:
                fault.times -= 1
                return fault
        return None

    def answer(
        self, method: str, url: str, credentials: tuple[str | None, str | None], body: bytes
    ) -> tuple[int, Json | None]:
        """Do what a request asks for. Returns the status and the body of the answer; None for no body."""
        from sandbox.api import answer

        return answer(self, method, url, credentials, body)


def profile(name: str, media_type: str, *, enabled: bool = True, is_default: bool = False) -> Json:
    """An analysis profile."""
    fields = {"id": str(uuid.uuid4()), "name": name, "media_type": media_type, "service_type": "ICONIK"}
    return {**fields, "enabled": enabled, "is_default": is_default}


def media_type_of(title: str) -> str:
    """The media type by the extension of a title; video if that is not known."""
    extension = title.rpartition(".")[2].lower()
    return next((media_type for media_type, known in MEDIA_TYPES.items() if extension in known), "video")


def one_of(objects: dict[str, Json], kind: str, object_id: str) -> Json:
    """The object of that id. Raises Refusal if there is none."""
    if object_id not in objects:
        raise Refusal(404, f"{kind} {object_id} doesn't exist")
    return objects[object_id]


def is_for(webhook: Json, event: Json) -> bool:
    """Whether a webhook gets an event. Only queries of the form data.key="VALUE" count."""
    query = re.fullmatch(r'\s*data\.(\w+)\s*=\s*"(.*)"\s*', webhook.get("query") or "")
    names = ("event_type", "operation", "realm", "object_id")
    return (
        webhook["status"] in ("ENABLED", "FAILING")
        and all(webhook.get(name) in (None, "", event[name]) for name in names)
        and (query is None or event["data"].get(query[1]) == query[2])
    )


@lru_cache(maxsize=200_000)
def milliseconds(text: str) -> int:
    """An ISO 8601 time as milliseconds since 1970, as search engines keep it. Without an offset it is UTC."""
    date = datetime.fromisoformat(text.replace("Z", "+00:00"))
    return ((date if date.tzinfo else date.replace(tzinfo=timezone.utc)) - EPOCH) // timedelta(milliseconds=1)
