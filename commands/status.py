"""status: how many items are where, and what is wrong."""

import json
import shlex
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
from system.text import local_text, number_of, one_line, seconds_of

MAX_PROBLEMS = 100


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For programs. Times are UTC, and problems 100 at most.")
@click.pass_obj
def status(path: Path, as_json: bool) -> None:
    """Show the running listener, how many items are where, and those that failed or are being retried."""
    config = load(path)
    with closing(Store(config.listener.database)) as store:
        listener, overview, problems = running_listener(store), store.overview(), _problems(store)
    if as_json:
        statuses = {row["status"]: {"items": row["items"], "oldest": row["oldest"]} for row in overview}
        shown = [dict(row) for row in problems[:MAX_PROBLEMS]]
        found = {"listener": listener, "statuses": statuses, "problems": shown}
        click.echo(json.dumps(found, indent=2))
        return
    click.echo(_listener_line(listener))
    click.echo("\nstatus              items  oldest" if overview else "\nitems.db holds no items yet.")
    for row in overview:
        click.echo(f"{row['status']:15}  {row['items']:8}  {_age(row['oldest'])}".rstrip())
    for row in problems[:MAX_PROBLEMS]:
        _show_problem(config, row)
    if len(problems) > MAX_PROBLEMS:
        database = shlex.quote(str(config.listener.database))
        click.echo(f'\nThere are more. To see them all:\nsqlite3 {database} "SELECT * FROM problems"')  # noqa: S608


def _problems(store: Store) -> list[Row]:
    """One more than are shown, to tell whether there are more."""
    return store.database.run("SELECT * FROM problems LIMIT :limit", limit=MAX_PROBLEMS + 1)


def _listener_line(listener: dict[str, Any] | None) -> str:
    if listener is None:
        return "No listener is running."
    if "version" not in listener:
        return textwrap.fill(f"A listener is running, and is not well: {one_line(str(listener['message']))}.", 78)
    parts = [f"The listener ({listener['version']}) has been running since {local_text(listener['started_at'])}."]
    if listener.get("paused_since"):
        parts.append(
            f"It has been paused since {local_text(listener['paused_since'])}: {one_line(str(listener['last_error']))}."
        )
    if listener.get("last_webhook_at"):
        parts.append(f"The last webhook came at {local_text(listener['last_webhook_at'])}.")
    else:
        parts.append("No webhook has come since.")
    return textwrap.fill(" ".join(parts), 78)


def _show_problem(config: Config, row: Row) -> None:
    click.echo(f"\n{one_line(row['object_id'])}  {row['status']}, {number_of(row['attempts'], 'attempt')}")
    due = f"The next attempt is due at {local_text(row['next_attempt_at'])}." if row["status"] == "ready" else None
    for text in filter(None, (row["title"], row["error"], due)):
        click.echo(textwrap.fill(one_line(str(text), 1000), 78, initial_indent="  ", subsequent_indent="  "))
    click.echo(f"  {config.iconik.url}/asset/{row['object_id']}")


def _age(time_text: str | None) -> str:
    """How long ago that was: `2 d 3 h`, `5 min`."""
    since = seconds_of(time_text)
    if since is None:  # none is meant, or it was written by hand
        return time_text or ""
    minutes = max(0, int(time.time() - since) // 60)  # a clock may have run ahead
    days, hours = divmod(minutes // 60, 24)
    return f"{days} d {hours} h" if days else f"{hours} h {minutes % 60} min" if hours else f"{minutes} min"
