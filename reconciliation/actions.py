"""The definitions of our entries in iconik's menu, its custom actions, as they are and as they should be."""

from dataclasses import dataclass

from events import ACTIONS, CONTEXTS, SECRET_HEADER, MenuAction
from jobs import Json
from system.text import one_line

MAX_URL = 2000
REGISTERED_ACTIONS = "registered_actions"  # the key in items.db's state: where `register --actions` made them point


@dataclass(frozen=True)
class ActionDefinition:
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
        kept = {key: value for key, value in found.headers.items() if key.lower() != SECRET_HEADER.lower()}
        fields = {
            "context": context,
            "title": existing.get("title") or action.title,
            "url": url + action.path,
            "type": "POST",
            "disabled": False,
            "headers": {**kept, SECRET_HEADER: secret},
        }
        return cls(action, context, fields)

    @property
    def id(self) -> str:
        """Its UUID at iconik; empty if it is not there yet."""
        return str(self.fields.get("id") or "")

    @property
    def url(self) -> str:
        """Where iconik sends it, as one line and without a slash at the end."""
        return one_line(str(self.fields.get("url")), MAX_URL).rstrip("/")

    @property
    def base_url(self) -> str:
        """Its URL without the action's path."""
        return self.url.removesuffix(self.action.path)

    @property
    def headers(self) -> dict[str, str]:
        """What iconik sends with it."""
        headers = self.fields.get("headers")
        return {str(key): str(value) for key, value in headers.items()} if isinstance(headers, dict) else {}

    @property
    def secret(self) -> str:
        """The secret among the headers; empty if there is none."""
        return next((value for key, value in self.headers.items() if key.lower() == SECRET_HEADER.lower()), "")

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
            reason = one_line(str(self.fields.get("last_error") or "iconik does not say why"))
            problems.append(f"is FAILING ({reason})")
        return problems


def of_our_actions(found: list[Json]) -> list[ActionDefinition]:
    """Those of iconik's custom actions that lead to our paths."""
    definitions = [ActionDefinition(action, str(one.get("context")), one) for action in ACTIONS for one in found]
    return [one for one in definitions if one.context in CONTEXTS and one.url.endswith(one.action.path)]


def at(url: str, found: list[Json]) -> list[ActionDefinition]:
    """Those of iconik's custom actions that lead to the listener at that URL."""
    return [one for one in of_our_actions(found) if one.base_url == url]
