"""The comparison with iconik, one look at a time, on the stand-in over HTTP, by a clock of the test's."""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from circuit_breaker import CircuitBreaker
from faulty_iconik import Fault, FaultyIconik
from iconik_client import IconikClient
from reconciliation.reconciler import ASSETS_FLOOR, ASSETS_SEEN_UNTIL, PASSED_OVER, Reconciler, note_job_floors
from reconciliation.webhooks import REGISTERED_URL
from store import JOB_FLOOR, Rules, Status, Store
from submitter import Submitter
from support import ASSET, SECRET, Clock, ManualRuntime, make_config, new_id
from system.text import format_utc, parse_time

HOUR, DAY = 3600.0, 86400.0
URL = "http://127.0.0.1:1"  # where the webhooks point, and nothing listens
LIST = "GET /API/notifications/v1/webhooks/?"
BY_ICONIK = {"status": "DISABLED", "first_failed_at": "2026-11-18T00:00:00+00:00", "last_error": "503"}


class World:
    """A store, a reconciler and the stand-in on one clock."""

    def __init__(self, folder: Path, sandbox: FaultyIconik, clock: Clock, **values: Any) -> None:
        self.sandbox, self.clock = sandbox, clock
        sandbox.clock = clock
        self.config = make_config(folder, sandbox, **values)
        self.store = Store(folder / "items.db", Rules.of(self.config), listener=True, clock=clock)
        self.store.set_state(REGISTERED_URL, URL)
        sandbox.register(URL, {"X-Webhook-Secret": SECRET})
        self.start()

    def start(self) -> None:
        """A process begins: without the threads."""
        runtime = ManualRuntime(self.clock)
        self.client = IconikClient(self.config.iconik, runtime=runtime)
        breaker = CircuitBreaker(self.config.submitter, runtime)
        self.submitter = Submitter(self.store, self.client, breaker, self.config, runtime=runtime)
        self.reconciler = Reconciler(self.store, self.client, breaker, self.submitter, self.config, runtime=runtime)

    def look(self, after: float = HOUR) -> bool:
        self.clock.advance(after)
        return self.reconciler.reconcile()

    def missed(self, count: int = 1, **fields: Any) -> set[str]:
        """Assets whose webhooks are lost."""
        return {self.sandbox.create_asset("a.mov", send=False, **fields) for _ in range(count)}

    def items(self) -> dict[str, dict[str, Any]]:
        return {row["object_id"]: dict(row) for row in self.store.database.run("SELECT * FROM items")}

    @property
    def create(self) -> dict[str, Any]:
        [found] = [webhook for webhook in self.sandbox.webhooks.values() if webhook["url"] == f"{URL}/create"]
        return found

    def submitted(self, job: str = "analyze") -> str:
        """An asset whose job iconik accepted. Returns the job's id."""
        self.sandbox.create_asset("a.mov", ASSET, send=False)
        self.store.add_asset(ASSET, "a.mov")
        self.store.proxy_closed(ASSET, self.sandbox.assets[ASSET]["versions"][-1]["id"])
        while self.submitter.work_once() == 0:
            pass
        assert self.items()[ASSET]["status"] == Status.SUBMITTED
        return next(job_id for job_id, one in self.sandbox.job_details.items() if one["kind"] == job)


@pytest.fixture
def worlds(tmp_path: Path, sandbox: FaultyIconik, clock: Clock) -> Iterator[Callable[..., World]]:
    made: list[World] = []

    def make(**values: Any) -> World:
        made.append(World(tmp_path, sandbox, clock, **values))
        return made[-1]

    yield make
    for world in made:
        world.store.close()


@pytest.fixture
def world(worlds: Callable[..., World]) -> World:
    """After its first look."""
    world = worlds()
    assert world.look(1)
    return world


# Our webhooks.


def test_webhooks_that_iconik_disabled_are_enabled_again(world: World) -> None:
    for webhook in world.sandbox.webhooks.values():
        webhook.update(BY_ICONIK)
    assert world.look()
    assert {webhook["status"] for webhook in world.sandbox.webhooks.values()} == {"ENABLED"}


def test_a_webhook_that_a_person_disabled_is_left(world: World) -> None:
    world.sandbox.edit_webhook(world.create["id"], status="DISABLED")
    assert world.look()
    assert world.look()
    assert world.create["status"] == "DISABLED"


@pytest.mark.parametrize("fields", [{"operation": None}, {"realm": None}])
def test_an_operation_or_realm_that_is_null_includes_ours(world: World, fields: dict[str, Any]) -> None:
    world.create.update(BY_ICONIK, **fields)
    assert world.look()
    assert world.create["status"] == "ENABLED"


