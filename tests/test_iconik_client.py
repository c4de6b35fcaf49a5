import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path

import pytest

from config import Config
from faulty_iconik import Fault, FaultyIconik
from iconik_client import (
    PAGE_SIZE,
    IconikClient,
    IconikDenied,
    IconikError,
    IconikForbidden,
    IconikRateLimited,
    IconikRefused,
    IconikServerError,
    IconikUnavailable,
)
from jobs import ANALYZE, FACES, TRANSCRIBE, Job
from support import ASSET, OTHER_ASSET, Clock, ManualRuntime, wait_until
from system.errors import ListenerError
from version import __version__

PROFILE = "d0d0d0d0-0000-11e7-a36b-0a580a00054a"
HTML = b"<html><body>Bad <b>Gateway</b></body></html>"
WHY_NOT = b'{"errors": ["Why not"]}'
NOT_AN_OBJECT = [HTML, b"", b"null", b"[1]", b'"text"', b"5", b'{"id": "cu', b"\xff\xfe", b"[" * 100_000]
Configs = Callable[..., Config]


@contextmanager
def answering(*parts: bytes, body: bytes | None = b"{}") -> Iterator[tuple[str, list[bytes]]]:
    """A server that answers one request with these bytes and closes. Gives its URL, and a list for the request."""
    requests: list[bytes] = []

    def serve() -> None:
        with server, server.accept()[0] as connection:
            connection.settimeout(5)
            request = b""
            while not request.endswith(body if body and request.startswith(b"POST") else b"\r\n\r\n"):
                request += connection.recv(65536)
            requests.append(request)
            for part in parts:
                connection.sendall(part)

    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(5)
    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.getsockname()[1]}", requests
    thread.join()


def start(client: IconikClient, asset_id: str = ASSET) -> str | None:
    """Start the job that most of these tests start."""
    return client.start(ANALYZE, {"id": asset_id})


def starter(client: IconikClient) -> Callable[[str], str | None]:
    return lambda asset_id: start(client, asset_id)


def failure(call: Callable[[str], object]) -> IconikError:
    """What a call about an asset fails with: one line."""
    with pytest.raises(IconikError) as caught:
        call(ASSET)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(caught.value.summary)
    return caught.value


# The requests


@pytest.mark.parametrize(
    ("job", "profile", "options", "path"),
    [
        (ANALYZE, "", {}, f"transcode/v1/analyze/assets/{ASSET}/"),
        (ANALYZE, "profiles/default/", {}, f"transcode/v1/analyze/assets/{ASSET}/profiles/default/"),
        (ANALYZE, f"profiles/{PROFILE}/", {"force": True}, f"transcode/v1/analyze/assets/{ASSET}/profiles/{PROFILE}/"),
        (TRANSCRIBE, "", {"language": "de"}, f"transcode/v1/transcribe/assets/{ASSET}/profiles/default/"),
        (FACES, "", {"force": True}, f"ml/v1/face_recognition/extract/assets/{ASSET}/versions/v2/?force=true"),
    ],
    ids=["analyze", "default", "profile", "transcribe", "faces"],
)
def test_each_job_is_started_by_one_post_of_its_own(
    configs: Configs, job: Job, profile: str, options: dict[str, object], path: str
) -> None:
    versions = [{"id": "v1", "version_number": 1}, {"id": "v2", "version_number": 2}]
    body = json.dumps({} if job is FACES else options).encode()
    with answering(b'HTTP/1.1 201 Created\r\n\r\n{"job_id": "j"}', body=None if job is FACES else body) as (
        url,
        requests,
    ):
        client = IconikClient(configs(iconik__url=url).iconik)
        assert client.start(job, {"id": ASSET, "versions": versions}, options=options, profile=profile) == "j"
    head, _, sent = requests[0].partition(b"\r\n\r\n")
    assert head.decode().split("\r\n")[0] == f"POST /API/{path} HTTP/1.1"
    assert sent == (b"" if job is FACES else body)


def test_a_job_for_a_version_takes_the_one_that_is_given(sandbox: FaultyIconik, client: IconikClient) -> None:
    sandbox.faults.append(Fault(status=202, body=b""))
    assert client.start(FACES, {"id": ASSET}, version_id="v/1") is None
    assert sandbox.requests == [f"POST /API/ml/v1/face_recognition/extract/assets/{ASSET}/versions/v%2F1/"]


