"""The calls of iconik's API that the stand-in answers. Each returns the body of its answer."""

import json
import re
import uuid
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from jobs import JOBS, Job
from sandbox.query import BadQuery, predicate
from sandbox.state import Json, Refusal, milliseconds, one_of

if TYPE_CHECKING:
    from sandbox.state import Sandbox

Handler = Callable[..., Json | None]
WEBHOOKS = "/API/notifications/v1/webhooks/"
ACTIONS = "/API/assets/v1/custom_actions/<context>/"
MAX_JOBS_PER_PAGE = 100
ROUTES: list[tuple[str, re.Pattern[str], str, int, Handler]] = []  # method, path, role, status of success, handler
SEARCH_SORT = [{"name": "date_created", "order": "asc"}]


def route(method: str, path: str, role: str = "", status: int = 200) -> Callable[[Handler], Handler]:
    """Make a function answer a call. `<name>` in the path is passed as that keyword argument."""
    pattern = re.compile(re.sub(r"<(\w+)>", r"(?P<\1>[^/]+)", path))

    def add(handler: Handler) -> Handler:
        ROUTES.append((method, pattern, role, status, handler))
        return handler

    return add


def answer(
    sandbox: "Sandbox", method: str, url: str, credentials: tuple[str | None, str | None], body: bytes
) -> tuple[int, Json | None]:
    """Do what a request asks for. Returns the status and the body of the answer; None for no body."""
    if credentials != (sandbox.app_id, sandbox.auth_token):
        return 401, {"errors": ["Token is invalid"]}
    sandbox.show_due()
    path, query = urlsplit(url).path, dict(parse_qsl(urlsplit(url).query))
    for route_method, pattern, role, status, handler in ROUTES:
        match = pattern.fullmatch(path) if route_method == method else None
        if match and role and role not in sandbox.roles:
            return 403, {"errors": [f"Required roles: {role}"]}
        if match:
            try:
                return status, handler(sandbox, query, json.loads(body or b"{}"), **match.groupdict())
            except Refusal as refusal:
                return refusal.status, {"errors": [str(refusal)]}
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                return 400, {"errors": [f"The stand-in does not understand this call: {error!r}"]}
    return 404, {"errors": ["Not found"]}


# Jobs.


def start(
    sandbox: "Sandbox", query: Json, body: Json, job: Job, asset_id: str, version_id: str = "", profile_id: str = ""
) -> Json | None:
    """Start a job, if iconik would."""
    asset = sandbox.asset(asset_id)
    if sandbox.refuse_jobs:
        raise Refusal(*sandbox.refuse_jobs)
    if job.name in sandbox.not_enabled:
        raise Refusal(403, f"{job.feature.capitalize()} is not enabled for this system domain")
    if job.needs_version and version_id not in [version["id"] for version in asset["versions"]]:
        raise Refusal(404, "Version does not exist")
    options = query if job.takes_query else body
    media_type = sandbox.media[asset_id][0]
    if not job.serves(media_type) or not _has_profile(sandbox, job, media_type, profile_id):
        raise Refusal(400, f"No {job.feature} profile is for {media_type}")
    if "{profile}" in job.path:
        sandbox.used_profiles[asset_id] = profile_id
    if str(options.get("force")).lower() == "true":
        sandbox.forced.append(asset_id)
    job_id = sandbox.start_job(asset_id, job.name)
    if job.is_answered_without_id:
        return None
    details = {name: value for name, value in sandbox.job_details[job_id].items() if name != "id"}
    return {**details, **dict.fromkeys(sandbox.job_id_names, job_id)}


def _has_profile(sandbox: "Sandbox", job: Job, media_type: str, profile_id: str) -> bool:
    wanted = job.profile_types[media_type]
    profiles = [one for one in sandbox.profiles if one.get("media_type", wanted) == wanted]
    if profile_id == "default":
        profiles = [one for one in profiles if one.get("is_default", True)]
    elif profile_id:
        if profile_id not in [one["id"] for one in sandbox.profiles]:
            raise Refusal(400, "No such analysis profile")
        profiles = [one for one in profiles if one["id"] == profile_id]
    return any(one.get("enabled", True) for one in profiles)


