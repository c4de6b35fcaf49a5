"""iconik's events: which of them are ours, and what one says."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from system.text import UUID, one_line

MAX_TITLE = 255
SECRET_HEADER = "X-Webhook-Secret"  # noqa: S105 its name


class BadEvent(ValueError):
    """What is wrong with an event of our kinds, as a sentence for its sender."""


@dataclass(frozen=True)
class EventKind:
    """The events that one of our two URLs is for.

    A definition at iconik is for `operations[0]`, and has `query` so that less is sent.
    """

    path: str
    name: str
    operations: tuple[str, ...]
    realm: str
    query: str

    def includes(self, event: Mapping[str, object]) -> bool:
        """Whether an event is of this kind. A field that is not there counts as matching."""
        return (
            event.get("event_type", "assets") == "assets"
            and event.get("operation", self.operations[0]) in self.operations
            and event.get("realm", self.realm) == self.realm
        )


@dataclass(frozen=True)
class Event:
    """One of iconik's events, as much of it as matters here."""

    object_id: str
    data: dict[str, Any]

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> "Event":
        """Read an event.

        :raises BadEvent: it has no asset's id, or no data
        """
        object_id, data = str(body.get("object_id")), body.get("data")
        if not UUID.fullmatch(object_id):
            raise BadEvent("object_id must be a UUID, like 2b45a8ca-f0b4-11e7-a36b-0a580a00054a")
        if not isinstance(data, dict):
            raise BadEvent("data must be an object")
        return cls(object_id.lower(), data)

    @property
    def title(self) -> str | None:
        """The asset's title, as one line."""
        return title_of(self.data)

    @property
    def proxy_status(self) -> str:
        """The status of a proxy.

        :raises BadEvent: it has none that is text
        """
        status = self.data.get("status")
        if not isinstance(status, str):
            raise BadEvent("data.status must be text")
        return status

    @property
    def version_id(self) -> str | None:
        """The version of the asset that a proxy is of; None if the event does not say."""
        return version_of(self.data)


def version_of(proxy: Mapping[str, object]) -> str | None:
    """The version of the asset that a proxy of iconik's is of; None if it does not say."""
    version_id = proxy.get("version_id")
    return version_id.lower() if isinstance(version_id, str) and UUID.fullmatch(version_id) else None


def title_of(asset: Mapping[str, object]) -> str | None:
    """The title of an asset of iconik's, as one line; None if it has none that is text."""
    title = asset.get("title")
    return one_line(title, MAX_TITLE) if isinstance(title, str) else None


CREATE = EventKind("/create", "iconik-listener: new assets", ("create",), "entity", "")
PROXY = EventKind("/proxy", "iconik-listener: proxies", ("update", "create"), "proxies", 'data.status="CLOSED"')
KINDS = (CREATE, PROXY)
