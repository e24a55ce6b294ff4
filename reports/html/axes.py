"""Axes of the pictures: limits with room for notes, readable ticks, a legend above the plot."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from fedglm.reports.formats import format_bytes, format_metric, format_number
from fedglm.reports.html.inline_svg import Ink

DASHED = (0, (4, 2.2))
DOTTED = (0, (1.2, 1.8))
DASH_DOT = (0, (5, 2, 1.2, 2))
_MARKED_POINTS = 40
_MAX_DRAWABLE = 1e30


@dataclass(frozen=True)
class Curve:
    """Points of a curve, all finite, ascending in x."""

    x: tuple[float, ...]
    y: tuple[float, ...]

    @property
    def marked(self) -> list[int]:
        """Indices of the points that get a marker: all up to 40 points, else only the last."""
        return list(range(len(self.x))) if len(self.x) <= _MARKED_POINTS else [len(self.x) - 1]


def is_drawable(value: float | None) -> TypeGuard[float]:
    """Return whether a picture can show the value: present, finite, and small enough for a scale."""
    return value is not None and math.isfinite(value) and abs(value) < _MAX_DRAWABLE


def make_curve(points: Iterable[tuple[float | None, float | None]]) -> Curve:
    """Make a curve of the points whose two coordinates can both be drawn."""
    kept = [(x, y) for x, y in points if is_drawable(x) and is_drawable(y)]
    return Curve(tuple(x for x, _ in kept), tuple(y for _, y in kept))


def spans_decades(values: Sequence[float], factor: float = 4.0) -> bool:
    """Return whether a log scale suits these values: all positive, and largest over smallest above `factor`."""
    return min(values) > 0 and max(values) / min(values) > factor


def compute_limits(
    values: Sequence[float], *, log: bool, below: float = 0.07, above: float = 0.07
) -> tuple[float, float]:
    """Compute axis limits around the values.

    Args:
        values: Values to show.
        log: Whether the axis is logarithmic.
        below: Margin below them, as a share of their span.
        above: Margin above them, likewise.
    """
    low, high = min(values), max(values)
    if log:
        low, high = math.log10(low), math.log10(high)
    span = (high - low) or (0.3 if log else max(abs(high) * 0.1, 1e-3))
    low, high = low - below * span, high + above * span
    return (10**low, 10**high) if log else (low, high)


def _choose_log_ticks(low: float, high: float) -> list[float]:
    # 1, 2, 5 in each decade, thinned to five ticks at most.
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for digits in ((1, 2, 5), (1, 3), (1,)):
        ticks = [digit * 10.0**power for power in range(first, last + 1) for digit in digits]
        inside = [tick for tick in ticks if low <= tick <= high]
        if len(inside) <= 5:
            break
    while len(inside) > 5:
        inside = inside[::2]
    return inside if len(inside) > 1 else [low, high] if low < high else [low]


def set_byte_axis(axes: Axes, which: str, low: float, high: float) -> None:
    """Make an axis ("x" or "y") a log axis in bytes."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    (axes.set_xlim if which == "x" else axes.set_ylim)(low, high)
    axis.set_major_locator(FixedLocator(_choose_log_ticks(low, high)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(
        FuncFormatter(lambda value, _: format_bytes(value).replace(".00 ", " ").replace(".0 ", " "))
    )


def set_value_axis(axes: Axes, which: str, kind: str, low: float, high: float, *, log: bool = False) -> None:
    """Make an axis ("x" or "y") one for values of this kind: loss, accuracy, perplexity or epsilon."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    if log:
        (axes.set_xscale if which == "x" else axes.set_yscale)("log")
        axis.set_major_locator(FixedLocator(_choose_log_ticks(low, high)))
    else:
        axis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    (axes.set_xlim if which == "x" else axes.set_ylim)(low, high)
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())

    def format_tick(value: float, _: int | None) -> str:
        if kind == "accuracy":
            return format_metric(kind, value).replace(".0%", "%")
        text = format_number(value, 3)
        return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text

    axis.set_major_formatter(FuncFormatter(format_tick))


def set_round_axis(axes: Axes, last: float, *, first: float = 0) -> None:
    """Make the x axis one of rounds, with integer ticks."""
    margin = max(0.03 * (last - first), 0.12)
    axes.set_xlim(first - margin, last + margin)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1, prune=None))
    axes.set_xlabel("round")


def place_legend_above(axes: Axes, columns: int = 2, *, topmost_first: bool = True) -> None:
    """Put the legend above the plot, where it covers no data."""
    step = -1 if topmost_first else 1
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(
        handles[::step],
        labels[::step],
        loc="lower left",
        bbox_to_anchor=(0, 1.03),
        ncols=columns,
        labelcolor=Ink.TEXT.value,
    )
