"""A model together with the form in which it is federated: one flat vector, whose version 0 both ends compute."""

import torch

from fedglm.autoglm.models.parameters import federated_parameters, to_vector
from fedglm.autoglm.tasks.task import Task
from fedglm.compression.downlink import round_to_grid
from fedglm.compression.layout import Layout
from fedglm.compression.settings import DownlinkSettings


class FederatedModel:
    """A model to compute with, built once a process and lent to one node after the other.

    Args:
        module: The initialised model; its federated parameters, rounded to the grid, are version 0.
        task: What it is trained for.
        downlink: How models are published; its grid is the one that every version lies on.

    Attributes:
        layout: Names and shapes of what is federated.
        initial: (size,) float32, version 0.
    """

    def __init__(self, module: torch.nn.Module, task: Task, downlink: DownlinkSettings) -> None:
        self.module = module
        self.task = task
        self.layout = make_layout(module)
        self.initial = round_to_grid(to_vector(module), downlink.grid)
        self.downlink = downlink


def model_layout(module: torch.nn.Module) -> Layout:
    """Names and shapes of what is federated, in the order in which it lies in the flat vector."""
    named = federated_parameters(module)
    return Layout(
        names=tuple(name for name, _ in named),
        shapes=tuple(tuple(parameter.shape) for _, parameter in named),
    )
