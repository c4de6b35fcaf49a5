import json
import logging
import re
import resource
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest
from flask.testing import FlaskClient
from werkzeug.exceptions import NotFound
from werkzeug.test import TestResponse

from circuit_breaker import CircuitBreaker
from config import Config
from iconik_client import IconikRateLimited
from limits import Limits
from resources import Services, create_app
from store import Outcome, Rules, Status, Store
from submitter import Submitter
from support import (
    ARTICLE_CREATE,
    ARTICLE_PROXY,
    ASSET,
    OTHER_ASSET,
    create_event,
    new_id,
    proxy_event,
    rows,
    wait_until,
)
from system.log import LogFormatter, OnceAMinute
from system.server import Refusal
from version import __version__

README = Path(__file__).parent.parent / "README.md"
SECRET = "s3cret"
HEADERS = {"X-Webhook-Secret": SECRET}


@pytest.fixture
def listening(store: Store, submitters: Callable[..., Submitter], configs: Callable[..., Config]) -> Services:
    """With a submitter that is not started: an item that is ready stays so."""
    return Services(store, submitters(), CircuitBreaker(configs().submitter), (SECRET,))


@pytest.fixture
def breaker(listening: Services) -> CircuitBreaker:
    return listening.breaker


@pytest.fixture
def web(listening: Services) -> FlaskClient:
    return create_app(listening).test_client()


@pytest.fixture
def post(web: FlaskClient) -> Callable[..., TestResponse]:
    def post(path: str, event: Any, **options: Any) -> TestResponse:
        body = event if isinstance(event, bytes) else json.dumps(event).encode()
        return web.post(path, data=body, **{"headers": HEADERS, **options})

    return post


Post = Callable[..., TestResponse]


# What the two webhooks do


def test_the_articles_payloads_are_understood(post: Post) -> None:
    created = post("/create", ARTICLE_CREATE)
    assert (created.status_code, created.json) == (200, {"object_id": ASSET, "item": "awaiting_proxy"})
    closed = post("/proxy", ARTICLE_PROXY)
    assert (closed.status_code, closed.json) == (200, {"object_id": OTHER_ASSET, "item": "awaiting_create"})


def test_a_created_asset_is_ready_once_a_proxy_is_closed(post: Post, store: Store) -> None:
    assert items(post("/create", create_event()), post("/proxy", proxy_event())) == ["awaiting_proxy", "ready"]
    item = store.claim_new()
    assert item is not None
    assert item.object_id == ASSET


def test_webhooks_may_come_in_any_order_and_any_number_of_times(post: Post, tmp_path: Path) -> None:
    answers = [post(path, event) for path, event in [("/proxy", proxy_event()), ("/create", create_event())] * 2]
    assert items(*answers) == ["awaiting_create", "ready", "unchanged", "unchanged"]
    assert len(rows(tmp_path / "items.db")) == 1


@pytest.mark.parametrize(
    "status", ["OPEN", "GROWING", "AWAITED", "FAILED", "ARCHIVED", "MISSING", "REDISCOVERED", "DELETED", "closed", ""]
)
def test_a_proxy_that_is_not_closed_changes_nothing(post: Post, tmp_path: Path, status: str) -> None:
    assert items(post("/proxy", proxy_event(status=status))) == ["unchanged"]
    assert rows(tmp_path / "items.db") == []
    assert items(post("/create", create_event()), post("/proxy", proxy_event(status=status))) == [
        "awaiting_proxy",
        "unchanged",
    ]


def test_an_id_in_capitals_is_the_same_id(post: Post) -> None:
    answer = post("/create", create_event(ASSET.upper()))
    assert answer.json == {"object_id": ASSET, "item": "awaiting_proxy"}
    assert items(post("/proxy", proxy_event())) == ["ready"]


