"""The options that `simulate` and `compare` share, and the scenario that they make together."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:  # else `--help` would wait for torch
    from fedglm.scenarios.scenario import Scenario

ScenarioName = Annotated[str, typer.Argument(metavar="[SCENARIO]", help="A built-in name, or the path of a TOML file.")]
Data = Annotated[
    Path | None,
    typer.Option(help="Your records instead of the scenario's: JSONL or CSV, also .gz.", rich_help_panel="Data"),
]
TextField = Annotated[str | None, typer.Option(help="Field that holds the text.", rich_help_panel="Data")]
LabelField = Annotated[
    str | None, typer.Option(help="Field that holds the class; makes it a classification.", rich_help_panel="Data")
]
UnitField = Annotated[
    str | None,
    typer.Option(help="Field that says whose record it is; a unit is never split.", rich_help_panel="Data"),
]
SiteField = Annotated[
    str | None, typer.Option(help="Field that names the site; one node a site.", rich_help_panel="Data")
]
Nodes = Annotated[int | None, typer.Option(help="Number of nodes.")]
Rounds = Annotated[int | None, typer.Option(help="Number of rounds.")]
Density = Annotated[float | None, typer.Option(help="Share of the coordinates that a sparse codec sends, in (0, 1].")]
Epsilon = Annotated[
    float | None,
    typer.Option(help="Differential privacy: each site's greatest privacy loss over the whole run (1 is strong)."),
]
NoDp = Annotated[bool, typer.Option("--no-dp", help="Train without noise: no privacy guarantee at all.")]
EngineName = Annotated[str, typer.Option("--engine", help="inline (this machine) or ray (Flower's runtime).")]
Workers = Annotated[int | None, typer.Option(min=1, help="Worker processes; one a core without it.")]
Seed = Annotated[int | None, typer.Option(help="Orders data, sampling and initialisation.")]
Out = Annotated[Path | None, typer.Option(help="Run folder; runs/SCENARIO-TIME without it.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Any other setting; may be given again and again."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else, on standard output.")]


AWAY = object()
"""Stands for a setting that the scenario may have, and that a command takes away."""

# What each option sets in the scenario.
_KEYS = {
    "data": "data.source",
    "text_field": "data.text_field",
    "label_field": "data.label_field",
    "unit_field": "data.unit_field",
    "site_field": "data.site_field",
    "nodes": "federation.nodes",
    "rounds": "federation.rounds",
    "seed": "federation.seed",
    "epsilon": "privacy.epsilon",
}

_PATHS = {"data": ("source", "public_reference"), "model": ("path",), "federation": ("reference",)}
"""Settings that are paths."""
_OR_NAMES = {"source", "reference"}
"""Of these, those that may be a name instead, which has no dot and no slash."""


def overrides(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Scenario settings by dotted key, from a command's parameters by name; None for each that was not given.

    `--no-dp` takes the scenario's epsilon away.

    Raises:
        typer.BadParameter: `--epsilon` and `--no-dp` were both given.
    """
    if parameters["no_dp"] and parameters["epsilon"] is not None:
        raise typer.BadParameter("--epsilon and --no-dp exclude each other")
    given = {key: parameters.get(name) for name, key in _KEYS.items()}
    return given | ({"privacy.epsilon": AWAY} if parameters["no_dp"] else {})


def read_scenario(name: str, given: dict[str, Any], settings: list[str] | None) -> "Scenario":
    """The scenario `name` with the options on top, its paths absolute, so that it means the same from everywhere.

    A path in a TOML file counts from the file's folder, a path in an option from the current folder.

    Args:
        name: A built-in name or a TOML file.
        given: Options by dotted key; those that are None were not given.
        settings: Texts of `--set`.

    Raises:
        ScenarioError: Something in it is wrong.
    """
    from fedglm.scenarios.scenario import Scenario, parse_setting, scenario_text

    changes: dict[str, Any] = {
        key: None if value is AWAY else value for key, value in given.items() if value is not None
    }
    if "data.source" in changes:
        changes["data.source"] = _absolute(changes["data.source"], Path.cwd())  # a path, whatever its name
    if "data.site_field" in changes:  # one node a site, whatever the scenario says of its own data
        changes = {"federation.nodes": None, "data.split": "site"} | changes
    for text in settings or []:
        key, value = parse_setting(text)
        changes[key] = _anchored(key, value, Path.cwd())
    scenario = Scenario.from_toml(scenario_text(name), changes, origin=f"scenario {name}")
    home = Path(name).absolute().parent
    for section, keys in _PATHS.items():
        part = getattr(scenario, section)
        paths = {key: _anchored(f"{section}.{key}", getattr(part, key), home) for key in keys}
        scenario = scenario.model_copy(update={section: part.model_copy(update=paths)})
    if given.get("update.density") is not None and not scenario.update.is_sparse:
        raise typer.BadParameter(f"{scenario.update.codec} sends every coordinate: leave --density out")
    return scenario


def default_folder(name: str) -> Path:
    """`runs/NAME-TIME`, for a run that was given no folder."""
    return Path("runs") / f"{Path(name).stem}-{time.strftime('%Y%m%d-%H%M%S')}"


def _anchored(dotted: str, value: Any, home: Path) -> Any:
    """The value of a setting; where it is a path, absolute, a relative one counting from `home`."""
    section, _, key = dotted.partition(".")
    is_path = key in _PATHS.get(section, ()) and isinstance(value, str) and value
    if not is_path or (key in _OR_NAMES and not any(mark in value for mark in "./\\")):
        return value
    return _absolute(value, home)


def _absolute(path: str | Path, home: Path) -> str:
    return str(home / os.path.expanduser(path))  # Path.expanduser raises where ~name is nobody's
