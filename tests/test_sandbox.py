"""The stand-in for iconik: what the other tests, the demo and rehearsals rely on."""

import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests

from faulty_iconik import Fault, FaultyIconik

HEADERS = {"App-ID": FaultyIconik.app_id, "Auth-Token": FaultyIconik.auth_token}
WEBHOOKS = "notifications/v1/webhooks/"
FOREVER = float("inf")
REFUSED_URL = "http://127.0.0.1:1"  # nothing listens there


def call(sandbox: FaultyIconik, method: str, path: str, body: Any = None, timeout: float = 10) -> requests.Response:
    return requests.request(method, f"{sandbox.url}/API/{path}", json=body, headers=HEADERS, timeout=timeout)


def test_without_the_virtual_environment_the_sandbox_is_one_line() -> None:
    """N27."""
    command = [sys.executable, "-S", "-m", "sandbox"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"Error: requests is not installed for {sys.executable}: use the virtual environment")
    assert done.stderr.count("\n") == 1


def analyze(sandbox: FaultyIconik, asset_id: str, timeout: float = 10) -> requests.Response:
    return call(sandbox, "POST", f"transcode/v1/analyze/assets/{asset_id}/", {}, timeout)


def search(sandbox: FaultyIconik, bounds: dict[str, str], query: str = "", **body: Any) -> Any:
    terms = [{"name": "date_created", "range": bounds}]
    body = {"filter": {"operator": "AND", "terms": terms}, "include_fields": ["id", "date_created"], **body}
    return call(sandbox, "POST", f"search/v1/search/?{query}", body).json()