def test_without_a_version_nothing_is_sent(sandbox: FaultyIconik, client: IconikClient) -> None:
    error = failure(lambda asset_id: client.start(FACES, {"id": asset_id, "versions": []}))
    assert str(error) == "iconik shows no version of the asset that is ACTIVE"
    assert not error.may_have_been_done
    assert sandbox.requests == []


def test_every_request_carries_the_four_headers_of_iconik_and_says_who_asks(
    configs: Configs, sandbox: FaultyIconik
) -> None:
    calls: list[tuple[Callable[[IconikClient], object], bytes]] = [
        (lambda client: start(client), b'HTTP/1.1 201 Created\r\n\r\n{"id": "j"}'),
        (lambda client: client.asset(ASSET), b'HTTP/1.1 200 OK\r\n\r\n{"id": "%s"}' % ASSET.encode()),
        (lambda client: client.closed_proxy(ASSET), b'HTTP/1.1 200 OK\r\n\r\n{"objects": []}'),
    ]
    for call, answer in calls:
        with answering(answer) as (url, requests):
            call(IconikClient(configs(iconik__url=url).iconik))
        head, _, body = requests[0].decode().partition("\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:])
        assert headers["App-ID"] == sandbox.app_id
        assert headers["Auth-Token"] == sandbox.auth_token
        assert headers["Accept"] == headers["Content-Type"] == "application/json"
        assert headers["User-Agent"] == f"iconik-listener/{__version__}"
        assert body == ("{}" if head.startswith("POST") else "")


@pytest.mark.parametrize("asset_id", ["../../users/v1", "a/b", "a?b", "a#b", "%2e"])
def test_an_id_cannot_leave_its_place_in_the_path(sandbox: FaultyIconik, client: IconikClient, asset_id: str) -> None:
    for call in (starter(client), client.asset, client.closed_proxy):
        try:
            call(asset_id)
        except IconikRefused as error:
            assert error.status == 404
    paths = [request.split("?")[0] for request in sandbox.requests]
    assert [path.count("/") for path in paths] == [7, 6, 7]
    assert paths[0].startswith("POST /API/transcode/v1/analyze/assets/")


def test_no_credentials_but_iconiks_are_sent(configs: Configs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("default login somebody password netrc-password\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with answering(b'HTTP/1.1 201 Created\r\n\r\n{"id": "j"}') as (url, requests):
        assert start(IconikClient(configs(iconik__url=url).iconik)) == "j"
    assert b"authorization" not in requests[0].lower()


# An asset


def test_an_asset_is_read(sandbox: FaultyIconik, client: IconikClient) -> None:
    sandbox.create_asset("a.mov", ASSET, type="SUBCLIP")
    asset = client.asset(ASSET)
    shown = [asset[key] for key in ("id", "title", "type", "status", "analyze_status")]
    assert shown == [ASSET, "a.mov", "SUBCLIP", "ACTIVE", "N/A"]
    assert sandbox.requests == [f"GET /API/assets/v1/assets/{ASSET}/"]
    start(client)
    assert client.asset(ASSET)["analyze_status"] == "REQUESTED"


def test_an_asset_whose_id_is_in_capitals_is_the_same(sandbox: FaultyIconik, client: IconikClient) -> None:
    sandbox.faults.append(Fault(status=200, body=f'{{"id": "{ASSET.upper()}"}}'.encode()))
    assert client.asset(ASSET)["id"] == ASSET.upper()


@pytest.mark.parametrize(
    "body", [b"{}", b'{"id": null}', b'{"id": "%s", "analyze_status": "N/A"}' % OTHER_ASSET.encode(), WHY_NOT]
)
def test_an_answer_that_is_not_the_asset_says_nothing_about_it(
    sandbox: FaultyIconik, client: IconikClient, body: bytes
) -> None:
    sandbox.faults.append(Fault(status=200, body=body))
    error = failure(client.asset)
    assert type(error) is IconikUnavailable
    assert (str(error), error.status) == ("iconik answered 200 without the asset", 200)


# Proxies


def test_a_closed_proxy_is_found_among_others(sandbox: FaultyIconik, client: IconikClient) -> None:
    assert not client.closed_proxy(ASSET)  # iconik: 404
    for status in ("OPEN", "GROWING", "AWAITED", "FAILED", "ARCHIVED", "MISSING", "REDISCOVERED", "DELETED", "closed"):
        sandbox.set_proxy(ASSET, status)
    assert not client.closed_proxy(ASSET)
    sandbox.set_proxy(ASSET, "CLOSED")
    sandbox.set_proxy(ASSET, "OPEN")
    assert client.closed_proxy(ASSET)


@pytest.mark.parametrize("before", [PAGE_SIZE - 1, PAGE_SIZE, 2 * PAGE_SIZE + 1])
def test_a_closed_proxy_is_found_on_a_later_page(sandbox: FaultyIconik, client: IconikClient, before: int) -> None:
    for _ in range(before):
        sandbox.set_proxy(ASSET, "DELETED")
    assert not client.closed_proxy(ASSET)
    pages = before // PAGE_SIZE + 1
    path = f"GET /API/files/v1/assets/{ASSET}/proxies/?per_page={PAGE_SIZE}&generate_signed_url=false"
    last_ids = [proxy["id"] for proxy in sandbox.proxies[ASSET][PAGE_SIZE - 1 :: PAGE_SIZE]]
    assert sandbox.requests == [path, *(f"{path}&last_id={last_id}" for last_id in last_ids)]
    assert len(sandbox.requests) == pages
    sandbox.set_proxy(ASSET, "CLOSED")
    assert client.closed_proxy(ASSET)


def test_a_closed_proxy_on_the_first_page_costs_one_request(sandbox: FaultyIconik, client: IconikClient) -> None:
    for _ in range(PAGE_SIZE + 1):
        sandbox.set_proxy(ASSET, "CLOSED")
    assert client.closed_proxy(ASSET)
    assert len(sandbox.requests) == 1


def test_a_server_that_ignores_last_id_is_not_asked_for_ever(sandbox: FaultyIconik, client: IconikClient) -> None:
    page = b'{"objects": [%s]}' % b",".join([b'{"id": "x", "status": "OPEN"}'] * PAGE_SIZE)
    sandbox.faults.append(Fault(status=200, body=page, times=5))
    assert not client.closed_proxy(ASSET)
    assert len(sandbox.requests) == 2


@pytest.mark.parametrize("body", [b"{}", b'{"objects": null}', b'{"objects": {"status": "CLOSED"}}', WHY_NOT])
def test_an_answer_without_the_list_is_not_an_empty_list(
    sandbox: FaultyIconik, client: IconikClient, body: bytes
) -> None:
    sandbox.faults.append(Fault(status=200, body=body))
    error = failure(client.closed_proxy)
    assert type(error) is IconikUnavailable
    assert (str(error), error.status) == ("iconik answered 200 without the list", 200)


def test_what_is_not_an_object_in_a_list_is_read_over(sandbox: FaultyIconik, client: IconikClient) -> None:
    sandbox.faults.append(Fault(status=200, body=b'{"objects": ["x", 1, null, {}, {"status": "CLOSED"}]}'))
    assert client.closed_proxy(ASSET)
    sandbox.faults.append(Fault(status=200, body=b'{"objects": ["x", 1, null, {}]}'))
    assert not client.closed_proxy(ASSET)


def test_only_iconiks_own_404_says_that_there_are_no_proxies(sandbox: FaultyIconik, client: IconikClient) -> None:
    sandbox.faults.append(Fault(status=404, body=HTML))
    assert type(failure(client.closed_proxy)) is IconikUnavailable
    sandbox.faults.append(Fault(status=400, body=WHY_NOT))
    assert type(failure(client.closed_proxy)) is IconikRefused


def test_what_is_closed_is_given_with_its_version(sandbox: FaultyIconik, client: IconikClient) -> None:
    body = b'{"objects": [{"id": "p", "status": "OPEN"}, {"id": "q", "status": "CLOSED", "version_id": "v"}]}'
    sandbox.faults.append(Fault(status=200, body=body))
    assert client.closed_proxy(ASSET) == {"id": "q", "status": "CLOSED", "version_id": "v"}


# Lists in pages


def read_pages(client: IconikClient) -> list[list[str]]:
    return [[str(one["id"]) for one in page] for page in client.pages("jobs/v1/jobs/", "can_read_jobs", {"type": "X"})]


def page_of(*ids: str, **fields: object) -> Fault:
    return Fault(status=200, body=json.dumps({"objects": [{"id": one} for one in ids], **fields}).encode())


@pytest.mark.parametrize(
    ("faults", "expected"),
    [
        ([page_of("a", "b", pages=2), page_of("c", pages=2)], [["a", "b"], ["c"]]),
        ([page_of("a", "b"), page_of("c"), page_of()], [["a", "b"], ["c"]]),
        ([page_of("a"), Fault(status=404, body=WHY_NOT)], [["a"]]),
        ([page_of("a", pages=None), page_of("a", pages=None)], [["a"]]),  # a server that ignores the number
        ([page_of(pages=5)], []),
    ],
    ids=["iconik's pages", "an empty page", "a 404", "the same again", "nothing"],
)
def test_a_list_is_read_to_its_end(
    sandbox: FaultyIconik, client: IconikClient, faults: list[Fault], expected: list[list[str]]
) -> None:
    sandbox.faults += [replace(fault) for fault in faults]
    assert read_pages(client) == expected
    path = f"GET /API/jobs/v1/jobs/?type=X&per_page={PAGE_SIZE}&page="
    assert sandbox.requests == [f"{path}{number + 1}" for number in range(len(faults))]


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault(status=404, body=HTML), IconikUnavailable),
        (Fault(status=500), IconikServerError),
        (Fault(status=200, body=b"{}"), IconikUnavailable),
    ],
    ids=["a gateway's 404", "500", "no list"],
)
def test_a_page_that_cannot_be_read_is_not_the_last(
    sandbox: FaultyIconik, client: IconikClient, fault: Fault, kind: type[IconikError]
) -> None:
    sandbox.faults += [page_of("a"), replace(fault)]
    assert type(failure(lambda _: read_pages(client))) is kind


