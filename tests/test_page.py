"""The page over HTTP: who gets in, what it shows, what its forms change, and what changes nothing."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import requests

from commands.report import Line
from config import load
from page.access import LinkAccess, ProxyAccess, proxy_key
from page.actions import Actions
from page.bars import chart
from page.web import create_page
from store import Rules, Store
from support import APP, ASSET, OTHER_ASSET, SECRET, Listener, ListenerHere, create_event, needs, new_id, wait_until
from system.server import Server

HOST = "page.example.com"
NASTY = """</title><script>alert(1)</script><img src=x onerror=alert(1)>'"&<b>bold</b>"""


class Page:
    """The page in this process, beside a listener. It is asked as a browser asks it."""

    def __init__(self, listener: ListenerHere, *, read_only: bool = False, behind_proxy: bool = False) -> None:
        config = load(listener.config)
        self.tokens: list[str] = []
        link = LinkAccess(self.tokens.append)
        link.start()

        def open_store() -> Store:
            return Store(config.listener.database, Rules.of(config))

        self.access = ProxyAccess(HOST, config.listener.webhook_secret) if behind_proxy else link
        self.actions = None if read_only else Actions(open_store)
        self.server = Server(create_page(config, self.access, open_store, self.actions), "127.0.0.1", 0)
        self.url = f"http://{self.server.address}"
        self.session = requests.Session()
        self.thread = threading.Thread(target=self.server.run, args=(lambda: None,))
        self.thread.start()

    def close(self) -> None:
        self.server.stop()
        self.thread.join()
        self.server.drain()
        if self.actions:
            self.actions.stop()
        self.session.close()

    def log_in(self) -> requests.Response:
        return self.session.get(self.link(), timeout=10)

    def link(self) -> str:
        """The newest link."""
        return f"{self.url}/?token={self.tokens[-1]}"

    def get(self, path: str, **headers: str) -> requests.Response:
        return self.session.get(self.url + path, headers=headers, timeout=10, allow_redirects=False)

    def text(self, path: str = "/") -> str:
        """What a page says, as one line."""
        answer = self.session.get(self.url + path, timeout=10)
        assert answer.status_code == 200, answer.text
        body = re.sub(r"<style.*?</style>|<title>.*?</title>", "", answer.text, flags=re.DOTALL)
        return " ".join(unescape(re.sub(r"<[^>]*>", " ", body)).split())

    def post(self, path: str, form: dict[str, str], **headers: str) -> requests.Response:
        headers = {"Origin": self.url, **headers}
        return self.session.post(self.url + path, data=form, headers=headers, timeout=10, allow_redirects=False)


Pages = Callable[..., Page]


