"""config.ini: read, checked, typed. One dataclass for each kind of section, one field for each key.

In a container, the environment may hold the same keys: see `_read_environment`.
"""

import configparser
import grp
import os
import re
import shlex
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jobs import DEFAULT_JOB, JOBS, Job
from system.errors import ListenerError
from system.text import UUID, in_container, system_name

HOST = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)*\.?|[0-9a-f:]*:[0-9a-f:.]*")
THIS_MACHINE = re.compile(r"localhost|127(\.[0-9]{1,3}){3}|::1")
MAX_SECONDS = 10 * 365 * 24 * 3600.0
MAX_SECRETS = 2  # the new one and the old one, while it is being changed
# Where an older version had a key that has moved: (section, key) then, and now.
MOVED = {
    ("submitter", "timeout"): ("iconik", "timeout"),
    ("sweep", "interval"): ("reconciler", "interval"),
    ("sweep", "min_age"): ("reconciler", "min_age"),
    ("sweep", "max_age"): ("reconciler", "max_age"),
    ("iconik", "analysis_profile"): (DEFAULT_JOB.name, "profile"),
    ("iconik", "skip_types"): (DEFAULT_JOB.name, "skip_types"),
}
Key = tuple[str, str]  # its section and its name
SWITCH = "ICONIK_LISTENER_ENVIRONMENT"  # only the image sets it
# The program's own variables, those that Kubernetes sets for a service that is called iconik-listener, and systemd's.
NOT_OURS = ("ICONIK_LISTENER_", "NOTIFY_SOCKET")
CONFIG_CHANGED_AT = "config_changed_at"  # the key in items.db's state of which config.ini the listener has read
INSTALLED = Path("/etc/iconik-listener")  # where install.sh puts config.ini
INSTALL = "/opt/iconik-listener/deploy/install.sh"
MAX_FILE = 64 * 1024  # characters of a file that holds one value
# iconik's types of assets, from its API document (AssetSchema).
ASSET_TYPES = ("ASSET", "SEQUENCE", "NLE_PROJECT", "PLACEHOLDER", "CUSTOM", "LINK", "SUBCLIP")


class ConfigError(ListenerError):
    """One line naming file, section and key; never the value of a secret."""

    exit_code = 2


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        host, _port = parts.hostname or "", parts.port  # reading the port checks it
    except ValueError:
        raise ValueError("is not a URL") from None
    if parts.scheme not in ("https", "http") or not HOST.fullmatch(host):
        raise ValueError("is not a URL like https://app.iconik.io")
    if parts.username is not None or text.rstrip("/").lower() != f"{parts.scheme}://{parts.netloc}".lower():
        raise ValueError("may consist of scheme and host only, like https://app.iconik.io")
    if parts.scheme == "http" and not THIS_MACHINE.fullmatch(host):
        raise ValueError("must be https:// (the credentials travel with each request)")
    return text.rstrip("/")


def _plain(text: str) -> str:
    if "\n" in text:  # the next line may hold a secret, which no other message must show
        raise ValueError("is continued by the next line, which begins with a space: remove that space")
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        raise ValueError("is in quotes: write it without them")
    return text


def _without_comment(text: str) -> None:
    if re.search(r"\s[#;]", text):
        raise ValueError("is followed by a comment, which needs a line of its own")


def _header_value(text: str) -> str:
    """A secret that travels as an HTTP header: visible ASCII."""
    _without_comment(text)
    if re.match("[\u2018-\u201f\u00ab\u00bb\u2039\u203a]", text):  # those of word processors
        raise ValueError("is in quotes: write it without them")
    if not re.fullmatch(r"[!-~]*", text):
        raise ValueError("may consist of visible ASCII characters only, without spaces")
    return text


def _credential(text: str) -> str:
    if not text:
        raise ValueError("is missing")
    return _header_value(text)


def _secrets(text: str) -> tuple[str, ...]:
    if len(text.split()) > MAX_SECRETS:
        _without_comment(text)
    secrets = tuple(_header_value(_plain(secret)) for secret in text.split(" ") if secret)
    if len(secrets) > MAX_SECRETS:
        raise ValueError("may hold two secrets at most, separated by a space")
    return secrets


