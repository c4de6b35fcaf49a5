"""The operator's commands: `python app.py [--config FILE] COMMAND`."""

import json
import re
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from queue import Empty, Queue
from sqlite3 import Row
from threading import Thread
from typing import TYPE_CHECKING, Any, TextIO
from urllib.parse import urlsplit

import click

from config import UUID, Config, ConfigError, load
from iconik_client import IconikClient, IconikError, asset_title, one_line
from store import Store, StoreError, StoreUnavailable, listener_runs, utc_text

if TYPE_CHECKING:
    from sandbox import Sandbox

DEMO_CONFIG = """\
[iconik]
url = {sandbox.url}
app_id = {sandbox.app_id}
auth_token = {sandbox.auth_token}
[listener]
host = 127.0.0.1
port = 0
webhook_secret = demo
[submitter]
retry_delay = 1
"""
SERVICE_ROLES = {
    "can_analyze_content": "analyze jobs cannot be started",
    "can_read_assets": "no job can be posted again after a failure",
    "can_read_proxies": "missed proxies cannot be found",
}
COMMAND_ROLES = {"can_search": "catch-up", "can_read_webhooks": "check and register", "can_write_webhooks": "register"}
CATCH_UP_PER_SECOND = 5


@dataclass(frozen=True)
class Webhook:
    """A webhook definition that the listener needs at iconik."""

    name: str
    path: str
    operation: str
    realm: str
    query: str

    def matches(self, found: dict[str, Any]) -> bool:
        """Whether a definition at iconik is for the same events."""
        return (
            found.get("event_type") == "assets"
            and found.get("operation") == self.operation
            and found.get("realm") == self.realm
            and found.get("status") != "DELETED"
        )


WEBHOOKS = (
    Webhook("iconik-listener: new assets", "/create", "create", "entity", ""),
    Webhook("iconik-listener: proxies", "/proxy", "update", "proxies", 'data.status="CLOSED"'),
)


def iconik_client(config: Config) -> IconikClient:
    return IconikClient(**asdict(config.iconik), timeout=config.submitter.timeout)


class Report:
    """Facts, printed as they are found: each is ok, or wrong, or remarkable."""

    well = True

    def ok(self, fact: str) -> None:
        click.echo(f"ok     {fact}")

    def wrong(self, fact: str) -> None:
        self.well = False
        click.echo(f"WRONG  {fact}")

    def remark(self, fact: str) -> None:
        click.echo(f"note   {fact}")


@click.command()
@click.pass_obj
def check(path: Path) -> None:
    """Say, fact by fact, whether all is well, and what to do if not.

    Looks at config.ini, items.db, iconik, the credentials and their roles, the analysis profile, the two webhooks, and
    whether a listener is running. Changes nothing. Exit code 0 if all is well, else 1.
    """
    report = Report()
    try:
        config = load(path)
    except ConfigError as error:
        report.wrong(str(error))
        raise SystemExit(1) from None
    for warning in config.warnings:
        report.wrong(warning)
    if not config.warnings:
        report.ok(f"{path} is complete, and not for everybody to read")
    _check_database(report, config)
    client = iconik_client(config)
    try:
        report.ok(f"iconik answers at {config.iconik.url}, and knows the credentials as those of {client.user()}")
        roles = client.roles()
        _check_roles(report, roles)
        _check_profile(report, config, client)
        if "can_read_webhooks" in roles:
            _check_webhooks(report, config, client)
    except IconikError as error:
        report.wrong(f"{config.iconik.url}: {error}")
    raise SystemExit(0 if report.well else 1)


def _check_database(report: Report, config: Config) -> None:
    database = config.listener.database
    try:
        with closing(Store(database)) as store:
            store.check_writable()
            counts = ", ".join(f"{row['items']} {row['status']}" for row in store.overview())
        report.ok(f"{database} can be written: {counts or 'no items yet'}")
    except (StoreError, StoreUnavailable) as error:
        report.wrong(str(error) if isinstance(error, StoreError) else f"{database}: {error}")
    if listener_runs(database):
        report.ok("a listener is running on it")
    else:
        report.wrong("no listener is running on it: start it with python app.py, or its service")


def _check_roles(report: Report, roles: set[str]) -> None:
    missing = [f"the role {role} is missing: {loss}" for role, loss in SERVICE_ROLES.items() if role not in roles]
    for fact in missing:
        report.wrong(fact)
    if not missing:
        report.ok(f"the credentials have the roles {', '.join(SERVICE_ROLES)}")
    for role, command in COMMAND_ROLES.items():
        if role not in roles:
            report.remark(f"the role {role} is missing: only {command} would need it")


