"""Small models as fedglm saves them, one of each kind of task; their weights are spread, so that outputs differ."""

from __future__ import annotations

from pathlib import Path

import torch

from fedglm.autoglm.data.bins import bins_from_ranges
from fedglm.autoglm.models.build import build_model
from fedglm.autoglm.models.release import save_release
from fedglm.autoglm.settings import ModelSettings
from fedglm.autoglm.tasks.classification import TabularClassification, TextClassification
from fedglm.autoglm.tasks.language_modeling import LanguageModeling
from fedglm.autoglm.tasks.task import Task

CLASSES = ("ill", "odd", "well")


def tasks() -> dict[str, Task]:
    table = bins_from_ranges({"age": (0.0, 100.0), "heat": (35.0, 43.0)}, 8)
    return {
        "language": LanguageModeling.for_texts(None, length=64),
        "texts": TextClassification.for_texts(None, length=32, labels=CLASSES),
        "table": TabularClassification.for_table(table, CLASSES),
    }


def save_model(name: str, folder: Path) -> Path:
    """Save the model of a kind of task; a new one's outputs would hardly depend on the input."""
    task = tasks()[name]
    model = build_model(ModelSettings(preset="glm-0.1m"), task, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.ndim == 2 else 1)
    save_release(model, task, folder)
    return folder
