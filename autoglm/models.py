"""Models: a GLM of a preset, or what lies in a local Hugging Face folder; built for a task, and released from one."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GlmForCausalLM,
    GlmForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from fedglm.autoglm.adapters import attach_lora, merged
from fedglm.autoglm.errors import ModelError
from fedglm.autoglm.presets import find_preset, glm_config
from fedglm.autoglm.quiet import quiet_transformers
from fedglm.autoglm.tasks import Task
from fedglm.autoglm.tokenizer import byte_tokenizer, is_byte_tokenizer

TASK_FILE = "task.json"


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

    preset: str | None = "glm-0.1m"
    path: str | None = None
    adapter: Literal["none", "lora"] = "none"
    lora_rank: int = Field(default=8, ge=1, le=1024)
    lora_alpha: float = Field(default=16.0, gt=0)
    max_length: int | None = Field(default=None, ge=8, le=1_000_000)


def load_tokenizer(settings: ModelSettings, *, classifier: bool, length: int) -> PreTrainedTokenizerBase:
    """The tokenizer that goes with a model: the folder's own, or bytes for a preset.

    Raises:
        ModelError: the folder has no tokenizer, or its tokenizer has no token to pad with.
    """
    if settings.path is None:
        return byte_tokenizer(append_end=classifier, max_length=length)
    folder = _folder(settings.path)
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as exc:  # transformers raises whatever its many loaders meet
        raise ModelError(f"{folder}: no tokenizer could be loaded ({_first_line(exc)})") from exc
    if is_byte_tokenizer(tokenizer):
        return byte_tokenizer(append_end=classifier, max_length=length)
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise ModelError(f"{folder}: the tokenizer has neither a padding nor an end token; give it one")
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


def build_model(settings: ModelSettings, task: Task, *, seed: int) -> torch.nn.Module:
    """A float32 model on the CPU, in training mode, whose parameters that do not train have ``requires_grad`` off.

    New weights (a preset's, a new head's, the adapters') depend on ``seed`` alone; torch's global generator is left as
    it was.

    Raises:
        ModelError: there is no such preset or folder, or the model cannot take the task's tokens or lengths.
    """
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the accelerators too
        plain = _from_folder(settings.path, task) if settings.path is not None else _from_preset(settings, task)
        plain.config.use_cache = False  # a training step needs no cache of keys and values
        if settings.adapter == "none":
            return plain.train()
        classifier = bool(task.labels)
        return attach_lora(plain, rank=settings.lora_rank, alpha=settings.lora_alpha, classifier=classifier).train()


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
    target = _folder(str(folder))
    if not (target / TASK_FILE).is_file():
        raise ModelError(f"{target}: holds no {TASK_FILE}; it is no model that fedglm released")
    task = Task.from_json((target / TASK_FILE).read_text(encoding="utf-8"))
    settings = ModelSettings(path=str(target))
    if task.table is None:
        tokenizer = load_tokenizer(settings, classifier=bool(task.labels), length=task.length)
        task = Task.from_json(task.to_json(), tokenizer)
    return build_model(settings, task, seed=0).train(False), task


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
    model: type[PreTrainedModel] = GlmForSequenceClassification if task.labels else GlmForCausalLM
    return model(config)


def _from_folder(path: str, task: Task) -> PreTrainedModel:
    folder = _folder(path)
    options: dict[str, Any] = {}
    if task.labels:
        # A head for another number of classes starts anew.
        options = {
            "num_labels": task.num_labels,
            "id2label": dict(enumerate(task.labels)),
            "label2id": {name: i for i, name in enumerate(task.labels)},
            "ignore_mismatched_sizes": True,
        }
    loader = AutoModelForSequenceClassification if task.labels else AutoModelForCausalLM
    try:
        model: PreTrainedModel = loader.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False, use_safetensors=True, **options
        )
    except Exception as exc:  # transformers raises whatever its many loaders meet
        raise ModelError(f"{folder}: no model could be loaded for this task ({_first_line(exc)})") from exc
    config = model.config.get_text_config()
    rows = len(model.get_input_embeddings().weight)
    if task.vocab_size > rows:
        raise ModelError(f"{folder}: the model has {rows} embeddings and the data use {task.vocab_size} token ids")
    longest = getattr(config, "max_position_embeddings", None)
    if longest and task.length > longest:
        raise ModelError(f"{folder}: sequences of {task.length} tokens are longer than the model takes ({longest})")
    config.pad_token_id = task.pad_id
    return model


def _folder(path: str) -> Path:
    folder = Path(path).expanduser()
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder}: no local model folder (it has no config.json); nothing is ever downloaded")
    return folder


def _first_line(exc: Exception) -> str:
    return next(iter(str(exc).strip().splitlines()), type(exc).__name__)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
