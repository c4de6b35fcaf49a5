from pathlib import Path

import pytest

from config import ConfigError, load
from support import write_config

EXAMPLE = Path(__file__).parent.parent / "config.example.ini"


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message.removeprefix(f"{path}: ")


def test_the_example_is_valid_once_the_credentials_are_filled_in(tmp_path: Path) -> None:
    filled = EXAMPLE.read_text().replace("app_id =", "app_id = a").replace("auth_token =", "auth_token = t")
    path = tmp_path / "config.ini"
    path.write_text(filled)
    config = load(path)
    assert (config.iconik.app_id, config.iconik.auth_token) == ("a", "t")


def test_what_the_example_shows_is_what_holds_when_a_key_is_left_out(tmp_path: Path) -> None:
    filled = EXAMPLE.read_text().replace("app_id =", "app_id = a").replace("auth_token =", "auth_token = t")
    (tmp_path / "example.ini").write_text(filled)
    (tmp_path / "short.ini").write_text("[iconik]\napp_id = a\nauth_token = t\n")
    example, short = load(tmp_path / "example.ini"), load(tmp_path / "short.ini")
    assert (example.iconik, example.listener, example.submitter, example.sweep) == (
        short.iconik,
        short.listener,
        short.submitter,
        short.sweep,
    )


def test_the_example_as_it_stands_names_what_is_to_be_filled_in() -> None:
    assert refusal(EXAMPLE) == "[iconik] app_id: is missing"


@pytest.mark.parametrize("value", ["50%", "%(app_id)s", "a;b", "a#b", "=", "x=y"])
def test_a_token_is_taken_as_it_is_written(tmp_path: Path, value: str) -> None:
    assert load(write_config(tmp_path, iconik__auth_token=value)).iconik.auth_token == value


def test_a_file_of_windows_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.ini"
    path.write_bytes(b"\xef\xbb\xbf[iconik]\r\napp_id = a\r\nauth_token = t\r\n")
    assert load(path).iconik.auth_token == "t"


def test_a_relative_database_is_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "etc").mkdir()
    write_config(tmp_path / "etc", listener__database="../data/items.db")
    monkeypatch.chdir(tmp_path)
    assert load(Path("etc/config.ini")).listener.database == tmp_path / "data/items.db"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("iconik__url", "http://app.iconik.io", "[iconik] url: must be https:// (the credentials travel with each request)"),
        ("iconik__url", "app.iconik.io", "[iconik] url: is no URL like https://app.iconik.io"),
        ("iconik__url", "https://", "[iconik] url: is no URL like https://app.iconik.io"),
        ("iconik__url", "https://a..b", "[iconik] url: is no URL like https://app.iconik.io"),
        ("iconik__url", "https://a:b", "[iconik] url: is no URL"),
        ("iconik__url", "ftp://app.iconik.io", "[iconik] url: is no URL like https://app.iconik.io"),
        ("iconik__url", "https://app.iconik.io/API", "[iconik] url: may hold scheme and host only, like https://app.iconik.io"),
        ("iconik__url", "https://me:hush@app.iconik.io", "[iconik] url: may hold scheme and host only, like https://app.iconik.io"),
        ("iconik__app_id", None, "[iconik] app_id: is missing"),
        ("iconik__auth_token", "", "[iconik] auth_token: is missing"),
        ("iconik__auth_token", "hush hush", "[iconik] auth_token: may hold visible ASCII characters only, and no spaces"),
        ("iconik__auth_token", "hushé", "[iconik] auth_token: may hold visible ASCII characters only, and no spaces"),
        ("iconik__auth_token", "a\n b", "[iconik] auth_token: may hold visible ASCII characters only, and no spaces"),
        ("iconik__auth_token", '"hush"', "[iconik] auth_token: is in quotes: write it without them"),
        ("iconik__analysis_profile", "video", "[iconik] analysis_profile: is 'video': must be empty, \"default\", or the UUID of an analysis profile"),
        ("iconik__tokn", "hush", "[iconik] tokn: unknown key"),
        ("listener__port", "http", "[listener] port: is 'http': must be a number"),
        ("listener__port", "70000", "[listener] port: is '70000': must be 0 to 65535"),
        ("listener__port", "", "[listener] port: is '': must be a number"),
        ("listener__host", "", "[listener] host: is missing"),
        ("listener__database", "", "[listener] database: is missing"),
        ("listener__webhook_secret", "hush hush", "[listener] webhook_secret: may hold visible ASCII characters only, and no spaces"),
        ("submitter__workers", "0", "[submitter] workers: is '0': must be 1 to 32"),
        ("submitter__workers", "1.5", "[submitter] workers: is '1.5': must be a number"),
        ("submitter__timeout", "nan", "[submitter] timeout: is 'nan': must be at least 0.01"),
        ("submitter__retry_delay", "inf", "[submitter] retry_delay: is 'inf': must be at least 0.01"),
        ("submitter__retry_delay", "1000", "[submitter] max_retry_delay: must not be less than retry_delay"),
        ("sweep__interval", "-1", "[sweep] interval: is '-1': must be at least 0"),
    ],
)  # fmt: skip
def test_a_bad_value_is_named_and_a_secret_is_not_shown(
    tmp_path: Path, key: str, value: str | None, message: str
) -> None:
    assert refusal(write_config(tmp_path, **{key: value})) == message
    assert "hush" not in message


