"""`compress_uplink` and `Compressed`, message by message."""

import tracemalloc
from functools import partial
from io import BytesIO

import numpy as np
import pytest
from flower_wire import START, Wire, avg, drift, record
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, FedMedian, FedTrimmedAvg, Krum
from flwr.supercore.task_identity import TaskIdentity

from fedglm.client import mods
from fedglm.client.mods import compress_uplink
from fedglm.client.state.node_state import NodeState
from fedglm.compression.codec import CodecError, decode, make_codec
from fedglm.protocol.messages import RECORD, UPDATE_STYPE


def test_all_that_nodes_learn_arrives_sooner_or_later(tmp_path):
    """Error feedback, end to end: what arrived and what waits is all that was learned."""
    wire, arrays = Wire(tmp_path, avg(), drift), START
    for number in range(1, 6):
        arrays, _ = wire.round(number, arrays)
    steps = [np.random.default_rng(node).normal(0, 0.1, 24).astype(np.float32) for node in (2, 3)]
    waiting = [NodeState.load(node, 27).pending.residual[3:] for node in sorted(tmp_path.glob("node-*"))]
    total = arrays["w"].numpy().reshape(-1) + np.mean(waiting, axis=0)
    np.testing.assert_allclose(total, 5 * np.mean(steps, axis=0), atol=1e-5)
    assert np.any(waiting)


def test_what_waits_is_kept_when_the_strategy_makes_no_model(tmp_path):
    class Undecided(FedAvg):
        """In its second round it takes the replies and makes nothing of them."""

        def aggregate_train(self, server_round, replies):
            arrays, metrics = super().aggregate_train(server_round, replies)
            return (None if server_round == 2 else arrays), metrics

    wire = Wire(tmp_path, avg(kind=Undecided), drift)
    arrays, _ = wire.round(1, START)
    nodes = sorted(tmp_path.iterdir())
    waiting = [NodeState.load(node, 27).pending.residual for node in nodes]
    assert wire.round(2, arrays)[0] is None
    arrays, _ = wire.round(3, arrays)
    for node, residual in zip(nodes, waiting, strict=True):
        state = NodeState.load(node, 27)
        assert state.residual_round == 1
        np.testing.assert_array_equal(state.residual, residual)
    wire.round(4, arrays)
    assert [NodeState.load(node, 27).residual_round for node in nodes] == [3, 3]


def test_integers_travel_as_they_are_and_stay_integers(tmp_path):
    wire, arrays = Wire(tmp_path, avg(), drift), START
    for number in range(1, 4):
        arrays, _ = wire.round(number, arrays)
        assert {name: array.dtype for name, array in arrays.items()} == {
            name: array.dtype for name, array in START.items()
        }
    # Means of 2 and 3: 2.5, then 5 and so on, rounded as integers are.
    assert arrays["n"].numpy() == 6


def test_running_statistics_travel_as_they_are(tmp_path):
    """A variance whose steps were coded may fall below zero, and the model then answers NaN."""
    wire, arrays = Wire(tmp_path, avg(), drift, codec="topk-sign", density=0.05), START
    for number in range(1, 4):
        arrays, _ = wire.round(number, arrays)
    assert arrays["s.running_var"].numpy().tolist() == [0.125, 1.0]


def test_sparse_sums_give_the_strategy_the_mean_that_dense_models_give(tmp_path):
    class OwnAverage(FedAvg):
        """A subclass may look at single models, so it gets them dense."""

    sparse, metrics = Wire(tmp_path / "a", avg(), drift).round(1, START)
    dense, same = Wire(tmp_path / "b", avg(kind=OwnAverage), drift).round(1, START)
    for name in START:
        np.testing.assert_allclose(sparse[name].numpy(), dense[name].numpy(), atol=1e-6)
    assert metrics == same
    assert metrics["loss"] == pytest.approx(2.5)


def test_weights_count(tmp_path):
    def weighted(node, message, context):
        reply = drift(node, message, context)
        reply.content["metrics"]["num-examples"] = 30 if node == 2 else 10
        return reply

    sparse, _ = Wire(tmp_path / "a", avg(), weighted, codec="dense-fp32").round(1, START)
    steps = [np.random.default_rng(node).normal(0, 0.1, 24) for node in (2, 3)]
    np.testing.assert_allclose(sparse["w"].numpy().reshape(-1), 0.75 * steps[0] + 0.25 * steps[1], atol=1e-6)


@pytest.mark.parametrize("kind", [FedAvgM, FedAdam, FedMedian, partial(FedTrimmedAvg, beta=0.2), Krum])
def test_other_strategies_step_and_keep_the_models_form(tmp_path, kind):
    wire, arrays = Wire(tmp_path, avg(3, kind), drift, nodes=3), START
    for number in (1, 2):
        arrays, _ = wire.round(number, arrays)
    assert {name: (array.dtype, array.shape) for name, array in arrays.items()} == {
        name: (array.dtype, array.shape) for name, array in START.items()
    }
    assert arrays["w"].numpy().any()


def blob_of(reply):
    return reply.content["arrays"][RECORD].data


