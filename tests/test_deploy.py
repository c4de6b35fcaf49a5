"""The backup, and that what is installed on a VM fits together. `deploy/rehearse` tries all of it on a real one."""

import os
import re
import resource
import runpy
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
BACKUP = DEPLOY / "backup.py"
SCRIPTS = [DEPLOY / name for name in ("install.sh", "rehearse", "iconik-listener")]
UNITS = sorted([*DEPLOY.glob("*.service"), *DEPLOY.glob("*.timer")])
ROWS = 1000
BYTES_OF_A_SMALL_DISK = 64 * 1024


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Path]:
    """A database that is in use, and whose rows are in its write-ahead log only."""
    path = tmp_path / "items.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE items (object_id TEXT PRIMARY KEY, title TEXT)")
        connection.execute("BEGIN")
        connection.executemany("INSERT INTO items VALUES (?, ?)", [(f"{i:08}", "x" * 100) for i in range(ROWS)])
        connection.execute("COMMIT")
        yield path


@pytest.fixture
def backups(tmp_path: Path) -> Path:
    return tmp_path / "backups"


def back_up(database: Path, folder: Path, max_file_bytes: int = resource.RLIM_INFINITY) -> tuple[int, str, str]:
    """Run it as systemd does. Returns its exit code, what it printed, and its errors."""
    limits = (max_file_bytes, max_file_bytes)
    done = subprocess.run(
        [sys.executable, "-I", BACKUP, database, folder],
        capture_output=True,
        text=True,
        timeout=20,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits),
    )
    return done.returncode, done.stdout, done.stderr


def copy_of_today(folder: Path) -> Path:
    return folder / f"items-{datetime.now(timezone.utc).date().isoformat()}.db"


def count_items(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return int(connection.execute("SELECT count(*) FROM items").fetchone()[0])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def assert_refused(outcome: tuple[int, str, str], reason: str) -> None:
    code, output, errors = outcome
    assert (code, output) == (1, "")
    assert re.fullmatch(rf"Error: [^\n]*{reason}[^\n]*\n", errors), errors


def test_a_copy_is_whole_and_a_single_file_that_only_its_owner_can_read(database: Path, backups: Path) -> None:
    code, output, errors = back_up(database, backups)
    copy = copy_of_today(backups)
    assert (code, output, errors) == (0, f"{copy}: 1 MB, whole\n", "")
    assert names(backups) == [copy.name]
    assert count_items(copy) == ROWS
    with closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)  # it can be read from any medium
    assert (backups.stat().st_mode & 0o777, copy.stat().st_mode & 0o777) == (0o700, 0o600)


def test_a_second_copy_of_a_day_takes_the_place_of_the_first(database: Path, backups: Path) -> None:
    back_up(database, backups)
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("INSERT INTO items VALUES ('later', '')")
    assert back_up(database, backups)[0] == 0
    assert names(backups) == [copy_of_today(backups).name]
    assert count_items(copy_of_today(backups)) == ROWS + 1


def test_the_newest_seven_are_kept_and_no_other_file_is_touched(database: Path, backups: Path) -> None:
    backups.mkdir()
    for name in [*(f"items-2026-01-0{day}.db" for day in range(1, 9)), "items-before-the-move.db", "notes.txt"]:
        (backups / name).touch()
    assert back_up(database, backups)[0] == 0
    kept = [f"items-2026-01-0{day}.db" for day in range(3, 9)]
    assert names(backups) == sorted([*kept, copy_of_today(backups).name, "items-before-the-move.db", "notes.txt"])


def test_what_a_killed_backup_left_is_removed(database: Path, backups: Path) -> None:
    backups.mkdir()
    today = copy_of_today(backups).with_suffix(".unfinished").name
    for name in ("items-2026-01-01.unfinished", "items-2026-01-01.unfinished-journal", today):
        (backups / name).write_bytes(b"half")
    assert back_up(database, backups)[0] == 0
    assert names(backups) == [copy_of_today(backups).name]


