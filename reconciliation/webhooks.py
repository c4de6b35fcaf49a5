"""The definitions of our two webhooks at iconik, as they are and as they should be."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from events import CREATE, KINDS, SECRET_HEADER, EventKind
from system.text import one_line

Json = dict[str, Any]
MAX_URL = 2000
REGISTERED_URL = "registered_url"  # the key in items.db's state under which `register` notes where our webhooks point


class Definition:
    """What iconik calls, and how. Webhooks and custom actions have this in common."""

    fields: Json

    @property
    def id(self) -> str:
        """Its UUID at iconik; empty if it is not there yet."""
        return str(self.fields.get("id") or "")

    @property
    def url(self) -> str:
        """What iconik calls, as one line and without a slash at the end."""
        return one_line(str(self.fields.get("url")), MAX_URL).rstrip("/")

    @property
    def headers(self) -> dict[str, str]:
        """What iconik sends with each call."""
        headers = self.fields.get("headers")
        return {str(key): str(value) for key, value in headers.items()} if isinstance(headers, dict) else {}

    @property
    def secret(self) -> str:
        """The secret among the headers; empty if there is none."""
        return next((value for key, value in self.headers.items() if key.lower() == SECRET_HEADER.lower()), "")

    def headers_with(self, secret: str) -> dict[str, str]:
        """The headers with that secret, or without one if it is empty."""
        kept = {key: value for key, value in self.headers.items() if key.lower() != SECRET_HEADER.lower()}
        return {**kept, SECRET_HEADER: secret} if secret else kept

    @property
    def last_error(self) -> str:
        """Why iconik could not deliver."""
        return one_line(str(self.fields.get("last_error") or "iconik does not say why"))


@dataclass(frozen=True)
class WebhookDefinition(Definition):
    """A webhook as iconik's API describes it (WebhookSchema in its OpenAPI document); `fields` may hold anything."""

    kind: EventKind
    fields: Json

    @classmethod
    def desired(cls, kind: EventKind, url: str, secret: str, existing: Json) -> "WebhookDefinition":
        """The definition as it should be at `url`. What a person chose in the `existing` one, {} if none, is kept."""
        found = cls(kind, existing)
        fields = {
            "name": existing.get("name") or kind.name,
            "description": existing.get("description") or "",
            "url": url,
            "event_type": "assets",
            "operation": kind.operations[0] if not existing else existing.get("operation"),
            "realm": kind.realm if not existing else existing.get("realm"),
            "query": found._whole_query if existing and not found._query_problems() else kind.query,
            "status": "ENABLED",
            "headers": found.headers_with(secret),
        }
        if existing.get("object_id"):
            fields["object_id"] = None
        return cls(kind, fields)

    def enabled(self) -> Json:
        """The same definition, ENABLED, without what only iconik writes, and without null, which it may not take."""
        kept = ("name", "description", "url", "event_type", "operation", "realm", "object_id", "query", "headers")
        return {**{key: self.fields[key] for key in kept if self.fields.get(key) is not None}, "status": "ENABLED"}

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
    def query(self) -> str:
        """Which events iconik sends, as one line; empty for all."""
        return one_line(self._whole_query)

    @property
    def signs_of_failing(self) -> tuple[object, ...]:
        """What iconik writes into a definition when it cannot deliver."""
        return tuple(self.fields.get(name) for name in ("first_failed_at", "last_error", "last_payload"))

    @property
    def disabled_by_iconik(self) -> bool:
        """Whether iconik disabled it for failing. One that a person disabled has no error."""
        return self.status == "DISABLED" and bool(self.fields.get("first_failed_at") or self.fields.get("last_error"))

    @property
    def lets_all_through(self) -> bool:
        """Whether iconik is meant to send every event of the kind: nobody disabled or filtered it."""
        wanted = self.status in ("ENABLED", "FAILING") or self.disabled_by_iconik
        return wanted and not self.query and not self.fields.get("object_id")

    def fingerprint(self) -> Json:
        """What tells whether a person had the definition otherwise meanwhile, as JSON.

        FAILING, and disabled by iconik, count as ENABLED, because iconik changes those by itself.
        """
        return {
            "id": self.id,
            "query": self._whole_query,
            "object_id": str(self.fields.get("object_id") or ""),
            "is_enabled": self.status in ("ENABLED", "FAILING") or self.disabled_by_iconik,
            "is_failing": self.status == "FAILING" or self.disabled_by_iconik,
            "date_modified": str(self.fields.get("date_modified") or ""),
            "signs_of_failing": [str(sign or "") for sign in self.signs_of_failing],
        }

    def was_otherwise(self, before: Json) -> bool:
        """Whether a person had the definition otherwise at some time since its fingerprint was `before`.

        1. It has another id, query or object, or was switched on or off.
        2. It was written since, without any sign that it was iconik who wrote that it fails.
        """
        now = self.fingerprint()
        if any(now[key] != before.get(key) for key in ("id", "query", "object_id", "is_enabled")):
            return True
        is_written = now["date_modified"] != before.get("date_modified")
        return is_written and self.status != "FAILING" and not self.failed_since(before)

    def failed_since(self, before: Json) -> bool:
        """Whether there is a sign that iconik could not deliver since the fingerprint was `before`.

        An error that was there before already is none: iconik may leave it there when it has recovered.
        """
        known = before.get("signs_of_failing")
        return bool(before.get("is_failing")) or any(
            sign and (not isinstance(known, list) or sign not in known)
            for sign in self.fingerprint()["signs_of_failing"]
        )

    def problems(self, secrets: tuple[str, ...]) -> list[str]:
        """Reasons why events do not reach us, as predicates such as "is DISABLED (…)"; empty if there are none."""
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
    """Those of iconik's webhook definitions that carry our events to our paths.

    An operation or a realm that is null, or missing, means all of them.
    """
    return [
        WebhookDefinition(kind, fields)
        for kind in KINDS
        for fields in found
        if fields.get("event_type") == "assets"
        and fields.get("operation") in (*kind.operations, None, "")
        and fields.get("realm") in (kind.realm, None, "")
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
        return [webhook for webhook in candidates if webhook.url == registered_url.rstrip("/") + webhook.kind.path]
    pair = [webhook for webhook in candidates if webhook.secret in (secrets or ("",))]
    is_a_pair = [webhook.kind for webhook in pair] == list(KINDS) and pair[0].base_url == pair[1].base_url
    return pair if is_a_pair else []