@pytest.fixture
def pages(listener_here: ListenerHere) -> Iterator[Pages]:
    made: list[Page] = []

    def make(**options: bool) -> Page:
        made.append(Page(listener_here, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def page(pages: Pages) -> Page:
    """A page that was logged in to."""
    page = pages()
    page.log_in()
    return page


def fail(store: Store, reason: str, *object_ids: str, title: str = "clip.mov") -> None:
    """Add assets whose items failed."""
    with store.database.transaction() as db:
        for object_id in object_ids:
            values = {"id": object_id, "title": title, "now": store.now(), "reason": reason, "job_id": new_id()}
            db.execute(
                """INSERT INTO items (object_id, job, title, status, source, created_at, proxy_closed_at, attempts,
                    last_attempt_at, error, reason, job_id)
                VALUES (:id, 'analyze', :title, 'failed', 'webhook', :now, :now, 1,
                    :now, :reason || ' ' || :id, :reason, :job_id)""",
                values,
            )


def statuses(listener: ListenerHere) -> list[str]:
    return sorted(row["status"] for row in listener.rows())


# Who gets in


def test_a_link_becomes_a_cookie_and_works_once(pages: Pages) -> None:
    page = pages()
    answer = page.log_in()
    assert answer.status_code == 200
    assert re.fullmatch(r"iconik_listener_\d+=\S{32}; HttpOnly; Path=/; SameSite=Strict", answer.headers["Set-Cookie"])
    assert "No webhook has come yet." in page.text()
    page.session.cookies.clear()
    answer = page.get(f"/?token={page.tokens[0]}")
    assert (answer.status_code, "was used before" in answer.text) == (403, True)
    assert "Set-Cookie" not in answer.headers
    assert len(page.tokens) == 2
    page.log_in()
    assert page.get("/").status_code == 200


@pytest.mark.parametrize("token", ["", "x", "ä", "a" * 5000, "{}"])
def test_another_token_opens_nothing(pages: Pages, token: str) -> None:
    page = pages()
    assert page.get(f"/?token={token}").status_code == 403
    assert len(page.tokens) == 1


@pytest.mark.parametrize("path", ["/", "/search?q=a", f"/asset/{ASSET}", "/items/failed", "/nothing"])
def test_without_the_cookie_nothing_is_shown(listener_here: ListenerHere, pages: Pages, path: str) -> None:
    fail(listener_here.store, "Codec unknown", ASSET)
    page = pages()
    answer = page.get(path, Cookie=f"iconik_listener_{page.url.rpartition(':')[2]}=made-up")
    assert answer.status_code == 403
    assert "Codec" not in answer.text and ASSET not in answer.text
    assert "Open the link that the terminal shows." in answer.text


@pytest.mark.parametrize("host", ["evil.example.com", "127.0.0.1.evil.example.com:80", "localhost:x", "", "[::2]"])
def test_a_foreign_host_sees_nothing(page: Page, host: str) -> None:
    """A name of somebody else's may lead to this machine, and its pages then read what ours answer."""
    answer = page.get("/", Host=host)
    assert answer.status_code in (400, 403)
    assert "listener" not in answer.text.partition("<h1>")[2]
    assert page.get(f"/?token={page.tokens[-1]}", Host=host).status_code in (400, 403)
    assert len(page.tokens) == 2


@pytest.mark.parametrize("host", ["localhost", "[::1]", "127.0.0.1"])
def test_a_tunnel_may_have_any_port(page: Page, host: str) -> None:
    [cookie] = page.session.cookies.get_dict().values()
    assert page.get("/", Host=f"{host}:9999", Cookie=f"iconik_listener_9999={cookie}").status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example.com", "null", "", "http://127.0.0.1", "http://localhost:1"])
@pytest.mark.parametrize("path", ["/retry/group", "/skip/asset"])
def test_a_foreign_form_changes_nothing(listener_here: ListenerHere, page: Page, path: str, origin: str) -> None:
    fail(listener_here.store, "Codec unknown", ASSET)
    form = {"status": "failed", "group": "Codec unknown", "object_id": ASSET}
    answer = page.post(path, form, Origin=origin)
    assert (answer.status_code, "nothing was changed" in answer.text) == (403, True)
    assert statuses(listener_here) == ["failed"]


def test_a_form_without_cookie_or_origin_changes_nothing(listener_here: ListenerHere, page: Page) -> None:
    fail(listener_here.store, "Codec unknown", ASSET)
    form = {"object_id": ASSET}
    assert page.session.post(f"{page.url}/retry/asset", data=form, timeout=10).status_code == 403
    page.session.cookies.clear()
    assert page.post("/retry/asset", form).status_code == 403
    assert statuses(listener_here) == ["failed"]


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND"])
def test_another_method_changes_nothing(listener_here: ListenerHere, page: Page, method: str) -> None:
    fail(listener_here.store, "Codec unknown", ASSET)
    form = {"status": "failed", "group": "Codec unknown", "object_id": ASSET}
    for path in ("/retry/group", "/skip/group", "/retry/asset", "/skip/asset"):
        answer = page.session.request(
            method, page.url + path, params=form, data=form, headers={"Origin": page.url}, timeout=10
        )
        assert answer.status_code == (200 if method == "OPTIONS" else 405)
    assert page.session.request(method, f"{page.url}/", timeout=10).status_code in (200, 403, 405)
    assert statuses(listener_here) == ["failed"]


def test_every_answer_has_the_headers_that_protect_it(page: Page) -> None:
    for path in ("/", "/nothing", f"/?token={page.tokens[-1]}", "/?token=wrong"):
        answer = page.get(path)
        policy = answer.headers["Content-Security-Policy"].split("; ")
        [nonce] = re.findall(r'<style nonce="([^"]{22})">', answer.text)
        assert policy == [
            "default-src 'none'",
            f"style-src 'nonce-{nonce}'",
            "form-action 'self'",
            "frame-ancestors 'none'",
            "base-uri 'none'",
        ]
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "same-origin"
        assert "<script" not in answer.text and " style=" not in answer.text
    assert page.get("/").headers["Content-Security-Policy"] != page.get("/").headers["Content-Security-Policy"]


# Behind Caddy


def behind_caddy(**headers: str) -> dict[str, str]:
    return {"Host": HOST, "Origin": f"https://{HOST}", "X-Page-Key": proxy_key(SECRET), "X-Page-User": "ann", **headers}


def test_behind_caddy_its_user_needs_no_link(listener_here: ListenerHere, pages: Pages) -> None:
    fail(listener_here.store, "Codec unknown", ASSET)
    page = pages(behind_proxy=True)
    assert "Codec unknown" in page.get("/", **behind_caddy()).text
    assert page.post("/skip/asset", {"object_id": ASSET}, **behind_caddy()).status_code == 303
    assert statuses(listener_here) == ["skipped"]


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Page-Key": ""},
        {"X-Page-Key": SECRET},
        {"X-Page-User": ""},
        {"X-Page-User": "{http.auth.user.id}"},  # Caddy asked for no password
        {"Host": "127.0.0.1"},
        {"Host": "other.example.com"},
        {"Origin": "http://page.example.com"},
        {"Origin": "https://evil.example.com"},
    ],
)
def test_behind_caddy_nobody_gets_in_past_it(
    listener_here: ListenerHere, pages: Pages, headers: dict[str, str]
) -> None:
    fail(listener_here.store, "Codec unknown", ASSET)
    page = pages(behind_proxy=True)
    assert page.post("/skip/asset", {"object_id": ASSET}, **behind_caddy(**headers)).status_code == 403
    assert "Origin" in headers or page.get("/", **behind_caddy(**headers)).status_code == 403
    assert page.get(f"/?token={page.tokens[0]}", Host=HOST).status_code == 403
    assert statuses(listener_here) == ["failed"]


