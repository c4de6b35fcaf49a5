from collections.abc import Callable
from typing import Any

import pytest

from events import CREATE, KINDS, PROXY, EventKind
from reconciliation.webhooks import WebhookDefinition, of_our_kinds, ours
from support import ARTICLE_CREATE, ARTICLE_PROXY, ASSET, SECRET

URL = "https://listener.example.com"
TWIN = "https://staging.example.com"
Json = dict[str, Any]
Definition = Callable[..., WebhookDefinition]
each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.path)


def definition(kind: EventKind = CREATE, base: str = URL, **fields: Any) -> Json:
    """A webhook definition as iconik lists it, registered by us, except for `fields`; `secret` is among its headers."""
    secret = fields.pop("secret", SECRET)
    return {
        "id": f"{base}{kind.path}",
        "name": kind.name,
        "url": base + kind.path,
        "event_type": "assets",
        "operation": kind.operations[0],
        "realm": kind.realm,
        "object_id": None,
        "query": kind.query,
        "status": "ENABLED",
        "headers": {"X-Webhook-Secret": secret} if secret else {},
        "date_created": "2026-11-23T16:47:00+00:00",
        **fields,
    }


def pair(base: str = URL, **fields: Any) -> list[Json]:
    return [definition(kind, base, **fields) for kind in KINDS]


def webhook(kind: EventKind = CREATE, **fields: Any) -> WebhookDefinition:
    return WebhookDefinition(kind, definition(kind, **fields))


# Which events are ours


@pytest.mark.parametrize(
    ("kind", "event"),
    [
        (CREATE, ARTICLE_CREATE),
        (PROXY, ARTICLE_PROXY),
        (PROXY, {**ARTICLE_PROXY, "operation": "create"}),
        (CREATE, {"object_id": ASSET}),
        (PROXY, {}),
    ],
)
def test_an_event_of_the_kind_is_included_and_a_missing_field_counts_as_matching(kind: EventKind, event: Json) -> None:
    assert kind.includes(event)
    for field in ("event_type", "operation", "realm"):
        assert kind.includes({name: value for name, value in event.items() if name != field})


@pytest.mark.parametrize("field", ["event_type", "operation", "realm"])
@pytest.mark.parametrize("value", ["collections", "delete", "", None, 1, True, ["assets"], {"create": "entity"}])
def test_an_event_with_one_other_field_is_of_another_kind(field: str, value: object) -> None:
    assert not CREATE.includes({**ARTICLE_CREATE, field: value})
    assert not PROXY.includes({**ARTICLE_PROXY, field: value})


def test_the_events_of_one_kind_are_not_of_the_other() -> None:
    assert not CREATE.includes(ARTICLE_PROXY)
    assert not PROXY.includes(ARTICLE_CREATE)
    assert not CREATE.includes({**ARTICLE_CREATE, "operation": "update"})


# The definition as it should be


def test_a_new_definition_has_all_that_iconik_requires_and_the_secret() -> None:
    create = WebhookDefinition.desired(CREATE, f"{URL}/create", SECRET, {})
    proxy = WebhookDefinition.desired(PROXY, f"{URL}/proxy", SECRET, {})
    assert create.fields == {
        "name": "iconik-listener: new assets",
        "description": "",
        "url": f"{URL}/create",
        "event_type": "assets",
        "operation": "create",
        "realm": "entity",
        "query": "",
        "status": "ENABLED",
        "headers": {"X-Webhook-Secret": SECRET},
    }
    assert proxy.fields == {
        **create.fields,
        "name": "iconik-listener: proxies",
        "url": f"{URL}/proxy",
        "operation": "update",
        "realm": "proxies",
        "query": 'data.status="CLOSED"',
    }
    assert create.id == proxy.id == ""


def test_without_a_secret_none_is_sent() -> None:
    assert WebhookDefinition.desired(CREATE, f"{URL}/create", "", {}).headers == {}
    assert WebhookDefinition.desired(CREATE, f"{URL}/create", "", definition()).headers == {}


@each_kind
def test_what_is_as_desired_has_no_problems_and_stays_as_it_is(kind: EventKind) -> None:
    desired = WebhookDefinition.desired(kind, URL + kind.path, SECRET, {})
    assert desired.problems((SECRET,)) == []
    assert of_our_kinds([desired.fields]) == [desired]
    again = WebhookDefinition.desired(kind, URL + kind.path, SECRET, desired.fields)
    assert again == desired


