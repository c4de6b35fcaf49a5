"""A store, a submitter and iconik's stand-in on one clock, where nothing happens by itself."""

import logging
from pathlib import Path
from typing import Any

from circuit_breaker import CircuitBreaker
from config import Config
from faulty_iconik import FaultyIconik
from iconik_client import IconikClient
from reconciliation.reconciler import Reconciler
from store import Rules, Store
from submitter import Submitter
from support import ASSET, Clock, ManualRuntime, make_config
from system.database import StoreRefused


class World:
    """A store, a submitter and the stand-in on one clock. Nothing happens by itself."""

    def __init__(self, folder: Path, sandbox: FaultyIconik, clock: Clock, **values: Any) -> None:
        self.sandbox, self.clock, self.folder = sandbox, clock, folder
        sandbox.clock = clock
        self.values = {
            "submitter__retry_delay": 10,
            "submitter__max_retry_delay": 900,
            "submitter__workers": 1,
            **values,
        }
        self.config: Config = make_config(folder, sandbox, **self.values)
        self.open()
        self.start()

    def open(self) -> None:
        self.store = Store(self.folder / "items.db", Rules.of(self.config), listener=True, clock=self.clock)
        self.store.database.run("PRAGMA synchronous = OFF")  # it is not killed

    def start(self) -> None:
        """A process begins: without the threads."""
        runtime = ManualRuntime(self.clock)
        self.client = IconikClient(self.config.iconik, runtime=runtime)
        self.breaker = CircuitBreaker(self.config.submitter, runtime)
        self.submitter = Submitter(self.store, self.client, self.breaker, self.config, runtime=runtime)

    def restart(self) -> None:
        """The process is killed and started again."""
        self.store.close()
        self.open()
        self.start()
        self.store.recover()
        self.store.skip_other_jobs()

    def ready(self, asset_id: str = ASSET, title: str = "a.mov", *, send_create: bool = True, **fields: Any) -> str:
        """An asset at iconik, both of whose webhooks came."""
        if asset_id not in self.sandbox.assets:
            self.sandbox.create_asset(title, asset_id, send=False, **fields)
        if send_create:
            self.store.add_asset(asset_id, title)
        self.store.proxy_closed(asset_id, self.sandbox.assets[asset_id]["versions"][-1]["id"])
        return asset_id

    def work(self) -> None:
        """Let the worker do all that is due now. What a person's trigger refuses is only logged, as by the thread."""
        is_done = False
        while not is_done:
            try:
                is_done = self.submitter.work_once() > 0
            except StoreRefused as error:
                logging.getLogger("iconik_listener").error("%s", error)

    def work_for(self, seconds: float, step: float = 10.0) -> None:
        """Let time pass, and the worker work."""
        end = self.clock.monotonic + seconds
        self.work()
        while self.clock.monotonic < end:
            due = self.store.seconds_until_due() or 0
            self.clock.advance(min(max(step, due), end - self.clock.monotonic))
            self.work()

    def reconcile(self) -> None:
        runtime = ManualRuntime(self.clock)
        Reconciler(self.store, self.client, self.breaker, self.submitter, self.config, runtime=runtime).reconcile()

    def row(self, asset_id: str = ASSET, job: str = "analyze") -> dict[str, Any]:
        rows = self.store.database.run(
            "SELECT * FROM items WHERE object_id = :object_id AND job = :job", object_id=asset_id, job=job
        )
        return dict(rows[0])

    def status(self, asset_id: str = ASSET, job: str = "analyze") -> str:
        return str(self.row(asset_id, job)["status"])

    def started_today(self) -> int:
        return int(self.store.health()["jobs_today"])

    def requests(self, part: str) -> int:
        return sum(part in request for request in self.sandbox.requests)
