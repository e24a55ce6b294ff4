import random
import re
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace


import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.common.serde import recorddict_to_proto
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from tiny_federation import TASK, examples, tiny_model, tiny_node, workbench

from fedglm.autoglm.parameters import load_vector
from fedglm.client.app import build_client_app
from fedglm.client.gate import OutboundGate
from fedglm.client.state import NodeState
from fedglm.compression.codec import make_codec
from fedglm.compression.messages import RECORD, Instruction, Introduction
from fedglm.compression.settings import DownlinkSettings
from fedglm.compression.wire import seal_update
from fedglm.server.app import build_server_app
from fedglm.server.coordinator import Coordinator, Plan
from fedglm.server.exchange import Stopped
from fedglm.server.participants import FederationError
from fedglm.server.settings import FederationSettings, ServerOptimizerSettings

BENCH = workbench()
SIZE = BENCH.layout.size
Answer = Callable[[Message], Message | None]


class FakeGrid(Grid):
    """Nodes as functions from a message to a reply, or to None for silence; replies come one by one, in any order.

    Attributes:
        sent, received: messages and replies so far, in the order in which they passed.
        stray: replies that the next pull gives on top, asked for or not.
    """

    def __init__(self, nodes: dict[int, Answer], seed: int = 0) -> None:
        self.nodes = nodes
        self.sent: list[Message] = []
        self.received: list[Message] = []
        self.stray: list[Message] = []
        self._under_way: dict[str, Message] = {}
        self._order = random.Random(seed)  # noqa: S311 - a test's order
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1

    def set_run(self, run: Run) -> None:
        """No run is described here."""

    @property
    def run(self) -> Run:
        return Run.create_empty(run_id=1)

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None):
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            ids.append(f"m{len(self.sent)}")
            message.metadata.__dict__["_message_id"] = ids[-1]
            self.sent.append(message)
            self._under_way[ids[-1]] = message
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies, self.stray = self.stray, []
        waiting = sorted(self._under_way.keys() & set(message_ids))
        if waiting:
            message = self._under_way.pop(self._order.choice(waiting))
            reply = self.nodes[message.metadata.dst_node_id](message)
            if reply is not None:
                replies.append(reply)
        self.received += replies
        return replies

    def send_and_receive(self, messages, *, timeout=None):
        raise NotImplementedError("the coordinator takes replies one by one")


class Watcher:
    """Keeps what it is told, and calls `hook` with each event."""

    def __init__(self, hook=None) -> None:
        self.events = []
        self._hook = hook

    def _tell(self, *event):
        self.events.append(event)
        if self._hook:
            self._hook(*event)

    def resumed(self, rows):
        self._tell("resumed", len(rows))

    def round_started(self, server_round, sampled):
        self._tell("started", server_round, sampled)

    def reply_taken(self, server_round, node, fault):
        self._tell("reply", server_round, node, fault)

    def round_done(self, rows):
        self._tell("done", len(rows))


def answering(node, *, share_metrics=False) -> Answer:
    """The node behind the real ClientApp and the real gate."""
    app = build_client_app(lambda context: (node, OutboundGate(SIZE, share_metrics=share_metrics)))
    context = Context(1, 1, {}, RecordDict(), {})
    return lambda message: app(message, context)


def real_nodes(folder, names="abc", **options):
    return {
        10 - i: answering(tiny_node(folder, name, data_seed=i, rows=10 * (i + 1)), **options)
        for i, name in enumerate(names)
    }


def plan(folder, **changes):
    """Changes go to the settings that know them."""
    federation = {"rounds": 3, "round_timeout_s": 30.0}
    optimizer = {"server_optimizer": "nesterov"}
    whole = {}
    for key, value in changes.items():
        for settings, target in ((FederationSettings, federation), (ServerOptimizerSettings, optimizer)):
            if key in settings.model_fields:
                target[key] = value
                break
        else:
            whole[key] = value
    made = Plan(
        federation=FederationSettings(**federation),
        optimizer=ServerOptimizerSettings(**optimizer),
        downlink=DownlinkSettings(codec="topk-sign", density=0.2),
        learning_rate=0.05,
        layout=BENCH.layout,
        initial=BENCH.initial,
        evaluate=None,
        metric="accuracy",
        checkpoints=folder / "checkpoint",
    )
    return replace(made, **whole)