# What it shows


def test_the_overview_shows_what_status_shows(listener_here: ListenerHere, page: Page) -> None:
    listener_here.upload(OTHER_ASSET)
    wait_until(lambda: listener_here.rows("status = 'submitted'"))
    fail(listener_here.store, "Codec unknown", *(new_id() for _ in range(5)))
    text = page.text()
    assert "has been running since" in text
    assert "1 analysis was started today (UTC), 1 this month." in text
    assert "Codec unknown 5 items failed , since 20" in text
    assert "clip.mov , clip.mov , clip.mov and 2 more" in text
    assert "submitted 1 " in text and "failed 5 0 min" in text
    assert "1 job was started from" in text
    assert re.search(r"As of 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d \w+\.", text)


def test_what_iconik_bills_this_month_is_shown_by_job(listener_here: ListenerHere, page: Page) -> None:
    assert "What iconik bills for 20" in page.text() and "by the listener's count: nothing." in page.text()
    today = listener_here.store.today()
    for job, media_type, seconds in (
        ("analyze", "video", 7200),
        ("analyze", "image", 0),
        ("transcribe", "video", 7200),
    ):
        values = {"id": new_id(), "job": job, "media_type": media_type, "seconds": seconds, "day": today}
        listener_here.store.database.run(
            """INSERT INTO items (object_id, job, status, source, created_at, counted_on, media_type, duration)
            VALUES (:id, :job, 'done', 'webhook', :day, :day, :media_type, :seconds)""",
            **values,
        )
    for job in ("analyze", "transcribe"):
        listener_here.store.database.run("INSERT INTO usage VALUES (:day, :job, 2, 0)", day=today, job=job)
    assert (
        f"What iconik bills for {today[:7]}, by the listener's count: "
        "analyze: 1 image and 2.0 hours of video or audio; transcribe: 2.0 hours of video or audio."
    ) in page.text()


def test_what_waits_is_shown_with_its_reason(listener_here: ListenerHere, page: Page) -> None:
    fail(listener_here.store, "iconik answered 402", ASSET)
    listener_here.command("pause", "--reason", "budget")
    listener_here.store.database.run("UPDATE items SET status = 'ready', attempts = 3, next_attempt_at = '2100'")
    text = page.text()
    assert "(budget)" in text
    assert "ready 1 0 min (1 held)" in text
    assert "iconik answered 402 1 item waiting to be retried , since 20" in text
    assert "Nothing failed." in text


