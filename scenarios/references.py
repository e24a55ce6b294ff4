"""Reference records of a scenario, where its server holds updates to any."""

from fedglm.autoglm.data.examples import Examples
from fedglm.autoglm.tasks.task import Task
from fedglm.autoglm.training.reference import OFF, ReferenceLoss, reference_examples
from fedglm.scenarios.scenario import Scenario
from fedglm.scenarios.stage import BuiltScenario
from fedglm.server.aggregation.reference_check import ReferenceLosses


def usable_reference(scenario: Scenario, task: Task) -> Examples | None:
    """The reference records of a scenario; None where there are none, or the server looks at none.

    Without noise medians do, and where the server protects whole nodes, its own clipping stands in their place.

    Raises:
        DataError: They cannot be read, or do not fit the task.
    """
    is_noised = scenario.privacy.epsilon is not None and scenario.client_privacy.epsilon is None
    is_looked_at = is_noised and scenario.federation.aggregation == "robust"
    reference = scenario.federation.reference if is_looked_at else OFF
    return reference_examples(reference, scenario.data, task)


def reference_losses(stage: BuiltScenario) -> ReferenceLosses | None:
    """What measures models on the reference records of a simulation; None without any."""
    scenario, task = stage.scenario, stage.data.task
    examples = usable_reference(scenario, task)
    if examples is None:
        return None
    return ReferenceLoss(stage.model.module, task, examples, seed=scenario.federation.seed)
