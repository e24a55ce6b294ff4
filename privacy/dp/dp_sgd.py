"""One noised step of DP-SGD (Abadi et al., arXiv:1607.00133): which records, and what becomes of their clipped sum.

Units are drawn by Poisson sampling, the noise goes once onto the whole sum, and the sum is divided by a number that is
public. Nothing that follows the noise can cost privacy; everything before it stays at the site.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from fedglm.privacy.dp.mechanism import Mechanism
from fedglm.privacy.dp.noise import GaussianNoise
from fedglm.privacy.dp.sampling import at_most, poisson
from fedglm.privacy.errors import PrivacyError

Indices = npt.NDArray[np.int64]

_PIECE = 1 << 18


class UnitSampler:
    """Draws the units of a step, and at most ``records_per_unit`` of each one's records.

    Args:
        units: (N,) whose each record is; any numbers. N may be 0: every sample is then empty, and whoever gets the
            noise cannot tell.
        mechanism: gives the rate and the most records.
        noise: the operating system's randomness; a seed of the experiment never decides who takes part.

    Raises:
        PrivacyError: the units are no vector.
    """

    def __init__(self, units: npt.ArrayLike, mechanism: Mechanism, noise: GaussianNoise) -> None:
        whose = np.asarray(units)
        if whose.ndim != 1:
            raise PrivacyError(f"units must be a vector of numbers, not of shape {whose.shape}")
        order = np.argsort(whose, kind="stable")
        _, firsts = np.unique(whose[order], return_index=True)
        self._records: list[Indices] = np.split(order, firsts[1:]) if len(whose) else []
        self._mechanism, self._noise = mechanism, noise

    def __len__(self) -> int:
        return len(self._records)

    def draw(self) -> list[Indices]:
        """Record numbers of each unit that is in; an empty list when none is."""
        chosen = poisson(self._noise, len(self), self._mechanism.sampling_rate)
        most = self._mechanism.records_per_unit
        return [at_most(self._noise, self._records[unit], most) for unit in chosen]


def micro_batches(drawn: list[Indices], most: int | None) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Whole units in batches of at most ``most`` records; a unit with more has a batch of its own.

    Yields:
        Record numbers (B,) int64, and owners (B,) int64 as ``Clipper.add`` takes them.
    """
    batch: list[Indices] = []
    size = 0
    for records in drawn:
        if batch and most is not None and size + len(records) > most:
            yield _joined(batch)
            batch, size = [], 0
        batch.append(records)
        size += len(records)
    if batch:
        yield _joined(batch)


def noised_mean(total: torch.Tensor, mechanism: Mechanism, noise: GaussianNoise, declared_units: int) -> torch.Tensor:
    """The clipped sum of a step, noised and divided: the gradient to follow, (size,) float32.

    Args:
        total: (size,) float32, over all micro-batches of the step; all zeros when no unit was drawn.
        mechanism: gives the noise and the sampling rate.
        noise: where it comes from.
        declared_units: how many units the site says in public that it has. The mean is over the number of units
            *expected* in a step; the number that came is private, and dividing by it would make C wrong.
    """
    if declared_units < 1:
        raise PrivacyError(f"a site must declare at least 1 unit, not {declared_units}")
    private = total.cpu().numpy()
    noised = np.empty(len(private), np.float32)
    for start in range(0, len(private), _PIECE):  # in float64, a piece at a time
        piece = slice(start, start + _PIECE)
        noised[piece] = noise.add(private[piece], mechanism.noise_std)
    return torch.from_numpy(noised).to(total.device).div_(mechanism.sampling_rate * declared_units)


def _joined(batch: list[Indices]) -> tuple[torch.Tensor, torch.Tensor]:
    owners = np.repeat(np.arange(len(batch)), [len(records) for records in batch])
    return torch.from_numpy(np.concatenate(batch)), torch.from_numpy(owners)
