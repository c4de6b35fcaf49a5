"""What the page shows, as data: the templates only write it down."""

from collections.abc import Sequence
from dataclasses import dataclass

from commands.changes import MAX_MATCHES, RETRYABLE, SKIPPABLE, ManualChanges, Match
from commands.report import Line, lines
from commands.running import limit_of, running_listener
from commands.show import Circumstances, story
from commands.status import Group, age, jobs_line, listener_line, problem_groups
from config import Config
from history import latest_history
from page.bars import Chart, chart
from store import DAY_SECONDS, Status, Store
from system.database import Row
from system.text import format_local, one_line, pluralize

DAYS = 30
PAGE_SIZE = 100
MAX_HISTORY = 10
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
MEANINGS = {
    Status.AWAITING_PROXY: "the proxy is not ready yet",
    Status.AWAITING_CREATE: "the proxy's webhook came before the asset's",
    Status.READY: "an attempt is due, now or later",
    Status.SUBMITTING: "an attempt is under way",
    Status.SUBMITTED: "iconik is working on it",
    Status.DONE: "iconik has finished it",
    Status.SKIPPED: "it is not to be done",
    Status.FAILED: "it needs a person",
}


@dataclass(frozen=True)
class StatusCount:
    """How many items are in a status, and how old the oldest of them is."""

    status: str
    items: int
    oldest: str
    meaning: str


@dataclass(frozen=True)
class Overview:
    """All of the first page.

    :ivar limit: why jobs are held; empty if none is
    :ivar more: what failed and what waits for other reasons, by status
    :ivar history: what people did lately, the newest first
    :ivar billed: the images and hours of this month, which iconik bills, as a sentence
    """

    listener: str
    is_well: bool
    jobs: str
    limit: str
    held: int
    statuses: list[StatusCount]
    failed: list[Group]
    waiting: list[Group]
    more: dict[str, str]
    chart: Chart
    billed: str
    history: list[str]


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
    :ivar has_errors: whether any of them has one
    """

    items: list[ItemLine]
    number: int
    has_more: bool
    has_errors: bool


@dataclass(frozen=True)
class FoundAsset:
    """An asset that a search found. `statuses`: of each of its jobs, as `analyze: failed`."""

    object_id: str
    title: str
    statuses: list[str]


@dataclass(frozen=True)
class Found:
    """What a search found, by title."""

    assets: list[FoundAsset]
    has_more: bool


def overview(store: Store, config: Config) -> Overview:
    """The first page."""
    listener, groups = running_listener(store, HEALTH_SECONDS), problem_groups(store)
    limit = limit_of(listener, store)
    month = limit.day[:7]
    first = min(store.now(-(DAYS - 1) * DAY_SECONDS)[:10], f"{month}-01")
    days = list(lines(store, first, limit.day))
    return Overview(
        listener=listener_line(listener),
        is_well=listener is not None and listener.get("status") == "ok",
        jobs=jobs_line(store, limit, config.jobs),
        limit=limit.describe(),
        held=limit.held,
        statuses=[_status_count(row) for row in store.overview()],
        failed=[group for group in groups.largest if group.status == Status.FAILED],
        waiting=[group for group in groups.largest if group.status == Status.READY],
        more=groups.more,
        chart=chart(days, limit.day, DAYS),
        history=[entry.describe() for entry in reversed(latest_history(store, MAX_HISTORY))],
        billed=_billed(month, [line for line in days if line.day.startswith(month)]),
    )


def _status_count(row: Row) -> StatusCount:
    return StatusCount(row["status"], row["items"], age(row["oldest"]), MEANINGS.get(row["status"], ""))


def _billed(month: str, of_month: Sequence[Line]) -> str:
    """What iconik bills for a month, by job: it has a price for each, so their hours are not added up."""
    parts = []
    for job in sorted({line.job for line in of_month}):
        found = [line for line in of_month if line.job == job]
        images = sum(line.images for line in found)
        hours = sum(line.video_hours + line.audio_hours for line in found)
        units = [pluralize(images, "image")] if images else []
        parts.append(f"{one_line(job)}: {' and '.join([*units, f'{hours:.1f} hours of video or audio'])}")
    return f"What iconik bills for {month}, by the listener's count: {'; '.join(parts) or 'nothing'}."


def search(store: Store, text: str) -> Found:
    """The assets that a title, a part of one, an id or iconik's link may mean."""
    matches = ManualChanges(store).find(text) if text.strip() else []
    assets = [_found_asset(store, match) for match in matches[:MAX_MATCHES]]
    return Found(sorted(assets, key=lambda one: one.title.casefold()), len(matches) > MAX_MATCHES)


def _found_asset(store: Store, match: Match) -> FoundAsset:
    rows = store.database.run(
        "SELECT job, status FROM items WHERE object_id = :object_id ORDER BY job", object_id=match.object_id
    )
    statuses = [f"{one_line(row['job'])}: {row['status']}" for row in rows]
    return FoundAsset(match.object_id, one_line(match.title or "without a title"), statuses)


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
    circumstances = Circumstances.of(store, config)
    title = next((row["title"] for row in rows if row["title"]), "without a title")
    return AssetView(
        object_id=object_id,
        title=one_line(title),
        link=f"{config.iconik.url}/asset/{object_id}",
        items=[
            ItemView(
                job=str(row["job"]),
                status=str(row["status"]),
                story=list(story(row, circumstances, is_one_of_many=False, has_commands=False)),
                may_be_retried=row["status"] in RETRYABLE,
                may_be_skipped=row["status"] in SKIPPABLE,
            )
            for row in rows
        ],
    )


def items(store: Store, status: str, job: str, reason: str | None, number: int) -> ItemList:
    """The items of a status, the newest first, `PAGE_SIZE` on a page.

    :param job: only those of this job; empty for all
    :param reason: only those that wait or failed for this reason
    :param number: of the page, from 1 on
    """
    rows = store.database.run(
        f"""SELECT object_id, title, job, {SORTED_BY[status]} AS at, error FROM items
        WHERE status = :status AND (:job = '' OR job = :job) AND {_matches(status, reason)}
        ORDER BY at DESC LIMIT :limit OFFSET :offset""",  # noqa: S608
        status=status,
        job=job,
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
    return ItemList(found[:PAGE_SIZE], number, len(found) > PAGE_SIZE, any(item.error for item in found))


def _matches(status: str, reason: str | None) -> str:
    """The condition that an item has that reason, so that SQLite can use an index."""
    if reason is None:
        return "1"
    if not reason:
        return "(reason IS NULL OR reason = '')"
    return "reason = :reason AND last_attempt_at IS NOT NULL" if status == Status.READY else "reason = :reason"
