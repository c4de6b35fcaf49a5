"""What a person does to items: retry and skip, and how a person names them."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from unicodedata import normalize

from store import ADD_ASSET, COUNT, Source, Status, Store
from system.text import UUID, one_line

BATCH_SIZE = 200  # rows that are written in one transaction, so that no webhook waits long for its turn
MAX_MATCHES = 20
MIN_ID_PART = 8  # characters of an id that name it
AGAIN_SECONDS = 600.0  # within which a second `retry --again` changes nothing: a double click is not two orders
RETRYABLE = (Status.FAILED, Status.SKIPPED, Status.READY, Status.AWAITING_PROXY)
SKIPPABLE = (Status.FAILED, Status.READY, Status.AWAITING_PROXY, Status.AWAITING_CREATE)
REPEATABLE = (Status.SUBMITTED, Status.DONE, Status.FAILED, Status.SKIPPED)

Key = tuple[str, str]  # an item: the asset's id, and the job


@dataclass(frozen=True)
class Match:
    """An asset that a person may mean."""

    object_id: str
    title: str | None
    added_at: str | None = None


@dataclass(frozen=True)
class Change:
    """What a command found, and whether it changed it.

    :ivar status: the status that the item had
    :ivar error: why it was skipped or had failed
    :ivar is_recent: whether a person wanted it done again within ten minutes
    """

    object_id: str
    job: str
    title: str | None
    status: str
    error: str | None
    is_changed: bool
    is_recent: bool = False


class ManualChanges:
    """Each method raises StoreUnavailable or StoreRefused like Store. No method touches an item that is submitting."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._database = store.database

    def find(self, text: str, *, parts: bool = True) -> list[Match]:
        """The assets that a person may mean: up to 21 of them, of the first kind of match that finds any.

        In this order: an id, the link that iconik shows in the browser, an exact title, the beginning of an id, a part
        of a title.

        :param parts: whether parts of ids and titles count
        """
        wanted = normalize("NFC", " ".join(text.split()))
        if found := UUID.search(wanted.rpartition("/asset/")[2]) or UUID.search(wanted):
            return self._matches("object_id = :text", found[0].lower())
        matches = self._matches("title IN (:text, :other)", wanted)
        if matches or not parts or not wanted:
            return matches
        if len(wanted) >= MIN_ID_PART and re.fullmatch("[0-9a-f-]+", wanted, re.IGNORECASE):
            matches = self._matches("object_id >= :text AND object_id < :text || 'g'", wanted.lower())
        escaped = re.sub(r"([%_\\])", r"\\\1", wanted)
        if matches or wanted.isascii():
            return matches or self._matches("title LIKE :text ESCAPE '\\'", f"%{escaped}%")
        return self._matches("instr(folded(title), folded(:text)) > 0", wanted)

    def _matches(self, condition: str, text: str) -> list[Match]:
        rows = self._database.run(
            f"""SELECT object_id, max(title) AS title, min(created_at) AS added_at FROM items
            WHERE {condition} GROUP BY object_id LIMIT {MAX_MATCHES + 1}""",  # noqa: S608
            text=text,
            other=normalize("NFD", text),  # what an earlier version stored of a Mac's
        )
        return [Match(row["object_id"], row["title"], row["added_at"]) for row in rows]

    def keys_of(self, object_id: str, job: str | None) -> list[Key]:
        """The items of an asset, or the one of that job."""
        rows = self._database.run(
            "SELECT job FROM items WHERE object_id = :object_id AND (:job IS NULL OR job = :job)",
            object_id=object_id,
            job=job,
        )
        return [(object_id, row["job"]) for row in rows]

    def keys_of_all(self, object_ids: Sequence[str]) -> list[Key]:
        """All items of several assets."""
        rows = self._database.run(
            "SELECT object_id, job FROM items WHERE object_id IN (SELECT value FROM json_each(:ids))",
            ids=json.dumps(object_ids),
        )
        return [(row["object_id"], row["job"]) for row in rows]

    def seen(self, object_ids: Sequence[str]) -> set[str]:
        """Those of several assets that are not only known by a proxy that came before their create."""
        rows = self._database.run(
            """SELECT DISTINCT object_id FROM items
            WHERE object_id IN (SELECT value FROM json_each(:ids)) AND status <> 'awaiting_create'""",
            ids=json.dumps(object_ids),
        )
        return {row["object_id"] for row in rows}

    def next_keys(self, status: str, after: Key, *, job: str | None = None, reason: str | None = None) -> list[Key]:
        """Up to 200 items of that status (and job, and reason), in the order of their ids: those after `after`.

        Repeated calls return each item exactly once, even if items change in between.
        """
        rows = self._database.run(
            """SELECT object_id, job FROM items
            WHERE +status = :status AND (:job IS NULL OR job = :job)
                AND (:reason IS NULL OR coalesce(reason, '') = :reason) AND (object_id, job) > (:after_id, :after_job)
            ORDER BY object_id, job LIMIT 200""",
            status=status,
            job=job,
            reason=reason,
            after_id=after[0],
            after_job=after[1],
        )
        return [(row["object_id"], row["job"]) for row in rows]

    def retry(self, keys: Iterable[Key], *, status: str | None = None, reason: str = "") -> list[Change]:
        """Try items again now: those that failed or were skipped, and those that wait.

        iconik is asked first, so nothing is started twice. An item in doubt waits until its request must have arrived.

        :param status: change only those that (still) have that status
        """
        return self._change(keys, RETRYABLE, status, {Status.FAILED: RETRY, Status.SKIPPED: RETRY}, MAKE_DUE, reason)

    def again(self, keys: Iterable[Key], *, with_skipped: str | None = None) -> list[Change]:
        """Run finished jobs again. Without effect within ten minutes of the last time.

        What was skipped is started only if no job of the asset was done.

        :param with_skipped: the job that is started even if it was skipped, and another one of the asset was not
        """
        keys = list(keys)
        rows = self._database.run(
            """SELECT DISTINCT object_id FROM items
            WHERE object_id IN (SELECT value FROM json_each(:ids)) AND status <> 'skipped'""",
            ids=json.dumps([object_id for object_id, _ in keys]),
        )
        not_skipped = json.dumps([row["object_id"] for row in rows])
        return self._change(keys, REPEATABLE, None, {}, AGAIN, "", with_skipped=with_skipped, not_skipped=not_skipped)

    def skip(self, keys: Iterable[Key], *, status: str | None = None, reason: str = "") -> list[Change]:
        """Mark items as not to be done."""
        return self._change(keys, SKIPPABLE, status, {}, SKIP, reason)

    def add(self, object_ids: Iterable[str], *, again: bool) -> list[str]:
        """Add assets that were never seen. Returns the ids of those that were added.

        :param again: they are to be done, even if iconik has done them before; otherwise they are polled for later
        """
        added = []
        with self._database.transaction() as db:
            for object_id in object_ids:
                poll_in = 0.0 if again else self._store.rules.min_age
                values = self._store.asset_values(object_id, None, Source.MENU, poll_in)
                rows = db.execute(ADD_ASSET, values).fetchall()
                for row in rows if again else ():
                    db.execute(
                        "UPDATE items SET asked = 2, asked_at = :now WHERE object_id = :object_id AND job = :job",
                        {**values, "job": row["job"]},
                    )
                if rows:
                    added.append(object_id)
        return added

    def _change(
        self,
        keys: Iterable[Key],
        statuses: tuple[str, ...],
        only_status: str | None,
        statements: dict[str, str],
        otherwise: str,
        reason: str,
        **more: Any,
    ) -> list[Change]:
        changes = []
        values: dict[str, Any] = {
            "now": self._store.now(),
            "again_before": self._store.now(-AGAIN_SECONDS),
            "doubt_delay": self._store.rules.doubt_delay,
            "reason": one_line(reason) or None,
            **more,
        }
        with self._database.transaction() as db:
            for object_id, job in keys:
                values |= {"object_id": object_id, "job": job}
                row = db.execute(FIND, values).fetchone()
                if row is None:
                    continue
                status = str(row["status"])
                is_changed = False
                if status in statuses and only_status in (None, status):
                    is_changed = bool(db.execute(statements.get(status, otherwise), values).rowcount)
                if is_changed and otherwise is SKIP and status == Status.READY and row["holds_reservation"]:
                    day = row["counted_on"]
                    db.execute(COUNT, {"day": day, "job": job, "started": -1, "found": 0})
                is_recent = bool(row["is_recent"])
                changes.append(Change(object_id, job, row["title"], status, row["error"], is_changed, is_recent))
        return changes


