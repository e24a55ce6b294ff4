"""The record of a light model, `light.json`, read without trust: figures by name, None where nothing was measured."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedglm.core.validation_errors import explain
from fedglm.run_folder.record import ReportError

_FROZEN = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)  # a newer record may say more
_Text = Annotated[str, Field(max_length=10_000)]
_Bytes = Annotated[int, Field(ge=0, lt=2**63)]
_Positive = Annotated[float, Field(gt=0, lt=1e30)]
_Number = Annotated[float, Field(gt=-1e30, lt=1e30)]
_MOST = 10_000


class ModelRow(BaseModel):
    """A model of the table.

    Attributes:
        name: Its name there.
        bytes: Bytes of its release, or of its float32 tensors.
        size_ratio: How many times less that is than the dense model.
        bits_per_weight: Bits of all that, by its own parameters.
        parameters: Number of its parameters.
        loss: Loss on unseen text, in nats.
        deviation: Standard error of the loss.
        count: Number of predictions measured.
        metric_value: Perplexity or accuracy.
        loss_rise: Relative rise of the loss above the control's.
        kl_mean: Mean divergence from the dense model's predictions, in nats.
        kl_99: Its 99th percentile.
        agreement: Share of predictions whose likeliest is the dense model's.
        decode_ms: Milliseconds a token, or a row.
        prefill_ms: Milliseconds a prompt.
        peak_bytes: Peak memory of a process that uses it.
        own_loss: Loss on the held-out records of the run that trained the model, in nats.
        own_metric_value: Perplexity or accuracy there.
        own_deviation: Standard error of the loss there.
        own_count: Number of predictions measured there.
        own_loss_rise: Relative rise of the loss above the control's there.
    """

    model_config = _FROZEN

    name: _Text
    bytes: _Bytes | None = None
    size_ratio: _Positive | None = None
    bits_per_weight: _Number | None = None
    parameters: _Bytes | None = None
    loss: _Number | None = None
    deviation: _Number | None = None
    count: _Bytes | None = None
    metric_value: _Number | None = None
    loss_rise: _Number | None = None
    kl_mean: _Number | None = None
    kl_99: _Number | None = None
    agreement: _Number | None = None
    decode_ms: _Number | None = None
    prefill_ms: _Number | None = None
    peak_bytes: _Bytes | None = None
    own_loss: _Number | None = None
    own_metric_value: _Number | None = None
    own_deviation: _Number | None = None
    own_count: _Bytes | None = None
    own_loss_rise: _Number | None = None


class Point(BaseModel):
    """A candidate: its name, its size ratio, its rise of the loss, and whether it trained in full."""

    model_config = _FROZEN

    name: _Text
    size_ratio: _Positive
    loss_rise: _Number
    in_full: bool = True


class LeftOut(BaseModel):
    """Models that no cut makes small or fast enough, and how far they are above the goals, as a share of them."""

    model_config = _FROZEN

    name: _Text
    excess: _Number | None = None


class LayerRow(BaseModel):
    """What became of a matrix; `autoglm.light.quantization.report.LayerReport` says what its figures are."""

    model_config = _FROZEN

    name: _Text
    scheme: _Text
    weights: _Bytes
    bits_per_weight: _Number
    entropy: _Number | None = None
    zeros: _Number | None = None
    cosine: _Number | None = None
    error: _Number | None = None
    repair: tuple[_Text, ...] = ()


class RepairRecord(BaseModel):
    """What came of the verification of the layers' outputs.

    Attributes:
        min_cosine: Least cosine with the reference's outputs that is allowed.
        deviating: Names of the layers below it, before any repair.
        way: What layers got: more bits, or more training; None where nothing was tried.
        layers: Names of those that got it.
        kept: Whether that was released.
        outcome: What came of it, in words.
        loss_before: Loss without the repair, in nats.
        loss_after: Loss with it.
        bytes_before: Bytes of the release without it.
        bytes_after: Bytes with it.
    """

    model_config = _FROZEN

    min_cosine: _Number
    deviating: tuple[_Text, ...] = Field(default=(), max_length=_MOST)
    way: Literal["bits", "training"] | None = None
    layers: tuple[_Text, ...] = Field(default=(), max_length=_MOST)
    kept: bool = False
    outcome: _Text = ""
    loss_before: _Number | None = None
    loss_after: _Number | None = None
    bytes_before: _Bytes | None = None
    bytes_after: _Bytes | None = None


class LightRecord(BaseModel):
    """What came of making a model light.

    Attributes:
        name: Name of the recipe that was released.
        goals: The goals, in words.
        goal_ratio: Least size ratio that they ask for; None for no such goal.
        tolerance: Greatest relative rise of the loss.
        met: Whether a model met them, and was released.
        bytes: Bytes of the release.
        reference_bytes: Bytes of the dense model in float32.
        size_ratio: How many times less the release is.
        loss: Its loss, in nats.
        control_loss: Loss of the equally trained dense model.
        loss_rise: Relative rise above that.
        metric: Name of the metric: perplexity or accuracy.
        rows: The table.
        frontier: Candidates that no other beats in both size and loss.
        nearest: The smallest one within the tolerance.
        left_out: Families that were not tried.
        layers: What became of each matrix.
        files: Bytes of each file of the release.
        privacy: What is promised of the training records.
        text: Where the text comes from that calibrates and trains.
        seed: Seed.
        steps: Steps of the control and of each candidate.
        seconds: Wall time of it all.
        stages: What was done, in order.
        interrupted: Whether the search was ended early.
        device: The machine of the times.
        times: How they are known: measured on this machine, or predicted for a device.
        formats: Formats of the release's graphs, by phase: "prefill" and "decode".
        versions: Versions of programs by name.
        not_measured: What was not measured.
        limits: What the model is not for.
    """

    model_config = _FROZEN

    name: _Text | None = None
    goals: _Text
    goal_ratio: _Positive | None = None
    tolerance: Annotated[float, Field(ge=0, lt=1e6)]
    met: bool
    bytes: _Bytes | None = None
    reference_bytes: _Bytes
    size_ratio: _Positive | None = None
    loss: _Number | None = None
    control_loss: _Number | None = None
    loss_rise: _Number | None = None
    metric: _Text = "perplexity"
    rows: tuple[ModelRow, ...] = Field(default=(), max_length=_MOST)
    own_records: _Text | None = None
    frontier: tuple[Point, ...] = Field(default=(), max_length=_MOST)
    nearest: Point | None = None
    left_out: tuple[LeftOut, ...] = Field(default=(), max_length=_MOST)
    repair: RepairRecord | None = None
    layers: tuple[LayerRow, ...] = Field(default=(), max_length=_MOST)
    files: dict[_Text, _Bytes] = Field(default={}, max_length=100)
    privacy: _Text = ""
    text: _Text = ""
    seed: int | None = None
    steps: int | None = None
    seconds: Annotated[float, Field(ge=0, lt=1e12)] | None = None
    stages: tuple[_Text, ...] = Field(default=(), max_length=100)
    interrupted: bool = False
    models_made: _Bytes | None = None
    models_from_cache: _Bytes | None = None
    device: _Text | None = None
    times: _Text = "measured on this machine"
    formats: dict[_Text, _Text] | None = Field(default=None, max_length=10)
    versions: dict[_Text, _Text] = Field(default={}, max_length=100)
    not_measured: tuple[_Text, ...] = Field(default=(), max_length=200)
    limits: tuple[_Text, ...] = Field(default=(), max_length=200)


def read_record(record: Mapping[str, Any]) -> LightRecord:
    """Check the content of `light.json`.

    Raises:
        ReportError: It is no such record; the message names the key.
    """
    try:
        return LightRecord.model_validate(dict(record))
    except (ValidationError, TypeError, ValueError) as exc:
        reason = explain(exc, LightRecord) if isinstance(exc, ValidationError) else str(exc)
        raise ReportError(f"this is no record of fedglm lighten: {reason}; run it again"[:400]) from exc
