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
from fedglm.client.light.exchange import take_offer
from fedglm.client.light.shelf import LightShelf
from fedglm.client.models.exchange import take_model
from fedglm.client.models.shelf import ModelShelf
from fedglm.client.no_answer import Withheld, make_no_answer
from fedglm.client.node import Node
from fedglm.client.state.node_state import StateError
from fedglm.compression.codec import CodecError
from fedglm.core.files import is_disk_full
from fedglm.privacy.errors import PrivacyError, Refusal
from fedglm.protocol.messages import (
    MAX_RELEASE_BYTES,
    MODEL,
    PLAN,
    RECORD,
    RELEASE,
    LightOffer,
    ModelOffer,
    Seal,
    TrainRequest,
)
from fedglm.protocol.refusals import to_error

DISK_FULL: Final = 1000 + errno.ENOSPC
"""Error code of a reply when the node's disk is full, used with verbose errors alone; Flower's own codes are small."""

LOG = logging.getLogger(__name__)
_MAX_GROUP, _MAX_REASON, _MAX_LINES = 40, 500, 200

NODE_ERRORS = (
    CodecError, DataError, ModelError, OSError, PrecisionError, PrivacyError, StateError, TrainingError, Withheld,
)  # fmt: skip
"""Errors that a node reports in one line; any other is a bug, which Flower reports with its traceback."""


@dataclass(frozen=True)
class NodeContext:
    """The gate and the node that answer a message.

    Attributes:
        gate: The site's outbound gate.
        make_node: Makes the node; called only after the gate has admitted the run's plan, on which the node may depend.
        light: Light releases of the node; None for a node that takes none.
        models: Models of runs that the node keeps; None for a node that keeps none.
    """

    gate: OutboundGate
    make_node: Callable[[], Node]
    light: LightShelf | None = None
    models: ModelShelf | None = None


ResolveContext = Callable[[Context], NodeContext]
"""Function that returns the node context of a Flower context."""


def build_client_app(resolve: ResolveContext, *, verbose_errors: bool = False) -> ClientApp:
    """Build the ClientApp of a node.

    Args:
        resolve: Called for each message; a simulation maps partitions to sites, a deployment always has one node.
        verbose_errors: Send the text of every error to the server. Only where node and server are one machine: an error
            may quote a record, and its occurrence may depend on one.
    """
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        def join() -> Outbound:
            node_context = resolve(context)
            node_context.gate.admit(_read_plan(message))
            return node_context.gate.release_join(node_context.make_node().join())

        return _make_reply(message, join, verbose_errors)

    @app.query("seal")
    def seal(message: Message, context: Context) -> Message:
        def countersign() -> Outbound:
            fields = message.content.config_records.get(RECORD, ConfigRecord())
            return resolve(context).gate.countersign(Seal.from_fields(fields))

        return _make_reply(message, countersign, verbose_errors)

    @app.query("light")
    def light(message: Message, context: Context) -> Message:
        def take_release() -> Outbound:
            node_context = resolve(context)
            offer, blob = _read_offer(message)
            node_context.gate.check_offer(offer)
            if node_context.light is None:
                raise CodecError("this node takes no light releases")
            reply, validation = take_offer(node_context.light, offer, blob)
            return node_context.gate.release_light(reply, validation)

        return _make_reply(message, take_release, verbose_errors)

    @app.query("model")
    def model(message: Message, context: Context) -> Message:
        def take_final_model() -> Outbound:
            node_context = resolve(context)
            offer, blob = _read_model_offer(message)
            manifest = node_context.gate.admit_model(offer)
            if node_context.models is None:
                raise CodecError("this node keeps no models")
            reply = take_model(node_context.models, node_context.make_node(), manifest, offer.manifest, blob)
            return node_context.gate.release_model(reply, manifest, offer.manifest)

        return _make_reply(message, take_final_model, verbose_errors)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        def make_update() -> Outbound:
            node_context = resolve(context)
            request, blob = _read_request(message)
            authorization = node_context.gate.authorize(request)
            return node_context.gate.release(node_context.make_node().train(request, blob, authorization), request)

        return _make_reply(message, make_update, verbose_errors)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        def make_metrics() -> Outbound:
            node_context = resolve(context)
            request, blob = _read_request(message)
            authorization = node_context.gate.authorize(request, update=False)
            return node_context.gate.release(node_context.make_node().evaluate(request, blob, authorization), request)

        return _make_reply(message, make_metrics, verbose_errors)

    return app


