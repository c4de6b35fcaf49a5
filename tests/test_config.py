import grp
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from config import INSTALLED, MOVED, Config, ConfigError, keys_of, load, load_notify
from faulty_iconik import FaultyIconik
from jobs import ANALYZE, FACES, TRANSCRIBE
from support import ASSET, Listener, let_everybody_in, wait_until, write_config

EXAMPLE = Path(__file__).parent.parent / "config.example.ini"
TEN_YEARS = 10 * 365 * 24 * 3600
PROFILE = "d0d0d0d0-0000-11e7-a36b-0a580a00054a"
HOST_ONLY = "[iconik] url: may consist of scheme and host only, like https://app.iconik.io"
NO_URL = "[iconik] url: is not a URL like https://app.iconik.io"
CONTINUED = "is continued by the next line, which begins with a space: remove that space"
NO_HEADER = "may consist of visible ASCII characters only, without spaces"
SECTIONS = ["iconik", "listener", "submitter", "analyze", "transcribe", "faces", "limits", "reconciler", "notify"]
COMMENT = "is followed by a comment, which needs a line of its own"
QUOTED = "is in quotes: write it without them"
VERSION_1_0 = """[iconik]
url = https://app.iconik.io
app_id = a
auth_token = t
analysis_profile =
[listener]
host = 0.0.0.0
port = 8000
database = items.db
webhook_secret = s
[submitter]
workers = 4
timeout = 20
retry_delay = 10
max_retry_delay = 900
[sweep]
interval = 1800
min_age = 300
max_age = 86400
"""


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    assert caught.value.exit_code == 2
    return message.removeprefix(f"{path}: ")


def written(folder: Path, text: str) -> Path:
    path = folder / "config.ini"
    path.write_text(text, encoding="utf-8")
    path.chmod(0o600)
    return path


def values(config: Config) -> tuple[object, ...]:
    return tuple(config.job_sections.get(section) or getattr(config, section) for section in SECTIONS)


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """The example, with the credentials filled in."""
    text = EXAMPLE.read_text(encoding="utf-8")
    return written(tmp_path, text.replace("app_id =", "app_id = a").replace("auth_token =", "auth_token = t"))


def test_what_the_example_shows_is_what_holds_when_a_key_is_left_out(tmp_path: Path, example: Path) -> None:
    shown = load(example)
    assert values(shown) == values(load(written(tmp_path, "[iconik]\napp_id = a\nauth_token = t\n")))
    iconik, listener, submitter, reconciler = shown.iconik, shown.listener, shown.submitter, shown.reconciler
    assert (iconik.url, iconik.app_id, iconik.auth_token) == ("https://app.iconik.io", "a", "t")
    assert (iconik.timeout, submitter.jobs) == (30, ("analyze",))
    assert (shown.of(ANALYZE).profile, shown.of(ANALYZE).only, sorted(shown.skip_types)) == ((), "", ["SUBCLIP"])
    assert (shown.of(TRANSCRIBE).profile, shown.of(TRANSCRIBE).only, shown.of(TRANSCRIBE).language) == ((), "", "")
    assert (shown.of(FACES).only, shown.limits.max_per_day) == ("", 0)
    assert (listener.host, listener.port, listener.database) == ("0.0.0.0", 8000, tmp_path / "items.db")
    assert listener.webhook_secret == ()
    assert (submitter.workers, submitter.retry_delay, submitter.max_retry_delay) == (4, 10, 900)
    assert submitter.give_up_after == 7 * 24 * 3600
    assert (reconciler.interval, reconciler.min_age, reconciler.max_age) == (3600, 600, 7 * 24 * 3600)


def test_the_example_shows_every_key_of_every_section() -> None:
    lines = EXAMPLE.read_text(encoding="utf-8").splitlines()
    sections = [line[1:-1] for line in lines if line.startswith("[")]
    keys = [line.split(" =")[0] for line in lines if " =" in line and not line.startswith("#")]
    assert sections == SECTIONS
    assert keys == [key.name for section in sections for key in keys_of(section)]