def federate(folder, nodes=None, *, seed=0, hook=None, resume=False, stop=None, **changes):
    grid = FakeGrid(real_nodes(folder) if nodes is None else nodes, seed)
    watcher = Watcher(hook)
    coordinator = Coordinator(plan(folder, **changes), grid, listener=watcher, resume=resume, stop=stop)
    coordinator.run()
    return coordinator, grid, watcher


def timeless(rows):
    return [{key: value for key, value in row.items() if key != "wall_s"} for row in rows]


@pytest.fixture(autouse=True, scope="module")
def _no_waiting_for_the_disk():
    """What must survive a power cut is tested elsewhere; here it would be half of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        yield


# --- an ordinary run


def test_it_learns_and_each_node_holds_the_servers_bits(tmp_path):
    def evaluate(vector):
        model = tiny_model()
        load_vector(model, vector)
        return TASK.evaluate(model, examples(200, seed=99))

    coordinator, _, _ = federate(tmp_path, rounds=12, evaluate=evaluate)
    losses = [row["loss"] for row in coordinator.rows]
    assert losses[-1] < losses[0] < evaluate(BENCH.initial).loss
    assert coordinator.rows[-1]["accuracy"] > 0.8
    state = NodeState.load(tmp_path / "a", SIZE)
    assert state.version == 11  # the last round's step has not been sent to anybody
    assert {NodeState.load(tmp_path / name, SIZE).base.tobytes() for name in "bc"} == {state.base.tobytes()}


def test_rows_have_the_contracts_keys_and_the_bytes_of_the_messages(tmp_path):
    coordinator, grid, _ = federate(tmp_path, rounds=2)
    for number, row in enumerate(coordinator.rows, start=1):
        sent = [m for m in grid.sent if m.metadata.group_id == str(number)]
        received = [m for m in grid.received if m.metadata.group_id == str(number)]
        assert row["round"] == number
        assert row["uplink_bytes"] == sum(recorddict_to_proto(m.content).ByteSize() for m in received)
        assert row["downlink_bytes"] == sum(recorddict_to_proto(m.content).ByteSize() for m in sent)
        blobs = sum(len(m.content["update"][RECORD].data) for m in received)
        assert blobs < row["uplink_bytes"] < blobs + 3 * 500
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
        coordinator, _, watcher = federate(tmp_path / str(seed), nodes, seed=seed, weighting="declared")
        hashes.add(coordinator.model_sha256)
        orders.add(tuple(event[2] for event in watcher.events if event[0] == "reply"))
    assert len(orders) > 1
    assert len(hashes) == 1


def test_declared_weights_change_the_mean(tmp_path):
    uniform, _, _ = federate(tmp_path / "x")
    declared, _, _ = federate(tmp_path / "y", weighting="declared")
    assert uniform.model_sha256 != declared.model_sha256
    capped, _, _ = federate(tmp_path / "z", weighting="declared", weight_cap=1.0)
    assert capped.model_sha256 == uniform.model_sha256


def test_listeners_hear_every_step(tmp_path):
    _, _, watcher = federate(tmp_path, rounds=2)
    assert watcher.events[0] == ("resumed", 0)
    assert watcher.events[1] == ("started", 1, 3)
    assert sorted(watcher.events[2:5]) == [("reply", 1, name, None) for name in "abc"]
    assert watcher.events[5] == ("done", 1)


def test_the_nodes_learning_rate_follows_the_schedule(tmp_path):
    _, grid, _ = federate(tmp_path, rounds=3, schedule="cosine", final_rate=0.5)
    rates = [
        Instruction.from_fields(m.content[RECORD]).learning_rate for m in grid.sent if m.metadata.message_type == "train"
    ]
    assert rates == [0.05] * 3 + [0.05 * 0.75] * 3 + [0.05 * 0.5] * 3


def test_metrics_of_the_nodes_ride_in_the_same_message(tmp_path):
    coordinator, grid, _ = federate(tmp_path, real_nodes(tmp_path, share_metrics=True), node_metrics=True)
    assert len(grid.sent) == 3 + 3 * 3
    received = [row["received_loss"] for row in coordinator.rows]
    pooled = TASK.pool([TASK.evaluate(tiny_model(), examples(10, 1000 + i)) for i in range(3)])
    assert received[0] == pytest.approx(pooled.loss, rel=1e-3)  # of version 0, which lies on the float16 grid


def test_as_a_flower_serverapp(tmp_path):
    finished = []
    app = build_server_app(
        plan(tmp_path), listener=Watcher(), stop=threading.Event(), resume=False, finished=finished.append
    )
    app(FakeGrid(real_nodes(tmp_path)), Context(1, 1, {}, RecordDict(), {}))
    assert finished[0].model_sha256 == federate(tmp_path / "other")[0].model_sha256


# --- replies that are no good


def spoiled(answer, spoil, rounds=(2,)):
    """The node, but what it replies in some rounds is `spoil(reply, message)`."""

    def act(message):
        reply = answer(message)
        if message.metadata.message_type != "train" or int(message.metadata.group_id) not in rounds:
            return reply
        return spoil(reply, message)

    return act


def with_blob(blob):
    def spoil(reply, message):
        data = blob(reply.content["update"][RECORD].data) if callable(blob) else blob
        reply.content["update"] = ArrayRecord({RECORD: Array("float32", (SIZE,), "fedglm.update/1", data)})
        return reply

    return spoil


def with_report(**changes):
    def spoil(reply, message):
        reply.content[RECORD] = ConfigRecord(dict(reply.content[RECORD]) | changes)
        return reply

    return spoil


def without(record):
    def spoil(reply, message):
        del reply.content[record]
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


def errs(reply, message):
    return Message(Error(code=1, reason="out of order today"), reply_to=message)


def always_needs_a_snapshot(reply, message):
    fields = dict(reply.content[RECORD]) | {"status": "need-snapshot", "version": -1}
    return Message(RecordDict({RECORD: ConfigRecord(fields)}), reply_to=message)


BAD = {
    "an error": (errs, "the node reports: out of order today"),
    "an empty blob": (with_blob(b""), "a blob of 0 bytes is too short"),
    "a truncated blob": (with_blob(lambda blob: blob[:-1]), "CRC-32 does not match"),
    "a flipped bit": (with_blob(lambda blob: blob[:-1] + bytes([blob[-1] ^ 1])), "CRC-32 does not match"),
    "random bytes": (with_blob(bytes(range(200))), "starts with"),
    "another size": (with_blob(coded(np.ones(SIZE + 1))), f"{SIZE + 1} elements, not {SIZE}"),
    "a size beyond memory": (with_blob(seal_update(1, 2**62)), f"{2**62} elements"),
    "NaN": (with_blob(seal_update(1, SIZE, np.full(SIZE, np.nan, "<f4").tobytes())), "NaN or infinity"),
    "infinity": (with_blob(seal_update(1, SIZE, np.full(SIZE, np.inf, "<f4").tobytes())), "NaN or infinity"),
    "a huge norm": (with_blob(coded(np.full(SIZE, 1e4))), "norm is 86023.3, at most 10000 is taken"),
    "the largest floats": (with_blob(coded(np.full(SIZE, 3e38))), "at most 10000 is taken"),
    "another nonce": (with_report(nonce="0" * 16), "answers round 2 or another message"),
    "another round": (with_report(round=1), "answers round 1 or another message"),
    "an old reply again": (replay_of_round_1(), "answers round 1 or another message"),
    "a forged version": (with_report(version=2**31 - 1), "worked on version 2147483647, not 1"),
    "an older version": (with_report(version=0), "worked on version 0, not 1"),
    "a foreign field": (with_report(weight=100), "missing or unknown fields: weight"),
    "a field of another type": (with_report(round="2"), r"Report\.round: int expected, got str"),
    "a list for a field": (with_report(nonce=["a"]), r"Report\.nonce: str expected, got list"),
    "an unknown status": (with_report(status="fine"), r"Report\.status: one of"),
    "no report": (without(RECORD), "the reply has no report"),
    "no update": (without("update"), "the reply has no update"),
    "no training": (with_report(status="evaluated"), "was asked to train and sent no update"),
    "never content": (always_needs_a_snapshot, "cannot rebuild the model from a snapshot"),
}


@pytest.fixture(scope="module")
def without_b(tmp_path_factory):
    """The model of three rounds in which node b's second update is not used."""
    folder = tmp_path_factory.mktemp("without-b")
    nodes = real_nodes(folder)
    nodes[9] = spoiled(nodes[9], errs)
    return federate(folder, nodes)[0].model_sha256


