import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedglm.compression.codec import CodecError, codec_names, codec_options, decode, make_codec
from fedglm.compression.downlink import ModelVersions, Replica, vector_sha256
from fedglm.compression.errors import VersionMismatch
from fedglm.compression.layout import Layout
from fedglm.compression.wire.envelope import DOWNLINK, unwrap, varint, wrap

SIZE = 3000
LAYOUT = Layout(("w",), ((SIZE,),)).sha256
OTHER = Layout(("v",), ((SIZE,),)).sha256


def normal(seed, scale=0.05, size=SIZE):
    return (np.random.default_rng(seed).standard_normal(size) * scale).astype(np.float32)


def served(codec="topk-sign", rounds=0, **options):
    versions = ModelVersions(normal(0), LAYOUT, make_codec(codec), **options)
    for number in range(rounds):
        versions.publish(normal(number + 1, 1e-3))
    return versions


def newcomer(versions):
    replica = Replica(0, np.zeros(versions.vector.size, np.float32), LAYOUT)
    replica.apply(versions.message_since(None))
    return replica


def assert_same(replica, versions):
    assert replica.version == versions.version
    assert replica.vector.tobytes() == versions.vector.tobytes()
    assert replica.sha256 == versions.sha256 == vector_sha256(versions.vector)


def resealed(blob, change):
    kind, reader = unwrap(blob, DOWNLINK)
    body = bytearray(reader.take(reader.remaining))
    change(body)
    return wrap(DOWNLINK, kind, body)


@pytest.mark.parametrize("grid", ["fp16", "fp32"])
@pytest.mark.parametrize("feedback", [True, False])
@pytest.mark.parametrize("codec", codec_names())
def test_nodes_that_missed_rounds_hold_the_same_bits(codec, feedback, grid):
    versions = served(codec, feedback=feedback, grid=grid)
    every, some, once = (Replica(0, normal(0)) for _ in range(3))
    for number in range(1, 10):
        versions.publish(normal(number, 1e-3))
        every.apply(versions.message_since(every.version))
        assert_same(every, versions)
        if number % 3 == 0:
            some.apply(versions.message_since(some.version))
            assert_same(some, versions)
    once.apply(versions.message_since(once.version))
    assert_same(once, versions)
    assert_same(newcomer(versions), versions)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sets(st.integers(0, 3)), min_size=1, max_size=12), st.sampled_from(codec_names()))
def test_any_attendance(rounds, codec):
    versions = ModelVersions(normal(0, size=200), LAYOUT, make_codec(codec))
    nodes = [Replica(0, normal(0, size=200)) for _ in range(4)]
    for number, present in enumerate(rounds):
        versions.publish(normal(number + 1, 1e-2, 200))
        for index in present:
            nodes[index].apply(versions.message_since(nodes[index].version))
            assert_same(nodes[index], versions)


def test_deltas_are_short_and_old_ones_give_way_to_a_snapshot():
    versions = served("topk-sign", rounds=3)
    assert len(versions.message_since(0)) < 3 * 70 + 80
    assert len(versions.message_since(3)) < 60
    snapshot = len(versions.snapshot())
    assert 1.5 * SIZE < snapshot < 2 * SIZE
    for number in range(200):
        versions.publish(normal(number, 1e-3))
    lengths = [len(versions.message_since(node_version)) for node_version in range(versions.version + 1)]
    assert max(lengths) == lengths[0] == len(versions.snapshot()) < 2 * SIZE
    assert lengths[-1] < 70
    assert versions.message_since(0) == versions.snapshot()
    assert sorted(lengths, reverse=True) == lengths


def test_a_snapshot_is_shorter_than_float16_and_the_same_bits():
    versions = ModelVersions(normal(0, 0.02, 50_000), LAYOUT, make_codec("topk-sign"))
    assert 1.6 * 50_000 < len(versions.snapshot()) < 1.75 * 50_000
    replica = Replica(0, np.zeros(50_000, np.float32))
    replica.apply(versions.snapshot())
    assert replica.vector.tobytes() == versions.vector.tobytes()


