"""iconik's menu: what a person chooses there, from `register --actions` to the job."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import requests

from events import AGAIN, SKIP
from faulty_iconik import FaultyIconik
from menu import MENU
from resources import Services, create_app
from support import (
    ASSET,
    OTHER_ASSET,
    SECRET,
    ListenerHere,
    create_event,
    held_by_a_person,
    new_id,
    proxy_event,
    wait_until,
)
from system.server import Server

Listeners = Callable[..., ListenerHere]
PUBLIC = "https://listener.example.com"
TOKEN = "a-persons-own-token"


@pytest.fixture
def registered(listener_here: ListenerHere) -> ListenerHere:
    """A listener whose entries are in iconik's menu."""
    result = listener_here.command("register", "--actions", "--insecure", listener_here.url)
    assert (result.returncode, result.stderr) == (0, "")
    return listener_here


def choose(sandbox: FaultyIconik, title: str, *asset_ids: str, collections: tuple[str, ...] = ()) -> str:
    """Choose an entry of the menu for assets. Returns what the person is told."""
    menu = sandbox.menu("ASSET" if len(asset_ids) == 1 else "BULK")
    answer = sandbox.run_action(menu[title], asset_ids, collections)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "text/plain; charset=utf-8")
    return answer.text.strip()


def finish(listener: ListenerHere, sandbox: FaultyIconik, *asset_ids: str) -> None:
    """Upload assets, and let iconik finish their jobs."""
    listener.upload(*asset_ids)
    wait_until(lambda: len(listener.rows("status = 'submitted'")) == len(asset_ids))
    sandbox.finish_all()
    listener.store.database.run("UPDATE items SET status = 'done'")


def post(listener: ListenerHere, path: str, body: Any, secret: str = SECRET) -> requests.Response:
    return requests.post(listener.url + path, json=body, headers={"X-Webhook-Secret": secret}, timeout=10)


# Again


def test_analyze_again_starts_a_finished_job_again(registered: ListenerHere, sandbox: FaultyIconik) -> None:
    finish(registered, sandbox, ASSET)
    assert choose(sandbox, "Analyze again", ASSET) == "Analyze again: 1 asset will be analyzed again."
    wait_until(lambda: registered.rows("status = 'submitted'"))
    assert (sandbox.jobs, sandbox.forced) == ([ASSET, ASSET], [ASSET])


def test_a_second_click_within_ten_minutes_changes_nothing(registered: ListenerHere, sandbox: FaultyIconik) -> None:
    finish(registered, sandbox, ASSET, OTHER_ASSET)
    both = (ASSET, OTHER_ASSET)
    assert choose(sandbox, "Analyze again", *both) == "Analyze again: 2 assets will be analyzed again."
    assert "Nothing is changed for 2 assets: the analysis is not finished" in choose(sandbox, "Analyze again", *both)
    wait_until(lambda: len(registered.rows("status = 'submitted'")) == 2)
    assert "Nothing is changed for 2 assets" in choose(sandbox, "Analyze again", *both)
    assert len(sandbox.jobs) == 4


def test_an_asset_that_was_never_seen_is_analyzed(registered: ListenerHere, sandbox: FaultyIconik) -> None:
    asset_id = sandbox.create_asset("old.mov", send=False, analyze_status="DONE")
    sandbox.set_proxy(asset_id, send=False)
    told = choose(sandbox, "Analyze again", asset_id)
    assert told == "Analyze again: 1 asset that the listener did not know will be analyzed."
    wait_until(lambda: registered.rows("status = 'submitted' AND source = 'menu'"))
    assert sandbox.forced == [asset_id]
    assert "a person added it from iconik's menu" in " ".join(registered.command("show", asset_id).stdout.split())


