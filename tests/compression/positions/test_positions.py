"""The support of an update as bytes: round trips, sizes, and what a stranger may send."""

import hashlib
import itertools
import math
import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedglm.compression.codec import CodecError
from fedglm.compression.kernels import columns
from fedglm.compression.kernels import hazard as hazards
from fedglm.compression.kernels.context import SPARSEST
from fedglm.compression.layout import Layout
from fedglm.compression.positions import coding, geometry, golomb_rice
from fedglm.compression.positions import context as context_positions
from fedglm.compression.wire.envelope import Reader

patient = settings(deadline=None)  # the first call compiles

LAYER = [(128, 128), (128,), (64, 128), (64,), (64, 128), (64,), (128, 128), (512, 128), (128, 256), (128,), (128,)]
TRANSFORMER = [(256, 128), *LAYER * 3, (128,)]


def layout_of(shapes):
    return Layout(tuple(f"t{index}" for index in range(len(shapes))), tuple(map(tuple, shapes)))


def unpacked(blob, count, size):
    reader = Reader(memoryview(blob))
    decoded = coding.unpack(reader, count, size).positions
    assert reader.remaining == 0
    return decoded


def clustered(shapes, density, seed):
    """A support whose rates differ by tensor, by row and most of all by column."""
    rng = np.random.default_rng(seed)
    rates = []
    for shape in shapes:
        rows, size = shape[0] if len(shape) > 1 else 1, math.prod(shape)
        rate = np.outer(rng.gamma(0.7, size=rows), rng.gamma(0.2, size=size // rows)) * rng.gamma(1)
        rates.append(rate.ravel())
    rate = np.concatenate(rates)
    keys = rng.exponential(size=rate.size) / np.maximum(rate, 1e-30)
    return np.sort(np.argsort(keys)[: round(density * rate.size)])


tensors = st.lists(
    st.tuples(st.integers(1, 12), st.integers(1, 70)) | st.tuples(st.integers(1, 90)) | st.just((40, 64)) | st.just(()),
    min_size=1,
    max_size=6,
)


@st.composite
def supports(draw):
    """A layout and a support of it: uniform, clustered, in some rows only, at the ends, empty or full."""
    shapes = draw(tensors)
    layout = layout_of(shapes)
    seed = draw(st.integers(0, 1 << 30))
    kind = draw(st.sampled_from(["uniform", "clustered", "blocks", "ends", "empty", "full"]))
    rng = np.random.default_rng(seed)
    density = draw(st.sampled_from([0.001, 0.01, 0.1, 0.5, 0.9, 0.999]))
    if kind == "uniform":
        support = np.flatnonzero(rng.random(layout.size) < density)
    elif kind == "clustered":
        support = clustered(shapes, density, seed)
    elif kind == "blocks":
        support = np.flatnonzero(np.repeat(rng.random(layout.size // 50 + 1) < density, 50)[: layout.size])
    elif kind == "ends":
        support = np.unique([0, layout.size - 1])
    else:
        support = np.arange(layout.size if kind == "full" else 0)
    return layout, support


@patient
@given(supports())
def test_round_trip(case):
    layout, support = case
    for tensors in layout, None:
        blob = coding.pack(support, layout.size, tensors, "smallest")
        assert unpacked(blob, support.size, layout.size).tolist() == support.tolist()
        assert len(blob) <= len(golomb_rice.pack(support))
        context = context_positions.pack(support, layout.size, tensors, 1 << 20)
        if context is not None:
            assert unpacked(context, support.size, layout.size).tolist() == support.tolist()


def test_fast_is_golomb_rice_and_old_blobs_stay_readable():
    support = clustered(TRANSFORMER, 0.01, 1)
    blob = coding.pack(support, layout_of(TRANSFORMER).size, layout_of(TRANSFORMER), "fast")
    assert blob == golomb_rice.pack(support)
    assert unpacked(blob, support.size, 476_800).tolist() == support.tolist()
    assert coding.pack(np.zeros(0, np.int64), 10, None, "smallest") == b"\0"


@pytest.mark.parametrize("density", [0.001, 0.01, 0.05])
@pytest.mark.parametrize("shapes", [None, [(500, 2000)], [(1000, 500), (500,), (1998, 250)]])
def test_a_memoryless_support_costs_one_percent_over_shannon_at_most(density, shapes):
    size = 1_000_000
    support = np.sort(np.random.default_rng(7).choice(size, round(density * size), replace=False))
    blob = coding.pack(support, size, layout_of(shapes) if shapes else None, "smallest")
    entropy = -density * math.log2(density) - (1 - density) * math.log2(1 - density)
    assert 8 * len(blob) <= 1.01 * entropy / density * support.size
    assert unpacked(blob, support.size, size).tolist() == support.tolist()


def test_rows_and_columns_shorten_a_clustered_support():
    layout = layout_of(TRANSFORMER)
    support = clustered(TRANSFORMER, 0.01, 5)
    rice, alone, together = (
        len(blob)
        for blob in (
            coding.pack(support, layout.size, None, "fast"),
            coding.pack(support, layout.size, None, "smallest"),
            coding.pack(support, layout.size, layout, "smallest"),
        )
    )
    assert together < 0.8 * alone < 0.8 * rice


def pinned_support():
    """The same on any machine and with any numpy."""
    state, chosen = 1, []
    for at in range(4 * 64 * 64):
        state = state * 6364136223846793005 + 1442695040888963407 & (1 << 64) - 1
        column = at % 64
        if state >> 48 < (30000 if column % 16 == 3 else 600):
            chosen.append(at)
    return np.array(chosen, np.int64), layout_of([(100, 64), (60, 64), (96, 64)])


PINNED = 338, "76b4ce3af60272288015efa228a07294c33065ed930de5790bd0e276686fa408"


def test_the_code_is_pinned():
    support, layout = pinned_support()
    blob = context_positions.pack(support, layout.size, layout, 1 << 20)
    assert (len(blob), hashlib.sha256(blob).hexdigest()) == PINNED


def test_interpreted_and_compiled_walks_agree():
    """The twin of the kernels: their source run by Python, where a number beyond int64 would be an error."""
    support, layout = pinned_support()
    blob = context_positions.pack(support, layout.size, layout, 1 << 20)
    script = (
        "import numpy as np\n"
        "from test_positions import pinned_support\n"
        "from fedglm.compression.positions import context as context_positions\n"
        "from fedglm.compression.kernels.context import walk\n"
        "from fedglm.compression.wire.envelope import Reader\n"
        "assert not hasattr(walk, 'py_func')\n"
        "support, layout = pinned_support()\n"
        "blob = context_positions.pack(support, layout.size, layout, 1 << 20)\n"
        "reader = Reader(memoryview(blob))\n"
        "reader.take(1)\n"
        "assert (context_positions.unpack(reader, support.size, layout.size)[0] == support).all()\n"
        "print(blob.hex())\n"
    )
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONPATH": os.path.dirname(__file__)}
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == blob.hex()


def test_survival_is_a_power_of_two_and_its_inverse():
    values = [hazards.survival(hazard) for hazard in range(0, (8 << hazards.BIT) + 1, 654_321)]
    for index, value in enumerate(values):
        hazard = index * 654_321
        assert value == pytest.approx(2 ** (32 - hazard / 2**28), rel=1e-6)
        assert hazards.estimate_hazard(value) == pytest.approx(hazard, abs=2e-6 * 2**28)
    assert hazards.survival(0) == hazards.ALL
    assert hazards.survival(8 << hazards.BIT) == 1 << 24
    # A whole number of bits lies at the end of the table.
    assert [hazards.estimate_hazard(1 << 32 - bits) for bits in range(1, 9)] == [
        bits << hazards.BIT for bits in range(1, 9)
    ]
    step = 63  # what the lightest column adds at the least rate, rounded down
    for start in [0, (1 << 18) - 30, (1 << 28) - 30, (8 << 28) - 100_000]:
        walk = [hazards.survival(start + step * index) for index in range(1000)]
        assert all(after < before for before, after in itertools.pairwise(walk))


@given(st.lists(st.integers(0, 300), min_size=32, max_size=80), st.integers(1, 400))
@patient
def test_columns_are_learnt_as_their_twin_says(counts, more_rows):
    hits = np.array(counts, np.int64)
    rows = max(counts) + more_rows
    totals = np.array([hits.sum(), rows, (hits * (hits - 1)).sum()])
    weight, rank, column = np.zeros(hits.size + 1, np.int64), np.zeros_like(hits), np.zeros_like(hits)
    heavy = columns.learn_columns(hits, totals, weight, rank, column)

    even = hits.sum() ** 2 // hits.size
    shape = min(200, max(5 / 256, (even + 4) / (max(totals[2] - even, 0) + 2)))
    share = (shape + hits) / (shape + hits.mean())
    often = np.minimum(share * min(1, hits.mean() / rows), 62000 / 65536)
    expected = np.clip(1024 * share * (1 + often / 2 + often**3), 64, 1 << 20)
    widths = np.diff(weight)[rank]
    assert np.abs(widths - expected).max() <= 2 + 0.02 * expected.max()
    assert (column[rank] == np.arange(hits.size)).all()
    assert heavy == (widths > 2048).sum()
    assert (np.sort(rank[widths > 2048]) == np.arange(heavy)).all()
    assert (np.diff(column[:heavy]) > 0).all()
    assert (np.diff(column[heavy:]) > 0).all()


def test_a_known_geometry_is_short():
    shapes = geometry.to_shapes(layout_of(TRANSFORMER), 476_800)
    assert len(geometry.pack(shapes)) <= 20
    assert geometry.pack([(1, 1 << 40)]) == b"\0"
    deep = [(1 << 17, 4096), *[(4096, 4096), (1024, 4096), (1, 4096)] * 1000]
    assert len(geometry.pack(deep)) < 18


@given(st.lists(st.tuples(st.integers(1, 6) | st.integers(1, 1 << 18), st.integers(1, 6)), min_size=1, max_size=40))
def test_geometry_round_trip(shapes):
    code = geometry.pack(shapes)
    reader = Reader(memoryview(code + b"rest"))
    assert geometry.unpack(reader, sum(rows * width for rows, width in shapes)) == shapes
    assert reader.remaining == 4


@given(st.binary(max_size=30), st.integers(1, 500))
def test_a_geometry_has_one_code(data, size):
    reader = Reader(memoryview(data))
    try:
        shapes = geometry.unpack(reader, size)
    except CodecError:
        return
    assert geometry.pack(shapes) == data[: len(data) - reader.remaining]
    assert sum(rows * width for rows, width in shapes) == size


def halves(*numbers):
    """The code of a geometry's numbers, by text: three bits a half byte, the lowest first."""
    digits = ""
    for number in numbers:
        octal = f"{number:o}"[::-1]
        digits += "".join(f"{int(digit) + 8:x}" for digit in octal[:-1]) + octal[-1]
    digits += "0" * (len(digits) % 2)
    return bytes(int(digits[at + 1] + digits[at], 16) for at in range(0, len(digits), 2))


def test_the_halves_of_a_geometry():
    assert geometry.pack([(4, 32), (1, 96), (4, 32)]) == halves(3, 0, 2, 5, 2, 0, 64 + 5, 0)
    code = halves(1, 0, 20, 0)  # 2**20 rows of one
    assert geometry.unpack(Reader(memoryview(code)), 1 << 20) == [(1 << 20, 1)]
    for wrong in (code[:-1] + bytes([code[-1] | 0x10]), halves(1, 0, 20) + b"\x08"):  # a fill, and a number too long
        with pytest.raises(CodecError):
            geometry.unpack(Reader(memoryview(wrong)), 1 << 20)


@pytest.mark.parametrize(
    "code",
    [
        halves(1 << 40),
        halves(3, 3, 2),  # a copy of nothing
        halves(65536, 0, 0, 0, 3, 1 << 40),
        halves(65536, 0, 40, 40, 3, 65535),
        halves(2, 0, 63, 63),
        halves(1, 2),
        halves(2, 0, 0, 0),
        halves(0, 1),
        b"\xff" * 40,
    ],
)
def test_geometries_that_make_no_sense(code):
    with pytest.raises(CodecError):
        geometry.unpack(Reader(memoryview(code)), 1 << 40)


@pytest.mark.parametrize("shapes", [None, [(100, 64), (60, 64), (96, 64)]])
def test_damaged_codes_are_refused_or_are_the_one_code_of_something_else(shapes):
    support, layout = pinned_support()
    blob = context_positions.pack(support, layout.size, layout if shapes else None, 1 << 20)
    rng = np.random.default_rng(3)
    for _ in range(300):
        damaged = bytearray(blob)
        for _ in range(rng.integers(1, 4)):
            damaged[rng.integers(1, len(blob))] ^= 1 << rng.integers(8)
        check_stranger(bytes(damaged), support.size, layout.size)
    for length in range(len(blob)):
        check_stranger(blob[:length], support.size, layout.size)
    for tail in b"\0", b"\1", b"\0\0\0\0\0\0\0\0\0", b"\xff" * 9:
        with pytest.raises(CodecError):
            unpacked(blob + tail, support.size, layout.size)
    for count in 0, layout.size + 1:
        with pytest.raises(CodecError):
            unpacked(blob, count, layout.size)
    for count in 1, support.size - 1, support.size + 1:
        check_stranger(blob, count, layout.size)
    for size in layout.size - 1, layout.size + 1:
        check_stranger(blob, support.size, size)


@patient
@given(st.binary(max_size=60), st.integers(0, 400), st.integers(1, 3000))
def test_any_bytes_are_refused_or_the_one_code_of_something(data, count, size):
    check_stranger(bytes([context_positions.MARK]) + data, count, size)
    check_stranger(bytes([context_positions.MARK, 0]) + data, count, size)


def check_stranger(blob, count, size):
    try:
        decoded = unpacked(blob, count, size)
    except CodecError:
        return
    assert decoded.size == count
    assert (np.diff(decoded, prepend=-1) > 0).all()
    assert (decoded < size).all()
    if blob[0] == context_positions.MARK:
        reader = Reader(memoryview(blob)[1:])
        shapes = geometry.unpack(reader, size)
        assert context_positions.pack(decoded, size, layout_of(shapes), 1 << 20) == blob


@pytest.mark.parametrize(
    ("code", "count", "size"),
    [
        (b"\0" + b"x" * 40, 1 << 29, 1 << 30),  # more positions than bytes can be for
        (b"\0", 1 << 29, 1 << 29),
        (b"\0" + b"x" * 40, 3000, 1 << 40),  # too sparse
        (halves(1, 0, 2, 38), 1 << 24, 1 << 40),  # rows of 2**38 columns
        (halves(1, 0, 38, 2), 1 << 24, 1 << 40),  # rows of 4
    ],
)
def test_no_memory_for_what_cannot_be_there(code, count, size):
    tracemalloc.start()
    try:
        with pytest.raises(CodecError):
            unpacked(bytes([context_positions.MARK]) + code, count, size)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_what_only_a_caller_can_get_wrong():
    for wrong in ([3, 2], [1, 1], [-1, 2], [0, 50]):
        with pytest.raises(ValueError, match="ascend"):
            context_positions.pack(np.array(wrong), 50, None, 1000)
    with pytest.raises(ValueError, match="layout"):
        context_positions.pack(np.array([1]), 50, layout_of([(7, 7)]), 1000)
    sparse = np.array([5, SPARSEST * 3])
    assert context_positions.pack(sparse, 3 * SPARSEST + 1, None, 1000) is None
    assert coding.pack(sparse, 3 * SPARSEST + 1, None, "smallest")[0] <= golomb_rice.MAX_PARAMETER
