"""A site's policy over somebody else's Flower app: what leaves beside `compress_uplink`, and what is refused."""

from functools import partial

import numpy as np
import pytest
from custodies import custody
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode
from flwr.supercore.task_identity import TaskIdentity

from fedglm.client.mods import compress_uplink
from fedglm.client.no_answer import NO_ANSWER
from fedglm.privacy.errors import PolicyError
from fedglm.protocol.messages import RECORD

START = {"w": np.zeros((4, 5), np.float32)}
METRICS = ("loss", "metric", "count")


def arrays(values):
    return ArrayRecord({name: Array(value) for name, value in values.items()})


def app(message, _context, *, extra=None, metrics=None):
    """Everybody's app: it moves its weights, and says how many rows it has."""
    step = np.linspace(-1, 1, 20, dtype=np.float32).reshape(4, 5)
    content = {"arrays": arrays({"w": step}), "metrics": MetricRecord(metrics or {"num-examples": 10})}
    return Message(RecordDict(content | (extra or {})), reply_to=message)


class Node:
    """The app under the mod, at a site with a policy."""

    def __init__(self, folder, *, codec="topk-sign", **policy):
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        self.custody = custody(folder / "custody", **({"metrics": METRICS} | policy))
        self.mod = compress_uplink(codec, density=0.2, state_dir=folder / "state", custody=folder / "custody")

    def ask(self, number=1, answer=app, message_type="train"):
        order = ConfigRecord({"run": "r", "round": number, "acknowledged": number - 1})
        content = RecordDict({RECORD: order, "arrays": arrays(START)})
        message = Message(content, dst_node_id=2, message_type=message_type)
        message.metadata.__dict__["_message_id"] = "m"
        return self.mod(message, Context(5, 2, {}, RecordDict(), {}), answer)

    @property
    def refusals(self):
        return [(entry.rule, entry.run, entry.round) for entry in self.custody.refusals.entries()]


def test_what_the_policy_permits_passes_and_is_remembered(tmp_path):
    node = Node(tmp_path)
    reply = node.ask()
    assert list(reply.content["arrays"]) == [RECORD]
    assert not node.refusals
    (row,) = node.custody.ledger.rows()
    assert (row.charge.run, row.charge.round, row.charge.mechanism) == ("r", 1, None)
    node.ask(2)
    assert len(node.custody.ledger.rows()) == 2


@pytest.mark.parametrize(
    ("policy", "answer", "rule"),
    [
        ({"without_differential_privacy": False}, app, "without-differential-privacy"),
        ({"codecs": ("int8",)}, app, "codecs"),
        ({"models": ("0" * 64,)}, app, "models"),
    ],
)
def test_what_no_reply_could_be_is_refused_by_its_rule_before_the_app_sees_the_message(tmp_path, policy, answer, rule):
    node, seen = Node(tmp_path, **policy), []
    reply = node.ask(3, lambda *message: seen.append(message) or answer(*message))
    assert reply.error.reason.startswith(f"refused by rule {rule}: ")
    assert node.refusals == [(rule, "r", 3)]
    assert not seen
    assert not node.custody.ledger.rows()


def fails(_message, _context):
    raise ValueError("could not convert string to float: 'John Doe'")


def answers_with_an_error(message, _context):
    return Message(Error(2, "row 17: John Doe"), reply_to=message)


@pytest.mark.parametrize(
    ("policy", "answer", "rule"),
    [
        ({"bytes_at_most": 50}, app, "bytes"),
        ({"metrics": ()}, app, "metrics"),
        ({"metrics": ("count",)}, partial(app, metrics={"num-examples": 1, "train_loss": 0.5}), "metrics"),
        ({}, partial(app, extra={"notes": ConfigRecord({"first": "John Doe"})}), "records"),
        ({}, fails, None),
        ({}, answers_with_an_error, None),
    ],
)
def test_whatever_goes_wrong_once_the_app_has_seen_data_is_one_constant_reply(tmp_path, policy, answer, rule, caplog):
    node = Node(tmp_path, **policy)
    reply = node.ask(3, answer)
    assert (reply.error.code, reply.error.reason) == (int(ErrorCode.CLIENT_APP_RAISED_EXCEPTION), NO_ANSWER)
    assert node.refusals == ([(rule, "r", 3)] if rule else [])
    assert caplog.records  # why is for the site's own log
    (row,) = node.custody.ledger.rows()
    assert (row.charge.purpose, row.charge.mechanism) == ("update", None)


def test_evaluation_lets_out_listed_metrics_and_no_arrays(tmp_path):
    def measured(message, _context, content):
        return Message(RecordDict(content), reply_to=message)

    node = Node(tmp_path / "a", metrics=("loss", "count"))
    fine = partial(measured, content={"metrics": MetricRecord({"eval_loss": 0.5, "num-examples": 3})})
    assert not node.ask(answer=fine, message_type="evaluate").has_error()
    accuracy = partial(measured, content={"metrics": MetricRecord({"accuracy": 0.5})})
    assert node.ask(answer=accuracy, message_type="evaluate").error.reason == NO_ANSWER
    weights = partial(measured, content={"arrays": arrays(START)})
    assert node.ask(answer=weights, message_type="evaluate").error.reason == NO_ANSWER
    assert [rule for rule, *_ in node.refusals] == ["metrics", "records"]
    assert {row.charge.purpose for row in node.custody.ledger.rows()} == {"metrics"}
    silent = Node(tmp_path / "b", without_differential_privacy=False)
    assert "rule without-differential-privacy" in silent.ask(answer=fine, message_type="evaluate").error.reason


def test_without_a_signed_policy_there_is_no_mod(tmp_path):
    with pytest.raises(PolicyError, match=r"holds no site\.key"):
        compress_uplink(state_dir=tmp_path, custody=tmp_path / "nowhere")
