"""W1: restarts at random moments, while iconik takes long for its POSTs and its reads lag behind."""

import json as json_module
import random
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timezone
from email.utils import format_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import requests

from circuit_breaker import CircuitBreaker
from config import load
from faulty_iconik import FaultyIconik
from iconik_client import IconikClient
from reconciliation.reconciler import Reconciler
from simulation import LATENCY, SimulatedRuntime, Simulation
from store import Rules, Store
from submitter import STOP_SECONDS, Submitter
from support import ForkingListener, create_event, free_port, new_id, proxy_event, rows, wait_until, write_config
from system.transport import Answer

RESTARTS, ASSETS = 200, 500
DEFAULT_TIMEOUT = 30.0
TIMEOUT = 3.0  # and all other delays are a tenth of the defaults, too
DELAYS = {
    "iconik__timeout": TIMEOUT,
    "submitter__retry_delay": 1,
    "submitter__max_retry_delay": 90,
    "reconciler__interval": 360,
    "reconciler__min_age": 60,
}
NOT_CONFIGURED = """
import submitter
submitter.STOP_SECONDS, submitter.POLL_SECONDS = 1.0, 3.0
submitter.ABSENT_SECONDS, submitter.DOUBT_MARGIN = 30.0, 30.0
"""


class Uploads(threading.Thread):
    """Assets whose webhooks are sent until each is answered 200, in any order: as many as are allowed so far."""

    def __init__(self, listener: ForkingListener, sandbox: FaultyIconik, chance: random.Random) -> None:
        super().__init__(daemon=True)
        self._listener, self._sandbox, self._chance = listener, sandbox, chance
        self.allowed = threading.Semaphore(0)
        self.answered: list[str] = []

    def run(self) -> None:
        for _ in range(ASSETS):
            self.allowed.acquire()
            asset_id = self._sandbox.create_asset("a.mov", send=False)
            self._sandbox.set_proxy(asset_id, send=False)
            events = [("/create", create_event(asset_id)), ("/proxy", proxy_event(asset_id))]
            for path, event in self._chance.sample(events, 2):
                while not self._is_answered(path, event):
                    time.sleep(0.01)
            self.answered.append(asset_id)

    def _is_answered(self, path: str, event: dict[str, object]) -> bool:
        with suppress(requests.RequestException):
            return self._listener.post(path, event).status_code == 200
        return False


@pytest.mark.long
def test_200_restarts_lose_and_double_none_of_500_assets(sandbox: FaultyIconik, tmp_path: Path) -> None:
    """SIGTERM and SIGKILL in turn. A POST takes up to 0.8 of timeout, and shows up to another 0.7 later."""
    chance = random.Random(20)
    sandbox.slow["POST /API/transcode"] = lambda: 0.8 * TIMEOUT * chance.random() ** 4
    sandbox.read_lag = 0.7 * TIMEOUT
    port = free_port()
    listener = ForkingListener(tmp_path, sandbox, listener__port=port, **DELAYS).prepare(NOT_CONFIGURED)
    listener.url = f"http://127.0.0.1:{port}"
    uploads = Uploads(listener, sandbox, chance)
    uploads.start()
    try:
        restart_again_and_again(listener, uploads, chance)
        listener.fork()
        uploads.join()
        wait_until(lambda: len(listener.rows("status = 'submitted'")) == ASSETS, 120)
        assert listener.kill(signal.SIGTERM) == 0
    finally:
        listener.end()
    under_way = [
        int(number) for number in re.findall(r"Under way when the listener ended: (\d+)", "".join(listener.log))
    ]
    print(f"{sum(under_way)} items were under way at {len(under_way)} of the restarts")
    assert Counter(sandbox.jobs) == dict.fromkeys(uploads.answered, 1)
    assert len(under_way) > RESTARTS / 10, "the restarts did not come in the moments that matter"