def test_bits_that_cannot_be_modelled_go_as_they_are():
    bits = np.random.default_rng(3).integers(0, 1 << 16, 5000, dtype=np.uint16)
    vector = bits.view(np.float16).astype(np.float32)
    vector[~np.isfinite(vector)] = 1
    versions = ModelVersions(vector, LAYOUT, make_codec("topk-sign"))
    assert len(versions.snapshot()) <= 2 * 5000 + 60
    replica = Replica(0, np.zeros(5000, np.float32))
    replica.apply(versions.snapshot())
    assert replica.vector.tobytes() == versions.vector.tobytes()


def test_publish_returns_the_coded_bytes():
    versions = served("dense-fp32")
    assert versions.publish(normal(1)) == len(make_codec("dense-fp32").encode(normal(1)))
    assert versions.version == 1


@pytest.mark.parametrize("node_version", [None, -1, 99])
def test_who_holds_no_published_version_gets_a_snapshot(node_version):
    versions = served(rounds=2)
    assert versions.message_since(node_version) == versions.snapshot()


@pytest.mark.parametrize("codec", ["topk-fp16", "int8", "dense-fp16"])
@pytest.mark.parametrize("grid", ["fp16", "fp32"])
def test_feedback_loses_nothing(codec, grid):
    """Model plus residual is what an uncoded server would hold, to float32 rounding."""
    versions = served(codec, grid=grid)
    expected = normal(0).astype(np.float64)
    for number in range(1, 30):
        versions.publish(normal(number, 1e-4))
        expected += normal(number, 1e-4)
    reached = versions.vector.astype(np.float64) + versions.state()["residual"]
    assert np.abs(reached - expected).max() < 1e-6


def test_small_steps_arrive_on_a_coarse_grid():
    """A step below half the grid's spacing is rounded away each time, unless the residual keeps it."""
    start = np.ones(50, np.float32)
    step = np.full(50, 1e-4, np.float32)
    moved = {}
    for feedback in (True, False):
        versions = ModelVersions(start, LAYOUT, make_codec("dense-fp32"), feedback=feedback)
        for _ in range(100):
            versions.publish(step)
        moved[feedback] = float(versions.vector[0]) - 1
    assert moved[True] == pytest.approx(1e-2, abs=1e-3)
    assert moved[False] == 0


def test_the_model_lies_on_the_grid():
    versions = served(rounds=5)
    assert versions.vector.tobytes() == versions.vector.astype(np.float16).astype(np.float32).tobytes()
    assert not versions.vector.flags.writeable


def test_out_of_range_is_an_error_and_changes_nothing():
    for grid in ("fp16", "fp32"):
        with pytest.raises(ValueError, match=rf"70000\.0 at position 1, out of range of the {grid} grid"):
            ModelVersions(np.array([1, 70000], np.float32), LAYOUT, make_codec("int8"), grid=grid)
    versions = served(rounds=1)
    before = versions.version, versions.sha256, versions.message_since(0), versions.state()["residual"].tobytes()
    for step, reason in (
        (np.full(SIZE, 1e6, np.float32), "fp16 grid"),
        (np.full(SIZE, np.nan, np.float32), "nan at position 0"),
        (np.zeros(SIZE + 1, np.float32), "elements"),
    ):
        with pytest.raises(ValueError, match=reason):
            versions.publish(step)
    assert before == (
        versions.version,
        versions.sha256,
        versions.message_since(0),
        versions.state()["residual"].tobytes(),
    )


def test_order_and_versions():
    versions = served(rounds=1)
    first = versions.message_since(0)
    versions.publish(normal(9, 1e-3))
    second, both = versions.message_since(1), versions.message_since(0)
    replica = Replica(0, normal(0))
    with pytest.raises(VersionMismatch, match="from version 1, but version 0"):
        replica.apply(second)
    assert replica.version == 0
    replica.apply(first)
    for again in (first, both):
        with pytest.raises(VersionMismatch, match="snapshot"):
            replica.apply(again)
    replica.apply(second)
    assert_same(replica, versions)
    replica.apply(versions.message_since(2))  # nothing new: a message that only confirms
    assert_same(replica, versions)


