"""Page of a light model, `light.html`, beside its release and its record."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedglm.core.files import write_atomically
from fedglm.reports.formats import format_bytes, format_metric, format_number
from fedglm.reports.html.markup import Html, element, join
from fedglm.reports.html.page import header, page
from fedglm.reports.light import sections
from fedglm.reports.light.figures import format_ms, format_rise, format_times, measured
from fedglm.reports.light.record import LightRecord, read_record

_ANCHORS = {
    "frontier": "What was tried",
    "models": "Side by side",
    "files": "On disk",
    "layers": "Layers",
    "provenance": "Where it comes from",
}


def write_light_page(record: Mapping[str, Any], path: Path) -> None:
    """Write the page of a light model, atomically; the same record gives the same bytes.

    Args:
        record: Content of `light.json`.
        path: Path of the page.

    Raises:
        ReportError: The record is malformed.
        StorageError: The page cannot be written.
    """
    read = read_record(record)
    write_atomically(path, page(f"Light model: {_write_headline(read)}", _render_body(read)))


def _render_body(record: LightRecord) -> Html:
    parts = {
        "frontier": sections.render_frontier(record),
        "models": sections.render_table(record),
        "files": sections.render_files(record),
        "layers": sections.render_layers(record),
        "provenance": sections.render_provenance(record),
    }
    links = [element("a", _ANCHORS[name], href=f"#{name}") for name, content in parts.items() if content]
    known = [record.name, None if record.seed is None else f"seed {record.seed}"]
    above = " · ".join(["Light model", *(text for text in known if text)])
    version = record.versions.get("fedglm")
    written = f"Written by fedglm{f' {version}' if version else ''} from light.json."
    return join([
        header(above, _write_headline(record), _write_summary(record)),
        element("main", _render_tiles(record), sections.render_verdict(record),
                element("nav", *links, aria_label="Sections of this page"), *parts.values()),
        element("footer", element("p", f"{written} This page asks nothing of the network.")),
    ])  # fmt: skip


def _write_headline(record: LightRecord) -> str:
    if not record.met:
        return "No light model within the goals"
    size = measured(record.size_ratio, lambda ratio: f"{format_times(ratio).removesuffix('x')} times smaller")
    return f"{size}, loss {measured(record.loss_rise, format_rise)}"


def _write_summary(record: LightRecord) -> str:
    reference = format_bytes(record.reference_bytes)
    if not record.met:
        return f"The dense model takes {reference} in float32. The goals were: {record.goals}."
    loss, control = (measured(value, format_number) for value in (record.loss, record.control_loss))
    return (
        f"The whole release takes {measured(record.bytes, format_bytes)}, every file counted; the dense model takes "
        f"{reference} in float32. On unseen text its loss is {loss}, that of a dense model trained as long {control}. "
        f"The goals were: {record.goals}."
    )


def _render_tiles(record: LightRecord) -> Html:
    """Render the main figures as tiles; nothing where nothing was released."""
    if not record.met:
        return Html()
    row = next((row for row in reversed(record.rows) if row.bytes is not None and row.bytes == record.bytes), None)
    metric, time, peak, bits = (
        (None, None, None, None)
        if row is None
        else (row.metric_value, row.decode_ms, row.peak_bytes, row.bits_per_weight)
    )
    tiles = [
        ("Size", measured(record.size_ratio, format_times), f"smaller: {measured(record.bytes, format_bytes)}", "lead"),
        ("Loss", measured(record.loss_rise, format_rise), f"at most {format_rise(record.tolerance)} allowed", "lead"),
        (record.metric.capitalize(), measured(metric, lambda value: format_metric(record.metric, value)), "unseen text",
         None),
        ("Time", measured(time, format_ms), f"a token, or a row; {record.times.partition(',')[0]}", None),
        ("Peak memory", measured(peak, format_bytes), "of a process that uses it", None),
        ("Bits a weight", measured(bits, lambda each: f"{each:.2f}"), "all files counted", None),
    ]  # fmt: skip
    return element(
        "dl",
        *(
            element("div", element("dt", term), element("dd", value), element("dd", note, class_="note"), class_=kind)
            for term, value, note, kind in tiles
        ),
        class_="keys",
    )
