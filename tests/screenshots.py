"""Takes the pictures of the page that the README and docs/page.md show: `.venv/bin/python tests/screenshots.py`.

They go to docs/, or to the folder that is given.

It runs the listener and the page on the stand-in for iconik, with the demo's three assets and some that fail. Only the
bars of the days before today are made up. It needs Debian's chromium.
"""

import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from browser import Browser  # noqa: E402
from sandbox import Sandbox  # noqa: E402
from store import DAY_SECONDS, Store  # noqa: E402

CONFIG = """\
[iconik]
url = {sandbox.url}
app_id = {sandbox.app_id}
auth_token = {sandbox.auth_token}
[listener]
host = 127.0.0.1
port = 0
webhook_secret = demo
[submitter]
jobs = analyze transcribe
retry_delay = 60
[limits]
max_per_day = 1000
[reconciler]
min_age = 3600
"""
DEMO = ("plain.mov", "swapped.mov", "unlucky.mov")
TITLES = ("holiday in Rome.mov", "interview with Ann.mov", "harbour at night.jpg", "press kit.mov", "logo.mov")
BROKEN = ("drone 12.mov", "drone 13.mov", "tape 0815.mov")
DECODED = "'iconik''s analyze job failed: The file cannot be decoded'"
ENVIRONMENT = {**os.environ, "ICONIK_LISTENER_COMMAND": "iconik-listener"}


def main() -> None:
    """Run everything, and write the pictures."""
    pictures = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs"
    with tempfile.TemporaryDirectory() as folder, Sandbox() as sandbox:
        config = Path(folder, "config.ini")
        config.touch(mode=0o600)
        config.write_text(CONFIG.format(sandbox=sandbox), encoding="utf-8")
        with running(config, r"Listening on (\S+):", "stderr") as address:
            sandbox.register(f"http://{address}", {"X-Webhook-Secret": "demo"})
            fill(sandbox, config.with_name("items.db"))
            with running(config, r"(http://\S+token=\S+)", "stdout", "page", "--port", "0") as link:
                take(Path(folder), link, pictures)


@contextmanager
def running(config: Path, pattern: str, stream: str, *command: str) -> Iterator[str]:
    """Run the program until it prints what the pattern finds, and end it afterwards."""
    arguments = [sys.executable, str(ROOT / "app.py"), "--config", str(config), *command]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, stream: subprocess.PIPE}
    with subprocess.Popen(arguments, text=True, env=ENVIRONMENT, **pipes) as process:  # type: ignore[call-overload]
        try:
            for line in getattr(process, stream):
                if found := re.search(pattern, line):
                    yield found[1]
                    break
            else:
                sys.exit("the program did not start")
        finally:
            process.terminate()


def fill(sandbox: Sandbox, database: Path) -> None:
    """Upload assets, and let their jobs end as jobs do."""
    for title in (*DEMO, *TITLES):
        sandbox.set_proxy(sandbox.create_asset(title, duration=1_260_000))
    wait_until(lambda: len(sandbox.started) == 15)  # a picture has nothing to transcribe
    for title in BROKEN:
        sandbox.set_proxy(sandbox.create_asset(title, duration=300_000))
    wait_until(lambda: len(sandbox.started) == 21)
    with closing(Store(database)) as store:
        wait_until(lambda: len(store.database.run("SELECT 1 FROM items WHERE status = 'submitted'")) == 21)
        end_jobs(store)
        add_days(store)
        sandbox.refuse_jobs = (402, "Insufficient credits")
        for title in ("trailer.mov", "b-roll 7.jpg"):
            sandbox.set_proxy(sandbox.create_asset(title))
        sandbox.create_asset("still uploading.mov")
        wait_until(lambda: len(store.database.run("SELECT 1 FROM items WHERE status = 'ready' AND refused = 1")) == 3)


def end_jobs(store: Store) -> None:
    """Write what the listener finds out an hour later."""
    for statement in (
        "UPDATE items SET media_type = CASE WHEN title LIKE '%.jpg' THEN 'image' ELSE 'video' END, duration = 1260",
        "UPDATE items SET status = 'done', done_at = :now WHERE status = 'submitted'",
        f"""UPDATE items SET status = 'failed', last_attempt_at = :now, done_at = NULL, error = {DECODED},
            reason = {DECODED} WHERE job = 'analyze' AND title IN {BROKEN}""",
    ):
        store.database.run(statement, now=store.now())


def add_days(store: Store) -> None:
    """Make up what was started on the days before today."""
    chance = random.Random(3)
    for back in range(1, 30):
        day = store.now(-back * DAY_SECONDS)[:10]
        is_weekend = time.strptime(day, "%Y-%m-%d").tm_wday > 4
        analyzed = chance.randint(0, 6) if is_weekend else chance.randint(20, 90)
        for job, started in (("analyze", analyzed), ("transcribe", analyzed // 2)):
            values = {"day": day, "job": job, "started": started}
            store.database.run("INSERT INTO usage VALUES (:day, :job, :started, 0)", **values)


def take(folder: Path, link: str, pictures: Path) -> None:
    """Take the pictures."""
    address = link.partition("?")[0]
    with closing(Browser(folder / "profile")) as browser:
        browser.look(width=820, height=400)
        browser.open(link)
        browser.wait_for_text("Jobs of the last 30 days")
        browser.screenshot(pictures / "page-overview.png")
        browser.type("searchbox", "Title or id", "drone 12")
        browser.wait_for_text("Open it in iconik", "As of 20")
        browser.screenshot(pictures / "page-asset.png")
        browser.look(width=390, height=400, dark=True)
        browser.open(address)
        browser.wait_for_text("Jobs of the last 30 days")
        browser.click("button", "Retry all of these")
        browser.wait_for_text("Done on this page")
        browser.screenshot(pictures / "page-phone.png")


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until that is so."""
    deadline = time.monotonic() + 60
    while not condition():
        if time.monotonic() > deadline:
            sys.exit("waited in vain")
        time.sleep(0.05)


if __name__ == "__main__":
    main()
