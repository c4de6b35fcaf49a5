"""The calls to iconik that the reconciler and the commands make.

What we know about iconik's API, and from where, is in docs/iconik.md.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from events import CONTEXTS, title_of
from iconik_client import MAX_PAGES, IconikClient, IconikJob, IconikRefused, IconikUnavailable, search_body
from jobs import JOBS, Json
from system.text import UUID, one_line

MAX_IDS = 100  # in one request
ACTIONS = "assets/v1/custom_actions/"


@dataclass(frozen=True)
class FoundAsset:
    """An asset that iconik's search found.

    :ivar created_at: `date_created` as iconik writes it; a client may have chosen it
    :ivar statuses: how far each job is, by its status field, as far as the search shows it
    :ivar duration: seconds
    :ivar imported_at: `date_imported`, which no client can choose; empty if the search does not show it
    """

    object_id: str
    title: str | None
    created_at: str
    media_type: str | None
    duration: float | None
    statuses: dict[str, str]
    imported_at: str = ""

    @classmethod
    def of(cls, fields: Json) -> "FoundAsset":
        """Read one object of a search."""
        milliseconds = fields.get("duration_milliseconds")
        media_type = fields.get("media_type")
        return cls(
            object_id=str(fields.get("id")).lower(),
            title=title_of(fields),
            created_at=one_line(str(fields.get("date_created") or "")),
            media_type=one_line(media_type, 40).lower() if isinstance(media_type, str) and media_type else None,
            duration=milliseconds / 1000 if isinstance(milliseconds, int | float) else None,
            statuses={
                job.status_field: str(fields[job.status_field])
                for job in JOBS.values()
                if isinstance(fields.get(job.status_field), str)
            },
            imported_at=one_line(str(fields.get("date_imported") or "")),
        )


@dataclass(frozen=True)
class Page:
    """One page of a search.

    :ivar read: how many objects iconik sent that had not come before; null is none
    :ivar total: how many it says that there are in all; None if it does not say
    """

    assets: list[FoundAsset]
    read: int
    total: int | None


class IconikCatalog:
    """What iconik has: assets, jobs, webhooks, and who we are to it.

    Every method raises an IconikError if the call did not succeed.
    """

    def __init__(self, client: IconikClient) -> None:
        self._client = client

    @property
    def knows_time(self) -> bool:
        """Whether iconik has said its time."""
        return self._client.knows_time

    def now(self) -> float:
        """iconik's time, in seconds since 1970."""
        return self._client.now()

    def assets(self, since: str, until: str, only: str = "") -> Iterator[Page]:
        """The assets created or imported in that time (UTC, ISO 8601), by `date_created`, in pages.

        Only an empty page ends it, because iconik may leave out what we are not to see. If it leaves out a whole page,
        nothing says where the next one begins: then all are read once more by number. An asset may come twice.

        :param only: a query in iconik's search language that they must match, too
        """
        body = _period(since, until, only)
        led_to: set[str] = set()  # where each page led, as a search that goes round must not be followed
        known: set[str] = set()
        total, read = None, 0
        while True:
            answer = self._client.search(body)
            page = _page(answer, known)
            total, read = page.total if total is None else total, read + page.read
            yield page
            last = next((one for one in reversed(_dicts(answer["objects"])) if one.get("_sort")), {})
            after = last.get("_sort")
            if not after and total is not None and (answer["objects"] or read < total):
                yield from self._by_number(_period(since, until, only), total, known)
            if not answer["objects"] or (not after and not _dicts(answer["objects"])):
                return
            if not isinstance(after, list) or str(after) in led_to:
                raise IconikUnavailable("iconik's search does not lead to its next page", status=200)
            if len(after) < 2:  # only the date: search_after would skip the rest of those of that moment
                yield from self._of_moment(str(last.get("date_created")), only, known)
            led_to.add(str(after))
            body["search_after"] = after

    def _by_number(self, body: Json, total: int, known: set[str]) -> Iterator[Page]:
        """What is not known yet of a search that has so many results, by the numbers of its pages."""
        size = 1  # of the largest page
        for number in range(1, MAX_PAGES):
            try:
                answer = self._client.search(body, page=number)
            except IconikRefused:  # a page after the last one, or after those that iconik numbers
                if number == 1:
                    raise
                return
            page = _page({**answer, "objects": _dicts(answer["objects"])}, known)
            yield Page(page.assets, page.read, None)
            size = max(size, len(answer["objects"]))
            pages = answer.get("pages")
            if number >= (pages if isinstance(pages, int) else total / size):
                return

    def _of_moment(self, date: str, only: str, known: set[str]) -> Iterator[Page]:
        term = {"name": "date_created", "range": {"min": date, "max": date}}
        body = {**search_body(term, SEARCH_FIELDS), **({"query": only} if only else {})}
        for number in range(1, MAX_PAGES):
            try:
                answer = self._client.search(body, page=number)
            except IconikRefused as error:
                if error.status == 404 and number > 1:  # iconik answers 404 to a page after the last one
                    return
                raise
            page = _page({**answer, "objects": _dicts(answer["objects"])}, known)
            yield Page(page.assets, page.read, None)
            if not answer["objects"]:
                return

    def count_assets(self, since: str, until: str, only: str = "") -> int:
        """How many assets were created or imported in that time (UTC, ISO 8601)."""
        total = self._client.search(_period(since, until, only), per_page=1).get("total")
        return total if isinstance(total, int) else 0

    def measures(self, object_ids: Sequence[str]) -> list[FoundAsset]:
        """The assets of up to 100 ids, as far as the search knows them: `media_type` and `duration`."""
        body = search_body({"name": "id", "value_in": list(object_ids)}, ["id", "media_type", "duration_milliseconds"])
        return _page(self._client.search(body), set()).assets

    def jobs(self, job_ids: Sequence[str]) -> list[IconikJob]:
        """The jobs of up to 100 ids, as far as iconik knows them."""
        query = {"ids": ",".join(job_ids), "facets": "false"}
        pages = self._client.pages("jobs/v1/jobs/", "can_read_jobs", query)
        return [IconikJob.of(fields) for page in pages for fields in page]

    def automations(self) -> list[Json]:
        """iconik's own automations: `name`, `status`, `triggers`, `actions`."""
        return self._all("automations/v1/automations/", "can_read_automations")

    def user(self) -> str:
        """Who the credentials belong to: an e-mail address or, failing that, a name or a UUID."""
        user = self._client.call("GET", "users/v1/users/current/", "")
        return one_line(str(user.get("email") or user.get("first_name") or user.get("id")))

    def roles(self) -> set[str]:
        """The roles that the credentials have."""
        roles = self._client.call("GET", "users/v1/users/current/roles/", "").get("objects")
        return {role for role in roles if isinstance(role, str)} if isinstance(roles, list) else set()

    def usage(self) -> Json:
        """iconik's own meters: `images_analyzed`, `video_analyzed_hours`, `transcription_hours` …"""
        return self._client.call("GET", "stats/v1/current_usage/", "can_read_stats")

    def webhooks(self) -> list[Json]:
        """The webhook definitions, as in iconik's WebhookSchema."""
        return self._all("notifications/v1/webhooks/", "can_read_webhooks")

    def webhook(self, webhook_id: str) -> Json:
        """One webhook definition."""
        path = f"notifications/v1/webhooks/{quote(webhook_id, safe='')}/"
        return self._client.call("GET", path, "can_read_webhooks")

    def save_webhook(self, webhook: Json, webhook_id: str | None = None) -> Json:
        """Create a webhook definition, or update the one with that id. Returns it as iconik has it, if it says so."""
        method, path = ("PUT", f"{quote(webhook_id, safe='')}/") if webhook_id else ("POST", "")
        path = f"notifications/v1/webhooks/{path}"
        return self._client.call(method, path, "can_write_webhooks", body=webhook, may_be_empty=True)

    def delete_webhook(self, webhook_id: str) -> None:
        """Delete a webhook definition."""
        path = f"notifications/v1/webhooks/{quote(webhook_id, safe='')}/"
        self._client.call("DELETE", path, "can_delete_webhooks", may_be_empty=True)

    def actions(self) -> list[Json]:
        """The custom actions of iconik's menu for one asset and for several, as in iconik's CustomActionSchema."""
        found = [self._all(f"{ACTIONS}{context}/", "can_read_custom_actions") for context in CONTEXTS]
        return [{"context": context, **action} for context, of_context in zip(CONTEXTS, found) for action in of_context]

    def save_action(self, action: Json, action_id: str | None = None) -> None:
        """Create a custom action, or update the one with that id."""
        method, path = ("PUT", f"{quote(action_id, safe='')}/") if action_id else ("POST", "")
        path = f"{ACTIONS}{action['context']}/{path}"
        self._client.call(method, path, "can_write_custom_actions", body=action, may_be_empty=True)

    def delete_action(self, context: str, action_id: str) -> None:
        """Delete a custom action."""
        path = f"{ACTIONS}{context}/{quote(action_id, safe='')}/"
        self._client.call("DELETE", path, "can_delete_custom_actions", may_be_empty=True)

    def _all(self, path: str, role: str) -> list[Json]:
        found: dict[str, Json] = {}
        for page in self._client.pages(path, role):
            found |= {str(one.get("id")): one for one in page}
        return list(found.values())


