"""Somebody's own Flower app gets compression by two lines."""

import logging
from functools import partial
from pathlib import Path

import numpy as np
import plain_flower_app as theirs
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, FedMedian, FedTrimmedAvg, Krum
from flwr.supercore.task_identity import TaskIdentity

from fedglm.client.gate import STYPE
from fedglm.client.mods import compress_uplink
from fedglm.client.state import NodeState
from fedglm.compression.codec import CodecError, decode, make_codec
from fedglm.compression.messages import RECORD
from fedglm.server.strategy import Compressed
from fedglm.simulations.inline import InlineGrid, prepare_workers

NODES = 4
ROUNDS = 6


@pytest.fixture(scope="module", autouse=True)
def _workers():
    prepare_workers()


def run(strategy, factory, *, rounds=ROUNDS):
    """The user's server: `Strategy.start`, on the inline engine."""
    with InlineGrid(factory, NODES, workers=1) as grid:
        return strategy.start(grid=grid, initial_arrays=theirs.initial_arrays(), num_rounds=rounds)


def compressed(tmp_path, **options):
    return partial(theirs.make_compressed_app, tmp_path, **options)


def strategy(kind, **options):
    return kind(fraction_evaluate=0.0, min_train_nodes=NODES, min_available_nodes=NODES, **options)


@pytest.fixture(scope="module")
def plain_accuracy():
    return {
        "fedavg": theirs.accuracy(run(strategy(FedAvg), theirs.make_app).arrays),
        "fedadam": theirs.accuracy(run(strategy(FedAdam, eta=0.03), theirs.make_app).arrays),
    }


# --- on a real grid


def test_fedavg_learns_as_well_with_a_twentieth_of_the_bytes(tmp_path, plain_accuracy):
    wrapped = Compressed(strategy(FedAvg))
    result = run(wrapped, compressed(tmp_path))
    assert plain_accuracy["fedavg"] > 0.9
    assert theirs.accuracy(result.arrays) > plain_accuracy["fedavg"] - 0.03
    floats = sum(array.numel() for array in theirs.Network().state_dict().values() if array.is_floating_point())
    assert wrapped.dense_uplink_bytes == ROUNDS * NODES * 4 * floats
    assert 0 < wrapped.uplink_bytes <= 0.05 * wrapped.dense_uplink_bytes
    # The model keeps its form: names, shapes and dtypes, the integer counter among them.
    for name, before in theirs.initial_arrays().items():
        after = result.arrays[name]
        assert (after.dtype, after.shape) == (before.dtype, before.shape), name
    batches = len(range(0, len(theirs.rows(0, NODES)[1]), 32))
    assert result.arrays["1.num_batches_tracked"].numpy() == ROUNDS * batches
    assert set(result.train_metrics_clientapp[1]) == {"train-loss"}


def test_fedadam_learns_as_well(tmp_path, plain_accuracy):
    wrapped = Compressed(strategy(FedAdam, eta=0.03))
    result = run(wrapped, compressed(tmp_path))
    assert plain_accuracy["fedadam"] > 0.85
    assert theirs.accuracy(result.arrays) > plain_accuracy["fedadam"] - 0.05
    assert wrapped.uplink_bytes <= 0.05 * wrapped.dense_uplink_bytes


def test_the_residual_lies_on_the_nodes_disk_and_another_run_does_not_take_it_up(tmp_path):
    wrapped = Compressed(strategy(FedAvg))
    run(wrapped, compressed(tmp_path), rounds=2)
    (folder,) = tmp_path.iterdir()
    assert sorted(path.name for path in folder.iterdir()) == [f"node-p{i}" for i in range(NODES)]
    size = wrapped.dense_uplink_bytes // (4 * 2 * NODES)
    for node in folder.iterdir():
        state = NodeState.load(node, size)
        assert (state.residual_round, state.pending.round) == (1, 2)
        assert state.residual.any()
    first = run(Compressed(strategy(FedAvg)), compressed(tmp_path / "fresh"), rounds=1)
    again = run(Compressed(strategy(FedAvg)), compressed(tmp_path), rounds=1)
    assert len(list(tmp_path.iterdir())) == 3
    for name, array in first.arrays.items():
        np.testing.assert_allclose(again.arrays[name].numpy(), array.numpy(), atol=1e-6)


def test_a_damaged_update_is_rejected_and_the_round_goes_on(tmp_path, caplog):
    wrapped = Compressed(strategy(FedAvg))
    logging.getLogger("flwr").addHandler(caplog.handler)
    try:
        result = run(wrapped, partial(theirs.make_app_with_a_liar, tmp_path), rounds=3)
    finally:
        logging.getLogger("flwr").removeHandler(caplog.handler)
    assert "update of node 2 rejected: the blob's CRC-32 does not match" in caplog.text
    assert sorted(result.train_metrics_clientapp) == [1, 2, 3]
    size = wrapped.dense_uplink_bytes // 4 // (3 * NODES - 1)
    (folder,) = tmp_path.iterdir()
    acknowledged = [NodeState.load(folder / f"node-p{i}", size).residual_round for i in range(NODES)]
    assert acknowledged == [2, 1, 2, 2]


