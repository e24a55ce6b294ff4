"""The latencies of one model on one device, as the device's file predicts them: for batching, and to choose a tier."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from fedglm.inference.device.device_file import DeviceFile
from fedglm.inference.device.latency_table import LatencyTable
from fedglm.inference.device.operations import Format
from fedglm.inference.errors import InferenceError
from fedglm.inference.runtime.initializers import CODES, FLOAT, INT4, INT8, TRANSPOSED
from fedglm.inference.runtime.phased_session import DECODE, PREFILL
from fedglm.inference.runtime.skeleton import read_initializers, unpack_skeleton

_FORMATS: Final[Mapping[int, Format]] = {FLOAT: "fp32", INT8: "int8", INT4: "int4"}
_PAST: Final = 64
"""Tokens before a decoding step; the table was measured with as many."""


class ModelFormats(NamedTuple):
    """Formats of a model's linears.

    Attributes:
        prefill: As it reads several tokens.
        decode: As it reads one.
    """

    prefill: Format
    decode: Format


class PredictedCosts:
    """Latencies of a model by a device's table; they are `BatchCosts`.

    Args:
        table: Latencies of the device's operations.
        config: The model's ``config.json``.
        formats: Formats of its linears.
    """

    def __init__(self, table: LatencyTable, config: Mapping[str, Any], formats: ModelFormats) -> None:
        self._table, self._config, self._formats = table, config, formats

    def milliseconds(self, batch: int, tokens: int) -> float:
        """Return the duration of one run of `batch` sequences of `tokens` new tokens, in ms.

        Raises:
            InferenceError: The table lacks the model's format.
        """
        if tokens == 1:
            return self._table.predict(self._config, self._formats.decode, batch=batch, past=_PAST).decode_ms
        return self._table.predict(self._config, self._formats.prefill, batch=batch, past=tokens).prefill_ms


def predict_costs(
    device: Path, config: Mapping[str, Any], skeletons: Mapping[str, bytes], threads: int
) -> PredictedCosts:
    """Predict the latencies of a light release by a device's file.

    Args:
        device: The file, by ``fedglm device probe --out``.
        config: The release's ``config.json``.
        skeletons: Its graphs.
        threads: Number of threads of a run.

    Raises:
        InferenceError: There is no such file, it is of another number of threads, or lacks the release's formats.
    """
    table = DeviceFile.load(device).latency
    if table.threads != threads:
        raise InferenceError(
            f"{device} is of models on {table.threads} threads, not {threads}:"
            f" fedglm device probe --threads {threads} --out {device}"
        )
    decode = _read_format(skeletons[DECODE])
    prefill = _read_format(skeletons[PREFILL]) if PREFILL in skeletons else decode
    costs = PredictedCosts(table, config, ModelFormats(prefill, decode))
    for tokens in (1, 2):  # so that what the table lacks is told now, and not to whoever asks first
        costs.milliseconds(1, tokens)
    return costs


def _read_format(skeleton: bytes) -> Format:
    """Return the format that holds most of a graph's linears' weights."""
    held: dict[Format, int] = {}
    for one in read_initializers(unpack_skeleton(skeleton)):
        words = one.name.split(":")
        if words[-1] == TRANSPOSED and (len(words) == 2 or words[1] == CODES):
            form = _FORMATS[one.dtype]
            held[form] = held.get(form, 0) + one.shape[0] * one.shape[1]
    return max(held, key=lambda form: held[form])
