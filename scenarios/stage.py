"""Data and model of a simulation, built from its scenario."""

from dataclasses import dataclass
from functools import lru_cache

from fedglm.autoglm.federation import FederatedData, load_federation
from fedglm.autoglm.models.build import build_model
from fedglm.protocol.federated_model import FederatedModel
from fedglm.scenarios.scenario import Scenario


@dataclass(frozen=True)
class BuiltScenario:
    """Data and model of a simulation.

    Attributes:
        scenario: Scenario that they were built from.
        data: Task, and records of each site.
        model: Model with version 0 of its parameters.
    """

    scenario: Scenario
    data: FederatedData
    model: FederatedModel


@lru_cache(maxsize=1)
def build_scenario(scenario_toml: str) -> BuiltScenario:
    """Load the data and build the model of a scenario; the latest result is cached.

    Raises:
        ScenarioError, DataError, ModelError: Data or model cannot be built; the message says why.
    """
    scenario = Scenario.from_toml(scenario_toml)
    seed = scenario.federation.seed
    data = load_federation(scenario.data, nodes=scenario.federation.nodes, seed=seed, model=scenario.model)
    model = build_model(scenario.model, data.task, seed=seed)
    return BuiltScenario(scenario, data, FederatedModel(model, data.task, scenario.downlink))
