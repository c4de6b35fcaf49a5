"""A thousand connections that never end a request: what becomes of webhooks, of memory and of the CPU meanwhile.

`python strangers.py PORT KIND SECRET` is the strangers themselves. Once its stdin ends, it prints how many are left.
"""

import asyncio
import resource
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from statistics import median

from bench import Bench
from load import HEADERS, Client, new_id
from process import Process, free_port, python
from service import Iconik, Service, new_folder
from table import figure, table

CONNECTIONS = 1000
BODY = 64 * 1024
HEAD = "POST /create HTTP/1.1\r\nHost: x\r\nX-Webhook-Secret: {secret}\r\n"
# What each sends at once. Of `drips`, each goes on with a byte a second.
KINDS = {
    "bodies": f"{HEAD}Content-Length: {BODY}\r\n\r\n" + "x" * (BODY - 1),
    "drips": f"{HEAD}Content-Length: {BODY}\r\n\r\n",
    "headers": f"{HEAD}X-Long: " + "x" * 15 * 1024,
}
SECRETS = {"no": "wrong", "yes": HEADERS["X-Webhook-Secret"]}
SECONDS, LONG_SECONDS = 5.0, 60.0
REST_SECONDS = 2.0
GLOBAL_OPTIONS = "{\n\tadmin off\n\tauto_https off\n"


def run(bench: Bench) -> str:
    seconds = LONG_SECONDS if bench.long else SECONDS
    ways = ["directly", "through Caddy"] if shutil.which("caddy") else ["directly"]
    rows = []
    for (name, checkout), way, kind, secret in product(bench.checkouts.items(), ways, KINDS, SECRETS):
        with ExitStack() as stack:
            iconik = stack.enter_context(Iconik(bench.folder))
            service = stack.enter_context(Service(checkout, new_folder(bench.folder, "service"), iconik))
            entry = stack.enter_context(_caddy(bench.folder, service)) if way == "through Caddy" else service
            rows.append([f"{name}, {way}", kind, secret, *_measure(service, entry.port, kind, secret, seconds)])
    heads = [
        "",
        "strangers",
        "secret",
        "left",
        "webhook, ms",
        "slowest, ms",
        "failed",
        "memory, MB",
        "CPU, %",
        "after, %",
    ]
    text = f"{CONNECTIONS:,} connections for {seconds:.0f} s, and about 8 webhooks a second beside them, each over a"
    text += " connection of its own. `left` are still open then. Memory is the highest VmRSS; CPU is that of one core"
    text += " while they hold on, and after they have gone."
    return f"{text}\n\n{table(heads, rows)}" + (
        "" if len(ways) > 1 else "\n\nCaddy is not installed, and was left out."
    )


def _measure(service: Process, port: int, kind: str, secret: str, seconds: float) -> list[str]:
    times: list[float] = []
    failed = 0
    command = python("strangers.py", port, kind, SECRETS[secret])
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as strangers:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                times.append(Client(port).send("/create", new_id()))
            except ConnectionError:
                failed += 1
            time.sleep(0.1)
        while_they_hold = _cpu_percent(service)
        left = strangers.communicate()[0].strip()
    time.sleep(REST_SECONDS)
    latency = [figure(median(times or [0])), figure(max(times or [0])), str(failed)]
    return [left, *latency, figure(service.peak_memory()), while_they_hold, _cpu_percent(service)]


def _cpu_percent(service: Process) -> str:
    before = service.cpu_seconds()
    time.sleep(REST_SECONDS)
    return f"{(service.cpu_seconds() - before) / REST_SECONDS * 100:.1f}"


def _caddy(parent: Path, service: Process) -> Process:
    """Caddy with deploy/Caddyfile, but for the addresses."""
    folder, port = new_folder(parent, "caddy"), free_port()
    text = (Path(__file__).parent.parent / "deploy" / "Caddyfile").read_text()
    text = text.replace("iconik-listener.example.com", f"http://:{port}").replace(
        "127.0.0.1:8000", f"127.0.0.1:{service.port}"
    )
    (folder / "Caddyfile").write_text(text.replace("{\n", GLOBAL_OPTIONS, 1))
    return Process(["caddy", "run", "--config", "Caddyfile", "--adapter", "caddyfile"], folder, port)


class Stranger(asyncio.Protocol):
    """One connection. What it is answered does not interest it."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.is_open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.is_open = True
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]
        self._transport.write(self._data)

    def connection_lost(self, error: Exception | None) -> None:
        self.is_open = False

    def drip(self) -> None:
        if self.is_open:
            self._transport.write(b" ")


async def _crowd(port: int, kind: str, secret: str) -> None:
    loop = asyncio.get_running_loop()
    data = KINDS[kind].format(secret=secret).encode()
    crowd: list[Stranger] = []

    def new_stranger() -> Stranger:
        crowd.append(Stranger(data))
        return crowd[-1]

    connecting = [loop.create_connection(new_stranger, "127.0.0.1", port) for _ in range(CONNECTIONS)]
    end = loop.run_in_executor(None, sys.stdin.read)
    await asyncio.gather(*connecting, return_exceptions=True)
    while not end.done():
        for stranger in crowd if kind == "drips" else []:
            stranger.drip()
        await asyncio.wait([end], timeout=1)
    print(sum(stranger.is_open for stranger in crowd))


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    asyncio.run(_crowd(int(sys.argv[1]), sys.argv[2], sys.argv[3]))
