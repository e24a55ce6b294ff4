"""Replies of a node as Flower records: one config record per message, and one metric record beside it for metrics.

The coded update is one of the fields, because each further record would cost as much as all fields together.
"""

from flwr.app import ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_to_proto

from fedglm.protocol.messages import RECORD, UPDATE, CodedReply, JoinReply, LightReply, ModelReply, Sealed

Outbound = JoinReply | LightReply | ModelReply | Sealed | CodedReply
"""Everything that the outbound gate releases."""

METRICS = "metrics"
"""Name of the record that holds metrics."""


def to_records(message: Outbound) -> RecordDict:
    """Return the content of the Flower message that carries `message`."""
    if not isinstance(message, CodedReply):
        return RecordDict({RECORD: ConfigRecord(dict(message.to_fields()))})
    blob = {} if message.blob is None else {UPDATE: message.blob}
    content = RecordDict({RECORD: ConfigRecord({**message.reply.to_fields(), **blob})})
    if message.metrics is not None:
        content[METRICS] = MetricRecord(dict(message.metrics))
    return content


def count_message_bytes(message: Outbound) -> int:
    """Return the size of the message on the wire, serialised by Flower, in bytes."""
    return int(recorddict_to_proto(to_records(message)).ByteSize())
