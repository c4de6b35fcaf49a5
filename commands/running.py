"""The listener that is running, as the commands see it: through its lock and its /health."""

from typing import Any

import requests

from database import listener_runs
from store import Store

HEALTH_TIMEOUT = 10.0  # seconds; it waits up to 5 s for a database that somebody else holds


def running_listener(store: Store) -> dict[str, Any] | None:
    """What the listener on this database says at its /health. None if none is running.

    `{"status": "unreachable", "message": …}` if one is running and does not answer, and `{"message": …}` without a
    status if it says that it cannot use its database.

    :raises StoreError, StoreUnavailable: the lock, or the database, cannot be read
    """
    if not listener_runs(store.database.path):
        return None
    address = (store.state("listening_at") or "").replace("0.0.0.0:", "127.0.0.1:").replace("[::]:", "[::1]:")
    try:
        with requests.Session() as session:
            session.trust_env = False  # it is on this machine: no proxy leads there
            health = session.get(f"http://{address}/health", timeout=HEALTH_TIMEOUT).json()
    except (requests.RequestException, ValueError):
        return {"status": "unreachable", "message": f"http://{address}/health does not answer"}
    return health if isinstance(health, dict) else {"status": "unreachable", "message": "its /health is not ours"}
