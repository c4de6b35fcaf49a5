"""check: verify the files, the running listener and iconik."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import click
import requests

from commands import notify
from commands.route import Cause, route_fault
from commands.running import running_listener
from config import CONFIG_CHANGED_AT, THIS_MACHINE, Config, ConfigError, load, load_notify
from events import ACTIONS, CONTEXTS, CREATE, KINDS
from iconik_client import (
    MAX_CLOCK_DIFFERENCE,
    NOT_ENABLED,
    IconikClient,
    IconikDenied,
    IconikError,
    IconikForbidden,
    IconikRefused,
)
from jobs import Job
from limits import Limits
from profiles import DEFAULT, Profile, list_profiles
from reconciliation.actions import REGISTERED_ACTIONS, ActionDefinition, at
from reconciliation.catalog import IconikCatalog
from reconciliation.reconciler import passed_over
from reconciliation.webhooks import REGISTERED_URL, WebhookDefinition, of_our_kinds, ours
from store import DAY_SECONDS, Rules, Store
from system.database import listener_runs, network_file_system
from system.errors import ListenerError
from system.server import HOST_REMEDY, is_address_here
from system.text import (
    UUID,
    command,
    format_local,
    in_container,
    one_line,
    parse_time,
    pluralize,
    restart_it,
    start_it,
)
from version import __version__

MAX_DUE_SECONDS = 15 * 60.0  # for which an item that is due may wait
MAX_WAL_BYTES = 64 * 1024 * 1024
PASSED_OVER_SECONDS = 7 * DAY_SECONDS  # for which it is told that assets were passed over
MANY = 10  # items refused in the same words that are everybody's trouble
PING_TIMEOUT = 10.0

CREDENTIALS = ("ICONIK_APP_ID", "ICONIK_AUTH_TOKEN")  # as variables of a container
STUCK_REMEDY = "Once that is mended, restart the listener"

# What is lost without each role. README.md has the same table.
SERVICE_ROLES = {
    "can_read_assets": "no job can be started: the listener reads each asset first",
    "can_read_proxies": "a proxy whose webhook was missed is not found",
    "can_read_webhooks": "webhooks that iconik disabled stay disabled, and missed assets are not found",
    "can_write_webhooks": "webhooks that iconik disabled stay disabled, and register cannot be used",
    "can_search": 'missed assets are not found, and catch-up, "only" and several profiles cannot be used',
    "can_read_jobs": "nobody notices how a job ended, and a job in doubt is only looked for by the asset's status",
    "can_read_acls": "iconik grants access to nothing",
}
OTHER_ROLES = {
    "can_read_automations": "check cannot tell whether an automation also starts analyses",
    "can_delete_webhooks": "register --remove cannot be used",
    "can_read_stats": "report cannot show iconik's own meters",
}
# What is lost without these is only iconik's menu, which few listeners use.
MENU_ROLES = {
    "can_read_custom_actions": "register --actions cannot be used, and check cannot see our entries in iconik's menu",
    "can_write_custom_actions": "register --actions cannot be used",
    "can_delete_custom_actions": "register --remove cannot remove our entries from iconik's menu",
}


@dataclass(frozen=True)
class Fact:
    """One line of check. `level` is ok, wrong or note."""

    level: str
    text: str


Facts = Iterator[Fact]


def ok(text: str) -> Fact:
    return Fact("ok", text)


def wrong(text: str) -> Fact:
    return Fact("wrong", text)


def note(text: str) -> Fact:
    return Fact("note", text)


def _monitor(context: click.Context, option: click.Parameter, url: str | None) -> str | None:
    """A monitor's URL."""
    try:
        is_valid = url is None or (urlsplit(url).scheme in ("http", "https") and bool(urlsplit(url).hostname))
    except ValueError:
        is_valid = False
    if not is_valid:
        raise click.BadParameter("it must be a URL like https://hc-ping.com/your-uuid")
    return url


