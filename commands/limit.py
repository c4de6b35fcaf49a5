"""allow, pause and resume: whether more jobs are started today."""

import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from config import load
from history import add_to_history, person
from limits import Limits
from store import Rules, Store
from system.database import listener_runs
from system.text import command, format_local, pluralize


class Jobs(click.IntRange):
    """A number of jobs. In `1,000` and `1.000`, nobody knows what is meant."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> int:
        try:
            return int(super().convert(value, parameter, context))
        except click.BadParameter:
            self.fail(f"{value!r} is not a number from {self.min} to {self.max}, in digits only", parameter, context)


@click.command()
@click.argument("count", type=Jobs(1, 1_000_000), metavar="N")
@click.option("--yes", is_flag=True, help="Do not ask. Needed where there is no terminal to ask at.")
@click.pass_obj
def allow(path: Path, count: int, yes: bool) -> None:
    """Let N more jobs be started today, on top of max_per_day."""
    config = load(path)
    with closing(Store(config.listener.database, Rules.of(config))) as store:
        limits = Limits(store)
        limit = limits.now()
        if not limit.max_per_day:
            raise click.UsageError("no limit is set in config.ini: [limits] max_per_day")
        click.echo(
            f"{limit.started} of {limit.total} jobs were started today (UTC). {pluralize(limit.held, 'item')} wait."
        )
        _agree(f"Let {pluralize(count, 'more job')} be started today? iconik bills each of them.", yes)
        allowed = limits.allow(count)
        add_to_history(store, person(), f"allow {count}")
        click.echo(
            f"Up to {limit.max_per_day + allowed} jobs are started today. Tomorrow it is {limit.max_per_day} again."
        )


@click.command()
@click.option("--reason", default="", help="Why: status and check show it.")
@click.pass_obj
def pause(path: Path, reason: str) -> None:
    """Start no more jobs until `resume`, over a restart, too.

    The listener goes on receiving webhooks and asking iconik for what it missed. Jobs that iconik has accepted go on.
    """
    config = load(path)
    with closing(Store(config.listener.database, Rules.of(config))) as store:
        limits = Limits(store)
        if before := limits.pause_state():
            since = f", at {format_local(before.since)}" if before.since else ""
            kept = " The reason of then is kept." if reason else ""
            click.echo(f"{before.by} paused it already{since}.{kept}")
            return
        limits.pause(person(), reason)
        add_to_history(store, person(), f"pause ({reason})" if reason else "pause")
        click.echo(f"No more jobs are started until you run: {command('resume')}")


@click.command()
@click.pass_obj
def resume(path: Path) -> None:
    """Start jobs again after `pause`."""
    config = load(path)
    with closing(Store(config.listener.database, Rules.of(config))) as store:
        limits = Limits(store)
        if limits.pause_state() is None:
            click.echo("Nobody has paused it.")
            return
        limits.resume()
        add_to_history(store, person(), "resume")
        limit = limits.now()
        if not listener_runs(store.database.path):
            click.echo("Jobs are started again once a listener is running.")
        else:
            click.echo(limit.describe() or "Jobs are started again within half a minute.")


def _agree(question: str, yes: bool) -> None:
    if yes:
        return
    if sys.stdin is None or not sys.stdin.isatty():
        raise click.UsageError("iconik bills each job: give --yes, as there is no terminal to ask at")
    click.confirm(question, abort=True)
