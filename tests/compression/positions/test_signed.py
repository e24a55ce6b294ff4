"""Signs beside positions: round trips, the model's definition, what structure saves and noise costs, hostile codes."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedglm.compression.codec import CodecError, decode, make_codec
from fedglm.compression.kernels.signs import code_signs
from fedglm.compression.layout import Layout
from fedglm.compression.positions import coding, geometry, signed
from fedglm.compression.wire.envelope import Reader, varint, wrap_update

patient = settings(deadline=None)  # the first call compiles

SHAPES = [(40, 64), (1, 30), (96, 32), (7, 100), (1, 50)]


def layout_of(shapes):
    return Layout(tuple(f"t{index}" for index in range(len(shapes))), tuple(shapes))


def size_of(shapes):
    return sum(rows * columns for rows, columns in shapes)


def outer_signs(shapes, noise, seed):
    """A sign for each element: in a matrix that of row times column, in others one for all; some of them turned."""
    rng = np.random.default_rng(seed)
    parts = [
        np.outer(rng.random(rows) < 0.5, np.ones(columns)) != (rng.random(columns if rows > 1 else 1) < 0.5)
        for rows, columns in shapes
    ]
    signs = np.concatenate([part.ravel() for part in parts])
    return signs != (rng.random(signs.size) < noise)


def support_of(size, density, seed):
    return np.flatnonzero(np.random.default_rng(seed).random(size) < density)


@st.composite
def updates(draw):
    """Tensors, a layout of them or none, a support, and its signs."""
    shapes = draw(
        st.lists(
            st.tuples(st.integers(1, 12), st.integers(1, 70)) | st.just((1, 40)) | st.just((20, 64)),
            min_size=1,
            max_size=5,
        )
    )
    size = size_of(shapes)
    seed = draw(st.integers(0, 1 << 30))
    at = support_of(size, draw(st.sampled_from([0, 0.01, 0.1, 0.6, 1])), seed)
    negative = outer_signs(shapes, draw(st.sampled_from([0, 0.1, 0.5])), seed)[at]
    return draw(st.sampled_from([None, layout_of(shapes)])), at, negative, size


def unpacked(code, count, size):
    reader = Reader(memoryview(code))
    decoded = signed.unpack(reader, count, size)
    assert reader.remaining == 0
    return decoded


@patient
@given(updates(), st.sampled_from(["smallest", "fast"]))
def test_round_trip(update, coder):
    layout, at, negative, size = update
    code = signed.pack(at, negative, size, layout, coder)
    decoded = unpacked(code, at.size, size)
    assert decoded.positions.tolist() == at.tolist()
    assert decoded.negative.tolist() == negative.tolist()
    plain = 1 + math.ceil(at.size / 8) + len(coding.pack(at, size, layout, coder))
    assert len(code) == plain if coder == "fast" else len(code) <= plain


def interval(shapes, at, negative):
    """The model by its definition, in exact fractions: the interval of [0, 1) that the signs narrow down to."""
    low, width = Fraction(0), 1 << 56
    shift = 0
    weights = [3 << 13, 3 << 13]
    start = 0
    for rows, columns in shapes:
        inside = [index for index, position in enumerate(at) if start <= position < start + rows * columns]
        plain, turned = [0] * columns, [0] * columns
        row, turn, hits = None, 0, []
        for index in inside:
            its_row, column = divmod(int(at[index]) - start, columns) if rows > 1 else (0, 0)
            if its_row != row:
                for earlier, sign in hits:
                    relative = sign if turn >= 0 else -sign
                    turned[earlier] += relative - turned[earlier] // 16
                row, turn, hits = its_row, 0, []
            scores = plain[column], max(-2048, min(2048, turn * turned[column] // 512))
            mixed = sum(weight * score for weight, score in zip(weights, scores, strict=True)) // 2**20
            mixed = max(-192, min(192, mixed))
            odds = 2 ** (abs(mixed) / 16)
            chance = int(65536 * (odds / (1 + odds)))
            chance = chance if mixed >= 0 else 65536 - chance
            ones = chance * (width >> 16)
            if negative[index]:
                width = ones
            else:
                low += Fraction(ones, 1 << (56 + shift))
                width -= ones
            while width < 1 << 48:
                width <<= 8
                shift += 8
            sign = 256 if negative[index] else -256
            error = 65536 - chance if negative[index] else -chance
            weights = [weight + error * score // 2**14 for weight, score in zip(weights, scores, strict=True)]
            plain[column] += sign - plain[column] // 16
            turn += turned[column] if negative[index] else -turned[column]
            hits.append((column, sign))
        start += rows * columns
    return low, low + Fraction(width, 1 << (56 + shift))


@patient
@given(updates())
def test_the_kernel_says_what_the_definition_says(update):
    layout, at, negative, size = update
    shapes = geometry.to_shapes(layout, size)
    code = np.zeros(at.size + 16, np.uint8)
    length = code_signs(True, code, *geometry.to_arrays(shapes), at, negative)
    low, high = interval(shapes, at, negative)
    assert low <= Fraction(int.from_bytes(code[:length].tobytes(), "big"), 1 << 8 * length) < high
    decoded = np.empty(at.size, np.bool_)
    assert code_signs(False, code[:length].copy(), *geometry.to_arrays(shapes), at, decoded)
    assert (decoded == negative).all()


def bits_a_sign(shapes, density, noise, layout):
    size = size_of(shapes)
    at = support_of(size, density, 1)
    negative = outer_signs(shapes, noise, 2)[at]
    with_them = len(signed.pack(at, negative, size, layout, "smallest"))
    return 8 * (with_them - len(coding.pack(at, size, layout, "smallest"))) / at.size


def test_what_structure_saves():
    matrix = [(256, 128), (128, 256)]
    assert bits_a_sign(matrix, 0.1, 0.0, layout_of(matrix)) < 0.3
    assert bits_a_sign(matrix, 0.1, 0.1, layout_of(matrix)) < 0.75
    assert bits_a_sign(matrix, 0.1, 0.0, None) == pytest.approx(1, abs=0.02)  # nobody has told of the rows


@pytest.mark.parametrize("count", [3, 100, 5000])
@pytest.mark.parametrize("layout", [None, layout_of(SHAPES * 20)])
def test_noise_costs_a_bit_a_sign_and_a_byte(count, layout):
    size = size_of(SHAPES * 20)
    rng = np.random.default_rng(3)
    at = np.sort(rng.choice(size, count, replace=False))
    negative = rng.random(count) < 0.5
    code = signed.pack(at, negative, size, layout, "smallest")
    assert len(code) <= 1 + math.ceil(count / 8) + len(coding.pack(at, size, layout, "smallest"))


@pytest.mark.parametrize("name", ["topk-sign", "topk-2bit"])
def test_codecs_use_it(name):
    shapes = [(200, 64), (64, 100)]
    layout = layout_of(shapes)
    magnitudes = np.abs(np.random.default_rng(4).standard_normal(layout.size)).astype(np.float32)
    lengths = []
    for noise in (0.02, 0.5):
        vector = np.where(outer_signs(shapes, noise, 5), -magnitudes, magnitudes)
        blob = make_codec(name, density=0.1, layout=layout).encode(vector)
        update = decode(blob, size=layout.size)
        assert ((update.values < 0) == (vector[update.positions] < 0)).all()
        lengths.append(len(blob))
    assert lengths[0] < lengths[1] - 0.5 * 0.1 * layout.size / 8


def test_what_only_a_caller_can_get_wrong():
    for wrong in ([3, 2], [1, 1], [-1, 2], [0, 50]):
        with pytest.raises(ValueError, match="ascend"):
            signed.pack(np.array(wrong), np.zeros(2, np.bool_), 50, None, "smallest")


def learnt_blob():
    """Size, count, code of the signs and code of the positions of an update whose signs are learnt."""
    size = size_of(SHAPES)
    at = support_of(size, 0.2, 7)
    code = signed.pack(at, outer_signs(SHAPES, 0, 8)[at], size, layout_of(SHAPES), "smallest")
    reader = Reader(memoryview(code))
    length = reader.varint()
    assert length > 0
    return size, at.size, bytes(reader.take(length - 1)), bytes(reader.take(reader.remaining))


def test_each_signs_have_one_code():
    size, count, signs, rest = learnt_blob()
    assert unpacked(varint(len(signs) + 1) + signs + rest, count, size).positions.size == count
    for wrong in (signs + b"\0", signs + b"\1", signs[:-1] + bytes([signs[-1] ^ 1]) + b"\x80" * 9):
        with pytest.raises(CodecError, match="signs"):
            unpacked(varint(len(wrong) + 1) + wrong + rest, count, size)


def test_signs_by_rows_that_are_not_there():
    at, signs = np.arange(10), np.zeros(4, np.uint8)
    length = code_signs(True, signs, *geometry.to_arrays([(1, 50)]), at, np.ones(10, np.bool_))
    code = varint(length + 1) + signs[:length].tobytes() + coding.pack(at, 50, None, "smallest")
    with pytest.raises(CodecError, match="there are none"):
        unpacked(code, 10, 50)


@pytest.mark.parametrize("length", [1 << 20, 1 << 62])
def test_a_length_that_is_not_there(length):
    size, count, signs, rest = learnt_blob()
    with pytest.raises(CodecError, match="early"):
        unpacked(varint(length) + signs + rest, count, size)
    with pytest.raises(CodecError):
        decode(wrap_update(5, size, varint(size), np.float32(1).tobytes(), varint(1), b"\0"), size=size)


@patient
@given(st.data())
def test_damaged_signs(data):
    """What is read is the one code of what it says, or refused."""
    size, count, signs, rest = learnt_blob()
    changed = bytearray(signs)
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        decoded = unpacked(varint(len(changed) + 1) + bytes(changed) + rest, count, size)
    except CodecError:
        return
    again = np.zeros(count + 16, np.uint8)
    shapes = coding.unpack(Reader(memoryview(rest)), count, size).shapes
    length = code_signs(True, again, *geometry.to_arrays(shapes), decoded.positions, decoded.negative)
    assert again[:length].tobytes() == bytes(changed)
