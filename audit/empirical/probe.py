"""A bench on which an audit runs the node's own private training, and reads what would be released."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from fedglm.autoglm.data.examples import Examples
from fedglm.autoglm.models.parameters import federated_parameters, load_vector
from fedglm.autoglm.settings import LocalTrainingSettings
from fedglm.autoglm.tasks.task import Task
from fedglm.autoglm.training.precision import ChosenPrecision, choose_precision, torch_device
from fedglm.client.private_training import train_privately
from fedglm.privacy.dp.mechanism import Mechanism
from fedglm.privacy.dp.noise import GaussianNoise
from fedglm.privacy.errors import PrivacyError

DECLARED: Final = 1000
"""Units that the audited site says that it has; no bench holds as many, so that dividing by a true count shows."""

MAX_VALUES: Final = 2**29
"""Of the gradients that are in memory at once, in float32: 2 GiB."""


class DoesNotFit(PrivacyError):
    """A part of an audit needs more memory than it takes: it is left out, and says nothing of the training."""


def max_gradients(values: int) -> int:
    """How many gradients of so many values are in memory at once."""
    return MAX_VALUES // values


@dataclass(frozen=True)
class Bench:
    """Model and records of an audit.

    Attributes:
        model: Its weights are overwritten.
        task: Of the records.
        records: What a node would train on.
        base: float32 vector of the weights to start from.
        training: Whose precision, device and records in memory at once are the run's. What follows the noise, as the
            optimizer, is the audit's own: it can cost no privacy, and plain steps show the noised sums as they are.
    """

    model: torch.nn.Module
    task: Task
    records: Examples
    base: npt.NDArray[np.float32]
    training: LocalTrainingSettings = field(default_factory=LocalTrainingSettings)

    @property
    def size(self) -> int:
        """Number of federated parameters."""
        return len(self.base)

    @cached_property
    def precision(self) -> ChosenPrecision:
        """As a node chooses it for private training.

        Raises:
            PrecisionError: This machine has no such device.
        """
        return choose_precision(self.training.precision, self.size, torch_device(self.training.device), private=True)

    @property
    def parts(self) -> dict[str, slice]:
        """Where each federated parameter lies in a vector."""
        found, start = {}, 0
        for name, parameter in federated_parameters(self.model):
            found[name] = slice(start, start + parameter.numel())
            start += parameter.numel()
        return found

    def released(
        self,
        mechanism: Mechanism,
        records: Examples | None = None,
        canary_hook: Callable[[torch.Tensor], None] | None = None,
        micro_batch_size: int | None = None,
    ) -> npt.NDArray[np.float64]:
        """What the node's training releases of its steps: the sum of their noised clipped sums, in clipping norms.

        Args:
            mechanism: As in a plan.
            records: Instead of the bench's.
            canary_hook: As of `train_privately`.
            micro_batch_size: Records in memory at once, instead of the run's.
        """
        settings = LocalTrainingSettings(
            optimizer="sgd",
            momentum=0.0,
            weight_decay=0.0,
            micro_batch_size=micro_batch_size or self.training.micro_batch_size,
        )
        # With this rate a step moves the weights by the noised sum in clipping norms, which float32 holds well.
        rate = mechanism.sampling_rate * DECLARED / mechanism.clipping_norm
        result = train_privately(
            self.model,
            self.task,
            self.records if records is None else records,
            self.base,
            settings,
            self.precision,
            mechanism,
            learning_rate=rate,
            declared_units=DECLARED,
            canary_hook=canary_hook,
        )
        return -result.delta.astype(np.float64)

    def gradient(self, record: Examples) -> npt.NDArray[np.float32]:
        """(d,) the plain gradient of one record at the starting weights, by autograd alone."""
        device = self.precision.device
        self.model.to(device)
        load_vector(self.model, self.base)
        self.model.zero_grad(set_to_none=True)
        batch = {name: tensor.to(device) for name, tensor in record.batch([0]).items()}
        with self.precision.autocast():
            loss = self.task.sequence_losses(self.model, batch).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        flat = np.zeros(self.size, np.float32)
        for place, (_, parameter) in zip(self.parts.values(), federated_parameters(self.model), strict=True):
            if parameter.grad is not None:
                flat[place] = parameter.grad.detach().reshape(-1).cpu().numpy()
        self.model.zero_grad(set_to_none=True)
        return flat

    def gradients(self, records: Examples, part: slice = slice(None)) -> npt.NDArray[np.float32]:
        """(n, values) of `gradient`, one row a record.

        Args:
            records: Of each one's own.
            part: Of each gradient, what is kept.

        Raises:
            DoesNotFit: They take more than 2 GiB.
        """
        values = len(range(self.size)[part])
        if len(records) > max_gradients(values):
            raise DoesNotFit(f"{len(records)} gradients of {values:,} parameters take more than 2 GiB")
        rows = np.empty((len(records), values), np.float32)
        for number, row in enumerate(rows):
            row[:] = self.gradient(records.select([number]))[part]
        return rows

    def crafted(self, count: int, noise: GaussianNoise) -> Examples:
        """Records that no site has: random tokens, random labels, each of a unit of its own."""
        length = self.records.input_ids.shape[1]
        special = (self.task.pad_id, self.task.bos_id, self.task.eos_id)
        ordinary = np.setdiff1d(np.arange(self.task.vocab_size), special)
        tokens = ordinary[np.floor(noise.uniform(count * length) * len(ordinary)).astype(np.int64)]
        tokens = tokens.reshape(count, length)
        tokens[:, -1] = self.task.eos_id
        kinds = max(1, len(self.task.classes))
        return Examples(
            input_ids=torch.from_numpy(tokens).to(self.records.input_ids.dtype),
            lengths=torch.full((count,), length, dtype=torch.int32),
            labels=torch.from_numpy(np.floor(noise.uniform(count) * kinds).astype(np.int64)),
            units=torch.arange(count) + 10**9,
        )
