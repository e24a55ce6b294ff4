import base64
import json
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from light_models import entropy_bytes, gaussian_codes, make_matrix, make_model, ternary_codes
from safetensors.numpy import load

from fedglm.inference.errors import InferenceError
from fedglm.inference.weights import container, known_bits, limits, rans
from fedglm.inference.weights.container import FORMAT, pack_weights, read_index, repack_weights, unpack_weights
from fedglm.inference.weights.halves import round_mantissa
from fedglm.inference.weights.index import Index
from fedglm.inference.weights.limits import Limits
from fedglm.inference.weights.model import same_tensors
from fedglm.inference.weights.quantized import QuantizedMatrix

RANGES = [
    (-128, 127),
    (-127, 127),
    (-8, 7),
    (-7, 7),
    (-4, 3),
    (-3, 3),
    (-2, 1),
    (-1, 1),
    (0, 1),
    (-3, 1),
    (0, 0),
    (5, 7),
]


@st.composite
def matrices(draw):
    rows, columns = draw(st.integers(1, 20)), draw(st.integers(1, 40))
    low, high = draw(st.sampled_from(RANGES))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    block = draw(st.sampled_from([1, 4, 32, columns, columns + 3]))
    shape = (rows, -(-columns // block))
    zeros = rng.integers(-128, 128, shape).astype(np.int8) if draw(st.booleans()) else None
    scales = np.abs(rng.standard_cauchy(shape)).clip(0, 60_000).astype(np.float16).astype(np.float32)
    codes = rng.integers(low, high + 1, (rows, columns)) if draw(st.booleans()) else np.full((rows, columns), low)
    if draw(st.booleans()) and columns % 4 == 0 and (low, high) == (-1, 1):
        codes = rng.choice([-1, 1], (rows * columns // 4, 4))
        codes[np.arange(len(codes)), rng.integers(0, 4, len(codes))] = 0
        codes = codes.reshape(rows, columns)
    return QuantizedMatrix(codes=codes.astype(np.int8), scales=scales, zeros=zeros, block=block, low=low, high=high)


@st.composite
def floats(draw):
    shape = draw(st.lists(st.integers(0, 5), max_size=3))
    bits = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).integers(0, 2**32, shape).astype(np.uint32)
    kind = draw(st.sampled_from(["any float32", "float16", "one value"]))
    if kind == "any float32":
        return bits.view(np.float32)  # NaN, infinities and -0.0 too
    return (
        bits.astype(np.uint16).view(np.float16).astype(np.float32) if kind == "float16" else np.ones(shape, np.float32)
    )


MODELS = st.dictionaries(st.text('abc.é"\\', min_size=1, max_size=9), matrices() | floats(), max_size=3)


@given(MODELS, st.booleans())
def test_every_model_comes_back_bit_by_bit(tensors, compact):
    blob = pack_weights(tensors, compact=compact)
    unpacked = unpack_weights(blob)
    assert list(unpacked) == list(tensors)
    assert same_tensors(unpacked, tensors)
    assert repack_weights(unpacked, read_index(blob)[0]) == blob


@given(MODELS, MODELS)
def test_every_model_comes_back_given_any_other(tensors, previous):
    assert same_tensors(unpack_weights(pack_weights(tensors, previous=previous), previous=previous), tensors)


def test_what_is_coded_in_pieces_is_coded_the_same(monkeypatch):
    """An encoder that knows all bits works through them in pieces of bounded memory."""
    matrices = {
        "ternary": make_matrix(np.arange(9 * 40).reshape(9, 40) % 5 % 3 - 1, low=-1, high=1),
        "int4": make_matrix(np.arange(9 * 40).reshape(9, 40) ** 2 % 7, low=-8, high=7, block=4),
    }
    blob = pack_weights(matrices)
    for module in (known_bits, rans):
        monkeypatch.setattr(module, "_AT_ONCE", 50)
    assert pack_weights(matrices) == blob
    assert same_tensors(unpack_weights(blob), matrices)


def test_safetensors_reads_the_file():
    blob = pack_weights(make_model().tensors)
    (data,) = load(blob).values()
    header = json.loads(blob[8 : 8 + struct.unpack("<Q", blob[:8])[0]])
    assert (data.dtype, data.tobytes()) == (np.uint8, read_index(blob)[1].tobytes())
    assert header["__metadata__"].keys() == {FORMAT}


def packing_of(matrix, **options):
    (entry,) = read_index(pack_weights({"w": matrix}, **options))[0].entries
    return entry.packing


def test_each_matrix_has_its_shortest_packing():
    rng = np.random.default_rng(0)
    sparse = rng.choice([-1, 1], (4096, 4))
    sparse[np.arange(4096), rng.integers(0, 4, 4096)] = 0
    flat = rng.permutation(np.repeat(np.arange(-8, 8), 1024)).reshape(128, 128)
    assert packing_of(make_matrix(sparse.reshape(128, 128), low=-1, high=1)) == "sparse34"
    assert packing_of(make_matrix(flat, low=-8, high=7)) == "bits"
    assert packing_of(make_matrix(gaussian_codes(rng, (128, 128), step=0.4, low=-8, high=7), low=-8, high=7)) == "tree"
    skewed = ternary_codes(rng, (512, 64), spread=1.0)
    assert packing_of(make_matrix(skewed, low=-1, high=1)) == "columns"
    assert packing_of(make_matrix(ternary_codes(rng, (512, 64)), low=-1, high=1)) == "columns"
    assert packing_of(make_matrix(skewed, low=-1, high=1), compact=False) == "trits"


@pytest.mark.parametrize("zeros", [1 / 3, 0.58, 0.9])
@pytest.mark.parametrize("shape", [(128, 128), (512, 320)])
def test_ternary_codes_are_as_short_as_their_entropy(zeros, shape):
    # Above the entropy of the shares: half a logarithm of the count for each of two shares (Krichevsky and Trofimov),
    # forty bits for each of the lanes, one more lane's worth for its rounding, and the index.
    codes = ternary_codes(np.random.default_rng(1), shape, zeros=zeros)
    blob = pack_weights({"w": make_matrix(codes, low=-1, high=1)})
    empty = pack_weights({"w": make_matrix(np.zeros((shape[0], 1)), low=-1, high=1)})
    index = read_index(blob)[0]
    over = len(blob) - len(empty) - entropy_bytes(codes)
    assert over < np.log2(codes.size) / 8 + 5 * index.lanes + 8
    assert over < 0.02 * entropy_bytes(codes)


@pytest.mark.parametrize("step", [0.25, 0.5, 1.0])
def test_codes_of_many_levels_are_as_short_as_their_entropy(step):
    codes = gaussian_codes(np.random.default_rng(2), (256, 128), step=step, low=-8, high=7)
    blob = pack_weights({"w": make_matrix(codes, low=-8, high=7)})
    empty = pack_weights({"w": make_matrix(np.zeros((256, 1)), low=-8, high=7)})
    over = len(blob) - len(empty) - entropy_bytes(codes)
    assert over < 15 / 2 * np.log2(codes.size) / 8 + 5 * read_index(blob)[0].lanes + 8


def test_columns_of_unlike_density_cost_less_than_their_common_entropy():
    codes = ternary_codes(np.random.default_rng(3), (512, 128), spread=1.0)
    apart = sum(entropy_bytes(codes[:, column] != 0) for column in range(128)) + np.count_nonzero(codes) / 8
    size = len(pack_weights({"w": make_matrix(codes, low=-1, high=1)}))
    assert apart < size < 0.95 * entropy_bytes(codes) + 900


def test_mantissas_that_were_rounded_cost_less():
    values = np.random.default_rng(4).lognormal(-3, 0.2, 4096).astype(np.float32)
    sizes = {bits: len(pack_weights({"s": round_mantissa(values, bits)})) for bits in (10, 7, 5)}
    for bits, size in sizes.items():
        assert abs(sizes[10] - size - (10 - bits) * 4096 / 8) < 60  # a bit a number
        assert np.abs(round_mantissa(values, bits) / values.astype(np.float16) - 1).max() <= 2.0 ** -(bits + 1)


def test_what_the_limits_forbid_is_refused_before_it_is_unpacked(monkeypatch):
    blob = pack_weights({"w": make_matrix(np.zeros((512, 256)), low=-1, high=1)})
    monkeypatch.setattr(container, "LaneDecoder", None)
    with pytest.raises(InferenceError, match="at most 1000"):
        unpack_weights(blob, limits=Limits(max_parameters=1000))
    monkeypatch.setattr(limits, "_FREE_PARAMETERS", 1000)
    with pytest.raises(InferenceError, match="damaged, or an attack"):
        unpack_weights(blob)


def test_what_was_coded_from_another_release_is_refused_without_it():
    model = make_model()
    blob = pack_weights(model.tensors, previous=model.tensors)
    assert len(blob) < len(pack_weights(model.tensors)) / 4
    with pytest.raises(InferenceError, match="earlier release"):
        unpack_weights(blob)


@given(st.data())
def test_a_mutation_is_refused_or_gives_another_model(data):
    blob = bytearray(BLOB)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(blob) - 1))
        if data.draw(st.booleans()):
            blob[at] ^= data.draw(st.integers(1, 255))
        else:
            del blob[at : at + data.draw(st.integers(1, 50))]
    try:
        unpack_weights(bytes(blob))
    except InferenceError:
        return


BLOB = pack_weights(make_model().tensors)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([["a", [0, 2**31 - 1, 2**31 - 1], "f16"]], "dimensions"),
        ([["a", [2.0], "f16"]], "dimensions"),
        ([["a", [2], "f64"]], "not 'f64'"),
        ([["a\n", [2], "f16"]], "no name"),
        ([["a", [2], "f32"], ["a", [2], "f32"]], "twice"),
        ([["a", [2, 2], "zip", 2, -1, 1]], "no packing"),
        ([["a", [2, 2], "trits", 2, -2, 1]], "no packing"),
        ([["a", [2, 2], "bits", 0, -1, 1]], "no codes"),
        ([["a", [2, 2], "bits", 2, -1, 300]], "no codes"),
        ([["a", [2, 2], ["bits"], 2, -1, 1]], "damaged"),
        ([["a", [2, 2], "bits", 2, -1, 1, 7]], "a block"),
        ([["a", [2**16, 2**16], "tree", 2, 0, 3]], "lanes"),
        ([7], "damaged"),
        (7, "damaged"),
    ],
)
def test_a_malformed_index_is_refused(rows, reason):
    text = base64.b85encode(zlib.compress(json.dumps([8, 0, 0, 0, rows]).encode())).decode()
    with pytest.raises(InferenceError, match=reason):
        Index.from_text(text)


def test_an_index_does_not_unpack_without_end():
    text = base64.b85encode(zlib.compress(b"[" * (1 << 22))).decode()
    with pytest.raises(InferenceError, match="longer than"):
        Index.from_text(text)
