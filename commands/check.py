"""check: the one judge of whether all is well: of the files, of the running listener, and of iconik."""

import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import click
import requests

from commands.running import running_listener
from config import Config, ConfigError, load
from iconik_client import IconikClient, IconikError
from reconciliation.catalog import IconikCatalog
from reconciliation.webhooks import CREATE, KINDS, REGISTERED_URL, SECRET_HEADER, WebhookDefinition, of_our_kinds, ours
from store import Store
from system.errors import ListenerError
from system.text import command, local_text, number_of, one_line, seconds_of
from system.transport import Transport, TransportError
from version import __version__

MAX_DUE_SECONDS = 15 * 60.0  # for which an item that is due may wait
MAX_WAL_BYTES = 64 * 1024 * 1024
WAY_TIMEOUT = 10.0
PING_TIMEOUT = 10.0

# What is lost without each role. README.md has the same table.
SERVICE_ROLES = {
    "can_analyze_content": "no analyze job can be started",
    "can_read_assets": "nothing is analyzed: each asset is looked at before its job",
    "can_read_proxies": "a proxy whose webhook was missed is not found",
    "can_read_webhooks": "webhooks that iconik disabled stay disabled, and missed assets are not found",
    "can_write_webhooks": "webhooks that iconik disabled stay disabled, and register cannot be used",
    "can_search": "assets whose webhooks were missed are not found, and catch-up cannot be used",
    "can_read_jobs": "an analysis that fails at iconik is not noticed",
}
OTHER_ROLES = {
    "can_read_automations": "check cannot tell whether an automation of iconik's analyzes, too",
    "can_delete_webhooks": "register --remove cannot be used",
}
# An event of a kind that the listener ignores. It goes the way of iconik's events, and changes nothing.
TEST_EVENT: dict[str, object] = {
    "event_type": "iconik-listener",
    "operation": "check",
    "realm": "check",
    "object_id": None,
    "data": {},
}


class Report:
    """Facts, printed as they are found: each is ok, or wrong, or only remarkable."""

    def __init__(self) -> None:
        self.faults: list[str] = []

    def ok(self, fact: str) -> None:
        click.echo(f"ok     {fact}")

    def wrong(self, fact: str) -> None:
        self.faults.append(fact)
        click.echo(f"WRONG  {fact}")

    def remark(self, fact: str) -> None:
        click.echo(f"note   {fact}")


@click.command()
@click.option(
    "--ping", metavar="URL", help="Tell a monitor: GET URL if all is well, else POST to URL/fail what is wrong."
)
@click.pass_obj
def check(path: Path, ping: str | None) -> None:
    """Say, fact by fact, whether all is well, and what to do if not.

    Looks at config.ini, items.db, the running listener, iconik, the credentials and their roles, the analysis profile,
    the two webhooks and the way from their URL to the listener. Exit code 0 if all is well, else 1.
    """
    report = Report()
    _check(report, path)
    if ping:
        _ping(ping, report)
    raise SystemExit(1 if report.faults else 0)


def _check(report: Report, path: Path) -> None:
    try:
        config = load(path)
    except ConfigError as error:
        report.wrong(str(error))
        return
    for warning in config.warnings:
        report.wrong(warning)
    for note in config.notes:
        report.remark(note)
    if not config.warnings:
        report.ok(f"{path} is complete, and not everybody can read it")
    registered_url = _check_database(report, config)
    _check_iconik(report, config, registered_url)


def _check_database(report: Report, config: Config) -> str | None:
    """Check items.db and the listener on it. Returns the URL that `register` noted."""
    database = config.listener.database
    try:
        with closing(Store(database)) as store:
            store.set_state("checked_at", store.now())
            overview = {row["status"]: row["items"] for row in store.overview()}
            counts = ", ".join(f"{items} {status}" for status, items in overview.items())
            report.ok(f"{database} can be written: {counts or 'no items yet'}")
            if overview.get("failed"):
                report.wrong(f"{number_of(overview['failed'], 'item')} failed; for the reasons: {command('status')}")
            wal = database.with_name(database.name + "-wal")
            if wal.exists() and wal.stat().st_size > MAX_WAL_BYTES:
                size = wal.stat().st_size // 2**20
                report.remark(
                    f"{wal} has grown to {size} MiB: another program has been reading items.db for long; end it"
                )
            _check_listener(report, config, running_listener(store))
            return store.state(REGISTERED_URL)
    except ListenerError as error:
        report.wrong(str(error))
    return None


