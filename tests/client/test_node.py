import numpy as np
import pytest
from custodies import FREELY, announced, custody, run_plan
from flwr.common.serde import recorddict_to_proto
from hand_server import FEDERATED, SIZE, Server
from tiny_federation import federated_model, tiny_model, tiny_node

from fedglm.client import local_trainer
from fedglm.client.flower_records import to_records
from fedglm.client.gate import OutboundGate
from fedglm.client.state.node_state import NodeState, StateError
from fedglm.compression.codec import CodecError, decode, make_codec
from fedglm.compression.downlink import ModelVersions, vector_sha256
from fedglm.compression.settings import DownlinkSettings
from fedglm.protocol.federated_model import FederatedModel
from fedglm.protocol.messages import TrainReply

pytestmark = pytest.mark.usefixtures("unsynced")


def values(outcome):
    return decode(outcome.blob, size=SIZE).to_dense()


@pytest.fixture
def deltas(monkeypatch):
    """Every local delta that a node makes, in order."""
    made, real = [], local_trainer.train_locally

    def recording(*args, **kwargs):
        result = real(*args, **kwargs)
        made.append(result.delta)
        return result

    monkeypatch.setattr(local_trainer, "train_locally", recording)
    return made


# --- who it is


def test_a_new_node_introduces_itself(tmp_path):
    words = tiny_node(tmp_path, "site-1", rows=24).join()
    assert (words.name, words.run, words.version) == ("site-1", "", -1)
    assert (words.layout, words.examples) == (FEDERATED.layout.sha256, 24)
    assert not (tmp_path / "site-1").exists()


def test_after_a_round_it_says_what_it_holds(tmp_path):
    node, server = tiny_node(tmp_path), Server()
    server.step(1)
    outcome = server.ask(node, 1)
    assert outcome.reply == TrainReply(nonce="nonce-1")
    assert outcome.blob is not None
    words = tiny_node(tmp_path).join()
    assert (words.run, words.version) == ("run-1", 1)


# --- error feedback


def test_what_was_sent_and_the_residual_are_all_the_local_deltas(tmp_path, deltas):
    """Nothing is lost in any of the rounds; rounding is that of float32 sums."""
    node, server = tiny_node(tmp_path), Server()
    received = np.zeros(SIZE)
    for number in range(1, 6):
        outcome = server.ask(node, number, acknowledged=number - 1)
        received += values(outcome)
        server.step(number)
        state = NodeState.load(node.folder, SIZE)
        total = np.sum(deltas, axis=0, dtype=np.float64)
        np.testing.assert_allclose(received + state.pending.residual, total, atol=1e-7)
    assert len(deltas) == 5
    assert np.count_nonzero(state.pending.residual) > SIZE / 2  # so the test means something


def test_a_lost_update_keeps_the_old_residual(tmp_path, deltas):
    node, server = tiny_node(tmp_path), Server()
    first = server.ask(node, 1)
    server.step(1)
    lost = server.ask(node, 2, acknowledged=1)
    after_first = NodeState.load(node.folder, SIZE).residual
    server.step(2)
    third = server.ask(node, 3, acknowledged=1)
    state = NodeState.load(node.folder, SIZE)
    assert state.residual.tobytes() == after_first.tobytes()
    # What the server has, and what waits, is the deltas of rounds 1 and 3: round 2 is gone, and nothing else.
    np.testing.assert_allclose(values(first) + values(third) + state.pending.residual, deltas[0] + deltas[2], atol=1e-7)
    assert lost.blob != third.blob


def test_an_acknowledgement_of_another_round_commits_nothing(tmp_path):
    node, server = tiny_node(tmp_path), Server()
    server.ask(node, 1)
    server.ask(node, 2, acknowledged=7)
    assert NodeState.load(node.folder, SIZE).residual is None


@pytest.mark.parametrize(("missed", "factor"), [(0, 1.0), (1, 0.5), (3, 0.125), (4, 0.0)])
def test_a_residual_ages_with_the_rounds_missed(tmp_path, deltas, missed, factor):
    update = {"codec": "topk-fp16", "density": 0.1, "residual_decay": 0.5, "residual_limit": 3}
    node, server = tiny_node(tmp_path, update=update), Server()
    server.ask(node, 1)
    residual = NodeState.load(node.folder, SIZE).pending.residual
    outcome = server.ask(node, 2 + missed, acknowledged=1)
    state = NodeState.load(node.folder, SIZE)
    left = values(outcome) + state.pending.residual
    np.testing.assert_allclose(left, deltas[1] + factor * residual, atol=1e-7)


