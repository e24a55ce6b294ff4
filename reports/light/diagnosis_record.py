"""A diagnosis as `fedglm lighten --diagnose` writes it, read without trust; None where nothing was measured."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedglm.core.validation_errors import explain
from fedglm.run_folder.record import ReportError

_FROZEN = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)
_Text = Annotated[str, Field(max_length=10_000)]
_Count = Annotated[int, Field(ge=0, lt=2**63)]
_Number = Annotated[float, Field(gt=-1e30, lt=1e30)]
_Share = Annotated[float, Field(ge=0, le=1)]
_MOST = 20_000


class GroupRow(BaseModel):
    """A group of parameters; `autoglm.light.sensitivity.diagnosis.GroupSensitivity` says what its figures are.

    Its ranks within its kind are 0 for the least sensitive and 1 for the most.
    """

    model_config = _FROZEN

    kind: _Text
    layer: _Count | None = None
    name: _Text
    parameters: _Count
    removal: _Number | None = None
    quantization: _Number | None = None
    taylor: _Number
    fisher: _Number
    activation: _Number
    trace: _Number
    l1: _Number
    svd: _Number | None = None
    ranks: dict[_Text, _Share | None] = Field(default={}, max_length=100)


class Curve(BaseModel):
    """The loss without those channels that a score puts last: its order, their share, the mean rise in nats."""

    model_config = _FROZEN

    order: _Text
    share: _Share
    rise: _Number


class RedundancyRow(BaseModel):
    """How alike heads or channels of a layer are."""

    model_config = _FROZEN

    kind: Literal["heads", "channels"]
    layer: _Count
    units: _Count
    redundant: _Count
    most_similar: _Number
    threshold: _Number


class Rule(BaseModel):
    """A rule of the articles, whether it holds here, and what was measured."""

    model_config = _FROZEN

    rule: _Text
    holds: bool
    found: _Text


class DiagnosisRecord(BaseModel):
    """What each part of a model is worth.

    Attributes:
        loss: Loss of the model as it is, in nats.
        sequences: Number of sequences that all of it was measured on.
        rows: Groups, in the model's order.
        curves: Losses without the last channels of each order.
        redundancy: Similar heads and channels, by layer.
        rules: The articles' rules.
        text: Where the text comes from, in words.
        model: Name of the model.
    """

    model_config = _FROZEN

    loss: _Number
    sequences: _Count
    rows: tuple[GroupRow, ...] = Field(default=(), max_length=_MOST)
    curves: tuple[Curve, ...] = Field(default=(), max_length=_MOST)
    redundancy: tuple[RedundancyRow, ...] = Field(default=(), max_length=_MOST)
    rules: tuple[Rule, ...] = Field(default=(), max_length=1000)
    text: _Text = ""
    model: _Text = ""


def read_diagnosis(record: Mapping[str, Any]) -> DiagnosisRecord:
    """Check the values of a diagnosis.

    Raises:
        ReportError: They are no diagnosis; the message names the key.
    """
    try:
        return DiagnosisRecord.model_validate(dict(record))
    except (ValidationError, TypeError, ValueError) as exc:
        reason = explain(exc, DiagnosisRecord) if isinstance(exc, ValidationError) else str(exc)
        raise ReportError(f"this is no diagnosis of fedglm lighten: {reason}; run it again"[:400]) from exc
