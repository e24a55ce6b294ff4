"""Models from a local Hugging Face folder: nothing is downloaded, no code in it run, no pickle read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    PreTrainedModel,
)

from fedglm.autoglm.data.tokenizer import check_model_folder, first_line
from fedglm.autoglm.errors import ModelError
from fedglm.autoglm.models.heads import HEADS
from fedglm.autoglm.tasks.task import Task


def load_folder(path: str, task: Task) -> PreTrainedModel:
    """Load the folder's model for a task, in float32 on the CPU; a classifier's head that does not fit is initialised.

    Raises:
        ModelError: There is no model, it lacks weights, is not causal where it must be, or is too small for the task.
    """
    folder = check_model_folder(path)
    head = HEADS[task.kind]
    options = head.options(task.classes)
    if head.is_new:
        options["ignore_mismatched_sizes"] = True  # a head for another number of classes is initialised
    try:
        model, report = head.loader.from_pretrained(
            folder,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    except Exception as exc:  # transformers raises whatever its many loaders meet
        raise ModelError(f"{folder}: no model could be loaded for this task ({first_line(exc)})") from exc
    _check_loaded(folder, model, report, new_head=head.is_new)
    config = model.config.get_text_config()
    rows = len(model.get_input_embeddings().get_parameter("weight"))
    if task.vocab_size > rows:
        raise ModelError(f"{folder}: the model has {rows} embeddings and the data use {task.vocab_size} token ids")
    longest = getattr(config, "max_position_embeddings", None)
    if longest and task.length > longest:
        raise ModelError(f"{folder}: sequences of {task.length} tokens are longer than the model takes ({longest})")
    config.pad_token_id = task.pad_id
    if not head.is_new and _sees_next_token(model):
        raise ModelError(f"{folder}: the model sees the token it is to predict; language modelling needs a causal one")
    loaded: PreTrainedModel = model
    return loaded


def outline_folder(path: str, task: Task) -> PreTrainedModel:
    """Build the folder's model for a task without its weights, from its configuration alone; for torch's meta device.

    Raises:
        ModelError: The configuration is invalid, or not that of a model for the task.
    """
    folder, head = check_model_folder(path), HEADS[task.kind]
    try:
        config = AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **head.options(task.classes)
        )
        model: PreTrainedModel = head.loader.from_config(config, dtype=torch.float32, trust_remote_code=False)
    except Exception as exc:  # transformers raises whatever its many loaders meet
        raise ModelError(f"{folder}: no model could be outlined for this task ({first_line(exc)})") from exc
    return model


def _check_loaded(folder: Path, model: PreTrainedModel, report: dict[str, Any], *, new_head: bool) -> None:
    """Check that no weights are missing: transformers initialises those at random, correct only for a new head."""
    missing = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
    body = model.base_model_prefix + "."
    wrong = [key for key in missing if not new_head or (key.startswith(body) and ".pooler." not in key)]
    if wrong:
        raise ModelError(f"{folder}: {len(wrong)} weights are missing or of another shape ({wrong[0]} is the first)")


def _sees_next_token(model: PreTrainedModel) -> bool:
    """Return whether the first token's output depends on the second: in a causal model its gradient is exactly zero."""
    embedded = model.get_input_embeddings()(torch.tensor([[0, 1]])).detach().requires_grad_()
    with torch.enable_grad():
        first = model.train(False)(inputs_embeds=embedded).logits[0, 0]
        (slope,) = torch.autograd.grad(first.square().sum(), embedded)
    return bool(slope[0, 1].any())
