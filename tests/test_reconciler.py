import logging
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from circuit_breaker import MAX_FAILURES, CircuitBreaker
from config import Config
from iconik_client import IconikClient, IconikUnavailable
from reconciliation.catalog import IconikCatalog
from reconciliation.changes import Corrections
from reconciliation.reconciler import (
    ASSETS_FLOOR,
    ASSETS_RESUME_AT,
    ASSETS_SEEN_UNTIL,
    DEFAULT_INTERVAL,
    FIRST_STARTED_AT,
    JOBS_SEEN_UNTIL,
    Reconciler,
)
from reconciliation.webhooks import REGISTERED_URL, SECRET_HEADER
from sandbox import Fault, FaultyIconik, Json
from store import Store
from submitter import Submitter
from support import ASSET, OTHER_ASSET, SECRET, Clock, new_id, rows, wait_until
from system.text import format_utc

HOUR = 3600.0
DAY = 24 * HOUR
FOREVER = float("inf")
URL = "http://127.0.0.1:1"  # where the webhooks point, and nothing listens
TWIN = "http://127.0.0.1:2"
BY_ICONIK = {"status": "DISABLED", "first_failed_at": "2026-11-18T00:00:00+00:00", "last_error": "503"}
BY_A_PERSON = {"status": "DISABLED", "first_failed_at": None, "last_error": None}
ENABLED = {**BY_A_PERSON, "status": "ENABLED"}
LIST_OF_WEBHOOKS = "GET /API/notifications/v1/webhooks/"
PUT_WEBHOOK = "PUT /API/notifications/v1/webhooks/"
SEARCH = "POST /API/search"
JOBS = "GET /API/jobs"


@pytest.fixture
def sandbox(clock: Clock) -> Iterator[FaultyIconik]:
    with FaultyIconik(clock=clock) as sandbox:
        sandbox.register(URL, {SECRET_HEADER: SECRET})
        yield sandbox


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    """Of a listener that has registered its webhooks, and started for the first time just now."""
    store = Store(tmp_path / "items.db", listener=True, clock=clock)
    store.set_state(FIRST_STARTED_AT, store.now())
    store.set_state(REGISTERED_URL, URL)
    yield store
    store.close()


@pytest.fixture
def breaker(configs: Callable[..., Config]) -> CircuitBreaker:
    return CircuitBreaker(configs().submitter)


@pytest.fixture
def reconcilers(
    store: Store, client: IconikClient, breaker: CircuitBreaker, configs: Callable[..., Config]
) -> Iterator[Callable[..., Reconciler]]:
    """Makes Reconcilers that are not started yet, and stops them in the end."""
    made = []

    def make(**values: Any) -> Reconciler:
        config = configs(**values)
        submitter = Submitter(store, client, breaker, config)  # it is not started: what is added stays as it is
        made.append(Reconciler(store, IconikCatalog(client), breaker, submitter, config))
        return made[-1]

    yield make
    for reconciler in made:
        reconciler.stop()


@pytest.fixture
def reconciler(reconcilers: Callable[..., Reconciler]) -> Reconciler:
    return reconcilers()


@pytest.fixture
def short_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten to a page."""
    monkeypatch.setattr("reconciliation.catalog.PAGE_SIZE", 10)


@pytest.fixture
def statuses(tmp_path: Path) -> Callable[[], dict[str, str]]:
    return lambda: {row["object_id"]: row["status"] for row in rows(tmp_path / "items.db")}


@pytest.fixture
def row(tmp_path: Path) -> Callable[[], sqlite3.Row]:
    """The only item."""

    def read() -> sqlite3.Row:
        [row] = rows(tmp_path / "items.db")
        return row

    return read


@pytest.fixture(autouse=True)
def lines(caplog: pytest.LogCaptureFixture) -> Callable[..., list[str]]:
    """The log's lines so far that contain a text, each with its level."""
    caplog.set_level(logging.INFO)
    return lambda text="": [
        f"{record.levelname} {record.getMessage()}" for record in caplog.records if text in record.getMessage()
    ]


Reconcilers = Callable[..., Reconciler]
Statuses = Callable[[], dict[str, str]]
Row = Callable[[], sqlite3.Row]
Lines = Callable[..., list[str]]


def missed(sandbox: FaultyIconik, count: int = 1, **fields: Any) -> list[str]:
    """Create assets whose webhooks are lost. Returns their ids."""
    return [sandbox.create_asset("a.mov", send=False, **fields) for _ in range(count)]


def definition(sandbox: FaultyIconik, path: str = "/create") -> Json:
    [found] = [webhook for webhook in sandbox.webhooks.values() if webhook["url"] == URL + path]
    return found


def asked(sandbox: FaultyIconik, call: str) -> int:
    """How often iconik was asked that."""
    return sum(request.startswith(call) for request in sandbox.requests)


