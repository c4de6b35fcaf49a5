"""The listener that is running, as the commands see it: through its lock and its /health."""

import json
import os
from dataclasses import replace
from typing import Any

from limits import Limit, Limits
from store import Store
from system.database import listener_runs
from system.text import in_container
from system.transport import Transport, TransportError

HEALTH_TIMEOUT = 10.0  # seconds; it waits up to 5 s for a database that somebody else holds
FIELDS = {"version", "started_at", "status", "paused_since", "last_error", "last_webhook_at", "oldest_due_at"}


def limit_of(listener: dict[str, Any] | None, store: Store) -> Limit:
    """The limit, as the listener that runs has it: config.ini may have changed since its start, or since ours."""
    max_per_day = (listener or {}).get("max_per_day")
    if isinstance(max_per_day, int):
        store.rules = replace(store.rules, max_per_day=max_per_day)
    return Limits(store).now()


def running_listener(store: Store, timeout: float = HEALTH_TIMEOUT) -> dict[str, Any] | None:
    """What the listener on this database says at its /health, within `timeout` seconds. None if none is running.

    `{"status": "unreachable", "message": …}` if one is running and does not answer, and `{"message": …}` without a
    status if it says that it cannot use its database.

    :raises ListenerError: the lock, or the database, cannot be read
    """
    if not listener_runs(store.database.path):
        return None
    address = store.state("listening_at")
    if not address:
        return {"status": "unreachable", "message": "it is still starting"}
    if in_container():  # another container may ask, for which 127.0.0.1 is not the listener's
        address = os.environ.get("ICONIK_LISTENER_ADDRESS", address)
    address = address.replace("0.0.0.0:", "127.0.0.1:").replace("[::]:", "[::1]:")
    try:
        health = json.loads(Transport(f"http://{address}", {}, timeout).send("GET", "/health").body)
    except TransportError as error:
        reason = f"http://{address}/health: {error}. It may still be starting"
        return {"status": "unreachable", "message": reason}
    except ValueError:
        health = None
    if isinstance(health, dict) and (health.keys() >= FIELDS or health.keys() == {"message"}):
        return health
    return {"status": "unreachable", "message": f"something else answers at http://{address}/health"}