def test_a_404_to_the_first_page_is_iconiks_refusal(sandbox: FaultyIconik, client: IconikClient) -> None:
    sandbox.faults.append(Fault(status=404, body=WHY_NOT))
    assert type(failure(lambda _: read_pages(client))) is IconikRefused


# Jobs, and what the search says


def test_the_jobs_of_an_asset_are_those_of_its_kind_since_then(
    sandbox: FaultyIconik, client: IconikClient, clock: Clock
) -> None:
    sandbox.clock = clock
    for asset_id in (ASSET, OTHER_ASSET):
        sandbox.create_asset("a.mov", asset_id, send=False)
        start(client, asset_id)
    [job] = client.jobs_of(ASSET, ANALYZE, clock.now - 300)
    assert (job.id, job.object_id) == (sandbox.latest_job[ASSET], ASSET)
    assert job.created_at == pytest.approx(clock.now, abs=1)
    assert client.jobs_of(ASSET, TRANSCRIBE, clock.now - 300) == []
    assert client.jobs_of(ASSET, ANALYZE, clock.now + 300) == []


def test_a_job_of_another_asset_or_without_an_id_is_none_of_its(sandbox: FaultyIconik, client: IconikClient) -> None:
    """Even if iconik does not know the filter."""
    jobs = [
        {"id": "j1", "object_id": OTHER_ASSET},
        {"object_id": ASSET},
        {"id": "j3", "object_id": ASSET.upper(), "status": "FAILED", "error_message": "no\nframes"},
    ]
    sandbox.faults.append(Fault(status=200, body=json.dumps({"objects": jobs, "pages": 1}).encode()))
    [job] = client.jobs_of(ASSET, ANALYZE, 0)
    assert (job.id, job.status, job.message, job.created_at) == ("j3", "FAILED", "no frames", None)