class Receiver(ThreadingHTTPServer):
    """Stands for the listener: keeps what is delivered to it, and answers `status`."""

    daemon_threads = True
    status = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), ReceiverHandler)
        self.received: list[tuple[str, Any, dict[str, str]]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    @property
    def object_ids(self) -> list[str]:
        return [event["object_id"] for _, event, _ in self.received]


class ReceiverHandler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        event = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.received.append((self.path, event, dict(self.headers)))
        self.send_response(self.server.status)
        self.send_header("Location", "/elsewhere")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 the name is http.server's
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        threading.Thread(target=receiver.serve_forever, args=(0.01,), daemon=True).start()
        yield receiver
        receiver.shutdown()


# Webhooks


def test_an_upload_is_delivered_to_both_webhooks_with_the_headers_of_their_definitions(
    sandbox: FaultyIconik, receiver: Receiver
) -> None:
    sandbox.register(receiver.url, {"X-Webhook-Secret": "s3cret"})
    asset_id = sandbox.create_asset("a.mov", type="SUBCLIP")
    sandbox.set_proxy(asset_id, "OPEN")
    sandbox.set_proxy(asset_id)
    (create_path, create, headers), (proxy_path, proxy, _) = receiver.received
    assert (create_path, create["operation"], create["realm"]) == ("/create", "create", "entity")
    assert (create["data"]["title"], create["data"]["type"]) == ("a.mov", "SUBCLIP")
    assert (proxy_path, proxy["realm"], proxy["data"]["status"]) == ("/proxy", "proxies", "CLOSED")
    assert headers["X-Webhook-Secret"] == "s3cret"
    assert sandbox.deliveries == [("/create", asset_id, 200), ("/proxy", asset_id, 200)]


@pytest.mark.parametrize(
    ("changes", "is_delivered"),
    [
        ({"query": 'data.type="ASSET"'}, True),
        ({"query": 'data.type = "SUBCLIP"'}, False),
        ({"object_id": "this"}, True),
        ({"object_id": "another"}, False),
        ({"object_id": None, "operation": None, "realm": None}, True),
        ({"operation": "update"}, False),
        ({"event_type": "collections"}, False),
        ({"status": "FAILING"}, True),
        ({"status": "DISABLED"}, False),
        ({"status": "DELETED"}, False),
    ],
)
def test_a_webhook_gets_the_events_that_its_definition_lets_through(
    sandbox: FaultyIconik, receiver: Receiver, changes: dict[str, Any], is_delivered: bool
) -> None:
    sandbox.register(receiver.url)
    next(iter(sandbox.webhooks.values())).update(changes)
    sandbox.create_asset("a.mov", "this")
    assert receiver.object_ids == ["this"] * is_delivered


def test_a_webhook_that_fails_is_disabled_after_five_hours_and_nothing_is_sent_again(receiver: Receiver) -> None:
    now = [1_795_000_000.0]
    with FaultyIconik(clock=lambda: now[0]) as sandbox:
        sandbox.register(receiver.url)
        webhook = next(iter(sandbox.webhooks.values()))
        receiver.status = 503
        for hours, status in ((0, "FAILING"), (4.9, "FAILING"), (0.2, "DISABLED"), (1, "DISABLED")):
            now[0] += hours * 3600
            sandbox.create_asset("a.mov", f"after {hours} more hours")
            assert webhook["status"] == status
        assert (webhook["first_failed_at"], webhook["last_error"][:3]) == ("2026-11-18T11:06:40.000000+00:00", "503")
        receiver.status = 200
        sandbox.create_asset("a.mov")
        assert receiver.object_ids == ["after 0 more hours", "after 4.9 more hours", "after 0.2 more hours"]


def test_a_webhook_that_succeeds_again_is_enabled_without_an_error(sandbox: FaultyIconik, receiver: Receiver) -> None:
    sandbox.register(receiver.url)
    webhook = next(iter(sandbox.webhooks.values()))
    receiver.status = 302
    sandbox.create_asset("a.mov")
    assert (webhook["status"], webhook["last_error"]) == ("FAILING", "302 Found")
    receiver.status = 200
    sandbox.create_asset("a.mov")
    assert (webhook["status"], webhook["first_failed_at"], webhook["last_error"]) == ("ENABLED", None, None)


def test_a_listener_that_is_down_is_a_failed_delivery_and_tests_may_disable_what_fails(sandbox: FaultyIconik) -> None:
    sandbox.register(REFUSED_URL)
    asset_id = sandbox.create_asset("a.mov")
    sandbox.disable_failing_webhooks()
    create, proxy = sandbox.webhooks.values()
    assert sandbox.deliveries == [("/create", asset_id, 0)]
    assert (create["status"], create["last_error"], proxy["status"]) == ("DISABLED", "ConnectionError", "ENABLED")
    assert create["first_failed_at"]


def test_deliveries_take_no_proxy_from_the_environment(
    sandbox: FaultyIconik, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", REFUSED_URL)
    sandbox.register(receiver.url)
    asset_id = sandbox.create_asset("a.mov")
    assert receiver.object_ids == [asset_id]


def test_webhook_definitions_are_created_read_replaced_and_deleted(sandbox: FaultyIconik) -> None:
    desired = {"url": f"{REFUSED_URL}/create", "event_type": "assets", "status": "ENABLED"}
    created = call(sandbox, "POST", WEBHOOKS, {**desired, "query": "q"})
    assert created.status_code == 201
    path = f"{WEBHOOKS}{created.json()['id']}/"
    assert call(sandbox, "GET", WEBHOOKS).json()["objects"] == [created.json()]
    sandbox.create_asset("a.mov")
    assert call(sandbox, "GET", path).json()["status"] == "FAILING"
    replaced = call(sandbox, "PUT", path, desired)
    modified = replaced.json()["date_modified"]
    assert replaced.status_code == 200
    assert replaced.json() == {**desired, "id": created.json()["id"], "date_modified": modified}
    assert call(sandbox, "PUT", path, {"url": "u"}).json() == {
        "errors": ["Missing data for required field: event_type, status"]
    }
    assert [call(sandbox, method, path).status_code for method in ("DELETE", "GET", "DELETE")] == [204, 404, 404]


def test_a_put_that_enables_a_webhook_forgets_its_failure_and_another_keeps_it(sandbox: FaultyIconik) -> None:
    sandbox.register(REFUSED_URL)
    sandbox.create_asset("a.mov")
    sandbox.disable_failing_webhooks()
    found = call(sandbox, "GET", WEBHOOKS).json()["objects"][0]
    path = f"{WEBHOOKS}{found['id']}/"
    assert call(sandbox, "PUT", path, {**found, "headers": {"A": "b"}}).json()["last_error"] == "ConnectionError"
    enabled = call(sandbox, "PUT", path, {**found, "status": "ENABLED"}).json()
    assert (enabled["status"], enabled.get("first_failed_at"), enabled.get("last_error")) == ("ENABLED", None, None)


def test_a_webhook_that_a_person_disables_has_no_failure(sandbox: FaultyIconik) -> None:
    sandbox.register(REFUSED_URL)
    sandbox.create_asset("a.mov")
    found = call(sandbox, "GET", WEBHOOKS).json()["objects"][0]
    assert found["status"] == "FAILING"
    disabled = call(sandbox, "PUT", f"{WEBHOOKS}{found['id']}/", {**found, "status": "DISABLED"}).json()
    assert (disabled["status"], disabled.get("first_failed_at"), disabled.get("last_error")) == ("DISABLED", None, None)


# Search, jobs, roles


def test_a_search_pages_through_all_assets_of_its_range_both_ends_included(sandbox: FaultyIconik) -> None:
    for number in range(250):
        sandbox.create_asset("a.mov", f"{number:03}", send=False, date_created=f"2026-11-22T10:{number // 50:02}:00Z")
    bounds = {"min": "2026-11-22T11:01:00+01:00", "max": "2026-11-22T10:03:00.000Z"}
    found: list[str] = []
    after: dict[str, Any] = {}
    while page := search(sandbox, bounds, "per_page=40", **after)["objects"]:
        found += [asset["id"] for asset in page]
        after = {"search_after": page[-1]["_sort"]}
    assert found == [f"{number:03}" for number in range(50, 200)]
    first = search(sandbox, bounds, "per_page=40")
    assert (first["total"], first["page"], first["pages"]) == (150, 1, 4)
    assert set(first["objects"][0]) == {"id", "date_created", "_sort"}
    last = search(sandbox, bounds, "per_page=40&page=4")
    assert [asset["id"] for asset in last["objects"]] == found[120:]
    assert search(sandbox, bounds, "per_page=40&page=5") == {"errors": ["Requested page does not exist"]}


def test_search_after_skips_equal_dates_if_iconik_sorts_by_the_date_only(sandbox: FaultyIconik) -> None:
    sandbox.sort_keys = ("date_created",)
    for number in range(5):
        sandbox.create_asset("a.mov", str(number), send=False, date_created=f"2026-11-22T10:0{number // 3}:00Z")
    first = search(sandbox, {}, "per_page=2")["objects"]
    second = search(sandbox, {}, "per_page=2", search_after=first[-1]["_sort"])["objects"]
    assert [asset["id"] for asset in first + second] == ["0", "1", "3", "4"]
    assert len(first[-1]["_sort"]) == 1


def test_a_search_finds_what_was_added_or_changed_since_the_last(sandbox: FaultyIconik) -> None:
    for asset_id in ("a", "b"):
        sandbox.create_asset("a.mov", asset_id, send=False, date_created="2026-11-22T10:00:00Z")
    page = search(sandbox, {}, "per_page=1")["objects"]
    sandbox.create_asset("a.mov", "c", send=False)
    rest = search(sandbox, {}, search_after=page[-1]["_sort"])["objects"]
    assert [asset["id"] for asset in page + rest] == ["a", "b", "c"]
    sandbox.assets["a"]["date_created"] = "2026-11-20T10:00:00Z"
    assert [asset["id"] for asset in search(sandbox, {"max": "2026-11-21T10:00:00Z"})["objects"]] == ["a"]


def test_a_later_page_goes_on_in_the_order_of_the_first_which_is_sorted_once(sandbox: FaultyIconik) -> None:
    for number in range(3):
        sandbox.create_asset("a.mov", str(number), send=False, date_created=f"2026-11-22T10:0{number}:00Z")
    page = search(sandbox, {}, "per_page=2")["objects"]
    sandbox.assets["2"]["date_created"] = "2026-11-20T10:00:00Z"
    assert [asset["id"] for asset in search(sandbox, {}, search_after=page[-1]["_sort"])["objects"]] == ["2"]


def test_assets_may_be_added_while_others_are_searched(sandbox: FaultyIconik) -> None:
    for _ in range(5000):
        sandbox.create_asset("a.mov", send=False)
    answers: list[Any] = []
    searching = threading.Thread(target=lambda: answers.extend(search(sandbox, {}) for _ in range(5)))
    searching.start()
    while searching.is_alive():
        sandbox.create_asset("a.mov", send=False)
    assert [len(answer["objects"]) for answer in answers] == [10] * 5


def test_a_job_and_its_asset_go_the_same_way(sandbox: FaultyIconik) -> None:
    done, failed = sandbox.create_asset("a.mov"), sandbox.create_asset("b.mov")
    job_ids = [analyze(sandbox, asset_id).json()["id"] for asset_id in (done, failed)]
    assert (sandbox.jobs, [sandbox.latest_job[asset_id] for asset_id in sandbox.jobs]) == ([done, failed], job_ids)
    assert call(sandbox, "GET", f"assets/v1/assets/{done}/").json()["analyze_status"] == "REQUESTED"
    sandbox.finish_job(job_ids[0])
    sandbox.fail_job(job_ids[1], "No such codec")
    assert [sandbox.assets[asset_id]["analyze_status"] for asset_id in (done, failed)] == ["DONE", "FAILED"]
    query = "type=ANALYZE&status=FAILED&object_type=assets&sort=date_modified,asc&per_page=100&page=1&facets=false"
    [job] = call(sandbox, "GET", f"jobs/v1/jobs/?{query}").json()["objects"]
    assert (job["id"], job["object_id"], job["error_message"]) == (job_ids[1], failed, "No such codec")


def test_jobs_are_found_by_the_time_of_their_change_and_in_pages(sandbox: FaultyIconik) -> None:
    for number in range(5):
        job_id = sandbox.start_job(sandbox.create_asset("a.mov", str(number)))
        sandbox.job_details[job_id]["date_modified"] = f"2026-11-22T1{number}:00:00Z"

    def found(query: str) -> list[str]:
        answer = call(sandbox, "GET", f"jobs/v1/jobs/?{query}").json()
        return [job["object_id"] for job in answer["objects"]] if "objects" in answer else answer["errors"]

    assert found("date_modified=2026-11-22T13:00:00Z") == ["3", "4"]
    assert found("date_modified=2026-11-22T13:00:00Z;*") == ["3", "4"]
    assert found("date_modified=2026-11-22T11:00:00Z;2026-11-22T12:00:00Z") == ["1", "2"]
    assert found("sort=date_modified,desc&per_page=2&page=1") == ["4", "3"]
    assert found("sort=date_modified,desc&per_page=2&page=3") == ["0"]
    assert found("sort=date_modified,desc&per_page=2&page=4") == ["Requested page does not exist"]


def test_a_job_that_fails_between_two_pages_is_on_the_later_one(sandbox: FaultyIconik) -> None:
    jobs = [sandbox.start_job(sandbox.create_asset("a.mov")) for _ in range(3)]
    path = "jobs/v1/jobs/?status=FAILED&sort=date_modified,asc&per_page=2&page="
    for job_id in jobs[:2]:
        sandbox.fail_job(job_id)
    first = call(sandbox, "GET", f"{path}1").json()["objects"]
    sandbox.fail_job(jobs[2])
    second = call(sandbox, "GET", f"{path}2").json()["objects"]
    assert [job["id"] for job in first + second] == jobs


def test_an_analysis_profile_has_to_be_there(sandbox: FaultyIconik) -> None:
    path = f"transcode/v1/analyze/assets/{sandbox.create_asset('a.mov')}/profiles"
    sandbox.profiles.append({"id": "faces"})
    answers = [call(sandbox, "POST", f"{path}/{profile}/", {}) for profile in ("default", "faces", "nobody")]
    assert [answer.status_code for answer in answers] == [201, 201, 400]
    assert call(sandbox, "GET", "files/v1/analysis/profiles/").json() == {"objects": sandbox.profiles}


def test_proxies_come_in_pages_and_no_proxies_are_a_404(sandbox: FaultyIconik) -> None:
    asset_id = sandbox.create_asset("a.mov")
    path = f"files/v1/assets/{asset_id}/proxies/?per_page=2"
    assert call(sandbox, "GET", path).status_code == 404
    for status in ("OPEN", "FAILED", "CLOSED"):
        sandbox.set_proxy(asset_id, status)
    first = call(sandbox, "GET", path).json()["objects"]
    second = call(sandbox, "GET", f"{path}&last_id={first[-1]['id']}").json()["objects"]
    assert [proxy["status"] for proxy in first + second] == ["OPEN", "FAILED", "CLOSED"]


def test_an_asset_that_is_not_there_is_iconiks_404(sandbox: FaultyIconik) -> None:
    answer = analyze(sandbox, "nobody")
    assert (answer.status_code, answer.json()) == (404, {"errors": ["Asset nobody doesn't exist"]})
    sandbox.makes_up_assets = True
    assert analyze(sandbox, "nobody").status_code == 201


def test_a_call_needs_its_role_and_the_credentials(sandbox: FaultyIconik) -> None:
    sandbox.automations.append({"name": "Analyze", "status": "ACTIVE"})
    path = "automations/v1/automations/"
    assert call(sandbox, "GET", path).json()["objects"] == sandbox.automations
    sandbox.roles.discard("can_read_automations")
    answer = call(sandbox, "GET", path)
    assert (answer.status_code, answer.json()) == (403, {"errors": ["Required roles: can_read_automations"]})
    assert call(sandbox, "GET", "users/v1/users/current/roles/").json() == {"objects": sorted(sandbox.roles)}
    sandbox.auth_token = "another"
    assert call(sandbox, "GET", path).json() == {"errors": ["Token is invalid"]}


@pytest.mark.parametrize("body", [b"[]", b"nonsense", b'{"filter": {"terms": [{"name": "title"}]}}'])
def test_a_call_that_is_not_understood_is_answered_400(sandbox: FaultyIconik, body: bytes) -> None:
    sandbox.create_asset("a.mov")
    answer = requests.post(f"{sandbox.url}/API/search/v1/search/", data=body, headers=HEADERS, timeout=10)
    assert (answer.status_code, list(answer.json())) == (400, ["errors"])


# Faults


@pytest.fixture
def asset_id(sandbox: FaultyIconik) -> str:
    return sandbox.create_asset("a.mov")


@pytest.mark.parametrize("after_work", [False, True])
@pytest.mark.parametrize("fault", [Fault(cut=True), Fault(hang=True)])
def test_a_request_without_an_answer_was_done_or_not(
    sandbox: FaultyIconik, asset_id: str, fault: Fault, after_work: bool
) -> None:
    sandbox.faults.append(Fault(cut=fault.cut, hang=fault.hang, after_work=after_work))
    with pytest.raises((requests.ConnectionError, requests.Timeout)):
        analyze(sandbox, asset_id, timeout=0.1)
    assert sandbox.jobs == [asset_id] * after_work
    assert analyze(sandbox, asset_id).status_code == 201


def test_a_request_may_be_done_some_time_after_its_connection_was_cut(sandbox: FaultyIconik, asset_id: str) -> None:
    sandbox.faults.append(Fault(cut=True, after_work=True, work_delay=0.1))
    with pytest.raises(requests.ConnectionError):
        analyze(sandbox, asset_id)
    assert sandbox.jobs == []
    assert sandbox.wait_for(lambda: sandbox.jobs == [asset_id])


def test_its_own_answer_may_come_too_late(sandbox: FaultyIconik, asset_id: str) -> None:
    sandbox.faults.append(Fault(status=None, delay=0.1, times=2))
    with pytest.raises(requests.Timeout):
        analyze(sandbox, asset_id, timeout=0.02)
    assert analyze(sandbox, asset_id).status_code == 201
    assert len(sandbox.jobs) == 2


def test_an_answer_has_any_status_headers_and_body(sandbox: FaultyIconik, asset_id: str) -> None:
    sandbox.faults.append(Fault(status=200, headers={"Retry-After": "7"}, body=b"<html>Back soon</html>"))
    answer = analyze(sandbox, asset_id)
    assert (answer.status_code, answer.text, answer.headers["Retry-After"]) == (200, "<html>Back soon</html>", "7")
    assert answer.headers["Content-Type"] == "text/html"
    sandbox.faults.append(Fault(status=201, headers={"Content-Length": "100"}))
    with pytest.raises(requests.exceptions.RequestException):
        analyze(sandbox, asset_id)
    assert sandbox.jobs == []


@pytest.mark.parametrize(
    ("drip_from", "first_part"), [("status", b"H"), ("headers", b"Service Unavailable\r\nD"), ("body", b"\r\n\r\n{")]
)
def test_an_answer_drips_from_the_status_line_the_headers_or_the_body_on(
    sandbox: FaultyIconik, drip_from: str, first_part: bytes
) -> None:
    sandbox.faults.append(Fault(drip=60, drip_from=drip_from))
    host, _, port = sandbox.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
        received = b""
        while not received.endswith(first_part):
            received += connection.recv(1)
        connection.settimeout(0.05)
        with pytest.raises(TimeoutError):
            connection.recv(1)


def test_a_whole_answer_may_drip_in(sandbox: FaultyIconik, asset_id: str) -> None:
    sandbox.faults.append(Fault(status=None, drip=0.0001))
    assert analyze(sandbox, asset_id).json()["id"] == sandbox.latest_job[asset_id]


def test_an_endless_body_ends_when_the_client_goes(sandbox: FaultyIconik, asset_id: str) -> None:
    sandbox.faults.append(Fault(status=302, headers={"Location": "/"}, body=b"x", endless=True))
    url = f"{sandbox.url}/API/assets/v1/assets/{asset_id}/"
    with requests.Session() as session:
        request = requests.Request("GET", url, headers=HEADERS).prepare()
        with session.get_adapter(url).send(request, stream=True, timeout=10) as answer:
            assert answer.raw.read(1_000_000) == b"x" * 1_000_000
    assert call(sandbox, "GET", f"assets/v1/assets/{asset_id}/").status_code == 200


def test_a_share_of_the_requests_fails_the_same_ones_in_each_run() -> None:
    fault, runs = Fault(share=0.2, times=FOREVER), []
    for _ in range(2):
        with FaultyIconik() as sandbox:
            sandbox.faults.append(fault)
            runs.append([sandbox.take_fault("GET /", b"") is fault for _ in range(1000)])
    assert runs[0] == runs[1]
    assert 150 < sum(runs[0]) < 250


def test_one_assets_trouble_is_its_own_and_goes_on(sandbox: FaultyIconik, asset_id: str) -> None:
    other = sandbox.create_asset("b.mov")
    sandbox.asset_faults[asset_id] = Fault(status=403)
    assert [analyze(sandbox, one).status_code for one in (asset_id, other, asset_id)] == [403, 201, 403]


def test_each_different_call_fails_once(sandbox: FaultyIconik, asset_id: str) -> None:
    sandbox.fail_each_once = Fault(status=500)
    assert [analyze(sandbox, asset_id).status_code for _ in range(3)] == [500, 201, 201]
    path = "jobs/v1/jobs/?per_page=1&page="
    assert [call(sandbox, "GET", f"{path}{page}").status_code for page in (1, 2, 1, 2)] == [500, 500, 200, 200]


def test_a_call_that_is_repeated_with_another_time_is_the_same_call(sandbox: FaultyIconik) -> None:
    sandbox.fail_each_once = Fault(status=500)
    assert "errors" in search(sandbox, {"max": "2026-11-22T10:00:00.000Z"})
    assert "objects" in search(sandbox, {"max": "2026-11-22T10:00:01.000Z"})
    assert "errors" in search(sandbox, {"max": "2026-11-22T10:00:01.000Z"}, search_after=[1_795_000_000_000, "a"])
    path = "jobs/v1/jobs/?date_modified=2026-11-22T10%3A00%3A0"
    assert [call(sandbox, "GET", f"{path}{second}Z").status_code for second in (1, 2)] == [500, 200]


def test_a_rate_limit_is_a_429_with_retry_after(sandbox: FaultyIconik, asset_id: str) -> None:
    sandbox.rate_limit = 3
    answers = [analyze(sandbox, asset_id) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [201, 201, 201, 429]
    assert answers[-1].headers["Retry-After"] == "1"
    assert len(sandbox.jobs) == 3


# By hand


ROOT = Path(__file__).parent.parent


def start(*arguments: str) -> "subprocess.Popen[str]":
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": ROOT}
    return subprocess.Popen([sys.executable, "-m", "sandbox", *arguments], text=True, **pipes)  # type: ignore[call-overload, no-any-return]


def test_a_title_typed_while_the_listener_is_down_is_a_line_and_the_end_of_input_ends_it() -> None:
    with start("0") as process:
        assert process.stdin
        assert process.stdout
        config = [process.stdout.readline().strip() for _ in range(6)]
        assert config[2] == "[iconik]"
        url = config[3].removeprefix("url = ")
        assert config[4:] == [f"app_id = {FaultyIconik.app_id}", f"auth_token = {FaultyIconik.auth_token}"]
        webhook = {"url": f"{REFUSED_URL}/create", "event_type": "assets", "status": "ENABLED"}
        answer = requests.post(f"{url}/API/{WEBHOOKS}", json=webhook, headers=HEADERS, timeout=10)
        assert answer.status_code == 201
        out, err = process.communicate("a.mov\n\nb.mov\n", timeout=10)
    assert out.count(f"Webhook to {REFUSED_URL}/create: ConnectionError. It is FAILING") == 4
    assert out.count("Uploaded ") == 2
    assert (process.returncode, err) == (0, "")


def test_ctrl_c_ends_it_quietly() -> None:
    with start("0") as process:
        assert process.stdout
        while "Each line typed" not in process.stdout.readline():
            pass
        process.send_signal(signal.SIGINT)
        process.wait(10)
        assert process.stderr
        assert (process.returncode, process.stderr.read()) == (0, "")


def test_a_port_that_is_taken_is_a_line(sandbox: FaultyIconik) -> None:
    port = sandbox.url.rpartition(":")[2]
    with start(port) as process:
        out, err = process.communicate(timeout=10)
    assert (process.returncode, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"Error: port {port} of 127.0.0.1: Address already in use")
