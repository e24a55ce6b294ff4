"""Imports of libraries without the parts that a node never uses, so that it starts sooner and fits on a small machine.

Transformers imports torch's compiler, its distributed tensors and optional packages that happen to be installed; a GLM
that is trained on one machine needs none of them. `benchmarks/node_memory.py --imports` prints their cost. No
computation changes, because the omitted parts are never called. Only torch.compile does not work in such a process.
"""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from fedglm.core.hidden_modules import hide_modules

_UNUSED_BY_TRANSFORMERS = ("accelerate", "pandas", "PIL", "scipy", "sklearn", "torchvision")
"""Packages that transformers would import only because they are installed."""

_UNUSED_BY_FLOWER = ("pygments",)
"""Packages that a dependency of Flower would import only to colour the output of its own command."""

_COMPILER = "torch._dynamo"
_INDEXING = "torch._dynamo._trace_wrapped_higher_order_op"
"""Module with a class that transformers imports, and uses in compiled models alone."""


def import_lean() -> None:
    """Import transformers' GLM and Flower without the parts they do not need, unless transformers is imported already.

    Later imports of the omitted packages work as usual, but transformers treats them as not installed.
    """
    if "transformers" in sys.modules:
        return
    import torch.distributed

    if _COMPILER not in sys.modules:
        sys.modules[_COMPILER] = vars(torch)["_dynamo"] = _CompilerStub(_COMPILER)
        sys.modules[_INDEXING] = indexing = ModuleType(_INDEXING)
        vars(indexing)["TransformGetItemToIndex"] = _LazyIndexing
    with hide_modules(*_UNUSED_BY_TRANSFORMERS), _disable_distributed(torch.distributed):
        importlib.import_module("transformers.models.glm.modeling_glm")
    with hide_modules(*_UNUSED_BY_FLOWER):
        importlib.import_module("flwr.app")


class _CompilerStub(ModuleType):
    """Stub of torch's compiler for code that only marks functions as not compiled; any other use loads the real one."""

    @staticmethod
    def disable(fn: Callable[..., Any] | None = None, *_: object, **__: object) -> Callable[..., Any]:
        """Return the function unchanged: nothing is compiled."""
        return fn if fn is not None else lambda decorated: decorated

    @staticmethod
    def allow_in_graph(fn: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function unchanged."""
        return fn

    assume_constant_result = allow_in_graph

    @staticmethod
    def graph_break(msg: str = "") -> None:
        """Do nothing: there is no graph."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(_load_compiler(), name)


class _LazyIndexing:
    """Stub of `TransformGetItemToIndex`, a part of the compiler: making one loads the compiler."""

    def __new__(cls, *arguments: object) -> Any:
        """Return an object of the real class."""
        _load_compiler()
        return importlib.import_module(_INDEXING).TransformGetItemToIndex(*arguments)


def _load_compiler() -> ModuleType:
    """Import torch's own compiler in place of the stub."""
    if isinstance(sys.modules.get(_COMPILER), _CompilerStub):
        del sys.modules[_COMPILER], sys.modules[_INDEXING]
    return importlib.import_module(_COMPILER)


@contextmanager
def _disable_distributed(distributed: ModuleType) -> Iterator[None]:
    """Make torch report that it was built without distributed support."""
    original = distributed.is_available
    vars(distributed)["is_available"] = lambda: False
    try:
        yield
    finally:
        vars(distributed)["is_available"] = original