def test_a_typo_is_named_before_what_it_leaves_missing(tmp_path: Path) -> None:
    path = write_config(tmp_path, iconik__auth_token=None, iconik__auth_tokn="hush")
    assert refusal(path) == "[iconik] auth_tokn: unknown key"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "[iconik] app_id: is missing"),
        ("[iconic]\n", "[iconic]: unknown section"),
        ("[DEFAULT]\napp_id = hush\n", "[DEFAULT]: unknown section"),
        ("app_id = hush\n", "line 1: is no [section], key = value, or # comment"),
        ("[iconik]\nauth_token hush\n", "line 2: is no [section], key = value, or # comment"),
        ("[iconik]\napp_id = a\napp_id = hush\n", "[iconik] app_id: stands there twice"),
        ("[iconik]\n[iconik]\n", "[iconik]: stands there twice"),
    ],
)
def test_a_file_that_cannot_be_read_as_ini_is_refused_without_quoting_it(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "config.ini"
    path.write_text(text)
    assert refusal(path) == message


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.ini"
    path.write_bytes(b"[iconik]\nauth_token = \xff\n")
    assert refusal(path) == "is not UTF-8 text"
    assert refusal(tmp_path) == "cannot be read: Is a directory"


def test_without_a_file_the_message_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"copy config\.example\.ini .* or try: python app\.py demo"):
        load(tmp_path / "config.ini")


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "localhost", "[::1]:9000", "127.1.2.3"])
def test_http_is_allowed_to_this_machine(tmp_path: Path, host: str) -> None:
    assert load(write_config(tmp_path, iconik__url=f"http://{host}/")).iconik.url == f"http://{host}"


def test_a_repr_shows_no_secret(tmp_path: Path) -> None:
    config = load(
        write_config(tmp_path, iconik__auth_token="hush", listener__webhook_secret="hush", iconik__app_id="hush")
    )
    assert "hush" not in repr(config)


def test_a_file_that_others_can_read_and_a_missing_secret_are_warned_of(tmp_path: Path) -> None:
    path = write_config(tmp_path, listener__webhook_secret="s")
    assert load(path).warnings == ()
    path.chmod(0o604)
    [warning] = load(path).warnings
    assert warning.endswith(f"chmod o-r {path}")
    [warning] = load(write_config(tmp_path)).warnings
    assert "webhook_secret" in warning
