"""Replies of nodes, part by part: Flower sees what is whole and well-formed, and of that each part once."""

import asyncio
import itertools
import os
import random

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, MetricRecord, RecordDict
from flwr.app.message import make_message, remove_content_from_message
from flwr.app.metadata import Metadata
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PullMessagesResponse, PushMessagesRequest, PushMessagesResponse
from flwr.proto.message_pb2 import ObjectTree, PushObjectRequest, PushObjectResponse
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_id,
    get_object_tree,
)

from fedglm.server.gateway.asgi import Response
from fedglm.server.gateway.reply_buffer import MAX_ATTEMPTS, ReplyBuffer
from fedglm.server.gateway.reply_limits import MAX_METADATA_BYTES, ReplyLimits
from fedglm.server.gateway.upload import MAX_OBJECTS, ReplyError

RUN, NODE, PARAMETERS = 11, 5, 1000
_numbers = itertools.count()


class Flower:
    """Takes what a SuperLink takes."""

    def __init__(self):
        self.messages, self.objects, self.busy = [], {}, 0

    async def ask(self, path, body):
        answer = Response()
        status, content = 200, b""
        if self.busy:
            self.busy, status = self.busy - 1, 503
        elif path.endswith("push-messages"):
            request = PushMessagesRequest.FromString(body)
            self.messages.append(request.messages_list[0].metadata.message_id)
            names = [self.messages[-1], *self._names(request.message_object_trees[0])]
            content = PushMessagesResponse(objects_to_push=sorted(set(names)), session_id="s").SerializeToString()
        else:
            request = PushObjectRequest.FromString(body)
            self.objects[request.object_id] = request.object_content
            content = PushObjectResponse(stored=True).SerializeToString()
        await answer.append({"type": "http.response.start", "status": status})
        await answer.append({"type": "http.response.body", "body": content})
        return answer

    def _names(self, tree):
        for child in tree.children:
            yield child.object_id
            yield from self._names(child)


def metadata(kind="train", **other):
    fields = {
        "run_id": RUN,
        "message_id": "",
        "src_node_id": NODE,
        "dst_node_id": 1,
        "reply_to_message_id": "asked",
        "group_id": "1",
        "created_at": 1.0 + next(_numbers),
        "ttl": 100.0,
        "message_type": kind,
    }
    return Metadata(**fields | other)


class Sender:
    """A node that was handed a message, and answers as it likes."""

    def __init__(self, tmp_path, kind="train", *, announced=True, parameters=PARAMETERS):
        limits = ReplyLimits(tmp_path)
        if announced:
            limits.record_run(RUN, parameters)
        self.replies, self.flower = ReplyBuffer(limits, tmp_path), Flower()
        self.ask_again(kind)

    def ask_again(self, kind="train"):
        asked = message_to_proto(make_message(metadata(kind, message_id="asked"), error=Error(0, "")))
        self.replies.record_delivery("a", PullMessagesResponse(messages_list=[asked]))

    def announce(self, message, *, site="a", node=NODE, tree=None, times=1, name=None):
        whole = message_to_proto(remove_content_from_message(message) if message.has_content() else message)
        whole.metadata.message_id = name or message.object_id
        request = PushMessagesRequest(
            node=Node(node_id=node),
            messages_list=[whole] * times,
            message_object_trees=[tree or get_object_tree(message)] * times,
        )
        return PushMessagesResponse.FromString(self.replies.begin(site, request.SerializeToString()))

    def push(self, session, content, *, name=None, site="a", run=RUN):
        """Whether the part was stored, or the status of another answer."""
        request = PushObjectRequest(
            node=Node(node_id=NODE),
            run_id=run,
            object_id=name or get_object_id(content),
            object_content=content,
            session_id=session,
        )
        found = asyncio.run(self.replies.add_object(site, request.SerializeToString(), self.flower.ask))
        if isinstance(found, bytes):
            return PushObjectResponse.FromString(found).stored
        return found.status

    def send(self, message, **options):
        """The whole answer, as Flower's node sends it."""
        session = self.announce(message, **options).session_id
        parts = {name: part.deflate() for name, part in get_all_nested_objects(message).items()}
        return [self.push(session, content) for content in parts.values()], parts


def reply(size=100, kind="train", **other):
    record = ConfigRecord({"update": bytes(size), "nonce": "x"})
    return make_message(
        metadata(kind, **other), content=RecordDict({"fedglm": record, "metrics": MetricRecord({"x": 1.0})})
    )


def refused(status, act, *arguments, **options):
    with pytest.raises(ReplyError) as caught:
        act(*arguments, **options)
    assert caught.value.status == status, caught.value


