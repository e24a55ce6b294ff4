"""Which of the articles' rules hold for a model: how well each score ranks what the loss itself says."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from scipy.stats import spearmanr  # type: ignore[import-untyped]

from fedglm.autoglm.light.sensitivity.diagnosis import SCORES, Diagnosis, GroupSensitivity, Score
from fedglm.autoglm.light.sensitivity.groups import Kind

_MIN_GROUPS = 4
"""Fewer groups have no rank correlation worth a name: of three, one order in six is perfect by chance."""
_RANKS = 0.5
"""Rank correlation from which a score is said to rank: it then explains a quarter of the ranks' variance."""
_SAVED = 0.5
"""Share of what the best order saves over random channels, from which an order is said to choose channels."""
_HELD = 0.9
"""Share of the squared singular values that the largest tenth hold, by the articles."""

Change = Literal["removal", "quantization"]


@dataclass(frozen=True, kw_only=True)
class RankCorrelation:
    """Spearman's rank correlation of a score with the rise of the loss.

    Attributes:
        score: The score; ``hawq`` is the trace times the squared error of the quantized weights.
        kind: Kind of the groups.
        change: Whether the groups were removed or quantized.
        groups: Number of groups.
        rho: Rank correlation, -1 to 1; NaN where all groups are alike.
    """

    score: Score | Literal["hawq"]
    kind: Kind
    change: Change
    groups: int
    rho: float


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A rule of the articles, and whether it holds for this model.

    Attributes:
        rule: The rule in words.
        holds: Whether it holds.
        found: What was measured, in words.
    """

    rule: str
    holds: bool
    found: str


def correlate(diagnosis: Diagnosis) -> list[RankCorrelation]:
    """Correlate every score with the rise of the loss, for each kind of which there are at least four groups."""
    found = []
    kinds = list(dict.fromkeys(row.kind for row in diagnosis.rows))
    changes: tuple[Change, ...] = ("removal", "quantization")
    for kind in kinds:
        rows = [row for row in diagnosis.rows if row.kind == kind]
        for change in changes:
            rises = [rise for row in rows if (rise := _rise_of(row, change)) is not None]
            if len(rises) < max(_MIN_GROUPS, len(rows)):
                continue
            for score in SCORES:
                values = [value for row in rows if (value := _score_of(row, score)) is not None]
                if len(values) == len(rows):
                    found.append(_correlate(score, kind, change, values, rises))
            if change == "quantization":
                values = [row.trace * (row.error or 0.0) for row in rows]
                found.append(_correlate("hawq", kind, change, values, rises))
    return found


def _rise_of(row: GroupSensitivity, change: Change) -> float | None:
    return row.removal if change == "removal" else row.quantization


def _score_of(row: GroupSensitivity, score: Score) -> float | None:
    value: float | None = getattr(row, score)
    return value


def _correlate(
    score: Score | Literal["hawq"], kind: Kind, change: Change, values: list[float], rises: list[float]
) -> RankCorrelation:
    constant = len(set(values)) == 1 or len(set(rises)) == 1
    rho = math.nan if constant else float(spearmanr(values, rises).statistic)
    return RankCorrelation(score=score, kind=kind, change=change, groups=len(rises), rho=rho)


def judge_rules(diagnosis: Diagnosis) -> list[Verdict]:
    """Judge the articles' rules by what was measured: each is about a score, the spectrum, or what is redundant."""
    verdicts = [_judge_order(diagnosis, order) for order in ("l1", "taylor", "activation") if diagnosis.curves]
    held = [row.svd for row in diagnosis.rows if row.svd is not None and row.kind in ("embedding", "layer")]
    if held:
        verdicts.append(
            Verdict(
                rule="the top 10 % of singular values hold 90 % of the energy",
                holds=min(held) >= _HELD,
                found=f"{min(held):.0%} to {max(held):.0%}, by layer",
            )
        )
    verdicts += _judge_trace(correlate(diagnosis))
    for kind in ("heads", "channels"):
        parts = [part for part in diagnosis.redundancy if part.kind == kind]
        if parts:
            redundant, units = sum(part.redundant for part in parts), sum(part.units for part in parts)
            verdicts.append(
                Verdict(
                    rule=f"there are redundant {kind} (similarity from {parts[0].threshold:g})",
                    holds=redundant > 0,
                    found=f"{redundant} of {units}; most similar {max(part.most_similar for part in parts):.2f}",
                )
            )
    return verdicts


def _judge_order(diagnosis: Diagnosis, order: str) -> Verdict:
    """Judge a score by what it is for: the loss without the channels it puts last, between random and best."""
    share = max(curve.share for curve in diagnosis.curves)
    rises = {curve.order: curve.rise for curve in diagnosis.curves if curve.share == share}
    best, random = min(rises.values()), rises["random"]
    saved = (random - rises[order]) / (random - best) if best < random else 0.0
    names = {"l1": "least L1 norm", "taylor": "least Taylor score", "activation": "least activation-weighted norm"}
    return Verdict(
        rule=f"channels of {names[order]} can go",
        holds=saved >= _SAVED,
        found=f"{share:.0%} removed: {rises[order]:+.3f}; best order {best:+.3f}, random {random:+.3f}",
    )


def _judge_trace(correlations: Iterable[RankCorrelation]) -> list[Verdict]:
    found = [one for one in correlations if one.score == "hawq" and one.change == "quantization" and one.rho == one.rho]
    if not found:
        return []
    most = max(found, key=lambda one: one.groups)
    return [
        Verdict(
            rule="the Hessian's trace says what quantization costs",
            holds=most.rho >= _RANKS,
            found=f"rank correlation {most.rho:+.2f} over {most.groups} groups ({most.kind})",
        )
    ]