def _check_listener(report: Report, config: Config, listener: dict[str, Any] | None) -> None:
    if listener is None:
        report.wrong(f"no listener is running on {config.listener.database}: start it")
        return
    if "version" not in listener:
        message = one_line(str(listener["message"]))
        report.wrong(f"a listener is running and is not well: {message}. Its log says more")
        return
    faults = _listener_faults(config, listener)
    for fault in faults:
        report.wrong(fault)
    if not faults:
        report.ok(f"the listener has been running since {local_text(listener['started_at'])}")
    last = listener.get("last_webhook_at")
    report.remark(f"the last webhook came at {local_text(last)}" if last else "no webhook has come since its start")


def _listener_faults(config: Config, listener: dict[str, Any]) -> list[str]:
    faults = []
    if listener["version"] != __version__:
        faults.append(f"version {listener['version']} is running, and {__version__} is installed: restart the listener")
    if config.path.stat().st_mtime > (seconds_of(listener.get("started_at")) or 0):
        faults.append(f"{config.path} was changed after the listener was started: restart the listener")
    if listener.get("status") == "paused":
        since, reason = local_text(listener["paused_since"]), one_line(str(listener["last_error"]))
        faults.append(f"the listener has been paused since {since}: {reason}")
    due = seconds_of(listener.get("oldest_due_at"))
    if due and time.time() - due > MAX_DUE_SECONDS:
        faults.append(f"an item has been due since {local_text(listener['oldest_due_at'])}: {command('status')}")
    return faults


def _check_iconik(report: Report, config: Config, registered_url: str | None) -> None:
    catalog = IconikCatalog(IconikClient(config.iconik))
    roles: set[str] | None = None
    with _asking(report, config):
        report.ok(f"iconik answers at {config.iconik.url}, and knows the credentials as those of {catalog.user()}")
        roles = catalog.roles()
    if roles is None:
        return
    _check_roles(report, roles)
    with _asking(report, config):
        _check_profile(report, config, catalog)
    if "can_read_automations" in roles:
        with _asking(report, config):
            _check_automations(report, catalog)
    if "can_read_webhooks" in roles:
        with _asking(report, config):
            _check_webhooks(report, config, catalog, registered_url)


@contextmanager
def _asking(report: Report, config: Config) -> Iterator[None]:
    """A question that iconik does not answer is wrong, and the next one is asked all the same."""
    try:
        yield
    except IconikError as error:
        report.wrong(f"{config.iconik.url}: {error}")


def _check_roles(report: Report, roles: set[str]) -> None:
    missing = [role for role in SERVICE_ROLES if role not in roles]
    for role in missing:
        report.wrong(f"the role {role} is missing: {SERVICE_ROLES[role]}")
    if not missing:
        report.ok("the credentials have all the roles that the listener needs")
    for role in OTHER_ROLES:
        if role not in roles:
            report.remark(f"the role {role} is missing: {OTHER_ROLES[role]}")


def _check_profile(report: Report, config: Config, catalog: IconikCatalog) -> None:
    wanted = config.iconik.analysis_profile
    if not wanted:
        return
    profiles = catalog.analysis_profiles()
    if any(profile.get("is_default") if wanted == "default" else profile.get("id") == wanted for profile in profiles):
        report.ok(f"the analysis profile {wanted} is there")
    else:
        report.wrong(f"iconik has no analysis profile {wanted}: see analysis_profile in config.ini")


def _check_automations(report: Report, catalog: IconikCatalog) -> None:
    for automation in catalog.automations():
        actions = automation.get("actions")
        types = (
            [action.get("type") for action in actions if isinstance(action, dict)] if isinstance(actions, list) else []
        )
        if automation.get("status") == "ACTIVE" and "ANALYZE" in types:
            name = one_line(str(automation.get("name")))
            report.remark(f'the automation "{name}" of iconik analyzes, too: some assets may be analyzed twice')


