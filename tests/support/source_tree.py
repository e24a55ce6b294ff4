"""The repository as a tree of sources: the roots that pyproject.toml packs, and all Python files below them."""

import ast
import os
import tomllib
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
ROOTS = sorted(SETTINGS["tool"]["setuptools"]["package-dir"].values())
SOURCES = [path for root in ROOTS for path in sorted((ROOT / root).rglob("*.py"))]
API = ROOT / "fedglm" / "__init__.py"
"""The public API, which stands above all roots."""
SUPPORT = os.environ | {"PYTHONPATH": str(ROOT / "tests" / "support")}
"""The environment of a process that is a test's own file, which finds there what the test does."""


def folder_of(package):
    """Where the sources of a package lie, by its dotted name."""
    return API.parent if package == "fedglm" else ROOT.joinpath(*package.split(".")[1:])


def root_of(path):
    """The folder at the repository's root that a source lies under."""
    return path.relative_to(ROOT).parts[0]


@cache
def imported(path):
    """Dotted names of all modules that a source imports, anywhere in it."""
    return frozenset(_imported(path))


def _imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def imported_sources(path):
    """The sources of ours among them."""
    files = {
        ROOT.joinpath(*name.split(".")[1:]).with_suffix(".py") for name in imported(path) if name.startswith("fedglm.")
    }
    return frozenset(file for file in files if file.is_file())
