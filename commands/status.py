"""status: the state of the listener and its items at a glance."""

import json
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from commands.running import running_listener
from config import load
from history import latest_history
from jobs import Job
from limits import Limit, Limits
from store import Rules, Status, Store
from system.database import Row
from system.text import (
    command,
    format_local,
    in_container,
    named,
    one_line,
    parse_time,
    pluralize,
    service_command,
    start_it,
    wrapped,
)

MAX_PROBLEMS = 100
MAX_GROUPS = 10
NEWEST = 3  # items of a group that are named
MAX_HISTORY = 5


@dataclass(frozen=True)
class Group:
    """Items that wait or failed for the same reason.

    :ivar job: which job they are for, where several are to be told apart; empty otherwise
    :ivar since: when the first of them failed, or since when the first one waits, as UTC text
    :ivar newest: (object_id, title) of the newest few
    """

    status: str
    reason: str
    job: str
    items: int
    since: str | None
    newest: list[tuple[str, str | None]]


@dataclass(frozen=True)
class Groups:
    """The largest groups of what waits and what failed, and what is in the others.

    :ivar more: by status, what all other groups hold, as half a sentence; a status without any has none
    """

    largest: list[Group]
    more: dict[str, str]


@click.command(short_help="Show what waits and what failed, today's jobs, and the listener.")
@click.option("--all", "show_all", is_flag=True, help="List every item that waits or failed.")
@click.option("--json", "as_json", is_flag=True, help="For programs. Times are UTC, and problems 100 at most.")
@click.pass_obj
def status(path: Path, show_all: bool, as_json: bool) -> None:
    """Show the running listener, today's jobs, how many items are in each status, and what waits or failed, and why."""
    config = load(path)
    with closing(Store(config.listener.database, Rules.of(config))) as store:
        listener, limit, overview = running_listener(store), Limits(store).now(), store.overview()
        if as_json:
            _print_json(store, listener, limit)
            return
        if show_all:
            _list_unfinished(store)
        _print_groups(problem_groups(store))
        _print_retried(store)
        click.echo(wrapped(jobs_line(store, limit, config.jobs)))
        _print_overview(store, overview, limit)
        if reason := limit.describe():
            click.echo("\n" + wrapped(reason))
        if entries := latest_history(store, MAX_HISTORY):
            click.echo("\nWhat people did lately:")
            for entry in entries:
                click.echo(wrapped(entry.describe(), "  ", "    "))
        click.echo("\n" + wrapped(listener_line(listener)))


def problem_groups(store: Store) -> Groups:
    """What failed and what is being retried, by reason, the largest groups first; at most ten of each status.

    Where several jobs are configured, by job, too.
    """
    groups, more = list[Group](), dict[str, str]()
    job = "job" if len(store.rules.jobs) > 1 else "''"
    ready_since = "max(coalesce(created_at, proxy_closed_at), coalesce(proxy_closed_at, created_at))"
    is_retried = "status = 'ready' AND last_attempt_at IS NOT NULL AND reason IS NOT NULL AND attempts > 0"
    for status_, condition, since in (
        (Status.FAILED, "status = 'failed'", "last_attempt_at"),
        (Status.READY, is_retried, ready_since),
    ):
        rows = store.database.run(
            f"""SELECT reason, {job} AS job, count(*) AS items, min({since}) AS since,
                count(*) OVER () AS groups, sum(count(*)) OVER () AS all_items FROM items
            WHERE {condition} GROUP BY 1, 2 ORDER BY items DESC LIMIT {MAX_GROUPS}"""  # noqa: S608
        )
        for row in rows:
            newest = store.database.run(
                f"""SELECT object_id, title FROM items WHERE {condition} AND reason IS :reason AND {job} = :job
                ORDER BY last_attempt_at DESC LIMIT {NEWEST}""",  # noqa: S608
                reason=row["reason"],
                job=row["job"],
            )
            names = [(one["object_id"], one["title"]) for one in newest]
            groups.append(Group(status_, str(row["reason"] or ""), row["job"], row["items"], row["since"], names))
        if rows and rows[0]["groups"] > len(rows):
            others = pluralize(rows[0]["all_items"] - sum(row["items"] for row in rows), "more item")
            more[status_] = f"{others} for {pluralize(rows[0]['groups'] - len(rows), 'other reason')}"
    return Groups(groups, more)


