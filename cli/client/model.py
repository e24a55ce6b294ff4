"""`fedglm client model`: the model that the site holds, from which run, and whether its bits are what was signed."""

import json
from pathlib import Path
from typing import Annotated

import typer

from fedglm.cli import options


def model(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="The site's folder.")] = Path(),
    as_json: options.Json = False,
) -> None:
    """Show the model of the last run: the run, its measures, its hash, where it lies; and verify its bits.

    The server hands it out at the end of a run, signed. It is a folder of transformers, with its
    tokenizer; `fedglm client predict` uses it where the site holds no light release.
    """
    from fedglm.client.site.folder import open_site

    site = open_site(folder)
    held = site.model_shelf().open_verified(site.name)
    manifest = held.manifest
    if as_json:
        typer.echo(json.dumps({**manifest.model_dump(), "folder": str(held.folder), "verified": True}, indent=1))
        return
    measured = [
        f"{name} {value:.4g}"
        for name, value in (("loss", manifest.loss), (manifest.metric, manifest.value))
        if value is not None
    ]
    protected = "none" if manifest.epsilon is None else f"epsilon {manifest.epsilon:g}, delta {manifest.delta:.1e}"
    for name, value in (
        ("run", f"{manifest.name} ({manifest.run}), {manifest.rounds} rounds"),
        ("measured", ", ".join(measured) or "nothing by the server"),
        ("differential privacy", protected),
        ("SHA-256", f"{manifest.model_sha256}, signed by the server: the bits are those"),
        ("model", str(held.folder)),
    ):
        typer.echo(f"{name}: {value}")
