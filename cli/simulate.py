"""`fedglm simulate`: run a federation on this machine."""

import json
from typing import Annotated

import typer

from fedglm.cli import options


def simulate(
    scenario: options.ScenarioName = "hospital",
    show_list: Annotated[bool, typer.Option("--list", help="List the built-in scenarios and exit.")] = False,
    show: Annotated[str | None, typer.Option(metavar="NAME", help="Print a scenario as TOML and exit.")] = None,
    data: options.Data = None,
    text_field: options.TextField = None,
    label_field: options.LabelField = None,
    unit_field: options.UnitField = None,
    site_field: options.SiteField = None,
    nodes: options.Nodes = None,
    rounds: options.Rounds = None,
    codec: Annotated[str | None, typer.Option(help="How updates are coded: topk-sign, topk-fp16, int8, ...")] = None,
    density: options.Density = None,
    epsilon: options.Epsilon = None,
    no_dp: options.NoDp = False,
    engine: options.EngineName = "inline",
    workers: options.Workers = None,
    seed: options.Seed = None,
    out: options.Out = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, where it was stopped.")
    ] = False,
    settings: options.Settings = None,
    as_json: options.Json = False,
) -> None:
    """Run a federation on this machine: write a run folder, print a summary.

    [bold]fedglm simulate[/bold]                                    four hospitals, real data, half a minute
    [bold]fedglm simulate text --codec topk-fp16 --density 0.05[/bold]   a language model, 5 % of each update sent
    [bold]fedglm simulate text --data notes.jsonl --site-field site --unit-field patient[/bold]   your own records
    """
    if show_list:
        _print_list(as_json)
        return
    if show is not None:
        _print_scenario(show)
        return
    chosen, changes = options.collect_options(locals()), options.parse_settings(settings)

    from fedglm.autoglm.data.sources import check_readable
    from fedglm.client.supernode.lean_imports import import_lean
    from fedglm.scenarios.overrides import load_scenario

    # Mistakes are reported before torch is imported.
    loaded = load_scenario(scenario, settings=changes, **chosen)
    if not resume:  # a finished run is given again without its data
        check_readable(loaded.data.source)
    import_lean()

    from fedglm.cli.terminal.progress import Progress
    from fedglm.cli.terminal.tables import print_summary
    from fedglm.run_folder.rows import to_json
    from fedglm.simulations.simulation import simulate as run

    with Progress(quiet=as_json) as progress:
        result = run(
            scenario,
            settings=changes,
            engine=engine,
            workers=workers,
            out=out,
            resume=resume,
            callbacks=progress,
            **chosen,
        )
    if as_json:
        typer.echo(to_json(result.summary, indent=1))
    else:
        print_summary(result.summary, result.paths.folder)


def _print_list(as_json: bool) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from fedglm.scenarios.scenario import Scenario, builtin_names, scenario_text

    scenarios = {name: Scenario.from_toml(scenario_text(name)) for name in builtin_names()}
    if as_json:
        typer.echo(json.dumps({name: scenario.description for name, scenario in scenarios.items()}, indent=1))
        return
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("scenario", "what it is", "nodes", "rounds"):
        table.add_column(heading, justify="right" if heading in ("nodes", "rounds") else "left")
    for name, scenario in scenarios.items():
        nodes, rounds = scenario.federation.nodes, scenario.federation.rounds
        table.add_row(name, scenario.description, str(nodes or "a site each"), str(rounds))
    Console().print(table)


def _print_scenario(name: str) -> None:
    from fedglm.scenarios.scenario import Scenario, scenario_text

    typer.echo(Scenario.from_toml(scenario_text(name), origin=f"scenario {name}").to_toml(), nl=False)
