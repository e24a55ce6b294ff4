"""Settings of distillation; importable without torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedglm.autoglm.light.distillation.schedules import Decay, Ramp
from fedglm.autoglm.settings import Precision

DEFAULT_CACHE_BYTES = 1 << 28


class Stage(BaseModel):
    """A stretch of training with an optimizer and a learning-rate schedule of its own.

    The loss is ``(1 - alpha) CE + alpha T^2 KL(teacher_T || student_T)`` (Hinton et al., arXiv:1503.02531, section 2).

    Attributes:
        steps: Number of optimizer steps.
        alpha: Weight of the teacher, 0 to 1; 0 trains on the labels or next tokens alone.
        temperature: Temperature T by which both models' logits are divided before the softmax.
        learning_rate: Peak learning rate of AdamW.
        warmup_steps: Steps over which the learning rate rises linearly.
        decay: Course of the learning rate after the warm-up.
        trained: Patterns of names of the parameters that train, such as ``*.layers.0.*``; empty trains all that
            require gradients.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(default=120, ge=1, le=10_000_000)
    alpha: Annotated[float, Field(ge=0, le=1)] | Ramp = 0.9
    temperature: Annotated[float, Field(gt=0, le=100)] | Ramp = 2.0
    learning_rate: float = Field(default=2e-3, gt=0, le=10)
    warmup_steps: int = Field(default=10, ge=0, le=10_000_000)
    decay: Decay = "cosine"
    trained: tuple[str, ...] = Field(default=(), max_length=1000)

    @model_validator(mode="after")
    def _check_ramps(self) -> Self:
        if isinstance(self.alpha, Ramp) and max(self.alpha.start, self.alpha.end) > 1:
            raise ValueError("alpha is a weight: it runs from 0 to 1 at most")
        if isinstance(self.temperature, Ramp) and not min(self.temperature.start, self.temperature.end) > 0:
            raise ValueError("a temperature is positive, at the start and at the end")
        return self

    @property
    def needs_teacher(self) -> bool:
        """Whether the teacher has any weight."""
        return max(self.alpha.start, self.alpha.end) > 0 if isinstance(self.alpha, Ramp) else self.alpha > 0


class DistillationSettings(BaseModel):
    """Settings of a training of a student.

    Attributes:
        stages: Stages, one after the other; each starts from the weights that the one before kept.
        batch_size: Number of sequences per step.
        micro_batch_size: Number of sequences in memory at once; gradients accumulate over the batch. None takes the
            full batch.
        weight_decay: Decoupled weight decay of matrices; vectors (norms, biases, scales) have none.
        gradient_clip: Maximum norm of a step's gradient; 0 disables clipping.
        evaluate_every: Number of steps between two evaluations on held-out text; the start and the end of every stage
            are evaluated too.
        keep: Weights that a stage keeps: those with the least held-out loss of the stage, its start included, or the
            last (for a schedule that changes the model on its way, such as growing masks).
        cache_bytes: Maximum bytes of the teacher's logits in memory, kept as float16; further ones are computed anew.
        precision: Format of the forward and backward pass; ``auto`` chooses by device and size.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stages: tuple[Stage, ...] = Field(default=(Stage(),), min_length=1, max_length=100)
    batch_size: int = Field(default=16, ge=1, le=65_536)
    micro_batch_size: int | None = Field(default=None, ge=1, le=65_536)
    weight_decay: float = Field(default=0.01, ge=0, le=10)
    gradient_clip: float = Field(default=1.0, ge=0, le=1e6)
    evaluate_every: int = Field(default=50, ge=1, le=10_000_000)
    keep: Literal["best", "last"] = "best"
    cache_bytes: int = Field(default=DEFAULT_CACHE_BYTES, ge=0, le=1 << 40)
    precision: Precision = "auto"

    @property
    def steps(self) -> int:
        """Number of steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    @property
    def needs_teacher(self) -> bool:
        """Whether the teacher has any weight in any stage."""
        return any(stage.needs_teacher for stage in self.stages)

    def without_teacher(self) -> Self:
        """Return the settings of an equally trained control: the same steps on the same batches, alpha 0."""
        stages = tuple(stage.model_copy(update={"alpha": 0.0}) for stage in self.stages)
        return self.model_copy(update={"stages": stages})
