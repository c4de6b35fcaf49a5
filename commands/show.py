"""show: what happened to an asset, and what is next."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from commands.changes import ManualChanges
from commands.items import one_asset
from config import load
from jobs import JOBS
from store import Rules, Source, Status, Store
from system.text import command, format_local, one_line, pluralize, wrapped

FOUND = {
    Source.WEBHOOK: "reported by iconik's webhook",
    Source.SEARCH: "its webhook was missed, and the listener found it at iconik",
    Source.CATCH_UP: "catch-up added it",
    Source.MENU: "a person added it from iconik's menu",
}

UNKNOWN = (
    ": no webhook for it has come. If one was missed, the listener finds the asset within an hour and ten minutes."
    " If the asset was there before register: {}"
)


@click.command()
@click.argument("assets", metavar="ASSET...", nargs=-1, required=True)
@click.option("--job", type=click.Choice(list(JOBS)), help="Only that job of the assets.")
@click.pass_obj
def show(path: Path, assets: tuple[str, ...], job: str | None) -> None:
    """Say what happened to an asset, and what is next.

    ASSET is a file name, a part of one, an id, its first eight characters, or the link that iconik shows.
    """
    config = load(path)
    is_found, unknown = True, UNKNOWN.format(command("catch-up", "--since", "TIME"))
    with closing(Store(config.listener.database, Rules.of(config))) as store:
        for text in assets:
            match = one_asset(ManualChanges(store), text, if_unknown=unknown)
            is_found = is_found and match is not None
            if match is None:
                continue
            rows = store.database.run(
                "SELECT * FROM items WHERE object_id = :object_id AND (:job IS NULL OR job = :job)",
                object_id=match.object_id,
                job=job,
            )
            click.echo(f"{one_line(match.title or 'without a title')}\n  {config.iconik.url}/asset/{match.object_id}")
            for row in rows:
                for line in story(dict(row), is_one_of_many=len(rows) > 1):
                    click.echo(wrapped(line, "  ", "    "))
    raise SystemExit(0 if is_found else 1)


def story(row: dict[str, Any], *, is_one_of_many: bool, has_commands: bool = True) -> Iterator[str]:
    """What happened to an item, and what is next, a sentence each.

    :param row: the item's columns
    :param is_one_of_many: whether to say which job it is
    :param has_commands: whether to name the command that retries it, which the page has a button for
    """
    if is_one_of_many:
        yield f"{row['job']}:"
    if row["created_at"]:
        how = FOUND.get(row["source"])
        yield f"{format_local(row['created_at'])}: the asset was added{': ' + how if how else ''}."
    if row["proxy_closed_at"]:
        version = f" (version {one_line(row['version_id'])})" if row["version_id"] else ""
        yield f"{format_local(row['proxy_closed_at'])}: its proxy was ready{version}."
    if row["asked"]:
        again = f"{format_local(row['asked_at'])}: a person wants it done again."
        yield "A person retried it." if row["asked"] == 1 else again
    if row["submitted_at"] and row["status"] in (Status.SUBMITTED, Status.DONE, Status.FAILED):
        job_kind = JOBS.get(row["job"])
        chosen = " with iconik's choice of profile" if row["counted_on"] and job_kind and job_kind.has_profile else ""
        profile = f" with the profile {one_line(row['profile'])}" if row["profile"] else chosen
        job = f" (job {one_line(row['job_id'])})" if row["job_id"] else ""
        by = "iconik accepted the job" if row["counted_on"] else "iconik had a job already"
        yield f"{format_local(row['submitted_at'])}: {by}{profile}{job}."
    if row["media_type"]:
        minutes = f", {row['duration'] / 60:.1f} minutes" if row["duration"] and row["media_type"] != "image" else ""
        yield f"Its media type is {one_line(row['media_type'])}{minutes}."
    yield from _now(row, has_commands)


def _now(row: dict[str, Any], has_commands: bool) -> Iterator[str]:
    """Where an item is now, and what is next."""
    status, error = row["status"], one_line(str(row["error"] or "it is not known why"), 1000)
    next_at = format_local(row["next_attempt_at"]) if row["next_attempt_at"] else None
    if status == Status.AWAITING_PROXY:
        poll = f"If its webhook does not come, iconik is polled at {next_at}." if next_at else "Polling has ended."
        yield f"It awaits its proxy. {poll}"
    elif status == Status.AWAITING_CREATE:
        yield "Its proxy was ready before the asset's own webhook came. It waits for that for a day."
    elif status == Status.READY and not row["attempts"]:
        before = f" Before that: {error}." if row["error"] else ""
        yield f"It is ready. The first attempt is due.{before}"
    elif status == Status.READY:
        doubt = " iconik may have accepted a request that it did not answer." if row["in_doubt_since"] else ""
        yield f"After {pluralize(row['attempts'], 'attempt')}: {error}.{doubt} The next attempt is due at {next_at}."
    elif status == Status.SUBMITTING:
        yield "An attempt is under way."
    elif status == Status.SUBMITTED:
        yield "iconik is working on it, as far as is known. The listener looks every hour."
    elif status == Status.DONE:
        yield (
            f"{format_local(row['done_at'])}: iconik had finished it." if row["done_at"] else "iconik has finished it."
        )
    elif status == Status.SKIPPED:
        yield f"It is skipped: {error}."
    else:
        when = f"{format_local(row['last_attempt_at'])}: it failed" if row["last_attempt_at"] else "It failed"
        remedy = f" Once the cause is fixed: {command('retry', row['object_id'])}" if has_commands else ""
        yield f"{when}: {error}.{remedy}"
