import socket
import threading
import time
from collections.abc import Iterable, Iterator
from email.utils import formatdate

import pytest
import requests

import iconik_client
from iconik_client import (
    IconikBroken,
    IconikClient,
    IconikDenied,
    IconikError,
    IconikRateLimited,
    IconikRefused,
    IconikUnavailable,
    one_line,
)
from sandbox import Fault, Sandbox
from support import ASSET, OTHER_ASSET, new_id

PROFILE = "d0d0d0d0-0000-11e7-a36b-0a580a00054a"
HTML = b"<html><body>Bad <b>Gateway</b></body></html>"


def client_with(sandbox: Sandbox, **values: str | float) -> IconikClient:
    return IconikClient(**{"url": sandbox.url, "app_id": sandbox.app_id, "auth_token": sandbox.auth_token, **values})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("profile", "path"), [("", ""), ("default", "profiles/default/"), (PROFILE, f"profiles/{PROFILE}/")]
)
def test_analyze_posts_one_job_for_each_form_of_analysis_profile(sandbox: Sandbox, profile: str, path: str) -> None:
    sandbox.create_asset("a.mov", ASSET)
    sandbox.profiles.append({"id": PROFILE})
    job_id = client_with(sandbox, analysis_profile=profile).analyze(ASSET)
    assert sandbox.requests == [f"POST /API/transcode/v1/analyze/assets/{ASSET}/{path}"]
    assert sandbox.jobs == [ASSET]
    assert job_id is not None
    assert len(job_id) == 36


def test_every_request_carries_the_four_headers_of_iconik(sandbox: Sandbox, client: IconikClient) -> None:
    seen: list[dict[str, str]] = []

    class Recorder(requests.Session):
        def request(self, *args: object, **kwargs: object) -> requests.Response:
            seen.append(dict(kwargs["headers"]))  # type: ignore[call-overload]
            return super().request(*args, **kwargs)  # type: ignore[arg-type]

    client._local.session, client._local.used = Recorder(), time.monotonic()
    sandbox.create_asset("a.mov", ASSET)
    client.analyze_status(ASSET)
    client.analyze(ASSET)
    for headers in seen:
        assert headers["App-ID"] == sandbox.app_id
        assert headers["Auth-Token"] == sandbox.auth_token
        assert headers["Accept"] == headers["Content-Type"] == "application/json"
    assert len(seen) == 2


def test_analyze_status_is_read(sandbox: Sandbox, client: IconikClient) -> None:
    sandbox.create_asset("a.mov", ASSET)
    assert client.analyze_status(ASSET) == "N/A"
    client.analyze(ASSET)
    assert client.analyze_status(ASSET) == "REQUESTED"


@pytest.mark.parametrize("rest", ["", ', "analyze_status": null'])
def test_an_asset_without_an_analyze_status_was_not_analyzed(sandbox: Sandbox, client: IconikClient, rest: str) -> None:
    sandbox.faults.append(Fault(status=200, body=f'{{"id": "{ASSET}"{rest}}}'.encode()))
    assert client.analyze_status(ASSET) == "N/A"


@pytest.mark.parametrize("body", [b"{}", b'{"id": "another", "analyze_status": "N/A"}'])
def test_an_answer_that_is_not_the_asset_says_nothing_about_it(
    sandbox: Sandbox, client: IconikClient, body: bytes
) -> None:
    sandbox.faults.append(Fault(status=200, body=body))
    with pytest.raises(IconikUnavailable, match="without the asset"):
        client.analyze_status(ASSET)


def test_a_closed_proxy_is_found_among_others_and_on_later_pages(sandbox: Sandbox, client: IconikClient) -> None:
    assert not client.has_closed_proxy(ASSET)  # iconik: 404
    sandbox.set_proxy(ASSET, "OPEN")
    assert not client.has_closed_proxy(ASSET)
    sandbox.set_proxy(ASSET)
    assert client.has_closed_proxy(ASSET)
    for _ in range(iconik_client.ITEMS_A_PAGE):
        sandbox.set_proxy(OTHER_ASSET, "DELETED")
    assert not client.has_closed_proxy(OTHER_ASSET)
    sandbox.set_proxy(OTHER_ASSET)
    assert client.has_closed_proxy(OTHER_ASSET)


def test_a_server_that_ignores_last_id_is_not_asked_for_ever(sandbox: Sandbox, client: IconikClient) -> None:
    page = b'{"objects": [%s]}' % b",".join([b'{"id": "x", "status": "OPEN"}'] * iconik_client.ITEMS_A_PAGE)
    sandbox.faults.append(Fault(status=200, body=page, times=5))
    assert not client.has_closed_proxy(ASSET)
    assert len(sandbox.requests) == 2