@pytest.mark.parametrize(("rate", "factor"), [(0.0, 0.0), (5e-3, 0.5), (1e-2, 1.0), (4e-2, 1.0)])
def test_a_residual_falls_with_the_learning_rate_and_never_grows(tmp_path, deltas, rate, factor):
    node, server = tiny_node(tmp_path, update={"codec": "topk-fp16", "density": 0.1}), Server()
    server.ask(node, 1, learning_rate=1e-2)
    residual = NodeState.load(node.folder, SIZE).pending.residual
    outcome = server.ask(node, 2, acknowledged=1, learning_rate=rate)
    left = values(outcome) + NodeState.load(node.folder, SIZE).pending.residual
    np.testing.assert_allclose(left, deltas[1] + factor * residual, atol=1e-7)


def test_the_ratio_counts_the_message_around_the_update(tmp_path):
    gate = OutboundGate(custody(tmp_path / "custody"), tmp_path)
    gate.admit(announced(run_plan(FEDERATED.layout.sha256, parameters=FEDERATED.layout.size, codec="topk-sign")))
    update = {"codec": "topk-sign", "max_ratio": 0.95}
    node, server = tiny_node(tmp_path, update=update, envelope=gate.envelope), Server()
    for number in (1, 2, 3):
        outcome = server.ask(node, number, acknowledged=number - 1)
        message = recorddict_to_proto(to_records(gate.release(outcome, server.order(number)))).ByteSize()
        assert len(outcome.blob) + 40 < message <= 4 * SIZE * 0.95


def test_a_ratio_without_room_is_refused_in_words(tmp_path):
    node, server = tiny_node(tmp_path, update={"max_ratio": 0.0001}, envelope=400), Server()
    outcome = server.ask(node, 1)
    assert isinstance(outcome.failure, CodecError)
    assert "the message around it takes 400: give at least" in str(outcome.failure)


def test_without_feedback_nothing_is_kept(tmp_path, deltas):
    update = {"codec": "topk-fp16", "density": 0.1, "feedback": False}
    node, server = tiny_node(tmp_path, update=update), Server()
    for number in (1, 2):
        outcome = server.ask(node, number, acknowledged=number - 1)
        codec = make_codec("topk-fp16", density=0.1)
        assert outcome.blob == codec.encode(deltas[number - 1])
        assert NodeState.load(node.folder, SIZE).pending.residual is None


def test_a_server_that_went_back_to_an_older_checkpoint_is_followed(tmp_path, deltas):
    """The newest checkpoint was damaged: the residual is of a round that the server has forgotten, and is dropped."""
    node, server = tiny_node(tmp_path), Server()
    server.ask(node, 1)
    older = server.versions.state()
    server.step(1)
    server.ask(node, 2, acknowledged=1)
    server.step(2)
    server.ask(node, 3, acknowledged=2)
    server.versions = ModelVersions.restore(older, FEDERATED.layout.sha256, make_codec("dense-fp32"))
    outcome = server.ask(node, 1, held=3, acknowledged=0)
    assert outcome.blob is not None
    kept = NodeState.load(node.folder, SIZE).pending.residual
    np.testing.assert_allclose(values(outcome) + kept, deltas[-1], atol=1e-7)


# --- the same again


def test_the_same_round_asked_again_gives_the_very_same_bytes(tmp_path, deltas):
    server = Server()
    first = server.ask(tiny_node(tmp_path), 1)
    again = server.ask(tiny_node(tmp_path), 1, nonce="another")
    assert again.blob == first.blob
    assert again.reply.nonce == "another"
    assert len(deltas) == 1


def test_a_node_reloaded_before_each_round_sends_what_one_in_memory_sends(tmp_path):
    def blobs(folder, *, reloaded):
        node, server, sent = tiny_node(folder), Server(), []
        for number in range(1, 5):
            node = tiny_node(folder, model=federated_model()) if reloaded else node
            sent.append(server.ask(node, number, acknowledged=number - 1).blob)
            server.step(number)
        return sent

    assert blobs(tmp_path / "x", reloaded=False) == blobs(tmp_path / "y", reloaded=True)


def test_one_workbench_serves_several_nodes_without_a_trace(tmp_path):
    def blobs(folder, *, shared):
        model, server, sent = federated_model(), Server(), []
        nodes = [tiny_node(folder, name, model=model if shared else None, data_seed=i) for i, name in enumerate("ab")]
        for number in range(1, 4):
            sent.append([server.ask(node, number, acknowledged=number - 1).blob for node in nodes])
            server.step(number)
        return sent

    sent = blobs(tmp_path / "x", shared=True)
    assert sent == blobs(tmp_path / "y", shared=False)
    assert sent[0][0] != sent[0][1]


# --- the way down


def test_it_rebuilds_the_servers_bits_and_trains_on_them(tmp_path):
    node, server = tiny_node(tmp_path), Server(codec="topk-sign")
    for number in range(1, 4):
        server.step(number)
        server.ask(node, number)
        state = NodeState.load(node.folder, SIZE)
        assert state.base.tobytes() == server.versions.vector.tobytes()
        assert state.pending.base_sha256 == server.versions.sha256 == vector_sha256(state.base)


