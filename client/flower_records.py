"""What leaves a node, as Flower's records: each message is one config record, and measures one metric record beside it.

The coded update lies among the fields, for each further record would cost as much as all fields together.
"""

from flwr.app import ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_to_proto

from fedglm.protocol.messages import RECORD, UPDATE, CodedReply, JoinReply, Sealed

Outbound = JoinReply | Sealed | CodedReply
"""All that the gate lets out."""

METRICS = "metrics"
"""Name of the record that holds measures."""


def to_records(message: Outbound) -> RecordDict:
    """The content of the Flower message that carries `message`."""
    if not isinstance(message, CodedReply):
        return RecordDict({RECORD: ConfigRecord(dict(message.to_fields()))})
    blob = {} if message.blob is None else {UPDATE: message.blob}
    content = RecordDict({RECORD: ConfigRecord({**message.reply.to_fields(), **blob})})
    if message.metrics is not None:
        content[METRICS] = MetricRecord(dict(message.metrics))
    return content


def size_of(message: Outbound) -> int:
    """Bytes that the message has on the wire, serialised by Flower."""
    return int(recorddict_to_proto(to_records(message)).ByteSize())
