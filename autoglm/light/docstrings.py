"""The docstrings of Python's standard library: public text that is on every machine, and at no site."""

from __future__ import annotations

import ast
import os
import sysconfig
from pathlib import Path

import numpy as np

from fedglm.autoglm.data.records import Records
from fedglm.autoglm.errors import DataError

_LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "pydoc_data", "site-packages", "turtledemo"}
"""Folders that are not read: tests, what is installed, and ``pydoc_data``, which is itself a built-in's text."""
_MIN_CHARACTERS = 500
_MIN_DOCUMENTS = 20
"""The text is of so many modules at least: one alone has up to 68,783 characters (Python 3.11)."""


def read_docstrings(max_characters: int, *, seed: int) -> Records:
    """Read docstrings as records: one document per module, which is its unit, drawn by the seed up to a size.

    Nothing is imported or run. None of their 14,649 paragraphs is one of the language reference (Python 3.11). The text
    differs between Python versions.

    Args:
        max_characters: Number of characters after which no further module is read; the first twentieth of it is taken
            of a longer one.
        seed: Seed of the choice.

    Raises:
        DataError: The standard library has no sources here.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    paths = _list_modules(folder)
    records, read = Records(), 0
    for number in np.random.default_rng(seed).permutation(len(paths)):
        if read >= max_characters:
            break
        text = _join_docstrings(paths[number])[: max(_MIN_CHARACTERS, max_characters // _MIN_DOCUMENTS)]
        if len(text) >= _MIN_CHARACTERS:
            records.texts.append(text)
            records.units.append(paths[number].relative_to(folder).as_posix())
            read += len(text)
    if not read:
        raise DataError(f"{folder}: Python's standard library has no sources here; name a file of public text")
    return records


def _list_modules(folder: Path) -> list[Path]:
    """Return the files of modules in their order; what is left out, which may be most of a folder, is not entered."""
    found = list[Path]()
    for where, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in _LEFT_OUT]
        found += [Path(where, name) for name in names if name.endswith(".py")]
    return sorted(found)


def _join_docstrings(path: Path) -> str:
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):  # templates that are no Python, such as lib2to3's
        return ""
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds))
    return "\n\n".join(text for text in found if text)