def test_the_search_shows_an_asset_or_nothing(sandbox: FaultyIconik, client: IconikClient) -> None:
    sandbox.create_asset("a.mov", ASSET, send=False, media_type="video")
    found = client.document(ASSET)
    assert found is not None
    assert (found["id"], found["media_type"]) == (ASSET, "video")
    assert client.document(OTHER_ASSET) is None
    other = {"objects": [{"id": OTHER_ASSET, "media_type": "audio"}, "x"]}
    sandbox.faults.append(Fault(status=200, body=json.dumps(other).encode()))
    assert client.document(ASSET) is None  # a search that ignores the filter


def test_iconik_evaluates_the_query_for_just_that_asset(configs: Configs) -> None:
    answer = b'HTTP/1.1 200 OK\r\n\r\n{"objects": []}'
    body = (
        b'{"doc_types": ["assets"], "filter": {"operator": "AND", "terms": [{"name": "id", "value_in": ["%s"]}]}, '
        b'"include_fields": ["id", "media_type", "duration_milliseconds"], "query": "title:x"}' % ASSET.encode()
    )
    with answering(answer, body=b"}") as (url, requests):
        assert IconikClient(configs(iconik__url=url).iconik).document(ASSET, "title:x") is None
    assert json.loads(requests[0].partition(b"\r\n\r\n")[2]) == json.loads(body)


