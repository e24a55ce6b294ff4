"""What a server believes of replies: bad, missing, late, too many; and what a node answers to a stranger."""

import itertools
import re

import numpy as np
import pytest
from fake_grid import (
    SIZE,
    FakeGrid,
    Watcher,
    answering,
    errs,
    federate,
    instruction_of,
    plan,
    real_nodes,
    spoiled,
)
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from tiny_federation import tiny_node

from fedglm.client.no_answer import NO_ANSWER
from fedglm.client.state.node_state import NodeState
from fedglm.compression.codec import make_codec
from fedglm.compression.wire.envelope import wrap_update
from fedglm.protocol.messages import MODEL, RECORD, UPDATE, TrainReply
from fedglm.server.coordinator import Coordinator
from fedglm.server.rounds.participants import FederationError

pytestmark = pytest.mark.usefixtures("unsynced")


# --- replies that are no good


def with_blob(blob):
    def spoil(reply, _message):
        fields = dict(reply.content[RECORD])
        fields[UPDATE] = blob(fields[UPDATE]) if callable(blob) else blob
        reply.content[RECORD] = ConfigRecord(fields)
        return reply

    return spoil


def with_report(**changes):
    def spoil(reply, _message):
        reply.content[RECORD] = ConfigRecord(dict(reply.content[RECORD]) | changes)
        return reply

    return spoil


def without(field):
    def spoil(reply, _message):
        del reply.content[RECORD][field]
        return reply

    return spoil


def coded(vector, codec="dense-fp32"):
    return make_codec(codec).encode(np.asarray(vector, np.float32))


def replay_of_round_1():
    kept = []

    def spoil(reply, message):
        kept.append(reply.content)
        return Message(kept[0], reply_to=message)

    return spoil


def lacking(reply, message, holds):
    report = TrainReply(nonce=reply.content[RECORD]["nonce"], holds=holds)
    return Message(RecordDict({RECORD: ConfigRecord(report.to_fields())}), reply_to=message)


def always_needs_a_snapshot(reply, message):
    return lacking(reply, message, -1)


def never_where_it_was():
    said = itertools.cycle([0, 1])

    def spoil(reply, message):
        return lacking(reply, message, next(said))

    return spoil


def no_report(reply, _message):
    del reply.content[RECORD]
    return reply


BAD = {
    "one version, then the other": (never_where_it_was(), "cannot rebuild the model from a snapshot"),
    "an error": (errs, "the node reports: out of order today"),
    "an empty blob": (with_blob(b""), "a blob of 0 bytes is too short"),
    "a truncated blob": (with_blob(lambda blob: blob[:-1]), "CRC-32 does not match"),
    "a flipped bit": (with_blob(lambda blob: blob[:-1] + bytes([blob[-1] ^ 1])), "CRC-32 does not match"),
    "random bytes": (with_blob(bytes(range(200))), "starts with"),
    "another codec": (with_blob(coded(np.ones(SIZE), "topk-sign")), "coded by topk-sign, not by dense-fp32"),
    "another size": (with_blob(coded(np.ones(SIZE + 1))), f"{SIZE + 1} elements, not {SIZE}"),
    "a size beyond memory": (with_blob(wrap_update(1, 2**62)), f"{2**62} elements"),
    "NaN": (with_blob(wrap_update(1, SIZE, np.full(SIZE, np.nan, "<f4").tobytes())), "NaN or infinity"),
    "infinity": (with_blob(wrap_update(1, SIZE, np.full(SIZE, np.inf, "<f4").tobytes())), "NaN or infinity"),
    "a huge norm": (with_blob(coded(np.full(SIZE, 1e4))), "norm is 86023.3, at most 10000 is taken"),
    "the largest floats": (with_blob(coded(np.full(SIZE, 3e38))), "at most 10000 is taken"),
    "another nonce": (with_report(nonce="0" * 16), "answers another message, not the one of round {round}"),
    "an old reply again": (replay_of_round_1(), "answers another message"),
    "a version that cannot be": (with_report(holds=2**31), r"TrainReply\.holds: out of range"),
    "a foreign field": (with_report(weight=100), "missing or unknown fields: weight"),
    "a field of another type": (with_report(holds="2"), r"TrainReply\.holds: int expected, got str"),
    "a list for a field": (with_report(nonce=["a"]), r"TrainReply\.nonce: str expected, got list"),
    "no report": (no_report, "the reply has no report"),
    "no nonce": (without("nonce"), "missing or unknown fields: nonce"),
    "no update": (without(UPDATE), "the reply has no update"),
    "an update that is no bytes": (with_report(update="x"), "the reply has no update"),
    "never content": (always_needs_a_snapshot, "cannot rebuild the model from a snapshot"),
}


