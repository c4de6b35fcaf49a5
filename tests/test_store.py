import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from reconciliation.changes import Corrections
from store import Item, Store
from support import ASSET, OTHER_ASSET, Clock, new_id, rows
from system.text import format_utc

DAY = 24 * 3600
MONTH = 30 * DAY
MIN_AGE, MAX_AGE = 600.0, 7 * DAY


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    store = Store(tmp_path / "items.db", listener=True, clock=clock)
    yield store
    store.close()


@pytest.fixture
def row(store: Store, tmp_path: Path) -> Callable[..., sqlite3.Row]:
    """An asset's row, as another program sees it."""

    def read(object_id: str = ASSET) -> sqlite3.Row:
        [row] = rows(tmp_path / "items.db", f"object_id = '{object_id}'")
        return row

    return read


Row = Callable[..., sqlite3.Row]


def make_ready(store: Store, object_id: str = ASSET) -> None:
    store.add_asset(object_id, None, MIN_AGE)
    assert store.proxy_closed(object_id) == "ready"


def claim(store: Store, object_id: str = ASSET) -> None:
    """Create an item, and claim it."""
    make_ready(store, object_id)
    item = store.claim_new()
    assert item is not None
    assert item.object_id == object_id


def due(store: Store) -> Item | None:
    return store.claim_due(MIN_AGE, MAX_AGE)


def due_id(store: Store) -> str | None:
    item = due(store)
    return item.object_id if item else None


# What webhooks tell


def test_a_created_asset_awaits_its_proxy(store: Store, row: Row, clock: Clock) -> None:
    assert store.add_asset(ASSET, "a.mov", MIN_AGE) == "awaiting_proxy"
    assert (row()["status"], row()["title"]) == ("awaiting_proxy", "a.mov")
    assert (row()["created_at"], row()["next_attempt_at"]) == (format_utc(clock.now), format_utc(clock.now + MIN_AGE))
    assert store.claim_new() is None
    assert due(store) is None


def test_a_closed_proxy_makes_its_item_ready(store: Store, row: Row, clock: Clock) -> None:
    store.add_asset(ASSET, None, MIN_AGE)
    clock.now += 5
    assert store.proxy_closed(ASSET) == "ready"
    assert row()["proxy_closed_at"] == row()["next_attempt_at"] == row()["ready_at"] == format_utc(clock.now)


def test_a_proxy_that_overtakes_its_create_is_not_lost(store: Store, row: Row, clock: Clock) -> None:
    assert store.proxy_closed(ASSET) == "awaiting_create"
    assert store.claim_new() is None
    clock.now += 5
    assert store.add_asset(ASSET, "a.mov", MIN_AGE) == "ready"
    assert (row()["title"], row()["proxy_closed_at"] is None) == ("a.mov", False)
    assert row()["ready_at"] == row()["next_attempt_at"] == format_utc(clock.now)


def test_a_closed_proxy_of_an_asset_never_created_here_is_never_claimed(store: Store, clock: Clock) -> None:
    store.proxy_closed(ASSET)
    clock.now += 365 * DAY
    assert store.claim_new() is None
    assert due(store) is None


STATUSES = ["awaiting_proxy", "awaiting_create", "ready", "submitting", "submitted", "skipped", "failed"]


@pytest.mark.parametrize("status", STATUSES)
def test_every_other_event_changes_nothing(store: Store, row: Row, clock: Clock, status: str) -> None:
    if status == "awaiting_create":
        store.proxy_closed(ASSET)
    else:
        store.add_asset(ASSET, "a.mov", MIN_AGE)
    if not status.startswith("awaiting"):
        store.proxy_closed(ASSET)
    if status not in ("awaiting_proxy", "awaiting_create", "ready"):
        store.claim_new()
    if status == "submitted":
        store.mark_submitted(ASSET, "job")
    if status == "skipped":
        store.mark_skipped(ASSET, "deleted")
    if status == "failed":
        store.mark_failed(ASSET, "error")
    before = tuple(row())
    assert row()["status"] == status
    clock.now += 1
    if status != "awaiting_create":
        assert store.add_asset(ASSET, "b.mov", MIN_AGE) == "unchanged"
    if status != "awaiting_proxy":
        assert store.proxy_closed(ASSET) == "unchanged"
        store.postpone_question(ASSET, 5, MAX_AGE)
    if status != "submitting":
        store.mark_submitted(ASSET, "job2")
        store.mark_skipped(ASSET, "reason2")
        store.mark_failed(ASSET, "error2")
        store.postpone(ASSET, 1, "error2")
        assert status == "ready" or store.recover(1) == 0
    store.disbelieve_clock(10, 3600, MAX_AGE)
    assert tuple(row()) == before


