"""The two files of a startup kit that people fill in, filled in as they would: the explanations stay."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from fedglm.cli.demo.errors import DemoError
from fedglm.core.files import write_atomically
from fedglm.privacy.policy.policy import Policy


def fill_in(path: Path, values: Mapping[str, Any]) -> None:
    """Give keys of a kit's `policy.toml` or `site.toml` their values.

    Args:
        path: The file.
        values: Values by key; a text or a number in a `site.toml`.

    Raises:
        DemoError: A `site.toml` has no line for a key.
        PolicyError: A value is none that a policy may have.
        StorageError: The file cannot be written.
    """
    text = path.read_text(encoding="utf-8")
    if path.name == "policy.toml":
        written = Policy.from_toml(text, origin=str(path)).model_dump(exclude_none=True) | dict(values)
        write_atomically(path, Policy.model_validate(written).to_toml())
        return
    for key, value in values.items():
        line = format_line(key, value).replace("\\", r"\\")
        text, found = re.subn(rf"(?m)^#?{re.escape(key)} = .*$", line, text, count=1)
        if not found:
            raise DemoError(f"{path} has no line for {key}: it is not of a startup kit of this fedglm")
    write_atomically(path, text)


def format_line(key: str, value: Any) -> str:
    """Format a key and its value as one line of TOML."""
    if isinstance(value, list | tuple):
        items = [format_line("item", item).removeprefix("item = ") for item in value]
        return f"{key} = [{', '.join(items)}]"
    return tomli_w.dumps({key: value}).strip()
