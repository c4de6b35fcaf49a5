"""The calls to iconik of the reconciler and the commands: what a webhook's way to its job does not need.

What is known of iconik's API, and from where, is in docs/iconik.md.
"""

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from urllib.parse import quote

from iconik_client import PAGE_SIZE, IconikClient, IconikUnavailable, Json
from system.text import UUID, one_line, seconds_of, title_of, utc_text


class IconikCatalog:
    """What iconik has: assets, jobs, webhooks, and who we are to it.

    Every method raises an IconikError if the call did not succeed.
    """

    def __init__(self, client: IconikClient) -> None:
        self._client = client

    def assets_created(self, since: str, until: str) -> Iterator[list[Json]]:
        """The assets created in that time (UTC, ISO 8601), oldest first, in pages: `id`, `title`, `date_created`.

        An asset may come twice, on two pages.
        """
        body = _search_body(since, until)
        while page := self._search(body, 1):
            yield page
            if len(page) < PAGE_SIZE:
                return
            after, date = page[-1].get("_sort"), page[-1].get("date_created")
            if not (isinstance(after, list) and after and isinstance(date, str)) or after == body.get("search_after"):
                raise IconikUnavailable("iconik's search does not lead to its next page", status=200)
            if len(after) < 2:  # only the date: search_after would skip the rest of those created at that moment
                yield from _numbered(partial(self._search, _search_body(date, date)))
            body["search_after"] = after

    def count_assets_created(self, since: str, until: str) -> int:
        """How many assets were created in that time (UTC, ISO 8601)."""
        query = {"per_page": "1", **SEARCH_QUERY}
        answer = self._client.call("POST", "search/v1/search/", "can_search", query, _search_body(since, until))
        return answer["total"] if isinstance(answer.get("total"), int) else 0

    def failed_analyze_jobs(self, since: str) -> Iterator[list[Json]]:
        """The ANALYZE jobs that failed since then (UTC, ISO 8601), in pages: `id`, `object_id`, `error_message`, …"""
        query = {"type": "ANALYZE", "status": "FAILED", "object_type": "assets", "date_modified": f"{since};*"}
        query |= {"sort": "date_modified,asc", "per_page": str(PAGE_SIZE), "facets": "false"}
        return _numbered(
            lambda number: self._client.objects("GET", "jobs/v1/jobs/", "can_read_jobs", query | {"page": str(number)})
        )

    def automations(self) -> list[Json]:
        """iconik's own automations: `name`, `status`, `triggers`, `actions`."""
        return self._client.objects("GET", "automations/v1/automations/", "can_read_automations")

    def user(self) -> str:
        """Who the credentials belong to: an e-mail address or, failing that, a name or a UUID."""
        user = self._client.call("GET", "users/v1/users/current/", "")
        return one_line(str(user.get("email") or user.get("first_name") or user.get("id")))

    def roles(self) -> set[str]:
        """The roles that the credentials have."""
        roles = self._client.call("GET", "users/v1/users/current/roles/", "").get("objects")
        return {role for role in roles if isinstance(role, str)} if isinstance(roles, list) else set()

    def analysis_profiles(self) -> list[Json]:
        """The analysis profiles: `id`, `name`, `enabled`, `is_default`."""
        return self._client.objects("GET", "files/v1/analysis/profiles/", "", {"per_page": str(PAGE_SIZE)})

    def webhooks(self) -> list[Json]:
        """The webhook definitions, as in iconik's WebhookSchema."""
        return self._client.objects("GET", "notifications/v1/webhooks/", "can_read_webhooks")

    def save_webhook(self, webhook: Json, webhook_id: str | None = None) -> None:
        """Create a webhook definition, or update the one with that id."""
        method, path = ("PUT", f"{quote(webhook_id, safe='')}/") if webhook_id else ("POST", "")
        path = f"notifications/v1/webhooks/{path}"
        self._client.call(method, path, "can_write_webhooks", body=webhook, may_be_empty=True)

    def delete_webhook(self, webhook_id: str) -> None:
        """Delete a webhook definition."""
        path = f"notifications/v1/webhooks/{quote(webhook_id, safe='')}/"
        self._client.call("DELETE", path, "can_delete_webhooks", may_be_empty=True)

    def _search(self, body: Json, page: int) -> list[Json]:
        query = {"per_page": str(PAGE_SIZE), "page": str(page), **SEARCH_QUERY}
        return self._client.objects("POST", "search/v1/search/", "can_search", query, body)


def _numbered(ask: Callable[[int], list[Json]]) -> Iterator[list[Json]]:
    """The pages that `ask` returns for 1, 2, 3 …, up to the one that is not full."""
    previous: list[Json] = []
    for number in itertools.count(1):
        page = ask(number)
        if page:
            yield page
        if len(page) < PAGE_SIZE:
            return
        if page == previous:  # or it would be asked for ever
            raise IconikUnavailable("iconik answers with the same page again and again", status=200)
        previous = page


def ids_and_titles(page: list[Json]) -> list[tuple[str, str | None]]:
    """The assets of a page of `assets_created`, as Corrections.add_assets takes them."""
    assets = [(str(asset.get("id")).lower(), title_of(asset)) for asset in page]
    return [(object_id, title) for object_id, title in assets if UUID.fullmatch(object_id)]


def created_until(page: list[Json]) -> str | None:
    """When the last asset of a page of `assets_created` was created, as UTC text; None if iconik does not say."""
    seconds = seconds_of(page[-1].get("date_created"))
    return None if seconds is None else utc_text(seconds)


SEARCH_QUERY = {"generate_signed_url": "false", "save_search_history": "false"}


def _search_body(since: str, until: str) -> Json:
    return {
        "doc_types": ["assets"],
        "filter": {"operator": "AND", "terms": [{"name": "date_created", "range": {"min": since, "max": until}}]},
        "sort": [{"name": "date_created", "order": "asc"}],
        "include_fields": ["id", "title", "date_created"],
    }
