"""A bench on which an audit runs the node's own private training, and reads what would be released."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from fedglm.autoglm.examples import Examples
from fedglm.autoglm.parameters import federated_parameters
from fedglm.autoglm.tasks import Task
from fedglm.client.precision import choose_precision
from fedglm.client.private_training import train_privately
from fedglm.client.training import LocalTrainingSettings
from fedglm.privacy.mechanism import Mechanism
from fedglm.privacy.noise import GaussianNoise

DECLARED: Final = 1000
"""Units that the audited site says that it has; no bench holds as many, so that dividing by a true count shows."""

_SETTINGS: Final = LocalTrainingSettings(optimizer="sgd", momentum=0.0, weight_decay=0.0, precision="fp32")


@dataclass(frozen=True)
class Bench:
    """Model and records of an audit.

    Attributes:
        model: Its weights are overwritten.
        task: Of the records.
        records: What a node would train on.
        base: float32 vector of the weights to start from.
        device: `cpu` or `cuda`.
    """

    model: torch.nn.Module
    task: Task
    records: Examples
    base: npt.NDArray[np.float32]
    device: str = "cpu"

    @property
    def size(self) -> int:
        """Number of federated parameters."""
        return len(self.base)

    def released(
        self,
        mechanism: Mechanism,
        records: Examples | None = None,
        planted: Callable[[torch.Tensor], None] | None = None,
        micro_batch_size: int | None = None,
    ) -> npt.NDArray[np.float64]:
        """What the node's training releases of its steps: the sum of their noised clipped sums, in clipping norms.

        Args:
            mechanism: As in a plan.
            records: Instead of the bench's.
            planted: As of `train_privately`.
            micro_batch_size: Records in memory at once.
        """
        settings = _SETTINGS.model_copy(update={"micro_batch_size": micro_batch_size})
        private = choose_precision("fp32", self.size, torch.device(self.device), private=True)
        # With this rate a step moves the weights by the noised sum in clipping norms, which float32 holds well.
        rate = mechanism.sampling_rate * DECLARED / mechanism.clipping_norm
        result = train_privately(
            self.model,
            self.task,
            self.records if records is None else records,
            self.base,
            settings,
            private,
            mechanism,
            learning_rate=rate,
            declared_units=DECLARED,
            planted=planted,
        )
        return -result.delta.astype(np.float64)

    def gradient(self, record: Examples) -> npt.NDArray[np.float64]:
        """The plain gradient of one record at the starting weights, by autograd alone."""
        from fedglm.autoglm.parameters import load_vector

        load_vector(self.model, self.base)
        self.model.zero_grad(set_to_none=True)
        batch = {name: tensor.to(self.device) for name, tensor in record.batch([0]).items()}
        self.task.sequence_losses(self.model, batch).sum().backward()  # type: ignore[no-untyped-call]
        parts = [
            torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            for _, parameter in federated_parameters(self.model)
        ]
        flat = torch.cat([part.detach().reshape(-1).cpu() for part in parts]).numpy().astype(np.float64)
        self.model.zero_grad(set_to_none=True)
        return flat

    def crafted(self, count: int, noise: GaussianNoise) -> Examples:
        """Records that no site has: random tokens, random labels, each of a unit of its own."""
        length = self.records.input_ids.shape[1]
        special = (self.task.pad_id, self.task.bos_id, self.task.eos_id)
        ordinary = np.setdiff1d(np.arange(self.task.vocab_size), special)
        tokens = ordinary[np.floor(noise.uniform(count * length) * len(ordinary)).astype(np.int64)]
        tokens = tokens.reshape(count, length)
        tokens[:, -1] = self.task.eos_id
        kinds = max(1, len(self.task.labels))
        return Examples(
            input_ids=torch.from_numpy(tokens).to(self.records.input_ids.dtype),
            lengths=torch.full((count,), length, dtype=torch.int32),
            labels=torch.from_numpy(np.floor(noise.uniform(count) * kinds).astype(np.int64)),
            units=torch.arange(count) + 10**9,
        )


def joined(first: Examples, second: Examples) -> Examples:
    """Both sets of records."""
    return Examples(
        input_ids=torch.cat([first.input_ids, second.input_ids]),
        lengths=torch.cat([first.lengths, second.lengths]),
        labels=torch.cat([first.labels, second.labels]),
        units=torch.cat([first.units, second.units]),
    )
