"""The empirical audit: canaries are put into the node's private training by secret coins, and found again, or not.

gradient canaries   each moves one coordinate of the clipped sum by a clipping norm, the most that a unit may: they see
                    whether the noise, the sampling and the accounting are what is claimed
record canaries     crafted records that go through the model and the clipper like any other: they see the clipping too

What they contradict is wrong for certain; what they do not contradict may still be wrong.
"""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from fedglm.audit.empirical.bounds import (
    CONFIDENCE,
    MIN_CANARIES,
    GaussianEstimate,
    epsilon_of_gaussian,
    f_dp_epsilon,
    gaussian_estimate,
    guesses,
    one_run_epsilon,
)
from fedglm.audit.empirical.probe import Bench, DoesNotFit, max_gradients
from fedglm.autoglm.data.examples import concatenate
from fedglm.privacy.accounting.accountant import spent
from fedglm.privacy.accounting.calibration import calibrate
from fedglm.privacy.dp.mechanism import Mechanism
from fedglm.privacy.dp.noise import GaussianNoise
from fedglm.privacy.errors import PrivacyError

DELTA: Final = 1e-5
MAX_EPSILON: Final = 2.0
"""Greatest claim that is audited, and the default: the rigorous bounds bite where little is promised away."""

_STEPS: Final = 4
_MAX_CANARIES: Final = 20_000
_RECORDS: Final = 200
_PIECE: Final = 2**18
"""Coordinates that are widened to float64 at a time."""
_BOUNDS: Final = 4
"""Rigorous bounds of one audit: two for each kind of canary. All of them together keep to the confidence."""


@dataclass(frozen=True)
class CanaryResult:
    """What the canaries of one kind show.

    Attributes:
        kind: `gradients` or `records`.
        canaries: How many there were.
        claimed: Epsilon by the accountants, at `delta`.
        delta: See there.
        confidence: Probability with which no rigorous bound of the whole audit lies above the truth.
        one_run: Rigorous lower bound after Steinke et al.
        f_dp: Rigorous lower bound after Mahloujifar et al.
        estimate: Epsilon of the Gaussian mechanism that the scores look like: an estimate.
        estimate_least: The same at the lower end of 95 % confidence.
    """

    kind: str
    canaries: int
    claimed: float
    delta: float
    confidence: float
    one_run: float
    f_dp: float
    estimate: float
    estimate_least: float


def audited_mechanism(epsilon: float, clipping_norm: float, unit: str, records_per_unit: int) -> Mechanism:
    """What is audited: as in a plan, but every unit in every step, where canaries see most.

    Raises:
        PrivacyError: Epsilon is not above 0 and at most 2.
    """
    checked_claim(epsilon)
    return Mechanism(
        sampling_rate=1.0,
        steps=_STEPS,
        clipping_norm=clipping_norm,
        noise_multiplier=calibrate(epsilon, DELTA, 1.0, _STEPS),
        unit=unit,
        records_per_unit=records_per_unit,
    )


def checked_claim(epsilon: float) -> float:
    """A claim that canaries can audit.

    Raises:
        PrivacyError: It is not above 0 and at most 2.
    """
    if not 0 < epsilon <= MAX_EPSILON:
        raise PrivacyError(f"canaries audit a claim above 0 and at most {MAX_EPSILON:g}, not {epsilon!r}")
    return epsilon


