"""catch-up: add the assets created in a given period."""

import math
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import click

from commands.items import in_both, pause_after
from config import Config, load
from history import add_to_history, person
from iconik_client import IconikClient
from jobs import JOBS, Job
from limits import Limits
from reconciliation.catalog import FoundAsset, IconikCatalog
from reconciliation.changes import ReconciledChanges
from reconciliation.reconciler import forget_passed_over
from store import Rules, Source, Store
from system.database import listener_runs
from system.errors import ListenerError
from system.text import format_local, format_utc, parse_time, pluralize

MAX_WAIT = 60.0  # seconds for the database
POLLS_PER_SECOND = 5.0  # so that what is added does not delay what comes in
Wanted = tuple[FoundAsset, list[str]]  # an asset, and the names of the jobs that it is to get


@dataclass
class Estimate:
    """What a catch-up would add.

    :ivar new: assets that get a job, and `jobs` how many jobs they get in all
    :ivar failed: assets that are left out because their jobs failed at iconik before
    :ivar images: and the seconds of video and audio: what iconik bills for those jobs
    """

    new: int = 0
    jobs: int = 0
    known: int = 0
    failed: int = 0
    images: int = 0
    seconds: float = 0.0
    unknown: int = 0

    def describe(self) -> str:
        """The estimate, as a sentence."""
        hours = self.seconds / 3600
        parts = [f"{pluralize(self.images, 'image')} and {hours:.1f} hours of video or audio"]
        if self.unknown:
            parts.append(f"{self.unknown} of a media type that the search does not show")
        return "By iconik's units, these are " + ", and ".join(parts) + "."


def _time(context: click.Context, option: click.Parameter, text: str | None) -> float | None:
    """ISO 8601, local without an offset, as seconds since 1970."""
    seconds = parse_time(text, local=True) if text is not None else None
    if text is not None and seconds is None:
        raise click.BadParameter(f"{text!r} is not a time like 2026-11-23T16:47 or 2026-11-23T16:47:00+01:00")
    return seconds


@click.command("catch-up")
@click.option(
    "--since", callback=_time, required=True, metavar="TIME", help="Assets created from this time on: 2026-11-23T16:47"
)
@click.option("--until", callback=_time, metavar="TIME", help="… and up to this one.  [default: now]")
@click.option("--query", default="", help="Only those that this query in iconik's search language finds, too.")
@click.option("--dry-run", is_flag=True, help="Only list what would be added.")
@click.option("--yes", is_flag=True, help="Do not ask. Needed where there is no terminal to ask at.")
@click.pass_obj
def catch_up(path: Path, since: float, until: float | None, query: str, dry_run: bool, yes: bool) -> None:
    """Add the assets that were created in a period that you choose.

    The listener finds by itself what it missed since its first start. This is for assets that are older, or that a
    query or a disabled webhook kept out. It says first how many would be added, and how many images and hours of
    video these are. Assets that have been analyzed are not analyzed again, and those whose analysis failed are left
    out.

    Times are local unless they have an offset. If it is interrupted, the same command adds the rest.
    """
    config = load(path)
    if since >= min(time.time(), time.time() if until is None else until):
        raise click.UsageError("--since must be before --until, and not in the future")
    catalog = IconikCatalog(IconikClient(config.iconik))
    with closing(Store(config.listener.database, Rules.of(config))) as store:
        start, end = format_utc(since), format_utc(time.time() if until is None else until)
        click.echo(f"From   {in_both(start)}\nuntil  {in_both(end)}")
        estimate = Estimate()
        for page in _wanted(catalog, config, store, (start, end, query), estimate):
            for asset, _ in page if dry_run else ():
                click.echo(f"{asset.object_id}  {format_local(asset.created_at)}  {asset.title or ''}".rstrip())
        _show(estimate, Limits(store))
        if dry_run or (estimate.new and not _is_agreed(estimate.new, yes)):
            return
        if estimate.new:
            added = _add(catalog, config, store, (start, end, query), estimate.new)
            add_to_history(store, person(), f"catch-up from {start} until {end}: {pluralize(added, 'asset')}")
        if not query:
            forget_passed_over(store, start, end)
        if not estimate.new:
            return
        is_running = listener_runs(config.listener.database)
        when = "The listener now polls" if is_running else "Once the listener is started, it polls"
        click.echo(f"{when} iconik for their proxies and starts their jobs.")


