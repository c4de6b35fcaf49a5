"""iconik's events: which of them are ours, and what one says."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from unicodedata import normalize

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
    """The title of an asset of iconik's, as one line; None if it has none that is text.

    A Mac writes "ü" as two characters, a keyboard as one: here it is one.
    """
    title = asset.get("title")
    return one_line(normalize("NFC", title), MAX_TITLE) if isinstance(title, str) else None


@dataclass(frozen=True)
class MenuAction:
    """An entry of iconik's menu: a custom action, which is a webhook that a person starts for assets."""

    path: str
    title: str


@dataclass(frozen=True)
class MenuEvent:
    """What iconik sends when a person chooses an entry of its menu, as much of it as matters here.

    The person's own `auth_token`, which iconik sends as well, is never read.

    :ivar asset_ids: each once, in lower case
    :ivar collection_ids: as one line each
    :ivar others: how many of the assets' ids were no ids
    :ivar user_id: who it was; None if iconik does not say
    """

    asset_ids: list[str]
    collection_ids: list[str]
    others: int
    user_id: str | None

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> "MenuEvent":
        """Read an event.

        :raises BadEvent: it has no list of assets
        """
        asset_ids, collection_ids, user_id = body.get("asset_ids"), body.get("collection_ids"), body.get("user_id")
        if not isinstance(asset_ids, list):
            raise BadEvent("asset_ids must be a list")
        ids = [one.lower() for one in asset_ids if isinstance(one, str) and UUID.fullmatch(one)]
        return cls(
            asset_ids=list(dict.fromkeys(ids)),
            collection_ids=[one_line(one, 40) for one in collection_ids] if isinstance(collection_ids, list) else [],
            others=len(asset_ids) - len(ids),
            user_id=user_id.lower() if isinstance(user_id, str) and UUID.fullmatch(user_id) else None,
        )


CREATE = EventKind("/create", "iconik-listener: new assets", ("create",), "entity", "")
PROXY = EventKind("/proxy", "iconik-listener: proxies", ("update", "create"), "proxies", 'data.status="CLOSED"')
KINDS = (CREATE, PROXY)
AGAIN = MenuAction("/actions/again", "Analyze again")
SKIP = MenuAction("/actions/skip", "Do not analyze")
ACTIONS = (AGAIN, SKIP)
CONTEXTS = ("ASSET", "BULK")  # where in iconik a person chooses the entry: at one asset, or at several
