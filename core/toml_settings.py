"""Settings from a TOML text, and what is wrong with them, said in one line."""

import difflib
import tomllib
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

_LONGEST_VALUE = 80
_MAX_FAULTS = 3  # that one line tells of

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
        faults = [_explain(model, fault) for fault in exc.errors()[:_MAX_FAULTS]]
        raise error(f"{origin}: {'; '.join(faults)}") from exc


def explain_key(model: type[BaseModel], place: list[str], kind: str) -> str | None:
    """One clause for a key that is unknown, with the near ones, or missing; None where the fault is in its value.

    Args:
        model: Whose settings.
        place: Sections and key.
        kind: Pydantic's type of the error.
    """
    where = ".".join(place)
    if kind == "extra_forbidden":
        known = _keys(model, place[:-1])
        near = difflib.get_close_matches(place[-1], known) or known
        return f"unknown key {where}: did you mean {', '.join(near)}?"
    return f"{where} is missing" if kind == "missing" else None


def _explain(model: type[BaseModel], fault: Any) -> str:
    """One clause for one of pydantic's errors."""
    place = [str(part)[:_LONGEST_VALUE] for part in fault["loc"]]
    where = ".".join(place)
    if (about_key := explain_key(model, place, fault["type"])) is not None:
        return about_key
    reason = str(fault["msg"]).removeprefix("Value error, ")
    if isinstance(fault["input"], dict | list):  # a stranger's may be nested too deeply to be shown
        return f"{where}: {reason}".removeprefix(": ")
    return f"{where} = {_shown(fault['input'])}: {reason[:1].lower()}{reason[1:]}"


def _shown(value: Any) -> str:
    if type(value) is int:
        return str(value) if abs(value) < 2**63 else "a very large number"  # str refuses more than 4300 digits
    return repr(str(value)[:_LONGEST_VALUE])


def _keys(model: type[BaseModel], path: list[str]) -> list[str]:
    """The keys of a section."""
    for section in path:
        inner = model.model_fields[section].annotation if section in model.model_fields else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return list(model.model_fields)
