"""What the page shows, as data: the templates only write it down."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from commands.changes import MAX_MATCHES, RETRYABLE, SKIPPABLE, ManualChanges, Match
from commands.report import Line, lines
from commands.running import running_listener
from commands.show import story
from commands.status import Group, age, jobs_line, listener_line, problem_groups
from config import Config
from limits import Limits
from page.bars import Chart, chart
from store import DAY_SECONDS, Status, Store
from system.text import format_local, one_line

DAYS = 30
PAGE_SIZE = 100
HEALTH_SECONDS = 2.0  # for the listener's /health, so that one that hangs does not hang the page
# What the items of a status are sorted by.
SORTED_BY = {
    Status.AWAITING_PROXY: "created_at",
    Status.AWAITING_CREATE: "proxy_closed_at",
    Status.READY: "last_attempt_at",
    Status.SUBMITTING: "created_at",
    Status.SUBMITTED: "submitted_at",
    Status.DONE: "done_at",
    Status.SKIPPED: "created_at",
    Status.FAILED: "last_attempt_at",
}


@dataclass(frozen=True)
class StatusCount:
    """How many items are in a status, and how old the oldest of them is."""

    status: str
    items: int
    oldest: str


@dataclass(frozen=True)
class Overview:
    """All of the first page.

    :ivar limit: why jobs are held; empty if none is
    :ivar images: of this month, and the hours of video: what iconik bills
    """

    listener: str
    is_well: bool
    jobs: str
    limit: str
    held: int
    statuses: list[StatusCount]
    failed: list[Group]
    waiting: list[Group]
    chart: Chart
    month: str
    images: int
    hours: float


@dataclass(frozen=True)
class ItemView:
    """One job of an asset: its story, and what may be done with it."""

    job: str
    status: str
    story: list[str]
    may_be_retried: bool
    may_be_skipped: bool


@dataclass(frozen=True)
class AssetView:
    """An asset's whole story."""

    object_id: str
    title: str
    link: str
    items: list[ItemView]


@dataclass(frozen=True)
class ItemLine:
    """One item in a list."""

    object_id: str
    title: str
    job: str
    at: str
    error: str


@dataclass(frozen=True)
class ItemList:
    """A page of the items of a status and, perhaps, a reason.

    :ivar number: the page's, from 1 on
    """

    items: list[ItemLine]
    number: int
    has_more: bool


@dataclass(frozen=True)
class Found:
    """What a search found."""

    matches: list[Match]
    has_more: bool


def overview(store: Store, config: Config) -> Overview:
    """The first page."""
    listener, limit, groups = running_listener(store, HEALTH_SECONDS), Limits(store).now(), problem_groups(store)
    month = limit.day[:7]
    first = min(store.now(-(DAYS - 1) * DAY_SECONDS)[:10], f"{month}-01")
    days = list(lines(store, first, limit.day))
    of_month = [line for line in days if line.day.startswith(month)]
    return Overview(
        listener=listener_line(listener),
        is_well=listener is not None and listener.get("status") == "ok",
        jobs=jobs_line(store, limit, config.jobs),
        limit=limit.describe(),
        held=limit.held,
        statuses=[StatusCount(row["status"], row["items"], age(row["oldest"])) for row in store.overview()],
        failed=[group for group in groups if group.status == Status.FAILED],
        waiting=[group for group in groups if group.status == Status.READY],
        chart=chart(days, limit.day, DAYS),
        month=month,
        images=_total(of_month, "images"),
        hours=_total(of_month, "video_hours") + _total(of_month, "audio_hours"),
    )


def _total(found: Sequence[Line], name: str) -> Any:
    return sum(getattr(line, name) for line in found)


def search(store: Store, text: str) -> Found:
    """The assets that a title, a part of one, an id or iconik's link may mean."""
    matches = ManualChanges(store).find(text) if text.strip() else []
    return Found(matches[:MAX_MATCHES], len(matches) > MAX_MATCHES)


def asset(store: Store, config: Config, object_id: str) -> AssetView | None:
    """An asset's whole story; None if it is not in items.db."""
    rows = [
        dict(row)
        for row in store.database.run(
            "SELECT * FROM items WHERE object_id = :object_id ORDER BY job", object_id=object_id
        )
    ]
    if not rows:
        return None
    title = next((row["title"] for row in rows if row["title"]), "without a title")
    return AssetView(
        object_id=object_id,
        title=one_line(title),
        link=f"{config.iconik.url}/asset/{object_id}",
        items=[
            ItemView(
                job=str(row["job"]),
                status=str(row["status"]),
                story=list(story(row, is_one_of_many=False)),
                may_be_retried=row["status"] in RETRYABLE,
                may_be_skipped=row["status"] in SKIPPABLE,
            )
            for row in rows
        ],
    )


def items(store: Store, status: str, reason: str | None, number: int) -> ItemList:
    """The items of a status, the newest first, `PAGE_SIZE` on a page.

    :param reason: only those that wait or failed for this reason
    :param number: of the page, from 1 on
    """
    rows = store.database.run(
        f"""SELECT object_id, title, job, {SORTED_BY[status]} AS at, error FROM items
        WHERE status = :status AND {_matches(status, reason)}
        ORDER BY at DESC LIMIT :limit OFFSET :offset""",  # noqa: S608
        status=status,
        reason=reason,
        limit=PAGE_SIZE + 1,
        offset=(number - 1) * PAGE_SIZE,
    )
    found = [
        ItemLine(
            object_id=str(row["object_id"]),
            title=one_line(row["title"] or "without a title"),
            job=str(row["job"]),
            at=format_local(row["at"]) if row["at"] else "",
            error=one_line(row["error"] or "", 1000),
        )
        for row in rows
    ]
    return ItemList(found[:PAGE_SIZE], number, len(found) > PAGE_SIZE)


def _matches(status: str, reason: str | None) -> str:
    """The condition that an item has that reason, so that SQLite can use an index."""
    if reason is None:
        return "1"
    if not reason:
        return "(reason IS NULL OR reason = '')"
    return "reason = :reason AND last_attempt_at IS NOT NULL" if status == Status.READY else "reason = :reason"