def test_rounds_missed_are_caught_up_in_one_message(tmp_path):
    node, server = tiny_node(tmp_path), Server(codec="topk-sign")
    server.ask(node, 1)
    for number in range(3):
        server.step(number)
    assert server.ask(node, 4).blob is not None
    assert NodeState.load(node.folder, SIZE).version == 3
    assert NodeState.load(node.folder, SIZE).base.tobytes() == server.versions.vector.tobytes()


@pytest.mark.parametrize("held", [1, 2])
def test_deltas_from_a_version_it_does_not_hold_make_it_ask_for_a_snapshot(tmp_path, held, deltas):
    node, server = tiny_node(tmp_path), Server(codec="topk-sign")
    for number in range(3):
        server.step(number)
    outcome = server.ask(node, 1, held=held)
    assert (outcome.reply.holds, outcome.blob) == (0, None)
    assert not node.folder.exists()
    recovered = node.train(server.order(1, nonce="second"), server.versions.snapshot(), FREELY)
    assert recovered.reply.holds is None
    assert recovered.blob is not None
    assert len(deltas) == 1


def test_other_bits_under_the_same_version_make_it_ask_for_a_snapshot(tmp_path):
    node, server = tiny_node(tmp_path), Server(codec="topk-sign")
    server.step(1)
    server.ask(node, 1)
    state = NodeState.load(node.folder, SIZE)
    state.base = state.base + np.float32(1)
    state.save(node.folder)
    server.step(2)
    assert server.ask(node, 2).reply.holds is not None
    node.train(server.order(2), server.versions.snapshot(), FREELY)
    assert NodeState.load(node.folder, SIZE).base.tobytes() == server.versions.vector.tobytes()


@pytest.mark.parametrize("spoil", [lambda _: b"", lambda blob: blob[:-1], lambda blob: blob[:9] + b"?" + blob[10:]])
def test_a_damaged_message_makes_it_ask_for_a_snapshot(tmp_path, spoil):
    node, server = tiny_node(tmp_path), Server()
    server.step(1)
    outcome = node.train(server.order(1), spoil(server.versions.message_since(0)), FREELY)
    assert outcome.reply.holds is not None


def test_a_message_that_leads_elsewhere_than_it_says_is_not_trained_on(tmp_path):
    node, server = tiny_node(tmp_path), Server()
    server.step(1)
    assert server.ask(node, 1, version=2).reply.holds is not None


def test_an_initialisation_that_differs_is_healed_by_a_snapshot(tmp_path):
    node, server = tiny_node(tmp_path, model=federated_model(seed=5)), Server()
    assert server.ask(node, 1).reply.holds is not None
    assert node.train(server.order(1), server.versions.snapshot(), FREELY).blob is not None


def test_another_layout_is_refused_in_words(tmp_path):
    model = tiny_model()
    model.head.bias.requires_grad_(requires_grad=False)
    other = FederatedModel(model, FEDERATED.task, DownlinkSettings())
    with pytest.raises(CodecError, match=r"node a builds another model .* give both the same \[model\] and \[data\]"):
        Server().ask(tiny_node(tmp_path, model=other), 1)


# --- its memory


def test_another_run_starts_afresh(tmp_path, deltas):
    node = tiny_node(tmp_path)
    old = Server("run-1")
    for number in (1, 2):
        old.ask(node, number, acknowledged=number - 1)
        old.step(number)
    # The same rounds of another run: neither base, residual nor the update in flight may come from the first.
    fresh = Server("run-2").ask(node, 2, held=0, acknowledged=2)
    state = NodeState.load(node.folder, SIZE)
    assert (state.run, state.version, state.residual) == ("run-2", 0, None)
    assert state.base.tobytes() == FEDERATED.initial.tobytes()
    np.testing.assert_allclose(values(fresh) + state.pending.residual, deltas[-1], atol=1e-7)


def test_a_damaged_file_is_a_state_error_that_names_the_folder(tmp_path):
    node, server = tiny_node(tmp_path), Server()
    server.ask(node, 1)
    (node.folder / "state.json").write_text("{")
    for act in (node.join, lambda: server.ask(node, 2, held=0)):
        with pytest.raises(StateError, match=str(node.folder)):
            act()


# --- measuring


def test_it_measures_the_received_model_before_it_trains(tmp_path):
    node, server = tiny_node(tmp_path), Server()
    trained = server.ask(node, 1, evaluate=True)
    plain = node.evaluate(server.order(1), server.versions.message_since(0), FREELY)
    assert (plain.reply.holds, plain.blob) == (None, None)
    assert trained.evaluation == plain.evaluation
    assert plain.evaluation.count == 10
    assert server.ask(node, 2).evaluation is None


def test_evaluation_asks_for_a_snapshot_too(tmp_path):
    node, server = tiny_node(tmp_path), Server()
    server.step(1)
    assert node.evaluate(server.order(1), b"", FREELY).reply.holds is not None
    assert node.evaluate(server.order(1), server.versions.snapshot(), FREELY).evaluation is not None
