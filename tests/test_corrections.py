import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reconciliation import changes as corrections_module
from reconciliation.changes import Corrections
from store import Store
from support import ASSET, OTHER_ASSET, Clock, new_id, rows
from system.text import format_utc

DAY = 24 * 3600


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    store = Store(tmp_path / "items.db", listener=True, clock=clock)
    yield store
    store.close()


@pytest.fixture
def corrections(store: Store) -> Corrections:
    return Corrections(store)


@pytest.fixture
def row(store: Store, tmp_path: Path) -> Callable[..., sqlite3.Row]:
    def read(object_id: str = ASSET) -> sqlite3.Row:
        [row] = rows(tmp_path / "items.db", f"object_id = '{object_id}'")
        return row

    return read


Row = Callable[..., sqlite3.Row]


def bring_to(store: Store, status: str, object_id: str = ASSET) -> None:
    """Bring a new item to a status."""
    if status == "awaiting_create":
        store.proxy_closed(object_id)
        return
    store.add_asset(object_id, "a.mov", 600)
    if status == "awaiting_proxy":
        return
    store.proxy_closed(object_id)
    if status == "new":
        return
    store.claim_new()
    if status == "ready":
        store.postpone(object_id, 900, "iconik answered 503")
    if status == "submitted":
        store.mark_submitted(object_id, "job")
    if status == "skipped":
        store.mark_skipped(object_id, "the asset is deleted")
    if status == "failed":
        store.mark_failed(object_id, "iconik answered 404")


# Retry


@pytest.mark.parametrize("status", ["failed", "skipped"])
def test_retry_makes_an_item_ready_anew(
    store: Store, corrections: Corrections, row: Row, clock: Clock, status: str
) -> None:
    bring_to(store, status)
    clock.now += 8 * DAY
    assert corrections.retry(ASSET, 10) == status
    assert (row()["status"], row()["attempts"], row()["in_doubt"]) == ("ready", 0, 0)
    assert row()["ready_at"] == row()["next_attempt_at"] == format_utc(clock.now)
    assert store.claim_new() is None  # what is new goes first
    item = store.claim_due(600, 7 * DAY)
    assert item is not None
    assert item.attempts == 1


def test_what_was_skipped_before_its_proxy_was_there_awaits_that_again(
    store: Store, corrections: Corrections, row: Row, clock: Clock
) -> None:
    bring_to(store, "awaiting_proxy")
    corrections.skip(ASSET)
    clock.now += 8 * DAY
    assert corrections.retry(ASSET, 10) == "skipped"
    assert (row()["status"], row()["next_attempt_at"]) == ("awaiting_proxy", format_utc(clock.now))
    assert store.proxy_closed(ASSET) == "ready"


@pytest.mark.parametrize("status", ["ready", "awaiting_proxy"])
def test_retry_hurries_what_is_waiting(store: Store, corrections: Corrections, clock: Clock, status: str) -> None:
    bring_to(store, status)
    clock.now += 30
    assert store.claim_due(600, 7 * DAY) is None
    assert corrections.retry(ASSET, 10) == status
    item = store.claim_due(600, 7 * DAY)
    assert item is not None
    assert item.object_id == ASSET


@pytest.mark.parametrize("status", ["submitting", "submitted", "awaiting_create"])
def test_retry_leaves_the_others_alone(store: Store, corrections: Corrections, row: Row, status: str) -> None:
    bring_to(store, status)
    before = tuple(row())
    assert corrections.retry(ASSET, 10) == status
    assert tuple(row()) == before
    assert corrections.retry(OTHER_ASSET, 10) == "unknown"


@pytest.mark.parametrize("gives_up", [True, False])
def test_retry_does_not_look_too_early_at_what_is_in_doubt_however_often_it_is_given(
    store: Store, corrections: Corrections, clock: Clock, gives_up: bool
) -> None:
    bring_to(store, "submitting")
    store.postpone(ASSET, 0, "no answer", in_doubt=True)
    if gives_up:
        store.claim_due(600, 7 * DAY)
        store.mark_failed(ASSET, "given up")
    clock.now += 4
    for _ in range(3):
        corrections.retry(ASSET, 10)
        store.recover(10)
    clock.now += 5.9
    assert store.claim_due(600, 7 * DAY) is None
    clock.now += 0.2
    assert store.claim_due(600, 7 * DAY) is not None


