"""Reports of a quantization: what became of each matrix, and what was repaired; importable without torch."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class LayerReport(BaseModel):
    """What became of one matrix.

    Attributes:
        name: Name of the matrix.
        scheme: Its scheme in words.
        weights: Number of weights.
        bits_per_weight: Bits a weight when packed, scales included, without an entropy coder.
        entropy: Entropy of its codes, in bits a code.
        zeros: Share of codes that stand for 0.
        cosine: Cosine of its outputs with the reference's on the same inputs; None for an embedding no Linear shares.
        error: Relative squared error of those outputs; None likewise.
        repair: What was done because its outputs deviated; empty where nothing was.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    scheme: str
    weights: int
    bits_per_weight: float
    entropy: float
    zeros: float
    cosine: float | None
    error: float | None
    repair: tuple[str, ...] = ()


class QuantizationReport(BaseModel):
    """What became of a model.

    Attributes:
        layers: Its matrices, those with the least cosine first.
        loss_before: Loss of the reference on the held-out examples, in nats.
        loss_after: Loss of the quantized model on them.
        trained_steps: Number of steps of quantization-aware training.
        failed: Names of layers that still deviate more than the settings allow.
        interrupted: Whether the user ended the training early.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: tuple[LayerReport, ...]
    loss_before: float
    loss_after: float
    trained_steps: int
    failed: tuple[str, ...]
    interrupted: bool = False

    @property
    def bits_per_weight(self) -> float:
        """Mean bits a weight over all quantized matrices."""
        weights = sum(layer.weights for layer in self.layers)
        return sum(layer.bits_per_weight * layer.weights for layer in self.layers) / max(weights, 1)
