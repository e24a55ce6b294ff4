"""What commands need beyond the base install: asked before any work starts, and named with its pip line if missing.

The base verifies, exports and watches. `node` trains at a site, `server` also evaluates and draws, and `simulation`
brings Ray, which only `--engine ray` asks for (`simulations/engines/run.py`).
"""

import functools
import importlib.util
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, Literal

import click
import typer

Extra = Literal["node", "server", "simulation"]

_NODE = ("flwr", "numba", "opacus", "peft", "prometheus_client", "safetensors", "torch", "transformers")
_SERVER = (*_NODE, "matplotlib", "sklearn")

MODULES: Final[Mapping[Extra, tuple[str, ...]]] = MappingProxyType(
    {"node": _NODE, "server": _SERVER, "simulation": (*_SERVER, "ray")}
)
"""Top-level modules of what pyproject.toml asks for by each extra."""

NEEDS: Final[Mapping[str, Extra]] = MappingProxyType(
    {
        "simulate": "simulation",
        "compare": "simulation",
        "run": "server",
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
    }
)
"""The extra of each command; a command that is not here runs on the base."""


class MissingExtra(click.ClickException):
    """Something that a command needs is not installed."""


def ask_for_extras(app: typer.Typer, path: str = "") -> None:
    """Have each command of `NEEDS` look for its extra first; `--help` needs none."""
    for command in app.registered_commands:
        if command.callback is not None:
            name = command.name or command.callback.__name__.replace("_", "-")
            if extra := NEEDS.get(f"{path}{name}"):
                command.callback = _asking(extra, command.callback)
    for group in app.registered_groups:
        if group.typer_instance is not None:
            ask_for_extras(group.typer_instance, f"{path}{group.name} ")


def _asking(extra: Extra, command: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(command)
    def asked(*args: Any, **options: Any) -> Any:
        wanted = (module for module in MODULES[extra] if module != "ray")
        if missing := [module for module in wanted if importlib.util.find_spec(module) is None]:
            raise MissingExtra(f"not installed: {', '.join(missing)}; this command needs pip install 'fedglm[{extra}]'")
        return command(*args, **options)

    return asked
