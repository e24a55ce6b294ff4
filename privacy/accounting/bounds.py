"""Three upper bounds on the epsilon of a history, each by an accountant of an established library.

Opacus' PRV (Gopi, Lee and Wutschitz 2021), Google's PLD (Doroshenko et al. 2022) and RDP (Mironov 2017). PRV's error is
0.01 up to 50,000 steps and grows with their square root beyond, for otherwise its memory would grow. Opacus' GDP
accountant reports less than is spent, so it is not used.

Both libraries are imported at the first use, and Opacus' analysis without Opacus: reading ledgers needs no torch.
"""

import math
import warnings
from collections.abc import Iterable
from functools import lru_cache, reduce
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fedglm.privacy.accounting.opacus_analysis import load_analysis
from fedglm.privacy.dp.mechanism import Event

_ORDERS: Final = (*(1 + x / 10 for x in range(1, 100)), *range(12, 64), 64, 80, 96, 128, 192, 256, 384, 512, 1024)

MergedHistory = tuple[tuple[float, float, int], ...]
"""(noise multiplier, sampling rate, steps), sorted, each pair of the first two once."""


def merge_history(history: Iterable[Event]) -> MergedHistory:
    """Merge the events of equal noise multiplier and sampling rate: epsilon does not depend on the order."""
    steps: dict[tuple[float, float], int] = {}
    for event in history:
        pair = (event.noise_multiplier, event.sampling_rate)
        steps[pair] = steps.get(pair, 0) + event.steps
    return tuple((noise, rate, count) for (noise, rate), count in sorted(steps.items()))


def compute_rdp_epsilon(merged: MergedHistory, delta: float) -> float:
    """Compute epsilon by Renyi differential privacy: loose, and fast; infinite where there is hardly any noise."""
    curve = np.sum([count * _compute_rdp_of_step(noise, rate) for noise, rate, count in merged], axis=0)
    orders = np.array(_ORDERS)
    # Canonne, Kamath and Steinke (2020), proposition 12.
    epsilons = curve + np.log1p(-1 / orders) - (math.log(delta) + np.log(orders)) / (orders - 1)
    return max(0.0, float(np.min(epsilons)))


@lru_cache(maxsize=256)
def _compute_rdp_of_step(noise: float, rate: float) -> npt.NDArray[np.float64]:
    try:
        curve = load_analysis("rdp").compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=_ORDERS)
    except (OverflowError, ZeroDivisionError, ValueError):  # hardly any noise
        curve = np.inf
    # An order that did not converge gives no bound.
    return np.nan_to_num(np.broadcast_to(curve, len(_ORDERS)).astype(np.float64), nan=np.inf, posinf=np.inf)


def _count_steps(merged: MergedHistory) -> int:
    return sum(count for _, _, count in merged)


def compute_prv_error(merged: MergedHistory) -> float:
    """Return how far `compute_prv_epsilon` may exceed the true epsilon."""
    return 0.01 * math.sqrt(max(1.0, _count_steps(merged) / 50_000))


def choose_grid_interval(merged: MergedHistory) -> float:
    """Choose the grid interval of `compute_pld_epsilon`: its errors add up over the steps."""
    steps = _count_steps(merged)
    return 1e-3 if steps <= 2000 else 2e-4 if steps <= 50_000 else 1e-4


@lru_cache(maxsize=256)
def compute_prv_epsilon(merged: MergedHistory, delta: float) -> float | None:
    """Compute epsilon by privacy loss random variables: Opacus' upper bound; None where the computation fails.

    `PRVAccountant.get_epsilon` takes a grid of any length and inverts the Fourier transform for each pair. Here the
    length is one with a fast transform, at least as long and with the same mesh, the transforms are multiplied before
    one inverse, and the bounds on the losses of a single step are cached: the same bound, several times as fast.
    """
    opacus = load_analysis("prv")
    error, delta_error = compute_prv_error(merged), delta / 1000
    counts = [count for _, _, count in merged]
    steps = sum(counts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # log(0) at a sampling rate of 1, and integrals in the far tails
        try:
            losses = [opacus.PoissonSubsampledGaussianPRV(rate, noise) for noise, rate, _ in merged]
            limit = _compute_grid_limit(merged, error, delta_error)
            mesh = error / math.sqrt(steps * math.log(12 / delta_error) / 2)
            half = _round_up_to_fft_length(math.ceil(limit / mesh) + 1)
            domain = opacus.Domain((1 - half) * mesh, half * mesh, 2 * half)
            spectrum, shift = np.ones(half + 1, np.complex128), 0.0
            for loss, count in zip(losses, counts, strict=True):
                grid = opacus.discretize(
                    opacus.TruncatedPrivacyRandomVariable(loss, domain.t_min, domain.t_max), domain
                )
                spectrum *= np.fft.rfft(grid.pmf) ** count
                shift += count * grid.domain.shifts
            # Index n of each grid is the loss (n + 1 - half) * mesh, and indices add up modulo 2 * half.
            sums = np.roll(np.fft.irfft(spectrum), (steps - 1) * (1 - half) % (2 * half))
            composed = opacus.DiscretePRV(sums, domain.shift_right(shift))
            epsilon = float(composed.compute_epsilon(delta, delta_error, error)[2])
        except (RuntimeError, ValueError, OverflowError):
            return None
    return max(0.0, epsilon) if math.isfinite(epsilon) else None


def _compute_grid_limit(merged: MergedHistory, error: float, delta_error: float) -> float:
    """Compute the end of the grid as Opacus' `compute_safe_domain_size` (Gopi, Lee and Wutschitz 2021, remark 5.6).

    It uses `_ORDERS`, which include Opacus' orders and more, so that the end is at most as large.
    """
    composed = compute_rdp_epsilon(merged, delta_error / 4)
    single = [
        compute_rdp_epsilon(((noise, rate, 1),), delta_error / (8 * _count_steps(merged))) for noise, rate, _ in merged
    ]
    return max(composed, *single, error) + 3


def _round_up_to_fft_length(min_length: int) -> int:
    """Round up to 8 to 16 times a power of two: a Fourier transform of any other length may take ten times as long."""
    power = 1 << max(0, min_length.bit_length() - 4)
    return -(-min_length // power) * power


@lru_cache(maxsize=256)
def compute_pld_epsilon(merged: MergedHistory, delta: float, interval: float) -> float:
    """Compute epsilon by privacy loss distributions, on a grid of mesh `interval`."""
    composed = [_build_pld_of_step(noise, rate, interval).self_compose(count) for noise, rate, count in merged]
    return float(reduce(lambda left, right: left.compose(right), composed).get_epsilon_for_delta(delta))


@lru_cache(maxsize=64)
def _build_pld_of_step(noise: float, rate: float, interval: float) -> Any:
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism  # type: ignore[import-untyped]

    return from_gaussian_mechanism(noise, sampling_prob=rate, value_discretization_interval=interval)
