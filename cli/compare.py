"""`fedglm compare`: the same federation under several codecs."""

import math
from typing import Annotated

import typer

from fedglm.cli import options


def compare(
    scenario: options.ScenarioName = "hospital",
    codecs: Annotated[
        str,
        typer.Option(help="Codecs, the baseline first; NAME or NAME@DENSITY, with commas between."),
    ] = "dense-fp32,topk-fp16,topk-sign",
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
    """Run the same federation under several codecs: bytes and rounds to equal loss, as table and page.

    [bold]fedglm compare text --codecs dense-fp32,int8,topk-fp16@0.05,topk-sign@0.01[/bold]

    The first codec is the baseline: a run has reached it at the first round whose loss is at most the baseline's last
    loss times the tolerance. Bytes count both ways, all nodes, up to that round.
    """
    if no_dp and epsilon is not None:
        raise typer.BadParameter("--epsilon and --no-dp exclude each other")
    if resume and out is None:
        raise typer.BadParameter("--resume needs --out, the folder of the comparison to go on with")
    if math.isnan(tolerance):  # which min and max let through
        raise typer.BadParameter("--tolerance is nan: give a factor such as 1.01")
    given = {
        "data.source": data,
        "data.text_field": text_field,
        "data.label_field": label_field,
        "data.unit_field": unit_field,
        "data.site_field": site_field,
        "federation.nodes": nodes,
        "federation.rounds": rounds,
        "federation.seed": seed,
        "privacy.epsilon": epsilon,
    }
    overrides = [options.codec_overrides(codec, density) for codec in codecs.split(",")]
    scenarios = [options.read_scenario(scenario, {**given, **codec}, settings) for codec in overrides]
    folder = out or options.default_folder(f"compare-{scenario}")

    from fedglm.cli.progress import Progress
    from fedglm.cli.tables import print_comparison
    from fedglm.simulations.compare import compare as run
    from fedglm.simulations.engines import checked_engine
    from fedglm.simulations.run_folder import to_json

    found = run(
        scenarios,
        folder,
        engine=checked_engine(engine),
        audience=lambda name: Progress(quiet=as_json, label=name),
        tolerance=tolerance,
        resume=resume,
        workers=workers,
    )
    if as_json:
        rows = [
            {
                "label": standing.label,
                "folder": str(standing.folder),
                "loss": standing.run.final.loss,
                standing.run.metric: standing.run.final.metric,
                "bytes": standing.run.traffic.total,
                "rounds_to_target": standing.reached.round if standing.reached else None,
                "bytes_to_target": standing.reached.traffic.total if standing.reached else None,
                "uplink_bytes_to_target": standing.reached.traffic.up if standing.reached else None,
            }
            for standing in found.standings
        ]
        typer.echo(to_json({"target_loss": found.target, "tolerance": tolerance, "codecs": rows}, indent=1))
    else:
        print_comparison(found, folder)
