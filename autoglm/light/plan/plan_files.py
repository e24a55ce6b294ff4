"""Plans and recipes as files: TOML, JSON or YAML, by the file's name."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeVar

import tomli_w
import yaml
from pydantic import BaseModel, ValidationError

from fedglm.autoglm.light.plan.errors import LightenError
from fedglm.core.files import write_atomically
from fedglm.core.untrusted_files import read_regular
from fedglm.core.validation_errors import explain

_MAX_BYTES: Final = 1 << 20
Settings = TypeVar("Settings", bound=BaseModel)


def _to_yaml(tree: dict[str, Any]) -> str:
    return str(yaml.safe_dump(tree, sort_keys=False))


_WRITERS: Final[Mapping[str, Callable[[dict[str, Any]], str]]] = MappingProxyType(
    {
        ".toml": tomli_w.dumps,
        ".json": lambda tree: json.dumps(tree, indent=1) + "\n",
        ".yaml": _to_yaml,
        ".yml": _to_yaml,
    }
)
_READERS: Final[Mapping[str, Callable[[str], Any]]] = MappingProxyType(
    {".toml": tomllib.loads, ".json": json.loads, ".yaml": yaml.safe_load, ".yml": yaml.safe_load}
)


def to_text(settings: BaseModel, suffix: str = ".toml", *, with_defaults: bool = True) -> str:
    """Write settings out.

    Args:
        settings: A plan or a recipe.
        suffix: ``.toml``, ``.json``, ``.yaml`` or ``.yml``.
        with_defaults: Whether to write what has its default, too.

    Raises:
        LightenError: The suffix is another, or the settings hold what TOML cannot (an override by None).
    """
    check_suffix(suffix)
    try:
        text = _WRITERS[suffix](settings.model_dump(mode="json", exclude_none=True, exclude_defaults=not with_defaults))
    except TypeError as exc:
        raise LightenError(f"{suffix} has no form for an override by nothing: write it as .json or .yaml") from exc
    return text


def check_suffix(suffix: str) -> None:
    """Check that a file's suffix says in which format a plan is written.

    Raises:
        LightenError: It does not.
    """
    if suffix.lower() not in _WRITERS:
        raise LightenError(
            f"a plan is written as {', '.join(_WRITERS)}, by the file's name, not as {suffix or 'nothing'!r}"
        )


def write_settings(settings: BaseModel, path: Path) -> None:
    """Write settings into a file, in the format that its name says.

    Raises:
        LightenError: As `to_text`.
        StorageError: The file cannot be written.
    """
    write_atomically(path, to_text(settings, path.suffix.lower()))


def read_settings_file(model: type[Settings], path: Path) -> Settings:
    """Read a file of settings, in the format that its name says.

    Raises:
        LightenError: The file cannot be read, or holds an unknown key or a wrong value; the message names it.
    """
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        raise LightenError(f"{path}: a plan is read from {', '.join(_READERS)}, by the file's name")
    try:
        text = read_regular(path, _MAX_BYTES).decode()
        return model.model_validate(_READERS[suffix](text))
    except OSError as exc:
        raise LightenError(f"{path}: cannot be read ({exc.strerror or exc})") from exc
    except ValidationError as exc:
        raise LightenError(f"{path}: {explain(exc, model)}") from exc
    except (ValueError, yaml.YAMLError, RecursionError) as exc:
        raise LightenError(f"{path} is no {suffix[1:].upper()} ({str(exc).splitlines()[0]})") from exc