def test_a_whole_reply_passes_unchanged(tmp_path):
    node = Sender(tmp_path)
    message = reply(4 * PARAMETERS)
    stored, parts = node.send(message)
    assert stored == [True] * len(parts)
    assert node.flower.messages == [message.object_id]
    assert node.flower.objects == parts


def test_an_error_passes(tmp_path):
    node = Sender(tmp_path)
    message = make_message(metadata(), error=Error(3, "no"))
    assert node.send(message)[0] == [True]
    assert node.flower.objects.keys() == {message.object_id}


def test_of_a_reply_that_is_not_whole_flower_sees_nothing(tmp_path):
    node = Sender(tmp_path)
    message = reply()
    session = node.announce(message).session_id
    for _, part in list(get_all_nested_objects(message).items())[:-1]:
        assert node.push(session, part.deflate()) is True
    assert (node.flower.messages, node.flower.objects) == ([], {})


def test_a_reply_is_as_long_as_its_run_and_kind_say(tmp_path):
    for kind, size in (
        ("train", 4 * PARAMETERS + MAX_METADATA_BYTES),
        ("query", MAX_METADATA_BYTES),
        ("query.seal", MAX_METADATA_BYTES),
    ):
        node = Sender(tmp_path, kind)
        assert all(node.send(reply(size - 2000, kind))[0])
        node = Sender(tmp_path, kind)
        refused(413, node.send, reply(size + 1, kind))
        assert node.replies.max_request_bytes("a") < size + 5000
        assert (node.flower.messages, node.flower.objects) == ([], {})


def test_nothing_is_taken_for_a_run_that_is_not_under_way(tmp_path):
    refused(403, Sender(tmp_path, announced=False).send, reply())
    node = Sender(tmp_path / "other")
    refused(403, node.send, reply(run_id=RUN + 1))


def test_a_site_answers_what_it_was_sent_in_its_own_name(tmp_path):
    node = Sender(tmp_path)
    refused(403, node.send, reply(), site="b")
    refused(403, node.send, reply(reply_to_message_id="another"))
    refused(403, node.send, reply(kind="evaluate"))
    refused(400, node.send, reply(), node=NODE + 1)
    refused(400, node.send, reply(), name="0" * 64)
    refused(400, node.send, reply(), times=2)
    node.send(reply())
    refused(403, node.send, reply())  # answered already
    assert len(node.flower.messages) == 1


def test_a_reply_that_never_ends_is_begun_so_often(tmp_path):
    node = Sender(tmp_path)
    for _ in range(MAX_ATTEMPTS):
        node.announce(reply())
    refused(429, node.announce, reply())


def test_a_second_try_takes_the_place_of_the_first(tmp_path):
    node = Sender(tmp_path)
    message = reply()
    old = node.announce(message).session_id
    parts = [part.deflate() for part in get_all_nested_objects(message).values()]
    assert node.push(old, parts[0]) is True
    node.announce(message)
    assert node.push(old, parts[0]) is False
    assert all(node.send(message)[0])


def test_where_flower_is_busy_the_last_part_is_sent_again(tmp_path):
    node = Sender(tmp_path)
    node.flower.busy = 1
    message = reply()
    stored, parts = node.send(message)
    assert stored[-1] == 503
    last = list(parts.values())[-1]
    session = node.replies._uploads["a"][0]
    assert node.push(session, last) is True
    assert node.push(session, last) is True  # whose answer was lost
    assert (len(node.flower.messages), node.flower.objects) == (1, parts)


def test_a_part_that_is_not_of_the_reply_is_not_kept(tmp_path):
    node = Sender(tmp_path)
    session = node.announce(reply()).session_id
    refused(400, node.push, session, b"ConfigRecord  0\0")
    refused(400, node.push, session, b"x", name=reply().object_id)
    assert node.push("another", b"x") is False
    assert node.push(session, b"x", run=RUN + 1) is False


def tree(name, *children):
    return ObjectTree(object_id=name, children=children)


def test_a_list_of_parts_is_well_formed(tmp_path):
    node, message = Sender(tmp_path), reply()
    name, leaf = message.object_id, "1" * 64
    many = [tree(f"{number:064x}") for number in range(MAX_OBJECTS)]
    refused(413, node.announce, message, tree=tree(name, *many))
    refused(400, node.announce, message, tree=tree(name, tree("x")))
    refused(400, node.announce, message, tree=tree(name, tree(leaf), tree(leaf)))
    refused(400, node.announce, message, tree=tree(name, tree(leaf), tree("2" * 64, tree(leaf, tree("3" * 64)))))


