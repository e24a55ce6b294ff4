"""The repository as a tree of sources: the roots that pyproject.toml packs, and all Python files below them."""

import os
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
ROOTS = sorted(SETTINGS["tool"]["setuptools"]["package-dir"].values())
SOURCES = [path for root in ROOTS for path in sorted((ROOT / root).rglob("*.py"))]
SUPPORT = os.environ | {"PYTHONPATH": str(ROOT / "tests" / "support")}
"""The environment of a process that is a test's own file, which finds there what the test does."""


def root_of(path):
    """The folder at the repository's root that a source lies under."""
    return path.relative_to(ROOT).parts[0]
