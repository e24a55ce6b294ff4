"""Pydantic's validation errors in one line: the key, its value, the remedy, and near names."""

from collections.abc import Callable
from typing import Any, Final, get_args

from pydantic import BaseModel, ValidationError

from fedglm.core.suggestions import did_you_mean

_MAX_ERRORS: Final = 3  # in one line
_MAX_CHARACTERS: Final = 80  # of a key or a value
_MAX_INTEGER: Final = 2**63  # str refuses more than 4300 digits


def show_value(value: Any) -> str | None:
    """Format a value for an error line: numbers as they are, anything else quoted and truncated.

    Returns:
        None for a table or a list: an untrusted one may be nested too deeply to be shown.
    """
    if isinstance(value, dict | list | tuple):
        return None
    if isinstance(value, bool | float):
        return str(value)
    if isinstance(value, int):
        return str(value) if abs(value) < _MAX_INTEGER else "a very large number"
    return repr(str(value)[:_MAX_CHARACTERS])


def explain(error: ValidationError, model: type[BaseModel], *, show: Callable[[Any], str | None] = show_value) -> str:
    """Describe the first errors, one clause each.

    Args:
        error: Error raised by `model`.
        model: Pydantic model of the settings.
        show: Formats a value; a result of None leaves it out.
    """
    return "; ".join(_describe_error(each, model, show) for each in error.errors()[:_MAX_ERRORS])


def locate_first_error(error: ValidationError) -> str:
    """Return the dotted key of the first error, without its value, which is untrusted; empty at the top level."""
    return ".".join(_split_path(error.errors()[0]))


def _describe_error(error: Any, model: type[BaseModel], show: Callable[[Any], str | None]) -> str:
    path = _split_path(error)
    place = ".".join(path)
    if error["type"] == "extra_forbidden":
        return f"unknown key {place}: {did_you_mean(path[-1], _list_keys(model, path[:-1]))}"
    if error["type"] == "missing":
        return f"{place} is missing"
    reason = str(error["msg"]).removeprefix("Value error, ")
    reason = reason[:1].lower() + reason[1:]
    if not place:
        return reason
    value = show(error["input"])
    return f"{place}: {reason}" if value is None else f"{place} = {value}: {reason}"


def _split_path(error: Any) -> list[str]:
    return [str(part)[:_MAX_CHARACTERS] for part in error["loc"]]


def _list_keys(model: type[BaseModel], sections: list[str]) -> list[str]:
    """Return the keys of a section; none where it is no settings model."""
    for section in sections:
        inner = model.model_fields[section].annotation if section in model.model_fields else None
        kinds = [one for one in (inner, *get_args(inner)) if isinstance(one, type) and issubclass(one, BaseModel)]
        if not kinds:
            return []
        model = kinds[0]  # an optional section is a union of its model and None
    return list(model.model_fields)
