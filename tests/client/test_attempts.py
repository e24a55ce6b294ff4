"""What a node makes of data is one attempt: made once, kept, and of the plan and the data that it was made from."""

from dataclasses import replace

import numpy as np
import pytest
from custodies import FREELY, MECHANISM
from hand_server import FEDERATED, SIZE, Server
from tiny_federation import tiny_node

from fedglm.autoglm.training.local import TrainingError
from fedglm.client import local_trainer
from fedglm.client.exchange import Authorization
from fedglm.client.state.node_state import NodeState
from fedglm.compression.codec import make_codec
from fedglm.compression.downlink import ModelVersions
from fedglm.privacy.dp.mechanism import make_metrics_mechanism
from fedglm.privacy.errors import Refusal

pytestmark = pytest.mark.usefixtures("unsynced")


def raiser(exception):
    def fail(*_, **__):
        raise exception

    return fail


def test_training_that_fails_is_one_attempt_and_the_residual_of_the_round_before_stays(tmp_path, monkeypatch):
    node, server = tiny_node(tmp_path), Server()
    server.ask(node, 1)
    kept = NodeState.load(node.folder, SIZE).pending.residual
    with monkeypatch.context() as patch:
        patch.setattr(local_trainer, "train_locally", raiser(TrainingError("not finite")))
        server.step(1)
        failed = server.ask(node, 2, acknowledged=1)
    assert isinstance(failed.failure, TrainingError)
    assert (failed.blob, failed.purposes) == (None, ("update",))
    again = server.ask(node, 2, acknowledged=1)  # training would work now: but what failed has been answered
    assert again.failure is not None
    assert (again.blob, again.attempt) == (None, failed.attempt)
    server.ask(node, 3, acknowledged=2)  # a round of which the server never had anything
    assert np.array_equal(NodeState.load(node.folder, SIZE).residual, kept)


def test_measures_are_made_once_for_a_round_and_a_model(tmp_path):
    node, server = tiny_node(tmp_path), Server()
    private = Authorization(MECHANISM, make_metrics_mechanism(MECHANISM, 1.0), 20, lambda: None, lambda _: True)
    blob = server.versions.message_since(0)
    first, again = (node.evaluate(server.order(1), blob, private) for _ in range(2))
    assert (again.evaluation, again.attempt) == (first.evaluation, first.attempt)
    other = node.evaluate(server.order(2), blob, private)
    assert other.attempt != first.attempt


def test_the_learning_rate_is_the_plan_s_at_most(tmp_path):
    node, server = tiny_node(tmp_path), Server()
    with pytest.raises(Refusal, match="rule plan: the instruction asks for the learning rate"):
        server.ask(node, 1, learning_rate=0.0501)
    assert server.ask(node, 1, learning_rate=0.01).blob


def test_version_0_is_the_plan_s_whoever_sends_it(tmp_path):
    node, server = tiny_node(tmp_path), Server()
    authorization = replace(FREELY, model="0" * 64)
    with pytest.raises(Refusal, match="rule models"):
        node.train(server.order(1), server.versions.message_since(0), authorization)
    other = ModelVersions(FEDERATED.initial * 2, FEDERATED.layout.sha256, make_codec("dense-fp32"), grid="fp16")
    authorization = replace(FREELY, model=server.versions.sha256)
    with pytest.raises(Refusal, match="rule models"):
        node.train(server.order(1), other.snapshot(), authorization)
    assert node.train(server.order(1), server.versions.snapshot(), authorization).blob


def test_what_was_not_charged_for_yet_is_made_anew_where_the_data_are_others(tmp_path):
    """The node was killed before the charge, and its records were replaced: the charge is for those."""
    node, server = tiny_node(tmp_path), Server()
    blob = server.versions.message_since(0)

    def answer(commitment, charged):
        authorization = replace(FREELY, has_charged=lambda _: charged, commitment=commitment)
        return node.train(server.order(1), blob, authorization).attempt

    first = answer("a" * 64, charged=False)
    assert answer("a" * 64, charged=False) == first
    second = answer("b" * 64, charged=False)
    assert second != first
    assert answer("c" * 64, charged=True) == second  # charged for, and perhaps out: the very same
