"""Settings of the data, the model and the local training in a scenario; importable without torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from fedglm.inference.inputs.task import Kind

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Device = Literal["auto", "cpu", "cuda"]
Split = Literal["auto", "site", "iid", "dirichlet"]
_Name = Annotated[str, Field(min_length=1, max_length=4096)]
_MAX_NAMES = 65_536


class DataSettings(BaseModel):
    """Origin, meaning and split of the records.

    Attributes:
        source: A built-in (``breast-cancer``, ``digits``, ``pydoc``) or the path of a JSONL or CSV file (also .gz).
        task: Kind of the task. ``auto`` takes a built-in's own; a file with ``feature_fields`` is tabular
            classification, one with a ``label_field`` text classification, any other language modelling.
        text_field: Field that holds the text; by default ``text``.
        label_field: Field that holds the class; for language modelling, the group used by Dirichlet splits.
        unit_field: Field that names the privacy unit (a patient, a document); without one every row is its own unit.
        site_field: Field that names the site of a row.
        feature_fields: Numeric fields of a table.
        feature_ranges: Declared (low, high) of each feature, from public knowledge.
        public_reference: JSONL or CSV file with the feature fields, whose rows are public; replaces the ranges.
        bins: Number of bins of each feature; by default 16 for a file; a built-in has its own default.
        class_names: All classes, where a site may lack some or the names must not come from the data.
        split: ``auto`` is by site where there is a site field, else iid. ``dirichlet`` draws each class's shares.
        alpha: Concentration of the Dirichlet split: small is uneven (0.1), large is even (100).
        held_out: Share of each site's units held out for evaluation; a unit is never on both sides.
        length: Maximum number of tokens of a sequence.
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


class LightSettings(BaseModel):
    """A light release of the trained model (`autoglm/light/run_release`).

    Attributes:
        size: Size that the whole release must meet: `20x` smaller than the model in float32, or at most `80kB`.
        tolerance: How much worse than an equally trained dense model it may be, as `5%` of that one's loss or, for a
            classifier, accuracy. A release that is worse is not made.
        text: Text to make it light on: `auto` (what a built-in has set aside), `model` (made by the model itself), or a
            file of public records. The sites' own records are never used.
        sequences: Maximum number of sequences of that text.
        steps: Number of optimizer steps of each training: of the adaptation to the text, of the dense control and of
            the light model.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: str = Field(pattern=r"^[0-9]{1,12}(\.[0-9]{1,6})?(x|B|kB|MB|GB|KiB|MiB|GiB)$")
    tolerance: str = Field(default="5%", pattern=r"^[0-9]{1,3}(\.[0-9]{1,6})?%$")
    text: _Name = "auto"
    sequences: int = Field(default=4096, ge=8, le=10_000_000)
    steps: int = Field(default=300, ge=1, le=1_000_000)

    @model_validator(mode="after")
    def _makes_it_smaller(self) -> Self:
        if self.size.endswith("x") and not 1 <= float(self.size[:-1]) <= 10_000:
            raise ValueError(f"size is 1x to 10000x, not {self.size}")
        return self


def _expand_size(value: Any) -> Any:
    return {"size": value} if isinstance(value, str) else value


class ModelSettings(BaseModel):
    """The model to train, and its adapters.

    Attributes:
        preset: A GLM that starts from random weights: ``glm-0.1m``, ``glm-0.5m``, ``glm-10m``, ``glm-76m``.
        path: Local folder with a Hugging Face model (``config.json`` and safetensors) and its tokenizer, to start from
            instead; nothing is ever downloaded, no code in the folder is run, no pickle is read.
        adapter: ``lora`` trains low-rank adapters of the linear layers and a classifier's head, and federates those
            alone.
        lora_rank: Rank of the adapters.
        lora_alpha: Scale of the adapters times their rank: they are scaled by lora_alpha / lora_rank.
        max_length: Maximum sequence length of a preset in tokens; None takes the preset's own.
        light: Light release that the server makes of the model at the run's end: a size such as `20x`, or a table of
            settings; None makes none.
        light_every: Number of rounds after which it makes one during the run too; None makes one at the end only.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: str | None = Field(default="glm-0.1m", max_length=200)
    path: str | None = None
    adapter: Literal["none", "lora"] = "none"
    lora_rank: int = Field(default=8, ge=1, le=1024)
    lora_alpha: float = Field(default=16.0, gt=0, le=65_536)
    max_length: int | None = Field(default=None, ge=8, le=1_000_000)
    light: Annotated[LightSettings | None, BeforeValidator(_expand_size)] = None
    light_every: int | None = Field(default=None, ge=1, le=10_000_000)

    @model_validator(mode="after")
    def _makes_what_it_repeats(self) -> Self:
        if self.light_every is not None and self.light is None:
            raise ValueError('light_every repeats a light release: give its size too, as light = "20x"')
        return self


class LocalTrainingSettings(BaseModel):
    """Local training in a round.

    Attributes:
        local_steps: Number of optimizer steps per round.
        batch_size: Number of sequences per step.
        micro_batch_size: Number of sequences in memory at once; gradients accumulate over the batch. None takes the
            full batch.
        learning_rate: Learning rate of the first round; the server's schedule scales it from round to round.
        warmup_steps: Steps at the start of a round over which the learning rate rises linearly. AdamW's state is fresh
            each round, and its first steps move every coordinate by the full learning rate, noise or not.
        optimizer: `adamw` (fresh state each round) or `sgd`.
        weight_decay: Weight decay; decoupled for AdamW.
        momentum: Momentum of SGD.
        gradient_clip: Maximum norm of a step's gradient; 0 disables clipping.
        precision: Format of the forward and backward pass; `auto` chooses by device and size.
        device: Device to train on; `auto` takes a GPU where there is one.
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
