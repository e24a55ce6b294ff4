"""What one node can do to a round's mean: bounded by what most nodes sent, with the same bits in any order."""

import itertools

import numpy as np
import pytest
from honest_updates import CODEC, SIZE, honest

from fedglm.compression.codec import decode
from fedglm.compression.updates import SparseUpdate
from fedglm.server.aggregation.fixed_point import FixedPointMean
from fedglm.server.aggregation.mean import MeanAggregator
from fedglm.server.aggregation.robust import Cosine, compute_limits, compute_shares
from fedglm.server.aggregation.robust_mean import RobustAggregator


def mean_of(folder, vectors, order=None, factor=1.25, weights=None, drift=None):
    aggregator = RobustAggregator(
        FixedPointMean(SIZE, terms=len(vectors)), folder, "topk-fp16", factor=factor, drift=drift
    )
    for index in order or range(len(vectors)):
        blob = CODEC.encode(vectors[index])
        weight = 1.0 if weights is None else weights[index]
        aggregator.add(f"node-{index}", weight, decode(blob, size=SIZE), blob)
    closed = aggregator.close()
    return closed.mean, closed.contributions


def test_the_mean_has_the_same_bits_in_any_order(tmp_path):
    vectors = [*honest(3), -50 * honest(1)[0]]
    means = {
        mean_of(tmp_path, vectors, order, weights=[0.5, 1.0, 0.25, 1.0])[0].tobytes()
        for order in itertools.permutations(range(4))
    }
    assert len(means) == 1


def test_alike_updates_count_whole_and_their_mean_is_the_plain_one(tmp_path):
    vectors = honest(5)
    robust, contributions = mean_of(tmp_path, vectors, factor=2.0)
    aggregator = MeanAggregator(FixedPointMean(SIZE, terms=5))
    for index, vector in enumerate(vectors):
        blob = CODEC.encode(vector)
        aggregator.add(str(index), 1.0, decode(blob, size=SIZE), blob)
    plain = aggregator.close()
    assert plain.contributions == contributions == {}
    assert robust.tobytes() == plain.mean.tobytes()


@pytest.mark.parametrize("scale", [1e1, 1e3, 1e5])
def test_a_long_update_moves_the_mean_by_no_more_than_the_limit(tmp_path, scale):
    vectors = honest(4)
    sent = [decode(CODEC.encode(vector), size=SIZE).to_dense() for vector in vectors]
    limit = 1.25 * np.median([np.linalg.norm(vector) for vector in sent])
    without = sum(sent[1:])
    mean, contributions = mean_of(tmp_path, [scale * vectors[0], *vectors[1:]])
    moved = np.linalg.norm(mean * 4 - without)
    assert moved <= 2.5 * limit  # the long one, and what others were cut by
    assert contributions["node-0"] < 0.2


def test_an_update_against_all_others_counts_for_less(tmp_path):
    vectors = honest(4, together=2.0)
    against = -sum(vectors[1:]).astype(np.float32) / 3
    _, contributions = mean_of(tmp_path, [against, *vectors[1:]], factor=2.0)
    assert contributions.keys() == {"node-0"}
    assert contributions["node-0"] < 0.5


def test_of_two_nobody_can_say_which_is_odd(tmp_path):
    one, other = honest(2)
    mean, contributions = mean_of(tmp_path, [one, -1000 * other])
    assert contributions == {}
    assert np.linalg.norm(mean) > 100 * np.linalg.norm(one)
    assert compute_limits([1.0, 9.0], [1.0, 9.0], 1.25) is None
    assert compute_shares([Cosine(-1.0, 0.1)] * 2) == [1.0, 1.0]


def test_what_is_cut_stays_sparse_and_within_both_limits():
    limits = compute_limits([1.0, 1.1, 0.9], [0.5, 0.6, 0.4], 1.0)
    update = decode(CODEC.encode(honest(1)[0] * 1000), size=SIZE)
    cut = limits.clip(update)
    assert isinstance(cut, SparseUpdate)
    assert cut.norm() <= 1.0 + 1e-6
    assert cut.max_abs() <= 0.5
    small = decode(CODEC.encode(honest(1)[0] * 1e-3), size=SIZE)
    assert limits.clip(small) is small
