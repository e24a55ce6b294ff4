"""Latencies of single operations on one device, and the latency of a model that they add up to.

A linear's latency is interpolated between the nearest measured numbers of inputs, outputs and tokens; it is close to
linear in each (a constant, reading the weight, multiplying). The latencies of the other operations are fitted, with
coefficients that are not negative (Lawson and Hanson, "Solving Least Squares Problems", 1974, chapter 23), to what they
compute and move; the error that is least is the relative one.

The sum over operations as the latency of a network: Cai et al., "ProxylessNAS", arXiv:1812.00332, section 4.2.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from fedglm.inference.device.operations import Format, Operation
from fedglm.inference.errors import InferenceError
from fedglm.inference.runtime.architecture import Architecture, read_architecture

_FROZEN: Final = ConfigDict(frozen=True, extra="forbid")
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
        microseconds: Least time of one of it.
    """

    model_config = _FROZEN

    operation: Operation
    shape: tuple[int, ...] = Field(max_length=3)
    format: Format = "fp32"
    batch: int = Field(ge=1)
    tokens: int = Field(ge=1)
    past: int = Field(default=0, ge=0)
    microseconds: float = Field(ge=0, allow_inf_nan=False)


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
        entries: What was measured.
    """

    model_config = _FROZEN

    threads: int = Field(ge=1)
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

    def formats(self) -> tuple[str, ...]:
        """Return the formats that were measured."""
        return tuple(dict.fromkeys(entry.format for entry in self.entries if entry.operation == "linear"))

    def _predict_run(self, shape: Architecture, form: Format, batch: int, tokens: int, past: int) -> float:
        rows = batch * tokens
        total = self._fitted("run", 1, 1, 0, ())
        total += (_QUANTIZED_LOOKUP if form != "fp32" else 1) * self._fitted("add", batch, tokens, 0, (shape.hidden,))
        for layer in shape.layers:
            heads, kv_heads, wide = layer.heads, layer.kv_heads, layer.heads * shape.head_dim
            narrow, between = kv_heads * shape.head_dim, layer.intermediate
            linears = [(shape.hidden, wide), (shape.hidden, narrow), (shape.hidden, narrow), (wide, shape.hidden)]
            linears += [(shape.hidden, 2 * between), (between, shape.hidden)]
            total += sum(self._linear(form, inputs, outputs, rows) for inputs, outputs in linears)
            total += self._fitted("attention", batch, tokens, past, (heads, kv_heads, shape.head_dim))
            total += 2 * self._fitted("norm", batch, tokens, 0, (shape.hidden,))
            total += 2 * self._fitted("add", batch, tokens, 0, (shape.hidden,))
            total += self._fitted("gate", batch, tokens, 0, (between,))
            if shape.attention_bias:
                total += sum(self._fitted("add", batch, tokens, 0, (width,)) for width in (wide, narrow, narrow))
            total += sum(self._fitted("rotary", batch, tokens, 0, (n, shape.head_dim)) for n in (heads, kv_heads))
        total += self._fitted("norm", batch, 1, 0, (shape.hidden,))
        return total + self._linear(form, shape.hidden, shape.outputs, batch)  # of each sequence's last token

    def _linear(self, form: Format, inputs: int, outputs: int, rows: int) -> float:
        if form not in self._grids:
            raise InferenceError(f"the latency table has no {form}, only {', '.join(self.formats()) or 'nothing'}")
        axes, values = self._grids[form]
        return max(0.0, float(_interpolate(values, axes, (inputs, outputs, rows))))

    @cached_property
    def _grids(self) -> dict[str, tuple[list[npt.NDArray[np.float64]], npt.NDArray[np.float64]]]:
        grids = {}
        for form in self.formats():
            found = {
                (*entry.shape, entry.batch * entry.tokens): entry.microseconds
                for entry in self.entries
                if entry.operation == "linear" and entry.format == form
            }
            axes = [np.array(sorted({key[axis] for key in found}), np.float64) for axis in range(3)]
            if len(found) != np.prod([len(axis) for axis in axes]) or min(map(len, axes)) < 2:
                raise InferenceError(f"the latency table lacks some shapes of {form} linears; probe the device again")
            values = np.array([found[key] for key in sorted(found)]).reshape([len(axis) for axis in axes])
            grids[form] = (axes, values)
        return grids

    def _fitted(self, operation: Operation, batch: int, tokens: int, past: int, shape: tuple[int, ...]) -> float:
        if operation not in self._fits:
            raise InferenceError(f"the latency table has no {operation}; probe the device again")
        return float(_features(operation, batch, tokens, past, shape) @ self._fits[operation])

    @cached_property
    def _fits(self) -> dict[Operation, npt.NDArray[np.float64]]:
        # Imported here, because a device that only measures does without.
        from scipy.optimize import nnls  # type: ignore[import-untyped]

        fits: dict[Operation, npt.NDArray[np.float64]] = {}
        for operation in ("run", "attention", *_ELEMENTWISE):
            entries = [entry for entry in self.entries if entry.operation == operation and entry.microseconds > 0]
            if entries:
                rows = np.array([_features(e.operation, e.batch, e.tokens, e.past, e.shape) for e in entries])
                times = np.array([entry.microseconds for entry in entries])
                fits[operation], _ = nnls(rows / times[:, None], np.ones(len(times)))
        return fits


def _features(
    operation: Operation, batch: int, tokens: int, past: int, shape: tuple[int, ...]
) -> npt.NDArray[np.float64]:
    """Return what an operation's latency is a sum of, each times a coefficient."""
    if operation == "run":
        return np.ones(1)
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


def _interpolate(
    values: npt.NDArray[np.float64], axes: Iterable[npt.NDArray[np.float64]], at: Iterable[float]
) -> npt.NDArray[np.float64]:
    """Interpolate linearly along each axis; beyond its ends the outermost slope goes on."""
    for axis, x in zip(axes, at, strict=True):
        left = int(np.clip(np.searchsorted(axis, x) - 1, 0, len(axis) - 2))
        share = (x - axis[left]) / (axis[left + 1] - axis[left])
        values = values[left] + share * (values[left + 1] - values[left])
    return values
