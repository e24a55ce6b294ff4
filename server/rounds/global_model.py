"""The global model at the server: its published version, and the server optimizer that steps to the next one."""

import copy
import logging

import numpy as np

from fedglm.compression.codec import CodecError
from fedglm.compression.downlink import ModelVersions
from fedglm.server.aggregation.optimizers import make_server_optimizer
from fedglm.server.rounds.checkpoint import Checkpoint
from fedglm.server.rounds.requests import envelope
from fedglm.server.run_setup import Plan

LOG = logging.getLogger(__name__)


class GlobalModel:
    """The model of a run, at version 0 or as a checkpoint has it.

    Args:
        plan: Of the run.
        checkpoint: To go on from; None to begin.

    Attributes:
        versions: The published model and its history.
    """

    def __init__(self, plan: Plan, checkpoint: Checkpoint | None) -> None:
        self._plan = plan
        self._optimizer = make_server_optimizer(plan.optimizer)
        downlink, layout = plan.downlink, plan.layout
        codec = downlink.make_codec(layout, envelope=envelope(layout))
        if checkpoint is None:
            self.versions = ModelVersions(
                plan.initial, layout.sha256, codec, feedback=downlink.feedback, grid=downlink.grid
            )
        else:
            self.versions = ModelVersions.restore(
                checkpoint.versions, layout.sha256, codec, feedback=downlink.feedback, grid=downlink.grid
            )
            self._optimizer.restore(checkpoint.optimizer)

    @property
    def vector(self) -> np.ndarray:
        """The model that every node holds or can rebuild; float32."""
        return self.versions.vector

    @property
    def sha256(self) -> str:
        """Hex SHA-256 of the model, over its little-endian float32 values."""
        return self.versions.sha256

    def publish(self, mean: np.ndarray, number: int) -> bool:
        """Make the next version of the mean; of one that would leave the weights' range, an unchanged one.

        Then nothing of the step, of earlier steps' rest and of the optimizer's memory is kept: asked again, the nodes
        would answer the same, and the run would end for all that one of them sent.

        Args:
            mean: Mean update of a round, float32.
            number: Of the round.

        Returns:
            Whether the step was taken.
        """
        try:
            self.versions.publish(self._optimizer.step(mean, number), self._residual_scale(number))
            return True
        except (CodecError, ValueError):
            LOG.exception("round %d: the step leaves the range of weights; the model stays as it is", number)
            self._optimizer = make_server_optimizer(self._plan.optimizer)
            self.versions.publish(np.zeros_like(mean), scale=0.0)
            return False

    def preview(self, mean: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The model that `publish` would make, and the one that it heads for; nothing changes.

        Raises:
            CodecError, ValueError: They leave the range of weights.
        """
        step = copy.deepcopy(self._optimizer).step(mean, number)
        return self.versions.preview(step, self._residual_scale(number))

    def optimizer_state(self) -> dict[str, np.ndarray]:
        """Memory of the server optimizer, to checkpoint."""
        return self._optimizer.state()

    def _residual_scale(self, number: int) -> float:
        """What the nodes' learning rate of a round is of the last one's, at most 1: so far the old residual counts."""
        rate_at, rounds = self._plan.optimizer.rate_at, self._plan.federation.rounds
        return min(1.0, rate_at(number, rounds) / rate_at(number - 1, rounds)) if number > 1 else 1.0
