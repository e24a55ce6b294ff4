"""The entry point of a simulation, for the command line and Python: a scenario, changes to it, and a result."""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Unpack

import torch

from fedglm.run_folder.folder import RunFolderError, default_folder
from fedglm.scenarios.overrides import ScenarioOptions, load_scenario
from fedglm.scenarios.scenario import Scenario
from fedglm.simulations.callbacks import SimulationCallbacks
from fedglm.simulations.engines.run import check_engine
from fedglm.simulations.result import RunResult
from fedglm.simulations.simulate import run_scenario


def simulate(
    scenario: str | PathLike[str] | Scenario = "hospital",
    *,
    settings: Mapping[str, Any] | None = None,
    engine: str = "inline",
    workers: int | None = None,
    out: str | PathLike[str] | None = None,
    resume: bool = False,
    callbacks: SimulationCallbacks | None = None,
    **options: Unpack[ScenarioOptions],
) -> RunResult:
    """Run a federation on this machine, and write its run folder.

    The same arguments give the same bits, on each engine and with any number of workers; DP noise differs each time.

    Args:
        scenario: A built-in name (`hospital`, `iot`, `text`), the path of a TOML file, or a scenario.
        settings: Any setting by dotted key, as in `{"training.local_steps": 10}`; None removes one. They take
            precedence over `options`.
        engine: `inline` (processes of this machine) or `ray` (Flower's simulation runtime).
        workers: Number of worker processes; None takes one per core.
        out: The run folder, which must be new or empty; None takes `runs/SCENARIO-TIME`.
        resume: Continue the run in `out` where it was stopped; a finished run is returned as it is.
        callbacks: Called at each step; without them nothing is shown.
        **options: `data` (JSONL or CSV, also .gz), `text_field`, `label_field`, `unit_field`, `site_field` (fields of
            the data), `nodes`, `rounds`, `codec`, `density` (in (0, 1], of a sparse codec), `epsilon` (each site's
            maximum privacy loss over the whole run), `no_dp` (train without noise: no guarantee), `seed`.

    Raises:
        ScenarioError: A name, a key or a value is invalid; near ones are listed.
        DataError, ModelError, RunFolderError: The run cannot start.
        FederationError: The run cannot continue.
        StorageError: A file could not be written; once there is room, `resume` continues the run.
    """
    chosen = load_scenario(scenario, settings=settings, **options)
    if resume and out is None:
        raise RunFolderError("--resume needs --out, the folder of the run to go on with")
    name = chosen.name.replace("/", "-") if isinstance(scenario, Scenario) else str(scenario)
    folder = default_folder(name) if out is None else Path(out)
    threads = torch.get_num_threads()
    try:
        run_scenario(
            chosen,
            folder,
            engine=check_engine(engine),
            callbacks=callbacks or SimulationCallbacks(),
            resume=resume,
            workers=workers,
        )
    finally:
        torch.set_num_threads(threads)  # the run uses one, and its caller may use more
    return RunResult.open(folder)
