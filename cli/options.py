"""The options that `simulate`, `compare` and `run` share."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

if TYPE_CHECKING:  # else `--help` would wait for torch
    from fedglm.scenarios.overrides import ScenarioOptions

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


def collect_options(parameters: Mapping[str, Any]) -> "ScenarioOptions":
    """Collect the scenario options that were given, from a command's parameters by name."""
    from fedglm.scenarios.overrides import ScenarioOptions

    given = {name: parameters.get(name) for name in ScenarioOptions.__annotations__}
    return cast(
        "ScenarioOptions", {name: value for name, value in given.items() if not (value is None or value is False)}
    )


def parse_settings(settings: list[str] | None) -> dict[str, Any]:
    """Parse the texts of `--set` into values by dotted key.

    Raises:
        ScenarioError: A text is not `section.key=value`.
    """
    from fedglm.scenarios.scenario import parse_setting

    return dict(map(parse_setting, settings or []))
