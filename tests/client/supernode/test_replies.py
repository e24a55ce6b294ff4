"""When a node's answers leave: each as it is made, though a message came twice or is never answered."""

import contextlib
import inspect
import itertools
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


def test_messages_are_asked_for_soon_after_one_and_ever_more_seldom(monkeypatch):
    now, pulls = [1000.0], []
    work = replies.WorkTracker()

    def pull():
        pulls.append(now[0])
        return 7 if len(pulls) == 1 else None

    def wait(seconds):
        now[0] += seconds

    monkeypatch.setattr(flower, "_pull_and_store_message", pull)
    monkeypatch.setattr(replies.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(work, "wait_for_completion", wait)
    replies.install_reply_sender(work)
    assert flower._pull_and_store_message() == 7
    assert flower._pull_and_store_message() is None, "by then Flower's own pause is no longer"
    pauses = [after - before for before, after in itertools.pairwise(pulls[1:])]
    assert pauses == sorted(pauses)
    assert pauses[0] == pytest.approx(0.2)
    assert pauses[-1] < 3
    assert 12 < pulls[-1] - pulls[0] < 18
    assert len(pulls) < 25, "a site asks for no more than its share of requests"
    assert flower._pull_and_store_message() is None
    assert pulls[-1] - pulls[-2] == 0, "an idle node leaves the pause to Flower"


def test_an_answer_ends_the_pause_before_the_next_look_for_messages(monkeypatch):
    answers = iter([7, None, None])
    work = replies.WorkTracker()
    monkeypatch.setattr(flower, "_pull_and_store_message", lambda: next(answers))
    monkeypatch.setattr(replies, "_MIN_PAUSE_S", 2.9)
    replies.install_reply_sender(work)
    assert flower._pull_and_store_message() == 7

    def answer():
        with work.track():
            pass

    threading.Timer(0.05, answer).start()
    began = time.monotonic()
    assert flower._pull_and_store_message() is not None
    assert time.monotonic() - began < 2.5


def test_who_answers_is_woken_by_a_message():
    work, woken = replies.WorkTracker(), threading.Event()
    threading.Thread(target=lambda: (work.wait_for_message(60), woken.set()), daemon=True).start()
    assert not woken.wait(0.05)
    work.announce_message()
    assert woken.wait(10)


def test_a_message_that_was_answered_is_not_waited_for_once_more():
    work = replies.WorkTracker()
    pulled = time.monotonic()
    assert not work.is_idle(pulled), "it may yet be taken up"
    with work.track():
        pass
    assert work.is_idle(pulled)
