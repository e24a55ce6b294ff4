"""LoRA by peft: low-rank adapters of the linear layers (Hu et al., arXiv:2106.09685); only they are then federated."""

from __future__ import annotations

import copy
import sys
from importlib import import_module

import torch
from transformers import PreTrainedModel

_KNOWN_HEADS = ("classifier", "score")  # peft adds these two itself


def attach_lora(model: PreTrainedModel, *, rank: int, alpha: float, classifier: bool) -> torch.nn.Module:
    """Freeze a model and attach an adapter to each linear layer but the output; a classifier's head trains in full.

    Embeddings never get one: a tied embedding's adapter would reveal which tokens a site has seen.

    Args:
        model: Model in float32; it is changed in place.
        rank: Rank of each adapter.
        alpha: Adapters are scaled by alpha / rank.
        classifier: Whether the model has a new head that must train.
    """
    # Imported here, because most models have no adapters, and both are slow to load. peft uses the first but relies on
    # transformers to import it, which the lean transformers of a node does not.
    import_module("torch.distributed.tensor")
    import peft

    parts = [name for name, part in model.named_children() if next(part.parameters(), None) is not None]
    heads = [name for name in parts if name not in (model.base_model_prefix, *_KNOWN_HEADS)]
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # peft only divides it by the rank
        lora_dropout=0.0,
        target_modules="all-linear",
        modules_to_save=heads if classifier else None,
        task_type=peft.TaskType.SEQ_CLS if classifier else peft.TaskType.CAUSAL_LM,
    )
    return peft.get_peft_model(model, config)


def merge_adapters(model: torch.nn.Module) -> PreTrainedModel:
    """Return the plain model: with adapters, a copy with them merged into the weights; otherwise the model itself.

    Raises:
        TypeError: The model is not of transformers.
    """
    peft = sys.modules.get("peft")  # not loaded means no model with adapters
    if peft is not None and isinstance(model, peft.PeftModel):
        plain: PreTrainedModel = copy.deepcopy(model).merge_and_unload()
        return plain
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"a transformers model is wanted, not {type(model).__name__}")
    return model