def raw(node, children, parts):
    """Send parts as they are, with the list of them; the last is the message."""
    name = get_object_id(parts[-1])
    session = node.announce(reply(), tree=tree(name, *children), name=name).session_id
    return [node.push(session, part) for part in parts]


def message_of(content_ids, **other):
    """The last part of a reply that claims to hold these."""
    whole = message_to_proto(make_message(metadata(**other), error=Error(0, "")))
    whole.ClearField("error")
    body = whole.SerializeToString(deterministic=True)
    return f"Message {','.join(content_ids)} {len(body)}".encode() + b"\0" + body


def test_what_cannot_be_put_together_is_not_handed_on(tmp_path):
    record = ConfigRecord({"x": 1}).deflate()
    name = get_object_id(record)
    wrong = {
        "a record in a dictionary's place": ([tree(name)], [record, message_of([name])]),
        "a part that is no object": ([tree(get_object_id(b"x"))], [b"x", message_of([get_object_id(b"x")])]),
        "no message": ([], [ConfigRecord({"y": 2}).deflate()]),
        "others than listed": ([], [message_of([name])]),
        "another kind within": ([], [make_message(metadata("evaluate"), error=Error(0, "")).deflate()]),
        "another site's message within": (
            [],
            [make_message(metadata(reply_to_message_id="b's"), error=Error(0, "")).deflate()],
        ),
        "another node within": ([], [make_message(metadata(src_node_id=9), error=Error(0, "")).deflate()]),
    }
    for case, (children, parts) in wrong.items():
        node = Sender(tmp_path)
        refused(400, raw, node, children, parts)
        assert (node.flower.messages, node.flower.objects) == ([], {}), case


# A little more than MAX_METADATA_BYTES each, beside a blob or without: building them is the tests' time.
WORDY = {
    "many entries": {str(number): True for number in range(6_000)},
    "a long list": {"x": [1.0] * 8_500},
    "a long text": {"x": "y" * 70_000},
    "many blobs": {str(number): b"" for number in range(6_000)},
    "blobs in a list": {"x": [b"y"] * 23_000},
    "a blob and a list": {"update": bytes(50_000), "x": [1] * 66_000},
}


@pytest.mark.parametrize("fields", WORDY.values(), ids=WORDY)
def test_what_is_long_is_an_update(tmp_path, fields):
    """Of other values as many bytes take a hundred times the memory, and seconds to be read."""
    node = Sender(tmp_path, parameters=250_000)
    refused(413, node.send, make_message(metadata(), content=RecordDict({"fedglm": ConfigRecord(fields)})))
    assert (node.flower.messages, node.flower.objects) == ([], {})


def test_other_records_are_short(tmp_path):
    for record in (MetricRecord({str(n): 1 for n in range(6_000)}), ArrayRecord({"x": Array(np.zeros(9_000))})):
        node = Sender(tmp_path, parameters=250_000)
        refused(413, node.send, make_message(metadata(), content=RecordDict({"fedglm": record})))
    node = Sender(tmp_path, parameters=250_000)
    assert all(node.send(reply(1_000_000))[0])


def test_an_error_is_as_long_as_words_are(tmp_path):
    node = Sender(tmp_path)
    refused(413, node.send, make_message(metadata(), error=Error(3, "x" * MAX_METADATA_BYTES)))


@pytest.mark.parametrize("seed", range(int(os.environ.get("FEDGLM_REPLIES", "4"))))
def test_whatever_a_node_sends_flower_gets_whole_replies_alone(tmp_path, seed):
    """Honest replies with parts changed, cut, swapped, left out and sent twice, in any order."""
    dice = random.Random(seed)  # noqa: S311 - a test's order
    node = Sender(tmp_path)
    for _ in range(25):
        node.ask_again()
        message = reply(dice.randint(0, 6000))
        before = dict(node.flower.objects)
        try:
            session = node.announce(message).session_id
            parts = [part.deflate() for part in get_all_nested_objects(message).values()]
            dice.shuffle(parts)
            honest = dice.random() < 0.3
            for part in parts:
                if not honest and dice.random() < 0.3:
                    spoiled = bytearray(part)
                    spoiled[dice.randrange(len(spoiled))] ^= 1 << dice.randrange(8)
                    part = dice.choice([bytes(spoiled), part[: dice.randrange(len(part))], b""])
                    node.push(session, part, name=dice.choice([None, get_object_id(parts[0])]))
                else:
                    node.push(session, part)
        except ReplyError:
            assert node.flower.objects == before
    for name, content in node.flower.objects.items():
        assert get_object_id(content) == name
    for name in node.flower.messages:
        assert name in node.flower.objects
