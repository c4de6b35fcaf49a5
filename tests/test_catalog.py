"""The calls of the reconciler and the commands: what is read to its end, and what is no answer."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from faulty_iconik import Fault, FaultyIconik
from iconik_client import IconikClient, IconikForbidden, IconikServerError, IconikUnavailable
from reconciliation.catalog import FoundAsset, IconikCatalog, Page
from sandbox import profile
from support import ASSET

SINCE, UNTIL = "2026-11-22T00:00:00.000Z", "2026-11-26T00:00:00.000Z"
DAY = "2026-11-23T12:00:00.000000+00:00"
Json = dict[str, Any]


@pytest.fixture
def catalog(client: IconikClient) -> IconikCatalog:
    return IconikCatalog(client)


def ids(pages: list[Page]) -> list[str]:
    return [asset.object_id for page in pages for asset in page.assets]


def create(sandbox: FaultyIconik, count: int, **fields: Any) -> list[str]:
    return [sandbox.create_asset("a.mov", send=False, **{"date_created": DAY, **fields}) for _ in range(count)]


# Assets.


@pytest.mark.parametrize("count", [0, 1, 99, 100, 101, 350])
@pytest.mark.parametrize("keys", [("date_created", "id"), ("date_created",)])
def test_any_number_is_found_though_all_are_of_one_moment(
    sandbox: FaultyIconik, catalog: IconikCatalog, count: int, keys: tuple[str, ...]
) -> None:
    sandbox.sort_keys = keys
    created = create(sandbox, count)
    pages = list(catalog.assets(SINCE, UNTIL))
    assert set(ids(pages)) == set(created)
    assert (sum(page.read for page in pages), pages[0].total) == (count, count)


@pytest.mark.parametrize(
    "pages",
    [
        pytest.param(lambda path, objects: objects[:-1] if len(objects) > 1 else objects, id="one filtered out"),
        pytest.param(lambda path, objects: objects[:50], id="capped"),
        pytest.param(lambda path, objects: [*objects[:-1], None] if len(objects) > 1 else objects, id="null"),
    ],
)
def test_a_short_page_is_not_the_last(
    sandbox: FaultyIconik, catalog: IconikCatalog, pages: Callable[[str, list[Any]], list[Any]]
) -> None:
    create(sandbox, 350)
    sandbox.pages = lambda path, objects: pages(path, objects) if "search" in path else objects
    assert len(set(ids(list(catalog.assets(SINCE, UNTIL))))) >= 340


def test_a_search_that_goes_round_in_a_circle_is_an_error(sandbox: FaultyIconik, catalog: IconikCatalog) -> None:
    body = json.dumps({"objects": [{"id": ASSET, "_sort": [1, "a"]}], "total": 9}).encode()
    sandbox.faults.append(Fault("search/", status=200, body=body, times=9))
    with pytest.raises(IconikUnavailable, match="does not lead to its next page"):
        list(catalog.assets(SINCE, UNTIL))


def test_assets_are_found_by_the_date_of_their_import_too(sandbox: FaultyIconik, catalog: IconikCatalog) -> None:
    [old] = create(sandbox, 1, date_created="2001-01-01T00:00:00+00:00", date_imported=DAY)
    create(sandbox, 1, date_created="2001-01-01T00:00:00+00:00", date_imported="2001-01-01T00:00:00+00:00")
    assert ids(list(catalog.assets(SINCE, UNTIL))) == [old]


def test_a_query_leaves_others_out(sandbox: FaultyIconik, catalog: IconikCatalog) -> None:
    create(sandbox, 2)
    image = sandbox.create_asset("a.jpg", send=False, date_created=DAY)
    assert ids(list(catalog.assets(SINCE, UNTIL, "media_type:image"))) == [image]
    assert catalog.count_assets(SINCE, UNTIL, "media_type:image") == 1


def test_an_asset_is_typed() -> None:
    found = FoundAsset.of({"id": ASSET.upper(), "title": "a\nb", "media_type": "Video", "duration_milliseconds": 1500})
    assert (found.object_id, found.title, found.media_type, found.duration) == (ASSET, "a b", "video", 1.5)
    assert FoundAsset.of({"id": 5, "media_type": [], "title": {}}).media_type is None


def test_media_types_and_durations_are_asked_for_by_id(sandbox: FaultyIconik, catalog: IconikCatalog) -> None:
    [one, _] = create(sandbox, 2)
    [found] = catalog.measures([one])
    assert (found.object_id, found.media_type, found.duration) == (one, "video", 60.0)


# Lists.


def test_lists_in_pages_are_read_to_their_end(
    sandbox: FaultyIconik, catalog: IconikCatalog, client: IconikClient
) -> None:
    sandbox.list_page_size = 2
    sandbox.profiles = [profile(f"P{number}", "video") for number in range(7)]
    sandbox.automations = [{"id": str(number), "status": "ACTIVE"} for number in range(7)]
    for number in range(4):
        sandbox.register(f"http://listener{number}.example.com")
    assert len(client.profiles()) == 7
    assert len(catalog.automations()) == 7
    assert len(catalog.webhooks()) == 8


@pytest.mark.parametrize("body", [b"{}", b'{"objects": null}', b'{"objects": {}}', b"[]", b"<html>", b""])
def test_an_answer_without_the_list_is_not_an_empty_list(
    sandbox: FaultyIconik, catalog: IconikCatalog, body: bytes
) -> None:
    for call in (catalog.webhooks, catalog.automations, lambda: list(catalog.assets(SINCE, UNTIL))):
        sandbox.faults.append(Fault(status=200, body=body))
        with pytest.raises(IconikUnavailable):
            call()


def test_jobs_are_asked_for_by_their_ids(sandbox: FaultyIconik, catalog: IconikCatalog) -> None:
    [asset_id] = create(sandbox, 1)
    job_ids = [sandbox.start_job(asset_id) for _ in range(3)]
    assert {job.id for job in catalog.jobs([*job_ids[:2], "unknown"])} == set(job_ids[:2])


# Who we are, and webhooks.


@pytest.mark.parametrize(
    ("body", "name"),
    [(b'{"email": "a@b", "id": "x"}', "a@b"), (b'{"first_name": "A", "id": "x"}', "A"), (b'{"id": "x"}', "x")],
)
def test_the_user_is_named_by_what_iconik_shows(
    sandbox: FaultyIconik, catalog: IconikCatalog, body: bytes, name: str
) -> None:
    sandbox.faults.append(Fault(status=200, body=body))
    assert catalog.user() == name


def test_a_webhook_is_created_read_updated_and_deleted(sandbox: FaultyIconik, catalog: IconikCatalog) -> None:
    fields = {"url": "https://example.com/create", "event_type": "assets", "status": "ENABLED"}
    catalog.save_webhook(fields)
    [found] = catalog.webhooks()
    catalog.save_webhook({**fields, "query": "q"}, found["id"])
    assert catalog.webhook(found["id"])["query"] == "q"
    catalog.delete_webhook(found["id"])
    assert catalog.webhooks() == []


@pytest.mark.parametrize("webhook_id", ["../../x", "a/b", "a?b", "a#b"])
def test_an_id_cannot_leave_its_place_in_the_path(
    sandbox: FaultyIconik, catalog: IconikCatalog, webhook_id: str
) -> None:
    with pytest.raises(Exception, match="404"):
        catalog.delete_webhook(webhook_id)
    assert sandbox.requests[0].split("?")[0].count("/") == 6


def test_each_call_fails_with_what_iconik_says(sandbox: FaultyIconik, catalog: IconikCatalog) -> None:
    calls: list[Callable[[], object]] = [
        catalog.webhooks,
        catalog.automations,
        catalog.usage,
        lambda: catalog.jobs(["a"]),
        lambda: list(catalog.assets(SINCE, UNTIL)),
        lambda: catalog.save_webhook({}),
        lambda: catalog.delete_webhook("a"),
    ]
    for call in calls:
        sandbox.faults.append(Fault(status=500))
        with pytest.raises(IconikServerError, match="Out of order"):
            call()
    sandbox.roles.clear()
    for call in calls:
        with pytest.raises(IconikForbidden, match="role can_"):
            call()
