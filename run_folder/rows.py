"""The rows of a run, one object a round: as JSON, and what their bytes come to."""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

BYTES = ("uplink_bytes", "downlink_bytes", "dense_uplink_bytes", "dense_downlink_bytes")
"""Keys of a row that count bytes."""


def to_json(value: Any, *, indent: int | None = None) -> str:
    """The value as JSON, which has no NaN and no infinities: they become null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def to_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """The rows as `rounds.jsonl` holds them."""
    return "".join(to_json(row) + "\n" for row in rows)


def total_bytes(rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Bytes of all rounds together, by the keys of a row."""
    rows = list(rows)
    return {key: sum(row[key] for row in rows) for key in BYTES}


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
