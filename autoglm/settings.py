"""What a user may say about the data."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Kind = Literal["language-model", "text-classification", "tabular-classification"]
"""What can be learned."""

Split = Literal["auto", "site", "iid", "dirichlet"]
_Name = Annotated[str, Field(min_length=1, max_length=4096)]
_MAX_NAMES = 65_536


class DataSettings(BaseModel):
    """Where the records come from, what they mean, and who holds which.

    Attributes:
        source: a built-in (``breast-cancer``, ``digits``, ``pydoc``) or the path of a JSONL or CSV file (also .gz).
        task: ``auto`` takes a built-in's own task; a file with ``feature_fields`` is tabular classification, one with a
            ``label_field`` text classification, any other language modelling.
        text_field: the field that holds the text (``text`` without one).
        label_field: the field that holds the class; for language modelling, the group Dirichlet splits go by.
        unit_field: whose privacy is at stake (a patient, a document); without one every row is a unit of its own.
        site_field: the field that names the site a row belongs to.
        feature_fields: the numeric fields of a table.
        feature_ranges: for each feature its declared (low, high), from public knowledge.
        public_reference: instead of ranges, a JSONL or CSV file with the feature fields, whose rows are public.
        bins: bins of each feature; 16 for a table of yours, a built-in knows its own.
        class_names: all classes, where a site may lack some or the names must not come from the data.
        split: ``auto`` is by site where there is a site field, else iid. ``dirichlet`` draws each class's shares.
        alpha: concentration of the Dirichlet split: small is uneven (0.1), large is even (100).
        held_out: share of each site's units kept for evaluation; a unit never stands on both sides.
        length: tokens a sequence.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: _Name
    task: Literal["auto"] | Kind = "auto"
    text_field: _Name | None = None
    label_field: _Name | None = None
    unit_field: _Name | None = None
    site_field: _Name | None = None
    feature_fields: tuple[_Name, ...] = Field(default=(), max_length=_MAX_NAMES)
    feature_ranges: dict[_Name, tuple[float, float]] = Field(default={}, max_length=_MAX_NAMES)
    public_reference: _Name | None = None
    bins: int | None = Field(default=None, ge=2, le=256)
    class_names: tuple[_Name, ...] = Field(default=(), max_length=_MAX_NAMES)
    split: Split = "auto"
    alpha: float = Field(default=0.5, ge=0.01, le=1e6)
    held_out: float = Field(default=0.2, gt=0, lt=1)
    length: int = Field(default=128, ge=8, le=65_536)
