"""Models: a GLM of a preset, or what lies in a local Hugging Face folder; built for a task, and released from one."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from transformers import GlmForCausalLM, GlmForSequenceClassification, PreTrainedModel

from fedglm.autoglm.data.tables import TableEncoder
from fedglm.autoglm.errors import ModelError
from fedglm.autoglm.models.lora import attach_lora, merged
from fedglm.autoglm.models.presets import find_preset, glm_config
from fedglm.autoglm.models.pretrained import load_folder, load_tokenizer, local_folder, outline_folder
from fedglm.autoglm.quiet import quiet_transformers
from fedglm.autoglm.tasks import Task

TASK_FILE = "task.json"
_BIN_SPREAD = 0.1  # five times GLM's own; 0.05 to 0.2 did about equally well


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


def build_model(settings: ModelSettings, task: Task, *, seed: int) -> torch.nn.Module:
    """A float32 model on the CPU, in training mode, whose parameters that do not train have ``requires_grad`` off.

    New weights (a preset's, a new head's, the adapters') depend on ``seed`` alone; torch's global generator is left as
    it was.

    Raises:
        ModelError: there is no such preset or folder, or the model cannot take the task's tokens or lengths.
    """
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the accelerators too
        plain = load_folder(settings.path, task) if settings.path is not None else _from_preset(settings, task)
        return _adapted(plain, settings, task)


def outline_model(settings: ModelSettings, task: Task) -> torch.nn.Module:
    """What `build_model` builds, with names and shapes and no weights: on torch's meta device, in next to no memory.

    Of a folder only its configuration is read.

    Raises:
        ModelError: there is no such preset or folder, or the preset cannot take the task's lengths.
    """
    with torch.device("meta"), quiet_transformers():
        plain = outline_folder(settings.path, task) if settings.path is not None else _from_preset(settings, task)
        return _adapted(plain, settings, task)


def _adapted(plain: PreTrainedModel, settings: ModelSettings, task: Task) -> torch.nn.Module:
    """The model that is trained: with adapters where the settings say so, in training mode."""
    plain.config.use_cache = False  # a training step needs no cache of keys and values
    model: torch.nn.Module = plain
    if settings.adapter == "lora":
        rank, alpha, classifier = settings.lora_rank, settings.lora_alpha, bool(task.labels)
        model = attach_lora(plain, rank=rank, alpha=alpha, classifier=classifier)
    return model.train()


def save_release(model: torch.nn.Module, task: Task, folder: str | Path) -> None:
    """Write a model that ``AutoModelFor...from_pretrained`` loads, its tokenizer if it has one, and ``task.json``.

    Adapters are merged, on a copy. The folder appears all at once; an earlier release there is replaced.

    Raises:
        ModelError: the folder holds something else than a release.
    """
    target = Path(folder).absolute()
    if target.exists() and not (target / TASK_FILE).is_file() and (not target.is_dir() or any(target.iterdir())):
        raise ModelError(f"{target}: holds something else than a model; choose a new folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    with quiet_transformers():
        plain = merged(model)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        new, old = scratch / "new", scratch / "old"
        use_cache, plain.config.use_cache = plain.config.use_cache, True
        try:
            with quiet_transformers():
                plain.save_pretrained(new)
        finally:
            plain.config.use_cache = use_cache
        if task.tokenizer is not None:
            task.tokenizer.save_pretrained(new)
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
    """The model, in evaluation mode, and the task that ``save_release`` wrote.

    Raises:
        ModelError: the folder holds no release.
    """
    target = local_folder(folder)
    if not (target / TASK_FILE).is_file():
        raise ModelError(f"{target}: holds no {TASK_FILE}; it is no model that fedglm released")
    task = Task.from_json((target / TASK_FILE).read_text(encoding="utf-8"))
    if task.table is None:
        tokenizer = load_tokenizer(str(target), classifier=bool(task.labels), length=task.length)
        task = Task.from_json(task.to_json(), tokenizer)
    return build_model(ModelSettings(path=str(target)), task, seed=0).train(False), task


def _from_preset(settings: ModelSettings, task: Task) -> PreTrainedModel:
    if settings.preset is None:
        raise ModelError("the model needs a preset or a path")
    preset = find_preset(settings.preset)
    longest = settings.max_length or preset.max_length
    if task.length > longest:
        raise ModelError(f"sequences of {task.length} tokens are longer than {settings.preset} takes ({longest})")
    config = glm_config(
        preset,
        vocab_size=task.vocab_size,
        pad_id=task.pad_id,
        bos_id=task.bos_id,
        eos_id=task.eos_id,
        tied=not task.labels,
        max_length=longest,
        labels=task.labels,
    )
    architecture: type[PreTrainedModel] = GlmForSequenceClassification if task.labels else GlmForCausalLM
    model = architecture(config)
    if task.table is not None:
        _order_bins(model, task.table)
    return model


def _order_bins(model: PreTrainedModel, table: TableEncoder) -> None:
    """Start a feature's bins in their order: token (f, b) at u_f + z_b v_f, with u_f and v_f drawn for each feature.

    Bins drawn one by one must each be learned from the few rows that fall into them. In order they share what is
    learned from the start. On breast-cancer (glm-0.1m, 150 steps, mean of 12 seeds) held-out accuracy rises from 94.4
    to 95.9 % and the loss falls from 0.27 to 0.19.
    """
    tokens, width = len(table.names) * (table.bins + 1), model.config.hidden_size
    places = torch.tensor(table.places(), dtype=torch.float32)[:, None]
    where, slope = _BIN_SPREAD * torch.randn(2, len(table.names), 1, width)
    with torch.no_grad():
        embedding = model.get_input_embeddings().get_parameter("weight")
        embedding[:tokens] = (where + places * slope).reshape(tokens, width)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
