"""The definitions of our entries in iconik's menu, its custom actions, as they are and as they should be."""

from dataclasses import dataclass

from events import ACTIONS, CONTEXTS, SECRET_HEADER, MenuAction
from jobs import Json
from reconciliation.webhooks import Definition

REGISTERED_ACTIONS = "registered_actions"  # the key in items.db's state: where `register --actions` made them point


@dataclass(frozen=True)
class ActionDefinition(Definition):
    """A custom action as iconik's API describes it (CustomActionSchema); `fields` may hold anything.

    :ivar context: ASSET or BULK
    """

    action: MenuAction
    context: str
    fields: Json

    @classmethod
    def desired(cls, action: MenuAction, context: str, url: str, secret: str, existing: Json) -> "ActionDefinition":
        """The definition as it should be below `url`. The title of the `existing` one, {} if none, is kept."""
        found = cls(action, context, existing)
        fields = {
            "context": context,
            "title": existing.get("title") or action.title,
            "url": url + action.path,
            "type": "POST",
            "disabled": False,
            "headers": found.headers_with(secret),
        }
        return cls(action, context, fields)

    @property
    def base_url(self) -> str:
        """Its URL without the action's path."""
        return self.url.removesuffix(self.action.path)

    def differs_from(self, existing: Json) -> bool:
        """Whether the existing definition must be written. A field that iconik does not show counts as the same."""
        if ActionDefinition(self.action, self.context, existing).headers != self.headers:
            return True
        return any(existing[key] != value for key, value in self.fields.items() if existing.get(key) is not None)

    def problems(self, secrets: tuple[str, ...]) -> list[str]:
        """What keeps it from us, each as half a sentence about this entry; an empty list if all is well."""
        problems = []
        if self.fields.get("disabled") is True:
            problems.append("is disabled")
        if self.secret not in secrets:
            problems.append(f"does not send webhook_secret as {SECRET_HEADER}")
        if self.fields.get("status") == "FAILING":
            problems.append(f"is FAILING ({self.last_error})")
        return problems


def of_our_actions(found: list[Json]) -> list[ActionDefinition]:
    """Those of iconik's custom actions that lead to our paths."""
    definitions = [ActionDefinition(action, str(one.get("context")), one) for action in ACTIONS for one in found]
    return [one for one in definitions if one.context in CONTEXTS and one.url.endswith(one.action.path)]


def at(url: str, found: list[Json]) -> list[ActionDefinition]:
    """Those of iconik's custom actions that lead to the listener at that URL."""
    return [one for one in of_our_actions(found) if one.base_url == url]
