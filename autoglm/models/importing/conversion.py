"""A Llama as a GLM: the same function of the same weights, in another order.

A GLM is a Llama whose gate and up maps are one, and whose rotary embedding turns dimensions 2i and 2i + 1 of a head
together (Su et al., arXiv:2104.09864, equation 34) where transformers' Llama turns i and i + rotary_dim / 2. So the
rows of the query and key maps are put into the other order: attention takes their inner products, which stay the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
import numpy.typing as npt
import psutil
import torch
from transformers import GlmConfig, GlmForCausalLM, PreTrainedTokenizerBase

from fedglm.autoglm.errors import ModelError
from fedglm.autoglm.models.importing.llama import EMBEDDING, LAST_NORM, OUTPUT, LlamaShape, LlamaSource, Progress
from fedglm.core.processes.control_groups import read_memory_limit

_WORKING_COPIES: Final = 4
"""Of the largest tensor: dequantized, reordered, checked and fused, beside the model itself."""

Floats = npt.NDArray[np.float32]


def to_glm(source: LlamaSource, tokenizer: PreTrainedTokenizerBase, *, progress: Progress | None) -> GlmForCausalLM:
    """Build the GLM of a Llama, in float32, in evaluation mode.

    Args:
        source: Where it is read from; its tensors were checked.
        tokenizer: Its tokenizer, for the ids of its special tokens.
        progress: Called as parameters are read.

    Raises:
        ModelError: There is too little memory, or a weight is NaN or infinite.
    """
    shape = source.shape
    counts = [math.prod(size) for size in shape.tensor_shapes().values()]
    total = sum(counts)
    _check_memory(4 * (total + _WORKING_COPIES * max(counts)))
    done = 0

    def read(name: str) -> Floats:
        nonlocal done
        values = source.read(name)
        if not np.isfinite(values).all():
            raise ModelError(f"the tensor {name} holds NaN or infinity")
        done += values.size
        if progress is not None:
            progress(done, total)
        return values

    weights = {name: torch.from_numpy(values) for name, values in _read_weights(source, read)}
    with torch.device("meta"):
        model = GlmForCausalLM(make_config(shape, tokenizer))
    model.load_state_dict(weights, assign=True, strict=not shape.tied)
    model.tie_weights()
    rotary = model.model.rotary_emb  # its frequencies are no weights, and were made on the meta device
    frequencies, _ = rotary.compute_default_rope_parameters(model.config)
    rotary.inv_freq, rotary.original_inv_freq = frequencies, frequencies.clone()
    return model.eval()


def make_config(shape: LlamaShape, tokenizer: PreTrainedTokenizerBase) -> GlmConfig:
    """Make the transformers configuration of a Llama that is a GLM."""
    return GlmConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.max_length,
        rms_norm_eps=shape.norm_epsilon,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": shape.rope_theta,
            "partial_rotary_factor": shape.rotary_dim / shape.head_dim,
        },
        tie_word_embeddings=shape.tied,
        attention_bias=shape.attention_bias,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def _read_weights(source: LlamaSource, read: Callable[[str], Floats]) -> Iterator[tuple[str, Floats]]:
    """Read the tensors of the GLM, each when it is asked for."""
    shape = source.shape
    yield EMBEDDING, read(EMBEDDING)
    yield LAST_NORM, read(LAST_NORM)
    if not shape.tied:
        yield OUTPUT, read(OUTPUT)
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        gate, up = (read(f"{prefix}mlp.{name}_proj.weight") for name in ("gate", "up"))
        yield f"{prefix}mlp.gate_up_proj.weight", np.concatenate([gate, up])
        for name in ("mlp.down_proj", "self_attn.o_proj", "input_layernorm", "post_attention_layernorm"):
            yield f"{prefix}{name}.weight", read(f"{prefix}{name}.weight")
        for part in ("weight", "bias") if shape.attention_bias else ("weight",):
            yield f"{prefix}self_attn.v_proj.{part}", read(f"{prefix}self_attn.v_proj.{part}")
            for name, heads in (("q", shape.heads), ("k", shape.kv_heads)):
                values = read(f"{prefix}self_attn.{name}_proj.{part}")
                if not source.rotates_neighbours:
                    values = interleave_halves(values, heads=heads, rotary_dim=shape.rotary_dim)
                yield f"{prefix}self_attn.{name}_proj.{part}", values


def interleave_halves(values: Floats, *, heads: int, rotary_dim: int) -> Floats:
    """Put rows i and i + rotary_dim / 2 of each head beside each other.

    Args:
        values: Weight, (heads x head_dim, columns), or bias, (heads x head_dim,), of a query or key map.
        heads: Number of heads.
        rotary_dim: Leading rows of a head that are rotated; the others stay.
    """
    by_head = values.reshape(heads, -1, *values.shape[1:]).copy()
    halves = by_head[:, :rotary_dim].reshape(heads, 2, rotary_dim // 2, *values.shape[1:])
    by_head[:, :rotary_dim] = halves.swapaxes(1, 2).reshape(by_head[:, :rotary_dim].shape)
    return by_head.reshape(values.shape)


def _check_memory(nbytes: int) -> None:
    there = min(psutil.virtual_memory().available, read_memory_limit())
    if nbytes > there:
        raise ModelError(f"to convert it takes {nbytes / 1e9:.1f} GB of memory, and {there / 1e9:.1f} GB are free")