def submitted(store: Store, object_id: str, job_id: str | None) -> None:
    store.add_asset(object_id, "a.mov")
    store.proxy_closed(object_id)
    assert store.claim_new()
    store.mark_submitted(object_id, job_id)


# Our webhooks


@pytest.mark.parametrize("fields", [{"first_failed_at": None}, {"last_error": None}])
def test_webhooks_that_iconik_disabled_for_failing_are_enabled_again(
    sandbox: FaultyIconik, reconciler: Reconciler, lines: Lines, fields: Json
) -> None:
    definition(sandbox, "/proxy")["query"] = 'data.status="CLOSED" AND data.is_public=true'
    before = {webhook_id: dict(webhook) for webhook_id, webhook in sandbox.webhooks.items()}
    for webhook in sandbox.webhooks.values():
        webhook.update(BY_ICONIK, **fields)
    assert reconciler.reconcile()
    assert sandbox.webhooks == before
    assert [line.partition(" for failing")[0] for line in lines("enabled again")] == [
        f"WARNING iconik had disabled the webhook to {URL}{path}" for path in ("/create", "/proxy")
    ]


def test_a_webhook_that_a_person_disabled_stays_so(sandbox: FaultyIconik, reconciler: Reconciler, lines: Lines) -> None:
    for webhook in sandbox.webhooks.values():
        webhook.update(BY_A_PERSON)
    assert reconciler.reconcile()
    assert reconciler.reconcile()
    assert [webhook["status"] for webhook in sandbox.webhooks.values()] == ["DISABLED"] * 2
    assert [line.partition(", and")[0] for line in lines("A person")] == [
        f"WARNING A person disabled the webhook to {URL}{path}" for path in ("/create", "/proxy")
    ]
    assert "register URL" in lines("A person")[0]


@pytest.mark.parametrize(("after", "status"), [(5 * HOUR - 1, "DISABLED"), (5 * HOUR, "ENABLED")])
def test_who_disables_a_webhook_within_five_hours_of_its_enabling_is_a_person(
    sandbox: FaultyIconik, reconcilers: Reconcilers, clock: Clock, after: float, status: str
) -> None:
    webhook = definition(sandbox)
    webhook.update(BY_ICONIK)
    assert reconcilers().reconcile()
    definition(sandbox).update(BY_ICONIK)
    clock.now += after
    assert reconcilers().reconcile()
    assert definition(sandbox)["status"] == status
    clock.now += 30 * DAY
    assert reconcilers().reconcile()
    assert definition(sandbox)["status"] == status


def test_once_a_person_has_enabled_a_webhook_iconiks_disabling_is_undone_again(
    sandbox: FaultyIconik, reconciler: Reconciler, clock: Clock
) -> None:
    for fields in (BY_A_PERSON, ENABLED, BY_ICONIK):
        definition(sandbox).update(fields)
        assert reconciler.reconcile()
        clock.now += HOUR
    assert definition(sandbox)["status"] == "ENABLED"


@pytest.mark.parametrize("noted", [30 * DAY, None])
def test_an_enabling_that_was_noted_by_a_clock_that_ran_ahead_makes_nobody_a_person(
    sandbox: FaultyIconik, reconciler: Reconciler, store: Store, clock: Clock, noted: float | None
) -> None:
    webhook = definition(sandbox)
    webhook.update(BY_ICONIK)
    store.set_state(
        f"webhook_enabled_at {webhook['id']}", "yesterday" if noted is None else format_utc(clock.now + noted)
    )
    assert reconciler.reconcile()
    assert definition(sandbox)["status"] == "ENABLED"


def test_a_failing_webhook_is_told(sandbox: FaultyIconik, reconciler: Reconciler, lines: Lines) -> None:
    definition(sandbox).update(status="FAILING", first_failed_at="2026-11-18T00:00:00+00:00", last_error="502\n<b>")
    assert reconciler.reconcile()
    assert lines("cannot deliver") == [f"WARNING iconik cannot deliver to {URL}/create: 502 <b>"]
    assert definition(sandbox)["status"] == "FAILING"


OURS, THEIRS = (URL, SECRET), (TWIN, SECRET)


