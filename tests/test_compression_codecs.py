"""Every codec's laws: round trip, exact k, ties, determinism, options, golden blobs."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedglm.compression.codec import CodecError, codec_names, codec_options, decode, make_codec
from fedglm.compression.layout import Layout

GOLDEN = Path(__file__).parent / "golden"
SPARSE = ("topk-fp16", "topk-sign")
DENSE = ("dense-fp32", "dense-fp16", "int8")

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
    ],
)
def test_sizes(name, density, bits):
    vector = normal(200_000, 1e-4)
    blob = make_codec(name, **({} if density is None else {"density": density})).encode(vector)
    assert 8 * len(blob) / vector.size <= bits


def test_the_smallest_blob():
    assert len(make_codec("topk-sign").encode(np.ones(1, np.float32))) == 18


def test_names_and_options():
    assert codec_names() == (*DENSE, *SPARSE)
    layout = Layout(("w",), ((4, 5),))
    for name in codec_names():
        assert make_codec(name, layout=layout).name == name
        assert codec_options(name) == (("density",) if name in SPARSE else ())
    assert make_codec("topk-sign", density=1) == make_codec("topk-sign", density=1.0)


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
    ],
)
def test_wrong_names_and_options(name, options, reason):
    with pytest.raises(CodecError, match=reason):
        make_codec(name, **options)


def golden_vector():
    """3000 numbers without a generator: exact in float32, of many magnitudes, with ties, zeros and two empty blocks."""
    index = np.arange(3000, dtype=np.int64)
    mixed = (index * 2654435761) % 4096 - 2048
    vector = (mixed * np.abs(mixed)).astype(np.float32) * np.float32(2.0**-40)
    vector[1024:2048] *= np.float32(2.0**-90)
    vector[2900:] = 0
    return vector


@pytest.mark.parametrize("name", codec_names())
def test_golden_blobs(name):
    codec = make_codec(name, **({"density": 0.05} if name in SPARSE else {}))
    blob = codec.encode(golden_vector())
    path = GOLDEN / f"{name}.bin"
    if os.environ.get("FEDGLM_REWRITE_GOLDEN") == "1":
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(blob)
    assert blob == path.read_bytes(), (
        "the bytes changed: old blobs must stay readable; FEDGLM_REWRITE_GOLDEN=1 rewrites"
    )
    values = decode(path.read_bytes(), size=3000).to_dense()
    assert np.abs(values - golden_vector()).max() <= np.abs(golden_vector()).max()