def resent(reply, data=None, **more):
    arrays = dict(reply.content["arrays"])
    if data is not None:
        arrays[RECORD] = Array("float32", (27,), UPDATE_STYPE, data)
    reply.content["arrays"] = ArrayRecord(arrays | more)


BAD = {
    "truncated": lambda reply: resent(reply, blob_of(reply)[:-1]),
    "empty": lambda reply: resent(reply, b""),
    "another size": lambda reply: resent(reply, make_codec("dense-fp32").encode(np.ones(28, np.float32))),
    "an array too many": lambda reply: resent(reply, x=Array(np.zeros(2))),
    "a record too many": lambda reply: reply.content.update({"more": record(x=np.zeros(2))}),
    "no arrays": lambda reply: reply.content.pop("arrays"),
    "an integer of another shape": lambda reply: resent(reply, n=Array(np.zeros(5, np.int64))),
    "an integer of another kind": lambda reply: resent(reply, n=Array(np.array(1.5))),
    "a statistic that is not finite": lambda reply: resent(
        reply, **{"s.running_var": Array(np.array([1.0, np.nan], np.float32))}
    ),
    "an update of another type": lambda reply: resent(
        reply, **{RECORD: Array("float32", (27,), "fedglm.update/2", blob_of(reply))}
    ),
    "an integer that is a pickle": lambda reply: resent(reply, n=Array("int64", (), "numpy.ndarray", b"\x80\x04N.")),
}


@pytest.mark.parametrize("inner", [FedAvg, FedMedian])
@pytest.mark.parametrize("name", BAD)
def test_a_malformed_reply_is_a_failure_and_the_others_count(tmp_path, name, inner):
    def spoil(replies):
        BAD[name](replies[1])
        return replies

    wire = Wire(tmp_path, avg(3, inner), drift, nodes=3)
    arrays, metrics = wire.round(1, START, spoil)
    expected, _ = Wire(tmp_path / "two", avg(3, inner), drift, nodes=3).round(
        1, START, lambda replies: [replies[0], replies[2]]
    )
    for key in START:
        np.testing.assert_array_equal(arrays[key].numpy(), expected[key].numpy())
    assert metrics["loss"] == pytest.approx(3.0)
    orders = [
        message.content[RECORD]["acknowledged"]
        for message in wire.wrapped.configure_train(2, START, ConfigRecord(), wire)
    ]
    assert sorted(orders) == [0, 1, 1]


def npy(shape, descr="<i8", version=(1, 0), data=bytes(8)):
    """Serialised numpy data, whatever their header claims."""
    stream = BytesIO()
    write = np.lib.format.write_array_header_1_0 if version == (1, 0) else np.lib.format.write_array_header_2_0
    write(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    return stream.getvalue() + data


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (Array("int64", (), "numpy.ndarray", npy((2**24,))), "header of its data claims another"),
        (Array("int64", (), "numpy.ndarray", npy((2**24,), version=(2, 0))), "header of its data claims another"),
        (Array("int64", (), "numpy.ndarray", npy((), "<f8")), "header of its data claims another"),
        (Array("int64", (), "numpy.ndarray", npy((), data=bytes(8192))), "bytes for 8 bytes of values"),
        (Array("int64", (), "numpy.ndarray", npy((), data=b"")), "cannot be read"),
        (Array("int64", (), "numpy.ndarray", b"\x93NUMPY\x03\x00"), "cannot be read: npy format"),
        (Array("int64", (), "elsewhere.array", npy(())), "cannot be read: Unsupported serialization"),
        (Array("int64", (2**24,), "numpy.ndarray", npy((2**24,))), r"int64 of shape \(\) expected"),
        (Array("float64", (), "numpy.ndarray", npy((), "<f8")), r"int64 of shape \(\) expected, found float64"),
    ],
)
def test_an_array_is_not_loaded_before_its_size_is_known(tmp_path, array, reason):
    wire = Wire(tmp_path, avg(), drift)
    (reply, _) = wire.replies(1, START)
    resent(reply, n=array)
    tracemalloc.start()
    try:
        with pytest.raises(CodecError, match=reason):
            wire.wrapped._decode(reply)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_an_array_is_taken_in_either_format(tmp_path, version):
    wire = Wire(tmp_path, avg(), drift)
    (reply, _) = wire.replies(1, START)
    resent(reply, n=Array("int64", (), "numpy.ndarray", npy((), version=version)))
    assert wire.wrapped._decode(reply).norm() > 0


def test_no_good_reply_at_all_is_for_the_strategy_to_judge(tmp_path):
    wire = Wire(tmp_path, avg(), drift)

    def spoil(replies):
        for reply in replies:
            BAD["empty"](reply)
        return replies

    assert wire.round(1, START, spoil) == (None, None)


def test_a_strategy_that_is_started_again_begins_a_new_run(tmp_path):
    wire = Wire(tmp_path, avg(), drift)
    replies = wire.replies(1, START)
    first = [blob_of(reply) for reply in replies]
    wire.wrapped.aggregate_train(1, replies)
    wire.round(2, START)
    assert [blob_of(reply) for reply in wire.replies(1, START)] == first
    # The new run's residual is in the place of the old one's.
    nodes = sorted(tmp_path.iterdir())
    assert [node.name for node in nodes] == ["node-2", "node-3"]
    for node in nodes:
        state = NodeState.load(node, 27)
        assert (state.run, state.residual, state.pending.round) == (wire.wrapped._run, None, 1)


