"""Training of a student: distillation, recovery of a pruned model, quantization-aware training, and their control.

One loop serves all, so that a control differs from what it controls by the settings alone. It trains whatever
parameters require gradients: those under parametrizations and masks too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Protocol

import torch

from fedglm.autoglm.data.examples import Examples
from fedglm.autoglm.errors import DataError, ModelError
from fedglm.autoglm.light.distillation.losses import divergences
from fedglm.autoglm.light.distillation.schedules import rate_factor, value_at
from fedglm.autoglm.light.distillation.settings import DistillationSettings, Stage
from fedglm.autoglm.light.distillation.teacher import Teacher
from fedglm.autoglm.models.parameters import federated_parameters
from fedglm.autoglm.tasks.evaluation import Evaluation
from fedglm.autoglm.tasks.task import Task, compute_logits
from fedglm.autoglm.training.local import TrainingError, cuda_devices, draw_batches, seed_torch
from fedglm.autoglm.training.precision import ChosenPrecision, choose_precision, torch_device

_BETAS = (0.9, 0.95)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A step that was made.

    Attributes:
        step: Number of the step over all stages, from 1; 0 before the first.
        steps: Number of steps of all stages.
        stage: Number of the stage, from 0.
        loss: Training loss of the step, in nats; NaN before the first.
        held_out: Evaluation on the held-out examples, where the step ended with one.
    """

    step: int
    steps: int
    stage: int
    loss: float
    held_out: Evaluation | None = None


class TrainingHook(Protocol):
    """Takes part in every step: a penalty, masks that change, observers that freeze."""

    def penalty(self, student: torch.nn.Module) -> torch.Tensor | None:
        """Return a scalar that is added to the loss of the step, with gradients; or None."""

    def before_update(self, student: torch.nn.Module, step: int) -> None:
        """See the gradients of a step, counted from 1 over all stages, before they are clipped and used."""

    def after_update(self, student: torch.nn.Module, step: int) -> None:
        """See or change the weights after a step."""


@dataclass(frozen=True, kw_only=True)
class TrainedStudent:
    """What came of a training; the student itself holds the weights that were kept.

    Attributes:
        held_out: Evaluation of the kept weights on the held-out examples.
        kept_step: Step over all stages whose weights were kept; 0 where no step improved on the start.
        steps: Number of steps that were made.
        interrupted: Whether the user interrupted it (Ctrl-C); the weights are then the best so far of its stage.
        history: All evaluations, each with its step, in order.
    """

    held_out: Evaluation
    kept_step: int
    steps: int
    interrupted: bool
    history: tuple[tuple[int, Evaluation], ...]


def train_student(
    student: torch.nn.Module,
    teacher: torch.nn.Module | Teacher | None,
    examples: Examples,
    settings: DistillationSettings,
    *,
    task: Task,
    held_out: Examples,
    seed: int,
    hooks: tuple[TrainingHook, ...] = (),
    progress: Callable[[Progress], None] | None = None,
) -> TrainedStudent:
    """Train a student in place, on labels or next tokens and on a frozen teacher's distribution.

    The same seed gives the same batches whatever the student, the teacher and alpha, and the same bits on one machine:
    torch computes on one thread meanwhile. Ctrl-C ends the training and keeps the best weights so far.

    Args:
        student: Model to train; its parameters with ``requires_grad`` train, in float32. It ends in evaluation mode.
        teacher: Model to learn from, with the same outputs; None where alpha is 0 throughout. Several students of one
            ``Teacher`` share its logits.
        examples: Public or model-made sequences to train on.
        settings: Stages, batch size, precision.
        task: Task of both models: its cross-entropy and evaluation.
        held_out: Public or model-made sequences, by which the best weights are chosen.
        seed: Seed of data order and dropout.
        hooks: Take part in every step, in order.
        progress: Called after every step.

    Raises:
        DataError: There are no examples to train or to evaluate on.
        ModelError: alpha needs a teacher and there is none or one of other examples, nothing trains in a stage, or the
            outputs differ.
        TrainingError: A loss or a weight is not finite.
    """
    if not len(examples) or not len(held_out):
        raise DataError("distillation needs examples to train on and others to evaluate on; there are none")
    if settings.needs_teacher and teacher is None:
        raise ModelError("alpha gives the teacher a weight and there is none: name a teacher, or set alpha to 0")
    if isinstance(teacher, torch.nn.Module):
        teacher = Teacher(teacher, examples, precision=settings.precision, cache_bytes=settings.cache_bytes)
    if teacher is not None and teacher.examples is not examples:
        raise ModelError("the teacher's logits are of other examples than the student trains on")
    device = torch_device("auto")
    student.to(device)
    size = sum(parameter.numel() for parameter in student.parameters())
    run = _Run(
        student=student,
        teacher=teacher if settings.needs_teacher else None,
        examples=examples,
        counts=task.prediction_counts(examples),
        settings=settings,
        precision=choose_precision(settings.precision, size, device),
        task=task,
        held_out=held_out,
        hooks=hooks,
        progress=progress or (lambda _: None),
    )
    with _one_thread(), torch.random.fork_rng(devices=cuda_devices(device)):
        seed_torch(device, seed)
        return run.train(torch.Generator().manual_seed(seed))


