"""The low-rank codecs: what they keep, what they cost, and that both ends rebuild the same bits."""

import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedglm.compression.codec import CodecError, decode, make_codec
from fedglm.compression.feedback import ErrorFeedback
from fedglm.compression.layout import Layout
from fedglm.compression.lowrank.factors import Factors, Frame
from fedglm.compression.lowrank.water_filling import Analysis
from fedglm.compression.positions import geometry
from fedglm.compression.wire.envelope import Reader, varint, wrap_update

LAYOUT = Layout(("embed", "norm", "up", "bias", "down"), ((96, 40), (40,), (160, 40), (160,), (40, 160)))
CODECS = ("lowrank", "hybrid")


def normal(*shape, seed=3):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def energy_kept(vector, values):
    return 1 - float(np.square(vector - values, dtype=np.float64).sum() / np.square(vector, dtype=np.float64).sum())


def structured(seed=1, noise=0.05):
    """An update of which most is rank 3 in every matrix."""
    parts = []
    for index, shape in enumerate(LAYOUT.shapes):
        if len(shape) == 2:
            low = normal(shape[0], 3, seed=seed + index) @ normal(3, shape[1], seed=seed + 10 + index)
            parts.append((low + noise * normal(*shape, seed=seed + 20 + index)).ravel())
        else:
            parts.append(normal(*shape, seed=seed + index))
    return np.concatenate(parts).astype(np.float32) * np.float32(1e-4)


def test_a_matrix_of_the_rank_is_kept():
    layout = Layout(("w",), ((200, 90),))
    vector = (normal(200, 4) @ normal(4, 90, seed=5)).ravel()
    codec = make_codec("lowrank", rank=4, layout=layout)
    blob = codec.encode(vector)
    values = codec.decode(blob, size=vector.size).to_dense()
    assert energy_kept(vector, values) > 0.95
    assert np.linalg.matrix_rank(values.reshape(200, 90)) <= 4
    assert len(blob) < 4 * (200 + 90)  # less than a byte an entry of the factors


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_one_matrix_gets_no_more_than_the_rank(rank):
    layout = Layout(("w",), ((64, 48),))
    vector = normal(64 * 48)
    values = decode(make_codec("lowrank", rank=rank, layout=layout).encode(vector), size=vector.size).to_dense()
    assert np.linalg.matrix_rank(values.reshape(64, 48)) == rank


def test_the_rank_is_shared_out_by_what_directions_explain():
    layout = Layout(("strong", "weak"), ((80, 80), (80, 80)))
    strong = 10 * normal(80, 8) @ normal(8, 80, seed=4)
    vector = np.concatenate([strong.ravel(), 0.01 * normal(6400, seed=9)])
    values = decode(make_codec("lowrank", rank=4, layout=layout).encode(vector), size=vector.size).to_dense()
    assert np.linalg.matrix_rank(values[:6400].reshape(80, 80)) == 8
    assert not values[6400:].any()


def test_more_rank_keeps_more():
    vector = structured(noise=1.0)
    kept = [
        energy_kept(
            vector, decode(make_codec("lowrank", rank=rank, layout=LAYOUT).encode(vector), size=vector.size).to_dense()
        )
        for rank in (1, 3, 8, 20)
    ]
    assert kept == sorted(kept)
    assert kept[0] > 0.2
    assert kept[-1] > 0.85


@pytest.mark.parametrize("name", CODECS)
def test_far_less_error_for_the_bytes_than_the_largest_elements(name):
    vector = structured()
    blob = make_codec(name, max_bytes=2500, layout=LAYOUT).encode(vector)
    sparse = make_codec("topk-sign", density=0.36, layout=LAYOUT).encode(vector)
    assert len(sparse) > 0.9 * len(blob)
    left = 1 - energy_kept(vector, decode(blob, size=vector.size).to_dense())
    assert left < 0.1 * (1 - energy_kept(vector, decode(sparse, size=vector.size).to_dense()))


