"""Optional dependencies of the commands, checked before any work starts; an error names the pip line to install them.

The base install verifies, exports and watches. `edge` uses a light model and has no torch, `node` trains at a site,
`server` also evaluates and draws, `light` makes models light, and `simulation` adds Ray, which only `--engine ray`
needs (`simulations/engines/run.py`).
"""

import functools
import importlib.util
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, Literal

import click
import typer

Extra = Literal["edge", "light", "node", "server", "simulation"]

_NODE = ("flwr", "numba", "opacus", "peft", "prometheus_client", "safetensors", "torch", "transformers")
_SERVER = (*_NODE, "matplotlib", "sklearn")
_EDGE = ("onnxruntime", "safetensors", "tokenizers")
_LIGHT = (*dict.fromkeys((*_SERVER, *_EDGE)), "gguf", "onnx", "yaml")

MODULES: Final[Mapping[Extra, tuple[str, ...]]] = MappingProxyType(
    {"edge": _EDGE, "light": _LIGHT, "node": _NODE, "server": _SERVER, "simulation": (*_SERVER, "ray")}
)
"""Top-level modules of the packages of each extra in pyproject.toml."""

_ASKED_LATER: Final = frozenset({"ray", "tokenizers"})
"""Modules that some uses of an extra do without: an engine asks for the one, a model's tokenizer for the other."""

NEEDS: Final[Mapping[str, Extra]] = MappingProxyType(
    {
        "simulate": "simulation",
        "compare": "simulation",
        "lighten": "light",
        "export-onnx": "light",
        "run": "server",
        "demo": "server",
        "import-base": "light",
        "audit report": "server",
        "audit attack": "server",
        "audit canaries": "server",
        "server enrol": "server",
        "server revoke": "server",
        "server start": "server",
        "server cancel": "server",
        "server status": "server",
        "server metrics": "server",
        "client sign-policy": "node",
        "client check": "node",
        "client start": "node",
        "client metrics": "node",
        "device probe": "edge",
    }
)
"""Extra that each command needs. Of the others, `generate` and `predict` need what their model does (`cli/models.py`),
`validate` of a release needs `edge` and of a fleet's files nothing, and the rest runs on the base install."""


class MissingExtra(click.ClickException):
    """A package that a command needs is not installed."""


def require_extras(app: typer.Typer, path: str = "") -> None:
    """Make each command of `NEEDS` check for its extra before it runs; `--help` works without.

    Args:
        app: Application whose commands are wrapped, with those of its groups.
        path: Name of its group, with a trailing space.
    """
    for command in app.registered_commands:
        if command.callback is not None:
            name = command.name or command.callback.__name__.replace("_", "-")
            if extra := NEEDS.get(f"{path}{name}"):
                command.callback = _check_extra_first(extra, command.callback)
    for group in app.registered_groups:
        if group.typer_instance is not None:
            require_extras(group.typer_instance, f"{path}{group.name} ")


def require_extra(extra: Extra, user: str) -> None:
    """Check that what an extra brings is installed.

    Args:
        extra: The extra.
        user: What needs it, for the error.

    Raises:
        MissingExtra: Some of it is not; the message has the pip line.
    """
    required = (module for module in MODULES[extra] if module not in _ASKED_LATER)
    if missing := [module for module in required if importlib.util.find_spec(module) is None]:
        raise MissingExtra(f"not installed: {', '.join(missing)}; {user} needs pip install 'fedglm[{extra}]'")


def _check_extra_first(extra: Extra, command: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(command)
    def checked(*args: Any, **options: Any) -> Any:
        require_extra(extra, "this command")
        return command(*args, **options)

    return checked