def test_the_example_as_it_stands_names_what_is_to_be_filled_in() -> None:
    assert refusal(EXAMPLE) == "[iconik] app_id and auth_token: are missing"


# Values as they are written


@pytest.mark.parametrize("value", ["50%", "%(app_id)s", "a;b", "a#b", "=", "x=y", '"', "'a\"", 'a"b"', "it's"])
def test_a_token_is_taken_as_it_is_written(tmp_path: Path, value: str) -> None:
    path = write_config(tmp_path, iconik__auth_token=value, listener__webhook_secret=value)
    assert load(path).iconik.auth_token == value
    assert load(path).listener.webhook_secret == (value,)


@pytest.mark.parametrize(
    ("text", "secrets"), [("", ()), ("one", ("one",)), ("new old", ("new", "old")), ("new   old", ("new", "old"))]
)
def test_there_may_be_two_webhook_secrets(tmp_path: Path, text: str, secrets: tuple[str, ...]) -> None:
    assert load(write_config(tmp_path, listener__webhook_secret=text)).listener.webhook_secret == secrets


@pytest.mark.parametrize(
    ("text", "types"),
    [
        ("", set()),
        ("subclip", {"SUBCLIP"}),
        ("SUBCLIP, NLE_PROJECT", {"SUBCLIP", "NLE_PROJECT"}),
        ("LINK LINK", {"LINK"}),
    ],
)
def test_types_to_skip_are_words(tmp_path: Path, text: str, types: set[str]) -> None:
    assert load(write_config(tmp_path, analyze__skip_types=text)).skip_types == types


@pytest.mark.parametrize(
    ("text", "profiles"),
    [
        ("", ()),
        ("default", ("default",)),
        ("DEFAULT", ("default",)),
        ("News  clips", ("News clips",)),
        (" Stills ,Clips, ", ("Stills", "Clips")),
        ("D0D0D0D0-0000-11E7-A36B-0A580A00054A", ("d0d0d0d0-0000-11e7-a36b-0a580a00054a",)),
    ],
)
def test_profiles_are_names_or_uuids(tmp_path: Path, text: str, profiles: tuple[str, ...]) -> None:
    assert load(write_config(tmp_path, analyze__profile=text)).of(ANALYZE).profile == profiles


@pytest.mark.parametrize(
    ("text", "jobs"),
    [("analyze", ("analyze",)), ("faces, Transcribe", ("transcribe", "faces")), ("analyze analyze", ("analyze",))],
)
def test_jobs_are_words_in_any_order(tmp_path: Path, text: str, jobs: tuple[str, ...]) -> None:
    config = load(write_config(tmp_path, submitter__jobs=text))
    assert tuple(job.name for job in config.jobs) == jobs


def test_a_type_that_iconik_does_not_have_is_a_warning(tmp_path: Path) -> None:
    """N15: it is no reason not to start."""
    path = write_config(tmp_path, analyze__skip_types="AUDIO", listener__webhook_secret="s")
    [warning] = load(path).warnings
    assert "iconik has no type of assets AUDIO, only ASSET, SEQUENCE" in warning


def test_what_has_moved_since_version_1_1_is_read_from_its_old_place(tmp_path: Path) -> None:
    path = write_config(tmp_path, iconik__analysis_profile="default", iconik__skip_types="LINK")
    config = load(path)
    assert (config.of(ANALYZE).profile, set(config.skip_types)) == (("default",), {"LINK"})
    assert config.notes == (
        f"{path}: analysis_profile of [iconik] is now profile of [analyze]: move it there",
        f"{path}: skip_types of [iconik] is now skip_types of [analyze]: move it there",
    )


def test_a_file_of_windows_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.ini"
    path.write_bytes(b"\xef\xbb\xbf[iconik]\r\napp_id = a\r\nauth_token = t\r\n")
    assert load(path).iconik.auth_token == "t"


