"""When a node's answers leave: each as it is made, though a message came twice or is never answered."""

import contextlib
import inspect
import threading
import time
from types import SimpleNamespace

import pytest
from command_line import soon

from fedglm.client.supernode import replies

flower = pytest.importorskip("flwr.supernode.start_client_internal")


class State:
    """The answers that wait to be sent."""

    def __init__(self, *waiting):
        self.waiting = list(waiting)

    def get_messages_legacy(self, is_reply):
        assert is_reply
        taken, self.waiting = self.waiting, []
        return taken


@pytest.fixture
def sent(monkeypatch):
    """What was sent, by a stand-in for Flower's loop that waits as that does."""
    found = []

    def push(state, **_):
        while not (messages := state.get_messages_legacy(is_reply=True)):
            time.sleep(0.01)
        found.extend(messages)

    monkeypatch.setattr(flower, "_push_messages", push)
    monkeypatch.setattr(flower, "_pull_and_store_message", lambda: None)
    monkeypatch.setattr(replies, "_POLL_S", 0.01)
    monkeypatch.setattr(replies, "_IDLE_S", 0.1)
    return found


def send(work, state):
    replies.install_reply_sender(work)
    flower._push_messages(state=state, object_store=None, send=None, push_object=None)


def test_all_answers_are_sent_and_none_is_waited_for_in_vain(sent):
    work, state = replies.WorkTracker(), State("first", "its double")
    send(work, state)
    assert sent == ["first", "its double"]
    send(work, State())  # the last message needed no answer


def test_what_is_in_work_is_waited_for(sent):
    work, state, go = replies.WorkTracker(), State("first"), threading.Event()

    def answer():
        with work.track():
            go.wait()
            state.waiting.append("second")

    threading.Thread(target=answer).start()
    assert soon(lambda: not work.is_idle(0))
    sender = threading.Thread(target=send, args=(work, state))
    sender.start()
    assert soon(lambda: sent == ["first"])
    time.sleep(0.3)
    assert sender.is_alive()
    go.set()
    sender.join(10)
    assert sent == ["first", "second"]


def test_a_message_is_in_work_until_its_answer_is_ready_also_where_that_fails():
    work = replies.WorkTracker()
    with contextlib.suppress(ValueError), work.track():
        assert not work.is_idle(0)
        raise ValueError("no")
    assert soon(lambda: work.is_idle(0))


def test_an_answer_that_came_late_leaves_at_the_next_look_for_messages(sent):
    work, state = replies.WorkTracker(), State()
    send(work, state)
    assert flower._pull_and_store_message() is None
    with work.track():
        state.waiting.append("late")
    assert flower._pull_and_store_message() is not None
    flower._push_messages(state=state)
    assert sent == ["late"]
    assert flower._pull_and_store_message() is None


def test_flower_s_loop_is_the_one_that_is_known():
    """It takes these arguments, and asks its state for answers as we expect."""
    assert list(inspect.signature(flower._push_messages).parameters) == ["state", "object_store", "send", "push_object"]
    asked = []
    state = SimpleNamespace(get_messages_legacy=lambda **which: asked.append(which) or replies._TruthyEmptyList())
    flower._push_messages(state, None, None, None)
    assert asked == [{"is_reply": True}]
    loop = inspect.getsource(flower.start_client_internal)
    assert "run_id = _pull_and_store_message(" in loop
    assert "if run_id is None:" in loop