@pytest.mark.parametrize("edits", [[{"status": "DISABLED"}, {"status": "ENABLED"}], [{"query": "x"}, {"query": ""}]])
def test_a_webhook_edited_and_put_back_passes_over(
    world: World, edits: list[dict[str, str]], caplog: pytest.LogCaptureFixture
) -> None:
    world.clock.advance(60)
    world.missed()
    for edit in edits:
        world.sandbox.edit_webhook(world.create["id"], **edit)
    assert world.look()
    assert world.look()
    assert world.items() == {}
    [line] = [one for one in caplog.records if "passed over" in one.getMessage()]
    assert line.levelno == logging.WARNING
    assert "catch-up" in line.getMessage()
    assert world.store.state(PASSED_OVER)


def test_the_time_that_is_passed_over_grows_and_is_logged_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    assert world.look()
    begun = world.clock.now
    world.sandbox.edit_webhook(world.create["id"], query="x")
    for _ in range(3):
        assert world.look()
    period = json.loads(world.store.state(PASSED_OVER) or "")
    assert [parse_time(period[key]) for key in ("since", "until")] == pytest.approx([begun, world.clock.now], abs=2)
    assert caplog.text.count("are passed over") == 1


def test_an_outage_in_which_iconik_writes_the_webhook_loses_nothing(world: World) -> None:
    world.clock.advance(60)
    ids = {world.sandbox.create_asset("a.mov")}  # nothing listens: iconik notes that it fails
    assert world.create["status"] == "FAILING"
    assert world.look()
    world.sandbox.disable_failing_webhooks()
    assert world.look()
    assert set(world.items()) == ids


@pytest.mark.parametrize("status", [200, 404])
def test_a_list_without_webhooks_forgets_nothing(world: World, status: int) -> None:
    body = b'{"objects": []}' if status == 200 else b'{"errors": ["none"]}'
    world.clock.advance(60)
    ids = world.missed()
    world.sandbox.faults.append(Fault(LIST, status=status, body=body))
    world.look()
    assert world.items() == {}
    assert world.look()
    assert set(world.items()) == ids


def test_a_list_of_webhooks_in_pages_is_read_to_its_end(world: World) -> None:
    world.sandbox.list_page_size = 1
    for webhook in world.sandbox.webhooks.values():
        webhook.update(BY_ICONIK)
    assert world.look()
    assert {webhook["status"] for webhook in world.sandbox.webhooks.values()} == {"ENABLED"}


# Missed assets.


@pytest.mark.parametrize("kind", ["short by one", "at most 50", "null objects"])
def test_all_missed_assets_are_found_whatever_the_pages_are(world: World, kind: str) -> None:
    changes: dict[str, Callable[[list[Any]], list[Any]]] = {
        "short by one": lambda objects: objects[:-1] if len(objects) > 1 else objects,
        "at most 50": lambda objects: objects[:50],
        "null objects": lambda objects: [None, *objects] if objects else objects,
    }
    world.clock.advance(60)
    ids = world.missed(350)
    world.sandbox.pages = lambda url, objects: changes[kind](objects) if "/search/" in url else objects
    assert world.look()
    assert set(world.items()) == ids


def test_the_mark_moves_only_when_all_were_read_or_after_three_looks(world: World) -> None:
    world.clock.advance(60)
    [hidden] = world.missed()
    mark = world.store.state(ASSETS_SEEN_UNTIL)
    world.sandbox.pages = lambda url, objects: [one for one in objects if not one or one.get("id") != hidden]
    for _ in range(2):
        world.look()
        assert world.store.state(ASSETS_SEEN_UNTIL) == mark
    world.look()
    assert str(world.store.state(ASSETS_SEEN_UNTIL)) > str(mark or "")


def test_an_old_asset_that_was_imported_now_is_found(world: World) -> None:
    world.clock.advance(60)
    ids = world.missed(date_created="2001-01-01T00:00:00+00:00")
    assert world.look()
    assert set(world.items()) == ids


