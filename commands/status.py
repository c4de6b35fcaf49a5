"""status: how many items are where, and what is wrong."""

import json
import textwrap
import time
from contextlib import closing
from pathlib import Path
from sqlite3 import Row
from typing import Any

import click

from commands.running import running_listener
from config import Config, load
from store import Store
from text import local_text, one_line, seconds_of

MAX_PROBLEMS = 100


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For programs. Times are UTC.")
@click.pass_obj
def status(path: Path, as_json: bool) -> None:
    """Show the running listener, how many items are where, and those that failed or are being retried."""
    config = load(path)
    with closing(Store(config.listener.database)) as store:
        listener, overview, problems = running_listener(store), store.overview(), _problems(store)
    if as_json:
        statuses = {row["status"]: {"items": row["items"], "oldest": row["oldest"]} for row in overview}
        found = {"listener": listener, "statuses": statuses, "problems": [dict(row) for row in problems]}
        click.echo(json.dumps(found, indent=2))
        return
    click.echo(_listener_line(listener))
    click.echo("\nstatus              items  oldest" if overview else "\nitems.db holds no items yet.")
    for row in overview:
        click.echo(f"{row['status']:15}  {row['items']:8}  {_age(row['oldest'])}".rstrip())
    for row in problems[:MAX_PROBLEMS]:
        _show_problem(config, row)
    if len(problems) > MAX_PROBLEMS:
        click.echo("\nThere are more: sqlite3 items.db 'select * from problems'")


def _problems(store: Store) -> list[Row]:
    """One more than are shown, to tell whether there are more."""
    return store.database.run("SELECT * FROM problems LIMIT :limit", limit=MAX_PROBLEMS + 1)


def _listener_line(listener: dict[str, Any] | None) -> str:
    if listener is None:
        return "No listener is running."
    if "version" not in listener:
        return f"A listener is running, and is not well: {one_line(str(listener.get('message')))}"
    parts = [f"The listener ({listener['version']}) has been running since {local_text(listener['started_at'])}."]
    if listener.get("paused_since"):
        parts.append(f"It is paused since {local_text(listener['paused_since'])}: {listener['last_error']}.")
    if listener.get("last_webhook_at"):
        parts.append(f"The last webhook came at {local_text(listener['last_webhook_at'])}.")
    else:
        parts.append("No webhook has come since.")
    return textwrap.fill(" ".join(parts), 78)


def _show_problem(config: Config, row: Row) -> None:
    attempts = f"{row['attempts']} attempt{'' if row['attempts'] == 1 else 's'}"
    due = f", next at {local_text(row['next_attempt_at'])}" if row["status"] == "ready" else ""
    click.echo(f"\n{row['object_id']}  {row['status']}, {attempts}{due}")
    for text in filter(None, (row["title"], row["error"])):
        click.echo(textwrap.fill(one_line(text, 1000), 78, initial_indent="  ", subsequent_indent="  "))
    click.echo(f"  {config.iconik.url}/asset/{row['object_id']}")


def _age(time_text: str | None) -> str:
    """How long ago that was: `2 d 3 h`, `5 min`."""
    since = seconds_of(time_text)
    if since is None:  # none is meant, or it was written by hand
        return time_text or ""
    minutes = int(time.time() - since) // 60
    days, hours = divmod(minutes // 60, 24)
    return f"{days} d {hours} h" if days else f"{hours} h {minutes % 60} min" if hours else f"{minutes} min"
