"""`fedglm import-base`: a base model from elsewhere, as a folder that `[model] path` names."""

import json
from pathlib import Path
from typing import Annotated

import typer

from fedglm.cli import options


def import_base(
    source: Annotated[
        Path,
        typer.Argument(metavar="FILE_OR_FOLDER", help="A GGUF file, or a folder with config.json and safetensors."),
    ],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to make.")],
    as_json: options.Json = False,
) -> None:
    """Make a GLM of a Llama in a GGUF file or a folder of safetensors.

    [bold]fedglm import-base SmolLM2-135M-Instruct.Q4_1.gguf smollm2[/bold]

    The same function of the same weights, with its tokenizer, in float32.
    Nothing is downloaded, and no pickle read.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from fedglm.autoglm.models.importing.base_model import import_base as import_model
    from fedglm.reports.formats import format_bytes

    columns = (TextColumn("weights"), BarColumn(bar_width=24), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=as_json, transient=True) as bars:
        task = bars.add_task("weights", total=None)
        made = import_model(source, folder, progress=lambda done, total: bars.update(task, completed=done, total=total))
    if as_json:
        figures = {"parameters": made.parameters, "vocab_size": made.vocab_size, "max_length": made.max_length}
        typer.echo(json.dumps({"folder": str(made.folder), **figures, "bytes": made.nbytes}))
        return
    typer.echo(f"{made.folder}: a GLM of {made.parameters:,} parameters in {format_bytes(made.nbytes)}")
    typer.echo(f"  {made.vocab_size:,} tokens, sequences of up to {made.max_length:,}")
    typer.echo(f"  fedglm simulate text --set model.path={made.folder} --set model.adapter=lora")
