"""Rows of a run, one object a round: written as JSON, and summed up in bytes."""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

BYTES = ("uplink_bytes", "downlink_bytes", "dense_uplink_bytes", "dense_downlink_bytes")
"""Keys of a row that count bytes."""


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Write a value as JSON, which has no NaN and no infinities: they become null."""
    return json.dumps(_replace_non_finite(value), indent=indent, allow_nan=False)


def to_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """Write rows as JSON lines, the format of `rounds.jsonl`."""
    return "".join(to_json(row) + "\n" for row in rows)


def total_bytes(rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Sum the bytes of all rounds, by the keys in `BYTES`."""
    rows = list(rows)
    return {key: sum(row[key] for row in rows) for key in BYTES}


def _replace_non_finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _replace_non_finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_replace_non_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
