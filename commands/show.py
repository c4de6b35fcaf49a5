"""show: what happened to an asset, and what is next."""

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from commands.changes import ManualChanges
from commands.items import one_asset
from commands.running import limit_of, running_listener
from config import Config, load
from jobs import JOBS
from reconciliation.changes import OUTCOME_SECONDS
from store import DAY_SECONDS, Rules, Source, Status, Store
from system.text import command, format_local, one_line, parse_time, pluralize, wrapped

HEALTH_SECONDS = 2.0

FOUND = {
    Source.WEBHOOK: "reported by iconik's webhook",
    Source.SEARCH: "its webhook was missed, and the listener found it at iconik",
    Source.CATCH_UP: "catch-up added it",
    Source.MENU: "a person added it from iconik's menu",
}

UNKNOWN = (
    ". Titles are those of the upload; iconik's link to the asset always works. If its webhook was missed, the listener"
    " finds it within an hour and ten minutes. If the asset was there before register: {}"
)


@dataclass(frozen=True)
class Circumstances:
    """What an item waits for beside itself.

    :ivar held: why no job is started now, as a sentence; empty if jobs are started
    :ivar trouble: why nothing is sent to iconik now, as a sentence; empty if all is well
    :ivar interval: seconds between two looks for the ends of jobs; 0 if there are none
    """

    held: str
    trouble: str
    interval: float

    @classmethod
    def of(cls, store: Store, config: Config) -> "Circumstances":
        """As they are now."""
        listener = running_listener(store, HEALTH_SECONDS)
        return cls(limit_of(listener, store).describe_wait(), _trouble(listener), config.reconciler.interval)


def _trouble(listener: dict[str, Any] | None) -> str:
    if listener is None:
        return "No listener is running."
    if not listener.get("paused_since"):
        return ""
    since, reason = format_local(listener["paused_since"]), one_line(str(listener["last_error"]))
    return f"The listener has sent nothing to iconik since {since} ({reason}). It tries again by itself."


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
        circumstances = Circumstances.of(store, config)
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
                for line in story(dict(row), circumstances, is_one_of_many=len(rows) > 1):
                    click.echo(wrapped(line, "  ", "    "))
    raise SystemExit(0 if is_found else 1)


def story(
    row: dict[str, Any], circumstances: Circumstances, *, is_one_of_many: bool, has_commands: bool = True
) -> Iterator[str]:
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
        when = f"{format_local(row['asked_at'])}: a" if row["asked_at"] else "A"
        yield f"{when} person retried it." if row["asked"] == 1 else f"{when} person wants it done again."
    if row["submitted_at"] and row["status"] in (Status.SUBMITTED, Status.DONE, Status.FAILED):
        job_kind = JOBS.get(row["job"])
        chosen = " with iconik's choice of profile" if row["counted_on"] and job_kind and job_kind.has_profile else ""
        profile = f" with the profile {one_line(row['profile'])}" if row["profile"] else chosen
        job = f" (job {one_line(row['job_id'])})" if row["job_id"] else ""
        # The ledger, and `source`, begin with version 2.0.
        is_ours = row["counted_on"] or not row["source"]
        by = "iconik accepted the job" if is_ours else "iconik had a job already"
        yield f"{format_local(row['submitted_at'])}: {by}{profile}{job}."
    if row["media_type"]:
        has_duration = isinstance(row["duration"], int | float) and row["media_type"] != "image"
        minutes = f", {row['duration'] / 60:.1f} minutes" if has_duration else ""
        yield f"Its media type is {one_line(row['media_type'])}{minutes}."
    yield from _now(row, circumstances, has_commands)


def _now(row: dict[str, Any], circumstances: Circumstances, has_commands: bool) -> Iterator[str]:
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
        is_later = next_at and (parse_time(row["next_attempt_at"]) or 0) > time.time()
        due = f"The first attempt is due{f' at {next_at}' if is_later else ''}."
        waits = circumstances.held or circumstances.trouble or due
        yield f"It is ready. {waits}{before}"
    elif status == Status.READY:
        doubt = " iconik may have accepted a request that it did not answer." if row["in_doubt_since"] else ""
        held = "" if row["counted_on"] else circumstances.held
        waits = held or f"{circumstances.trouble} The next attempt is due at {next_at}.".strip()
        yield f"After {pluralize(row['attempts'], 'attempt')}: {error}.{doubt} {waits}"
    elif status == Status.SUBMITTING:
        yield "An attempt is under way."
    elif status == Status.SUBMITTED:
        yield f"iconik is working on it, as far as is known. {_looks(row, circumstances.interval)}"
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


def _looks(row: dict[str, Any], interval: float) -> str:
    """Whether the listener looks how a submitted item's job ends, as a sentence."""
    submitted_at = parse_time(row["submitted_at"])
    if not interval:
        return "The listener does not look how it ends, because interval is 0."
    if submitted_at is not None and time.time() - submitted_at > OUTCOME_SECONDS:
        return f"The listener looked how it ends for {OUTCOME_SECONDS / DAY_SECONDS:.0f} days, and looks no more."
    minutes = round(interval / 60)
    return f"The listener looks every {'hour' if minutes == 60 else pluralize(minutes, 'minute')}."
