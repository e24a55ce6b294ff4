"""Checks of the replies of a Flower round before a wrapped strategy sees them: form of arrays, and of metrics.

Flower itself would end the run over a malformed reply; here it counts as a failure of its node.
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
"""Limit of a weight: above it, float64 does not represent every integer."""

_HEADROOM = 4096
"""Maximum bytes of an uncoded array beyond its values, for its header."""


def check_array(name: str, array: Array, like: np.ndarray) -> None:
    """Check that an untrusted, uncoded array is finite, and has the dtype and shape of the one that was sent.

    Its data are loaded last: numpy allocates memory for whatever shape their header claims.

    Args:
        name: Name of the array.
        array: Array of the reply.
        like: Array that was sent.

    Raises:
        CodecError: The array is malformed; the message gives the reason.
    """
    if (array.dtype, tuple(array.shape)) != (str(like.dtype), like.shape):
        actual = f"{array.dtype} of shape {array.shape}"
        raise CodecError(f"array {name!r}: {like.dtype} of shape {like.shape} expected, found {actual[:100]}")
    if len(array.data) > like.nbytes + _HEADROOM:
        raise CodecError(f"array {name!r} has {len(array.data)} bytes for {like.nbytes} bytes of values")
    try:
        values = array.numpy() if _read_npy_header(array.data) == (like.dtype, like.shape) else None
    except Exception as exc:  # whatever numpy raises over bytes that are no array
        raise CodecError(f"array {name!r} cannot be read: {exc}") from exc
    if values is None:
        raise CodecError(f"array {name!r}: the header of its data claims another dtype or shape")
    if not np.isfinite(values).all():
        raise CodecError(f"array {name!r} holds a value that is not finite")


def _read_npy_header(data: bytes) -> tuple[np.dtype, tuple[int, ...]]:
    """Return the dtype and shape that serialised numpy data claim to have."""
    stream = BytesIO(data)
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise ValueError(f"npy format {version} is for dtypes that no model has")
    return dtype, shape


def average_buffers(contents: list[RecordDict], weights: list[float]) -> dict[str, Array]:
    """Average the uncoded arrays of replies, as Flower does.

    Args:
        contents: Contents of the replies, with the same arrays each.
        weights: Weights of the replies, with sum 1.

    Returns:
        Averaged arrays by name.
    """
    names = [name for name in next(iter(contents[0].array_records.values())) if name != RECORD]
    means: dict[str, Array] = {}
    for name in names:
        arrays = [next(iter(content.array_records.values()))[name].numpy() for content in contents]
        means[name] = Array(np.asarray(sum(w * a for w, a in zip(weights, arrays, strict=True))))
    return means


def get_metrics(content: RecordDict) -> MetricRecord:
    """Return the only record of metrics.

    Raises:
        ValueError: There is none, or more than one.
    """
    (record,) = content.metric_records.values()
    return record


def split_by_form(
    good: list[tuple[Message, Update]], weighted_by: str
) -> tuple[list[tuple[Message, Update]], list[Message]]:
    """Split replies into those whose metrics have the most common form, and the others as failures.

    Where none has a weight, all are kept: the strategy itself reports best what its replies must hold.

    Args:
        good: Replies with their decoded updates.
        weighted_by: Name of the metric that is the weight of a reply.

    Returns:
        The replies to aggregate, and error replies for the others.
    """
    forms = [_read_form(reply.content, weighted_by) for reply, _ in good]
    if not (weighted := [form for form in forms if form is not None]):
        return good, []
    usual_form, _ = Counter(weighted).most_common(1)[0]
    reason = f"its metrics are not those of the others, or {clean_text(weighted_by, 80)} is no number above 0"
    kept = [pair for pair, form in zip(good, forms, strict=True) if form == usual_form]
    return kept, [reject(reply, reason) for (reply, _), form in zip(good, forms, strict=True) if form != usual_form]


def _read_form(content: RecordDict, weighted_by: str) -> frozenset[tuple[str, int]] | None:
    """Return names and lengths of a reply's metrics; None where one is not finite, or the weight is invalid."""
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


def reject(reply: Message, reason: str) -> Message:
    """Convert a reply to a failure of its node, and log it."""
    reason = clean_text(reason)
    log(WARNING, "update of node %d rejected: %s", reply.metadata.src_node_id, reason)
    return _to_error(reply, reason)


def _to_error(reply: Message, reason: str) -> Message:
    error = Error(code=int(ErrorCode.CLIENT_APP_RAISED_EXCEPTION), reason=reason)
    # Flower's public constructors would make this a message *to* the node; the strategy must see one *from* it.
    return cast(Message, Message(metadata=reply.metadata, error=error))  # type: ignore[call-overload]
