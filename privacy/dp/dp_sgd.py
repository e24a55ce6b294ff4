"""One noised step of DP-SGD (Abadi et al., arXiv:1607.00133): the sample, and noise on its clipped sum.

Units are drawn by Poisson sampling, noise is added once to the whole sum, and the sum is divided by a public number.
Nothing after the noise costs privacy (post-processing); everything before it stays at the site.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from fedglm.privacy.dp.mechanism import Mechanism
from fedglm.privacy.dp.noise import GaussianNoise
from fedglm.privacy.dp.sampling import choose_records, sample_poisson
from fedglm.privacy.errors import PrivacyError

Indices = npt.NDArray[np.int64]

_CHUNK = 1 << 18


class UnitSampler:
    """Draws the units of a step, and at most ``records_per_unit`` of each unit's records.

    Args:
        units: Unit of each record, (N,); any numbers. N may be 0: every sample is then empty, which a recipient of the
            noised result cannot tell.
        mechanism: Mechanism with the sampling rate and the maximum number of records.
        noise: Randomness of the operating system; a seed of the experiment never determines the sample.

    Raises:
        PrivacyError: The units are no vector.
    """

    def __init__(self, units: npt.ArrayLike, mechanism: Mechanism, noise: GaussianNoise) -> None:
        owners = np.asarray(units)
        if owners.ndim != 1:
            raise PrivacyError(f"units must be a vector of numbers, not of shape {owners.shape}")
        order = np.argsort(owners, kind="stable")
        _, firsts = np.unique(owners[order], return_index=True)
        self._records: list[Indices] = np.split(order, firsts[1:]) if len(owners) else []
        self._mechanism, self._noise = mechanism, noise

    def __len__(self) -> int:
        return len(self._records)

    def draw(self) -> list[Indices]:
        """Draw a sample: the record indices of each unit in it; an empty list when it has no unit."""
        sample = sample_poisson(self._noise, len(self), self._mechanism.sampling_rate)
        max_records = self._mechanism.records_per_unit
        return [choose_records(self._noise, self._records[unit], max_records) for unit in sample]


def make_micro_batches(sample: list[Indices], max_records: int | None) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Split a sample into batches of at most ``max_records`` records, without splitting units.

    A unit with more records has a batch of its own.

    Args:
        sample: Record indices of each unit, as `UnitSampler.draw` returns them.
        max_records: Maximum number of records in a batch; None for a single batch.

    Yields:
        Record indices, (B,), int64, and owners, (B,), int64, as ``Clipper.add`` takes them.
    """
    batch: list[Indices] = []
    size = 0
    for records in sample:
        if batch and max_records is not None and size + len(records) > max_records:
            yield _join_units(batch)
            batch, size = [], 0
        batch.append(records)
        size += len(records)
    if batch:
        yield _join_units(batch)


def compute_noised_mean(
    total: torch.Tensor, mechanism: Mechanism, noise: GaussianNoise, declared_units: int
) -> torch.Tensor:
    """Add noise to the clipped sum of a step and divide it.

    Args:
        total: Clipped sum over all micro-batches of the step, (size,), float32; zeros when no unit was drawn.
        mechanism: Mechanism with the noise and the sampling rate.
        noise: Source of the noise.
        declared_units: Number of units that the site declares in public. The mean is over the *expected* number of
            units in a step; the actual number is private, and dividing by it would invalidate the sensitivity bound C.

    Returns:
        The noised mean gradient, (size,), float32.

    Raises:
        PrivacyError: `declared_units` is below 1.
    """
    if declared_units < 1:
        raise PrivacyError(f"a site must declare at least 1 unit, not {declared_units}")
    private = total.cpu().numpy()
    noised = np.empty(len(private), np.float32)
    for start in range(0, len(private), _CHUNK):  # in chunks, for the noise is float64
        chunk = slice(start, start + _CHUNK)
        noised[chunk] = noise.add(private[chunk], mechanism.noise_std)
    return torch.from_numpy(noised).to(total.device).div_(mechanism.sampling_rate * declared_units)


def _join_units(batch: list[Indices]) -> tuple[torch.Tensor, torch.Tensor]:
    owners = np.repeat(np.arange(len(batch)), [len(records) for records in batch])
    return torch.from_numpy(np.concatenate(batch)), torch.from_numpy(owners)
