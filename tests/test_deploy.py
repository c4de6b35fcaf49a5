"""The backup, and that what is installed on a VM fits together. `deploy/rehearse` tries all of it on a real one."""

import configparser
import os
import re
import resource
import runpy
import shlex
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

from config import load
from events import ACTIONS, KINDS
from reconciliation.webhooks import REGISTERED_URL
from store import Store

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
BACKUP = DEPLOY / "backup.py"
SCRIPTS = [DEPLOY / name for name in ("install.sh", "rehearse", "rehearse-container", "iconik-listener")]
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
    """The only copy that has a time in its name."""
    [copy] = folder.glob("items-????-??-??T??????Z.db")
    made_at = datetime.strptime(f"{copy.stem}+0000", "items-%Y-%m-%dT%H%M%SZ%z")
    assert abs((datetime.now(timezone.utc) - made_at).total_seconds()) < 60
    return copy


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
    assert (code, output, errors) == (0, f"{copy}: {copy.stat().st_size // 1024} KB, checked\n", "")
    assert names(backups) == [copy.name]
    assert count_items(copy) == ROWS
    with closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)  # it can be read from any medium
    assert (backups.stat().st_mode & 0o777, copy.stat().st_mode & 0o777) == (0o700, 0o600)


def test_a_second_copy_of_a_day_leaves_the_first_one(database: Path, backups: Path) -> None:
    backups.mkdir()
    earlier = backups / f"items-{datetime.now(timezone.utc):%Y-%m-%d}T000000Z.db"
    earlier.write_text("earlier")
    assert back_up(database, backups)[0] == 0
    assert len(list(backups.glob("items-????-??-??T??????Z.db"))) == len(names(backups)) == 2
    assert earlier.read_text() == "earlier"


def test_the_newest_seven_days_are_kept_and_no_other_file_is_touched(database: Path, backups: Path) -> None:
    backups.mkdir()
    of_1_1 = [f"items-2026-01-0{day}.db" for day in range(1, 5)]
    of_2_0 = [f"items-2026-01-0{day}T{hour}0000Z.db" for day in range(5, 9) for hour in ("03", "14")]
    others = ["items-before-the-move.db", "notes.txt", "others-2026-01-01.db"]
    for name in [*of_1_1, *of_2_0, *others]:
        (backups / name).touch()
    assert back_up(database, backups)[0] == 0
    today = max(name for name in names(backups) if name.startswith("items-20"))
    assert names(backups) == sorted([*of_1_1[2:], *of_2_0, today, *others])


