"""What the pictures share: limits with room for notes, readable ticks, a legend above the plot."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from fedglm.reports.formats import byte_count, metric_value, significant
from fedglm.reports.html.inline_svg import Ink

DASHED = (0, (4, 2.2))
DOTTED = (0, (1.2, 1.8))
DASH_DOT = (0, (5, 2, 1.2, 2))
_MARKED_POINTS = 40
_GREATEST = 1e30


@dataclass(frozen=True)
class Curve:
    """Finite points, ascending in x."""

    x: tuple[float, ...]
    y: tuple[float, ...]

    @property
    def marked(self) -> list[int]:
        """The points that get a marker: all while they are few, else the last alone."""
        return list(range(len(self.x))) if len(self.x) <= _MARKED_POINTS else [len(self.x) - 1]


def drawable(value: float | None) -> TypeGuard[float]:
    """Whether a picture can show the value: there, finite, and not so great that a scale would overflow."""
    return value is not None and math.isfinite(value) and abs(value) < _GREATEST


def curve(points: Iterable[tuple[float | None, float | None]]) -> Curve:
    """The points of which both figures can be drawn."""
    kept = [(x, y) for x, y in points if drawable(x) and drawable(y)]
    return Curve(tuple(x for x, _ in kept), tuple(y for _, y in kept))


def spans_decades(values: Sequence[float], factor: float = 4.0) -> bool:
    """Whether a log scale shows these values better."""
    return min(values) > 0 and max(values) / min(values) > factor


def limits(values: Sequence[float], *, log: bool, below: float = 0.07, above: float = 0.07) -> tuple[float, float]:
    """Limits around the values, with room below and above as shares of their span."""
    low, high = min(values), max(values)
    if log:
        low, high = math.log10(low), math.log10(high)
    span = (high - low) or (0.3 if log else max(abs(high) * 0.1, 1e-3))
    low, high = low - below * span, high + above * span
    return (10**low, 10**high) if log else (low, high)


def _steps(low: float, high: float) -> list[float]:
    # 1, 2, 5 in each decade, thinned to what fits.
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for digits in ((1, 2, 5), (1, 3), (1,)):
        ticks = [digit * 10.0**power for power in range(first, last + 1) for digit in digits]
        inside = [tick for tick in ticks if low <= tick <= high]
        if len(inside) <= 5:
            break
    while len(inside) > 5:
        inside = inside[::2]
    return inside if len(inside) > 1 else [low, high] if low < high else [low]


def byte_axis(axes: Axes, which: str, low: float, high: float) -> None:
    """A log axis in bytes ("x" or "y")."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    (axes.set_xlim if which == "x" else axes.set_ylim)(low, high)
    axis.set_major_locator(FixedLocator(_steps(low, high)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: byte_count(value).replace(".00 ", " ").replace(".0 ", " ")))


def value_axis(axes: Axes, which: str, kind: str, low: float, high: float, *, log: bool = False) -> None:
    """An axis for a loss, an accuracy, a perplexity or a privacy loss ("x" or "y")."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    if log:
        (axes.set_xscale if which == "x" else axes.set_yscale)("log")
        axis.set_major_locator(FixedLocator(_steps(low, high)))
    else:
        axis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    (axes.set_xlim if which == "x" else axes.set_ylim)(low, high)
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())

    def written(value: float, _: int | None) -> str:
        if kind == "accuracy":
            return metric_value(kind, value).replace(".0%", "%")
        text = significant(value, 3)
        return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text

    axis.set_major_formatter(FuncFormatter(written))


def round_axis(axes: Axes, last: float, *, first: float = 0) -> None:
    """The x axis in rounds, whole numbers."""
    pad = max(0.03 * (last - first), 0.12)
    axes.set_xlim(first - pad, last + pad)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1, prune=None))
    axes.set_xlabel("round")


def legend_above(axes: Axes, columns: int = 2, *, topmost_first: bool = True) -> None:
    """The legend in lines of its own above the plot, where it hides nothing."""
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