def gradient_canaries(
    bench: Bench, mechanism: Mechanism, noise: GaussianNoise, count: int | None = None
) -> CanaryResult:
    """Plant canaries after the clipping, and look for them in what is released.

    Args:
        bench: Model and records.
        mechanism: That the bench's training is told.
        noise: Throws the coins.
        count: Of canaries; half of the coordinates, and at most 20,000, without it.
    """
    count = count or min(_MAX_CANARIES, bench.size // 2)
    places = torch.from_numpy(noise.choice(bench.size, count))
    inside = noise.uniform(count) < 0.5

    def canary_hook(total: torch.Tensor) -> None:
        drawn = torch.from_numpy(inside & (noise.uniform(count) < mechanism.sampling_rate))
        total[places[drawn].to(total.device)] += mechanism.clipping_norm

    scores = bench.released(mechanism, canary_hook=canary_hook)[places.numpy()]
    return _result("gradients", scores, inside, mechanism)


def record_canaries(bench: Bench, mechanism: Mechanism, noise: GaussianNoise, count: int | None = None) -> CanaryResult:
    """Put crafted records among the bench's own, and look for each by its gradient.

    Their gradients are not at right angles, so each is looked for by least squares over all of them.

    Args:
        bench: Model and records.
        mechanism: That the bench's training is told; as much epsilon is spent in one step.
        noise: Throws the coins.
        count: Of canaries; 200, or as many as 2 GiB hold the gradients of, without it.

    Raises:
        DoesNotFit: Too few of their gradients fit into memory.
        PrivacyError: There is no noise, or what is released is not finite.
    """
    count = count or min(_RECORDS, max_gradients(bench.size))
    if count < MIN_CANARIES:
        raise DoesNotFit(
            f"record canaries: 2 GiB hold gradients of {count} with {bench.size:,} parameters, {MIN_CANARIES} are "
            "the least"
        )
    one = replace(mechanism, steps=1, noise_multiplier=calibrate(_claim(mechanism), DELTA, 1.0, 1))
    crafted = bench.crafted(count, noise)
    inside = noise.uniform(count) < 0.5
    rows = bench.gradients(crafted)
    for row in rows:  # what the clipper should let each contribute, in clipping norms
        row /= max(float(np.linalg.norm(row)), one.clipping_norm)
    chosen = crafted.select(np.flatnonzero(inside))
    released = bench.released(one, concatenate([bench.records, chosen])) - _without(bench, one)
    gram, along = _products(rows, released)
    inverse = np.linalg.inv(gram + 1e-6 * np.trace(gram) / count * np.eye(count))
    found = inverse @ along
    spread = np.sqrt(np.einsum("ij,jk,ki->i", inverse, gram, inverse))
    return _result("records", found / spread, inside, one)


def _products(
    rows: npt.NDArray[np.float32], released: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """All rows times all, (n, n), and times what was released, (n,), in float64 without a copy of them all."""
    gram, along = np.zeros((len(rows), len(rows))), np.zeros(len(rows))
    for start in range(0, rows.shape[1], _PIECE):
        piece = rows[:, start : start + _PIECE].astype(np.float64)
        gram += piece @ piece.T
        along += piece @ released[start : start + _PIECE]
    return gram, along


def _without(bench: Bench, mechanism: Mechanism) -> npt.NDArray[np.float64]:
    """The clipped sum of the bench's own records, which an adversary may know."""
    return bench.released(replace(mechanism, noise_multiplier=1e-6))


def _claim(mechanism: Mechanism) -> float:
    """Epsilon by the accountants; a little more, so that calibrating to it finds noise."""
    return spent([mechanism.event()], DELTA).epsilon + 0.005


def _result(kind: str, scores: npt.NDArray[np.float64], inside: npt.NDArray[np.bool_], told: Mechanism) -> CanaryResult:
    confidence = 1 - (1 - CONFIDENCE) / _BOUNDS
    found, claimed = guesses(scores, inside), spent([told.event()], DELTA).epsilon
    estimate: GaussianEstimate = gaussian_estimate(scores, inside)
    return CanaryResult(
        kind=kind,
        canaries=len(scores),
        claimed=claimed,
        delta=DELTA,
        confidence=CONFIDENCE,
        one_run=one_run_epsilon(found, DELTA, confidence),
        f_dp=f_dp_epsilon(found, DELTA, confidence),
        estimate=epsilon_of_gaussian(estimate.mu, DELTA),
        estimate_least=epsilon_of_gaussian(estimate.least, DELTA),
    )