def test_it_is_counted_how_many_assets_a_query_finds(sandbox: FaultyIconik, client: IconikClient) -> None:
    sandbox.faults.append(Fault(status=200, body=b'{"objects": [{"id": "x"}], "total": 321}'))
    assert client.count("title:x") == 321
    for body in (b'{"objects": []}', b'{"objects": [], "total": null}', b'{"objects": [], "total": "5"}'):
        sandbox.faults.append(Fault(status=200, body=body))
        assert type(failure(lambda _: client.count("title:x"))) is IconikUnavailable


# iconik's clock


def timed(configs: Configs, clock: Clock) -> IconikClient:
    return IconikClient(configs().iconik, runtime=ManualRuntime(clock))


def test_iconiks_time_is_that_of_its_latest_json_answer(sandbox: FaultyIconik, configs: Configs, clock: Clock) -> None:
    client = timed(configs, clock)
    assert (client.now(), client.knows_time, client.clock_difference()) == (clock.now, False, 0)
    sandbox.clock = Clock(clock.now - 1000)
    client.closed_proxy(ASSET)
    assert (client.now(), client.knows_time, client.clock_difference()) == (clock.now - 1000, True, 1000)
    clock.advance(60)
    assert (client.now(), client.clock_difference()) == (clock.now - 1000, 1000)


def test_a_step_of_our_clock_does_not_change_iconiks_time(
    sandbox: FaultyIconik, configs: Configs, clock: Clock
) -> None:
    client = timed(configs, clock)
    sandbox.clock = Clock(clock.now)
    client.closed_proxy(ASSET)
    before = client.now()
    clock.step(3600)
    assert (client.now(), client.clock_difference()) == (before, 3600)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=502, body=HTML),
        Fault(status=200, body=b'{"objects": []}', headers={"Age": "5"}),
        Fault(status=200, body=b'{"objects": []}', headers={"Date": "soon"}),
    ],
    ids=["a gateway's", "a cache's", "none"],
)
def test_other_answers_do_not_tell_iconiks_time(
    sandbox: FaultyIconik, configs: Configs, clock: Clock, fault: Fault
) -> None:
    client = timed(configs, clock)
    sandbox.clock = Clock(clock.now - 1000)
    sandbox.faults.append(replace(fault))
    with suppress(IconikError):
        client.closed_proxy(ASSET)
    assert not client.knows_time


# Every answer but success, for every call


CALLS = {
    "analyze": start,
    "asset": IconikClient.asset,
    "closed_proxy": IconikClient.closed_proxy,
}
each_call = pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
KINDS = {
    IconikDenied: [401],
    IconikForbidden: [403],
    IconikRateLimited: [429],
    IconikUnavailable: [300, 301, 302, 303, 304, 307, 308, 408],
    IconikServerError: [500, 501, 502, 503, 504, 505, 520, 599],
    IconikRefused: [400, 402, 405, 409, 410, 422, 451, 499],
}


def test_the_errors_are_a_hierarchy() -> None:
    parents = {kind: kind.__bases__[0] for kind in KINDS}
    assert parents == {
        IconikDenied: IconikUnavailable,
        IconikForbidden: IconikRefused,
        IconikServerError: IconikUnavailable,
        IconikRateLimited: IconikError,
        IconikUnavailable: IconikError,
        IconikRefused: IconikError,
    }
    assert issubclass(IconikError, ListenerError)


@each_call
@pytest.mark.parametrize("kind", KINDS)
def test_each_status_is_an_error_of_its_kind_and_keeps_iconiks_message_out_of_its_summary(
    sandbox: FaultyIconik, client: IconikClient, call: Callable[[IconikClient, str], object], kind: type[IconikError]
) -> None:
    for status in KINDS[kind]:
        sandbox.faults.append(Fault(status=status, body=b"" if status == 304 else WHY_NOT))
        error = failure(lambda asset_id: call(client, asset_id))
        assert type(error) is kind
        assert error.status == status
        assert error.summary.startswith(f"iconik answered {status}")
        assert "Why not" not in error.summary
        assert str(error).endswith(": Why not") == (status >= 400)  # the body of a redirect is not read
    assert len(sandbox.requests) == len(KINDS[kind])


@pytest.mark.parametrize("body", [HTML, b"", b'{"error": "x"}', b'{"errors": []}', b'{"errors": null}', b'["errors"]'])
def test_a_4xx_that_is_not_iconiks_settles_nothing(sandbox: FaultyIconik, client: IconikClient, body: bytes) -> None:
    for status in (400, 404, 405, 410, 422):
        sandbox.faults.append(Fault(status=status, body=body, times=3))
        for call in (client.asset, starter(client), client.closed_proxy):
            error = failure(call)
            assert (type(error), error.status) == (IconikUnavailable, status)