def _route_jobs() -> None:
    """The calls that start a job, each with the profiles that its path can name."""
    for job in JOBS.values():
        for profile in ("", "profiles/<profile_id>/") if "{profile}" in job.path else ("",):
            path = f"/API/{job.path}".format(asset="<asset_id>", version="<version_id>", profile=profile)
            handler = partial(start, job=job)
            route("POST", path, job.role, status=202 if job.is_answered_without_id else 201)(handler)


_route_jobs()


@route("GET", "/API/jobs/v1/jobs/", "can_read_jobs")
def list_jobs(sandbox: "Sandbox", query: Json, body: Json) -> Json:
    if int(query.get("per_page", 10)) > MAX_JOBS_PER_PAGE:
        raise Refusal(400, f"per_page: at most {MAX_JOBS_PER_PAGE}")
    wanted = {name: value for name, value in query.items() if name not in ("page", "per_page", "facets")}
    return _page(_find_jobs(sandbox, **wanted), query)


def _find_jobs(
    sandbox: "Sandbox", sort: str = "", date_modified: str = "*", date_created: str = "*", ids: str = "", **fields: str
) -> list[Json]:
    """The jobs with these fields. One date means since then, two with a `;` between them a range."""
    shown = sandbox.clock() - sandbox.read_lag
    found = [
        {name: value for name, value in job.items() if name != "kind"}
        for job in _candidates(sandbox, ids)
        if all(job[name] == fields[name] for name in fields)
        and milliseconds(job["date_created"]) <= shown * 1000
        and _is_within(job["date_modified"], date_modified)
        and _is_within(job["date_created"], date_created)
    ]
    for name, _, order in reversed([part.partition(",") for part in sort.split(";") if part]):
        found.sort(key=itemgetter(name), reverse=order == "desc")
    return found


def _candidates(sandbox: "Sandbox", ids: str) -> list[Json]:
    if ids:
        return [sandbox.job_details[one] for one in ids.split(",") if one in sandbox.job_details]
    return list(sandbox.job_details.values())


def _is_within(time: str, bounds: str) -> bool:
    since, _, until = bounds.partition(";")
    first = milliseconds(since) if since != "*" else float("-inf")
    last = milliseconds(until) if until not in ("", "*") else float("inf")
    return first <= milliseconds(time) <= last


# Assets.


@route("GET", "/API/assets/v1/assets/<asset_id>/", "can_read_assets")
def read_asset(sandbox: "Sandbox", query: Json, body: Json, asset_id: str) -> Json:
    return sandbox.asset(asset_id)


@route("GET", "/API/files/v1/assets/<asset_id>/proxies/", "can_read_proxies")
def list_proxies(sandbox: "Sandbox", query: Json, body: Json, asset_id: str) -> Json:
    proxies = sandbox.proxies.get(asset_id)
    if not proxies:
        raise Refusal(404, "Proxies for this asset doesn't exist")
    start = [proxy["id"] for proxy in proxies].index(query["last_id"]) + 1 if "last_id" in query else 0
    return {"objects": proxies[start : start + int(query.get("per_page", 10))]}


@route("POST", "/API/search/v1/search/", "can_search")
def search(sandbox: "Sandbox", query: Json, body: Json) -> Json:
    """The assets that a filter and a query find, by date and id; a time is cut to milliseconds."""
    if body.get("sort", SEARCH_SORT) != SEARCH_SORT:
        raise Refusal(400, "The stand-in sorts by date_created only")
    after = tuple(body.get("search_after", ()))
    is_first_page = not after and query.get("page", "1") == "1"
    wanted = {name: body.get(name) for name in ("filter", "query")}
    name = "search " + json.dumps(wanted, sort_keys=True)
    version = len(sandbox.assets), sandbox.job_changes
    if is_first_page or sandbox.results.get(name, (None, []))[0] != version:
        sandbox.results = {name: (version, _find_assets(sandbox, wanted))}
    order = sandbox.results[name][1]
    first = bisect_right(order, after, key=lambda key: key[: len(after)]) if after else 0
    page = _page(range(first, max(first, len(order))), query)
    page["objects"] = [_document(sandbox, order[index], body.get("include_fields")) for index in page["objects"]]
    return {**page, "total": len(order)}


