"""register: the two webhooks at iconik, created, put in order and removed."""

import sys
from typing import Any

import pytest

from faulty_iconik import Fault, FaultyIconik
from store import Store
from support import SECRET, ListenerHere, wait_until

PUBLIC = "https://listener.example.com"
OURS = {"X-Webhook-Secret": SECRET}
DEFINED = [
    (f"{PUBLIC}/create", "assets", "create", "entity", "", "ENABLED"),
    (f"{PUBLIC}/proxy", "assets", "update", "proxies", 'data.status="CLOSED"', "ENABLED"),
]
WHY_NOT = b'{"errors": ["No"]}'
AS_THEY_SHOULD_BE = f"{PUBLIC}/create: as it should be\n{PUBLIC}/proxy: as it should be\n"


@pytest.fixture(autouse=True)
def public_leads_here(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """PUBLIC is this listener's, wherever it is, but for the tests of the route."""
    if "route" not in request.node.name:
        monkeypatch.setattr(sys.modules["commands.register"], "route_fault", lambda *_: None)


@pytest.fixture
def store(listener_here: ListenerHere) -> Store:
    return listener_here.store


def definitions(sandbox: FaultyIconik) -> list[tuple[str, ...]]:
    keys = ("url", "event_type", "operation", "realm", "query", "status")
    return [tuple(webhook.get(key) or "" for key in keys) for webhook in sandbox.webhooks.values()]


def changes(sandbox: FaultyIconik) -> list[str]:
    """The requests that changed something at iconik."""
    return [request for request in sandbox.requests if not request.startswith("GET")]


@pytest.mark.parametrize(
    ("fault", "is_put_back"), [({"status": 403}, True), ({"status": 503}, True), ({"cut": True}, False)]
)
def test_a_register_that_wrote_nothing_leaves_no_trace(
    listener_here: ListenerHere, sandbox: FaultyIconik, store: Store, fault: dict[str, Any], is_put_back: bool
) -> None:
    """Otherwise the next look would pass over what an outage missed. What may have been written counts as written."""
    listener_here.command("register", PUBLIC)
    keys = ("webhook_fingerprint", "pass_over_until_seen", "registered_url", "assets_seen_until")
    before = [store.state(key) for key in keys]
    sandbox.faults.append(Fault("POST /API/notifications/v1/webhooks/", body=WHY_NOT, **fault))
    assert listener_here.command("register", "https://other.example.com").returncode == 1
    assert ([store.state(key) for key in keys] == before) == is_put_back


def test_register_creates_the_two_webhooks_and_a_second_run_changes_nothing(
    listener_here: ListenerHere, sandbox: FaultyIconik, store: Store
) -> None:
    result = listener_here.command("register", PUBLIC)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"{PUBLIC}/create: created\n{PUBLIC}/proxy: created\n"
    assert definitions(sandbox) == DEFINED
    assert all(webhook["headers"] == OURS for webhook in sandbox.webhooks.values())
    assert all(webhook["name"].startswith("iconik-listener: ") for webhook in sandbox.webhooks.values())
    assert store.state("registered_url") == PUBLIC
    result = listener_here.command("register", "https://Listener.Example.com/")
    assert (result.returncode, result.stdout) == (0, AS_THEY_SHOULD_BE)
    assert len(changes(sandbox)) == 2


def test_a_list_that_comes_in_pages_makes_no_second_pair(listener_here: ListenerHere, sandbox: FaultyIconik) -> None:
    """A1: ours are on the last pages."""
    sandbox.list_page_size = 1
    sandbox.register("https://staging.example.com", OURS)
    listener_here.command("register", PUBLIC)
    assert listener_here.command("register", PUBLIC).stdout == AS_THEY_SHOULD_BE
    assert definitions(sandbox)[2:] == DEFINED


def test_registered_webhooks_reach_the_listener(listener_here: ListenerHere, sandbox: FaultyIconik) -> None:
    assert listener_here.command("register", "--insecure", listener_here.url).returncode == 0
    asset_id = sandbox.create_asset("a.mov")
    sandbox.set_proxy(asset_id, "OPEN")
    sandbox.set_proxy(asset_id)
    assert [(path, status) for path, _, status in sandbox.deliveries] == [("/create", 200), ("/proxy", 200)]
    wait_until(lambda: listener_here.rows("status = 'submitted'"))


def test_from_register_on_missed_assets_are_found(listener_here: ListenerHere, store: Store) -> None:
    """What was created before is passed over: there was no /create webhook. iconik's times have no fractions."""
    before = store.now()[:19]
    assert listener_here.command("register", PUBLIC).returncode == 0
    assert before <= str(store.state("assets_floor"))[:19] <= store.now(1)[:19]


def test_register_puts_a_disabled_webhook_back_in_use_and_keeps_what_a_person_chose(
    listener_here: ListenerHere, sandbox: FaultyIconik
) -> None:
    sandbox.register(PUBLIC, OURS)
    create, proxy = sandbox.webhooks.values()
    query = 'data.title="a  b" OR ' * 20 + 'data.title="c"'
    mine = {"name": "Mine", "description": "My own", "query": query}
    create.update(mine, status="DISABLED", headers={"X-Mine": "1", "x-webhook-secret": "old"})
    proxy.update(query="", name="Proxies", description="", status="FAILING", last_error="500")
    result = listener_here.command("register", PUBLIC)
    assert result.stdout == f"{PUBLIC}/create: updated (it was DISABLED)\n{PUBLIC}/proxy: updated (it was FAILING)\n"
    create, proxy = sandbox.webhooks.values()
    assert {key: create[key] for key in mine} == mine
    assert create["headers"] == {"X-Mine": "1", "X-Webhook-Secret": SECRET}
    assert [webhook["status"] for webhook in (create, proxy)] == ["ENABLED", "ENABLED"]
    assert (proxy["query"], proxy["name"]) == ("", "Proxies")
    assert listener_here.command("register", PUBLIC).stdout == AS_THEY_SHOULD_BE


@pytest.mark.parametrize(
    ("change", "becomes"),
    [
        ({"query": 'data.status="closed"'}, {"query": 'data.status="CLOSED"'}),
        ({"object_id": "2b45a8ca-f0b4-11e7-a36b-0a580a00054a"}, {"object_id": None}),
        ({"headers": {}}, {"headers": OURS}),
    ],
)
def test_register_mends_what_keeps_events_from_us(
    listener_here: ListenerHere, sandbox: FaultyIconik, change: dict[str, Any], becomes: dict[str, Any]
) -> None:
    sandbox.register(PUBLIC, OURS)
    _, proxy = sandbox.webhooks.values()
    proxy.update(change)
    listener_here.command("register", PUBLIC)
    proxy = sandbox.webhooks[proxy["id"]]
    assert {key: proxy[key] for key in becomes} == becomes
    assert definitions(sandbox) == DEFINED


def test_the_webhooks_of_a_staging_twin_are_left_alone(
    listener_here: ListenerHere, sandbox: FaultyIconik, store: Store
) -> None:
    sandbox.register("https://staging.example.com", OURS)
    for webhook in sandbox.webhooks.values():
        webhook["status"] = "DISABLED"
    before = {key: dict(webhook) for key, webhook in sandbox.webhooks.items()}
    listener_here.command("register", PUBLIC)
    assert {key: sandbox.webhooks[key] for key in before} == before
    assert definitions(sandbox)[2:] == DEFINED
    listener_here.command("register", "--remove", PUBLIC)
    assert sandbox.webhooks == before
    assert store.state("registered_url") == ""


def test_of_two_secrets_the_first_is_registered(listener_here: ListenerHere, sandbox: FaultyIconik) -> None:
    listener_here.config.write_text(listener_here.config.read_text().replace(SECRET, f"new {SECRET}"))
    listener_here.command("register", PUBLIC)
    assert [webhook["headers"]["X-Webhook-Secret"] for webhook in sandbox.webhooks.values()] == ["new", "new"]


def test_without_a_secret_register_says_so(listeners_here: Any, sandbox: FaultyIconik) -> None:
    listener = listeners_here(listener__webhook_secret="").start()
    result = listener.command("register", PUBLIC)
    assert result.stderr == "note: no webhook_secret is set in config.ini: the webhooks are registered without\n"
    assert definitions(sandbox) == DEFINED
    assert listener.command("register", PUBLIC).stdout == AS_THEY_SHOULD_BE


# Whether this listener answers there: the route


def test_the_route_is_tried_with_all_headers_before_anything_is_changed(
    listener_here: ListenerHere, sandbox: FaultyIconik, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox.register(PUBLIC, {"X-Gateway": "let me in"})
    tried: list[tuple[str, dict[str, str]]] = []

    def route_fault(url: str, headers: dict[str, str]) -> None:
        assert changes(sandbox) == []
        tried.append((url, headers))

    monkeypatch.setattr(sys.modules["commands.register"], "route_fault", route_fault)
    assert listener_here.command("register", PUBLIC).returncode == 0
    assert tried == [(f"{PUBLIC}/{path}", {"X-Gateway": "let me in", **OURS}) for path in ("create", "proxy")]


def test_where_the_route_leads_to_another_listener_nothing_is_registered(
    listener_here: ListenerHere, sandbox: FaultyIconik, store: Store
) -> None:
    """N8: iconik would send the secret there, with each event."""
    listener_here.config.write_text(listener_here.config.read_text().replace(SECRET, "new"))
    result = listener_here.command("register", "--insecure", listener_here.url)
    assert (result.returncode, result.stdout) == (1, "")
    words = "the listener there does not accept the secret of config.ini: restart the listener"
    assert result.stderr.splitlines() == [
        f"{listener_here.url}/create: {words}",
        f"{listener_here.url}/proxy: {words}",
        "Error: nothing was registered. If iconik reaches this listener there all the same, add --yes",
    ]
    assert (changes(sandbox), sandbox.webhooks, store.state("registered_url")) == ([], {}, None)


def test_a_route_that_cannot_be_tried_needs_yes(listener_here: ListenerHere, sandbox: FaultyIconik) -> None:
    wrong = "https://listner.invalid"
    result = listener_here.command("register", wrong)
    assert (result.returncode, sandbox.webhooks) == (1, {})
    assert "listner.invalid" in result.stderr.splitlines()[0]
    assert (
        listener_here.command("register", "--yes", wrong).stdout == f"{wrong}/create: created\n{wrong}/proxy: created\n"
    )
    assert listener_here.command("register", "--remove", wrong).returncode == 0


# --remove


def test_what_was_registered_at_a_wrong_host_is_taken_back(
    listener_here: ListenerHere, sandbox: FaultyIconik, store: Store
) -> None:
    wrong = "http://listner.example.com"
    listener_here.command("register", "--insecure", wrong)
    assert store.state("registered_url") == wrong
    listener_here.command("register", PUBLIC)
    result = listener_here.command("register", "--remove", wrong)
    assert (result.returncode, result.stdout) == (0, f"{wrong}/create: deleted\n{wrong}/proxy: deleted\n")
    assert definitions(sandbox) == DEFINED
    assert store.state("registered_url") == PUBLIC
    result = listener_here.command("register", "--remove", wrong)
    assert (result.returncode, result.stdout) == (0, "")
    assert result.stderr == f"iconik has no webhooks of this listener at {wrong}\n"


def test_before_the_first_start_register_says_to_run_it_again(listeners_here: Any, sandbox: FaultyIconik) -> None:
    listener = listeners_here()
    result = listener.command("register", PUBLIC)
    assert result.returncode == 0
    assert definitions(sandbox) == DEFINED
    assert result.stderr == "note: the listener has not run yet: after its first start, run this command again\n"
    assert not listener.database.exists()
    result = listener.command("register", "--remove", PUBLIC)
    assert (result.returncode, result.stderr) == (0, "")


# What will not do


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://listener.example.com", "--insecure"),
        ("listener.example.com", "like https://"),
        ("ftp://listener.example.com", "like https://"),
        ("https://", "like https://"),
        ("https://:8000", "like https://"),
        ("https://[", "like https://"),
        ("https://listener.example.com:port", "like https://"),
        ("https://listener.example.com:0", "like https://"),
        ("https://listener example.com", "like https://"),
        ("https://listener.example.com\n", "like https://"),
        (f"{PUBLIC}/?secret=1", "like https://"),
        (f"{PUBLIC}#here", "like https://"),
        (f"{PUBLIC}/create", "without /create or /proxy"),
        (f"{PUBLIC}/behind/proxy/", "without /create or /proxy"),
    ],
)
def test_register_refuses_a_url_that_will_not_do(
    listeners_here: Any, sandbox: FaultyIconik, url: str, words: str
) -> None:
    result = listeners_here().command("register", url)
    assert result.returncode == 2
    assert words in result.stderr
    assert sandbox.requests == []


@pytest.mark.parametrize(
    ("role", "arguments"),
    [
        ("can_read_webhooks", [PUBLIC]),
        ("can_write_webhooks", [PUBLIC]),
        ("can_delete_webhooks", ["--remove", "https://old.example.com"]),
    ],
)
def test_register_names_the_role_that_is_missing(
    listener_here: ListenerHere, sandbox: FaultyIconik, store: Store, role: str, arguments: list[str]
) -> None:
    sandbox.register("https://old.example.com", OURS)
    sandbox.roles.discard(role)
    result = listener_here.command("register", *arguments)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert role in result.stderr
    assert store.state("registered_url") is None
