"""skip: settle what is not to be analyzed."""

from contextlib import closing
from pathlib import Path

import click

from commands.items import change_all, change_named
from config import load
from reconciliation.changes import SKIPPED, Corrections
from store import Store


def _says(status: str) -> tuple[bool, str]:
    if status in (*SKIPPED, "skipped"):
        return True, "is skipped"
    return False, "is not in items.db" if status == "unknown" else f"is {status}: it stays as it is"


@click.command()
@click.argument("object_ids", metavar="[OBJECT_ID]...", nargs=-1)
@click.option("--all", "status", type=click.Choice(SKIPPED), help="All items of that status.")
@click.pass_obj
def skip(path: Path, object_ids: tuple[str, ...], status: str | None) -> None:
    """Settle that assets are not to be analyzed.

    An item that is being submitted, or was, stays as it is. What was skipped can be retried.
    """
    if bool(object_ids) == bool(status):
        raise click.UsageError("name the items, or give --all with a status")
    with closing(Store(load(path).listener.database)) as store:
        corrections = Corrections(store)
        if not status:
            raise SystemExit(change_named(object_ids, corrections.skip, _says))
        change_all(corrections, status, corrections.skip_batch, "is skipped")
