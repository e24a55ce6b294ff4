"""Ways around the fixed cadence of answers: what a message says of itself, and questions that wait for another one."""

import threading
import time

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedglm.client.supernode import client_app
from fedglm.client.supernode.worker_link import WorkerError, WorkerReply


@pytest.fixture
def question(tmp_path):
    (tmp_path / "site.toml").write_text("[site]\nanswer_every_s = 0.5\n")
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1

    def put(kind="train"):
        message = Message(RecordDict(), dst_node_id=1, message_type=kind)
        message.metadata.__dict__["_message_id"] = "m"
        return client_app.app(message, Context(1, 1, {"site": str(tmp_path)}, RecordDict(), {}))

    return put


@pytest.mark.parametrize("fails", [False, True])
def test_an_answer_says_that_it_was_made_when_it_leaves(question, monkeypatch, fails):
    """Flower's messages carry the moment of their making, in microseconds, and what is left of their life by then."""
    done = []

    def ask(*_):
        if fails:
            raise WorkerError("it died")
        return WorkerReply((1, "no"))

    def hold(*_):
        time.sleep(0.01)
        done.append(time.time())

    monkeypatch.setattr(client_app, "ask", ask)
    monkeypatch.setattr(client_app, "wait_for_interval", hold)
    reply = question()
    assert reply.metadata.created_at >= done[0]


def test_a_question_does_not_learn_when_the_worker_is_through_with_another(question, monkeypatch):
    """The worker answers one at a time: a second question, sent at an odd moment, left at a cadence of its own."""
    order, works = [], threading.Event()

    def ask(_, asked):
        order.append(asked.kind)
        if asked.kind == "train":
            works.set()
        return WorkerReply((1, "no"))

    def hold(*_):
        time.sleep(0.3)  # the answer to the first one has not left yet
        order.append("left")

    monkeypatch.setattr(client_app, "ask", ask)
    monkeypatch.setattr(client_app, "wait_for_interval", hold)
    first = threading.Thread(target=question)
    first.start()
    assert works.wait(30)
    question("evaluate")
    first.join()
    assert order == ["train", "left", "evaluate", "left"]