@pytest.mark.parametrize(
    ("registered_url", "defined", "changes", "enabled"),
    [
        (URL, [OURS, THEIRS], {}, {URL}),  # a staging twin, or an old VM, with the same secret
        (URL, [THEIRS], {}, set()),
        (URL, [OURS], {"operation": "update", "realm": "entity"}, set()),
        (URL, [OURS], {"event_type": "collections"}, set()),
        (URL, [OURS], {"url": f"{URL}/hooks/create"}, set()),
        (None, [OURS], {}, {URL}),
        ("", [OURS], {}, {URL}),
        (None, [OURS, (TWIN, "another secret")], {}, {URL}),
        (None, [OURS, THEIRS], {}, set()),
        (None, [OURS, OURS], {}, set()),
        (None, [(URL, "another secret")], {}, set()),
        (None, [(URL, "")], {}, set()),
    ],
)
def test_only_our_own_webhooks_are_touched(
    sandbox: FaultyIconik, store: Store, reconciler: Reconciler, clock: Clock, statuses: Statuses, lines: Lines,
    registered_url: str | None, defined: list[tuple[str, str]], changes: Json, enabled: set[str],
) -> None:  # fmt: skip
    sandbox.webhooks.clear()
    with store.database.transaction() as db:
        db.execute("DELETE FROM state WHERE key = ?", (REGISTERED_URL,))
    if registered_url is not None:
        store.set_state(REGISTERED_URL, registered_url)
    for url, secret in defined:
        sandbox.register(url, {SECRET_HEADER.lower(): secret} if secret else {})
    for webhook in sandbox.webhooks.values():
        webhook.update(BY_ICONIK, **changes)
    before = {webhook_id: dict(webhook) for webhook_id, webhook in sandbox.webhooks.items()}
    ids = missed(sandbox)
    clock.now += HOUR
    assert reconciler.reconcile()
    touched = [webhook for webhook in sandbox.webhooks.values() if webhook != before[webhook["id"]]]
    assert {webhook["url"].rpartition("/")[0] for webhook in touched} == enabled
    assert len(touched) == 2 * len(enabled)
    assert bool(lines("cannot be told")) == (not enabled)
    assert list(statuses()) == (ids if enabled else [])


def test_a_webhook_that_cannot_be_enabled_does_not_keep_the_other_disabled(
    sandbox: FaultyIconik, reconciler: Reconciler
) -> None:
    for webhook in sandbox.webhooks.values():
        webhook.update(BY_ICONIK)
    sandbox.faults.append(Fault(f"{PUT_WEBHOOK}{definition(sandbox)['id']}", status=400, times=FOREVER))
    assert not reconciler.reconcile()
    assert (definition(sandbox)["status"], definition(sandbox, "/proxy")["status"]) == ("DISABLED", "ENABLED")


def test_a_maintenance_page_is_not_taken_for_an_enabling(
    sandbox: FaultyIconik, reconciler: Reconciler, clock: Clock
) -> None:
    definition(sandbox).update(BY_ICONIK)
    sandbox.faults.append(Fault(PUT_WEBHOOK, status=200, body=b"<html>Back soon</html>"))
    assert not reconciler.reconcile()
    clock.now += HOUR
    assert reconciler.reconcile()
    assert definition(sandbox)["status"] == "ENABLED"


# Missed assets


def test_a_missed_asset_is_stored_as_its_create_webhook_would_have_stored_it(
    sandbox: FaultyIconik, store: Store, reconciler: Reconciler, clock: Clock, statuses: Statuses, lines: Lines
) -> None:
    [lost, overtaken, known] = missed(sandbox, 3)
    store.proxy_closed(overtaken)
    submitted(store, known, "job")
    clock.now += HOUR
    assert reconciler.reconcile()
    assert statuses() == {lost: "awaiting_proxy", overtaken: "ready", known: "submitted"}
    [item] = store.database.run("SELECT * FROM items WHERE object_id = :id", id=lost)
    assert (item["title"], item["created_at"], item["next_attempt_at"]) == ("a.mov", store.now(), store.now())
    assert lines("missed") == [
        f"WARNING Added 2 assets whose webhooks were missed, created since {format_utc(clock.now - HOUR)}"
    ]
    assert reconciler.reconcile()
    assert len(lines("missed")) == 1


def test_nothing_older_than_the_first_start_and_nothing_too_new_is_added(
    sandbox: FaultyIconik, store: Store, reconciler: Reconciler, clock: Clock, statuses: Statuses
) -> None:
    missed(sandbox, date_created=format_utc(clock.now - 0.001))
    [first] = missed(sandbox)
    clock.now += 600  # min_age
    [later] = missed(sandbox, date_created=format_utc(clock.now - 599.999))
    assert reconciler.reconcile()
    assert statuses() == {}  # its create webhook may still be on its way
    clock.now += 0.001
    assert reconciler.reconcile()
    assert set(statuses()) == {first, later}


@pytest.mark.parametrize(("age", "is_found"), [(DAY - 1, True), (DAY + 1, False)])
def test_what_iconiks_search_finds_a_day_late_is_not_missed(
    sandbox: FaultyIconik, reconciler: Reconciler, clock: Clock, statuses: Statuses, age: float, is_found: bool
) -> None:
    clock.now += 3 * DAY
    missed(sandbox, date_created=format_utc(clock.now - HOUR))
    assert reconciler.reconcile()
    missed(sandbox, date_created=format_utc(clock.now - 600 - age))
    assert reconciler.reconcile()
    assert len(statuses()) == 1 + is_found


