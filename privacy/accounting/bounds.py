"""Three upper bounds on what a history spends, each by an accountant that others wrote and tested.

Opacus' PRV (Gopi, Lee and Wutschitz 2021), Google's PLD (Doroshenko et al. 2022) and RDP (Mironov 2017). PRV's error is
0.01 up to 50,000 steps and grows with their square root after, for its memory would grow instead. Opacus' GDP
accountant reports less than is spent, so it has no place here.

Both libraries are imported when first asked, and Opacus' analysis without Opacus: a reader of ledgers needs no torch.
"""

import math
import warnings
from collections.abc import Iterable
from functools import lru_cache, reduce
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fedglm.privacy.accounting.opacus_analysis import analysis
from fedglm.privacy.dp.mechanism import Event

_ORDERS: Final = (*(1 + x / 10 for x in range(1, 100)), *range(12, 64), 64, 80, 96, 128, 192, 256, 384, 512, 1024)

Merged = tuple[tuple[float, float, int], ...]
"""(noise multiplier, sampling rate, steps), each pair of the first two once, in order."""


def merge(history: Iterable[Event]) -> Merged:
    """A history in its shortest form: the order of a history costs nothing."""
    steps: dict[tuple[float, float], int] = {}
    for event in history:
        pair = (event.noise_multiplier, event.sampling_rate)
        steps[pair] = steps.get(pair, 0) + event.steps
    return tuple((noise, rate, count) for (noise, rate), count in sorted(steps.items()))


def rdp(merged: Merged, delta: float) -> float:
    """Epsilon by Renyi differential privacy: loose, and quick; infinite where there is hardly any noise."""
    curve = np.sum([count * _rdp_of_step(noise, rate) for noise, rate, count in merged], axis=0)
    orders = np.array(_ORDERS)
    # Canonne, Kamath and Steinke (2020), proposition 12.
    epsilons = curve + np.log1p(-1 / orders) - (math.log(delta) + np.log(orders)) / (orders - 1)
    return max(0.0, float(np.min(epsilons)))


@lru_cache(maxsize=256)
def _rdp_of_step(noise: float, rate: float) -> npt.NDArray[np.float64]:
    try:
        curve = analysis("rdp").compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=_ORDERS)
    except (OverflowError, ZeroDivisionError, ValueError):  # hardly any noise
        curve = np.inf
    # An order that did not converge promises nothing.
    return np.nan_to_num(np.broadcast_to(curve, len(_ORDERS)).astype(np.float64), nan=np.inf, posinf=np.inf)


def _steps(merged: Merged) -> int:
    return sum(count for _, _, count in merged)


def prv_error(merged: Merged) -> float:
    """What `prv` may lie above the truth."""
    return 0.01 * math.sqrt(max(1.0, _steps(merged) / 50_000))


def interval(merged: Merged) -> float:
    """Mesh of a grid for `pld`: its errors add up over the steps."""
    steps = _steps(merged)
    return 1e-3 if steps <= 2000 else 2e-4 if steps <= 50_000 else 1e-4


@lru_cache(maxsize=256)
def prv(merged: Merged, delta: float) -> float | None:
    """Epsilon by privacy loss random variables: Opacus' upper bound, composed in one go; None where it gives up.

    `PRVAccountant.get_epsilon` takes a grid of any length and goes back from the Fourier transform for each pair. Here
    the length is one that transforms quickly, at least as long and with the same mesh, the transforms are multiplied,
    and what bounds the losses of a single step is not worked out again: the same bound, several times as fast.
    """
    opacus = analysis("prv")
    error, delta_error = prv_error(merged), delta / 1000
    counts = [count for _, _, count in merged]
    steps = sum(counts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of log(0) at a sampling rate of 1, and of integrals at its far ends
        try:
            losses = [opacus.PoissonSubsampledGaussianPRV(rate, noise) for noise, rate, _ in merged]
            limit = _safe_limit(merged, error, delta_error)
            mesh = error / math.sqrt(steps * math.log(12 / delta_error) / 2)
            half = _quick_length(math.ceil(limit / mesh) + 1)
            domain = opacus.Domain((1 - half) * mesh, half * mesh, 2 * half)
            spectrum, shift = np.ones(half + 1, np.complex128), 0.0
            for loss, count in zip(losses, counts, strict=True):
                grid = opacus.discretize(
                    opacus.TruncatedPrivacyRandomVariable(loss, domain.t_min, domain.t_max), domain
                )
                spectrum *= np.fft.rfft(grid.pmf) ** count
                shift += count * grid.domain.shifts
            # Place n of each grid stands for the loss (n + 1 - half) * mesh, and places add up modulo 2 * half.
            sums = np.roll(np.fft.irfft(spectrum), (steps - 1) * (1 - half) % (2 * half))
            composed = opacus.DiscretePRV(sums, domain.shift_right(shift))
            epsilon = float(composed.compute_epsilon(delta, delta_error, error)[2])
        except (RuntimeError, ValueError, OverflowError):
            return None
    return max(0.0, epsilon) if math.isfinite(epsilon) else None


def _safe_limit(merged: Merged, error: float, delta_error: float) -> float:
    """Where the grid may end: Opacus' `compute_safe_domain_size` (Gopi, Lee and Wutschitz 2021, remark 5.6).

    Over `_ORDERS`, which hold Opacus' and more, so that it is at most as great.
    """
    whole = rdp(merged, delta_error / 4)
    single = [rdp(((noise, rate, 1),), delta_error / (8 * _steps(merged))) for noise, rate, _ in merged]
    return max(whole, *single, error) + 3


def _quick_length(least: int) -> int:
    """A number from 8 to 16 times a power of two: a Fourier transform of any length may take ten times as long."""
    power = 1 << max(0, least.bit_length() - 4)
    return -(-least // power) * power


@lru_cache(maxsize=256)
def pld(merged: Merged, delta: float, interval: float) -> float:
    """Epsilon by privacy loss distributions, on a grid of mesh `interval`."""
    composed = [_pld_of_step(noise, rate, interval).self_compose(count) for noise, rate, count in merged]
    return float(reduce(lambda left, right: left.compose(right), composed).get_epsilon_for_delta(delta))


@lru_cache(maxsize=64)
def _pld_of_step(noise: float, rate: float, interval: float) -> Any:
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism  # type: ignore[import-untyped]

    return from_gaussian_mechanism(noise, sampling_prob=rate, value_discretization_interval=interval)
