"""The comparison with iconik, one look at a time, on the stand-in over HTTP, by a clock of the test's."""

import itertools
import json
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from circuit_breaker import CircuitBreaker
from commands.changes import ManualChanges
from config import load
from faulty_iconik import Fault, FaultyIconik
from iconik_client import IconikClient
from reconciliation.reconciler import ASSETS_FLOOR, ASSETS_SEEN_UNTIL, PASSED_OVER, Reconciler
from reconciliation.webhooks import REGISTERED_URL
from store import Rules, Status, Store
from submitter import Submitter
from support import ASSET, SECRET, Clock, Listener, ManualRuntime, new_id
from system.database import StoreRefused
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
        self.folder = folder
        self.listener = Listener(folder, sandbox, **values)  # for its commands only
        self.config = load(self.listener.config)
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

    def restart(self) -> None:
        """The process ends, and another one begins."""
        self.store.close()
        self.store = Store(self.folder / "items.db", Rules.of(self.config), listener=True, clock=self.clock)
        self.start()

    def command(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return self.listener.command(*arguments)

    def webhook_that_cannot_be_stored(self) -> None:
        """It is answered 503."""
        trigger = "CREATE TRIGGER hers BEFORE INSERT ON items BEGIN SELECT RAISE(ABORT, 'no'); END"
        self.store.database.run(trigger)
        try:
            self.store.add_asset(new_id(), None)
        finally:
            self.store.database.run("DROP TRIGGER hers")

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

    def submitted(self, job: str = "analyze", asset_id: str = ASSET) -> str:
        """An asset whose job iconik accepted. Returns the job's id."""
        self.sandbox.create_asset("a.mov", asset_id, send=False)
        self.store.add_asset(asset_id, "a.mov")
        self.store.proxy_closed(asset_id, self.sandbox.assets[asset_id]["versions"][-1]["id"])
        while self.submitter.work_once() == 0:
            pass
        assert self.items()[asset_id]["status"] == Status.SUBMITTED
        jobs = self.sandbox.job_details.items()
        return next(job_id for job_id, one in jobs if (one["kind"], one["object_id"]) == (job, asset_id))


@pytest.fixture
def worlds(tmp_path: Path, sandbox: FaultyIconik, clock: Clock) -> Iterator[Callable[..., World]]:
    clock.now = time.time() - 10 * DAY  # catch-up takes no times in the future
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


OLD_ERROR = {"first_failed_at": None, "last_error": "503", "last_payload": '{"object_id": "old"}'}
EDITS = {"disabled": {"status": "DISABLED"}, "filtered": {"query": "x"}, "of one asset": {"object_id": ASSET}}
TIMES = list(itertools.product(("well", "once failed", "registered"), ("running", "stopped")))


@pytest.mark.long
@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
@pytest.mark.parametrize(("before", "moment"), TIMES)
@pytest.mark.parametrize("by", ["hand", "register"])
def test_what_a_person_kept_out_between_two_looks_is_not_added(
    world: World, edit: dict[str, str], before: str, moment: str, by: str, caplog: pytest.LogCaptureFixture
) -> None:
    """/create is disabled or filtered, and put back (W2): the log says which catch-up adds what was kept out."""
    world.clock.advance(60)
    wanted = world.missed()
    world.create.update(OLD_ERROR if before == "once failed" else {})
    world.clock.advance(60)
    if before == "registered":
        world.create["headers"] = {}  # so that register writes the definition, and no look has seen what it wrote
        assert world.command("register", "--insecure", "--yes", URL).stdout.startswith(f"{URL}/create: updated")
    else:
        assert world.look(0)
    world.clock.advance(60)
    world.sandbox.edit_webhook(world.create["id"], **edit)
    kept_out = world.missed(5)
    world.clock.advance(60)
    if by == "register":
        assert world.command("register", "--insecure", "--yes", URL).returncode == 0
    if by == "hand" or world.create.get("query"):  # which register leaves as it is
        world.sandbox.edit_webhook(world.create["id"], status="ENABLED", query="", object_id=None)
    if moment == "stopped":
        world.restart()
    world.clock.advance(60)
    late = world.missed()
    for _ in range(2):
        assert world.look()
    assert set(world.items()) <= wanted | late
    line = [line for line in caplog.messages if "are passed over, because" in line][-1]
    words = shlex.split(line.partition("To add them: ")[2])
    assert world.command(*words[words.index("catch-up") :], "--yes").returncode == 0
    assert kept_out | wanted <= set(world.items()) <= kept_out | wanted | late
    found = world.missed()
    assert world.look()
    assert found <= set(world.items())


def test_a_webhook_that_stays_disabled_is_logged_once_and_then_as_a_whole(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    seen_at = world.store.state("webhooks_seen_at")
    world.sandbox.edit_webhook(world.create["id"], status="DISABLED")
    for _ in range(3):
        assert world.look()
    world.sandbox.edit_webhook(world.create["id"], status="ENABLED")
    assert world.look()
    lines = [line for line in caplog.text.splitlines() if "are passed over, because" in line]
    assert len(lines) == 2
    assert lines[0].endswith(f"--since {seen_at}")
    assert lines[1].endswith(f"--since {seen_at} --until {world.store.state('webhooks_seen_at')}")
    period = json.loads(world.store.state(PASSED_OVER) or "")
    assert (period["since"], period["until"]) == (seen_at, world.store.state("webhooks_seen_at"))


def test_what_was_missed_before_a_person_edited_the_webhook_is_added(world: World) -> None:
    """It was created shortly before the last look, when all was well."""
    wanted = world.missed()
    assert world.look(60)
    assert world.items() == {}
    world.clock.advance(60)
    world.sandbox.edit_webhook(world.create["id"], status="DISABLED")
    kept_out = world.missed(date_created=format_utc(world.clock.now - 90))  # a client wrote an earlier date
    world.clock.advance(60)
    world.sandbox.edit_webhook(world.create["id"], status="ENABLED")
    assert world.look()
    assert world.look()
    assert set(world.items()) == wanted
    assert not wanted & kept_out


def test_a_person_who_disables_a_webhook_that_once_failed_is_heeded(world: World) -> None:
    """iconik may leave its last error there when it has recovered."""
    world.create.update(OLD_ERROR)
    assert world.look()
    world.create.update(status="DISABLED", date_modified=world.sandbox.now_text())
    world.missed()
    assert world.look()
    assert world.create["status"] == "DISABLED"
    assert world.command("register", "--insecure", "--yes", URL).returncode == 0
    assert world.look()
    assert world.items() == {}


def test_the_time_that_is_passed_over_grows_and_is_logged_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    assert world.look()
    begun = world.clock.now
    world.sandbox.edit_webhook(world.create["id"], query="x")
    for _ in range(3):
        assert world.look()
    period = json.loads(world.store.state(PASSED_OVER) or "")
    assert [parse_time(period[key]) for key in ("since", "until")] == pytest.approx([begun, world.clock.now], abs=2)
    assert caplog.text.count("are passed over") == 1


RECOVERED = {"status": "ENABLED", "first_failed_at": None, "last_error": None}
OUTAGES = {
    "it fails": {"status": "FAILING"},
    "it is disabled": {"status": "DISABLED"},
    "it has recovered": RECOVERED,
    "it has recovered and its errors are left": {"status": "ENABLED"},
    "it has recovered without a trace": {**RECOVERED, "last_payload": None},
}


@pytest.mark.parametrize("ours", ["down", "answers 503"])
@pytest.mark.parametrize("before", [{}, OLD_ERROR], ids=["first outage", "second outage"])
@pytest.mark.parametrize("after", OUTAGES.values(), ids=OUTAGES)
def test_an_outage_of_ours_loses_nothing_whatever_iconik_writes(
    world: World, after: dict[str, Any], before: dict[str, Any], ours: str
) -> None:
    """iconik sets FAILING, first_failed_at, last_error, last_payload and date_modified, and may take them back."""
    world.create.update(before)
    assert world.look()
    world.clock.advance(60)
    ids = {world.sandbox.create_asset("a.mov") for _ in range(3)}  # nothing listens
    assert world.create["status"] == "FAILING"
    if ours == "down":
        world.restart()
    else:
        with pytest.raises(StoreRefused):
            world.webhook_that_cannot_be_stored()
    world.clock.advance(60)
    if after["status"] == "ENABLED":  # because of the next webhook
        world.store.add_asset(new_id(), None)
        world.store.database.run("DELETE FROM items")
    world.create.update(after, date_modified=world.sandbox.now_text())
    for _ in range(2):
        assert world.look()
    assert set(world.items()) == ids
    assert world.create["status"] == ("FAILING" if after["status"] == "FAILING" else "ENABLED")


def test_the_list_of_webhooks_may_come_in_any_order(world: World) -> None:
    """Where register of version 1.1 made two pairs."""
    world.sandbox.register(URL, {"X-Webhook-Secret": SECRET})
    assert world.look()
    world.clock.advance(60)
    ids = world.missed()
    world.sandbox.webhooks = dict(reversed(list(world.sandbox.webhooks.items())))
    assert world.look()
    assert set(world.items()) == ids


def test_a_definition_that_a_person_has_just_changed_is_left(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """W3: it is read again right before it is written."""
    world.create.update(BY_ICONIK)
    edit = lambda: world.sandbox.edit_webhook(world.create["id"], status="DISABLED", query="mine")  # noqa: E731
    world.sandbox.at_request[f"GET /API/notifications/v1/webhooks/{world.create['id']}/"] = edit
    assert world.look()
    assert (world.create["status"], world.create["query"]) == ("DISABLED", "mine")
    assert "has just been changed" in caplog.text


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


@pytest.mark.parametrize("was_registered", [True, False])
def test_the_log_tells_webhooks_that_are_gone_from_a_first_start(
    worlds: Callable[..., World], caplog: pytest.LogCaptureFixture, was_registered: bool
) -> None:
    world = worlds()
    world.sandbox.webhooks.clear()
    if not was_registered:
        world.store.set_state(REGISTERED_URL, "")
    with caplog.at_level("INFO"):
        world.look()
    assert ("Cannot tell which of iconik's webhooks belong to this listener" in caplog.text) == was_registered
    assert ("iconik has no webhooks of this listener yet" in caplog.text) != was_registered


def test_a_list_of_webhooks_in_pages_is_read_to_its_end(world: World) -> None:
    world.sandbox.list_page_size = 1
    for webhook in world.sandbox.webhooks.values():
        webhook.update(BY_ICONIK)
    assert world.look()
    assert {webhook["status"] for webhook in world.sandbox.webhooks.values()} == {"ENABLED"}


# Missed assets.


def only_full(objects: list[Any], changed: list[Any]) -> list[Any]:
    return changed if len(objects) == 100 else objects


PAGES: dict[str, Callable[[list[Any]], list[Any]]] = {
    "short by one": lambda objects: objects[:-1] if len(objects) > 1 else objects,
    "at most 50": lambda objects: objects[:50],
    "null objects": lambda objects: [None, *objects] if objects else objects,
    "null at the end": lambda objects: [*objects, None] if objects else objects,
    "one of them null": lambda objects: only_full(objects, [*objects[:10], None, *objects[11:]]),
    "one of them filtered out": lambda objects: only_full(objects, [*objects[:10], *objects[11:]]),
}


@pytest.mark.parametrize("change", PAGES.values(), ids=PAGES)
def test_all_missed_assets_are_found_whatever_the_pages_are(
    world: World, change: Callable[[list[Any]], list[Any]]
) -> None:
    """But for what iconik does not show at all: of 4 pages at most."""
    world.clock.advance(60)
    ids = world.missed(350)
    shown: set[str] = set()

    def pages(url: str, objects: list[Any]) -> list[Any]:
        changed = change(objects) if "/search/" in url else objects
        shown.update(one["id"] for one in changed if one)
        return changed

    world.sandbox.pages = pages
    assert world.look()
    assert set(world.items()) == ids & shown
    assert len(ids & shown) >= 346


@pytest.mark.parametrize("page", [[], [None] * 100], ids=["empty", "null"])
def test_what_comes_after_a_page_that_is_left_out_whole_is_found(world: World, page: list[Any]) -> None:
    """We are not to see the assets of a whole page."""
    world.clock.advance(60)
    hidden = []
    for number in range(350):
        [asset_id] = world.missed()
        world.clock.advance(0.01)
        hidden += [asset_id] * (100 <= number < 200)
    everything = set(world.sandbox.assets)
    is_hidden = set(hidden).__contains__

    def pages(url: str, objects: list[Any]) -> list[Any]:
        return page if "/search/" in url and any(is_hidden(one["id"]) for one in objects) else objects

    world.sandbox.pages = pages
    mark = world.store.state(ASSETS_SEEN_UNTIL)
    for _ in range(2):
        assert world.look()
        assert set(world.items()) == everything - set(hidden)
        assert world.store.state(ASSETS_SEEN_UNTIL) == mark
    assert world.look()
    assert world.store.state(ASSETS_SEEN_UNTIL) != mark


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


def test_an_archived_asset_with_a_new_date_of_creation_is_not_added(world: World) -> None:
    """A client wrote it; iconik imported the asset before the floor."""
    world.clock.advance(60)
    imported = format_utc(world.clock.now - 30 * DAY)
    world.missed(5, date_imported=imported)
    ids = world.missed()
    assert world.look()
    assert set(world.items()) == ids


def test_without_a_date_in_iconiks_answers_nothing_is_added(worlds: Callable[..., World]) -> None:
    """Our own clock may be wrong. An answer with an Age was kept by a proxy, and its Date is old."""
    world = worlds()
    archived = format_utc(world.clock.now - 20 * DAY)
    world.missed(3, date_created=archived, date_imported=archived)
    world.sandbox.faults.append(Fault(status=None, headers={"Age": "9"}, times=float("inf")))
    world.clock.step(-30 * DAY)
    world.sandbox.clock = lambda: world.clock.now + 30 * DAY
    world.start()
    assert not world.look()
    assert world.command("register", "--insecure", "--yes", URL).returncode == 0
    assert not world.look()
    assert world.items() == {}
    world.sandbox.faults.clear()
    world.sandbox.edit_webhook(world.create["id"], description="mine")
    assert world.look()
    ids = world.missed()
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


def test_neither_the_floor_nor_the_mark_moves_back(world: World) -> None:
    """Though iconik's clock does."""
    assert world.look()
    before = [world.store.state(key) for key in (ASSETS_FLOOR, ASSETS_SEEN_UNTIL)]
    world.sandbox.clock = lambda: world.clock.now - 30 * DAY
    archived = format_utc(world.clock.now - 20 * DAY)
    world.missed(5, date_created=archived, date_imported=archived)
    world.look()
    world.sandbox.edit_webhook(world.create["id"], description="mine")
    world.look()
    assert [world.store.state(key) for key in (ASSETS_FLOOR, ASSETS_SEEN_UNTIL)] >= before
    world.sandbox.clock = world.clock
    for _ in range(2):
        world.look()
    assert world.items() == {}


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


@pytest.mark.parametrize("skew", [60.0, -60.0, 3600.0, -30 * DAY])
@pytest.mark.parametrize("name", [True, False])
def test_a_failure_is_noted_though_our_clock_differs_from_iconiks(world: World, skew: float, name: bool) -> None:
    """T5: by asset and kind of job, where the job's id is not known."""
    world.sandbox.clock = lambda: world.clock.now + skew
    world.start()
    job_id = world.submitted()
    if not name:
        world.store.database.run("UPDATE items SET job_id = NULL")
    world.sandbox.fail_job(job_id, "broken")
    assert world.look()
    assert world.items()[ASSET]["status"] == Status.FAILED


def test_a_failure_of_before_a_retry_is_not_this_runs(worlds: Callable[..., World]) -> None:
    world = worlds()
    old = world.submitted()
    world.sandbox.fail_job(old)
    world.store.database.run("UPDATE items SET job_id = NULL, old_job_id = :old", old=old)
    assert world.look()
    assert world.items()[ASSET]["status"] == Status.SUBMITTED


def test_items_whose_jobs_are_listed_one_by_one_take_turns(world: World) -> None:
    """However many there are whose job iconik does not show, each is asked about: 200 in a look, then the others."""
    ids = sorted(new_id() for _ in range(250))
    for object_id in ids:
        world.store.add_asset(object_id, "a.mov")
    world.store.database.run(
        "UPDATE items SET status = 'submitted', submitted_at = :now, counted_on = '2026-01-01'", now=world.store.now()
    )
    unasked = []
    for _ in range(2):
        assert world.look()
        requests = "\n".join(world.sandbox.requests)
        unasked.append(sum(object_id not in requests for object_id in ids))
    assert unasked == [50, 0]


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


@pytest.mark.parametrize(
    "event",
    [
        "BEFORE UPDATE OF job_id ON items WHEN old.object_id = '{}'",
        "BEFORE UPDATE OF status ON items WHEN old.object_id = '{}'",
        "BEFORE UPDATE OF media_type ON items WHEN old.object_id = '{}'",
        "BEFORE INSERT ON items WHEN new.object_id = '{}'",
        "BEFORE DELETE ON items WHEN old.object_id = '{}'",
    ],
)
def test_a_row_that_a_trigger_protects_is_no_other_rows_trouble(
    worlds: Callable[..., World], event: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Of outcomes, ids, media types, missed assets and old rows (R4)."""
    world = worlds()
    assert world.look(1)
    for _ in range(3):
        world.submitted(asset_id=new_id())
    started = {job["id"]: job["object_id"] for job in world.sandbox.job_details.values()}
    world.store.database.run("UPDATE items SET job_id = NULL, media_type = NULL")
    old = [new_id() for _ in range(3)]
    for asset_id in old:
        world.store.proxy_closed(asset_id)
    world.clock.advance(DAY)
    missed = sorted(world.missed(3))
    protected = {"INSERT": missed[1], "DELETE": old[1]}.get(event.split()[1], min(started.values()))
    trigger = f"CREATE TRIGGER hers {event.format(protected)} BEGIN SELECT RAISE(ABORT, 'hands off'); END"
    world.store.database.run(trigger)
    others = set(started.values()) - {protected}
    world.look(700)
    assert {world.items()[one]["job_id"] for one in others} <= started.keys()
    world.sandbox.finish_all()
    world.look()
    items = world.items()
    assert {items[one]["status"] for one in others} == {"done"}
    assert {items[one]["media_type"] for one in others} == {"video"}
    assert set(missed) - {protected} <= set(items)
    assert set(old) & set(items) <= {protected}
    assert "hands off" in caplog.text


def test_a_job_that_was_in_doubt_for_long_is_found(world: World) -> None:
    """The asset says that it is under way, and nothing says its id."""
    world.sandbox.faults.append(Fault("POST /API/transcode", cut=True, after_work=True))
    world.sandbox.create_asset("a.mov", ASSET, send=False)
    world.store.add_asset(ASSET, "a.mov")
    world.store.proxy_closed(ASSET)
    world.submitter.work_once()
    world.clock.advance(HOUR)
    world.submitter.work_once()
    assert world.items()[ASSET]["status"] == Status.SUBMITTED
    world.sandbox.finish_job(world.sandbox.latest_job[ASSET])
    assert world.look()
    assert world.items()[ASSET]["status"] == Status.DONE


def test_a_failed_job_that_we_started_is_measured_too(world: World) -> None:
    """The report says what was started, in iconik's units."""
    world.sandbox.fail_job(world.submitted())
    assert world.look()
    row = world.items()[ASSET]
    assert (row["status"], row["media_type"], row["duration"]) == ("failed", "video", 60.0)


@pytest.mark.parametrize("lags_behind", [False, True])
def test_a_failure_of_faces_before_a_retry_is_not_this_runs(worlds: Callable[..., World], lags_behind: bool) -> None:
    """Its answer names no job, and the list may not show the new one yet."""
    world = worlds(submitter__jobs="faces")
    world.sandbox.fail_job(world.submitted("faces"))
    assert world.look()
    assert world.items()[ASSET]["status"] == Status.FAILED
    ManualChanges(world.store).retry([(ASSET, "faces")])
    world.sandbox.read_lag = 120.0 if lags_behind else 0.0
    while world.submitter.work_once() == 0:
        pass
    assert world.sandbox.started == [("faces", ASSET)] * 2
    assert world.look(60)
    assert world.items()[ASSET]["status"] == Status.SUBMITTED
    world.sandbox.finish_job(list(world.sandbox.job_details)[-1])
    assert world.look()
    assert world.items()[ASSET]["status"] == Status.DONE


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