def test_an_asset_of_which_only_a_proxy_is_known_is_analyzed(registered: ListenerHere, sandbox: FaultyIconik) -> None:
    """It is older than the listener, and somebody made it a proxy today."""
    asset_id = sandbox.create_asset("old.mov", send=False)
    sandbox.set_proxy(asset_id, send=False)
    registered.post("/proxy", proxy_event(asset_id))
    assert registered.rows("status = 'awaiting_create'")
    told = choose(sandbox, "Analyze again", asset_id)
    assert told == "Analyze again: 1 asset that the listener did not know will be analyzed."
    wait_until(lambda: registered.rows("status = 'submitted' AND source = 'menu' AND title = 'old.mov'"))
    assert sandbox.jobs == [asset_id]


def test_the_analysis_is_started_though_it_was_skipped_and_other_jobs_only_where_they_were_done(
    listeners_here: Listeners, sandbox: FaultyIconik
) -> None:
    listener = listeners_here(submitter__jobs="analyze transcribe faces").start()
    listener.command("register", "--actions", "--insecure", listener.url)
    listener.submitter.stop()
    listener.store.add_asset(ASSET, "a.mov")
    listener.store.database.run(
        "UPDATE items SET proxy_closed_at = created_at, status = iif(job = 'faces', 'done', 'skipped')"
    )
    choose(sandbox, "Analyze again", ASSET)
    statuses = {row["job"]: row["status"] for row in listener.rows()}
    assert statuses == {"analyze": "ready", "transcribe": "skipped", "faces": "ready"}


def test_what_iconik_has_not_finished_is_told(registered: ListenerHere, sandbox: FaultyIconik) -> None:
    registered.upload(ASSET)
    wait_until(lambda: registered.rows("status = 'submitted'"))
    told = "Analyze again: 1 asset will be analyzed again. What iconik has not finished yet is left as it is."
    assert choose(sandbox, "Analyze again", ASSET) == told
    wait_until(lambda: registered.rows("status = 'submitted'"))
    assert sandbox.jobs == [ASSET]


def test_what_is_being_started_cannot_be_skipped_and_that_is_told(
    registered: ListenerHere, sandbox: FaultyIconik
) -> None:
    with sandbox.changed:  # until this is released, iconik does not answer
        registered.upload(ASSET)
        wait_until(lambda: registered.rows("status = 'submitting'"))
        again, skip = (
            post(registered, action.path, {"context": "ASSET", "asset_ids": [ASSET]}).text for action in (AGAIN, SKIP)
        )
    told = "Do not analyze: 1 asset is being started just now, and may still fail: choose this again in a minute.\n"
    assert skip == told
    assert "Nothing is changed for 1 asset: the analysis is not finished yet" in again


def test_the_webhook_that_comes_later_tells_the_title(registered: ListenerHere, sandbox: FaultyIconik) -> None:
    assert "will not be analyzed" in choose(sandbox, "Do not analyze", ASSET)
    registered.post("/create", create_event(ASSET, title="holiday.mov"))
    assert [row["title"] for row in registered.rows()] == ["holiday.mov"]


def test_what_the_limit_or_a_pause_holds_is_told(listeners_here: Listeners, sandbox: FaultyIconik) -> None:
    listener = listeners_here(limits__max_per_day=1).start()
    listener.command("register", "--actions", "--insecure", listener.url)
    finish(listener, sandbox, ASSET)
    assert choose(sandbox, "Analyze again", ASSET).endswith("this waits until 00:00 UTC.")
    listener.command("pause")
    assert choose(sandbox, "Analyze again", ASSET).endswith("so this waits until it goes on.")


# Skip


def test_do_not_analyze_skips_what_waits(registered: ListenerHere, sandbox: FaultyIconik) -> None:
    registered.post("/create", create_event(ASSET))
    assert choose(sandbox, "Do not analyze", ASSET) == "Do not analyze: 1 asset will not be analyzed."
    [row] = registered.rows()
    assert (row["status"], row["error"]) == ("skipped", "skipped from iconik's menu")
    told = choose(sandbox, "Do not analyze", ASSET)
    assert told.endswith("Nothing is changed for 1 asset: the analysis has been started, or it was skipped before.")


