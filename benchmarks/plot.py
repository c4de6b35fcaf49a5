"""A plot as SVG, written by hand."""

from collections.abc import Sequence

WIDTH, HEIGHT = 640, 320
LEFT, RIGHT, TOP, BOTTOM = 60, 500, 30, 260
COLORS = ("#1668a8", "#c0504d", "#6b8e23")
TEXT = 'font-family="sans-serif" font-size="13" fill="#808080"'


def rate_by_share(shares: Sequence[float], rates: dict[str, Sequence[float]]) -> str:
    """Lines of what is left of the rate (1: all of it), one for each name, at each share of failing calls."""
    ys = {rate: BOTTOM - rate * (BOTTOM - TOP) for rate in (0, 0.25, 0.5, 0.75, 1)}
    xs = [LEFT + (RIGHT - LEFT) * place / (len(shares) - 1) for place in range(len(shares))]
    parts = [f'<path d="M{LEFT} {y:.0f}H{RIGHT}" stroke="#808080" stroke-opacity="0.3"/>' for y in ys.values()]
    parts += [_text(LEFT - 8, y + 4, f"{rate:g}", "end") for rate, y in ys.items()]
    parts += [_text(x, BOTTOM + 20, f"{share:.0%}", "middle") for x, share in zip(xs, shares)]
    parts.append(_text((LEFT + RIGHT) / 2, BOTTOM + 44, "analyze calls that iconik answers 503", "middle"))
    parts.append(_text(LEFT - 40, TOP - 12, "jobs a second, as a part of those without failures", "start"))
    best = [1 - share for share in shares]
    parts += _line(xs, best, "#808080", "at best", dashes="4 4")
    for color, (name, line) in zip(COLORS, rates.items()):
        parts += _line(xs, line, color, name)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">'
    return "\n".join([head, *parts, "</svg>", ""])


def _line(xs: Sequence[float], rates: Sequence[float], color: str, name: str, dashes: str = "none") -> list[str]:
    points = [(x, BOTTOM - min(rate, 1.05) * (BOTTOM - TOP)) for x, rate in zip(xs, rates)]
    path = " ".join(f"{x:.0f},{y:.1f}" for x, y in points)
    style = f'fill="none" stroke="{color}" stroke-width="2" stroke-dasharray="{dashes}"'
    label = _text(points[-1][0] + 10, points[-1][1] + (-8 if dashes != "none" else 6), name, "start", color)
    dots = [f'<circle cx="{x:.0f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in points if dashes == "none"]
    return [f'<polyline points="{path}" {style}/>', *dots, label]


def _text(x: float, y: float, text: str, anchor: str, color: str = "") -> str:
    style = TEXT.replace("#808080", color) if color else TEXT
    escaped = text.replace("&", "&amp;").replace("<", "&lt;")
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" {style}>{escaped}</text>'