def test_the_limit_is_that_of_the_listener_which_runs(listeners_here: Callable[..., ListenerHere]) -> None:
    """It may have been restarted with another config.ini since the page began."""
    listener = listeners_here(limits__max_per_day=1000).start()
    listener.store.database.run("INSERT INTO usage VALUES (:day, 'analyze', 30, 0)", day=listener.store.today())
    text = listener.config.read_text()
    listener.config.write_text(text.replace("max_per_day = 1000", "max_per_day = 25"))
    with closing(Page(listener)) as page:
        listener.config.write_text(text)
        page.log_in()
        assert "30 of 1000 analyses were started today" in " ".join(page.text().split())


def test_what_failed_for_more_than_ten_reasons_is_counted(listener_here: ListenerHere, page: Page) -> None:
    for number in range(13):
        fail(listener_here.store, f"Codec {chr(65 + number)} unknown", new_id())
    assert "3 more items for 3 other reasons" in page.text()


def test_an_asset_is_found_and_tells_its_story(listener_here: ListenerHere, page: Page, sandbox: Any) -> None:
    listener_here.upload(ASSET)
    listener_here.store.database.run("UPDATE items SET title = 'holiday in Rome.mov'")
    fail(listener_here.store, "Codec unknown", OTHER_ASSET, title="holiday in Oslo.mov")
    wait_until(lambda: listener_here.rows("status = 'submitted'"))
    for query in ("holiday in Rome.mov", "Rome", ASSET, ASSET[:8], f"{sandbox.url}/asset/{ASSET}"):
        text = page.text(f"/search?q={query}")
        assert text.count("holiday in Rome.mov") == 1
        assert "the asset was added" in text and "analyze: submitted" in text
    assert f'href="{sandbox.url}/asset/{ASSET}"' in page.get(f"/asset/{ASSET}").text
    failed = page.text(f"/asset/{OTHER_ASSET}")
    assert "it failed: Codec unknown" in failed and "iconik-listener retry" not in failed  # there is a button
    both = page.text("/search?q=holiday")
    assert "2 assets for “holiday”" in both
    assert both.index(f"holiday in Oslo.mov analyze: failed {OTHER_ASSET}") < both.index(
        f"holiday in Rome.mov analyze: submitted {ASSET}"
    )
    assert "No asset in items.db has “nothing%” in its title" in page.text("/search?q=nothing%25")
    assert page.get("/asset/nothing").status_code == 404


def test_a_group_lists_its_assets_page_by_page(listener_here: ListenerHere, page: Page) -> None:
    fail(listener_here.store, "Codec unknown", *(new_id() for _ in range(101)))
    fail(listener_here.store, "File is empty", ASSET)
    first = page.text("/items/failed?reason=Codec+unknown")
    assert first.count("clip.mov") == 100 and "The next page" in first and "The newest first, page 1" in first
    second = page.text("/items/failed?reason=Codec+unknown&page=2")
    assert second.count("clip.mov") == 1 and "The page before" in second
    assert "That means: iconik has finished it. There are none." in page.text("/items/done")
    assert page.text("/items/failed?page=2").count("clip.mov") == 2
    assert [page.get(path).status_code for path in ("/items/x", "/items/failed?page=x")] == [404, 200]


def test_a_list_without_errors_has_no_column_for_them(listener_here: ListenerHere, page: Page) -> None:
    fail(listener_here.store, "Codec unknown", ASSET)
    assert "The newest first title job time why clip.mov" in page.text("/items/failed")
    listener_here.store.database.run("UPDATE items SET status = 'done', done_at = last_attempt_at, error = NULL")
    assert "The newest first title job time clip.mov" in page.text("/items/done")


def test_titles_full_of_markup_are_text(listener_here: ListenerHere, page: Page) -> None:
    fail(listener_here.store, NASTY, ASSET, title=NASTY)
    listener_here.store.database.run("UPDATE items SET error = reason")
    paths = ("/", f"/asset/{ASSET}", "/items/failed", "/items/failed?reason=<b>", "/search?q=<script>x", "/<b>")
    for path in paths:
        body = page.session.get(page.url + path, timeout=10).text
        assert "<script" not in body and "<img" not in body and "<b>" not in body
    assert NASTY in page.text(f"/asset/{ASSET}")
    assert page.post("/retry/group", {"status": "failed", "group": NASTY}).status_code == 303
    wait_until(lambda: statuses(listener_here) != ["failed"])
    assert f"Retry “{NASTY}”: 1 item will be tried again." in page.text()


