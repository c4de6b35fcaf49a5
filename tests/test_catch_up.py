"""catch-up: the assets of a period are added, and the running listener does the rest."""

import os
import pty
import resource
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import requests

from faulty_iconik import Fault, FaultyIconik
from reconciliation.catalog import FoundAsset, Page
from store import Store
from support import APP, SECRET, Listener, ListenerHere, create_event, new_id, rows, wait_until

PAGE = 100
START = datetime(2020, 1, 1, tzinfo=timezone.utc)
SINCE = "2020-01-01T00:00+00:00"
UNTIL = "2020-12-31T00:00+00:00"
OF_2020 = ("--since", SINCE, "--until", UNTIL)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("commands.items.MIN_PAUSE", 0)


@pytest.fixture
def listener(listeners_here: Callable[..., ListenerHere], tmp_path: Path, empty_database: Path) -> ListenerHere:
    """A listener that is not running, with an empty database."""
    shutil.copy(empty_database, tmp_path)
    return listeners_here()


def create(sandbox: FaultyIconik, count: int, *, proxy: bool = False, title: str = "a.mov") -> list[str]:
    """Assets of early 2020, a second apart, long before the first start of any listener."""
    ids = []
    for number in range(count):
        date = (START + timedelta(seconds=number + 1)).isoformat()
        ids.append(sandbox.create_asset(title, send=False, date_created=date))
        if proxy:
            sandbox.set_proxy(ids[-1], send=False)
    return ids


def known(listener: Listener) -> set[str]:
    return {row["object_id"] for row in listener.rows()}


def ago(**duration: float) -> str:
    return (datetime.now(timezone.utc) - timedelta(**duration)).isoformat(timespec="seconds")


# What it adds


def test_what_was_missed_is_added_and_analyzed_by_the_running_listener(
    listeners_here: Callable[..., ListenerHere], sandbox: FaultyIconik
) -> None:
    """Even with the reconciler turned off: that looks for webhooks that were missed, not for what was added."""
    listener = listeners_here(reconciler__interval=0).start()
    listener.upload(had := new_id())
    sandbox.assets[had]["date_created"] = START.isoformat()
    closed, waiting, analyzed = create(sandbox, 3)
    sandbox.set_proxy(closed, send=False)
    sandbox.set_proxy(analyzed, send=False)
    sandbox.assets[analyzed]["analyze_status"] = "DONE"  # items.db may have been lost
    other = sandbox.create_asset("another time", send=False, date_created=ago(days=1))
    result = listener.command("catch-up", *OF_2020, "--yes")
    assert (result.returncode, result.stderr) == (0, "")
    *_, added, does = result.stdout.splitlines()
    assert added == "3 assets were added."
    assert does == "The listener now polls iconik for their proxies and starts their jobs."
    listener.submitter.wake()  # of itself it looks within half a minute
    wait_until(lambda: len(listener.rows("finished = 'True'")) == 3)
    assert sorted(sandbox.jobs) == sorted([had, closed])
    assert listener.rows(f"object_id = '{analyzed}'")[0]["status"] == "done"
    assert listener.rows(f"object_id = '{waiting}'")[0]["status"] == "awaiting_proxy"
    assert listener.rows(f"object_id = '{other}'") == []


def test_a_proxy_that_awaits_its_create_becomes_ready(listener: ListenerHere, sandbox: FaultyIconik) -> None:
    [asset_id] = create(sandbox, 1)
    with closing(Store(listener.database)) as store:
        store.proxy_closed(asset_id)
    assert "\n1 asset was added.\n" in listener.command("catch-up", *OF_2020, "--yes").stdout
    assert [row["status"] for row in listener.rows()] == ["ready"]


def test_without_a_running_listener_it_says_when_they_are_analyzed(
    listener: ListenerHere, sandbox: FaultyIconik
) -> None:
    create(sandbox, 1)
    result = listener.command("catch-up", *OF_2020, "--yes")
    assert result.stdout.endswith(
        "1 asset was added.\nOnce the listener is started, it polls iconik for their proxies and starts their jobs.\n"
    )


