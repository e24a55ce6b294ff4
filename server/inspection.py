"""What the server believes of a reply: nothing that it has not checked, and nothing is allocated before its size is."""

from dataclasses import dataclass
from typing import Any

from flwr.app import Message

from fedglm.compression.codec import CodecError, Update, decode
from fedglm.compression.messages import RECORD, UPDATE_STYPE, Instruction, Report


@dataclass(frozen=True)
class GoodReply:
    """A reply that answers its instruction.

    Attributes:
        report: Its fields.
        update: Decoded update, or None where none belongs to the status.
        metrics: Measures of the received model (`loss`, `metric`, `count`), empty unless asked for.
    """

    report: Report
    update: Update | None
    metrics: dict[str, float]


def inspect_reply(reply: Message, instruction: Instruction, size: int, norm_limit: float, codec: str) -> GoodReply:
    """Check a reply against the instruction it should answer.

    Args:
        reply: As it came.
        instruction: What the node was asked.
        size: Number of federated parameters.
        norm_limit: Greatest Euclidean norm of an update.
        codec: Name of the codec that the nodes were told to use.

    Raises:
        CodecError: Anything is wrong with it; the message says what.
    """
    if reply.has_error():
        raise CodecError(f"the node reports: {reply.error.reason}")
    content = reply.content
    if RECORD not in content.config_records:
        raise CodecError("the reply has no report")
    report = Report.from_fields(content.config_records[RECORD])
    if (report.nonce, report.round) != (instruction.nonce, instruction.round):
        raise CodecError(f"the reply answers round {report.round} or another message, not this one")
    if report.status == "need-snapshot":
        return GoodReply(report, None, {})
    if report.version != instruction.version:
        raise CodecError(f"the node worked on version {report.version}, not {instruction.version}")
    metrics = _metrics(content.metric_records) if instruction.evaluate else {}
    if report.status == "evaluated":
        return GoodReply(report, None, metrics)
    arrays = content.array_records.get("update")
    if arrays is None or list(arrays) != [RECORD]:
        raise CodecError("the reply has no update")
    if arrays[RECORD].stype != UPDATE_STYPE:
        raise CodecError(f"the update is serialised as {arrays[RECORD].stype[:40]!r}, not {UPDATE_STYPE!r}")
    update = decode(arrays[RECORD].data, size=size, codec=codec)
    norm = update.norm()
    if not norm <= norm_limit:  # also true for NaN
        raise CodecError(f"the update's norm is {norm:g}, at most {norm_limit:g} is taken (federation.norm_limit)")
    return GoodReply(report, update, metrics)


def _metrics(records: Any) -> dict[str, float]:
    record = records.get("metrics")
    if record is None or set(record) != {"loss", "metric", "count"}:
        raise CodecError("the node was asked for its metrics and sent none, or others")
    if not all(isinstance(value, int | float) and -1e30 < value < 1e30 for value in record.values()):
        raise CodecError("the node's metrics are not finite numbers")
    if record["count"] < 1:
        raise CodecError("the node's metrics are over no examples")
    return {name: float(value) for name, value in record.items()}