def test_comments_and_empty_lines_are_read_over(tmp_path: Path) -> None:
    path = written(tmp_path, "# one\n\n[iconik]\napp_id = a\n  # two\n\n; three\nauth_token: t\n\n[listener]\n\n")
    assert (load(path).iconik.app_id, load(path).iconik.auth_token) == ("a", "t")


def test_a_relative_database_is_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "etc").mkdir()
    write_config(tmp_path / "etc", listener__database="../data/items.db")
    monkeypatch.chdir(tmp_path)
    assert load(Path("etc/config.ini")).listener.database == tmp_path / "data/items.db"
    assert load(Path("etc/config.ini")).path == tmp_path / "etc/config.ini"


def test_a_linked_database_is_known_by_its_one_true_name(tmp_path: Path) -> None:
    (tmp_path / "link.db").symlink_to(tmp_path / "items.db")
    assert load(write_config(tmp_path, listener__database="link.db")).listener.database == tmp_path / "items.db"


def test_a_config_ini_that_becomes_a_link_keeps_its_database(tmp_path: Path) -> None:
    """P11: it must not begin a new one beside its target. One that has been a link already has it there."""
    old, new = tmp_path / "old" / "items.db", tmp_path / "new" / "items.db"
    for database in (old, new):
        database.parent.mkdir()
    link = tmp_path / "old" / "config.ini"
    link.symlink_to(write_config(tmp_path / "new"))
    assert load(link).listener.database == new
    old.touch()
    assert load(link).listener.database == old
    assert load_notify(link)[1] == old
    new.touch()
    assert refusal(link) == f"[listener] database: {old} or {new}? Write the right one with its folder"
    old.unlink()
    assert load(link).listener.database == new


URLS = ["https://app.iconik.io/", "HTTPS://App.Iconik.io", "https://iconik.example.com:8443", "https://[::1]:9000"]
LOCAL_URLS = ["http://127.0.0.1:8080", "http://localhost", "http://[::1]:9000", "http://127.1.2.3/"]


@pytest.mark.parametrize("url", [*URLS, *LOCAL_URLS])
def test_https_is_allowed_and_http_to_this_machine(tmp_path: Path, url: str) -> None:
    assert load(write_config(tmp_path, iconik__url=url)).iconik.url == url.rstrip("/")