@pytest.mark.usefixtures("berlin")
def test_it_says_from_when_to_when_by_which_clock_and_how_many(listener: ListenerHere, sandbox: FaultyIconik) -> None:
    """What is typed without an offset is by this machine's clock."""
    create(sandbox, 2)
    result = listener.command("catch-up", "--since", "2020-01-01", "--until", "2020-07-01T02:00", "--yes")
    assert result.stdout.splitlines()[:3] == [
        "From   2020-01-01 00:00:00 CET (2019-12-31T23:00:00.000Z)",
        "until  2020-07-01 02:00:00 CEST (2020-07-01T00:00:00.000Z)",
        "2 assets would be added. By iconik's units, these are 0 images and 0.0 hours of video or audio.",
    ]
    before = time.time()
    result = listener.command("catch-up", "--since", "2020-01-01T02:30+01:00", "--yes")
    first, second, third = result.stdout.splitlines()
    assert first == "From   2020-01-01 02:30:00 CET (2020-01-01T01:30:00.000Z)"
    until = datetime.fromisoformat(second[-25:-2] + "+00:00").timestamp()
    assert before - 1 < until <= time.time()
    assert third == "Nothing to add: 2 assets of that time are in items.db already."


@pytest.mark.parametrize("count", [PAGE - 1, PAGE, 2 * PAGE + 50])
def test_any_number_is_paged_through(listener: ListenerHere, sandbox: FaultyIconik, count: int) -> None:
    ids = create(sandbox, count)
    assert f"\n{count} assets were added.\n" in listener.command("catch-up", *OF_2020, "--yes").stdout
    assert known(listener) == set(ids)
    again = listener.command("catch-up", *OF_2020, "--yes").stdout
    assert f"Nothing to add: {count} assets of that time are in items.db already." in again


PAGES: dict[str, Callable[[list[Any]], list[Any]]] = {
    "at most 50": lambda objects: objects[:50],
    "one of them null": lambda objects: [None, *objects[1:]] if len(objects) == PAGE else objects,
}


@pytest.mark.parametrize("change", PAGES.values(), ids=PAGES)
def test_a_page_that_is_not_full_is_not_taken_for_the_last(
    listener: ListenerHere, sandbox: FaultyIconik, change: Callable[[list[Any]], list[Any]]
) -> None:
    """A2: each asset that iconik shows is added, and only those are told."""
    shown: set[str] = set()

    def pages(url: str, objects: list[Any]) -> list[Any]:
        changed = change(objects) if "/search/" in url else objects
        shown.update(one["id"] for one in changed if one)
        return changed

    ids = create(sandbox, 350)
    sandbox.pages = pages
    output = listener.command("catch-up", *OF_2020, "--yes").stdout
    assert len(shown) >= len(ids) - 4
    assert f"\n{len(shown)} assets were added.\n" in output
    assert known(listener) == shown


def test_a_dry_run_lists_what_would_be_added_and_adds_nothing(listener: ListenerHere, sandbox: FaultyIconik) -> None:
    ids = create(sandbox, PAGE + 50, title="a\x1b.mov")
    sandbox.assets["not a uuid"] = {**sandbox.assets[ids[0]], "id": "not a uuid"}
    sandbox.media["not a uuid"] = "video", 0
    sandbox.assets[ids[0]]["title"] = None
    with closing(Store(listener.database)) as store:
        store.add_asset(ids[1], None)
    result = listener.command("catch-up", *OF_2020, "--dry-run")
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert {line.split()[0] for line in lines[2:-2]} == {*ids} - {ids[1]}
    assert f"{ids[2]}  2020-01-01 00:00:03 UTC  a .mov" in lines
    assert lines[-2].startswith(
        f"{PAGE + 49} assets would be added. By iconik's units, these are 0 images and 2.5 hours"
    )
    assert lines[-1] == "1 asset of that time is in items.db already."
    assert len(listener.rows()) == 1


def test_only_a_query_and_failed_jobs_leave_assets_out(
    listeners_here: Callable[..., ListenerHere], sandbox: FaultyIconik, tmp_path: Path, empty_database: Path
) -> None:
    shutil.copy(empty_database, tmp_path)
    listener = listeners_here(analyze__only="media_type:video")
    wanted, failed = create(sandbox, 2)
    sandbox.assets[failed]["analyze_status"] = "FAILED"
    create(sandbox, 1, title="a.jpg")
    [other] = create(sandbox, 1, title="other.mov")
    result = listener.command("catch-up", *OF_2020, "--query", "NOT title:other", "--yes")
    assert known(listener) == {wanted}
    assert other not in known(listener)
    assert "1 asset is left out, because its job failed at iconik." in result.stdout
    result = listener.command("catch-up", *OF_2020, "--query", f"id:{failed}", "--dry-run")
    assert "No asset would be added.\n1 asset is left out" in result.stdout


