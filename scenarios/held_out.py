"""Held-out records of a deployed run's server, on which it evaluates each round's model."""

from fedglm.autoglm.data.bundled import BUNDLES
from fedglm.autoglm.data.examples import Examples, concatenate, select_evenly
from fedglm.autoglm.data.sources import is_path
from fedglm.autoglm.federation import load_federation
from fedglm.autoglm.tasks.task import Task
from fedglm.autoglm.training.reference import read_server_file
from fedglm.scenarios.scenario import Scenario, ScenarioError

OFF = "off"


def load_held_out(scenario: Scenario, task: Task, sites: int) -> Examples | None:
    """Load the held-out records of a deployed run's server; None where it has none.

    Of built-in data they are what the sites hold out where each has its share of as many parts as there are sites: the
    very records that a simulation of as many nodes evaluates on.

    Args:
        scenario: Scenario of the run.
        task: Task of the run.
        sites: Number of enrolled sites.

    Raises:
        ScenarioError: `evaluation.data` is neither a file nor `off`, or names a file beside built-in data.
        DataError: The file cannot be read, holds a class that the task does not have, or no usable record.
    """
    chosen, settings = scenario.evaluation, scenario.data
    if chosen.data == OFF:
        return None
    if settings.source in BUNDLES:
        if chosen.data is not None:
            raise ScenarioError(
                f"the built-in {settings.source!r} has held-out records of its own: leave "
                f"evaluation.data out, or give {OFF!r}"
            )
        seed, model = scenario.federation.seed, scenario.model
        federation = load_federation(settings, nodes=sites, seed=seed, model=model)
        held_out = [site.held_out for site in federation.sites if len(site.held_out)]
        share = min(1.0, chosen.sequences / max(1, sum(map(len, held_out))))
        return concatenate([select_evenly(part, share) for part in held_out]) if held_out else None
    if chosen.data is None:
        return None
    if not is_path(chosen.data):
        raise ScenarioError(f"evaluation.data is a file or {OFF!r}, not {chosen.data!r}")
    examples, _ = task.examples(read_server_file(chosen.data, settings, task))
    if not len(examples):
        raise ScenarioError(f"{chosen.data}: no record is long enough to evaluate a model on")
    return select_evenly(examples, min(1.0, chosen.sequences / len(examples)))
