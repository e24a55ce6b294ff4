"""What a value costs and how much of an update arrives for the bytes: the picture of `docs/compression.md`.

    python benchmarks/codecs.py --json > rows.json
    python benchmarks/picture.py rows.json docs/codecs.svg docs/codecs.png

Left the bits of a message for each value that it names, at 1 %; right the share of the energy that arrives. Ours are
drawn filled, peers hollow; every line has its name beside it, so nothing hangs on the colours, which are Okabe's and
Ito's.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

Rows = dict[str, dict[str, Any]]
"""By the codec's name in the table."""

BLUE, GREEN, RED, ORANGE, GREY = "#0072b2", "#009e73", "#d55e00", "#b07d00", "#555555"
PERCENT = (0.1, 1, 5)
COSTS = {
    "topk-sign 1 %": ("topk-sign", BLUE),
    "topk-sign 1 %, coder fast": ("topk-sign, fast coder", BLUE),
    "topk-2bit 1 %": ("topk-2bit", BLUE),
    "NNCodec: 1 %": ("NNCodec 2.1.3", GREY),
    "SparseLoCo, buckets + 2 bits: 1 %": ("SparseLoCo, later code", GREY),
    "topk-int8 1 %": ("topk-int8", BLUE),
    "SparseLoCo, 12 + 8 bits: 1 %": ("SparseLoCo, as published", GREY),
    "topk-fp16 1 %": ("topk-fp16", BLUE),
    "torch.topk, int32 + FP16: 1 %": ("torch.topk, int32 + FP16", GREY),
}
"""Lines of the left picture: what they are called there, and their colour."""


def of_update(lines: Iterable[str], word: str) -> Rows:
    """The rows of the update whose name holds a word."""
    rows = [json.loads(line) for line in lines]
    return {row["codec"]: row for row in rows if word in row["update"]}


def draw_costs(axes: Axes, real: Rows, normal: Rows) -> None:
    """Bits of the message for each value."""
    for at, (codec, (_, color)) in enumerate(COSTS.items()):
        ours = color != GREY
        for rows, marker in ((normal, "s"), (real, "o")):
            bits = rows[codec]["bits"]
            axes.plot(bits, at, marker, color=color, markersize=7, markerfacecolor=color if ours else "white")
        bits = [rows[codec]["bits"] for rows in (real, normal)]
        axes.plot(bits, [at, at], color=color, linewidth=0.8, zorder=0)
        axes.text(max(bits) * 1.06, at, f"{bits[0]:.2f}", va="center", color=color, fontsize=8.5)
    axes.set_yticks(range(len(COSTS)), [name for name, _ in COSTS.values()])
    for label, (_, color) in zip(axes.get_yticklabels(), COSTS.values(), strict=True):
        label.set_color(color)
    bound = normal["topk-sign 1 %"]["bound"]
    axes.axvline(bound, color="black", linewidth=0.8, linestyle=(0, (2, 2)), zorder=0)
    axes.text(bound * 1.03, -0.75, "sign + Shannon's bound", fontsize=8, va="center")
    axes.set_ylim(len(COSTS) - 0.5, -1.1)
    axes.set_xscale("log")
    axes.set_xlim(6.8, 66)
    axes.set_xticks([8, 12, 16, 24, 32, 48], ["8", "12", "16", "24", "32", "48"])
    axes.xaxis.minorticks_off()
    axes.set_xlabel("bits of the message for each value sent")
    axes.set_title("What a value costs, at 1 %", loc="left", fontsize=10.5, fontweight="bold")
    marks = [Line2D([], [], color="black", linestyle="", marker=marker) for marker in "os"]
    words = ["real updates (number given)", "a normal update"]
    axes.legend(marks, words, loc="upper right", fontsize=8, frameon=False, bbox_to_anchor=(1, 0.93))


def draw_energy(axes: Axes, rows: Rows) -> None:
    """Energy that arrives by bytes."""

    def curve(codecs: list[str], name: str, color: str, style: str, place: tuple[float, float], at: int = -1) -> None:
        x, y = zip(*((100 * rows[codec]["share"], 100 * rows[codec]["energy"]) for codec in codecs), strict=True)
        ours = color != GREY
        axes.plot(x, y, style, color=color, linewidth=1.8 if ours else 1.1, markersize=6)
        axes.lines[-1].set_markerfacecolor(color if ours else "white")
        axes.annotate(
            name, (x[at], y[at]), place, textcoords="offset points", color=color, fontsize=8.5, va="center", ha="left"
        )

    curve([f"lowrank rank {rank}" for rank in (1, 2, 4, 8)], "lowrank\nrank 1, 2, 4, 8", GREEN, "-D", (-46, 30), 1)
    curve([f"hybrid rank 4, {p:g} %" for p in PERCENT], "hybrid, rank 4", RED, "-^", (6, 5))
    curve([f"topk-sign {p:g} %" for p in PERCENT], "topk-sign\n0.1, 1, 5 %", BLUE, "-o", (-62, 4), 1)
    curve([f"NNCodec: {p:g} %" for p in PERCENT], "NNCodec", GREY, ":v", (-30, -14), 0)
    curve(
        [f"SparseLoCo, buckets + 2 bits: {p:g} %" for p in PERCENT],
        "SparseLoCo, later code",
        GREY,
        "--s",
        (16, -4),
        0,
    )
    curve([f"topk-fp16 {p:g} %" for p in PERCENT], "topk-fp16", ORANGE, "-P", (-5, 13), 2)
    curve([f"torch.topk, int32 + FP16: {p:g} %" for p in PERCENT], "torch.topk,\nint32 + FP16", GREY, "-.X", (9, -4), 1)
    curve(["int8", "dense-fp16", "dense-fp32"], "int8, FP16, FP32", BLUE, "o", (-28, 11), 0)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(0.013, 200)
    axes.set_ylim(0.4, 190)
    axes.set_xticks([0.1, 1, 10, 100], ["0.1 %", "1 %", "10 %", "100 %"])
    axes.set_yticks([1, 10, 100], ["1 %", "10 %", "100 %"])
    axes.set_xlabel("bytes, as a share of float32")
    axes.set_title("Energy of a real update that arrives", loc="left", fontsize=10.5, fontweight="bold")


def draw(real: Rows, normal: Rows) -> Figure:
    """The two pictures side by side."""
    figure = Figure(figsize=(11, 4.7), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    draw_costs(left, real, normal)
    draw_energy(right, real)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e4e4e4", linewidth=0.6)
        axes.set_axisbelow(True)
    return figure


def main() -> None:
    """Write the picture to each file that is named."""
    parser = argparse.ArgumentParser(description="The picture of docs/compression.md, from `codecs.py --json`.")
    parser.add_argument("rows", type=Path)
    parser.add_argument("pictures", type=Path, nargs="+")
    given = parser.parse_args()
    lines = given.rows.read_text().splitlines()
    real, normal = of_update(lines, "real updates"), of_update(lines, "normal update")
    mpl.rcParams.update({"svg.hashsalt": "codecs", "svg.fonttype": "path", "font.size": 9.5})
    for path in given.pictures:
        metadata = {"Date": None} if path.suffix == ".svg" else {}
        draw(real, normal).savefig(path, dpi=110, metadata=metadata)


if __name__ == "__main__":
    main()
