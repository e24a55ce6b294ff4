"""Comparison of codecs: the same federation under several codecs and seeds, a run folder each, and a report."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from fedglm.reports.comparison.to_target import Comparison, ComparisonRow, compare_runs
from fedglm.reports.comparison.write import write_comparison
from fedglm.run_folder.folder import RunFolderError
from fedglm.run_folder.names import SCENARIO
from fedglm.scenarios.scenario import Scenario
from fedglm.simulations.callbacks import SimulationCallbacks
from fedglm.simulations.engines.run import Engine
from fedglm.simulations.simulate import run_scenario


@dataclass(frozen=True)
class Contender:
    """A codec to compare.

    Attributes:
        label: Label of the codec, which names its folder.
        scenarios: Scenarios of its runs, one per seed.
    """

    label: str
    scenarios: tuple[Scenario, ...]

    def folders(self, folder: Path) -> tuple[Path, ...]:
        """Return its run folders: `LABEL/`, or `LABEL/seed-N/` where there are several seeds."""
        home = folder / self.label
        if len(self.scenarios) == 1:
            return (home,)
        return tuple(home / f"seed-{scenario.federation.seed}" for scenario in self.scenarios)


def compare(
    contenders: Sequence[Contender],
    folder: Path,
    *,
    engine: Engine,
    make_callbacks: Callable[[str], AbstractContextManager[SimulationCallbacks]],
    tolerance: float,
    resume: bool = False,
    workers: int | None = None,
) -> Comparison:
    """Run each scenario in a folder of its own below `folder`, then write `folder/report.html`.

    Args:
        contenders: The codecs, each under the same seeds; the first is the baseline of the comparison.
        folder: Folder of the run folders and the report.
        engine: Engine to run them on.
        make_callbacks: Makes the callbacks of a run from its name.
        tolerance: Factor on the baseline's final loss that still counts as equal.
        resume: Keep finished runs in the folder and continue unfinished ones.
        workers: Number of worker processes; None takes one per core.

    Raises:
        RunFolderError: Two codecs are the same, or the folder cannot hold the runs.
        ReportError: A finished run's records cannot be read. Errors of `run_scenario` are raised too.
    """
    _check_contenders(contenders, folder)
    seeds = len(contenders[0].scenarios)
    for index in range(seeds):  # all codecs of one seed first, so that a stopped comparison has complete seeds
        for contender in contenders:
            scenario = contender.scenarios[index]
            name = contender.label if seeds == 1 else f"{contender.label}, seed {scenario.federation.seed}"
            with make_callbacks(name) as callbacks:
                home = contender.folders(folder)[index]
                run_scenario(scenario, home, engine=engine, callbacks=callbacks, resume=resume, workers=workers)
    rows = [ComparisonRow(contender.label, contender.folders(folder)) for contender in contenders]
    write_comparison(folder, rows, tolerance=tolerance)
    return compare_runs(rows, tolerance=tolerance)


def _check_contenders(contenders: Sequence[Contender], folder: Path) -> None:
    names = [contender.label for contender in contenders]
    if len(set(names)) < len(names):
        raise RunFolderError(f"a codec is named twice: {', '.join(names)}")
    for one, other in combinations(contenders, 2):
        if one.scenarios == other.scenarios:
            raise RunFolderError(f"{one.label} and {other.label} are the same run under this scenario: leave one out")
    for contender in contenders:
        home = folder / contender.label
        if len(contender.scenarios) > 1 and (home / SCENARIO).is_file():
            raise RunFolderError(f"{home} holds the run of a single seed: name another --out")
