"""Somebody's own Flower app gets compression by two lines."""

import logging
from functools import partial

import plain_flower_app as theirs
import pytest
from flwr.app import ConfigRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAdam, FedAvg, Krum

from fedglm.client.state.node_state import NodeState
from fedglm.compression.codec import CodecError
from fedglm.server.strategy import Compressed
from fedglm.simulations.engines.inline_grid import InlineGrid, prepare_workers

NODES = 4
ROUNDS = 8
SIZE = sum(parameter.numel() for parameter in theirs.Network().parameters())  # without running statistics


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


def plain_accuracy(kind, **options):
    """What the user's app comes to without us."""
    return theirs.accuracy(run(strategy(kind, **options), theirs.make_app).arrays)


@pytest.mark.slow
def test_fedavg_learns_as_well_with_a_twentieth_of_the_bytes(tmp_path):
    plain, wrapped = plain_accuracy(FedAvg), Compressed(strategy(FedAvg))
    result = run(wrapped, compressed(tmp_path))
    assert plain > 0.9
    assert theirs.accuracy(result.arrays) > plain - 0.03
    assert wrapped.dense_uplink_bytes == ROUNDS * NODES * sum(a.nbytes for a in theirs.Network().state_dict().values())
    assert 0 < wrapped.uplink_bytes <= 0.05 * wrapped.dense_uplink_bytes
    # The model keeps its form: names, shapes and dtypes, the integer counter among them.
    for name, before in theirs.initial_arrays().items():
        after = result.arrays[name]
        assert (after.dtype, after.shape) == (before.dtype, before.shape), name
    batches = len(range(0, len(theirs.rows(0, NODES)[1]), 32))
    assert result.arrays["1.num_batches_tracked"].numpy() == ROUNDS * batches
    assert set(result.train_metrics_clientapp[1]) == {"train-loss"}


def test_fedadam_learns_as_well(tmp_path):
    plain, wrapped = plain_accuracy(FedAdam, eta=0.03), Compressed(strategy(FedAdam, eta=0.03))
    result = run(wrapped, compressed(tmp_path))
    assert plain > 0.85
    assert theirs.accuracy(result.arrays) > plain - 0.05
    assert wrapped.uplink_bytes <= 0.05 * wrapped.dense_uplink_bytes


def test_the_residual_lies_on_the_nodes_disk(tmp_path):
    wrapped = Compressed(strategy(FedAvg))
    run(wrapped, compressed(tmp_path), rounds=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"node-p{i}" for i in range(NODES)]
    for node in tmp_path.iterdir():
        state = NodeState.load(node, SIZE)
        assert (state.residual_round, state.pending.round) == (1, 2)
        assert state.residual.any()


def test_a_damaged_update_is_rejected_and_the_round_goes_on(tmp_path, caplog):
    wrapped = Compressed(strategy(FedAvg))
    logging.getLogger("flwr").addHandler(caplog.handler)
    try:
        result = run(wrapped, partial(theirs.make_app_with_a_liar, tmp_path), rounds=3)
    finally:
        logging.getLogger("flwr").removeHandler(caplog.handler)
    assert "update of node 2 rejected: the blob's CRC-32 does not match" in caplog.text
    assert sorted(result.train_metrics_clientapp) == [1, 2, 3]
    acknowledged = [NodeState.load(tmp_path / f"node-p{i}", SIZE).residual_round for i in range(NODES)]
    assert acknowledged == [2, 1, 2, 2]


def test_krum_looks_at_single_models_and_gets_them_dense(tmp_path):
    result = run(Compressed(strategy(Krum, num_malicious_nodes=1)), compressed(tmp_path, density=0.3), rounds=4)
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
            wrapped._decode(replies[0])  # the reason is otherwise only in the log
        assert wrapped.aggregate_train(1, replies) == (None, None)


@pytest.mark.slow
def test_on_flowers_own_runtime(tmp_path, plain_accuracy):
    pytest.importorskip("ray")
    from flwr.simulation import run_simulation

    wrapped, results = Compressed(strategy(FedAvg)), []
    server = ServerApp()

    @server.main()
    def main(grid, _context):
        results.append(wrapped.start(grid=grid, initial_arrays=theirs.initial_arrays(), num_rounds=ROUNDS))

    run_simulation(
        server_app=server,
        client_app=theirs.make_compressed_app(tmp_path),
        num_supernodes=NODES,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"num_cpus": 2}},
    )
    assert theirs.accuracy(results[0].arrays) > plain_accuracy["fedavg"] - 0.03
    assert wrapped.uplink_bytes <= 0.05 * wrapped.dense_uplink_bytes
    assert len(list(tmp_path.iterdir())) == NODES
