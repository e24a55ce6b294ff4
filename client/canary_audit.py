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

from fedglm.client.audit_bench import Bench, joined
from fedglm.privacy.accountant import calibrate, spent
from fedglm.privacy.audit_bounds import (
    CONFIDENCE,
    GaussianEstimate,
    epsilon_of_gaussian,
    f_dp_epsilon,
    gaussian_estimate,
    guesses,
    one_run_epsilon,
)
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.mechanism import Mechanism
from fedglm.privacy.noise import GaussianNoise

DELTA: Final = 1e-5
MOST_EPSILON: Final = 2.0
"""Claim that is audited by default: the rigorous bounds bite where little is promised away."""

_STEPS: Final = 4
_MOST_CANARIES: Final = 20_000
_RECORDS: Final = 200
_MOST_VALUES: Final = 2**28
"""Of all record canaries' gradients, in float64: 2 GiB."""
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
        one_run: Rigorous lower bound after Steinke et al.
        f_dp: Rigorous lower bound after Mahloujifar et al.
        estimate: Epsilon of the Gaussian mechanism that the scores look like: an estimate.
        estimate_least: The same at the lower end of 95 % confidence.
    """

    kind: str
    canaries: int
    claimed: float
    delta: float
    one_run: float
    f_dp: float
    estimate: float
    estimate_least: float

    @property
    def bound(self) -> float:
        """The greater of the rigorous bounds."""
        return max(self.one_run, self.f_dp)

    @property
    def contradicts(self) -> bool:
        """Whether the claim is wrong, for certain but for the confidence."""
        return self.bound > self.claimed

    @property
    def doubts(self) -> bool:
        """Whether the estimate lies above the claim, which proves nothing."""
        return self.estimate_least > self.claimed


def audited_mechanism(epsilon: float, clipping_norm: float, unit: str, records_per_unit: int) -> Mechanism:
    """What is audited: as in a plan, but every unit in every step, where canaries see most.

    Raises:
        PrivacyError: Epsilon is not above 0 and at most 2.
    """
    if not 0 < epsilon <= MOST_EPSILON:
        raise PrivacyError(f"canaries audit a claim above 0 and at most {MOST_EPSILON:g}, not {epsilon!r}")
    return Mechanism(
        sampling_rate=1.0,
        steps=_STEPS,
        clipping_norm=clipping_norm,
        noise_multiplier=calibrate(epsilon, DELTA, 1.0, _STEPS),
        unit=unit,
        records_per_unit=records_per_unit,
    )


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
    count = count or min(_MOST_CANARIES, bench.size // 2)
    places = torch.from_numpy(noise.choice(bench.size, count))
    inside = noise.uniform(count) < 0.5

    def planted(total: torch.Tensor) -> None:
        drawn = torch.from_numpy(inside & (noise.uniform(count) < mechanism.sampling_rate))
        total[places[drawn].to(total.device)] += mechanism.clipping_norm

    scores = bench.released(mechanism, planted=planted)[places.numpy()]
    return _result("gradients", scores, inside, mechanism)


def record_canaries(bench: Bench, mechanism: Mechanism, noise: GaussianNoise, count: int = _RECORDS) -> CanaryResult:
    """Put crafted records among the bench's own, and look for each by its gradient.

    Their gradients are not at right angles, so each is looked for by least squares over all of them.

    Args:
        bench: Model and records.
        mechanism: That the bench's training is told; as much epsilon is spent in one step.
        noise: Throws the coins.
        count: Of canaries.

    Raises:
        PrivacyError: Their gradients do not fit into memory.
    """
    if count * bench.size > _MOST_VALUES:
        raise PrivacyError(f"the gradients of {count} record canaries of {bench.size:,} parameters do not fit")
    one = replace(mechanism, steps=1, noise_multiplier=calibrate(_claim(mechanism), DELTA, 1.0, 1))
    crafted = bench.crafted(count, noise)
    inside = noise.uniform(count) < 0.5
    rows = np.stack([bench.gradient(crafted.select([number])) for number in range(count)])
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    rows /= np.maximum(norms, one.clipping_norm) + (norms == 0)  # what the clipper should let each contribute
    chosen = crafted.select(np.flatnonzero(inside))
    released = bench.released(one, joined(bench.records, chosen)) - _without(bench, one)
    gram = rows @ rows.T
    inverse = np.linalg.inv(gram + 1e-6 * np.trace(gram) / count * np.eye(count))
    found = inverse @ (rows @ released)
    spread = np.sqrt(np.einsum("ij,jk,ki->i", inverse, gram, inverse))
    return _result("records", found / spread, inside, one)


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
        one_run=one_run_epsilon(found, DELTA, confidence),
        f_dp=f_dp_epsilon(found, DELTA, confidence),
        estimate=epsilon_of_gaussian(estimate.mu, DELTA),
        estimate_least=epsilon_of_gaussian(estimate.least, DELTA),
    )
