"""Latencies of single operations on one device, and the latency of a model that they add up to.

A linear's latency is interpolated between the nearest measured numbers of inputs, outputs and tokens; it is close to
linear in each (a constant, reading the weight, multiplying). What was measured lay in a cache. The weights of a model
that no such cache holds come from further away, which adds the difference in the time that it takes to read them.

The latencies of the other operations are fitted, with coefficients that are not negative (Lawson and Hanson, "Solving
Least Squares Problems", 1974, chapter 23), to what they compute and move; the error that is least is the relative one.

The sum over operations as the latency of a network: Cai et al., "ProxylessNAS", arXiv:1812.00332, section 4.2.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from fedglm.inference.device.operations import WEIGHT_BYTES, Format, Operation
from fedglm.inference.errors import InferenceError
from fedglm.inference.runtime.architecture import Architecture, read_architecture

_FROZEN: Final = ConfigDict(frozen=True, extra="forbid")
_Array: TypeAlias = npt.NDArray[np.float64]
_QUANTIZED_LOOKUP: Final = 3
"""Nodes that look up an embedding of codes: codes, scales, and their product; each moves about what an add does."""
_ELEMENTWISE: Final[tuple[Operation, ...]] = ("norm", "add", "rotary", "gate")


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
        microseconds: Least time of one of it; of a "run", what running a model costs beside its operations.
    """

    model_config = _FROZEN

    operation: Operation
    shape: tuple[int, ...] = Field(max_length=3)
    format: Format = "fp32"
    batch: int = Field(ge=1)
    tokens: int = Field(ge=1)
    past: int = Field(default=0, ge=0)
    held_bytes: int = Field(default=0, ge=0)
    microseconds: float = Field(ge=0, allow_inf_nan=False)


class ReadRate(BaseModel):
    """How fast one core reads a block of memory again and again.

    Attributes:
        held_bytes: Size of the block.
        bytes_per_s: Rate.
    """

    model_config = _FROZEN

    held_bytes: int = Field(gt=0)
    bytes_per_s: float = Field(gt=0, allow_inf_nan=False)


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
        reads: How fast memory is read, the smallest block first.
        entries: What was measured.
    """

    model_config = _FROZEN

    threads: int = Field(ge=1)
    reads: tuple[ReadRate, ...] = Field(min_length=1, max_length=100)
    entries: tuple[LatencyEntry, ...] = Field(max_length=100_000)

    def predict(self, config: Mapping[str, Any], form: Format = "fp32", batch: int = 1, past: int = 64) -> Latency:
        """Predict the latencies of a GLM.

        Args:
            config: Its ``config.json``, of transformers; layers may differ (``fedglm_layers``).
            form: Format of all its linears.
            batch: Number of sequences at once.
            past: Number of tokens that were read before.

        Raises:
            InferenceError: The configuration is no GLM's, or the table has no such format.
        """
        shape = read_architecture(config)
        decode = self._predict_run(shape, form, batch, 1, past)
        return Latency(decode / 1e3, self._predict_run(shape, form, batch, past, 0) / 1e3)

    def formats(self) -> tuple[Format, ...]:
        """Return the formats that were measured."""
        return tuple(dict.fromkeys(entry.format for entry in self.entries if entry.operation == "linear"))

    def _predict_run(self, shape: Architecture, form: Format, batch: int, tokens: int, past: int) -> float:
        rows, hidden = batch * tokens, shape.hidden
        held = WEIGHT_BYTES[form] * sum(outputs * inputs for outputs, inputs in shape.linear_shapes().values())
        total = self._run_us
        total += (_QUANTIZED_LOOKUP if form != "fp32" else 1) * self._fitted("add", batch, tokens, 0, (hidden,))
        for layer in shape.layers:
            heads, kv_heads, between = layer.heads, layer.kv_heads, layer.intermediate
            wide, narrow = heads * shape.head_dim, kv_heads * shape.head_dim
            linears = [(hidden, wide), (hidden, narrow), (hidden, narrow), (wide, hidden)]
            linears += [(hidden, 2 * between), (between, hidden)]
            total += sum(self._linear(form, inputs, outputs, rows, held) for inputs, outputs in linears)
            total += self._fitted("attention", batch, tokens, past, (heads, kv_heads, shape.head_dim))
            total += 2 * self._fitted("norm", batch, tokens, 0, (hidden,))
            total += 2 * self._fitted("add", batch, tokens, 0, (hidden,))
            total += self._fitted("gate", batch, tokens, 0, (between,))
            if shape.attention_bias:
                total += sum(self._fitted("add", batch, tokens, 0, (width,)) for width in (wide, narrow, narrow))
            total += sum(self._fitted("rotary", batch, tokens, 0, (n, shape.head_dim)) for n in (heads, kv_heads))
        total += self._fitted("norm", batch, 1, 0, (hidden,))
        return total + self._linear(form, hidden, shape.outputs, batch, held)  # of each sequence's last token

    @cached_property
    def _run_us(self) -> float:
        return sum(entry.microseconds for entry in self.entries if entry.operation == "run")

    def _linear(self, form: Format, inputs: int, outputs: int, rows: int, held: float) -> float:
        if form not in self._grids:
            raise InferenceError(f"the latency table has no {form}, only {', '.join(self.formats()) or 'nothing'}")
        axes, microseconds, measured_held = self._grids[form]
        at = (inputs, outputs, rows)
        there = float(_interpolate(measured_held, axes, at))
        further = max(0.0, self._seconds_per_byte(held) - self._seconds_per_byte(there))
        return max(0.0, float(_interpolate(microseconds, axes, at))) + (
            1e6 * further * WEIGHT_BYTES[form] * inputs * outputs
        )

    def _seconds_per_byte(self, held: float) -> float:
        sizes = [np.log(read.held_bytes) for read in self.reads]
        return float(np.interp(np.log(max(held, 1.0)), sizes, [1 / read.bytes_per_s for read in self.reads]))

    @cached_property
    def _grids(self) -> dict[Format, tuple[list[_Array], _Array, _Array]]:
        """Microseconds of linears, and held bytes, over numbers of inputs, outputs and rows."""
        grids = {}
        for form in self.formats():
            found = {
                (*entry.shape, entry.batch * entry.tokens): (entry.microseconds, entry.held_bytes)
                for entry in self.entries
                if entry.operation == "linear" and entry.format == form
            }
            axes = [np.array(sorted({key[axis] for key in found}), np.float64) for axis in range(3)]
            if len(found) != np.prod([len(axis) for axis in axes]) or min(map(len, axes)) < 2:
                raise InferenceError(f"the latency table lacks some shapes of {form} linears; probe the device again")
            values = np.array([found[key] for key in sorted(found)], np.float64).T
            microseconds, held = values.reshape(2, *(len(axis) for axis in axes))
            grids[form] = (axes, microseconds, held)
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


def _features(operation: Operation, batch: int, tokens: int, past: int, shape: tuple[int, ...]) -> _Array:
    """Return what an operation's latency is a sum of, each times a coefficient."""
    rows = batch * tokens
    if operation != "attention":
        return np.array([1, rows, rows * np.prod(shape)], np.float64)
    heads, kv_heads, head_dim = shape
    total = past + tokens
    moved = batch * kv_heads * head_dim * total  # keys and values, copied behind the past ones
    return np.array(
        [
            1,
            rows * (heads + 2 * kv_heads) * head_dim,
            moved,
            batch * kv_heads * (total > tokens),
            rows * heads * total,
            rows * heads * total * head_dim,
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
