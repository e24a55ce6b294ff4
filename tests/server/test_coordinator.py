"""Rounds as they should be, and who may take part in them."""

import re
import threading

import pytest
from fake_grid import (
    FEDERATED,
    SIZE,
    FakeGrid,
    Watcher,
    answering,
    errs,
    federate,
    instruction_of,
    plan,
    real_nodes,
    timeless,
)
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.common.serde import recorddict_to_proto
from tiny_federation import TASK, examples, federated_model, tiny_model, tiny_node

from fedglm.autoglm.models.parameters import load_vector
from fedglm.client.state.node_state import NodeState
from fedglm.protocol.messages import RECORD, UPDATE, JoinReply
from fedglm.server.app import build_server_app
from fedglm.server.rounds.participants import FederationError

pytestmark = pytest.mark.usefixtures("unsynced")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run as it should be, of three rounds."""
    return federate(tmp_path_factory.mktemp("plain"))[0]


# --- an ordinary run


def test_it_learns_and_each_node_holds_the_servers_bits(tmp_path):
    def evaluate(vector):
        model = tiny_model()
        load_vector(model, vector)
        return TASK.evaluate(model, examples(200, seed=99))

    coordinator, _, _ = federate(tmp_path, rounds=8, evaluate=evaluate)
    losses = [row["loss"] for row in coordinator.rows]
    assert losses[-1] < losses[0] < evaluate(FEDERATED.initial).loss
    assert coordinator.rows[-1]["accuracy"] > 0.7
    state = NodeState.load(tmp_path / "a", SIZE)
    assert state.version == 7  # the last round's step has not been sent to anybody
    assert {NodeState.load(tmp_path / name, SIZE).base.tobytes() for name in "bc"} == {state.base.tobytes()}


def test_rows_have_the_contracts_keys_and_the_bytes_of_the_messages(tmp_path):
    coordinator, grid, _ = federate(tmp_path, rounds=2)
    for number, row in enumerate(coordinator.rows, start=1):
        sent = [m for m in grid.sent if m.metadata.group_id == str(number)]
        received = [m for m in grid.received if m.metadata.group_id == str(number)]
        assert row["round"] == number
        assert row["uplink_bytes"] == sum(recorddict_to_proto(m.content).ByteSize() for m in received)
        assert row["downlink_bytes"] == sum(recorddict_to_proto(m.content).ByteSize() for m in sent)
        blobs = sum(len(m.content[RECORD][UPDATE]) for m in received)
        assert blobs < row["uplink_bytes"] < blobs + 3 * 70
        assert row["dense_uplink_bytes"] == row["dense_downlink_bytes"] == 3 * 4 * SIZE
        assert (row["nodes_sampled"], row["nodes_accepted"], row["nodes_rejected"]) == (3, 3, 0)
        assert row["epsilon"] is None
        assert row["virtual_s"] is None
        assert row["wall_s"] >= 0
        assert {"loss", "accuracy"} <= row.keys()


def test_the_model_does_not_depend_on_the_order_of_replies_or_the_nodes_ids(tmp_path):
    hashes, orders = set(), set()
    for seed in range(4):
        nodes = real_nodes(tmp_path / str(seed))
        if seed == 3:
            nodes = {100 - node_id: answer for node_id, answer in nodes.items()}
        coordinator, _, watcher = federate(tmp_path / str(seed), nodes, seed=seed, rounds=2, weighting="declared")
        hashes.add(coordinator.model_sha256)
        orders.add(tuple(event[2] for event in watcher.events if event[0] == "reply"))
    assert len(orders) > 1
    assert len(hashes) == 1


def test_declared_weights_change_the_mean(tmp_path):
    uniform, _, _ = federate(tmp_path / "x", rounds=1)
    declared, _, _ = federate(tmp_path / "y", rounds=1, weighting="declared")
    assert uniform.model_sha256 != declared.model_sha256
    capped, _, _ = federate(tmp_path / "z", rounds=1, weighting="declared", weight_cap=1.0)
    assert capped.model_sha256 == uniform.model_sha256


def test_listeners_hear_every_step(tmp_path):
    _, _, watcher = federate(tmp_path, rounds=2)
    assert watcher.events[0] == ("resumed", 0)
    assert watcher.events[1] == ("started", 1, 3)
    assert sorted(watcher.events[2:5]) == [("reply", 1, name, None) for name in "abc"]
    assert watcher.events[5] == ("done", 1)


def test_the_nodes_learning_rate_follows_the_schedule(tmp_path):
    _, grid, _ = federate(tmp_path, rounds=3, schedule="cosine", final_rate=0.5)
    rates = [instruction_of(m.content[RECORD]).learning_rate for m in grid.sent if m.metadata.message_type == "train"]
    assert rates == [0.05] * 3 + [0.05 * 0.75] * 3 + [0.05 * 0.5] * 3


def test_metrics_of_the_nodes_ride_in_the_same_message(tmp_path):
    coordinator, grid, _ = federate(tmp_path, real_nodes(tmp_path, share_metrics=True), node_metrics=True)
    assert len(grid.sent) == 3 + 3 * 3
    received = [row["received_loss"] for row in coordinator.rows]
    pooled = TASK.pool([TASK.evaluate(tiny_model(), examples(10, 1000 + i)) for i in range(3)])
    assert received[0] == pytest.approx(pooled.loss, rel=1e-3)  # of version 0, which lies on the float16 grid


def test_as_a_flower_serverapp(tmp_path, plain):
    finished = []
    app = build_server_app(
        plan(tmp_path), listener=Watcher(), stop=threading.Event(), resume=False, finished=finished.append
    )
    app(FakeGrid(real_nodes(tmp_path)), Context(1, 1, {}, RecordDict(), {}))
    assert finished[0].model_sha256 == plain.model_sha256


# --- models on the nodes


def test_a_node_that_needs_a_snapshot_gets_one_and_takes_part_in_the_same_round(tmp_path, plain):
    nodes = real_nodes(tmp_path)
    nodes[9] = answering(tiny_node(tmp_path, "b", model=federated_model(seed=5), data_seed=1, rows=20))
    coordinator, grid, _ = federate(tmp_path, nodes)
    assert [row["nodes_accepted"] for row in coordinator.rows] == [3, 3, 3]
    asked = [m for m in grid.sent if m.metadata.dst_node_id == 9 and m.metadata.group_id == "1"]
    assert len(asked) == 2
    assert len({instruction_of(m.content[RECORD]).nonce for m in asked}) == 1  # either answer would count, once
    assert coordinator.model_sha256 == plain.model_sha256
    assert coordinator.rows[0]["downlink_bytes"] > plain.rows[0]["downlink_bytes"]
    assert coordinator.rows[0]["dense_downlink_bytes"] == plain.rows[0]["dense_downlink_bytes"]


def test_partial_participation(tmp_path):
    nodes = real_nodes(tmp_path, "abcde")
    coordinator, _, watcher = federate(tmp_path, nodes, rounds=8, fraction=0.4)
    assert [row["nodes_accepted"] for row in coordinator.rows] == [2] * 8
    took_part = {event[2] for event in watcher.events if event[0] == "reply"}
    assert len(took_part) == 5
    again, _, _ = federate(tmp_path / "again", real_nodes(tmp_path / "again", "abcde"), rounds=8, fraction=0.4, seed=3)
    assert again.model_sha256 == coordinator.model_sha256
    assert timeless(again.rows) == timeless(coordinator.rows)


# --- who may take part


def introducing(**changes):
    words = {"name": "b", "run": "", "version": -1, "layout": FEDERATED.layout.sha256, "examples": 20} | changes

    def act(message):
        return Message(RecordDict({RECORD: ConfigRecord(words)}), reply_to=message)

    return act


@pytest.mark.parametrize(
    ("stranger", "reason"),
    [
        (introducing(name="a"), "another node calls itself 'a' too: names must be unique"),
        (introducing(layout="00" * 32), "node b builds a model of another layout"),
        (
            introducing(name=7),
            r"introduces itself in a way this server does not know: JoinReply\.name: str expected",
        ),
        (introducing(name="x" * 201), "longer than 200 characters"),
        (introducing(name="b\n\x1b[31mX"), "not printable"),
        (introducing(extra=1), "unknown fields: extra"),
        (introducing(version=-2), "version: out of range"),
        (lambda message: Message(RecordDict(), reply_to=message), "a way this server does not know"),
        (lambda message: errs(None, message), "a node cannot take part: out of order today"),
        pytest.param(lambda _: None, "it did not answer the first query", marks=pytest.mark.slow),
    ],
)
def test_a_stranger_is_turned_away_and_the_others_run(tmp_path, stranger, reason):
    nodes = real_nodes(tmp_path) | {11 if "too" in reason else 9: stranger}
    coordinator, _, watcher = federate(
        tmp_path, nodes, rounds=1, round_timeout_s=10.0 if "did not answer" in reason else 60.0
    )
    (rejected,) = [event[2] for event in watcher.events if event[0] == "away"]
    assert re.search(reason, rejected)
    assert coordinator.rows[0]["nodes_accepted"] == len(nodes) - 1


def test_with_more_strangers_than_a_quorum_allows_no_round_begins(tmp_path):
    nodes = real_nodes(tmp_path) | {8: introducing(layout="00" * 32), 9: introducing(layout="00" * 32)}
    with pytest.raises(FederationError, match="1 of 3 nodes can take part: node b builds a model of another layout"):
        federate(tmp_path, nodes)
    assert not (tmp_path / "checkpoint").exists()


def test_without_nodes_there_is_no_federation(tmp_path):
    with pytest.raises(FederationError, match="no node is connected"):
        federate(tmp_path, {})


def test_who_declares_no_count_takes_no_part_where_counts_weigh(tmp_path):
    nodes = real_nodes(tmp_path) | {9: introducing(examples=0)}
    coordinator, _, watcher = federate(tmp_path, nodes, rounds=1, weighting="declared")
    assert any(event[0] == "away" and "declares no count" in event[2] for event in watcher.events)
    assert coordinator.rows[0]["nodes_accepted"] == 2


def test_a_version_that_a_node_makes_up_costs_it_a_snapshot_and_nobody_else(tmp_path, plain):
    nodes = real_nodes(tmp_path)
    answer = nodes[9]

    def boasting(message):
        reply = answer(message)
        if message.metadata.message_type == "query":
            fields = dict(reply.content[RECORD])
            JoinReply.from_fields(fields)
            reply.content[RECORD] = ConfigRecord(fields | {"run": "made-up", "version": 2**31 - 1})
        return reply

    nodes[9] = boasting
    coordinator, _, _ = federate(tmp_path, nodes)
    assert coordinator.model_sha256 == plain.model_sha256