# Values that are refused


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("iconik__url", "http://app.iconik.io", "[iconik] url: must be https:// (the credentials travel with each request)"),
        ("iconik__url", "http://127.0.0.1.example.com", "[iconik] url: must be https:// (the credentials travel with each request)"),
        ("iconik__url", "app.iconik.io", NO_URL),
        ("iconik__url", "", NO_URL),
        ("iconik__url", "https://", NO_URL),
        ("iconik__url", "https://a..b", NO_URL),
        ("iconik__url", "https://a b", NO_URL),
        ("iconik__url", "ftp://app.iconik.io", NO_URL),
        ("iconik__url", "https://a:b", "[iconik] url: is not a URL"),
        ("iconik__url", "https://a:65536", "[iconik] url: is not a URL"),
        ("iconik__url", "https://[hush", "[iconik] url: is not a URL"),
        ("iconik__url", "https://app.iconik.io/API", HOST_ONLY),
        ("iconik__url", "https://app.iconik.io?", HOST_ONLY),
        ("iconik__url", "https://app.iconik.io/?", HOST_ONLY),
        ("iconik__url", "https://app.iconik.io#", HOST_ONLY),
        ("iconik__url", "https://app.iconik.io?a=b", HOST_ONLY),
        ("iconik__url", "https://app.\ticonik.io", HOST_ONLY),
        ("iconik__url", "https://me:hush@app.iconik.io", HOST_ONLY),
        ("iconik__url", "https://@app.iconik.io", HOST_ONLY),
        ("iconik__url", '"https://app.iconik.io"', f"[iconik] url: {QUOTED}"),
        ("iconik__app_id", None, "[iconik] app_id: is missing"),
        ("iconik__app_id", "hush\x7f", f"[iconik] app_id: {NO_HEADER}"),
        ("iconik__auth_token", "", "[iconik] auth_token: is missing"),
        ("iconik__auth_token", "hush hush", f"[iconik] auth_token: {NO_HEADER}"),
        ("iconik__auth_token", "hushé", f"[iconik] auth_token: {NO_HEADER}"),
        ("iconik__auth_token", "hush # mine", f"[iconik] auth_token: {COMMENT}"),
        ("iconik__app_id", "hush\t; mine", f"[iconik] app_id: {COMMENT}"),
        ("iconik__auth_token", "\u201chush\u201d", f"[iconik] auth_token: {QUOTED}"),
        ("iconik__app_id", "\u2018hush\u2019", f"[iconik] app_id: {QUOTED}"),
        ("iconik__timeout", "30 # seconds", f"[iconik] timeout: {COMMENT}"),
        ("listener__webhook_secret", "hush # mine", f"[listener] webhook_secret: {COMMENT}"),
        ("listener__webhook_secret", "\u201ehush\u201c", f"[listener] webhook_secret: {QUOTED}"),
        ("listener__prot", "8000", "[listener] prot: unknown key. Did you mean port?"),
        ("iconik__auth_token", '"hush"', f"[iconik] auth_token: {QUOTED}"),
        ("iconik__auth_token", "hush\n hush", f"[iconik] auth_token: {CONTINUED}"),
        ("iconik__timeout", "30\n auth_token = hush", f"[iconik] timeout: {CONTINUED}"),
        ("iconik__analysis_profile", "\n auth_token = hush", f"[iconik] analysis_profile: {CONTINUED}"),
        ("iconik__skip_types", "SUBCLIP\n\n auth_token = hush", f"[iconik] skip_types: {CONTINUED}"),
        ("submitter__jobs", "objects", "[submitter] jobs: is 'objects': must be one or more of analyze, transcribe, faces, separated by spaces"),
        ("submitter__jobs", "", "[submitter] jobs: is missing: one or more of analyze, transcribe, faces"),
        ("limits__max_per_day", "-1", "[limits] max_per_day: is '-1': must be 0 to 10000000"),
        ("iconik__analysis_profile", '"default"', f"[iconik] analysis_profile: {QUOTED}"),
        ("iconik__skip_types", "SUB-CLIP", "[iconik] skip_types: is 'SUB-CLIP': must be asset types like SUBCLIP, separated by spaces"),
        ("iconik__tokn", "hush", "[iconik] tokn: unknown key"),
        ("listener__host", "", "[listener] host: is missing"),
        ("listener__host", "'0.0.0.0'", f"[listener] host: {QUOTED}"),
        ("listener__database", "", "[listener] database: is missing"),
        ("listener__database", '"items.db"', f"[listener] database: {QUOTED}"),
        ("listener__database", "items\x07.db", "[listener] database: contains a character that cannot be printed"),
        ("listener__webhook_secret", "hush\thush", f"[listener] webhook_secret: {NO_HEADER}"),
        ("listener__webhook_secret", "hush hush hush", "[listener] webhook_secret: may hold two secrets at most, separated by a space"),
        ("listener__webhook_secret", '"hush hush"', f"[listener] webhook_secret: {QUOTED}"),
        ("listener__webhook_secret", '"hush" hush', f"[listener] webhook_secret: {QUOTED}"),
        ("submitter__retry_delay", "1000", "[submitter] max_retry_delay: must not be less than retry_delay"),
        ("submitter__max_retry_delay", "9", "[submitter] max_retry_delay: must not be less than retry_delay"),
    ],
)  # fmt: skip
def test_a_bad_value_is_named_and_a_secret_is_not_shown(
    tmp_path: Path, key: str, value: str | None, message: str
) -> None:
    assert refusal(write_config(tmp_path, **{key: value})) == message
    assert "hush" not in message


