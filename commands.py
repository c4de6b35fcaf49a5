"""The operator's commands: `python app.py [--config FILE] COMMAND`."""

import re
import subprocess
import sys
import tempfile
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

DEMO_CONFIG = """\
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
"""


@click.command()
def demo() -> None:
    """Show the listener at work on a stand-in for iconik. Needs no account and no config.ini."""
    from sandbox import Sandbox  # the service has no use for it, and little memory

    with tempfile.TemporaryDirectory() as folder, Sandbox() as sandbox:
        config = Path(folder, "config.ini")
        config.touch(mode=0o600)
        config.write_text(DEMO_CONFIG.format(sandbox=sandbox), encoding="utf-8")
        click.echo(f"A stand-in for iconik runs at {sandbox.url}")
        command = [sys.executable, str(Path(__file__).with_name("app.py")), "--config", str(config)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as listener:
            address: Queue[str] = Queue()
            assert listener.stderr  # noqa: S101 it is a pipe
            relay = Thread(target=_relay, args=(listener.stderr, address))
            relay.start()
            try:
                sandbox.register(f"http://{address.get(timeout=20)}", {"X-Webhook-Secret": "demo"})
                _upload_three(sandbox)
                sandbox.wait_for(lambda: set(sandbox.assets) <= set(sandbox.jobs))
            except Empty:
                raise click.ClickException("the listener did not start") from None
            finally:
                listener.terminate()
                relay.join()
        with closing(Store(config.with_name("items.db"))) as store:
            rows = store.latest(10)
    click.echo("\nitems.db:")
    _table(rows, {"object_id": 36, "title": 12, "status": 9, "attempts": 8, "finished": 8})
    click.echo(f"\n{len(sandbox.assets)} assets uploaded, {len(sandbox.jobs)} analyze jobs at iconik")
    if sorted(sandbox.jobs) != sorted(sandbox.assets) or any(row["finished"] != "True" for row in rows):
        raise click.ClickException("an asset was not analyzed exactly once")


def _relay(log: TextIO, address: "Queue[str]") -> None:
    """Print the listener's log, and tell where it listens."""
    for line in log:
        click.echo(line, nl=False)
        if listening := re.search(r"Listening on (\S+)", line):
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


def _table(rows: Iterable[Row], widths: dict[str, int]) -> None:
    """Print columns, each cut to its width."""
    click.echo("  ".join(name.ljust(width) for name, width in widths.items()).rstrip())
    for row in rows:
        cells = (str("" if row[name] is None else row[name]) for name in widths)
        click.echo("  ".join(cell[:width].ljust(width) for cell, width in zip(cells, widths.values())).rstrip())


ALL = (demo,)
