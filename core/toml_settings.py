"""Settings from a TOML text; an error is one line."""

import tomllib
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from fedglm.core.validation_errors import explain

Settings = TypeVar("Settings", bound=BaseModel)


def read_settings(
    model: type[Settings], text: str, *, origin: str, max_characters: int, error: type[Exception]
) -> Settings:
    """Parse settings from an untrusted TOML text.

    Args:
        model: Pydantic model of the settings.
        text: TOML.
        origin: Name of the text in errors.
        max_characters: Maximum length; a longer text is not parsed.
        error: Exception type to raise.

    Raises:
        error: The text is too long or not TOML, or a key or value is invalid; near names are listed.
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