def test_a_status_of_another_name_cannot_be_written(store: Store, tmp_path: Path) -> None:
    store.add_asset(ASSET, None, MIN_AGE)
    with closing(sqlite3.connect(tmp_path / "items.db")) as db:
        for change in ("status = 'done'", "status = 'ready', next_attempt_at = NULL"):  # ready, but never due
            with pytest.raises(sqlite3.IntegrityError):
                db.execute(f"UPDATE items SET {change}")


# Claims


def test_claiming_makes_an_item_submitting_and_counts_the_attempt(store: Store, row: Row, clock: Clock) -> None:
    make_ready(store)
    clock.now += 7
    item = store.claim_new()
    assert item
    assert item == Item(ASSET, "submitting", attempts=1, in_doubt=0, age=item.age)
    assert item.age == pytest.approx(7, abs=0.01)
    assert (row()["status"], row()["attempts"], row()["last_attempt_at"]) == ("submitting", 1, format_utc(clock.now))
    assert store.claim_new() is None
    assert due(store) is None


def test_new_items_are_claimed_the_earliest_first_or_the_newest(store: Store, clock: Clock) -> None:
    ids = [new_id() for _ in range(6)]
    for object_id in ids:
        clock.now += 1
        make_ready(store, object_id)
    claimed = [store.claim_new(newest=number > 3) for number in range(6)]
    assert [item.object_id for item in claimed if item] == [*ids[:4], ids[5], ids[4]]


def test_a_new_item_is_no_old_one_and_an_old_one_is_not_new(store: Store, clock: Clock) -> None:
    claim(store)
    store.postpone(ASSET, 10, "iconik answered 503")
    make_ready(store, OTHER_ASSET)
    clock.now += 100
    assert due_id(store) == ASSET
    assert due(store) is None
    item = store.claim_new()
    assert item is not None
    assert item.object_id == OTHER_ASSET


def test_what_has_been_due_longest_is_claimed_first_whatever_it_is(store: Store, clock: Clock) -> None:
    first, third, fourth = new_id(), new_id(), new_id()
    claim(store, third)
    store.postpone(third, 20, "error")
    claim(store, first)
    store.postpone(first, 5, "error")
    store.add_asset(ASSET, None, 10)
    store.add_asset(fourth, None, 25)
    clock.now += 60
    assert [due_id(store) for _ in range(5)] == [first, ASSET, third, fourth, None]


def test_a_question_for_a_proxy_leaves_its_item_as_it_is(store: Store, row: Row, clock: Clock) -> None:
    store.add_asset(ASSET, None, MIN_AGE)
    clock.now += MIN_AGE
    item = due(store)
    assert item is not None
    assert item.status == "awaiting_proxy"
    assert (row()["status"], row()["attempts"], row()["last_attempt_at"]) == ("awaiting_proxy", 0, None)
    assert store.proxy_closed(ASSET) == "ready"
    store.postpone_question(ASSET, 900, MAX_AGE)  # an answer that comes late
    assert (row()["status"], row()["next_attempt_at"]) == ("ready", format_utc(clock.now))