@pytest.mark.parametrize("name", BAD)
def test_a_bad_reply_is_rejected_with_its_reason_and_the_round_goes_on(tmp_path, name, without_b):
    spoil, reason = BAD[name]
    nodes = real_nodes(tmp_path)
    # A replay needs to see round 1 pass; it then replies the truth.
    nodes[9] = spoiled(nodes[9], spoil, rounds=(1, 2) if name == "an old reply again" else (2,))
    coordinator, _, watcher = federate(tmp_path, nodes)
    rejected = [row["rejections"] for row in coordinator.rows]
    assert [sorted(faults) for faults in rejected] == [[], ["b"], []]
    (fault,) = rejected[1].values()
    assert_matches(reason, fault)
    assert [row["nodes_accepted"] for row in coordinator.rows] == [3, 2, 3]
    assert ("reply", 2, "b", fault) in watcher.events
    assert coordinator.model_sha256 == without_b


def assert_matches(pattern, text):


    assert re.search(pattern, text), f"{pattern!r} is not in {text!r}"


@pytest.mark.parametrize(
    "metrics",
    [
        None,
        {"loss": float("nan"), "metric": 0.5, "count": 3},
        {"loss": float("inf"), "metric": 0.5, "count": 3},
        {"loss": 1.0, "metric": 0.5, "count": 0},
        {"loss": 1.0, "metric": 0.5, "count": -5},
        {"loss": 1.0, "metric": 0.5},
        {"loss": 1.0, "metric": 0.5, "count": 3, "more": 1},
        {"loss": [1.0], "metric": 0.5, "count": 3},
    ],
    ids=str,
)
def test_bad_metrics_are_rejected_too(tmp_path, metrics):
    def spoil(reply, message):
        del reply.content["metrics"]
        if metrics is not None:
            reply.content["metrics"] = MetricRecord(metrics)
        return reply

    nodes = real_nodes(tmp_path, share_metrics=True)
    nodes[9] = spoiled(nodes[9], spoil)
    coordinator, _, _ = federate(tmp_path, nodes, node_metrics=True)
    assert "metrics" in coordinator.rows[1]["rejections"]["b"]
    assert coordinator.rows[1]["nodes_accepted"] == 2


