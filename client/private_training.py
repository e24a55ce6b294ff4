"""Local training and evaluation under differential privacy: DP-SGD at the node, before any other step of the update."""

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
    seed_torch,
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

    The mechanism alone decides the number of steps and the sampled units: `settings.local_steps` and `batch_size` have
    no effect here, and neither has `gradient_clip`, since each unit is clipped. There is no seed: sampling, noise and
    dropout draw from the operating system's CSPRNG.

    Args:
        model: Model, reused from round to round; its federated parameters are overwritten.
        task: Task that computes the loss of each sequence.
        examples: The node's training data, with their units.
        base: Initial federated parameters, shape (size,), float32.
        settings: Optimizer, warm-up, micro-batch size.
        precision: Chosen format and device; fp16 is refused.
        mechanism: All parameters that the accounting of this round depends on.
        learning_rate: Learning rate of this round.
        declared_units: Number of units that the site declares publicly; not the true one, which is private.
        mode: Clipping method.
        noise: Source of all randomness; None makes a new one.
        canary_hook: Adds an audit's canaries to the clipped sum of each step, before its noise; a node of a federation
            never has one.

    Returns:
        The update, which may leave once its charge is in the ledger. The loss is NaN: a mean of private losses must
        not leave, and nothing here may depend on it.

    Raises:
        PrivacyError: The model or the precision does not support DP-SGD.
        TrainingError: A weight is not finite. It depends on noised values alone, so that it may be reported.
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
        seed_torch(precision.device, secrets.randbits(63))
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
            _set_gradients(parameters, compute_noised_mean(clipper.total, mechanism, noise, declared_units))
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
    """Compute the noised loss and metric of a model on held-out data; they may leave once their charge is written.

    Means are over units. A unit's loss is clipped at `task.loss_bound`. The count is the noised number of units.

    Args:
        model: Model with the weights to evaluate.
        task: Task that computes loss and metric.
        held_out: The node's held-out data, with their units; whether there are any is private too.
        mechanism: Mechanism that adds noise to the metrics.
        noise: Source of all randomness; None makes a new one.
    """
    noise = noise or GaussianNoise()
    drawn = UnitSampler(held_out.units.numpy(), mechanism, noise).draw() if len(held_out) else []
    owners = np.repeat(np.arange(len(drawn)), [len(records) for records in drawn])
    losses, correct = task.measure(model, held_out.select(np.concatenate([*drawn, np.zeros(0, np.int64)])))
    values = np.stack([losses.numpy(), correct.numpy()], axis=1)
    (loss, accuracy), count = compute_noised_means(values, owners, (task.loss_bound, 1.0), mechanism, noise)
    return task.evaluation(loss, accuracy, count)


def _set_gradients(parameters: list[torch.nn.Parameter], gradient: torch.Tensor) -> None:
    """Set each parameter's gradient from a flat one, shape (size,)."""
    start = 0
    for parameter in parameters:
        parameter.grad = gradient[start : start + parameter.numel()].view_as(parameter)
        start += parameter.numel()
