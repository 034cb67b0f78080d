"""Line charts and score strips as inline SVG, drawn with classes that the report's stylesheet colours."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[float, float]

MAX_POINTS = 500  # drawn in a line; more would not be seen
_LEFT, _RIGHT, _TOP, _BOTTOM = 42, 14, 10, 40  # pixels around the plot
_Y_LABEL = 16  # more on the left, where y has a label


@dataclass(frozen=True)
class Series:
    """One curve."""

    name: str  # shown in tooltips
    points: Sequence[Point]  # (x, y), x ascending; y that is not finite is left out
    kind: str  # the class of its strokes: `raw`, `train`, `validation`, `random`
    dots: bool = False  # whether each point is shown, with its values in a tooltip


@dataclass(frozen=True)
class Axis:
    """One direction of a chart: values from `low` to `high` lie between two pixels."""

    low: float
    high: float
    start: float
    end: float
    label: str

    def __call__(self, value: float) -> float:
        """Place a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def line_chart(series: Sequence[Series], x_label: str, y_label: str, size: tuple[int, int] = (920, 320)) -> str:
    """Draw curves over a common x.

    Args:
        series: Drawn in order, the last on top.
        x_label: With its unit.
        y_label: With its unit; may be empty.
        size: Width and height of the view box in pixels; the picture scales with the page.

    Returns:
        An `<svg>` element, or nothing when there is no point to draw.
    """
    finite = [Series(s.name, [p for p in s.points if math.isfinite(p[1])], s.kind, s.dots) for s in series]
    points = [point for s in finite for point in s.points]
    if not points:
        return ""
    width, height = size
    x_low, x_high = _range([x for x, _ in points])
    y_low, y_high = _padded(*_range([y for _, y in points]))
    x = Axis(x_low, x_high, _LEFT + (_Y_LABEL if y_label else 0), width - _RIGHT, x_label)
    y = Axis(y_low, y_high, height - _BOTTOM, _TOP, y_label)
    title = escape(f"{', '.join(s.name for s in finite if s.points)} over {x_label}")
    parts = [f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{title}">']
    parts += [*_grid(x, y, width), *(_draw(s, x, y) for s in finite), "</svg>"]
    return "".join(parts)


def histogram(counts: Sequence[int], width: int, x_label: str, size: tuple[int, int] = (455, 220)) -> str:
    """Draw how many values lie in each of the bins `0..width-1`, `width..2*width-1` and so on.

    Returns:
        An `<svg>` element, or nothing when there is nothing to count.
    """
    if not sum(counts):
        return ""
    x = Axis(0, len(counts) * width, _LEFT + 8, size[0] - _RIGHT, x_label)
    y = Axis(0, max(counts) * 1.04, size[1] - _BOTTOM, _TOP, "")
    parts = [f'<svg class="chart" viewBox="0 0 {size[0]} {size[1]}" role="img" aria-label="{escape(x_label)}">']
    for index, count in enumerate(counts):
        left, right, top = x(index * width), x((index + 1) * width), y(count)
        tip = _tip(f"{index * width} to {(index + 1) * width - 1}: {count:,}")
        shape = f'x="{left:.1f}" y="{top:.1f}" width="{right - left - 0.5:.1f}" height="{y.start - top:.1f}"'
        parts.append(f'<rect class="bar" {shape}>{tip}</rect>' if count else "")
    return "".join([*parts, *_grid(x, y, size[0]), "</svg>"])


def score_strip(value: float, ci95: Sequence[float] | None, baselines: Mapping[str, float], size: int = 200) -> str:
    """Draw a score on 0-100 as a mark within its interval, baselines as rings; beyond the scale they sit at its end."""

    def place(score: float) -> float:
        return 8 + min(100.0, max(0.0, score)) / 100 * (size - 16)

    frame = f'viewBox="0 0 {size} 20" width="{size}" height="20" role="img" aria-label="{value:.2f} of 100"'
    parts = [f'<svg class="strip" {frame}><line class="track" x1="8" y1="10" x2="{size - 8}" y2="10"/>']
    for name, score in baselines.items():
        tip = _tip(f"{name} {score:.2f}")
        parts.append(f'<circle class="ring" cx="{place(score):.1f}" cy="10" r="3.5">{tip}</circle>')
    if ci95 is not None:
        parts.append(f'<line class="interval" x1="{place(ci95[0]):.1f}" y1="10" x2="{place(ci95[1]):.1f}" y2="10"/>')
    x = f"{place(value):.1f}"
    return "".join([*parts, f'<line class="mark" x1="{x}" y1="3" x2="{x}" y2="17">{_tip(f"{value:.2f}")}</line></svg>'])


def smooth(points: Sequence[Point], share: float = 0.02) -> list[Point]:
    """Average over about a share of the points, from both sides, so that the curve neither lags nor leads.

    Each side is an exponential average: the weight of a point falls to 1/e over `share * len(points)` points.
    """
    decay = math.exp(-1 / max(1.0, share * len(points)))
    values = [value for _, value in points]
    forward, backward = _averaged(values, decay), _averaged(values[::-1], decay)[::-1]
    return [(x, (a + b) / 2) for (x, _), a, b in zip(points, forward, backward, strict=True)]


def _averaged(values: Sequence[float], decay: float) -> list[float]:
    """Divide by the sum of the weights, which is below 1 in the beginning."""
    total = weight = 0.0
    averages = []
    for value in values:
        total, weight = decay * total + value, decay * weight + 1
        averages.append(total / weight)
    return averages


def thin(points: Sequence[Point], limit: int = MAX_POINTS) -> list[Point]:
    """Keep the lowest and the highest point of each of `limit / 2` stretches, so that no spike disappears."""
    if len(points) <= limit:
        return list(points)
    kept = []
    num_stretches = limit // 2
    for index in range(num_stretches):
        stretch = points[index * len(points) // num_stretches : (index + 1) * len(points) // num_stretches]
        kept += sorted({min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])})
    return [points[0], *kept[1:-1], points[-1]]