@pytest.mark.parametrize("setting", ["database = here/items.db", "database = {folder}/here/items.db"])
def test_a_config_ini_names_the_database_to_copy(setting: str, database: Path, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("VACUUM INTO ?", [str(tmp_path / "here" / "items.db")])
    config = tmp_path / "config.ini"
    config.write_text(f"[iconik]\nauth_token = %50\n[listener]\n{setting.format(folder=tmp_path)}\n")
    code, _, errors = back_up(Path("--config"), config)
    assert (code, errors) == (0, "")
    assert count_items(copy_of_today(tmp_path / "here" / "backups")) == ROWS


def test_a_config_ini_that_became_a_link_names_the_database_beside_it(database: Path, tmp_path: Path) -> None:
    """P11."""
    target = tmp_path / "elsewhere" / "config.ini"
    target.parent.mkdir()
    target.write_text("[iconik]\n")
    link = tmp_path / "config.ini"
    link.symlink_to(target)
    assert back_up(Path("--config"), link)[0] == 0
    assert count_items(copy_of_today(tmp_path / "backups")) == ROWS
    link.unlink()
    assert_refused(back_up(Path("--config"), target), "items.db does not exist")


def test_a_broken_config_ini_is_refused_without_showing_it(tmp_path: Path) -> None:
    config = tmp_path / "config.ini"
    assert_refused(back_up(Path("--config"), config), "No such file")
    config.write_text("[iconik\nauth_token hidden-token")
    outcome = back_up(Path("--config"), config)
    assert_refused(outcome, "is not a valid config.ini")
    assert "hidden" not in outcome[2]


def test_what_a_killed_backup_left_is_removed(database: Path, backups: Path) -> None:
    backups.mkdir()
    for name in ("items-2026-01-01.unfinished", "items-2026-01-01T030000Z.unfinished-journal"):
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
    with pytest.raises(module["BackupError"], match=r"a copy needs \d+ KB, and 1099511627776 MB must be left"):
        module["back_up"](database, backups)
    assert names(backups) == []


def test_wrong_use_is_told_how_to_use_it() -> None:
    done = subprocess.run([sys.executable, BACKUP], capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (2, "Usage: backup.py DATABASE FOLDER, or backup.py --config CONFIG_INI\n")


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
    used = set(re.findall(r"\$home/([\w./-]*\w)", script))
    used -= {"config.ini", "constraints.txt", "requirements-notify.txt", "deploy"}  # these may be there or not
    assert {"app.py", "config.example.ini", "requirements.txt", "deploy/iconik-listener"} <= used
    assert [
        path for path in sorted(used) if not path.startswith((".", "deploy/$")) and not (ROOT / path).exists()
    ] == []


def in_install_sh(commands: str, **variables: Path) -> "subprocess.CompletedProcess[str]":
    """Run commands with the functions of install.sh, which does nothing by itself when another script reads it."""
    assignments = "".join(f"{name}={shlex.quote(str(value))}\n" for name, value in variables.items())
    script = f". {shlex.quote(str(DEPLOY / 'install.sh'))}\n{assignments}{commands}"
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=20)


def test_a_new_config_ini_is_closed_to_the_network_limited_and_has_a_secret(tmp_path: Path) -> None:
    done = in_install_sh("new_config", home=ROOT)
    assert done.returncode == 0, done.stderr
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(done.stdout)
    assert parser["listener"]["host"] == "127.0.0.1"
    assert parser["listener"]["database"] == "/var/lib/iconik-listener/items.db"
    assert re.fullmatch("[0-9a-f]{64}", parser["listener"]["webhook_secret"])
    assert parser["limits"]["max_per_day"] == "1000"
    path = tmp_path / "config.ini"
    filled_in = re.sub(r"^(app_id|auth_token) =$", r"\1 = x", done.stdout, flags=re.MULTILINE)
    path.write_text(filled_in, encoding="utf-8")
    path.chmod(0o600)
    assert load(path).warnings == ()


@pytest.mark.parametrize(
    ("host", "words"), [("127.0.0.1", 'through Caddy: see "TLS"'), ("0.0.0.0", "without encryption")]
)
def test_after_the_first_start_the_next_steps_begin_with_the_way_to_it(tmp_path: Path, host: str, words: str) -> None:
    """N9."""
    config = tmp_path / "config.ini"
    config.write_text(f"[listener]\nhost = {host}\n")
    _, first, second, third = in_install_sh("say_next_steps", config=config).stdout.splitlines()
    assert words in first
    assert "iconik-listener register https://" in second
    assert third.endswith(" iconik-listener check")


def test_sh_instead_of_bash_is_one_line() -> None:
    """N27."""
    done = subprocess.run(["sh", DEPLOY / "install.sh"], capture_output=True, text=True, timeout=20)
    if "must be run as root" in done.stderr or "systemd" in done.stderr:
        pytest.skip("sh is bash here")
    assert done.returncode == 2
    assert re.fullmatch(r"Error: run it with bash: sudo bash [^\n]+\n", done.stderr)


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_a_checkout_that_was_cloned_from_a_folder_is_named_with_the_remedy(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for command in (
        ["init", "-q", str(first)],
        ["-C", str(first), "remote", "add", "origin", "https://user:hidden@git.example.com/listener.git"],
        ["clone", "-q", str(first), str(second)],
    ):
        subprocess.run(["git", *command], check=True, capture_output=True, timeout=20)
    warned = in_install_sh("warn_of_local_origin", home=second)
    assert f"was cloned from the folder {first}" in warned.stdout
    assert f"git -C {second} remote set-url origin https://git.example.com/listener.git\n" in warned.stdout
    assert in_install_sh("warn_of_local_origin", home=first).stdout == ""
    hint = in_install_sh('how_to_clone "$checkout"', checkout=first).stdout
    assert hint.startswith("sudo git clone https://git.example.com/listener.git /opt/iconik-listener && sudo /opt/")
    shutil.rmtree(first / ".git")
    assert f"sudo git clone {first} /opt" in in_install_sh('how_to_clone "$checkout"', checkout=first).stdout


def test_requirements_for_notifications_are_installed_once_configured(tmp_path: Path) -> None:
    (tmp_path / "requirements-notify.txt").touch()
    config = tmp_path / "config.ini"
    config.write_text("[notify]\nto =\n")
    show = 'requirements; echo "exit code $?"'
    base = f"-r\n{tmp_path}/requirements.txt\n"
    assert in_install_sh(show, home=tmp_path, settings=tmp_path).stdout == f"{base}exit code 0\n"
    config.write_text("[notify]\nto = ntfy://topic\n")
    notify = f"-r\n{tmp_path}/requirements-notify.txt\n"
    assert in_install_sh(show, home=tmp_path, settings=tmp_path).stdout == f"{base}{notify}exit code 0\n"


def test_uninstall_names_what_is_left_of_every_system(tmp_path: Path) -> None:
    """15: the webhooks of each, and a database that is not where the others are."""
    settings, data, elsewhere = tmp_path / "etc", tmp_path / "lib", tmp_path / "a disk"
    for folder in (settings, data / "second", elsewhere):
        folder.mkdir(parents=True)
    for name, database, url in (
        ("config", elsewhere / "items.db", "https://first.example.com"),
        ("second", data / "second" / "items.db", "https://second.example.com"),
        ("third", data / "items.db", ""),
    ):
        (settings / f"{name}.ini").write_text(f"[listener]\ndatabase = {database}\n", encoding="utf-8")
        with closing(Store(database, listener=True)) as store:
            store.set_state(REGISTERED_URL, url)
    (settings / "broken.ini").write_text("[listener\n", encoding="utf-8")
    (settings / "fourth.ini").write_text("[listener]\ndatabase = /no/such/items.db\n", encoding="utf-8")
    show = 'mapfile -t left < <(databases); say_what_is_left "${left[@]}"'
    done = in_install_sh(show, system_python=Path(sys.executable), settings=settings, data=data)
    end = "delete them in iconik, under Admin, Settings, Webhooks."
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"Also kept, with its backups beside it: {elsewhere}/items.db. Delete these yourself.",
        f"iconik still sends its webhooks to https://first.example.com: {end}",
        f"iconik still sends its webhooks to https://second.example.com: {end}",
    ]


def test_install_sh_installs_and_removes_every_unit() -> None:
    script = (DEPLOY / "install.sh").read_text(encoding="utf-8")
    [assignment] = re.findall(r"^unit_files=\(.*\)$", script, re.MULTILINE)
    show = f'{assignment}; printf "%s\\n" "${{unit_files[@]}}"'
    listed = subprocess.run(["bash", "-c", show], capture_output=True, text=True, check=True).stdout.split()
    assert sorted(listed) == [unit.name for unit in UNITS]


def test_caddy_passes_on_what_iconik_sends_and_nothing_else() -> None:
    [passed_on] = re.findall(r"@webhooks path (.*)", (DEPLOY / "Caddyfile").read_text(encoding="utf-8"))
    assert passed_on.split() == [form for part in (*KINDS, *ACTIONS) for form in (part.path, f"{part.path}/")]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_what_a_unit_runs_exists(unit: Path) -> None:
    paths = re.findall(r"/opt/iconik-listener/([\w./-]+)", unit.read_text(encoding="utf-8"))
    assert [path for path in paths if not path.startswith(".venv/") and not (ROOT / path).is_file()] == []
    if unit.suffix == ".timer":
        assert unit.with_suffix(".service").is_file()


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
def test_systemd_understands_every_line_of_the_units(tmp_path: Path) -> None:
    for unit in UNITS:
        sed = ["sed", "-f", str(DEPLOY / "template.sed"), str(unit)]
        template = subprocess.run(sed, capture_output=True, text=True, check=True).stdout
        for name, text in ((unit.name, unit.read_text(encoding="utf-8")), (f"{unit.stem}@{unit.suffix}", template)):
            runnable = text.replace("/opt/iconik-listener/.venv/bin/python", sys.executable)
            (tmp_path / name).write_text(runnable, encoding="utf-8")
    files = [str(tmp_path / name) for unit in UNITS for name in (unit.name, f"{unit.stem}@x{unit.suffix}")]
    command = ["systemd-analyze", "verify", "--man=no", *files]
    said = subprocess.run(command, capture_output=True, text=True, timeout=20).stderr
    assert [line for line in said.splitlines() if "iconik-listener" in line] == []


def test_a_template_names_its_system_wherever_systems_differ() -> None:
    service = ["sed", "-f", str(DEPLOY / "template.sed"), str(DEPLOY / "iconik-listener.service")]
    lines = subprocess.run(service, capture_output=True, text=True, check=True).stdout.splitlines()
    assert "ExecStart=/opt/iconik-listener/.venv/bin/python app.py --config /etc/iconik-listener/%i.ini serve" in lines
    assert "StateDirectory=iconik-listener/%i" in lines
    assert "EnvironmentFile=-/etc/default/iconik-listener-%i" in lines
    assert 'Environment="ICONIK_LISTENER_COMMAND=iconik-listener --system %i"' in lines
    assert not [line for line in lines if "config.ini" in line and not line.startswith("#")]


def test_every_step_of_the_rehearsal_is_there() -> None:
    script = (DEPLOY / "rehearse").read_text(encoding="utf-8")
    [steps] = re.findall(r"^all_steps=\((.*?)\)$", script, re.MULTILINE | re.DOTALL)
    assert {*steps.split(), "reboot", "rebooted"} == set(re.findall(r"^step_(\w+)\(\)", script, re.MULTILINE))


def test_the_blocks_that_the_rehearsal_pastes_are_in_the_docs() -> None:
    page = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
    sections = {part.partition("\n")[0]: part for part in re.split(r"^#+ ", page, flags=re.MULTILINE)}
    script = (DEPLOY / "rehearse").read_text(encoding="utf-8")
    pasted = re.findall(r'^  paste "(.*?)" (\d)', script, re.MULTILINE)
    assert len(pasted) >= 9
    for heading, number in pasted:
        assert heading in sections, heading
        assert len(re.findall(r"^```\n.*?^```$", sections[heading], re.MULTILINE | re.DOTALL)) >= int(number), heading
