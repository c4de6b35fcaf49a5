"""What people do on the page: retry and skip, by the same code as the commands. Many items are changed in a thread."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass

from commands.changes import Change, Key, ManualChanges
from commands.items import in_batches
from history import add_to_history
from store import Store
from system.errors import ListenerError
from system.text import format_local, format_utc, named, one_line, pluralize

log = logging.getLogger("iconik_listener")

MAX_KEPT = 5
PATIENCE = 1.0  # seconds that a browser waits for a change before it is told that it goes on
VERBS = {"retry": ("Retry", "will be tried again"), "skip": ("Skip", "skipped")}


@dataclass
class Action:
    """What somebody did on the page, and how far it has come.

    :ivar verb: retry or skip
    :ivar target: what it was done to: a title, or the reason of a group
    :ivar error: why it ended early; empty if it did not
    """

    verb: str
    target: str
    at: str
    changed: int = 0
    is_running: bool = True
    error: str = ""

    def describe(self) -> str:
        """The action, as a sentence."""
        result = f"{pluralize(self.changed, 'item')} {VERBS[self.verb][1]}"
        end = " so far. It goes on: reload this page." if self.is_running else f". {self.error}" if self.error else "."
        return f"{self.at}: {VERBS[self.verb][0]} {self.target}: {result}{end}"


@dataclass(frozen=True)
class Chosen:
    """A group of items that somebody chose: those of a status, a job (empty: all jobs) and a reason."""

    status: str
    job: str
    reason: str

    def describe(self) -> str:
        """The group, in a few words."""
        return f"“{one_line(self.reason)}”" + (f" ({one_line(self.job)})" if self.job else "")


class Actions:
    """The latest actions. Any thread may use it."""

    def __init__(self, open_store: Callable[[], Store]) -> None:
        """`open_store`: opens items.db, as a command does."""
        self._open_store = open_store
        self._lock = threading.Lock()
        self._latest: deque[Action] = deque(maxlen=MAX_KEPT)
        self._running: dict[tuple[str, Chosen], threading.Thread] = {}
        self._is_stopping = threading.Event()

    def latest(self) -> list[Action]:
        """The latest actions, the newest first."""
        with self._lock:
            return list(reversed(self._latest))

    def change_asset(self, store: Store, verb: str, object_id: str, job: str | None, user: str, reason: str) -> Action:
        """Retry or skip an asset's items, or the one of that job."""
        changes = ManualChanges(store)
        found = _change(changes, verb, changes.keys_of(object_id, job), None, reason)
        title = next((change.title for change in found), None)
        action = self._new(verb, one_line(title) if title else one_line(object_id))
        action.changed = sum(change.is_changed for change in found)
        action.is_running = False
        log.info("Page: %s for %s by %s: %s", verb, named(object_id, title), user, _changed(action))
        if action.changed:
            add_to_history(store, f"{user}, on the page", f"{verb} {named(object_id, title)}")
        return action

    def change_group(self, verb: str, chosen: Chosen, user: str, reason: str) -> None:
        """Retry or skip all items of a group. Returns after a second at most.

        A second click while it goes on changes nothing.
        """
        with self._lock:
            thread = self._running.get((verb, chosen))
            if thread is None:
                thread = threading.Thread(target=self._work, args=(verb, chosen, user, reason), daemon=True)
                self._running[verb, chosen] = thread
                thread.start()
        thread.join(PATIENCE)

    def stop(self) -> None:
        """End what is running, after the batch that is being written."""
        self._is_stopping.set()
        with self._lock:
            threads = list(self._running.values())
        for thread in threads:
            thread.join()

    def _new(self, verb: str, target: str) -> Action:
        action = Action(verb, target, format_local(format_utc(time.time())))
        with self._lock:
            self._latest.append(action)
        return action

    def _work(self, verb: str, chosen: Chosen, user: str, reason: str) -> None:
        action = self._new(verb, chosen.describe())
        try:
            with closing(self._open_store()) as store:
                self._change_all(store, action, chosen, reason)
                if action.changed:
                    add_to_history(store, f"{user}, on the page", f"{verb} {chosen.describe()}: {_changed(action)}")
        except ListenerError as error:
            action.error = one_line(error, 1000)
        finally:
            action.is_running = False
            with self._lock:
                del self._running[verb, chosen]
        end = f". {action.error}" if action.error else ""
        log.info("Page: %s for %s by %s: %s%s", verb, chosen.describe(), user, _changed(action), end)

    def _change_all(self, store: Store, action: Action, chosen: Chosen, reason: str) -> None:
        changes = ManualChanges(store)

        def change(keys: list[Key]) -> list[Change]:
            return _change(changes, action.verb, keys, chosen.status, reason)

        for batch in in_batches(store, chosen.status, change, job=chosen.job or None, reason=chosen.reason):
            action.changed += sum(one.is_changed for one in batch)
            if self._is_stopping.is_set():
                action.error = "The page ended before it was done."
                return


def _change(changes: ManualChanges, verb: str, keys: Iterable[Key], status: str | None, reason: str) -> list[Change]:
    change = changes.retry if verb == "retry" else changes.skip
    return change(keys, status=status, reason=reason)


def _changed(action: Action) -> str:
    return f"{pluralize(action.changed, 'item')} changed"
