"""Latencies of single operations on one device, and the latency of a model that they add up to.

A linear's latency is interpolated between the nearest measured numbers of inputs, outputs and tokens; it is close to
linear in each (a constant, reading the weight, multiplying). Weights that a near cache holds are read faster than those
of a large model, which come from further away: the difference is taken off what was measured with much held, and added
for as much as the model holds.

The latencies of the other operations are fitted, with coefficients that are not negative (Lawson and Hanson, "Solving
Least Squares Problems", 1974, chapter 23), to what they compute and move; the error that is least is the relative one.

The sum over operations as the latency of a network: Cai et al., "ProxylessNAS", arXiv:1812.00332, section 4.2.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Annotated, Any, Final, NamedTuple, Self, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedglm.inference.device.operations import WEIGHT_BYTES, Format, Operation, choose_block
from fedglm.inference.errors import InferenceError
from fedglm.inference.runtime.architecture import EMBEDDING, Architecture, read_architecture

_FROZEN: Final = ConfigDict(frozen=True, extra="forbid")
_Array: TypeAlias = npt.NDArray[np.float64]
_QUANTIZED_LOOKUP: Final = 3
"""Nodes that look up an embedding of codes: codes, scales, and their product; each moves about what an add does."""
_JOINED_COPIES: Final = 2
"""Nodes that cut queries, keys and values from their joint product; each moves about what an add does."""
_ELEMENTWISE: Final[tuple[Operation, ...]] = ("norm", "add", "rotary", "gate")
_SIZES: Final[Mapping[Operation, int]] = {
    "run": 0, "layer": 0, "linear": 2, "norm": 1, "add": 1, "gate": 1, "rotary": 2, "attention": 3,
}  # fmt: skip
"""Number of sizes in each operation's shape."""
_OTHER_LINEARS: Final = ("self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
_Count = Annotated[int, Field(ge=1, le=2**40)]


class LatencyEntry(BaseModel):
    """What one operation took.

    Attributes:
        operation: As in `operations.make_operation`.
        shape: Its shape.
        format: Format of a linear's weight; "fp32" for all others.
        batch: Number of sequences.
        tokens: Number of new tokens of each.
        past: Number of tokens of each before them.
        held_bytes: Bytes of all weights of the graph that was measured, which tell the cache that they lay in.
        microseconds: Least time of one of it; of a "run" and a "layer", what running a
            model and each of its layers costs beside its operations.
    """

    model_config = _FROZEN

    operation: Operation
    shape: tuple[_Count, ...] = Field(max_length=3)
    format: Format = "fp32"
    batch: _Count
    tokens: _Count
    past: int = Field(default=0, ge=0, le=2**40)
    held_bytes: int = Field(default=0, ge=0, le=2**50)
    microseconds: float = Field(ge=0, le=1e12, allow_inf_nan=False)

    @model_validator(mode="after")
    def _check_shape(self) -> Self:
        if len(self.shape) != (expected := _SIZES[self.operation]):
            raise ValueError(f"the shape of a {self.operation} has {expected} sizes, not {len(self.shape)}")
        return self


class ReadRate(BaseModel):
    """How fast linears read their weights: several tokens at once may read them several times.

    Attributes:
        format: Format of the weights.
        rows: Number of tokens at once.
        held_bytes: Bytes of all weights, which are read again and again.
        bytes_per_s: Rate.
    """

    model_config = _FROZEN

    format: Format
    rows: int = Field(default=1, ge=1, le=2**20)
    held_bytes: int = Field(gt=0, le=2**50)
    bytes_per_s: float = Field(ge=1, le=1e18, allow_inf_nan=False)


class _Curve(NamedTuple):
    """Seconds that a byte of a weight takes longer than near, over the logarithms of held bytes, for so many rows."""

    rows: int
    log_held: _Array
    seconds: _Array


class Latency(NamedTuple):
    """Latencies of a model, in milliseconds.

    Attributes:
        decode_ms: One more token of each sequence, after `past` others.
        prefill_ms: Reading `past` tokens of each sequence.
    """

    decode_ms: float
    prefill_ms: float


class LatencyTable(BaseModel):
    """Latencies of single operations on a device.

    Attributes:
        threads: Number of threads of a run.
        reads: How fast weights are read, for each format the fewest first.
        entries: What was measured.
    """

    model_config = _FROZEN

    threads: int = Field(ge=1)
    reads: tuple[ReadRate, ...] = Field(min_length=1, max_length=100)
    entries: tuple[LatencyEntry, ...] = Field(max_length=100_000)

    def predict(
        self,
        config: Mapping[str, Any],
        form: Format | Mapping[str, Format] = "fp32",
        batch: int = 1,
        past: int = 64,
    ) -> Latency:
        """Predict the latencies of a GLM.

        Args:
            config: Its ``config.json``, of transformers; layers may differ (``fedglm_layers``).
            form: Format of all its linears, or that of each by its name (`Architecture.linear_shapes`) and of the
                embedding.
            batch: Number of sequences at once.
            past: Number of tokens that were read before.

        Raises:
            InferenceError: The configuration is no GLM's, or the table has no such format.
        """
        shape = read_architecture(config)
        forms = form if isinstance(form, Mapping) else dict.fromkeys((*shape.linear_shapes(), EMBEDDING), form)
        decode = self._predict_run(shape, forms, batch, 1, past)
        return Latency(decode / 1e3, self._predict_run(shape, forms, batch, past, 0) / 1e3)

    def formats(self) -> tuple[Format, ...]:
        """Return the formats that were measured."""
        return tuple(dict.fromkeys(entry.format for entry in self.entries if entry.operation == "linear"))

    def _predict_run(
        self, shape: Architecture, forms: Mapping[str, Format], batch: int, tokens: int, past: int
    ) -> float:
        rows, hidden = batch * tokens, shape.hidden
        held = sum(WEIGHT_BYTES[forms[name]] * math.prod(sizes) for name, sizes in shape.linear_shapes().items())

        def fitted(operation: Operation, *sizes: int) -> float:
            return self._fitted(operation, batch, tokens, past if operation == "attention" else 0, sizes)

        total = self._left_over("run") + len(shape.layers) * self._left_over("layer")
        total += (_QUANTIZED_LOOKUP if forms[EMBEDDING] != "fp32" else 1) * fitted("add", hidden)
        for form, inputs, outputs in _list_products(shape, forms):
            total += self._linear(form, inputs, outputs, rows, held)
        for layer in shape.layers:
            heads, kv_heads = layer.heads, layer.kv_heads
            total += fitted("attention", heads, kv_heads, shape.head_dim)
            total += fitted("rotary", heads + kv_heads, shape.head_dim) + fitted("gate", layer.intermediate)
            total += 2 * (fitted("norm", hidden) + fitted("add", hidden))
            joined = (heads + 2 * kv_heads) * shape.head_dim
            total += (_JOINED_COPIES + shape.attention_bias) * fitted("add", joined)
        total += self._fitted("norm", batch, 1, 0, (hidden,))
        head = forms[shape.head]
        return total + self._linear(head, hidden, shape.outputs, batch, held)  # of each sequence's last token

    def _left_over(self, operation: Operation) -> float:
        return sum(entry.microseconds for entry in self.entries if entry.operation == operation)

    def _linear(self, form: Format, inputs: int, outputs: int, rows: int, held: float) -> float:
        if form not in self._grids:
            raise InferenceError(f"the latency table has no {form}, only {', '.join(self.formats()) or 'nothing'}")
        axes, microseconds = self._grids[form]
        if form != "fp32":  # kernels fill the last block up
            block = choose_block(inputs)
            inputs = -(-inputs // block) * block
        near = max(0.0, float(_interpolate(microseconds, axes, (inputs, outputs, rows))))
        return near + self._further_us(form, held, (inputs, outputs), rows)

    def _further_us(self, form: Format, held: float, shape: tuple[int, ...], rows: int) -> float:
        """Return the microseconds that a weight takes longer to read where so many bytes are held than near."""
        curves = self._curves.get(form)
        if curves is None:
            raise InferenceError(f"the latency table does not tell how fast {form} is read; probe the device again")
        by_rows = [np.interp(np.log(max(held, 1.0)), curve.log_held, curve.seconds) for curve in curves]
        further = float(np.interp(np.log(rows), [math.log(curve.rows) for curve in curves], by_rows))
        return 1e6 * further * WEIGHT_BYTES[form] * math.prod(shape)

    @cached_property
    def _curves(self) -> dict[Format, list[_Curve]]:
        """How much longer a byte takes from further away, for each number of rows that was measured."""
        curves: dict[Format, list[_Curve]] = {}
        for form, rows in sorted({(read.format, read.rows) for read in self.reads}):
            reads = sorted(
                (read.held_bytes, 1 / read.bytes_per_s)
                for read in self.reads
                if (read.format, read.rows) == (form, rows)
            )
            held, seconds = np.array(reads).T
            curves.setdefault(form, []).append(_Curve(rows, np.log(held), np.maximum(0.0, seconds - seconds[0])))
        return curves

    @cached_property
    def _grids(self) -> dict[Format, tuple[list[_Array], _Array]]:
        """Microseconds of linears whose weights lie near, over numbers of inputs, outputs and rows."""
        grids = {}
        for form in self.formats():
            found = {
                (*entry.shape, entry.batch * entry.tokens): max(
                    0.0,
                    entry.microseconds
                    - self._further_us(form, entry.held_bytes, entry.shape, entry.batch * entry.tokens),
                )
                for entry in self.entries
                if entry.operation == "linear" and entry.format == form
            }
            axes = [np.array(sorted({key[axis] for key in found}), np.float64) for axis in range(3)]
            if len(found) != np.prod([len(axis) for axis in axes]) or min(map(len, axes)) < 2:
                raise InferenceError(f"the latency table lacks some shapes of {form} linears; probe the device again")
            grids[form] = (axes, np.array([found[key] for key in sorted(found)]).reshape([len(axis) for axis in axes]))
        return grids

    def _fitted(self, operation: Operation, batch: int, tokens: int, past: int, shape: tuple[int, ...]) -> float:
        if operation not in self._fits:
            raise InferenceError(f"the latency table has no {operation}; probe the device again")
        return float(_features(operation, batch, tokens, past, shape) @ self._fits[operation])

    @cached_property
    def _fits(self) -> dict[Operation, _Array]:
        # Imported here, because a device that only measures does without.
        from scipy.optimize import nnls  # type: ignore[import-untyped]

        fits: dict[Operation, _Array] = {}
        for operation in ("attention", *_ELEMENTWISE):
            entries = [entry for entry in self.entries if entry.operation == operation and entry.microseconds > 0]
            if entries:
                rows = np.array([_features(e.operation, e.batch, e.tokens, e.past, e.shape) for e in entries])
                times = np.array([entry.microseconds for entry in entries])
                fits[operation], _ = nnls(rows / times[:, None], np.ones(len(times)))
        return fits


def _list_products(shape: Architecture, forms: Mapping[str, Format]) -> Iterator[tuple[Format, int, int]]:
    """Yield format, inputs and outputs of each product of the layers; queries, keys and values of a format are one."""
    linears = shape.linear_shapes()
    for number in range(len(shape.layers)):
        prefix = f"model.layers.{number}."
        heads = [f"{prefix}self_attn.{part}_proj.weight" for part in "qkv"]
        if len({forms[name] for name in heads}) == 1:
            yield forms[heads[0]], shape.hidden, sum(linears[name][0] for name in heads)
            heads = []
        for name in (*heads, *(f"{prefix}{part}.weight" for part in _OTHER_LINEARS)):
            yield forms[name], linears[name][1], linears[name][0]


def _features(operation: Operation, batch: int, tokens: int, past: int, shape: tuple[int, ...]) -> _Array:
    """Return what an operation's latency is a sum of, each times a coefficient."""
    rows = batch * tokens
    if operation != "attention":
        return np.array([1, rows, rows * np.prod(shape)], np.float64)
    heads, kv_heads, head_dim = shape
    attended = heads * head_dim * (past + tokens)
    return np.array(
        [
            1,
            batch * heads,
            rows * (heads + 2 * kv_heads) * head_dim,  # queries, keys and values, put head by head
            batch * kv_heads * head_dim * (past + tokens),  # keys and values, copied behind the past ones
            batch * attended,  # and repeated for each query head
            rows * heads * (past + tokens),  # exponentials
            rows * attended,  # products
        ],
        np.float64,
    )


def _interpolate(values: _Array, axes: Iterable[_Array], at: Iterable[float]) -> _Array:
    """Interpolate linearly along each axis; beyond its ends the outermost slope goes on."""
    for axis, x in zip(axes, at, strict=True):
        left = int(np.clip(np.searchsorted(axis, x) - 1, 0, len(axis) - 2))
        share = (x - axis[left]) / (axis[left + 1] - axis[left])
        values = values[left] + share * (values[left + 1] - values[left])
    return values