def _read_plan(message: Message) -> bytes:
    """Return the signed plan that the server announces; raises `CodecError` where there is none."""
    blob = message.content.config_records.get(RECORD, ConfigRecord()).get(PLAN)
    if not isinstance(blob, bytes):
        raise CodecError("the query is not one of fedglm's: it announces no plan")
    return blob


def _read_offer(message: Message) -> tuple[LightOffer, bytes | None]:
    """Return offer and release of a message; raises `CodecError` where it is not one of ours."""
    fields = dict(message.content.config_records.get(RECORD, {}))
    blob = fields.pop(RELEASE, None)
    if not isinstance(blob, bytes | None):
        raise CodecError("the message is not one of fedglm's: its light release is no bytes")
    if blob is not None and len(blob) > MAX_RELEASE_BYTES:
        raise CodecError(f"the light release has more than {MAX_RELEASE_BYTES} bytes")
    return LightOffer.from_fields(fields), blob


def _read_model_offer(message: Message) -> tuple[ModelOffer, bytes]:
    """Return offer and downlink blob of a message; raises `CodecError` where it is not one of ours."""
    fields = dict(message.content.config_records.get(RECORD, {}))
    blob = fields.pop(MODEL, None)
    if not isinstance(blob, bytes):
        raise CodecError("the message is not one of fedglm's: it lacks the model")
    return ModelOffer.from_fields(fields), blob


def _read_request(message: Message) -> tuple[TrainRequest, bytes]:
    """Return request and downlink blob of a message; raises `CodecError` where it is not one of ours."""
    fields = dict(message.content.config_records.get(RECORD, {}))
    blob = fields.pop(MODEL, None)
    if not isinstance(blob, bytes):
        raise CodecError("the message is not one of fedglm's: it lacks the instruction or the model")
    return TrainRequest.from_fields(fields), blob


def _make_reply(message: Message, work: Callable[[], Outbound], verbose_errors: bool) -> Message:
    """Make the reply from the result of `work`, or an error reply; the error itself is logged at the node."""
    try:
        return Message(to_records(work()), reply_to=message)
    except NODE_ERRORS as exc:
        error: Exception = exc
    except Exception as exc:
        if verbose_errors:
            raise  # a bug: Flower reports it with its traceback
        error = exc
    if isinstance(error, Withheld) and isinstance(error.__cause__, Exception):
        cause, is_reported = error.__cause__, verbose_errors
    else:
        cause, is_reported = error, verbose_errors or isinstance(error, CodecError | PrecisionError | Refusal)
    if not verbose_errors:
        trace = "" if isinstance(cause, Refusal) else _format_traceback(cause)  # a refusal is no fault of the program
        group, reason = _to_printable(message.metadata.group_id, _MAX_GROUP), _to_printable(str(cause), _MAX_REASON)
        LOG.error("no answer to round %s: %s%s", group, reason, trace)
    if not is_reported:
        return make_no_answer(message)
    if isinstance(cause, Refusal):
        return Message(to_error(cause), reply_to=message)
    is_full = verbose_errors and is_disk_full(cause)  # the state of a site's disk is not the server's business
    code = DISK_FULL if is_full else int(ErrorCode.CLIENT_APP_RAISED_EXCEPTION)
    return Message(Error(code, str(cause)), reply_to=message)


def _to_printable(text: str, max_length: int) -> str:
    """Return a possibly untrusted text as part of one line of the site's log."""
    return "".join(character if character.isprintable() else "?" for character in text[:max_length])


def _format_traceback(error: Exception) -> str:
    """Format an error's traceback with each line indented, so that no text in it can pass for a line of the log."""
    lines = "".join(traceback.format_exception(error)).splitlines()[-_MAX_LINES:]
    return "".join(f"\n    {_to_printable(line, _MAX_REASON)}" for line in lines)
