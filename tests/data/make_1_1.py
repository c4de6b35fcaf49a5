"""How version_1_1.sql was made: by the code of version 1.1 itself, with an item in every status, in doubt and not.

That code is commit 8d210a0 of this repository. To make the file again, from the folder of the repository:

    git worktree add ../version-1.1 8d210a0
    python tests/data/make_1_1.py ../version-1.1 > tests/data/version_1_1.sql
    git worktree remove ../version-1.1

The output is a dump of its items.db, to which the marks are added that a dump does not have.
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


def make(path: Path, version_1_1: Path) -> None:
    """Have version 1.1, whose code is in the folder `version_1_1`, write the database `path`."""
    sys.path.insert(0, str(version_1_1))
    now = [0.0]
    store = importlib.import_module("store").Store(path, listener=True, clock=lambda: now[0])
    corrections = importlib.import_module("corrections").Corrections(store)
    ids = (f"{number:08x}-f0b4-11e7-a36b-0a580a00054a" for number in count(1))

    def at(age: float) -> str:
        now[0] = END - age
        return next(ids)

    def ready(age: float, title: str | None) -> str:
        object_id = at(age)
        store.add_asset(object_id, title, proxy_due_in=300)
        now[0] += 20
        store.proxy_closed(object_id)
        return object_id

    def claimed(age: float, title: str | None) -> str:
        object_id = ready(age, title)
        now[0] += 0.125
        assert store.claim_new().object_id == object_id
        now[0] += 0.25
        return object_id

    def postponed(age: float, title: str, *, in_doubt: bool) -> str:
        object_id = claimed(age, title)
        store.postpone(object_id, 600, "504: Gateway Time-out", in_doubt=in_doubt)
        return object_id

    def claimed_again(object_id: str) -> None:
        now[0] += 600
        assert store.claim_due(300, 7 * DAY).object_id == object_id
        now[0] += 0.25

    store.mark_submitted(claimed(30 * DAY, "Grüße aus Köln, 東京 🎬.mov"), "c0ffee00-f0b4-11e7-a36b-0a580a00054a")
    store.mark_submitted(claimed(DAY, "It's \"submitted\"; -- its job's id was lost.mov"), None)
    store.mark_failed(claimed(28 * DAY, ""), "404: Asset does not exist")
    failed_in_doubt = postponed(27 * DAY, "failed in doubt.mov", in_doubt=True)
    claimed_again(failed_in_doubt)
    store.mark_failed(failed_in_doubt, "iconik did not answer for 7 days")
    store.mark_skipped(claimed(26 * DAY, "a subclip"), "assets of type SUBCLIP are skipped (skip_types in config.ini)")
    corrections.skip(ready(25 * DAY, "skipped by a person.mov"))
    retried = claimed(24 * DAY, "retried by a person.mov")
    store.mark_failed(retried, "403: No access to the asset")
    old = at(9 * DAY)
    store.add_asset(old, "polled no more.mov")
    assert store.claim_due(300, 7 * DAY).object_id == old
    now[0] += 5 * DAY
    assert store.claim_due(300, 7 * DAY).object_id == old
    polled = at(3 * DAY)
    store.add_asset(polled, "polled.mov")
    now[0] += 2 * DAY
    assert store.claim_due(300, 7 * DAY).object_id == polled
    store.proxy_closed(at(DAY / 2))
    interrupted_in_doubt = postponed(9000, "cut off in doubt.mov", in_doubt=True)
    claimed_again(interrupted_in_doubt)
    claimed(1200, "cut off.mov")
    postponed(1000, "tried.mov", in_doubt=False)
    postponed(900, "in doubt.mov", in_doubt=True)
    now[0] = END - 850
    corrections.retry(retried, 10)
    ready(800, None)
    now[0] = END
    for key, value in STATE.items():
        store.set_state(key, value)
    store.close()


STATE = {
    "first_started_at": "2026-10-20T12:00:00.000Z",
    "assets_floor": "2026-10-25T12:00:00.000Z",
    "assets_seen_until": "2026-11-20T11:00:00.000Z",
    "assets_resume_at": "",
    "assets_passed_over": "",
    "jobs_seen_until": "2026-11-20T11:00:00.000Z",
    "registered_url": "https://listener.example.com/iconik/webhook",
    "webhook_enabled_at 7e3c2a9e-f0b4-11e7-a36b-0a580a00054a": "2026-11-01T12:00:00.000Z",
    "webhook_left_disabled 7e3c2a9e-f0b4-11e7-a36b-0a580a00054a": "1",
    "catch_up": "",
    "checked_at": "2026-11-20T08:00:00.000Z",
    "listening_at": "127.0.0.1:5005",
}


def dump(path: Path) -> str:
    with closing(sqlite3.connect(path)) as db:
        marks = [f"PRAGMA {name} = {db.execute(f'PRAGMA {name}').fetchone()[0]};" for name in MARKS]
        return "\n".join([*db.iterdump(), *marks, ""])


MARKS = ("application_id", "user_version")

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder) / "items.db", Path(sys.argv[1]))
        print(dump(Path(folder) / "items.db"), end="")