def test_a_damaged_residual_is_an_error_that_names_its_folder(tmp_path):
    wire = Wire(tmp_path, avg(), drift)
    wire.round(1, START)
    (node, *_) = sorted(tmp_path.glob("node-*"))
    (node / "state.json").write_text("{")
    with pytest.raises(Exception, match=str(node)):
        wire.replies(2, START)


def test_without_feedback_nothing_is_written(tmp_path):
    wire = Wire(tmp_path, avg(), drift, feedback=False)
    (reply, _) = wire.replies(1, START)
    assert decode(blob_of(reply), size=27).norm() > 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "order",
    [
        {},
        {"run": "r", "round": 1},
        {"run": "r", "round": "1", "acknowledged": 0},
        {"run": 5, "round": 1, "acknowledged": 0},
    ],
)
def test_an_order_that_makes_no_sense_is_refused(tmp_path, order):
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    message = Message(RecordDict({RECORD: ConfigRecord(order), "arrays": START}), dst_node_id=2, message_type="train")
    with pytest.raises(CodecError, match=r"missing or unknown fields|expected, got"):
        compress_uplink(state_dir=tmp_path)(message, Context(5, 2, {}, RecordDict(), {}), partial(drift, 2))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("run_name", ["../../elsewhere", "/etc", "a/b", ""])
def test_a_servers_word_never_leads_out_of_the_state_folder(tmp_path, run_name):
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    order = ConfigRecord({"run": run_name, "round": 1, "acknowledged": 0})
    message = Message(RecordDict({RECORD: order, "arrays": START}), dst_node_id=2, message_type="train")
    inside = tmp_path / "a" / "b" / "state"
    compress_uplink(state_dir=inside)(message, Context(5, 2, {}, RecordDict(), {}), partial(drift, 2))
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert written
    assert all(path.is_relative_to(inside) for path in written)


def test_evaluation_passes_untouched(tmp_path):
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    message = Message(RecordDict({"arrays": START}), dst_node_id=2, message_type="evaluate")
    seen = []
    mod = compress_uplink(state_dir=tmp_path)
    assert mod(message, Context(5, 2, {}, RecordDict(), {}), lambda *args: seen.append(args) or message) is message
    assert list(seen[0][0].content) == ["arrays"]


@pytest.mark.parametrize(
    ("codec", "options", "line"),
    [
        ("topk-sgn", {}, "there is no codec 'topk-sgn'; did you mean topk-sign"),
        ("topksign", {}, "there is no codec 'topksign'; did you mean topk-sign"),
        ("topk-sign", {"density": 3}, "density is a number above 0 and at most 1, not 3"),
        ("topk-sign", {"density": "0.1"}, "density is a number above 0 and at most 1, not '0.1'"),
        ("int8", {"density": 0.1}, "the codec 'int8' has no option 'density'; it has none"),
        ("topk-fp16", {"rank": 2}, "the codec 'topk-fp16' has no option 'rank'; did you mean density"),
        ("lowrank", {"overshoot": 1.5}, "the codec 'lowrank' has no option 'overshoot'"),
        ("topk-sign", {"overshoot": 3}, "overshoot is a number from 1 to 2, not 3"),
        ("int8", {"max_ratio": 0.1}, "the codec 'int8' has a fixed size: it takes no max_ratio"),
        ("topk-sign", {"max_ratio": 7}, "max_ratio = 7: input should be less than or equal to 1"),
        ("topk-sign", {"residual_limit": -1}, "residual_limit = -1: input should be greater than or equal to 0"),
    ],
)
def test_a_codec_or_option_that_is_none_is_refused_where_the_app_is_made(codec, options, line):
    with pytest.raises(CodecError) as caught:
        compress_uplink(codec, **options)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("codec", "given", "options"),
    [
        ("topk-sign", {}, {"density": 0.05, "overshoot": 1.5}),
        ("topk-sign", {"density": 0.2, "overshoot": 2}, {"density": 0.2, "overshoot": 2.0}),
        ("topk-sign", {"feedback": False, "overshoot": 2}, {"density": 0.05, "overshoot": 1.0}),
        ("hybrid", {"rank": 2}, {"density": 0.05, "rank": 2.0}),
        ("int8", {}, {}),
    ],
)
def test_what_the_mod_is_not_told_keeps_its_default(codec, given, options, tmp_path, monkeypatch):
    made, code = [], mods.code_update

    def noted(state, delta, base, number, settings, layout, **named):
        made.append(settings.make_codec(layout).options.model_dump())
        return code(state, delta, base, number, settings, layout, **named)

    monkeypatch.setattr(mods, "code_update", noted)
    Wire(tmp_path, avg(), drift, codec=codec, **given).replies(1, START)
    assert {name: made[0][name] for name in options} == options
