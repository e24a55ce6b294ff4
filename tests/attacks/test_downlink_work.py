"""A server that asks a node for endless work, or hands it weights that no run agreed to, in one message of the model.

Work is compared with that of a snapshot on the same machine: what a node must do for a newcomer's message anyway.
"""

import time

import numpy as np
import pytest

from fedglm.compression.codec import CodecError, decode, make_codec
from fedglm.compression.downlink import ModelVersions, Replica, vector_sha256
from fedglm.compression.kernels.signs import code_signs
from fedglm.compression.layout import Layout
from fedglm.compression.positions import context, geometry
from fedglm.compression.wire.envelope import DOWNLINK, varint, wrap, wrap_update

LAYOUT = Layout(("w",), ((1000, 1000),))
BASE = (np.random.default_rng(0).standard_normal(LAYOUT.size) * 0.05).astype(np.float16).astype(np.float32)
SIDE = 320
SMALL = Layout(("w",), ((SIDE, SIDE),))
"""A tenth, for messages of which what they hold is counted, and no time is measured."""


def head(result, grid, layout=LAYOUT):
    return bytes([grid]) + bytes.fromhex(layout.sha256)[:8] + bytes.fromhex(vector_sha256(result))


def deltas(code, count, result=BASE, grid=1, layout=LAYOUT):
    """A message of the same delta again and again."""
    of_all = head(result[: layout.size], grid, layout)
    return wrap(DOWNLINK, 1, of_all, varint(0), varint(count), *([varint(len(code)) + code] * count))


def snapshot(vector, grid, version=0):
    content = vector.astype("<f2" if grid == 1 else "<f4").tobytes()
    return wrap(DOWNLINK, 2, head(vector, grid), varint(version), varint(version), content)


def nothing():
    """The shortest delta: an update of nothing."""
    return make_codec("topk-sign", density=1e-9).encode(np.zeros(LAYOUT.size, np.float32))


def seconds(work):
    work()  # compiles
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def test_a_hundred_thousand_deltas_of_nothing_are_refused_before_the_first():
    message = deltas(nothing(), 90_000)
    assert len(message) < 2 * LAYOUT.size, "it is shorter than a snapshot, which bounded it once"
    with pytest.raises(CodecError, match="a message of 90000 deltas"):
        Replica(0, BASE).apply(message)


def test_as_many_deltas_as_go_through_take_no_longer_than_a_few_snapshots():
    shown = ModelVersions(BASE, LAYOUT.sha256, make_codec("topk-sign")).snapshot()
    one = seconds(lambda: Replica(0, BASE).apply(shown))
    message = deltas(nothing(), 64)
    assert seconds(lambda: Replica(0, BASE).apply(message)) < 3 * one


def test_deltas_that_are_short_and_hold_much_are_refused():
    """Nearly every position and one sign: a model that learns makes next to no bytes of them."""
    count = SMALL.size - 100
    at = np.sort(np.random.default_rng(0).choice(SMALL.size, count, replace=False)).astype(np.int64)
    places = context.pack(at, SMALL.size, SMALL, 10**9)
    signs = np.empty(count // 8, np.uint8)
    length = code_signs(True, signs, *geometry.to_arrays([(SIDE, SIDE)]), at, np.zeros(count, np.bool_))
    small = np.float32(1e-9).tobytes()
    code = wrap_update(5, SMALL.size, varint(count), small, varint(length + 1), signs[:length].tobytes(), places)
    assert decode(code, size=SMALL.size).work == count
    message = deltas(code, 50, layout=SMALL)
    assert len(message) < 2 * SMALL.size
    with pytest.raises(CodecError, match="longer than 16 snapshots"):
        Replica(0, BASE[: SMALL.size]).apply(message)


def test_deltas_of_many_components_are_refused_though_their_bytes_are_few():
    vector = (np.random.default_rng(1).standard_normal(SMALL.size) * 1e-3).astype(np.float32)
    code = make_codec("lowrank", rank=100, layout=SMALL).encode(vector)
    message = deltas(code, 2 * SMALL.size // (len(code) + 4), layout=SMALL)
    assert len(message) < 2 * SMALL.size
    with pytest.raises(CodecError, match="longer than 16 snapshots"):
        Replica(0, BASE[: SMALL.size]).apply(message)


@pytest.mark.parametrize("weight", [1e30, -70000.0])
def test_weights_beyond_any_model_s_are_refused_on_the_finer_grid_too(weight):
    """Base weights without a bound leave few updates possible, so that noise no longer hides which it was."""
    high = BASE.copy()
    high[7] = weight
    with pytest.raises(CodecError, match="at position 7, out of range of the fp32 grid"):
        Replica(3, BASE).apply(snapshot(high, 2, version=4))


def test_a_step_beyond_any_model_s_weights_is_refused():
    step = np.zeros(LAYOUT.size, np.float32)
    step[5] = 1e20
    code = make_codec("topk-fp16", density=1e-9).encode(step)
    reached = BASE.copy()
    decode(code, size=LAYOUT.size).add_to(reached, 1.0)
    with pytest.raises(CodecError, match="at position 5, out of range of the fp32 grid"):
        Replica(0, BASE).apply(deltas(code, 1, reached, grid=2))


def test_the_run_s_grid_and_codec_are_the_recipe_s():
    replica = Replica(0, BASE, LAYOUT.sha256, grid="fp16", codec="topk-sign")
    with pytest.raises(CodecError, match="on the grid fp32, and the run's is fp16"):
        replica.apply(snapshot(BASE, 2))
    other = make_codec("lowrank", layout=LAYOUT).encode(np.zeros(LAYOUT.size, np.float32))
    with pytest.raises(CodecError, match="coded by lowrank, not by topk-sign"):
        replica.apply(deltas(other, 1))
    replica.apply(snapshot(BASE, 1))