@each_kind
def test_what_a_person_chose_is_kept(kind: EventKind) -> None:
    headers = {"Authorization": "Basic eA==", "x-webhook-secret": "of before"}
    existing = definition(kind, name="Ours", description="Ask Kim", headers=headers)
    desired = WebhookDefinition.desired(kind, URL + kind.path, SECRET, existing)
    assert (desired.fields["name"], desired.fields["description"]) == ("Ours", "Ask Kim")
    assert desired.headers == {"Authorization": "Basic eA==", "X-Webhook-Secret": SECRET}


LONG = " OR ".join(f'data.title="take  {number}"' for number in range(40))


@pytest.mark.parametrize("query", ['data.type="ASSET"', 'data.status="CLOSED"', "", LONG, 'data.title="a  b"\nAND x=1'])
def test_a_query_on_new_assets_is_kept_letter_for_letter(query: str) -> None:
    existing = definition(CREATE, query=query)
    assert WebhookDefinition.desired(CREATE, f"{URL}/create", SECRET, existing).fields["query"] == query
    assert WebhookDefinition(CREATE, existing).problems((SECRET,)) == []


@pytest.mark.parametrize(
    "query",
    [
        "",
        'data.status="CLOSED"',
        ' data.status = "CLOSED"',
        'data.status="OPEN" OR data.status\n= "CLOSED"',
        f'{LONG} OR data.status="CLOSED"',
    ],
)
def test_a_query_on_proxies_that_lets_the_closed_ones_through_is_kept(query: str) -> None:
    existing = definition(PROXY, query=query)
    assert WebhookDefinition.desired(PROXY, f"{URL}/proxy", SECRET, existing).fields["query"] == query
    assert WebhookDefinition(PROXY, existing).problems((SECRET,)) == []


@pytest.mark.parametrize(
    "query", ['data.status="closed"', 'data.status!="CLOSED"', 'data.status="OPEN"', "data.size>0", "CLOSED", LONG]
)
def test_a_query_that_keeps_closed_proxies_out_is_a_problem_and_replaced(query: str) -> None:
    existing = definition(PROXY, query=query)
    [problem] = WebhookDefinition(PROXY, existing).problems((SECRET,))
    assert problem.startswith(f"has a query of its own: {query[:15]}")
    assert len(problem) < 250
    desired = WebhookDefinition.desired(PROXY, f"{URL}/proxy", SECRET, existing)
    assert desired.fields["query"] == 'data.status="CLOSED"'


@each_kind
@pytest.mark.parametrize(
    "fields", [{"status": "DISABLED"}, {"object_id": ASSET}, {"secret": "other"}, {"headers": None}]
)
def test_what_is_wrong_is_put_right(kind: EventKind, fields: Json) -> None:
    found = webhook(kind, **fields)
    assert len(found.problems((SECRET,))) == 1
    desired = WebhookDefinition.desired(kind, URL + kind.path, SECRET, found.fields)
    assert desired.problems((SECRET,)) == []
    assert desired.fields.get("object_id") is None
    assert ("object_id" in desired.fields) == ("object_id" in fields)  # null takes it away


def test_the_same_definition_is_enabled_without_what_iconik_writes_and_without_null() -> None:
    found = webhook(
        PROXY, status="DISABLED", first_failed_at="2026-11-23T10:00:00+00:00", last_error="504", last_payload="{}",
        description=None, query=None, name="Ours", object_id=ASSET,
    )  # fmt: skip
    assert found.enabled() == {
        "name": "Ours",
        "url": f"{URL}/proxy",
        "event_type": "assets",
        "operation": "update",
        "realm": "proxies",
        "object_id": ASSET,
        "headers": {"X-Webhook-Secret": SECRET},
        "status": "ENABLED",
    }
    assert webhook(PROXY, description="Ask Kim").enabled()["description"] == "Ask Kim"
    assert webhook(PROXY).enabled()["query"] == 'data.status="CLOSED"'