def test_a_proxy_is_asked_for_at_10_minutes_and_at_each_doubling_for_7_days(store: Store, clock: Clock) -> None:
    store.add_asset(ASSET, None, MIN_AGE)
    start, asked = clock.now, []
    while clock.now < start + MONTH:
        if due_id(store):
            asked.append(round((clock.now - start) / 60))
        clock.now += 60
    assert asked == [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5120]


def test_an_asset_that_was_found_late_is_asked_about_at_once(store: Store, clock: Clock) -> None:
    Corrections(store).add_assets([(ASSET, None)], {})
    start, asked = clock.now, []
    while clock.now < start + 3600:
        if due_id(store):
            asked.append(round((clock.now - start) / 60))
        clock.now += 60
    assert asked == [0, 10, 20, 40]


def test_a_question_that_failed_is_put_again_until_the_item_is_too_old(store: Store, row: Row, clock: Clock) -> None:
    store.add_asset(ASSET, None, MIN_AGE)
    store.postpone_question(ASSET, 900, MAX_AGE)
    assert row()["next_attempt_at"] == format_utc(clock.now + 900)
    clock.now += MAX_AGE
    before = row()["next_attempt_at"]
    store.postpone_question(ASSET, 900, MAX_AGE)
    assert row()["next_attempt_at"] == before
    assert due_id(store) == ASSET
    assert row()["next_attempt_at"] is None


# Outcomes


def test_a_postponed_item_is_due_after_its_delay(store: Store, row: Row, clock: Clock) -> None:
    claim(store)
    clock.now += 3
    store.postpone(ASSET, 10, "iconik answered 503")
    assert (row()["status"], row()["error"], row()["in_doubt"]) == ("ready", "iconik answered 503", 0)
    assert row()["last_attempt_at"] == format_utc(clock.now)
    assert store.seconds_until_due() == pytest.approx(10, abs=0.01)
    clock.now += 9.9
    assert due(store) is None
    clock.now += 0.2
    item = due(store)
    assert item is not None
    assert item.attempts == 2


def test_an_attempt_that_only_tried_whether_iconik_is_back_does_not_count(store: Store, clock: Clock) -> None:
    claim(store)
    store.postpone(ASSET, 0, "error")
    due(store)
    store.postpone(ASSET, 0, "error", counts=False)
    item = due(store)
    assert item is not None
    assert item.attempts == 2


def test_a_doubt_stays_until_the_job_is_known_to_be_there(store: Store, row: Row) -> None:
    claim(store)
    store.postpone(ASSET, 0, "no answer", in_doubt=True)
    item = due(store)
    assert item is not None
    assert item.in_doubt
    store.postpone(ASSET, 0, "no answer to the question")
    assert row()["in_doubt"] == 1
    due(store)
    store.mark_submitted(ASSET, "job")
    assert row()["in_doubt"] == 0


def test_a_submitted_item_is_finished(store: Store, row: Row, clock: Clock) -> None:
    claim(store)
    store.postpone(ASSET, 0, "some error")
    due(store)
    store.mark_submitted(ASSET, "job")
    assert (row()["status"], row()["job_id"], row()["error"]) == ("submitted", "job", None)
    assert (row()["submitted_at"], row()["finished"]) == (format_utc(clock.now), "True")


def test_a_skipped_item_is_finished_and_says_why(store: Store, row: Row) -> None:
    claim(store)
    store.mark_skipped(ASSET, "the asset is deleted")
    assert (row()["status"], row()["error"], row()["finished"]) == ("skipped", "the asset is deleted", "True")


def test_a_failed_item_keeps_its_error(store: Store, row: Row) -> None:
    claim(store)
    store.mark_failed(ASSET, "iconik answered 404: no asset")
    assert (row()["status"], row()["error"], row()["finished"]) == ("failed", "iconik answered 404: no asset", "False")


# A start


def test_items_under_way_when_the_process_ended_are_in_doubt(store: Store, row: Row, clock: Clock) -> None:
    claim(store)
    clock.now += 2
    assert store.recover(10) == 1
    assert (row()["status"], row()["in_doubt"]) == ("ready", 1)
    assert row()["error"] == "the listener ended before iconik answered"
    assert store.claim_new() is None
    clock.now += 9.9
    assert due(store) is None
    clock.now += 0.2
    item = due(store)
    assert item is not None
    assert item.attempts == 2


