import json
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta, timezone
from typing import Any
from urllib.parse import parse_qs

import pytest

from faulty_iconik import Fault, FaultyIconik
from iconik_client import (
    PAGE_SIZE,
    IconikClient,
    IconikDenied,
    IconikError,
    IconikRefused,
    IconikServerError,
    IconikUnavailable,
    Json,
)
from reconciliation.catalog import IconikCatalog, created_until, ids_and_titles
from support import ASSET, OTHER_ASSET

SINCE, UNTIL = "2026-11-23T00:00:00.000Z", "2026-11-24T00:00:00.000Z"
NOON = "2026-11-23T12:00:00.885375+00:00"
SEARCH = "POST /API/search/v1/search/"
JOBS = "GET /API/jobs/v1/jobs/"
HTML = b"<html><body>Back soon</body></html>"


@pytest.fixture
def catalog(client: IconikClient) -> IconikCatalog:
    return IconikCatalog(client)


def ids(pages: Iterable[list[Json]], key: str = "id") -> list[str]:
    return [one[key] for page in pages for one in page]


def at(milliseconds: int) -> str:
    """So long after noon, as iconik writes it."""
    noon = datetime(2026, 11, 23, 12, tzinfo=timezone.utc)
    return (noon + timedelta(milliseconds=milliseconds)).isoformat(timespec="microseconds")


def queries(sandbox: FaultyIconik, path: str) -> list[dict[str, str]]:
    """The queries of the requests to a path."""
    found = [request.partition("?")[2] for request in sandbox.requests if request.startswith(path)]
    return [{name: values[0] for name, values in parse_qs(query).items()} for query in found]


# Assets by the time of their creation


def test_assets_of_the_time_come_oldest_first_with_id_title_and_date(
    sandbox: FaultyIconik, catalog: IconikCatalog
) -> None:
    dates = [f"2026-11-{day}T00:00:00.000000+00:00" for day in (25, 24, 23, 22)]
    assets = [sandbox.create_asset(f"{date[8:10]}.mov", send=False, date_created=date) for date in dates]
    [page] = catalog.assets_created(SINCE, UNTIL)
    assert [(one["id"], one["title"], one["date_created"]) for one in page] == [
        (assets[2], "23.mov", dates[2]),
        (assets[1], "24.mov", dates[1]),  # both ends are included
    ]
    assert queries(sandbox, SEARCH) == [
        {"per_page": str(PAGE_SIZE), "page": "1", "generate_signed_url": "false", "save_search_history": "false"}
    ]


def test_a_time_without_assets_has_no_page(sandbox: FaultyIconik, catalog: IconikCatalog) -> None:
    assert list(catalog.assets_created(SINCE, UNTIL)) == []
    sandbox.faults.append(Fault(status=404, body=b'{"errors": ["Requested page does not exist"]}'))
    assert list(catalog.assets_created(SINCE, UNTIL)) == []
    assert len(sandbox.requests) == 2


