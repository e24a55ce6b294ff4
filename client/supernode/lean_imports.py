"""The libraries without the parts that a node never uses: it starts sooner, and fits on a small machine.

Transformers imports torch's compiler, its distributed tensors and whatever else it finds installed, though a GLM that
is trained on one machine needs none of it. `benchmarks/node_memory.py --imports` prints what that would cost. No
computation changes: what is left out is never called. Only torch.compile does not work in such a process.
"""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

_UNUSED = ("accelerate", "pandas", "PIL", "scipy", "sklearn", "torchvision")
"""What transformers would import only because it is there."""
_FOR_TERMINALS = ("pygments",)
"""What a library of Flower's would import only to colour the output of a command of its own."""

_COMPILER = "torch._dynamo"
_INDEXING = "torch._dynamo._trace_wrapped_higher_order_op"
"""Transformers wants a class of it when it loads, and uses it in a compiled model."""


def import_lean() -> None:
    """Import transformers' GLM and Flower without what they do not need, unless something has imported them before.

    Later imports of what was left out find it as usual, but transformers takes it for not installed.
    """
    if "transformers" in sys.modules:
        return
    import torch.distributed

    if _COMPILER not in sys.modules:
        sys.modules[_COMPILER] = vars(torch)["_dynamo"] = _Uncompiled(_COMPILER)
        sys.modules[_INDEXING] = indexing = ModuleType(_INDEXING)
        vars(indexing)["TransformGetItemToIndex"] = _Absent
    with _hidden(_UNUSED), _alone(torch.distributed):
        importlib.import_module("transformers.models.glm.modeling_glm")
    with _hidden(_FOR_TERMINALS):
        importlib.import_module("flwr.app")


class _Uncompiled(ModuleType):
    """Stands where torch's compiler would, for those who only tell it what to leave alone; others get the real one."""

    @staticmethod
    def disable(fn: Callable[..., Any] | None = None, *_: object, **__: object) -> Callable[..., Any]:
        """The function as it is; what is never compiled needs no exception."""
        return fn if fn is not None else lambda later: later

    @staticmethod
    def allow_in_graph(fn: Callable[..., Any]) -> Callable[..., Any]:
        """The function as it is."""
        return fn

    assume_constant_result = allow_in_graph

    @staticmethod
    def graph_break(msg: str = "") -> None:
        """Nothing: there is no graph."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(_compiler(), name)


class _Absent:
    """A part of the compiler; to use it is to want the compiler."""

    def __new__(cls, *arguments: object) -> Any:
        """The real one."""
        _compiler()
        return importlib.import_module(_INDEXING).TransformGetItemToIndex(*arguments)


def _compiler() -> ModuleType:
    """Torch's own, loaded now."""
    if isinstance(sys.modules.get(_COMPILER), _Uncompiled):
        del sys.modules[_COMPILER], sys.modules[_INDEXING]
    return importlib.import_module(_COMPILER)


@contextmanager
def _hidden(names: tuple[str, ...]) -> Iterator[None]:
    """Make modules look as if they were not installed, unless they are loaded already."""
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type] # None: the import system's word for "not there"
    try:
        yield
    finally:
        for name in hidden:
            sys.modules.pop(name, None)


@contextmanager
def _alone(distributed: ModuleType) -> Iterator[None]:
    """Let torch say that it was built for one machine."""
    was = distributed.is_available
    vars(distributed)["is_available"] = lambda: False
    try:
        yield
    finally:
        vars(distributed)["is_available"] = was
