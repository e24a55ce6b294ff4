"""The node as a Flower ClientApp."""

import errno
import logging
from collections.abc import Callable
from dataclasses import dataclass

from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from fedglm.autoglm.errors import DataError, ModelError
from fedglm.client.gate import OutboundGate, fault
from fedglm.client.node import Node
from fedglm.client.precision import PrecisionError
from fedglm.client.state import StateError
from fedglm.client.training import TrainingError
from fedglm.compression.codec import CodecError
from fedglm.compression.messages import MODEL, PLAN, RECORD, Instruction, Seal
from fedglm.privacy.durable import StorageError
from fedglm.privacy.errors import PrivacyError, Refusal

LOG = logging.getLogger(__name__)

NODE_FAULTS = (CodecError, DataError, ModelError, PrecisionError, PrivacyError, StateError, TrainingError, OSError)
"""What a node answers with one clear line, as opposed to a bug, which Flower reports with its traceback."""


@dataclass(frozen=True)
class Place:
    """Where a message is answered.

    Attributes:
        gate: The site's outbound gate.
        node: Makes the node; called only once the gate has admitted the run's plan, which may say what it is made of.
    """

    gate: OutboundGate
    node: Callable[[], Node]


Resolve = Callable[[Context], Place]
"""Finds the place that a Flower context stands for."""


def build_client_app(resolve: Resolve, *, faults_in_full: bool = False) -> ClientApp:
    """Make the ClientApp of a node.

    Args:
        resolve: Called for each message; a simulation maps partitions to sites, a deployment always has one node.
        faults_in_full: Tell the server the text of every error. Only where node and server are one machine: an error
            may quote a record.
    """
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        def introduce() -> RecordDict:
            place = resolve(context)
            place.gate.admit(_plan(message))
            return place.gate.introduce(place.node().introduce())

        return _answer(message, introduce, faults_in_full)

    @app.query("seal")
    def seal(message: Message, context: Context) -> Message:
        def work() -> RecordDict:
            words = message.content.config_records.get(RECORD, ConfigRecord())
            return resolve(context).gate.seal(Seal.from_fields(words))

        return _answer(message, work, faults_in_full)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        def work() -> RecordDict:
            place = resolve(context)
            instruction, blob = _read(message)
            permit = place.gate.permit(instruction)
            return place.gate.release(place.node().train(instruction, blob, permit), instruction)

        return _answer(message, work, faults_in_full)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        def work() -> RecordDict:
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


def _read(message: Message) -> tuple[Instruction, bytes]:
    """Instruction and downlink blob of a message; raises `CodecError` when it is not one of ours."""
    fields = dict(message.content.config_records.get(RECORD, {}))
    blob = fields.pop(MODEL, None)
    if not isinstance(blob, bytes):
        raise CodecError("the message is not one of fedglm's: it lacks the instruction or the model")
    return Instruction.from_fields(fields), blob


def _answer(message: Message, work: Callable[[], RecordDict], faults_in_full: bool) -> Message:
    """The reply that `work` makes, or an error reply; the error itself goes to the node's log."""
    try:
        return Message(work(), reply_to=message)
    except NODE_FAULTS as exc:
        error: Exception = exc
    except Exception as exc:
        if faults_in_full:
            raise  # a bug: Flower shows it with its traceback
        error = exc
    full = isinstance(error, OSError) and _errno(error) in (errno.ENOSPC, errno.EDQUOT)
    if full and "disk is full" not in str(error):
        error = StorageError(f"the disk is full: {error}")
    code = ErrorCode.MOD_FAILED_PRECONDITION if isinstance(error, Refusal) else ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    if not faults_in_full:
        trace = None if isinstance(error, Refusal) else error  # a refusal is the gate at its work
        LOG.error("no answer to round %s: %s", message.metadata.group_id, error, exc_info=trace)
    return Message(Error(code=int(code), reason=fault(error, in_full=faults_in_full)), reply_to=message)


def _errno(exc: BaseException) -> int | None:
    cause: BaseException | None = exc
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno is not None:
            return cause.errno
        cause = cause.__cause__
    return None
