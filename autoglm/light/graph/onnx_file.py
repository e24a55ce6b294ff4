"""The hand-off to other engines: one ONNX file with the weights in it, quantized by standard DequantizeLinear.

TensorRT and OpenVINO read quantized models so: integer weights, a block-wise ``DequantizeLinear`` behind them, no node
outside of the standard. OpenVINO was run (docs/lightweight.md), TensorRT was not. The folder that fedglm itself
releases has no such file: its graph is filled in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto

from fedglm.autoglm.errors import ModelError
from fedglm.autoglm.light.graph.formats import GraphFormat, choose_formats
from fedglm.autoglm.light.graph.model import build_graph
from fedglm.core.files import write_atomically
from fedglm.inference.runtime.architecture import read_architecture
from fedglm.inference.runtime.initializers import Tensors, fill
from fedglm.inference.runtime.skeleton import Initializer

MAX_BYTES = onnx.checker.MAXIMUM_PROTOBUF - (1 << 20)
"""Of the arrays; the rest is for the names around them and the metadata."""
PURPOSE = (
    "A GLM with its weights, in standard ONNX: quantized ones are integers behind a block-wise DequantizeLinear "
    "(Q/DQ), for TensorRT and OpenVINO. OpenVINO 2026.4 reads it; TensorRT was not run. The metadata describe the "
    "inputs."
)
INPUTS = {
    "input_ids": "tokens, (batch, new)",
    "position_ids": "position of each, counted over the tokens that are no padding, (batch, new)",
    "mask": "false where a token does not look at padding, (1 or batch, 1, new, past + new)",
    "logits_at": "positions among the new tokens whose logits are wanted, (batch, wanted)",
    "past.L.key, past.L.value": "what the last run gave as present.L.key, present.L.value; past = 0 at the start",
}


def write_onnx_file(path: str | Path, tensors: Tensors, config: Mapping[str, Any], kind: GraphFormat) -> None:
    """Write a model as one self-contained ONNX file that holds nothing but standard operators.

    Args:
        path: The file; it is replaced when the new one is complete.
        tensors: The model, named as in the transformers state dict.
        config: Its ``config.json``.
        kind: Format of the Linears, as for `choose_formats`.

    Raises:
        InferenceError: The model does not fit its configuration, or a kernel.
        ModelError: The file would pass the 2 GB that a protobuf message may have.
    """
    model = fill_graph(build_graph(config, choose_formats(tensors, config, kind), handed_off=True), tensors, config)
    model.doc_string = PURPOSE
    onnx.helper.set_model_props(model, {"purpose": PURPOSE, "format": kind, **INPUTS})
    onnx.checker.check_model(model, full_check=True)
    write_atomically(Path(path), model.SerializeToString(deterministic=True))


def fill_graph(model: onnx.ModelProto, tensors: Tensors, config: Mapping[str, Any]) -> onnx.ModelProto:
    """Put the tensors into a graph that `build_graph` wrote, and return it.

    Raises:
        InferenceError: A tensor is missing or does not fit.
        ModelError: The model would be larger than a protobuf message may be.
    """
    architecture, size = read_architecture(config), 0
    for tensor in model.graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        wanted = Initializer(name=tensor.name, dtype=tensor.data_type, shape=tuple(tensor.dims))
        array = fill(wanted, tensors, architecture)
        size += array.nbytes
        if size > MAX_BYTES:
            raise ModelError("the model is larger than an ONNX file may be (2 GB); write it in INT4")
        tensor.raw_data = array.tobytes()
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
    return model
