"""The app of a real node answers every kind of message that a server sends."""

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedglm.client.supernode.one_answer import make_single_handler_app
from fedglm.server.rounds.admission import QUERY
from fedglm.server.rounds.countersigning import SEAL
from fedglm.server.rounds.light_handout import LIGHT
from fedglm.server.rounds.requests import TRAIN


@pytest.mark.parametrize("kind", [QUERY, SEAL, LIGHT, TRAIN, "evaluate"])
def test_every_kind_of_message_is_answered(kind):
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    seen = []

    def answer(message, _context):
        seen.append(message.metadata.message_type)
        return Message(RecordDict(), reply_to=message)

    message = Message(RecordDict(), dst_node_id=1, message_type=kind, group_id="1")
    message.metadata.__dict__["_message_id"] = "m"
    assert not make_single_handler_app(answer)(message, Context(1, 1, {}, RecordDict(), {})).has_error()
    assert seen == [kind]
