"""page: the operator's web page, until Ctrl-C."""

import re
import signal
from pathlib import Path

import click

from config import Config, load
from page.access import KEY_HEADER, USER_HEADER, Access, LinkAccess, ProxyAccess, proxy_key
from page.actions import Actions
from page.web import create_page
from store import Rules, Store
from system.log import set_up_logging
from system.server import Server

CADDYFILE = (
    """\
# From Caddy 2.8 on: basic_auth. The hash is printed by: caddy hash-password
basicauth {{
	NAME HASH
}}
reverse_proxy 127.0.0.1:{port} {{
	header_up """
    + KEY_HEADER
    + """ {key}
	header_up """
    + USER_HEADER
    + """ {{http.auth.user.id}}
}}
"""
)


def _host(context: click.Context, option: click.Parameter, name: str | None) -> str | None:
    """The name under which Caddy has the page, with its port if the address bar shows one."""
    if name is not None and not re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)*(:[0-9]{1,5})?", name.lower()):
        raise click.BadParameter("it must be a host name like iconik-listener.example.com")
    return name


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--port", type=click.IntRange(0, 65535), default=8001, show_default=True, help="0: any that is free.")
@click.option("--read-only", is_flag=True, help="Without the buttons that retry and skip.")
@click.option(
    "--behind-proxy",
    "host",
    metavar="HOST",
    callback=_host,
    help="For Caddy, which asks for a password, under this name.",
)
@click.option("--caddyfile", is_flag=True, help="With --behind-proxy: only print the lines for Caddy.")
@click.pass_obj
def page(path: Path, port: int, read_only: bool, host: str | None, caddyfile: bool) -> None:
    """Show the listener and its items as a web page, until Ctrl-C.

    It listens on 127.0.0.1 only. From another machine, open an SSH tunnel first:
    ssh -L 8001:127.0.0.1:8001 THIS-MACHINE

    The page shows what status, show and report say, and has buttons for retry and skip. The link that is printed works
    once; a cookie takes its place.
    """
    if caddyfile and not host:
        raise click.UsageError("--caddyfile needs --behind-proxy")
    config = load(path)
    if host and not config.listener.webhook_secret:
        raise click.ClickException("set webhook_secret in config.ini first: the page knows Caddy by it")
    if caddyfile:
        click.echo(CADDYFILE.format(port=port, key=proxy_key(config.listener.webhook_secret[0])), nl=False)
        return
    set_up_logging()
    _serve(config, port, host, read_only)


def _serve(config: Config, port: int, host: str | None, read_only: bool) -> None:
    def open_store() -> Store:
        return Store(config.listener.database, Rules.of(config))

    def announce(token: str) -> None:
        click.echo(f"http://{server.address}/?token={token}")

    open_store().close()  # what is wrong with items.db is said now
    link = LinkAccess(announce)
    access: Access = ProxyAccess(host, config.listener.webhook_secret) if host else link
    actions = None if read_only else Actions(open_store)
    server = Server(create_page(config, access, open_store, actions), "127.0.0.1", port, setting="--port")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: server.stop())
    if host:
        click.echo(f"Caddy reaches the page at http://{server.address}, and people at https://{host}")
    else:
        click.echo("This link works once. After its use, the next one is shown. Ctrl-C ends the page.")
        link.start()
    server.run(lambda: None)
    server.drain()
    if actions:
        actions.stop()