def _profiles(text: str) -> tuple[str, ...]:
    names = tuple(name for part in text.split(",") if (name := " ".join(part.split())))
    return tuple(name.lower() if UUID.fullmatch(name) or name.lower() == "default" else name for name in names)


def _types(text: str) -> frozenset[str]:
    types = frozenset(re.split(r"[\s,]+", text.strip().upper())) - {""}
    for name in types:
        if not re.fullmatch(r"[A-Z_]+", name):
            raise ValueError(f"is {text!r}: must be asset types like SUBCLIP, separated by spaces")
    return types


def _jobs(text: str) -> tuple[str, ...]:
    names = [name for name in re.split(r"[\s,]+", text.strip().lower()) if name]
    for name in names:
        if name not in JOBS:
            raise ValueError(f"is {text[:40]!r}: must be one or more of {', '.join(JOBS)}, separated by spaces")
    if not names:
        raise ValueError(f"is missing: one or more of {', '.join(JOBS)}")
    return tuple(name for name in JOBS if name in names)


def _query(text: str) -> str:
    if not text.isprintable():
        raise ValueError("contains a character that cannot be printed")
    return text


def _text(text: str) -> str:
    if not text or not text.isprintable():
        raise ValueError("is missing" if not text else "contains a character that cannot be printed")
    return text


def _addresses(text: str) -> tuple[str, ...]:
    """Apprise's URLs. They hold passwords, so no message shows them."""
    addresses = tuple(address.rstrip(",") for address in text.split())
    for address in addresses:
        if not re.fullmatch(r"[a-z][a-z0-9]*://[!-~]+", address, re.IGNORECASE):
            raise ValueError("must be Apprise URLs like ntfy://topic, separated by spaces")
    return addresses


def _path(text: str) -> Path:
    return Path(_text(text))


def _number(parse: Callable[[str], Any], lowest: float, highest: float, unit: str = "") -> Callable[[str], Any]:
    def read(text: str) -> Any:
        _without_comment(text)
        try:
            value = parse(text)
        except ValueError:
            raise ValueError(f"is {text[:40]!r}: must be a number") from None
        if not lowest <= value <= highest:  # refuses nan, too
            raise ValueError(f"is {text[:40]!r}: must be {lowest:g} to {highest:.0f}{unit}")
        return value

    return read


def _seconds(lowest: float) -> Callable[[str], Any]:
    return _number(float, lowest, MAX_SECONDS, " seconds (ten years)")


def _key(read: Callable[[str], Any], default: str | None = None, *, secret: bool = False) -> Any:
    return field(metadata={"read": read, "default": default}, repr=not secret)


@dataclass(frozen=True)
class IconikConfig:
    url: str = _key(_url, "https://app.iconik.io")
    app_id: str = _key(_credential, secret=True)
    auth_token: str = _key(_credential, secret=True)
    timeout: float = _key(_seconds(0.01), "30")


@dataclass(frozen=True)
class ListenerConfig:
    host: str = _key(_text, "0.0.0.0")  # noqa: S104 the webhooks come from outside
    port: int = _key(_number(int, 0, 65535), "8000")
    database: Path = _key(_path, "items.db")
    webhook_secret: tuple[str, ...] = _key(_secrets, "", secret=True)


@dataclass(frozen=True)
class SubmitterConfig:
    jobs: tuple[str, ...] = _key(_jobs, DEFAULT_JOB.name)
    workers: int = _key(_number(int, 1, 32), "4")
    retry_delay: float = _key(_seconds(0.01), "10")
    max_retry_delay: float = _key(_seconds(0.01), "900")
    give_up_after: float = _key(_seconds(0.01), "604800")