def test_the_rest_is_worth_sending_where_it_is_spiky():
    vector = structured(noise=0.01)
    spikes = np.random.default_rng(8).choice(vector.size, 100, replace=False)
    vector[spikes] += np.float32(5e-3)
    plain, hybrid = (make_codec(name, max_bytes=3000, layout=LAYOUT).encode(vector) for name in CODECS)
    kept = [energy_kept(vector, decode(blob, size=vector.size).to_dense()) for blob in (plain, hybrid)]
    assert kept[1] > kept[0]


@pytest.mark.parametrize("name", CODECS)
@settings(max_examples=25)
@given(budget=st.integers(400, 40_000), seed=st.integers(0, 5), noise=st.sampled_from([0.0, 0.05, 1.0]))
def test_the_budget_holds(name, budget, seed, noise):
    vector = structured(seed, noise)
    blob = make_codec(name, max_bytes=budget, layout=LAYOUT).encode(vector)
    assert len(blob) <= budget
    if noise == 1.0 and budget > 1000:
        assert len(blob) > 0.9 * budget


def test_a_budget_that_is_too_small():
    layout = Layout(tuple(f"w{index}" for index in range(200)), tuple((5, 5 + index) for index in range(200)))
    with pytest.raises(CodecError, match="budget of 64 bytes is too small: this layout takes"):
        make_codec("lowrank", max_bytes=64, layout=layout).encode(normal(layout.size))


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("scale", [1e-42, 1e-36, 1e-30, 1e-7, 1.0, 1e30, 3e38])
def test_any_magnitude_with_a_layout(name, scale):
    vector = (np.clip(structured() * 1e4 / 12, -1, 1) * np.float32(scale)).astype(np.float32)
    values = decode(make_codec(name, rank=3, layout=LAYOUT).encode(vector), size=vector.size).to_dense()
    assert np.isfinite(values).all()
    nonzero = np.abs(values[values != 0])
    assert not nonzero.size or nonzero.min() >= np.finfo(np.float32).tiny
    if 1e-31 < scale < 1e36:
        assert energy_kept(vector / np.float32(scale), values / np.float32(scale)) > 0.8


@pytest.mark.parametrize("name", CODECS)
def test_a_layout_of_another_size(name):
    with pytest.raises(ValueError, match="elements"):
        make_codec(name, layout=LAYOUT).encode(np.ones(7, np.float32))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"rank": 0}, "rank"),
        ({"rank": True}, "rank"),
        ({"rank": "4"}, "rank"),
        ({"max_bytes": 1.5}, "max_bytes"),
        ({"max_bytes": 3}, "64"),
    ],
)
def test_wrong_options(options, reason):
    with pytest.raises(CodecError, match=reason):
        make_codec("lowrank", **options)


def test_matrices_that_are_no_plain_rows():
    layout = Layout(("conv", "scalar", "thin"), ((8, 3, 3, 3), (), (500, 2)))
    vector = normal(layout.size)
    values = decode(make_codec("lowrank", rank=8, layout=layout).encode(vector), size=layout.size).to_dense()
    assert energy_kept(vector, values) > 0.5


def test_the_sum_of_the_factors_is_exact():
    frame = Frame([(12, 9), (1, 5), (6, 14)])
    vector = normal(frame.size) * np.float32(3e-5)
    analysis = Analysis(vector, frame, 4)
    factors = analysis.quantize(analysis.step_for_rank(3.0))
    at = component = 0
    for (start, rows, columns), count in zip(frame.matrices, factors.counts, strict=True):
        total = [[Fraction(0)] * columns for _ in range(rows)]
        for _ in range(count):
            short, long = min(rows, columns), max(rows, columns)
            q, p = factors.levels[at : at + short].tolist(), factors.levels[at + short : at + short + long].tolist()
            left, right = (p, q) if rows >= columns else (q, p)
            unit = Fraction(2) ** int(factors.step - factors.octaves[component])
            total = [[total[i][j] + unit * left[i] * right[j] for j in range(columns)] for i in range(rows)]
            at += short + long
            component += 1
        rebuilt = factors.to_vector(frame)[start : start + rows * columns].reshape(rows, columns)
        assert count > 0
        assert all(np.float32(float(total[i][j])) == rebuilt[i, j] for i in range(rows) for j in range(columns))


