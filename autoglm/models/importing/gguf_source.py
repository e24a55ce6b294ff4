"""A Llama in one GGUF file, quantized or not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from gguf.quants import dequantize
from transformers import PreTrainedTokenizerBase

from fedglm.autoglm.errors import ModelError
from fedglm.autoglm.models.importing.gguf_header import read_gguf_header
from fedglm.autoglm.models.importing.gguf_tokenizer import make_gguf_tokenizer
from fedglm.autoglm.models.importing.llama import EMBEDDING, LAST_NORM, OUTPUT, LlamaShape

_NAMES: Final = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_norm": "input_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_norm": "post_attention_layernorm",
}
_OUTSIDE: Final = {"token_embd.weight": EMBEDDING, "output_norm.weight": LAST_NORM, "output.weight": OUTPUT}


class GgufSource:
    """A Llama in a GGUF file.

    Args:
        path: The file.

    Raises:
        ModelError: It is no GGUF file, damaged, of another architecture, or scales its rotary frequencies.
    """

    rotates_neighbours = True  # llama.cpp's converter permutes q and k so

    def __init__(self, path: Path) -> None:
        self._path = path
        header = read_gguf_header(path)
        self._metadata = header.metadata
        self._tensors = {_rename(name): tensor for name, tensor in header.tensors.items()}
        self.sizes: Mapping[str, tuple[int, ...]] = {name: tensor.shape for name, tensor in self._tensors.items()}
        self.shape = self._read_shape()

    def read(self, name: str) -> npt.NDArray[np.float32]:
        """Read and dequantize one tensor.

        Raises:
            ModelError: The installed gguf cannot dequantize how it is stored.
        """
        tensor = self._tensors[name]
        stored = np.fromfile(self._path, np.uint8, tensor.nbytes, offset=tensor.offset)
        rows = stored.reshape(*tensor.shape[:-1], -1)
        try:
            values = dequantize(rows, tensor.kind)
        except NotImplementedError as exc:
            raise ModelError(f"the tensor {name} is stored as {tensor.kind.name}, which cannot be read here") from exc
        return np.ascontiguousarray(values, dtype=np.float32).reshape(tensor.shape)

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Make the tokenizer that the metadata describe."""
        return make_gguf_tokenizer(self._metadata, max_length=self.shape.max_length)

    def _read_shape(self) -> LlamaShape:
        if (kind := self._metadata.get("general.architecture")) != "llama":
            raise ModelError(f"its architecture is {kind!r}, and only 'llama' becomes a GLM")
        if (scaling := self._metadata.get("llama.rope.scaling.type", "none")) != "none":
            raise ModelError(f"it scales its rotary frequencies ({scaling}), which a GLM here does not")
        if "rope_freqs.weight" in self.sizes:
            raise ModelError("it scales each of its rotary frequencies (rope_freqs), which a GLM here does not")
        if EMBEDDING not in self.sizes:
            raise ModelError("it has no embedding (token_embd.weight)")
        hidden, heads = self._get("embedding_length", int), self._get("attention.head_count", int)
        if not (hidden > 0 and heads > 0):
            raise ModelError("its width or its number of heads is no positive number")
        head_dim = self._get("attention.key_length", int, hidden // heads)
        if self._get("attention.value_length", int, head_dim) != head_dim:
            raise ModelError("its keys and its values have different widths")
        return LlamaShape(
            vocab_size=self.sizes[EMBEDDING][0],
            hidden=hidden,
            intermediate=self._get("feed_forward_length", int),
            layers=self._get("block_count", int),
            heads=heads,
            kv_heads=self._get("attention.head_count_kv", int, heads),
            head_dim=head_dim,
            rotary_dim=self._get("rope.dimension_count", int, head_dim),
            rope_theta=self._get("rope.freq_base", float, 10_000.0),
            norm_epsilon=self._get("attention.layer_norm_rms_epsilon", float),
            max_length=self._get("context_length", int),
            tied=OUTPUT not in self.sizes,
            attention_bias="model.layers.0.self_attn.q_proj.bias" in self.sizes,
        )

    def _get(self, key: str, kind: type, default: Any = None) -> Any:
        value = self._metadata.get(f"llama.{key}", default)
        if type(value) is not kind:
            raise ModelError(f"its llama.{key} is {value!r:.40}: a {kind.__name__} is wanted")
        return value


def _rename(name: str) -> str:
    """Return transformers' name of a tensor; one of another architecture keeps its own."""
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    found = re.fullmatch(r"blk\.(\d{1,5})\.(\w+)\.(weight|bias)", name)
    if found is None or found[2] not in _NAMES:
        return name
    return f"model.layers.{int(found[1])}.{_NAMES[found[2]]}.{found[3]}"
