"""The Flask-RESTful resources: iconik's events come in at Create and Proxy, and Health says how the listener is."""

import hmac
import json
import logging
import time
from dataclasses import dataclass, field
from typing import Any, NoReturn

from flask import Flask, Response, jsonify, request
from flask_restful import Api, Resource, abort
from werkzeug.exceptions import HTTPException

from circuit_breaker import CircuitBreaker
from reconciliation.webhooks import CREATE, PROXY, SECRET_HEADER, EventKind
from store import UNCHANGED, Store
from submitter import Submitter
from system.database import StoreUnavailable
from system.text import UUID, one_line, title_of, utc_text
from version import __version__

log = logging.getLogger("iconik_listener")


@dataclass
class Listening:
    """What the resources share.

    :ivar secrets: what X-Webhook-Secret may be; empty lets everybody in
    :ivar min_age: seconds after its create at which iconik is asked for an asset's proxy
    """

    store: Store
    submitter: Submitter
    breaker: CircuitBreaker
    secrets: tuple[str, ...]
    min_age: float
    started_at: str = field(default_factory=lambda: utc_text(time.time()))
    last_webhook_at: float | None = None  # seconds since 1970


@dataclass(frozen=True)
class Event:
    """One of iconik's events, as much of it as matters here."""

    object_id: str
    data: dict[str, Any]


class WebhookResource(Resource):
    """POST of an event. It is answered 200 once what it says is on the disk."""

    kind: EventKind

    def __init__(self, listening: Listening) -> None:
        self.listening = listening

    def post(self) -> Any:
        self._check_secret()
        body = _json_object(request.get_data())
        if not self.kind.includes(body):  # iconik disables a webhook that keeps failing, whatever is in it
            object_id = body.get("object_id")
            return {"object_id": object_id if UUID.fullmatch(str(object_id)) else None, "item": "ignored"}
        event = _event(body)
        self.listening.last_webhook_at = time.time()
        try:
            item = self.store(event)
        except StoreUnavailable as error:
            log.error("%s. A webhook was answered 503", error, extra={"topic": ("webhook", str(error))})
            return {"message": "The event cannot be stored just now"}, 503
        if item == "ready":
            log.info("Found object %s in finished proxy queue", event.object_id)
            self.listening.submitter.wake()
        return {"object_id": event.object_id, "item": item}

    def store(self, event: Event) -> str:
        """Store what the event says. Returns the item's new status, or "unchanged"."""
        raise NotImplementedError

    def _check_secret(self) -> None:
        secrets = self.listening.secrets
        given = request.headers.get(SECRET_HEADER, "").encode("latin-1", "replace")
        if secrets and not any(hmac.compare_digest(given, secret.encode()) for secret in secrets):
            sender = one_line(", ".join(filter(None, (request.headers.get("X-Forwarded-For"), request.remote_addr))))
            fault = "not webhook_secret" if given else "missing"
            message = "Refused a webhook from %s: its header X-Webhook-Secret is %s"
            log.warning(message, sender, fault, extra={"topic": ("refused", sender, fault)})
            refuse(401, f"The header {SECRET_HEADER} is missing or wrong")


class Create(WebhookResource):
    """A new asset."""

    kind = CREATE

    def store(self, event: Event) -> str:
        item = self.listening.store.add_asset(event.object_id, title_of(event.data), self.listening.min_age)
        if item != UNCHANGED:
            log.info("Creating new queue item for object_id %s", event.object_id)
        return item


class Proxy(WebhookResource):
    """A proxy of an asset, new or changed."""

    kind = PROXY

    def store(self, event: Event) -> str:
        status = event.data.get("status")
        if not isinstance(status, str):
            refuse(400, "data.status must be text")
        return self.listening.store.proxy_closed(event.object_id) if status == "CLOSED" else UNCHANGED


class Health(Resource):
    """GET: how the listener is, for monitoring. No ids, no secrets, nothing from outside."""

    def __init__(self, listening: Listening) -> None:
        self.listening = listening

    def get(self) -> Any:
        listening, breaker = self.listening, self.listening.breaker
        try:
            items = listening.store.health()
        except StoreUnavailable:
            return {"message": "The database cannot be read or written"}, 503
        state = breaker.state
        # Half-open without an item to try it with is as good as closed.
        paused = state == "open" or (state == "half-open" and bool(items["ready"] or items["submitting"]))
        return {
            "status": "paused" if paused else "ok",
            "version": __version__,
            "started_at": listening.started_at,
            "paused_since": breaker.paused_since if paused else None,
            "last_error": listening.submitter.last_error,
            "last_webhook_at": utc_text(listening.last_webhook_at) if listening.last_webhook_at else None,
            **items,
        }


def create_app(listening: Listening) -> Flask:
    """The WSGI application."""
    app = Flask("iconik_listener", static_folder=None)
    app.register_error_handler(HTTPException, _json_error)
    api = Api(app)
    for resource, path in ((Create, CREATE.path), (Proxy, PROXY.path), (Health, "/health")):
        api.add_resource(resource, path, f"{path}/", resource_class_kwargs={"listening": listening})
    return app


def refuse(status: int, message: str) -> NoReturn:
    """Answer the request with an error."""
    abort(status, message=message)
    raise AssertionError("abort() raises")


def _json_object(body: bytes) -> dict[str, Any]:
    """The body as JSON, whatever its Content-Type says; 400 if it is not an object."""
    try:
        event = json.loads(body.decode("utf-8-sig"))
    except (ValueError, RecursionError):  # bad UTF-8, bad JSON, a number too long, nesting too deep
        event = None
    return event if isinstance(event, dict) else refuse(400, "The body must be a JSON object")


def _event(body: dict[str, Any]) -> Event:
    object_id, data = str(body.get("object_id")), body.get("data")
    if not UUID.fullmatch(object_id):
        refuse(400, "object_id must be a UUID, like 2b45a8ca-f0b4-11e7-a36b-0a580a00054a")
    if not isinstance(data, dict):
        refuse(400, "data must be an object")
    return Event(object_id.lower(), data)


def _json_error(error: HTTPException) -> tuple[Response, int]:
    return jsonify(message=error.name), error.code or 500
