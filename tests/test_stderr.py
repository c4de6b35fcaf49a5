"""The real listener, and a stderr that takes nothing: webhooks, /health, jobs and the end do not wait for it."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import requests

from faulty_iconik import FaultyIconik
from store import Store
from support import APP, ASSET, Listener, full_pipe, wait_until
from system.errors import ListenerError

HURRIED = "import system.log as log\nlog.STUCK_SECONDS = log.RETRY_SECONDS = log.DRAIN_SECONDS = 0.05\n"


@pytest.fixture(params=["closed", "full", "unread", "dead"])
def stderr(request: pytest.FixtureRequest) -> Iterator[tuple[str, int]]:
    """What it is, and the descriptor."""
    read_end, write_end = full_pipe()
    if request.param == "full":
        os.dup2(os.open("/dev/full", os.O_WRONLY), write_end)
    if request.param == "dead":
        os.close(read_end)
    yield request.param, write_end
    os.close(write_end)
    with suppress(OSError):
        os.close(read_end)


class SilentListener(Listener):
    """It is not asked for its log, which cannot be read."""

    def start_with(self, kind: str, stderr: int) -> None:
        program = [sys.executable, "-c", f"{HURRIED}\nimport app\napp.main()", "--config", str(self.config)]
        if kind == "closed":
            program = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *program]
        environment = {**os.environ, "PYTHONPATH": str(APP.parent)}
        self.process = subprocess.Popen(program, stderr=stderr, cwd=self.config.parent, env=environment, text=True)
        wait_until(self._listens)

    def _listens(self) -> bool:
        assert not self.process_ended()
        with suppress(ListenerError):
            store = Store(self.database)
            self.url = f"http://{store.state('listening_at')}"
            store.close()
        return self.url.startswith("http://127")


@pytest.mark.long
def test_a_stderr_that_takes_nothing_holds_nothing_up(
    stderr: tuple[str, int], tmp_path: Path, sandbox: FaultyIconik
) -> None:
    listener = SilentListener(tmp_path, sandbox)
    listener.start_with(*stderr)
    assert listener.process
    descriptors = Path(f"/proc/{listener.process.pid}/fd")
    try:
        for _ in range(3):
            listener.upload(ASSET)
        wait_until(lambda: sandbox.jobs == [ASSET])
        if stderr[0] == "closed":
            assert {str((descriptors / str(number)).readlink()) for number in range(3)} == {os.devnull}
            assert requests.get(f"{listener.url}/health").json()["log_stuck_since"] is None
        else:
            wait_until(lambda: requests.get(f"{listener.url}/health").json()["log_stuck_since"])
            assert "WRONG  the listener's log has been stuck since 2" in listener.command("check").stdout
        listener.process.send_signal(signal.SIGTERM)
        assert listener.process.wait(20) == 0
    finally:
        listener.process.kill()
        listener.process.wait()
