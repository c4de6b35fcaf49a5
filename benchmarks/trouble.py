"""What iconik's trouble costs: calls that fail by chance, and assets that fail for ever."""

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import plot
from bench import Bench
from load import Client, new_id
from service import Iconik, Service, copy_of, new_database
from table import figure, table

SHARES = (0.0, 0.01, 0.05, 0.2, 0.5, 0.7, 0.8, 0.9)
BACKLOG = 20_000
ICONIK_SECONDS = 0.1
SECONDS, LONG_SECONDS = 40, 240
SHARE_SECONDS, LONG_SHARE_SECONDS = 120, 480  # an iconik that fails by half opens the breaker every quarter of an hour
ASSETS_PER_SECOND = 5
BAD_ENDS = ("000000000504", "000000000403", "000000000500", "00000000dead")  # as stand_in.py knows them
PLOT = Path(__file__).with_name("trouble.svg")


def run(bench: Bench) -> str:
    rates = {name: _rates_by_share(bench, checkout) for name, checkout in bench.checkouts.items()}
    rows = [[name, *(f"{rate / by[0]:.2f} ({figure(rate)}/s)" for rate in by)] for name, by in rates.items()]
    by_share = table(["", *(f"{share:.0%}" for share in SHARES)], rows)
    PLOT.write_text(plot.rate_by_share(SHARES, {name: [rate / by[0] for rate in by] for name, by in rates.items()}))
    heads = ["", "without: median, s", "95th, s", "with: median, s", "95th, s", "ratio of the 95th"]
    heads.append("requests for 504, 403, 500, none")
    with_bad = table(heads, [[name, *_delays(bench, checkout)] for name, checkout in bench.checkouts.items()])
    return f"""Jobs taken a second while a backlog lasts, by the share of analyze calls that is answered 503,
as a part of the rate without any. Default delays, four workers, iconik answers in 100 ms,
{_share_seconds(bench)} s, all shares side by side.

{by_share}

Time from an asset's proxy to its job (median, 95th percentile), without and with four assets of which one always gets
504, one 403, one 500 and one no answer; {ASSETS_PER_SECOND} other new assets a second for {_seconds(bench)} s.

{with_bad}"""


def _seconds(bench: Bench) -> int:
    return LONG_SECONDS if bench.long else SECONDS


def _share_seconds(bench: Bench) -> int:
    return LONG_SHARE_SECONDS if bench.long else SHARE_SECONDS


def _rates_by_share(bench: Bench, checkout: Path) -> list[float]:
    """Jobs a second. The runs go side by side: they nearly always wait."""
    backlog = new_database(checkout, bench.folder / "backlog", ready=BACKLOG)
    with ExitStack() as stack:
        iconiks = []
        for share in SHARES:
            folder = copy_of(backlog, f"share-{share}")
            iconik = stack.enter_context(Iconik(folder, latency=ICONIK_SECONDS, share=share))
            stack.enter_context(Service(checkout, folder, iconik))
            iconiks.append(iconik)
        time.sleep(_share_seconds(bench))
        reports = [iconik.report() for iconik in iconiks]
    return [_jobs_in_window(report, _share_seconds(bench)) / _share_seconds(bench) for report in reports]


def _jobs_in_window(report: dict[str, Any], seconds: float) -> int:
    end = report["first_request_at"] + seconds
    return sum(status == 201 and at <= end for at, _, _, status in report["answers"])


def _delays(bench: Bench, checkout: Path) -> list[str]:
    """Four assets in trouble come first to one of two services; the same assets follow to both."""
    with ExitStack() as stack:
        iconiks, services = [], []
        for name in ("without", "with"):
            folder = new_database(checkout, bench.folder / name)
            iconiks.append(stack.enter_context(Iconik(folder, latency=ICONIK_SECONDS)))
            services.append(stack.enter_context(Service(checkout, folder, iconiks[-1])))
        clients = [Client(service.port) for service in services]
        for end in BAD_ENDS:
            _send(clients[1], new_id()[:24] + end)
        proxy_at: list[dict[str, float]] = [{}, {}]
        started = time.monotonic()
        for number in range(ASSETS_PER_SECOND * _seconds(bench)):
            time.sleep(max(0, started + number / ASSETS_PER_SECOND - time.monotonic()))
            for client, times in zip(clients, proxy_at):
                object_id = new_id()
                times[object_id] = _send(client, object_id)
        time.sleep(2)
        reports, now = [iconik.report() for iconik in iconiks], time.monotonic()
    delays = [sorted(_waits(report, times, now)) for report, times in zip(reports, proxy_at)]
    tails = [_percentile(waits, 0.95) for waits in delays]
    asked = [sum(asset[-12:] == end for _, _, asset, _ in reports[1]["answers"]) for end in BAD_ENDS]
    cells = [cell for waits in delays for cell in (figure(_percentile(waits, 0.5)), figure(_percentile(waits, 0.95)))]
    return [*cells, figure(tails[1] / tails[0]), ", ".join(map(str, asked))]


def _send(client: Client, object_id: str) -> float:
    client.send("/create", object_id)
    sent_at = time.monotonic()
    client.send("/proxy", object_id)
    return sent_at


def _waits(report: dict[str, Any], proxy_at: dict[str, float], now: float) -> list[float]:
    """Seconds from each proxy to its job; one that has no job yet has waited until now."""
    job_at = {asset: at for at, _, asset, status in report["answers"] if status == 201}
    return [job_at.get(object_id, now) - at for object_id, at in proxy_at.items()]


def _percentile(ordered: list[float], part: float) -> float:
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]