def test_a_start_makes_due_what_waits_for_iconiks_trouble_to_end(store: Store, clock: Clock) -> None:
    claim(store)
    store.postpone(ASSET, 900, "iconik answered 401")
    clock.now += 60
    assert due(store) is None
    assert store.recover(10) == 0
    assert due_id(store) == ASSET


@pytest.mark.parametrize("in_doubt", [True, False])
def test_no_start_looks_at_an_item_sooner_than_retry_delay_after_its_attempt(
    store: Store, clock: Clock, in_doubt: bool
) -> None:
    claim(store)
    store.postpone(ASSET, 900, "no answer", in_doubt=in_doubt)
    clock.now += 4
    for _ in range(3):
        store.recover(10)
    clock.now += 5.9
    assert due(store) is None
    clock.now += 0.2
    assert due_id(store) == ASSET


def test_the_time_in_which_nobody_tried_does_not_count_towards_giving_up(store: Store, clock: Clock) -> None:
    claim(store)
    make_ready(store, OTHER_ASSET)
    clock.now += 100
    store.postpone(ASSET, 10, "iconik answered 503")
    clock.now += 8 * DAY
    store.recover(10)
    old, new = due(store), store.claim_new()
    assert old is not None
    assert new is not None
    assert old.age == pytest.approx(100, abs=0.1)
    assert new.age == pytest.approx(0, abs=0.1)
    clock.now += 8 * DAY
    store.recover(10)  # both were under way
    clock.now += 10.1
    assert sorted(round(item.age) for item in (due(store), due(store)) if item) == [10, 110]


# The clock, and what people write


def test_webhooks_that_came_while_the_clock_ran_ahead_are_not_held_up(store: Store, clock: Clock) -> None:
    clock.now += MONTH
    make_ready(store)
    store.add_asset(OTHER_ASSET, None, MIN_AGE)
    clock.now -= MONTH
    item = store.claim_new()
    assert item is not None
    assert due(store) is None
    store.disbelieve_clock(10, 3600, MAX_AGE)
    assert due_id(store) == OTHER_ASSET


def test_an_attempt_that_was_postponed_while_the_clock_ran_ahead_is_soon_due(store: Store, clock: Clock) -> None:
    clock.now += MONTH
    claim(store)
    store.postpone(ASSET, 10, "no answer", in_doubt=True)
    clock.now -= MONTH
    store.disbelieve_clock(10, 3600, MAX_AGE)
    assert due(store) is None
    clock.now += 10.1
    item = due(store)
    assert item is not None
    assert item.age == pytest.approx(10, abs=1)


def test_a_delay_of_ours_is_believed(store: Store, row: Row, clock: Clock) -> None:
    claim(store)
    store.postpone(ASSET, 3599, "Retry-After")
    store.disbelieve_clock(10, 3600, MAX_AGE)
    assert row()["next_attempt_at"] == format_utc(clock.now + 3599)


@pytest.mark.parametrize(
    "written",
    ["", "soon", "2026-11-18T18:40:00+01:00", "9999-12-31T23:59:59Z", "0000", "~", "2026-13-45", "1e99", "\x00"],
)
@pytest.mark.parametrize("column", ["next_attempt_at", "created_at", "ready_at", "last_attempt_at", "proxy_closed_at"])
def test_whatever_a_person_writes_as_a_time_is_harmless(store: Store, clock: Clock, column: str, written: str) -> None:
    claim(store)
    store.postpone(ASSET, 10, "error", in_doubt=True)
    store.add_asset(OTHER_ASSET, None, MIN_AGE)
    store.database.run(f"UPDATE items SET {column} = :written", written=written)
    store.recover(10)
    claimed = set()
    for _ in range(100):
        seconds = store.seconds_until_due()
        assert seconds is None or seconds >= 0
        item = due(store)
        if seconds == 0:
            assert item is not None  # or a worker would spin
        if item and item.status == "submitting":
            store.postpone(item.object_id, 10, "error")
        claimed.add(item.object_id if item else None)
        store.disbelieve_clock(10, 3600, MAX_AGE)
        clock.now += 3600
    assert ASSET in claimed