def _find_assets(sandbox: "Sandbox", wanted: Json) -> list[tuple[int, str]]:
    try:
        matches = predicate(wanted["query"]) if wanted["query"] else None
    except BadQuery as error:
        raise Refusal(400, str(error)) from None
    ids = _ids(wanted["filter"])
    assets = [sandbox.assets[one] for one in ids if one in sandbox.assets] if ids is not None else None
    shown = (sandbox.clock() - sandbox.index_lag) * 1000
    return sorted(
        (milliseconds(asset["date_created"]), asset["id"])
        for asset in (assets if assets is not None else list(sandbox.assets.values()))
        if (not sandbox.index_lag or milliseconds(asset["date_imported"]) <= shown)
        and _passes(asset, wanted["filter"])
        and (matches is None or matches(_search_fields(sandbox, asset)))
    )


def _ids(criteria: Json | None) -> list[str] | None:
    """The ids that a filter asks for, if it asks for ids only."""
    terms = (criteria or {}).get("terms") or []
    return list(terms[0]["value_in"]) if len(terms) == 1 and terms[0]["name"] == "id" else None


def _passes(asset: Json, criteria: Json | None) -> bool:
    if not criteria:
        return True
    results = [_passes(asset, part) for part in criteria.get("filters") or []]
    results += [_passes_term(asset, term) for term in criteria.get("terms") or []]
    return any(results) if criteria.get("operator") == "OR" else all(results)


def _passes_term(asset: Json, term: Json) -> bool:
    if "value_in" in term:
        return asset.get(term["name"]) in term["value_in"]
    bounds, value = term["range"], asset.get(term["name"])
    if value is None:
        return False
    time = milliseconds(value)
    return ("min" not in bounds or time >= milliseconds(bounds["min"])) and (
        "max" not in bounds or time <= milliseconds(bounds["max"])
    )


def _search_fields(sandbox: "Sandbox", asset: Json) -> Json:
    media_type, duration = sandbox.media[asset["id"]]
    return {**asset, "media_type": media_type, "duration_milliseconds": duration}


def _document(sandbox: "Sandbox", key: tuple[int, str], fields: list[str] | None) -> Json:
    """An asset as a search finds it."""
    keys = dict(zip(("date_created", "id"), key))
    found = _search_fields(sandbox, sandbox.assets[key[1]])
    document = {name: value for name, value in found.items() if not fields or name in fields}
    return {**document, "_sort": [keys[name] for name in sandbox.sort_keys]}


# Lists, users, webhooks and actions.


@route("GET", "/API/automations/v1/automations/", "can_read_automations")
def list_automations(sandbox: "Sandbox", query: Json, body: Json) -> Json:
    return _listed(sandbox, sandbox.automations, query)


@route("GET", "/API/files/v1/analysis/profiles/")
def list_profiles(sandbox: "Sandbox", query: Json, body: Json) -> Json:
    ids = [one["id"] for one in sandbox.profiles]
    start = ids.index(query["last_id"]) + 1 if query.get("last_id") in ids else 0
    return {"objects": sandbox.profiles[start : start + min(int(query.get("per_page", 10)), sandbox.list_page_size)]}


@route("GET", "/API/users/v1/users/current/")
def read_user(sandbox: "Sandbox", query: Json, body: Json) -> Json:
    return {"id": str(uuid.UUID(int=1)), "email": "listener@example.com", "first_name": "Listener"}


@route("GET", "/API/users/v1/users/current/roles/")
def list_roles(sandbox: "Sandbox", query: Json, body: Json) -> Json:
    return {"objects": sorted(sandbox.roles)}


