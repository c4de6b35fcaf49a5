"""The Flask-RESTful resources: iconik's events come in at Create and Proxy, and Health says how the listener is."""

import hmac
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn

from flask import Flask, Response, jsonify, request
from flask_restful import Api, Resource, abort
from werkzeug.exceptions import HTTPException

from circuit_breaker import CircuitBreaker
from events import ACTIONS, CREATE, KINDS, PROXY, SECRET_HEADER, BadEvent, Event, EventKind
from limits import Limits
from store import UNCHANGED, Status, Store
from submitter import Submitter
from system.database import StoreRefused, StoreUnavailable
from system.log import log_writer
from system.runtime import Runtime
from system.server import MAX_BODY, Refusal
from system.text import UUID, command, format_utc, named, one_line, parse_time
from version import __version__

log = logging.getLogger("iconik_listener")
WRONG_SECRET = f"The header {SECRET_HEADER} is missing or wrong"
WANTED = {part.path for part in (*KINDS, *ACTIONS)}  # the paths whose bodies are read
LAST_WEBHOOK_AT = "last_webhook_at"  # the key in items.db's state
WEBHOOK_NOTE_SECONDS = 60.0  # between two notes of that
MAX_NOTED_VERSIONS = 10_000


@dataclass
class Services:
    """What the resources share.

    :ivar secrets: what X-Webhook-Secret may be; empty lets everybody in
    """

    store: Store
    submitter: Submitter
    breaker: CircuitBreaker
    secrets: tuple[str, ...]
    runtime: Runtime = field(default_factory=Runtime)
    started_at: str = ""
    last_webhook_at: float | None = None  # seconds since 1970
    webhook_noted_at: float | None = None  # the last one that items.db knows of
    noted_versions: set[str] = field(default_factory=set)  # assets whose new version was logged

    def __post_init__(self) -> None:
        self.started_at = self.started_at or format_utc(self.runtime.time())
        self.last_webhook_at = self.webhook_noted_at = parse_time(self.store.state(LAST_WEBHOOK_AT))

    def refuses(self, secret: str, *senders: str | None) -> bool:
        """Whether a webhook with this X-Webhook-Secret is refused. The log says so, and from whom it came."""
        given = secret.encode("latin-1", "replace")
        if not self.secrets or any(hmac.compare_digest(given, ours.encode()) for ours in self.secrets):
            return False
        sender = one_line(", ".join(filter(None, senders)))
        fault = "does not match webhook_secret" if given else "is missing"
        message = "Refused a webhook from %s: its header X-Webhook-Secret %s"
        log.warning(message, sender, fault, extra={"topic": ("refused", sender, fault)})
        return True

    def judge(self, path: str, headers: Mapping[str, str], address: str) -> Refusal | None:
        """Whether the body of a request is wanted: that of a webhook with the right secret. See `Server`."""
        if path.rstrip("/") not in WANTED:
            return Refusal(404, "Not Found")
        secret = headers.get(SECRET_HEADER.upper().replace("-", "_"), "")
        return Refusal(401, WRONG_SECRET) if self.refuses(secret, headers.get("X_FORWARDED_FOR"), address) else None

    def note_webhook(self) -> None:
        """Note that iconik delivered a webhook, for people who ask when it last did. Kept over a restart."""
        now = self.last_webhook_at = self.runtime.time()
        noted_at = self.webhook_noted_at
        if noted_at is None or not 0 <= now - noted_at < WEBHOOK_NOTE_SECONDS:
            self._write_last_webhook(now)

    def end(self) -> None:
        """Note the last webhook, if items.db does not know of it yet. Without that, less than a minute is lost."""
        if self.last_webhook_at and self.last_webhook_at != self.webhook_noted_at:
            with suppress(StoreUnavailable, StoreRefused):
                self._write_last_webhook(self.last_webhook_at)

    def _write_last_webhook(self, at: float) -> None:
        self.store.set_state(LAST_WEBHOOK_AT, format_utc(at))
        self.webhook_noted_at = at


class SecretResource(Resource):
    """What only those may use who know the secret."""

    def __init__(self, services: Services) -> None:
        self.services = services

    def check_secret(self) -> None:
        """Answer the request with 401 if its secret is missing or wrong."""
        senders = request.headers.get("X-Forwarded-For"), request.remote_addr
        if self.services.refuses(request.headers.get(SECRET_HEADER, ""), *senders):
            refuse(401, WRONG_SECRET)