@dataclass(kw_only=True)
class _Kept:
    """Weights and buffers at a step, on the CPU, and their evaluation."""

    step: int
    held_out: Evaluation
    tensors: dict[str, torch.Tensor]


class _Run:
    """A training under way."""

    def __init__(
        self,
        *,
        student: torch.nn.Module,
        teacher: Teacher | None,
        examples: Examples,
        counts: torch.Tensor,
        settings: DistillationSettings,
        precision: ChosenPrecision,
        task: Task,
        held_out: Examples,
        hooks: tuple[TrainingHook, ...],
        progress: Callable[[Progress], None],
    ) -> None:
        self._student, self._teacher, self._examples, self._counts = student, teacher, examples, counts
        self._settings, self._precision, self._task, self._held_out = settings, precision, task, held_out
        self._hooks, self._progress = hooks, progress
        self._parameters = federated_parameters(student)
        self._step = 0
        self._history: list[tuple[int, Evaluation]] = []

    def train(self, generator: torch.Generator) -> TrainedStudent:
        self._student.train()
        kept = self._snapshot(self._evaluate())
        total = self._settings.steps
        self._progress(Progress(step=0, steps=total, stage=0, loss=math.nan, held_out=kept.held_out))
        interrupted = False
        for number, stage in enumerate(self._settings.stages):
            batches = draw_batches(len(self._examples), self._settings.batch_size, stage.steps, generator)
            try:
                with _only(self._student, stage.trained):
                    for held_out in self._train_stage(number, stage, batches):
                        if self._settings.keep == "last" or held_out.loss < kept.held_out.loss:
                            kept = self._snapshot(held_out)
            except KeyboardInterrupt:
                interrupted = True
            self._restore(kept)
            if interrupted:
                break
        self._student.eval()
        return TrainedStudent(
            held_out=kept.held_out,
            kept_step=kept.step,
            steps=self._step,
            interrupted=interrupted,
            history=tuple(self._history),
        )

    def _train_stage(self, number: int, stage: Stage, batches: list[torch.Tensor]) -> Iterator[Evaluation]:
        """Make the steps of a stage; yield each evaluation."""
        optimizer = _make_optimizer(self._student, self._settings)
        scaler = self._precision.scaler()
        for step, indices in enumerate(batches, start=1):
            for group in optimizer.param_groups:
                group["lr"] = stage.learning_rate * rate_factor(stage.decay, step, stage.steps, stage.warmup_steps)
            optimizer.zero_grad(set_to_none=True)
            loss = self._accumulate(stage, (step - 1) / max(1, stage.steps - 1), indices, scaler)
            if not math.isfinite(loss):
                raise TrainingError(f"the loss of step {self._step + 1} is not finite: lower the learning_rate")
            scaler.unscale_(optimizer)
            for hook in self._hooks:
                hook.before_update(self._student, self._step + 1)
            if self._settings.gradient_clip:
                trained = [parameter for _, parameter in federated_parameters(self._student)]
                torch.nn.utils.clip_grad_norm_(trained, self._settings.gradient_clip)
            scaler.step(optimizer)
            scaler.update()
            self._step += 1
            for hook in self._hooks:
                hook.after_update(self._student, self._step)
            due = step % self._settings.evaluate_every == 0 or step == stage.steps
            held_out = self._evaluate() if due else None
            if held_out is not None:
                yield held_out
            total = self._settings.steps
            self._progress(Progress(step=self._step, steps=total, stage=number, loss=loss, held_out=held_out))

    def _accumulate(self, stage: Stage, fraction: float, indices: torch.Tensor, scaler: torch.amp.GradScaler) -> float:
        """Add a batch's gradients up, each predicted token or class with the same weight; return its loss."""
        alpha, temperature = value_at(stage.alpha, fraction), value_at(stage.temperature, fraction)
        total, predicted = 0.0, float(self._counts[indices].sum())
        for part in torch.split(indices, self._settings.micro_batch_size or len(indices)):
            weights = (self._counts[part] / max(predicted, 1.0)).float().to(self._precision.device)
            with self._precision.autocast():
                logits, batch = compute_logits(self._student, self._examples.batch(part))
            losses = self._task.losses(logits, batch)
            if alpha > 0 and self._teacher is not None:
                wanted = self._teacher.logits(part)
                if wanted.shape != logits.shape:
                    raise ModelError(
                        f"the student's outputs {tuple(logits.shape)} are not the teacher's {tuple(wanted.shape)}: "
                        "both need the same classes or vocabulary"
                    )
                losses = (1 - alpha) * losses + alpha * divergences(logits, wanted, batch, temperature=temperature)
            loss = (losses * weights).sum()
            torch.autograd.backward(scaler.scale(loss))
            total += float(loss.detach())
        for hook in self._hooks:
            if (penalty := hook.penalty(self._student)) is not None:
                torch.autograd.backward(scaler.scale(penalty))
                total += float(penalty.detach())
        return total

    def _evaluate(self) -> Evaluation:
        held_out = self._task.evaluate(self._student, self._held_out)
        if not math.isfinite(held_out.loss):
            raise TrainingError(f"the held-out loss after step {self._step} is not finite: lower the learning_rate")
        self._history.append((self._step, held_out))
        return held_out

    def _snapshot(self, held_out: Evaluation) -> _Kept:
        tensors = {name: tensor.detach().cpu().clone() for name, tensor in self._state()}
        return _Kept(step=self._step, held_out=held_out, tensors=tensors)

    def _state(self) -> Iterator[tuple[str, torch.Tensor]]:
        # What training may change: the parameters that train in any stage, and all buffers, such as masks.
        yield from self._parameters
        yield from self._student.named_buffers()

    def _restore(self, kept: _Kept) -> None:
        with torch.no_grad():
            for name, tensor in self._state():
                tensor.copy_(kept.tensors[name])


def _make_optimizer(model: torch.nn.Module, settings: DistillationSettings) -> torch.optim.Optimizer:
    trained = [parameter for _, parameter in federated_parameters(model)]
    if not trained:
        raise ModelError("no parameter of the student trains in this stage: correct the patterns in trained")
    matrices = [parameter for parameter in trained if parameter.dim() >= 2]
    vectors = [parameter for parameter in trained if parameter.dim() < 2]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=1.0, betas=_BETAS)


@contextmanager
def _only(model: torch.nn.Module, patterns: tuple[str, ...]) -> Iterator[None]:
    """Have only the parameters train whose names match a pattern; all that trained before if there is none."""
    frozen = [
        parameter
        for name, parameter in model.named_parameters()
        if patterns and parameter.requires_grad and not any(fnmatchcase(name, pattern) for pattern in patterns)
    ]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Have torch compute on one thread: more would add in other orders, which gives other bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
