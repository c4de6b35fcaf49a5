"""Whatever is posted: never a 5xx, never a row that iconik did not mean, never more than a line in the log."""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from circuit_breaker import CircuitBreaker
from config import Config
from resources import Services, create_app
from store import Store
from submitter import Submitter
from support import ASSET, create_event, proxy_event, rows
from system.log import LogFormatter

BASE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
paths = st.sampled_from(["/create", "/proxy", "/create/", "/proxy/"])
texts = st.text(st.characters(codec=None), max_size=30)  # NUL and lone surrogates are among them
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts | st.sampled_from([ASSET, "CLOSED", 10**400]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=10,
)
FIELDS = ["event_type", "object_id", "operation", "realm", "data"]


@pytest.fixture
def web(store: Store, submitters: Callable[..., Submitter], configs: Callable[..., Config]) -> FlaskClient:
    return create_app(Services(store, submitters(), CircuitBreaker(configs().submitter), ())).test_client()


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.INFO)
    yield
    for record in caplog.records:
        line = LogFormatter(with_priority=False).format(record)
        assert line.isprintable()
        assert record.levelno < logging.ERROR


@given(path=paths, body=st.binary(max_size=300) | texts.map(lambda text: text.encode("utf-8", "surrogatepass")))
@settings(BASE, max_examples=100)
def test_any_bytes(web: FlaskClient, tmp_path: Path, path: str, body: bytes) -> None:
    assert web.post(path, data=body).status_code == 400
    assert rows(tmp_path / "items.db") == []


@given(path=paths, value=values, headers=st.dictionaries(st.just("Content-Type"), st.sampled_from(["", "text/xml"])))
@settings(BASE, max_examples=100)
def test_any_json(web: FlaskClient, tmp_path: Path, path: str, value: Any, headers: dict[str, str]) -> None:
    answer = web.post(path, data=json.dumps(value), headers=headers)
    assert answer.status_code in (200, 400)
    assert answer.status_code == 400 or answer.json == {"object_id": None, "item": "ignored"}
    assert rows(tmp_path / "items.db") == []


@pytest.mark.long
@given(path=paths, field=st.sampled_from(FIELDS), value=values)
@settings(BASE, max_examples=150)
def test_any_value_in_any_field(web: FlaskClient, tmp_path: Path, path: str, field: str, value: Any) -> None:
    event = create_event() if "create" in path else proxy_event()
    answer = web.post(path, data=json.dumps({**event, field: value}))
    assert answer.status_code in (200, 400)
    assert {row["object_id"] for row in rows(tmp_path / "items.db")} <= {ASSET}


@pytest.mark.long
@given(title=values)
@settings(BASE, max_examples=100)
def test_any_title(web: FlaskClient, store: Store, tmp_path: Path, title: Any) -> None:
    store.database.run("DELETE FROM items")
    assert web.post("/create", data=json.dumps(create_event(title=title))).json == {
        "object_id": ASSET,
        "item": "awaiting_proxy",
    }
    [row] = rows(tmp_path / "items.db")
    assert row["title"] is None or (row["title"].isprintable() and len(row["title"]) <= 255)
