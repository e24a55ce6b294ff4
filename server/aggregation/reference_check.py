"""Detection of harmful updates by their loss on reference records: the minority that harms the next model is left out.

Medians bound how far one node moves the model, not in which direction. Where nodes add noise, an update is nearly all
noise, and a hostile node that adds none can spend its full norm on its attack. The updates themselves do not reveal it
then: honest ones hardly have a direction in common. Records do: see "Zeno" (Xie et al., ICML 2019, arXiv 1805.10032),
which ranks updates by the loss that each leads to, and "reject on negative influence" (Barreno et al., Machine Learning
81, 2010).

Here the loss is that of the two models that a round leads to: the one that would be published, and the target that
includes what the downlink's code leaves out. An update may harm either alone.
"""

import itertools
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final, TypeAlias

import numpy as np

from fedglm.compression.codec import CodecError

ReferenceLosses: TypeAlias = Callable[[Iterable[np.ndarray], int], list[float]]
"""Computes the losses of model vectors, each of shape (n,), float32, on the reference records of a round, whose number
is the second argument."""

Preview: TypeAlias = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]
"""Computes, from the mean of a round (shape (n,), float32) and its number, the model that would be published and its
target; raises CodecError or ValueError where they leave the weights' range."""

MAX_GROUPS: Final = 16
"""Maximum number of groups. Of more updates than these, several are left out together: else a round would spend more
time on evaluation than on training."""


class ReferenceCheck:
    """Computes the losses that means of a round's updates would lead to.

    Args:
        losses: Computes losses on reference records.
        preview: Computes the models that a mean leads to.
        server_round: Number of the round.
    """

    def __init__(self, losses: ReferenceLosses, preview: Preview, server_round: int) -> None:
        self._losses, self._preview, self._server_round = losses, preview, server_round

    def __call__(self, means: Iterable[np.ndarray]) -> list[float]:
        """Return the loss that each mean leads to, averaged over both models.

        Args:
            means: Means of updates, each of shape (n,), float32.

        Returns:
            One loss for each mean; infinity where a model leaves the weights' range.
        """
        losses = self._losses(itertools.chain.from_iterable(map(self._preview_models, means)), self._server_round)
        return [(published + target) / 2 for published, target in zip(losses[::2], losses[1::2], strict=True)]

    def _preview_models(self, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        try:
            return self._preview(mean, self._server_round)
        except (CodecError, ValueError):
            invalid = np.full_like(mean, np.nan)
            return invalid, invalid


def make_groups(names: Sequence[str], seed: int, server_round: int) -> list[list[str]]:
    """Divide nodes into groups that are left out together: one node each, or groups drawn anew in each round.

    Args:
        names: Names of the nodes, in an order that does not depend on the order of arrival.
        seed: Seed of the experiment.
        server_round: Number of the round.
    """
    if len(names) <= MAX_GROUPS:
        return [[name] for name in names]
    shuffled = np.random.default_rng([seed, server_round, 1]).permutation(len(names))
    return [[names[index] for index in part] for part in np.array_split(shuffled, MAX_GROUPS)]


def find_harmful(
    count: int, max_harmful: int, losses_without: Callable[[Sequence[Collection[int]]], Sequence[float]]
) -> list[int]:
    """Find the groups without which the loss is smallest; none where it is smallest with all.

    Candidates are each group alone, and the first 2, 3, ... of the groups sorted by the loss without each.

    Args:
        count: Number of groups.
        max_harmful: Maximum number of groups to find.
        losses_without: Computes, for each of several sets of indices from 0 to `count` - 1, the loss without them.

    Returns:
        Indices of the groups, ascending.
    """
    if max_harmful < 1:
        return []
    loss_with_all, *single = losses_without([(), *((index,) for index in range(count))])
    worst_first = sorted(range(count), key=lambda index: single[index])
    more = losses_without([worst_first[:size] for size in range(2, max_harmful + 1)])
    by_size = [loss_with_all, single[worst_first[0]], *more]
    return sorted(worst_first[: by_size.index(min(by_size))])
