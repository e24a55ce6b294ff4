"""A diagnosis as plain values, for ``--json`` and for its page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from fedglm.autoglm.light.sensitivity.diagnosis import Diagnosis
from fedglm.autoglm.light.sensitivity.heat_map import COLUMNS, rank_columns, value_of
from fedglm.autoglm.light.sensitivity.rules import correlate, judge_rules


def describe_diagnosis(diagnosis: Diagnosis) -> dict[str, Any]:
    """Collect what a diagnosis came to, with the articles' rules; None where something was not measured.

    Each group has its ranks within its kind, by measure: 0 for the least sensitive and 1 for the most.
    """
    ranks = _rank_rows(diagnosis)
    return {
        "loss": diagnosis.loss,
        "sequences": diagnosis.sequences,
        "rows": [asdict(row) | {"ranks": ranks[number]} for number, row in enumerate(diagnosis.rows)],
        "curves": [asdict(curve) | {"rise": curve.rise} for curve in diagnosis.curves],
        "redundancy": [asdict(part) for part in diagnosis.redundancy],
        "correlations": [_drop_nan(asdict(one)) for one in correlate(diagnosis)],
        "rules": [asdict(verdict) for verdict in judge_rules(diagnosis)],
        "settings": diagnosis.settings.model_dump(mode="json"),
    }


def _rank_rows(diagnosis: Diagnosis) -> list[dict[str, float | None]]:
    found: list[dict[str, float | None]] = [{} for _ in diagnosis.rows]
    for kind in dict.fromkeys(row.kind for row in diagnosis.rows):
        numbers = [number for number, row in enumerate(diagnosis.rows) if row.kind == kind]
        values = np.array([[value_of(diagnosis.rows[number], name) for name in COLUMNS] for number in numbers])
        for number, ranks in zip(numbers, rank_columns(values).tolist(), strict=True):
            found[number] = _drop_nan(dict(zip(COLUMNS, ranks, strict=True)))
    return found


def _drop_nan(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in values.items()}