@pytest.fixture(scope="module")
def without_b(tmp_path_factory):
    """The model of three rounds in which node b's second update is not used."""
    folder = tmp_path_factory.mktemp("without-b")
    nodes = real_nodes(folder, update={"codec": "dense-fp32"})
    nodes[9] = spoiled(nodes[9], errs)
    return federate(folder, nodes, codec="dense-fp32")[0].model_sha256


def round_of(message):
    return int(message.metadata.group_id)


@pytest.fixture(scope="module")
def spoiled_rounds(tmp_path_factory):
    """Node b replies with one fault after the other, a round each; the last round is good. And its rounds by name."""
    folder, numbers = tmp_path_factory.mktemp("spoiled"), {name: number for number, name in enumerate(BAD, start=2)}

    def run(name, spoil_of):
        nodes = real_nodes(folder / name, update={"codec": "dense-fp32"})
        nodes[9] = spoiled(nodes[9], lambda reply, message: spoil_of[round_of(message)](reply, message), spoil_of)
        return federate(folder / name, nodes, codec="dense-fp32", rounds=len(BAD) + 2)

    # A replay needs to see round 1 pass; it then replies the truth.
    replay, _ = BAD["an old reply again"]
    coordinator, _, watcher = run("faults", {1: replay, **{numbers[name]: spoil for name, (spoil, _) in BAD.items()}})
    without, _, _ = run("errors", dict.fromkeys(numbers.values(), errs))
    return coordinator, watcher, numbers, without


@pytest.mark.parametrize("name", BAD)
def test_a_bad_reply_is_rejected_with_its_reason_and_the_round_goes_on(spoiled_rounds, name):
    coordinator, watcher, numbers, _ = spoiled_rounds
    _, reason = BAD[name]
    row = coordinator.rows[numbers[name] - 1]
    assert (row["nodes_accepted"], sorted(row["rejections"])) == (2, ["b"])
    (fault,) = row["rejections"].values()
    assert_matches(reason.format(round=numbers[name]), fault)
    assert ("reply", numbers[name], "b", fault) in watcher.events


def test_of_no_bad_reply_anything_is_used_and_the_node_takes_part_again(spoiled_rounds):
    coordinator, _, numbers, without = spoiled_rounds
    accepted = [row["nodes_accepted"] for row in coordinator.rows]
    assert accepted == [3, *[2] * len(numbers), 3] == [row["nodes_accepted"] for row in without.rows]
    assert coordinator.model_sha256 == without.model_sha256


def assert_matches(pattern, text):

    assert re.search(pattern, text), f"{pattern!r} is not in {text!r}"


METRICS = [
    None,
    {"loss": float("nan"), "metric": 0.5, "count": 3},
    {"loss": float("inf"), "metric": 0.5, "count": 3},
    {"loss": 1.0, "metric": 0.5, "count": 0},
    {"loss": 1.0, "metric": 0.5, "count": -5},
    {"loss": 1.0, "metric": 0.5},
    {"loss": 1.0, "metric": 0.5, "count": 3, "more": 1},
    {"loss": [1.0], "metric": 0.5, "count": 3},
]


@pytest.fixture(scope="module")
def rows_of_bad_metrics(tmp_path_factory):
    """The rows of a run in which node b sends one bad record after the other from round 2 on; the last is good."""
    folder = tmp_path_factory.mktemp("metrics")

    def spoil(reply, message):
        metrics = METRICS[round_of(message) - 2]
        reply.content.pop("metrics", None)
        if metrics is not None:
            reply.content["metrics"] = MetricRecord(metrics)
        return reply

    nodes = real_nodes(folder, share_metrics=True)
    nodes[9] = spoiled(nodes[9], spoil, rounds=range(2, len(METRICS) + 2))
    return federate(folder, nodes, node_metrics=True, rounds=len(METRICS) + 2)[0].rows


@pytest.mark.parametrize("at", range(len(METRICS)), ids=[str(metrics) for metrics in METRICS])
def test_bad_metrics_are_rejected_too(rows_of_bad_metrics, at):
    assert re.search("metrics|loss|count", rows_of_bad_metrics[at + 1]["rejections"]["b"])
    assert rows_of_bad_metrics[at + 1]["nodes_accepted"] == 2
    assert [rows_of_bad_metrics[at]["nodes_accepted"] for at in (0, -1)] == [3, 3]


def test_a_site_that_keeps_its_metrics_says_which_rule(tmp_path):
    nodes = real_nodes(tmp_path, share_metrics=True)
    nodes[9] = answering(tiny_node(tmp_path / "discreet", "b"), share_metrics=False)
    coordinator, _, _ = federate(tmp_path, nodes, node_metrics=True)
    assert "refused by rule metrics" in coordinator.rows[0]["rejections"]["b"]