FIND = """SELECT title, status, error, counted_on,
    asked <> 1 AND asked_at > :again_before AND asked_at <= :now AS is_recent,
    counted_on IS NOT NULL AND in_doubt_since IS NULL AS holds_reservation
FROM items WHERE object_id = :object_id AND job = :job"""

# What was skipped before its proxy arrived goes back to awaiting_proxy.
RETRY = """UPDATE items SET
    status = CASE WHEN proxy_closed_at IS NULL THEN 'awaiting_proxy' ELSE 'ready' END,
    asked = max(asked, 1), asked_at = :now,
    attempts = 0, backoff = 0, waited = 0, refused = 0, absent_since = NULL,
    counted_on = CASE WHEN in_doubt_since IS NOT NULL THEN counted_on END,
    old_job_id = coalesce(job_id, old_job_id), job_id = NULL,
    error = coalesce('retried: ' || :reason, error),
    next_attempt_at = CASE WHEN in_doubt_since IS NULL THEN :now
        ELSE max(:now, coalesce(later(CAST(last_attempt_at AS BLOB), :doubt_delay), :now)) END
WHERE object_id = :object_id AND job = :job AND status IN ('failed', 'skipped')"""

# What is due already keeps its place, and what is in doubt keeps its delay.
MAKE_DUE = """UPDATE items SET
    waited = 0, backoff = 0, asked = CASE WHEN status = 'ready' THEN max(asked, 1) ELSE asked END,
    asked_at = CASE WHEN status = 'ready' AND asked < 2 THEN :now ELSE asked_at END,
    error = coalesce('retried: ' || :reason, error),
    next_attempt_at = CASE WHEN in_doubt_since IS NULL THEN min(coalesce(next_attempt_at, :now), :now)
        ELSE next_attempt_at END
WHERE object_id = :object_id AND job = :job AND status IN ('ready', 'awaiting_proxy')"""