class WebhookResource(SecretResource):
    """POST of an event. It is answered 200 once what it says is on the disk."""

    kind: EventKind

    def post(self) -> Any:
        self.check_secret()
        if (request.content_length or 0) > MAX_BODY:  # the server has thrown it away
            message = "Ignored an event of %d bytes at %s: those of assets and proxies are far smaller"
            log.warning(message, request.content_length, self.kind.path, extra={"topic": ("large", self.kind.path)})
            return {"object_id": None, "item": "ignored"}
        body = json_object(request.get_data())
        if not self.kind.includes(body):  # iconik disables a webhook that keeps failing, whatever is in it
            object_id = body.get("object_id")
            return {"object_id": object_id if UUID.fullmatch(str(object_id)) else None, "item": "ignored"}
        try:
            event = Event.of(body)
            status = self.store(event)
            self.services.note_webhook()
        except BadEvent as error:
            refuse(400, str(error))
        except StoreRefused as error:
            log.error("%s. A webhook for %s was answered 503", error, named(event.object_id, event.title))
            return {"message": "The event cannot be stored"}, 503
        except StoreUnavailable as error:
            log.error("%s. A webhook was answered 503", error, extra={"topic": ("webhook", str(error))})
            return {"message": "The event cannot be stored just now"}, 503
        if status == "ready":
            # The article's script logs this line and the next class's, so people grep for them: "Using Webhooks in
            # Cantemo iconik to auto analyze new items", https://provideotech.org/using-webhooks-in-cantemo-iconik-to-auto-analyze-new-items/
            log.info("Found object %s in finished proxy queue", named(event.object_id, event.title))
            self.services.submitter.wake()
        return {"object_id": event.object_id, "item": status}

    def store(self, event: Event) -> str:
        """Store what the event says. Returns the item's new status, or "unchanged"."""
        raise NotImplementedError


class Create(WebhookResource):
    """A new asset."""

    kind = CREATE

    def store(self, event: Event) -> str:
        status = self.services.store.add_asset(event.object_id, event.title)
        if status != UNCHANGED:
            log.info("Creating new queue item for object_id %s", named(event.object_id, event.title))
        return status


class Proxy(WebhookResource):
    """A proxy of an asset, new or changed."""

    kind = PROXY

    def store(self, event: Event) -> str:
        if event.proxy_status != "CLOSED":
            return UNCHANGED
        status = self.services.store.proxy_closed(event.object_id, event.version_id)
        if status == Status.AWAITING_CREATE:
            log.info("The proxy of %s is ready, and the asset's own webhook has not come yet", event.object_id)
        if status == UNCHANGED and event.version_id:
            self._log_new_version(event)
        return status

    def _log_new_version(self, event: Event) -> None:
        noted = self.services.noted_versions
        if event.object_id in noted or len(noted) >= MAX_NOTED_VERSIONS:
            return
        version_id, title = self.services.store.known_version(event.object_id)
        if version_id and version_id != event.version_id:
            noted.add(event.object_id)
            remedy, name = command("retry", "--again", event.object_id), named(event.object_id, title)
            log.info("%s has a new version, which is left alone. To start its jobs again: %s", name, remedy)


class Health(Resource):
    """GET: how the listener is, for monitoring. No ids, no secrets, nothing from outside."""

    def __init__(self, services: Services) -> None:
        self.services = services

    def get(self) -> Any:
        services, breaker = self.services, self.services.breaker
        try:
            items = services.store.health()
            limit = Limits(services.store).now(items)
        except (StoreUnavailable, StoreRefused):
            return {"message": "The database cannot be read or written"}, 503
        # A breaker that has opened and closed, with nothing left to try iconik with, is as good as closed.
        has_work = bool(items["ready"] or items["submitting"])
        is_open = breaker.is_open or (breaker.opened_at is not None and has_work)
        last = services.last_webhook_at
        writer = log_writer()
        stuck_seconds = writer.stuck_seconds() if writer else 0.0
        return {
            "status": "paused" if is_open or limit.pause else "ok",
            "version": __version__,
            "started_at": services.started_at,
            "paused_since": breaker.opened_at if is_open else None,
            "last_error": services.submitter.last_error,
            "last_webhook_at": format_utc(last) if last else None,
            "log_stuck_since": format_utc(services.runtime.time() - stuck_seconds) if stuck_seconds else None,
            "log_lines_dropped": writer.dropped if writer else 0,
            **{name: items[name] for name in ("ready", "submitting", "failed", "oldest_due_at")},
            **limit.for_programs(),
        }


class ListenerApi(Api):
    """Flask-RESTful's Api, which handles errors in the place of the app.

    Flask hands its handlers the error, and from version 3.2 on a context before it. Flask-RESTful 0.3.10, which is no
    longer developed, takes the error only.
    """

    def error_router(self, original_handler: Callable[..., Any], *arguments: Any) -> Any:
        """Handle an error. `arguments`: the error, and before it the context, if Flask gives one."""
        *context, error = arguments
        return super().error_router(partial(original_handler, *context), error)


def create_app(services: Services, more: Iterable[tuple[type[Resource], str]] = ()) -> Flask:
    """The WSGI application. `more`: other resources and their paths."""
    app = Flask("iconik_listener", static_folder=None)
    app.register_error_handler(HTTPException, _json_error)
    api = ListenerApi(app)
    for resource, path in ((Create, CREATE.path), (Proxy, PROXY.path), (Health, "/health"), *more):
        api.add_resource(resource, path, f"{path}/", resource_class_kwargs={"services": services})
    return app


def refuse(status: int, message: str) -> NoReturn:
    """Answer the request with an error."""
    abort(status, message=message)
    raise AssertionError("abort() raises")


def json_object(body: bytes) -> dict[str, Any]:
    """The body as JSON, whatever its Content-Type says; 400 if it is not an object."""
    try:
        event = json.loads(body.decode("utf-8-sig"))
    except (ValueError, RecursionError):  # bad UTF-8, bad JSON, a number too long, nesting too deep
        event = None
    return event if isinstance(event, dict) else refuse(400, "The body must be a JSON object")


def _json_error(error: HTTPException) -> tuple[Response, int]:
    return jsonify(message=error.name), error.code or 500
