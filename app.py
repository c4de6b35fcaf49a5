"""The listener: iconik's webhooks in, and the command line's entry, `python app.py`."""

import hmac
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

import click
from flask import Flask, Response, jsonify, request
from flask_restful import Api, Resource, abort
from waitress.channel import HTTPChannel
from waitress.server import create_server as create_waitress
from waitress.task import ErrorTask
from werkzeug.exceptions import HTTPException

import commands
from config import UUID, Config, ConfigError, load
from iconik_client import IconikError, asset_title, one_line
from store import Store, StoreError, StoreUnavailable
from submitter import Pauses, Submitter, Sweep

log = logging.getLogger("iconik_listener")

LONGEST_BODY = 1024 * 1024  # bytes

# Measured with 400 clients that drip a byte a second: like this webhooks go on in milliseconds; with
# waitress's defaults nothing is answered.
SERVER = {
    "threads": 4,
    "max_request_body_size": LONGEST_BODY + 1,
    "connection_limit": 1000,
    "asyncore_use_poll": True,
    "channel_timeout": 30,
    "cleanup_interval": 10,
    "log_socket_errors": False,
    "ident": None,
    "clear_untrusted_proxy_headers": False,  # X-Forwarded-For, for the log only
}


class CannotListen(Exception):
    """The address or port cannot be had: one line for the operator."""


class Webhook(Resource):
    """POST of one of iconik's events. Answers 200 once what it says is on the disk."""

    operations: tuple[str, ...]
    realm: str

    def __init__(self, store: Store, submitter: Submitter, secret: str) -> None:
        self._store, self._submitter, self._secret = store, submitter, secret

    def post(self) -> Any:
        self._check_secret()
        event = _json_object(request.get_data())
        object_id = str(event.get("object_id"))
        if not self._is_ours(event):
            return {"object_id": object_id if UUID.fullmatch(object_id) else None, "item": "ignored"}
        if not UUID.fullmatch(object_id):
            refuse(400, "object_id must be a UUID, like 2b45a8ca-f0b4-11e7-a36b-0a580a00054a")
        data = event.get("data")
        if not isinstance(data, dict):
            refuse(400, "data must be an object")
        object_id = object_id.lower()
        try:
            item = self.receive(object_id, data)
        except StoreUnavailable as error:
            log.error("items.db: %s. A webhook was answered 503", error, extra={"topic": "webhook"})
            return {"message": "The event cannot be stored just now"}, 503
        if item == "ready":
            log.info("Found object %s in finished proxy queue", object_id)
            self._submitter.wake()
        return {"object_id": object_id, "item": item}

    def receive(self, object_id: str, data: dict[str, Any]) -> str:
        """Store what the event says. Returns the item's new status, or "unchanged"."""
        raise NotImplementedError

    def _check_secret(self) -> None:
        given = request.headers.get("X-Webhook-Secret", "").encode("latin-1", "replace")
        if self._secret and not hmac.compare_digest(given, self._secret.encode()):
            log.warning(
                "Refused a webhook from %s: its header X-Webhook-Secret is %s",
                one_line(", ".join(filter(None, (request.headers.get("X-Forwarded-For"), request.remote_addr)))),
                "not webhook_secret" if given else "missing",
                extra={"topic": "secret"},
            )
            refuse(401, "The header X-Webhook-Secret is missing or wrong")

    def _is_ours(self, event: dict[str, Any]) -> bool:
        return (
            event.get("event_type", "assets") == "assets"
            and event.get("operation", self.operations[0]) in self.operations
            and event.get("realm", self.realm) == self.realm
        )


class Create(Webhook):
    """A new asset."""

    operations = ("create",)
    realm = "entity"

    def receive(self, object_id: str, data: dict[str, Any]) -> str:
        item = self._store.created(object_id, asset_title(data))
        if item != "unchanged":
            log.info("Creating new queue item for object_id %s", object_id)
        return item


class Proxy(Webhook):
    """A proxy of an asset, new or changed."""

    operations = ("update", "create")
    realm = "proxies"

    def receive(self, object_id: str, data: dict[str, Any]) -> str:
        status = data.get("status")
        if not isinstance(status, str):
            refuse(400, "data.status must be text")
        return self._store.proxy_closed(object_id) if status == "CLOSED" else "unchanged"


class Health(Resource):
    """GET: how it is, for monitoring; no ids and no secrets."""

    def __init__(self, store: Store, submitter: Submitter, pauses: Pauses) -> None:
        self._store, self._submitter, self._pauses = store, submitter, pauses

    def get(self) -> Any:
        try:
            counts = self._store.counts()
        except StoreUnavailable:
            return {"message": "The database does not answer"}, 503
        status = "paused" if self._pauses.paused else "ok"
        return {"status": status, **counts, "last_error": self._submitter.last_error}


def create_app(store: Store, submitter: Submitter, pauses: Pauses, webhook_secret: str) -> Flask:
    """The WSGI application over its parts. An empty `webhook_secret` lets everybody in."""
    app = Flask("iconik_listener", static_folder=None)
    app.register_error_handler(HTTPException, _json_error)
    api = Api(app)
    webhook = {"store": store, "submitter": submitter, "secret": webhook_secret}
    api.add_resource(Create, "/create", "/create/", resource_class_kwargs=webhook)
    api.add_resource(Proxy, "/proxy", "/proxy/", resource_class_kwargs=webhook)
    health = {"store": store, "submitter": submitter, "pauses": pauses}
    api.add_resource(Health, "/health", "/health/", resource_class_kwargs=health)
    return app