WHOLE_NUMBERS = {"listener__port": (0, 65535), "submitter__workers": (1, 32)}
DURATIONS = {
    **dict.fromkeys(["iconik__timeout", "submitter__retry_delay", "submitter__max_retry_delay"], 0.01),
    **dict.fromkeys(["submitter__give_up_after"], 0.01),
    **dict.fromkeys(["reconciler__interval", "reconciler__min_age", "reconciler__max_age"], 0),
}


def number(config: Config, key: str) -> Any:
    section, name = key.split("__")
    return getattr(getattr(config, section), name)


@pytest.mark.parametrize("key", WHOLE_NUMBERS)
def test_a_whole_number_has_limits(tmp_path: Path, key: str) -> None:
    lowest, highest = WHOLE_NUMBERS[key]
    place = f"[{key.replace('__', '] ')}"
    for value in (lowest, highest):
        assert number(load(write_config(tmp_path, **{key: value})), key) == value
    for value in (lowest - 1, highest + 1, 10**39):
        problem = refusal(write_config(tmp_path, **{key: value}))
        assert problem == f"{place}: is '{value}': must be {lowest} to {highest}"
    for text in ("", "http", "1.5", "0x10", "1e1"):
        assert refusal(write_config(tmp_path, **{key: text})) == f"{place}: is '{text}': must be a number"
    assert refusal(write_config(tmp_path, **{key: "9" * 400})).startswith(f"{place}: is '{'9' * 40}': must be ")


@pytest.mark.parametrize("key", DURATIONS)
def test_a_duration_lasts_ten_years_at_most(tmp_path: Path, key: str) -> None:
    lowest = DURATIONS[key]
    place = f"[{key.replace('__', '] ')}"
    others = {"submitter__retry_delay": 0.01, "submitter__max_retry_delay": TEN_YEARS}
    for value in (lowest, TEN_YEARS, 12.5):
        assert number(load(write_config(tmp_path, **{**others, key: value})), key) == value
    for text in ("-1", "nan", "inf", "-inf", "1e11", "99999999999", str(TEN_YEARS + 1), "9" * 40, "1e999"):
        problem = refusal(write_config(tmp_path, **{**others, key: text}))
        assert problem == f"{place}: is '{text}': must be {lowest} to 315360000 seconds (ten years)"
    for text in ("", "soon", "10 s", "1h", "0,5"):
        assert refusal(write_config(tmp_path, **{**others, key: text})) == f"{place}: is '{text}': must be a number"


# Files that are refused


def test_a_typo_is_named_before_what_it_leaves_missing(tmp_path: Path) -> None:
    path = write_config(tmp_path, iconik__auth_token=None, iconik__auth_tokn="hush")
    assert refusal(path) == "[iconik] auth_tokn: unknown key. Did you mean auth_token?"


NO_INI = "is not a [section], key = value, or # comment"
NO_SECTION = "stands before the first [section]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "[iconik] app_id and auth_token: are missing"),
        ("[iconik]\napp_id = hush\n", "[iconik] auth_token: is missing"),
        ("[iconic]\n", "[iconic]: unknown section. Did you mean [iconik]?"),
        ("[Iconik]\n", "[Iconik]: unknown section. Did you mean [iconik]?"),
        ("[DEFAULT]\napp_id = hush\n", "[DEFAULT]: unknown section"),
        ("[sweep]\ninterval = 1\nbatch = hush\n", "[sweep]: unknown section"),
        ("app_id = hush\n", f"line 1: {NO_SECTION}"),
        ("# hush\n\nApp_ID: hush\n[iconik]\n", f"line 3: {NO_SECTION}"),
        ("hush\n[iconik]\n", f"line 1: {NO_INI}"),
        ("[iconik\napp_id = hush\n", f"line 1: {NO_INI}"),
        ("  auth_token = hush\n", f"line 1: {NO_SECTION}"),
        ("[iconik]\nauth_token hush\n", f"line 2: {NO_INI}"),
        ("[iconik]\napp_id = a\nhush\nhush\n", f"line 3: {NO_INI}"),
        ("[iconik]\n= hush\n", f"line 2: {NO_INI}"),
        ("[iconik]\napp_id = a\napp_id = hush\n", "[iconik] app_id: is defined twice"),
        ("[iconik]\napp_id = a\nAPP_ID = hush\n", "[iconik] app_id: is defined twice"),
        ("[iconik]\n[iconik]\n", "[iconik]: is defined twice"),
    ],
)
def test_a_file_that_cannot_be_read_as_ini_is_refused_without_quoting_it(
    tmp_path: Path, text: str, message: str
) -> None:
    problem = refusal(written(tmp_path, text))
    assert problem == message
    assert "hush" not in problem


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.ini"
    path.write_bytes(b"[iconik]\nauth_token = \xff\n")
    assert refusal(path) == "is not UTF-8 text: save it as UTF-8"
    assert refusal(tmp_path) == "cannot be read: Is a directory"


