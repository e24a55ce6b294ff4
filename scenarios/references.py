"""Reference records of a scenario, on which its server measures updates."""

from fedglm.autoglm.data.examples import Examples
from fedglm.autoglm.tasks.task import Task
from fedglm.autoglm.training.reference import OFF, ReferenceLoss, load_reference_examples
from fedglm.scenarios.scenario import Scenario
from fedglm.scenarios.stage import BuiltScenario
from fedglm.server.aggregation.reference_check import ReferenceLosses


def usable_reference(scenario: Scenario, task: Task) -> Examples | None:
    """Load the reference records of a scenario; None where there are none, or the server does not use them.

    The server uses them only under noise of the sites: without it, comparing updates with their median suffices, and
    where the server itself adds noise for whole nodes, it clips every update anyway.

    Raises:
        DataError: The records cannot be read, or do not fit the task.
    """
    is_noised = scenario.privacy.epsilon is not None and scenario.client_privacy.epsilon is None
    is_used = is_noised and scenario.federation.aggregation == "robust"
    reference = scenario.federation.reference if is_used else OFF
    return load_reference_examples(reference, scenario.data, task)


def reference_losses(stage: BuiltScenario) -> ReferenceLosses | None:
    """Return what evaluates models on a simulation's reference records; None where it uses none."""
    scenario, task = stage.scenario, stage.data.task
    examples = usable_reference(scenario, task)
    if examples is None:
        return None
    return ReferenceLoss(stage.model.module, task, examples, seed=scenario.federation.seed)
