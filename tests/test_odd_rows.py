"""What a person may have written into items.db ends in the row it stands in: every column, and any value."""

import itertools
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from circuit_breaker import CircuitBreaker
from faulty_iconik import FaultyIconik
from iconik_client import IconikClient
from reconciliation.reconciler import Reconciler
from reconciliation.webhooks import REGISTERED_URL
from resources import Services, create_app
from store import Rules, Status, Store
from submitter import Submitter
from support import SECRET, Clock, ManualRuntime, create_event, make_config, new_id, proxy_event
from system.database import StoreRefused
from system.text import format_utc

URL = "http://127.0.0.1:1"
DELAYS = {"submitter__retry_delay": 10, "submitter__max_retry_delay": 900}
HEADERS = {"X-Webhook-Secret": SECRET}
RETRY, RESERVED_RETRY = "ready again", "ready again, with a reservation"
STATUSES = [*(value for name, value in vars(Status).items() if not name.startswith("_")), RETRY, RESERVED_RETRY]
VALUES = {
    "NULL": "NULL",
    "empty": "''",
    "text": "'x'",
    "bytes": "x'ff00fe'",
    "not UTF-8": "CAST(x'ff41' AS TEXT)",
    "a nought byte": "CAST(x'610062' AS TEXT)",
    "0": "0",
    "12": "12",
    "negative": "-1.5",
    "large": "9e300",
    "infinite": "9e999",
    "an integer of 64 bits": "9223372036854775807",
    "the year 9999": "'9999-12-31T23:59:59.999Z'",
    "the year 1": "'0001-01-01T00:00:00Z'",
    "an offset": "'9999-12-31T23:59:59-14:00'",
    "JSON": "'[1e999, {}]'",
}


def columns(table: str) -> list[str]:
    schema = (Path(__file__).parent.parent / "schema.sql").read_text(encoding="utf-8")
    with closing(sqlite3.connect(":memory:")) as db:
        db.executescript(schema)
        return [row[1] for row in db.execute(f"PRAGMA table_info({table})")]


Statement = tuple[str, tuple[str | None, ...]]


class World:
    """All of the listener but its threads, on a clock of the test's."""

    def __init__(self, folder: Path, sandbox: FaultyIconik, clock: Clock, **values: object) -> None:
        self.folder, self.sandbox, self.clock = folder, sandbox, clock
        sandbox.clock = clock
        self.config = make_config(folder, sandbox, **{**DELAYS, **values})
        self.start()
        self.store.set_state(REGISTERED_URL, URL)
        sandbox.register(URL, HEADERS)
        assert self.reconciler.reconcile()

    def start(self) -> None:
        runtime = ManualRuntime(self.clock)
        self.store = Store(self.folder / "items.db", Rules.of(self.config), listener=True, clock=self.clock)
        self.store.database.run("PRAGMA synchronous = OFF")
        client = IconikClient(self.config.iconik, runtime=runtime)
        self.breaker = CircuitBreaker(self.config.submitter, runtime)
        self.submitter = Submitter(self.store, client, self.breaker, self.config, runtime=runtime)
        self.reconciler = Reconciler(self.store, client, self.breaker, self.submitter, self.config, runtime=runtime)
        services = Services(self.store, self.submitter, self.breaker, (SECRET,), runtime)
        self.web = create_app(services).test_client()
        self.store.recover()
        self.store.skip_other_jobs()

    def write(self, *statements: Statement) -> None:
        """What a person writes by hand, while nothing runs."""
        self.store.close()
        with closing(sqlite3.connect(self.folder / "items.db")) as person:
            for statement, values in statements:
                with suppress(sqlite3.IntegrityError):  # the schema does not let everything through
                    person.execute(statement, values)
            person.commit()

    def item(self, asset_id: str, status: str) -> Statement:
        """An item of that status, as the listener writes it."""
        statement = """INSERT INTO items (object_id, title, status, source, created_at, proxy_closed_at,
                last_attempt_at, next_attempt_at, submitted_at, counted_on)
            VALUES (?, 'a.mov', ?, 'webhook', ?, ?, ?, ?, ?, ?)"""
        now, later = format_utc(self.clock.now), format_utc(self.clock.now + 60)
        attempted = now if status not in ("ready", "awaiting_proxy") else None
        due = later if status in (RETRY, RESERVED_RETRY) else now
        counted_on = None if status == RETRY else now[:10]
        return statement, (asset_id, status.partition(" ")[0], now, now, attempted, due, now, counted_on)

    def work_for(self, seconds: float) -> None:
        end = self.clock.monotonic + seconds
        while self.clock.monotonic < end:
            try:
                if self.submitter.work_once() > 0:
                    self.clock.advance(5)
            except StoreRefused:
                continue