# What is wrong with one


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"status": "FAILING", "last_error": "Connection\nrefused"}, "is FAILING (Connection refused)"),
        ({"status": "DISABLED", "last_error": None}, "is DISABLED (iconik does not say why)"),
        ({"status": None}, "is None (iconik does not say why)"),
        ({"secret": ""}, "does not send webhook_secret as X-Webhook-Secret"),
        ({"secret": "other"}, "does not send webhook_secret as X-Webhook-Secret"),
        ({"headers": {"X-Webhook-Secret2": SECRET}}, "does not send webhook_secret as X-Webhook-Secret"),
        ({"headers": [SECRET]}, "does not send webhook_secret as X-Webhook-Secret"),
        ({"object_id": ASSET}, f"is for one asset only ({ASSET})"),
    ],
)
def test_each_thing_that_keeps_events_from_us_is_a_problem(fields: Json, problem: str) -> None:
    assert webhook(**fields).problems((SECRET,)) == [problem]


def test_all_that_is_wrong_is_told_at_once_and_no_secret_is() -> None:
    found = webhook(PROXY, status="DISABLED", secret="hush", object_id=ASSET, query="data.size>0")
    problems = found.problems((SECRET,))
    assert len(problems) == 4
    assert "hush" not in str(problems)
    assert SECRET not in str(problems)


@pytest.mark.parametrize("header", ["X-Webhook-Secret", "x-webhook-secret", "X-WEBHOOK-SECRET"])
def test_the_secret_is_found_however_its_header_is_written(header: str) -> None:
    assert webhook(headers={"Other": "x", header: SECRET}).problems((SECRET,)) == []


def test_while_the_secret_is_being_changed_either_is_right() -> None:
    for secret in ("new", "old"):
        assert webhook(secret=secret).problems(("new", "old")) == []
    assert webhook(secret="older").problems(("new", "old"))


def test_without_a_secret_configured_any_is_right() -> None:
    assert webhook(secret="").problems(()) == webhook(secret="other").problems(()) == []


# Who disabled one, and whether it lets everything through


@pytest.mark.parametrize(
    ("fields", "by_iconik"),
    [
        ({"status": "DISABLED", "first_failed_at": "2026-11-23T10:00:00+00:00"}, True),
        ({"status": "DISABLED", "last_error": "504 Gateway Timeout"}, True),
        ({"status": "DISABLED"}, False),
        ({"status": "DISABLED", "first_failed_at": None, "last_error": ""}, False),
        ({"status": "FAILING", "last_error": "504"}, False),
        ({"status": "ENABLED", "last_error": "504"}, False),
    ],
)
def test_iconik_disables_for_failing_and_a_person_without(fields: Json, by_iconik: bool) -> None:
    assert webhook(**fields).disabled_by_iconik == by_iconik


@pytest.mark.parametrize(
    ("fields", "lets_all_through"),
    [
        ({}, True),
        ({"query": None}, True),
        ({"query": " \n"}, True),
        ({"status": "FAILING", "last_error": "504"}, True),
        ({"status": "DISABLED", "last_error": "504"}, True),
        ({"status": "DISABLED"}, False),
        ({"status": "DELETED"}, False),
        ({"status": None}, False),
        ({"query": 'data.type="ASSET"'}, False),
        ({"object_id": ASSET}, False),
        ({"status": "DISABLED", "last_error": "504", "query": 'data.type="ASSET"'}, False),
    ],
)
def test_a_webhook_that_a_person_disabled_or_filtered_does_not_let_all_through(
    fields: Json, lets_all_through: bool
) -> None:
    assert webhook(**fields).lets_all_through == lets_all_through


# Which ones are of our kinds


@pytest.mark.parametrize(
    "fields",
    [
        {"url": f"{URL}/create/"},
        {"url": "https://example.com/iconik/create"},
        {"url": "http://10.0.0.1:8000/create"},
        {"url": f"{URL}/create?tenant=1"},
        {"url": f"https://example.com/{'x' * 300}/create"},
        {"status": "DISABLED"},
        {"secret": ""},
        {"operation": None},
        {"realm": None},
    ],
)
def test_a_webhook_for_our_events_and_our_path_is_of_our_kind(fields: Json) -> None:
    [found] = of_our_kinds([definition(**fields)])
    assert found.kind is CREATE
    assert found.url == definition(**fields)["url"].rstrip("/")


def test_a_webhook_for_proxies_may_be_for_either_operation() -> None:
    found = of_our_kinds([definition(PROXY, operation=operation) for operation in ("update", "create", "delete")])
    assert [one.fields["operation"] for one in found] == ["update", "create"]


