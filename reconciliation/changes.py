"""Changes of items that neither a webhook nor an attempt makes: by a person's command, and by the reconciler."""

from collections.abc import Iterable, Mapping

from store import ADD_ASSET, SET_STATE, SOONEST, Store
from system.database import Row

BATCH_SIZE = 200  # rows that are written in one transaction, so that no webhook waits long for its turn
AWAITING_CREATE_SECONDS = 24 * 3600.0  # how long a closed proxy waits for the create that it overtook

STATUS_OF = "SELECT status FROM items WHERE object_id = :object_id"
# What was skipped before its proxy was there awaits that still.
RETRY = f"""UPDATE items SET
    status = CASE WHEN status = 'skipped' AND proxy_closed_at IS NULL THEN 'awaiting_proxy' ELSE 'ready' END,
    ready_at = :now, attempts = 0, in_doubt = 0, last_attempt_at = coalesce(last_attempt_at, :now),
    next_attempt_at = {SOONEST}"""  # noqa: S608
# What is due already keeps its place.
HURRY = """UPDATE items SET next_attempt_at =
    max(min(coalesce(next_attempt_at, :now), :now), coalesce(later(last_attempt_at, :retry_delay), ''))"""
SKIP = "UPDATE items SET status = 'skipped', error = 'skipped by a person'"
RETRIES = {"failed": RETRY, "skipped": RETRY, "ready": HURRY, "awaiting_proxy": HURRY}  # what a retry does with each
SKIPPED = ("failed", "ready", "awaiting_proxy", "awaiting_create")  # what a skip changes


class Corrections:
    """Each method raises StoreUnavailable if the file cannot be read or written within 5 s."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._database = store.database

    # What a person does.

    def retry(self, object_id: str, retry_delay: float) -> str:
        """Have an item attempted, or asked about, now. Returns the status that it had, or "unknown".

        It is not attempted sooner than `retry_delay` seconds after its last attempt, which may have reached iconik.
        An item that is being submitted, is submitted, or awaits its create stays as it is.
        """
        return self._change_one(object_id, RETRIES, retry_delay)

    def retry_batch(self, object_ids: list[str], status: str, retry_delay: float) -> list[str]:
        """The same for those of the items that have that status (still). Returns their ids."""
        return self._change_batch(object_ids, status, RETRIES[status], retry_delay)

    def skip(self, object_id: str) -> str:
        """Settle that an asset is not to be analyzed. Returns the status that the item had, or "unknown"."""
        return self._change_one(object_id, dict.fromkeys(SKIPPED, SKIP), 0)

    def skip_batch(self, object_ids: list[str], status: str) -> list[str]:
        """The same for those of the items that have that status (still). Returns their ids."""
        return self._change_batch(object_ids, status, SKIP, 0)

    def next_ids(self, status: str, after: str) -> list[str]:
        """Up to 200 ids of items of that status, in the order of the ids: those that come after `after`.

        Whatever becomes of the items meanwhile, who asks on and on gets each once.
        """
        rows = self._database.run(
            f"""SELECT object_id FROM items WHERE +status = :status AND object_id > :after
            ORDER BY object_id LIMIT {BATCH_SIZE}""",  # noqa: S608
            status=status,
            after=after,
        )
        return [row["object_id"] for row in rows]

    def _change_one(self, object_id: str, changes: Mapping[str, str], retry_delay: float) -> str:
        values = {"object_id": object_id, "now": self._store.now(), "retry_delay": retry_delay}
        with self._database.transaction() as db:
            row: Row | None = db.execute(STATUS_OF, values).fetchone()
            status = str(row["status"]) if row else "unknown"
            if status in changes:
                db.execute(f"{changes[status]} WHERE object_id = :object_id", values)
        return status

    def _change_batch(self, object_ids: list[str], status: str, change: str, retry_delay: float) -> list[str]:
        values = {"status": status, "now": self._store.now(), "retry_delay": retry_delay}
        statement = f"{change} WHERE object_id = :object_id AND status = :status"
        with self._database.transaction() as db:
            return [one for one in object_ids if db.execute(statement, {**values, "object_id": one}).rowcount]

    # What iconik told when it was asked.

    def add_assets(self, assets: Iterable[tuple[str, str | None]], state: Mapping[str, str]) -> int:
        """Store assets (id and title), each as its create webhook would have, and rows of the state with them.

        Returns how many of them change something: they were not there yet, or awaited their create.
        """
        added = 0
        with self._database.transaction() as db:
            for object_id, title in assets:
                added += len(db.execute(ADD_ASSET, self._store.asset_values(object_id, title)).fetchall())
            for key, value in state.items():
                db.execute(SET_STATE, {"key": key, "value": value})
        return added

    def note(self, state: Mapping[str, str]) -> None:
        """Write rows of the state, all of them or none."""
        self.add_assets([], state)

    def is_known(self, object_id: str) -> bool:
        """Whether add_assets would leave that asset as it is."""
        row = self._database.run(STATUS_OF, object_id=object_id)
        return bool(row) and row[0]["status"] != "awaiting_create"

    def fail_submitted(self, object_id: str, job_id: str, failed_at: str, error: str) -> bool:
        """A job failed at iconik at `failed_at` (UTC text). Returns whether it was the item's, which is failed now."""
        rows = self._database.run(
            """UPDATE items SET status = 'failed', error = :error
            WHERE object_id = :object_id AND status = 'submitted'
                AND (job_id = :job_id OR job_id IS NULL AND submitted_at < :failed_at) RETURNING object_id""",
            object_id=object_id,
            job_id=job_id,
            failed_at=failed_at,
            error=error,
        )
        return bool(rows)

    def delete_awaiting_create(self) -> int:
        """Delete up to 200 of the items whose create has not come for a day. Returns how many."""
        rows = self._database.run(
            f"""DELETE FROM items WHERE object_id IN (SELECT object_id FROM items
                WHERE status = 'awaiting_create' AND proxy_closed_at < :before LIMIT {BATCH_SIZE})
            RETURNING object_id""",  # noqa: S608
            before=self._store.now(-AWAITING_CREATE_SECONDS),
        )
        return len(rows)
