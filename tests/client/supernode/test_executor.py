"""The thread that takes a SuperNode's messages to the app: what it says of failures, and what may not hold it up."""

import os
import threading
from types import SimpleNamespace

import httpx
import pytest
from command_line import soon
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SubStatus
from flwr.proto.runtime_pb2 import AcquireTaskResponse
from flwr.supercore.task_identity import TaskIdentity

from fedglm.client.no_answer import NO_ANSWER
from fedglm.client.supernode import executor
from fedglm.client.supernode.replies import WorkTracker

BROKEN = "broken"
DIAGNOSIS = "patient Miller, HIV positive"


class Runtime:
    """What the SuperNode offers its apps: messages by token, and what came of each."""

    def __init__(self, tokens):
        self.waiting, self.pushed, self.ended = list(tokens), {}, {}
        self.closed = threading.Event()
        self.whole = threading.Event()  # set once the parts of the token "broken" are there

    def client(self, _address, authentication):
        token = getattr(authentication, "_token", None)

        def acquire(_):
            if self.closed.is_set():
                threading.Event().wait()  # for ever: the test is over
            if self.waiting and isinstance(self.waiting[0], Exception):
                raise self.waiting.pop(0)
            response = AcquireTaskResponse()
            if self.waiting:
                response.token = self.waiting.pop(0)
                response.task.task_id = 1
            return response

        return SimpleNamespace(AcquireTask=acquire, token=token, close=lambda: None)

    def pull(self, client):
        if client.token == BROKEN:
            self.whole.wait()
        message = Message(RecordDict({"m": MetricRecord({"x": 1.0})}), dst_node_id=1, message_type="train")
        message.metadata.__dict__["_message_id"] = client.token
        return message, Context(1, 1, {}, RecordDict(), {}), None, None

    def push(self, client, reply, _context):
        self.pushed[client.token] = reply

    def end(self, client, _context, status, _details):
        self.ended[client.token] = status


@pytest.fixture
def runtime(monkeypatch):
    monkeypatch.setattr(TaskIdentity, "_run_id", 1)
    monkeypatch.setattr(TaskIdentity, "_node_id", 1)
    monkeypatch.setattr(TaskIdentity, "_task_id", 1)
    all_made = []

    def start(app, *tokens):
        made = Runtime(tokens)
        all_made.append(made)
        monkeypatch.setattr(executor, "_make_client", made.client)
        monkeypatch.setattr(executor, "_POLL_S", 0.01)
        monkeypatch.setattr(executor, "pull_task_input", made.pull)
        monkeypatch.setattr(executor, "push_message", made.push)
        monkeypatch.setattr(executor, "push_task_output", made.end)
        quiet = SimpleNamespace(start=lambda: None, stop=lambda: None, is_running=True)
        monkeypatch.setattr(executor, "HeartbeatSender", lambda _: quiet)
        monkeypatch.setattr(executor, "make_task_heartbeat_fn_http", lambda _: None)
        executor.start_executor(app, "127.0.0.1:1", b"secret", WorkTracker())
        return made

    yield start
    for made in all_made:
        made.closed.set()


def app(answer):
    made = ClientApp()
    made.train()(answer)
    return made


def echo(message, _context):
    return Message(message.content, reply_to=message)


def test_each_message_is_answered_once(runtime):
    made = runtime(app(echo), "a", "b", "c")
    assert soon(lambda: set(made.ended) == {"a", "b", "c"})
    assert set(made.ended.values()) == {SubStatus.COMPLETED}
    assert all(reply.content.metric_records["m"]["x"] == 1.0 for reply in made.pushed.values())


def test_what_an_app_says_when_it_fails_stays_at_the_site(runtime, caplog):
    def fail(_message, _context):
        raise ValueError(DIAGNOSIS)

    made = runtime(app(fail), "a")
    assert soon(lambda: made.ended)
    assert made.pushed["a"].has_error()
    assert made.pushed["a"].error.reason == NO_ANSWER
    assert DIAGNOSIS in caplog.text


def test_a_message_that_never_comes_whole_holds_up_no_other(runtime):
    made = runtime(app(echo), BROKEN, "b")
    assert soon(lambda: made.ended == {"b": SubStatus.COMPLETED})
    made.whole.set()
    assert soon(lambda: set(made.ended) == {BROKEN, "b"})


def test_a_supernode_that_does_not_answer_yet_is_asked_again(runtime):
    made = runtime(app(echo), httpx.ConnectError("refused"), httpx.ReadTimeout("slow"), "a")
    assert soon(lambda: made.ended == {"a": SubStatus.COMPLETED})


def test_one_that_never_answers_ends_the_process(runtime, monkeypatch):
    ended = threading.Event()
    monkeypatch.setattr(executor, "_TIMEOUT_S", 0.1)
    monkeypatch.setattr(os, "_exit", lambda _: ended.set() or threading.Event().wait())
    runtime(app(echo), *[httpx.ConnectError("refused") for _ in range(1000)])
    assert ended.wait(20)