@pytest.mark.parametrize("title", ["CAST(x'ff41' AS TEXT)", "x'00ff'", "12", "NULL", "'a' || char(10) || 'b'"])
def test_a_title_that_is_no_text_breaks_no_page(listener_here: ListenerHere, page: Page, title: str) -> None:
    fail(listener_here.store, "x", ASSET)
    listener_here.store.database.run(f"UPDATE items SET title = {title}, reason = {title}")
    for path in ("/", f"/asset/{ASSET}", "/items/failed", "/search?q=a"):
        page.text(path)
    page.post("/retry/asset", {"object_id": ASSET})


def test_without_a_listener_the_page_says_so(listener_here: ListenerHere, page: Page) -> None:
    listener_here.end()
    assert "No listener is running." in page.text()
    listener_here.database.rename(listener_here.database.with_suffix(".moved"))
    answer = page.get("/")
    assert (answer.status_code, "does not exist" in answer.text) == (503, True)


# What it changes


def test_retry_takes_up_one_group_only(listener_here: ListenerHere, page: Page) -> None:
    fail(listener_here.store, "Codec unknown", *(new_id() for _ in range(250)))
    fail(listener_here.store, "File is empty", ASSET)
    listener_here.command("pause")
    assert page.post("/retry/group", {"status": "failed", "group": "Codec unknown"}).headers["Location"] == "/"
    wait_until(lambda: statuses(listener_here) == ["failed"] + ["ready"] * 250)
    wait_until(lambda: "Retry “Codec unknown”: 250 items will be tried again." in page.text())
    assert "250 items failed" not in page.text()
    wait_until(lambda: "on the page: retry “Codec unknown”: 250" in page.text())


def test_groups_of_several_jobs_are_told_apart(listeners_here: Any) -> None:
    listener = listeners_here(submitter__jobs="analyze faces").start()
    fail(listener.store, "Codec unknown", ASSET, OTHER_ASSET)
    listener.store.database.run("UPDATE items SET job = 'faces' WHERE object_id = :id", id=ASSET)
    page = Page(listener)
    try:
        page.log_in()
        text = page.text()
        assert "Codec unknown (analyze) 1 item failed" in text and "Codec unknown (faces) 1 item failed" in text
        assert page.text("/items/failed?job=faces&reason=Codec+unknown").count("clip.mov") == 1
        page.post("/skip/group", {"status": "failed", "job": "faces", "group": "Codec unknown"})
        assert [row["job"] for row in listener.rows("status = 'skipped'")] == ["faces"]
        assert "Skip “Codec unknown” (faces): 1 item skipped." in page.text()
    finally:
        page.close()


def test_skip_takes_what_waits_in_a_group(listener_here: ListenerHere, page: Page) -> None:
    fail(listener_here.store, "iconik answered 402", ASSET, OTHER_ASSET)
    listener_here.command("pause")
    listener_here.store.database.run("UPDATE items SET status = 'ready', attempts = 3, next_attempt_at = '2100'")
    page.post("/skip/group", {"status": "ready", "group": "iconik answered 402", "reason": "not needed"})
    assert [row["error"] for row in listener_here.rows("status = 'skipped'")] == ["not needed"] * 2
    assert "Skip “iconik answered 402”: 2 items skipped." in page.text()


def test_what_goes_wrong_with_a_group_is_told(listener_here: ListenerHere, page: Page) -> None:
    fail(listener_here.store, "Codec unknown", ASSET)
    listener_here.store.database.run(
        "CREATE TRIGGER mine BEFORE UPDATE ON items BEGIN SELECT RAISE(ABORT, 'leave it alone'); END"
    )
    page.post("/retry/group", {"status": "failed", "group": "Codec unknown"})
    assert re.search(r"Retry “Codec unknown”: 0 items will be tried again\. .*leave it alone", page.text())
    assert statuses(listener_here) == ["failed"]


