"""A probe with which an audit runs the node's own private training and reads what it would release."""

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

DECLARED_UNITS: Final = 1000
"""Units that the audited site declares: more than any probe has, so that dividing by the true count shows."""

MAX_VALUES: Final = 2**29
"""Most values of gradients that are in memory at once: 2 GiB of float32."""


class DoesNotFit(PrivacyError):
    """A part of an audit would need more than its memory limit: it is left out, and says nothing about the training."""


def max_gradients(values: int) -> int:
    """Return how many gradients of so many values may be in memory at once."""
    return MAX_VALUES // values


@dataclass(frozen=True)
class TrainingProbe:
    """Model and records of an audit.

    Attributes:
        model: The model; its weights are overwritten.
        task: Task of the records.
        records: Records that a node would train on.
        base: (d,) float32, weights to start from.
        training: Settings of which the precision, device and number of records in memory at once are used, as in the
            run. What follows the noise, such as the optimizer, is the audit's own: it cannot cost privacy, and plain
            SGD steps show the noised sums as they are.
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
        """Precision that a node would choose for private training.

        Raises:
            PrecisionError: This machine has no such device.
        """
        return choose_precision(self.training.precision, self.size, torch_device(self.training.device), private=True)

    @property
    def parts(self) -> dict[str, slice]:
        """Place of each federated parameter in a vector, by its name."""
        parts, start = {}, 0
        for name, parameter in federated_parameters(self.model):
            parts[name] = slice(start, start + parameter.numel())
            start += parameter.numel()
        return parts

    def release(
        self,
        mechanism: Mechanism,
        records: Examples | None = None,
        canary_hook: Callable[[torch.Tensor], None] | None = None,
        micro_batch_size: int | None = None,
    ) -> npt.NDArray[np.float64]:
        """Run the node's training and return what it releases: the sum of its steps' noised clipped sums.

        Args:
            mechanism: The mechanism, as in a plan.
            records: Records to train on; the probe's without it.
            canary_hook: See `train_privately`.
            micro_batch_size: Records in memory at once; as in the run without it.

        Returns:
            (d,) float64, in clipping norms.
        """
        settings = LocalTrainingSettings(
            optimizer="sgd",
            momentum=0.0,
            weight_decay=0.0,
            micro_batch_size=micro_batch_size or self.training.micro_batch_size,
        )
        # At this rate a step moves the weights by the noised sum in clipping norms, a scale that suits float32.
        rate = mechanism.sampling_rate * DECLARED_UNITS / mechanism.clipping_norm
        result = train_privately(
            self.model,
            self.task,
            self.records if records is None else records,
            self.base,
            settings,
            self.precision,
            mechanism,
            learning_rate=rate,
            declared_units=DECLARED_UNITS,
            canary_hook=canary_hook,
        )
        return -result.delta.astype(np.float64)

    def compute_gradient(self, record: Examples) -> npt.NDArray[np.float32]:
        """Return (d,) float32, the plain gradient of one record at the starting weights, by autograd alone."""
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

    def compute_gradients(self, records: Examples, part: slice = slice(None)) -> npt.NDArray[np.float32]:
        """Compute the gradient of each record by itself.

        Args:
            records: The records.
            part: Part of each gradient to be kept.

        Returns:
            (n, values) float32, one row per record.

        Raises:
            DoesNotFit: The gradients take more than 2 GiB.
        """
        values = len(range(self.size)[part])
        if len(records) > max_gradients(values):
            raise DoesNotFit(f"{len(records)} gradients of {values:,} parameters take more than 2 GiB")
        rows = np.empty((len(records), values), np.float32)
        for number, row in enumerate(rows):
            row[:] = self.compute_gradient(records.select([number]))[part]
        return rows

    def craft_records(self, count: int, noise: GaussianNoise) -> Examples:
        """Make records that no site has: random tokens and labels, each record of a unit of its own.

        Args:
            count: Number of records.
            noise: Source of randomness.
        """
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
