"""A GLM of random weights as a standard ONNX graph with a KV cache, and a session that runs it: real time, no torch."""

from dataclasses import dataclass

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper


@dataclass(frozen=True)
class Shape:
    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    bits: int = 32  # 4 and 8: blocks of 32 by DequantizeLinear

    @property
    def head_size(self):
        return self.hidden // self.heads


GLM_05M = Shape(vocab=256, hidden=128, layers=3, heads=4, kv_heads=2, intermediate=256)
GLM_10M = Shape(vocab=256, hidden=320, layers=9, heads=10, kv_heads=2, intermediate=864)


class Writer:
    def __init__(self, shape, seed):
        self.shape, self.rng = shape, np.random.default_rng(seed)
        self.nodes, self.constants = [], []

    def constant(self, name, values):
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def node(self, op, inputs, output, **attributes):
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def weights(self, *size):
        return (self.rng.standard_normal(size) / np.sqrt(size[0])).astype(np.float32)

    def linear(self, x, name, columns, rows):
        w = self.weights(columns, rows)
        if self.shape.bits == 32:
            return self.node("MatMul", [x, self.constant(name, w)], name + ".y")
        top = 1 << (self.shape.bits - 1)
        blocks = w.reshape(columns // 32, 32, rows)
        scales = np.abs(blocks).max(1) / (top - 0.5)
        codes = np.clip(np.rint(blocks / scales[:, None]), -top, top - 1).astype(np.int8)
        kind = TensorProto.INT4 if self.shape.bits == 4 else TensorProto.INT8
        self.constants.append(helper.make_tensor(name + ".q", kind, w.shape, codes.flatten()))
        scaled = self.constant(name + ".s", scales.astype(np.float32))
        values = self.node("DequantizeLinear", [name + ".q", scaled], name + ".dq", axis=0, block_size=32)
        return self.node("MatMul", [x, values], name + ".y")

    def norm(self, x, name):
        scale = self.constant(name + ".w", np.ones(self.shape.hidden, dtype=np.float32))
        return self.node("RMSNormalization", [x, scale], name, axis=-1, epsilon=1e-6)


def write_graph(shape, max_length, seed=0):
    """The model; inputs ids, positions, mask (B, 1, S, past + S) and the past, outputs logits and the present."""
    writer, info = Writer(shape, seed), helper.make_tensor_value_info
    size = shape.head_size
    angles = np.arange(max_length)[:, None] * 10_000.0 ** -(np.arange(0, size // 2, 2) / (size // 2))
    writer.constant("cos", np.cos(angles).astype(np.float32))
    writer.constant("sin", np.sin(angles).astype(np.float32))
    embedding = writer.constant("embedding", writer.weights(shape.vocab, shape.hidden))
    x = writer.node("Gather", [embedding, "ids"], "x")
    inputs = [info(name, TensorProto.INT64, ["b", "s"]) for name in ("ids", "positions")]
    inputs.append(info("mask", TensorProto.BOOL, ["b", 1, "s", "t"]))
    outputs = [info("logits", TensorProto.FLOAT, ["b", "s", shape.vocab])]
    for layer in range(shape.layers):
        at = f"l{layer}."
        a = writer.norm(x, at + "a")
        turned = []
        for name, heads in (("q", shape.heads), ("k", shape.kv_heads)):
            y = writer.linear(a, at + name, shape.hidden, heads * size)
            turned.append(writer.node("RotaryEmbedding", [y, "cos", "sin", "positions"], at + name + "r", interleaved=1,
                                      num_heads=heads, rotary_embedding_dim=size // 2))  # fmt: skip
        v = writer.linear(a, at + "v", shape.hidden, shape.kv_heads * size)
        past = [f"past.{layer}.{name}" for name in ("key", "value")]
        present = [f"present.{layer}.{name}" for name in ("key", "value")]
        inputs += [info(name, TensorProto.FLOAT, ["b", shape.kv_heads, "p", size]) for name in past]
        outputs += [info(name, TensorProto.FLOAT, ["b", shape.kv_heads, "t", size]) for name in present]
        writer.nodes.append(
            helper.make_node(
                "Attention",
                [*turned, v, "mask", *past],
                [at + "at", *present],
                q_num_heads=shape.heads,
                kv_num_heads=shape.kv_heads,
                is_causal=1,
                scale=size**-0.5,
            )
        )
        x = writer.node("Add", [x, writer.linear(at + "at", at + "o", shape.hidden, shape.hidden)], at + "r1")
        gate_up = writer.linear(writer.norm(x, at + "b"), at + "gu", shape.hidden, 2 * shape.intermediate)
        writer.nodes.append(helper.make_node("Split", [gate_up], [at + "g", at + "u"], axis=-1, num_outputs=2))
        m = writer.node("Mul", [writer.node("Swish", [at + "g"], at + "sw"), at + "u"], at + "m")
        x = writer.node("Add", [x, writer.linear(m, at + "d", shape.intermediate, shape.hidden)], at + "r2")
    y = writer.linear(writer.norm(x, "last"), "head", shape.hidden, shape.vocab)
    writer.node("Identity", [y], "logits")
    graph = helper.make_graph(writer.nodes, "glm", inputs, outputs, writer.constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)


@dataclass(frozen=True)
class ArrayCache:
    """Keys and values of all layers, (B, kv_heads, P, head_size) each."""

    arrays: tuple

    @property
    def length(self):
        return self.arrays[0].shape[2]

    def select(self, rows):
        return ArrayCache(tuple(array[rows] for array in self.arrays))

    def truncate(self, length):
        return ArrayCache(tuple(array[:, :, :length] for array in self.arrays))

    def skip(self, count):
        return ArrayCache(tuple(array[:, :, count:] for array in self.arrays))

    def join(self, others):
        caches = [self, *others]
        longest = max(cache.length for cache in caches)

        def pad(array):
            return np.pad(array, ((0, 0), (0, 0), (longest - array.shape[2], 0), (0, 0)))

        return ArrayCache(tuple(np.concatenate([pad(a) for a in arrays])
                                for arrays in zip(*(c.arrays for c in caches), strict=True)))  # fmt: skip

    def nbytes(self):
        return sum(array.nbytes for array in self.arrays)


class StandardSession:
    """The graph in onnxruntime on one thread."""

    def __init__(self, shape, max_length=512, seed=0):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "4")
        model = write_graph(shape, max_length, seed).SerializeToString()
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.outputs = self.vocab_size = shape.vocab
        self.max_length, self.shape = max_length, shape
        self.pasts = [value.name for value in self.session.get_inputs() if value.name.startswith("past.")]

    def run(self, ids, cache=None, *, logits_at=None, mask=None):
        count, size = ids.shape
        if cache is None:
            none = np.empty((count, self.shape.kv_heads, 0, self.shape.head_size), dtype=np.float32)
            cache = ArrayCache((none,) * len(self.pasts))
        total = cache.length + size
        if mask is None:
            positions = np.broadcast_to(np.arange(cache.length, total), (count, size))
            mask = np.ones((1, total), dtype=bool)
        else:
            positions = np.maximum(mask.cumsum(1)[:, cache.length :] - 1, 0)
        feed = {"ids": ids, "positions": np.ascontiguousarray(positions)}
        feed["mask"] = np.broadcast_to(mask[:, None, None], (count, 1, size, total)).copy()
        feed |= dict(zip(self.pasts, map(np.ascontiguousarray, cache.arrays), strict=True))
        logits, *present = self.session.run(None, feed)
        if logits_at is None:
            logits_at = np.full((count, 1), size - 1)
        return np.take_along_axis(logits, logits_at[:, :, None], axis=1), ArrayCache(tuple(present))