@pytest.fixture
def world(tmp_path: Path, sandbox: FaultyIconik, clock: Clock) -> Iterator[World]:
    world = World(tmp_path, sandbox, clock)
    yield world
    world.store.close()


@pytest.fixture
def limited(tmp_path: Path, sandbox: FaultyIconik, clock: Clock) -> Iterator[World]:
    world = World(tmp_path, sandbox, clock, limits__max_per_day=100_000)
    yield world
    world.store.close()


def everything_works(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A start, the workers, webhooks, /health and the reconciler. What is wrong with a row is logged as such."""
    world.start()
    good = new_id()
    world.sandbox.create_asset("good.mov", good, send=False)
    assert world.web.post("/create", json=create_event(good), headers=HEADERS).status_code == 200
    world.work_for(150)
    assert world.web.post("/proxy", json=proxy_event(good), headers=HEADERS).status_code == 200
    world.work_for(60)
    assert world.sandbox.jobs.count(good) == 1
    health = world.web.get("/health")
    assert (health.status_code, health.get_json()["submitting"]) == (200, 0)
    assert world.reconciler.reconcile()
    world.clock.advance(60)
    missed = world.sandbox.create_asset("missed.mov", send=False)
    world.clock.advance(700)
    assert world.reconciler.reconcile()
    assert world.store.database.run("SELECT 1 FROM items WHERE object_id = :id", id=missed)
    world.store.overview()
    assert [line for line in caplog.messages if "unexpected" in line] == []


@pytest.mark.long
@pytest.mark.parametrize("column", columns("items"))
def test_no_value_in_a_column_of_items_stops_anything(
    limited: World, column: str, caplog: pytest.LogCaptureFixture
) -> None:
    world = limited
    for statuses in [[status] for status in STATUSES] if column == "object_id" else [STATUSES]:  # two keys differ
        odd: list[str] = []
        statements: list[Statement] = [("DELETE FROM items", ())]
        for status, value in itertools.product(statuses, VALUES.values()):
            asset_id = world.sandbox.create_asset("odd.mov", send=False)
            world.sandbox.set_proxy(asset_id, send=False)
            odd.append(asset_id)
            statements += [
                world.item(asset_id, status),
                (f"UPDATE OR IGNORE items SET {column} = {value} WHERE object_id = ?", (asset_id,)),
            ]
        world.write(*statements)
        everything_works(world, caplog)
        for asset_id in odd:
            assert world.web.post("/create", json=create_event(asset_id), headers=HEADERS).status_code == 200
            assert world.web.post("/proxy", json=proxy_event(asset_id), headers=HEADERS).status_code == 200
        world.work_for(400)
        assert max(world.sandbox.jobs.count(asset_id) for asset_id in odd) <= 1
        world.store.close()
        everything_works(world, caplog)


@pytest.mark.long
@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_no_value_in_the_state_or_the_ledger_stops_anything(
    world: World, value: str, caplog: pytest.LogCaptureFixture
) -> None:
    """But for what only a person can mean: a pause, another URL, or a floor in the future."""
    notes = world.store.database.run("SELECT key FROM state WHERE key NOT IN ('paused', :url)", url=REGISTERED_URL)
    keys = {note["key"] for note in notes} | {"passed_over", "pass_over_until_seen", "assets_short"}
    today = format_utc(world.clock.now)[:10]
    statements: list[Statement] = [
        ("INSERT OR IGNORE INTO state VALUES (?, '')", (key,)) for key in keys | {f"allowed {today}"}
    ]
    statements += [(f"UPDATE OR IGNORE state SET value = {value} WHERE key = ?", (key,)) for key in keys]
    for column in ("day", "job", "started", "found"):
        statements += [
            ("INSERT OR IGNORE INTO usage VALUES (?, 'analyze', 1, 0)", (today,)),
            (f"UPDATE OR IGNORE usage SET {column} = {value} WHERE day = ?", (today,)),
        ]
    statements.append(("DELETE FROM state WHERE key = 'assets_floor' AND value >= ?", ("3",)))
    world.write(*statements)
    everything_works(world, caplog)
