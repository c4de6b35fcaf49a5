"""The bars of the last 30 days: how many jobs were started on each day, by job."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from commands.report import Line
from system.text import pluralize

WIDTH, HEIGHT = 600, 120
GAP = 4


@dataclass(frozen=True)
class Bar:
    """A rectangle of the chart: what was started of one job on one day."""

    job: str
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Chart:
    """Bars, and the same in words and numbers for those who cannot see them.

    :ivar rows: the day and the number of each job, the newest day first, without days on which nothing was started
    """

    jobs: list[str]
    days: list[str]
    top: int
    bars: list[Bar]
    summary: str
    rows: list[tuple[str, list[int]]]


def chart(lines: Iterable[Line], today: str, days: int) -> Chart:
    """The chart of the last `days` days, of which `today` (`2026-11-26`) is the last."""
    last = date.fromisoformat(today)
    names = [(last - timedelta(days=back)).isoformat() for back in reversed(range(days))]
    started: dict[str, dict[str, int]] = {}
    for line in lines:
        if line.day >= names[0]:
            started.setdefault(line.day, {})[line.job] = line.started
    jobs = sorted({job for of_day in started.values() for job in of_day}) or ["analyze"]
    totals = {day: sum(of_day.values()) for day, of_day in started.items()}
    top = max(totals.values(), default=0)
    return Chart(
        jobs=jobs,
        days=names,
        top=top,
        bars=_bars(names, jobs, started, top),
        summary=_summary(names, totals),
        rows=[(day, [started[day].get(job, 0) for job in jobs]) for day in reversed(names) if totals.get(day)],
    )


def _bars(names: Sequence[str], jobs: Sequence[str], started: dict[str, dict[str, int]], top: int) -> list[Bar]:
    step = WIDTH / len(names)
    bars = []
    for index, day in enumerate(names):
        y = float(HEIGHT)
        for job in jobs:
            height = HEIGHT * started.get(day, {}).get(job, 0) / top if top else 0.0
            if height:
                y -= height
                bars.append(Bar(job, round(index * step + GAP / 2, 1), round(y, 1), step - GAP, round(height, 1)))
    return bars


def _summary(names: Sequence[str], totals: dict[str, int]) -> str:
    period = f"from {names[0]} to {names[-1]}"
    if not any(totals.values()):
        return f"No job was started {period}."
    most = max(totals, key=lambda day: totals[day])
    count = sum(totals.values())
    verb = "was" if count == 1 else "were"
    return f"{pluralize(count, 'job')} {verb} started {period}; the most, {totals[most]}, on {most}."