@settings(max_examples=60)
@given(st.data())
def test_any_factors_survive_the_code(data):
    shapes = data.draw(st.lists(st.tuples(st.integers(1, 14), st.integers(1, 14)), min_size=1, max_size=5))
    frame = Frame(shapes)
    counts = [data.draw(st.integers(0, int(limit))) for limit in frame.limits]
    octaves = [
        k
        for count in counts
        for k in sorted(data.draw(st.lists(st.integers(0, 31), min_size=count, max_size=count)), reverse=True)
    ]
    plain = [data.draw(st.integers(0, 15)) for _ in frame.plain]
    entries = sum(count * int(side.sum()) for count, side in zip(counts, frame.sides, strict=True))
    entries += sum(int(length) for length, kind in zip(frame.lengths, plain, strict=True) if kind)
    numbers = st.one_of(st.integers(-3, 3), st.integers(-(2**24) + 1, 2**24 - 1))
    levels = np.array(data.draw(st.lists(numbers, min_size=entries, max_size=entries)), np.int32)
    # A factor of zeros alone is no component, and none is coded.
    lengths = [int(side) for count, sides in zip(counts, frame.sides, strict=True) for side in (*sides[::-1],) * count]
    lengths += [int(length) for length, kind in zip(frame.lengths, plain, strict=True) if kind]
    for part in np.split(levels, np.cumsum(lengths)[:-1]) if lengths else []:
        part[0] = part[0] or 1
    factors = Factors(
        data.draw(st.integers(-126, 127)),
        np.array(counts, np.int64),
        np.array(octaves, np.int64),
        np.array(plain, np.int64),
        levels,
    )
    decoded = Factors.unpack(Reader(memoryview(factors.pack(frame))), frame)
    assert decoded.step == factors.step
    for name in ("counts", "octaves", "plain", "levels"):
        assert getattr(decoded, name).tolist() == getattr(factors, name).tolist()


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("side", [600, 1 << 20])
def test_a_few_bytes_cannot_claim_many_components(name, side):
    size = side * side
    head = geometry.pack(geometry.to_shapes(Layout(("w",), ((side, side),)), size))
    for code in (b"", b"\1", b"\xff" * 8, bytes(range(1, 9)), b"\0\0\0\0\1"):
        inner = b"\0" + code
        payload = inner if name == "lowrank" else varint(len(inner)) + inner + varint(0) + bytes(4) + b"\0"
        tracemalloc.start()
        try:
            decoded = decode(wrap_update(make_codec(name).wire_id, size, head, payload), size=size).to_dense()
            assert side == 600
            assert np.linalg.matrix_rank(decoded.reshape(side, side)) <= 4 * (len(code) + 32)
        except CodecError:
            assert tracemalloc.get_traced_memory()[1] < 20_000_000
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("budget", [80, 120, 300])
def test_the_smallest_budgets_hold_for_any_update(name, budget):
    layout = Layout(("w",), ((300, 5),))
    for seed in range(20):
        assert len(make_codec(name, max_bytes=budget, layout=layout).encode(normal(1500, seed=seed))) <= budget


@pytest.mark.parametrize("name", CODECS)
def test_magnitudes_near_the_end_of_float32_leave_a_finite_residual(name):
    layout = Layout(("w",), ((60, 60),))
    largest = np.float32(1e38)
    for vector in (np.full(3600, largest), np.where(np.arange(3600) % 7, largest, -largest)):
        feedback = ErrorFeedback(3600)
        feedback.encode(make_codec(name, layout=layout), vector.astype(np.float32))
        feedback.commit()
        assert np.isfinite(feedback.residual).all()