@pytest.mark.parametrize(
    ("title", "stored"),
    [
        ("a.mov", "a.mov"),
        ("%s {} \u00fc", "%s {} \u00fc"),
        ("two\nlines\x00\x1b[31m", "two lines [31m"),
        ("\ud800", ""),
        ("x" * 300, "x" * 254 + "…"),
        (None, None),
        (5, None),
        (["a"], None),
        ({"a": 1}, None),
    ],
)
def test_a_title_is_stored_as_one_line_of_text(post: Post, tmp_path: Path, title: Any, stored: str | None) -> None:
    assert items(post("/create", create_event(title=title))) == ["awaiting_proxy"]
    assert rows(tmp_path / "items.db")[0]["title"] == stored


@pytest.mark.parametrize("path", ["/create/", "/proxy/"])
def test_a_trailing_slash_is_tolerated(post: Post, path: str) -> None:
    event = create_event() if "create" in path else proxy_event()
    assert post(path, event).status_code == 200


@pytest.mark.parametrize(
    ("path", "change", "item"),
    [
        ("/create", {"event_type": "collections"}, "ignored"),
        ("/create", {"operation": "update"}, "ignored"),
        ("/create", {"operation": "delete"}, "ignored"),
        ("/create", {"realm": "metadata"}, "ignored"),
        ("/create", {"realm": None}, "ignored"),
        ("/create", {"realm": ["entity"]}, "ignored"),
        ("/proxy", {"event_type": "jobs"}, "ignored"),
        ("/proxy", {"operation": "delete"}, "ignored"),
        ("/proxy", {"realm": "entity"}, "ignored"),
        ("/proxy", {"operation": "create"}, "awaiting_create"),
        ("/proxy", {"operation": "update"}, "awaiting_create"),
    ],
)
def test_an_event_of_another_kind_is_answered_200_and_ignored(
    post: Post, tmp_path: Path, path: str, change: dict[str, Any], item: str
) -> None:
    event = create_event() if path == "/create" else proxy_event()
    answer = post(path, {**event, **change})
    assert (answer.status_code, answer.json) == (200, {"object_id": ASSET, "item": item})
    assert len(rows(tmp_path / "items.db")) == (item != "ignored")


@pytest.mark.parametrize("object_id", ["not-a-uuid", None, 5])
def test_an_event_of_another_kind_may_be_about_anything(post: Post, object_id: Any) -> None:
    answer = post("/create", {"event_type": "users", "object_id": object_id, "data": None})
    assert (answer.status_code, answer.json) == (200, {"object_id": None, "item": "ignored"})


@pytest.mark.parametrize("field", ["event_type", "operation", "realm"])
@pytest.mark.parametrize("path", ["/create", "/proxy"])
def test_a_missing_field_counts_as_matching(post: Post, path: str, field: str) -> None:
    event = create_event() if path == "/create" else proxy_event()
    del event[field]
    assert items(post(path, event)) == ["awaiting_proxy" if path == "/create" else "awaiting_create"]


# What is refused


@pytest.mark.parametrize(
    "object_id",
    [
        None,
        "",
        5,
        True,
        [],
        {},
        [ASSET],
        ASSET.replace("-", ""),
        "{" + ASSET + "}",
        f"urn:uuid:{ASSET}",
        ASSET + "\n",
        ASSET[:-1],
        ASSET[:-1] + "g",
        ASSET[:-1] + "\u0663",
        "-" + ASSET.replace("-", "", 1),
        "../../users/v1/users/current/aaaaaaaa",
    ],
)
@pytest.mark.parametrize("path", ["/create", "/proxy"])
def test_an_object_id_that_is_not_a_uuid_is_a_400(post: Post, tmp_path: Path, path: str, object_id: Any) -> None:
    event = {**(create_event() if path == "/create" else proxy_event()), "object_id": object_id}
    refused(post(path, event), 400, "object_id must be a UUID, like 2b45a8ca-f0b4-11e7-a36b-0a580a00054a")
    assert rows(tmp_path / "items.db") == []