def _check_profile(report: Report, config: Config, client: IconikClient) -> None:
    wanted = config.iconik.analysis_profile
    if not wanted:
        return
    profiles = client.analysis_profiles()
    if any(profile.get("is_default") if wanted == "default" else profile.get("id") == wanted for profile in profiles):
        report.ok(f"the analysis profile {wanted} is there")
    else:
        report.wrong(f"iconik has no analysis profile {wanted}: see analysis_profile in config.ini")


def _check_webhooks(report: Report, config: Config, client: IconikClient) -> None:
    found = client.webhooks()
    hosts = set()
    for webhook in WEBHOOKS:
        path = webhook.path
        ours = [one for one in found if webhook.matches(one) and _path(one).endswith(path)]
        if not ours:
            report.wrong(
                f"no webhook for {path} (assets, {webhook.operation}, {webhook.realm}): python app.py register URL"
            )
        for one in ours:
            hosts.add(urlsplit(str(one.get("url"))).netloc)
            _check_webhook(report, config, one)
    if len(hosts) > 1:
        report.wrong(f"the webhooks point at different hosts: {one_line(', '.join(sorted(hosts)))}")


def _check_webhook(report: Report, config: Config, found: dict[str, Any]) -> None:
    name = f"the webhook to {one_line(str(found.get('url')))}"
    headers = found.get("headers")
    given = {str(key).lower(): value for key, value in headers.items()} if isinstance(headers, dict) else {}
    if found.get("status") != "ENABLED":
        last_error = one_line(str(found.get("last_error") or "iconik tells no reason"))
        report.wrong(f"{name} is {found.get('status')}: {last_error}. Mend that, then: python app.py register URL")
    elif config.listener.webhook_secret and given.get("x-webhook-secret") != config.listener.webhook_secret:
        report.wrong(f"{name} does not send webhook_secret as X-Webhook-Secret: python app.py register URL")
    else:
        report.ok(f"{name} is ENABLED")


def _path(webhook: dict[str, Any]) -> str:
    return urlsplit(str(webhook.get("url"))).path.rstrip("/")


@click.command()
@click.argument("url")
@click.option("--insecure", is_flag=True, help="Allow http://, over which the secret travels readable.")
@click.pass_obj
def register(path: Path, url: str, insecure: bool) -> None:
    """Create or update the two webhooks at iconik.

    URL is where iconik reaches this listener, without /create or /proxy: https://iconik-listener.example.com

    A webhook that is there already, by URL and kind of event, is updated if need be: it gets the secret of
    config.ini, and one that iconik disabled is put back in use.
    """
    config = load(path)
    parts = urlsplit(url)
    if parts.scheme not in ("https", "http") or not parts.netloc or parts.query or parts.fragment:
        raise click.UsageError("URL must be like https://iconik-listener.example.com")
    if parts.scheme == "http" and not insecure:
        raise click.UsageError("http:// lets everybody on the way read the secret: use https://, or --insecure")
    if parts.path.rstrip("/").endswith(("/create", "/proxy")):
        raise click.UsageError("URL must be without /create or /proxy: they are added")
    client = iconik_client(config)
    secret = config.listener.webhook_secret
    if not secret:
        click.echo("note: no webhook_secret is set in config.ini: the webhooks are registered without", err=True)
    found = client.webhooks()
    for webhook in WEBHOOKS:
        target = url.rstrip("/") + webhook.path
        same = [one for one in found if webhook.matches(one) and str(one.get("url")).rstrip("/") == target]
        for existing in same or [{}]:
            click.echo(f"{target}: {_register(client, webhook, target, secret, existing)}")