# Of a run that may not be finished, submitted_at is kept. Its job is its own, or not known: that of an earlier run says
# nothing about it. A retry is no order to do it again, and so no first click of two.
AGAIN = """UPDATE items SET
    submitted_at = CASE WHEN status = 'submitted' THEN submitted_at END,
    status = CASE WHEN proxy_closed_at IS NULL AND status = 'skipped' THEN 'awaiting_proxy' ELSE 'ready' END,
    asked = 2, asked_at = :now, attempts = 0, backoff = 0, waited = 0, refused = 0, absent_since = NULL,
    counted_on = CASE WHEN in_doubt_since IS NOT NULL THEN counted_on END,
    old_job_id = CASE WHEN status = 'submitted' THEN job_id ELSE coalesce(job_id, old_job_id) END, job_id = NULL,
    next_attempt_at = CASE WHEN in_doubt_since IS NULL THEN :now
        ELSE max(:now, coalesce(later(CAST(last_attempt_at AS BLOB), :doubt_delay), :now)) END
WHERE object_id = :object_id AND job = :job AND status IN ('submitted', 'done', 'failed', 'skipped')
    AND (status <> 'skipped' OR job = :with_skipped OR object_id NOT IN (SELECT value FROM json_each(:not_skipped)))
    AND (asked = 1 OR asked_at IS NULL OR asked_at < :again_before OR asked_at > :now)"""

# A skip takes back that it was to be done again.
SKIP = """UPDATE items SET status = 'skipped', asked = 0, asked_at = NULL,
    error = coalesce(:reason, 'skipped by a person'),
    reason = coalesce(:reason, 'skipped by a person'),
    counted_on = CASE WHEN status = 'ready' AND in_doubt_since IS NULL THEN NULL ELSE counted_on END
WHERE object_id = :object_id AND job = :job AND status IN ('failed', 'ready', 'awaiting_proxy', 'awaiting_create')"""
