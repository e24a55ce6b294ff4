"""The canary audit: canaries are put into the node's private training by secret coins, and an attack looks for them.

gradient canaries   each moves one coordinate of the clipped sum by a clipping norm, the most that a unit may: they test
                    whether the noise, the sampling and the accounting are as claimed
record canaries     crafted records that go through the model and the clipper like any other: they test clipping, too

What they contradict is certainly wrong; what they do not contradict may still be wrong.
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
    bound_f_dp_epsilon,
    bound_one_run_epsilon,
    convert_mu_to_epsilon,
    estimate_gaussian,
    make_guesses,
)
from fedglm.audit.empirical.probe import DoesNotFit, TrainingProbe, max_gradients
from fedglm.autoglm.data.examples import concatenate
from fedglm.privacy.accounting.accountant import compute_epsilon
from fedglm.privacy.accounting.calibration import calibrate
from fedglm.privacy.dp.mechanism import Mechanism
from fedglm.privacy.dp.noise import GaussianNoise
from fedglm.privacy.errors import PrivacyError

DELTA: Final = 1e-5
MAX_EPSILON: Final = 2.0
"""Largest claim that is audited, and the default: the rigorous bounds are useful only for a small epsilon."""

_STEPS: Final = 4
_MAX_CANARIES: Final = 20_000
_MAX_RECORD_CANARIES: Final = 200
_CHUNK: Final = 2**18
"""Coordinates that are widened to float64 at a time."""
_BOUNDS: Final = 4
"""Rigorous bounds of one audit, two for each kind of canary, which share the confidence."""


@dataclass(frozen=True)
class CanaryResult:
    """Result of the canaries of one kind.

    Attributes:
        kind: `gradients` or `records`.
        canaries: Number of canaries.
        claimed: Epsilon by the accountants, at `delta`.
        delta: Delta of all epsilons here.
        confidence: Probability with which no rigorous bound of the whole audit exceeds the truth.
        one_run: Rigorous lower bound of epsilon after Steinke et al.
        f_dp: Rigorous lower bound of epsilon after Mahloujifar et al.
        estimate: Epsilon of the Gaussian mechanism that the scores look like: an estimate.
        estimate_least: The estimate at the lower end of its 95 % confidence interval.
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


def make_audited_mechanism(epsilon: float, clipping_norm: float, unit: str, records_per_unit: int) -> Mechanism:
    """Make the mechanism to audit: as in a plan, but with every unit in every step, where canaries see most.

    Args:
        epsilon: Claim that the noise is calibrated to.
        clipping_norm: Clipping norm.
        unit: Unit that is protected.
        records_per_unit: Maximum number of records per unit in a step.

    Raises:
        PrivacyError: Epsilon is not above 0 and at most 2.
    """
    check_claim(epsilon)
    return Mechanism(
        sampling_rate=1.0,
        steps=_STEPS,
        clipping_norm=clipping_norm,
        noise_multiplier=calibrate(epsilon, DELTA, 1.0, _STEPS),
        unit=unit,
        records_per_unit=records_per_unit,
    )


def check_claim(epsilon: float) -> float:
    """Return a claim if canaries can audit it.

    Raises:
        PrivacyError: It is not above 0 and at most 2.
    """
    if not 0 < epsilon <= MAX_EPSILON:
        raise PrivacyError(f"canaries audit a claim above 0 and at most {MAX_EPSILON:g}, not {epsilon!r}")
    return epsilon


