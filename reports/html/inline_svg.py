"""Matplotlib figures as inline SVG: coloured by the page's CSS, the same bytes for the same data.

Figures are drawn in the colours of `Ink`, which are placeholders: each is replaced by a CSS variable, so that a picture
follows the page's light, dark and printed colours. Text stays text, in the page's font.
"""

import re
import warnings
from collections.abc import Callable
from enum import StrEnum
from io import StringIO
from typing import Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure

from fedglm.reports.html.markup import Html, element

_UNITS_PER_INCH = 72


class Ink(StrEnum):
    """Placeholder colours by role. `report.css` defines each (`--ink-…`) for every colour scheme."""

    TEXT = "#0a0001"
    MUTED = "#0a0002"
    RULE = "#0a0003"
    CODED = "#0a0004"
    DENSE = "#0a0005"
    ALONE = "#0a0006"
    POOLED = "#0a0007"
    PAPER = "#0a0008"
    BAND = "#0a0009"
    SERIES_1 = "#0a0011"
    SERIES_2 = "#0a0012"
    SERIES_3 = "#0a0013"
    SERIES_4 = "#0a0014"
    SERIES_5 = "#0a0015"
    SERIES_6 = "#0a0016"
    SERIES_7 = "#0a0017"
    SERIES_8 = "#0a0018"


_VARIABLES: Final = {ink.value: f"var(--ink-{ink.name.lower().replace('_', '-')})" for ink in Ink}

_STYLE: Final[dict[Any, Any]] = {
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same layout on every machine
    "font.size": 10,
    "text.parse_math": False,  # a site may be called "$x$"
    "text.color": Ink.TEXT.value,
    "svg.fonttype": "none",
    "svg.hashsalt": "fedglm",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": Ink.RULE.value,
    "axes.labelcolor": Ink.MUTED.value,
    "axes.labelsize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": Ink.RULE.value,
    "grid.linewidth": 0.7,
    "xtick.color": Ink.RULE.value,
    "xtick.labelcolor": Ink.MUTED.value,
    "xtick.labelsize": 9.5,
    "ytick.color": Ink.RULE.value,
    "ytick.labelcolor": Ink.MUTED.value,
    "ytick.labelsize": 9.5,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "legend.handlelength": 2.2,
    "legend.borderaxespad": 0,
    "legend.borderpad": 0,
    "legend.columnspacing": 1.4,
}


def inline_svg(draw: Callable[[Figure], None], *, name: str, size: tuple[float, float], alternative: str) -> Html:
    """Draw a figure and return it as an `<svg role="img">` without a size, so that it fills the available width.

    Args:
        draw: Draws into an empty figure, in the colours of `Ink`.
        name: Name unique on the page; prefixes every id inside the picture.
        size: Width and height in SVG units; text is 10 units high.
        alternative: Text alternative for readers who do not see the picture.
    """
    target = StringIO()
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # The page's font draws the text: whether the layout font knows a site's letters does not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(size[0] / _UNITS_PER_INCH, size[1] / _UNITS_PER_INCH), layout="constrained")
        draw(figure)
        figure.savefig(target, format="svg", metadata={"Date": None})
    return _make_inline(target.getvalue(), name, alternative)


def _make_inline(document: str, name: str, alternative: str) -> Html:
    opening, body = document[document.index("<svg") :].split(">", 1)
    view_box = re.search(r'viewBox="([^"]*)"', opening)
    body = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", body, flags=re.DOTALL)
    referenced = {link or url for link, url in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', body)}

    def rewrite_tag(match: re.Match[str]) -> str:
        tag = match[0].replace("xlink:href=", "href=")
        tag = re.sub(r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in referenced else "", tag)
        tag = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", tag)
        tag = re.sub(r"font-family:[^;\"]*;?\s*", "", tag)
        tag = re.sub(r"#0a00[0-9a-f]{2}", lambda colour: _VARIABLES.get(colour[0], colour[0]), tag)
        return re.sub(r"(\.\d\d)\d+", r"\1", tag)  # a hundredth of a unit is finer than any screen

    body = re.sub(r"<[^>]+>", rewrite_tag, body)  # only inside tags: text that looks like an attribute stays as it is
    body = re.sub(r"\n\s*", "\n", body).removesuffix("\n")
    start = element("svg", viewBox=view_box[1] if view_box else None, role="img", aria_label=alternative)
    return Html(start.removesuffix("</svg>") + body)
