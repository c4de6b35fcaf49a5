"""retry: try items again."""

from contextlib import closing
from pathlib import Path

import click

from commands.changes import RETRYABLE, Change, Key, ManualChanges
from commands.items import change_all, change_named
from config import load
from jobs import JOBS
from store import Rules, Status, Store
from system.text import command

STAYS = {
    Status.SUBMITTING: "an attempt is under way",
    Status.SUBMITTED: "iconik has the job",
    Status.DONE: "iconik has finished the job",
    Status.AWAITING_CREATE: "its proxy came, but the asset's own webhook has not come yet",
}


def _describe(change: Change) -> str:
    """What is said of an item, by the status that it had."""
    if not change.is_changed:
        again = f". To start it again: {command('retry', '--again', change.object_id)}"
        why = STAYS.get(change.status, "nothing is to be done")
        may_be_repeated = change.status in (Status.SUBMITTED, Status.DONE)
        return f"is {change.status} and stays as it is: {why}{again if may_be_repeated else ''}"
    if change.status == Status.SKIPPED:
        return f"will be looked at again. It was skipped: {change.error}"
    if change.status == Status.AWAITING_PROXY:
        return "is due now: iconik will be polled for its proxy"
    return "will be tried again"


def _describe_again(change: Change) -> str:
    if change.is_changed and change.status == Status.SUBMITTED:
        return "will be started again, unless iconik has not finished it yet"
    if change.is_changed:
        return "will be started again"
    if change.status == Status.SKIPPED and not change.is_recent:
        remedy = command("retry", "--again", "--job", change.job, change.object_id)
        return f"stays skipped, because only what was done is done again ({change.error}). To start it: {remedy}"
    if change.status in (Status.READY, Status.SUBMITTING, Status.AWAITING_PROXY, Status.AWAITING_CREATE):
        return f"is {change.status}: its run is not finished yet, so nothing is changed"
    return "was started again within the last ten minutes, so nothing is changed"


@click.command()
@click.argument("assets", metavar="[ASSET]...", nargs=-1)
@click.option(
    "--all",
    "status",
    is_flag=False,
    flag_value=Status.FAILED,
    type=click.Choice(RETRYABLE),
    help="All items of that status.  [without one: failed]",
)
@click.option("--again", is_flag=True, help="Run it again even though it is finished. iconik bills it again.")
@click.option("--job", type=click.Choice(list(JOBS)), help="Only that job of the assets.")
@click.option("--reason", default="", help="Why: status and show say it until the next attempt.")
@click.pass_obj
def retry(path: Path, assets: tuple[str, ...], status: str | None, again: bool, job: str | None, reason: str) -> None:
    """Try items again now, once the cause is fixed.

    ASSET is a file name, a part of one, an id, its first eight characters, or the link that iconik shows. What failed
    or was skipped is taken up again; what waits is due now. A running listener takes it up within half a minute,
    unless it is paused or the limit is reached. iconik is asked first, so nothing is started twice.

    --again needs the whole name, or the id, because iconik bills the job once more.
    """
    if assets and status:
        raise click.UsageError("name the assets or give --all, not both")
    if not assets and not status:
        raise click.UsageError("name the assets, or give --all")
    if again and status:
        raise click.UsageError("--again needs the assets' names: every job that it starts again is billed again")
    if again and reason:
        raise click.UsageError("--reason is not kept with --again")
    config = load(path)
    with closing(Store(config.listener.database, Rules.of(config))) as store:
        changes = ManualChanges(store)

        def again_too(keys: list[Key]) -> list[Change]:
            return changes.again(keys, with_skipped=job)

        def retry_too(keys: list[Key]) -> list[Change]:
            return changes.retry(keys, status=status, reason=reason)

        code, done = 0, f"retry ({reason})" if reason else "retry"
        if again:
            code = change_named(
                store, assets, job, again_too, _describe_again, done="retry --again", is_retry=True, parts=False
            )
        elif status:
            change_all(store, status, job, retry_too, _describe, done=done, is_retry=True)
        else:
            code = change_named(store, assets, job, retry_too, _describe, done=done, is_retry=True)
        raise SystemExit(code)
