"""The changes that the reconciler makes to items."""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

from reconciliation.catalog import FoundAsset
from store import ADD_ASSET, DAY_SECONDS, SET_STATE, Outcome, Store, typed
from system.database import StoreRefused
from system.text import format_utc, named

log = logging.getLogger("iconik_listener")

BATCH_SIZE = 200  # rows that are written in one transaction, so that no webhook waits long for its turn
AWAITING_CREATE_SECONDS = DAY_SECONDS  # how long a closed proxy waits for the create that it overtook
OUTCOME_SECONDS = 7 * DAY_SECONDS  # for how long the end of a job is looked for
USAGE_DAYS = 25 * 31  # with jobs, for which the ledger is kept: two years and a month
ALLOWED_DAYS = 10  # for which it is kept how many more jobs a person allowed


@dataclass(frozen=True)
class SubmittedItem:
    """An item whose job iconik has accepted.

    :ivar submitted_at: by iconik's clock, as UTC text
    :ivar is_ours: whether we started the job; it was found there otherwise
    """

    object_id: str
    job: str
    title: str | None
    submitted_at: str
    job_id: str | None
    old_job_id: str | None
    is_ours: bool


class ReconciledChanges:
    """Each method raises StoreUnavailable or StoreRefused like Store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._database = store.database

    def add_assets(
        self,
        assets: Iterable[FoundAsset],
        source: str,
        state: Mapping[str, str],
        *,
        jobs: Mapping[str, Sequence[str]] | None = None,
        first_poll_in: float = 0.0,
        seconds_between_polls: float = 0.0,
        wait: float | None = None,
    ) -> int:
        """Store assets as their create webhooks would have, and rows of the state with them.

        :param jobs: the jobs that each of them gets, by its id; None for all that are configured
        :param first_poll_in: seconds until iconik is polled for the first one's proxy
        :param seconds_between_polls: by which the polls for the others are spread
        :param wait: the seconds to wait, instead of 5, for a database that somebody else holds
        :returns: how many of the assets change something: they were not there yet, or awaited their create
        """
        assets = list(assets)
        polls = (first_poll_in, seconds_between_polls)
        try:
            return self._add(assets, source, state, jobs, polls, wait)
        except StoreRefused as error:  # by a person's trigger: it is about one asset and keeps no other out
            if len(assets) == 1 and not state:
                log.error("%s. %s is not added", error, named(assets[0].object_id, assets[0].title))
                return 0
        added = 0
        for number, asset in enumerate(assets):
            poll_in = first_poll_in + number * seconds_between_polls
            added += self.add_assets([asset], source, {}, jobs=jobs, first_poll_in=poll_in, wait=wait)
        return added + self._add([], source, state, jobs, polls, wait)

    def _add(
        self,
        assets: list[FoundAsset],
        source: str,
        state: Mapping[str, str],
        jobs: Mapping[str, Sequence[str]] | None,
        polls: tuple[float, float],
        wait: float | None,
    ) -> int:
        added = 0
        with self._database.transaction(wait) as db:
            for asset in assets:
                poll_in = polls[0] + added * polls[1]
                wanted = None if jobs is None else jobs[asset.object_id]
                values = self._store.asset_values(asset.object_id, asset.title, source, poll_in, wanted)
                added += bool(db.execute(ADD_ASSET, values).fetchall())
            for key, value in state.items():
                db.execute(SET_STATE, {"key": key, "value": value})
        return added

    def missing_jobs(self, object_id: str) -> list[str]:
        """The configured jobs that add_assets would add to that asset."""
        rows = self._database.run(
            """SELECT value AS job FROM json_each(:jobs) WHERE NOT EXISTS (
                SELECT 1 FROM items WHERE object_id = :object_id AND job = json_each.value
                    AND status <> 'awaiting_create')""",
            object_id=object_id,
            jobs=json.dumps(self._store.rules.jobs),
        )
        return [row["job"] for row in rows]

    def submitted(self, after: tuple[str, str], since: float) -> list[SubmittedItem]:
        """Up to 100 items whose jobs iconik has accepted since then, in the order of their ids: those after `after`."""
        rows = self._database.run(
            """SELECT object_id, job, title, submitted_at, job_id, old_job_id, counted_on IS NOT NULL AS is_ours
            FROM items WHERE +status = 'submitted' AND submitted_at > :since AND (object_id, job) > (:object_id, :job)
                AND typeof(object_id) = 'text' AND typeof(job) = 'text'
                AND object_id || ' ' || job NOT GLOB '*[^ -~]*'  -- any other is no asset of iconik's, nor can be sorted
            ORDER BY object_id, job LIMIT 100""",
            since=format_utc(since),
            object_id=after[0],
            job=after[1],
        )
        texts = [field.name for field in fields(SubmittedItem) if field.name != "is_ours"]
        return [
            SubmittedItem(**{name: typed(row[name], name) for name in texts}, is_ours=bool(row["is_ours"]))
            for row in rows
        ]

    def end_job(self, item: SubmittedItem, outcome: Outcome) -> bool:
        """Note how the job of a submitted item ended. Returns whether the item was still submitted."""
        rows = self._database.run(
            """UPDATE items SET status = :status, done_at = CASE WHEN :status = 'done' THEN :now END,
                job_id = :job_id, error = :error, reason = :reason, last_attempt_at = :now
            WHERE object_id = :object_id AND job = :job AND status = 'submitted' AND submitted_at = :submitted_at
            RETURNING object_id""",
            status=outcome.status,
            now=self._store.now(),
            job_id=outcome.job_id,
            error=outcome.error,
            reason=outcome.reason,
            object_id=item.object_id,
            job=item.job,
            submitted_at=item.submitted_at,
        )
        return bool(rows)

    def note_job_id(self, item: SubmittedItem, job_id: str) -> None:
        """Note iconik's id of the job of a submitted item, which is not done yet."""
        self._database.run(
            """UPDATE items SET job_id = :job_id
            WHERE object_id = :object_id AND job = :job AND status = 'submitted' AND submitted_at = :submitted_at""",
            job_id=job_id,
            object_id=item.object_id,
            job=item.job,
            submitted_at=item.submitted_at,
        )

    def unmeasured(self, after: str, since: float) -> list[str]:
        """Up to 100 assets with a job that has ended since then, whose media type is not known: ids after `after`.

        Of the jobs that failed, only those that we started: the report counts them.
        """
        rows = self._database.run(
            """SELECT DISTINCT object_id FROM (  -- the + keeps it from the primary key
                SELECT +object_id AS object_id FROM items
                    WHERE status = 'done' AND media_type IS NULL AND done_at > :since
                UNION ALL SELECT +object_id FROM items
                    WHERE status = 'failed' AND media_type IS NULL AND last_attempt_at > :since
                        AND counted_on IS NOT NULL)
            WHERE object_id > :after AND typeof(object_id) = 'text' AND object_id NOT GLOB '*[^ -~]*'
            ORDER BY object_id LIMIT 100""",
            since=format_utc(since),
            after=after,
        )
        return [row["object_id"] for row in rows]

    def measure(self, asset: FoundAsset) -> None:
        """Note an asset's media type and duration, and its title where that is not known."""
        self._database.run(
            """UPDATE items SET media_type = :media_type, duration = coalesce(:duration, duration),
                title = coalesce(title, :title)
            WHERE object_id = :object_id AND status IN ('submitted', 'done', 'failed')""",
            object_id=asset.object_id,
            media_type=asset.media_type,
            duration=asset.duration,
            title=asset.title,
        )

    def delete_awaiting_create(self) -> int:
        """Delete up to 200 of the items whose create has not come for a day. Returns how many."""
        rows = self._database.run(
            """SELECT object_id, job FROM items
            WHERE status = 'awaiting_create' AND proxy_closed_at < :before LIMIT 200""",
            before=self._store.now(-AWAITING_CREATE_SECONDS),
        )
        return self._store.change_each(
            "DELETE FROM items WHERE object_id = :object_id AND job = :job AND status = 'awaiting_create'",
            [(row["object_id"], row["job"]) for row in rows],
            {},
        )

    def delete_old_usage(self) -> None:
        """Delete what the ledger and the state hold of days that nobody asks for any more: all but the latest ones.

        Days are counted, because a clock that is wrong for a moment must not delete today's, which the limit is for.
        """
        self._database.run(
            """DELETE FROM usage WHERE day < (
                SELECT day FROM usage GROUP BY day ORDER BY day DESC LIMIT 1 OFFSET :days - 1)""",
            days=USAGE_DAYS,
        )
        self._database.run(
            """DELETE FROM state WHERE key GLOB 'allowed *' AND key < (
                SELECT key FROM state WHERE key GLOB 'allowed *' ORDER BY key DESC LIMIT 1 OFFSET :days - 1)""",
            days=ALLOWED_DAYS,
        )
