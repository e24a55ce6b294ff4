"""A GLM of one small layer, to measure what running a model costs beside its operations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from fedglm.inference.runtime.architecture import read_architecture
from fedglm.inference.runtime.graph_session import GraphSession

TINY: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "model_type": "glm",
        "architectures": ["GlmForCausalLM"],
        "vocab_size": 64,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
        "tie_word_embeddings": True,
    }
)
"""Its configuration."""

SKELETON: Final = Path(__file__).with_name("tiny.skeleton")
"""Its graph without weights, by `fedglm.autoglm.light.graph.model.build_skeleton`: a device has no ``onnx`` to write
one."""


def open_tiny_model(threads: int) -> GraphSession:
    """Open the model, with weights of no meaning."""
    shapes = read_architecture(TINY).tensor_shapes()
    tensors = {name: np.full(shape, 0.01, np.float32) for name, shape in shapes.items()}
    return GraphSession.open(SKELETON.read_bytes(), tensors, TINY, threads=threads)
