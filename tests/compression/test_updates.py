"""Folding updates into accumulators."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedglm.compression.codec import CodecError, make_codec
from fedglm.compression.updates import DenseUpdate, SparseUpdate

SIZE = 150_000
NAMES = ("dense-fp32", "dense-fp16", "int8", "topk-fp16", "topk-sign")
NODES = [
    make_codec(name).decode(make_codec(name).encode(vector), SIZE)
    for seed, name in enumerate(NAMES)
    for vector in [np.random.default_rng(seed).standard_normal(SIZE).astype(np.float32) * np.float32(1e-3)]
]
WEIGHTS = [0.11, 0.29, 0.3, 0.17, 0.13]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("update", NODES, ids=NAMES)
def test_float_accumulators(update, dtype):
    start = np.random.default_rng(9).standard_normal(SIZE).astype(dtype)
    total = start.copy()
    update.add_to(total, 0.3)
    assert total.dtype == dtype
    assert total.tobytes() == (start + update.to_dense().astype(dtype) * dtype(0.3)).tobytes()


def test_fixed_point_sums_are_the_same_in_every_order():
    sums = set()
    for order in itertools.permutations(range(len(NODES))):
        if order[0] > order[-1]:
            continue
        total = np.zeros(SIZE, np.int64)
        for node in order:
            NODES[node].add_to(total, WEIGHTS[node] * 2.0**40)
        sums.add(total.tobytes())
    assert len(sums) == 1
    mean = np.frombuffer(sums.pop(), np.int64) / 2.0**40
    exact = sum(weight * node.to_dense().astype(np.float64) for weight, node in zip(WEIGHTS, NODES, strict=True))
    assert np.abs(mean - exact).max() < 5 * 2.0**-40


floats = st.floats(allow_nan=False, allow_infinity=False, width=32)


@given(st.lists(st.lists(floats, min_size=3, max_size=3), min_size=2, max_size=5), st.randoms())
def test_fixed_point_orders_of_any_values(rows, random):
    updates = [DenseUpdate(np.array(row, np.float32)) for row in rows]
    weight = 2.0**20 / max(1.0, max(update.max_abs() for update in updates))
    forward, shuffled = np.zeros(3, np.int64), np.zeros(3, np.int64)
    for update in updates:
        update.add_to(forward, weight)
    random.shuffle(updates)
    for update in updates:
        update.add_to(shuffled, weight)
    assert forward.tolist() == shuffled.tolist()


def test_fixed_point_rounds_to_nearest():
    total = np.zeros(4, np.int64)
    DenseUpdate(np.array([0.49, -0.51, 1.5, 2.5], np.float32)).add_to(total, 1.0)
    assert total.tolist() == [0, -1, 2, 2]


@pytest.mark.parametrize("weight", [2.0**62, -(2.0**62), float("inf"), float("nan")])
@pytest.mark.parametrize(
    "update",
    [DenseUpdate(np.ones(3, np.float32)), SparseUpdate(3, np.array([1]), np.ones(1, np.float32))],
    ids=["dense", "sparse"],
)
def test_a_term_that_does_not_fit_changes_nothing(update, weight):
    total = np.array([1, 2, 3])
    with pytest.raises(CodecError, match="2\\*\\*62"):
        update.add_to(total, weight)
    assert total.tolist() == [1, 2, 3]


@pytest.mark.parametrize("update", NODES[::4], ids=["dense", "sparse"])
def test_wrong_accumulators(update):
    with pytest.raises(TypeError, match="int32"):
        update.add_to(np.zeros(SIZE, np.int32), 1.0)
    with pytest.raises(ValueError, match="shape"):
        update.add_to(np.zeros(SIZE + 1, np.float32), 1.0)


def test_an_update_that_sends_nothing():
    update = make_codec("topk-sign").decode(make_codec("topk-sign").encode(np.zeros(5, np.float32)), 5)
    total = np.zeros(5, np.int64)
    update.add_to(total, 1.0)
    assert (update.max_abs(), update.norm(), update.positions.size, total.any()) == (0.0, 0.0, 0, False)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
@pytest.mark.parametrize("positions", [[0, 3], [-1, 1]])
def test_positions_outside_change_nothing(dtype, positions):
    total = np.ones(3, dtype)
    with pytest.raises(IndexError, match="outside its 3 elements"):
        SparseUpdate(3, np.array(positions), np.ones(2, np.float32)).add_to(total, 1.0)
    assert total.tolist() == [1, 1, 1]
