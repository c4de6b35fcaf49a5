"""iconik's own menu: a person chooses "Analyze again" or "Do not analyze" there, and iconik tells the listener.

The actions do what `retry --again` and `skip` do, by the same code.
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from flask import Response, request

from commands.changes import BATCH_SIZE, Change, ManualChanges
from events import AGAIN, CONTEXTS, SKIP, BadEvent, MenuAction, MenuEvent
from history import add_to_history
from jobs import DEFAULT_JOB
from limits import Limits
from resources import SecretResource, json_object, refuse
from store import Status
from system.database import StoreRefused, StoreUnavailable
from system.server import MAX_BODY
from system.text import named, one_line, pluralize

log = logging.getLogger("iconik_listener")

MAX_NAMED = 5  # collections that the answer names
SKIPPED_HERE = "skipped from iconik's menu"


@dataclass
class Result:
    """What became of the assets that a person chose: their ids.

    :ivar busy: those at which an attempt is under way
    :ivar is_any_under_way: whether iconik may not have finished one of those that were changed
    """

    changed: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    busy: list[str] = field(default_factory=list)
    is_any_under_way: bool = False

    def note(self, changes: Iterable[Change]) -> None:
        """Note what became of items. An asset counts as changed if one of its items was."""
        by_asset: dict[str, bool] = {}
        for change in changes:
            if change.status == Status.SUBMITTING and change.object_id not in self.busy:
                self.busy.append(change.object_id)
            by_asset[change.object_id] = by_asset.get(change.object_id, False) or change.is_changed
            self.is_any_under_way |= change.is_changed and change.status == Status.SUBMITTED
        for object_id, is_changed in by_asset.items():
            (self.changed if is_changed else self.unchanged).append(object_id)


class MenuResource(SecretResource):
    """POST of a custom action. It is answered in plain text, once what was done is on the disk."""

    action: MenuAction

    def post(self) -> Any:
        self.check_secret()
        if not self.services.secrets:
            refuse(403, "No webhook_secret is set in config.ini, so anybody could have jobs billed here")
        if (request.content_length or 0) > MAX_BODY:  # the server has thrown it away
            return _plain(f"{self.action.title}: nothing is done, because too many assets were chosen at once.", 413)
        body = json_object(request.get_data())
        if "context" not in body:  # the event of `check`
            return {"object_id": None, "item": "ignored"}
        if body["context"] not in CONTEXTS:
            return _plain(f"{self.action.title}: nothing is done, because only assets can be chosen.", 200)
        try:
            event = MenuEvent.of(body)
            result = self._change(event)
        except BadEvent as error:
            refuse(400, str(error))
        except (StoreUnavailable, StoreRefused) as error:
            log.error('%s. "%s" of iconik\'s menu was answered 503', error, self.action.title)
            return _plain(f"{self.action.title}: this cannot be stored just now. Try it again later.", 503)
        text = " ".join([f"{self.action.title}:", *self.sentences(result), *_left_out(event)])
        who = f"user {event.user_id}" if event.user_id else "somebody"
        chosen = self._chosen(event)
        log.info("From iconik's menu, by %s, for %s: %s", who, chosen, text)
        if result.changed or result.added:
            add_to_history(self.services.store, f"{who}, in iconik's menu", f"{self.action.title}, for {chosen}")
        self.services.submitter.wake()
        return _plain(text, 200)

    def _chosen(self, event: MenuEvent) -> str:
        if len(event.asset_ids) != 1:
            return pluralize(len(event.asset_ids), "asset")
        [object_id] = event.asset_ids
        found = ManualChanges(self.services.store).find(object_id)
        return named(object_id, found[0].title if found else None)

    def _change(self, event: MenuEvent) -> Result:
        """Change the assets, in batches: webhooks come in between."""
        result = Result()
        for start in range(0, len(event.asset_ids), BATCH_SIZE):
            self.change(event.asset_ids[start : start + BATCH_SIZE], result)
        return result

    def change(self, object_ids: list[str], result: Result) -> None:
        """Change a batch of assets, and note what became of them."""
        raise NotImplementedError

    def sentences(self, result: Result) -> Iterator[str]:
        """What was done, in words for whoever chose it."""
        raise NotImplementedError


class AnalyzeAgain(MenuResource):
    """As `retry --again`; what was never seen is added."""

    action = AGAIN

    def change(self, object_ids: list[str], result: Result) -> None:
        changes = ManualChanges(self.services.store)
        keys = changes.keys_of_all(object_ids)
        seen = changes.seen(object_ids)
        # The entry is called after the analysis. The other jobs are done again where they were done.
        result.note(changes.again([key for key in keys if key[0] in seen], with_skipped=DEFAULT_JOB.name))
        result.added += changes.add((one for one in object_ids if one not in seen), again=True)

    def sentences(self, result: Result) -> Iterator[str]:
        if result.changed:
            yield f"{pluralize(len(result.changed), 'asset')} will be analyzed again."
            if result.is_any_under_way:
                yield "What iconik has not finished yet is left as it is."
        if result.added:
            yield f"{pluralize(len(result.added), 'asset')} that the listener did not know will be analyzed."
        if result.unchanged:
            why = "the analysis is not finished yet, or was started again within the last ten minutes"
            yield f"Nothing is changed for {pluralize(len(result.unchanged), 'asset')}: {why}."
        limit = Limits(self.services.store).now()
        if limit.pause:
            yield "The starting of jobs is paused, so this waits until it goes on."
        elif limit.is_reached:
            yield "The limit of today's jobs is reached, so this waits until 00:00 UTC."


class DoNotAnalyze(MenuResource):
    """As `skip`; what was never seen is added first, so that it is not analyzed when it comes."""

    action = SKIP

    def change(self, object_ids: list[str], result: Result) -> None:
        changes = ManualChanges(self.services.store)
        known = {object_id for object_id, _ in changes.keys_of_all(object_ids)}
        changes.add((one for one in object_ids if one not in known), again=False)
        result.note(changes.skip(changes.keys_of_all(object_ids), reason=SKIPPED_HERE))

    def sentences(self, result: Result) -> Iterator[str]:
        if result.changed:
            yield f"{pluralize(len(result.changed), 'asset')} will not be analyzed."
        if count := len(set(result.unchanged) - set(result.busy)):
            why = "the analysis has been started, or it was skipped before"
            yield f"Nothing is changed for {pluralize(count, 'asset')}: {why}."
        if result.busy:
            verb = "is" if len(result.busy) == 1 else "are"
            busy = pluralize(len(result.busy), "asset")
            yield f"{busy} {verb} being started just now, and may still fail: choose this again in a minute."


def _left_out(event: MenuEvent) -> Iterator[str]:
    if not event.asset_ids:
        yield "No asset was chosen."
    if event.others:
        yield f"{event.others} of the assets' ids cannot be understood."
    if event.collection_ids:
        some = ", ".join(event.collection_ids[:MAX_NAMED])
        more = f" and {len(event.collection_ids) - MAX_NAMED} more" if len(event.collection_ids) > MAX_NAMED else ""
        verb = "is" if len(event.collection_ids) == 1 else "are"
        collections = pluralize(len(event.collection_ids), "collection")
        yield f"{collections} {verb} not followed ({some}{more}): choose the assets in there instead."


def _plain(text: str, status: int) -> Response:
    return Response(one_line(text, 2000) + "\n", status, content_type="text/plain; charset=utf-8")


MENU = ((AnalyzeAgain, AGAIN.path), (DoNotAnalyze, SKIP.path))
