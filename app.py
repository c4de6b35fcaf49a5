"""iconik-listener starts an analysis in iconik for every new asset, once, as soon as the asset's proxy is ready.

From an asset's webhooks to its job, and the module for each step:

1. `resources`: iconik's events arrive at /create and /proxy. Each is answered 200 once it is stored.
2. `store`: items.db has a row for each asset and job. Once the create and a closed proxy have come, it is `ready`.
3. `submitter`: worker threads claim what is ready, read the asset, and start its job.
4. `circuit_breaker` and `limits`: whether requests may go out, and whether more jobs may be billed today.
5. `jobs` and `iconik_client`: what iconik can do for an asset, and the requests themselves.

The `reconciliation` polls iconik for what the webhooks missed. What an operator types is in `commands`.
"""

import io
import logging
import os
import shlex
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120 PYTHONSAFEPATH leaves it out
os.environ.pop("SSLKEYLOGFILE", None)  # it would write down the keys of the token's encryption
if sys.version_info < (3, 10):
    sys.exit(f"Error: Python 3.10 or newer is needed; {sys.executable} is {sys.version.split()[0]}")
try:
    import click
    import flask_restful  # noqa: F401
    import requests  # noqa: F401
    import waitress  # noqa: F401
except ImportError as missing:
    remedy = "use the virtual environment's Python or, if that was upgraded, run deploy/install.sh again"
    sys.exit(f"Error: {missing.name} is not installed for {sys.executable}: {remedy}")

import commands
from circuit_breaker import CircuitBreaker
from commands.help import Program
from config import CONFIG_CHANGED_AT, Config, load
from iconik_client import IconikClient
from menu import MENU
from page.command import page
from reconciliation.reconciler import Reconciler
from resources import Services, create_app
from store import Rules, Store
from submitter import Submitter
from system import systemd
from system.errors import ListenerError
from system.log import flush_log, log_writer, set_up_logging, stderr_is_the_journal, write_critical
from system.server import Server
from system.text import in_container
from version import __version__

log = logging.getLogger("iconik_listener")

MAX_CALL_EXCESS = 120.0  # seconds beyond its timeout after which a call hangs: the system's resolver may take a minute
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
STARTING_SECONDS = 300.0  # added to systemd's start timeout with each progress line


def serve(config: Config) -> None:
    """Listen until SIGTERM or Ctrl-C.

    :raises ListenerError: it cannot start
    """
    set_up_logging()
    threading.excepthook = _end_process
    if config.variables is not None:
        log.info("%s", config.describe_environment())
    for line in (*config.warnings, *config.notes):
        log.warning("%s", line)
    store = Store(config.listener.database, Rules.of(config), listener=True, progress=_starting)
    try:
        client = IconikClient(config.iconik)
        breaker = CircuitBreaker(config.submitter)
        submitter = Submitter(store, client, breaker, config)
        reconciler = Reconciler(store, client, breaker, submitter, config)
        services = Services(store, submitter, breaker, config.listener.webhook_secret)
        listen_on = (config.listener.host, config.listener.port)
        server = Server(create_app(services, MENU), *listen_on, services.judge)
        for number in STOP_SIGNALS:
            signal.signal(number, lambda *_: server.stop())
        server.wake_for_signals()
        submitter.start()
        reconciler.start()
        _announce(server, store, config)

        def show_life() -> None:
            if (seconds := client.longest_call()) > config.iconik.timeout + MAX_CALL_EXCESS:
                _hangs(seconds)
            elif submitter.is_alive() and reconciler.is_alive():
                systemd.notify("WATCHDOG=1", f"STATUS={breaker.describe()}")

        server.run(show_life, systemd.watchdog_interval())
        log.info("Stopping")
        systemd.notify("STOPPING=1")
        with store.database.waiting_up_to(0.1):  # requests that arrived are answered, with 503 if the file is locked
            server.drain()
        breaker.stop()
        submitter.stop()
        reconciler.stop()
        with store.database.waiting_up_to(0.1):
            services.end()
        for number in STOP_SIGNALS:  # while Python ends, it would die of another one
            signal.signal(number, signal.SIG_IGN)
    finally:
        store.close()