def test_it_says_how_many_days_the_limit_makes_of_it(
    listeners_here: Callable[..., ListenerHere], sandbox: FaultyIconik, tmp_path: Path, empty_database: Path
) -> None:
    shutil.copy(empty_database, tmp_path)
    create(sandbox, 25)
    result = listeners_here(limits__max_per_day=10).command("catch-up", *OF_2020, "--dry-run")
    assert result.stdout.endswith("At 10 jobs a day, that takes 3 days.\n")


def test_a_job_that_was_added_is_caught_up_and_nothing_else_is(
    listeners_here: Callable[..., ListenerHere], sandbox: FaultyIconik, tmp_path: Path, empty_database: Path
) -> None:
    """Also for assets whose analysis failed: only the job that failed is left out."""
    shutil.copy(empty_database, tmp_path)
    known, failed, new = create(sandbox, 3)
    sandbox.assets[failed]["analyze_status"] = "FAILED"
    create(sandbox, 5, title="a.jpg")
    with closing(Store(tmp_path / "items.db")) as store:
        store.add_asset(known, None)
    listener = listeners_here(submitter__jobs="analyze transcribe", limits__max_per_day=5)
    printed = listener.command("catch-up", *OF_2020, "--yes").stdout
    assert "8 assets would be added. By iconik's units, these are 5 images and 0.1 hours of video or audio." in printed
    assert "left out" not in printed
    assert "At 5 jobs a day, that takes 2 days." in printed  # 1 for the first, 1 for the failed, 2 + 5 for the others
    added = {(row["object_id"], row["job"]) for row in listener.rows("source = 'catch-up'")}
    assert {(known, "transcribe"), (failed, "transcribe"), (new, "analyze"), (new, "transcribe")} <= added
    assert not {(known, "analyze"), (failed, "analyze")} & added


# It bills nobody without consent


def run_at_a_terminal(listener: ListenerHere, typed: bytes, *arguments: str) -> tuple[str, int]:
    """What it prints at a terminal of 80 columns where `typed` is typed, and its exit code."""
    command = [sys.executable, str(APP), "--config", str(listener.config), "catch-up", *arguments]
    terminal, inside = pty.openpty()
    with subprocess.Popen(command, stdin=inside, stdout=inside, stderr=inside, start_new_session=True) as process:
        os.close(inside)
        printed, typed_at = b"", 0.0
        while select.select([terminal], [], [], 30)[0]:
            try:
                printed += os.read(terminal, 4096)
            except OSError:  # the other end is closed
                break
            if b"[y/N]" in printed and not typed_at:
                typed_at = time.monotonic()
                os.write(terminal, typed)
    os.close(terminal)
    return printed.decode(), process.returncode


@pytest.mark.parametrize(("typed", "code"), [(b"\n", 1), (b"\x04", 1), (b"y\n", 0)])
def test_at_a_terminal_it_asks_and_shows_how_far_it_is(
    listener: ListenerHere, sandbox: FaultyIconik, typed: bytes, code: int
) -> None:
    create(sandbox, 3)
    printed, exit_code = run_at_a_terminal(listener, typed, *OF_2020)
    assert "Add the 3 that are not in items.db yet? iconik bills every analysis. [y/N]:" in printed
    assert exit_code == code
    assert len(listener.rows()) == (0 if code else 3)
    assert ("100%" in printed) == (code == 0)
    assert "Traceback" not in printed