@pytest.mark.parametrize(
    "fields",
    [
        {"event_type": "collections"},
        {"event_type": None},
        {"operation": "update"},
        {"operation": ["create"]},
        {"realm": "proxies"},
        {"status": "DELETED"},
        {"url": f"{URL}/other"},
        {"url": f"{URL}/recreate"},
        {"url": f"{URL}/create/more"},
        {"url": f"{URL}/?path=/create"},
        {"url": "https://[oops/create"},
        {"url": "/create"},
        {"url": ""},
        {"url": None},
        {"url": 5},
    ],
)
def test_a_webhook_for_anything_else_is_not(fields: Json) -> None:
    assert of_our_kinds([definition(**fields)]) == []
    assert of_our_kinds([{}]) == []


def test_they_come_in_the_order_of_their_kinds() -> None:
    found = of_our_kinds([*reversed(pair()), *reversed(pair(TWIN))])
    assert [one.kind for one in found] == [CREATE, CREATE, PROXY, PROXY]


# Which ones are this listener's own


def urls(found: list[WebhookDefinition]) -> list[str]:
    return [one.url for one in found]


OURS = [f"{URL}/create", f"{URL}/proxy"]


@pytest.mark.parametrize("note", [URL, f"{URL}/"])
def test_with_a_note_those_at_its_url_are_ours_whatever_their_secret(note: str) -> None:
    found = [*pair(TWIN), *pair(secret="of before")]
    assert urls(ours(found, note, (SECRET,))) == OURS
    assert urls(ours([*found, definition()], note, (SECRET,))) == [f"{URL}/create", *OURS]
    assert urls(ours([*pair(TWIN), definition(PROXY)], note, (SECRET,))) == [f"{URL}/proxy"]
    assert ours(pair(TWIN), note, (SECRET,)) == []


@pytest.mark.parametrize("base", [f"{URL}:8443", f"{URL}/staging", "http://listener.example.com", f"{URL}.evil.org"])
def test_with_a_note_a_similar_url_is_not_ours(base: str) -> None:
    assert ours(pair(base), URL, (SECRET,)) == []


@pytest.mark.parametrize("note", [None, ""])
def test_without_a_note_the_only_pair_with_our_secret_is_ours(note: str | None) -> None:
    others = [*pair(TWIN, secret="other"), *pair(TWIN, secret=""), definition(url=f"{URL}/other")]
    assert urls(ours([*others, *reversed(pair())], note, (SECRET,))) == OURS
    assert urls(ours([*others, *pair(secret="old")], note, ("new", "old"))) == OURS
    assert urls(ours([*others[:2], *pair(secret="")], note, ())) == OURS


@pytest.mark.parametrize(
    "found",
    [
        [*pair(), *pair(TWIN)],  # a staging twin has the same secret
        [*pair(status="DISABLED", last_error="504"), *pair(TWIN)],  # or the VM of before has
        [*pair(), definition(CREATE, TWIN)],
        [*pair(), definition(PROXY, operation="create")],
        [definition(CREATE, TWIN), definition(PROXY)],  # one of each, but of two listeners
        [definition(CREATE)],
        [definition(PROXY)],
        [definition(CREATE), definition(CREATE)],
        pair(secret="other"),
        pair(secret=""),
        pair(status="DELETED"),
        [],
    ],
)
def test_without_a_note_it_is_not_told_which_of_several_are_ours(found: list[Json]) -> None:
    assert ours(found, None, (SECRET,)) == []


def test_somebody_elses_definition_may_hold_anything() -> None:
    strange = [
        {},
        {"url": "https://[oops"},
        definition(url="https://[oops/create"),
        definition(headers="x", url=["/create"]),
    ]
    strange += [definition(id=None, name=5, headers={"X-Webhook-Secret": 5}, query=["x"], status=["ENABLED"])]
    found = [*strange, *pair()]
    assert urls(ours(found, URL, (SECRET,))) == [f"{URL}/create", *OURS]
    assert urls(ours(found, None, (SECRET,))) == OURS
    for one in of_our_kinds(found):
        texts = [one.id, one.url, one.status, one.last_error, one.query, one.secret, *one.problems((SECRET,))]
        assert all(isinstance(text, str) and "\n" not in text for text in texts)
        assert WebhookDefinition.desired(one.kind, one.url, SECRET, one.fields).problems((SECRET,)) == []
