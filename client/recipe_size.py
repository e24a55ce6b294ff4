"""What a run takes of a node's memory, by its recipe alone: known before any is taken, and before a record is read.

It is an estimate of the right order, from the shapes of the model and the tokens that are in memory at once. A node
refuses a run that is beyond it by far, as it would otherwise be killed for it, again and again.
"""

from dataclasses import dataclass
from typing import Final, Self

import torch

from fedglm.autoglm.models.parameters import federated_parameters
from fedglm.autoglm.tasks.task import Task
from fedglm.core.control_groups import read_memory_limit
from fedglm.protocol.recipe import RecipeError

BASE_BYTES: Final = 256 * 2**20
"""Of a node that has no model yet: interpreter and libraries."""

# In float32 numbers, measured with glm-0.1m, glm-0.5m and glm-10m, full and with adapters.
_COPIES: Final = 12  # of what is federated: versions, residuals, gradients, noise, the optimizer's state
_HIDDEN, _INTERMEDIATE = 12, 4  # widths that a training step keeps of a token by layer
_LOGITS: Final = 4  # and after the last one
_CLIPPED: Final = 1.75  # times as much, where gradients are clipped one by one
_EVALUATED: Final = 64  # sequences at once when a model is measured; a layer at a time


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """What memory follows from, of a model that need not have weights yet.

    Attributes:
        parameters: Its parameters.
        federated: Those that train.
        kept: Numbers of a token that a training step keeps for the way back.
        passed: Numbers of a token that are needed at once on the way through.
        length: Tokens of the longest sequence.
    """

    parameters: int
    federated: int
    kept: int
    passed: int
    length: int

    @classmethod
    def of(cls, model: torch.nn.Module, task: Task) -> Self:
        """Of a model as `autoglm.models.build` builds or outlines it."""
        config = model.config.get_text_config()  # type: ignore[operator, union-attr]  # a transformers model, or peft's
        hidden = int(config.hidden_size)
        inner = int(getattr(config, "intermediate_size", None) or 4 * hidden)
        outputs = _LOGITS * task.outputs(int(config.vocab_size))
        return cls(
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            federated=sum(parameter.numel() for _, parameter in federated_parameters(model)),
            kept=int(config.num_hidden_layers) * (_HIDDEN * hidden + _INTERMEDIATE * inner) + outputs,
            passed=_HIDDEN * hidden + _INTERMEDIATE * inner + outputs,
            length=task.length,
        )


def check_memory(
    size: ModelSize, sequences: int, device: torch.device, *, clipped: bool = False, measures: bool = False
) -> None:
    """Refuse a run that cannot fit into this node's memory.

    Args:
        size: Of its model.
        sequences: That a training step has in memory at once.
        device: Where it trains.
        clipped: Whether the step clips gradients one by one.
        measures: Whether received models are measured too.

    Raises:
        RecipeError: It cannot; the message has no figure of this machine.
    """
    step = 4 * sequences * size.length * size.kept * (_CLIPPED if clipped else 1)
    measuring = 4 * _EVALUATED * size.length * size.passed if measures else 0
    at_work = max(int(step), measuring)
    vectors = 4 * (size.parameters + _COPIES * size.federated)
    if device.type == "cuda" and torch.cuda.is_available():
        needed = [
            (vectors + BASE_BYTES, read_memory_limit()),
            (vectors + at_work, torch.cuda.get_device_properties(device).total_memory),
        ]
    else:
        needed = [(vectors + at_work + BASE_BYTES, read_memory_limit())]
    if any(most > limit for most, limit in needed):
        raise RecipeError(
            f"the run takes about {max(most for most, _ in needed) / 2**20:.0f} MiB, with {size.parameters} parameters "
            f"and {sequences} sequences of {size.length} tokens at once, and this node has less"
        )
