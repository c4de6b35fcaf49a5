"""What `retry`, `skip` and `show` have in common: items named by a person, or all of a status, in batches."""

import time
from collections.abc import Callable, Iterable, Iterator

import click

from commands.changes import BATCH_SIZE, MAX_MATCHES, Change, Key, ManualChanges, Match
from history import add_to_history, person
from limits import Limits
from store import Status, Store
from system.database import listener_runs
from system.text import format_local, named, one_line, pluralize

MIN_PAUSE, MAX_PAUSE = 0.1, 0.3  # seconds between two batches, in which the listener can write


def one_asset(changes: ManualChanges, text: str, *, parts: bool = True, if_unknown: str = "") -> Match | None:
    """The one asset that `text` names. If it names none or several, that is printed, with what to do if none."""
    matches = changes.find(text, parts=parts)
    if len(matches) == 1:
        return matches[0]
    similar = matches or (changes.find(text) if not parts else [])
    if not similar:
        click.echo(f"{one_line(text)} is not in items.db{if_unknown}", err=True)
        return None
    if matches:
        click.echo(f"{one_line(text)} may mean several assets. Name one of them by its id:", err=True)
    else:
        click.echo(f"{one_line(text)} is no whole title and no id, which --again needs. It may mean:", err=True)
    matches = similar
    for match in matches[:MAX_MATCHES]:
        added = f"added {format_local(match.added_at)}  " if match.added_at else ""
        click.echo(f"  {match.object_id}  {added}{match.title or ''}".rstrip(), err=True)
    if len(matches) > MAX_MATCHES:
        click.echo("  …", err=True)
    return None


def change_named(
    store: Store,
    texts: tuple[str, ...],
    job: str | None,
    change: Callable[[list[Key]], list[Change]],
    describe: Callable[[Change], str],
    *,
    done: str,
    is_retry: bool,
    parts: bool = True,
) -> int:
    """Change the items that a person named, and say of each what was done. Returns the exit code: 0 if all changed.

    :param done: the command, for the history of what people did
    :param is_retry: whether to say when the listener takes up what was changed
    """
    changes, changed = ManualChanges(store), list[Change]()
    is_done = True
    for text in texts:
        match = one_asset(changes, text, parts=parts)
        keys = changes.keys_of(match.object_id, job) if match else []
        if match and not keys:
            click.echo(f"{named(match.object_id, match.title)} has no {job} job in items.db", err=True)
        found = change(keys) if keys else []
        for one in found:
            click.echo(f"{_name(store, one)} {describe(one)}", err=not one.is_changed)
            if one.is_changed:
                add_to_history(store, person(), f"{done} {_name(store, one)}")
                changed.append(one)
        is_done = is_done and bool(found) and any(one.is_changed for one in found)
    if is_retry and (line := _when_taken_up(store, changed)):
        click.echo(line)
    return 0 if is_done else 1


def change_all(
    store: Store,
    status: str,
    job: str | None,
    change_batch: Callable[[list[Key]], list[Change]],
    describe: Callable[[Change], str],
    *,
    done: str,
    is_retry: bool,
) -> None:
    """Change all items of a status in batches, and say of each what was done. The options are change_named's."""
    changed, latest = 0, list[Change]()
    try:
        for batch in in_batches(store, status, change_batch, job=job):
            latest = [one for one in batch if one.is_changed] or latest
            for one in batch:
                if one.is_changed:
                    click.echo(f"{_name(store, one)} {describe(one)}")
                    changed += 1
    finally:
        if changed:
            add_to_history(store, person(), f"{done} --all {status}: {pluralize(changed, 'item')}")
    click.echo(f"{pluralize(changed, 'item')} changed")
    if is_retry and (line := _when_taken_up(store, latest)):
        click.echo(line)


def in_batches(
    store: Store,
    status: str,
    change_batch: Callable[[list[Key]], list[Change]],
    *,
    job: str | None = None,
    reason: str | None = None,
) -> Iterator[list[Change]]:
    """Change all items of a status (and job, and reason), batch by batch, with pauses between."""
    changes, last = ManualChanges(store), ("", "")
    while keys := changes.next_keys(status, last, job=job, reason=reason):
        started = time.monotonic()
        yield change_batch(keys)
        last = keys[-1]
        if len(keys) < BATCH_SIZE:
            return
        pause_after(started)


def pause_after(started: float) -> None:
    """Leave the database to the listener for most of the time, after a write that began at `started` (monotonic)."""
    time.sleep(min(MAX_PAUSE, max(MIN_PAUSE, 3 * (time.monotonic() - started))))


def _when_taken_up(store: Store, changed: Iterable[Change]) -> str:
    """When the listener takes up what was retried, as a sentence; empty if nothing was, or only polls were."""
    if all(one.status == Status.AWAITING_PROXY for one in changed):
        return ""
    if not listener_runs(store.database.path):
        return "It is taken up once a listener is running."
    held = Limits(store).now().describe_wait()
    return held or "The listener takes it up within half a minute."


def in_both(utc: str) -> str:
    """A time by this machine's clock and in UTC."""
    return f"{format_local(utc)} ({utc})"


def _name(store: Store, change: Change) -> str:
    name = named(change.object_id, change.title)
    return name if len(store.rules.jobs) == 1 and change.job in store.rules.jobs else f"{name} ({change.job})"