@dataclass(frozen=True)
class JobConfig:
    """The section of one job. Which of the keys it has is in jobs.py.

    :ivar profile: names or UUIDs of profiles, or `default`; empty for iconik's choice without a profile
    :ivar only: a query in iconik's search language; empty for every asset
    :ivar language: of the speech; empty for iconik's choice
    :ivar skip_types: types of assets that get no job of any kind
    """

    profile: tuple[str, ...] = _key(_profiles, "")
    only: str = _key(_query, "")
    language: str = _key(_query, "")
    skip_types: frozenset[str] = _key(_types, "SUBCLIP")


@dataclass(frozen=True)
class LimitsConfig:
    max_per_day: int = _key(_number(int, 0, 10_000_000), "0")


@dataclass(frozen=True)
class NotifyConfig:
    to: tuple[str, ...] = _key(_addresses, "", secret=True)


@dataclass(frozen=True)
class ReconcilerConfig:
    interval: float = _key(_seconds(0), "3600")
    min_age: float = _key(_seconds(0), "600")
    max_age: float = _key(_seconds(0), "604800")


@dataclass(frozen=True)
class Config:
    """All of config.ini; durations in seconds, `path` and `listener.database` absolute.

    `job_sections` has the section of each job by its name. `changed_at` is when the file was changed, in nanoseconds by
    its file system's clock, or 0 without a file; it is compared with itself only, because a clock may be set.
    `warnings` and `notes` are lines for the log: what is allowed, but not wise, and what has changed since version 1.0.
    `variables` are the names of the environment's variables that were read, or None if none are, as without a
    container.
    """

    path: Path
    iconik: IconikConfig
    listener: ListenerConfig
    submitter: SubmitterConfig
    limits: LimitsConfig
    reconciler: ReconcilerConfig
    notify: NotifyConfig
    job_sections: dict[str, JobConfig]
    changed_at: int = 0
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    variables: tuple[str, ...] | None = None

    def describe_environment(self) -> str:
        """One line on which variables were read."""
        file = f", and goes before {self.path}" if self.path.exists() else ""
        return f"The environment is read{file}: {', '.join(self.variables or ()) or 'it holds no key'}"

    @property
    def jobs(self) -> tuple[Job, ...]:
        """The jobs that each asset gets."""
        return tuple(JOBS[name] for name in self.submitter.jobs)

    def of(self, job: Job) -> JobConfig:
        """The section of one job."""
        return self.job_sections[job.name]

    @property
    def skip_types(self) -> frozenset[str]:
        """The types of assets that get no job."""
        return self.of(DEFAULT_JOB).skip_types


# The sections that are no job's.
SECTIONS: dict[str, Any] = {
    "iconik": IconikConfig,
    "listener": ListenerConfig,
    "submitter": SubmitterConfig,
    "limits": LimitsConfig,
    "reconciler": ReconcilerConfig,
    "notify": NotifyConfig,
}


def keys_of(section: str) -> list[Any]:
    """The keys that a section of config.ini may have."""
    if section in JOBS:
        return [key for key in fields(JobConfig) if key.name in JOBS[section].keys]
    return list(fields(SECTIONS[section]))


def _is_missing(key: Any, written: dict[str, str]) -> bool:
    """Whether a credential is not filled in."""
    return key.metadata["read"] is _credential and not written.get(key.name)


