"""A thousand connections that never end a request: what becomes of webhooks, of memory and of the CPU meanwhile.

`python strangers.py PORT KIND SECRET` is the strangers themselves, until its stdin is closed.
"""

import asyncio
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from statistics import median

from bench import Bench
from load import Client, new_id
from process import Process, free_port, python
from service import Iconik, Service, new_folder
from table import figure, table

CONNECTIONS = 1000
# What each sends at once, but for the secret. Of `drips`, each goes on with a byte a second.
KINDS = {
    "bodies": f"POST /create HTTP/1.1\r\nHost: x\r\nContent-Length: {64 * 1024}\r\n\r\n" + "x" * (64 * 1024 - 1),
    "drips": f"POST /create HTTP/1.1\r\nHost: x\r\nContent-Length: {64 * 1024}\r\n\r\n",
    "headers": "POST /create HTTP/1.1\r\nHost: x\r\nX-Long: " + "x" * (15 * 1024),
}
SECONDS, LONG_SECONDS = 5.0, 60.0
REST_SECONDS = 2.0
GLOBAL_OPTIONS = "{\n\tadmin off\n\tauto_https off\n}\n"


def run(bench: Bench) -> str:
    ways = ["directly", *(["through Caddy"] if shutil.which("caddy") else [])]
    rows = []
    for name, checkout in bench.checkouts.items():
        for way in ways:
            for kind in KINDS:
                for secret in ("", "benchmark"):
                    with ExitStack() as stack:
                        iconik = stack.enter_context(Iconik(bench.folder))
                        folder = new_folder(bench.folder, "strangers")
                        service = stack.enter_context(Service(checkout, folder, iconik))
                        way_in = service if way == "directly" else stack.enter_context(_caddy(bench.folder, service))
                        seconds = LONG_SECONDS if bench.long else SECONDS
                        cells = _measure(service, way_in.port, kind, secret, seconds)
                    rows.append([f"{name}, {way}", kind, "yes" if secret else "no", *cells])
    heads = [
        "",
        "what",
        "secret",
        "still open",
        "webhooks, ms",
        "slowest",
        "failed",
        "peak memory, MB",
        "CPU, %",
        "after",
    ]
    text = f"{CONNECTIONS:,} connections, and 10 webhooks a second beside them for {figure(SECONDS)} s.\n\n"
    return text + table(heads, rows) + ("" if len(ways) > 1 else "\n\nCaddy is not installed, and was left out.")


def _measure(service: Service, port: int, kind: str, secret: str, seconds: float) -> list[str]:
    times, failed = [], 0
    with _strangers(port, kind, secret) as strangers:
        deadline = time.monotonic() + seconds
        ready_at = 0.0
        while time.monotonic() < deadline:
            try:
                times.append(Client(port).send("/create", new_id()))
            except ConnectionError:
                failed += 1
            time.sleep(0.1)
        used = service.cpu_seconds()
        time.sleep(REST_SECONDS)
        held = (service.cpu_seconds() - used) / REST_SECONDS
        left = strangers()
    time.sleep(REST_SECONDS)
    used = service.cpu_seconds()
    time.sleep(REST_SECONDS)
    rest = (service.cpu_seconds() - used) / REST_SECONDS
    figures = [figure(median(times or [0])), figure(max(times or [0])), failed, figure(service.peak_memory())]
    return [left, *map(str, figures), figure(held * 100), figure(rest * 100)]


@contextmanager
def _strangers(port: int, kind: str, secret: str) -> Iterator:
    process = subprocess.Popen(
        python("strangers.py", port, kind, secret), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin and process.stdout

    def leave() -> str:
        return process.communicate()[0].decode().strip()

    yield leave
    process.wait()


def _caddy(parent: Path, service: Service) -> Process:
    """Caddy with deploy/Caddyfile, but for the addresses."""
    folder, port = new_folder(parent, "caddy"), free_port()
    caddyfile = (Path(__file__).parent.parent / "deploy" / "Caddyfile").read_text()
    caddyfile = caddyfile.replace("iconik-listener.example.com", f"http://:{port}")
    caddyfile = caddyfile.replace("127.0.0.1:8000", f"127.0.0.1:{service.port}")
    (folder / "Caddyfile").write_text(GLOBAL_OPTIONS + caddyfile)
    return Process(["caddy", "run", "--config", "Caddyfile", "--adapter", "caddyfile"], folder, port)


async def _stranger(port: int, data: bytes, drips: bool) -> None:
    """One connection, until the other side closes it."""
    with suppress(OSError):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(data)
        answer = asyncio.create_task(reader.read())
        while drips and not answer.done():
            await asyncio.sleep(1)
            writer.write(b" ")
        await answer


async def _crowd(port: int, kind: str, secret: str) -> None:
    data = KINDS[kind].replace("\r\n", f"\r\nX-Webhook-Secret: {secret}\r\n", 1).encode()
    crowd = [asyncio.create_task(_stranger(port, data, kind == "drips")) for _ in range(CONNECTIONS)]
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    print(sum(not stranger.done() for stranger in crowd))


if __name__ == "__main__":
    import resource

    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    asyncio.run(_crowd(int(sys.argv[1]), *sys.argv[2:]))
