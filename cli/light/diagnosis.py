"""`fedglm lighten --diagnose`: what each part of a model is worth, as tables, as JSON, as a page or as a picture."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from fedglm.autoglm.light.search.pipeline import Source

_PICTURES = (".png", ".svg", ".pdf")


def check_out(out: Path | None) -> None:
    """Check the name of the file that a diagnosis is written to, before the work.

    Raises:
        LightenError: It is of no kind that can be written.
    """
    from fedglm.autoglm.light.plan.errors import LightenError

    if out is not None and out.suffix.lower() not in (".html", *_PICTURES):
        raise LightenError(f"{out}: a diagnosis is written as a page (.html) or its heat map alone (.png, .svg, .pdf)")


def run_diagnosis(
    source: "Source", name: str, out: Path | None, show: Callable[[str, float], None], *, as_json: bool
) -> None:
    """Diagnose a model, print what was found, and write it to a file where one is named.

    Args:
        source: The model and its text.
        name: The model's name.
        out: A page or a picture, by its suffix; None writes none.
        show: Shows the progress.
        as_json: Print JSON instead of tables.
    """
    from fedglm.autoglm.light.quantization.post_training import quantize
    from fedglm.autoglm.light.quantization.scheme import Scheme
    from fedglm.autoglm.light.sensitivity.diagnosis import diagnose
    from fedglm.autoglm.light.sensitivity.heat_map import save_heat_map
    from fedglm.autoglm.light.sensitivity.record import describe_diagnosis
    from fedglm.autoglm.light.sensitivity.table import format_diagnosis
    from fedglm.reports.light.diagnosis import write_diagnosis_page

    found = diagnose(
        source.model,
        source.task,
        source.text.held_out,
        quantize=lambda weight: quantize(weight, Scheme(codes="int4", block=32)),
        progress=lambda share: show("diagnose", share),
    )
    record = describe_diagnosis(found) | {"text": source.text.origin, "model": name}
    if out is not None and out.suffix.lower() == ".html":
        write_diagnosis_page(record, out)
    elif out is not None:
        save_heat_map(found, out)
    typer.echo(json.dumps(record, indent=1) if as_json else format_diagnosis(found), nl=as_json)
    if out is not None and not as_json:
        typer.echo(f"written: {out}")
