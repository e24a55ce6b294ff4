"""Page of a diagnosis: the heat map, what each group is worth, what is redundant, which of the articles' rules hold."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedglm.core.files import write_atomically
from fedglm.reports.formats import format_integer, format_number
from fedglm.reports.html.markup import Column, Html, element, folded, isolated, join, section, table
from fedglm.reports.html.page import header, page
from fedglm.reports.light.diagnosis_record import DiagnosisRecord, read_diagnosis
from fedglm.reports.light.figures import measured
from fedglm.reports.light.heat_map import SCORES, draw_heat_map

_TITLE = "What each part of the model is worth"


def write_diagnosis_page(record: Mapping[str, Any], path: Path) -> None:
    """Write the page of a diagnosis, atomically; the same record gives the same bytes.

    Args:
        record: Values of `--diagnose --json`, with `text` and `model` in words.
        path: Path of the page.

    Raises:
        ReportError: The record is malformed.
        StorageError: The page cannot be written.
    """
    read = read_diagnosis(record)
    above = " · ".join(["Diagnosis", *([read.model] if read.model else [])])
    text = f" Text: {read.text}." if read.text else ""
    summary = f"Loss {format_number(read.loss)} nats on {format_integer(read.sequences)} sequences.{text}"
    parts = [_render_rules(read), _render_map(read), _render_redundancy(read), _render_curves(read)]
    footer = element("footer", element("p", "Written by fedglm. This page asks nothing of the network."))
    write_atomically(path, page(_TITLE, join([header(above, _TITLE, summary), element("main", *parts), footer])))


def _render_rules(record: DiagnosisRecord) -> Html:
    if not record.rules:
        return Html()
    rows = [(rule.rule, "holds" if rule.holds else "does not hold", rule.found) for rule in record.rules]
    columns = [Column(title, figures=False) for title in ("Rule", "Here", "Measured")]
    held = sum(rule.holds for rule in record.rules)
    return section(
        "rules",
        f"{held} of {len(rows)} rules of the articles hold here",
        table("The articles' rules on this model", columns, rows),
    )


def _render_map(record: DiagnosisRecord) -> Html:
    picture = draw_heat_map(record)
    shown = element(
        "figure", element("figcaption", "The stronger the colour, the more sensitive of its kind"), picture or ""
    )
    note = (
        "Removed and quantized: the rise of the loss, in nats, without the group and with it in INT4: what a part is "
        "worth. To the right, what scores say that do not ask the loss: first and second order (Taylor, Fisher), "
        "outgoing weights by their inputs, the Hessian's trace a parameter, mean magnitude, energy of the top tenth of "
        "singular values. A good score is strong where the two on the left are."
    )
    rows = [
        (isolated(row.name), format_integer(row.parameters), measured(row.removal, _signed),
         measured(row.quantization, _signed), *(measured(getattr(row, name), _short) for name in SCORES))
        for row in record.rows if row.kind != "channel"
    ]  # fmt: skip
    titles = ("Parameters", "Removed", "Quantized", *(name.capitalize() for name in SCORES))
    grid = table("Every group", [Column("Group", figures=False), *map(Column, titles)], rows)
    content = [element("p", note, class_="note"), folded("All figures", grid)]
    return section("map", "Layers, groups, measures", *([shown] if picture else []), *content)


def _render_redundancy(record: DiagnosisRecord) -> Html:
    if not record.redundancy:
        return Html()
    rows = [
        (f"{part.layer} {part.kind}", f"{part.redundant} of {part.units}", f"{part.most_similar:.2f}")
        for part in record.redundancy
    ]
    found = sum(part.redundant for part in record.redundancy)
    said = (
        f"Redundant is a head or channel that is as similar as {record.redundancy[0].threshold:g} to one before it in "
        f"its layer (heads by linear CKA, channels by cosine): {found} in all."
    )
    columns = [Column("Layer", figures=False), Column("Redundant"), Column("Most alike")]
    return section(
        "redundancy",
        "Redundant heads and channels",
        element("p", said),
        table("How alike the outputs are", columns, rows, class_="narrow"),
    )


def _render_curves(record: DiagnosisRecord) -> Html:
    if not record.curves:
        return Html()
    orders = list(dict.fromkeys(curve.order for curve in record.curves))
    shares = list(dict.fromkeys(curve.share for curve in record.curves))
    rises = {(curve.order, curve.share): curve.rise for curve in record.curves}
    rows = [(order, *(measured(rises.get((order, share)), _signed) for share in shares)) for order in orders]
    columns = [Column("Order", figures=False), *(Column(f"{share:.0%} removed") for share in shares)]
    return section(
        "orders",
        "What a score is good for",
        table("Rise of the loss without the channels that each puts last", columns, rows, class_="narrow"),
    )


def _signed(value: float) -> str:
    return f"{value:+.3f}"


def _short(value: float) -> str:
    return f"{value:.3f}" if 0.001 <= abs(value) < 1000 else f"{value:.0e}"