@pytest.mark.parametrize("key", [FIRST_STARTED_AT, ASSETS_FLOOR, ASSETS_SEEN_UNTIL, ASSETS_RESUME_AT])
@pytest.mark.parametrize(
    "value", ["2036-01-01T00:00:00.000Z", "yesterday", "0001-01-01T00:00:00Z", "", "2026-11-18 09:20"]
)
def test_what_was_noted_by_a_clock_that_ran_ahead_or_by_hand_hides_nothing_that_is_created_later(
    sandbox: FaultyIconik, store: Store, reconciler: Reconciler, clock: Clock, statuses: Statuses, key: str, value: str
) -> None:
    clock.now += 3 * DAY
    store.set_state(key, value)
    assert reconciler.reconcile()
    clock.now += HOUR
    ids = missed(sandbox)
    clock.now += HOUR
    assert reconciler.reconcile()
    assert list(statuses()) == ids


def test_a_floor_from_the_future_does_not_bill_what_is_older(
    sandbox: FaultyIconik, store: Store, reconciler: Reconciler, clock: Clock, statuses: Statuses
) -> None:
    """A person put the webhook back while the clock ran ahead."""
    missed(sandbox)
    clock.now += DAY
    store.set_state(ASSETS_FLOOR, format_utc(clock.now + 30 * DAY))
    for _ in range(3):
        assert reconciler.reconcile()
        clock.now += HOUR
    assert statuses() == {}


@pytest.mark.parametrize("fields", [ENABLED, {**BY_ICONIK, "status": "FAILING"}, BY_ICONIK])
def test_missed_assets_are_added_while_our_create_webhook_is_meant_to_let_all_through(
    sandbox: FaultyIconik, reconciler: Reconciler, clock: Clock, statuses: Statuses, fields: Json
) -> None:
    definition(sandbox).update(fields)
    ids = missed(sandbox)
    clock.now += HOUR
    assert reconciler.reconcile()
    assert list(statuses()) == ids


OFF: list[Json] = [
    BY_A_PERSON,
    {"query": 'data.type="ASSET"'},
    {"object_id": ASSET},
    {"status": "DELETED"},
    {"url": TWIN},
]


@pytest.mark.parametrize("fields", OFF)
def test_who_disables_or_filters_our_create_webhook_is_not_billed_for_the_time_between(
    sandbox: FaultyIconik, reconcilers: Reconcilers, clock: Clock, statuses: Statuses, fields: Json
) -> None:
    webhook = definition(sandbox)
    before = {**BY_A_PERSON, "query": "", "object_id": None, **webhook}
    missed(sandbox)  # just before that: nobody can tell any more
    webhook.update(fields)
    for _ in range(3):
        assert reconcilers().reconcile()
        missed(sandbox)
        clock.now += DAY
    webhook.update(before)
    missed(sandbox)
    clock.now += HOUR
    assert reconcilers().reconcile()
    clock.now += HOUR
    ids = missed(sandbox)
    clock.now += HOUR
    assert reconcilers().reconcile()
    assert list(statuses()) == ids


def test_another_create_webhook_of_ours_that_lets_all_through_is_enough(
    sandbox: FaultyIconik, reconciler: Reconciler, clock: Clock, statuses: Statuses
) -> None:
    definition(sandbox)["query"] = 'data.type="ASSET"'
    sandbox.register(URL, {SECRET_HEADER: SECRET})
    ids = missed(sandbox)
    clock.now += HOUR
    assert reconciler.reconcile()
    assert list(statuses()) == ids


def test_a_person_who_disables_it_soon_after_it_was_enabled_is_not_billed(
    sandbox: FaultyIconik, reconciler: Reconciler, clock: Clock, statuses: Statuses
) -> None:
    definition(sandbox).update(BY_ICONIK)
    assert reconciler.reconcile()
    definition(sandbox).update(BY_ICONIK)
    missed(sandbox)
    clock.now += HOUR
    sandbox.faults.append(Fault(LIST_OF_WEBHOOKS))  # this look cannot tell
    assert not reconciler.reconcile()
    for _ in range(9):
        assert reconciler.reconcile()
        clock.now += HOUR
    assert statuses() == {}


def test_iconiks_list_may_show_the_webhooks_as_they_were_before_they_were_enabled(
    sandbox: FaultyIconik, reconciler: Reconciler, clock: Clock, statuses: Statuses
) -> None:
    definition(sandbox).update(BY_ICONIK)
    ids = missed(sandbox)
    clock.now += HOUR
    sandbox.faults.append(Fault(PUT_WEBHOOK, status=200, body=b"{}"))  # nothing of it shows yet
    assert reconciler.reconcile()
    assert list(statuses()) == ids