def test_a_site_that_keeps_its_metrics_says_which_rule(tmp_path):
    nodes = real_nodes(tmp_path, share_metrics=True)
    nodes[9] = answering(tiny_node(tmp_path, "b"), share_metrics=False)
    coordinator, _, _ = federate(tmp_path, nodes, node_metrics=True)
    assert "refused by rule share-metrics" in coordinator.rows[0]["rejections"]["b"]


def test_a_rejected_update_is_not_acknowledged_so_the_node_keeps_its_residual(tmp_path):
    nodes = real_nodes(tmp_path)
    nodes[9] = spoiled(nodes[9], errs)
    _, grid, _ = federate(tmp_path, nodes, rounds=4)
    sent = [m.content[RECORD] for m in grid.sent if m.metadata.message_type == "train" and m.metadata.dst_node_id == 9]
    orders = [Instruction.from_fields(fields) for fields in sent]
    assert {order.round: order.acknowledged for order in orders} == {1: 0, 2: 1, 3: 1, 4: 3}
    assert NodeState.load(tmp_path / "b", SIZE).residual_round == 3


# --- replies that are missing, late or too many


def test_a_silent_node_is_left_behind_and_catches_up(tmp_path, without_b):
    nodes = real_nodes(tmp_path)
    nodes[9] = spoiled(nodes[9], lambda reply, message: None)
    coordinator, _, watcher = federate(tmp_path, nodes, round_timeout_s=0.4)
    assert coordinator.rows[1]["rejections"] == {"b": "no reply within 0.4 s"}
    assert ("reply", 2, "b", "no reply within 0.4 s") in watcher.events
    # It trained on version 1 though the server does not know: in round 3 it asks for a snapshot and takes part.
    assert coordinator.rows[2]["nodes_accepted"] == 3
    assert coordinator.model_sha256 == without_b


def test_a_reply_that_comes_after_its_round_is_not_used(tmp_path, without_b):
    late = []

    def hold_back(reply, message):
        late.append(reply)

    nodes = real_nodes(tmp_path)
    nodes[9] = spoiled(nodes[9], hold_back)
    grid = FakeGrid(nodes)

    def deliver(*event):
        if event[:2] == ("started", 3):
            grid.stray = late

    coordinator = Coordinator(plan(tmp_path, round_timeout_s=0.4), grid, listener=Watcher(deliver))
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


