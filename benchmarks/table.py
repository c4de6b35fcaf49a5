"""Tables in Markdown."""

from collections.abc import Iterable, Sequence


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table whose first column is text and whose others are figures."""
    lines = [[str(cell) for cell in row] for row in rows]
    widths = [max(3, *(len(line[i]) for line in [list(heads), *lines])) for i in range(len(heads))]

    def line_of(cells: Sequence[str]) -> str:
        aligned = [cells[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:]))]
        return "| " + " | ".join(aligned) + " |"

    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|"
    return "\n".join([line_of(heads), rule, *map(line_of, lines)])


def figure(value: float) -> str:
    """A number with as many digits as are worth reading."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def spread(values: Sequence[float]) -> str:
    """The median of several runs, and the lowest and highest."""
    ordered = sorted(values)
    return f"{figure(ordered[len(ordered) // 2])} ({figure(ordered[0])} to {figure(ordered[-1])})"