def run_gradient_canaries(
    probe: TrainingProbe, mechanism: Mechanism, noise: GaussianNoise, count: int | None = None
) -> CanaryResult:
    """Plant canaries after the clipping, and look for them in the released update.

    Args:
        probe: Model and records.
        mechanism: Mechanism of the probe's training.
        noise: Source of the coins.
        count: Number of canaries; without it half of the coordinates, and at most 20,000.
    """
    count = count or min(_MAX_CANARIES, probe.size // 2)
    places = torch.from_numpy(noise.choice(probe.size, count))
    inside = noise.uniform(count) < 0.5

    def canary_hook(total: torch.Tensor) -> None:
        drawn = torch.from_numpy(inside & (noise.uniform(count) < mechanism.sampling_rate))
        total[places[drawn].to(total.device)] += mechanism.clipping_norm

    scores = probe.release(mechanism, canary_hook=canary_hook)[places.numpy()]
    return _evaluate("gradients", scores, inside, mechanism)


def run_record_canaries(
    probe: TrainingProbe, mechanism: Mechanism, noise: GaussianNoise, count: int | None = None
) -> CanaryResult:
    """Put crafted records among the probe's own, and look for each by its gradient.

    Their gradients are not orthogonal, so each is looked for by least squares over all of them.

    Args:
        probe: Model and records.
        mechanism: Mechanism of the probe's training; its epsilon is spent in a single step here.
        noise: Source of the coins.
        count: Number of canaries; without it 200, or as many as have their gradients in 2 GiB.

    Raises:
        DoesNotFit: Too few of their gradients fit into memory.
        PrivacyError: There is no noise, or the released update is not finite.
    """
    count = count or min(_MAX_RECORD_CANARIES, max_gradients(probe.size))
    if count < MIN_CANARIES:
        raise DoesNotFit(
            f"record canaries: 2 GiB hold gradients of {count} with {probe.size:,} parameters, {MIN_CANARIES} are "
            "the least"
        )
    one_step = replace(mechanism, steps=1, noise_multiplier=calibrate(_compute_claim(mechanism), DELTA, 1.0, 1))
    crafted = probe.craft_records(count, noise)
    inside = noise.uniform(count) < 0.5
    rows = probe.compute_gradients(crafted)
    for row in rows:  # what each may contribute after clipping, in clipping norms
        row /= max(float(np.linalg.norm(row)), one_step.clipping_norm)
    chosen = crafted.select(np.flatnonzero(inside))
    released = probe.release(one_step, concatenate([probe.records, chosen])) - _compute_clean_sum(probe, one_step)
    gram, along = _compute_products(rows, released)
    inverse = np.linalg.inv(gram + 1e-6 * np.trace(gram) / count * np.eye(count))
    estimates = inverse @ along
    deviations = np.sqrt(np.einsum("ij,jk,ki->i", inverse, gram, inverse))
    return _evaluate("records", estimates / deviations, inside, one_step)


def _compute_products(
    rows: npt.NDArray[np.float32], released: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Multiply rows with each other and with the released update, in float64 without copying all rows.

    Returns:
        (n, n) products of all rows, and (n,) products with the update.
    """
    gram, along = np.zeros((len(rows), len(rows))), np.zeros(len(rows))
    for start in range(0, rows.shape[1], _CHUNK):
        piece = rows[:, start : start + _CHUNK].astype(np.float64)
        gram += piece @ piece.T
        along += piece @ released[start : start + _CHUNK]
    return gram, along


def _compute_clean_sum(probe: TrainingProbe, mechanism: Mechanism) -> npt.NDArray[np.float64]:
    """Return the clipped sum of the probe's own records, which an adversary may know."""
    return probe.release(replace(mechanism, noise_multiplier=1e-6))


def _compute_claim(mechanism: Mechanism) -> float:
    """Return epsilon by the accountants, plus a little, so that noise can be calibrated to it."""
    return compute_epsilon([mechanism.event()], DELTA).epsilon + 0.005


def _evaluate(
    kind: str, scores: npt.NDArray[np.float64], inside: npt.NDArray[np.bool_], mechanism: Mechanism
) -> CanaryResult:
    """Compute bounds and estimate from the scores of canaries."""
    confidence = 1 - (1 - CONFIDENCE) / _BOUNDS
    guesses, claimed = make_guesses(scores, inside), compute_epsilon([mechanism.event()], DELTA).epsilon
    estimate: GaussianEstimate = estimate_gaussian(scores, inside)
    return CanaryResult(
        kind=kind,
        canaries=len(scores),
        claimed=claimed,
        delta=DELTA,
        confidence=CONFIDENCE,
        one_run=bound_one_run_epsilon(guesses, DELTA, confidence),
        f_dp=bound_f_dp_epsilon(guesses, DELTA, confidence),
        estimate=convert_mu_to_epsilon(estimate.mu, DELTA),
        estimate_least=convert_mu_to_epsilon(estimate.lower, DELTA),
    )