def test_a_404_of_iconiks_is_final(sandbox: FaultyIconik, client: IconikClient) -> None:
    for call in (client.asset, starter(client)):
        error = failure(call)
        assert type(error) is IconikRefused
        assert str(error) == f"iconik answered 404: Asset {ASSET} doesn't exist"
        assert error.summary == "iconik answered 404"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"errors": ["one", "two"]}', "one; two"),
        (b'{"errors": {"title": "Missing", "id": ["bad"]}}', "title: Missing; id: ['bad']"),
        (b'{"errors": [{"field": "x"}, 5]}', "{'field': 'x'}; 5"),
        (b'{"errors": "just text"}', "just text"),
        (b'{"errors": 5}', "5"),
        (b'{"errors": ["two\\nlines\\u001b[31m\\ud800"]}', "two lines [31m"),
        (b'{"errors": ["%s"]}' % (b"x" * 5000), "x" * 199 + "…"),
        ('{"errors": ["Ungültig"]}'.encode(), "Ungültig"),
        (b'{"errors": []}', "Bad Request"),
        (HTML, "Bad Request"),
        (b"", "Bad Request"),
        (b'{"errors": ["cut', "Bad Request"),
        (b"[" * 100_000, "Bad Request"),
        (b"1" * 10_000, "Bad Request"),
    ],
)
def test_iconiks_own_message_is_kept_in_one_line(
    sandbox: FaultyIconik, client: IconikClient, body: bytes, message: str
) -> None:
    sandbox.faults.append(Fault(status=400, body=body))
    assert str(failure(starter(client))) == f"iconik answered 400: {message}"


@pytest.mark.parametrize(
    ("call", "role"),
    [
        (start, "can_analyze_content"),
        (IconikClient.asset, "can_read_assets"),
        (IconikClient.closed_proxy, "can_read_proxies"),
    ],
)
def test_a_denial_names_the_credentials_and_the_role_that_the_call_needs(
    sandbox: FaultyIconik, client: IconikClient, call: Callable[[IconikClient, str], object], role: str
) -> None:
    sandbox.roles.clear()
    error = failure(lambda asset_id: call(client, asset_id))
    assert type(error) is IconikForbidden
    assert error.summary == f"iconik answered 403: the role {role} is missing, or the user may not access this"
    assert str(error) == f"{error.summary}: Required roles: {role}"
    sandbox.auth_token = "another"
    error = failure(lambda asset_id: call(client, asset_id))
    assert type(error) is IconikDenied
    assert str(error) == "iconik answered 401: app_id and auth_token are not accepted: Token is invalid"


@pytest.mark.parametrize(("status", "kind"), [(401, IconikDenied), (403, IconikUnavailable)])
def test_a_gateways_403_says_nothing_about_a_role(
    sandbox: FaultyIconik, client: IconikClient, status: int, kind: type[IconikError]
) -> None:
    sandbox.faults.append(Fault(status=status, body=HTML))
    assert type(failure(starter(client))) is kind


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        *((Fault(status=status), True) for status in (408, 500, 501, 502, 504, 520)),
        *((Fault(status=status, body=WHY_NOT), False) for status in (400, 401, 403, 404, 409, 429, 503)),
        (Fault(status=302), False),
        (Fault(status=404, body=HTML), False),
        (Fault(status=200, body=HTML), True),
        (Fault(cut=True), True),
    ],
    ids=lambda value: f"{'cut' if value.cut else value.status}" if isinstance(value, Fault) else str(value),
)
def test_a_job_may_have_been_started_unless_the_answer_rules_it_out(
    sandbox: FaultyIconik, client: IconikClient, fault: Fault, expected: bool
) -> None:
    sandbox.faults.append(replace(fault))
    assert failure(starter(client)).may_have_been_done == expected


# Retry-After


def http_date(seconds: float, hours: float = 0) -> str:
    """That many seconds from now, by a clock that is so many hours ahead of UTC."""
    zone = timezone(timedelta(hours=hours))
    return format_datetime(datetime.now(zone) + timedelta(seconds=seconds))


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (lambda: "7", 7),
        (lambda: "0.5", 0.5),
        (lambda: http_date(100).replace("+0000", "GMT"), 100),
        (lambda: http_date(60, 5.5), 60),
        (lambda: http_date(60, -8), 60),
        (lambda: http_date(60).replace("+0000", "-0000"), 60),
        (lambda: http_date(999_999), 3600),
        (lambda: "1e9", 3600),
        (lambda: "inf", 3600),
        (lambda: "0", None),
        (lambda: "-5", None),
        (lambda: "nan", None),
        (lambda: "soon", None),
        (lambda: "", None),
        (lambda: http_date(-60), None),
        (lambda: "Wed, 99 Nov 99999 00:00:00 GMT", None),
    ],
)
def test_retry_after_is_read_as_seconds_or_as_a_date_of_any_zone(
    sandbox: FaultyIconik, client: IconikClient, header: Callable[[], str], seconds: float | None
) -> None:
    for status in (429, 503):
        sandbox.faults.append(Fault(status=status, headers={"Retry-After": header()}))
        error = failure(starter(client))
        assert error.retry_after == (seconds if seconds is None else pytest.approx(seconds, abs=2))


