"""Recipes: the passes that make a model light, in the order in which they run, as settings."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from fedglm.autoglm.light.distillation.settings import DistillationSettings
from fedglm.autoglm.light.pruning.settings import PruningSettings
from fedglm.autoglm.light.pruning.vocabulary import VocabularySettings
from fedglm.autoglm.light.quantization.settings import QuantizationSettings


class Recipe(BaseModel):
    """Passes over a model; those that are None are left out.

    Attributes:
        name: Short name for tables.
        vocabulary: Cut of the vocabulary to the tokens of the public text.
        pruning: Structured cut.
        recovery: Training of the cut model in float32, distilled from the whole one.
        fold_norms: Whether norms are folded into the matrices behind them and then stay as they are.
        quantization: Quantization, with its training where it has one; distilled from the whole model.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=80)
    vocabulary: VocabularySettings | None = None
    pruning: PruningSettings | None = None
    recovery: DistillationSettings | None = None
    fold_norms: bool = False
    quantization: QuantizationSettings = QuantizationSettings()

    @property
    def steps(self) -> int:
        """Number of optimizer steps of all passes."""
        recovery = self.recovery.steps * (self.pruning.steps if self.pruning else 1) if self.recovery else 0
        return recovery + (self.quantization.qat.training.steps if self.quantization.qat else 0)