# --- models on the nodes


def test_a_node_that_needs_a_snapshot_gets_one_and_takes_part_in_the_same_round(tmp_path):
    nodes = real_nodes(tmp_path)
    nodes[9] = answering(tiny_node(tmp_path, "b", bench=workbench(seed=5), data_seed=1, rows=20))
    coordinator, grid, _ = federate(tmp_path, nodes)
    assert [row["nodes_accepted"] for row in coordinator.rows] == [3, 3, 3]
    asked = [m for m in grid.sent if m.metadata.dst_node_id == 9 and m.metadata.group_id == "1"]
    assert len(asked) == 2
    nonces = [Instruction.from_fields(m.content[RECORD]).nonce for m in asked]
    assert nonces[0] != nonces[1]
    plain, _, _ = federate(tmp_path / "plain")
    assert coordinator.model_sha256 == plain.model_sha256
    assert coordinator.rows[0]["downlink_bytes"] > plain.rows[0]["downlink_bytes"]
    assert coordinator.rows[0]["dense_downlink_bytes"] == plain.rows[0]["dense_downlink_bytes"]


def test_partial_participation(tmp_path):
    nodes = real_nodes(tmp_path, "abcde")
    coordinator, grid, watcher = federate(tmp_path, nodes, rounds=8, fraction=0.4)
    assert [row["nodes_accepted"] for row in coordinator.rows] == [2] * 8
    took_part = {event[2] for event in watcher.events if event[0] == "reply"}
    assert len(took_part) == 5
    again, _, _ = federate(tmp_path / "again", real_nodes(tmp_path / "again", "abcde"), rounds=8, fraction=0.4, seed=3)
    assert again.model_sha256 == coordinator.model_sha256
    other, _, _ = federate(tmp_path / "seed", real_nodes(tmp_path / "seed", "abcde"), rounds=8, fraction=0.4)
    assert timeless(other.rows) == timeless(coordinator.rows)


# --- going on


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    coordinator, _, _ = federate(tmp_path_factory.mktemp("undisturbed"), rounds=5)
    return coordinator


class Killed(BaseException):
    """The server's process is gone."""


def killed_at(*where):
    def hook(*event):
        if event[: len(where)] == where:
            raise Killed

    return hook


@pytest.mark.parametrize(
    "where", [("resumed", 0), ("reply", 1), ("started", 3), ("reply", 3), ("done", 3), ("done", 5)], ids=str
)
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, undisturbed, where):
    with pytest.raises(Killed):
        federate(tmp_path, rounds=5, hook=killed_at(*where))
    coordinator, _, watcher = federate(tmp_path, rounds=5, resume=True, seed=4)
    assert coordinator.model_sha256 == undisturbed.model_sha256
    same = [{k: v for k, v in row.items() if "link_bytes" not in k} for row in timeless(coordinator.rows)]
    assert same == [{k: v for k, v in row.items() if "link_bytes" not in k} for row in timeless(undisturbed.rows)]
    assert watcher.events[0] == ("resumed", {"resumed": 0, "reply": where[1] - 1, "started": 2, "done": where[1]}[where[0]])


def test_a_run_that_is_stopped_goes_on_to_the_same_bits(tmp_path, undisturbed):
    stop = threading.Event()
    with pytest.raises(Stopped):
        federate(tmp_path, rounds=5, stop=stop, hook=lambda *event: stop.set() if event[:2] == ("done", 2) else None)
    coordinator, _, _ = federate(tmp_path, rounds=5, resume=True)
    assert coordinator.model_sha256 == undisturbed.model_sha256


def test_to_resume_what_never_began_is_to_begin(tmp_path, undisturbed):
    assert federate(tmp_path, rounds=5, resume=True)[0].model_sha256 == undisturbed.model_sha256


def test_to_resume_what_is_done_asks_for_no_training(tmp_path, undisturbed):
    federate(tmp_path, rounds=5)
    coordinator, grid, _ = federate(tmp_path, rounds=5, resume=True)
    assert {m.metadata.message_type for m in grid.sent} == {"query"}
    assert coordinator.model_sha256 == undisturbed.model_sha256


