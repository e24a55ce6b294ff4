"""Server optimizers: from the mean update of a round to the step of the global model.

Each computes elementwise and deterministically, and returns its state as named arrays for the checkpoint.
"""

import math
from typing import Protocol

import numpy as np

from fedglm.server.settings import ServerOptimizerSettings


class ServerOptimizer(Protocol):
    """Interface of a server optimizer."""

    def step(self, mean: np.ndarray, server_round: int) -> np.ndarray:
        """Compute the step of the global model.

        Args:
            mean: Mean update of the round, shape (n,), float32.
            server_round: Number of the round, from 1.

        Returns:
            Step to publish, shape (n,), float32.
        """

    def state(self) -> dict[str, np.ndarray]:
        """Return the state to checkpoint, as named arrays."""

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Restore the state of a checkpoint."""


class Plain:
    """The mean times the learning rate: FedAvg (McMahan et al. 2017) on differences."""

    def __init__(self, learning_rate: float) -> None:
        self._rate = np.float32(learning_rate)

    def step(self, mean: np.ndarray, server_round: int) -> np.ndarray:  # noqa: ARG002 (one signature for all)
        """Scale the mean."""
        scaled: np.ndarray = self._rate * mean
        return scaled

    def state(self) -> dict[str, np.ndarray]:
        """Return no arrays: there is no state."""
        return {}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Do nothing: there is no state."""


class Nesterov:
    """Outer Nesterov momentum of DiLoCo (arXiv 2311.08105, algorithm 1): v = mu v + g; step = eta (g + mu v)."""

    def __init__(self, learning_rate: float, momentum: float) -> None:
        self._rate, self._momentum = np.float32(learning_rate), np.float32(momentum)
        self._velocity: np.ndarray | None = None

    def step(self, mean: np.ndarray, server_round: int) -> np.ndarray:  # noqa: ARG002 (one signature for all)
        """Update the velocity, and step with Nesterov's look-ahead."""
        previous = np.zeros_like(mean) if self._velocity is None else self._velocity
        self._velocity = self._momentum * previous + mean
        stepped: np.ndarray = self._rate * (mean + self._momentum * self._velocity)
        return stepped

    def state(self) -> dict[str, np.ndarray]:
        """Return the velocity; no arrays before the first step."""
        return {} if self._velocity is None else {"velocity": self._velocity}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Restore the velocity."""
        self._velocity = state.get("velocity")


class Adam:
    """FedAdam (arXiv 2003.00295, algorithm 2) as Flower computes it: with Kingma and Ba's bias-corrected rate.

    Moments are float32; rate and quotient are float64, rounded to float32 once.
    """

    def __init__(self, learning_rate: float, beta_1: float = 0.9, beta_2: float = 0.99, tau: float = 1e-3) -> None:
        self._rate, self._beta_1, self._beta_2, self._tau = learning_rate, beta_1, beta_2, tau
        self._moments: tuple[np.ndarray, np.ndarray] | None = None

    def step(self, mean: np.ndarray, server_round: int) -> np.ndarray:
        """Update both moments; the step is the first over the square root of the second."""
        first, second = self._moments or (np.zeros_like(mean), np.zeros_like(mean))
        first = self._beta_1 * first + (1 - self._beta_1) * mean
        second = self._beta_2 * second + (1 - self._beta_2) * mean**2
        self._moments = first, second
        updates = server_round + 1  # as in Flower, whose bias correction starts at 2
        rate = self._rate * math.sqrt(1 - self._beta_2**updates) / (1 - self._beta_1**updates)
        stepped: np.ndarray = (np.float64(rate) * first / (np.sqrt(second) + self._tau)).astype(np.float32)
        return stepped

    def state(self) -> dict[str, np.ndarray]:
        """Return the first and second moments; no arrays before the first step."""
        return {} if self._moments is None else dict(zip("mv", self._moments, strict=True))

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Restore the moments."""
        self._moments = (state["m"], state["v"]) if state else None


def make_server_optimizer(settings: ServerOptimizerSettings) -> ServerOptimizer:
    """Make the optimizer that the settings name."""
    if settings.server_optimizer == "nesterov":
        return Nesterov(settings.server_rate, settings.server_momentum)
    if settings.server_optimizer == "adam":
        return Adam(settings.server_rate)
    return Plain(settings.server_rate)
