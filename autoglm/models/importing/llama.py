"""The shape of a Llama, and where one is read from: what every source of a base model gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from fedglm.autoglm.errors import ModelError

EMBEDDING, LAST_NORM, OUTPUT = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
"""Tensors outside the layers, named as in transformers."""


@dataclass(frozen=True, kw_only=True)
class LlamaShape:
    """What defines a Llama besides its weights (Touvron et al., arXiv:2302.13971, section 2.2).

    Attributes:
        vocab_size: Rows of the embedding.
        hidden: Width H.
        intermediate: Width of the gated feed-forward layer.
        layers: Number of layers.
        heads: Number of query heads.
        kv_heads: Number of key-value heads, which the query heads share.
        head_dim: Width of a head.
        rotary_dim: Leading dimensions of a head that are rotated.
        rope_theta: Base of the rotary frequencies, without any scaling.
        norm_epsilon: Epsilon of RMSNorm.
        max_length: Maximum sequence length in tokens.
        tied: Whether the output layer is the embedding.
        attention_bias: Whether the query, key and value maps have biases.

    Raises:
        ModelError: The numbers do not fit together.
    """

    vocab_size: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    rotary_dim: int
    rope_theta: float
    norm_epsilon: float
    max_length: int
    tied: bool
    attention_bias: bool

    def __post_init__(self) -> None:
        counts = {
            name: getattr(self, name)
            for name in (
                "vocab_size",
                "hidden",
                "intermediate",
                "layers",
                "heads",
                "kv_heads",
                "head_dim",
                "max_length",
            )
        }
        if wrong := [name for name, value in counts.items() if type(value) is not int or not 0 < value < 2**31]:
            raise ModelError(f"its {wrong[0]} is {counts[wrong[0]]!r}: a positive whole number is wanted")
        if self.heads % self.kv_heads:
            raise ModelError(f"its {self.heads} heads cannot share {self.kv_heads} key-value heads evenly")
        if not 0 < self.rotary_dim <= self.head_dim or self.rotary_dim % 2:
            raise ModelError(
                f"it rotates {self.rotary_dim} of the {self.head_dim} dimensions of a head: not an even part"
            )
        if not (0 < self.norm_epsilon < 1 and 1 <= self.rope_theta < float("inf")):
            raise ModelError("its norm epsilon or rope theta is out of range")

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor, by its name in transformers' ``LlamaForCausalLM``."""
        wide, narrow = self.heads * self.head_dim, self.kv_heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (self.vocab_size, self.hidden), LAST_NORM: (self.hidden,)}
        if not self.tied:
            shapes[OUTPUT] = (self.vocab_size, self.hidden)
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}."
            for name, rows in (("q", wide), ("k", narrow), ("v", narrow)):
                shapes[f"{prefix}self_attn.{name}_proj.weight"] = (rows, self.hidden)
                if self.attention_bias:
                    shapes[f"{prefix}self_attn.{name}_proj.bias"] = (rows,)
            shapes[f"{prefix}self_attn.o_proj.weight"] = (self.hidden, wide)
            for name in ("gate", "up"):
                shapes[f"{prefix}mlp.{name}_proj.weight"] = (self.intermediate, self.hidden)
            shapes[f"{prefix}mlp.down_proj.weight"] = (self.hidden, self.intermediate)
            for name in ("input", "post_attention"):
                shapes[f"{prefix}{name}_layernorm.weight"] = (self.hidden,)
        return shapes


class LlamaSource(Protocol):
    """A Llama that lies somewhere; nothing of its weights is in memory yet."""

    @property
    def shape(self) -> LlamaShape:
        """Its shape."""
        ...

    @property
    def sizes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of each tensor that is there, by its name in transformers."""
        ...

    @property
    def rotates_neighbours(self) -> bool:
        """Whether dimensions 2i and 2i + 1 of a head are rotated together, as in GLM and GGUF.

        Otherwise i and i + rotary_dim / 2 are, as in transformers' Llama.
        """
        ...

    def read(self, name: str) -> npt.NDArray[np.float32]:
        """Read one tensor."""
        ...

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer."""
        ...


Progress = Callable[[int, int], None]
"""Called with the number of parameters read so far, and of all."""


def check_tensors(shape: LlamaShape, sizes: Mapping[str, tuple[int, ...]]) -> None:
    """Check that the tensors are those of the shape, before any of them is read.

    Raises:
        ModelError: A tensor is missing, of another shape, or one that a GLM has no place for.
    """
    if shape.layers > len(sizes):  # else a hostile number of layers would be written out
        raise ModelError(f"it says that it has {shape.layers} layers and holds {len(sizes)} tensors")
    wanted = shape.tensor_shapes()
    for name, size in wanted.items():
        if name not in sizes:
            raise ModelError(f"the tensor {name} is missing")
        if tuple(sizes[name]) != size:
            raise ModelError(f"the tensor {name} has the shape {tuple(sizes[name])}, and {size} is wanted")
    if more := sorted(name for name in sizes if name not in wanted and not (shape.tied and name == OUTPUT)):
        raise ModelError(f"a GLM has no place for {len(more)} of its tensors: {more[0]} is the first")