def _json_object(body: bytes) -> dict[str, Any]:
    """The body as JSON, whatever its Content-Type says; 400 if it is no object."""
    try:
        event = json.loads(body.decode("utf-8-sig"))
    except (ValueError, RecursionError):  # bad UTF-8, bad JSON, a number too long, nesting too deep
        event = None
    return event if isinstance(event, dict) else refuse(400, "The body must be a JSON object")


def refuse(status: int, message: str) -> NoReturn:
    """Answer the request with an error."""
    abort(status, message=message)
    raise AssertionError("abort() raises")


def _json_error(error: HTTPException) -> tuple[Response, int]:
    return jsonify(message=error.name), error.code or 500


class JsonErrorTask(ErrorTask):
    """What waitress answers by itself, such as 413, in the form of all our errors."""

    def execute(self) -> None:
        error = self.request.error
        body = json.dumps({"message": error.reason}).encode() + b"\n"
        self.status = f"{error.code} {error.reason}"
        self.response_headers.append(("Content-Type", "application/json"))
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)


class Channel(HTTPChannel):
    error_task_class = JsonErrorTask


def create_server(app: Flask, host: str, port: int) -> Any:
    """A waitress server that listens already; port 0 is any free one.

    :raises CannotListen: another program does, or the address is not this machine's
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        reason = str(error.strerror).partition(" (while")[0]
        raise CannotListen(f"cannot listen on {host}, port {port}: {reason}") from None
    server = create_waitress(app, sockets=[listening], **SERVER)
    server.channel_class = Channel
    return server


class LogFormatter(logging.Formatter):
    """One line a message, whatever is in it; UTC, as in items.db; an exception as its kind and place."""

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def format(self, record: logging.LogRecord) -> str:
        line = f"{self.formatTime(record)} {record.levelname} {record.getMessage()}"
        if record.exc_info and record.exc_info[1]:
            error = record.exc_info[1]
            frames = traceback.extract_tb(error.__traceback__)
            line += f": {error!r}" + "".join(f" at {frame.filename}:{frame.lineno}" for frame in frames[-1:])
        return one_line(line, 1000)


class OnceAMinute(logging.Filter):
    """Lets one record a minute pass of each `topic` (given as `extra`), and all that have none."""

    def __init__(self) -> None:
        super().__init__()
        self._passed: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        topic = getattr(record, "topic", None)
        if topic is None:
            return True
        now = time.monotonic()
        if now - self._passed.get(topic, -60) < 60:
            return False
        self._passed[topic] = now
        return True


def set_up_logging() -> None:
    logging.raiseExceptions = False  # a full disk under stderr is no reason for tracebacks
    handler = logging.StreamHandler()
    handler.setFormatter(LogFormatter())
    handler.addFilter(OnceAMinute())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # it warns at each request that waits
    logging.getLogger("urllib3").setLevel(logging.ERROR)


def serve(config: Config) -> None:
    """Listen until SIGTERM or Ctrl-C.

    :raises StoreError, StoreUnavailable, CannotListen: it cannot start
    """
    set_up_logging()
    threading.excepthook = _end_process
    for warning in config.warnings:
        log.warning(warning)
    store = Store(config.listener.database, listener=True)
    try:
        client = commands.iconik_client(config)
        pauses = Pauses(config.submitter)
        submitter = Submitter(store, client, pauses, config.submitter)
        sweep = Sweep(store, client, pauses, submitter, config.sweep)
        app = create_app(store, submitter, pauses, config.listener.webhook_secret)
        server = create_server(app, config.listener.host, config.listener.port)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _stop)
        submitter.start()
        sweep.start()
        log.info("Listening on %s:%s", server.effective_host, server.effective_port)
        server.run()  # until _stop; lets the requests finish that are under way
        log.info("Stopping")
        server.close()
        for channel in list(server.active_channels.values()):
            channel.handle_close()
        sweep.stop()
        submitter.stop()
    finally:
        store.close()


def _end_process(mistake: threading.ExceptHookArgs) -> None:
    """A thread that is gone would not be missed for long: end, and be started again, which loses nothing."""
    log.critical("Ending", exc_info=(mistake.exc_type, mistake.exc_value or mistake.exc_type(), mistake.exc_traceback))
    os._exit(1)


def _stop(*_: object) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    raise SystemExit(0)


@click.group(invoke_without_command=True, commands=commands.ALL)
@click.option("--config", "path", default="config.ini", show_default=True, help="The configuration file.")
@click.pass_context
def cli(context: click.Context, path: str) -> None:
    """Have each new iconik asset analyzed as soon as its proxy is there.

    Without a command: listen for iconik's webhooks.
    """
    context.obj = Path(path)
    if context.invoked_subcommand is None:
        serve(load(Path(path)))


def main() -> None:
    """Every error that is the operator's to mend ends here, as one line: exit 2 for config.ini, else 1."""
    try:
        cli()
    except ConfigError as error:
        sys.exit(_complain(error, 2))
    except (StoreError, StoreUnavailable, IconikError, CannotListen) as error:
        sys.exit(_complain(error, 1))


def _complain(error: Exception, code: int) -> int:
    click.echo(f"Error: {error}", err=True)
    return code


if __name__ == "__main__":
    main()
