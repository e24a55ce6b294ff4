"""A model together with its federated form: one flat vector, whose version 0 both ends compute."""

import copy

import numpy as np
import torch

from fedglm.autoglm.models.parameters import federated_parameters, to_vector
from fedglm.autoglm.tasks.task import Task
from fedglm.compression.downlink import round_to_grid
from fedglm.compression.layout import Layout
from fedglm.compression.settings import DownlinkSettings


class FederatedModel:
    """A model, built once per process and used by one node after the other.

    Args:
        module: The initialised model; its federated parameters, rounded to the grid, are version 0.
        task: Task that the model is trained for.
        downlink: Coding of published models; every version is rounded to its grid.

    Attributes:
        module: The model.
        task: Task that the model is trained for.
        downlink: Coding of published models.
        layout: Names and shapes of the federated parameters.
        initial: Version 0, shape (size,), float32.
    """

    def __init__(self, module: torch.nn.Module, task: Task, downlink: DownlinkSettings) -> None:
        self.module = module
        self.task = task
        self.layout = make_layout(module)
        self.initial = round_to_grid(to_vector(module), downlink.grid)
        self.downlink = downlink

    def starting_from(self, vector: np.ndarray) -> "FederatedModel":
        """Return the same model with another version 0, shape (size,), float32, which lies on the grid."""
        other = copy.copy(self)
        other.initial = vector
        return other


def make_layout(module: torch.nn.Module) -> Layout:
    """Return names and shapes of the federated parameters, in the order of the flat vector."""
    named = federated_parameters(module)
    return Layout(
        names=tuple(name for name, _ in named),
        shapes=tuple(tuple(parameter.shape) for _, parameter in named),
    )