@pytest.mark.usefixtures("short_pages")
@pytest.mark.parametrize("sort_keys", [("date_created", "id"), ("date_created",)])
def test_any_number_of_assets_is_added_though_many_were_created_at_the_same_moment(
    sandbox: FaultyIconik,
    reconciler: Reconciler,
    clock: Clock,
    statuses: Statuses,
    lines: Lines,
    sort_keys: tuple[str, ...],
) -> None:
    sandbox.sort_keys = sort_keys
    moments = [90, *[91] * 25, 92, *[93] * 9, *range(94, 99)]  # a page ends within both of the groups
    ids = {missed(sandbox, date_created=format_utc(clock.now + moment))[0] for moment in moments}
    clock.now += HOUR
    assert reconciler.reconcile()
    assert set(statuses()) == ids
    assert len(lines("Added 41 assets")) == 1


@pytest.mark.usefixtures("short_pages")
def test_what_was_cut_off_goes_on_at_its_last_page(
    sandbox: FaultyIconik, reconcilers: Reconcilers, clock: Clock, statuses: Statuses, lines: Lines
) -> None:
    ids = {missed(sandbox, date_created=format_utc(clock.now + moment))[0] for moment in range(51)}
    clock.now += 3 * DAY
    sandbox.faults += [Fault(SEARCH, status=None, times=3), Fault(SEARCH, cut=True)]
    assert not reconcilers().reconcile()
    assert len(statuses()) == 30  # they do not wait for the rest
    clock.now += 3 * DAY
    before = asked(sandbox, SEARCH)
    assert reconcilers().reconcile()
    assert set(statuses()) == ids
    assert asked(sandbox, SEARCH) - before == 3  # the last of the third page comes twice
    assert [line.split()[2] for line in lines("Added")] == ["30", "21"]
    clock.now += HOUR
    assert reconcilers().reconcile()
    assert asked(sandbox, SEARCH) - before == 4  # only what is new is asked for by then


def test_a_search_that_does_not_lead_on_and_assets_that_are_none_are_no_endless_loop(
    sandbox: FaultyIconik, reconciler: Reconciler, clock: Clock, statuses: Statuses
) -> None:
    page = [{"id": "not a UUID", "date_created": "yesterday"}, {"title": "no id"}, {"id": ASSET, "title": 5}] * 33
    body = f'{{"objects": {page} }}'.replace("'", '"').encode()
    sandbox.faults.append(Fault(SEARCH, status=200, body=body, times=FOREVER))
    clock.now += HOUR
    assert reconciler.reconcile()
    assert statuses() == {ASSET: "awaiting_proxy"}
    sandbox.faults[0].body = body.replace(b"] }", b', {"date_created": "2026-11-18", "_sort": [1, 2]}] }')
    assert not reconciler.reconcile()
    assert asked(sandbox, SEARCH) == 3


# Failed jobs


def test_an_item_whose_job_failed_at_iconik_becomes_failed_once(
    sandbox: FaultyIconik, store: Store, reconciler: Reconciler, clock: Clock, row: Row, lines: Lines
) -> None:
    missed(sandbox)
    [asset_id] = sandbox.assets
    job_id = sandbox.start_job(asset_id)
    submitted(store, asset_id, job_id)
    clock.now += HOUR
    sandbox.fail_job(job_id, "Codec\nunknown")
    for _ in range(3):
        assert reconciler.reconcile()
    assert (row()["status"], row()["error"]) == ("failed", "iconik's analysis failed: Codec unknown")
    [line] = lines("analysis failed")
    assert line.startswith(f"ERROR {asset_id} failed: iconik's analysis failed: Codec unknown. Once the cause is fixed")
    assert line.endswith(f"retry {asset_id}")


@pytest.mark.parametrize(
    ("job_id", "fails_after", "status"),
    [(None, 1, "failed"), (None, -1, "submitted"), ("another", 1, "submitted"), ("another", -1, "submitted")],
)
def test_another_job_counts_only_if_no_job_of_ours_is_known_and_it_failed_after_the_item_was_submitted(
    sandbox: FaultyIconik, store: Store, reconciler: Reconciler, clock: Clock, row: Row, job_id: str | None,
    fails_after: float, status: str,
) -> None:  # fmt: skip
    [asset_id] = missed(sandbox)
    clock.now += HOUR
    submitted(store, asset_id, job_id)
    clock.now += fails_after
    sandbox.fail_job(sandbox.start_job(asset_id))
    clock.now += HOUR
    assert reconciler.reconcile()
    assert row()["status"] == status


@pytest.mark.parametrize("knows_new_job", [True, False])
def test_the_old_jobs_failure_found_again_after_a_retry_changes_nothing(
    sandbox: FaultyIconik, store: Store, reconciler: Reconciler, clock: Clock, row: Row, knows_new_job: bool
) -> None:
    [asset_id] = missed(sandbox)
    job_id = sandbox.start_job(asset_id)
    submitted(store, asset_id, job_id)
    sandbox.fail_job(job_id)
    assert reconciler.reconcile()
    clock.now += 60
    Corrections(store).retry(asset_id, 0)
    assert reconciler.reconcile()
    assert row()["status"] == "ready"
    assert store.claim_due(600, DAY)
    assert reconciler.reconcile()
    assert row()["status"] == "submitting"
    store.mark_submitted(asset_id, sandbox.start_job(asset_id) if knows_new_job else None)
    assert reconciler.reconcile()
    assert row()["status"] == "submitted"
    assert asked(sandbox, JOBS) == 4