def test_what_is_skipped_before_it_is_seen_is_not_analyzed(registered: ListenerHere, sandbox: FaultyIconik) -> None:
    assert choose(sandbox, "Do not analyze", ASSET) == "Do not analyze: 1 asset will not be analyzed."
    registered.upload(ASSET, OTHER_ASSET)
    wait_until(lambda: registered.rows("status = 'submitted'"))
    assert sandbox.jobs == [OTHER_ASSET]
    assert [row["object_id"] for row in registered.rows("status = 'skipped'")] == [ASSET]


def test_do_not_analyze_leaves_alone_what_was_started(registered: ListenerHere, sandbox: FaultyIconik) -> None:
    finish(registered, sandbox, ASSET)
    assert "Nothing is changed for 1 asset" in choose(sandbox, "Do not analyze", ASSET)
    assert [row["status"] for row in registered.rows()] == ["done"]


# What comes with it


def test_collections_are_named_as_not_followed(registered: ListenerHere, sandbox: FaultyIconik) -> None:
    collections = [new_id() for _ in range(7)]
    told = choose(sandbox, "Do not analyze", ASSET, OTHER_ASSET, collections=tuple(collections))
    assert "2 assets will not be analyzed." in told
    assert f"7 collections are not followed ({', '.join(collections[:5])} and 2 more)" in told
    [entry] = [one for title, one in sandbox.menu("BULK").items() if title == SKIP.title]
    told = sandbox.run_action(entry, [], collections[:1]).text
    assert f"No asset was chosen. 1 collection is not followed ({collections[0]})" in told


def test_five_hundred_assets_of_three_jobs_are_one_answer(listeners_here: Listeners, sandbox: FaultyIconik) -> None:
    listener = listeners_here(submitter__jobs="analyze transcribe faces").start()
    listener.command("pause")
    listener.command("register", "--actions", "--insecure", listener.url)
    asset_ids = [new_id() for _ in range(500)]
    assert "500 assets that the listener did not know" in choose(sandbox, "Analyze again", *asset_ids)
    assert "500 assets will not be analyzed." in choose(sandbox, "Do not analyze", *asset_ids)
    assert len(listener.rows("status = 'skipped'")) == 1500


def test_the_persons_token_is_neither_kept_nor_logged(
    registered: ListenerHere, sandbox: FaultyIconik, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("DEBUG"):
        choose(sandbox, "Analyze again", ASSET)
        choose(sandbox, "Do not analyze", ASSET, OTHER_ASSET)
    assert "From iconik's menu, by user 00000000-0000-0000-0000-000000000002" in caplog.text
    assert TOKEN not in caplog.text
    written = [path.read_bytes() for path in registered.config.parent.iterdir() if path.name.startswith("items.db")]
    assert len(written) > 2
    assert not any(TOKEN.encode() in content for content in written)


# What is refused


@pytest.mark.parametrize("path", [AGAIN.path, SKIP.path, f"{AGAIN.path}/"])
@pytest.mark.parametrize("secret", ["", "wrong"])
def test_without_the_secret_nothing_is_done(listener_here: ListenerHere, path: str, secret: str) -> None:
    body = {"context": "ASSET", "asset_ids": [ASSET], "auth_token": TOKEN}
    assert post(listener_here, path, body, secret).status_code == 401
    assert listener_here.rows() == []


def test_the_resources_ask_for_the_secret_themselves(listener_here: ListenerHere) -> None:
    """The server has asked for it before it read the body."""
    listener = listener_here
    services = Services(listener.store, listener.submitter, listener.breaker, (SECRET,))
    client = create_app(services, MENU).test_client()
    for path in (AGAIN.path, SKIP.path):
        assert client.post(path, json={"context": "ASSET", "asset_ids": [ASSET]}).status_code == 401
    assert listener.rows() == []


def test_a_listener_without_a_secret_takes_no_action(listeners_here: Listeners) -> None:
    """Anybody could have assets analyzed, and billed, again and again."""
    listener = listeners_here(listener__webhook_secret="").start()
    assert post(listener, AGAIN.path, {"context": "ASSET", "asset_ids": [ASSET]}).status_code == 403
    assert listener.rows() == []
    result = listener.command("register", "--yes", "--actions", PUBLIC)
    assert (result.returncode, "set webhook_secret" in result.stderr) == (2, True)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ([], 400, "must be a JSON object"),
        ({"context": "ASSET"}, 400, "asset_ids must be a list"),
        ({"context": "ASSET", "asset_ids": ASSET}, 400, "asset_ids must be a list"),
        ({"context": "BULK", "asset_ids": ["a", 1, None]}, 200, "3 of the assets' ids cannot be understood"),
        ({"context": "COLLECTION", "asset_ids": [ASSET]}, 200, "only assets can be chosen"),
        ({"context": ["ASSET"], "asset_ids": [ASSET]}, 200, "only assets can be chosen"),
        ({"event_type": "iconik-listener"}, 200, "ignored"),
    ],
)
def test_an_odd_body_changes_nothing(listener_here: ListenerHere, body: Any, status: int, words: str) -> None:
    answer = post(listener_here, AGAIN.path, body)
    assert (answer.status_code, words in answer.text) == (status, True)
    assert listener_here.rows() == []