@pytest.mark.parametrize("data", [None, [], "x", 5, True])
@pytest.mark.parametrize("path", ["/create", "/proxy"])
def test_data_that_is_not_an_object_is_a_400(post: Post, path: str, data: Any) -> None:
    event = create_event() if path == "/create" else proxy_event()
    refused(post(path, {**event, "data": data}), 400, "data must be an object")
    del event["data"]
    refused(post(path, event), 400, "data must be an object")


@pytest.mark.parametrize("status", [None, 5, True, [], {}, ["CLOSED"]])
def test_a_proxy_status_that_is_not_text_is_a_400(post: Post, status: Any) -> None:
    refused(post("/proxy", proxy_event(status=status)), 400, "data.status must be text")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b'{"a": "\xed\xa0\x80"}',
        b"[" * 60_000,
        b'{"a":' * 10_000,
        b'{"a": ' + b"9" * 10_000 + b"}",
        b"object_id=" + ASSET.encode(),
    ],
    ids=lambda body: str(body[:12]),
)
@pytest.mark.parametrize("path", ["/create", "/proxy"])
def test_a_body_that_is_not_a_json_object_is_a_400(post: Post, path: str, body: bytes) -> None:
    refused(post(path, body), 400, "The body must be a JSON object")


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "application/x-www-form-urlencoded", ""])
def test_json_is_read_whatever_the_content_type_says(post: Post, content_type: str) -> None:
    assert items(post("/create", create_event(), content_type=content_type)) == ["awaiting_proxy"]


@pytest.mark.parametrize("path", ["/create", "/proxy"])
def test_an_event_of_more_than_64_kib_is_ignored_with_a_warning(
    post: Post, path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    event = create_event() if path == "/create" else proxy_event()
    answer = post(path, json.dumps(event).ljust(65_537).encode())
    assert (answer.status_code, answer.json) == (200, {"object_id": None, "item": "ignored"})
    assert rows(tmp_path / "items.db") == []
    [record] = caplog.records
    assert (record.levelname, record.getMessage()) == (
        "WARNING",
        f"Ignored an event of 65537 bytes at {path}: those of assets and proxies are far smaller",
    )
    assert items(post(path, json.dumps(event).ljust(65_536).encode())) != ["ignored"]


def test_a_body_of_windows_is_read(post: Post) -> None:
    assert items(post("/create", b"\xef\xbb\xbf" + json.dumps(create_event()).encode())) == ["awaiting_proxy"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-Webhook-Secret": ""},
        {"X-Webhook-Secret": "wrong"},
        {"X-Webhook-Secret": SECRET.upper()},
        {"X-Webhook-Secret": SECRET + " "},
        {"X-Webhook-Secret": "s\u00e9cret"},
        [("X-Webhook-Secret", SECRET), ("X-Webhook-Secret", SECRET)],
        {"X-Webhook-Secre": SECRET},
    ],
)
@pytest.mark.parametrize("path", ["/create", "/proxy"])
def test_without_the_secret_nothing_is_done(post: Post, tmp_path: Path, path: str, headers: Any) -> None:
    event = create_event() if path == "/create" else proxy_event()
    refused(post(path, event, headers=headers), 401, "The header X-Webhook-Secret is missing or wrong")
    assert rows(tmp_path / "items.db") == []


def test_the_secret_is_looked_at_before_the_body(post: Post) -> None:
    assert post("/create", b"{", headers={}).status_code == 401


@pytest.mark.parametrize(
    ("path", "secret", "refusal"),
    [
        ("/create", SECRET, None),
        ("/proxy/", SECRET, None),
        ("/create", "wrong", Refusal(401, "The header X-Webhook-Secret is missing or wrong")),
        ("/proxy", "", Refusal(401, "The header X-Webhook-Secret is missing or wrong")),
        ("/health", SECRET, Refusal(404, "Not Found")),
        ("/", SECRET, Refusal(404, "Not Found")),
    ],
)
def test_only_the_body_of_a_webhook_with_the_right_secret_is_wanted(
    listening: Services, path: str, secret: str, refusal: Refusal | None, caplog: pytest.LogCaptureFixture
) -> None:
    headers = {"X_WEBHOOK_SECRET": secret, "X_FORWARDED_FOR": "203.0.113.9"}
    assert listening.judge(path, headers, "127.0.0.1") == refusal
    told = [record.getMessage() for record in caplog.records]
    assert [line.partition(":")[0] for line in told] == ["Refused a webhook from 203.0.113.9, 127.0.0.1"] * (
        refusal is not None and refusal.code == 401
    )


