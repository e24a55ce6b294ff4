"""A GLM in numpy, from its definition: the twin that says what every other `Session` must compute. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class NumpyCache:
    """Keys and values of each layer, (B, heads, length, width)."""

    layers: tuple
    length: int

    def select(self, rows):
        return NumpyCache(tuple((k[rows], v[rows]) for k, v in self.layers), self.length)

    def truncate(self, length):
        return NumpyCache(tuple((k[:, :, :length], v[:, :, :length]) for k, v in self.layers), length)

    def nbytes(self):
        return sum(k.nbytes + v.nbytes for k, v in self.layers)


class NumpyGlm:
    """GLM (arXiv:2103.10360) in its transformers form: RMSNorm, grouped queries, half of each head rotated, SwiGLU."""

    def __init__(self, tensors: dict[str, np.ndarray], config: dict[str, Any]) -> None:
        self.tensors, self.config = tensors, config
        self.head = tensors.get("score.weight", tensors.get("lm_head.weight", tensors["model.embed_tokens.weight"]))
        self.outputs = len(self.head)
        self.vocab_size = len(tensors["model.embed_tokens.weight"])
        self.max_length = config["max_position_embeddings"]

    def run(self, ids, cache=None, *, logits_at=None, mask=None):
        config, size, past = self.config, ids.shape[1], cache.length if cache else 0
        mask = np.ones((len(ids), past + size), dtype=bool) if mask is None else mask
        positions = np.maximum(np.cumsum(mask, 1) - 1, 0)[:, past:]
        visible = np.tril(np.ones((past + size, past + size), dtype=bool))[past:] & mask[:, None]
        x, layers = self.tensors["model.embed_tokens.weight"][ids], []
        for layer in range(config["num_hidden_layers"]):
            weights = {
                name.removeprefix(f"model.layers.{layer}."): tensor
                for name, tensor in self.tensors.items()
                if name.startswith(f"model.layers.{layer}.")
            }
            normed = self._norm(x, weights["input_layernorm.weight"])
            q, k, v = (self._heads(normed, weights, name) for name in "qkv")
            q, k = self._rotate(q, positions), self._rotate(k, positions)
            if cache:
                k, v = (np.concatenate(pair, axis=2) for pair in zip(cache.layers[layer], (k, v), strict=True))
            layers.append((k, v))
            groups = q.shape[1] // k.shape[1]
            scores = q @ np.repeat(k, groups, 1).swapaxes(2, 3) / np.sqrt(config["head_dim"])
            scores = np.where(visible[:, None], scores, -1e30)
            shares = np.exp(scores - scores.max(-1, keepdims=True))
            shares /= shares.sum(-1, keepdims=True)
            mixed = (shares @ np.repeat(v, groups, 1)).swapaxes(1, 2).reshape(*ids.shape, -1)
            x = x + mixed @ weights["self_attn.o_proj.weight"].T
            gate, up = np.split(
                self._norm(x, weights["post_attention_layernorm.weight"]) @ weights["mlp.gate_up_proj.weight"].T, 2, -1
            )
            x = x + (gate / (1 + np.exp(-gate)) * up) @ weights["mlp.down_proj.weight"].T
        x = self._norm(x, self.tensors["model.norm.weight"])
        at = np.full((len(ids), 1), size - 1) if logits_at is None else logits_at
        picked = np.take_along_axis(x, at[:, :, None], axis=1)
        return (picked @ self.head.T).astype(np.float32), NumpyCache(tuple(layers), past + size)

    def _norm(self, x, weight):
        return weight * x / np.sqrt((x * x).mean(-1, keepdims=True) + self.config["rms_norm_eps"])

    def _heads(self, x, weights, name):
        y = x @ weights[f"self_attn.{name}_proj.weight"].T + weights.get(f"self_attn.{name}_proj.bias", 0)
        return y.reshape(*x.shape[:2], -1, self.config["head_dim"]).swapaxes(1, 2)

    def _rotate(self, x, positions):
        rope = self.config["rope_parameters"]
        width = int(self.config["head_dim"] * rope["partial_rotary_factor"])
        angles = positions[:, None, :, None] / rope["rope_theta"] ** (np.arange(0, width, 2) / width)
        even, odd = x[..., 0:width:2], x[..., 1:width:2]
        turned = np.empty_like(x[..., :width])
        turned[..., 0::2] = even * np.cos(angles) - odd * np.sin(angles)
        turned[..., 1::2] = odd * np.cos(angles) + even * np.sin(angles)
        return np.concatenate((turned, x[..., width:]), axis=-1)