def _wanted(
    catalog: IconikCatalog, config: Config, store: Store, period: tuple[str, str, str], estimate: Estimate
) -> Iterator[list[Wanted]]:
    """The assets to be added, each with its jobs, page by page; they are counted in `estimate`.

    A job that an asset has in items.db is not added again, and one that failed at iconik is not added at all.
    """
    start, end, query = period
    changes = ReconciledChanges(store)
    before: set[str] = set()  # an asset may come twice, on two pages that follow each other
    for page in catalog.assets(start, end, _both(query, config)):
        wanted: list[Wanted] = []
        for asset in page.assets:
            if asset.object_id in before:
                continue
            missing = [JOBS[name] for name in changes.missing_jobs(asset.object_id)]
            jobs = [job for job in missing if asset.statuses.get(job.status_field) != "FAILED"]
            if not missing:
                estimate.known += 1
            elif not jobs:
                estimate.failed += 1
            else:
                _measure(asset, jobs, estimate)
                wanted.append((asset, [job.name for job in jobs]))
        before = {asset.object_id for asset in page.assets}
        yield wanted


def _both(query: str, config: Config) -> str:
    """The query of the command and, where all jobs have the same, that of `only`."""
    queries = {config.of(job).only for job in config.jobs}
    only = queries.pop() if len(queries) == 1 else ""
    return " AND ".join(f"({part})" for part in (query, only) if part)


def _measure(asset: FoundAsset, jobs: list[Job], estimate: Estimate) -> None:
    estimate.new += 1
    estimate.jobs += sum(asset.media_type is None or job.serves(asset.media_type) for job in jobs)
    if asset.media_type is None:
        estimate.unknown += 1
    elif asset.media_type == "image":
        estimate.images += any(job.serves("image") for job in jobs)
    else:
        estimate.seconds += (asset.duration or 0) * sum(job.serves(asset.media_type) for job in jobs)


def _show(estimate: Estimate, limits: Limits) -> None:
    if not estimate.new and not estimate.failed:
        verb = "is" if estimate.known == 1 else "are"
        known = f"Nothing to add: {pluralize(estimate.known, 'asset')} of that time {verb} in items.db already."
        click.echo(known if estimate.known else "No asset was created then.")
        return
    if estimate.new:
        click.echo(f"{pluralize(estimate.new, 'asset')} would be added. {estimate.describe()}")
    else:
        click.echo("No asset would be added.")
    if estimate.known:
        verb = "is" if estimate.known == 1 else "are"
        click.echo(f"{pluralize(estimate.known, 'asset')} of that time {verb} in items.db already.")
    if estimate.failed:
        verb, whose = ("is", "its job") if estimate.failed == 1 else ("are", "their jobs")
        click.echo(f"{pluralize(estimate.failed, 'asset')} {verb} left out, because {whose} failed at iconik.")
    limit = limits.now()
    if limit.max_per_day and estimate.new:
        days = max(1, math.ceil(estimate.jobs / limit.max_per_day))
        click.echo(f"At {limit.max_per_day} jobs a day, that takes {pluralize(days, 'day')}.")


def _is_agreed(count: int, yes: bool) -> bool:
    if yes:
        return True
    if sys.stdin is None or not sys.stdin.isatty():
        raise click.UsageError("iconik bills each analysis: give --yes, as there is no terminal to ask at")
    return click.confirm(f"Add the {count} that are not in items.db yet? iconik bills every analysis.", abort=True)


def _add(catalog: IconikCatalog, config: Config, store: Store, period: tuple[str, str, str], count: int) -> int:
    """Add the assets. Returns how many were added.

    :param count: how many there are
    """
    changes, added = ReconciledChanges(store), 0
    try:
        with click.progressbar(length=count, label="Adding") as progress:
            for page in _wanted(catalog, config, store, period, Estimate()):
                started = time.monotonic()
                added += changes.add_assets(
                    [asset for asset, _ in page],
                    Source.CATCH_UP,
                    {},
                    jobs={asset.object_id: jobs for asset, jobs in page},
                    first_poll_in=added / POLLS_PER_SECOND,
                    seconds_between_polls=1 / POLLS_PER_SECOND,
                    wait=MAX_WAIT,  # on a slow disk, the listener's webhooks go first
                )
                progress.update(len(page))
                pause_after(started)
    except (KeyboardInterrupt, ListenerError):
        click.echo(f"{_were(added)} added so far. The same command adds the rest.", err=True)
        raise
    click.echo(f"{_were(added)} added.")
    return added


def _were(count: int) -> str:
    return f"{pluralize(count, 'asset')} {'was' if count == 1 else 'were'}"
