"""register: create, repair or remove the two webhooks at iconik."""

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import click

from commands.menu import find_actions, remove_actions, save_actions
from commands.route import Cause, route_fault
from config import Config, load
from events import ACTIONS, CREATE, KINDS, SECRET_HEADER, MenuAction
from iconik_client import IconikClient, IconikError
from reconciliation.actions import REGISTERED_ACTIONS
from reconciliation.catalog import IconikCatalog
from reconciliation.reconciler import about_to_register, forget_fingerprint, registered, webhook_state
from reconciliation.webhooks import REGISTERED_URL, WebhookDefinition, of_our_kinds
from store import Rules, Store
from system.text import one_line, restart_it


@click.command()
@click.argument("url")
@click.option("--remove", is_flag=True, help="Delete the two webhooks that point at URL.")
@click.option("--insecure", is_flag=True, help="Allow http://, over which the secret travels readable.")
@click.option("--actions", "with_actions", is_flag=True, help="Also put our two entries into iconik's menu.")
@click.option("--yes", is_flag=True, help="Register it even if this listener does not answer there.")
@click.pass_obj
def register(path: Path, url: str, remove: bool, insecure: bool, with_actions: bool, yes: bool) -> None:
    """Create or repair the two webhooks at iconik.

    URL is where iconik reaches this listener, without /create or /proxy: https://iconik-listener.example.com
    Before anything is changed, the URL is asked whether this listener answers there.

    A webhook that is there already, by URL and kind of event, is updated if need be: it gets the secret of
    config.ini, and one that is disabled is put back in use. A query that you added to limit which assets are analyzed
    is kept.

    With --actions, people can also choose "Analyze again" and "Do not analyze" for assets in iconik. Without it, such
    entries that are there already are repaired.
    """
    url = _checked(url, insecure or remove)
    config = load(path)
    if with_actions and (remove or not config.listener.webhook_secret):
        reason = "--remove removes them" if remove else "set webhook_secret in config.ini first"
        raise click.UsageError(f"--actions cannot be used: {reason}")
    catalog = IconikCatalog(IconikClient(config.iconik))
    same = [webhook for webhook in of_our_kinds(catalog.webhooks()) if webhook.url == url + webhook.kind.path]
    with _store(config, remove) as store:
        actions = find_actions(catalog, store, url, is_needed=with_actions)
        if remove:
            remove_actions(catalog, actions)
            _remove(catalog, same, url)
            for key in (REGISTERED_URL, REGISTERED_ACTIONS):
                if store and store.state(key) == url:
                    store.set_state(key, "")
            return
        if not yes:
            _check_route(same, url, config, ACTIONS if with_actions else ())
        creates = [webhook for webhook in same if webhook.kind is CREATE]
        before = webhook_state(store) if store else {}
        why = about_to_register(store, creates) if store else None
        written: list[WebhookDefinition] = []
        try:
            _save(catalog, same, url, config, store, written)
        except IconikError as error:
            if store and not written and not error.may_have_been_done:
                for key, value in before.items():
                    store.set_state(key, value)
            raise
        if store:
            store.set_state(REGISTERED_URL, url)
            registered(store, catalog, [webhook for webhook in written if webhook.kind is CREATE], why)
        save_actions(catalog, store, url, config.listener.webhook_secret, actions, may_create=with_actions)


@contextmanager
def _store(config: Config, remove: bool) -> Iterator[Store | None]:
    """items.db, to note which webhooks are this listener's: another one may have the same secret."""
    if not config.listener.database.exists():
        if not remove:
            click.echo("note: the listener has not run yet: after its first start, run this command again", err=True)
        yield None
        return
    with closing(Store(config.listener.database, Rules.of(config))) as store:
        yield store


def _checked(url: str, may_be_http: bool) -> str:
    """The URL as it is to be registered: without a slash at the end, and its host in lower case."""
    try:
        parts = urlsplit(url)
        is_valid = parts.scheme in ("https", "http") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # the port, or a bracket
        is_valid = False
    if not is_valid or re.search(r"[^!-~]|[?#]", url):
        raise click.UsageError("URL must be like https://iconik-listener.example.com")
    if parts.scheme == "http" and not may_be_http:
        raise click.UsageError("with http:// the secret travels unencrypted: use https://, or add --insecure")
    path = parts.path.rstrip("/")
    if path.endswith(tuple(part.path for part in (*KINDS, *ACTIONS))):
        raise click.UsageError("URL must be without /create or /proxy: they are added")
    return f"{parts.scheme}://{parts.netloc.lower()}{path}"


def _check_route(same: list[WebhookDefinition], url: str, config: Config, actions: Sequence[MenuAction]) -> None:
    """Ask the URL whether this listener answers there, and a person if it does not: iconik would send it the secret.

    :param actions: the entries of iconik's menu that are wanted, too
    """
    faults = []
    wanted = []
    for kind in KINDS:
        existing = next((webhook.fields for webhook in same if webhook.kind is kind), {})
        desired = WebhookDefinition.desired(kind, url + kind.path, _secret(config), existing)
        wanted.append((desired.url, desired.headers))
    wanted += [(url + action.path, {SECRET_HEADER: _secret(config)}) for action in actions]
    for address, headers in wanted:
        fault = route_fault(address, headers)
        if fault and fault.cause is Cause.NAME:
            faults.append(f"{fault.text} or correct the name")
        elif fault and fault.cause is Cause.SECRET:
            faults.append(f"{fault.text} of config.ini: {restart_it()}")
        elif fault:
            faults.append(fault.text)
    if not faults:
        return
    for line in dict.fromkeys(faults):
        click.echo(line, err=True)
    if sys.stdin is not None and sys.stdin.isatty():
        click.confirm("This listener does not answer there. Register it all the same?", abort=True)
        return
    raise click.ClickException("nothing was registered. If iconik reaches this listener there all the same, add --yes")


def _secret(config: Config) -> str:
    return config.listener.webhook_secret[0] if config.listener.webhook_secret else ""


def _save(
    catalog: IconikCatalog,
    same: list[WebhookDefinition],
    url: str,
    config: Config,
    store: Store | None,
    written: list[WebhookDefinition],
) -> None:
    """Create or repair both. The definitions as they are then, as far as iconik says, are added to `written`."""
    secret = _secret(config)
    if not secret:
        click.echo("note: no webhook_secret is set in config.ini: the webhooks are registered without", err=True)
    for kind in KINDS:
        for existing in [webhook.fields for webhook in same if webhook.kind is kind] or [{}]:
            desired = WebhookDefinition.desired(kind, url + kind.path, secret, existing)
            changed = [key for key, value in desired.fields.items() if (existing.get(key) or "") != (value or "")]
            if changed and store:
                forget_fingerprint(store, desired)
            fields = catalog.save_webhook(desired.fields, existing.get("id")) if changed else existing
            written.append(WebhookDefinition(kind, fields))
            was = f"updated (it was {one_line(str(existing.get('status')))})" if existing else "created"
            click.echo(f"{desired.url}: {was if changed else 'as it should be'}")


def _remove(catalog: IconikCatalog, same: list[WebhookDefinition], url: str) -> None:
    for webhook in same:
        catalog.delete_webhook(webhook.id)
        click.echo(f"{webhook.url}: deleted")
    if not same:
        click.echo(f"iconik has no webhooks of this listener at {one_line(url)}", err=True)
