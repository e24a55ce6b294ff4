"""Models for a task: a GLM of a preset, or the model of a local Hugging Face folder."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from fedglm.autoglm.errors import ModelError
from fedglm.autoglm.models.heads import HEADS
from fedglm.autoglm.models.lora import attach_lora
from fedglm.autoglm.models.presets import find_preset, make_glm_config
from fedglm.autoglm.models.pretrained import load_folder, outline_folder
from fedglm.autoglm.quiet import quiet_transformers
from fedglm.autoglm.settings import ModelSettings
from fedglm.autoglm.tasks.task import Task


def build_model(settings: ModelSettings, task: Task, *, seed: int) -> torch.nn.Module:
    """Build a float32 model on the CPU, in training mode; frozen parameters have ``requires_grad`` off.

    New weights (of a preset, a new head, or adapters) depend on ``seed`` alone; torch's global generator is unchanged.

    Raises:
        ModelError: There is no such preset or folder, or the model cannot take the task's tokens or lengths.
    """
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the accelerators too
        plain = load_folder(settings.path, task) if settings.path is not None else _build_preset(settings, task)
        return _prepare_for_training(plain, settings, task)


def outline_model(settings: ModelSettings, task: Task) -> torch.nn.Module:
    """Build the model of `build_model` with names and shapes but no weights: on torch's meta device, almost no memory.

    For a folder only its configuration is read.

    Raises:
        ModelError: There is no such preset or folder, or the preset cannot take the task's lengths.
    """
    with torch.device("meta"), quiet_transformers():
        plain = outline_folder(settings.path, task) if settings.path is not None else _build_preset(settings, task)
        return _prepare_for_training(plain, settings, task)


def _prepare_for_training(plain: PreTrainedModel, settings: ModelSettings, task: Task) -> torch.nn.Module:
    """Prepare a model for training: with adapters where the settings have them, in training mode."""
    plain.config.use_cache = False  # a training step needs no cache of keys and values
    model: torch.nn.Module = plain
    if settings.adapter == "lora":
        rank, alpha = settings.lora_rank, settings.lora_alpha
        model = attach_lora(plain, rank=rank, alpha=alpha, classifier=HEADS[task.kind].is_new)
    return model.train()


def _build_preset(settings: ModelSettings, task: Task) -> PreTrainedModel:
    if settings.preset is None:
        raise ModelError("the model needs a preset or a path")
    preset, head = find_preset(settings.preset), HEADS[task.kind]
    longest = settings.max_length or preset.max_length
    if task.length > longest:
        raise ModelError(f"sequences of {task.length} tokens are longer than {settings.preset} takes ({longest})")
    config = make_glm_config(
        preset,
        vocab_size=task.vocab_size,
        pad_id=task.pad_id,
        bos_id=task.bos_id,
        eos_id=task.eos_id,
        tied=not head.is_new,
        max_length=longest,
        labels=task.classes,
    )
    model = head.glm(config)
    first = task.initial_embeddings(config.hidden_size)
    if first is not None:
        with torch.no_grad():
            model.get_input_embeddings().get_parameter("weight")[: len(first)] = first
    return model