def test_seconds_until_due_is_none_if_nothing_ever_will_be(store: Store) -> None:
    assert store.seconds_until_due() is None
    make_ready(store)
    assert store.seconds_until_due() is None


# For people


def test_the_views_show_problems_and_a_summary(store: Store, tmp_path: Path) -> None:
    claim(store)
    store.mark_failed(ASSET, "refused")
    claim(store, OTHER_ASSET)
    store.postpone(OTHER_ASSET, 60, "503")
    for _ in range(2):
        store.add_asset(new_id(), None)
    make_ready(store, new_id())
    with closing(sqlite3.connect(tmp_path / "items.db")) as db:
        problems = db.execute("SELECT object_id, status, error FROM problems").fetchall()
        assert sorted(problems) == sorted([(ASSET, "failed", "refused"), (OTHER_ASSET, "ready", "503")])
        summary = db.execute("SELECT status, items FROM summary").fetchall()
        assert summary == [("awaiting_proxy", 2), ("ready", 2), ("failed", 1)]


def test_the_articles_query_keeps_working(store: Store, tmp_path: Path) -> None:
    claim(store)
    store.mark_submitted(ASSET, None)
    store.add_asset(OTHER_ASSET, None)
    with closing(sqlite3.connect(tmp_path / "items.db")) as db:
        assert db.execute("select object_id from items where finished='False'").fetchall() == [(OTHER_ASSET,)]


def test_health_tells_since_when_something_is_due(store: Store, clock: Clock) -> None:
    assert store.health() == {"ready": 0, "submitting": 0, "failed": 0, "oldest_due_at": None}
    claim(store)
    store.postpone(ASSET, 60, "503")
    assert store.health()["oldest_due_at"] is None
    clock.now += 30
    make_ready(store, OTHER_ASSET)
    since = format_utc(clock.now)
    clock.now += 60
    assert store.health() == {"ready": 2, "submitting": 0, "failed": 0, "oldest_due_at": since}


def test_what_must_be_remembered_is(store: Store, tmp_path: Path) -> None:
    assert store.state("a") is None
    store.set_state("a", "1")
    store.set_state("a", "2")
    with closing(Store(tmp_path / "items.db")) as other:
        assert other.state("a") == "2"


def test_no_statement_of_the_service_reads_the_whole_table(store: Store) -> None:
    statements: list[str] = []
    connection = store.database._connection
    connection.set_trace_callback(statements.append)
    corrections = Corrections(store)
    make_ready(store)
    store.seconds_until_due()
    store.claim_new()
    store.claim_new(newest=True)
    store.postpone(ASSET, 0, "error")
    store.postpone_question(ASSET, 0, MAX_AGE)
    due(store)
    store.mark_submitted(ASSET, "job")
    store.mark_skipped(ASSET, "reason")
    store.mark_failed(ASSET, "error")
    store.recover(1)
    store.disbelieve_clock(1, 2, 3)
    store.health()
    store.overview()
    corrections.add_assets([(ASSET, None)], {"key": "value"})
    corrections.fail_submitted(ASSET, "job", "2026", "error")
    corrections.delete_awaiting_create()
    connection.set_trace_callback(None)
    plans = [
        (step["detail"], statement)
        for statement in statements
        if statement.split()[0] in ("SELECT", "UPDATE", "INSERT", "DELETE")
        for step in store.database.run(f"EXPLAIN QUERY PLAN {statement}")
    ]
    assert len(plans) > 30
    # A partial index holds only the items of one status: to scan that one is no scan of the table.
    scans = [plan for plan in plans if plan[0].startswith("SCAN items") and "INDEX" not in plan[0]]
    assert scans == []
