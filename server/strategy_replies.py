"""Which replies of a Flower round a wrapped strategy gets to see: arrays in their form, metrics like the others'.

By itself Flower would end the run over one that is odd; here it counts as a failure of its node.
"""

import math
from collections import Counter
from io import BytesIO
from logging import WARNING
from typing import cast

import numpy as np
from flwr.app import Array, Error, Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode
from flwr.supercore import log

from fedglm.compression.codec import CodecError, Update
from fedglm.core.untrusted_text import clean_text
from fedglm.protocol.messages import RECORD

_MAX_WEIGHT = 2.0**53
"""Beyond it, floats count no further."""

HEADROOM = 4096
"""Bytes that an uncoded array may have over its values, for its header."""


def check_form(name: str, array: Array, like: np.ndarray) -> None:
    """Refuse an uncoded array that is not finite, or not of the dtype and shape that was sent.

    Its data are loaded last: numpy makes room for whatever shape their header claims.
    """
    if (array.dtype, tuple(array.shape)) != (str(like.dtype), like.shape):
        found = f"{array.dtype} of shape {array.shape}"
        raise CodecError(f"array {name!r}: {like.dtype} of shape {like.shape} expected, found {found[:100]}")
    if len(array.data) > like.nbytes + HEADROOM:
        raise CodecError(f"array {name!r} has {len(array.data)} bytes for {like.nbytes} bytes of values")
    try:
        values = array.numpy() if _npy_header(array.data) == (like.dtype, like.shape) else None
    except Exception as exc:  # whatever numpy meets in bytes that are no array
        raise CodecError(f"array {name!r} cannot be read: {exc}") from exc
    if values is None:
        raise CodecError(f"array {name!r}: the header of its data claims another dtype or shape")
    if not np.isfinite(values).all():
        raise CodecError(f"array {name!r} holds a value that is not finite")


def _npy_header(data: bytes) -> tuple[np.dtype, tuple[int, ...]]:
    """The dtype and shape that serialised numpy data claim to have."""
    stream = BytesIO(data)
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise ValueError(f"npy format {version} is for dtypes that no model has")
    return dtype, shape


def mean_buffers(contents: list[RecordDict], weights: list[float]) -> dict[str, Array]:
    """Weighted means of the arrays that travelled uncoded, as Flower takes them."""
    names = [name for name in next(iter(contents[0].array_records.values())) if name != RECORD]
    means: dict[str, Array] = {}
    for name in names:
        arrays = [next(iter(content.array_records.values()))[name].numpy() for content in contents]
        means[name] = Array(np.asarray(sum(w * a for w, a in zip(weights, arrays, strict=True))))
    return means


def only_metrics(content: RecordDict) -> MetricRecord:
    """The one record of metrics.

    Raises:
        ValueError: There is none, or another.
    """
    (record,) = content.metric_records.values()
    return record


def alike(good: list[tuple[Message, Update]], weighted_by: str) -> tuple[list[tuple[Message, Update]], list[Message]]:
    """Replies whose metrics have the form that most have, and the others as failures.

    All of them where none has a weight: the strategy itself says best what its replies must hold.
    """
    forms = [_form(reply.content, weighted_by) for reply, _ in good]
    if not (weighed := [form for form in forms if form is not None]):
        return good, []
    usual, _ = Counter(weighed).most_common(1)[0]
    odd = f"its metrics are not those of the others, or {clean_text(weighted_by, 80)} is no number above 0"
    kept = [pair for pair, form in zip(good, forms, strict=True) if form == usual]
    return kept, [rejected(reply, odd) for (reply, _), form in zip(good, forms, strict=True) if form != usual]


def _form(content: RecordDict, weighted_by: str) -> frozenset[tuple[str, int]] | None:
    """Names and lengths of the metrics of a reply; None where it has no weight that a mean could take."""
    records = list(content.metric_records.values())
    if len(records) != 1:
        return None
    (metrics,) = records
    weight = metrics.get(weighted_by)
    if not isinstance(weight, int | float) or not 0 < weight < _MAX_WEIGHT:
        return None
    values = {name: value if isinstance(value, list) else [value] for name, value in metrics.items()}
    if not all(math.isfinite(value) for each in values.values() for value in each):
        return None
    return frozenset((name, len(each) if isinstance(metrics[name], list) else -1) for name, each in values.items())


def rejected(reply: Message, reason: str) -> Message:
    """The reply as a failure of its node, which is logged."""
    reason = clean_text(reason)
    log(WARNING, "update of node %d rejected: %s", reply.metadata.src_node_id, reason)
    return _as_error(reply, reason)


def _as_error(reply: Message, reason: str) -> Message:
    error = Error(code=int(ErrorCode.CLIENT_APP_RAISED_EXCEPTION), reason=reason)
    # Flower's public constructors would make this a message *to* the node; the strategy must see one from it.
    return cast(Message, Message(metadata=reply.metadata, error=error))  # type: ignore[call-overload]
