"""Releases: folders with a trained model, its tokenizer and its task, for transformers and for fedglm."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import torch

from fedglm.autoglm.data.tokenizer import check_model_folder
from fedglm.autoglm.errors import ModelError
from fedglm.autoglm.models.build import build_model
from fedglm.autoglm.models.lora import merge_adapters
from fedglm.autoglm.quiet import quiet_transformers
from fedglm.autoglm.settings import ModelSettings
from fedglm.autoglm.tasks.reading import read_task
from fedglm.autoglm.tasks.task import Task
from fedglm.core.hidden_modules import hide_modules
from fedglm.inference.inputs.task import TASK_FILE


def save_release(model: torch.nn.Module, task: Task, folder: str | Path) -> None:
    """Write a model that ``AutoModelFor...from_pretrained`` loads, its tokenizer if it has one, and ``task.json``.

    Adapters are merged, on a copy. The folder is renamed into place when complete; an earlier release is replaced.

    Raises:
        ModelError: The folder holds something else than a release.
    """
    target = Path(folder).absolute()
    if target.exists() and not (target / TASK_FILE).is_file() and (not target.is_dir() or any(target.iterdir())):
        raise ModelError(f"{target}: holds something else than a model; choose a new folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    with quiet_transformers():
        plain = merge_adapters(model)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        new, old = scratch / "new", scratch / "old"
        use_cache, plain.config.use_cache = plain.config.use_cache, True
        try:
            # Asking whether a tensor is distributed imports distributed tensors, and sympy: a second for nothing.
            with quiet_transformers(), hide_modules("torch.distributed.tensor"):
                plain.save_pretrained(new)
        finally:
            plain.config.use_cache = use_cache
        task.save_tokenizer(new)
        (new / TASK_FILE).write_text(task.to_json(), encoding="utf-8")
        for path in [*new.iterdir(), new]:
            _flush(path)
        if target.exists():
            target.rename(old)
        new.rename(target)
        _flush(target.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def load_release(folder: str | Path) -> tuple[torch.nn.Module, Task]:
    """Load the model, in evaluation mode, and the task that ``save_release`` wrote.

    Raises:
        ModelError: The folder holds no release.
    """
    target = check_model_folder(folder)
    if not (target / TASK_FILE).is_file():
        raise ModelError(f"{target}: holds no {TASK_FILE}; it is no model that fedglm released")
    task = read_task((target / TASK_FILE).read_text(encoding="utf-8")).with_tokenizer(str(target))
    return build_model(ModelSettings(path=str(target)), task, seed=0).train(False), task


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
