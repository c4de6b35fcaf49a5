"""report: what was started, in iconik's units."""

import csv
import re
import sys
from calendar import monthrange
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import click

from config import load
from iconik_client import IconikClient, IconikError
from reconciliation.catalog import IconikCatalog
from store import DAY_SECONDS, Rules, Store
from system.text import one_line, pluralize, wrapped


@dataclass(frozen=True)
class Line:
    """What was started on one day (UTC), of one job.

    `started` is from the ledger. The rest is of the items that were counted on that day and not retried since: images
    and hours are what iconik bills.

    :ivar found: jobs that others had started
    :ivar failed: those that a person skipped after that, too
    """

    day: str
    job: str
    started: int
    found: int
    done: int
    failed: int
    under_way: int
    images: int
    video_hours: float
    audio_hours: float


def lines(store: Store, first: str, last: str) -> Iterator[Line]:
    """The days from `first` to `last`, both included, as `2026-11-23`."""
    rows = store.database.run(
        """SELECT usage.day, usage.job, started, found, coalesce(done, 0) AS done, coalesce(failed, 0) AS failed,
            coalesce(under_way, 0) AS under_way, coalesce(images, 0) AS images,
            coalesce(video_hours, 0) AS video_hours, coalesce(audio_hours, 0) AS audio_hours
        FROM usage LEFT JOIN (
            SELECT day, job, total(items * (status = 'done')) AS done,
                total(items * (status IN ('failed', 'skipped'))) AS failed,
                total(items * (status NOT IN ('done', 'failed', 'skipped'))) AS under_way,
                total(items * (media_type = 'image')) AS images,
                total(CASE WHEN media_type NOT IN ('image', 'audio') THEN seconds END) / 3600 AS video_hours,
                total(CASE WHEN media_type = 'audio' THEN seconds END) / 3600 AS audio_hours
            FROM (  -- which reads the items once, in the order of the index
                SELECT counted_on AS day, job, status, media_type, count(*) AS items, total(duration) AS seconds
                FROM items WHERE counted_on BETWEEN :first AND :last GROUP BY counted_on, job, status, media_type
            ) GROUP BY day, job
        ) AS counted USING (day, job)
        WHERE usage.day BETWEEN :first AND :last ORDER BY usage.day, usage.job""",
        first=first,
        last=last,
    )
    for row in rows:
        counts = {name: int(row[name]) for name in ("started", "found", "done", "failed", "under_way", "images")}
        video_hours, audio_hours = round(float(row["video_hours"]), 3), round(float(row["audio_hours"]), 3)
        yield Line(row["day"], row["job"], video_hours=video_hours, audio_hours=audio_hours, **counts)


@click.command(short_help="Show what was started per day, in iconik's units.")
@click.option("--month", metavar="YYYY-MM", help="A month, by UTC.  [default: this one]")
@click.option("--days", type=click.IntRange(1, 750), help="The last so many days instead.")
@click.option("--csv", "as_csv", is_flag=True, help="For a spreadsheet.")
@click.pass_obj
def report(path: Path, month: str | None, days: int | None, as_csv: bool) -> None:
    """Show what was started per day, in iconik's units: images, and hours of video and of audio.

    "started" is what the listener started, "open" what iconik has not finished, and "found" what somebody else had
    started. Images and hours are known once a job has ended. Jobs of before version 2.0 are not counted.

    Where the token may read them, iconik's own meters stand below, as they are now.
    """
    if month and days:
        raise click.UsageError("give --month or --days, not both")
    config = load(path)
    with closing(Store(config.listener.database, Rules.of(config))) as store:
        first, last = _period(store, month, days)
        store_today = store.today()
        found = list(lines(store, first, last))
    names = [field.name for field in fields(Line)]
    if as_csv:
        writer = csv.DictWriter(sys.stdout, names)
        writer.writeheader()
        writer.writerows(asdict(line) for line in found)
        return
    if not found:
        click.echo(f"No job was started from {first} to {last}.")
    else:
        _table(found, len(config.jobs) > 1 or len({line.job for line in found}) > 1)
    if last >= store_today:
        _meters(IconikCatalog(IconikClient(config.iconik)))


def _period(store: Store, month: str | None, days: int | None) -> tuple[str, str]:
    if days:
        return store.now(-(days - 1) * DAY_SECONDS)[:10], store.today()
    month = month or store.today()[:7]
    if not re.fullmatch("[0-9]{4}-(0[1-9]|1[0-2])", month):
        raise click.UsageError(f"--month: {one_line(month, 20)} is not a month like 2026-11")
    last = monthrange(int(month[:4]), int(month[5:]))[1]
    return f"{month}-01", f"{month}-{last}"


def _table(found: list[Line], with_job: bool) -> None:
    heads = ["day", *(["job"] if with_job else []), "started", "done", "failed", "open"]
    heads += ["images", "video h", "audio h", "found"]
    click.echo("  ".join(f"{head:>10}" for head in heads))
    total = Line("in all", "", *(sum(getattr(line, field.name) for line in found) for field in fields(Line)[2:]))
    for line in [*found, total]:
        hours = [f"{line.video_hours:.2f}", f"{line.audio_hours:.2f}"]
        numbers = [line.started, line.done, line.failed, line.under_way, line.images, *hours, line.found]
        click.echo("  ".join(f"{cell:>10}" for cell in [line.day, *([line.job] if with_job else []), *numbers]))
    again = total.started - total.done - total.failed - total.under_way
    if again > 0:
        counted = "The columns from done to audio h have only the last one of each asset."
        click.echo("\n" + wrapped(f"{pluralize(again, 'job')} had another one for the same asset later. {counted}"))


def _meters(catalog: IconikCatalog) -> None:
    try:
        usage = catalog.usage()
    except IconikError as error:
        click.echo(f"\niconik's own meters cannot be read: {error}")
        return
    names = {
        "images_analyzed": "images analyzed",
        "video_analyzed_hours": "hours of video analyzed",
        "transcription_hours": "hours transcribed",
    }
    shown = [f"{usage[key]:g} {words}" for key, words in names.items() if isinstance(usage.get(key), int | float)]
    click.echo(f"\niconik's own meters, as they are now: {', '.join(shown) or 'it shows none'}.")