def test_a_refused_sender_is_in_the_log_and_no_secret_is(post: Post, caplog: pytest.LogCaptureFixture) -> None:
    post("/create", create_event(), headers={"X-Webhook-Secret": "wrong", "X-Forwarded-For": "203.0.113.9"})
    [record] = caplog.records
    assert record.getMessage() == (
        "Refused a webhook from 203.0.113.9, 127.0.0.1: its header X-Webhook-Secret does not match webhook_secret"
    )


def test_each_sender_and_each_kind_of_refusal_is_told_of(
    post: Post, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caplog.handler, "filters", [OnceAMinute()])
    for sender in ("203.0.113.9", "203.0.113.9", "203.0.113.10"):
        post("/create", create_event(), headers={"X-Webhook-Secret": "wrong", "X-Forwarded-For": sender})
        post("/create", create_event(), headers={"X-Forwarded-For": sender})
    assert len(caplog.records) == 4


def test_without_a_secret_configured_none_is_needed(listening: Services) -> None:
    listening.secrets = ()
    web = create_app(listening).test_client()
    assert web.post("/create", json=create_event()).status_code == 200
    assert web.post("/proxy", json=proxy_event(), headers={"X-Webhook-Secret": "any"}).status_code == 200


def test_while_the_secret_is_being_changed_both_are_accepted(listening: Services) -> None:
    listening.secrets = ("new", "old")
    web = create_app(listening).test_client()
    codes = [
        web.post("/create", json=create_event(), headers={"X-Webhook-Secret": secret}).status_code
        for secret in ("new", "old", "new old", "")
    ]
    assert codes == [200, 200, 401, 401]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/create", 405), ("PUT", "/proxy", 405), ("POST", "/health", 405), ("GET", "/", 404), ("POST", "/x", 404)],
)
def test_every_error_is_json_and_tells_nothing(web: FlaskClient, method: str, path: str, status: int) -> None:
    answer = web.open(path, method=method, headers=HEADERS)
    assert answer.status_code == status
    assert answer.json is not None
    assert list(answer.json) == ["message"]


