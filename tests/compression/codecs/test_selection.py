"""The largest magnitudes: the selection against its definition, and each kernel against a numpy twin."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedglm.compression.codecs.selection import count_kept, select_largest, select_largest_compensated
from fedglm.compression.kernels import scatter
from fedglm.compression.kernels import selection as kernels

LARGEST_FLOAT = float(np.finfo(np.float32).max)
ALL_FLOATS = st.floats(width=32, allow_subnormal=True)
AWKWARD = st.sampled_from([0.0, -0.0, 1e-45, -1e-45, 1e-38, 1.0, -1.0, 1.0000001, LARGEST_FLOAT, -LARGEST_FLOAT])
FINITE = st.floats(-(2.0**100), 2.0**100, width=32) | AWKWARD
SIZES = st.integers(1, 200)


def numbers(elements, sizes=SIZES):
    return sizes.flatmap(lambda size: arrays(np.float32, size, elements=elements))


def top(vector, count):
    """The definition: sort by magnitude, then by index; keep `count`; drop zeros."""
    order = np.lexsort((np.arange(vector.size), -np.abs(vector)))[:count]
    return np.sort(order[vector[order] != 0])


def magnitude_bits(vector):
    return vector.view(np.int32) & 0x7FFFFFFF


def collect_twin(vector, threshold, ties):
    bits = magnitude_bits(vector)
    equal = np.flatnonzero(bits == threshold)[:ties]
    positions = np.sort(np.concatenate((np.flatnonzero(bits > threshold), equal)))
    return positions, vector[positions]


def nth_largest_twin(vector, rank):
    bits = magnitude_bits(vector)
    threshold_bits = np.sort(bits)[-rank]
    return threshold_bits, rank - np.count_nonzero(bits > threshold_bits)


def sample_twin(delta, residual, factor, count):
    edges = np.arange(count + 1) * delta.size // count
    hashes = np.arange(count) * 0x9E3779B1 & 0xFFFFFFFF
    positions = edges[:-1] + (hashes * np.diff(edges) >> 32)
    return delta[positions] + residual[positions] * factor if residual.size else delta[positions]


def keep_twin(positions, values, threshold, ties):
    at, _ = collect_twin(values, threshold, ties)
    return positions[at], values[at]


def add_at_twin(accumulator, positions, terms):
    if not ((positions >= 0) & (positions < accumulator.size)).all():
        return accumulator, False
    total = accumulator.copy()
    total[positions] += terms
    return total, True


def room(count):
    return np.full(count, -1, np.int64), np.full(count, np.nan, np.float32)


def first_lines(vector):
    """Elements before the first multiple of the alignment."""
    return -vector.ctypes.data % kernels.ALIGNMENT // 4


def written(count, positions, values, expected):
    """What has been written is the start of what was expected, and all of it is counted."""
    at, those = expected
    fit = min(at.size, positions.size)
    assert count == at.size
    assert positions[:fit].tolist() == at[:fit].tolist()
    assert np.array_equal(values[:fit], those[:fit], equal_nan=True)
    assert (positions[fit:] == -1).all()


thresholds = st.integers(1, 0x7FFFFFFF) | ALL_FLOATS.map(lambda number: int(magnitude_bits(np.float32([number]))[0]))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@given(st.data(), numbers(ALL_FLOATS | AWKWARD), thresholds, st.floats(0, 1, width=32), st.integers(0, 20))
def test_compensate_is_its_twin(data, delta, threshold, factor, capacity):
    residual = data.draw(arrays(np.float32, delta.size, elements=ALL_FLOATS))
    offset = data.draw(st.integers(0, 20))
    out = np.zeros(delta.size + offset, np.float32)[offset:]
    positions, values = room(capacity)
    factor = np.float32(factor)
    count = kernels.compensate(delta, residual, factor, np.int32(threshold), first_lines(out), out, positions, values)
    expected = delta + residual * factor
    numeric = ~np.isnan(expected)  # which NaN an operation gives is not defined
    assert out[numeric].tobytes() == expected[numeric].tobytes()
    assert np.isnan(out[~numeric]).all()
    written(count, positions, values, collect_twin(out, threshold, out.size))


@given(numbers(ALL_FLOATS | AWKWARD), thresholds, st.integers(0, 20), st.integers(0, 20))
def test_collect_is_its_twin(vector, threshold, ties, capacity):
    positions, values = room(capacity)
    count = kernels.collect(vector, np.int32(threshold), ties, positions, values)
    written(count, positions, values, collect_twin(vector, threshold, ties))


@given(numbers(ALL_FLOATS | AWKWARD), st.data())
def test_nth_largest_is_its_twin(vector, data):
    rank = data.draw(st.integers(1, vector.size))
    assert kernels.nth_largest(vector, rank) == nth_largest_twin(vector, rank)


@given(numbers(ALL_FLOATS | AWKWARD), st.data())
def test_keep_is_its_twin(values, data):
    threshold = int(magnitude_bits(values)[data.draw(st.integers(0, values.size - 1))])
    ties = data.draw(st.integers(0, 10))
    positions = np.arange(values.size) * 3
    expected = keep_twin(positions, values, threshold, ties)
    count = kernels.keep(positions, values, np.int32(threshold), ties)
    assert positions[:count].tolist() == expected[0].tolist()
    assert values[:count].tobytes() == expected[1].tobytes()


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
@given(numbers(FINITE), numbers(FINITE), st.data())
def test_sample_is_its_twin(delta, residual, data):
    residual = np.resize(residual, delta.size) if data.draw(st.booleans()) else residual[:0]
    out = np.empty(data.draw(st.integers(1, delta.size)), np.float32)
    kernels.sample(delta, residual, np.float32(0.5), out)
    assert out.tobytes() == sample_twin(delta, residual, np.float32(0.5), out.size).tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
@given(positions=st.sets(st.integers(-2, 41), max_size=40))
def test_add_at_is_its_twin(dtype, positions):
    positions = np.array(sorted(positions), np.int64)
    accumulator, terms = np.arange(40).astype(dtype), (positions * 3 + 1).astype(dtype)
    expected, inside = add_at_twin(accumulator, positions, terms)
    assert scatter.add_at(accumulator, positions, terms) == inside
    assert accumulator.tobytes() == expected.tobytes()


def both_ways(vector, count, residual=None, factor=1.0):
    """The selection, alone and with a residual, which must agree."""
    residual = np.zeros_like(vector) if residual is None else residual
    out = np.empty_like(vector)
    fused = select_largest_compensated(vector, residual, np.float32(factor), count, out)
    update = vector + residual * np.float32(factor)
    assert out.tobytes() == update.tobytes()
    alone = select_largest(update, count)
    assert alone.positions.tolist() == fused.positions.tolist()
    assert alone.values.tobytes() == fused.values.tobytes() == update[alone.positions].tobytes()
    return alone.positions, update


@given(st.data(), numbers(FINITE))
def test_any_vector(data, vector):
    residual = data.draw(arrays(np.float32, vector.size, elements=FINITE.filter(lambda number: abs(number) < 1e38)))
    vector = np.clip(vector, -(2.0**126), 2.0**126)
    count = data.draw(st.integers(1, vector.size))
    positions, update = both_ways(vector, count, residual, data.draw(st.floats(0, 1, width=32)))
    assert positions.tolist() == top(update, count).tolist()
    assert positions.dtype == np.int64


LONG = 100_000
INDEX = np.arange(LONG)
RANDOM = np.random.default_rng(11).standard_normal(LONG).astype(np.float32)
PATTERNS = {
    "normal": RANDOM,
    "heavy tails": RANDOM / np.roll(RANDOM, 1),
    "subnormal": RANDOM * np.float32(1e-42),
    "all zero": np.zeros(LONG, np.float32),
    "all equal": np.full(LONG, -1, np.float32),
    "three magnitudes": np.sign(RANDOM) * (INDEX % 3).astype(np.float32),
    "one element": (INDEX == 70_001).astype(np.float32),
    "one in two thousand": np.where(INDEX % 2000 == 999, RANDOM, 0),
    "ascending": INDEX.astype(np.float32),
    "descending": -INDEX[::-1].astype(np.float32),
    "all at the end": np.where(INDEX > LONG - 1500, RANDOM, RANDOM * np.float32(1e-3)),
    "rows": np.where(INDEX % 128 == 5, RANDOM * 10, RANDOM),
    "signed zeros": np.where(INDEX % 2, np.float32(-0.0), np.where(INDEX % 3, 0, RANDOM)),
}


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize(
    "density", [1e-6, 0.01, 0.3, 1, *(pytest.param(density, marks=pytest.mark.slow) for density in (0.001, 0.999))]
)
def test_long_vectors(name, density):
    vector = PATTERNS[name].astype(np.float32)
    count = count_kept(density, LONG)
    positions, _ = both_ways(vector, count)
    assert positions.tolist() == top(vector, count).tolist()


def test_what_no_sample_sees():
    """Large elements only where the sample does not look, small ones only where it does, and the reverse."""
    size = 20_000
    seen = np.zeros(size, bool)
    marked = sample_twin(np.arange(size).astype(np.float32), np.empty(0, np.float32), np.float32(0), 1 << 14)
    seen[marked.astype(np.int64)] = True
    for vector in (np.where(seen, 1, 2), np.where(seen, 2, 1), np.where(seen, 0, 2), np.where(seen, 2, 0)):
        for count in (1, 100, 3000, 16_500, size):
            positions, _ = both_ways(vector.astype(np.float32), count)
            assert positions.tolist() == top(vector, count).tolist()


@pytest.mark.parametrize("size", [1, 31, 32, 33, 16_383, 16_384, 16_385, 32_767, 32_768])
def test_sizes_around_the_edges(size):
    vector = np.resize(RANDOM, size)
    for count in {1, max(1, size // 100), size}:
        positions, _ = both_ways(vector, count)
        assert positions.tolist() == top(vector, count).tolist()


@pytest.mark.parametrize("poison", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 40_000, LONG - 1])
@pytest.mark.parametrize("base", ["normal", "all equal", "all zero"])
def test_poison_is_named(poison, at, base):
    vector = PATTERNS[base].copy()
    vector[at] = poison
    residual, out = np.ones(LONG, np.float32), np.empty(LONG, np.float32)
    for count in (1, 1000, LONG):
        with pytest.raises(ValueError, match=f"the update holds -?{abs(poison)} at position {at}"):
            select_largest(vector, count)
        with pytest.raises(ValueError, match=f"the delta holds -?{abs(poison)} at position {at}"):
            select_largest_compensated(vector, residual, np.float32(1), count, out)


def test_poison_everywhere():
    with pytest.raises(ValueError, match="nan at position 0"):
        select_largest(np.full(LONG, np.nan, np.float32), 5)


def test_overflow_is_named():
    vector = np.zeros(LONG, np.float32)
    vector[777] = LARGEST_FLOAT
    with pytest.raises(ValueError, match="the delta with its residual holds inf at position 777"):
        select_largest_compensated(vector, vector.copy(), np.float32(1), 10, np.empty_like(vector))


def test_any_memory():
    """Strided, unaligned and read-only vectors give what their copies give; `out` must be a plain vector."""
    base = RANDOM[:50_000].copy()
    unaligned = np.frombuffer(b"x" + base.tobytes(), np.float32, offset=1)
    strided = np.repeat(base, 2)[::2]
    expected = select_largest(base, 500).positions.tolist()
    for vector in (unaligned, strided):
        assert not (vector.flags.aligned and vector.flags.c_contiguous)
        assert both_ways(vector, 500)[0].tolist() == expected
    base.flags.writeable = False
    assert both_ways(base, 500)[0].tolist() == expected
    for out in (np.empty(49_999, np.float32), np.empty(50_000), np.empty(100_000, np.float32)[::2], base):
        with pytest.raises(ValueError, match="contiguous float32 vector"):
            select_largest_compensated(strided, base, np.float32(1), 5, out)
