"""W1: restarts at random moments, while iconik takes long for its POSTs and its reads lag behind."""

import random
import re
import signal
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
import requests

from faulty_iconik import FaultyIconik
from support import ForkingListener, create_event, free_port, proxy_event, wait_until

RESTARTS, ASSETS = 200, 500
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