@click.command()
@click.option(
    "--ping",
    metavar="URL",
    callback=_monitor,
    help="Tell a monitor: GET URL if all is well, else POST to URL/fail what is wrong.",
)
@click.option("--notify", "is_told", is_flag=True, help="Tell those in [notify] what has changed, as the timer does.")
@click.option("--test", "is_trial", is_flag=True, help="With --notify: only send a test message.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_obj
def check(path: Path, ping: str | None, is_told: bool, is_trial: bool, as_json: bool) -> None:
    """Check everything, one line each, and say what to do.

    Looks at config.ini, items.db, the running listener, iconik, the credentials and their roles, the analysis profiles,
    the two webhooks and the route from their URL to the listener. Exit code 0 if all is well, else 1.
    """
    if is_trial:
        _send_trial(path, is_told)
        return
    facts = []
    for fact in all_facts(path):
        facts.append(fact)
        if not as_json:
            _print(fact)
    faults = [fact.text for fact in facts if fact.level == "wrong"]
    if as_json:
        found = {"ok": not faults, "facts": [{"level": fact.level, "text": fact.text} for fact in facts]}
        click.echo(json.dumps(found, indent=2))
    if ping:
        _ping(ping, faults)
    if is_told:
        _tell(path, faults)
    raise SystemExit(1 if faults else 0)


def _print(fact: Fact) -> None:
    if fact.level == "wrong":
        click.echo(click.style("WRONG", fg="red", bold=True) + f"  {fact.text}")
    else:
        click.echo(f"{fact.level:5}  {fact.text}")


def all_facts(path: Path) -> Facts:
    """Everything that check knows, each fact once: both webhooks may have the same fault."""
    known = set()
    for fact in _facts(path):
        if fact not in known:
            known.add(fact)
            yield fact


def _facts(path: Path) -> Facts:
    try:
        config = load(path)
    except ConfigError as error:
        yield wrong(str(error))
        return
    for warning in config.warnings:
        yield wrong(warning)
    for old_place in config.notes:
        yield note(old_place)
    if config.variables is not None:
        yield note(config.describe_environment())
    if not config.warnings:
        yield ok(f"{path} is complete and private" if path.exists() else "the configuration is complete")
    if not is_address_here(config.listener.host):
        yield wrong(f"{path}: [listener] host = {one_line(config.listener.host)}: {HOST_REMEDY}")
    database = config.listener.database
    registered_url = registered_actions = None
    try:
        with closing(Store(database, Rules.of(config))) as store:
            yield from _database_facts(store)
            yield from _item_facts(store)
            yield from map(wrong, _not_enabled(store, config))
            yield from _limit_facts(Limits(store))
            yield from _listener_facts(config, running_listener(store), store.state(CONFIG_CHANGED_AT))
            registered_url = store.state(REGISTERED_URL)
            registered_actions = store.state(REGISTERED_ACTIONS)
    except ListenerError as error:
        yield wrong(str(error))
        with suppress(ListenerError):
            if not listener_runs(database):
                yield _no_listener(config)
    yield from _notify_facts(config)
    yield from _iconik_facts(config, registered_url, registered_actions)


def _database_facts(store: Store) -> Facts:
    database = store.database.path
    store.set_state("checked_at", store.now())
    counts = ", ".join(f"{row['items']} {row['status']}" for row in store.overview())
    yield ok(f"{database} can be written: {counts or 'no items yet'}")
    wal = database.with_name(database.name + "-wal")
    if wal.exists() and wal.stat().st_size > MAX_WAL_BYTES:
        size = wal.stat().st_size // 2**20
        yield note(
            f"{wal} has grown to {size} MiB: another program has kept items.db open for a long time. Quit that program"
        )
    if kind := network_file_system(database):
        yield wrong(f"{database} is on {kind}, where SQLite files are damaged sooner or later: move it to a local disk")
    period = passed_over(store)
    if period and (parse_time(period["until"]) or 0) > time.time() - PASSED_OVER_SECONDS:
        remedy = command("catch-up", "--since", period["since"], "--until", period["until"])
        times = f"from {format_local(period['since'])} to {format_local(period['until'])}"
        yield note(f"assets created {times} were passed over, because {period['why']}. To add them: {remedy}")


def _item_facts(store: Store) -> Facts:
    """What failed is wrong for a day, and a note after that. Waiting items are grouped by reason."""
    since = store.now(-DAY_SECONDS)
    [failed] = store.database.run(
        "SELECT count(*) AS items, total(last_attempt_at > :since) AS recent FROM items WHERE status = 'failed'",
        since=since,
    )
    items, why = pluralize(failed["items"], "item"), f"To see why: {command('status')}"
    if failed["recent"]:
        yield wrong(f"{items} failed. {why}")
    elif failed["items"]:
        yield note(f"{items} failed, none of them in the last day. {why}")
    last_accepted = _last_accepted(store, since)
    for row in store.database.run(
        """SELECT reason, count(*) AS items, total(last_attempt_at > :last_accepted) AS since_then
        FROM items WHERE status = 'ready' AND refused = 1 AND instr(reason, :not_enabled) = 0
        GROUP BY reason ORDER BY items DESC LIMIT 10""",
        last_accepted=last_accepted,
        not_enabled=NOT_ENABLED,
    ):
        refused = f"iconik refuses {pluralize(row['items'], 'item')}: {one_line(str(row['reason']))}"
        text = f"{refused}. {'It is' if row['items'] == 1 else 'They are'} tried again"
        is_everybodys = row["since_then"] >= MANY or (row["since_then"] and last_accepted < since)
        yield wrong(f"{text}. To see which: {command('status')}") if is_everybodys else note(text)


def _not_enabled(store: Store, config: Config) -> Iterator[str]:
    """The kinds of jobs of which iconik has said that the account does not have them."""
    for job in config.jobs:
        [row] = store.database.run(
            """SELECT count(*) AS items FROM items
            WHERE status = 'ready' AND refused = 1 AND job = :job AND instr(reason, :not_enabled) > 0""",
            job=job.name,
            not_enabled=NOT_ENABLED,
        )
        if row["items"]:
            refused = f"{job.feature} is not enabled at iconik, which refuses {pluralize(row['items'], 'item')}"
            yield f"{refused}: have iconik enable it, or take {job.name} out of [submitter] jobs"


def _last_accepted(store: Store, since: str) -> str:
    """When iconik last accepted a job, as UTC text; empty if not since then."""
    [row] = store.database.run(
        """SELECT max(at) AS at FROM (
            SELECT max(submitted_at) AS at FROM items WHERE status = 'submitted'
            UNION ALL SELECT max(submitted_at) FROM items WHERE status = 'done' AND done_at > :since)""",
        since=since,
    )
    return str(row["at"] or "")


def _limit_facts(limits: Limits) -> Facts:
    limit = limits.now()
    if limit.pause:
        yield wrong(limit.describe())
    elif limit.is_reached:
        leave_out = f". To leave out what waits: {command('skip', '--all', 'ready')}" if limit.held else ""
        yield wrong(f"{limit.describe()}{leave_out}")
    elif limit.is_near:
        yield note(f"{limit.started} of {limit.total} jobs a day were started today (UTC)")
    elif not limit.max_per_day:
        yield note("no limit is set (max_per_day): a bulk import would be analyzed, and billed, as a whole")


def _no_listener(config: Config) -> Fact:
    database = config.listener.database
    # Where all of its files were deleted under it, a listener still runs, and no lock shows that.
    return wrong(f"no listener is running on {database}: {start_it(may_run=not database.exists())}")


def _listener_facts(config: Config, listener: dict[str, Any] | None, read_changed_at: str | None) -> Facts:
    """`read_changed_at`: the `changed_at` of the config.ini that the listener has read; None if that is not known."""
    if listener is None:
        yield _no_listener(config)
        return
    if "version" not in listener:
        message = one_line(str(listener["message"]))
        yield wrong(f"a listener is running and is not well: {message}. Its log says more")
        return
    faults = _listener_faults(config, listener, read_changed_at)
    yield from map(wrong, faults)
    if not faults:
        yield ok(f"the listener has been running since {format_local(listener['started_at'])}")
    listening = config.listener
    if is_address_here(listening.host) and not THIS_MACHINE.fullmatch(listening.host) and not in_container():
        remedy = f"Behind Caddy, set host = 127.0.0.1 in {config.path}, and {restart_it()}"
        yield note(f"port {listening.port} is open to the network ({listening.host}), without encryption. {remedy}")
    last = listener.get("last_webhook_at")
    yield note(f"the last webhook came at {format_local(last)}" if last else "no webhook has come yet")


def _listener_faults(config: Config, listener: dict[str, Any], read_changed_at: str | None) -> list[str]:
    faults = []
    if listener["version"] != __version__:
        faults.append(f"version {listener['version']} is running, and {__version__} is installed: {restart_it()}")
    if read_changed_at and config.changed_at and read_changed_at != str(config.changed_at):
        faults.append(f"{config.path} was changed after the listener was started: {restart_it()}")
    if listener.get("paused_since"):
        since, reason = format_local(listener["paused_since"]), one_line(str(listener["last_error"]))
        faults.append(f"the listener has sent nothing to iconik since {since}: {reason}. It tries again by itself")
    if listener.get("log_stuck_since"):
        since, dropped = format_local(listener["log_stuck_since"]), pluralize(listener["log_lines_dropped"], "line")
        reason = "its disk is full, or the program that reads it has ended or hangs"
        faults.append(f"the listener's log has been stuck since {since} ({dropped} dropped): {reason}. {STUCK_REMEDY}")
    due = parse_time(listener.get("oldest_due_at"))
    if due and time.time() - due > MAX_DUE_SECONDS:
        faults.append(f"an item has been due since {format_local(listener['oldest_due_at'])}: {command('status')}")
    return faults


def _notify_facts(config: Config) -> Facts:
    addresses = config.notify.to
    if not addresses:
        return
    try:
        faults = notify.not_understood(addresses)
    except notify.NotInstalled as error:
        yield wrong(str(error))
        return
    yield from map(wrong, faults)
    if not faults:
        yield ok(f"[notify] to has {pluralize(len(addresses), 'address', 'addresses')} that check --notify tells")


def _correct_credentials(config: Config) -> str:
    """Where a person corrects app_id and auth_token, as a sentence. A container keeps the environment it began with."""
    names = [name for name in config.variables or () if name.removesuffix("_FILE") in CREDENTIALS]
    if not names:
        return f"Correct them in {config.path}, and {restart_it()}"
    in_file = f" and {config.path}" if len(names) < len(CREDENTIALS) else ""
    return f"Correct the values of {' and '.join(names)}{in_file}, and create the container again"


def _iconik_facts(config: Config, registered_url: str | None, registered_actions: str | None) -> Facts:
    client = IconikClient(config.iconik)
    catalog = IconikCatalog(client)
    try:
        yield ok(f"iconik answers at {config.iconik.url}, and accepts the credentials ({catalog.user()})")
        roles = catalog.roles()
    except IconikDenied as error:
        yield wrong(f"{config.iconik.url}: {error}. {_correct_credentials(config)}")
        return
    except IconikError as error:
        yield wrong(f"{config.iconik.url}: {error}")
        return
    steps: list[Callable[[], Facts]] = [
        lambda: _clock_facts(client),
        lambda: _role_facts(config, roles, has_menu=bool(registered_actions)),
        lambda: _profile_facts(config, client),
        lambda: _only_facts(config, client),
    ]
    if "can_read_automations" in roles:
        steps.append(lambda: _automation_facts(config, catalog))
    if "can_read_webhooks" in roles:
        steps.append(lambda: _webhook_facts(config, catalog, registered_url))
    if registered_actions and "can_read_custom_actions" in roles:
        steps.append(lambda: _menu_facts(config, catalog, str(registered_actions)))
    for step in steps:
        try:
            yield from step()
        except IconikError as error:  # the next question is asked all the same
            yield wrong(f"{config.iconik.url}: {error}")


def _clock_facts(client: IconikClient) -> Facts:
    difference = client.clock_difference()
    if abs(difference) > MAX_CLOCK_DIFFERENCE:
        where = "ahead of" if difference > 0 else "behind"
        remedy = "sudo timedatectl set-ntp true"
        yield wrong(f"this machine's clock is {abs(difference):.0f} s {where} iconik's. To set it: {remedy}")


def _role_facts(config: Config, roles: set[str], *, has_menu: bool) -> Facts:
    needed = {job.role: f"no {job.name} job can be started" for job in config.jobs} | SERVICE_ROLES
    missing = [role for role in needed if role not in roles]
    for role in missing:
        yield wrong(f"the role {role} is missing: {needed[role]}")
    if not missing:
        yield ok("the credentials have all the roles that the listener needs")
    for role, loss in (OTHER_ROLES | (MENU_ROLES if has_menu else {})).items():
        if role not in roles:
            yield note(f"the role {role} is missing: {loss}")


def _profile_facts(config: Config, client: IconikClient) -> Facts:
    """Whether iconik has the profiles that each job is configured for, or one of its own where none is."""
    profiles = list_profiles(client)
    for job in config.jobs:
        wanted = set(job.profile_types.values())
        names = config.of(job).profile
        for name in names:
            if name != DEFAULT:
                yield _profile_fact(job, name, wanted, profiles)
        if not names or DEFAULT in names:
            for media_type in sorted(wanted):
                yield _own_profile_fact(job, media_type, profiles, only_default=bool(names))


def _own_profile_fact(job: Job, media_type: str, profiles: list[Profile], *, only_default: bool) -> Fact:
    kind = "enabled default profile" if only_default else "enabled profile"
    for profile in profiles:
        if profile.media_type == media_type and profile.enabled and (profile.is_default or not only_default):
            return ok(f'iconik has an {kind} for {media_type}: "{one_line(profile.name)}"')
    where = f" ([{job.name}] profile)" if job.has_profile else ""
    return wrong(f"iconik has no {kind} for {media_type}, so it refuses the {job.name} jobs{where}")


def _profile_fact(job: Job, name: str, wanted: set[str], profiles: list[Profile]) -> Fact:
    found = [one for one in profiles if one.id == name or one.name.casefold() == name.casefold()]
    if not found:
        names = ", ".join(f'"{one_line(one.name)}" ({one.media_type})' for one in profiles if one.media_type in wanted)
        return wrong(f'[{job.name}] profile: iconik has no profile "{one_line(name)}". It has: {names or "none"}')
    profile = found[0]
    called = f'the profile "{one_line(profile.name)}" of [{job.name}]'
    if not profile.enabled:
        return wrong(f"{called} is disabled in iconik")
    if profile.media_type not in wanted:
        return wrong(f"{called} is for {profile.media_type}, which {job.name} cannot use")
    return ok(f"{called} is for {profile.media_type}, and is enabled")


def _only_facts(config: Config, client: IconikClient) -> Facts:
    for job in config.jobs:
        only = config.of(job).only
        if not only:
            continue
        try:
            count = client.count(only)
        except IconikForbidden:
            raise
        except IconikRefused as error:
            yield wrong(f'iconik refuses the query "only" of [{job.name}]: {error}')
            continue
        if count:
            yield ok(f'the query "only" of [{job.name}] finds {pluralize(count, "asset")} today')
        else:
            yield wrong(f'the query "only" of [{job.name}] finds no asset at all, so no {job.name} job is started')


def _automation_facts(config: Config, catalog: IconikCatalog) -> Facts:
    ours_too = {job.automation_action for job in config.jobs}
    for automation in catalog.automations():
        actions = automation.get("actions")
        known = [action for action in actions if isinstance(action, dict)] if isinstance(actions, list) else []
        types = {action.get("type") for action in known}
        if automation.get("status") == "ACTIVE" and types & ours_too:
            name = one_line(str(automation.get("name")))
            yield note(f'iconik\'s automation "{name}" also starts jobs: some assets may be billed twice')


def _webhook_facts(config: Config, catalog: IconikCatalog, registered_url: str | None) -> Facts:
    found, secrets = catalog.webhooks(), config.listener.webhook_secret
    own = ours(found, registered_url, secrets)
    candidates = of_our_kinds(found)
    shown = own
    if not own and not registered_url:
        senders = {webhook.base_url for webhook in candidates if not secrets or webhook.secret in secrets}
        shown = [webhook for webhook in candidates if webhook.base_url in senders]
    if candidates and not shown and not registered_url:
        yield wrong(f"iconik has no webhooks of this listener yet: {_register('URL')}")
        for url in dict.fromkeys(webhook.base_url for webhook in candidates):
            yield note(f"the webhooks to {url} send another secret: they may be another listener's")
        return
    missing = [kind for kind in KINDS if not any(webhook.kind is kind for webhook in shown)]
    for kind in missing:
        what = f"{kind.path} (assets, {kind.operations[0]}, {kind.realm})"
        at = f" at {registered_url}" if registered_url else ""
        yield wrong(f"iconik has no webhook for {what}{at}: {_register(registered_url or 'URL')}")
    if not own and not missing:
        yield wrong(
            "cannot tell which of iconik's webhooks belong to this listener, so those that iconik disables stay"
            f" disabled, and missed assets are not found: {_register('URL')}"
        )
    hosts = sorted({urlsplit(webhook.url).netloc for webhook in shown})
    if len(hosts) > 1:
        yield wrong(f"the webhooks point at different hosts ({one_line(', '.join(hosts))}): {_register('URL')}")
    for other in candidates:
        if secrets and other.secret in secrets and other not in shown:
            removal = _register(other.base_url, "--remove")
            yield note(f"another webhook sends our secret, to {other.base_url}. If nobody listens there: {removal}")
    for webhook in shown:
        yield from _webhook_fact(webhook, secrets)


def _webhook_fact(webhook: WebhookDefinition, secrets: tuple[str, ...]) -> Facts:
    name = f"the webhook to {webhook.url}"
    problems = webhook.problems(secrets)
    for problem in problems:
        yield wrong(f"{name} {problem}. Once the cause is fixed: {_register(webhook.base_url)}")
    if not problems:
        only = f", for events with {webhook.query}" if webhook.query else ""
        lost = "; so missed assets are not found" if webhook.query and webhook.kind is CREATE else ""
        yield ok(f"{name} is ENABLED{only}{lost}")
    yield _route_fact(webhook, secrets)


def _menu_facts(config: Config, catalog: IconikCatalog, url: str) -> Facts:
    """Our entries in iconik's menu, which `register --actions` put there."""
    found, repair = at(url, catalog.actions()), _register(url, "--actions")
    for action in ACTIONS:
        own = [one for one in found if one.action is action]
        faults = [
            f"iconik's menu has no {action.path} for {context} at {url}: {repair}"
            for context in CONTEXTS
            if not any(one.context == context for one in own)
        ]
        for one in own:
            name = f"{one.url} for {one.context}, in iconik's menu,"
            problems = one.problems(config.listener.webhook_secret)
            faults += [f"{name} {problem}. Once the cause is fixed: {repair}" for problem in problems]
        yield from map(wrong, faults)
        if not faults:
            titles = " and ".join(sorted({f'"{one_line(str(one.fields.get("title")), 40)}"' for one in own}))
            yield ok(f"{titles} is in iconik's menu, for one asset and for several")
        if own:
            yield _route_fact(own[0], config.listener.webhook_secret)


def _register(url: str, *options: str) -> str:
    """The command that puts the webhooks at that URL in order."""
    insecure = ("--insecure",) if url.startswith("http:") and "--remove" not in options else ()
    return command("register", *options, *insecure, url)


def _route_fact(webhook: WebhookDefinition | ActionDefinition, secrets: tuple[str, ...]) -> Fact:
    """Whether iconik's events reach this listener on the way that they take."""
    fault = route_fault(webhook.url, webhook.headers)
    if fault is None:
        return ok(f"{webhook.url} reaches this listener, and the secret is right")
    text = fault.text
    if fault.cause is Cause.NAME:
        removal = _register(webhook.base_url, "--remove")
        text = f"{text} or, if the name is wrong, register the right one and remove this: {removal}"
    elif fault.cause is Cause.SECRET:
        remedy = restart_it() if webhook.secret in secrets else _register(webhook.base_url)
        text = f"{text} that iconik sends: {remedy}"
    return wrong(text) if fault.is_certain else note(text)


def _ping(url: str, faults: list[str]) -> None:
    """Tell a monitor, by the convention of healthchecks.io. If that fails, that is a line, no more."""
    try:
        parts = urlsplit(url)
        if faults:
            faults = [UUID.sub("…", fault) for fault in faults]
            fail = urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/fail"))
            answer = requests.post(fail, data="\n".join(faults).encode(), timeout=PING_TIMEOUT)
        else:
            answer = requests.get(url, timeout=PING_TIMEOUT)
        if not answer.ok:
            click.echo(f"The monitor at {parts.hostname} answered {answer.status_code}", err=True)
    except (requests.RequestException, OSError, ValueError) as error:
        click.echo(f"The monitor at {urlsplit(url).hostname} cannot be reached: {type(error).__name__}", err=True)


def _tell(path: Path, faults: list[str]) -> None:
    """Tell people, if they want to be told. If that fails, that is a line, no more."""
    with suppress(ConfigError):  # which is one of the faults, and says where
        settings, database = load_notify(path)
        if settings.to:
            notify.tell(settings.to, database, faults, lambda line: click.echo(line, err=True))


def _send_trial(path: Path, is_told: bool) -> None:
    if not is_told:
        raise click.UsageError("--test needs --notify")
    settings, _ = load_notify(path)
    if not settings.to:
        raise click.ClickException(f"{path}: [notify] to is empty, so nobody is told")
    try:
        failures = notify.send(settings.to, notify.trial())
    except notify.NotInstalled as error:
        raise click.ClickException(str(error)) from None
    for failure in failures:
        click.echo(failure, err=True)
    taken = len(settings.to) - len(failures)
    click.echo(f"{pluralize(taken, 'address', 'addresses')} of {len(settings.to)} took the message.")
    raise SystemExit(1 if failures else 0)
