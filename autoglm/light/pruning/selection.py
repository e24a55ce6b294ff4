"""Choosing what a cut keeps, so that a budget is met and as little score as possible is lost.

Layers go first to last by their score, from none to as many as may go. For each number of layers the rest is cut to the
budget: with one width for all layers every number of KV groups is tried with as many channels as fit; layer by layer
the units with the least score a parameter go until the budget holds, and what still fits comes back. Of all these the
plan that loses the least score wins.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from fedglm.autoglm.light.pruning.errors import PruningError
from fedglm.autoglm.light.pruning.plan import LayerPlan, PruningPlan
from fedglm.autoglm.light.pruning.scores import LayerScores
from fedglm.autoglm.light.pruning.settings import Budget, PruningSettings
from fedglm.autoglm.light.pruning.shape import LAYERS_KEY, ModelShape

Cost = Callable[[Mapping[str, Any]], float]
"""Cost of a model by its transformers configuration as a dict, such as its latency in milliseconds."""


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """A model's configuration, and the cost of others of its family by a function of it.

    Attributes:
        config: Transformers configuration as a dict.
        cost: The function, for budgets of latency; None where there is none.
    """

    config: Mapping[str, Any]
    cost: Cost | None = None

    def latency(self, shape: ModelShape) -> float:
        """Return the cost of a model of that shape.

        Raises:
            PruningError: There is no function.
        """
        if self.cost is None:
            raise PruningError("a budget of latency needs a cost function: give one, or limit parameters or bytes")
        fields = dict(self.config) | shape.config_fields()
        return self.cost({name: value for name, value in fields.items() if name != LAYERS_KEY or value is not None})

    def fits(self, shape: ModelShape, budget: Budget) -> bool:
        """Return whether a model of that shape keeps every limit of a budget."""
        return (
            (budget.parameters is None or shape.parameters() <= budget.parameters)
            and (budget.bytes is None or shape.bytes(budget.bits) <= budget.bytes)
            and (budget.latency is None or self.latency(shape) <= budget.latency)
        )


def choose_plan(
    shape: ModelShape,
    scores: Sequence[LayerScores],
    settings: PruningSettings,
    costs: CostModel,
    budget: Budget | None = None,
) -> PruningPlan:
    """Choose what to keep of a model.

    Args:
        shape: The model's shape.
        scores: Scores of its units.
        settings: What may be cut.
        costs: Cost of a shape, for budgets of latency.
        budget: The limits; None takes those of the settings.

    Raises:
        PruningError: Not even the smallest model that the settings allow keeps within the budget.
    """
    budget = budget or settings.budget
    best: tuple[float, PruningPlan] | None = None
    for kept_layers, lost_layers in _layer_choices(scores, settings):
        cutter = _cut_per_layer if settings.per_layer else _cut_alike
        found = cutter(shape, scores, kept_layers, settings, costs, budget)
        if found is not None and (best is None or lost_layers + found[0] < best[0]):
            best = (lost_layers + found[0], found[1])
    if best is None:
        raise PruningError(
            "the budget is below the smallest model that may be left: raise it, lower min_channels or min_layers, "
            f"or allow more kinds of units than {', '.join(settings.units)}"
        )
    return best[1]


def _layer_choices(scores: Sequence[LayerScores], settings: PruningSettings) -> Iterator[tuple[list[int], float]]:
    """Yield kept layers and the score of those that go, from none to as many as may go."""
    order = np.argsort([layer.layer for layer in scores], kind="stable")
    most = max(0, len(scores) - settings.min_layers) if "layers" in settings.units else 0
    for count in range(most + 1):
        gone = order[:count].tolist()
        lost = settings.layer_weight * sum(scores[layer].layer for layer in gone)
        yield [layer for layer in range(len(scores)) if layer not in gone], lost


def _widths(whole: int, settings: PruningSettings) -> list[int]:
    """Return the numbers of FFN channels that a layer may keep, the whole first."""
    if "channels" not in settings.units:
        return [whole]
    step = settings.channel_multiple
    least = min(whole, -(-settings.min_channels // step) * step)
    return [whole, *range((whole - 1) // step * step, least - 1, -step)]


def _plan_layer(scores: LayerScores, layer: int, channels: int, groups: int) -> tuple[float, LayerPlan]:
    """Keep the units with the highest scores; return the score that is lost, and the plan."""

    def split(values: np.ndarray, count: int) -> tuple[float, tuple[int, ...]]:
        order = np.argsort(values, kind="stable")
        gone, kept = order[: len(values) - count], order[len(values) - count :]
        return float(values[gone].sum()), tuple(sorted(kept.tolist()))

    lost_channels, kept_channels = split(scores.channels, channels)
    lost_groups, kept_groups = split(scores.groups, groups)
    return lost_channels + lost_groups, LayerPlan(layer=layer, channels=kept_channels, groups=kept_groups)


def _assemble(
    scores: Sequence[LayerScores], layers: Sequence[int], widths: Sequence[tuple[int, int]]
) -> tuple[float, PruningPlan]:
    parts = [
        _plan_layer(scores[layer], layer, *width) for layer, width in zip(layers, widths, strict=True)
    ]  # fmt: skip
    return sum(lost for lost, _ in parts), PruningPlan(layers=tuple(plan for _, plan in parts))


def _shape_of(shape: ModelShape, layers: Sequence[int], widths: Sequence[tuple[int, int]]) -> ModelShape:
    return shape.with_layers(
        tuple(
            shape.layers[layer].model_copy(
                update={
                    "intermediate_size": channels,
                    "num_key_value_heads": groups,
                    "num_attention_heads": groups * shape.queries_per_group,
                }
            )
            for layer, (channels, groups) in zip(layers, widths, strict=True)
        )
    )


Found = tuple[float, PruningPlan] | None
_Widths = dict[int, list[int]]  # channels and groups by layer


def _cut_alike(
    shape: ModelShape,
    scores: Sequence[LayerScores],
    layers: Sequence[int],
    settings: PruningSettings,
    costs: CostModel,
    budget: Budget,
) -> Found:
    """Cut all layers to the same widths."""
    least = min((shape.layers[layer] for layer in layers), key=lambda each: each.intermediate_size)
    groups = min(shape.layers[layer].num_key_value_heads for layer in layers)
    best: Found = None
    for kept_groups in range(1 if "groups" in settings.units else groups, groups + 1):
        choices = _widths(least.intermediate_size, settings)

        def fits(number: int, choices: list[int] = choices, groups: int = kept_groups) -> bool:
            return costs.fits(_shape_of(shape, layers, [(choices[number], groups)] * len(layers)), budget)

        first = bisect_left(range(len(choices)), True, key=fits)
        if first < len(choices):
            found = _assemble(scores, layers, [(choices[first], kept_groups)] * len(layers))
            best = found if best is None or found[0] < best[0] else best
    return best


def _cut_per_layer(
    shape: ModelShape,
    scores: Sequence[LayerScores],
    layers: Sequence[int],
    settings: PruningSettings,
    costs: CostModel,
    budget: Budget,
) -> Found:
    """Cut each layer to its own widths."""
    steps = _order_cuts(shape, scores, layers, settings)

    def widths_after(count: int) -> _Widths:
        wholes = {layer: shape.layers[layer] for layer in layers}
        found = {layer: [whole.intermediate_size, whole.num_key_value_heads] for layer, whole in wholes.items()}
        for layer, kind, width in steps[:count]:
            found[layer][kind] = width
        return found

    def fits(after: _Widths) -> bool:
        return costs.fits(_shape_of(shape, layers, [(after[layer][0], after[layer][1]) for layer in layers]), budget)

    count = bisect_left(range(len(steps) + 1), True, key=lambda number: fits(widths_after(number)))
    if count > len(steps):
        return None
    widths, undo = widths_after(count), _undo(shape, steps[:count])
    stuck: set[tuple[int, int]] = set()
    for layer, kind, before in undo:  # what a large last unit left over is given back to smaller ones
        if len(stuck) == 2 * len(layers):
            break
        wider = {each: list(values) for each, values in widths.items()}
        wider[layer][kind] = before
        if (layer, kind) not in stuck and fits(wider):
            widths = wider
        else:
            stuck.add((layer, kind))
    return _assemble(scores, layers, [(widths[layer][0], widths[layer][1]) for layer in layers])


def _undo(shape: ModelShape, cuts: Sequence[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Return what undoes cuts, the last first: (layer, kind, width before)."""
    steps = []
    widths = [[layer.intermediate_size, layer.num_key_value_heads] for layer in shape.layers]
    for layer, kind, width in cuts:
        steps.append((layer, kind, widths[layer][kind]))
        widths[layer][kind] = width
    return steps[::-1]


def _order_cuts(
    shape: ModelShape, scores: Sequence[LayerScores], layers: Sequence[int], settings: PruningSettings
) -> list[tuple[int, int, int]]:
    """Return cuts as (layer, 0 for channels or 1 for groups, width afterwards), the least score a parameter first."""
    prices = (shape.channel_parameters(), shape.group_matrix_parameters() + shape.group_bias_parameters())
    queues = []
    for layer in layers:
        whole, each = shape.layers[layer], scores[layer]
        groups = range(whole.num_key_value_heads, 0, -1) if "groups" in settings.units else [whole.num_key_value_heads]
        for kind, values, widths in (
            (0, np.sort(each.channels), _widths(whole.intermediate_size, settings)),
            (1, np.sort(each.groups), list(groups)),
        ):
            total = np.concatenate(([0.0], np.cumsum(values)))
            cuts = []
            for before, after in pairwise(widths):
                lost = total[len(values) - after] - total[len(values) - before]
                cuts.append((float(lost) / ((before - after) * prices[kind]), layer, kind, after))
            queues.append(cuts)
    return [(layer, kind, width) for _, layer, kind, width in heapq.merge(*queues)]