@pytest.mark.long
@pytest.mark.parametrize("stdin", ["<&-", "</dev/null"])
def test_without_a_terminal_it_wants_yes(listener: ListenerHere, sandbox: FaultyIconik, stdin: str) -> None:
    create(sandbox, 1)
    command = [sys.executable, str(APP), "--config", str(listener.config), "catch-up", *OF_2020]
    result = subprocess.run(["sh", "-c", f'"$@" {stdin}', "sh", *command], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "Error: iconik bills each analysis: give --yes, as there is no terminal to ask at" in result.stderr
    assert listener.rows() == []


@pytest.mark.parametrize(
    "times",
    [
        ["--since", "yesterday"],
        ["--since", "2026-13-01"],
        ["--since", "9999-12-31T23:59:59-12:00"],
        ["--since", "0001-01-01T00:00:00+12:00"],
        ["--since", ""],
        ["--since", SINCE, "--until", "tomorrow"],
        ["--since", SINCE, "--until", "9999-12-31T23:59:59-12:00"],
        ["--since", SINCE, "--until", SINCE],
        ["--since", SINCE, "--until", "1970-01-01T00:00Z"],
        ["--since", "2999-01-01", "--until", "2999-01-02"],
        ["--since", ago(hours=-1)],
        [],
    ],
)
def test_a_time_that_will_not_do_is_wrong_use(listener: ListenerHere, sandbox: FaultyIconik, times: list[str]) -> None:
    result = listener.command("catch-up", *times, "--yes")
    assert (result.returncode, result.stdout) == (2, "")
    assert sandbox.requests == []


@pytest.mark.parametrize(
    "since", ["2026-11-23", "2026-11-23T16:47", "2026-11-23T16:47:00Z", "2026-11-23T16:47:00+01:00", "0001-01-02"]
)
def test_times_of_iso_8601_are_taken(listener: ListenerHere, since: str) -> None:
    assert listener.command("catch-up", "--since", since, "--dry-run").returncode == 0


# Trouble


def test_the_role_that_is_missing_is_named(listener: ListenerHere, sandbox: FaultyIconik) -> None:
    sandbox.roles.discard("can_search")
    result = listener.command("catch-up", *OF_2020, "--yes")
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "can_search" in result.stderr


def test_interrupted_by_iconik_the_same_command_adds_the_rest(listener: ListenerHere, sandbox: FaultyIconik) -> None:
    ids = create(sandbox, 3 * PAGE)
    searches = "search/"
    sandbox.faults += [Fault(searches, status=None, times=6), Fault(searches, status=503)]  # the estimate, two pages
    result = listener.command("catch-up", *OF_2020, "--yes")
    assert result.returncode == 1
    so_far, error = result.stderr.splitlines()
    assert so_far == f"{2 * PAGE} assets were added so far. The same command adds the rest."
    assert error == "Error: iconik answered 503: Out of order"
    assert known(listener) == set(ids[: 2 * PAGE])
    result = listener.command("catch-up", *OF_2020, "--yes")
    assert result.returncode == 0
    assert f"\n{PAGE} assets were added.\n" in result.stdout
    assert known(listener) == set(ids)


def test_interrupted_among_migrated_assets_it_adds_none_of_before_the_period(
    listener: ListenerHere, sandbox: FaultyIconik
) -> None:
    """What was imported in the period may have been created years before: its date says nothing about how far it is."""
    for number in range(PAGE):
        date = f"2016-06-01T00:{number // 60:02}:{number % 60:02}+00:00"
        sandbox.create_asset("archive.mov", new_id(), send=False, date_created=date, date_imported=date)
    migrated = [new_id() for _ in range(2 * PAGE)]
    for number, asset_id in enumerate(migrated):
        time = f"00:{number // 60:02}:{number % 60:02}+00:00"
        created, imported = f"2015-03-01T{time}", f"2020-03-01T{time}"
        sandbox.create_asset("migrated.mov", asset_id, send=False, date_created=created, date_imported=imported)
    sandbox.faults += [Fault("search/", status=None, times=4), Fault("search/", status=503)]
    assert listener.command("catch-up", *OF_2020, "--yes").returncode == 1
    assert known(listener) == set(migrated[:PAGE])
    assert listener.command("catch-up", *OF_2020, "--yes").returncode == 0
    assert known(listener) == set(migrated)


@pytest.mark.long
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_the_same_command_adds_the_rest(
    listener: ListenerHere, sandbox: FaultyIconik, how: signal.Signals
) -> None:
    ids = create(sandbox, 2 * PAGE + 1)
    sandbox.faults += [Fault("search/", status=None, times=5), Fault("search/", hang=True)]
    command = [sys.executable, str(APP), "--config", str(listener.config), "catch-up", *OF_2020, "--yes"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        sandbox.wait_for(lambda: sum("search/" in request for request in sandbox.requests) == 6)
        process.send_signal(how)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == (1 if how == signal.SIGINT else -how)
    expected = f"{PAGE} assets were added so far. The same command adds the rest.\n"
    assert errors.replace("\n\n", "\n") == (f"{expected}Aborted!\n" if how == signal.SIGINT else "")
    assert known(listener) == set(ids[:PAGE])
    result = listener.command("catch-up", *OF_2020, "--yes")
    assert f"\n{PAGE + 1} assets were added.\n" in result.stdout
    assert known(listener) == set(ids)


# Large numbers


def searched_without_a_server(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Pages of that many assets, a millisecond apart, that are made up one by one."""

    def pages(*_: object) -> Iterator[Page]:
        for start in range(0, count, PAGE):
            numbers = range(start, min(start + PAGE, count))
            yield Page([made_up(number) for number in numbers], len(numbers), count)

    monkeypatch.setattr("reconciliation.catalog.IconikCatalog.assets", pages)


def made_up(number: int) -> FoundAsset:
    date = (START + timedelta(milliseconds=number)).isoformat()
    object_id, title = f"00000000-0000-0000-0000-{number:012}", "a title of the usual length.mov"
    return FoundAsset(object_id, title, date, "video", 60.0, {})


@pytest.mark.long
def test_30_000_assets_are_added_in_flat_memory(listener: ListenerHere, monkeypatch: pytest.MonkeyPatch) -> None:
    searched_without_a_server(monkeypatch, 1_000)
    listener.command("catch-up", "--since", "2019-01-01", "--yes")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    searched_without_a_server(monkeypatch, 30_000)
    result = listener.command("catch-up", *OF_2020, "--yes")
    assert "\n29000 assets were added.\n" in result.stdout
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 3 * 1024, f"{grown} KiB more"


ADDED_ON_A_SLOW_DISK = 3_000
SLOW_FSYNC = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <unistd.h>
int fsync(int fd) { usleep(8000); return ((int (*)(int)) dlsym(RTLD_NEXT, "fsync"))(fd); }
int fdatasync(int fd) { usleep(8000); return ((int (*)(int)) dlsym(RTLD_NEXT, "fdatasync"))(fd); }
"""


@contextmanager
def slow_disk(folder: Path) -> Iterator[None]:
    """Programs that are started meanwhile need 8 ms for each fsync."""
    (folder / "slow.c").write_text(SLOW_FSYNC)
    command = ["cc", "-shared", "-fPIC", "-o", str(folder / "slow.so"), str(folder / "slow.c"), "-ldl"]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("there is no C compiler")
    os.environ["LD_PRELOAD"] = str(folder / "slow.so")
    try:
        yield
    finally:
        del os.environ["LD_PRELOAD"]


@pytest.mark.long
def test_webhooks_are_answered_while_assets_are_added_on_a_slow_disk(
    listeners: Callable[..., Listener], sandbox: FaultyIconik, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    create(sandbox, ADDED_ON_A_SLOW_DISK)
    with slow_disk(tmp_path):
        listener = listeners().start()
        command = [sys.executable, str(APP), "--config", str(listener.config), "catch-up", *OF_2020, "--yes"]
        seconds, statuses = [], set()
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process, requests.Session() as session:
            while process.poll() is None:
                began = time.monotonic()
                event = create_event(new_id())
                answer = session.post(f"{listener.url}/create", json=event, headers={"X-Webhook-Secret": SECRET})
                seconds.append(time.monotonic() - began)
                statuses.add(answer.status_code)
                time.sleep(0.02)
    assert process.returncode == 0
    assert len(rows(listener.database)) == ADDED_ON_A_SLOW_DISK + len(seconds)
    seconds.sort()
    with capsys.disabled():
        figures = (
            f"median {seconds[len(seconds) // 2] * 1000:.0f} ms, 99 % {seconds[len(seconds) * 99 // 100] * 1000:.0f} ms"
        )
        print(f"\n{len(seconds)} webhooks: {figures}, longest {seconds[-1] * 1000:.0f} ms")
    assert statuses == {200}
    assert seconds[-1] < 2
