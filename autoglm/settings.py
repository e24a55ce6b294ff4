"""Settings of the data, the model and the local training: what a scenario says, read without torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Kind = Literal["language-model", "text-classification", "tabular-classification"]
"""What can be learned."""

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Device = Literal["auto", "cpu", "cuda"]
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


class ModelSettings(BaseModel):
    """Which model is trained, and how much of it.

    Attributes:
        preset: a GLM that starts from random weights: ``glm-0.1m``, ``glm-0.5m``, ``glm-10m``, ``glm-76m``.
        path: a local folder with a Hugging Face model (``config.json`` and safetensors) and its tokenizer, to start
            from instead; nothing is ever downloaded, no code in the folder is run, no pickle is read.
        adapter: ``lora`` trains low-rank adapters of the linear layers and a classifier's head, and federates those
            alone.
        lora_rank: rank of the adapters.
        lora_alpha: their scale is lora_alpha / lora_rank.
        max_length: longest sequence of a preset in tokens, where it should not be the preset's own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: str | None = Field(default="glm-0.1m", max_length=200)
    path: str | None = None
    adapter: Literal["none", "lora"] = "none"
    lora_rank: int = Field(default=8, ge=1, le=1024)
    lora_alpha: float = Field(default=16.0, gt=0, le=65_536)
    max_length: int | None = Field(default=None, ge=8, le=1_000_000)


class LocalTrainingSettings(BaseModel):
    """How a node trains in a round.

    Attributes:
        local_steps: Optimizer steps a round.
        batch_size: Sequences a step.
        micro_batch_size: Sequences that are in memory at once; gradients accumulate over the batch. None takes the
            batch whole.
        learning_rate: Of the first round; the server's schedule scales it from round to round.
        warmup_steps: Steps at the start of a round over which the rate rises linearly. AdamW's state is fresh each
            round, and its first steps move every coordinate by the whole rate, noise or not.
        optimizer: `adamw` (fresh state each round) or `sgd`.
        weight_decay: Decoupled for AdamW.
        momentum: Of SGD.
        gradient_clip: Greatest norm of a step's gradient; 0 clips nothing.
        precision: Format of the forward and backward pass; `auto` decides by device and size.
        device: `auto` takes a GPU where there is one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    local_steps: int = Field(default=20, ge=1, le=10_000_000)
    batch_size: int = Field(default=16, ge=1, le=65_536)
    micro_batch_size: int | None = Field(default=None, ge=1, le=65_536)
    learning_rate: float = Field(default=2e-3, gt=0, le=10)
    warmup_steps: int = Field(default=0, ge=0, le=10_000_000)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: float = Field(default=0.01, ge=0, le=10)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    gradient_clip: float = Field(default=1.0, ge=0, le=1e6)
    precision: Precision = "auto"
    device: Device = "auto"