def _register(client: IconikClient, webhook: Webhook, target: str, secret: str, existing: dict[str, Any]) -> str:
    """Save one webhook, unless it is as it should be. Returns what was done."""
    headers = existing.get("headers") if isinstance(existing.get("headers"), dict) else {}
    kept = {key: value for key, value in (headers or {}).items() if key.lower() != "x-webhook-secret"}
    wanted = {
        "name": existing.get("name") or webhook.name,
        "url": existing.get("url") or target,
        "event_type": "assets",
        "operation": webhook.operation,
        "realm": webhook.realm,
        "query": webhook.query,
        "status": "ENABLED",
        "headers": {**kept, **({"X-Webhook-Secret": secret} if secret else {})},
    }
    if all((existing.get(key) or "") == (value or "") for key, value in wanted.items()):
        return "as it should be"
    client.save_webhook({"description": existing.get("description") or "", **wanted}, existing.get("id"))
    return f"updated (it was {existing['status']})" if existing else "created"


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_obj
def status(path: Path, as_json: bool) -> None:
    """Show how many items are where, and those that failed or are being retried."""
    with closing(Store(load(path).listener.database)) as store:
        overview, problems = store.overview(), store.problems()
    if as_json:
        statuses = {row["status"]: {"items": row["items"], "oldest": row["oldest"]} for row in overview}
        click.echo(json.dumps({"statuses": statuses, "problems": [dict(row) for row in problems]}, indent=2))
        return
    click.echo("status         items  oldest")
    for row in overview:
        oldest = "" if row["status"] == "submitted" else _age(row["oldest"])
        click.echo(f"{row['status']:10}  {row['items']:8}  {oldest}".rstrip())
    for row in problems:
        attempts = f"{row['attempts']} attempt{'s' if row['attempts'] != 1 else ''}"
        due = "" if row["status"] == "failed" else f", next at {row['next_attempt_at']}"
        click.echo(f"\n{row['object_id']}  {row['status']}, {attempts}{due}")
        for text in filter(None, (row["title"], row["error"])):
            click.echo(textwrap.fill(one_line(text, 1000), 78, initial_indent="  ", subsequent_indent="  "))