def test_without_retry_after_iconik_does_not_say_how_long_to_wait(sandbox: FaultyIconik, client: IconikClient) -> None:
    sandbox.faults.append(Fault(status=429))
    assert failure(starter(client)).retry_after is None


# A success that does not come as it should


def test_a_bare_201_is_a_job_whatever_became_of_its_body(sandbox: FaultyIconik, client: IconikClient) -> None:
    for body in (*NOT_AN_OBJECT, b"{}"):
        sandbox.faults.append(Fault(status=201, body=body))
        assert start(client) is None, body


@pytest.mark.parametrize("status", [200, 201, 202])
@pytest.mark.parametrize(
    ("body", "job_id"),
    [
        (b'{"id": "j\\n1"}', "j 1"),
        (b'{"job_id": "j"}', "j"),
        (b'{"id": "asset", "job_id": "j"}', "j"),
        (b'{"id": "j", "errors": []}', "j"),
    ],
)
def test_a_2xx_that_names_the_job_is_one(
    sandbox: FaultyIconik, client: IconikClient, status: int, body: bytes, job_id: str
) -> None:
    sandbox.faults.append(Fault(status=status, body=body))
    assert start(client) == job_id


def test_a_202_without_a_body_is_a_job(sandbox: FaultyIconik, client: IconikClient) -> None:
    sandbox.faults.append(Fault(status=202, body=b""))
    assert start(client) is None


@pytest.mark.parametrize(
    ("status", "body"),
    [
        *((status, WHY_NOT) for status in (200, 201, 202)),
        *((status, b'{"id": "j", "errors": ["Why not"]}') for status in (200, 201, 202)),
        *((status, body) for status in (200, 202) for body in (HTML, b"{}", b"[]", b'{"id": "cu')),
        *((201, body) for body in (b'{"id": 5}', b'{"id": null}', b'{"id": ""}', b'{"x": 1}')),
        (200, b""),
        (204, b""),
    ],
)
def test_any_other_2xx_settles_nothing(sandbox: FaultyIconik, client: IconikClient, status: int, body: bytes) -> None:
    sandbox.faults.append(Fault(status=status, body=body))
    error = failure(starter(client))
    assert type(error) is IconikUnavailable
    assert (error.summary, error.status) == (f"iconik answered {status} without naming a job", status)
    assert error.may_have_been_done


@pytest.mark.parametrize("call", [IconikClient.asset, IconikClient.closed_proxy, IconikClient.document])
def test_a_maintenance_page_with_200_settles_nothing(
    sandbox: FaultyIconik, client: IconikClient, call: Callable[[IconikClient, str], object]
) -> None:
    for body in NOT_AN_OBJECT:
        sandbox.faults.append(Fault(status=200, body=body))
        error = failure(lambda asset_id: call(client, asset_id))
        assert type(error) is IconikUnavailable
        assert (str(error), error.status) == ("iconik answered 200 without a JSON object", 200)


@pytest.mark.parametrize("rest", [b"Content-Length: 100\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\nff\r\n"])
def test_an_answer_that_is_cut_off_after_its_status_is_a_job_only_with_201(configs: Configs, rest: bytes) -> None:
    with answering(b"HTTP/1.1 201 Created\r\n" + rest, b'{"id": "j') as (url, _):
        assert start(IconikClient(configs(iconik__url=url).iconik)) is None
    for status in (200, 400):
        with answering(b"HTTP/1.1 %d So\r\n" % status + rest, WHY_NOT) as (url, _):
            error = failure(starter(IconikClient(configs(iconik__url=url).iconik)))
        assert (type(error), error.status) == (IconikUnavailable, status)


# No answer