@pytest.mark.parametrize("kind", [partial(Krum, num_malicious_nodes=1), FedMedian])
def test_strategies_that_look_at_single_models_get_them_dense(tmp_path, kind):
    result = run(Compressed(strategy(kind)), compressed(tmp_path, density=0.3))
    assert theirs.accuracy(result.arrays) > 0.8
    assert result.arrays["1.num_batches_tracked"].dtype == "int64"


def test_the_mod_without_the_wrapper_sends_nothing_and_says_why(tmp_path):
    plain = strategy(FedAvg)
    with InlineGrid(compressed(tmp_path), NODES, workers=1) as grid:
        arrays = theirs.initial_arrays()
        replies = list(grid.send_and_receive(plain.configure_train(1, arrays, ConfigRecord(), grid)))
    assert len(replies) == NODES
    for reply in replies:
        assert "compress_uplink needs Compressed(strategy) on the server" in reply.error.reason
    assert not list(tmp_path.iterdir())


def test_the_wrapper_without_the_mod_rejects_dense_replies_and_says_why():
    wrapped = Compressed(strategy(FedAvg))
    with InlineGrid(theirs.make_app, NODES, workers=1) as grid:
        messages = wrapped.configure_train(1, theirs.initial_arrays(), ConfigRecord(), grid)
        replies = list(grid.send_and_receive(messages))
        assert all(reply.has_content() for reply in replies)
        with pytest.raises(CodecError, match=r"mods=\[compress_uplink\(\)\]"):
            wrapped._take(replies[0])  # noqa: SLF001 - the reason is otherwise only in the log
        assert wrapped.aggregate_train(1, replies) == (None, None)


@pytest.mark.slow
def test_on_flowers_own_runtime(tmp_path, plain_accuracy):
    pytest.importorskip("ray")
    from flwr.simulation import run_simulation

    wrapped, results = Compressed(strategy(FedAvg)), []
    server = ServerApp()

    @server.main()
    def main(grid, context):
        results.append(wrapped.start(grid=grid, initial_arrays=theirs.initial_arrays(), num_rounds=ROUNDS))

    run_simulation(
        server_app=server,
        client_app=theirs.make_compressed_app(tmp_path),
        num_supernodes=NODES,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"num_cpus": 2}},
    )
    assert theirs.accuracy(results[0].arrays) > plain_accuracy["fedavg"] - 0.03
    assert wrapped.uplink_bytes <= 0.05 * wrapped.dense_uplink_bytes
    (folder,) = tmp_path.iterdir()
    assert len(list(folder.iterdir())) == NODES


# --- message by message


class Wire:
    """The wrapper and some nodes with the mod, joined by hand; `learn` is each node's own ClientApp."""

    def __init__(self, folder, inner, learn, nodes=2, **options):
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        self.wrapped = Compressed(inner)
        self.options = {"codec": "topk-fp16", "density": 0.25, "residual_decay": 1.0} | options
        self.folder, self.learn, self.nodes = folder, learn, nodes

    def get_node_ids(self):
        """All that the strategy asks of a grid."""
        return range(2, 2 + self.nodes)

    def replies(self, number, arrays):
        mod = compress_uplink(state_dir=self.folder, **self.options)
        replies = []
        for message in self.wrapped.configure_train(number, arrays, ConfigRecord(), self):
            node = message.metadata.dst_node_id
            message.metadata.__dict__["_message_id"] = f"m{node}"
            message.content = message.content.copy()
            replies.append(mod(message, Context(5, node, {}, RecordDict(), {}), partial(self.learn, node)))
        return sorted(replies, key=lambda reply: reply.metadata.src_node_id)

    def round(self, number, arrays, spoil=lambda replies: replies):
        return self.wrapped.aggregate_train(number, spoil(self.replies(number, arrays)))


def record(**arrays):
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()})


def answer(message, arrays, **metrics):
    content = {"arrays": arrays, "metrics": MetricRecord({"num-examples": 10} | metrics)}
    return Message(RecordDict(content), reply_to=message)


def drift(node, message, context):
    """Every node moves in its own direction, by a fixed amount a round."""
    assert RECORD not in message.content
    base = {name: array.numpy() for name, array in message.content["arrays"].items()}
    step = np.random.default_rng(node).normal(0, 0.1, base["w"].size).reshape(base["w"].shape).astype(np.float32)
    return answer(message, record(w=base["w"] + step, n=base["n"] + node, b=base["b"]), loss=float(node))