def jobs_since(store: Store, day: str) -> int:
    """How many jobs were started on that day (UTC, or the beginning of one: a month) and since."""
    [row] = store.database.run("SELECT total(started) AS jobs FROM usage WHERE day >= :day", day=day)
    return int(row["jobs"])


def jobs_on(store: Store, day: str) -> dict[str, int]:
    """How many jobs of each kind were started on that day (UTC)."""
    rows = store.database.run("SELECT job, started FROM usage WHERE day = :day", day=day)
    return {row["job"]: int(row["started"]) for row in rows}


def jobs_line(store: Store, limit: Limit, jobs: tuple[Job, ...]) -> str:
    """How many jobs were started today and this month, as sentences. `jobs`: those that are configured."""
    month = jobs_since(store, limit.day[:7])
    [last] = store.database.run(
        """SELECT max(at) AS at FROM (SELECT max(submitted_at) AS at FROM items WHERE status = 'submitted'
            UNION ALL SELECT max(submitted_at) FROM
                (SELECT submitted_at FROM items WHERE status = 'done' ORDER BY done_at DESC LIMIT 100)
            UNION ALL SELECT max(submitted_at) FROM
                (SELECT submitted_at FROM items WHERE status = 'failed' ORDER BY last_attempt_at DESC LIMIT 100))"""
    )
    share = f", {limit.percent} %" if limit.is_near else ""
    noun, plural = (jobs[0].feature, jobs[0].plural) if len(jobs) == 1 else ("job", "jobs")
    count = (
        f"{limit.started} of {limit.total} {plural}" if limit.max_per_day else pluralize(limit.started, noun, plural)
    )
    verb = "was" if limit.started == 1 else "were"
    latest = f" The last one was accepted at {format_local(last['at'])}." if last["at"] else ""
    line = f"{count} {verb} started today (UTC{share}), {month} this month.{latest}"
    if len(jobs) > 1:
        today = jobs_on(store, limit.day)
        line += f" Today: {', '.join(f'{today.get(job.name, 0)} {job.name}' for job in jobs)}."
    return line


def _print_overview(store: Store, overview: list[Row], limit: Limit) -> None:
    """How many items are in each status and, where there are several jobs, of each job."""
    if not overview:
        click.echo("\nitems.db holds no items yet.")
        return
    counts = _counts_by_job(store) if len(store.rules.jobs) > 1 else {}
    jobs = [*store.rules.jobs, *sorted({job for _, job in counts} - set(store.rules.jobs))] if counts else []
    click.echo(f"\nstatus              items{''.join(f'{one_line(job, 20):>12}' for job in jobs)}  oldest")
    for row in overview:
        held = f"  ({limit.held} held)" if row["status"] == Status.READY and limit.held else ""
        of_each = "".join(f"{counts.get((row['status'], job), 0):12}" for job in jobs)
        click.echo(f"{row['status']:15}  {row['items']:8}{of_each}  {age(row['oldest'])}{held}".rstrip())


def _counts_by_job(store: Store) -> dict[tuple[str, str], int]:
    rows = store.database.run("SELECT status, job, count(*) AS items FROM items GROUP BY status, job")
    return {(row["status"], str(row["job"])): row["items"] for row in rows}


def _print_groups(groups: Groups) -> None:
    for status_, colour, heading in (
        (Status.FAILED, "red", "failed"),
        (Status.READY, "yellow", "waiting to be retried"),
    ):
        for group in [one for one in groups.largest if one.status == status_]:
            since = f", since {format_local(group.since)}" if group.since else ""
            job = f" ({one_line(group.job)})" if group.job else ""
            click.echo(click.style(f"{pluralize(group.items, 'item')}{job} {heading}{since}:", fg=colour))
            click.echo(wrapped(one_line(group.reason, 1000), "  "))
            names = [one_line(title) if title else object_id for object_id, title in group.newest]
            more = f" and {group.items - len(names)} more" if group.items > len(names) else ""
            click.echo(f"  {', '.join(names)}{more}\n")
        if status_ in groups.more:
            click.echo(f"{groups.more[status_]} {heading}: {command('status', '--all')}\n")


