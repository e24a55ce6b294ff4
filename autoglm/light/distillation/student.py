"""Smaller students of a GLM: of another shape from random weights, or some of the teacher's layers."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from transformers import GlmConfig, PreTrainedModel

from fedglm.autoglm.errors import ModelError
from fedglm.autoglm.models.presets import Preset
from fedglm.autoglm.quiet import quiet_transformers


def make_student(teacher: PreTrainedModel, shape: Preset, *, seed: int) -> PreTrainedModel:
    """Make a student of another shape from random weights, with the teacher's vocabulary, classes and special tokens.

    The weights depend on `seed` alone; torch's global generator is unchanged.

    Args:
        teacher: A ``GlmForCausalLM`` or ``GlmForSequenceClassification``.
        shape: Shape of the student; `min_vocab` does not count, for both read the same tokens.
        seed: Seed of the weights.

    Raises:
        ModelError: The student would be shorter-sighted than the teacher.
    """
    config = _copy_config(teacher)
    if shape.max_length < config.max_position_embeddings:
        raise ModelError(
            f"the student takes {shape.max_length} tokens and the teacher {config.max_position_embeddings}: give the "
            "student's shape as many"
        )
    config.hidden_size, config.intermediate_size = shape.hidden, shape.intermediate
    config.num_hidden_layers, config.head_dim = shape.layers, shape.hidden // shape.heads
    config.num_attention_heads, config.num_key_value_heads = shape.heads, shape.kv_heads
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the accelerators too
        student: PreTrainedModel = type(teacher)(config)
    return student.train()


def copy_layers(teacher: PreTrainedModel, layers: Sequence[int]) -> PreTrainedModel:
    """Make a student of some of the teacher's layers, in the given order, with its embedding, last norm and head.

    Sanh et al., arXiv:1910.01108, section 3 (every second layer).

    Args:
        teacher: A ``GlmForCausalLM`` or ``GlmForSequenceClassification``; it is not changed.
        layers: Numbers of the layers, from 0.

    Raises:
        ModelError: No layer is named, or one that the teacher does not have.
    """
    config = _copy_config(teacher)
    if not layers or not all(0 <= layer < config.num_hidden_layers for layer in layers):
        raise ModelError(f"layers {list(layers)} of a teacher that has 0 to {config.num_hidden_layers - 1}")
    config.num_hidden_layers = len(layers)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[layer] for layer in layers]
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        student: PreTrainedModel = type(teacher)(config)
    prefix = f"{teacher.base_model_prefix}.layers."
    source = teacher.state_dict()
    tensors = {name: tensor for name, tensor in source.items() if not name.startswith(prefix)}
    for number, layer in enumerate(layers):
        own = f"{prefix}{layer}."
        inside = [(name.removeprefix(own), tensor) for name, tensor in source.items() if name.startswith(own)]
        tensors |= {f"{prefix}{number}.{name}": tensor for name, tensor in inside}
    student.load_state_dict(tensors)
    return student.train()


def _copy_config(model: PreTrainedModel) -> GlmConfig:
    if not isinstance(model.config, GlmConfig):
        raise ModelError(f"a student is made of a GLM, not of a {type(model).__name__}")
    return copy.deepcopy(model.config)
