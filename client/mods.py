"""Compression for any Flower app: a mod that codes the arrays that its ClientApp sends.

    from fedglm.client.mods import compress_uplink
    app = ClientApp(mods=[compress_uplink("topk-sign", density=0.05)])      # on the nodes
    strategy = Compressed(FedAdam(...))                                      # on the server

The app trains and replies with dense arrays as before. The mod, which must be the outermost, computes their difference
from the received arrays, adds the residual of earlier rounds, and replaces them by one coded array.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from flwr.app import Array, ArrayRecord, Context, Message, MessageType
from flwr.clientapp.typing import ClientAppCallable

from fedglm.client.coding import code_update
from fedglm.client.mod_guard import ModGuard
from fedglm.client.no_answer import Withheld, make_no_answer
from fedglm.client.state.node_state import NodeState
from fedglm.compression.arrays import flatten, float_layout
from fedglm.compression.codec import CodecError
from fedglm.compression.layout import Layout
from fedglm.compression.settings import UpdateSettings
from fedglm.privacy.errors import Refusal
from fedglm.privacy.ledger.charges import make_attempt_id
from fedglm.protocol.messages import RECORD, UPDATE_STYPE, ModRequest
from fedglm.protocol.refusals import to_error

LOG = logging.getLogger(__name__)

DEFAULT_STATE = Path("~/.local/state/fedglm")
"""Folder of the nodes' state, where the app names none."""

_OVERSHOOT: Final = 1.5
"""Less than a scenario's: the mod does not know the learning rate, and more does harm at the end of its schedule."""


def compress_uplink(
    codec: str = "topk-sign",
    *,
    density: float | None = None,
    rank: float | None = None,
    max_ratio: float | None = None,
    overshoot: float | None = None,
    feedback: bool = True,
    residual_decay: float = 1.0,
    residual_limit: int = 20,
    state_dir: str | Path = DEFAULT_STATE,
    custody: str | Path | None = None,
) -> Callable[[Message, Context, ClientAppCallable], Message]:
    """Make the mod.

    Args:
        codec: Name of the codec; see `fedglm.compression.codec`.
        density: Share of the coordinates that a sparse codec sends; None takes 0.05.
        rank: Average number of components per matrix of a low-rank codec; None takes 4.
        max_ratio: Maximum size of the coded update as a share of dense float32; density and rank then follow from it.
        overshoot: Option of `topk-sign`: how far ahead of its drift a coordinate is sent, from 1 to 2; None takes 1.5.
            The mod does not know the learning rate: where that decays to near zero, choose no more than 1.5.
        feedback: Keep what was not sent, on this node's disk, and add it to the next update.
        residual_decay: Factor on the residual for each round missed.
        residual_limit: Number of missed rounds after which the residual is dropped.
        state_dir: Folder of the residual of the last run, with a folder for each node. Never `Context.state`, which a
            killed SuperNode loses. Two apps on one node, or one app with another model, need separate folders.
        custody: The site's custody folder. Its signed policy then decides what leaves. A message that the policy does
            not permit any app to answer is refused by the rule's name before the app receives it; any later failure, in
            the app too, becomes one constant error, and the reason stays in this node's log. Without a custody folder,
            the app alone decides what leaves.

    Returns:
        The mod.

    Raises:
        CodecError: There is no such codec, it has no such option, or a value is invalid.
        PolicyError, LedgerError: `custody` holds no signed policy or no ledger.
    """
    settings = UpdateSettings.of(
        codec,
        density=density,
        rank=rank,
        max_ratio=max_ratio,
        overshoot=overshoot,
        feedback=feedback,
        residual_decay=residual_decay,
        residual_limit=residual_limit,
    )
    if overshoot is None:
        settings = settings.model_copy(update={"overshoot": _OVERSHOOT})
    root = Path(state_dir).expanduser()
    guard = ModGuard(Path(custody).expanduser(), codec) if custody is not None else None

    def compress(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        fields = message.content.config_records.pop(RECORD, None)
        if fields is None:
            raise CodecError("compress_uplink needs Compressed(strategy) on the server: this one cannot decode")
        request = ModRequest.from_fields(fields)
        received = _get_single_record(message, "message")
        base = {name: array.numpy() for name, array in received.items()}
        layout = float_layout(base)
        if guard is not None:
            guard.authorize_update(layout.sha256, request.run, request.round)

        def make_reply() -> Message:
            reply = call_next(message, context)
            if reply.has_error():
                return reply
            record = _get_single_record(reply, "reply")
            coded = _encode_update(record, base, layout, settings, root / f"node-{_name_node(context)}", request)
            record.clear()
            record.update(coded)
            return reply

        if guard is None:
            return make_reply()
        return guard.release_update(message, make_reply, request.run, request.round)

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        is_training = message.metadata.message_type.split(".")[0] == MessageType.TRAIN
        if guard is None:
            return compress(message, context, call_next) if is_training else call_next(message, context)
        try:
            if is_training:
                return compress(message, context, call_next)
            return guard.release_metrics(message, lambda: call_next(message, context))
        except Refusal as refusal:  # of the message, before the app has received it
            return Message(to_error(refusal), reply_to=message)
        except Withheld as exc:
            LOG.error("no answer: %s", exc.__cause__, exc_info=exc.__cause__)
            return make_no_answer(message)

    return mod


def _encode_update(
    record: ArrayRecord,
    base: dict[str, Any],
    layout: Layout,
    settings: UpdateSettings,
    folder: Path,
    request: ModRequest,
) -> dict[str, Array]:
    """Return the arrays to send: one coded update, and the arrays that a lossy code is unsuitable for as they are."""
    arrays = {name: array.numpy() for name, array in record.items()}
    if unknown := sorted(arrays.keys() - base.keys()):
        raise CodecError(f"compress_uplink: the reply has arrays that the message had not: {', '.join(unknown)[:200]}")
    start = flatten(base, layout)
    state = NodeState.load(folder, layout.size, run=request.run)
    state.apply_acknowledgement(request.acknowledged, request.round)
    delta = flatten(arrays, layout) - start
    pending = code_update(state, delta, start, request.round, settings, layout, attempt=make_attempt_id())
    if pending.blob is None:
        raise TypeError("an update that was coded has bytes")
    if settings.feedback:
        state.pending = pending
        state.save(folder)
    coded = {name: record[name] for name in arrays if name not in layout.names}
    coded[RECORD] = Array(dtype="float32", shape=(layout.size,), stype=UPDATE_STYPE, data=pending.blob)
    return coded


def _get_single_record(message: Message, kind: str) -> ArrayRecord:
    records = list(message.content.array_records.values())
    if len(records) != 1:
        raise CodecError(f"compress_uplink: the {kind} has {len(records)} array records, one is expected")
    return records[0]


def _name_node(context: Context) -> str:
    """Return a name that is the same in each round: the partition in a simulation, else Flower's node id."""
    partition = context.node_config.get("partition-id")
    return str(context.node_id) if partition is None else f"p{partition}"
