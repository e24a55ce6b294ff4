import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedglm.compression.codec import CodecError, decode, make_codec
from fedglm.compression.updates import DenseUpdate, SparseUpdate
from fedglm.server.aggregation.fixed_point import FRACTION_BITS, FixedPointMean, compute_public_weights

floats = st.floats(-1000, 1000, width=32)


@st.composite
def rounds(draw):
    """Some coded updates of one size and their public weights, in two orders."""
    size, count = draw(st.integers(1, 40)), draw(st.integers(1, 7))
    names = draw(
        st.lists(st.sampled_from(["dense-fp32", "topk-fp16", "topk-sign", "int8"]), min_size=count, max_size=count)
    )
    updates = []
    for name in names:
        vector = draw(arrays(np.float32, size, elements=floats))
        updates.append(decode(make_codec(name).encode(vector), size=size))
    examples = draw(st.lists(st.integers(1, 10**6), min_size=count, max_size=count))
    weights = list(compute_public_weights({str(i): n for i, n in enumerate(examples)}, cap=50).values())
    return size, updates, weights, draw(st.permutations(range(count)))


def folded(size, updates, weights, order):
    mean = FixedPointMean(size, terms=len(updates))
    for index in order:
        mean.add(updates[index], weights[index])
    return mean.mean()


@settings(max_examples=60, deadline=None)
@given(rounds())
def test_the_same_bits_in_every_order_and_close_to_the_float64_mean(case):
    size, updates, weights, order = case
    mean = folded(size, updates, weights, range(len(updates)))
    assert mean.dtype == np.float32
    assert folded(size, updates, weights, order).tobytes() == mean.tobytes()
    exact = np.average([update.to_dense().astype(np.float64) for update in updates], axis=0, weights=weights)
    # 1e-9 before the mean is rounded to float32; a weight of 1/50 spends some of the 40 binary places.
    np.testing.assert_allclose(mean, exact, atol=1e-9, rtol=2.0**-23)


def test_a_float_sum_would_depend_on_the_order():
    """The reason for fixed point, on the same values."""
    values = np.array([1e8, 1.0, -1e8], np.float32)
    assert (values[0] + values[1]) + values[2] != (values[0] + values[2]) + values[1]


def test_the_sum_is_fine_over_many_nodes():
    mean = FixedPointMean(3, terms=10_000)
    update = DenseUpdate(np.array([1e-6, -0.1, 100.0], np.float32))
    for _ in range(10_000):
        mean.add(update, 1.0)
    np.testing.assert_allclose(mean.mean(), update.values, rtol=1e-6)


def untouched_by(update, weight=1.0, *, terms=2, match):
    mean = FixedPointMean(2, terms=terms)
    mean.add(DenseUpdate(np.array([1.0, 2.0], np.float32)), 1.0)
    with pytest.raises(CodecError, match=match):
        mean.add(update, weight)
    assert mean.mean().tolist() == [1.0, 2.0]


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf, 3e38, -3e38])
@pytest.mark.parametrize("sparse", [False, True])
def test_what_is_not_finite_or_too_large_leaves_the_sum_untouched(poison, sparse):
    values = np.array([1.0, poison], np.float32)
    update = SparseUpdate(2, np.array([0, 1]), values) if sparse else DenseUpdate(values)
    untouched_by(update, match="not finite or beyond the limit")


@pytest.mark.parametrize("size", [1, 3])
def test_another_size_leaves_the_sum_untouched(size):
    untouched_by(DenseUpdate(np.ones(size, np.float32)), match=f"the update has {size} values, the model 2")


@given(st.integers(1, 100_000), st.sampled_from([1.0, 0.5, 2.0**-20]))
@settings(max_examples=30, deadline=None)
def test_the_limit_keeps_any_number_of_terms_from_overflowing(terms, weight):
    limit = 2.0**62 / 2.0**FRACTION_BITS / terms / weight
    largest = np.nextafter(np.float32(limit), np.float32(0))
    mean = FixedPointMean(1, terms=terms)
    mean.add(DenseUpdate(np.array([largest])), weight)
    total = int(mean._sum[0]) * terms  # an overflow cannot be seen from outside before it happens
    assert total < 2**63
    with pytest.raises(CodecError, match="beyond the limit"):
        mean.add(DenseUpdate(np.array([limit * 1.01], np.float32)), weight)


# --- weights


@given(st.dictionaries(st.text(max_size=3), st.integers(1, 2**40 - 1), min_size=1, max_size=8), st.floats(1, 1e4))
def test_public_weights_keep_to_the_cap_and_to_the_order(examples, cap):
    weights = compute_public_weights(examples, cap)
    assert weights.keys() == examples.keys()
    assert max(weights.values()) == 1.0
    assert max(weights.values()) / min(weights.values()) <= cap
    assert all((weight * 2**20).is_integer() for weight in weights.values())
    by_count = sorted(examples, key=lambda name: examples[name])
    assert [weights[name] for name in by_count] == sorted(weights.values())


def test_public_weights_below_the_cap_are_in_proportion():
    assert compute_public_weights({"a": 25, "b": 100, "c": 50}, cap=10) == {"a": 0.25, "b": 1.0, "c": 0.5}
    assert compute_public_weights({"a": 1, "b": 10**9}, cap=4) == pytest.approx({"a": 0.25, "b": 1.0}, abs=2**-19)


@pytest.mark.parametrize("lie", [1, 2**40])
def test_one_false_count_moves_no_other_weight(lie):
    honest = {"a": 100, "b": 200, "c": 300}
    true, false = (compute_public_weights(honest | {"liar": count}, cap=10) for count in (200, lie))
    ratios = [(weights["a"] / weights["c"], weights["b"] / weights["c"]) for weights in (true, false)]
    assert ratios[1] == pytest.approx(ratios[0], abs=2**-16)