def _check_webhooks(report: Report, config: Config, catalog: IconikCatalog, registered_url: str | None) -> None:
    found, secrets = catalog.webhooks(), config.listener.webhook_secret
    own = ours(found, registered_url, secrets)
    shown = own if own or registered_url else of_our_kinds(found)
    missing = [kind for kind in KINDS if not any(webhook.kind is kind for webhook in shown)]
    for kind in missing:
        what = f"{kind.path} (assets, {kind.operations[0]}, {kind.realm})"
        at = f" at {registered_url}" if registered_url else ""
        report.wrong(f"iconik has no webhook for {what}{at}: {_register(registered_url or 'URL')}")
    if not own and not missing:
        report.wrong(
            "which webhooks at iconik are this listener's cannot be told, so those that iconik disables stay disabled,"
            f" and missed assets are not found: {_register('URL')}"
        )
    hosts = sorted({urlsplit(webhook.url).netloc for webhook in shown})
    if len(hosts) > 1:
        report.wrong(f"the webhooks point at different hosts ({one_line(', '.join(hosts))}): {_register('URL')}")
    for webhook in shown:
        _check_webhook(report, webhook, secrets)


def _check_webhook(report: Report, webhook: WebhookDefinition, secrets: tuple[str, ...]) -> None:
    name = f"the webhook to {webhook.url}"
    problems = webhook.problems(secrets)
    for problem in problems:
        report.wrong(f"{name} {problem}. Once the cause is fixed: {_register(webhook.base_url)}")
    if not problems:
        only = f", for events with {webhook.query}" if webhook.query else ""
        lost = "; so missed assets are not found" if webhook.query and webhook.kind is CREATE else ""
        report.ok(f"{name} is ENABLED{only}{lost}")
    _check_way(report, webhook)


def _register(url: str, *options: str) -> str:
    """The command that puts the webhooks at that URL in order."""
    insecure = ("--insecure",) if url.startswith("http:") and "--remove" not in options else ()
    return command("register", *options, *insecure, url)


def _check_way(report: Report, webhook: WebhookDefinition) -> None:
    """Send an event where iconik sends its own: through DNS, firewall, TLS and proxy to the listener."""
    url = webhook.url
    try:
        parts = urlsplit(url)
        host, port = str(parts.hostname), parts.port or (443 if parts.scheme == "https" else 80)
        socket.getaddrinfo(host, port)
        socket.create_connection((host, port), WAY_TIMEOUT).close()
    except (socket.gaierror, ValueError) as error:  # UnicodeError is a ValueError
        if isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN:
            report.remark(f"{url} cannot be tried: this machine cannot look up names just now")
        else:
            removal = _register(webhook.base_url, "--remove")
            report.wrong(f"{url}: there is no such host. Register the right one, and remove this: {removal}")
        return
    except OSError as error:
        reason = one_line(error.strerror or str(error))
        report.remark(f"{url} cannot be reached from this machine ({reason}): try it from another one")
        return
    try:
        # All of its headers, because a gateway on the way may want them.
        headers = {**webhook.headers, "Content-Type": "application/json"}
        transport = Transport(f"{parts.scheme}://{parts.netloc}", headers, WAY_TIMEOUT)
        answer = transport.send("POST", url.removeprefix(f"{parts.scheme}://{parts.netloc}"), json=TEST_EVENT)
    except TransportError as error:
        report.wrong(f"{url}: {error}")
        return
    if answer.status == 401 and SECRET_HEADER.encode() in answer.body:
        report.wrong(
            f"{url}: the listener there does not accept the secret that iconik sends: restart it, or register anew"
        )
    elif answer.status != 200 or b'"ignored"' not in answer.body:
        report.wrong(f"{url}: something other than this listener answers there ({answer.status})")
    else:
        report.ok(f"{url} leads to a listener that accepts what iconik sends")


def _ping(url: str, report: Report) -> None:
    """Tell a monitor, by the convention of healthchecks.io. If that fails, that is a line, no more."""
    try:
        parts = urlsplit(url)
        if report.faults:
            fail = urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/fail"))
            answer = requests.post(fail, data="\n".join(report.faults).encode(), timeout=PING_TIMEOUT)
        else:
            answer = requests.get(url, timeout=PING_TIMEOUT)
        if not answer.ok:
            click.echo(f"The monitor at {parts.hostname} answered {answer.status_code}", err=True)
    except (requests.RequestException, OSError, ValueError) as error:
        click.echo(f"The monitor cannot be told: {type(error).__name__}", err=True)
