"""The global model at the server: its published version, and the server optimizer that computes the next one."""

import copy
import logging

import numpy as np

from fedglm.compression.codec import CodecError
from fedglm.compression.downlink import ModelVersions
from fedglm.server.aggregation.optimizers import make_server_optimizer
from fedglm.server.rounds.checkpoint import Checkpoint
from fedglm.server.rounds.requests import compute_envelope_size
from fedglm.server.run_setup import Plan

LOG = logging.getLogger(__name__)


class GlobalModel:
    """The global model of a run.

    Args:
        plan: Plan of the run.
        checkpoint: Checkpoint to resume from; None starts with version 0.

    Attributes:
        versions: Published model and its deltas.
    """

    def __init__(self, plan: Plan, checkpoint: Checkpoint | None) -> None:
        self._plan = plan
        self._optimizer = make_server_optimizer(plan.optimizer)
        downlink, layout = plan.downlink, plan.layout
        codec = downlink.make_codec(layout, envelope=compute_envelope_size(layout))
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
        """The published model, which every node holds or can rebuild; shape (n,), float32."""
        return self.versions.vector

    @property
    def sha256(self) -> str:
        """Hex SHA-256 of the model, over its little-endian float32 values."""
        return self.versions.sha256

    def publish(self, mean: np.ndarray, server_round: int) -> bool:
        """Publish the next version from the mean; an unchanged model where it would leave the weights' range.

        In that case the step, the residual of earlier steps and the optimizer's state are dropped: if the round were
        repeated instead, the nodes would reply the same, and one node's update would end the run for all.

        Args:
            mean: Mean update of the round, shape (n,), float32.
            server_round: Number of the round.

        Returns:
            Whether the step was taken.
        """
        try:
            self.versions.publish(self._optimizer.step(mean, server_round), self._residual_scale(server_round))
            return True
        except (CodecError, ValueError):
            LOG.exception("round %d: the step leaves the range of weights; the model stays as it is", server_round)
            self._optimizer = make_server_optimizer(self._plan.optimizer)
            self.versions.publish(np.zeros_like(mean), scale=0.0)
            return False

    def preview(self, mean: np.ndarray, server_round: int) -> tuple[np.ndarray, np.ndarray]:
        """Compute the model that `publish` would make, and its target before coding; nothing is changed.

        Args:
            mean: Mean update of the round, shape (n,), float32.
            server_round: Number of the round.

        Returns:
            Both models, each of shape (n,), float32.

        Raises:
            CodecError, ValueError: A model leaves the range of weights.
        """
        step = copy.deepcopy(self._optimizer).step(mean, server_round)
        return self.versions.preview(step, self._residual_scale(server_round))

    def optimizer_state(self) -> dict[str, np.ndarray]:
        """Return the state of the server optimizer to checkpoint, as named arrays."""
        return self._optimizer.state()

    def _residual_scale(self, server_round: int) -> float:
        """Return the factor on the old residual: the nodes' learning rate over the last round's, at most 1."""
        rate_at, rounds = self._plan.optimizer.rate_at, self._plan.federation.rounds
        return min(1.0, rate_at(server_round, rounds) / rate_at(server_round - 1, rounds)) if server_round > 1 else 1.0