START = record(w=np.zeros((4, 6), np.float32), n=np.int64(0), b=np.zeros(3, np.float16))


def avg(nodes=2, kind=FedAvg, **options):
    return kind(fraction_evaluate=0.0, min_train_nodes=nodes, min_available_nodes=nodes, **options)


def test_all_that_nodes_learn_arrives_sooner_or_later(tmp_path):
    """Error feedback, end to end: what arrived and what waits is all that was learned."""
    wire, arrays = Wire(tmp_path, avg(), drift), START
    for number in range(1, 6):
        arrays, _ = wire.round(number, arrays)
    steps = [np.random.default_rng(node).normal(0, 0.1, 24).astype(np.float32) for node in (2, 3)]
    waiting = [NodeState.load(node, 27).pending.residual[3:] for node in sorted(tmp_path.glob("*/*"))]
    total = arrays["w"].numpy().reshape(-1) + np.mean(waiting, axis=0)
    np.testing.assert_allclose(total, 5 * np.mean(steps, axis=0), atol=1e-5)
    assert np.any(waiting)


def test_integers_travel_as_they_are_and_stay_integers(tmp_path):
    wire, arrays = Wire(tmp_path, avg(), drift), START
    for number in range(1, 4):
        arrays, _ = wire.round(number, arrays)
        assert {name: array.dtype for name, array in arrays.items()} == {"w": "float32", "n": "int64", "b": "float16"}
    # Means of 2 and 3: 2.5, then 5 and so on, rounded as integers are.
    assert arrays["n"].numpy() == 6


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
        arrays[RECORD] = Array("float32", (27,), STYPE, data)
    reply.content["arrays"] = ArrayRecord(arrays | more)


BAD = {
    "truncated": lambda reply: resent(reply, blob_of(reply)[:-1]),
    "empty": lambda reply: resent(reply, b""),
    "another size": lambda reply: resent(reply, make_codec("dense-fp32").encode(np.ones(28, np.float32))),
    "an array too many": lambda reply: resent(reply, x=Array(np.zeros(2))),
    "a record too many": lambda reply: reply.content.update({"more": record(x=np.zeros(2))}),
    "no arrays": lambda reply: reply.content.pop("arrays"),
    "an integer of another shape": lambda reply: resent(reply, n=Array(np.zeros(5, np.int64))),
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
    orders = [message.content[RECORD]["acknowledged"] for message in wire.wrapped.configure_train(2, START, ConfigRecord(), wire)]
    assert sorted(orders) == [0, 1, 1]


def test_no_good_reply_at_all_is_for_the_strategy_to_judge(tmp_path):
    wire = Wire(tmp_path, avg(), drift)

    def spoil(replies):
        for reply in replies:
            BAD["empty"](reply)
        return replies

    assert wire.round(1, START, spoil) == (None, None)


def test_a_strategy_that_is_started_again_begins_a_new_run(tmp_path):
    wire = Wire(tmp_path, avg(), drift)
    first = [blob_of(reply) for reply in wire.replies(1, START)]
    wire.round(1, START)
    wire.round(2, START)
    assert [blob_of(reply) for reply in wire.replies(1, START)] == first
    assert len(list(tmp_path.iterdir())) == 2


def test_a_damaged_residual_is_an_error_that_names_its_folder(tmp_path):
    wire = Wire(tmp_path, avg(), drift)
    wire.round(1, START)
    (node, *_) = sorted(tmp_path.glob("*/*"))
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
    [{}, {"run": "r", "round": 1}, {"run": "r", "round": "1", "acknowledged": 0}, {"run": 5, "round": 1, "acknowledged": 0}],
)
def test_an_order_that_makes_no_sense_is_refused(tmp_path, order):
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    message = Message(RecordDict({RECORD: ConfigRecord(order), "arrays": START}), dst_node_id=2, message_type="train")
    with pytest.raises(CodecError, match="missing or unknown fields|expected, got"):
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
    assert all(Path(path).is_relative_to(inside) for path in written)


def test_evaluation_passes_untouched(tmp_path):
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    message = Message(RecordDict({"arrays": START}), dst_node_id=2, message_type="evaluate")
    seen = []
    mod = compress_uplink(state_dir=tmp_path)
    assert mod(message, Context(5, 2, {}, RecordDict(), {}), lambda *args: seen.append(args) or message) is message
    assert list(seen[0][0].content) == ["arrays"]


def test_an_unknown_codec_is_refused_where_the_app_is_made():
    with pytest.raises(ValueError, match="topk-sign"):
        compress_uplink("topk-sgn")
