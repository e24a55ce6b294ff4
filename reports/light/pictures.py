"""Pictures of a light model: the frontier, the bytes by file, the cosine of each layer. None where there is nothing."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fedglm.reports.formats import format_bytes, pluralize
from fedglm.reports.html.axes import DASH_DOT, DASHED, compute_limits, place_legend_above
from fedglm.reports.html.inline_svg import Ink, inline_svg
from fedglm.reports.html.markup import Html, clean
from fedglm.reports.light.figures import format_rise, format_times
from fedglm.reports.light.record import LightRecord, Point

_NAMED_LAYERS = 40
_NAME_LENGTH = 34


def _shorten(name: str) -> str:
    shown = " ".join(clean(name).split())
    return shown if len(shown) <= _NAME_LENGTH else "…" + shown[1 - _NAME_LENGTH :]


def _name_layer(name: str) -> str:
    """Return what tells a tensor from the others: layers.0.mlp.down_proj."""
    return name.removeprefix("model.").removesuffix(".weight")


def draw_frontier(record: LightRecord) -> Html | None:
    """Draw loss rise against size ratio: the frontier, what was released, the goal and the tolerance."""
    points = sorted(record.frontier, key=lambda point: point.size_ratio)
    chosen = record.loss_rise if record.met else None
    ratio = record.size_ratio if chosen is not None else None
    if not points and ratio is None:
        return None
    ratios = [*(point.size_ratio for point in points), *([ratio] if ratio else []), 1.0]
    ratios += [record.goal_ratio] if record.goal_ratio else []
    rises = [*(point.loss_rise for point in points), record.tolerance, 0.0, *([chosen] if chosen is not None else [])]

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.axhline(record.tolerance, color=Ink.ALONE.value, linestyle=DASHED, linewidth=1.4, label="tolerance")
        if record.goal_ratio is not None:
            axes.axvline(record.goal_ratio, color=Ink.POOLED.value, linestyle=DASH_DOT, linewidth=1.4, label="goal")
        _plot_points(axes, points)
        if ratio is not None and chosen is not None:
            axes.plot(
                [ratio], [chosen], linestyle="none", marker="*", markersize=12, color=Ink.CODED.value, label="released"
            )
        axes.set_xlim(*compute_limits(ratios, log=False))
        axes.set_ylim(*compute_limits(rises, log=False, above=0.12))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:+.4g}%".replace("+0%", "0%")))
        axes.set_xlabel("times smaller than the dense model")
        axes.set_ylabel("loss above the control's")
        place_legend_above(axes, columns=2, topmost_first=False)

    where = f"; released: {format_times(ratio)} at {format_rise(chosen)}" if ratio and chosen is not None else ""
    goal = f", goal {format_times(record.goal_ratio)}" if record.goal_ratio else ""
    ends = ", ".join(f"{format_times(point.size_ratio)} at {format_rise(point.loss_rise)}" for point in points[:12])
    alternative = f"Loss rise by size ratio, tolerance {format_rise(record.tolerance)}{goal}: {ends or 'none'}{where}."
    return inline_svg(draw, name="frontier", size=(380, 270), alternative=alternative)


def _plot_points(axes: Axes, points: Sequence[Point]) -> None:
    x, y = [point.size_ratio for point in points], [point.loss_rise for point in points]
    axes.plot(x, y, color=Ink.MUTED.value, linewidth=1.0)
    for in_full, fill, label in ((True, Ink.MUTED, "trained in full"), (False, Ink.PAPER, "tried briefly")):
        kept = [point for point in points if point.in_full == in_full]
        if kept:
            axes.plot(
                [point.size_ratio for point in kept],
                [point.loss_rise for point in kept],
                linestyle="none",
                marker="o",
                markersize=5,
                markeredgecolor=Ink.MUTED.value,
                markerfacecolor=fill.value,
                label=label,
            )


def draw_files(record: LightRecord) -> Html | None:
    """Draw the bytes of each file of the release as bars, the largest first."""
    files = sorted(record.files.items(), key=lambda item: -item[1])
    if not files:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        rows = range(len(files))
        axes.barh(rows, [size for _, size in files], height=0.62, color=Ink.CODED.value)
        for row, (_, size) in zip(rows, files, strict=True):
            axes.annotate(
                format_bytes(size), (size, row), (5, 0), textcoords="offset points", va="center", fontsize=9.5
            )
        axes.set_yticks(list(rows), [_shorten(name) for name, _ in files])
        axes.set_ylim(len(files) - 0.4, -0.6)
        axes.set_xlim(0, 1.18 * max(1, files[0][1]))
        axes.xaxis.set_visible(False)
        axes.grid(visible=False)
        axes.spines["bottom"].set_visible(False)

    parts = ", ".join(f"{_shorten(name)} {format_bytes(size)}" for name, size in files)
    alternative = f"Bytes of the release, {pluralize(len(files), 'file')}: {parts}."
    return inline_svg(draw, name="files", size=(350, 40 + 22 * len(files)), alternative=alternative)


def draw_layers(record: LightRecord) -> Html | None:
    """Draw the cosine of each layer's outputs with the reference's, a dot a layer; repaired ones are diamonds."""
    layers = [(layer, layer.cosine) for layer in record.layers if layer.cosine is not None]
    if not layers:
        return None
    named = len(layers) <= _NAMED_LAYERS
    pitch = 17.0 if named else max(3.0, 520 / len(layers))
    cosines = [cosine for _, cosine in layers]
    low = min(cosines)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        rows = range(len(layers))
        axes.hlines(rows, cosines, 1.0, color=Ink.BAND.value, linewidth=2.2 if named else 1.0)
        for repaired, marker, ink, label in (
            (False, "o", Ink.CODED, "as planned"),
            (True, "D", Ink.ALONE, "repaired"),
        ):
            kept = [row for row in rows if bool(layers[row][0].repair) == repaired]
            if kept:
                axes.plot(
                    [cosines[row] for row in kept], kept, linestyle="none", marker=marker, color=ink.value,
                    markersize=5 if named else 3, label=label,
                )  # fmt: skip
        axes.set_xlim(low - 0.07 * ((1 - low) or 0.01), 1 + 0.03 * ((1 - low) or 0.01))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))
        axes.set_ylim(len(layers) - 0.4, -0.6)
        marks = list(rows) if named else sorted({0, len(layers) // 2, len(layers) - 1})
        axes.set_yticks(marks, [_shorten(_name_layer(layers[mark][0].name)) for mark in marks])
        axes.grid(axis="x")
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("cosine of the outputs with the reference's")
        place_legend_above(axes, topmost_first=False)

    alternative = (
        f"Cosine of each layer's outputs with the reference's, {pluralize(len(layers), 'layer')}: from {low:.6g} "
        f"to {max(cosines):.6g}. The table below it gives each layer's figures."
    )
    return inline_svg(draw, name="layers", size=(520, 80 + pitch * len(layers)), alternative=alternative)
