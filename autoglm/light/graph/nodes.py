"""Nodes and initializers of an ONNX graph as they are gathered, with what a GLM is made of: lookups and Linears."""

from __future__ import annotations

from typing import Any

import onnx
from onnx import TensorProto, helper

from fedglm.autoglm.light.graph.formats import TensorFormat
from fedglm.inference.runtime.initializers import CODES, FLOAT, FLOAT16, INT4, INT8, SCALES, ZEROS, name_part

OPSET, IR_VERSION = 24, 11
"""Attention as ONNX 1.19 and later define it; RMSNormalization and RotaryEmbedding are in the standard since 23."""
CONTRIB = "com.microsoft"
_CODE_TYPES = {"int8": INT8, "int4": INT4}


class GraphNodes:
    """Collects nodes and initializers; each method returns the name of its output.

    Args:
        handed_off: Whether the graph is for another engine than ours (`lookup`).
    """

    def __init__(self, *, handed_off: bool = False) -> None:
        self._handed_off = handed_off
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}

    def add(self, operator: str, inputs: list[str], output: str | list[str], **attributes: Any) -> str:
        """Add a node; return the name of its first output."""
        outputs = [output] if isinstance(output, str) else output
        self.nodes.append(helper.make_node(operator, inputs, outputs, name=outputs[0], **attributes))
        return outputs[0]

    def constant(self, name: str, values: list[int]) -> str:
        """Add an int64 vector whose data stand in the graph."""
        self.initializers[name] = helper.make_tensor(name, TensorProto.INT64, [len(values)], values)
        return name

    def filled(self, name: str, shape: tuple[int, ...], dtype: int = FLOAT) -> str:
        """Add an initializer that the runtime fills (`fedglm.inference.runtime.initializers`)."""
        tensor = TensorProto(name=name, data_type=dtype, dims=shape, data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value=name)
        self.initializers[name] = tensor
        return name

    def linear(self, x: str, source: str, shape: tuple[int, int], form: TensorFormat, output: str) -> str:
        """Multiply by a weight of (outputs, inputs): MatMul, of float32 or behind a block-wise DequantizeLinear.

        ONNX Runtime fuses the two into a kernel that reads the codes (``MatMulNBits``); others compute as written.
        """
        rows, columns = shape
        if form.kind == "fp32":
            weight = self.filled(name_part(source, "", transposed=True), (columns, rows))
        else:
            dtype, blocks = _CODE_TYPES[form.kind], -(-columns // form.block)
            codes = self.filled(name_part(source, CODES, transposed=True), (columns, rows), dtype)
            inputs = [codes, self.filled(name_part(source, SCALES, block=form.block, transposed=True), (blocks, rows))]
            if form.zeros:
                name = name_part(source, ZEROS, block=form.block, transposed=True)
                inputs.append(self.filled(name, (blocks, rows), dtype))
            weight = self.add("DequantizeLinear", inputs, f"{output}.weight", axis=0, block_size=form.block)
        return self.add("MatMul", [x, weight], output)

    def lookup(self, ids: str, source: str, shape: tuple[int, int], form: TensorFormat, output: str) -> str:
        """Look up rows of an embedding of (rows, columns), as float32.

        Codes are looked up before they are dequantized: the other way the whole table would be, in each run. For INT4
        standard ONNX has no lookup, and the one contrib node of the graph does it (``GatherBlockQuantized``,
        https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md).

        A graph that is handed off looks up rows of the dequantized table all the same: OpenVINO dequantizes nothing but
        constants, and its compiler, as TensorRT's, is to keep them in codes.
        """
        rows, columns = shape
        if form.kind == "fp32":
            return self.add("Gather", [self.filled(source, shape), ids], output)
        if form.kind == "fp16":
            half = self.add("Gather", [self.filled(source, shape, FLOAT16), ids], f"{output}.half")
            return self.add("Cast", [half], output, to=FLOAT)
        dtype, blocks = _CODE_TYPES[form.kind], (rows, -(-columns // form.block))
        codes = self.filled(name_part(source, CODES), shape, dtype)
        scales = self.filled(name_part(source, SCALES, block=form.block), blocks)
        zeros = [self.filled(name_part(source, ZEROS, block=form.block), blocks, dtype)] if form.zeros else []
        if self._handed_off:
            whole = [codes, scales, *zeros]
            table = self.add("DequantizeLinear", whole, f"{output}.table", axis=1, block_size=form.block)
            return self.add("Gather", [table, ids], output)
        if form.kind == "int4":
            return self.add(
                "GatherBlockQuantized",
                [codes, ids, scales, *zeros],
                output,
                domain=CONTRIB,
                gather_axis=0,
                quantize_axis=1,
                block_size=form.block,
            )
        tables = {"codes": codes, "scales": scales} | ({"zeros": zeros[0]} if zeros else {})
        found = [self.add("Gather", [table, ids], f"{output}.{part}") for part, table in tables.items()]
        return self.add("DequantizeLinear", found, output, axis=2, block_size=form.block)