def test_without_a_file_the_message_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"copy config\.example\.ini .* or try: python app\.py demo"):
        load(tmp_path / "config.ini")


@pytest.mark.skipif(INSTALLED.exists(), reason="the listener is installed here")
def test_without_a_file_on_an_installed_vm_the_message_names_install_sh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ICONIK_LISTENER_COMMAND", "iconik-listener")
    with pytest.raises(ConfigError) as caught:
        load(INSTALLED / "config.ini")
    remedy = "To create it: sudo /opt/iconik-listener/deploy/install.sh"
    assert str(caught.value) == f"{INSTALLED}/config.ini does not exist. {remedy}"


def test_a_system_that_does_not_exist_is_refused_with_those_that_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ICONIK_LISTENER_COMMAND", "iconik-listener --system nosuch")
    write_config(tmp_path)
    for names, known in (
        ((), "This VM has one system, which needs no --system"),
        (("third", "second"), "--system may be second or third"),
    ):
        for name in names:
            (tmp_path / f"{name}.ini").touch()
        with pytest.raises(ConfigError) as caught:
            load(tmp_path / "nosuch.ini")
        message = f"does not exist: there is no system nosuch. {known}. To add one, see docs/operating.md"
        assert str(caught.value) == f"{tmp_path}/nosuch.ini {message}"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_that_is_closed_is_named_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_config(tmp_path, listener__database="closed/items.db")
    assert load(path)  # Python itself loads what it needs for that, and may be root's only
    path.chmod(0o644)
    let_everybody_in(tmp_path)
    closed = tmp_path / "closed"
    closed.mkdir(0o700)
    inner = write_config(closed)
    os.setresuid(65534, 65534, 0)
    try:
        assert load(path).listener.database == closed / "items.db"  # who opens that learns why it is closed
        assert refusal(inner) == f"cannot be read: this user may not enter {closed}: run this with sudo"
        monkeypatch.setattr("config.INSTALLED", closed)
        assert refusal(inner).endswith(": use the command iconik-listener")
        monkeypatch.setenv("ICONIK_LISTENER_COMMAND", "iconik-listener")
        assert refusal(inner).endswith(": sudo /opt/iconik-listener/deploy/install.sh opens it")
    finally:
        os.setresuid(0, 0, 0)


# What is allowed and not wise


def test_a_repr_shows_no_secret(tmp_path: Path) -> None:
    keys = ("iconik__app_id", "iconik__auth_token", "listener__webhook_secret")
    config = load(write_config(tmp_path, **dict.fromkeys(keys, "hush")))
    assert (config.iconik.app_id, config.iconik.auth_token, config.listener.webhook_secret) == (
        "hush",
        "hush",
        ("hush",),
    )
    assert "hush" not in repr(config)


