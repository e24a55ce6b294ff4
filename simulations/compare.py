"""The same federation under several codecs: one run folder each, and a page that sets them side by side."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from fedglm.simulations.engines import Engine
from fedglm.simulations.run_folder import RunFolderError
from fedglm.simulations.scenario import Scenario
from fedglm.simulations.simulate import Audience, simulate
from fedglm.simulations.to_target import Comparison, ComparisonRow, compare_runs


def labels(scenarios: Sequence[Scenario]) -> list[str]:
    """What each run is called: its codec, with the density where two runs share the codec."""
    codecs = [scenario.update.codec for scenario in scenarios]
    return [
        f"{codec}@{scenario.update.density:g}" if codecs.count(codec) > 1 else codec
        for codec, scenario in zip(codecs, scenarios, strict=True)
    ]


def compare(
    scenarios: Sequence[Scenario],
    folder: Path,
    *,
    engine: Engine,
    audience: Callable[[str], AbstractContextManager[Audience]],
    tolerance: float,
    resume: bool = False,
    workers: int | None = None,
) -> Comparison:
    """Run each scenario in a folder of its own below `folder`, then write `folder/report.html`.

    Args:
        scenarios: They differ in `[update]` alone; the first is the baseline that the others are held against.
        folder: Where the run folders and the page go.
        engine: On what to run them.
        audience: Makes somebody who watches the run of a label.
        tolerance: Factor on the baseline's final loss that still counts as equal.
        resume: Keep finished runs in the folder and go on with begun ones.
        workers: Worker processes; one a core without it.

    Raises:
        RunFolderError: Two scenarios are the same, or the folder cannot hold the runs.
        ReportError and whatever `simulate` raises.
    """
    names = labels(scenarios)
    if len(set(names)) < len(names):
        raise RunFolderError(f"a codec is named twice: {', '.join(names)}")
    rows = []
    for name, scenario in zip(names, scenarios, strict=True):
        with audience(name) as watching:
            simulate(scenario, folder / name, engine=engine, audience=watching, resume=resume, workers=workers)
        rows.append(ComparisonRow(label=name, run=folder / name))
    from fedglm.simulations.report import write_comparison

    write_comparison(folder, rows, tolerance=tolerance)
    return compare_runs(rows, tolerance=tolerance)
