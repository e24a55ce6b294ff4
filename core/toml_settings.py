"""Settings from a TOML text; what is wrong with it is one line."""

import tomllib
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from fedglm.core.validation_errors import explain

Settings = TypeVar("Settings", bound=BaseModel)


def read_settings(
    model: type[Settings], text: str, *, origin: str, max_characters: int, error: type[Exception]
) -> Settings:
    """Read a TOML text, of a stranger too.

    Args:
        model: What it must hold.
        text: TOML.
        origin: Name of the text in errors.
        max_characters: A longer text is not looked at.
        error: What to raise.

    Raises:
        error: The text is too long or no TOML, or a key or value is wrong; near names are listed.
    """
    if len(text) > max_characters:
        raise error(f"{origin} has {len(text)} characters; at most {max_characters} are read")
    try:
        tree = tomllib.loads(text)
    except (ValueError, RecursionError) as exc:
        raise error(f"{origin} is not TOML: {exc}") from exc
    try:
        return model.model_validate(tree)
    except ValidationError as exc:
        raise error(f"{origin}: {explain(exc, model)}") from exc
