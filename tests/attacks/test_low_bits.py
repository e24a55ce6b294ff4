"""The low bits of noised numbers: of a plain float sum they tell which private numbers no noise can have made it of.

The server of the attack knows all records but one, as the promise of differential privacy has it. The noise here is so
large that what is charged for permits no better than a guess.
"""

import numpy as np
import torch

from fedglm.privacy.dp.dp_sgd import compute_noised_mean
from fedglm.privacy.dp.mechanism import Mechanism
from fedglm.privacy.dp.noise import GaussianNoise
from fedglm.privacy.dp.noised_metrics import compute_noised_means, sum_units

MECHANISM = Mechanism(
    sampling_rate=1.0, steps=1, clipping_norm=1.0, noise_multiplier=8.0, unit="record", records_per_unit=1
)
DIVISOR = 1024  # a power of two, as a server would choose rate and units, so that the division hides nothing


def impossible(noised, total):
    """How many of the noised numbers no float32 noise makes, where the private numbers are `total`."""
    near = (noised.astype(np.float64) - total).astype(np.float32)
    tries = (near, *(np.nextafter(near, np.float32(way), dtype=np.float32) for way in (-np.inf, np.inf)))
    return int((~np.any([noise + total == noised for noise in tries], axis=0)).sum())


def test_an_update_does_not_show_whether_a_record_is_in_it():
    rng, size = np.random.default_rng(5), 100_000
    others, mine = (rng.normal(size=(2, size)) / np.sqrt(size)).astype(np.float32)
    sums = others, others + mine
    noised = [
        compute_noised_mean(torch.from_numpy(truth.copy()), MECHANISM, GaussianNoise(), DIVISOR).numpy() * DIVISOR
        for truth in sums
    ]
    for guess in sums:  # a number that cannot be is chance, of the same odds whatever the truth: 6 deviations wide
        one, other = (impossible(seen, guess) for seen in noised)
        assert abs(one - other) <= 6 * np.sqrt(one + other + 1)


def floats_between(low, high):
    """All float32 from low to high, both of one sign."""
    ends = sorted(int(np.float32(abs(end)).view(np.int32)) for end in (low, high))
    return np.sign(low) * np.arange(ends[0], ends[1] + 1, dtype=np.int32).view(np.float32).astype(np.float64)


def explained(loss, accuracy, count, total, scale):
    """Whether some three float32 values of noise make exactly these measures of these private sums."""
    low, high = (count - 0.5) * scale - total[2], (count + 0.5) * scale - total[2]
    counts = (total[2] + floats_between(low, high)) / scale
    possible = np.ones(len(counts), bool)
    for share, private in zip((loss, accuracy), total[:2], strict=True):
        noise = (share * counts * scale - private).astype(np.float32).astype(np.float64)
        possible &= np.abs((private + noise) / scale / counts - share) <= 4 * np.spacing(share)
    return bool(possible.any())


def test_measures_do_not_show_whether_a_record_was_measured():
    rng, units, bounds, scale = np.random.default_rng(7), 300, (1.0, 1.0), 1 / np.sqrt(3)
    values = np.stack([rng.uniform(0.3, 0.5, units), rng.uniform(size=units) < 0.6], axis=1)
    totals = {number: sum_units(values[:number], np.arange(number), bounds) for number in (units - 1, units)}
    right = 0
    for turn in range(6):
        truth = units - turn % 2
        while True:
            (loss, accuracy), count = compute_noised_means(
                values[:truth], np.arange(truth), bounds, MECHANISM, GaussianNoise()
            )
            # Of noise near zero there are too many floats to look at each, and of any other as many as have to be.
            if all(abs(count * scale - total[2]) > scale for total in totals.values()):
                break
        fits = {number: explained(loss, accuracy, count, total, scale) for number, total in totals.items()}
        right += fits[truth] and not fits[units + units - 1 - truth]
    assert right < 6, "each time one of two neighbours alone explains what was told"
