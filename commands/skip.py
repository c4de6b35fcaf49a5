"""skip: mark items as not to be done."""

from contextlib import closing
from pathlib import Path

import click

from commands.changes import SKIPPABLE, Change, ManualChanges
from commands.items import change_all, change_named
from config import load
from jobs import JOBS
from store import Rules, Status, Store

STAYS = {
    Status.SUBMITTING: "an attempt is under way",
    Status.SUBMITTED: "iconik has the job",
    Status.DONE: "iconik has finished the job",
}


def _describe(change: Change) -> str:
    if change.is_changed:
        return "is skipped"
    if change.status == Status.SKIPPED:
        return f"was skipped before, and stays as it is: {change.error}"
    return f"is {change.status} and stays as it is: {STAYS.get(change.status, 'nothing is to be done')}"


@click.command()
@click.argument("assets", metavar="[ASSET]...", nargs=-1)
@click.option(
    "--all", "status", is_flag=False, flag_value="", type=click.Choice(SKIPPABLE), help="All items of that status."
)
@click.option("--job", type=click.Choice(list(JOBS)), help="Only that job of the assets.")
@click.option("--reason", default="", help="Why: items.db keeps it with the item.")
@click.pass_obj
def skip(path: Path, assets: tuple[str, ...], status: str | None, job: str | None, reason: str) -> None:
    """Mark assets as not to be analyzed.

    ASSET is a file name, a part of one, an id, its first eight characters, or the link that iconik shows. An item that
    is being submitted, or was, stays as it is. What is skipped can be retried.
    """
    if assets and status:
        raise click.UsageError("name the assets or give --all, not both")
    if not assets and not status:
        raise click.UsageError("name the assets, or give --all with a status")
    config = load(path)
    with closing(Store(config.listener.database, Rules.of(config))) as store:
        changes, done = ManualChanges(store), f"skip ({reason})" if reason else "skip"
        if not status:
            raise SystemExit(
                change_named(
                    store,
                    assets,
                    job,
                    lambda keys: changes.skip(keys, reason=reason),
                    _describe,
                    done=done,
                    is_retry=False,
                )
            )
        change_all(
            store,
            status,
            job,
            lambda keys: changes.skip(keys, status=status, reason=reason),
            _describe,
            done=done,
            is_retry=False,
        )