@pytest.mark.parametrize("wrong_by", [30 * DAY, -30 * DAY])
def test_a_wrong_clock_of_ours_neither_loses_nor_moves_back(world: World, wrong_by: float) -> None:
    iconik = Clock()
    iconik.now = world.clock.now
    world.sandbox.clock = iconik
    floor, mark = world.store.state(ASSETS_FLOOR), world.store.state(ASSETS_SEEN_UNTIL)
    world.clock.step(wrong_by)
    world.start()
    iconik.advance(HOUR)
    ids = world.missed()
    for _ in range(2):
        iconik.advance(HOUR)
        assert world.look()
    assert set(world.items()) == ids
    assert world.store.state(ASSETS_FLOOR) == floor
    assert str(mark or "") < str(world.store.state(ASSETS_SEEN_UNTIL)) <= format_utc(iconik.now)


# What became of the jobs.

ENDS = [
    ("FINISHED", "done"),
    ("FINISHED_WITH_WARNING", "done"),
    ("FAILED", "failed"),
    ("ABORTED", "failed"),
    ("SKIPPED", "failed"),
]


@pytest.mark.parametrize(("status", "expected"), ENDS)
@pytest.mark.parametrize("names", [("id",), ("job_id",), ()])
def test_a_job_that_ended_is_noted_within_one_look(
    worlds: Callable[..., World], status: str, expected: str, names: tuple[str, ...]
) -> None:
    """With either name of its id, or without; whatever its object_type says."""
    world = worlds()
    world.sandbox.object_type = None
    world.sandbox.job_id_names = names or ("id",)
    job_id = world.submitted()
    if not names:
        world.store.database.run("UPDATE items SET job_id = NULL")
    world.sandbox.fail_job(job_id, "broken", status)
    assert world.look()
    row = world.items()[ASSET]
    assert row["status"] == expected
    if expected == "done":
        assert (row["media_type"], row["duration"]) == ("video", 60.0)


def test_faces_has_no_id_and_is_found_by_asset_and_type(worlds: Callable[..., World]) -> None:
    world = worlds(submitter__jobs="faces")
    job_id = world.submitted("faces")
    world.sandbox.finish_job(job_id)
    assert world.look()
    assert world.items()[ASSET]["status"] == Status.DONE


def test_a_failure_of_before_a_retry_is_not_this_runs(worlds: Callable[..., World]) -> None:
    world = worlds()
    old = world.submitted()
    world.sandbox.fail_job(old)
    world.store.database.run("UPDATE items SET job_id = NULL, old_job_id = :old", old=old)
    assert world.look()
    assert world.items()[ASSET]["status"] == Status.SUBMITTED


def test_items_whose_jobs_are_listed_one_by_one_take_turns(world: World) -> None:
    """However many there are whose job iconik does not show, each is asked about."""
    ids = sorted(new_id() for _ in range(250))
    for object_id in ids:
        world.store.add_asset(object_id, "a.mov")
    world.store.database.run(
        "UPDATE items SET status = 'submitted', submitted_at = :now, counted_on = '2026-01-01'", now=world.store.now()
    )
    for _ in range(2):
        assert world.look()
    requests = "\n".join(world.sandbox.requests)
    assert [object_id for object_id in ids if object_id not in requests] == []


def test_assets_without_a_media_type_keep_no_other_from_being_measured(world: World) -> None:
    world.submitted()
    world.sandbox.finish_job(world.sandbox.latest_job[ASSET])
    for _ in range(150):
        world.store.add_asset(f"0{new_id()[1:]}", "gone.mov")
    world.store.database.run(
        "UPDATE items SET status = 'done', done_at = :now WHERE object_id < '1'", now=world.store.now()
    )
    assert world.look()
    assert world.items()[ASSET]["media_type"] == "video"


# Old rows, and no looks.


def test_a_proxy_without_its_create_is_deleted_after_a_day(world: World) -> None:
    world.store.proxy_closed(new_id())
    assert world.look(DAY - 1)
    assert len(world.items()) == 1
    assert world.look(2)
    assert world.items() == {}


def test_with_an_interval_of_0_iconik_is_asked_nothing(worlds: Callable[..., World]) -> None:
    world = worlds(reconciler__interval=0)
    world.store.proxy_closed(new_id())
    assert world.look(2 * DAY)
    assert world.items() == {}
    assert world.sandbox.requests == []


def test_a_job_that_is_new_in_the_configuration_gets_a_floor(worlds: Callable[..., World]) -> None:
    world = worlds()
    world.submitted()
    note_job_floors(world.store, world.client)
    assert world.store.state(f"{JOB_FLOOR}analyze") == format_utc(world.client.now())
    world.store.set_state(f"{JOB_FLOOR}transcribe", "2020-01-01T00:00:00.000Z")
    note_job_floors(world.store, world.client)
    assert world.store.state(f"{JOB_FLOOR}transcribe") is None, "when it comes back, it is new"