def test_a_mistake_of_ours_is_a_500_that_tells_nothing_and_one_line_in_the_log(
    post: Post, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(store, "add_asset", lambda *_: 1 / 0)
    refused(post("/create", create_event()), 500, "Internal Server Error")
    [record] = caplog.records
    line = LogFormatter(with_priority=False).format(record)
    assert "ZeroDivisionError" in line
    assert "test_resources.py" in line
    assert "\n" not in line


def test_while_items_cannot_be_stored_the_answer_is_503(
    post: Post, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(store.database, "max_wait", 0.02)
    with closing(sqlite3.connect(tmp_path / "items.db", isolation_level=None)) as person:
        person.execute("BEGIN IMMEDIATE")
        refused(post("/create", create_event()), 503, "The event cannot be stored just now")
        refused(post("/proxy", proxy_event()), 503, "The event cannot be stored just now")
    assert "database is locked" in caplog.text
    assert items(post("/create", create_event())) == ["awaiting_proxy"]


def test_into_a_database_that_was_deleted_nothing_is_answered_200(
    post: Post, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "items.db").unlink()
    refused(post("/create", create_event()), 503, "The event cannot be stored just now")
    assert f"{tmp_path}/items.db: was deleted or replaced under the listener" in caplog.text


def test_into_a_database_whose_log_was_deleted_nothing_is_answered_200(post: Post, tmp_path: Path) -> None:
    (tmp_path / "items.db-wal").unlink()
    refused(post("/create", create_event()), 503, "The event cannot be stored just now")


# Health


def test_health_tells_how_it_is_without_the_secret(web: FlaskClient, store: Store, listening: Services) -> None:
    for asset_id in (ASSET, OTHER_ASSET):
        store.add_asset(asset_id, None)
        store.proxy_closed(asset_id)
    store.claim_new()
    health = web.get("/health").json
    assert health == {
        "status": "ok",
        "version": __version__,
        "started_at": listening.started_at,
        "paused_since": None,
        "last_error": None,
        "last_webhook_at": None,
        "log_stuck_since": None,
        "log_lines_dropped": 0,
        "jobs_today": 0,
        "max_per_day": 0,
        "allowed_today": 0,
        "limit_is_near": False,
        "limit_is_reached": False,
        "held": 0,
        "goes_on_at": None,
        "paused_by_person": False,
        "paused_by_person_since": None,
        "ready": 1,
        "submitting": 1,
        "failed": 0,
        "oldest_due_at": rows(store.database.path, "status = 'ready'")[0]["next_attempt_at"],
    }
    [shown] = re.findall(r"^\$ curl -s http://127\.0\.0\.1:8000/health\n(.*)$", README.read_text(), re.MULTILINE)
    assert list(json.loads(shown)) == list(health), "the README shows something else"


def test_health_tells_when_the_last_webhook_of_iconik_came(post: Post, web: FlaskClient, listening: Services) -> None:
    post("/create", {"event_type": "iconik-listener", "operation": "check"})
    assert listening.last_webhook_at is None
    post("/create", create_event())
    answer = web.get("/health").json
    assert answer is not None
    assert answer["last_webhook_at"] >= listening.started_at


def test_health_tells_the_limit_who_paused_and_when_it_goes_on(web: FlaskClient, store: Store) -> None:
    store.rules = Rules(max_per_day=5)
    found = []
    for _ in range(6):
        store.add_asset(asset_id := new_id(), None)
        store.proxy_closed(asset_id)
        if item := store.claim_new():
            store.reserve(item, 0, "")
            store.end_attempt(item, Outcome(Status.SUBMITTED))
        health = web.get("/health").json or {}
        found.append([health[name] for name in ("jobs_today", "limit_is_near", "limit_is_reached", "held")])
    assert found == [
        [1, False, False, 0],
        [2, False, False, 0],
        [3, False, False, 0],
        [4, True, False, 0],
        [5, True, True, 0],
        [5, True, True, 1],
    ]
    assert health["goes_on_at"].endswith("T00:00:00.000Z") and health["goes_on_at"] > store.now()
    assert health["oldest_due_at"] is None
    Limits(store).allow(1)
    assert (web.get("/health").json or {})["allowed_today"] == 1
    Limits(store).pause("ada", "Project X")
    answer = web.get("/health")
    health = answer.json or {}
    assert (health["status"], health["paused_by_person"]) == ("paused", True)
    assert health["paused_by_person_since"] <= store.now()
    assert (health["held"], health["goes_on_at"]) == (1, None)
    assert "Project X" not in answer.text and "ada" not in answer.text  # what a person wrote is not for everybody


def test_the_last_webhook_is_kept_over_a_restart(
    web: FlaskClient, post: Post, listening: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many webhooks a minute are noted once a minute."""
    times = iter(float(second) for second in range(1_795_000_000, 1_795_000_000 + 20 * 30, 30))
    monkeypatch.setattr(listening.runtime, "time", lambda: next(times))
    for _ in range(20):
        post("/create", create_event())
    again = Services(listening.store, listening.submitter, listening.breaker, (SECRET,))
    assert again.last_webhook_at and listening.last_webhook_at
    assert 0 < listening.last_webhook_at - again.last_webhook_at < 60
    listening.end()
    again = Services(listening.store, listening.submitter, listening.breaker, (SECRET,))
    assert again.last_webhook_at == listening.last_webhook_at


def test_a_proxy_that_comes_first_is_logged(post: Post, caplog: pytest.LogCaptureFixture) -> None:
    """N29: once, and not for each of its webhooks."""
    caplog.set_level(logging.INFO)
    for _ in range(2):
        post("/proxy", proxy_event())
    assert caplog.messages == [f"The proxy of {ASSET} is ready, and the asset's own webhook has not come yet"]


def open_breaker(breaker: CircuitBreaker) -> None:
    permission = breaker.wait()
    assert permission
    for item in ("one", "two"):
        breaker.failed(permission, IconikRateLimited("iconik answered 429", retry_after=0.05), item)


def test_health_tells_of_a_pause_since_when_and_why(
    web: FlaskClient, breaker: CircuitBreaker, listening: Services
) -> None:
    open_breaker(breaker)
    listening.submitter.last_error = "iconik answered 429"
    answer = web.get("/health")
    assert answer.status_code == 200
    assert answer.json is not None
    assert (answer.json["status"], answer.json["last_error"]) == ("paused", "iconik answered 429")
    assert answer.json["paused_since"] == breaker.opened_at


def test_health_is_not_paused_for_ever_after_the_last_item_of_an_outage(
    web: FlaskClient, breaker: CircuitBreaker, store: Store
) -> None:
    open_breaker(breaker)
    wait_until(lambda: not breaker.is_open)
    answer = web.get("/health").json
    assert answer is not None
    assert (answer["status"], answer["paused_since"]) == ("ok", None)
    store.add_asset(ASSET, None)
    store.proxy_closed(ASSET)
    answer = web.get("/health").json
    assert answer is not None
    assert answer["status"] == "paused"


def test_health_is_503_if_the_database_does_not_answer(web: FlaskClient, store: Store) -> None:
    store.close()
    refused(web.get("/health"), 503, "The database cannot be read or written")


def test_on_a_full_disk_health_is_503_until_something_can_be_written_again(
    post: Post, web: FlaskClient, tmp_path: Path
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "items.db-wal").stat().st_size, limits[1]))
    try:
        refused(post("/create", create_event()), 503, "The event cannot be stored just now")
        refused(web.get("/health"), 503, "The database cannot be read or written")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert web.get("/health").status_code == 200


# The log


def test_an_items_way_reads_as_in_the_article(post: Post, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    post("/create", create_event(title="confidential.mov"))
    post("/proxy", proxy_event())
    post("/create", create_event())
    assert [record.getMessage() for record in caplog.records] == [
        f'Creating new queue item for object_id {ASSET} "confidential.mov"',
        f"Found object {ASSET} in finished proxy queue",
    ]


def items(*answers: TestResponse) -> list[str]:
    """What became of the items, of answers that must be 200."""
    assert {answer.status_code for answer in answers} == {200}
    return [answer.json["item"] for answer in answers if answer.json]


def refused(answer: TestResponse, status: int, message: str) -> None:
    assert (answer.status_code, answer.json) == (status, {"message": message})


# Flask's error handlers, as version 3.1 calls them and as 3.2 will


@pytest.mark.parametrize("context", [(), ("a context",)], ids=["Flask 3.1", "Flask 3.2"])
def test_errors_of_our_paths_are_handled_with_and_without_flasks_context(
    listening: Services, context: tuple[Any, ...]
) -> None:
    """Flask-RESTful takes the place of this method of the app."""
    app = create_app(listening)
    with app.test_request_context("/create", method="POST"):
        answer = app.make_response(cast(Any, app).handle_user_exception(*context, NotFound()))
    assert (answer.status_code, bool(answer.get_json()["message"])) == (404, True)


@pytest.mark.parametrize("context", [(), ("a context",)], ids=["Flask 3.1", "Flask 3.2"])
def test_errors_of_other_paths_go_to_flask_as_they_came(listening: Services, context: tuple[Any, ...]) -> None:
    app = create_app(listening)
    router = cast(Any, app.handle_user_exception).func
    error = NotFound()
    with app.test_request_context("/elsewhere"):
        assert router(lambda *arguments: arguments, *context, error) == (*context, error)