def _age(time: str) -> str:
    """How long ago that was: `2 d 3 h`, `5 min`."""
    try:
        since = datetime.fromisoformat(time.replace("Z", "+00:00"))
        minutes = int((datetime.now(timezone.utc) - since).total_seconds()) // 60
    except (ValueError, TypeError, AttributeError):  # written by hand
        return str(time)
    days, hours = divmod(minutes // 60, 24)
    return f"{days} d {hours} h" if days else f"{hours} h {minutes % 60} min" if hours else f"{minutes} min"


@click.command()
@click.argument("object_ids", metavar="[OBJECT_ID]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All that failed.")
@click.pass_obj
def retry(path: Path, object_ids: tuple[str, ...], everything: bool) -> None:
    """Have failed items submitted again, once the cause is mended.

    A running listener takes them up within half a minute. iconik is asked first, so none is analyzed twice.
    """
    if bool(object_ids) == everything:
        raise click.UsageError("name the items, or give --all")
    with closing(Store(load(path).listener.database)) as store:
        if everything:
            click.echo(f"{store.retry_all()} items are ready again")
            return
        found = {object_id: store.retry(object_id.lower()) for object_id in object_ids}
    for object_id, was in found.items():
        told = (
            "is ready again"
            if was == "failed"
            else "is not in items.db"
            if was == "unknown"
            else f"is {was}, not failed"
        )
        click.echo(f"{one_line(object_id)} {told}", err=was != "failed")
    raise SystemExit(0 if set(found.values()) == {"failed"} else 1)


def _time(context: click.Context, option: click.Parameter, text: str | None) -> datetime | None:
    """ISO 8601, local without an offset."""
    try:
        # Python 3.10 knows no Z.
        return datetime.fromisoformat(re.sub(r"[zZ]$", "+00:00", text)).astimezone(timezone.utc) if text else None
    except (ValueError, OverflowError):
        raise click.BadParameter(f"{text!r} is no time like 2026-11-23T16:47 or 2026-11-23T16:47:00+01:00") from None


@click.command("catch-up")
@click.option(
    "--since", callback=_time, required=True, metavar="TIME", help="Assets created from this time on: 2026-11-23T16:47"
)
@click.option("--until", callback=_time, metavar="TIME", help="… and up to this one.  [default: now]")
@click.option("--dry-run", is_flag=True, help="Only list what would be added.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def catch_up(path: Path, since: datetime, until: datetime | None, dry_run: bool, yes: bool) -> None:
    """Add the assets whose webhooks were missed while the listener was away.

    Finds the assets that were created in that time through iconik's search, adds those that items.db does
    not know, and asks for their proxies. Times are local unless they have an offset. None is analyzed twice: iconik
    is asked first.
    """
    config = load(path)
    until = until or datetime.now(timezone.utc)
    if since >= until:
        raise click.UsageError("--since must be before --until, and not in the future")
    client = iconik_client(config)
    with closing(Store(config.listener.database)) as store:
        created = list(client.assets_created(utc_text(since.timestamp()), utc_text(until.timestamp())))
        missed = {str(asset.get("id")).lower(): asset for asset in created if UUID.fullmatch(str(asset.get("id")))}
        missed = {object_id: asset for object_id, asset in missed.items() if not store.knows(object_id)}
        click.echo(f"{len(created)} assets were created in that time, {len(missed)} of them are not in items.db")
        if not missed:
            return
        if dry_run:
            for object_id, asset in missed.items():
                click.echo(
                    f"{object_id}  {one_line(str(asset.get('date_created')), 25)}  {one_line(str(asset.get('title')))}"
                )
            return
        if not yes and sys.stdin.isatty():
            click.confirm("Add them? iconik bills each analysis", abort=True)
        for object_id, asset in missed.items():
            store.created(object_id, asset_title(asset), maybe_analyzed=True)
        _ask_for_proxies(store, client, list(missed))


def _ask_for_proxies(store: Store, client: IconikClient, object_ids: list[str]) -> None:
    """What is not asked for here, as iconik is in trouble, the listener's sweep asks for within the hour."""
    ready = 0
    try:
        with click.progressbar(object_ids, label="Asking for proxies") as progress:
            for object_id in progress:
                if client.has_closed_proxy(object_id):
                    ready += store.proxy_closed(object_id) == "ready"
                time.sleep(1 / CATCH_UP_PER_SECOND)
    except IconikError as error:
        raise click.ClickException(f"{error}. All are added; the listener will ask for their proxies") from None
    click.echo(f"{len(object_ids)} added: {ready} are ready, {len(object_ids) - ready} wait for their proxy")


@click.command()
def demo() -> None:
    """Show the listener at work on a stand-in for iconik. Needs no account and no config.ini."""
    from sandbox import Sandbox  # the service has no use for it, and little memory

    with tempfile.TemporaryDirectory() as folder, Sandbox() as sandbox:
        config = Path(folder, "config.ini")
        config.touch(mode=0o600)
        config.write_text(DEMO_CONFIG.format(sandbox=sandbox), encoding="utf-8")
        click.echo(f"A stand-in for iconik runs at {sandbox.url}")
        command = [sys.executable, str(Path(__file__).with_name("app.py")), "--config", str(config)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as listener:
            address: Queue[str] = Queue()
            assert listener.stderr  # noqa: S101 it is a pipe
            relay = Thread(target=_relay, args=(listener.stderr, address))
            relay.start()
            try:
                sandbox.register(f"http://{address.get(timeout=20)}", {"X-Webhook-Secret": "demo"})
                _upload_three(sandbox)
                sandbox.wait_for(lambda: set(sandbox.assets) <= set(sandbox.jobs))
            except Empty:
                raise click.ClickException("the listener did not start") from None
            finally:
                listener.terminate()
                relay.join()
        with closing(Store(config.with_name("items.db"))) as store:
            rows = store.latest(10)
    click.echo("\nitems.db:")
    _table(rows, {"object_id": 36, "title": 12, "status": 9, "attempts": 8, "finished": 8})
    click.echo(f"\n{len(sandbox.assets)} assets uploaded, {len(sandbox.jobs)} analyze jobs at iconik")
    if sorted(sandbox.jobs) != sorted(sandbox.assets) or any(row["finished"] != "True" for row in rows):
        raise click.ClickException("an asset was not analyzed exactly once")


def _relay(log: TextIO, address: "Queue[str]") -> None:
    """Print the listener's log, and tell where it listens."""
    for line in log:
        click.echo(line, nl=False)
        if listening := re.search(r"Listening on (\S+)", line):
            address.put(listening[1])


def _upload_three(sandbox: "Sandbox") -> None:
    from sandbox import Fault

    click.echo("-- plain.mov is uploaded")
    sandbox.set_proxy(sandbox.create_asset("plain.mov"))
    click.echo("-- overtaken.mov is uploaded; its webhooks come in the wrong order")
    asset_id = sandbox.create_asset("overtaken.mov", send=False)
    sandbox.set_proxy(asset_id)
    sandbox.send("create", "entity", asset_id, sandbox.assets[asset_id])
    click.echo("-- unlucky.mov is uploaded; iconik answers 503 when it is first to be analyzed")
    asset_id = sandbox.create_asset("unlucky.mov")
    sandbox.faults.append(Fault(match=f"analyze/assets/{asset_id}"))
    sandbox.set_proxy(asset_id)


def _table(rows: Iterable[Row], widths: dict[str, int]) -> None:
    """Print columns, each cut to its width."""
    click.echo("  ".join(name.ljust(width) for name, width in widths.items()).rstrip())
    for row in rows:
        cells = (str("" if row[name] is None else row[name]) for name in widths)
        click.echo("  ".join(cell[:width].ljust(width) for cell, width in zip(cells, widths.values())).rstrip())


ALL = (demo, check, register, status, retry, catch_up)