def test_other_bits_of_the_same_version_are_noticed():
    versions = served(rounds=2)
    diverged = Replica(0, normal(77))
    before = diverged.vector
    with pytest.raises(VersionMismatch, match="SHA-256"):
        diverged.apply(versions.message_since(0))
    assert diverged.version == 0
    assert diverged.vector is before
    diverged.apply(versions.message_since(None))
    assert_same(diverged, versions)


def test_another_layout():
    replica = Replica(0, normal(0), OTHER)
    with pytest.raises(CodecError, match="layout"):
        replica.apply(served(rounds=1).message_since(0))
    with pytest.raises(ValueError, match="hex"):
        Replica(0, normal(0), "abc")


@pytest.mark.parametrize("node_version", [None, 0])
@settings(deadline=None)
@given(data=st.data())
def test_tampering_is_all_or_nothing(node_version, data):
    blob = served(rounds=3).message_since(node_version)
    replica = Replica(0, normal(0), LAYOUT)
    before = replica.vector

    def change(body):
        index = data.draw(st.integers(0, len(body) - 1))
        body[index] ^= 1 << data.draw(st.integers(0, 7))

    flipped = bytearray(blob)
    change(flipped)
    with pytest.raises(CodecError):
        replica.apply(flipped)
    try:
        replica.apply(resealed(blob, change))  # with the CRC right again only the version's number is a matter of trust
    except CodecError:
        assert replica.vector is before
        assert replica.version == 0
    else:
        assert node_version is None or replica.version == 3


@given(st.binary(max_size=120), st.integers(0, 3))
def test_random_messages(body, kind):
    replica = Replica(0, normal(0, size=10))
    for blob in (body, wrap(DOWNLINK, kind, body), wrap(DOWNLINK, kind, b"\1" + bytes(40) + body)):
        with pytest.raises(CodecError):
            replica.apply(blob)


def test_every_truncation():
    versions = served(rounds=2)
    replica = Replica(0, normal(0))
    for node_version in (None, 0):
        blob = versions.message_since(node_version)
        for length in range(0, len(blob), 7):
            with pytest.raises(CodecError):
                replica.apply(blob[:length])


def replayed_plainly(vector, updates, grid):
    """What replaying deltas means: after each of them all of the vector is rounded to the grid."""
    dtype = {"fp16": "<f2", "fp32": "<f4"}[grid]
    vector = vector.astype(dtype).astype(np.float32)
    for update in updates:
        update.add_to(vector, 1.0)
        vector = vector.astype(dtype).astype(np.float32)
    return vector


@given(
    st.integers(0, 2**32),
    st.lists(st.tuples(st.sampled_from(codec_names()), st.floats(1e-6, 3000)), max_size=6),
    st.sampled_from(["fp16", "fp32"]),
    st.sampled_from([0.01, 0.05, 1.0]),
)
def test_rounding_what_was_touched_is_rounding_all(seed, steps, grid, density):
    """Bit for bit, signs of zeros included: a sparse delta costs the values that it holds, and not the model's size."""
    start = normal(seed, 5.0)
    start[::7], start[1::7] = -0.0, 2.0**-24
    codes = []
    for number, (name, scale) in enumerate(steps):
        options = {"density": density} if "density" in codec_options(name) else {}
        codes.append(make_codec(name, **options).encode(normal(seed + number + 1, scale)))
    expected = replayed_plainly(start, [decode(code, size=SIZE) for code in codes], grid)
    deltas = b"".join(varint(len(code)) + code for code in codes)
    head = bytes([{"fp16": 1, "fp32": 2}[grid]]) + bytes(8) + bytes.fromhex(vector_sha256(expected))
    message = wrap(DOWNLINK, 1, head, varint(0), varint(len(codes)), deltas)
    replica = Replica(0, start)
    if len(deltas) >= SIZE * (2 if grid == "fp16" else 4):
        with pytest.raises(CodecError, match="longer than a snapshot"):
            replica.apply(message)
        return
    replica.apply(message)
    assert replica.vector.tobytes() == expected.tobytes()