def test_a_damaged_newest_checkpoint_costs_a_round_and_no_more(tmp_path):
    federate(tmp_path, rounds=3)
    newest = max((tmp_path / "checkpoint").iterdir())
    newest.write_bytes(newest.read_bytes()[:-9])
    coordinator, _, watcher = federate(tmp_path, rounds=5, resume=True)
    assert watcher.events[0] == ("resumed", 2)
    assert [row["nodes_accepted"] for row in coordinator.rows] == [3] * 5


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    federate(tmp_path, rounds=1)
    layout = replace(BENCH.layout, names=("x", *BENCH.layout.names[1:]))
    with pytest.raises(FederationError, match="is of another model: give the run's own scenario"):
        Coordinator(plan(tmp_path, layout=layout), FakeGrid({}), listener=Watcher(), resume=True)


@pytest.mark.parametrize("names", ["ab", "abcd", "abd"])
def test_a_checkpoint_made_with_other_nodes_is_refused(tmp_path, names):
    federate(tmp_path, rounds=1)
    with pytest.raises(FederationError, match=r"made with other nodes \(in one only: "):
        federate(tmp_path, real_nodes(tmp_path, names), resume=True)


# --- who may take part


def introducing(**changes):
    words = {"name": "b", "run": "", "version": -1, "layout": BENCH.layout.sha256, "examples": 20} | changes

    def act(message):
        return Message(RecordDict({RECORD: ConfigRecord(words)}), reply_to=message)

    return act


@pytest.mark.parametrize(
    ("stranger", "reason"),
    [
        (introducing(name="a"), "two nodes call themselves 'a': names must be unique"),
        (introducing(layout="00" * 32), "node b builds a model of another layout"),
        (introducing(name=7), r"introduces itself in a way this server does not know: Introduction\.name: str expected"),
        (introducing(name="x" * 201), "longer than 200 characters"),
        (introducing(extra=1), "unknown fields: extra"),
        (introducing(version=-2), "version: -2 is out of range"),
        (lambda message: Message(RecordDict(), reply_to=message), "a way this server does not know"),
        (lambda message: errs(None, message), "a node cannot take part: out of order today"),
        (lambda message: None, "1 of 3 nodes did not answer the first query"),
    ],
)
def test_a_stranger_is_refused_before_the_first_round(tmp_path, stranger, reason):
    nodes = real_nodes(tmp_path) | {9: stranger}
    with pytest.raises(FederationError, match=reason):
        federate(tmp_path, nodes, round_timeout_s=0.4)
    assert not (tmp_path / "checkpoint").exists()


def test_without_nodes_there_is_no_federation(tmp_path):
    with pytest.raises(FederationError, match="no node is connected"):
        federate(tmp_path, {})


def test_declared_weighting_needs_a_count_from_everybody(tmp_path):
    nodes = real_nodes(tmp_path) | {9: introducing(examples=0)}
    with pytest.raises(FederationError, match="no count was declared by: b"):
        federate(tmp_path, nodes, weighting="declared")


def test_a_version_that_a_node_makes_up_costs_it_a_snapshot_and_nobody_else(tmp_path):
    nodes = real_nodes(tmp_path)
    answer = nodes[9]

    def boasting(message):
        reply = answer(message)
        if message.metadata.message_type == "query":
            fields = dict(reply.content[RECORD])
            Introduction.from_fields(fields)
            reply.content[RECORD] = ConfigRecord(fields | {"run": "made-up", "version": 2**31 - 1})
        return reply

    nodes[9] = boasting
    coordinator, _, _ = federate(tmp_path, nodes)
    assert coordinator.model_sha256 == federate(tmp_path / "plain")[0].model_sha256


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
        RecordDict({RECORD: ConfigRecord({"run": "r"}), "model": ArrayRecord()}),
    ],
    ids=["nothing", "no model", "an empty model"],
)
def test_a_node_answers_a_foreign_message_with_one_line(tmp_path, content):
    FakeGrid({})
    reply = answering(tiny_node(tmp_path))(foreign(content))
    assert "lacks the instruction or the model" in reply.error.reason


def test_a_node_says_in_words_that_its_disk_is_full(tmp_path, monkeypatch):
    nodes = real_nodes(tmp_path)
    node = tiny_node(tmp_path, "b")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    def act(message):
        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", full)
            return answering(node)(message)

    nodes[9] = act
    coordinator, _, _ = federate(tmp_path, nodes, rounds=1)
    assert "the disk is full" in coordinator.rows[0]["rejections"]["b"]
