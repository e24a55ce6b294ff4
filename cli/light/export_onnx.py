"""`fedglm export-onnx`: a model for other engines, as one file of standard ONNX."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedglm.cli import options
from fedglm.cli.keys import parse_key
from fedglm.cli.models import Keys, ModelPath

if TYPE_CHECKING:
    from fedglm.autoglm.light.graph.formats import GraphFormat


def export_onnx(
    model: ModelPath,
    file: Annotated[Path, typer.Argument(metavar="FILE.onnx", help="The file to write.")],
    form: Annotated[
        str | None,
        typer.Option("--format", metavar="fp32|int8|int4", help="Of the weights; the narrowest there is without it."),
    ] = None,
    key: Keys = None,
    as_json: options.Json = False,
) -> None:
    """Write a model as one file of standard ONNX, for TensorRT, OpenVINO and others.

    [bold]fedglm export-onnx RELEASE model.onnx[/bold]

    The weights are in it; quantized ones are integers behind a DequantizeLinear
    (Q/DQ). Its metadata describe the inputs. fedglm itself needs no such file.
    """
    from fedglm.autoglm.light.export import export_onnx as export
    from fedglm.inference.release.trust import Trust
    from fedglm.reports.formats import format_bytes

    trust = Trust.in_keys([parse_key(each) for each in key]) if key else None
    made = export(model, file, form=_parse_format(form), trust=trust)
    if as_json:
        typer.echo(json.dumps(asdict(made) | {"file": str(made.file)}))
        return
    weights = "integers behind DequantizeLinear (Q/DQ)" if made.quantized else "float32"
    typer.echo(f"{made.file}: {format_bytes(made.bytes)}, {made.format}: {weights}; onnx.checker has passed it")
    if made.provenance is not None:
        typer.echo(f"  the release is {made.provenance}")
    typer.echo("  OpenVINO 2026.4 reads such files; TensorRT was not run: docs/lightweight.md")


def _parse_format(text: str | None) -> "GraphFormat | None":
    match text:
        case None | "fp32" | "int8" | "int4":
            return text
    raise typer.BadParameter(f"--format {text}: there are fp32, int8, int4")