def test_a_redirect_is_not_followed_and_an_endless_one_is_not_read(sandbox: FaultyIconik, client: IconikClient) -> None:
    with FaultyIconik() as elsewhere:
        headers = {"Location": f"{elsewhere.url}/API/"}
        sandbox.faults += [Fault(status=307, headers=headers), Fault(status=302, headers=headers, endless=True)]
        for status in (307, 302):
            error = failure(starter(client))
            assert (type(error), error.status) == (IconikUnavailable, status)
        assert elsewhere.requests == []


@pytest.mark.parametrize("location", ["http://[", "//", "\xff\xfe", "https://a..b/", "file:///etc/passwd"])
def test_a_redirect_to_nonsense_is_survived(sandbox: FaultyIconik, client: IconikClient, location: str) -> None:
    sandbox.faults.append(Fault(status=302, headers={"Location": location}))
    assert failure(starter(client)).status == 302


def unanswered(client: IconikClient) -> str:
    """Why a POST got no answer."""
    error = failure(starter(client))
    assert type(error) is IconikUnavailable
    assert (error.summary, error.status, error.retry_after) == ("iconik cannot be reached", None, None)
    return str(error).removeprefix("iconik cannot be reached: ")


def test_no_connection_is_told(configs: Configs) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        assert unanswered(IconikClient(configs(iconik__url=url).iconik)) == "the connection was refused"
    client = IconikClient(configs(iconik__url="https://no-such-host.invalid").iconik)
    assert unanswered(client) == "the name no-such-host.invalid is not known"


def test_a_connection_that_is_cut_is_told_and_nothing_is_sent_twice(
    sandbox: FaultyIconik, client: IconikClient
) -> None:
    sandbox.create_asset("a.mov", ASSET)
    client.asset(ASSET)
    sandbox.faults.append(Fault(cut=True, after_work=True))
    assert unanswered(client) == "the connection was closed without an answer"
    assert sandbox.jobs == [ASSET]
    assert len(sandbox.requests) == 2


def test_an_answer_that_is_not_http_is_told(configs: Configs) -> None:
    with answering(b"SSH-2.0-OpenSSH_9.2\r\n") as (url, _):
        assert unanswered(IconikClient(configs(iconik__url=url).iconik)) == "the answer is not HTTP"


def test_the_timeout_is_one_for_the_whole_answer_however_it_drips(sandbox: FaultyIconik, configs: Configs) -> None:
    client = IconikClient(configs(iconik__timeout=0.1).iconik)
    sandbox.faults += [Fault(hang=True), Fault(status=None, drip=0.02), Fault(status=None, delay=30)]
    for _ in range(3):
        started = time.monotonic()
        assert unanswered(client) == "no answer within 0.1 s"
        assert time.monotonic() - started < 3


def test_a_missing_ca_file_is_told(configs: Configs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    client = IconikClient(configs(iconik__url="https://127.0.0.1:1").iconik)
    assert unanswered(client) == f"the CA file {tmp_path}/ca.pem cannot be read"


def test_the_longest_call_under_way_is_known(sandbox: FaultyIconik, configs: Configs) -> None:
    client = IconikClient(configs().iconik)
    assert client.longest_call() == 0
    sandbox.create_asset("a.mov", ASSET)
    with sandbox.changed:  # the sandbox does not answer as long as somebody else has it
        thread = threading.Thread(target=client.asset, args=(ASSET,))
        thread.start()
        wait_until(lambda: client.longest_call() > 0)
    thread.join()
    assert client.longest_call() == 0


# Secrets


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=401, body=WHY_NOT),
        Fault(status=500),
        Fault(status=200, body=HTML),
        Fault(status=302),
        Fault(cut=True),
    ],
    ids=["denied", "broken", "html", "redirect", "cut"],
)
def test_no_secret_is_in_a_message_a_repr_or_the_log(
    sandbox: FaultyIconik, configs: Configs, caplog: pytest.LogCaptureFixture, fault: Fault
) -> None:
    caplog.set_level(logging.DEBUG)
    sandbox.faults.append(fault)
    config = configs(iconik__app_id="hush-hush", iconik__auth_token="hush%hush").iconik
    client = IconikClient(config)
    error = failure(starter(client))
    told = f"{error!r} {error} {error.summary} {error.args} {vars(error)} {client!r} {config!r} {caplog.text}"
    assert "hush" not in told
    assert error.__cause__ is None


def test_no_secret_is_told_when_there_is_no_connection(configs: Configs) -> None:
    client = IconikClient(configs(iconik__url="http://127.0.0.1:1", iconik__auth_token="hush").iconik)
    error = failure(starter(client))
    assert "hush" not in f"{error!r} {error}"
    assert error.__suppress_context__
