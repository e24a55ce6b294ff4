"""Local training without noise: optimizer steps on given data, in mixed precision, deterministic for a seed.

Nodes without DP, baselines and later uses of their model train with it.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from fedglm.autoglm.data.examples import Examples
from fedglm.autoglm.errors import DataError
from fedglm.autoglm.models.parameters import federated_parameters, load_vector, to_vector
from fedglm.autoglm.settings import LocalTrainingSettings
from fedglm.autoglm.tasks.task import Batch
from fedglm.autoglm.training.precision import ChosenPrecision
from fedglm.core.errors import FedglmError

SequenceLosses = Callable[[torch.nn.Module, Batch], torch.Tensor]
"""Function of a model and a batch that returns the loss of each sequence, (B,), float32, with gradients."""


class TrainingError(FedglmError, RuntimeError):
    """Local training failed: a loss or a weight is no longer finite."""


@dataclass(frozen=True)
class LocalResult:
    """Result of local training.

    Attributes:
        delta: Local weights minus the received ones, shape (size,), float32.
        loss: Mean training loss over the steps, in nats.
        steps: Number of optimizer steps.
    """

    delta: np.ndarray
    loss: float
    steps: int


def round_seed(*parts: object) -> int:
    """Derive a 63-bit seed from the experiment's seed, the node and the round; never from arrival order or time."""
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def train_locally(
    model: torch.nn.Module,
    losses: SequenceLosses,
    examples: Examples,
    base: np.ndarray,
    settings: LocalTrainingSettings,
    precision: ChosenPrecision,
    *,
    learning_rate: float,
    seed: int,
    steps: int | None = None,
) -> LocalResult:
    """Load `base` into the model, train, and return the difference.

    Args:
        model: Model, reused from round to round; its federated parameters are overwritten.
        losses: Computes the loss of each sequence: a task's `sequence_losses`, or another such as distillation's.
        examples: The training data.
        base: Initial federated parameters, shape (size,), float32.
        settings: Steps, batch size, optimizer.
        precision: Chosen format and device.
        learning_rate: Learning rate of this round.
        seed: Seed of data order and dropout.
        steps: Number of steps; None takes `settings.local_steps`.

    Raises:
        DataError: There are no examples.
        TrainingError: The loss or a weight is not finite.
    """
    if not len(examples):
        raise DataError("no examples to train on")
    steps = steps or settings.local_steps
    model.to(precision.device)
    load_vector(model, base)
    model.train()
    optimizer = make_optimizer(model, settings, learning_rate)
    scaler = precision.scaler()
    generator = torch.Generator().manual_seed(seed)
    total = 0.0
    with torch.random.fork_rng(devices=cuda_devices(precision.device)):
        seed_torch(precision.device, seed)
        for step, indices in enumerate(draw_batches(len(examples), settings.batch_size, steps, generator), start=1):
            warm_up(optimizer, settings, learning_rate, step)
            optimizer.zero_grad(set_to_none=True)
            for part in torch.split(indices, settings.micro_batch_size or len(indices)):
                batch = {name: tensor.to(precision.device) for name, tensor in examples.batch(part).items()}
                with precision.autocast():
                    loss = losses(model, batch).sum() / len(indices)
                torch.autograd.backward(scaler.scale(loss))
                total += float(loss.detach())
            if settings.gradient_clip:
                scaler.unscale_(optimizer)
                trained = [parameter for _, parameter in federated_parameters(model)]
                torch.nn.utils.clip_grad_norm_(trained, settings.gradient_clip)
            scaler.step(optimizer)
            scaler.update()
    optimizer.zero_grad(set_to_none=True)  # the next node uses the model, and its clipping requires fresh gradients
    if not math.isfinite(total):
        raise TrainingError("the training loss is not finite: lower training.learning_rate or choose precision fp32")
    delta = to_vector(model) - base
    if not np.isfinite(delta).all():
        raise TrainingError("a trained weight is not finite: lower training.learning_rate or choose precision fp32")
    return LocalResult(delta=delta, loss=total / steps, steps=steps)


def make_optimizer(model: torch.nn.Module, settings: LocalTrainingSettings, rate: float) -> torch.optim.Optimizer:
    """Make an optimizer of the federated parameters, with fresh state."""
    trained = [parameter for _, parameter in federated_parameters(model)]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(trained, lr=rate, weight_decay=settings.weight_decay)
    return torch.optim.SGD(trained, lr=rate, momentum=settings.momentum, weight_decay=settings.weight_decay)


def warm_up(optimizer: torch.optim.Optimizer, settings: LocalTrainingSettings, rate: float, step: int) -> None:
    """Set the learning rate of step `step` of a round, counted from 1."""
    for group in optimizer.param_groups:
        group["lr"] = rate * min(1.0, step / (settings.warmup_steps + 1))


def draw_batches(size: int, batch_size: int, steps: int, generator: torch.Generator) -> list[torch.Tensor]:
    """Draw the index tensors of `steps` batches: shuffled passes over the data, one after the other."""
    needed = steps * min(batch_size, size)
    order: list[torch.Tensor] = []
    drawn = 0
    while drawn < needed:
        order.append(torch.randperm(size, generator=generator))
        drawn += size
    return list(torch.split(torch.cat(order)[:needed], min(batch_size, size)))


def seed_torch(device: torch.device, seed: int) -> None:
    """Seed the random numbers that training on `device` draws."""
    if device.type == "cpu":  # torch.manual_seed takes milliseconds, and a list grows, for accelerators not in use
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def cuda_devices(device: torch.device) -> list[int]:
    """Return the indices of CUDA devices whose random state training must restore."""
    return [device.index or 0] if device.type == "cuda" else []