def test_more_assets_than_a_request_may_hold_are_refused(listener_here: ListenerHere) -> None:
    body = {"context": "BULK", "asset_ids": [new_id() for _ in range(2000)]}
    answer = post(listener_here, SKIP.path, body)
    assert (answer.status_code, "too many assets were chosen" in answer.text) == (413, True)
    assert listener_here.rows() == []


def test_while_the_database_is_locked_the_person_is_told(registered: ListenerHere, sandbox: FaultyIconik) -> None:
    with registered.store.database.waiting_up_to(0.05), held_by_a_person(registered.database):
        answer = sandbox.run_action(sandbox.menu("ASSET")["Do not analyze"], [ASSET])
    assert (answer.status_code, answer.text) == (
        503,
        "Do not analyze: this cannot be stored just now. Try it again later.\n",
    )


# register and check


def definitions(sandbox: FaultyIconik) -> list[tuple[str, ...]]:
    return [(one["url"], one["context"], one["title"], one["type"]) for one in sandbox.custom_actions.values()]


def test_register_puts_four_definitions_into_the_menu(listener_here: ListenerHere, sandbox: FaultyIconik) -> None:
    result = listener_here.command("register", "--yes", "--actions", PUBLIC)
    assert result.returncode == 0
    assert result.stdout.splitlines()[2:] == [
        f"{PUBLIC}/actions/again for ASSET: created",
        f"{PUBLIC}/actions/again for BULK: created",
        f"{PUBLIC}/actions/skip for ASSET: created",
        f"{PUBLIC}/actions/skip for BULK: created",
    ]
    assert definitions(sandbox) == [
        (f"{PUBLIC}{action.path}", context, action.title, "POST")
        for action in (AGAIN, SKIP)
        for context in ("ASSET", "BULK")
    ]
    assert all(one["headers"] == {"X-Webhook-Secret": SECRET} for one in sandbox.custom_actions.values())
    before = len([request for request in sandbox.requests if not request.startswith("GET")])
    assert listener_here.command("register", "--yes", "--actions", PUBLIC).stdout.count("as it should be") == 6
    assert len([request for request in sandbox.requests if not request.startswith("GET")]) == before


def test_register_tries_the_way_from_the_menu_first(listener_here: ListenerHere, sandbox: FaultyIconik) -> None:
    """The Caddyfile of an older version, or an older listener, takes the webhooks only."""
    services = Services(listener_here.store, listener_here.submitter, listener_here.breaker, (SECRET,))
    older = Server(create_app(services), "127.0.0.1", 0)
    thread = threading.Thread(target=older.run, args=(lambda: None,))
    thread.start()
    url = f"http://{older.address}"
    result = listener_here.command("register", "--actions", "--insecure", url)
    older.stop()
    thread.join()
    older.drain()
    assert result.returncode == 1
    assert f"{url}/actions/again: something other than this listener answers there (404)" in result.stderr
    assert sandbox.webhooks == sandbox.custom_actions == {}


