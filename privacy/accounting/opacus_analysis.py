"""Opacus' analysis of privacy losses without the rest of Opacus, which imports torch: reading ledgers needs none.

Opacus' own files are loaded, under another package name. The one class that they derive from is in a module that
imports its optimizers, and is replaced by the part of it that they use.
"""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from fedglm.privacy.errors import PrivacyError

_NAME = "_opacus"


class _Accountant:
    """Replaces `opacus.accountants.accountant.IAccountant`."""

    def __init__(self) -> None:
        self.history: list[tuple[float, float, int]] = []


def load_analysis(name: str) -> ModuleType:
    """Import the module `opacus.accountants.analysis.NAME`.

    Raises:
        PrivacyError: Opacus is not installed.
    """
    if _NAME not in sys.modules:
        spec = importlib.util.find_spec("opacus")  # without importing it
        if spec is None or spec.origin is None:
            raise PrivacyError("Opacus is not installed, and epsilon cannot be computed: pip install --no-deps opacus")
        for package in ("", ".accountants", ".accountants.analysis"):
            module = ModuleType(_NAME + package)
            module.__path__ = [str(Path(spec.origin).parent.joinpath(*package.split(".")[1:]))]
            sys.modules[module.__name__] = module
        base = ModuleType(f"{_NAME}.accountants.accountant")
        vars(base)["IAccountant"] = _Accountant
        sys.modules[base.__name__] = base
    return importlib.import_module(f"{_NAME}.accountants.analysis.{name}")
