"""How often the server polls for replies."""

import threading
from itertools import pairwise

from flwr.app import Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedglm.server.rounds.exchange import Exchange


class Pauses:
    """A clock that writes down each pause instead of waiting."""

    def __init__(self):
        self.taken = []

    def monotonic(self):
        return 0.0

    def wait(self, _event, seconds):
        self.taken.append(seconds)
        return False


class Mailbox:
    """A grid in which replies lie once they are put there."""

    def __init__(self):
        self.arrived, self.sent = [], []

    def push_messages(self, messages):
        for number, message in enumerate(messages, len(self.sent)):
            message.metadata.__dict__["_message_id"] = str(number)
        self.sent += messages
        return [message.metadata.message_id for message in messages]

    def pull_messages(self, ids):
        asked = [reply for reply in self.arrived if reply.metadata.reply_to_message_id in ids]
        self.arrived = [reply for reply in self.arrived if reply not in asked]
        return asked

    def reply(self, number, kind):
        reply = Message(RecordDict(), dst_node_id=1, message_type=kind)
        reply.metadata.__dict__["_reply_to_message_id"] = str(number)
        self.arrived.append(reply)


def poll(exchange, times):
    exchange.clock.taken.clear()
    for _ in range(times):
        if not list(exchange.poll()):
            exchange.wait()
    return exchange.clock.taken


def test_pauses_double_to_a_twentieth_of_a_second_and_begin_anew_with_each_message():
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1  # as Flower does before a ServerApp
    grid = Mailbox()
    exchange = Exchange(grid, threading.Event(), clock=Pauses())
    exchange.send([(1, RecordDict())], "train", 1)
    first = poll(exchange, 10)
    assert first[0] < 0.01
    assert all(after == min(2 * before, 0.05) for before, after in pairwise(first))
    assert first[-1] == 0.05
    exchange.send([(2, RecordDict())], "train", 1)
    assert poll(exchange, 10) == first
    grid.reply(0, "train")
    assert poll(exchange, 11) == first


def test_who_waits_for_one_type_of_message_neither_waits_for_others_nor_takes_their_replies():
    """A site may join while the server waits for something else; its reply is read in the next round."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    grid = Mailbox()
    exchange = Exchange(grid, threading.Event(), clock=Pauses())
    exchange.send([(7, RecordDict())], "query", 1)
    exchange.send([(8, RecordDict())], "query.light", 1)
    grid.reply(0, "query")
    grid.reply(1, "query.light")
    assert [node for node, _ in exchange.replies(1e9, message_type="query.light")] == [8]
    assert exchange.clock.taken == []
    assert exchange.cancel("query.light") == []
    assert [sent.node_id for sent, _ in exchange.poll()] == [7]
