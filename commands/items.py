"""What `retry` and `skip` have in common: items named one by one, or all of a status, in batches."""

import time
from collections.abc import Callable

import click

from reconciliation.changes import Corrections
from system.text import number_of, one_line

MIN_PAUSE, MAX_PAUSE = 0.1, 0.3  # seconds between two batches, in which the listener can write


def change_named(
    object_ids: tuple[str, ...], change: Callable[[str], str], says: Callable[[str], tuple[bool, str]]
) -> int:
    """Change items, and say of each what was done.

    :param change: changes one, and returns the status that it had
    :param says: of a status, whether an item that had it was changed, and that in words
    :returns: the exit code: 0 if every one was changed
    """
    all_changed = True
    for object_id in object_ids:
        changed, words = says(change(object_id.lower()))
        click.echo(f"{one_line(object_id)} {words}", err=not changed)
        all_changed = all_changed and changed
    return 0 if all_changed else 1


def change_all(
    corrections: Corrections, status: str, change_batch: Callable[[list[str], str], list[str]], words: str
) -> None:
    """Change all items of a status in batches, and say of each what was done.

    :param change_batch: changes those of the items that have that status, and returns their ids
    """
    changed, last = 0, ""
    while object_ids := corrections.next_ids(status, last):
        started = time.monotonic()
        for object_id in change_batch(object_ids, status):
            click.echo(f"{object_id} {words}")
            changed += 1
        last = object_ids[-1]
        pause_after(started)
    click.echo(f"{number_of(changed, 'item')} changed")


def pause_after(started: float) -> None:
    """Leave the database to the listener for most of the time, after a write that began at `started` (monotonic)."""
    time.sleep(min(MAX_PAUSE, max(MIN_PAUSE, 3 * (time.monotonic() - started))))
