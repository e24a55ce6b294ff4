"""A Linear in the graph's kernels, at codes and inputs whose products overflow 16 bits in pairs; prints its errors.

Without VNNI, x86 has one instruction for products of bytes (``vpmaddubsw``), which adds two of them in 16 bits and
saturates: 2 * 255 * 127 is twice what fits. Run it as a program to see another processor's errors.
"""

import json
import sys

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from fedglm.autoglm.light.graph.formats import TensorFormat
from fedglm.autoglm.light.graph.nodes import IR_VERSION, OPSET, GraphNodes
from fedglm.inference.runtime.filled_graph import open_filled_graph
from fedglm.inference.runtime.initializers import fill
from fedglm.inference.runtime.skeleton import read_initializers
from fedglm.inference.weights.quantized import QuantizedMatrix

ROWS, COLUMNS = 24, 384
SCHEMES = {"int8": (-128, 127, 128), "int4": (-8, 7, 32)}


def save(graph):
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def floats(name, width):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width])


def linear_of(matrix, kind):
    """The Linear as a session, from its input (n, columns) to its output (n, rows)."""
    graph = GraphNodes()
    form = TensorFormat(kind=kind, block=matrix.block, zeros=matrix.zeros is not None)
    graph.linear("x", "weight", matrix.shape, form, "y")
    inputs, outputs = [floats("x", COLUMNS)], [floats("y", ROWS)]
    model = save(
        helper.make_graph(graph.nodes, "linear", inputs, outputs, list(graph.initializers.values()))
    ).SerializeToString()
    arrays = {one.name: fill(one, {"weight": matrix}, None) for one in read_initializers(model)}
    return open_filled_graph(model, arrays)


def cases():
    """Matrices and inputs by name; each input has one magnitude, so that rounding it to INT8 is exact."""
    for kind, (low, high, block) in SCHEMES.items():
        blocks = (ROWS, COLUMNS // block)
        scales = np.full(blocks, 2.0**-7, np.float32)
        for code in (low, high):
            for zero in (None, low, high):
                if code == zero:
                    continue
                matrix = QuantizedMatrix(
                    codes=np.full((ROWS, COLUMNS), code, np.int8),
                    scales=scales,
                    zeros=None if zero is None else np.full(blocks, zero, np.int8),
                    block=block,
                    low=low,
                    high=high,
                )
                for sign in (1.0, -1.0):
                    for count in (1, 5):  # one row and several have kernels of their own
                        x = np.full((count, COLUMNS), sign, np.float32)
                        yield f"{kind}, codes {code}, zero {zero}, input {sign}, {count} rows", kind, matrix, x


def relative_errors():
    """The error of each case, as a share of the exact result."""
    errors = {}
    for name, kind, matrix, x in cases():
        found = linear_of(matrix, kind).run(None, {"x": x})[0]
        exact = x.astype(np.float64) @ matrix.dequantize().astype(np.float64).T
        errors[name] = float(np.abs(found - exact).max() / np.abs(exact).min())
    return errors


def error_of_dynamic_quantization():
    """The error of ONNX Runtime's 8-bit product of unsigned inputs, which does saturate where there is no VNNI."""
    weight = helper.make_tensor("w", TensorProto.INT8, [COLUMNS, ROWS], np.full((COLUMNS, ROWS), 127, np.int8))
    node = helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    x = helper.make_tensor_value_info("x", TensorProto.UINT8, ["n", COLUMNS])
    y = helper.make_tensor_value_info("y", TensorProto.INT32, ["n", ROWS])
    model = save(helper.make_graph([node], "product", [x], [y], [weight]))
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {"x": np.full((1, COLUMNS), 255, np.uint8)})[0]
    return float(np.abs(found / (255 * 127 * COLUMNS) - 1).max())


if __name__ == "__main__":
    json.dump({"ours": relative_errors(), "dynamic": error_of_dynamic_quantization()}, sys.stdout)