def restart_again_and_again(listener: ForkingListener, uploads: Uploads, chance: random.Random) -> None:
    for number in range(RESTARTS):
        for _ in range(ASSETS * (number + 1) // RESTARTS - ASSETS * number // RESTARTS):
            uploads.allowed.release()
        listener.fork()
        time.sleep(chance.uniform(0, 0.4))
        how = (signal.SIGTERM, signal.SIGKILL)[number % 2]
        assert listener.kill(how) in (0, -how)


class SlowIconik:
    """The stand-in in the place of the HTTP transport. What it was sent it does, though the listener has ended."""

    def __init__(self, simulation: Simulation, sandbox: FaultyIconik, chance: random.Random) -> None:
        self._simulation, self._sandbox, self._chance = simulation, sandbox, chance
        self._under_way: list[tuple[float, str]] = []  # when a POST is done, and for which asset
        self._cut_off: list[tuple[float, str]] = []  # the same, of listeners that have ended

    def longest_call(self) -> float:
        return 0.0

    def send(self, method: str, path: str, *, query: Mapping[str, str] | None = None, json: Any = None) -> Answer:
        if "/analyze/" in path:
            seconds = self._chance.uniform(0, 0.8 * DEFAULT_TIMEOUT)
            post = (self._simulation.now + seconds, path.rstrip("/").split("/")[-1])
            self._under_way.append(post)
            self._simulation.sleep(seconds)
            self._under_way.remove(post)
        else:
            self._simulation.sleep(LATENCY)
        url = f"{path}?{urlencode(query or {})}"
        credentials = (self._sandbox.app_id, self._sandbox.auth_token)
        status, content = self._sandbox.answer(method, url, credentials, json_module.dumps(json or {}).encode())
        date = datetime.fromtimestamp(self._simulation.now, timezone.utc)
        headers = {"Date": format_datetime(date, usegmt=True)}
        return Answer(status, "", headers, json_module.dumps(content).encode())

    def run_for(self, seconds: float) -> None:
        """Let time pass."""
        end = self._simulation.now + seconds
        for at, asset_id in sorted(self._cut_off):
            if at <= end:
                self._simulation.run_until(at)
                self._sandbox.start_job(asset_id)
                self._cut_off.remove((at, asset_id))
        self._simulation.run_until(end)

    def kill(self) -> None:
        """The listener ends where it is."""
        self._cut_off += self._under_way
        self._under_way.clear()
        self._simulation.kill()


class SimulatedListener:
    """The listener with its default delays, without its server."""

    def __init__(self, folder: Path, simulation: Simulation, iconik: SlowIconik) -> None:
        config = load(write_config(folder))
        assert config.iconik.timeout == DEFAULT_TIMEOUT
        self._iconik = iconik
        self.store = Store(folder / "items.db", Rules.of(config), listener=True, clock=simulation)
        self.store.database.run("PRAGMA synchronous = OFF")  # the file is not what is tried here
        runtime = SimulatedRuntime(simulation)
        client = IconikClient(config.iconik, sender=iconik, runtime=runtime)
        self.breaker = CircuitBreaker(config.submitter, runtime)
        self.submitter = Submitter(self.store, client, self.breaker, config, runtime=runtime)
        self.submitter.start()
        Reconciler(self.store, client, self.breaker, self.submitter, config, runtime=runtime).start()

    def end(self, how: signal.Signals) -> None:
        if how == signal.SIGTERM:
            self.breaker.stop()
            self.submitter.stop()
            self._iconik.run_for(STOP_SECONDS)
        self._iconik.kill()
        self.store.close()


@pytest.mark.long
@pytest.mark.parametrize("seed", range(2))
def test_200_restarts_with_the_default_delays_by_a_clock_of_ours(tmp_path: Path, seed: int) -> None:
    """Some of the processes live long enough to look at what is in doubt, once or twice."""
    chance, simulation = random.Random(seed), Simulation()
    sandbox = FaultyIconik(clock=lambda: simulation.now)  # its server does not run
    sandbox.read_lag = 0.7 * DEFAULT_TIMEOUT
    iconik = SlowIconik(simulation, sandbox, chance)
    ids = [new_id() for _ in range(ASSETS)]
    for number in range(RESTARTS + 1):
        listener = SimulatedListener(tmp_path, simulation, iconik)
        for asset_id in ids[ASSETS * number // RESTARTS : ASSETS * (number + 1) // RESTARTS]:
            sandbox.create_asset("a.mov", asset_id, send=False)
            iconik.run_for(chance.uniform(0, 10))
            listener.store.add_asset(asset_id, "a.mov")
            listener.store.proxy_closed(asset_id)
            listener.submitter.wake()
        iconik.run_for(chance.choice([10, 60, 120, 500]) * chance.random() if number < RESTARTS else 7200)
        listener.end((signal.SIGTERM, signal.SIGKILL)[number % 2])
        iconik.run_for(chance.choice([0, 1, 30]))
    sandbox.server.close()
    assert Counter(sandbox.jobs) == dict.fromkeys(ids, 1)
    assert len(rows(tmp_path / "items.db", "status = 'submitted'")) == ASSETS
