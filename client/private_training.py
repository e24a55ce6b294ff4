"""Local training under differential privacy: DP-SGD at the node, before anything else touches the update."""

import math
import secrets
from collections.abc import Callable

import numpy as np
import torch

from fedglm.autoglm.data.examples import Examples
from fedglm.autoglm.models.parameters import federated_parameters, load_vector, to_vector
from fedglm.autoglm.settings import LocalTrainingSettings
from fedglm.autoglm.tasks.evaluation import Evaluation
from fedglm.autoglm.tasks.task import Task
from fedglm.autoglm.training.local import (
    LocalResult,
    TrainingError,
    cuda_devices,
    make_optimizer,
    warm_up,
)
from fedglm.autoglm.training.precision import ChosenPrecision
from fedglm.privacy.dp.clippers import ClippingMode, make_clipper
from fedglm.privacy.dp.dp_sgd import UnitSampler, compute_noised_mean, make_micro_batches
from fedglm.privacy.dp.mechanism import Mechanism
from fedglm.privacy.dp.noise import GaussianNoise
from fedglm.privacy.dp.noised_metrics import compute_noised_means
from fedglm.privacy.errors import PrivacyError


def train_privately(
    model: torch.nn.Module,
    task: Task,
    examples: Examples,
    base: np.ndarray,
    settings: LocalTrainingSettings,
    precision: ChosenPrecision,
    mechanism: Mechanism,
    *,
    learning_rate: float,
    declared_units: int,
    mode: ClippingMode = "auto",
    noise: GaussianNoise | None = None,
    canary_hook: Callable[[torch.Tensor], None] | None = None,
) -> LocalResult:
    """Load `base` into the model, take the mechanism's noised steps, and return the difference.

    The mechanism alone decides how many steps are taken and which units are in them: `settings.local_steps` and
    `batch_size` do nothing here, and neither does `gradient_clip`, since every unit is clipped already. There is no
    seed: what decides who takes part, the noise, and dropout come from the operating system.

    Args:
        model: Reused from round to round; its federated parameters are overwritten.
        task: Gives the loss of each sequence.
        examples: The node's training data, with their units.
        base: float32 vector of the federated parameters.
        settings: Optimizer, warm-up, records in memory at once.
        precision: Settled format and device; fp16 is refused.
        mechanism: Everything that the accounting of this round rests on.
        learning_rate: Of this round.
        declared_units: The number of units that the site makes public; not the true one, which is private.
        mode: How gradients are clipped.
        noise: Source of all randomness; a fresh one without.
        canary_hook: Adds an audit's canaries to the clipped sum of each step, before its noise; no node of a federation
            has any.

    Returns:
        The update, which may leave once its charge is in the ledger. The loss is NaN: a mean of private losses must
        not leave, and nothing here may depend on it.

    Raises:
        PrivacyError: The model or the precision does not allow it.
        TrainingError: A weight is not finite; it follows from noised values alone, so that it may be told.
    """
    if precision.name == "fp16":
        raise PrivacyError(
            "fp16 needs loss scaling, which distorts the norms that are clipped and skips steps: choose fp32 or bf16"
        )
    model.to(precision.device)
    load_vector(model, base)
    model.train()
    noise = noise or GaussianNoise()
    sampler = UnitSampler(examples.units.numpy(), mechanism, noise)
    parameters = [parameter for _, parameter in federated_parameters(model)]
    optimizer = make_optimizer(model, settings, learning_rate)
    with (
        torch.random.fork_rng(devices=cuda_devices(precision.device)),
        make_clipper(model, parameters, mechanism.clipping_norm, mode) as clipper,
    ):
        torch.manual_seed(secrets.randbits(63))
        for step in range(1, mechanism.steps + 1):
            warm_up(optimizer, settings, learning_rate, step)
            clipper.begin()
            for indices, owners in make_micro_batches(sampler.draw(), settings.micro_batch_size):
                batch = {name: tensor.to(precision.device) for name, tensor in examples.batch(indices).items()}
                with precision.autocast():
                    losses = task.sequence_losses(model, batch)
                clipper.add(losses, owners.to(precision.device))
            if canary_hook is not None:
                canary_hook(clipper.total)
            _follow(parameters, compute_noised_mean(clipper.total, mechanism, noise, declared_units))
            optimizer.step()
            clipper.drop_gradients()
    delta = to_vector(model) - base
    if not np.isfinite(delta).all():
        raise TrainingError("a trained weight is not finite: lower training.learning_rate")
    return LocalResult(delta=delta, loss=math.nan, steps=mechanism.steps)


def evaluate_privately(
    model: torch.nn.Module,
    task: Task,
    held_out: Examples,
    mechanism: Mechanism,
    *,
    noise: GaussianNoise | None = None,
) -> Evaluation:
    """Noised loss and metric of a model on held-out data, over units: they may leave once their charge is written.

    A unit's loss is cut at `task.loss_bound`. The count is of units, and noised too.

    Args:
        model: With the weights to measure.
        task: Gives loss and metric.
        held_out: The node's held-out data, with their units; even whether there are any stays private.
        mechanism: How the measures are noised.
        noise: Source of all randomness; a fresh one without.
    """
    noise = noise or GaussianNoise()
    drawn = UnitSampler(held_out.units.numpy(), mechanism, noise).draw() if len(held_out) else []
    owners = np.repeat(np.arange(len(drawn)), [len(records) for records in drawn])
    losses, correct = task.measure(model, held_out.select(np.concatenate([*drawn, np.zeros(0, np.int64)])))
    values = np.stack([losses.numpy(), correct.numpy()], axis=1)
    (loss, accuracy), count = compute_noised_means(values, owners, (task.loss_bound, 1.0), mechanism, noise)
    return task.evaluation(loss, accuracy, count)


def _follow(parameters: list[torch.nn.Parameter], gradient: torch.Tensor) -> None:
    """Give each parameter its part of a flat gradient."""
    start = 0
    for parameter in parameters:
        parameter.grad = gradient[start : start + parameter.numel()].view_as(parameter)
        start += parameter.numel()
