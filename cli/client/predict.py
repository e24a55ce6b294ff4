"""`fedglm client predict`: classify the rows of a file by the light release that the server sent, or by the model."""

from pathlib import Path
from typing import Annotated

import typer

from fedglm.cli import options
from fedglm.cli import predict as command


def predict(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Rows: JSONL, CSV or TSV, also .gz; - reads standard input.")
    ],
    folder: Annotated[Path, typer.Option("--site", "-C", help="Folder of the site.")] = Path(),
    out: Annotated[
        Path, typer.Option(help="Where predictions go: .jsonl, .csv or .tsv, also .gz; - is standard output, as JSONL.")
    ] = Path("-"),
    text_field: options.TextField = None,
    label_field: Annotated[
        str | None, typer.Option(help="Field with the true class, to tell how many are right.", rich_help_panel="Data")
    ] = None,
    prefix: Annotated[str, typer.Option(help="Put before the names of the fields that are added.")] = "",
    as_json: options.Json = False,
) -> None:
    """Classify the rows of a file by the newest light release of the site, as `fedglm predict` does; torch is not used.

    The server sends one at the end of a run that makes any. Without one the model of the last
    run is used (`fedglm client model`). Only what the server of the startup kit has signed is.
    """
    from fedglm.client.site.folder import open_site

    site = open_site(folder)
    model, keys = site.light_shelf().find_newest(), [site.kit.signing]
    if model is None:
        model, keys = site.model_shelf().open_verified(site.name).folder, []
    command.predict(
        model,
        file,
        out=out,
        text_field=text_field,
        label_field=label_field,
        prefix=prefix,
        key=keys,
        as_json=as_json,
    )
