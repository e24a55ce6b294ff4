"""LoRA by peft: low-rank adapters of the linear layers (Hu et al., arXiv:2106.09685), the only thing then federated."""

from __future__ import annotations

import copy
import sys
from importlib import import_module

import torch
from transformers import PreTrainedModel

_KNOWN_HEADS = ("classifier", "score")  # peft adds these two itself


def attach_lora(model: PreTrainedModel, *, rank: int, alpha: float, classifier: bool) -> torch.nn.Module:
    """Freeze a model and give each linear layer but the output an adapter; a classifier's head trains in full.

    Embeddings never get one: a tied embedding's adapter would show which tokens a site has seen.

    Args:
        model: in float32; it is changed in place.
        rank: of each adapter.
        alpha: adapters are scaled by alpha / rank.
        classifier: whether what stands on top of the model's body is a new head that must train.
    """
    # Only here: most models have no adapters, and both are slow to load. peft uses the first, and leaves it to
    # transformers to import it, which a node's transformers does not.
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


def merged(model: torch.nn.Module) -> PreTrainedModel:
    """The plain model: with adapters, a copy that has them added to the weights; otherwise the model itself."""
    peft = sys.modules.get("peft")  # without it there is no such model
    if peft is not None and isinstance(model, peft.PeftModel):
        plain: PreTrainedModel = copy.deepcopy(model).merge_and_unload()
        return plain
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"a transformers model is wanted, not {type(model).__name__}")
    return model
