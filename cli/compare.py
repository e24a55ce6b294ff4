"""`fedglm compare`: the same federation under several codecs."""

import math
from typing import TYPE_CHECKING, Annotated

import typer

from fedglm.cli import options

if TYPE_CHECKING:  # else `--help` would wait for torch
    from fedglm.scenarios.overrides import ScenarioOptions
    from fedglm.scenarios.scenario import Scenario


def compare(
    scenario: options.ScenarioName = "hospital",
    codecs: Annotated[
        str,
        typer.Option(
            help="Codecs, the baseline first, with commas between: NAME, NAME@DENSITY or NAME@key=value+key=value. A "
            "key is one of \\[update], or rounds, or any section.key."
        ),
    ] = "dense-fp32,topk-fp16,topk-sign",
    seeds: Annotated[
        str | None,
        typer.Option(metavar="N,N,...", help="Run every codec under each of these; means and ranges are reported."),
    ] = None,
    epsilons: Annotated[
        str | None,
        typer.Option(metavar="E,E,...", help="Run every codec under each of these; inf is without noise."),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=1.0, max=2.0, help="Factor on the baseline's last loss that counts as equal.")
    ] = 1.01,
    data: options.Data = None,
    text_field: options.TextField = None,
    label_field: options.LabelField = None,
    unit_field: options.UnitField = None,
    site_field: options.SiteField = None,
    nodes: options.Nodes = None,
    rounds: options.Rounds = None,
    density: options.Density = None,
    epsilon: options.Epsilon = None,
    no_dp: options.NoDp = False,
    engine: options.EngineName = "inline",
    workers: options.Workers = None,
    seed: options.Seed = None,
    out: options.Out = None,
    resume: Annotated[bool, typer.Option("--resume", help="Keep finished runs in --out, go on with the rest.")] = False,
    settings: options.Settings = None,
    as_json: options.Json = False,
) -> None:
    """Run the same federation under several codecs: bytes and rounds to equal loss.

    Three codecs at four hospitals, two minutes:
    [bold]fedglm compare[/bold]

    Means and ranges over three seeds:
    [bold]fedglm compare text --codecs dense-fp32,int8,topk-sign@0.01 --seeds 7,8,9[/bold]

    A codec with rounds and settings of its own:
    [bold]fedglm compare text --codecs dense-fp32,topk-sign@0.01+rounds=150[/bold]

    What privacy costs: loss, bytes and epsilon side by side:
    [bold]fedglm compare hospital --epsilons 1,3,8,inf --codecs dense-fp32,topk-sign[/bold]

    The first codec is the baseline. A run has reached it at the first round
    whose loss is at most the last loss of the baseline's run of the same seed,
    times the tolerance. Bytes count up to that round's end, for all nodes.
    A table is printed; the page is OUT/report.html.
    """
    from fedglm.client.supernode.lean_imports import import_lean

    import_lean()
    chosen = options.collect_options(locals())
    if resume and out is None:
        raise typer.BadParameter("--resume needs --out, the folder of the comparison to go on with")
    if math.isnan(tolerance):  # which min and max let through
        raise typer.BadParameter("--tolerance is nan: give a factor such as 1.01")

    from fedglm.cli.terminal.comparison_tables import print_comparison
    from fedglm.cli.terminal.progress import Progress
    from fedglm.reports.comparison.as_json import comparison_json
    from fedglm.reports.comparison.labels import with_epsilon
    from fedglm.run_folder.folder import default_folder
    from fedglm.run_folder.rows import to_json
    from fedglm.scenarios.overrides import load_scenario
    from fedglm.simulations.comparison.compare import Contender
    from fedglm.simulations.comparison.compare import compare as run
    from fedglm.simulations.comparison.variants import parse_variants
    from fedglm.simulations.engines.run import check_engine

    chosen.pop("density", None)  # is for those codecs that take one
    contenders = []
    for variant in parse_variants(codecs, density):
        own = options.parse_settings([*(settings or []), *variant.settings])  # a codec's own settings win
        for epsilon, private in _epsilons(epsilons, chosen):
            scenarios = [
                _seeded(load_scenario(scenario, settings=own, **(chosen | private | over)), over)
                for over in _seeds(seeds, seed)
            ]
            label = variant.label if epsilon is None else with_epsilon(variant.label, epsilon)
            contenders.append(Contender(label, tuple(scenarios)))
    folder = out or default_folder(f"compare-{scenario}")
    comparison = run(
        contenders,
        folder,
        engine=check_engine(engine),
        make_callbacks=lambda name: Progress(quiet=as_json, label=name),
        tolerance=tolerance,
        resume=resume,
        workers=workers,
    )
    if as_json:
        typer.echo(to_json(comparison_json(comparison), indent=1))
    else:
        print_comparison(comparison, folder)


def _epsilons(text: str | None, chosen: "ScenarioOptions") -> "list[tuple[float | None, ScenarioOptions]]":
    """Parse `--epsilons`: each epsilon with the options that it sets, the least private first; None without it."""
    if text is None:
        return [(None, {})]
    if "epsilon" in chosen or "no_dp" in chosen:
        raise typer.BadParameter("--epsilons excludes --epsilon and --no-dp: inf is without noise")
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"--epsilons {text}: give numbers with commas between, as in 1,3,8,inf") from None
    if len(set(values)) < len(values) or not all(value > 0 for value in values):
        raise typer.BadParameter(f"--epsilons {text}: give each number above 0 once")
    ordered = sorted(values, reverse=True)
    return [(value, {"no_dp": True} if math.isinf(value) else {"epsilon": value}) for value in ordered]


def _seeds(text: str | None, single: int | None) -> "list[ScenarioOptions]":
    """Parse `--seeds`: the options that each seed sets; one empty set of options without it."""
    if text is None:
        return [{}]
    if single is not None:
        raise typer.BadParameter("--seed and --seeds exclude each other")
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"--seeds {text}: give whole numbers with commas between, as in 7,8,9") from None
    if len(set(seeds)) < len(seeds):
        raise typer.BadParameter(f"--seeds {text}: a seed is named twice")
    return [{"seed": seed} for seed in seeds]


def _seeded(scenario: "Scenario", over: "ScenarioOptions") -> "Scenario":
    if over and scenario.federation.seed != over["seed"]:
        raise typer.BadParameter("--seeds and --set federation.seed exclude each other")
    return scenario
