"""Plans: everything that a search for a light model depends on, so that it can run again to the same bits."""

from __future__ import annotations

from typing import Final, Self

from pydantic import BaseModel, ConfigDict, Field

from fedglm.autoglm.light.distillation.settings import DistillationSettings, Stage
from fedglm.autoglm.light.plan.goals import Goals
from fedglm.autoglm.light.plan.planned_device import PlannedDevice
from fedglm.autoglm.light.plan.recipe import Recipe
from fedglm.autoglm.light.public_text import AUTO, MAX_SEQUENCES

STEPS: Final = 200
"""Steps of each training by default: in six minutes half a million parameters are made light, table included."""


def train_more(training: DistillationSettings, steps: int, *, trained: tuple[str, ...] = ()) -> DistillationSettings:
    """Return a training with a further stage, like its last but at half the learning rate.

    Args:
        training: The training.
        steps: Steps of the further stage.
        trained: Patterns of the parameters that train in it; all where there are none.
    """
    last = training.stages[-1]
    changes = {
        "steps": steps,
        "warmup_steps": min(last.warmup_steps, steps // 4),
        "learning_rate": last.learning_rate / 2,
        "trained": trained,
    }
    return training.model_copy(update={"stages": (*training.stages, last.model_copy(update=changes))})


def train_for(steps: int) -> DistillationSettings:
    """Return the training of a search: mostly from the teacher, whose distribution says more than the next token."""
    stage = Stage(steps=steps, alpha=0.9, temperature=1.0, learning_rate=2e-3, warmup_steps=min(20, steps // 4))
    return DistillationSettings(stages=(stage,), evaluate_every=max(1, min(100, steps // 4)))


class TextSettings(BaseModel):
    """The text that calibrates, trains, chooses and measures.

    Attributes:
        source: ``auto``, ``model``, or a file of public records.
        sites_data_are_public: Declares that the file may hold the sites' own records.
        max_sequences: Greatest number of sequences.
        max_test_sequences: Greatest number of those that measure; as many choose.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = AUTO
    sites_data_are_public: bool = False
    max_sequences: int = Field(default=MAX_SEQUENCES, ge=8, le=10_000_000)
    max_test_sequences: int = Field(default=400, ge=1, le=10_000_000)


class LightenPlan(BaseModel):
    """A search for a light model.

    Attributes:
        model_sha256: Hash of the dense model's tensors: another model needs another plan.
        goals: What it may cost.
        device: The device whose latency table judges that; None measures times on this machine.
        text: The text.
        seed: Seed of trainings and of what is drawn.
        training: Training of the control, and of every candidate in full.
        trial_share: Share of the steps of a trial, after which all but the best candidates are dropped (successive
            halving: Jamieson and Talwalkar, arXiv:1502.07943).
        finalists: Number of candidates that train in full.
        repair: Whether layers of the chosen model whose outputs deviate more than its recipe's
            ``quantization.verification.min_cosine`` allows get more bits, or more training, within the goals.
        candidates: Recipes, from the gentlest to the hardest; one alone is run without a search. Without any, nothing
            meets the goals, and what each means alone gives is measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    goals: Goals
    device: PlannedDevice | None = None
    text: TextSettings = TextSettings()
    seed: int = Field(default=0, ge=0, lt=2**63)
    training: DistillationSettings = train_for(STEPS)
    trial_share: float = Field(default=0.25, gt=0, le=1)
    finalists: int = Field(default=1, ge=1, le=16)
    repair: bool = True
    candidates: tuple[Recipe, ...] = Field(default=(), max_length=64)

    def with_min_cosine(self, cosine: float) -> Self:
        """Return the plan with another least cosine of each layer's outputs with the reference's, in all recipes."""

        def change(recipe: Recipe) -> Recipe:
            verification = recipe.quantization.verification.model_copy(update={"min_cosine": cosine})
            quantization = recipe.quantization.model_copy(update={"verification": verification})
            return recipe.model_copy(update={"quantization": quantization})

        return self.model_copy(update={"candidates": tuple(map(change, self.candidates))})