def _announce(server: Server, store: Store, config: Config) -> None:
    store.set_state(CONFIG_CHANGED_AT, str(config.changed_at))  # for check
    store.set_state("listening_at", server.address)  # for the commands, which ask there for /health
    counts = ", ".join(f"{row['items']} {row['status']}" for row in store.overview()) or "empty"
    log.info(
        "Listening on %s: iconik-listener %s, database %s (%s), iconik at %s",
        *(server.address, __version__, store.database.path, counts, config.iconik.url),
    )
    systemd.notify("READY=1")


def _hangs(seconds: float) -> None:
    """A call cannot be cut off. systemd restarts a listener that shows no life; in a container, one that ends."""
    if not in_container():
        log.error("A call to iconik has hung for %.0f s: restart the listener, if systemd does not", seconds)
        return
    log.critical("A call to iconik has hung for %.0f s: ending, to be restarted", seconds)
    flush_log()
    os._exit(1)


def _starting(line: str) -> None:
    log.info("%s", line)
    systemd.extend_timeout(STARTING_SECONDS)


def _end_process(mistake: threading.ExceptHookArgs) -> None:
    """Otherwise the service would keep running with a thread missing, unnoticed. A restart loses nothing."""
    log.critical("Ending", exc_info=(mistake.exc_type, mistake.exc_value or mistake.exc_type(), mistake.exc_traceback))
    flush_log()
    os._exit(1)


@click.group(cls=Program, invoke_without_command=True, commands=[*commands.ALL, page])
@click.option("--config", "path", default="config.ini", show_default=True, help="The configuration file.")
@click.version_option(__version__, message="iconik-listener %(version)s")
@click.help_option("-h", "--help")
@click.pass_context
def cli(context: click.Context, path: str) -> None:
    """Start an analysis in iconik for every new asset, once, as soon as its proxy is ready.

    `serve` listens for iconik's webhooks, and so does app.py without a command.
    """
    # How this program is to be called is printed where a person has to do something.
    this_command = shlex.join([sys.executable, os.path.abspath(__file__), "--config", os.path.abspath(path)])  # noqa: PTH100
    os.environ.setdefault("ICONIK_LISTENER_COMMAND", this_command)
    context.obj = Path(path)
    if context.invoked_subcommand is None:
        serve(load(Path(path)))


@cli.command("serve")
@click.help_option("-h", "--help")
@click.pass_obj
def _serve(path: Path) -> None:
    """Listen for iconik's webhooks, as the systemd unit does."""
    serve(load(path))


def main() -> None:
    """Every error that is the operator's to fix ends here, as one line."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # closed: items.db or a connection would become it, and be written to like stderr
            os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a title may have characters that this terminal does not
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            cli(prog_name=os.environ.get("ICONIK_LISTENER_COMMAND"))
        finally:
            if sys.stdout:
                sys.stdout.flush()  # a full disk is noticed here, and not when the interpreter ends
    except ListenerError as error:
        _end(str(error), error.exit_code)
    except OSError as error:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left cannot be written either
        _end(str(error), 1)
    except RuntimeError as error:
        if "can't start new thread" not in str(error):
            raise
        _end("no more threads can be started: another program may use them up, or TasksMax is too low", 1)


def _end(message: str, exit_code: int) -> None:
    if stderr_is_the_journal():  # as a line of the log, with its time and priority
        if log_writer():
            log.critical("%s", message)
            flush_log()
        else:
            write_critical(message)
    else:
        flush_log()
        with suppress(OSError):
            click.echo(f"Error: {message}", err=True)
    sys.exit(exit_code)


if __name__ == "__main__":
    main()