def _print_retried(store: Store) -> None:
    """What a person retried, with the reasons of before, until it is attempted."""
    for row in store.database.run(
        f"""SELECT reason, count(*) AS items FROM items
        WHERE status = 'ready' AND last_attempt_at IS NOT NULL AND reason IS NOT NULL AND attempts = 0
        GROUP BY reason ORDER BY items DESC LIMIT {MAX_GROUPS}"""  # noqa: S608
    ):
        click.echo(f"{pluralize(row['items'], 'item')} to be tried again, as somebody asked. The old reason was:")
        click.echo(wrapped(one_line(str(row["reason"]), 1000), "  ") + "\n")


def _list_unfinished(store: Store) -> None:
    """Every item that waits or failed, with its reason, those of a status together."""
    rows = store.database.run(
        """SELECT * FROM items WHERE status NOT IN ('submitted', 'done', 'skipped')
        ORDER BY status, coalesce(last_attempt_at, proxy_closed_at, created_at)"""
    )
    is_one_of_many = len(store.rules.jobs) > 1
    for row in rows:
        job = f"{one_line(str(row['job']))}, " if is_one_of_many else ""
        click.echo(f"{named(row['object_id'], row['title'])}  {job}{_where(row)}")
        if row["error"]:
            old = "The old reason was: " if row["status"] == Status.READY and not row["attempts"] else ""
            click.echo(wrapped(old + one_line(str(row["error"]), 1000), "  "))
    if rows:
        click.echo()


def _where(row: Row) -> str:
    """Where an item is, since when, and when its next attempt is due."""
    since = max(filter(None, (row["created_at"], row["proxy_closed_at"])), default=None)
    if row["status"] == Status.FAILED:
        since = row["last_attempt_at"] or since
    parts = [f"{row['status']} since {format_local(since)}" if since else str(row["status"])]
    if row["attempts"]:
        parts.append(pluralize(row["attempts"], "attempt"))
    if row["next_attempt_at"] and row["status"] in (Status.READY, Status.AWAITING_PROXY):
        what = "next attempt" if row["status"] == Status.READY else "polled"
        parts.append(f"{what} at {format_local(row['next_attempt_at'])}")
    return ", ".join(parts)


def _print_json(store: Store, listener: dict[str, Any] | None, limit: Limit) -> None:
    problems = store.database.run("SELECT * FROM problems LIMIT :limit", limit=MAX_PROBLEMS)
    statuses = {row["status"]: {"items": row["items"], "oldest": row["oldest"]} for row in store.overview()}
    found = {
        "listener": listener,
        "statuses": statuses,
        **limit.for_programs(),
        "paused_by": limit.pause.by if limit.pause else None,
        "jobs_this_month": jobs_since(store, limit.day[:7]),
        "problems": [dict(row) for row in problems],
    }
    click.echo(json.dumps(found, indent=2))


def listener_line(listener: dict[str, Any] | None) -> str:
    """How the listener is, in a few sentences. `listener`: what `running_listener` found."""
    if listener is None:
        if in_container():  # this one is not the one that was to run
            return "No listener is running."
        return f"No listener is running. To start it: {start_it() if service_command('start') else command()}"
    if "version" not in listener:
        return f"A listener is running, and is not well: {one_line(str(listener['message']))}."
    parts = [f"The listener ({listener['version']}) has been running since {format_local(listener['started_at'])}."]
    if listener.get("paused_since"):
        since, reason = format_local(listener["paused_since"]), one_line(str(listener["last_error"]))
        parts.append(f"It has sent nothing to iconik since {since}: {reason}. It tries again by itself.")
    if listener.get("last_webhook_at"):
        parts.append(f"The last webhook came at {format_local(listener['last_webhook_at'])}.")
    else:
        parts.append("No webhook has come yet.")
    parts.append(f"To check everything: {command('check')}")
    return " ".join(parts)


def age(time_text: str | None) -> str:
    """How long ago that was: `2 d 3 h`, `5 min`."""
    since = parse_time(time_text)
    if since is None:  # none is meant, or it was written by hand
        return time_text or ""
    minutes = max(0, int(time.time() - since) // 60)  # a clock may have run ahead
    days, hours = divmod(minutes // 60, 24)
    return f"{days} d {hours} h" if days else f"{hours} h {minutes % 60} min" if hours else f"{minutes} min"
