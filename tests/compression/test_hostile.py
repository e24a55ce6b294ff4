"""Blobs from a stranger: an error or a valid update, never a crash, a hang or more memory than the blob warrants."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from valid_update import is_valid_update

from fedglm.compression.codec import CodecError, codec_names, decode, make_codec
from fedglm.compression.layout import Layout
from fedglm.compression.wire.envelope import UPDATE, unwrap, varint, wrap, wrap_update

SIZE = 2500
IDS = {name: make_codec(name).wire_id for name in codec_names()}
VECTOR = np.random.default_rng(5).standard_normal(SIZE).astype(np.float32)
MATRIX = Layout(("w",), ((50, 50),))
LEARNT = {
    name: make_codec(name, density=0.1, layout=MATRIX).encode(np.abs(VECTOR)) for name in ("topk-sign", "topk-2bit")
}
"""With signs by rows and columns: they are all alike."""
BLOBS = {name: make_codec(name).encode(VECTOR) for name in codec_names()}


def check(blob, size=SIZE):
    return is_valid_update(size, blob)


def resealed(blob, change):
    """`blob` with its body changed and a CRC that is right again."""
    kind, reader = unwrap(blob, UPDATE)
    body = bytearray(reader.take(reader.remaining))
    change(body)
    return wrap(UPDATE, kind, body)


@given(st.binary(max_size=200))
def test_random_bytes(blob):
    assert not check(blob)


@pytest.mark.parametrize("name", codec_names())
@given(payload=st.binary(max_size=200), size=st.integers(1, 300))
def test_random_payloads_behind_a_good_header(name, payload, size):
    check(wrap_update(IDS[name], size, payload), size)


@pytest.mark.parametrize("name", codec_names())
def test_every_truncation(name):
    blob = make_codec(name).encode(VECTOR[:300])
    for length in range(len(blob)):
        assert not check(blob[:length], 300)
    for length in range(1, len(blob) - 11):
        shorter = resealed(blob, lambda body, length=length: body.__delitem__(slice(-length, None)))
        # What is left of a range code may be the code of another update: then the CRC alone tells.
        assert not check(shorter, 300) or name in ("lowrank", "hybrid")
    assert not check(resealed(blob, lambda body: body.append(0)), 300)


@pytest.mark.parametrize("name", codec_names())
@given(data=st.data())
def test_a_flipped_bit_is_noticed(name, data):
    blob = bytearray(BLOBS[name])
    bit = data.draw(st.integers(0, 8 * len(blob) - 1))
    blob[bit // 8] ^= 1 << bit % 8
    assert not check(blob)


@pytest.mark.parametrize("name", codec_names())
@given(data=st.data())
def test_mutations_behind_a_good_crc(name, data):
    def change(body):
        for _ in range(data.draw(st.integers(1, 4))):
            body[data.draw(st.integers(0, min(len(body), 200) - 1))] = data.draw(st.integers(0, 255))

    check(resealed(BLOBS[name], change))
    if name in LEARNT:
        check(resealed(LEARNT[name], change))


def test_every_kind_of_blob_decodes():
    assert all(check(blob) for blob in (*BLOBS.values(), *LEARNT.values()))
    assert all(check(memoryview(bytearray(blob))) for blob in BLOBS.values())


@pytest.mark.parametrize("name", codec_names())
@pytest.mark.parametrize("size", [SIZE - 1, SIZE + 1, 0, -1, 1 << 60])
def test_another_size(name, size):
    with pytest.raises(CodecError, match="elements"):
        decode(BLOBS[name], size=size)


def test_another_codec():
    with pytest.raises(CodecError, match="codec 5, not 4"):
        make_codec("topk-fp16").decode(BLOBS["topk-sign"], SIZE)
    with pytest.raises(CodecError, match="does not know"):
        decode(wrap_update(200, SIZE), size=SIZE)


@pytest.mark.parametrize("at", [0, 2, 4])
def test_a_foreign_header(at):
    blob = bytearray(BLOBS["int8"])
    blob[at] ^= 0x40
    with pytest.raises(CodecError, match=["starts with", "format version", "flags"][at // 2]):
        decode(blob, size=SIZE)


HUGE = 1 << 40
SCALE = np.float32(1).tobytes()
BOMBS = {
    "an empty update": wrap_update(1, 0),
    "dense without bytes": wrap_update(1, HUGE),
    "halves without bytes": wrap_update(2, HUGE, b"\0" * 100),
    "int8 without bytes": wrap_update(3, HUGE, b"\0" * 100),
    "k without bytes": wrap_update(4, HUGE, varint(HUGE)),
    "k above n": wrap_update(5, SIZE, varint(SIZE + 1), SCALE, b"\0" * 400, b"\0", b"\xff" * 400),
    "k signs without positions": wrap_update(5, HUGE, varint(80_000), SCALE, b"\0", b"\0" * 10_000, b"\0"),
    "a magnitude without signs": wrap_update(5, HUGE, varint(HUGE), SCALE, b"\0", b"\0" * 10_000),
    "learnt signs without positions": wrap_update(5, HUGE, varint(HUGE), SCALE, b"\1", b"\0" * 10_000),
    "learnt signs without bytes": wrap_update(5, HUGE, varint(1), SCALE, varint(1 << 60), b"\0" * 100),
    "wide positions that cannot fit": wrap_update(
        5, HUGE, varint(80_000), SCALE, b"\0", b"\0" * 10_000, b"\x28", b"\0" * 10_000
    ),
    "a run that never ends": wrap_update(5, HUGE, varint(1), SCALE, b"\0\0", b"\0", b"\0" * 10_000),
    "a run beyond the vector": wrap_update(5, HUGE, varint(1), SCALE, b"\0\0", b"\x28", b"\0" * 1000 + b"\xff" * 6),
    "a Rice parameter too wide": wrap_update(5, HUGE, varint(1), SCALE, b"\0\0", b"\x29", b"\xff" * 100),
    "a varint too long": wrap(UPDATE, 5, b"\xff" * 10),
    "a varint not shortest": wrap(UPDATE, 5, b"\x81\x80\0"),
    "signs after the end": wrap_update(5, 8, varint(1), SCALE, b"\0\2", b"\0\1"),
    "an infinite magnitude": wrap_update(5, 8, varint(1), np.float32(np.inf).tobytes(), b"\0\0\0\1"),
    "a negative magnitude": wrap_update(5, 8, varint(1), np.float32(-1).tobytes(), b"\0\0\0\1"),
    "a subnormal magnitude": wrap_update(5, 8, varint(1), np.float32(1e-40).tobytes(), b"\0\0\0\1"),
    "two magnitudes without bytes": wrap_update(6, HUGE, varint(HUGE), SCALE, SCALE, b"\0" * 100),
    "larger magnitudes without signs": wrap_update(6, 16, varint(16), SCALE, SCALE, b"\0\0"),
    "an infinite second magnitude": wrap_update(6, 8, varint(1), SCALE, np.float32(np.inf).tobytes(), b"\0\0\0\0\1"),
    "a NaN magnitude": wrap_update(6, 8, varint(1), np.float32(np.nan).tobytes(), SCALE, b"\0\0\0\0\1"),
    "larger magnitudes after the end": wrap_update(6, 8, varint(1), SCALE, SCALE, b"\2\0\0\0\1"),
    "sparse int8 without bytes": wrap_update(7, HUGE, varint(HUGE), b"\0" * 100),
    "a sparse int8 of -128": wrap_update(7, 8, varint(1), SCALE, b"\x80\0\1"),
    "a sparse scale that overflows": wrap_update(7, 8, varint(1), np.float32(2.0**122).tobytes(), b"\x7f\0\1"),
    "a negative sparse scale": wrap_update(7, 8, varint(1), np.float32(-1).tobytes(), b"\x7f\0\1"),
    "an infinite half": wrap_update(2, 1, b"\0", np.float16(np.inf).tobytes()),
    "a half that overflows": wrap_update(2, 1, b"\x71", np.float16(65504).tobytes()),
    "a shift out of range": wrap_update(2, 1, b"\x72", np.float16(1).tobytes()),
    "an int8 of -128": wrap_update(3, 1, SCALE, b"\x80"),
    "a scale that overflows": wrap_update(3, 1, np.float32(2.0**122).tobytes(), b"\x7f"),
    "NaN": wrap_update(1, 1, np.float32(np.nan).tobytes()),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs(name):
    blob = BOMBS[name]
    _, reader = unwrap(blob, UPDATE)
    try:
        size = reader.varint()
    except CodecError:
        size = SIZE
    tracemalloc.start()
    try:
        with pytest.raises(CodecError):
            decode(blob, size=size)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