@pytest.mark.parametrize("status", list(corrections_module.RETRIES))
def test_all_of_a_status_are_retried_once_in_batches(
    store: Store, corrections: Corrections, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    monkeypatch.setattr(corrections_module, "BATCH_SIZE", 3)
    ids = {new_id() for _ in range(7)}
    for object_id in ids:
        bring_to(store, status, object_id)
    bring_to(store, "submitting", ASSET)
    clock.now += 4
    batches: list[list[str]] = [[]]
    while found := corrections.next_ids(status, (batches[-1] or [""])[-1]):
        batches.append(corrections.retry_batch(found, status, 10))
        clock.now += 10
        while item := store.claim_due(600, 7 * DAY):  # meanwhile, it fails again, or iconik has no proxy
            if item.status == "submitting":
                store.mark_failed(item.object_id, "again")
    assert [len(batch) for batch in batches] == [0, 3, 3, 1]
    assert {object_id for batch in batches for object_id in batch} == ids


# Skip


@pytest.mark.parametrize("status", corrections_module.SKIPPED)
def test_skip_settles_an_item(store: Store, corrections: Corrections, row: Row, clock: Clock, status: str) -> None:
    bring_to(store, status)
    assert corrections.skip(ASSET) == status
    assert (row()["status"], row()["error"], row()["finished"]) == ("skipped", "skipped by a person", "True")
    clock.now += 365 * DAY
    assert store.claim_new() is None
    assert store.claim_due(600, 7 * DAY) is None
    assert store.proxy_closed(ASSET) == store.add_asset(ASSET, None) == "unchanged"


@pytest.mark.parametrize("status", ["submitting", "submitted"])
def test_skip_leaves_alone_what_iconik_has_or_may_have(
    store: Store, corrections: Corrections, row: Row, status: str
) -> None:
    bring_to(store, status)
    before = tuple(row())
    assert corrections.skip(ASSET) == status
    assert corrections.skip(OTHER_ASSET) == "unknown"
    assert tuple(row()) == before


def test_all_of_a_status_are_skipped_in_batches(
    store: Store, corrections: Corrections, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corrections_module, "BATCH_SIZE", 3)
    for _ in range(5):
        bring_to(store, "failed", new_id())
    bring_to(store, "ready")
    first = corrections.next_ids("failed", "")
    assert corrections.skip_batch(first, "failed") == first
    second = corrections.next_ids("failed", first[-1])
    assert corrections.skip_batch(second, "failed") == second
    assert [len(first), len(second), len(corrections.next_ids("failed", second[-1]))] == [3, 2, 0]
    assert {row["status"]: row["items"] for row in store.overview()} == {"ready": 1, "skipped": 5}


def test_of_a_batch_only_what_has_the_status_still_is_changed(store: Store, corrections: Corrections, row: Row) -> None:
    bring_to(store, "failed")
    bring_to(store, "failed", OTHER_ASSET)
    found = corrections.next_ids("failed", "")
    corrections.retry(ASSET, 0)
    assert corrections.skip_batch(found, "failed") == [OTHER_ASSET]
    assert row()["status"] == "ready"


def test_retry_leaves_what_is_due_already_in_its_place(store: Store, corrections: Corrections, clock: Clock) -> None:
    for object_id in (ASSET, OTHER_ASSET):
        bring_to(store, "new", object_id)
        clock.now += 1
    corrections.retry(ASSET, 10)
    item = store.claim_new()
    assert item is not None
    assert item.object_id == ASSET


def test_the_next_ids_are_found_by_the_primary_key_alone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the status's index, each batch would sort all items of that status."""
    monkeypatch.setattr(corrections_module, "BATCH_SIZE", 3)
    plan = store.database.run(
        "EXPLAIN QUERY PLAN SELECT object_id FROM items WHERE +status = 'failed' AND object_id > '' ORDER BY object_id"
    )
    assert [row["detail"] for row in plan] == ["SEARCH items USING PRIMARY KEY (object_id>?)"]


# What iconik told


def test_a_missed_asset_is_stored_as_its_create_webhook_would_have(
    store: Store, corrections: Corrections, row: Row
) -> None:
    bring_to(store, "awaiting_create")
    bring_to(store, "submitted", OTHER_ASSET)
    new = new_id()
    assert corrections.add_assets([(ASSET, "a.mov"), (OTHER_ASSET, "b"), (new, None), (new, None)], {"k": "v"}) == 2
    assert (row()["status"], row()["title"]) == ("ready", "a.mov")
    assert row(OTHER_ASSET)["status"] == "submitted"
    assert row(new)["status"] == "awaiting_proxy"
    assert store.state("k") == "v"
    assert [corrections.is_known(one) for one in (ASSET, OTHER_ASSET, new, new_id())] == [True, True, True, False]


@pytest.mark.parametrize(
    ("known_job", "failed_job", "later", "becomes"),
    [
        ("job", "job", 5, "failed"),
        ("job", "job", -5, "failed"),
        ("job", "other", 5, "submitted"),
        (None, "any", 5, "failed"),
        (None, "any", -5, "submitted"),
    ],
)
def test_a_submitted_item_fails_with_its_own_job(
    store: Store, corrections: Corrections, row: Row, clock: Clock, known_job: str | None, failed_job: str, later: int,
    becomes: str,
) -> None:  # fmt: skip
    bring_to(store, "submitting")
    store.mark_submitted(ASSET, known_job)
    failed = corrections.fail_submitted(ASSET, failed_job, format_utc(clock.now + later), "iconik's analysis failed")
    assert failed == (becomes == "failed")
    assert row()["status"] == becomes


def test_the_old_jobs_failure_found_again_changes_nothing(store: Store, corrections: Corrections, row: Row) -> None:
    bring_to(store, "submitted")
    failure = (ASSET, "job", store.now(), "iconik's analysis failed")
    assert corrections.fail_submitted(*failure)
    assert not corrections.fail_submitted(*failure)
    corrections.retry(ASSET, 0)
    assert not corrections.fail_submitted(*failure)
    store.claim_due(600, 7 * DAY)
    store.mark_submitted(ASSET, "job2")
    assert not corrections.fail_submitted(*failure)
    assert row()["status"] == "submitted"


def test_a_closed_proxy_waits_a_day_for_its_create_and_nothing_else_is_deleted(
    store: Store, corrections: Corrections, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corrections_module, "BATCH_SIZE", 2)
    for _ in range(3):
        bring_to(store, "awaiting_create", new_id())
    bring_to(store, "awaiting_proxy")
    clock.now += DAY
    assert corrections.delete_awaiting_create() == 0
    clock.now += 0.001
    assert [corrections.delete_awaiting_create() for _ in range(3)] == [2, 1, 0]
    assert [row["object_id"] for row in rows(tmp_path / "items.db")] == [ASSET]
