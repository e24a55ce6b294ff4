"""MODEL on the command line: the folder of a run, of a release of `save_pretrained`, or of a light release."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fedglm.cli.extras import require_extra
from fedglm.cli.keys import parse_key
from fedglm.inference.errors import InferenceError

if TYPE_CHECKING:
    from fedglm.inference.model import LiteModel

ModelPath = Annotated[
    Path, typer.Argument(metavar="MODEL", help="Folder of a run, of a saved model, or of a light release.")
]

Keys = Annotated[
    list[str] | None,
    typer.Option(
        "--key",
        metavar="KEY",
        help="Open a light release only if this key signed it: 64 digits, or SITE.pub. May be given again.",
    ),
]

_OTHER = {
    "generate": "classifies and generates no text: fedglm predict",
    "predict": "is a language model and has no classes: fedglm generate",
}


def open_model_for(use: Literal["generate", "predict"], path: Path, keys: list[str] | None) -> "LiteModel":
    """Open the model of a command; torch is imported for what is no light release, and only then.

    Who made a light release that no key was given for is said on standard error.

    Args:
        use: The command.
        path: Folder of the model.
        keys: Public keys, as `parse_key` reads them.

    Raises:
        MissingExtra: What the model needs is not installed.
        FedglmError: There is no model, it is for the other use, or is not signed by one of the keys.
    """
    from fedglm.autoglm.models.opening import find_model, open_model

    found = find_model(path)
    # The task is read before torch is imported, so that a mistake is reported at once.
    if found.task.is_generative != (use == "generate"):
        raise InferenceError(f"{path} {_OTHER[use]} {path} ...")
    if found.format == "light":
        require_extra("edge", "a light release")
    else:
        require_extra("node", "a model that is no light release")
    model = open_model(path, keys=[parse_key(key).hex for key in keys or []])
    if model.info().get("verified") is False:
        typer.echo(f"{path}: {model.info()['provenance']}", err=True)
    return model
