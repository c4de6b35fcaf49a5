"""demo: the listener at work on a stand-in for iconik."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from pathlib import Path
from sqlite3 import Row
from threading import Thread
from typing import TYPE_CHECKING, TextIO

import click

from config import SWITCH
from jobs import DEFAULT_JOB
from store import Store

if TYPE_CHECKING:
    from sandbox import Sandbox

MAX_SECONDS = 20
# The reconciler has nothing to do here, and would say that it does not know the webhooks, which come after its start.
CONFIG = """\
[iconik]
url = {sandbox.url}
app_id = {sandbox.app_id}
auth_token = {sandbox.auth_token}
[listener]
host = 127.0.0.1
port = 0
webhook_secret = demo
[submitter]
retry_delay = 1
[reconciler]
interval = 0
"""
APP = Path(__file__).parent.parent / "app.py"


@click.command()
def demo() -> None:
    """Show the listener at work on a stand-in for iconik. Needs no account and no config.ini."""
    from sandbox import Sandbox  # the service has no use for it, and little memory

    signals: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # An exception, at any point, could leave the listener and the folder behind.
        signal.signal(number, lambda number, _: signals.append(number))
    with tempfile.TemporaryDirectory() as folder, Sandbox() as sandbox:
        config = Path(folder, "config.ini")
        config.touch(mode=0o600)
        config.write_text(CONFIG.format(sandbox=sandbox), encoding="utf-8")
        click.echo(f"A stand-in for iconik runs at {sandbox.url}")
        command = [sys.executable, str(APP), "--config", str(config)]
        database = config.with_name("items.db")
        # In a session of its own, it does not get the terminal's signals.
        environment = {**os.environ, SWITCH: "0"}  # in a container, it may hold the credentials of the real iconik
        with subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, start_new_session=True, env=environment
        ) as listener:
            addresses: list[str] = []
            assert listener.stderr  # noqa: S101 it is a pipe
            relay = Thread(target=_relay, args=(listener.stderr, addresses))
            relay.start()
            try:
                _wait_until(lambda: bool(addresses) or listener.poll() is not None, signals)
                if not addresses:
                    raise click.ClickException("the listener did not start")
                sandbox.register(f"http://{addresses[0]}", {"X-Webhook-Secret": "demo"})
                _upload_three(sandbox)
                _wait_until(lambda: all(row["finished"] == "True" for row in _rows(database)), signals)
            finally:
                listener.terminate()
                relay.join()
        rows = _rows(database)
    click.echo("\nitems.db:")
    _table(rows, ("object_id", "title", "status", "attempts", "finished"))
    click.echo(f"\n{len(sandbox.assets)} assets uploaded, {len(sandbox.jobs)} {DEFAULT_JOB.name} jobs at iconik")
    if sorted(sandbox.jobs) != sorted(sandbox.assets) or any(row["finished"] != "True" for row in rows):
        raise click.ClickException("an asset was not analyzed exactly once")


def _wait_until(condition: Callable[[], bool], signals: list[int]) -> None:
    """Wait until that is so, but not for ever, and not once a signal to end has come."""
    deadline = time.monotonic() + MAX_SECONDS
    while not condition() and time.monotonic() < deadline:
        if signals:
            raise click.Abort
        time.sleep(0.1)


def _rows(database: Path) -> list[Row]:
    with closing(Store(database)) as store:
        return store.database.run("SELECT * FROM items ORDER BY created_at")


def _relay(log: TextIO, addresses: list[str]) -> None:
    """Print the listener's log, and tell where it listens."""
    for line in log:
        with suppress(OSError):  # nobody reads it any more; the listener must not wait for that
            click.echo(line, nl=False)
        if listening := re.search(r"Listening on (\S+):", line):
            addresses.append(listening[1])


def _upload_three(sandbox: "Sandbox") -> None:
    from sandbox import Fault

    click.echo("-- plain.mov is uploaded")
    sandbox.set_proxy(sandbox.create_asset("plain.mov"))
    click.echo("-- swapped.mov is uploaded; its webhooks come in the wrong order")
    asset_id = sandbox.create_asset("swapped.mov", send=False)
    sandbox.set_proxy(asset_id)
    sandbox.send("create", "entity", asset_id, sandbox.assets[asset_id])
    click.echo("-- unlucky.mov is uploaded; iconik answers 503 when it is first to be analyzed")
    asset_id = sandbox.create_asset("unlucky.mov")
    sandbox.faults.append(Fault(match=DEFAULT_JOB.path.format(asset=asset_id, profile="")))
    sandbox.set_proxy(asset_id)


def _table(rows: Iterable[Row], names: tuple[str, ...]) -> None:
    """Print columns, each as wide as what is in it."""
    table = [names, *(tuple("" if row[name] is None else str(row[name]) for name in names) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table)]
    for cells in table:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(cells, widths)).rstrip())
