"""What a webhook costs until it is on the disk, against a resource that does nothing on the same server."""

from contextlib import ExitStack
from pathlib import Path

from bench import Bench
from load import load
from process import Process, free_port, python
from service import Iconik, Service, new_folder
from table import spread, table

ROUNDS = 5
SECONDS = 3.0


def run(bench: Bench) -> str:
    with ExitStack() as stack:
        iconik = stack.enter_context(Iconik(bench.folder))
        servers: dict[str, Process] = {"nothing": stack.enter_context(_nothing(bench.folder))}
        for name, checkout in bench.checkouts.items():
            servers[name] = stack.enter_context(Service(checkout, new_folder(bench.folder, name), iconik))
        rates: dict[str, list[float]] = {name: [] for name in servers}
        costs: dict[str, list[float]] = {name: [] for name in servers}
        for server in servers.values():
            load(server.port, 1)  # to be warm
        for _ in range(ROUNDS):
            for name, server in servers.items():
                before = server.cpu_seconds()
                came = load(server.port, 10 if bench.long else SECONDS)
                rates[name].append(came.rate)
                costs[name].append((server.cpu_seconds() - before) / came.requests * 1e6)
    rows = []
    for name in servers:
        cost_ratios = [cost / nothing for cost, nothing in zip(costs[name], costs["nothing"])]
        rate_ratios = [rate / nothing for rate, nothing in zip(rates[name], rates["nothing"])]
        rows.append([name, spread(rates[name]), spread(costs[name]), spread(rate_ratios), spread(cost_ratios)])
    heads = ["", "webhooks/s", "CPU a webhook, µs", "rate ÷ nothing's", "CPU ÷ nothing's"]
    return f"`POST /create`, median of {ROUNDS} rounds in turns (lowest to highest).\n\n" + table(heads, rows)


def _nothing(folder: Path) -> Process:
    port = free_port()
    return Process(python("nothing.py", port), new_folder(folder, "nothing"), port)
