"""Small models in numpy, such as quantizers make, and an ideal code to compare a packing with."""

import numpy as np

from fedglm.inference.weights.halves import round_mantissa
from fedglm.inference.weights.model import NumpyModel
from fedglm.inference.weights.quantized import QuantizedMatrix

CONFIG = {"model_type": "glm", "hidden_size": 64, "vocab_size": 256, "num_hidden_layers": 1}
TASK = {"kind": "text", "length": 64}


def make_matrix(codes, *, low, high, block=None, zeros=None, seed=0):
    """A matrix of these codes, with random scales of five bits of mantissa."""
    codes = np.asarray(codes, np.int8)
    block = block or codes.shape[1]
    rng = np.random.default_rng(seed)
    shape = (codes.shape[0], -(-codes.shape[1] // block))
    scales = round_mantissa(rng.lognormal(-3, 0.2, shape).astype(np.float32), 5)
    return QuantizedMatrix(codes=codes, scales=scales, zeros=zeros, block=block, low=low, high=high)


def ternary_codes(rng, shape, *, zeros=0.58, spread=0.0):
    """Ternary codes with a share of zeros; its logit differs between columns by a normal with this deviation."""
    logits = np.log(zeros / (1 - zeros)) + rng.normal(0, spread, (1, shape[1]))
    filled = rng.random(shape) > 1 / (1 + np.exp(-logits))
    return (filled * rng.choice([-1, 1], shape)).astype(np.int8)


def gaussian_codes(rng, shape, *, step, low, high):
    """Codes of a normal variable in steps of so many deviations."""
    return np.clip(np.rint(rng.normal(size=shape) / step), low, high).astype(np.int8)


def make_model(seed=0, *, changed=0.0):
    """A model of 11,000 parameters: ternary matrices, an INT4 embedding, an INT8 matrix with zero points, norms.

    Args:
        seed: Seed of all weights.
        changed: Share of the ternary codes that are drawn again, as if training had gone on.
    """
    rng, again = np.random.default_rng(seed), np.random.default_rng(seed + 1000)
    tensors = {
        "model.embed_tokens.weight": make_matrix(
            gaussian_codes(rng, (64, 64), step=0.4, low=-8, high=7), low=-8, high=7, block=32, seed=seed
        )
    }
    for name, shape in (("self_attn.q_proj", (32, 64)), ("mlp.gate_up_proj", (64, 32)), ("mlp.down_proj", (32, 64))):
        codes = ternary_codes(rng, shape)
        drawn = again.random(shape) < changed
        codes[drawn] = ternary_codes(again, shape)[drawn]
        tensors[f"model.layers.0.{name}.weight"] = make_matrix(codes, low=-1, high=1, seed=seed)
    zeros = rng.integers(-20, 20, (4, 2)).astype(np.int8)
    tensors["score.weight"] = make_matrix(
        gaussian_codes(rng, (4, 64), step=0.03, low=-128, high=127), low=-128, high=127, block=32, zeros=zeros
    )
    tensors["model.layers.0.self_attn.q_proj.bias"] = rng.normal(size=64).astype(np.float32)
    tensors["model.norm.weight"] = round_mantissa(rng.normal(1, 0.1, 64).astype(np.float32), 10)
    return NumpyModel(tensors=tensors, config=CONFIG, task=TASK)


def entropy_bytes(codes):
    """Length of an ideal code of independent codes of known shares, in bytes (Shannon 1948, theorem 9)."""
    _, counts = np.unique(codes, return_counts=True)
    share = counts / codes.size
    return float(-(share * np.log2(share)).sum() * codes.size / 8)
