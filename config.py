"""config.ini: read, checked, typed. One dataclass a section, one field a key."""

import configparser
import math
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

Section = TypeVar("Section")
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE | re.ASCII)
HOST = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)*\.?|[0-9a-f:]*:[0-9a-f:.]*")
THIS_MACHINE = re.compile(r"localhost|127(\.[0-9]{1,3}){3}|::1")


class ConfigError(Exception):
    """One line naming file, section and key; never the value of a secret."""


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        host, _port = parts.hostname or "", parts.port  # reading the port checks it
    except ValueError:
        raise ValueError("is no URL") from None
    if parts.scheme not in ("https", "http") or not HOST.fullmatch(host):
        raise ValueError("is no URL like https://app.iconik.io")
    if parts.username is not None or parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError("may hold scheme and host only, like https://app.iconik.io")
    if parts.scheme == "http" and not THIS_MACHINE.fullmatch(host):
        raise ValueError("must be https:// (the credentials travel with each request)")
    return text.rstrip("/")


def _header_value(text: str) -> str:
    """A secret that travels as an HTTP header: visible ASCII."""
    if not re.fullmatch(r"[!-~]*", text):
        raise ValueError("may hold visible ASCII characters only, and no spaces")
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        raise ValueError("is in quotes: write it without them")
    return text


def _credential(text: str) -> str:
    if not text:
        raise ValueError("is missing")
    return _header_value(text)


def _profile(text: str) -> str:
    if text not in ("", "default") and not UUID.fullmatch(text):
        raise ValueError(f'is {text!r}: must be empty, "default", or the UUID of an analysis profile')
    return text.lower()


def _text(text: str) -> str:
    if not text or not text.isprintable():
        raise ValueError("is missing" if not text else "holds a character that cannot be printed")
    return text


def _path(text: str) -> Path:
    return Path(_text(text))


def _number(parse: Callable[[str], Any], lowest: float, highest: float = math.inf) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            value = parse(text)
        except ValueError:
            raise ValueError(f"is {text!r}: must be a number") from None
        if not (lowest <= value <= highest and math.isfinite(value)):
            bounds = f"at least {lowest}" if highest == math.inf else f"{lowest} to {highest}"
            raise ValueError(f"is {text!r}: must be {bounds}")
        return value

    return read


def _key(read: Callable[[str], Any], default: str | None = None, *, secret: bool = False) -> Any:
    return field(metadata={"read": read, "default": default}, repr=not secret)


@dataclass(frozen=True)
class IconikConfig:
    url: str = _key(_url, "https://app.iconik.io")
    app_id: str = _key(_credential, secret=True)
    auth_token: str = _key(_credential, secret=True)
    analysis_profile: str = _key(_profile, "")


@dataclass(frozen=True)
class ListenerConfig:
    host: str = _key(_text, "0.0.0.0")  # noqa: S104 the webhooks come from outside
    port: int = _key(_number(int, 0, 65535), "8000")
    database: Path = _key(_path, "items.db")
    webhook_secret: str = _key(_header_value, "", secret=True)


@dataclass(frozen=True)
class SubmitterConfig:
    workers: int = _key(_number(int, 1, 32), "4")
    timeout: float = _key(_number(float, 0.01), "30")
    retry_delay: float = _key(_number(float, 0.01), "10")
    max_retry_delay: float = _key(_number(float, 0.01), "900")


@dataclass(frozen=True)
class SweepConfig:
    interval: float = _key(_number(float, 0), "3600")
    min_age: float = _key(_number(float, 0), "600")
    max_age: float = _key(_number(float, 0), "604800")


@dataclass(frozen=True)
class Config:
    """All of config.ini; durations in seconds, `listener.database` absolute.

    `warnings` are lines for the log: what is allowed, but not wise.
    """

    iconik: IconikConfig
    listener: ListenerConfig
    submitter: SubmitterConfig
    sweep: SweepConfig
    warnings: tuple[str, ...]


def load(path: Path) -> Config:
    """Read `path` as UTF-8.

    :raises ConfigError: with one line for the operator
    """
    parser = _parse(path)
    sections = {"iconik": IconikConfig, "listener": ListenerConfig, "submitter": SubmitterConfig, "sweep": SweepConfig}
    for name in parser.sections():
        if name not in sections:
            raise ConfigError(f"{path}: [{name}]: unknown section")
    listener = _section(parser, path, "listener", ListenerConfig)
    # As written it may be relative to the file, or a link: the lock needs its one true name.
    listener = replace(listener, database=(path.resolve().parent / listener.database).resolve())
    submitter = _section(parser, path, "submitter", SubmitterConfig)
    if submitter.max_retry_delay < submitter.retry_delay:
        raise ConfigError(f"{path}: [submitter] max_retry_delay: must not be less than retry_delay")
    return Config(
        iconik=_section(parser, path, "iconik", IconikConfig),
        listener=listener,
        submitter=submitter,
        sweep=_section(parser, path, "sweep", SweepConfig),
        warnings=_warnings(path, listener),
    )


def _parse(path: Path) -> configparser.ConfigParser:
    # No section is the default one: [DEFAULT] is as unknown as any other.
    parser = configparser.ConfigParser(interpolation=None, default_section="")
    try:
        parser.read_string(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(
            f"{path} does not exist: copy config.example.ini to config.ini and fill it in, or try: python app.py demo"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text") from None
    except configparser.DuplicateOptionError as error:
        raise ConfigError(f"{path}: [{error.section}] {error.option}: stands there twice") from None
    except configparser.DuplicateSectionError as error:
        raise ConfigError(f"{path}: [{error.section}]: stands there twice") from None
    except configparser.Error as error:
        # Their own messages quote the line, and a secret with it.
        line = getattr(error, "lineno", None) or getattr(error, "errors", [("?",)])[0][0]
        raise ConfigError(f"{path}: line {line}: is no [section], key = value, or # comment") from None
    return parser


def _section(parser: configparser.ConfigParser, path: Path, name: str, section: Callable[..., Section]) -> Section:
    written = dict(parser[name]) if parser.has_section(name) else {}
    keys = fields(section)  # type: ignore[arg-type]
    for unknown in written.keys() - {key.name for key in keys}:
        raise ConfigError(f"{path}: [{name}] {unknown[:40]}: unknown key")
    values = {}
    for key in keys:
        text = written.get(key.name, key.metadata["default"])
        try:
            values[key.name] = key.metadata["read"](text or "")
        except ValueError as error:
            raise ConfigError(f"{path}: [{name}] {key.name}: {error}") from None
    return section(**values)


def _warnings(path: Path, listener: ListenerConfig) -> tuple[str, ...]:
    warnings = []
    if path.stat().st_mode & stat.S_IROTH:
        warnings.append(f"{path} holds credentials and everybody can read it: chmod o-r {path}")
    if not listener.webhook_secret:
        warnings.append("No webhook_secret is set: anybody who finds the port can have assets analyzed")
    return tuple(warnings)