@pytest.mark.usefixtures("short_pages")
@pytest.mark.parametrize("is_sorted", [True, False])
def test_any_number_of_jobs_and_a_look_that_was_cut_off_loses_none(
    sandbox: FaultyIconik, store: Store, reconcilers: Reconcilers, clock: Clock, statuses: Statuses, is_sorted: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if not is_sorted:  # iconik does not keep to what its documentation says
        find = sandbox._find_jobs
        monkeypatch.setattr(sandbox, "_find_jobs", lambda **query: find(**query)[::-1])
    for _ in range(25):
        [asset_id] = missed(sandbox)
        job_id = sandbox.start_job(asset_id)
        submitted(store, asset_id, job_id)
        clock.now += HOUR / 3
        sandbox.fail_job(job_id)
    sandbox.faults += [Fault(JOBS, status=None), Fault(JOBS)]
    assert not reconcilers().reconcile()
    assert list(statuses().values()).count("failed") == 10
    before = asked(sandbox, JOBS)
    assert reconcilers().reconcile()
    assert set(statuses().values()) == {"failed"}
    assert asked(sandbox, JOBS) - before == (2 if is_sorted else 3)


@pytest.mark.parametrize("value", ["2036-01-01T00:00:00.000Z", "yesterday", ""])
def test_a_mark_of_a_clock_that_ran_ahead_hides_no_later_failure(
    sandbox: FaultyIconik, store: Store, reconciler: Reconciler, clock: Clock, row: Row, value: str
) -> None:
    store.set_state(JOBS_SEEN_UNTIL, value)
    [asset_id] = missed(sandbox)
    job_id = sandbox.start_job(asset_id)
    submitted(store, asset_id, job_id)
    assert reconciler.reconcile()
    clock.now += HOUR
    sandbox.fail_job(job_id)
    assert reconciler.reconcile()
    assert row()["status"] == "failed"


def test_jobs_that_make_no_sense_do_not_keep_the_others_from_being_read(
    sandbox: FaultyIconik, store: Store, reconciler: Reconciler, clock: Clock, row: Row
) -> None:
    submitted(store, ASSET, None)
    own = f'{{"object_id": "{ASSET.upper()}", "id": 5, "date_modified": "later", "message": "Too long"}}'
    body = f'{{"objects": [{{}}, 7, {{"object_id": "../x", "id": null}}, {own}]}}'.encode()
    sandbox.faults.append(Fault(JOBS, status=200, body=body))
    clock.now += 1
    assert reconciler.reconcile()
    assert row()["error"] == "iconik's analysis failed: Too long"


# Old rows


@pytest.mark.parametrize("interval", [HOUR, 0])
def test_closed_proxies_whose_create_never_came_are_deleted_after_a_day_in_batches(
    store: Store, reconcilers: Reconcilers, clock: Clock, statuses: Statuses, lines: Lines, interval: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for module in ("corrections", "reconciler"):
        monkeypatch.setattr(f"{module}.BATCH_SIZE", 2)
    for _ in range(5):
        store.proxy_closed(new_id())
    clock.now += DAY + 1
    store.proxy_closed(ASSET)
    store.add_asset(OTHER_ASSET, "a.mov")
    reconciler = reconcilers(reconciler__interval=interval)
    assert reconciler.reconcile()
    assert statuses() == {ASSET: "awaiting_create", OTHER_ASSET: "awaiting_proxy"}
    assert reconciler.reconcile()
    assert lines("Deleted") == ["INFO Deleted 5 items whose create has not come for a day after the proxy"]


def test_an_end_does_not_wait_for_all_batches(
    store: Store,
    reconciler: Reconciler,
    clock: Clock,
    statuses: Statuses,
    lines: Lines,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in ("corrections", "reconciler"):
        monkeypatch.setattr(f"{module}.BATCH_SIZE", 2)
    for _ in range(5):
        store.proxy_closed(new_id())
    clock.now += DAY + 1
    reconciler.stop()
    assert not reconciler.reconcile()
    assert len(statuses()) == 3
    assert len(lines("Deleted 2 items")) == 1


# The steps


class Everything:
    """Something to do for each step, and whether it was done."""

    def __init__(self, sandbox: FaultyIconik, store: Store, clock: Clock) -> None:
        self.sandbox, self.store = sandbox, store
        self.old, self.failed = new_id(), new_id()
        store.proxy_closed(self.old)
        clock.now += DAY + HOUR
        for webhook in sandbox.webhooks.values():
            webhook.update(BY_ICONIK)
        [self.missed] = missed(sandbox)
        sandbox.create_asset("b.mov", self.failed, send=False)
        job_id = sandbox.start_job(self.failed)
        submitted(store, self.failed, job_id)
        sandbox.fail_job(job_id)
        clock.now += HOUR

    def done(self) -> set[str]:
        found = self.store.database.run("SELECT object_id, status FROM items")
        statuses = {row["object_id"]: row["status"] for row in found}
        done = {
            "webhooks": all(webhook["status"] == "ENABLED" for webhook in self.sandbox.webhooks.values()),
            "assets": self.missed in statuses,
            "jobs": statuses.get(self.failed) == "failed",
            "rows": self.old not in statuses,
        }
        return {name for name, is_done in done.items() if is_done}


ALL = {"webhooks", "assets", "jobs", "rows"}


@pytest.fixture
def everything(sandbox: FaultyIconik, store: Store, clock: Clock) -> Everything:
    return Everything(sandbox, store, clock)


def test_all_steps_are_gone_through(everything: Everything, reconciler: Reconciler, lines: Lines) -> None:
    assert reconciler.reconcile()
    assert everything.done() == ALL
    assert len(lines()) == 5  # two webhooks, one asset, one job, one row
    assert reconciler.reconcile()
    assert len(lines()) == 5


@pytest.mark.parametrize(
    ("role", "left_out"),
    [
        ("can_write_webhooks", {"webhooks"}),
        ("can_read_webhooks", {"webhooks", "assets"}),
        ("can_search", {"assets"}),
        ("can_read_jobs", {"jobs"}),
    ],
)
def test_a_step_whose_role_is_missing_is_left_out_and_told_once_a_start(
    everything: Everything, sandbox: FaultyIconik, reconcilers: Reconcilers, lines: Lines, role: str, left_out: set[str]
) -> None:
    sandbox.roles.remove(role)
    for starts in (1, 2):
        reconciler = reconcilers()
        for _ in range(3):
            assert not reconciler.reconcile()
            assert everything.done() == ALL - left_out
        assert [role in line for line in lines("left out")] == [True] * starts
    assert lines("left out")[0].startswith("ERROR")
    sandbox.roles.add(role)
    assert reconciler.reconcile()
    assert everything.done() == ALL


@pytest.mark.parametrize(
    ("call", "not_done"),
    [(LIST_OF_WEBHOOKS, {"webhooks", "assets"}), (PUT_WEBHOOK, {"webhooks"}), (SEARCH, {"assets"}), (JOBS, {"jobs"})],
)
@pytest.mark.parametrize("status", [503, 400, 302])
def test_a_step_that_fails_leaves_the_others_alone_and_is_tried_again(
    everything: Everything, sandbox: FaultyIconik, reconciler: Reconciler, lines: Lines, call: str, not_done: set[str],
    status: int,
) -> None:  # fmt: skip
    sandbox.faults.append(Fault(call, status))
    assert not reconciler.reconcile()
    assert everything.done() == ALL - not_done
    assert len(lines("tried again")) == 1
    assert reconciler.reconcile()
    assert everything.done() == ALL


@pytest.mark.parametrize(
    ("fault", "restarts"),
    [(Fault(), False), (Fault(), True), (Fault(cut=True), True), (Fault(cut=True, after_work=True), True)],
)
def test_an_iconik_that_fails_each_of_its_calls_once_and_restarts_in_between_only_delay(
    everything: Everything, sandbox: FaultyIconik, reconcilers: Reconcilers, fault: Fault, restarts: bool
) -> None:
    sandbox.fail_each_once = fault
    reconciler = reconcilers()
    looks = 1
    while not reconciler.reconcile():
        looks += 1
        assert looks < 8
        reconciler = reconcilers() if restarts else reconciler
    assert everything.done() == ALL


def test_a_database_that_is_held_by_somebody_only_delays(
    everything: Everything, store: Store, reconciler: Reconciler, tmp_path: Path, lines: Lines
) -> None:
    with closing(sqlite3.connect(tmp_path / "items.db", isolation_level=None)) as person:
        person.execute("BEGIN IMMEDIATE")
        with store.database.waiting_up_to(0.1):
            assert not reconciler.reconcile()
    assert lines("database is locked. It will be tried again")
    assert reconciler.reconcile()
    assert everything.done() == ALL


def test_a_mistake_in_one_step_ends_neither_the_others_nor_the_service(
    everything: Everything, reconciler: Reconciler, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciler._catalog, "webhooks", lambda: 1 / 0)
    assert not reconciler.reconcile()
    assert everything.done() == {"jobs", "rows"}
    assert lines("unexpected") == ["ERROR Reconciling, our webhooks: unexpected"]


def test_with_an_interval_of_0_iconik_is_asked_nothing_and_is_not_asked_later_about_the_time_between(
    everything: Everything, sandbox: FaultyIconik, reconcilers: Reconcilers, clock: Clock
) -> None:
    assert reconcilers(reconciler__interval=0).reconcile()
    assert everything.done() == {"rows"}
    assert sandbox.requests == []
    clock.now += HOUR
    assert reconcilers().reconcile()
    assert everything.done() == ALL - {"assets"}


# The circuit breaker


def test_nothing_is_asked_while_the_breaker_is_open(
    everything: Everything, sandbox: FaultyIconik, reconciler: Reconciler, breaker: CircuitBreaker
) -> None:
    open_for(breaker, 60)
    reconciler.start()
    assert reconciler.is_alive()
    with breaker._changed:
        breaker._open_until = 0  # it is half-open
        assert sandbox.requests == []
        breaker._changed.notify_all()
    wait_until(lambda: everything.done() == ALL)
    assert breaker.state == "half-open"  # that iconik answers these calls says nothing about jobs


def test_a_failure_opens_the_breaker_again_only_if_it_was_a_probe(
    sandbox: FaultyIconik, reconciler: Reconciler, breaker: CircuitBreaker
) -> None:
    sandbox.faults.append(Fault(times=FOREVER))
    for _ in range(MAX_FAILURES):
        assert not reconciler.reconcile()
    assert breaker.state == "closed"
    open_for(breaker, 0)
    reconciler._step("our webhooks", reconciler._enable_webhooks)
    assert breaker.state == "open"


def test_too_many_requests_open_the_breaker(
    sandbox: FaultyIconik, reconciler: Reconciler, breaker: CircuitBreaker
) -> None:
    sandbox.faults.append(Fault(LIST_OF_WEBHOOKS, status=429, headers={"Retry-After": "60"}))
    reconciler._step("our webhooks", reconciler._enable_webhooks)
    assert breaker.state == "open"
    assert breaker.seconds_until_half_open() > 50


def open_for(breaker: CircuitBreaker, seconds: float) -> None:
    for number in range(MAX_FAILURES):
        with breaker.permission() as permission:
            assert permission
            permission.failed(IconikUnavailable("iconik cannot be reached"), str(number))
    breaker._open_until = breaker._clock() + seconds


# Its thread


def test_the_first_start_is_noted_once(store: Store, reconcilers: Reconcilers, clock: Clock) -> None:
    first = store.state(FIRST_STARTED_AT)
    clock.now += DAY
    reconcilers().start()
    assert store.state(FIRST_STARTED_AT) == first
    with store.database.transaction() as db:
        db.execute("DELETE FROM state WHERE key = ?", (FIRST_STARTED_AT,))
    reconcilers().start()
    assert store.state(FIRST_STARTED_AT) == store.now()


@pytest.mark.parametrize(
    ("interval", "done", "waits"),
    [(7200, True, 7200), (7200, False, 900), (60, False, 60), (0, True, DEFAULT_INTERVAL)],
)
def test_it_looks_again_after_its_interval_or_sooner_if_a_step_was_not_done(
    reconcilers: Reconcilers, monkeypatch: pytest.MonkeyPatch, interval: float, done: bool, waits: float
) -> None:
    reconciler = reconcilers(reconciler__interval=interval, submitter__max_retry_delay=900)
    waited = []

    def wait(seconds: float) -> bool:
        waited.append(seconds)
        reconciler._stopping.set()
        return True

    monkeypatch.setattr(reconciler, "reconcile", lambda: done)
    monkeypatch.setattr(reconciler._stopping, "wait", wait)
    reconciler._run()
    assert waited == [waits]


@pytest.mark.parametrize("call", [LIST_OF_WEBHOOKS, PUT_WEBHOOK, SEARCH, JOBS])
def test_it_ends_though_iconik_does_not_answer(
    everything: Everything, sandbox: FaultyIconik, reconciler: Reconciler, lines: Lines, call: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("reconciliation.reconciler.STOP_SECONDS", 0.05)
    sandbox.faults.append(Fault(call, hang=True))
    reconciler.start()
    sandbox.wait_for(lambda: asked(sandbox, call) > 0)
    reconciler.stop()
    requests = len(sandbox.requests)
    sandbox.stopping.set()  # now it answers, too late
    reconciler._thread.join(10)
    assert not reconciler.is_alive()
    assert len(sandbox.requests) == requests
    assert [line for line in lines() if "tried again" in line or "unexpected" in line] == []


def test_it_ends_while_the_breaker_is_open(reconciler: Reconciler, breaker: CircuitBreaker, lines: Lines) -> None:
    open_for(breaker, 60)
    reconciler.start()
    reconciler._stopping.set()
    breaker.stop()
    reconciler._thread.join(10)
    assert not reconciler.is_alive()
    assert lines("Reconciling") == []
