"""retry: have items attempted again, or asked about, now."""

from contextlib import closing
from functools import partial
from pathlib import Path

import click

from commands.items import change_all, change_named
from config import load
from reconciliation.changes import RETRIES, Corrections
from store import Store


def _words(retry_delay: float) -> dict[str, str]:
    """What is said of an item, by the status that it had."""
    return {
        "failed": "is ready again",
        "skipped": "is not skipped any more",
        "ready": f"is due now, but no sooner than {retry_delay:g} s after its last attempt",
        "awaiting_proxy": "is due now: iconik will be asked for its proxy",
    }


@click.command()
@click.argument("object_ids", metavar="[OBJECT_ID]...", nargs=-1)
@click.option(
    "--all",
    "status",
    is_flag=False,
    flag_value="failed",
    type=click.Choice(list(RETRIES)),
    help="All items of that status.  [without one: failed]",
)
@click.pass_obj
def retry(path: Path, object_ids: tuple[str, ...], status: str | None) -> None:
    """Have items submitted again, once the cause is fixed.

    What failed or was skipped is taken up again; what is ready or awaits its proxy is hurried. A running listener
    takes it up within half a minute, unless it is paused. iconik is asked first, so nothing is analyzed twice.
    """
    if bool(object_ids) == bool(status):
        raise click.UsageError("name the items, or give --all")
    config = load(path)
    delay = config.submitter.retry_delay
    words = _words(delay)

    def says(status: str) -> tuple[bool, str]:
        if status in words:
            return True, words[status]
        return False, "is not in items.db" if status == "unknown" else f"is {status}: it stays as it is"

    with closing(Store(config.listener.database)) as store:
        corrections = Corrections(store)
        if not status:
            raise SystemExit(change_named(object_ids, lambda one: corrections.retry(one, delay), says))
        change_all(corrections, status, partial(corrections.retry_batch, retry_delay=delay), words[status])