def test_a_group_without_a_reason_can_be_retried(listener_here: ListenerHere, page: Page) -> None:
    fail(listener_here.store, "Codec unknown", ASSET)
    fail(listener_here.store, "x", OTHER_ASSET)
    listener_here.store.database.run("UPDATE items SET reason = NULL WHERE reason = 'x'")
    assert "No reason is known" in page.text()
    page.post("/skip/group", {"status": "failed", "group": ""})
    assert [row["object_id"] for row in listener_here.rows("status = 'skipped'")] == [OTHER_ASSET]


def test_one_job_of_an_asset_is_retried(pages: Pages, listener_here: ListenerHere) -> None:
    fail(listener_here.store, "Codec unknown", ASSET)
    page = pages()
    page.log_in()
    answer = page.post("/retry/asset", {"object_id": ASSET, "job": "faces"})
    assert (answer.status_code, answer.headers["Location"]) == (303, f"/asset/{ASSET}")
    assert statuses(listener_here) == ["failed"]
    page.post("/retry/asset", {"object_id": ASSET, "job": "analyze"})
    assert [row["asked"] for row in listener_here.rows("status <> 'failed'")] == [1]
    assert "Retry clip.mov: 1 item will be tried again." in page.text()


@pytest.mark.parametrize("status", ["submitting", "submitted", "done"])
def test_what_iconik_has_is_left_alone(listener_here: ListenerHere, page: Page, status: str) -> None:
    fail(listener_here.store, "Codec unknown", ASSET)
    listener_here.store.database.run("UPDATE items SET status = :status", status=status)
    for path in ("/retry/asset", "/skip/asset"):
        page.post(path, {"object_id": ASSET})
    for path in ("/retry/group", "/skip/group"):
        assert page.post(path, {"status": status, "group": "Codec unknown"}).status_code == 400
    assert statuses(listener_here) == [status]
    assert "<button>Retry" not in page.get(f"/asset/{ASSET}").text


def test_read_only_has_no_buttons_and_takes_no_forms(listener_here: ListenerHere, pages: Pages) -> None:
    fail(listener_here.store, "Codec unknown", ASSET)
    page = pages(read_only=True)
    page.log_in()
    for path in ("/", f"/asset/{ASSET}", "/items/failed"):
        assert re.findall(r"<button[^>]*>(.*?)</button>|method=\"post\"", page.get(path).text) == ["Search"]
    for path in ("/retry/group", "/skip/group", "/retry/asset", "/skip/asset"):
        assert page.post(path, {"object_id": ASSET, "status": "failed", "group": "Codec unknown"}).status_code == 404
    assert statuses(listener_here) == ["failed"]


# The bars


def test_the_bars_have_words_and_numbers() -> None:
    lines = [
        Line("2026-11-01", "analyze", 9, 0, 9, 0, 0, 0, 0.0, 0.0),
        Line("2026-11-25", "analyze", 3, 0, 3, 0, 0, 0, 0.0, 0.0),
        Line("2026-11-26", "analyze", 1, 0, 1, 0, 0, 0, 0.0, 0.0),
        Line("2026-11-26", "faces", 3, 0, 1, 0, 0, 0, 0.0, 0.0),
    ]
    drawn = chart(lines, "2026-11-26", 3)
    assert drawn.summary == "7 jobs were started from 2026-11-24 to 2026-11-26; the most, 4, on 2026-11-26."
    assert drawn.rows == [("2026-11-26", [1, 3]), ("2026-11-25", [3, 0])]
    assert [(bar.job, bar.y, bar.height) for bar in drawn.bars] == [
        ("analyze", 30.0, 90.0),
        ("analyze", 90.0, 30.0),
        ("faces", 0.0, 90.0),
    ]
    assert chart([], "2026-11-26", 30).summary == "No job was started from 2026-10-28 to 2026-11-26."


