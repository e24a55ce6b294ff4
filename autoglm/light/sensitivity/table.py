"""A diagnosis as text, within 80 columns."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from fedglm.autoglm.light.sensitivity.diagnosis import SCORES, Diagnosis
from fedglm.autoglm.light.sensitivity.rules import RankCorrelation, correlate, judge_rules

WIDTH = 80
_CAPTION = (
    "removed, quantized: rise of the loss (nats) without the group, and with it quantized. taylor, fisher: the rise "
    "that first and second order predict. act: outgoing norm weighted by activations. trace: the Hessian's, a "
    "parameter. l1: mean |w|. svd: energy of the top 10 % of singular values."
)


def format_diagnosis(diagnosis: Diagnosis, *, width: int = WIDTH) -> str:
    """Format a diagnosis: a row a group, rank correlations, removal in the order of each score, redundancy, verdicts.

    Single channels have no row of their own; they count in the correlations.
    """
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False)
    console.print(f"Loss {diagnosis.loss:.4f} nats on {diagnosis.sequences} sequences")
    for table in (_groups(diagnosis), _correlations(correlate(diagnosis)), _curves(diagnosis), _redundancy(diagnosis)):
        if table.row_count:
            console.print(table)
    verdicts = _table("The articles' rules", ["rule", "holds", "found"], left=3)
    for verdict in judge_rules(diagnosis):
        verdicts.add_row(verdict.rule, "yes" if verdict.holds else "no", verdict.found)
    console.print(verdicts)
    written = console.file
    assert isinstance(written, io.StringIO)  # noqa: S101 - made above; narrows the type
    return "\n".join(line.rstrip() for line in written.getvalue().splitlines()) + "\n"


def _table(title: str, columns: Sequence[str], *, left: int = 1) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number < left else "right", no_wrap=left == 1)
    return table


def _groups(diagnosis: Diagnosis) -> Table:
    names = ("group", "k params", "removed", "quantized", "taylor", "fisher", "act", "trace", "l1", "svd")
    table = _table("Groups", names)
    table.caption, table.caption_justify = _CAPTION, "left"
    for row in diagnosis.rows:
        if row.kind != "channel":
            rises = (_signed(row.removal), _signed(row.quantization))
            scores = (_short(row.taylor), _short(row.fisher), _short(row.activation), _short(row.trace))
            svd = "-" if row.svd is None else f"{row.svd:.0%}"
            table.add_row(row.name, f"{row.parameters / 1000:.1f}", *rises, *scores, f"{row.l1:.4f}", svd)
    return table


def _correlations(found: Sequence[RankCorrelation]) -> Table:
    columns = [*SCORES, "hawq"]
    table = _table("Rank correlation of each score with the rise of the loss", ["groups", "", "n", *columns])
    for kind, change in dict.fromkeys((one.kind, one.change) for one in found):
        rhos = {one.score: one.rho for one in found if (one.kind, one.change) == (kind, change)}
        count = next(one.groups for one in found if (one.kind, one.change) == (kind, change))
        cells = [f"{rhos[name]:+.2f}" if name in rhos and math.isfinite(rhos[name]) else "-" for name in columns]
        table.add_row(kind, change, str(count), *cells)
    return table


def _curves(diagnosis: Diagnosis) -> Table:
    orders = list(dict.fromkeys(curve.order for curve in diagnosis.curves))
    table = _table("Rise of the loss without the channels that each score puts last", ["removed", *orders])
    for share in dict.fromkeys(curve.share for curve in diagnosis.curves):
        rises = {curve.order: curve.rise for curve in diagnosis.curves if curve.share == share}
        table.add_row(f"{share:.0%}", *(_signed(rises[order]) for order in orders))
    return table


def _redundancy(diagnosis: Diagnosis) -> Table:
    table = _table("Redundant heads and channels", ["layer", "heads", "most alike", "channels", "most alike"])
    for layer in dict.fromkeys(part.layer for part in diagnosis.redundancy):
        parts = {part.kind: part for part in diagnosis.redundancy if part.layer == layer}
        heads, channels = parts["heads"], parts["channels"]
        table.add_row(
            str(layer),
            f"{heads.redundant} of {heads.units}",
            f"{heads.most_similar:.2f}",
            f"{channels.redundant} of {channels.units}",
            f"{channels.most_similar:.2f}",
        )
    return table


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.3f}" if abs(value) < 100 else f"{value:+.0f}"


def _short(value: float) -> str:
    return f"{value:.3f}" if 0.001 <= abs(value) < 1000 else f"{value:.0e}"