def test_a_plain_register_gives_the_menu_a_new_secret(listener_here: ListenerHere, sandbox: FaultyIconik) -> None:
    listener_here.command("register", "--yes", "--actions", PUBLIC)
    renamed = next(iter(sandbox.custom_actions.values()))
    renamed.update(title="Neu analysieren", headers={"X-Mine": "1", **renamed["headers"]})
    listener_here.config.write_text(listener_here.config.read_text().replace(SECRET, f"new {SECRET}"))
    assert listener_here.command("register", "--yes", PUBLIC).stdout.count(": updated\n") == 4
    assert {one["headers"]["X-Webhook-Secret"] for one in sandbox.custom_actions.values()} == {"new"}
    assert (renamed["title"], renamed["headers"]["X-Mine"]) == ("Neu analysieren", "1")


def test_a_plain_register_puts_nothing_into_the_menu(listener_here: ListenerHere, sandbox: FaultyIconik) -> None:
    sandbox.roles -= {"can_read_custom_actions", "can_write_custom_actions", "can_delete_custom_actions"}
    assert listener_here.command("register", "--yes", PUBLIC).returncode == 0
    assert listener_here.command("register", "--remove", PUBLIC).returncode == 0
    assert sandbox.custom_actions == {}


def test_register_names_the_role_for_the_menu_first(listener_here: ListenerHere, sandbox: FaultyIconik) -> None:
    sandbox.roles.discard("can_read_custom_actions")
    result = listener_here.command("register", "--yes", "--actions", PUBLIC)
    assert (result.returncode, "can_read_custom_actions" in result.stderr) == (1, True)
    assert sandbox.webhooks == {}


def test_remove_takes_only_ours_out_of_the_menu(registered: ListenerHere, sandbox: FaultyIconik) -> None:
    others = {"id": "1", "context": "ASSET", "title": "Analyze again", "url": f"{PUBLIC}/actions/again"}
    sandbox.custom_actions["1"] = dict(others)
    result = registered.command("register", "--remove", registered.url)
    assert (result.returncode, result.stdout.count(": deleted")) == (0, 6)
    assert sandbox.custom_actions == {"1": others}
    assert registered.store.state("registered_actions") == ""


def check(listener: ListenerHere) -> str:
    return listener.command("check").stdout


def test_check_tries_the_way_from_the_menu(registered: ListenerHere, sandbox: FaultyIconik) -> None:
    text = check(registered)
    assert '"Analyze again" is in iconik\'s menu, for one asset and for several' in text
    for action in (AGAIN, SKIP):
        assert f"ok     {registered.url}{action.path} reaches this listener, and the secret is right" in text


def test_check_says_what_the_menu_lacks(registered: ListenerHere, sandbox: FaultyIconik) -> None:
    again_asset, again_bulk, skip_asset, skip_bulk = sandbox.custom_actions.values()
    del sandbox.custom_actions[again_bulk["id"]]
    again_asset.update(disabled=True)
    skip_asset.update(headers={})
    skip_bulk.update(status="FAILING", last_error="502 Bad Gateway")
    text = check(registered)
    url = registered.url
    assert f"WRONG  iconik's menu has no /actions/again for BULK at {url}" in text
    assert f"WRONG  {url}/actions/again for ASSET, in iconik's menu, is disabled. Once the cause is fixed" in text
    assert f"WRONG  {url}/actions/skip for ASSET, in iconik's menu, does not send webhook_secret" in text
    assert f"WRONG  {url}/actions/skip for BULK, in iconik's menu, is FAILING (502 Bad Gateway)" in text
    repaired = registered.command("register", "--actions", "--insecure", url).stdout
    assert [repaired.count(word) for word in (": created", ": updated")] == [1, 2]


def test_check_tells_of_the_menus_roles_only_where_it_is_used(
    listener_here: ListenerHere, sandbox: FaultyIconik
) -> None:
    sandbox.roles -= {"can_write_custom_actions", "can_delete_custom_actions"}
    assert "custom_actions" not in check(listener_here)
    listener_here.store.set_state("registered_actions", PUBLIC)
    assert check(listener_here).count("note   the role can_") == 2