@pytest.mark.long
def test_a_real_caddy_asks_for_the_password(listener: Listener, tmp_path: Path) -> None:
    """With the lines that the page prints. Without a password in the Caddyfile, the page shows nothing."""
    needs("caddy")
    options = ("--behind-proxy", HOST)
    with start_page(listener, *options) as page:
        assert page.stdout and page.stderr
        [address] = re.findall(r"http://(127\.0\.0\.1:\d+)", page.stdout.readline())
        port = address.rpartition(":")[2]
        lines = listener.command("page", *options, "--port", port, "--caddyfile").stdout
        with Caddy(tmp_path, lines) as caddy:
            assert caddy.get().status_code == 401
            assert caddy.get(("ann", "wrong")).status_code == 401
            forged = {"X-Page-User": "bob", "X-Page-Key": proxy_key(SECRET)}
            assert caddy.get(headers=forged).status_code == 401
            answer = caddy.get(("ann", "pass word"), forged)
            assert (answer.status_code, "has been running since" in answer.text) == (200, True)
            headers = {**forged, "Origin": f"https://{HOST}"}
            form = {"object_id": ASSET}
            answer = requests.post(
                f"{caddy.url}/skip/asset",
                data=form,
                auth=("ann", "pass word"),
                headers={"Host": HOST, **headers},
                timeout=10,
                allow_redirects=False,
            )
            assert answer.status_code == 303
        open_to_all = re.sub(r"basicauth \{.*?\}\n", "", lines, flags=re.DOTALL)
        with Caddy(tmp_path, open_to_all) as caddy:
            assert caddy.get().status_code == 403
            assert caddy.get(headers={"X-Page-User": "bob"}).status_code == 403
        page.terminate()
        assert f"skip for {ASSET} by ann: 0 items changed" in page.stderr.read()


