"""A scenario, built: its data and its model."""

from dataclasses import dataclass
from functools import lru_cache

from fedglm.autoglm.federation import FederatedData, load_federation
from fedglm.autoglm.models.build import build_model
from fedglm.protocol.federated_model import FederatedModel
from fedglm.scenarios.scenario import Scenario


@dataclass(frozen=True)
class BuiltScenario:
    """A scenario's data and model, built.

    Attributes:
        scenario: What it was built from.
        data: Task and sites.
        model: Model with version 0.
    """

    scenario: Scenario
    data: FederatedData
    model: FederatedModel


@lru_cache(maxsize=1)
def build_scenario(scenario_toml: str) -> BuiltScenario:
    """Load the data and build the model of a scenario; the last one is kept.

    Raises:
        ScenarioError, DataError, ModelError: It cannot be built; the message says why.
    """
    scenario = Scenario.from_toml(scenario_toml)
    seed = scenario.federation.seed
    data = load_federation(scenario.data, nodes=scenario.federation.nodes, seed=seed, model=scenario.model)
    model = build_model(scenario.model, data.task, seed=seed)
    return BuiltScenario(scenario, data, FederatedModel(model, data.task, scenario.downlink))
