"""The model that is made light, with what its run says of it, and the text on which that is done."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from transformers import PreTrainedModel

from fedglm.autoglm.data.examples import Examples
from fedglm.autoglm.data.sources import is_path
from fedglm.autoglm.light.plan.errors import LightenError
from fedglm.autoglm.light.plan.lighten_plan import TextSettings
from fedglm.autoglm.light.public_text import AUTO, load_public_text
from fedglm.autoglm.light.search.pipeline import Source
from fedglm.autoglm.models.opening import find_model
from fedglm.autoglm.models.release import load_release
from fedglm.autoglm.settings import DataSettings
from fedglm.autoglm.tasks.task import Task
from fedglm.core.untrusted_files import read_regular
from fedglm.core.validation_errors import explain
from fedglm.run_folder.names import SCENARIO, SUMMARY

NO_RUN = "none"
"""Source in the data settings of a model without a run, which says nothing of its sites' records."""

_MAX_BYTES = 1 << 24


@dataclass(frozen=True, eq=False, kw_only=True)
class DenseModel:
    """A model that fedglm trained, before it is made light.

    Attributes:
        model: The model, in float32, in evaluation mode.
        task: Its task.
        folder: Where it lies.
        run: Folder of the run that trained it; None for a model without one.
        data: Data settings of that run.
        summary: Content of the run's ``summary.json``; empty without a run.
    """

    model: PreTrainedModel
    task: Task
    folder: Path
    run: Path | None
    data: DataSettings | None
    summary: Mapping[str, Any] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """Number of parameters, a tied output layer counted once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def sha256(self) -> str:
        """Return the SHA-256 (hex) of all parameters, by name, dtype and shape."""
        digest = hashlib.sha256()
        for name, tensor in self.model.named_parameters():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().numpy().tobytes())
        return digest.hexdigest()


def load_dense(path: str | Path) -> DenseModel:
    """Load the model of a run folder, or of a release of ``save_pretrained``.

    Raises:
        ModelError: There is none, or it is light already.
        LightenError: The run's scenario cannot be read.
    """
    found = find_model(path)
    if found.format == "light":
        raise LightenError(f"{path} is light already: name the run or the model that it was made of")
    model, task = load_release(found.path)
    data = None if found.run is None else _read_data(found.run / SCENARIO)
    summary = {} if found.run is None else _read_summary(found.run / SUMMARY)
    assert isinstance(model, PreTrainedModel)  # noqa: S101 - what load_release returns
    return DenseModel(model=model, task=task, folder=found.path, run=found.run, data=data, summary=summary)


def load_source(dense: DenseModel, text: TextSettings, *, data: DataSettings | None, seed: int) -> Source:
    """Load the text of a plan, and split off the sequences that measure.

    Half of what `PublicText` holds out chooses, the other half measures; no unit is on both sides.

    Args:
        dense: The dense model.
        text: Which text.
        data: Fields of a file; None takes those of the run.
        seed: Seed of what is drawn and held out.

    Raises:
        DataError: There is no such text, or too little of it.
        LightenError: The text is the run's own, and there is no run.
    """
    settings = data or dense.data
    if settings is None:
        if text.source == AUTO:
            raise LightenError(
                f"{dense.folder} is of no run, so nothing says what text is public: name a file with --text, or let "
                "the model make text with --text model"
            )
        settings = DataSettings(source=NO_RUN)
    if dense.task.reads_labels and settings.label_field is None and is_path(text.source):
        raise LightenError(f"{text.source}: name the field that holds the class with --label-field")
    public = load_public_text(
        text.source,
        settings,
        dense.task,
        dense.model,
        seed=seed,
        max_sequences=text.max_sequences,
        sites_data_are_public=text.sites_data_are_public,
    )
    choose, test = _halve(public.held_out, text.max_test_sequences, seed)
    return Source(model=dense.model, task=dense.task, text=replace(public, held_out=choose), test=test)


def _halve(examples: Examples, greatest: int, seed: int) -> tuple[Examples, Examples]:
    units = np.unique(examples.units.numpy())
    if len(units) < 2:
        raise LightenError(
            "too little text is held out to choose by some and measure on the rest: four documents or rows at least"
        )
    rng = np.random.default_rng([seed, 3])
    chosen = np.isin(examples.units.numpy(), rng.permutation(units)[: len(units) // 2])
    sides = [np.flatnonzero(side) for side in (chosen, ~chosen)]
    first, second = (np.sort(rng.permutation(side)[:greatest]) for side in sides)
    return examples.select(torch.from_numpy(first)), examples.select(torch.from_numpy(second))


def _read_data(path: Path) -> DataSettings:
    try:
        tree = tomllib.loads(read_regular(path, _MAX_BYTES).decode())
        return DataSettings.model_validate(tree.get("data", {}))
    except ValidationError as exc:
        raise LightenError(f"{path}: [data]: {explain(exc, DataSettings)}") from exc
    except (OSError, ValueError) as exc:
        raise LightenError(f"{path} cannot be read ({exc})") from exc


def _read_summary(path: Path) -> Mapping[str, Any]:
    try:
        summary = json.loads(read_regular(path, _MAX_BYTES))
    except OSError:
        return {}  # a run that has not finished has a model of its last round and no summary
    except ValueError as exc:
        raise LightenError(f"{path} is no JSON ({exc})") from exc
    return summary if isinstance(summary, dict) else {}
