"""The shape of a GLM as its ``config.json`` says: what the graph is written from, and what its runtime fills."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedglm.inference.errors import InferenceError

LANGUAGE_MODEL, CLASSIFIER = "GlmForCausalLM", "GlmForSequenceClassification"
EMBEDDING, FINAL_NORM = "model.embed_tokens.weight", "model.norm.weight"
HEADS = {LANGUAGE_MODEL: "lm_head.weight", CLASSIFIER: "score.weight"}
"""The output layer of each architecture, as transformers names it."""
MAX_LENGTH = 1 << 20
"""Of a sequence: rotary tables have a row for each position, so a configuration's word alone takes memory."""


@dataclass(frozen=True, kw_only=True)
class LayerShape:
    """What may differ from layer to layer.

    Attributes:
        intermediate: Width of the gated feed-forward layer.
        heads: Number of query heads.
        kv_heads: Number of key-value heads, which the query heads share.
    """

    intermediate: int
    heads: int
    kv_heads: int


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A GLM's shape (transformers' ``GlmConfig``; a Llama is one that rotates whole heads and has no biases).

    Attributes:
        kind: Name of its transformers class.
        vocab_size: Number of rows of the embedding.
        outputs: Number of rows of the output layer.
        hidden: Width of the residual stream.
        head_dim: Width of an attention head.
        layers: Shape of each layer, from the first.
        max_length: Maximum number of positions.
        epsilon: What the norms add to the mean square.
        rope_theta: Base of the rotary frequencies.
        rotary_dim: Number of a head's columns that are rotated, pair by pair.
        attention_bias: Whether queries, keys and values have a bias.
        tied: Whether the output layer is the embedding.
    """

    kind: str
    vocab_size: int
    outputs: int
    hidden: int
    head_dim: int
    layers: tuple[LayerShape, ...]
    max_length: int
    epsilon: float
    rope_theta: float
    rotary_dim: int
    attention_bias: bool
    tied: bool

    @property
    def head(self) -> str:
        """Name of the output layer; the tensor itself is `head_source`."""
        return HEADS[self.kind]

    @property
    def head_source(self) -> str:
        """Name of the tensor that the output layer is made of."""
        return EMBEDDING if self.tied else self.head

    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """Return the (outputs, inputs) of each Linear by its name, with the output layer's also where it is tied."""
        shapes: dict[str, tuple[int, int]] = {}
        for number, layer in enumerate(self.layers):
            prefix = f"model.layers.{number}."
            attention, kv = layer.heads * self.head_dim, layer.kv_heads * self.head_dim
            shapes |= {
                f"{prefix}self_attn.q_proj.weight": (attention, self.hidden),
                f"{prefix}self_attn.k_proj.weight": (kv, self.hidden),
                f"{prefix}self_attn.v_proj.weight": (kv, self.hidden),
                f"{prefix}self_attn.o_proj.weight": (self.hidden, attention),
                f"{prefix}mlp.gate_up_proj.weight": (2 * layer.intermediate, self.hidden),
                f"{prefix}mlp.down_proj.weight": (self.hidden, layer.intermediate),
            }
        return shapes | {self.head: (self.outputs, self.hidden)}

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor that a model of this shape has, a tied output layer left out."""
        linear = self.linear_shapes()
        shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (self.vocab_size, self.hidden), FINAL_NORM: (self.hidden,)}
        for name, shape in linear.items():
            if name == self.head and self.tied:
                continue
            shapes[name] = shape
            if self.attention_bias and name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
                shapes[name.removesuffix("weight") + "bias"] = shape[:1]
        for number in range(len(self.layers)):
            for norm in ("input_layernorm", "post_attention_layernorm"):
                shapes[f"model.layers.{number}.{norm}.weight"] = (self.hidden,)
        return shapes


def read_architecture(config: Mapping[str, Any]) -> Architecture:
    """Read the shape of a GLM from its ``config.json``.

    Where layers differ, ``fedglm_layers`` has for each of them ``intermediate_size``, ``num_attention_heads`` and
    ``num_key_value_heads``.

    Raises:
        InferenceError: It is no GLM, or a value is missing or impossible.
    """
    kind = _read_kind(config)
    heads, hidden = _count(config, "num_attention_heads"), _count(config, "hidden_size")
    head_dim = _count(config, "head_dim") if config.get("head_dim") is not None else hidden // heads
    rope = config.get("rope_parameters") or {}
    theta = _number(rope, "rope_theta")
    rotary_dim = int(head_dim * _number(rope, "partial_rotary_factor"))
    if rope.get("rope_type", "default") != "default":
        raise InferenceError(f"the graph has no rotary embedding of type {rope['rope_type']!r}, only 'default'")
    if config.get("hidden_act", "silu") != "silu":
        raise InferenceError(f"the graph has no activation {config['hidden_act']!r}; a GLM has 'silu'")
    if rotary_dim % 2 or not 0 < rotary_dim <= head_dim or theta <= 0:
        raise InferenceError(f"the configuration rotates {rotary_dim} of a head's {head_dim} columns, base {theta}")
    vocab_size, max_length = _count(config, "vocab_size"), _count(config, "max_position_embeddings")
    if max_length > MAX_LENGTH:
        raise InferenceError(f"the configuration's max_position_embeddings is {max_length}, more than {MAX_LENGTH}")
    return Architecture(
        kind=kind,
        vocab_size=vocab_size,
        outputs=vocab_size if kind == LANGUAGE_MODEL else len(config.get("id2label") or ("LABEL_0", "LABEL_1")),
        hidden=hidden,
        head_dim=head_dim,
        layers=_read_layers(config, heads),
        max_length=max_length,
        epsilon=_number(config, "rms_norm_eps"),
        rope_theta=theta,
        rotary_dim=rotary_dim,
        attention_bias=bool(config.get("attention_bias", True)),
        tied=kind == LANGUAGE_MODEL and bool(config.get("tie_word_embeddings", False)),
    )


def _read_kind(config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    known = [name for name in names if name in HEADS] if isinstance(names, Sequence) else []
    if config.get("model_type") != "glm" or len(known) != 1:
        raise InferenceError(
            f"the configuration describes {names} of type {config.get('model_type')!r}; it must be a glm whose "
            f"architectures are one of {', '.join(HEADS)}"
        )
    return str(known[0])


def _read_layers(config: Mapping[str, Any], heads: int) -> tuple[LayerShape, ...]:
    count = _count(config, "num_hidden_layers")
    each = config.get("fedglm_layers") or [config] * count
    if len(each) != count:
        raise InferenceError(f"fedglm_layers describes {len(each)} layers of {count}")
    layers = tuple(
        LayerShape(
            intermediate=_count(layer, "intermediate_size"),
            heads=_count(layer, "num_attention_heads") if "num_attention_heads" in layer else heads,
            kv_heads=_count(layer, "num_key_value_heads"),
        )
        for layer in each
    )
    for number, layer in enumerate(layers):
        if layer.heads % layer.kv_heads:
            raise InferenceError(
                f"layer {number}: {layer.heads} query heads cannot share {layer.kv_heads} key-value heads equally"
            )
    return layers


def _count(values: Mapping[str, Any], key: str) -> int:
    value = values.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InferenceError(f"the configuration's {key} is {value!r}; it must be a positive whole number")
    return value


def _number(values: Mapping[str, Any], key: str) -> float:
    value = values.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise InferenceError(f"the configuration's {key} is {value!r}; it must be a number")
    return float(value)