class Caddy:
    """Debian's Caddy or a newer one, with those lines in the Caddyfile, over plain HTTP."""

    def __init__(self, folder: Path, lines: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = ["caddy", "hash-password", "--plaintext", "pass word"]
        lines = lines.replace("NAME HASH", "ann " + subprocess.check_output(command, text=True).strip())
        version = subprocess.check_output(["caddy", "version"], text=True).lstrip("v").split(".")
        if int(version[1]) >= 8:
            lines = lines.replace("basicauth", "basic_auth")
        file = folder / "Caddyfile"
        file.write_text(f"{{\nadmin off\n}}\nhttp://{HOST}:{port} {{\n{lines}}}\nhttp://other:{port} {{\n}}\n")
        environment = {"PATH": os.environ["PATH"], "HOME": str(folder)}
        self.process = subprocess.Popen(
            ["caddy", "run", "--config", str(file), "--adapter", "caddyfile"],
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        wait_until(self._answers)

    def _answers(self) -> bool:
        assert self.process.poll() is None, "Caddy does not start"
        try:
            return bool(self.get().status_code)
        except requests.ConnectionError:
            return False

    def get(self, auth: tuple[str, str] | None = None, headers: dict[str, str] | None = None) -> requests.Response:
        return requests.get(self.url, auth=auth, headers={"Host": HOST, **(headers or {})}, timeout=10)

    def __enter__(self) -> "Caddy":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()


# Beside the listener


def add_items(store: Store, count: int) -> None:
    """100,000 items, say: most of them done this month, some failed."""
    store.database.run(
        """WITH RECURSIVE numbers AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM numbers WHERE n < :count)
        INSERT INTO items (object_id, job, title, status, source, created_at, proxy_closed_at, attempts,
            last_attempt_at, submitted_at, done_at, counted_on, media_type, duration, error, reason)
        SELECT printf('%08x-0000-4000-8000-000000000000', n), 'analyze', 'clip ' || n || '.mov',
            CASE WHEN n % 20 = 0 THEN 'failed' ELSE 'done' END, 'webhook', :now, :now, 1,
            :now, :now, :now, substr(:now, 1, 10), 'video', 60.0, 'Codec unknown', 'Codec unknown' FROM numbers""",
        count=count,
        now=store.now(),
    )
    store.database.run("INSERT INTO usage VALUES (:day, 'analyze', :count, 0)", day=store.today(), count=count)


def send_webhooks(listener: Listener, rate: float, stop: threading.Event, answers: list[int]) -> None:
    """Deliver that many new assets a second, or as many as are answered."""
    with requests.Session() as session:
        started, sent = time.monotonic(), 0
        while not stop.wait(max(0.0, started + sent / rate - time.monotonic())):
            event, headers = create_event(new_id()), {"X-Webhook-Secret": SECRET}
            answers.append(session.post(f"{listener.url}/create", json=event, headers=headers, timeout=30).status_code)
            sent += 1


@pytest.mark.long
def test_page_and_listener_do_not_disturb_each_other(listeners: Callable[..., Listener]) -> None:
    """100,000 items, up to 500 webhooks a second, somebody who looks all the time and retries 5,000 items."""
    listener = listeners(reconciler__interval=0)
    with closing(Store(listener.database, listener=True)) as store:
        add_items(store, 100_000)
    listener.start()
    stop, webhooks, pages = threading.Event(), list[int](), list[int]()
    threads = [threading.Thread(target=send_webhooks, args=(listener, 62.5, stop, webhooks)) for _ in range(8)]
    with start_page(listener) as process, requests.Session() as session:
        assert process.stdout
        link = [process.stdout.readline() for _ in range(2)][1].strip()
        url = link.partition("/?")[0]
        pages.append(session.get(link, timeout=30).status_code)
        for thread in threads:
            thread.start()
        form = {"status": "failed", "group": "Codec unknown"}
        headers = {"Origin": url}
        pages.append(session.post(f"{url}/skip/group", data=form, headers=headers, timeout=30).status_code)
        deadline = time.monotonic() + 8
        while time.monotonic() < deadline or "goes on" in session.get(url, timeout=30).text:
            for path in ("/", "/search?q=clip+99", "/items/failed", "/items/done", "/search?q=clip+77777.mov"):
                pages.append(session.get(url + path, timeout=30).status_code)
        stop.set()
        for thread in threads:
            thread.join()
        assert "Skip “Codec unknown”: 5000 items skipped." in session.get(url, timeout=30).text
    assert set(webhooks) == set(pages) == {200}
    assert len(listener.rows("status = 'awaiting_proxy'")) == len(webhooks) > 100
    assert len(listener.rows("status = 'skipped'")) == 5000
    assert [line for line in listener.log if "WARNING" in line or "ERROR" in line] == []


# The process


@contextmanager
def start_page(listener: Listener, *options: str) -> Iterator["subprocess.Popen[str]"]:
    """`python app.py page` in a process of its own, which is ended in the end."""
    command = [sys.executable, str(APP), "--config", str(listener.config), "page", "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_command_serves_on_loopback_until_it_is_ended(listener: Listener, number: signal.Signals) -> None:
    with start_page(listener) as process:
        assert process.stdout and process.stderr
        assert process.stdout.readline().endswith("Ctrl-C ends the page.\n")
        link = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=\S{32}", link)
        with requests.Session() as session:
            assert session.get(link, timeout=10).status_code == 200
            assert "has been running since" in session.get(link.partition("?")[0], timeout=10).text
        assert process.stdout.readline().startswith(link.partition("=")[0])
        process.send_signal(number)
        assert process.wait(10) == 0
        assert process.stderr.read() == ""


def test_what_keeps_the_page_from_starting_is_a_line(listener: Listener) -> None:
    port = listener.url.rpartition(":")[2]
    result = listener.run("page", "--port", port)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == (
        f"Error: cannot listen on 127.0.0.1, port {port}: Address already in use. To see which program has it:"
        f" sudo ss -ltnp 'sport = :{port}'. Or change --port\n"
    )
    assert "needs --behind-proxy" in listener.command("page", "--caddyfile").stderr
    for name in ("http://foo", "foo/page", "a b", ""):
        refused = listener.command("page", "--behind-proxy", name, "--caddyfile")
        assert (refused.returncode, refused.stdout) == (2, "")
        assert "it must be a host name like iconik-listener.example.com" in refused.stderr
    assert listener.command("page", "--behind-proxy", "Page.example.com:8443", "--caddyfile").returncode == 0
    listener.end()
    listener.database.rename(listener.database.with_suffix(".moved"))
    assert "does not exist" in listener.command("page").stderr


def test_the_lines_for_caddy_have_a_key_and_not_the_secret(listener: Listener) -> None:
    text = listener.command("page", "--behind-proxy", HOST, "--caddyfile").stdout
    assert f"header_up X-Page-Key {proxy_key(SECRET)}\n" in text
    assert "reverse_proxy 127.0.0.1:8001 {\n" in text
    assert "basicauth {\n" in text
    assert SECRET not in text
    listener.config.write_text(listener.config.read_text().replace(f"webhook_secret = {SECRET}", ""))
    assert "set webhook_secret" in listener.command("page", "--behind-proxy", HOST).stderr