def test_a_rejected_update_is_not_acknowledged_so_the_node_keeps_its_residual(tmp_path):
    nodes = real_nodes(tmp_path)
    nodes[9] = spoiled(nodes[9], errs)
    _, grid, _ = federate(tmp_path, nodes, rounds=4)
    sent = [m.content[RECORD] for m in grid.sent if m.metadata.message_type == "train" and m.metadata.dst_node_id == 9]
    orders = [instruction_of(fields) for fields in sent]
    assert {order.round: order.acknowledged for order in orders} == {1: 0, 2: 1, 3: 1, 4: 3}
    assert NodeState.load(tmp_path / "b", SIZE).residual_round == 3


# --- replies that are missing, late or too many


def test_a_silent_node_is_left_behind_and_catches_up(tmp_path, without_b):
    nodes = real_nodes(tmp_path, update={"codec": "dense-fp32"})
    nodes[9] = spoiled(nodes[9], lambda _reply, _message: None)
    coordinator, _, watcher = federate(tmp_path, nodes, round_timeout_s=2.0, codec="dense-fp32")
    assert coordinator.rows[1]["rejections"] == {"b": "no reply within 2 s"}
    assert ("reply", 2, "b", "no reply within 2 s") in watcher.events
    # It trained on version 1 though the server does not know: in round 3 it says where it is, and takes part.
    assert coordinator.rows[2]["nodes_accepted"] == 3
    assert coordinator.model_sha256 == without_b


def test_a_reply_that_comes_after_its_round_is_not_used(tmp_path, without_b):
    late = []

    def hold_back(reply, _message):
        late.append(reply)

    nodes = real_nodes(tmp_path, update={"codec": "dense-fp32"})
    nodes[9] = spoiled(nodes[9], hold_back)
    grid = FakeGrid(nodes)

    def deliver(*event):
        if event[:2] == ("started", 3):
            grid.stray = late

    coordinator = Coordinator(plan(tmp_path, round_timeout_s=2.0, codec="dense-fp32"), grid, listener=Watcher(deliver))
    coordinator.run()
    assert late
    assert late[0] in grid.received
    assert coordinator.model_sha256 == without_b
    assert coordinator.rows[2]["nodes_accepted"] == 3


def test_a_reply_that_comes_twice_counts_once(tmp_path):
    nodes = real_nodes(tmp_path)
    grid = FakeGrid(nodes)
    answer = nodes[9]

    def twice(message):
        reply = answer(message)
        grid.stray.append(reply)
        return reply

    nodes[9] = twice
    coordinator = Coordinator(plan(tmp_path), grid, listener=Watcher())
    coordinator.run()
    assert [row["nodes_accepted"] for row in coordinator.rows] == [3, 3, 3]
    assert coordinator.model_sha256 == federate(tmp_path / "once")[0].model_sha256


def test_below_the_quorum_the_run_ends_with_the_reason(tmp_path):
    nodes = real_nodes(tmp_path)
    for node_id in (8, 9):
        nodes[node_id] = spoiled(nodes[node_id], errs)
    with pytest.raises(FederationError) as caught:
        federate(tmp_path, nodes)
    expected = "round 2: 1 of 3 updates were good, at least 2 are needed; the node reports: out of order today"
    assert str(caught.value) == expected
    # A lower quorum lets one good update carry the round.
    nodes = real_nodes(tmp_path / "low")
    for node_id in (8, 9):
        nodes[node_id] = spoiled(nodes[node_id], errs)
    assert federate(tmp_path / "low", nodes, quorum=0.3)[0].rows[1]["nodes_accepted"] == 1


def test_no_good_update_at_all_ends_the_run_even_without_a_quorum(tmp_path):
    nodes = {node_id: spoiled(answer, errs) for node_id, answer in real_nodes(tmp_path).items()}
    with pytest.raises(FederationError, match="0 of 3 updates were good, at least 1"):
        federate(tmp_path, nodes, quorum=0.0)


# --- what a node answers to a stranger


def foreign(content):
    message = Message(content, dst_node_id=1, message_type="train")
    message.metadata.__dict__["_message_id"] = "m"
    return message


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({RECORD: ConfigRecord({"run": "r"})}),
        RecordDict({RECORD: ConfigRecord({"run": "r", MODEL: "text"})}),
    ],
    ids=["nothing", "no model", "a model that is no bytes"],
)
def test_a_node_answers_a_foreign_message_with_one_line(tmp_path, content):
    FakeGrid({})
    reply = answering(tiny_node(tmp_path))(foreign(content))
    assert "lacks the instruction or the model" in reply.error.reason


def test_a_node_whose_disk_is_full_gives_no_answer_and_the_others_go_on(tmp_path, monkeypatch):
    nodes = real_nodes(tmp_path)
    answer = nodes[9]

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    def act(message):
        with monkeypatch.context() as patch:
            if message.metadata.message_type == "train":
                patch.setattr("os.fsync", full)
            return answer(message)

    nodes[9] = act
    coordinator, _, _ = federate(tmp_path, nodes, rounds=1)
    assert NO_ANSWER in coordinator.rows[0]["rejections"]["b"]
    assert coordinator.rows[0]["nodes_accepted"] == 2