@pytest.mark.parametrize("body", [b'{"objects": null}', b'{"objects": ["x", 1]}', b"{}"])
def test_a_list_of_another_form_is_an_empty_one(sandbox: Sandbox, client: IconikClient, body: bytes) -> None:
    sandbox.faults.append(Fault(status=200, body=body))
    assert not client.has_closed_proxy(ASSET)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, IconikDenied),
        (403, IconikDenied),
        (429, IconikRateLimited),
        *[(status, IconikUnavailable) for status in (300, 301, 302, 303, 304, 307, 308, 408, 502, 503, 504)],
        *[(status, IconikBroken) for status in (500, 501, 505, 520, 599)],
        *[(status, IconikRefused) for status in (400, 404, 405, 409, 410, 422, 499)],
    ],
)
def test_each_status_is_an_error_of_its_kind(
    sandbox: Sandbox, client: IconikClient, status: int, kind: type[IconikError]
) -> None:
    sandbox.faults.append(Fault(status=status, body=b"" if status == 304 else b'{"errors": ["Why not"]}'))
    with pytest.raises(IconikError) as caught:
        client.analyze(ASSET)
    assert type(caught.value) is kind
    assert caught.value.status == status
    assert str(status) in caught.value.summary
    assert "Why not" not in caught.value.summary
    if status != 304:
        assert str(caught.value).endswith(": Why not")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"errors": ["one", "two"]}', "one; two"),
        (b'{"errors": {"title": "Missing", "id": ["bad"]}}', "title: Missing; id: ['bad']"),
        (b'{"errors": "just text"}', "just text"),
        (b'{"errors": null}', "Bad Request"),
        (b'["errors"]', "Bad Request"),
        (HTML, "Bad Request"),
        (b"", "Bad Request"),
        (b'{"errors": ["cut', "Bad Request"),
        (b"[" * 100_000, "Bad Request"),
        (b'{"errors": ["two\\nlines\\u001b[31m"]}', "two lines [31m"),
    ],
)
def test_iconiks_own_message_is_kept_in_one_line(
    sandbox: Sandbox, client: IconikClient, body: bytes, message: str
) -> None:
    sandbox.faults.append(Fault(status=400, body=body))
    with pytest.raises(IconikRefused) as caught:
        client.analyze(ASSET)
    assert str(caught.value) == f"iconik answered 400: {message}"


def test_a_long_message_is_cut(sandbox: Sandbox, client: IconikClient) -> None:
    sandbox.faults.append(Fault(status=400, body=b'{"errors": ["%s"]}' % (b"x" * 5000)))
    with pytest.raises(IconikRefused) as caught:
        client.analyze(ASSET)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("role", ["can_analyze_content", "can_read_assets", "can_read_proxies"])
def test_a_denial_names_the_role_that_the_call_needs(sandbox: Sandbox, client: IconikClient, role: str) -> None:
    sandbox.roles.clear()
    calls = {
        "can_analyze_content": client.analyze,
        "can_read_assets": client.analyze_status,
        "can_read_proxies": client.has_closed_proxy,
    }
    with pytest.raises(IconikDenied, match=role):
        calls[role](ASSET)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7),
        ("0.5", 0.5),
        (lambda: formatdate(time.time() + 100, usegmt=True), 100),
        ("1e9", 3600),
        ("inf", 3600),
        ("0", None),
        ("-5", None),
        ("nan", None),
        ("soon", None),
        ("Wed, 99 Nov 99999 00:00:00 GMT", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", None),
        (None, None),
    ],
)
def test_retry_after_is_read_as_seconds_or_date(
    sandbox: Sandbox, client: IconikClient, header: object, seconds: float | None
) -> None:
    value = header() if callable(header) else header
    sandbox.faults.append(Fault(status=429, headers={} if value is None else {"Retry-After": str(value)}))
    with pytest.raises(IconikRateLimited) as caught:
        client.analyze(ASSET)
    assert caught.value.retry_after == (seconds if seconds is None else pytest.approx(seconds, abs=2))


def test_a_redirect_is_not_followed(sandbox: Sandbox, client: IconikClient) -> None:
    with Sandbox() as elsewhere:
        sandbox.faults.append(Fault(status=307, headers={"Location": f"{elsewhere.url}/API/"}))
        with pytest.raises(IconikUnavailable):
            client.analyze(ASSET)
        assert elsewhere.requests == []


@pytest.mark.parametrize("location", ["http://[", "//", "\xff\xfe", "https://a..b/"])
def test_a_redirect_to_nonsense_is_survived(sandbox: Sandbox, client: IconikClient, location: str) -> None:
    sandbox.faults.append(Fault(status=302, headers={"Location": location}))
    with pytest.raises(IconikUnavailable):
        client.analyze(ASSET)


def test_no_connection_is_unavailable_and_says_why() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(IconikUnavailable, match="Connection refused") as caught:
            IconikClient(f"http://127.0.0.1:{port}", "a", "t").analyze(ASSET)
    assert caught.value.summary == "iconik cannot be reached"


