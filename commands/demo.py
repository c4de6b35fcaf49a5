"""demo: the listener at work on a stand-in for iconik."""

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from queue import Empty, Queue
from sqlite3 import Row
from threading import Thread
from typing import TYPE_CHECKING, TextIO

import click

from store import Store

if TYPE_CHECKING:
    from sandbox import Sandbox

START_SECONDS = 20
DEMO_SECONDS = 20
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

    with tempfile.TemporaryDirectory() as folder, Sandbox() as sandbox:
        config = Path(folder, "config.ini")
        config.touch(mode=0o600)
        config.write_text(CONFIG.format(sandbox=sandbox), encoding="utf-8")
        click.echo(f"A stand-in for iconik runs at {sandbox.url}")
        command = [sys.executable, str(APP), "--config", str(config)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as listener:
            address: Queue[str] = Queue()
            assert listener.stderr  # noqa: S101 it is a pipe
            relay = Thread(target=_relay, args=(listener.stderr, address))
            relay.start()
            try:
                sandbox.register(f"http://{address.get(timeout=START_SECONDS)}", {"X-Webhook-Secret": "demo"})
                _upload_three(sandbox)
                database = config.with_name("items.db")
                _wait_for(database, len(sandbox.assets))
            except Empty:
                raise click.ClickException("the listener did not start") from None
            finally:
                listener.terminate()
                relay.join()
        rows = _rows(database)
    click.echo("\nitems.db:")
    _table(rows, ("object_id", "title", "status", "attempts", "finished"))
    click.echo(f"\n{len(sandbox.assets)} assets uploaded, {len(sandbox.jobs)} analyze jobs at iconik")
    if sorted(sandbox.jobs) != sorted(sandbox.assets) or any(row["finished"] != "True" for row in rows):
        raise click.ClickException("an asset was not analyzed exactly once")


def _wait_for(database: Path, count: int) -> None:
    """Wait until that many items are finished, but not for ever."""
    deadline = time.monotonic() + DEMO_SECONDS
    while sum(row["finished"] == "True" for row in _rows(database)) < count and time.monotonic() < deadline:
        time.sleep(0.1)


def _rows(database: Path) -> list[Row]:
    with closing(Store(database)) as store:
        return store.database.run("SELECT * FROM items ORDER BY created_at")


def _relay(log: TextIO, address: "Queue[str]") -> None:
    """Print the listener's log, and tell where it listens."""
    for line in log:
        click.echo(line, nl=False)
        if listening := re.search(r"Listening on (\S+):", line):
            address.put(listening[1])


def _upload_three(sandbox: "Sandbox") -> None:
    from sandbox import Fault

    click.echo("-- plain.mov is uploaded")
    sandbox.set_proxy(sandbox.create_asset("plain.mov"))
    click.echo("-- overtaken.mov is uploaded; its webhooks come in the wrong order")
    asset_id = sandbox.create_asset("overtaken.mov", send=False)
    sandbox.set_proxy(asset_id)
    sandbox.send("create", "entity", asset_id, sandbox.assets[asset_id])
    click.echo("-- unlucky.mov is uploaded; iconik answers 503 when it is first to be analyzed")
    asset_id = sandbox.create_asset("unlucky.mov")
    sandbox.faults.append(Fault(match=f"analyze/assets/{asset_id}"))
    sandbox.set_proxy(asset_id)


def _table(rows: Iterable[Row], names: tuple[str, ...]) -> None:
    """Print columns, each as wide as what is in it."""
    table = [names, *(tuple("" if row[name] is None else str(row[name]) for name in names) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table)]
    for cells in table:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(cells, widths)).rstrip())
