"""A diagnosis as a picture: groups by scores, each column ranked, so that agreement is seen as alike columns."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.stats import rankdata  # type: ignore[import-untyped]

from fedglm.autoglm.light.sensitivity.diagnosis import SCORES, Diagnosis, GroupSensitivity
from fedglm.core.files import replaced_file

COLUMNS = ("removal", "quantization", *SCORES)
_MEASURED = 2
"""Columns that the loss itself fills; their values are written in nats."""
_KINDS = ("embedding", "layer", "ffn", "kv-group")


def rank_columns(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the rank of each value in its column as a share, 0 for the least and 1 for the greatest, NaN kept.

    Args:
        values: (rows, columns), float64, NaN where nothing was measured.
    """
    ranks = np.full(values.shape, np.nan)
    for column in range(values.shape[1]):
        known = ~np.isnan(values[:, column])
        if known.any():
            ranks[known, column] = (rankdata(values[known, column]) - 1) / max(1, int(known.sum()) - 1)
    return ranks


def draw_heat_map(diagnosis: Diagnosis) -> Figure:
    """Draw the groups of each kind in the model's order: rises of the loss and scores, ranked within the kind."""
    parts = [[row for row in diagnosis.rows if row.kind == kind] for kind in _KINDS]
    parts = [rows for rows in parts if len(rows) > 1]  # a single group, such as the embedding, has no rank
    heights = [len(rows) for rows in parts]
    with mpl.rc_context({"font.family": "DejaVu Sans", "font.size": 8.5, "svg.hashsalt": "fedglm"}):
        figure = Figure(figsize=(7.2, 1.2 + 0.21 * sum(heights) + 0.35 * len(parts)), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(len(parts), 1, height_ratios=heights, squeeze=False)[:, 0]
        for axes, rows in zip(panels, parts, strict=True):
            values = np.array([[value_of(row, name) for name in COLUMNS] for row in rows], dtype=np.float64)
            ranks = rank_columns(values)
            axes.imshow(ranks, cmap="cividis", aspect="auto", vmin=0, vmax=1)
            for row, column in np.argwhere(~np.isnan(values[:, :_MEASURED])):
                ink = "black" if ranks[row, column] > 0.6 else "white"
                axes.text(column, row, f"{values[row, column]:+.3f}", ha="center", va="center", color=ink, fontsize=7)
            axes.set_yticks(range(len(rows)), [row.name for row in rows])
            axes.set_xticks(range(len(COLUMNS)), COLUMNS if rows is parts[0] else [""] * len(COLUMNS))
            axes.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
            axes.axvline(_MEASURED - 0.5, color="white", linewidth=3)
            for spine in axes.spines.values():
                spine.set_visible(False)
        figure.suptitle("What the loss says, and what scores say: least (dark) to most sensitive", fontsize=9.5)
    return figure


def value_of(row: GroupSensitivity, name: str) -> float:
    """Return what a column of the picture has of a group; NaN where it was not measured."""
    value: float | None = getattr(row, name)
    return math.nan if value is None else value


def save_heat_map(diagnosis: Diagnosis, path: str | Path) -> None:
    """Write the picture to a file, PNG, SVG or PDF by its name.

    Raises:
        StorageError: The file cannot be written.
    """
    figure, kind = draw_heat_map(diagnosis), Path(path).suffix.lower().removeprefix(".")
    with (
        mpl.rc_context({"font.family": "DejaVu Sans", "svg.fonttype": "none", "svg.hashsalt": "fedglm"}),
        replaced_file(Path(path)) as file,
    ):
        figure.savefig(file, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
