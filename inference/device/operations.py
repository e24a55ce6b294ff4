"""Graphs that repeat one operation of a GLM, and what goes into them: what the latency of that operation is read from.

Each graph has `repeats` copies of the operation, each with weights of its own as in a model, so that the cost of a
run can be taken off. The nodes are those of a GLM's graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from fedglm.inference.device.onnx_writer import BOOL, FLOAT, INT64, write_model, write_node, write_tensor, write_value

Format: TypeAlias = Literal["fp32", "int8", "int4"]
Operation: TypeAlias = Literal["run", "layer", "linear", "norm", "add", "rotary", "gate", "attention"]
_BLOCK: Final = 128
"""Columns of a quantized weight that share a scale."""
WEIGHT_BYTES: Final[Mapping[Format, float]] = MappingProxyType(
    {"fp32": 4, "int8": 1 + 4 / _BLOCK, "int4": 0.5 + 4 / _BLOCK}
)
"""Bytes of a weight, with its share of a scale."""
_MAX_POSITIONS: Final = 4096
_LEAST_BLOCK: Final = 16

Feeds: TypeAlias = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class OperationGraph:
    """A graph and its inputs.

    Attributes:
        model: Serialized ONNX model.
        repeats: How often it holds the operation.
        feed: Makes inputs for a batch of new tokens, (batch, new tokens, past).
    """

    model: bytes
    repeats: int
    feed: Callable[[int, int, int], Feeds]


def make_operation(operation: Operation, shape: tuple[int, ...], form: Format, repeats: int) -> OperationGraph:
    """Make the graph of an operation.

    Args:
        operation: "run": none, a graph that only copies its input. "linear": MatMul, behind a block-wise
            DequantizeLinear where quantized. "norm": RMSNormalization. "add": a residual connection. "rotary":
            RotaryEmbedding. "gate": Split and SwiGLU. "attention": Attention with past keys and values.
        shape: (inputs, outputs) of a linear; (width,) of a norm or add; (intermediate,) of a gate; (heads, head
            dimension) of a rotary; (heads, key-value heads, head dimension) of an attention; () of a run.
        form: Format of a linear's weight.
        repeats: Number of copies.
    """
    if operation == "linear":
        return _make_linear(shape[0], shape[1], form, repeats)
    if operation == "attention":
        heads, kv_heads, head_dim = shape
        return _make_attention(heads, kv_heads, head_dim, repeats)
    return _make_chain(operation, shape, repeats)


def choose_block(inputs: int) -> int:
    """Return the number of columns that share a scale in a quantized weight of so many."""
    return min(_BLOCK, max(_LEAST_BLOCK, 1 << (inputs - 1).bit_length()))


def _make_linear(inputs: int, outputs: int, form: Format, repeats: int) -> OperationGraph:
    random = np.random.default_rng(inputs * outputs)
    nodes, tensors = [], []
    for copy in range(repeats):
        weight = f"w{copy}"
        if form == "fp32":
            tensors.append(write_tensor(weight, random.standard_normal((inputs, outputs), np.float32)))
        else:
            block = choose_block(inputs)
            scales = np.full((-(-inputs // block), outputs), 0.01, np.float32)
            if form == "int4":
                codes = random.integers(0, 256, -(-inputs * outputs // 2), np.uint8)
                tensors.append(write_tensor(f"{weight}.codes", codes, int4_shape=(inputs, outputs)))
            else:
                codes8 = random.integers(-128, 128, (inputs, outputs), np.int8)
                tensors.append(write_tensor(f"{weight}.codes", codes8))
            tensors.append(write_tensor(f"{weight}.scales", scales))
            parts = [f"{weight}.codes", f"{weight}.scales"]
            nodes.append(write_node("DequantizeLinear", parts, [weight], axis=0, block_size=block))
        nodes.append(write_node("MatMul", ["x", weight], [f"y{copy}"]))
    nodes.append(write_node("Sum", [f"y{copy}" for copy in range(repeats)], ["y"]))
    values = [write_value("x", FLOAT, ["b", "s", inputs])], [write_value("y", FLOAT, ["b", "s", outputs])]

    def feed(batch: int, new: int, _past: int) -> Feeds:
        return {"x": random.standard_normal((batch, new, inputs), np.float32)}

    return OperationGraph(model=write_model(nodes, tensors, *values), repeats=repeats, feed=feed)


def _make_chain(operation: Operation, shape: tuple[int, ...], repeats: int) -> OperationGraph:
    """Make a graph in which each copy reads what the one before it wrote."""
    width = {"rotary": int(np.prod(shape)), "gate": 2 * sum(shape), "run": 8}.get(operation, sum(shape))
    nodes, tensors, inputs = [], [], [write_value("x", FLOAT, ["b", "s", width])]
    if operation == "rotary":
        inputs.append(write_value("positions", INT64, ["b", "s"]))
        table = np.ones((_MAX_POSITIONS, shape[1] // 4), np.float32)  # half of a head is rotated, in pairs
        tensors += [write_tensor("cos", table), write_tensor("sin", table)]
    if operation == "add":
        inputs.append(write_value("residual", FLOAT, ["b", "s", width]))
    x = "x"
    for copy in range(repeats):
        y = f"y{copy}"
        if operation == "norm":
            tensors.append(write_tensor(f"scale{copy}", np.full(width, 1 + copy / 64, np.float32)))
            nodes.append(write_node("RMSNormalization", [x, f"scale{copy}"], [y], axis=-1, epsilon=1e-6))
        elif operation == "add":
            nodes.append(write_node("Add", [x, "residual"], [y]))
        elif operation == "rotary":
            rotated = {"interleaved": 1, "num_heads": shape[0], "rotary_embedding_dim": shape[1] // 2}
            nodes.append(write_node("RotaryEmbedding", [x, "cos", "sin", "positions"], [y], **rotated))
        elif operation == "gate":
            nodes.append(write_node("Split", [x], [f"{y}.gate", f"{y}.up"], axis=-1, num_outputs=2))
            nodes.append(write_node("Sigmoid", [f"{y}.gate"], [f"{y}.sigmoid"]))
            nodes.append(write_node("Mul", [f"{y}.gate", f"{y}.sigmoid"], [f"{y}.swish"]))
            nodes.append(write_node("Mul", [f"{y}.swish", f"{y}.up"], [f"{y}.gated"]))
            nodes.append(write_node("Concat", [f"{y}.gated", f"{y}.gated"], [y], axis=-1))
        x = y if operation != "run" else x
    nodes.append(write_node("Identity", [x], ["y"]))

    def feed(batch: int, new: int, _past: int) -> Feeds:
        x = np.full((batch, new, width), 0.5, np.float32)
        feeds: Feeds = {"x": x}
        if operation == "rotary":
            feeds["positions"] = np.arange(new)[None].repeat(batch, axis=0)
        if operation == "add":
            feeds["residual"] = x
        return feeds

    outputs = [write_value("y", FLOAT, ["b", "s", width])]
    return OperationGraph(model=write_model(nodes, tensors, inputs, outputs), repeats=repeats, feed=feed)


def _make_attention(heads: int, kv_heads: int, head_dim: int, repeats: int) -> OperationGraph:
    width, kv_width = heads * head_dim, kv_heads * head_dim
    inputs = [
        write_value("x", FLOAT, ["b", "s", width]),
        write_value("k", FLOAT, ["b", "s", kv_width]),
        write_value("v", FLOAT, ["b", "s", kv_width]),
        write_value("mask", BOOL, ["m", 1, "s", "t"]),
    ]
    outputs = [write_value("y", FLOAT, ["b", "s", width])]
    nodes, x = [], "x"
    for copy in range(repeats):
        past, present = ([f"{when}.{copy}.{name}" for name in ("key", "value")] for when in ("past", "present"))
        inputs += [write_value(name, FLOAT, ["b", kv_heads, "p", head_dim]) for name in past]
        outputs += [write_value(name, FLOAT, ["b", kv_heads, "t", head_dim]) for name in present]
        y = f"y{copy}" if copy + 1 < repeats else "y"
        sizes = {"is_causal": 1, "q_num_heads": heads, "kv_num_heads": kv_heads, "scale": head_dim**-0.5}
        nodes.append(write_node("Attention", [x, "k", "v", "mask", *past], [y, *present], **sizes))
        x = y

    def feed(batch: int, new: int, past: int) -> Feeds:
        kv = np.full((batch, new, kv_width), 0.1, np.float32)
        held = (batch, kv_heads, past, head_dim)
        names = [f"past.{copy}.{name}" for copy in range(repeats) for name in ("key", "value")]
        caches = {name: np.full(held, 0.1, np.float32) for name in names}
        x = np.full((batch, new, width), 0.1, np.float32)
        return {"x": x, "k": kv, "v": kv, "mask": np.ones((1, 1, new, past + new), np.bool_), **caches}

    return OperationGraph(model=write_model(nodes, [], inputs, outputs), repeats=repeats, feed=feed)
