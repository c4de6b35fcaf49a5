"""The page in a real browser, Debian's chromium, used as a person uses it."""

import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from browser import PROGRAM, Browser
from support import ASSET, OTHER_ASSET, ListenerHere, needs, new_id, wait_until
from test_page import NASTY, Page, fail

pytestmark = pytest.mark.long  # a browser takes seconds to start
Browsers = Callable[..., Browser]
AXE = Path(__file__).parent.parent / "node_modules" / "axe-core" / "axe.min.js"


@pytest.fixture
def browsers(tmp_path: Path) -> Iterator[Browsers]:
    needs(PROGRAM)
    made: list[Browser] = []

    def make(**options: bool | int) -> Browser:
        made.append(Browser(tmp_path / f"profile{len(made)}", **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for browser in made:
        browser.close()


@pytest.fixture
def page(listener_here: ListenerHere) -> Iterator[Page]:
    page = Page(listener_here)
    yield page
    page.close()


def test_a_person_finds_a_failed_asset_and_retries_its_group(
    listener_here: ListenerHere, page: Page, browsers: Browsers
) -> None:
    """Without JavaScript. In the end, a second use of the link shows nothing, in this browser and in another one."""
    fail(listener_here.store, "Codec unknown", *(new_id() for _ in range(3)))
    fail(listener_here.store, "Codec unknown", ASSET, title="holiday.mov")
    fail(listener_here.store, "File is empty", OTHER_ASSET)
    listener_here.command("pause")
    browser, link = browsers(), page.link()
    browser.open(link)
    browser.wait_for_text("4 items failed")
    assert browser.url() == f"{page.url}/"

    browser.type("searchbox", "Title or id", "holiday")
    browser.wait_for_text("failed: Codec unknown", "the asset was added")
    assert browser.url() == f"{page.url}/asset/{ASSET}"
    assert browser.names("heading")[0] == "holiday.mov"

    browser.click("link", "iconik-listener")
    browser.wait_for_text("4 items failed", "1 item failed")
    assert [name for name in browser.names("button") if name.startswith("Retry")] == ["Retry all of these"] * 2
    browser.click("button", "Retry all of these")
    browser.wait_for_text("Retry “Codec unknown”: 4 items will be tried again.", "4 held")
    assert "4 items failed" not in browser.text()
    assert sorted(row["status"] for row in listener_here.rows()) == ["failed"] + ["ready"] * 4

    browser.open(link)
    browser.wait_for_text("This link does not work, or was used before.")
    assert "Codec" not in browser.text()
    other = browsers()
    other.open(link)
    other.wait_for_text("This link does not work, or was used before.")
    other.open(page.url)
    other.wait_for_text("Open the link that the terminal shows.")
    assert "empty" not in other.text()


def test_markup_in_titles_runs_nothing_in_a_browser(
    listener_here: ListenerHere, page: Page, browsers: Browsers
) -> None:
    fail(listener_here.store, NASTY, ASSET, title=NASTY)
    browser = browsers(javascript=True)
    browser.open(page.link())
    browser.wait_for(lambda: NASTY in browser.names("heading"))
    browser.click("link", NASTY)
    browser.wait_for(lambda: browser.url() == f"{page.url}/asset/{ASSET}" and NASTY in browser.names("heading"))
    browser.open(f"{page.url}/search?q=" + NASTY.replace("&", "%26"))
    browser.wait_for(lambda: NASTY in browser.text())
    methods = [event.get("method") for event in browser.events]
    assert "Page.javascriptDialogOpening" not in methods
    violations = [str(event) for event in browser.events if "Content Security Policy" in str(event)]
    assert violations == []


def test_a_form_on_another_site_changes_nothing(listener_here: ListenerHere, page: Page, browsers: Browsers) -> None:
    """The browser is logged in, and a person clicks a button on a page of somebody else's."""
    fail(listener_here.store, "Codec unknown", ASSET)
    browser = browsers(javascript=True)
    browser.open(page.link())
    browser.wait_for_text("1 item failed")
    form = f'<form action="{page.url}/retry/asset" method="post"><input name="object_id" value="{ASSET}">'
    with site(f'<html lang="en"><title>x</title>{form}<button>Win</button></form></html>') as url:
        browser.open(url)
        browser.click("button", "Win")
        browser.wait_for(lambda: browser.url() == f"{page.url}/retry/asset")
        browser.wait_for_text("Forbidden")
    assert [row["status"] for row in listener_here.rows()] == ["failed"]


def test_the_link_works_where_it_is_clicked_on_another_site(
    listener_here: ListenerHere, page: Page, browsers: Browsers
) -> None:
    """Such as a chat. A browser leaves a SameSite cookie out of a redirect after that."""
    browser = browsers()
    with site(f'<html lang="en"><title>x</title><a href="{page.link()}">The page</a></html>') as url:
        browser.open(url)
        browser.click("link", "The page")
        browser.wait_for_text("No webhook has come yet.")


class site:  # noqa: N801 it is used as a function
    """Another site, on the name localhost."""

    def __init__(self, html: str) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.end_headers()
                self.wfile.write(html.encode())

            def log_message(self, *_: object) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)

    def __enter__(self) -> str:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return f"http://localhost:{self._server.server_port}/"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_shows_everything_without_scrolling_sideways(
    listener_here: ListenerHere, page: Page, browsers: Browsers, dark: bool
) -> None:
    fail(listener_here.store, "Codec unknown " * 10, ASSET, title="a_very_long_title_without_any_space" * 5)
    browser = browsers(width=360, dark=dark)
    browser.open(page.link())
    browser.wait_for_text("1 item failed")
    for path in ("/", f"/asset/{ASSET}", "/items/failed", "/search?q=title"):
        browser.open(page.url + path)
        browser.wait_for_text("As of 20")
        assert browser.call("Page.getLayoutMetrics")["cssContentSize"]["width"] == 360
        colour = browser.run("getComputedStyle(document.body).backgroundColor")
        assert re.findall(r"\d+", colour) == (["20", "24", "28"] if dark else ["255", "255", "255"])


def test_a_phone_shows_a_list_without_columns(listener_here: ListenerHere, page: Page, browsers: Browsers) -> None:
    """Four columns would be two letters wide each. The title of each item takes the whole line."""
    fail(listener_here.store, "Codec unknown", ASSET, OTHER_ASSET)
    browser = browsers(width=360)
    browser.open(page.link())
    for path, words in (("/items/failed", "The newest first"), ("/search?q=clip", "2 assets for")):
        browser.open(page.url + path)
        browser.wait_for_text(words)
        assert (
            browser.run("[...document.querySelectorAll('.list th[scope=row]')].map(one => one.offsetWidth)")
            == [328] * 2
        )
        assert len(browser.names("rowheader")) == 2  # a screen reader still reads a table


@pytest.mark.parametrize("width, dark", [(1000, False), (390, True)])
def test_axe_finds_no_error(
    listener_here: ListenerHere, page: Page, browsers: Browsers, width: int, dark: bool
) -> None:
    """All rules of axe-core, best practices included, which npm brings: CONTRIBUTING.md says how."""
    if not AXE.exists():
        pytest.skip("axe-core is not installed: npm install --no-save axe-core")
    fail(listener_here.store, "Codec unknown", ASSET, OTHER_ASSET, title="holiday.mov")
    fail(listener_here.store, "iconik answered 402", new_id())
    listener_here.store.database.run(
        "UPDATE items SET status = 'ready', next_attempt_at = '2100' WHERE reason LIKE '%402'"
    )
    for job, started in (("analyze", 12), ("faces", 3), ("transcribe", 5)):
        listener_here.store.database.run(
            "INSERT INTO usage VALUES (:day, :job, :started, 0)",
            day=listener_here.store.today(),
            job=job,
            started=started,
        )
    listener_here.command("pause")
    says = {
        "/": "Jobs of the last",
        f"/asset/{ASSET}": "failed: Codec",
        "/items/failed": "Codec",
        "/search?q=hol": "mov",
    }
    browser = browsers(javascript=True, width=width, dark=dark)
    browser.open(page.link())
    browser.wait_for_text("2 items failed")
    browser.click("button", "Skip all of these", 1)
    browser.wait_for_text("Done on this page")
    for path, text in {**says, "/nothing": "Not Found", "/?token=x": "Forbidden"}.items():
        browser.open(page.url + path)
        browser.wait_for_text(text)
        browser.run(AXE.read_text(encoding="utf-8"))
        found = browser.run("axe.run().then(result => result.violations.map(one => [one.id, one.nodes[0].html]))")
        assert found == [], path


def test_a_running_change_is_shown_until_it_is_done(
    listener_here: ListenerHere, page: Page, browsers: Browsers
) -> None:
    fail(listener_here.store, "Codec unknown", *(new_id() for _ in range(2500)))
    listener_here.command("pause")
    browser = browsers()
    browser.open(page.link())
    browser.click("button", "Skip all of these")
    browser.wait_for_text("so far. It goes on: reload this page.")
    wait_until(lambda: len(listener_here.rows("status = 'skipped'")) == 2500)
    browser.click("link", "Reload")
    browser.wait_for_text("Skip “Codec unknown”: 2500 items skipped.")


def test_the_pictures_in_the_docs_can_be_taken_again(tmp_path: Path) -> None:
    needs(PROGRAM)
    script = Path(__file__).with_name("screenshots.py")
    done = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stderr) == (0, "")
    names = sorted(path.name for path in tmp_path.glob("*.png"))
    assert names == ["page-asset.png", "page-overview.png", "page-phone.png"]
