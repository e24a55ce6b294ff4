"""A site's policy over somebody else's Flower app: what leaves beside `compress_uplink`, and what is refused."""

from functools import partial

import numpy as np
import pytest
from custodies import custody
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedglm.client.mods import compress_uplink
from fedglm.compression.messages import RECORD
from fedglm.privacy.errors import PolicyError

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
        ({"bytes_at_most": 50}, app, "bytes"),
        ({"metrics": ()}, app, "metrics"),
        ({"metrics": ("count",)}, partial(app, metrics={"num-examples": 1, "train_loss": 0.5}), "metrics"),
        ({}, partial(app, extra={"notes": ConfigRecord({"first": "John Doe"})}), "records"),
    ],
    ids=lambda value: None if callable(value) or isinstance(value, dict) else value,
)
def test_what_it_does_not_is_answered_with_the_rule_and_nothing_else(tmp_path, policy, answer, rule):
    node = Node(tmp_path, **policy)
    reply = node.ask(3, answer)
    assert reply.has_error()
    assert reply.error.reason.startswith(f"refused by rule {rule}: ")
    assert "John" not in reply.error.reason
    assert node.refusals == [(rule, "r", 3)]
    assert not node.custody.ledger.rows()


def test_evaluation_lets_out_listed_metrics_and_no_arrays(tmp_path):
    def measured(message, _context, content):
        return Message(RecordDict(content), reply_to=message)

    node = Node(tmp_path / "a", metrics=("loss", "count"))
    fine = partial(measured, content={"metrics": MetricRecord({"eval_loss": 0.5, "num-examples": 3})})
    assert not node.ask(answer=fine, message_type="evaluate").has_error()
    accuracy = partial(measured, content={"metrics": MetricRecord({"accuracy": 0.5})})
    assert "rule metrics" in node.ask(answer=accuracy, message_type="evaluate").error.reason
    weights = partial(measured, content={"arrays": arrays(START)})
    assert "rule records" in node.ask(answer=weights, message_type="evaluate").error.reason


def test_without_a_signed_policy_there_is_no_mod(tmp_path):
    with pytest.raises(PolicyError, match=r"holds no site\.key"):
        compress_uplink(state_dir=tmp_path, custody=tmp_path / "nowhere")
