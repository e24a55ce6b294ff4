"""Modules that appear not installed for a while, for libraries that import optional packages only because they are."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def hide_modules(*names: str) -> Iterator[None]:
    """Make importing modules fail inside the block as if they were not installed, except those that are loaded already.

    Args:
        names: Full names of the modules.
    """
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type] # None makes the import system raise ImportError
    try:
        yield
    finally:
        for name in hidden:
            sys.modules.pop(name, None)