SEARCH_FIELDS: list[str] = [
    "id",
    "title",
    "date_created",
    "date_imported",
    "media_type",
    "duration_milliseconds",
    *(job.status_field for job in JOBS.values()),
]


def _page(answer: Json, known: set[str]) -> Page:
    """A page of a search. An object that came before (`known` has its id) is not counted again."""
    objects = answer["objects"]
    found = [FoundAsset.of(one) for one in _dicts(objects)]
    new = {asset.object_id for asset in found} - known
    known |= new
    total = answer.get("total")
    assets = [asset for asset in found if UUID.fullmatch(asset.object_id)]
    return Page(assets, len(new), total if isinstance(total, int) else None)


def _dicts(objects: list[Any]) -> list[Json]:
    return [one for one in objects if isinstance(one, dict)]


def _period(since: str, until: str, only: str) -> Json:
    """The body of a search by date. A client may write `date_created`, so `date_imported` counts as well."""
    bounds = {"min": since, "max": until}
    return {
        "doc_types": ["assets"],
        "filter": {
            "operator": "OR",
            "terms": [{"name": "date_created", "range": bounds}, {"name": "date_imported", "range": bounds}],
        },
        "sort": [{"name": "date_created", "order": "asc"}],
        "include_fields": SEARCH_FIELDS,
        **({"query": only} if only else {}),
    }
