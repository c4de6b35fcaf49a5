"""The listener in a container: its configuration from the environment, what it says there, and the files of deploy/.

`deploy/rehearse-container` builds the image and tries it.
"""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from config import SECTIONS, ConfigError, keys_of, load
from faulty_iconik import FaultyIconik
from jobs import JOBS
from support import Listener, let_everybody_in, run, wait_until, write_config
from system.database_files import explain
from system.text import restart_it, start_it
from test_systemd import HANGING, HURRIED
from version import __version__

ROOT = Path(__file__).parent.parent
TOKEN = "a-token-that-no-message-shows"


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's environment holds none of ours."""
    for variable in os.environ:
        if variable.partition("_")[0].lower() in (*SECTIONS, *JOBS):
            monkeypatch.delenv(variable)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets the variables that are given, and the switch that has them read."""

    def set_variables(**variables: object) -> None:
        monkeypatch.setenv("ICONIK_LISTENER_ENVIRONMENT", "1")
        for variable, value in variables.items():
            monkeypatch.setenv(variable, str(value))

    return set_variables


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert caught.value.exit_code == 2
    assert TOKEN not in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def secret_file(folder: Path, text: str = f"{TOKEN}\n") -> Path:
    path = folder / "secret"
    path.write_text(text, encoding="utf-8")
    return path


# The configuration


def test_the_environment_and_files_of_secrets_are_enough(tmp_path: Path, environment: Callable[..., None]) -> None:
    environment(
        ICONIK_APP_ID="app",
        ICONIK_AUTH_TOKEN_FILE=secret_file(tmp_path),
        LISTENER_DATABASE=tmp_path / "here.db",
        LISTENER_WEBHOOK_SECRET="s",
        LIMITS_MAX_PER_DAY=7,
    )
    config = load(tmp_path / "config.ini")
    assert (config.iconik.app_id, config.iconik.auth_token, config.limits.max_per_day) == ("app", TOKEN, 7)
    assert (config.listener.database, config.listener.webhook_secret) == (tmp_path / "here.db", ("s",))
    assert (config.submitter.workers, config.warnings) == (4, ())
    assert config.describe_environment() == (
        "The environment is read: "
        "ICONIK_APP_ID, ICONIK_AUTH_TOKEN_FILE, LIMITS_MAX_PER_DAY, LISTENER_DATABASE, LISTENER_WEBHOOK_SECRET"
    )


def test_the_environment_goes_before_config_ini(tmp_path: Path, environment: Callable[..., None]) -> None:
    path = write_config(tmp_path, submitter__workers=2, limits__max_per_day=1)
    environment(LIMITS_MAX_PER_DAY="50", TRANSCRIBE_LANGUAGE="en")
    config = load(path)
    assert (config.iconik.app_id, config.submitter.workers) == ("app", 2)
    assert (config.limits.max_per_day, config.job_sections["transcribe"].language) == (50, "en")
    assert config.describe_environment().startswith(
        f"The environment is read, and goes before {path}: LIMITS_MAX_PER_DAY, "
    )


@pytest.mark.parametrize("switch", [None, "0"])
def test_without_the_switch_the_environment_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, switch: str | None
) -> None:
    if switch:
        monkeypatch.setenv("ICONIK_LISTENER_ENVIRONMENT", switch)
    monkeypatch.setenv("ICONIK_APP_ID", "another tool's")
    monkeypatch.setenv("ICONIK_NONSENSE", "another tool's")
    config = load(write_config(tmp_path))
    assert (config.iconik.app_id, config.variables) == ("app", None)
    (tmp_path / "config.ini").unlink()
    assert refusal(tmp_path / "config.ini").endswith("or try: python app.py demo")


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({}, "ICONIK_APP_ID and ICONIK_AUTH_TOKEN: are missing"),
        ({"ICONIK_APP_ID": ""}, "ICONIK_APP_ID and ICONIK_AUTH_TOKEN: are missing"),
        ({"ICONIK_APP_ID": "a"}, "ICONIK_AUTH_TOKEN: is missing"),
        (
            {"LIMIT_MAX_PER_DAY": "5"},
            "LIMIT_MAX_PER_DAY: there is no section [limit]. Did you mean LIMITS_MAX_PER_DAY?",
        ),
        (
            {"ICONIC_AUTH_TOKE_FILE": TOKEN},
            "ICONIC_AUTH_TOKE_FILE: there is no section [iconic]. Did you mean ICONIK_AUTH_TOKEN_FILE?",
        ),
        (
            {"ANALYSE_PROFILE": "Clips"},
            "ANALYSE_PROFILE: there is no section [analyse]. Did you mean ANALYZE_PROFILE?",
        ),
        ({"ICONIK_APPID": "x"}, "ICONIK_APPID: [iconik] has no such key"),
        (
            {"LIMITS_MAX_PER_DAY_FILE": "x"},
            "LIMITS_MAX_PER_DAY_FILE: the file cannot be read: No such file or directory",
        ),
        (
            {"ICONIK_AUTH_TOKEN_FILE": TOKEN},
            "ICONIK_AUTH_TOKEN_FILE: the file cannot be read: No such file or directory",
        ),
        ({"ICONIK_AUTH_TOKEN_FILE": "/"}, "ICONIK_AUTH_TOKEN_FILE: the file cannot be read: Is a directory"),
        (
            {"ICONIK_APP_ID": "a", "ICONIK_APP_ID_FILE": "b"},
            "ICONIK_APP_ID and ICONIK_APP_ID_FILE are both set: remove one of them",
        ),
        ({"ICONIK_APP_ID": f"a\n{TOKEN}"}, "ICONIK_APP_ID: has more than one line"),
        (
            {"ICONIK_APP_ID": "a", "ICONIK_AUTH_TOKEN": f'"{TOKEN}"'},
            "ICONIK_AUTH_TOKEN: is in quotes: write it without them",
        ),
        (
            {"SUBMITTER_WORKERS": "many", "ICONIK_APP_ID": "a", "ICONIK_AUTH_TOKEN": TOKEN},
            "SUBMITTER_WORKERS: is 'many': must be a number",
        ),
        (
            {"SUBMITTER_RETRY_DELAY": "999", "ICONIK_APP_ID": "a", "ICONIK_AUTH_TOKEN": TOKEN},
            "SUBMITTER_MAX_RETRY_DELAY: must not be less than retry_delay",
        ),
        ({"ICONIK_LISTENER_ENVIRONMENT": "yes"}, "ICONIK_LISTENER_ENVIRONMENT: must be 0 or 1"),
    ],
)
def test_what_is_wrong_in_the_environment_is_one_line(
    tmp_path: Path, environment: Callable[..., None], variables: dict[str, str], message: str
) -> None:
    environment(**variables)
    assert refusal(tmp_path / "config.ini") == message


def test_a_mistake_in_config_ini_is_told_with_its_section(tmp_path: Path, environment: Callable[..., None]) -> None:
    path = write_config(tmp_path, iconik__app_id=None)
    environment(ICONIK_AUTH_TOKEN=TOKEN)
    assert refusal(path) == f"{path}: [iconik] app_id: is missing"


def test_a_file_that_cannot_be_read_says_whose_it_must_be(tmp_path: Path, environment: Callable[..., None]) -> None:
    file = secret_file(tmp_path)
    file.chmod(0)
    environment(ICONIK_AUTH_TOKEN_FILE=file)
    let_everybody_in(tmp_path)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        assert f"It must belong to the user {os.geteuid()}, or be readable" in refusal(tmp_path / "config.ini")
    finally:
        os.seteuid(user)


def test_a_file_that_is_not_text_is_one_line(tmp_path: Path, environment: Callable[..., None]) -> None:
    file = tmp_path / "secret"
    file.write_bytes(b"\xff\xfe")
    environment(ICONIK_AUTH_TOKEN_FILE=file)
    assert refusal(tmp_path / "config.ini") == "ICONIK_AUTH_TOKEN_FILE: the file is not UTF-8 text"


def test_what_kubernetes_sets_for_a_service_of_our_name_is_left_alone(
    tmp_path: Path, environment: Callable[..., None]
) -> None:
    environment(ICONIK_LISTENER_PORT="tcp://10.0.0.1:8000", ICONIK_LISTENER_SERVICE_HOST="10.0.0.1")
    assert load(write_config(tmp_path)).listener.port == 8000


@pytest.mark.parametrize(
    "variable", ["LISTEN_PORT", "LISTEN_PID", "NOTIFY_SOCKET", "RATE_LIMIT", "LIMIT_CPU", "ICON_URL", "TOPIC_TO"]
)
def test_what_is_meant_for_another_program_is_left_alone(
    tmp_path: Path, environment: Callable[..., None], variable: str
) -> None:
    environment(**{variable: "x"})
    assert load(write_config(tmp_path)).variables == ()


def test_each_key_has_a_variable_of_its_own() -> None:
    keys = [(section, key.name) for section in (*SECTIONS, *JOBS) for key in keys_of(section)]
    assert not [section for section in (*SECTIONS, *JOBS) if "_" in section]
    assert not [key for _, key in keys if key.endswith("_file")]
    assert not [key for section, key in keys if f"{section}_{key}".upper().startswith("ICONIK_LISTENER_")]


# What it says and does


def test_the_first_line_and_check_say_that_the_environment_is_read(
    listeners: Callable[..., Listener], environment: Callable[..., None], sandbox: FaultyIconik
) -> None:
    environment(ICONIK_AUTH_TOKEN=sandbox.auth_token)
    listener = listeners(iconik__auth_token=None).start()
    says = f"The environment is read, and goes before {listener.config}: ICONIK_AUTH_TOKEN"
    assert listener.log[0].rstrip().endswith(f" INFO {says}")
    assert f"note   {says}\n" in listener.command("check").stdout


@pytest.mark.long
def test_check_needs_no_config_ini(
    listeners: Callable[..., Listener], environment: Callable[..., None], sandbox: FaultyIconik, tmp_path: Path
) -> None:
    listener = listeners().start()
    environment(
        ICONIK_URL=sandbox.url,
        ICONIK_APP_ID=sandbox.app_id,
        ICONIK_AUTH_TOKEN_FILE=secret_file(tmp_path, sandbox.auth_token),
        LISTENER_DATABASE=listener.database,
        LISTENER_WEBHOOK_SECRET="s",
    )
    listener.config.unlink()
    printed = listener.command("check").stdout
    assert "ok     the configuration is complete\n" in printed
    assert "ok     the listener has been running since 20" in printed


@pytest.mark.long
def test_check_names_the_variables_of_credentials_that_are_refused(
    listeners: Callable[..., Listener], environment: Callable[..., None], sandbox: FaultyIconik, tmp_path: Path
) -> None:
    listener = listeners(iconik__auth_token=None)
    environment(ICONIK_AUTH_TOKEN_FILE=secret_file(tmp_path, "another"))
    end = "and create the container again"
    assert (
        f"Correct the values of ICONIK_AUTH_TOKEN_FILE and {listener.config}, {end}" in listener.command("check").stdout
    )
    environment(ICONIK_APP_ID=sandbox.app_id)
    assert f"Correct the values of ICONIK_APP_ID and ICONIK_AUTH_TOKEN_FILE, {end}" in listener.command("check").stdout


@pytest.mark.long
def test_a_check_in_another_container_asks_the_listeners_own_address(
    listeners: Callable[..., Listener], monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = listeners().start()
    monkeypatch.setenv("ICONIK_LISTENER_ADDRESS", "127.0.0.2:1")
    assert "ok     the listener has been running since 20" in listener.command("check").stdout
    monkeypatch.setenv("ICONIK_LISTENER_CONTAINER", "1")
    assert "http://127.0.0.2:1/health: " in listener.command("check").stdout
    monkeypatch.setenv("ICONIK_LISTENER_ADDRESS", listener.url.removeprefix("http://"))
    assert "ok     the listener has been running since 20" in listener.command("check").stdout


@pytest.mark.long
def test_a_call_that_hangs_ends_the_process(
    listeners: Callable[..., Listener], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ICONIK_LISTENER_CONTAINER", "1")
    prelude = f"{HURRIED}\n{HANGING}\nfrom system import server\nserver.TICK_SECONDS = 0.03"
    listener = listeners().start(prelude=prelude)
    wait_until(listener.process_ended)
    assert listener.logged("CRITICAL A call to iconik has hung for 0 s: ending, to be restarted")
    assert listener.end(signal.SIGKILL) == 1


@pytest.mark.long
def test_the_demo_does_not_use_the_credentials_of_the_environment(
    tmp_path: Path, environment: Callable[..., None]
) -> None:
    environment(ICONIK_URL="https://iconik.invalid", ICONIK_APP_ID="real", LISTENER_DATABASE=tmp_path / "real.db")
    done = run("demo", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []


def test_remedies_name_no_sudo_in_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ICONIK_LISTENER_CONTAINER", "1")
    path = write_config(tmp_path)
    path.chmod(0o644)
    monkeypatch.setenv("ICONIK_LISTENER_COMMAND", "iconik-listener")
    assert restart_it() == "restart the listener"
    assert start_it() == "start it. If it does not start, its log says why"
    [warning, _] = load(path).warnings
    user = os.geteuid()
    assert warning.endswith(
        f": on the host, give the file to the user {user}, with chown, and make it private, with chmod 600"
    )
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert f": on the host, give what is mounted there to the user {user}, with chown -R (" in explain(
        tmp_path / "items.db", OSError(13, "Permission denied")
    )


# The image and the files of deploy/


CONTAINERFILE = ROOT / "Containerfile"
COMPOSE = ROOT / "deploy" / "compose.yaml"
QUADLET = ROOT / "deploy" / "iconik-listener.container"
PAGE = ROOT / "docs" / "container.md"
REHEARSAL = ROOT / "deploy" / "rehearse-container"


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@pytest.mark.skipif(not (ROOT / ".git").exists() or not shutil.which("git"), reason="this is no checkout")
def test_the_image_has_every_file_of_the_service_and_no_other() -> None:
    copied = [line.split()[1:-1] for line in text(CONTAINERFILE).splitlines() if line.startswith("COPY ")]
    sources = [source for line in copied for source in line if not source.startswith(("--", "/"))]
    tracked = subprocess.run(["git", "-C", ROOT, "ls-files"], capture_output=True, text=True, check=True).stdout.split()

    def is_copied(file: str) -> bool:
        in_root = "/" not in file
        return any(
            (in_root and Path(file).match(source)) or file == source or file.startswith(f"{source}/")
            for source in sources
        )

    tools = {"tests", "benchmarks", "deploy", "docs", ".ci"}
    of_the_service = {
        file for file in tracked if file.endswith((".py", ".sql", ".html", ".css")) and Path(file).parts[0] not in tools
    }
    copied_files = {file for file in tracked if is_copied(file)}
    assert sorted(of_the_service - copied_files) == []
    others = copied_files - of_the_service
    assert others == {"LICENSE", "requirements.txt", "requirements-notify.txt", "constraints.txt", "deploy/backup.py"}
    assert not any(is_copied(file) for file in ("config.ini", "items.db", "deploy/secrets/auth_token", ".git/config"))


def test_every_file_names_the_image_of_this_version() -> None:
    for path in (CONTAINERFILE, COMPOSE, QUADLET, PAGE):
        tags = re.findall(r"iconik-listener:([\d.]+\d)", text(path))
        assert tags, path
        assert set(tags) == {__version__}, path


def test_each_variable_in_the_files_is_a_key_of_config_ini() -> None:
    words = "|".join((*SECTIONS, *JOBS)).upper()
    named = {
        variable
        for path in (CONTAINERFILE, COMPOSE, QUADLET, PAGE, ROOT / "deploy" / "compose.env")
        for variable in re.findall(rf"\b(?:{words})_[A-Z_]+[A-Z]\b", text(path))
        if not variable.startswith("ICONIK_LISTENER_")
    }
    keys = {f"{section}_{key.name}".upper() for section in (*SECTIONS, *JOBS) for key in keys_of(section)}
    assert {variable.removesuffix("_FILE") for variable in named} <= keys
    assert {"ICONIK_AUTH_TOKEN_FILE", "LISTENER_WEBHOOK_SECRET_FILE", "LIMITS_MAX_PER_DAY"} <= named


def test_every_container_of_ours_in_compose_reads_env() -> None:
    """A key that a person adds there reaches them; an edited compose.yaml would stop the next git pull."""
    [shared] = re.findall(r"^x-listener: &listener\n(.*?)^\S", text(COMPOSE), re.MULTILINE | re.DOTALL)
    assert "  env_file: [.env]\n" in shared
    assert (
        text(COMPOSE).count("<<: *listener\n")
        == len(re.findall(r"^  (?:listener|check|backup):\n", text(COMPOSE), re.MULTILINE))
        == 3
    )


def test_both_caddyfiles_pass_the_same_webhooks() -> None:
    on_a_vm, in_compose = (
        re.sub("^#.*\n", "", text(ROOT / "deploy" / name), flags=re.MULTILINE)
        for name in ("Caddyfile", "compose.Caddyfile")
    )
    changed = on_a_vm.replace("iconik-listener.example.com", "{$HOST}").replace("127.0.0.1:8000", "listener:8000")
    assert in_compose == changed


@pytest.mark.skipif(not shutil.which("caddy"), reason="Caddy is not installed")
@pytest.mark.parametrize("name", ["Caddyfile", "compose.Caddyfile"])
def test_caddy_accepts_the_caddyfile(name: str) -> None:
    command = ["caddy", "adapt", "--adapter", "caddyfile", "--config", str(ROOT / "deploy" / name)]
    environment = {**os.environ, "HOST": "iconik-listener.example.com"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, env=environment)
    assert done.returncode == 0, done.stderr


def test_every_step_of_the_containers_rehearsal_is_there() -> None:
    script = text(REHEARSAL)
    [steps] = re.findall(r"^all_steps=\((.*?)\)$", script, re.MULTILINE | re.DOTALL)
    assert steps.split() == [step for step in steps.split() if f"\nstep_{step}() {{" in script]
    assert len(steps.split()) == len(re.findall(r"^step_\w+\(\)", script, re.MULTILINE))


def test_the_blocks_that_the_containers_rehearsal_pastes_are_in_the_page() -> None:
    sections = {part.partition("\n")[0]: part for part in re.split(r"^#+ ", text(PAGE), flags=re.MULTILINE)}
    pasted = re.findall(r'^  paste "(.*?)" (\d)', text(REHEARSAL), re.MULTILINE)
    assert len(pasted) >= 5
    for heading, number in pasted:
        assert len(re.findall(r"^```\n.*?^```$", sections[heading], re.MULTILINE | re.DOTALL)) >= int(number), heading
