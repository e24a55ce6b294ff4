"""Opacus' analysis of privacy losses without the rest of Opacus, which imports torch: a reader of ledgers needs none.

Opacus' own files are loaded, under another name. The one class that they derive from lies beside its optimizers, and is
replaced by what they use of it.
"""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from fedglm.privacy.errors import PrivacyError

_NAME = "_opacus"


class _Accountant:
    """Stands for `opacus.accountants.accountant.IAccountant`."""

    def __init__(self) -> None:
        self.history: list[tuple[float, float, int]] = []


def analysis(name: str) -> ModuleType:
    """The module `opacus.accountants.analysis.NAME`.

    Raises:
        PrivacyError: Opacus is not installed.
    """
    if _NAME not in sys.modules:
        found = importlib.util.find_spec("opacus")  # without importing it
        if found is None or found.origin is None:
            raise PrivacyError("Opacus is not installed, and epsilon cannot be computed: pip install --no-deps opacus")
        for package in ("", ".accountants", ".accountants.analysis"):
            made = ModuleType(_NAME + package)
            made.__path__ = [str(Path(found.origin).parent.joinpath(*package.split(".")[1:]))]
            sys.modules[made.__name__] = made
        base = ModuleType(f"{_NAME}.accountants.accountant")
        vars(base)["IAccountant"] = _Accountant
        sys.modules[base.__name__] = base
    return importlib.import_module(f"{_NAME}.accountants.analysis.{name}")