@dataclass(frozen=True)
class _Source:
    """What was written, and where, for messages."""

    path: Path
    parser: configparser.ConfigParser
    moved: dict[Key, Key]  # where the file has one of MOVED, by the section and key of today
    variables: dict[Key, str] | None  # from which variable a value is; None if the environment is not read

    def place(self, section: str, key: str) -> str:
        """Where a value is written or, if it is missing, where it is to be."""
        if self.variables is not None and ((section, key) in self.variables or not self.path.exists()):
            return self.variables.get((section, key), f"{section}_{key}".upper())
        section, key = self.moved.get((section, key), (section, key))
        return f"{self.path}: [{section}] {key}"

    def section(self, name: str) -> Any:
        """One section, typed.

        :raises ConfigError: with one line for the operator
        """
        written = dict(self.parser[name]) if self.parser.has_section(name) else {}
        section = SECTIONS.get(name, JobConfig)
        known = [key.name for key in keys_of(name)]
        for unknown in written.keys() - set(known):
            meant = _did_you_mean(unknown, known, "{}")
            raise ConfigError(f"{self.path}: [{name}] {unknown[:40]}: unknown key{meant}")
        values = {}
        for key in fields(section):
            text = written.get(key.name, key.metadata["default"])
            try:
                values[key.name] = key.metadata["read"](_plain(text or ""))
            except ValueError as error:
                missing = [other.name for other in fields(section) if _is_missing(other, written)]
                if key.name in missing and len(missing) > 1:
                    raise ConfigError(f"{self._places(name, missing)}: are missing") from None
                raise ConfigError(f"{self.place(name, key.name)}: {error}") from None
        return section(**values)

    def _places(self, section: str, keys: list[str]) -> str:
        """Where several keys of a section are to be written."""
        first, *others = (self.place(section, key) for key in keys)
        in_file = f"{self.path}: [{section}] "
        return " and ".join([first, *(place.removeprefix(in_file) for place in others)])


def load(path: Path) -> Config:
    """Read the file `path`, which is UTF-8, and the environment, if the image's switch is on.

    :raises ConfigError: with one line for the operator
    """
    changed_at = path.stat().st_mtime_ns if _exists(path) else 0  # before it is read: a later change is not in it
    source = _read(path)
    known = (*SECTIONS, *JOBS)
    for name in source.parser.sections():
        if name not in known:
            raise ConfigError(f"{path}: [{name}]: unknown section{_did_you_mean(name, known, '[{}]')}")
    sections = {name: source.section(name) for name in SECTIONS}
    sections["listener"] = replace(sections["listener"], database=_database(path, sections["listener"].database))
    if sections["submitter"].max_retry_delay < sections["submitter"].retry_delay:
        raise ConfigError(f"{source.place('submitter', 'max_retry_delay')}: must not be less than retry_delay")
    job_sections = {name: source.section(name) for name in JOBS}
    skip_types = job_sections[DEFAULT_JOB.name].skip_types
    return Config(
        path=path.resolve(),
        changed_at=changed_at,
        **sections,
        job_sections=job_sections,
        warnings=(*_unwise(path, sections["listener"]), *_unknown_types(source, skip_types)),
        notes=tuple(
            f"{path}: {old_key} of [{old_section}] is now {key} of [{section}]: move it there"
            for (section, key), (old_section, old_key) in source.moved.items()
        ),
        variables=None if source.variables is None else tuple(sorted(source.variables.values())),
    )


def load_notify(path: Path) -> tuple[NotifyConfig, Path]:
    """[notify] alone, and where items.db is: a mistake elsewhere in the file does not keep it from being told.

    :raises ConfigError: the file or the environment cannot be read, or the mistake is there
    """
    source = _read(path)
    database = source.parser.get("listener", "database", fallback="items.db")
    return source.section("notify"), _database(path, Path(database))


def _database(path: Path, database: Path) -> Path:
    """The one true name of the database, which the lock needs: it may be a link, or relative to the file `path`.

    If that is a link itself, the database is beside its target. But a config.ini may have become a link, and then its
    database stays where it is.
    """
    of_link, of_target = ((place.parent / database).resolve() for place in (path.absolute(), path.resolve()))
    if of_link != of_target and _exists(of_link) and _exists(of_target):
        raise ConfigError(f"{path}: [listener] database: {of_link} or {of_target}? Write the right one with its folder")
    return of_link if _exists(of_link) else of_target


def _exists(path: Path) -> bool:
    """Whether a file is there. One in a folder that is closed to us is not; who opens it learns why."""
    try:
        return path.exists()
    except PermissionError:
        return False


def _read(path: Path) -> _Source:
    """What the file says and, before it, the environment."""
    from_environment = _read_environment()
    parser = _parse(path, may_be_missing=from_environment is not None)
    moved = _read_from_old_places(parser)
    for (section, key), (_, text) in (from_environment or {}).items():
        if not parser.has_section(section):
            parser.add_section(section)
        parser[section][key] = text
    variables = None
    if from_environment is not None:
        variables = {place: variable for place, (variable, _) in from_environment.items()}
    return _Source(path, parser, moved, variables)


