"""Every codec's laws: round trip, exact k, ties, determinism, options, golden blobs."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedglm.compression.codec import CodecError, codec_names, codec_options, decode, make_codec
from fedglm.compression.downlink import vector_sha256
from fedglm.compression.layout import Layout

GOLDEN = Path(__file__).parents[2] / "golden"
SPARSE = ("topk-fp16", "topk-sign", "topk-2bit", "topk-int8")
DENSE = ("dense-fp32", "dense-fp16", "int8")
LOW_RANK = ("lowrank", "hybrid")
OPTIONS = {
    "topk-sign": ("density", "max_bytes", "coder", "overshoot"),
    "lowrank": ("rank", "max_bytes"),
    "hybrid": ("rank", "density", "max_bytes", "coder"),
}

floats = st.floats(allow_nan=False, allow_infinity=False, width=32)
vectors = arrays(np.float32, st.integers(1, 80), elements=floats)
densities = st.floats(0.001, 1)


def normal(size, scale=1.0, seed=3):
    return (np.random.default_rng(seed).standard_normal(size) * scale).astype(np.float32)


def decoded(codec, vector):
    return codec.decode(codec.encode(vector), size=vector.size)


def top_positions(vector, density):
    """The definition: sort by magnitude, then by index; keep k; drop zeros."""
    count = max(1, round(density * vector.size))
    order = sorted(range(vector.size), key=lambda index: (-abs(vector[index]), index))[:count]
    return sorted(index for index in order if vector[index] != 0)


@pytest.mark.parametrize("name", codec_names())
@given(vector=vectors)
def test_blobs_are_deterministic_and_describe_themselves(name, vector):
    codec = make_codec(name)
    blob = codec.encode(vector)
    assert blob == codec.encode(vector.copy())
    own, any_ = codec.decode(blob, size=vector.size), decode(blob, size=vector.size)
    assert own.size == any_.size == vector.size
    assert own.to_dense().tobytes() == any_.to_dense().tobytes()
    assert own.to_dense().dtype == np.float32
    assert np.isfinite(own.to_dense()).all()
    assert own.max_abs() == np.abs(own.to_dense()).max()
    assert own.norm() == pytest.approx(np.linalg.norm(own.to_dense().astype(np.float64)))


@given(vectors)
def test_dense_fp32_is_exact(vector):
    assert decoded(make_codec("dense-fp32"), vector).to_dense().tobytes() == vector.tobytes()


@given(vectors)
def test_dense_fp16_keeps_eleven_bits(vector):
    values = decoded(make_codec("dense-fp16"), vector).to_dense().astype(np.float64)
    spacing = np.maximum(np.abs(vector.astype(np.float64)) * 2.0**-10, float(np.abs(vector).max()) * 2.0**-38)
    assert (np.abs(values - vector) <= np.maximum(spacing, 2.0**-126)).all()


@given(vectors)
def test_int8_is_within_half_a_level(vector):
    values = decoded(make_codec("int8"), vector).to_dense().astype(np.float64)
    peak = float(np.abs(vector).max())
    assert (np.abs(values - vector) <= max(peak / 127 * 0.5001, 127 * 2.0**-126) + peak * 0.01 * (peak > 2e38)).all()


@pytest.mark.parametrize("name", SPARSE)
@given(vector=vectors, density=densities)
def test_exactly_the_largest_with_ties_to_the_lower_index(name, vector, density):
    update = decoded(make_codec(name, density=density), vector)
    assert update.positions.tolist() == top_positions(vector, density)
    assert update.positions.dtype == np.int64
    assert update.values.dtype == np.float32
    rebuilt = np.zeros(vector.size, np.float32)
    rebuilt[update.positions] = update.values
    assert rebuilt.tobytes() == update.to_dense().tobytes()


@pytest.mark.parametrize("name", SPARSE)
@given(signs=arrays(np.int8, st.integers(1, 60), elements=st.sampled_from([-2, -1, 1, 2])), density=densities)
def test_ties_among_few_magnitudes(name, signs, density):
    vector = signs.astype(np.float32)
    update = decoded(make_codec(name, density=density), vector)
    assert update.positions.tolist() == top_positions(vector, density)
    assert update.positions.size == max(1, round(density * vector.size))


@given(vectors, densities)
def test_topk_fp16_values(vector, density):
    update = decoded(make_codec("topk-fp16", density=density), vector)
    sent = vector[update.positions].astype(np.float64)
    spacing = np.maximum(np.abs(sent) * 2.0**-10, float(np.abs(vector).max()) * 2.0**-38)
    assert (np.abs(update.values - sent) <= np.maximum(spacing, 2.0**-126)).all()


@given(vectors, densities)
def test_topk_sign_values(vector, density):
    update = decoded(make_codec("topk-sign", density=density), vector)
    sent = vector[update.positions]
    if sent.size and update.max_abs() > 0:
        assert update.max_abs() == pytest.approx(float(np.abs(sent).mean(dtype=np.float64)), rel=1e-6)
        assert ((update.values < 0) == (sent < 0)).all()


@given(vectors, densities)
def test_topk_int8_values(vector, density):
    update = decoded(make_codec("topk-int8", density=density), vector)
    dense = decoded(make_codec("int8"), vector[update.positions]) if update.positions.size else update
    assert update.values.tobytes() == (dense.values if update.positions.size else update.values).tobytes()


def best_two_levels(magnitudes):
    """The least squared error of two levels: of all ways to cut the sorted magnitudes in two."""
    magnitudes = np.sort(magnitudes.astype(np.float64))
    return min(
        sum(float(np.square(part - part.mean()).sum()) for part in (magnitudes[:cut], magnitudes[cut:]) if part.size)
        for cut in range(magnitudes.size)
    )


@pytest.mark.parametrize("seed", range(5))
def test_topk_2bit_sends_the_best_two_magnitudes(seed):
    vector = normal(4000, 1e-3, seed)
    update = decoded(make_codec("topk-2bit", density=0.05), vector)
    sent = vector[update.positions]
    assert np.unique(np.abs(update.values)).size == 2
    assert ((update.values < 0) == (sent < 0)).all()
    error = float(np.square(update.values.astype(np.float64) - sent).sum())
    assert error <= 1.01 * best_two_levels(np.abs(sent))
    one = decoded(make_codec("topk-sign", density=0.05), vector)
    assert error < 0.4 * float(np.square(one.values.astype(np.float64) - sent).sum())


@given(st.lists(st.sampled_from([-2.0, -1.0, 1.0, 2.0]), min_size=1, max_size=40))
def test_topk_2bit_keeps_two_magnitudes_as_they_are(numbers):
    vector = np.array(numbers, np.float32)
    assert decoded(make_codec("topk-2bit", density=1), vector).to_dense().tolist() == numbers


@pytest.mark.parametrize("name", codec_names())
@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e-7, 1.0, 1e30, 3e38])
def test_any_magnitude(name, scale):
    vector = np.clip(normal(5000) / 5, -1, 1) * np.float32(scale)
    values = decoded(make_codec(name), vector).to_dense()
    assert np.isfinite(values).all()
    nonzero = np.abs(values[values != 0])
    if name != "dense-fp32":
        assert not nonzero.size or nonzero.min() >= np.finfo(np.float32).tiny  # no subnormals, flushed on some machines
    if scale > 1e-35:
        assert nonzero.size >= 50


@pytest.mark.parametrize("name", codec_names())
def test_extremes(name):
    largest = np.finfo(np.float32).max
    for vector in ([0.0], [-0.0, 0.0], [largest, -largest], [1e-45], [largest, 1e-45, 0.0]):
        values = decoded(make_codec(name), np.array(vector, np.float32)).to_dense()
        assert np.isfinite(values).all()
    assert (decoded(make_codec(name), np.zeros(3000, np.float32)).to_dense() == 0).all()


@pytest.mark.parametrize("name", codec_names())
@pytest.mark.parametrize(
    ("vector", "reason"),
    [
        (np.zeros(0, np.float32), "empty"),
        (np.array([1, np.nan], np.float32), "nan at position 1"),
        (np.array([np.inf], np.float32), "inf at position 0"),
        (np.zeros(3), "float64"),
        (np.zeros((2, 2), np.float32), r"\(2, 2\)"),
        ([1.0], "list"),
    ],
)
def test_what_cannot_be_coded_is_named(name, vector, reason):
    with pytest.raises(ValueError, match=reason):
        make_codec(name).encode(vector)


@pytest.mark.parametrize("name", codec_names())
def test_a_strided_vector_is_coded_like_its_copy(name):
    vector = normal(4000)[::2]
    assert make_codec(name).encode(vector) == make_codec(name).encode(vector.copy())


@pytest.mark.parametrize(
    ("name", "density", "bits"),
    [
        ("dense-fp32", None, 32.01),
        ("dense-fp16", None, 16.02),
        ("int8", None, 8.05),
        ("topk-fp16", 0.01, 0.245),
        ("topk-sign", 0.01, 0.093),
        ("topk-sign", 0.05, 0.345),
        ("topk-2bit", 0.01, 0.103),
        ("topk-int8", 0.01, 0.164),
    ],
)
def test_sizes(name, density, bits):
    vector = normal(200_000, 1e-4)
    blob = make_codec(name, **({} if density is None else {"density": density})).encode(vector)
    assert 8 * len(blob) / vector.size <= bits


def test_the_smallest_blob():
    assert len(make_codec("topk-sign").encode(np.ones(1, np.float32))) == 19


def test_names_and_options():
    assert codec_names() == (*DENSE, *SPARSE, *LOW_RANK)
    layout = Layout(("w",), ((4, 5),))
    for name in codec_names():
        codec = make_codec(name, layout=layout)
        assert codec.name == name
        assert decoded(codec, normal(20)).size == 20
        assert codec_options(name) == OPTIONS.get(name, ("density", "max_bytes", "coder") if name in SPARSE else ())
    assert make_codec("topk-sign", density=1) == make_codec("topk-sign", density=1.0)
    numbers = {"rank": np.int64(2), "max_bytes": np.int64(300), "density": np.float32(0.25)}
    assert decoded(make_codec("hybrid", layout=layout, **numbers), normal(20)).size == 20


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("topk-sing", {}, "did you mean topk-sign"),
        ("zip", {}, "did you mean dense-fp32 or"),
        ("topk-sign", {"densty": 0.1}, "'densty'; did you mean density"),
        ("int8", {"density": 0.1}, "it has none"),
        ("topk-sign", {"density": 0}, "density"),
        ("topk-sign", {"density": 1.5}, "density"),
        ("topk-sign", {"density": float("nan")}, "density"),
        ("topk-sign", {"density": True}, "density"),
        ("topk-sign", {"density": "0.1"}, "density"),
        ("topk-2bit", {"coder": "fats"}, "coder is smallest or fast, not 'fats'"),
        ("hybrid", {"coder": "fats"}, "coder is smallest or fast, not 'fats'"),
        ("int8", {"coder": "fast"}, "it has none"),
        ("topk-fp16", {"overshoot": 1.5}, "'overshoot'; did you mean"),
        ("topk-sign", {"overshoot": 2.5}, "overshoot is a number from 1 to 2"),
        ("topk-sign", {"max_bytes": 10}, "max_bytes is a whole number from 64"),
    ],
)
def test_wrong_names_and_options(name, options, reason):
    with pytest.raises(CodecError, match=reason):
        make_codec(name, **options)


@pytest.mark.parametrize("name", SPARSE)
def test_coders_say_the_same(name):
    vector = normal(20_000)
    updates = [decoded(make_codec(name, coder=coder, density=0.02), vector) for coder in ("smallest", "fast")]
    assert updates[0].positions.tolist() == updates[1].positions.tolist()
    assert updates[0].values.tobytes() == updates[1].values.tobytes()


@pytest.mark.parametrize("name", SPARSE)
def test_a_layout_of_another_size(name):
    with pytest.raises(ValueError, match="a layout of 20 elements for a vector of 21"):
        make_codec(name, layout=Layout(("w",), ((4, 5),))).encode(normal(21))


def golden_vector():
    """3000 numbers without a generator: exact in float32, of many magnitudes, with ties, zeros and two empty blocks."""
    index = np.arange(3000, dtype=np.int64)
    mixed = (index * 2654435761) % 4096 - 2048
    vector = (mixed * np.abs(mixed)).astype(np.float32) * np.float32(2.0**-40)
    vector[1024:2048] *= np.float32(2.0**-90)
    vector[2900:] = 0
    return vector


GOLDEN_LAYOUT = Layout(("a", "b", "c"), ((40, 40), (200,), (20, 60)))
GOLDEN_BLOBS = (
    {name: (name, {"density": 0.05, "coder": "fast"} if name in SPARSE else {}) for name in (*DENSE, *SPARSE)}
    | {f"{name}-smallest": (name, {"density": 0.05, "layout": GOLDEN_LAYOUT}) for name in SPARSE}
    | {name: (name, {"layout": GOLDEN_LAYOUT}) for name in LOW_RANK}
)


@pytest.mark.parametrize("golden", GOLDEN_BLOBS)
def test_golden_blobs(golden):
    name, options = GOLDEN_BLOBS[golden]
    blob = make_codec(name, **options).encode(golden_vector())
    path, decoded_path = GOLDEN / f"{golden}.bin", GOLDEN / "decoded.json"
    sums = json.loads(decoded_path.read_text()) if decoded_path.is_file() else {}
    if os.environ.get("FEDGLM_REWRITE_GOLDEN") == "1":
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(blob)
        sums[golden] = vector_sha256(decode(blob, size=3000).to_dense())
        decoded_path.write_text(json.dumps(dict(sorted(sums.items())), indent=1) + "\n")
    # What a low-rank coder sends depends on the machine's linear algebra; what a blob says does not.
    assert name in LOW_RANK or blob == path.read_bytes(), (
        "the bytes changed: old blobs must stay readable; FEDGLM_REWRITE_GOLDEN=1 rewrites"
    )
    assert vector_sha256(decode(path.read_bytes(), size=3000).to_dense()) == sums[golden]


@pytest.mark.parametrize("name", SPARSE)
@settings(max_examples=20)
@given(budget=st.integers(80, 700), scale=st.sampled_from([1e-30, 1e-3]), seed=st.integers(0, 9))
def test_the_budget_holds_and_is_used(name, budget, scale, seed):
    vector = normal(4000, scale, seed)
    blob = make_codec(name, max_bytes=budget).encode(vector)
    assert len(blob) <= budget
    sent = decode(blob, size=4000)
    assert len(blob) > 0.9 * budget
    assert sent.positions.tolist() == top_positions(vector, sent.positions.size / 4000)


@pytest.mark.parametrize("overshoot", [1.0, 1.5, 2.0])
def test_overshoot(overshoot):
    vector = normal(5000)
    sent = decoded(make_codec("topk-sign", density=0.1, overshoot=overshoot), vector)
    magnitudes = np.abs(vector[sent.positions])
    assert sent.max_abs() == pytest.approx(max(magnitudes.mean(), overshoot * magnitudes.min()), rel=1e-6)
    left = vector.copy()
    sent.add_to(left, -1.0)
    smallest = magnitudes.min() * (1 + 1e-6)
    assert (np.abs(left[sent.positions][magnitudes < 1.5 * magnitudes.min()]) <= smallest).all()
