"""The node as a Flower ClientApp."""

import errno
from collections.abc import Callable

from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from fedglm.autoglm.errors import DataError, ModelError
from fedglm.client.gate import OutboundGate, Refusal
from fedglm.client.node import Node
from fedglm.client.precision import PrecisionError
from fedglm.client.state import StateError
from fedglm.client.training import TrainingError
from fedglm.compression.codec import CodecError
from fedglm.compression.messages import RECORD, Instruction

NODE_FAULTS = (CodecError, DataError, ModelError, PrecisionError, StateError, TrainingError, Refusal, OSError)
"""What a node answers with one clear line, as opposed to a bug, which Flower reports with its traceback."""

Resolve = Callable[[Context], tuple[Node, OutboundGate]]
"""Finds the node that a Flower context stands for, and its gate."""


def build_client_app(resolve: Resolve) -> ClientApp:
    """Make the ClientApp of a node.

    Args:
        resolve: Called for each message; a simulation maps partitions to sites, a deployment always has one node.
    """
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        def introduce() -> RecordDict:
            node, _ = resolve(context)
            return RecordDict({RECORD: ConfigRecord(dict(node.introduce().to_fields()))})

        return _answer(message, introduce)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        def work() -> RecordDict:
            node, gate = resolve(context)
            return gate.release(node.train(*_read(message)))

        return _answer(message, work)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        def work() -> RecordDict:
            node, gate = resolve(context)
            return gate.release(node.evaluate(*_read(message)))

        return _answer(message, work)

    return app


def _read(message: Message) -> tuple[Instruction, bytes]:
    """Instruction and downlink blob of a message; raises `CodecError` when it is not one of ours."""
    content = message.content
    model = content.array_records.get("model", ArrayRecord())
    if RECORD not in content.config_records or RECORD not in model:
        raise CodecError("the message is not one of fedglm's: it lacks the instruction or the model")
    instruction = Instruction.from_fields(content.config_records[RECORD])
    return instruction, model[RECORD].data


def _answer(message: Message, work: Callable[[], RecordDict]) -> Message:
    try:
        return Message(work(), reply_to=message)
    except NODE_FAULTS as exc:
        full = isinstance(exc, OSError) and _errno(exc) in (errno.ENOSPC, errno.EDQUOT)
        code = ErrorCode.MOD_FAILED_PRECONDITION if isinstance(exc, Refusal) else ErrorCode.CLIENT_APP_RAISED_EXCEPTION
        reason = str(exc) if not full or "disk is full" in str(exc) else f"the disk is full: {exc}"
        return Message(Error(code=int(code), reason=reason), reply_to=message)


def _errno(exc: BaseException) -> int | None:
    cause: BaseException | None = exc
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno is not None:
            return cause.errno
        cause = cause.__cause__
    return None