@pytest.mark.parametrize("codec", codec_names())
def test_whatever_a_node_has_missed_one_message_brings_it_there(codec):
    """No honest server comes near to the bounds of a message."""
    options = {"density": 0.002} if "density" in codec_options(codec) else {}
    versions = ModelVersions(normal(0), LAYOUT, make_codec(codec, **options))
    published = [versions.vector]
    for number in range(70):
        versions.publish(normal(number + 1, 1e-3))
        published.append(versions.vector)
    for node_version in (0, 5, 6, 7, 40, 69, 70):
        replica = Replica(node_version, published[node_version], LAYOUT, grid="fp16", codec=codec)
        replica.apply(versions.message_since(node_version))
        assert_same(replica, versions)


def test_a_message_of_endless_deltas_is_refused():
    many = served("topk-sign").message_since(0)
    padded = resealed(many, lambda body: body.extend(bytes(2 * SIZE)))
    with pytest.raises(CodecError, match="longer than a snapshot"):
        Replica(0, normal(0)).apply(padded)


@pytest.mark.parametrize("feedback", [True, False])
@pytest.mark.parametrize("grid", ["fp16", "fp32"])
def test_a_restored_server_goes_on_with_the_same_bits(tmp_path, feedback, grid):
    versions = served(rounds=4, feedback=feedback, grid=grid)
    np.savez(tmp_path / "state.npz", **versions.state())
    with np.load(tmp_path / "state.npz", allow_pickle=False) as stored:
        again = ModelVersions.restore(dict(stored), LAYOUT, make_codec("topk-sign"), feedback=feedback, grid=grid)
    for _ in range(2):
        assert again.version == versions.version
        assert again.sha256 == versions.sha256
        for node_version in (None, 0, 2, 4):
            assert again.message_since(node_version) == versions.message_since(node_version)
        for server in (again, versions):
            server.publish(normal(50, 1e-3))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("vector", np.zeros(SIZE)),
        ("vector", np.full(SIZE, np.nan, np.float16)),
        ("residual", np.zeros(3, np.float32)),
        ("version", np.array([1])),
        ("version", np.array([4, 4])),
        ("delta_sizes", np.array([1 << 40])),
        ("delta_sizes", np.array([-5, 10])),
        ("deltas", np.zeros(7, np.uint8)),
        ("deltas", None),
    ],
)
def test_a_damaged_state_is_refused(name, value):
    state = {**served(rounds=4).state(), name: value}
    if value is None:
        del state[name]
    with pytest.raises(CodecError, match="cannot be read"):
        ModelVersions.restore(state, LAYOUT, make_codec("topk-sign"))


def test_a_state_of_another_grid_is_refused():
    with pytest.raises(CodecError, match="grid"):
        ModelVersions.restore(served(rounds=1).state(), LAYOUT, make_codec("topk-sign"), grid="fp32")


def test_golden_message():
    """The bytes of a message of two deltas from small whole numbers."""
    start = np.arange(-20, 20, dtype=np.float32)
    versions = ModelVersions(start, LAYOUT, make_codec("topk-sign", density=0.1))
    for number in (1, 2):
        versions.publish(np.arange(40, dtype=np.float32) * number)
    path = Path(__file__).parents[1] / "golden" / "downlink.bin"
    if os.environ.get("FEDGLM_REWRITE_GOLDEN") == "1":
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(versions.message_since(0))
    assert versions.message_since(0) == path.read_bytes()
    replica = Replica(0, start)
    replica.apply(path.read_bytes())
    assert replica.vector.tobytes() == versions.vector.tobytes()