def ticks(low: float, high: float, about: int) -> list[float]:
    """Return round numbers (1, 2 or 5 times a power of ten apart) from `low` to `high`, about so many."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def tick_text(value: float, step: float) -> str:
    """Write a tick as short as the distance to the next one allows: `0.25`, `5e-5`, `20k`."""
    if abs(value) < step / 1e6:
        return "0"
    if step >= 500 and abs(value) >= 1000:
        return f"{value / 1000:g}k" if abs(value) < 1e6 else f"{value / 1e6:g}M"
    if step < 1e-3 and abs(value) < 0.01:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:,.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    if low < high:
        return low, high
    around = abs(low) * 0.1
    return (low - around, high + around) if around else (0.0, 1.0)


def _padded(low: float, high: float) -> tuple[float, float]:
    room = 0.04 * (high - low)
    return (low if low >= 0 > low - room else low - room), high + room


def _grid(x: Axis, y: Axis, width: int) -> list[str]:
    wide = width > 500
    parts = []
    for value, text in _labelled(y, 5 if wide else 4):
        place = y(value)
        parts.append(f'<line class="grid" x1="{x.start}" y1="{place:.1f}" x2="{x.end}" y2="{place:.1f}"/>')
        parts.append(f'<text class="tick" x="{x.start - 8}" y="{place + 4:.1f}" text-anchor="end">{text}</text>')
    for value, text in _labelled(x, 8 if wide else 4):
        parts.append(f'<text class="tick" x="{x(value):.1f}" y="{y.start + 18}" text-anchor="middle">{text}</text>')
    middle, centre = (x.start + x.end) / 2, (y.start + y.end) / 2
    parts.append(f'<line class="axis" x1="{x.start}" y1="{y.start}" x2="{x.end}" y2="{y.start}"/>')
    parts.append(f'<text x="{middle}" y="{y.start + 35}" text-anchor="middle">{escape(x.label)}</text>')
    turned = f'transform="rotate(-90 12 {centre})" text-anchor="middle"'
    return [*parts, f'<text x="12" y="{centre}" {turned}>{escape(y.label)}</text>' if y.label else ""]


def _labelled(axis: Axis, about: int) -> list[tuple[float, str]]:
    values = ticks(axis.low, axis.high, about)
    step = values[1] - values[0] if len(values) > 1 else abs(values[0]) or 1.0
    return [(value, tick_text(value, step)) for value in values]


def _draw(series: Series, x: Axis, y: Axis) -> str:
    shown = thin(series.points)
    path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in shown)
    parts = [f'<polyline class="{series.kind}" points="{path}"/>'] if len(shown) > 1 else []
    if series.dots or len(shown) == 1:
        for a, b in shown:
            tip = _tip(f"{series.name}, {x.label} {a:g}: {b:.4g}")
            parts.append(f'<circle class="{series.kind}" cx="{x(a):.1f}" cy="{y(b):.1f}" r="3.5">{tip}</circle>')
    return "".join(parts)


def _tip(text: str) -> str:
    return f"<title>{escape(text)}</title>"
