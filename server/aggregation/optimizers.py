"""Server optimizers: from the mean update of a round to the step of the global model.

Each is deterministic in elementwise float32 and hands its memory to the checkpoint as named arrays.
"""

from typing import Protocol

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdam

from fedglm.server.settings import ServerOptimizerSettings


class ServerOptimizer(Protocol):
    """What the round loop needs of a server optimizer."""

    def step(self, mean: np.ndarray, server_round: int) -> np.ndarray:
        """The step to publish, float32, from the mean update (float32) of round `server_round`."""

    def state(self) -> dict[str, np.ndarray]:
        """Memory to checkpoint."""

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Take up the memory of a checkpoint."""


class Plain:
    """The mean itself, scaled: FedAvg (McMahan et al. 2017) on differences."""

    def __init__(self, learning_rate: float) -> None:
        self._rate = np.float32(learning_rate)

    def step(self, mean: np.ndarray, server_round: int) -> np.ndarray:  # noqa: ARG002 (one signature for all)
        """Scale the mean."""
        scaled: np.ndarray = self._rate * mean
        return scaled

    def state(self) -> dict[str, np.ndarray]:
        """Nothing is remembered."""
        return {}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Nothing is remembered."""


class Nesterov:
    """Outer Nesterov momentum of DiLoCo (arXiv 2311.08105, algorithm 1): v = mu v + g; step = eta (g + mu v)."""

    def __init__(self, learning_rate: float, momentum: float) -> None:
        self._rate, self._momentum = np.float32(learning_rate), np.float32(momentum)
        self._velocity: np.ndarray | None = None

    def step(self, mean: np.ndarray, server_round: int) -> np.ndarray:  # noqa: ARG002 (one signature for all)
        """Advance the velocity and look ahead along it."""
        previous = np.zeros_like(mean) if self._velocity is None else self._velocity
        self._velocity = self._momentum * previous + mean
        stepped: np.ndarray = self._rate * (mean + self._momentum * self._velocity)
        return stepped

    def state(self) -> dict[str, np.ndarray]:
        """The velocity."""
        return {} if self._velocity is None else {"velocity": self._velocity}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Take up the velocity."""
        self._velocity = state.get("velocity")


class FlowerAdam:
    """Flower's FedAdam (arXiv 2003.00295, algorithm 2), fed with the mean of a round as one reply."""

    _KEY = "model"

    def __init__(self, learning_rate: float) -> None:
        self._strategy = FedAdam(eta=learning_rate)

    def step(self, mean: np.ndarray, server_round: int) -> np.ndarray:
        """Let FedAdam step from zero towards the mean; what it returns is the step."""
        self._strategy.current_arrays = {self._KEY: np.zeros_like(mean)}
        content = RecordDict(
            {
                "arrays": ArrayRecord({self._KEY: Array(mean)}),
                "metrics": MetricRecord({self._strategy.weighted_by_key: 1.0}),
            }
        )
        reply = Message(content, dst_node_id=0, message_type=MessageType.TRAIN)
        arrays, _ = self._strategy.aggregate_train(server_round, [reply])
        if arrays is None:
            raise RuntimeError("Flower's FedAdam returned no model for a valid mean")
        return arrays[self._KEY].numpy().astype(np.float32)

    def state(self) -> dict[str, np.ndarray]:
        """First and second moments."""
        if not self._strategy.m_t or not self._strategy.v_t:
            return {}
        return {"m": self._strategy.m_t[self._KEY], "v": self._strategy.v_t[self._KEY]}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Take up the moments."""
        if state:
            self._strategy.m_t, self._strategy.v_t = {self._KEY: state["m"]}, {self._KEY: state["v"]}


def make_server_optimizer(settings: ServerOptimizerSettings) -> ServerOptimizer:
    """The optimizer that the settings name."""
    if settings.server_optimizer == "nesterov":
        return Nesterov(settings.server_rate, settings.server_momentum)
    if settings.server_optimizer == "adam":
        return FlowerAdam(settings.server_rate)
    return Plain(settings.server_rate)
