"""The node as a Flower ClientApp."""

import errno
import logging
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from flwr.app import ConfigRecord, Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from fedglm.autoglm.errors import DataError, ModelError
from fedglm.autoglm.training.local import TrainingError
from fedglm.autoglm.training.precision import PrecisionError
from fedglm.client.flower_records import Outbound, to_records
from fedglm.client.gate import OutboundGate
from fedglm.client.no_answer import Withheld, no_answer
from fedglm.client.node import Node
from fedglm.client.state.node_state import StateError
from fedglm.compression.codec import CodecError
from fedglm.core.files import is_disk_full
from fedglm.privacy.errors import PrivacyError, Refusal
from fedglm.protocol.messages import MODEL, PLAN, RECORD, Seal, TrainRequest
from fedglm.protocol.refusals import to_error

DISK_FULL: Final = 1000 + errno.ENOSPC
"""Code of an error reply for want of room on the disk, given where faults are reported in full; Flower's are small."""

LOG = logging.getLogger(__name__)
_MAX_GROUP, _MAX_REASON, _MAX_LINES = 40, 500, 200

NODE_FAULTS = (
    CodecError, DataError, ModelError, OSError, PrecisionError, PrivacyError, StateError, TrainingError, Withheld,
)  # fmt: skip
"""What a node answers with one clear line, as opposed to a bug, which Flower reports with its traceback."""


@dataclass(frozen=True)
class NodeContext:
    """Where a message is answered.

    Attributes:
        gate: The site's outbound gate.
        node: Makes the node; called only once the gate has admitted the run's plan, which may say what it is made of.
    """

    gate: OutboundGate
    node: Callable[[], Node]


Resolve = Callable[[Context], NodeContext]
"""Finds the place that a Flower context stands for."""


def build_client_app(resolve: Resolve, *, faults_in_full: bool = False) -> ClientApp:
    """Make the ClientApp of a node.

    Args:
        resolve: Called for each message; a simulation maps partitions to sites, a deployment always has one node.
        faults_in_full: Tell the server the text of every error. Only where node and server are one machine: an error
            may quote a record, and that there is one may follow from it.
    """
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        def introduce() -> Outbound:
            place = resolve(context)
            place.gate.admit(_plan(message))
            return place.gate.introduce(place.node().introduce())

        return _answer(message, introduce, faults_in_full)

    @app.query("seal")
    def seal(message: Message, context: Context) -> Message:
        def work() -> Outbound:
            words = message.content.config_records.get(RECORD, ConfigRecord())
            return resolve(context).gate.seal(Seal.from_fields(words))

        return _answer(message, work, faults_in_full)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        def work() -> Outbound:
            place = resolve(context)
            instruction, blob = _read(message)
            permit = place.gate.permit(instruction)
            return place.gate.release(place.node().train(instruction, blob, permit), instruction)

        return _answer(message, work, faults_in_full)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        def work() -> Outbound:
            place = resolve(context)
            instruction, blob = _read(message)
            permit = place.gate.permit(instruction, update=False)
            return place.gate.release(place.node().evaluate(instruction, blob, permit), instruction)

        return _answer(message, work, faults_in_full)

    return app


def _plan(message: Message) -> bytes:
    """The signed plan that the server announces; raises `CodecError` when there is none."""
    blob = message.content.config_records.get(RECORD, ConfigRecord()).get(PLAN)
    if not isinstance(blob, bytes):
        raise CodecError("the query is not one of fedglm's: it announces no plan")
    return blob


def _read(message: Message) -> tuple[TrainRequest, bytes]:
    """Instruction and downlink blob of a message; raises `CodecError` when it is not one of ours."""
    fields = dict(message.content.config_records.get(RECORD, {}))
    blob = fields.pop(MODEL, None)
    if not isinstance(blob, bytes):
        raise CodecError("the message is not one of fedglm's: it lacks the instruction or the model")
    return TrainRequest.from_fields(fields), blob


def _answer(message: Message, work: Callable[[], Outbound], faults_in_full: bool) -> Message:
    """The reply that `work` makes, or an error reply; the error itself goes to the node's log."""
    try:
        return Message(to_records(work()), reply_to=message)
    except NODE_FAULTS as exc:
        error: Exception = exc
    except Exception as exc:
        if faults_in_full:
            raise  # a bug: Flower shows it with its traceback
        error = exc
    if isinstance(error, Withheld) and isinstance(error.__cause__, Exception):
        shown, told = error.__cause__, faults_in_full
    else:
        shown, told = error, faults_in_full or isinstance(error, CodecError | PrecisionError | Refusal)
    if not faults_in_full:
        trace = "" if isinstance(shown, Refusal) else _trace(shown)  # a refusal is the gate at its work
        group, why = _printable(message.metadata.group_id, _MAX_GROUP), _printable(str(shown), _MAX_REASON)
        LOG.error("no answer to round %s: %s%s", group, why, trace)
    if not told:
        return no_answer(message)
    if isinstance(shown, Refusal):
        return Message(to_error(shown), reply_to=message)
    is_full = faults_in_full and is_disk_full(shown)  # a site's disk is nothing to its server
    code = DISK_FULL if is_full else int(ErrorCode.CLIENT_APP_RAISED_EXCEPTION)
    return Message(Error(code, str(shown)), reply_to=message)


def _printable(text: str, longest: int) -> str:
    """Words, of the server perhaps, as part of one line of the site's log."""
    return "".join(character if character.isprintable() else "?" for character in text[:longest])


def _trace(error: Exception) -> str:
    """An error's traceback, each line of it set in, so that no words in it can pass for a line of the log."""
    lines = "".join(traceback.format_exception(error)).splitlines()[-_MAX_LINES:]
    return "".join(f"\n    {_printable(line, _MAX_REASON)}" for line in lines)