def _read_environment() -> dict[Key, tuple[str, str]] | None:
    """The keys that the environment holds, each with the name of its variable and its text.

    `LIMITS_MAX_PER_DAY` is max_per_day of [limits], and `ICONIK_AUTH_TOKEN_FILE` names a file that holds auth_token of
    [iconik]. None without the image's switch: outside of a container, a variable that is meant for another program must
    not change who is asked, or with which credentials.

    :raises ConfigError: with one line for the operator
    """
    switch = os.environ.get(SWITCH, "0")
    if switch not in ("0", "1"):
        raise ConfigError(f"{SWITCH}: must be 0 or 1")
    if switch == "0":
        return None
    found: dict[Key, tuple[str, str]] = {}
    for variable in sorted(os.environ):
        name, _, key = variable.removesuffix("_FILE").partition("_")
        section, place = name.lower(), (name.lower(), key.lower())
        if not (name.isupper() and key.isupper()) or variable.startswith(NOT_OURS):
            continue
        if section not in (*SECTIONS, *JOBS):
            _refuse_near_miss(variable, *place)
            continue
        if key.lower() not in {known.name for known in keys_of(section)}:
            raise ConfigError(f"{variable}: [{section}] has no such key")
        if place in found:
            raise ConfigError(f"{found[place][0]} and {variable} are both set: remove one of them")
        found[place] = variable, _text_of(variable)
    return found


def _refuse_near_miss(variable: str, section: str, key: str) -> None:
    """See that a variable is not one of ours with a letter wrong, as `LIMIT_MAX_PER_DAY` is.

    Its section must be like one of ours by a letter, and its key be like a key of that. Other programs have variables,
    too: LISTEN_PORT is nobody's mistake.

    :raises ConfigError: with one line for the operator
    """
    for near in get_close_matches(section, [*SECTIONS, *JOBS], n=1, cutoff=0.83):
        keys = get_close_matches(key, [known.name for known in keys_of(near)], n=1, cutoff=0.83)
        if keys and abs(len(near) - len(section)) <= 1:
            meant = f"{near}_{keys[0]}".upper() + ("_FILE" if variable.endswith("_FILE") else "")
            raise ConfigError(f"{variable}: there is no section [{section[:40]}]. Did you mean {meant}?")


def _text_of(variable: str) -> str:
    """The value that a variable holds, or that the file holds which it names.

    No message quotes either: somebody may have mixed up the two, and then the name is a secret.
    """
    text = os.environ[variable]
    if variable.endswith("_FILE"):
        try:
            with Path(text).open(encoding="utf-8") as file:
                text = file.read(MAX_FILE)
        except OSError as error:
            reason = error.strerror
            if isinstance(error, PermissionError):
                reason = f"{reason}. It must belong to the user {os.geteuid()}, or be readable by every user"
            raise ConfigError(f"{variable}: the file cannot be read: {reason}") from None
        except UnicodeDecodeError:
            raise ConfigError(f"{variable}: the file is not UTF-8 text") from None
    text = text.strip()
    if "\n" in text:
        raise ConfigError(f"{variable}: has more than one line")
    return text


