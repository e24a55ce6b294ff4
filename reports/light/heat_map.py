"""The heat map of a diagnosis: the groups of each kind by measure, stronger in colour the more sensitive they are."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from fedglm.reports.formats import pluralize
from fedglm.reports.html.inline_svg import Ink, inline_svg
from fedglm.reports.html.markup import Html, clean
from fedglm.reports.light.diagnosis_record import DiagnosisRecord, GroupRow

MEASURED = ("removal", "quantization")
SCORES = ("taylor", "fisher", "activation", "trace", "l1", "svd")
_COLUMNS = (*MEASURED, *SCORES)
_TITLES = {"quantization": "quantized", "removal": "removed", "activation": "activ."}
_KINDS = ("layer", "ffn", "kv-group")
_PITCH, _GAP = 17.0, 1.2
_LEAST, _MOST = 0.04, 0.8  # opacities: a cell with no rank has no colour at all


def draw_heat_map(record: DiagnosisRecord) -> Html | None:
    """Draw whole layers, their feed-forward parts and their KV groups, by what the loss and the scores say of each.

    Returns:
        The picture; None where no kind has two groups, for one alone has no rank.
    """
    parts = [[row for row in record.rows if row.kind == kind] for kind in _KINDS]
    parts = [rows for rows in parts if len(rows) > 1]
    if not parts:
        return None
    count = sum(map(len, parts))

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        top, marks = 0.0, list[tuple[float, str]]()
        for rows in parts:
            for row in rows:
                _draw_row(axes, row, top)
                marks.append((top + 0.5, " ".join(clean(row.name).split())[:24]))
                top += 1
            top += _GAP
        axes.set_xlim(0, len(_COLUMNS) + 0.25)
        axes.set_ylim(top - _GAP, 0)
        axes.set_yticks([at for at, _ in marks], [name for _, name in marks])
        places = [_place(column) + 0.5 for column in range(len(_COLUMNS))]
        axes.set_xticks(places, [_TITLES.get(name, name) for name in _COLUMNS])
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set_visible(False)

    worst = "; ".join(f"the most sensitive {rows[0].kind} is {_find_worst(rows)}" for rows in parts)
    alternative = (
        f"{pluralize(count, 'group')} by {len(_COLUMNS)} measures, ranked within each kind. By the loss without it: "
        f"{worst}. The table below has all figures."
    )
    return inline_svg(draw, name="heat", size=(560, 40 + _PITCH * (count + _GAP * len(parts))), alternative=alternative)


def _place(column: int) -> float:
    """Return the left end of a column: what the loss says stands apart from what scores say."""
    return column + (0.25 if column >= len(MEASURED) else 0.0)


def _draw_row(axes: Axes, row: GroupRow, top: float) -> None:
    for column, name in enumerate(_COLUMNS):
        rank = row.ranks.get(name)
        if rank is None:
            continue
        left = _place(column)
        ink = Ink.CODED if name in MEASURED else Ink.POOLED
        opacity = _LEAST + (_MOST - _LEAST) * rank
        axes.add_patch(Rectangle((left, top), 0.97, 0.94, facecolor=ink.value, alpha=opacity, linewidth=0))
        value = getattr(row, name)
        if name in MEASURED and value is not None:
            axes.text(left + 0.5, top + 0.52, f"{value:+.3f}", ha="center", va="center", fontsize=8)


def _find_worst(rows: Sequence[GroupRow]) -> str:
    known = [row for row in rows if row.removal is not None]
    return max(known, key=lambda row: row.removal or 0.0).name if known else "not measured"
