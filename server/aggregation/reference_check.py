"""What updates do to the model to come, measured on reference records: the minority that harms it is left out.

Medians bound how far one node moves the model, not where to. Where nodes add noise, an update is nearly all noise, and
a hostile node that adds none has its whole length for what it is after. Nothing in the updates tells it then: honest
ones hardly have a direction in common. Records do: see "Zeno" (Xie et al., ICML 2019, arXiv 1805.10032), which ranks
updates by the loss that each leads to, and "reject on negative influence" (Barreno et al., Machine Learning 81, 2010).

Here the loss is that of the two models that a round leads to: the one that would be published, and the one that it
heads for, which holds what the downlink's code leaves out as well. An update may harm either alone.
"""

import itertools
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final, TypeAlias

import numpy as np

from fedglm.compression.codec import CodecError

ReferenceLosses: TypeAlias = Callable[[Iterable[np.ndarray], int], list[float]]
"""Losses of model vectors (float32) on what a round, whose number is given, is measured on."""

Preview: TypeAlias = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]
"""From the mean of a round (float32), whose number is given, to the model that would be published and the one that it
heads for; raises CodecError or ValueError where they leave the weights' range."""

MAX_GROUPS: Final = 16
"""Of more updates than these, several are left out together, or a round would be measured for longer than trained."""


class ReferenceCheck:
    """Measures what means of a round's updates would lead to.

    Args:
        losses: On reference records.
        preview: The models that a mean leads to.
        number: Of the round.
    """

    def __init__(self, losses: ReferenceLosses, preview: Preview, number: int) -> None:
        self._losses, self._preview, self._number = losses, preview, number

    def __call__(self, means: Iterable[np.ndarray]) -> list[float]:
        """Loss that each mean (float32) leads to, over both models; infinity where it leaves the weights' range."""
        losses = self._losses(itertools.chain.from_iterable(map(self._models, means)), self._number)
        return [(published + target) / 2 for published, target in zip(losses[::2], losses[1::2], strict=True)]

    def _models(self, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        try:
            return self._preview(mean, self._number)
        except (CodecError, ValueError):
            nowhere = np.full_like(mean, np.nan)
            return nowhere, nowhere


def groups_of(names: Sequence[str], seed: int, number: int) -> list[list[str]]:
    """Who is left out together: each alone, or in groups that are drawn anew each round.

    Args:
        names: Of the nodes, in an order that does not depend on who was quick.
        seed: Of the experiment.
        number: Of the round.
    """
    if len(names) <= MAX_GROUPS:
        return [[name] for name in names]
    shuffled = np.random.default_rng([seed, number, 1]).permutation(len(names))
    return [[names[index] for index in part] for part in np.array_split(shuffled, MAX_GROUPS)]


def harmful(count: int, most: int, losses_without: Callable[[Sequence[Collection[int]]], Sequence[float]]) -> list[int]:
    """Those without which the loss is least; nothing where it is least with all.

    Args:
        count: How many there are to choose from.
        most: That are chosen.
        losses_without: Losses without those of some numbers, from 0 to `count` - 1, for each of several choices.
    """
    if most < 1:
        return []
    whole, *alone = losses_without([(), *((number,) for number in range(count))])
    worst_first = sorted(range(count), key=lambda number: alone[number])
    more = losses_without([worst_first[:size] for size in range(2, most + 1)])
    by_size = [whole, alone[worst_first[0]], *more]
    return sorted(worst_first[: by_size.index(min(by_size))])
