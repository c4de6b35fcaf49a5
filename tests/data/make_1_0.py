"""How version_1_0.sql was made: by the code of version 1.0 itself, with an item in every status that it knew.

That code is commit ed1d4d7 of this repository. To make the file again, from the folder of the repository:

    git worktree add ../version-1.0 ed1d4d7
    python tests/data/make_1_0.py ../version-1.0 > tests/data/version_1_0.sql
    git worktree remove ../version-1.0

The output is a dump of its items.db, to which the user_version is added, because a dump has none.
"""

import importlib
import sqlite3
import sys
import tempfile
from contextlib import closing
from datetime import datetime, timezone
from itertools import count
from pathlib import Path

DAY = 24 * 3600.0
END = datetime(2026, 11, 20, 12, tzinfo=timezone.utc).timestamp()  # when the process was cut off


def make(path: Path, version_1_0: Path) -> None:
    """Have version 1.0, whose code is in the folder `version_1_0`, write the database `path`."""
    sys.path.insert(0, str(version_1_0))
    store_module = importlib.import_module("store")
    now = [0.0]
    store = store_module.Store(path, listener=True, clock=lambda: now[0])
    ids = (f"{number:08x}-f0b4-11e7-a36b-0a580a00054a" for number in count(1))

    def at(age: float) -> str:
        now[0] = END - age
        return next(ids)

    def ready(age: float, title: str | None, *, maybe_analyzed: bool = False) -> str:
        object_id = at(age)
        store.created(object_id, title, maybe_analyzed=maybe_analyzed)
        now[0] += 20
        store.proxy_closed(object_id)
        return object_id

    def claimed(age: float, title: str | None) -> str:
        object_id = ready(age, title)
        now[0] += 0.125
        assert store.claim().object_id == object_id
        now[0] += 0.25
        return object_id

    store.submitted(claimed(30 * DAY, "Grüße aus Köln, 東京 🎬.mov"), "c0ffee00-f0b4-11e7-a36b-0a580a00054a")
    store.submitted(claimed(29 * DAY, "It's \"submitted\"; -- its job's id was lost.mov"), None)
    store.failed(claimed(28 * DAY, ""), "404: Asset does not exist")
    retried = claimed(27 * DAY, "retried by a person.mov")
    store.failed(retried, "403: No access to the asset")
    store.postponed(claimed(1000, "tried.mov"), 3600, "504: Gateway Time-out", server_error=True)
    store.created(at(9 * DAY), "given up.mov")
    store.created(at(3 * DAY), "waits for its proxy.mov")
    store.created(at(2 * DAY), "found by catch-up.mov", maybe_analyzed=True)
    store.proxy_closed(at(DAY))
    claimed(900, "cut off.mov")
    store.retry(retried)
    ready(800, None)
    ready(700, "found by catch-up, and complete.mov", maybe_analyzed=True)
    store.close()


def dump(path: Path) -> str:
    with closing(sqlite3.connect(path)) as db:
        [version] = db.execute("PRAGMA user_version").fetchone()
        return "\n".join([*db.iterdump(), f"PRAGMA user_version = {version};", ""])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder) / "items.db", Path(sys.argv[1]))
        print(dump(Path(folder) / "items.db"), end="")