def test_a_connection_that_is_cut_is_unavailable(sandbox: Sandbox, client: IconikClient) -> None:
    sandbox.faults.append(Fault(cut=True))
    with pytest.raises(IconikUnavailable, match="cannot be reached"):
        client.analyze(ASSET)


def test_no_answer_in_time_is_unavailable(sandbox: Sandbox) -> None:
    sandbox.faults.append(Fault(hang=True))
    with pytest.raises(IconikUnavailable, match="timed out"):
        client_with(sandbox, timeout=0.05).analyze(ASSET)


@pytest.mark.parametrize("body", [HTML, b"", b"null", b"[1]", b'{"id": 5}', b"{}", b"\xff"])
def test_a_job_without_an_id_is_taken_all_the_same(sandbox: Sandbox, client: IconikClient, body: bytes) -> None:
    sandbox.faults.append(Fault(status=201, body=body))
    assert client.analyze(ASSET) is None


@pytest.mark.parametrize("body", [HTML, b"", b"null", b"[1]", b"\xff", b"[" * 100_000])
def test_what_is_read_must_come_as_an_object(sandbox: Sandbox, client: IconikClient, body: bytes) -> None:
    sandbox.faults.append(Fault(status=200, body=body))
    with pytest.raises(IconikUnavailable, match="without a JSON object"):
        client.analyze_status(ASSET)


def raw_server(parts: Iterable[bytes]) -> tuple[str, threading.Thread]:
    """Answers one request with these bytes, each part when the client took the one before."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with server, server.accept()[0] as connection:
            connection.recv(65536)
            try:
                for part in parts:
                    connection.sendall(part)
            except OSError:
                pass  # the client has seen enough

    thread = threading.Thread(target=serve)
    thread.start()
    return f"http://127.0.0.1:{server.getsockname()[1]}", thread


def test_a_job_whose_answer_is_cut_after_its_status_is_taken() -> None:
    url, thread = raw_server([b"HTTP/1.1 201 Created\r\nContent-Length: 100\r\n\r\n", b'{"id": '])
    assert IconikClient(url, "a", "t").analyze(ASSET) is None
    thread.join()


def test_an_answer_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iconik_client, "LONGEST_ANSWER", 1_000_000)
    sent: list[str] = []

    def endless() -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\n\r\n"
        while len(sent) < 1000:
            sent.append(" ")
            yield b" " * 100_000

    url, thread = raw_server(endless())
    with pytest.raises(IconikUnavailable):
        IconikClient(url, "a", "t").analyze_status(ASSET)
    thread.join()
    assert len(sent) < 500


def test_an_answer_that_is_no_http_is_unavailable() -> None:
    url, thread = raw_server([b"SSH-2.0-OpenSSH_9.2\r\n"])
    with pytest.raises(IconikUnavailable):
        IconikClient(url, "a", "t").analyze(ASSET)
    thread.join()


@pytest.mark.parametrize("asset_id", ["../../users/v1", "a/b", "a?b", "a#b", "%2e"])
def test_an_id_cannot_leave_its_place_in_the_path(sandbox: Sandbox, client: IconikClient, asset_id: str) -> None:
    with pytest.raises(IconikRefused):
        client.analyze(asset_id)
    assert sandbox.requests[0].startswith("POST /API/transcode/v1/analyze/assets/")
    assert sandbox.requests[0].count("/") == 7


def test_a_connection_that_was_idle_for_long_is_not_used_again(
    sandbox: Sandbox, client: IconikClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox.create_asset("a.mov", ASSET)
    closed = []
    client.analyze_status(ASSET)
    monkeypatch.setattr(client._local.session, "close", lambda: closed.append(True))
    client.analyze_status(ASSET)
    assert not closed
    client._local.used -= iconik_client.IDLE_SECONDS + 1
    client.analyze_status(ASSET)
    assert closed


def test_each_thread_has_a_session_of_its_own(sandbox: Sandbox, client: IconikClient) -> None:
    sandbox.create_asset("a.mov", ASSET)
    sessions = []

    def use() -> None:
        client.analyze_status(ASSET)
        sessions.append(client._local.session)

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, sessions))) == 3


def test_no_secret_is_in_a_repr_or_an_error(sandbox: Sandbox) -> None:
    client = client_with(sandbox, auth_token="hush\n")
    with pytest.raises(IconikError) as caught:
        client.analyze(new_id())
    assert "hush" not in f"{client!r} {caught.value!r} {caught.value}"


def test_text_from_outside_becomes_one_line() -> None:
    assert one_line("a\r\nb\t\x00\x1b[2J\u2028c\ud800 d") == "a b [2J c d"
    assert one_line("x" * 300) == "x" * 199 + "…"
    assert one_line("x" * 200) == "x" * 200