@route("GET", "/API/stats/v1/current_usage/", "can_read_stats")
def read_usage(sandbox: "Sandbox", query: Json, body: Json) -> Json:
    meters = {meter: 0.0 for job in JOBS.values() for meter in job.meters.values()}
    for kind, asset_id in sandbox.started:
        media_type, duration = sandbox.media[asset_id]
        if meter := JOBS[kind].meters.get(media_type):
            meters[meter] += 1 if media_type == "image" else duration / 3_600_000
    return meters


@route("GET", WEBHOOKS, "can_read_webhooks")
def list_webhooks(sandbox: "Sandbox", query: Json, body: Json) -> Json:
    return _listed(sandbox, list(sandbox.webhooks.values()), query)


@route("POST", WEBHOOKS, "can_write_webhooks", status=201)
def create_webhook(sandbox: "Sandbox", query: Json, body: Json) -> Json:
    return sandbox.save_webhook(body)


@route("GET", f"{WEBHOOKS}<webhook_id>/", "can_read_webhooks")
def read_webhook(sandbox: "Sandbox", query: Json, body: Json, webhook_id: str) -> Json:
    return one_of(sandbox.webhooks, "Webhook", webhook_id)


@route("PUT", f"{WEBHOOKS}<webhook_id>/", "can_write_webhooks")
def update_webhook(sandbox: "Sandbox", query: Json, body: Json, webhook_id: str) -> Json:
    return sandbox.save_webhook(body, one_of(sandbox.webhooks, "Webhook", webhook_id))


@route("DELETE", f"{WEBHOOKS}<webhook_id>/", "can_delete_webhooks", status=204)
def delete_webhook(sandbox: "Sandbox", query: Json, body: Json, webhook_id: str) -> None:
    sandbox.webhooks.pop(one_of(sandbox.webhooks, "Webhook", webhook_id)["id"])


@route("GET", ACTIONS, "can_read_custom_actions")
def list_actions(sandbox: "Sandbox", query: Json, body: Json, context: str) -> Json:
    return _listed(sandbox, [one for one in sandbox.custom_actions.values() if one["context"] == context], query)


@route("POST", ACTIONS, "can_write_custom_actions", status=201)
def create_action(sandbox: "Sandbox", query: Json, body: Json, context: str) -> Json:
    if missing := [name for name in ("context", "title", "url") if not body.get(name)]:
        raise Refusal(400, f"Missing data for required field: {', '.join(missing)}")
    action = {"id": str(uuid.uuid4()), **body, "context": context}
    sandbox.custom_actions[action["id"]] = action
    return action


@route("PUT", f"{ACTIONS}<action_id>/", "can_write_custom_actions")
def update_action(sandbox: "Sandbox", query: Json, body: Json, context: str, action_id: str) -> Json:
    one_of(sandbox.custom_actions, "Custom action", action_id).update(body)
    return sandbox.custom_actions[action_id]


@route("DELETE", f"{ACTIONS}<action_id>/", "can_delete_custom_actions", status=204)
def delete_action(sandbox: "Sandbox", query: Json, body: Json, context: str, action_id: str) -> None:
    sandbox.custom_actions.pop(one_of(sandbox.custom_actions, "Custom action", action_id)["id"])


def _listed(sandbox: "Sandbox", objects: list[Json], query: Json) -> Json:
    size = min(int(query.get("per_page", 10)), sandbox.list_page_size)
    return _page(objects, {**query, "per_page": size})


def _page(found: Sequence[Any], query: Json) -> Json:
    size, number = int(query.get("per_page", 10)), int(query.get("page", 1))
    pages = -(-len(found) // size)
    if number > max(pages, 1):
        raise Refusal(404, "Requested page does not exist")
    objects = list(found[(number - 1) * size : number * size])
    return {"objects": objects, "page": number, "pages": pages, "per_page": size, "total": len(found)}


ROLES = {role for _, _, role, _, _ in ROUTES if role} | {"can_read_acls"}
