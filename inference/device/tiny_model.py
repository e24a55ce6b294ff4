"""GLMs of a few small layers, to measure what running a model costs beside its operations."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np

from fedglm.inference.runtime.architecture import read_architecture
from fedglm.inference.runtime.graph_session import GraphSession

TINY_LAYERS: Final = (1, 5)
"""Numbers of layers that there is a graph for."""


def tiny_config(layers: int) -> dict[str, Any]:
    """Return the configuration of a tiny model."""
    return {
        "model_type": "glm",
        "architectures": ["GlmForCausalLM"],
        "vocab_size": 64,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
        "tie_word_embeddings": True,
    }


def skeleton_file(layers: int) -> Path:
    """Return the file of a tiny model's graph without weights.

    It is what `fedglm.autoglm.light.graph.model.build_skeleton` makes: a device has no ``onnx`` to write one.
    """
    return Path(__file__).with_name(f"tiny{layers}.skeleton")


def open_tiny_model(layers: int, threads: int) -> GraphSession:
    """Open a tiny model, with weights of no meaning."""
    config = tiny_config(layers)
    shapes = read_architecture(config).tensor_shapes()
    tensors = {name: np.full(shape, 0.01, np.float32) for name, shape in shapes.items()}
    return GraphSession.open(skeleton_file(layers).read_bytes(), tensors, config, threads=threads)