def test_a_damaged_database_is_not_kept_and_the_earlier_copies_are(database: Path, backups: Path) -> None:
    backups.mkdir()
    (backups / "items-2026-01-01.db").touch()
    damaged = database.with_name("damaged.db")
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("VACUUM INTO ?", [str(damaged)])
    with damaged.open("r+b") as file:
        file.seek(damaged.stat().st_size // 2)
        file.write(b"\xff" * 4096)
    assert_refused(back_up(damaged, backups), "damaged")
    assert names(backups) == ["items-2026-01-01.db"]


def test_a_file_that_is_no_database_is_refused(tmp_path: Path, backups: Path) -> None:
    database = tmp_path / "items.db"
    database.write_text("no database" * 100)
    assert_refused(back_up(database, backups), "file is not a database")
    assert names(backups) == []


def test_a_missing_database_is_refused_and_not_created(tmp_path: Path, backups: Path) -> None:
    assert_refused(back_up(tmp_path / "items.db", backups), "items.db does not exist")
    assert not (tmp_path / "items.db").exists()


def test_a_folder_that_cannot_be_made_is_refused(database: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert_refused(back_up(database, tmp_path / "file" / "backups"), "Not a directory")


def test_a_disk_that_fills_up_on_the_way_leaves_no_half_copy(database: Path, backups: Path) -> None:
    assert_refused(back_up(database, backups, max_file_bytes=BYTES_OF_A_SMALL_DISK), "cannot be copied")
    assert names(backups) == []


def test_a_copy_that_would_leave_the_listener_no_room_is_not_begun(
    database: Path, backups: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = runpy.run_path(str(BACKUP))
    monkeypatch.setitem(module["back_up"].__globals__, "MIN_FREE_BYTES", 2**60)
    with pytest.raises(module["BackupError"], match="a copy needs 1, and 1099511627776 must be left"):
        module["back_up"](database, backups)
    assert names(backups) == []


def test_wrong_use_is_told_how_to_use_it() -> None:
    done = subprocess.run([sys.executable, BACKUP], capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (2, "Usage: backup.py DATABASE FOLDER\n")


def test_a_writer_at_work_loses_nothing_and_the_copy_is_of_one_moment(database: Path, backups: Path) -> None:
    done = threading.Event()
    written = ROWS

    def write() -> None:
        nonlocal written
        with closing(sqlite3.connect(database, isolation_level=None, timeout=0.5)) as connection:
            while not done.is_set():
                connection.execute("BEGIN")
                connection.executemany("INSERT INTO items VALUES (?, 'pair')", [(str(written),), (f"{written}+",)])
                connection.execute("COMMIT")
                written += 2

    writer = threading.Thread(target=write)
    writer.start()
    code, _, errors = back_up(database, backups)
    done.set()
    writer.join()
    assert (code, errors) == (0, "")
    assert count_items(database) == written
    assert count_items(copy_of_today(backups)) in range(ROWS, written + 1, 2)


def test_a_transaction_that_is_not_committed_is_neither_copied_nor_waited_for(database: Path, backups: Path) -> None:
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO items VALUES ('open', '')")
        assert back_up(database, backups)[0] == 0
        connection.execute("ROLLBACK")
    assert count_items(copy_of_today(backups)) == ROWS


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_script_is_executable_and_without_mistakes(script: Path) -> None:
    assert os.access(script, os.X_OK)
    shell = script.read_text(encoding="utf-8").partition("\n")[0].rpartition("/")[2].split()[-1]
    assert subprocess.run([shell, "-n", script], capture_output=True, text=True).stderr == ""


def test_the_files_that_install_sh_uses_exist() -> None:
    script = (DEPLOY / "install.sh").read_text(encoding="utf-8")
    used = set(re.findall(r"\$home/([\w./-]*\w)", script)) - {".venv", ".venv/bin/python", "config.ini"}
    assert {"app.py", "config.example.ini", "requirements.txt", "deploy/iconik-listener"} <= used
    assert [path for path in sorted(used) if not (ROOT / path).exists()] == []


def test_install_sh_installs_and_removes_every_unit() -> None:
    script = (DEPLOY / "install.sh").read_text(encoding="utf-8")
    [assignment] = re.findall(r"^unit_files=\(.*\)$", script, re.MULTILINE)
    show = f'{assignment}; printf "%s\\n" "${{unit_files[@]}}"'
    listed = subprocess.run(["bash", "-c", show], capture_output=True, text=True, check=True).stdout.split()
    assert sorted(listed) == [unit.name for unit in UNITS]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_what_a_unit_runs_exists(unit: Path) -> None:
    paths = re.findall(r"/opt/iconik-listener/([\w./-]+)", unit.read_text(encoding="utf-8"))
    assert [path for path in paths if not path.startswith(".venv/") and not (ROOT / path).is_file()] == []
    if unit.suffix == ".timer":
        assert unit.with_suffix(".service").is_file()


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
def test_systemd_understands_every_line_of_the_units(tmp_path: Path) -> None:
    for unit in UNITS:
        text = unit.read_text(encoding="utf-8").replace("/opt/iconik-listener/.venv/bin/python", sys.executable)
        (tmp_path / unit.name).write_text(text, encoding="utf-8")
    command = ["systemd-analyze", "verify", "--man=no", *(str(tmp_path / unit.name) for unit in UNITS)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=20).stderr
    assert [line for line in said.splitlines() if "iconik-listener" in line] == []


def test_every_step_of_the_rehearsal_is_there() -> None:
    script = (DEPLOY / "rehearse").read_text(encoding="utf-8")
    [steps] = re.findall(r"^all_steps=\((.*)\)$", script, re.MULTILINE)
    assert {*steps.split(), "reboot", "rebooted"} == set(re.findall(r"^step_(\w+)\(\)", script, re.MULTILINE))
