"""catch-up: add the assets of a time of one's own choice."""

import json
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import click

from commands.items import pause_after
from config import load
from iconik_client import IconikClient
from reconciliation.catalog import IconikCatalog, created_until, ids_and_titles
from reconciliation.changes import Corrections
from store import Store
from system.database import listener_runs
from system.errors import ListenerError
from system.text import UUID, local_text, number_of, seconds_of, title_of, utc_text

MAX_WAIT = 60.0  # seconds for the database
STATE = "catch_up"  # the key in items.db's state: which catch-up was begun, and how far it has come


class Period(NamedTuple):
    """From when to when assets were created, as UTC text."""

    since: str
    until: str


def _time(context: click.Context, option: click.Parameter, text: str | None) -> float | None:
    """ISO 8601, local without an offset, as seconds since 1970."""
    seconds = seconds_of(text, local=True) if text is not None else None
    if text is not None and seconds is None:
        raise click.BadParameter(f"{text!r} is not a time like 2026-11-23T16:47 or 2026-11-23T16:47:00+01:00")
    return seconds


@click.command("catch-up")
@click.option(
    "--since", callback=_time, required=True, metavar="TIME", help="Assets created from this time on: 2026-11-23T16:47"
)
@click.option("--until", callback=_time, metavar="TIME", help="… and up to this one.  [default: now]")
@click.option("--dry-run", is_flag=True, help="Only list what would be added.")
@click.option("--yes", is_flag=True, help="Do not ask. Needed where there is no terminal to ask at.")
@click.pass_obj
def catch_up(path: Path, since: float, until: float | None, dry_run: bool, yes: bool) -> None:
    """Add the assets that were created in a time of your choice.

    What was missed since the listener's first start, it finds by itself: this is for what is older, or was kept
    out by a query or a disabled webhook. The assets that items.db does not know are added, and the running listener
    asks for their proxies and has them analyzed. What is analyzed already is not analyzed again.

    Times are local unless they have an offset. Interrupted, the same command goes on where it was.
    """
    config = load(path)
    if since >= min(time.time(), time.time() if until is None else until):
        raise click.UsageError("--since must be before --until, and not in the future")
    catalog = IconikCatalog(IconikClient(config.iconik))
    with closing(Store(config.listener.database)) as store:
        begun = {"since": utc_text(since), "until": None if until is None else utc_text(until)}
        resumed_at = _resumed(store, begun)
        period = Period(resumed_at or utc_text(since), utc_text(time.time()) if until is None else utc_text(until))
        count = catalog.count_assets_created(*period)
        if resumed_at:
            click.echo("This catch-up was interrupted, and goes on where it was:")
        click.echo(f"From   {_in_both(period.since)}\nuntil  {_in_both(period.until)}\n{_assets(count)} created.")
        if dry_run:
            _list(catalog, Corrections(store), period)
        elif count and _is_agreed(yes):
            with store.database.waiting_up_to(MAX_WAIT):  # on a slow disk, the listener's webhooks go first
                _add(catalog, Corrections(store), period, count, begun)
            store.set_state(STATE, "")
            if listener_runs(config.listener.database):
                click.echo("The listener asks for their proxies and has them analyzed.")
            else:
                click.echo("Once the listener is started, it asks for their proxies and has them analyzed.")


def _assets(count: int) -> str:
    return f"{number_of(count, 'asset')} {'was' if count == 1 else 'were'}"


def _in_both(utc: str) -> str:
    return f"{local_text(utc)} ({utc})"


def _is_agreed(yes: bool) -> bool:
    if yes:
        return True
    if sys.stdin is None or not sys.stdin.isatty():
        raise click.UsageError("iconik bills each analysis: give --yes, as there is no terminal to ask at")
    return click.confirm("Add those that items.db does not know? iconik bills each analysis", abort=True)


def _resumed(store: Store, begun: dict[str, str | None]) -> str | None:
    """Up to when the same catch-up has come already; None if it was not begun, or is done."""
    try:
        state = json.loads(store.state(STATE) or "null")
        seen_until = seconds_of(state["seen_until"]) if state and state["begun"] == begun else None
        return None if seen_until is None else utc_text(seen_until)
    except (ValueError, LookupError, TypeError):  # written by hand
        return None


def _add(
    catalog: IconikCatalog, corrections: Corrections, period: Period, count: int, begun: dict[str, str | None]
) -> None:
    added = 0
    try:
        with click.progressbar(length=count, label="Adding") as progress:
            for page in catalog.assets_created(*period):
                started = time.monotonic()
                seen_until = created_until(page)
                state = json.dumps({"begun": begun, "seen_until": seen_until})
                added += corrections.add_assets(ids_and_titles(page), {STATE: state} if seen_until else {})
                progress.update(len(page))
                pause_after(started)
    except (KeyboardInterrupt, ListenerError):
        click.echo(f"{_assets(added)} added so far. The same command goes on from there.", err=True)
        raise
    click.echo(f"{_assets(added)} added.")


def _list(catalog: IconikCatalog, corrections: Corrections, period: Period) -> None:
    listed = 0
    for page in catalog.assets_created(*period):
        for asset in page:
            object_id = str(asset.get("id")).lower()
            if UUID.fullmatch(object_id) and not corrections.is_known(object_id):
                click.echo(f"{object_id}  {local_text(asset.get('date_created'))}  {title_of(asset) or ''}".rstrip())
                listed += 1
    click.echo(f"{_assets(listed)} not in items.db yet")