def test_a_file_that_everybody_can_read_is_warned_of_with_a_command_that_can_be_pasted(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    path = write_config(folder, listener__webhook_secret="s")
    assert load(path).warnings == ()
    path.chmod(0o604)
    [warning] = load(path).warnings
    assert warning.endswith(f"contains credentials and is readable by every user: chmod 600 '{path}'")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_the_remedy_for_roots_open_file_names_owner_and_mode(tmp_path: Path) -> None:
    """N3: the service must still be able to read it, so taking the rights of others is not enough."""
    path = write_config(tmp_path, listener__webhook_secret="s")
    assert load(path).warnings == ()  # Python itself loads what it needs for that, and may be root's only
    path.chmod(0o644)
    let_everybody_in(tmp_path)
    os.setegid(65534)
    os.seteuid(65534)
    try:
        [warning] = load(path).warnings
        group = grp.getgrgid(65534).gr_name
        remedy = f": sudo chown root:{group} {path} && sudo chmod 640 {path}"
        assert warning.endswith(remedy)
        os.seteuid(0)
        path.chmod(0o600)  # as who follows "chmod o-r" in a root shell
        os.seteuid(65534)
        assert refusal(path) == f"cannot be read: Permission denied{remedy}"
    finally:
        os.seteuid(0)
        os.setegid(0)


def test_a_missing_webhook_secret_is_warned_of(tmp_path: Path) -> None:
    [warning] = load(write_config(tmp_path)).warnings
    assert "webhook_secret" in warning


# What version 1.0 had elsewhere


def test_a_config_ini_of_version_1_0_is_read_from_its_old_places(tmp_path: Path) -> None:
    path = written(tmp_path, VERSION_1_0)
    config = load(path)
    assert config.iconik.timeout == 20
    assert (config.reconciler.interval, config.reconciler.min_age, config.reconciler.max_age) == (1800, 300, 86400)
    assert config.warnings == ()
    assert config.notes == (
        f"{path}: timeout of [submitter] is now timeout of [iconik]: move it there",
        f"{path}: interval of [sweep] is now interval of [reconciler]: move it there",
        f"{path}: min_age of [sweep] is now min_age of [reconciler]: move it there",
        f"{path}: max_age of [sweep] is now max_age of [reconciler]: move it there",
        f"{path}: analysis_profile of [iconik] is now profile of [analyze]: move it there",
    )


def test_what_is_in_its_new_place_already_holds(tmp_path: Path) -> None:
    config = load(written(tmp_path, f"{VERSION_1_0}[reconciler]\ninterval = 60\n"))
    assert (config.reconciler.interval, config.reconciler.min_age) == (60, 300)
    assert len(config.notes) == len(MOVED) - 1  # all but skip_types


def test_an_empty_section_of_version_1_0_is_read_over(tmp_path: Path) -> None:
    config = load(written(tmp_path, "[iconik]\napp_id = a\nauth_token = t\n[sweep]\n"))
    assert (config.reconciler.interval, config.notes) == (3600, ())


def test_a_file_of_today_has_no_notes(example: Path) -> None:
    assert load(example).notes == ()


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("sweep__interval", "[sweep] interval: is '-1': must be 0 to 315360000 seconds (ten years)"),
        ("submitter__timeout", "[submitter] timeout: is '-1': must be 0.01 to 315360000 seconds (ten years)"),
    ],
)  # fmt: skip
def test_a_bad_value_in_an_old_place_is_named_with_it(tmp_path: Path, key: str, message: str) -> None:
    assert refusal(write_config(tmp_path, **{key: "-1"})) == message


@pytest.mark.long
def test_a_listener_starts_and_analyzes_with_ten_years_for_every_duration_in_the_places_of_version_1_0(
    listeners: Callable[..., Listener], sandbox: FaultyIconik
) -> None:
    old_places = {f"{section}__{key}": f"{old}__{key}" for (old, key), (section, _) in MOVED.items()}
    values = {old_places.get(key, key): TEN_YEARS for key in DURATIONS}
    listener = listeners(**{"iconik__timeout": None, **values}).start()
    for section in ("iconik", "reconciler"):
        assert listener.logged(f"of [{section}]: move it there")
    listener.upload(ASSET)
    wait_until(lambda: listener.rows("status = 'submitted'"))
    assert sandbox.jobs == [ASSET]
    assert listener.end() == 0
