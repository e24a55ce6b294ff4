"""Settings of a quantization; importable without torch."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedglm.autoglm.light.distillation.settings import DistillationSettings
from fedglm.autoglm.light.quantization.scheme import Scheme

Method = Literal["absmax", "mse", "weighted", "compensated"]
"""`absmax`: the whole range. `mse`: scales of least squared error. `weighted`: of least squared error in the outputs,
each column weighted by the energy of its input (the concern of AWQ, Lin et al., arXiv:2306.00978). `compensated`:
weighted scales, and GPTQ's error compensation."""

Scales = Literal["learned", "ema"]
"""`learned`: by gradient (LSQ). `ema`: they follow a moving average of the weights' range."""


class QatSettings(BaseModel):
    """How a model trains while it is quantized.

    Attributes:
        training: Steps, teacher's weight, learning rate.
        scales: What moves the scales.
        decay: Decay of the moving average a step; 1 keeps the fitted scales.
        rate: Weight of the codes' mean length under an entropy code, in nats of the loss for a bit a weight; 0 trains
            without.
        frozen: Patterns of parameter names that do not train, such as ``model.embed_tokens.*`` or ``*norm.weight``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    training: DistillationSettings = DistillationSettings()
    scales: Scales = "learned"
    decay: float = Field(default=0.99, ge=0, le=1)
    rate: float = Field(default=0.0, ge=0, le=1e6)
    frozen: tuple[str, ...] = Field(default=(), max_length=10_000)


class MixedBitsSettings(BaseModel):
    """A scheme for each matrix by what it does to the loss.

    Attributes:
        bits_per_weight: Budget: mean bits a weight over all quantized matrices, scales included.
        candidates: Schemes that a matrix may take.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bits_per_weight: float = Field(gt=0, le=10)
    candidates: tuple[Scheme, ...] = Field(
        default=(Scheme(codes="ternary", block="row"), Scheme(codes="int4"), Scheme(codes="int8", block=128)),
        min_length=1,
        max_length=32,
    )


class VerificationSettings(BaseModel):
    """Check of every layer's outputs against the reference, and what happens to those that deviate.

    Attributes:
        sequences: Number of calibration sequences that are compared.
        min_cosine: Least cosine of a layer's outputs with the reference's.
        repair: What happens to layers below it: `bits` gives them the next more bits until they pass, `train` trains
            them alone (the settings of `qat`), `none` reports them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sequences: int = Field(default=32, ge=1, le=65_536)
    min_cosine: float = Field(default=0.9, ge=-1, le=1)
    repair: Literal["none", "bits", "train"] = "none"


class QuantizationSettings(BaseModel):
    """How a model is quantized.

    Attributes:
        weights: Scheme of the matrices within the layers.
        embedding: Scheme of the embedding and of the output layer.
        overrides: Schemes by pattern of names, such as ``*.0.mlp.*``, before the two above; None keeps a matrix in
            float. The first pattern that matches counts.
        mixed: Schemes by the loss under a budget, instead of `weights`, `embedding` and `overrides`.
        method: How scales and codes are chosen without training. A matrix that no Linear multiplies by, such as an
            untied embedding, has no inputs to weigh by, and takes `mse` instead of the last two.
        calibration_sequences: Number of examples that calibrate.
        qat: Quantization-aware training; None rounds without training.
        verification: Check of the layers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: Scheme = Scheme(codes="int4", block=128)
    embedding: Scheme = Scheme(codes="int4", block=128)
    overrides: dict[str, Scheme | None] = Field(default={}, max_length=10_000)
    mixed: MixedBitsSettings | None = None
    method: Method = "compensated"
    calibration_sequences: int = Field(default=256, ge=1, le=1_000_000)
    qat: QatSettings | None = None
    verification: VerificationSettings = VerificationSettings()

    @model_validator(mode="after")
    def _check_repair(self) -> Self:
        if self.verification.repair == "train" and self.qat is None:
            raise ValueError("repair = train needs the settings of qat")
        return self

    def scheme_of(self, name: str) -> Scheme | None:
        """Return the scheme of the matrix of that name without a budget; None keeps it in float."""
        for pattern, scheme in self.overrides.items():
            if fnmatchcase(name, pattern):
                return scheme
        return self.weights if ".layers." in name else self.embedding
