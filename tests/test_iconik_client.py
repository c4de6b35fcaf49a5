import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from functools import partial
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
from jobs import ANALYZE, FACES
from support import ASSET, OTHER_ASSET, wait_until
from system.errors import ListenerError
from version import __version__

PROFILE = "d0d0d0d0-0000-11e7-a36b-0a580a00054a"
HTML = b"<html><body>Bad <b>Gateway</b></body></html>"
WHY_NOT = b'{"errors": ["Why not"]}'
NOT_AN_OBJECT = [HTML, b"", b"null", b"[1]", b'"text"', b"5", b'{"id": "cu', b"\xff\xfe", b"[" * 100_000]
Configs = Callable[..., Config]


@contextmanager
def answering(*parts: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """A server that answers one request with these bytes and closes. Gives its URL, and a list for the request."""
    requests: list[bytes] = []

    def serve() -> None:
        with server, server.accept()[0] as connection:
            connection.settimeout(5)
            request = b""
            while not request.endswith(b"{}" if request.startswith(b"POST") else b"\r\n\r\n"):
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


def analyze(client: IconikClient, asset_id: str, profile: str = "") -> str | None:
    """Start an analyze job."""
    return client.start(ANALYZE, {"id": asset_id}, profile=profile)


def failure(call: Callable[[str], object]) -> IconikError:
    """What a call about an asset fails with: one line."""
    with pytest.raises(IconikError) as caught:
        call(ASSET)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(caught.value.summary)
    return caught.value


# The requests


@pytest.mark.parametrize(
    ("profile", "path"), [("", ""), ("default", "profiles/default/"), (PROFILE, f"profiles/{PROFILE}/")]
)
def test_analyze_posts_one_job_for_each_form_of_analysis_profile(
    sandbox: FaultyIconik, configs: Configs, profile: str, path: str
) -> None:
    sandbox.create_asset("a.mov", ASSET)
    sandbox.profiles.append({"id": PROFILE, "media_type": "video", "enabled": True})
    job_id = analyze(IconikClient(configs().iconik), ASSET, path)
    assert sandbox.requests == [f"POST /API/transcode/v1/analyze/assets/{ASSET}/{path}"]
    assert sandbox.jobs == [ASSET]
    assert job_id == sandbox.latest_job[ASSET]


def test_every_request_carries_the_four_headers_of_iconik_and_says_who_asks(
    configs: Configs, sandbox: FaultyIconik
) -> None:
    calls: list[tuple[Callable[[IconikClient], object], bytes]] = [
        (lambda client: analyze(client, ASSET), b'HTTP/1.1 201 Created\r\n\r\n{"id": "j"}'),
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
    for call in (partial(analyze, client), client.asset, client.closed_proxy):
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
        assert analyze(IconikClient(configs(iconik__url=url).iconik), ASSET) == "j"
    assert b"authorization" not in requests[0].lower()


# An asset


def test_an_asset_is_read(sandbox: FaultyIconik, client: IconikClient) -> None:
    sandbox.create_asset("a.mov", ASSET, type="SUBCLIP")
    asset = client.asset(ASSET)
    shown = [asset[key] for key in ("id", "title", "type", "status", "analyze_status")]
    assert shown == [ASSET, "a.mov", "SUBCLIP", "ACTIVE", "N/A"]
    assert sandbox.requests == [f"GET /API/assets/v1/assets/{ASSET}/"]
    analyze(client, ASSET)
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


def test_of_several_closed_proxies_it_is_the_newest_on_whichever_page(
    sandbox: FaultyIconik, client: IconikClient
) -> None:
    """That of the version which iconik shows now: what is billed is for that one."""
    for number in range(PAGE_SIZE + 3):
        sandbox.set_proxy(ASSET, "CLOSED")
        sandbox.proxies[ASSET][-1]["date_created"] = f"2026-11-20T10:{number // 60:02}:{number % 60:02}"
    newest = sandbox.proxies[ASSET].pop()
    sandbox.proxies[ASSET].insert(7, newest)
    found = client.closed_proxy(ASSET)
    assert found is not None
    assert found["id"] == newest["id"]


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


# Every answer but success, for every call


CALLS = {
    "analyze": analyze,
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
        IconikServerError: IconikUnavailable,
        IconikRateLimited: IconikError,
        IconikUnavailable: IconikError,
        IconikRefused: IconikError,
        IconikForbidden: IconikRefused,
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
        for call in (client.asset, partial(analyze, client), client.closed_proxy):
            error = failure(call)
            assert (type(error), error.status) == (IconikUnavailable, status)


def test_a_404_of_iconiks_is_final(sandbox: FaultyIconik, client: IconikClient) -> None:
    for call in (client.asset, partial(analyze, client)):
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
    assert str(failure(partial(analyze, client))) == f"iconik answered 400: {message}"


@pytest.mark.parametrize(
    ("call", "role"),
    [
        (analyze, "can_analyze_content"),
        (IconikClient.asset, "can_read_assets"),
        (IconikClient.closed_proxy, "can_read_proxies"),
    ],
)
def test_a_denial_names_what_is_missing(
    sandbox: FaultyIconik, client: IconikClient, call: Callable[[IconikClient, str], object], role: str
) -> None:
    """The role for a 403, the credentials for a 401: not both (N21)."""
    sandbox.roles.clear()
    error = failure(lambda asset_id: call(client, asset_id))
    assert error.summary == f"iconik answered 403: the role {role} is missing, or the user may not access this"
    assert str(error) == f"{error.summary}: Required roles: {role}"
    sandbox.auth_token = "another"
    error = failure(lambda asset_id: call(client, asset_id))
    assert str(error) == "iconik answered 401: app_id and auth_token are not accepted: Token is invalid"


@pytest.mark.parametrize(("status", "kind"), [(401, IconikDenied), (403, IconikUnavailable)])
def test_a_gateways_denial_refuses_nothing(
    sandbox: FaultyIconik, client: IconikClient, status: int, kind: type[IconikError]
) -> None:
    sandbox.faults.append(Fault(status=status, body=HTML))
    assert type(failure(partial(analyze, client))) is kind


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
        error = failure(partial(analyze, client))
        assert error.retry_after == (seconds if seconds is None else pytest.approx(seconds, abs=2))


def test_without_retry_after_iconik_does_not_say_how_long_to_wait(sandbox: FaultyIconik, client: IconikClient) -> None:
    sandbox.faults.append(Fault(status=429))
    assert failure(partial(analyze, client)).retry_after is None


# A success that does not come as it should


@pytest.mark.parametrize("body", [*NOT_AN_OBJECT, b"{}"])
def test_a_bare_201_is_an_acceptance(sandbox: FaultyIconik, client: IconikClient, body: bytes) -> None:
    sandbox.faults.append(Fault(status=201, body=body))
    assert analyze(client, ASSET) is None


@pytest.mark.parametrize("status", [200, 201, 202])
@pytest.mark.parametrize("name", ["id", "job_id"])
def test_a_2xx_that_names_a_job_is_an_acceptance(
    sandbox: FaultyIconik, client: IconikClient, status: int, name: str
) -> None:
    sandbox.faults.append(Fault(status=status, body=b'{"%s": "j\\n1"}' % name.encode()))
    assert analyze(client, ASSET) == "j 1"


def test_job_id_goes_before_id(sandbox: FaultyIconik, client: IconikClient) -> None:
    sandbox.faults.append(Fault(status=201, body=b'{"id": "other", "job_id": "j"}'))
    assert analyze(client, ASSET) == "j"


@pytest.mark.parametrize(
    ("status", "body"),
    [
        *((200, body) for body in (b"{}", b"", WHY_NOT, HTML)),
        *((201, body) for body in (WHY_NOT, b'{"id": 5}', b'{"errors": ["No"], "id": "j"}')),
        (202, b""),
        (204, b""),
        (207, b"[]"),
    ],
)
def test_any_other_2xx_leaves_doubt(sandbox: FaultyIconik, client: IconikClient, status: int, body: bytes) -> None:
    sandbox.faults.append(Fault(status=status, body=body))
    error = failure(partial(analyze, client))
    assert (type(error), error.may_have_been_done) == (IconikUnavailable, True)


def test_the_202_of_faces_is_an_acceptance(sandbox: FaultyIconik, client: IconikClient) -> None:
    sandbox.create_asset("a.mov", ASSET)
    assert client.start(FACES, sandbox.assets[ASSET]) is None
    assert sandbox.started == [("faces", ASSET)]


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        *((Fault(status=status), True) for status in (500, 502, 504, 408)),
        *((Fault(status=status), False) for status in (503, 400, 404, 429, 401, 302)),
        (Fault(cut=True), True),
    ],
)
def test_an_error_says_whether_iconik_may_have_done_it(
    sandbox: FaultyIconik, client: IconikClient, fault: Fault, expected: bool
) -> None:
    sandbox.faults.append(fault)
    assert failure(partial(analyze, client)).may_have_been_done == expected


def test_no_connection_means_that_nothing_was_done(sandbox: FaultyIconik, client: IconikClient) -> None:
    sandbox.server.stop()
    assert not failure(partial(analyze, client)).may_have_been_done


def test_its_time_is_that_of_iconiks_answers(sandbox: FaultyIconik, client: IconikClient) -> None:
    assert not client.knows_time
    sandbox.clock = lambda: 1_000_000_000.0
    sandbox.create_asset("a.mov", ASSET)
    client.asset(ASSET)
    assert 1_000_000_000 <= client.now() < 1_000_000_010
    assert client.clock_difference() > 7e8
    sandbox.clock = lambda: 2_000_000_000.0
    sandbox.faults.append(Fault(status=None, headers={"Age": "5"}))
    client.asset(ASSET)
    assert client.now() < 1_000_000_010, "a cached answer says an old time"


@pytest.mark.parametrize("body", NOT_AN_OBJECT)
def test_a_maintenance_page_is_no_asset(sandbox: FaultyIconik, client: IconikClient, body: bytes) -> None:
    sandbox.faults.append(Fault(status=200, body=body))
    error = failure(client.asset)
    assert (type(error), error.status) == (IconikUnavailable, 200)


def test_a_list_is_read_to_its_end_though_pages_are_short(sandbox: FaultyIconik, client: IconikClient) -> None:
    sandbox.create_asset("a.mov", ASSET)
    for _ in range(250):
        sandbox.start_job(ASSET)
    sandbox.pages = lambda path, objects: [None, *objects[1:]] if "jobs" in path else objects
    assert len(client.jobs_of(ASSET, ANALYZE, 0)) == 247


def test_an_asset_is_searched_by_its_id_and_by_a_query(sandbox: FaultyIconik, client: IconikClient) -> None:
    sandbox.create_asset("a.mov", ASSET)
    sandbox.create_asset("b.jpg", OTHER_ASSET)
    found = client.document(ASSET)
    assert found
    assert (found["media_type"], found["duration_milliseconds"]) == ("video", 60_000)
    assert client.document(ASSET, "media_type:image") is None
    assert client.count("media_type:image") == 1


# No answer


def test_a_redirect_is_not_followed_and_an_endless_one_is_not_read(sandbox: FaultyIconik, client: IconikClient) -> None:
    with FaultyIconik() as elsewhere:
        headers = {"Location": f"{elsewhere.url}/API/"}
        sandbox.faults += [Fault(status=307, headers=headers), Fault(status=302, headers=headers, endless=True)]
        for status in (307, 302):
            error = failure(partial(analyze, client))
            assert (type(error), error.status) == (IconikUnavailable, status)
        assert elsewhere.requests == []


@pytest.mark.parametrize("location", ["http://[", "//", "\xff\xfe", "https://a..b/", "file:///etc/passwd"])
def test_a_redirect_to_nonsense_is_survived(sandbox: FaultyIconik, client: IconikClient, location: str) -> None:
    sandbox.faults.append(Fault(status=302, headers={"Location": location}))
    assert failure(partial(analyze, client)).status == 302


def unanswered(client: IconikClient) -> str:
    """Why a POST got no answer."""
    error = failure(partial(analyze, client))
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
    error = failure(partial(analyze, client))
    told = f"{error!r} {error} {error.summary} {error.args} {vars(error)} {client!r} {config!r} {caplog.text}"
    assert "hush" not in told
    assert error.__cause__ is None


def test_no_secret_is_told_when_there_is_no_connection(configs: Configs) -> None:
    client = IconikClient(configs(iconik__url="http://127.0.0.1:1", iconik__auth_token="hush").iconik)
    error = failure(partial(analyze, client))
    assert "hush" not in f"{error!r} {error}"
    assert error.__suppress_context__
