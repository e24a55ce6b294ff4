"""Estimate of the memory that a run takes on a node, from its recipe alone: before memory is used or a record is read.

The estimate is of the right order of magnitude, from the shapes of the model and the tokens that are in memory at once.
A node refuses a run that exceeds its memory by far: otherwise the system would kill it, again and again.
"""

from dataclasses import dataclass
from typing import Final, Self

import torch

from fedglm.autoglm.models.parameters import federated_parameters
from fedglm.autoglm.tasks.task import Task
from fedglm.core.processes.control_groups import read_memory_limit
from fedglm.protocol.recipe import RecipeError

BASE_BYTES: Final = 256 * 2**20
"""Memory of a node without a model, in bytes: interpreter and libraries."""

# In float32 numbers, measured with glm-0.1m, glm-0.5m and glm-10m, full and with adapters.
_COPIES: Final = 12  # of the federated parameters: versions, residuals, gradients, noise, the optimizer's state
_HIDDEN, _INTERMEDIATE = 12, 4  # widths that a training step keeps per token and layer
_LOGITS: Final = 4  # widths of the output that a training step keeps per token
_CLIPPED: Final = 1.75  # factor of per-sample clipping
_EVALUATED: Final = 64  # sequences in memory at once when a model is evaluated, one layer at a time


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """Sizes of a model that its memory depends on; the model need not have weights.

    Attributes:
        parameters: Number of parameters.
        federated: Number of federated (trained) parameters.
        backward_activations: Activations per token that a training step keeps for the backward pass.
        forward_activations: Activations per token that are in memory at once in a forward pass.
        length: Maximum length of a sequence, in tokens.
    """

    parameters: int
    federated: int
    backward_activations: int
    forward_activations: int
    length: int

    @classmethod
    def from_model(cls, model: torch.nn.Module, task: Task) -> Self:
        """Compute the sizes of a model as `autoglm.models.build` builds or outlines it."""
        config = model.config.get_text_config()  # type: ignore[operator, union-attr]  # a transformers model, or peft's
        hidden = int(config.hidden_size)
        inner = int(getattr(config, "intermediate_size", None) or 4 * hidden)
        outputs = _LOGITS * task.outputs(int(config.vocab_size))
        layer = _HIDDEN * hidden + _INTERMEDIATE * inner
        return cls(
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            federated=sum(parameter.numel() for _, parameter in federated_parameters(model)),
            backward_activations=int(config.num_hidden_layers) * layer + outputs,
            forward_activations=layer + outputs,
            length=task.length,
        )


def check_memory(
    size: ModelSize, sequences: int, device: torch.device, *, clipped: bool = False, evaluated: bool = False
) -> None:
    """Check that a run fits into this node's memory.

    Args:
        size: Sizes of its model.
        sequences: Sequences that a training step has in memory at once.
        device: Device that it trains on.
        clipped: Whether the step clips per-sample gradients.
        evaluated: Whether received models are evaluated too.

    Raises:
        RecipeError: It does not fit; the message contains no figure of this machine.
    """
    training = 4 * sequences * size.length * size.backward_activations * (_CLIPPED if clipped else 1)
    evaluating = 4 * _EVALUATED * size.length * size.forward_activations if evaluated else 0
    activations = max(int(training), evaluating)
    vectors = 4 * (size.parameters + _COPIES * size.federated)
    if device.type == "cuda" and torch.cuda.is_available():
        demands = [
            (vectors + BASE_BYTES, read_memory_limit()),
            (vectors + activations, torch.cuda.get_device_properties(device).total_memory),
        ]
    else:
        demands = [(vectors + activations + BASE_BYTES, read_memory_limit())]
    if any(needed > limit for needed, limit in demands):
        raise RecipeError(
            f"the run takes about {max(needed for needed, _ in demands) / 2**20:.0f} MiB, with {size.parameters} "
            f"parameters and {sequences} sequences of {size.length} tokens at once, and this node has less"
        )
