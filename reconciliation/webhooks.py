"""The two webhooks that iconik sends: which events they carry, and how they are, and should be, defined at iconik."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from system.text import one_line

Json = dict[str, Any]
MAX_URL = 2000  # of a webhook
SECRET_HEADER = "X-Webhook-Secret"  # noqa: S105 its name
REGISTERED_URL = "registered_url"  # the key in items.db's state under which `register` notes where our webhooks point


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


CREATE = EventKind("/create", "iconik-listener: new assets", ("create",), "entity", "")
PROXY = EventKind("/proxy", "iconik-listener: proxies", ("update", "create"), "proxies", 'data.status="CLOSED"')
KINDS = (CREATE, PROXY)


@dataclass(frozen=True)
class WebhookDefinition:
    """A webhook as iconik's API describes it (WebhookSchema in its OpenAPI document); `fields` may hold anything."""

    kind: EventKind
    fields: Json

    @classmethod
    def desired(cls, kind: EventKind, url: str, secret: str, existing: Json) -> "WebhookDefinition":
        """The definition as it should be at `url`. What a person chose in the `existing` one, {} if none, is kept."""
        found = cls(kind, existing)
        kept = {key: value for key, value in found.headers.items() if key.lower() != SECRET_HEADER.lower()}
        fields = {
            "name": existing.get("name") or kind.name,
            "description": existing.get("description") or "",
            "url": url,
            "event_type": "assets",
            "operation": kind.operations[0],
            "realm": kind.realm,
            "query": found._whole_query if existing and not found._query_problems() else kind.query,
            "status": "ENABLED",
            "headers": {**kept, **({SECRET_HEADER: secret} if secret else {})},
        }
        if existing.get("object_id"):
            fields["object_id"] = None
        return cls(kind, fields)

    def enabled(self) -> Json:
        """The same definition, ENABLED, without what only iconik writes, and without null, which it may not take."""
        kept = ("name", "description", "url", "event_type", "operation", "realm", "object_id", "query", "headers")
        return {**{key: self.fields[key] for key in kept if self.fields.get(key) is not None}, "status": "ENABLED"}

    @property
    def id(self) -> str:
        """Its UUID at iconik; empty if it is not there yet."""
        return str(self.fields.get("id") or "")

    @property
    def url(self) -> str:
        """Where iconik sends the events, as one line and without a slash at the end."""
        return one_line(str(self.fields.get("url")), MAX_URL).rstrip("/")

    @property
    def base_url(self) -> str:
        """Its URL without the kind's path; empty if it does not have that path."""
        try:
            parts = urlsplit(self.url)
        except ValueError:  # somebody else's may be anything
            return ""
        path = parts.path.rstrip("/")
        return parts._replace(path=path.removesuffix(self.kind.path)).geturl() if path.endswith(self.kind.path) else ""

    @property
    def status(self) -> str:
        """ENABLED, FAILING, DISABLED or DELETED."""
        return one_line(str(self.fields.get("status")))

    @property
    def last_error(self) -> str:
        """Why iconik could not deliver."""
        return one_line(str(self.fields.get("last_error") or "iconik does not say why"))

    @property
    def query(self) -> str:
        """Which events iconik sends, as one line; empty for all."""
        return one_line(self._whole_query)

    @property
    def headers(self) -> dict[str, str]:
        """What iconik sends with each event."""
        headers = self.fields.get("headers")
        return {str(key): str(value) for key, value in headers.items()} if isinstance(headers, dict) else {}

    @property
    def secret(self) -> str:
        """The secret among the headers; empty if there is none."""
        return next((value for key, value in self.headers.items() if key.lower() == SECRET_HEADER.lower()), "")

    @property
    def disabled_by_iconik(self) -> bool:
        """Whether iconik disabled it for failing. One that a person disabled has no error."""
        return self.status == "DISABLED" and bool(self.fields.get("first_failed_at") or self.fields.get("last_error"))

    @property
    def lets_all_through(self) -> bool:
        """Whether iconik is meant to send every event of the kind: nobody disabled or filtered it."""
        wanted = self.status in ("ENABLED", "FAILING") or self.disabled_by_iconik
        return wanted and not self.query and not self.fields.get("object_id")

    def problems(self, secrets: tuple[str, ...]) -> list[str]:
        """What keeps events from us, each as half a sentence about this webhook; an empty list if all is well."""
        problems = []
        if self.status != "ENABLED":
            problems.append(f"is {self.status} ({self.last_error})")
        if secrets and self.secret not in secrets:
            problems.append(f"does not send webhook_secret as {SECRET_HEADER}")
        if self.fields.get("object_id"):
            problems.append(f"is for one asset only ({one_line(str(self.fields['object_id']))})")
        return problems + self._query_problems()

    @property
    def _whole_query(self) -> str:
        return str(self.fields.get("query") or "")

    def _query_problems(self) -> list[str]:
        """A query on new assets is a person's choice. One on proxies must let the CLOSED ones through."""
        lets_closed_through = not self.query or self.kind.query in "".join(self._whole_query.split())
        return [] if self.kind is CREATE or lets_closed_through else [f"has a query of its own: {self.query}"]


def of_our_kinds(found: Iterable[Json]) -> list[WebhookDefinition]:
    """Those of iconik's webhook definitions that are for our events and our paths."""
    return [
        WebhookDefinition(kind, fields)
        for kind in KINDS
        for fields in found
        if fields.get("event_type") == "assets"
        and fields.get("operation") in kind.operations
        and fields.get("realm") == kind.realm
        and fields.get("status") != "DELETED"
        and WebhookDefinition(kind, fields).base_url
    ]


def ours(found: Iterable[Json], registered_url: str | None, secrets: tuple[str, ...]) -> list[WebhookDefinition]:
    """This listener's own: those at the URL that `register` noted or, without a note, the only pair with its secret.

    A pair points at one listener. Empty if that cannot be told. Those of another listener, which may have the same
    secret, are never among them.
    """
    candidates = of_our_kinds(found)
    if registered_url:
        return [one for one in candidates if one.url == registered_url.rstrip("/") + one.kind.path]
    pair = [one for one in candidates if one.secret in (secrets or ("",))]
    is_a_pair = [one.kind for one in pair] == list(KINDS) and pair[0].base_url == pair[1].base_url
    return pair if is_a_pair else []