def test_a_search_is_what_iconik_documents(
    catalog: IconikCatalog, client: IconikClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies = []

    def call(method: str, path: str, role: str, query: Json, body: Json) -> Json:
        bodies.append(body)
        return {"objects": []}

    monkeypatch.setattr(client, "call", call)
    list(catalog.assets_created(SINCE, UNTIL))
    assert bodies == [
        {
            "doc_types": ["assets"],
            "filter": {"operator": "AND", "terms": [{"name": "date_created", "range": {"min": SINCE, "max": UNTIL}}]},
            "sort": [{"name": "date_created", "order": "asc"}],
            "include_fields": ["id", "title", "date_created"],
        }
    ]


each_sort = pytest.mark.parametrize("sort_keys", [("date_created", "id"), ("date_created",)], ids="+".join)


@each_sort
@pytest.mark.parametrize(
    "dates",
    [
        [*range(250)],
        [0, *[1] * 998, 2],
        [5] * 250,
        [*[0] * 99, *[1] * 2, *[2] * 98, *[3] * 2],
        [*[0] * 100, *[1] * 100, *[2] * 100],
        [*[0] * 150, *[1] * 150, 2],
        [*range(100)],
        [*range(99)],
    ],
    ids=[
        "all different",
        "998 of 1000 alike",
        "all alike",
        "two alike at a page's end",
        "a page alike",
        "more",
        "100",
        "99",
    ],
)
def test_assets_that_were_created_at_the_same_moment_are_not_lost_at_a_pages_end(
    sandbox: FaultyIconik, catalog: IconikCatalog, sort_keys: tuple[str, ...], dates: list[int]
) -> None:
    sandbox.sort_keys = sort_keys
    assets = [sandbox.create_asset("a.mov", send=False, date_created=at(date)) for date in dates]
    pages = list(catalog.assets_created(SINCE, UNTIL))
    found = ids(pages)
    assert set(found) == set(assets)
    assert all(0 < len(page) <= PAGE_SIZE for page in pages)
    if len(sort_keys) == 2:
        assert len(found) == len(assets)  # and none comes twice
        assert len(sandbox.requests) == len(assets) // PAGE_SIZE + 1
    untils = [created_until(page) or "" for page in pages]
    assert untils == sorted(untils)  # or it would go on too late when it is interrupted


def test_microseconds_that_iconik_does_not_sort_by_are_not_lost(sandbox: FaultyIconik, catalog: IconikCatalog) -> None:
    sandbox.sort_keys = ("date_created",)
    dates = [f"2026-11-23T12:00:00.885{number:03}+00:00" for number in range(300)]
    assets = [sandbox.create_asset("a.mov", send=False, date_created=date) for date in dates]
    assert set(ids(catalog.assets_created(SINCE, UNTIL))) == set(assets)


def test_a_page_is_asked_for_only_when_it_is_wanted(sandbox: FaultyIconik, catalog: IconikCatalog) -> None:
    for number in range(3 * PAGE_SIZE):
        sandbox.create_asset("a.mov", send=False, date_created=at(number))
    pages = catalog.assets_created(SINCE, UNTIL)
    assert sandbox.requests == []
    for number in (1, 2, 3):
        assert len(next(pages)) == PAGE_SIZE
        assert len(sandbox.requests) == number
    pages.close()  # type: ignore[attr-defined]
    assert len(sandbox.requests) == 3


def page_of(*last: Json) -> bytes:
    """The body of a full page of a search whose last assets are these."""
    first = [{"id": f"{number}", "date_created": NOON, "_sort": [1, "a"]} for number in range(PAGE_SIZE - len(last))]
    return json.dumps({"objects": [*first, *last]}).encode()


@pytest.mark.parametrize(
    "asset",
    [
        {"date_created": NOON},
        {"date_created": NOON, "_sort": None},
        {"date_created": NOON, "_sort": []},
        {"date_created": NOON, "_sort": 5},
        {"date_created": NOON, "_sort": "5"},
        {"date_created": NOON, "_sort": {"date_created": 5}},
        {"date_created": None, "_sort": [5]},
        {"_sort": [5]},
    ],
)
def test_a_search_that_does_not_lead_on_is_an_error_and_not_the_end(
    sandbox: FaultyIconik, catalog: IconikCatalog, asset: Json
) -> None:
    sandbox.faults.append(Fault(status=200, body=page_of(asset)))
    pages = catalog.assets_created(SINCE, UNTIL)
    assert len(next(pages)) == PAGE_SIZE
    with pytest.raises(IconikUnavailable, match="iconik's search does not lead to its next page"):
        next(pages)
    assert len(sandbox.requests) == 1


@pytest.mark.parametrize("sort", [[5], [5, "id"]])
def test_a_search_that_leads_round_in_a_circle_is_an_error(
    sandbox: FaultyIconik, catalog: IconikCatalog, sort: list[object]
) -> None:
    sandbox.faults.append(Fault(status=200, body=page_of({"date_created": NOON, "_sort": sort}), times=50))
    with pytest.raises(IconikUnavailable):
        list(catalog.assets_created(SINCE, UNTIL))
    assert len(sandbox.requests) < 5


def test_trouble_on_a_later_page_comes_after_the_pages_before(sandbox: FaultyIconik, catalog: IconikCatalog) -> None:
    for number in range(PAGE_SIZE + 1):
        sandbox.create_asset("a.mov", send=False, date_created=at(number))
    pages = catalog.assets_created(SINCE, UNTIL)
    assert len(next(pages)) == PAGE_SIZE
    sandbox.faults.append(Fault(status=503))
    with pytest.raises(IconikServerError):
        next(pages)


def test_assets_are_counted(sandbox: FaultyIconik, catalog: IconikCatalog) -> None:
    assert catalog.count_assets_created(SINCE, UNTIL) == 0
    for number in range(3):
        sandbox.create_asset("a.mov", send=False, date_created=at(number))
    assert catalog.count_assets_created(SINCE, UNTIL) == 3
    assert queries(sandbox, SEARCH)[0]["per_page"] == "1"
    for total in (b"{}", b'{"total": null}', b'{"total": "3"}'):
        sandbox.faults.append(Fault(status=200, body=total))
        assert catalog.count_assets_created(SINCE, UNTIL) == 0


def test_a_page_becomes_ids_and_titles_and_what_is_no_asset_is_left_out() -> None:
    page: list[Json] = [
        {"id": ASSET.upper(), "title": "a\nb.mov"},
        {"id": OTHER_ASSET, "title": 5},
        {"id": "x", "title": "x"},
        {"id": None},
        {},
    ]
    assert ids_and_titles(page) == [(ASSET, "a b.mov"), (OTHER_ASSET, None)]
    assert ids_and_titles([]) == []


@pytest.mark.parametrize(
    ("date", "until"),
    [
        (NOON, "2026-11-23T12:00:00.885Z"),
        ("2026-11-23T13:00:00+01:00", "2026-11-23T12:00:00.000Z"),
        ("2026-11-23T12:00:00", "2026-11-23T12:00:00.000Z"),
        ("9999-12-31T23:59:59-01:00", None),
        ("soon", None),
        (None, None),
    ],
)
def test_a_page_says_up_to_when_it_goes(date: str | None, until: str | None) -> None:
    assert created_until([{"date_created": "2020-01-01"}, {"date_created": date}]) == until
    assert created_until([{}]) is None


# Jobs that failed


def fail_jobs(sandbox: FaultyIconik, number: int, since: str = "2026-11-23T12") -> list[str]:
    """Let so many jobs fail, one a millisecond. Returns their ids."""
    jobs = []
    for count in range(number):
        jobs.append(sandbox.start_job(sandbox.create_asset("a.mov", send=False)))
        sandbox.fail_job(jobs[-1])
        sandbox.job_details[jobs[-1]]["date_modified"] = f"{since}:{count // 1000:02}:00.{count % 1000:03}000+00:00"
    return jobs


@pytest.mark.parametrize("number", [0, 1, PAGE_SIZE - 1, PAGE_SIZE, PAGE_SIZE + 1, 2 * PAGE_SIZE + 50])
def test_failed_jobs_come_page_by_page_the_earliest_first(
    sandbox: FaultyIconik, catalog: IconikCatalog, number: int
) -> None:
    jobs = fail_jobs(sandbox, number)
    pages = list(catalog.failed_analyze_jobs("2026-11-23T12:00:00.000Z"))
    assert ids(pages) == jobs
    asked = queries(sandbox, JOBS)
    assert [query.pop("page") for query in asked] == [str(page + 1) for page in range(number // PAGE_SIZE + 1)]
    assert all(
        query
        == {
            "type": "ANALYZE",
            "status": "FAILED",
            "object_type": "assets",
            "date_modified": "2026-11-23T12:00:00.000Z;*",  # open-ended: what one time alone means is not documented
            "sort": "date_modified,asc",
            "per_page": str(PAGE_SIZE),
            "facets": "false",
        }
        for query in asked
    )


def test_only_analyze_jobs_that_failed_since_then_are_found(sandbox: FaultyIconik, catalog: IconikCatalog) -> None:
    fail_jobs(sandbox, 1, "2026-11-22T12")
    [later] = fail_jobs(sandbox, 1)
    [other] = fail_jobs(sandbox, 1)
    sandbox.job_details[other]["type"] = "TRANSCODE"
    sandbox.finish_job(sandbox.start_job(sandbox.create_asset("a.mov", send=False)))
    [page] = catalog.failed_analyze_jobs(SINCE)
    assert [job["id"] for job in page] == [later]
    assert page[0]["error_message"] == "The file cannot be decoded"
    assert page[0]["object_id"] in sandbox.assets


def test_a_server_that_ignores_the_page_is_not_asked_for_ever(sandbox: FaultyIconik, catalog: IconikCatalog) -> None:
    sandbox.faults.append(Fault(status=200, body=page_of(), times=50))
    with pytest.raises(IconikUnavailable, match="the same page again and again"):
        list(catalog.failed_analyze_jobs(SINCE))
    assert len(sandbox.requests) == 2


# Who we are, and what else iconik has


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ({"id": "1", "email": "me@example.com", "first_name": "Me"}, "me@example.com"),
        ({"id": "1", "email": None, "first_name": "Me"}, "Me"),
        ({"id": "1", "email": ""}, "1"),
        ({"id": "1", "email": "two\nlines"}, "two lines"),
        ({"id": "1", "email": ["x"]}, "['x']"),
    ],
)
def test_the_user_is_told_by_what_iconik_knows(
    sandbox: FaultyIconik, catalog: IconikCatalog, body: Json, name: str
) -> None:
    sandbox.faults.append(Fault(status=200, body=json.dumps(body).encode()))
    assert catalog.user() == name
    assert sandbox.requests == ["GET /API/users/v1/users/current/"]


@pytest.mark.parametrize(
    ("body", "roles"),
    [
        (b'{"objects": ["can_search", 5, null, ["x"], "can_read_jobs"]}', {"can_search", "can_read_jobs"}),
        (b'{"objects": null}', set()),
        (b"{}", set()),
    ],
)
def test_roles_are_words(sandbox: FaultyIconik, catalog: IconikCatalog, body: bytes, roles: set[str]) -> None:
    assert catalog.roles() == sandbox.roles
    sandbox.faults.append(Fault(status=200, body=body))
    assert catalog.roles() == roles


def test_automations_and_profiles_are_listed(sandbox: FaultyIconik, catalog: IconikCatalog) -> None:
    assert catalog.automations() == catalog.analysis_profiles() == []
    sandbox.automations.append({"id": "1", "name": "All", "status": "ACTIVE", "actions": [{"type": "ANALYZE"}]})
    sandbox.profiles.append({"id": "2", "name": "Video", "is_default": True})
    assert (catalog.automations(), catalog.analysis_profiles()) == (sandbox.automations, sandbox.profiles)
    sandbox.faults.append(Fault(status=404, body=b'{"errors": ["Profiles don\'t exist"]}'))
    assert catalog.analysis_profiles() == []


def test_a_webhook_is_created_listed_updated_and_deleted(sandbox: FaultyIconik, catalog: IconikCatalog) -> None:
    webhook = {
        "url": "https://a.example.com/create",
        "event_type": "assets",
        "status": "ENABLED",
        "headers": {"A": "b"},
    }
    assert catalog.webhooks() == []
    catalog.save_webhook(webhook)
    [created] = catalog.webhooks()
    assert created == {**webhook, "id": created["id"]}
    catalog.save_webhook({**webhook, "status": "DISABLED"}, created["id"])
    assert catalog.webhooks() == [{**created, "status": "DISABLED"}]
    catalog.delete_webhook(created["id"])
    assert catalog.webhooks() == []
    path = "/API/notifications/v1/webhooks/"
    changes = [request for request in sandbox.requests if not request.startswith("GET")]
    assert changes == [f"POST {path}", f"PUT {path}{created['id']}/", f"DELETE {path}{created['id']}/"]


def test_a_webhook_is_saved_or_deleted_though_the_answer_is_empty(
    sandbox: FaultyIconik, catalog: IconikCatalog
) -> None:
    for status, body in ((200, b""), (204, b""), (201, HTML)):  # a 201 says so, whatever comes with it
        sandbox.faults.append(Fault(status=status, body=body, times=3))
        catalog.save_webhook({})
        catalog.save_webhook({}, "1")
        catalog.delete_webhook("1")


def test_a_webhooks_id_cannot_leave_its_place_in_the_path(sandbox: FaultyIconik, catalog: IconikCatalog) -> None:
    with pytest.raises(IconikRefused):
        catalog.delete_webhook("../a?b")
    with pytest.raises(IconikRefused):
        catalog.save_webhook({"url": "x"}, "../a?b")
    path = "/API/notifications/v1/webhooks/..%2Fa%3Fb/"
    assert sandbox.requests == [f"DELETE {path}", f"PUT {path}"]


# What goes wrong with each call

Call = Callable[[IconikCatalog], Any]
CALLS: dict[str, tuple[Call, str]] = {
    "assets_created": (lambda catalog: list(catalog.assets_created(SINCE, UNTIL)), "can_search"),
    "count_assets_created": (lambda catalog: catalog.count_assets_created(SINCE, UNTIL), "can_search"),
    "failed_analyze_jobs": (lambda catalog: list(catalog.failed_analyze_jobs(SINCE)), "can_read_jobs"),
    "automations": (IconikCatalog.automations, "can_read_automations"),
    "webhooks": (IconikCatalog.webhooks, "can_read_webhooks"),
    "save_webhook": (lambda catalog: catalog.save_webhook({}), "can_write_webhooks"),
    "update_webhook": (lambda catalog: catalog.save_webhook({}, "1"), "can_write_webhooks"),
    "delete_webhook": (lambda catalog: catalog.delete_webhook("1"), "can_delete_webhooks"),
    "user": (IconikCatalog.user, ""),
    "roles": (IconikCatalog.roles, ""),
    "analysis_profiles": (IconikCatalog.analysis_profiles, ""),
}
each_call = pytest.mark.parametrize(("call", "role"), CALLS.values(), ids=list(CALLS))
CREDENTIALS = "app_id and auth_token are not accepted"


@each_call
def test_a_denial_names_the_credentials_and_the_role_if_there_is_one(
    sandbox: FaultyIconik, catalog: IconikCatalog, call: Call, role: str
) -> None:
    denied = f"{CREDENTIALS}, or lack the role {role}" if role else CREDENTIALS
    sandbox.faults += [Fault(status=status, body=b'{"errors": ["Why not"]}') for status in (401, 403)]
    with pytest.raises(IconikDenied) as caught:
        call(catalog)
    assert str(caught.value) == f"iconik answered 401: {denied}: Why not"
    with pytest.raises(IconikDenied) as caught:
        call(catalog)
    assert caught.value.summary == f"iconik answered 403: {denied}, or may not touch this asset"


@each_call
def test_without_its_role_a_call_is_denied(
    sandbox: FaultyIconik, catalog: IconikCatalog, call: Call, role: str
) -> None:
    if not role:
        sandbox.roles.clear()
        assert call(catalog) is not None
        return
    sandbox.roles.discard(role)
    with pytest.raises(IconikDenied, match=f"lack the role {role}.*: Required roles: {role}"):
        call(catalog)


@each_call
def test_a_call_fails_for_a_gateways_pages_and_for_no_answer(
    sandbox: FaultyIconik, catalog: IconikCatalog, call: Call, role: str
) -> None:
    kinds = {404: IconikUnavailable, 502: IconikServerError, 302: IconikUnavailable, 400: IconikUnavailable}
    for status, kind in kinds.items():
        sandbox.faults.append(Fault(status=status, body=HTML))
        with pytest.raises(IconikError) as caught:
            call(catalog)
        assert type(caught.value) is kind
    sandbox.faults.append(Fault(cut=True))
    with pytest.raises(IconikUnavailable, match="iconik cannot be reached: the connection was closed"):
        call(catalog)
    sandbox.faults.append(Fault(status=422, body=b'{"errors": {"url": "Not a URL"}}'))
    with pytest.raises(IconikRefused, match="iconik answered 422: url: Not a URL"):
        call(catalog)


@each_call
def test_an_answer_with_a_body_must_be_a_whole_object(
    sandbox: FaultyIconik, catalog: IconikCatalog, call: Call, role: str
) -> None:
    may_be_empty = role in ("can_write_webhooks", "can_delete_webhooks")
    for body in (HTML, b"null", b"[]", b'{"objects": [{"id', *(() if may_be_empty else (b"",))):
        sandbox.faults.append(Fault(status=200, body=body))
        with pytest.raises(IconikUnavailable, match="iconik answered 200 without a JSON object"):
            call(catalog)


@pytest.mark.parametrize(
    "name", ["assets_created", "failed_analyze_jobs", "automations", "webhooks", "analysis_profiles"]
)
def test_an_object_without_the_list_is_no_empty_list(sandbox: FaultyIconik, catalog: IconikCatalog, name: str) -> None:
    for body in (b"{}", b'{"objects": null}', b'{"objects": {}}', b'{"status": "maintenance"}'):
        sandbox.faults.append(Fault(status=200, body=body))
        with pytest.raises(IconikUnavailable, match="iconik answered 200 without the list"):
            CALLS[name][0](catalog)