def _parse(path: Path, *, may_be_missing: bool) -> configparser.ConfigParser:
    # An empty default section means that [DEFAULT] is as unknown as any other.
    parser = configparser.ConfigParser(interpolation=None, default_section="")
    try:
        parser.read_string(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        if may_be_missing:
            return parser
        raise ConfigError(_explain_missing(path)) from None
    except PermissionError as error:
        raise ConfigError(_explain_closed(path, error)) from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text: save it as UTF-8") from None
    except configparser.DuplicateOptionError as error:
        raise ConfigError(f"{path}: [{error.section}] {error.option}: is defined twice") from None
    except configparser.DuplicateSectionError as error:
        raise ConfigError(f"{path}: [{error.section}]: is defined twice") from None
    except configparser.Error as error:
        # Their own messages quote the line, and a secret with it.
        line = getattr(error, "lineno", None) or getattr(error, "errors", [("?",)])[0][0]
        is_key = isinstance(error, configparser.MissingSectionHeaderError) and re.match(r"\s*\w+\s*[=:]", error.line)
        fault = "stands before the first [section]" if is_key else "is not a [section], key = value, or # comment"
        raise ConfigError(f"{path}: line {line}: {fault}") from None
    return parser


def _explain_missing(path: Path) -> str:
    """One line on a config.ini that is not there, and what to do."""
    if system := system_name():
        names = sorted(one.stem for one in path.parent.glob("*.ini") if one.stem != "config")
        known = f"--system may be {' or '.join(names)}" if names else "This VM has one system, which needs no --system"
        return f"{path} does not exist: there is no system {system}. {known}. To add one, see docs/operating.md"
    if path == INSTALLED / "config.ini":
        return f"{path} does not exist. To create it: sudo {INSTALL}"
    return f"{path} does not exist: copy config.example.ini to config.ini and fill it in, or try: python app.py demo"


def _explain_closed(path: Path, error: PermissionError) -> str:
    """One line on a file `path` that this process's user may not read, and what to do."""
    closed = [folder for folder in reversed(path.absolute().parents) if not os.access(folder, os.X_OK)]
    if not closed or in_container():
        return f"{path}: cannot be read: {error.strerror}: {_make_private(path)}"
    remedy = "run this with sudo"
    if path.parent == INSTALLED:
        remedy = "use the command iconik-listener" if system_name() is None else f"sudo {INSTALL} opens it"
    return f"{path}: cannot be read: this user may not enter {closed[0]}: {remedy}"


def _did_you_mean(word: str, known: Iterable[str], form: str) -> str:
    close = get_close_matches(word[:40].lower(), list(known), n=1, cutoff=0.6)
    return f". Did you mean {form.format(close[0])}?" if close else ""


def _read_from_old_places(parser: configparser.ConfigParser) -> dict[Key, Key]:
    """Move what an older config.ini has elsewhere to where it is now. Returns where it was."""
    moved = {}
    for (old_section, old_key), (section, key) in MOVED.items():
        if not parser.has_option(old_section, old_key):
            continue
        moved[section, key] = old_section, old_key
        if not parser.has_section(section):
            parser.add_section(section)
        if not parser.has_option(section, key):
            parser[section][key] = parser[old_section][old_key]
        parser.remove_option(old_section, old_key)
    if parser.has_section("sweep") and not parser["sweep"]:
        parser.remove_section("sweep")
    return moved


def _unknown_types(source: _Source, types: frozenset[str]) -> list[str]:
    place = source.place(DEFAULT_JOB.name, "skip_types")
    return [
        f"{place}: iconik has no type of assets {name}, only {', '.join(ASSET_TYPES)}"
        for name in sorted(types - set(ASSET_TYPES))
    ]


def _make_private(path: Path) -> str:
    """What to do so that this process's user can read the file `path`, and no stranger can."""
    if in_container():
        return f"on the host, give the file to the user {os.geteuid()}, with chown, and make it private, with chmod 600"
    file = shlex.quote(str(path))
    with suppress(OSError):
        if path.stat().st_uid == os.geteuid():
            return f"chmod 600 {file}"
    try:
        group = grp.getgrgid(os.getegid()).gr_name
    except KeyError:
        group = str(os.getegid())
    return f"sudo chown root:{group} {file} && sudo chmod 640 {file}"


def _unwise(path: Path, listener: ListenerConfig) -> list[str]:
    warnings = []
    if path.exists() and path.stat().st_mode & stat.S_IROTH:
        warnings.append(f"{path} contains credentials and is readable by every user: {_make_private(path)}")
    if not listener.webhook_secret:
        warnings.append("No webhook_secret is set: anybody who finds the port can start analyses")
    return warnings
