"""The outbound gate: the one door out of the node.

Whatever a node sends passes `release`. It checks that what leaves is what the node means to send: a well-formed, finite
update of the right length that is no larger than the model itself, and metrics only where the site lets them out. On
doubt it refuses, names the rule, and nothing leaves.
"""

import math

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedglm.client.node import Outcome
from fedglm.compression.codec import CodecError, decode
from fedglm.compression.messages import RECORD

STYPE = "fedglm.update/1"
"""Serialisation type of an array whose data are a coded update."""

HEADROOM = 4096
"""Bytes that a coded update may have over the dense float32 vector, for headers and scales."""


class Refusal(RuntimeError):
    """The gate let nothing out.

    Attributes:
        rule: Short name of the rule that was broken.
    """

    def __init__(self, rule: str, reason: str) -> None:
        super().__init__(f"refused by rule {rule}: {reason}")
        self.rule = rule


class OutboundGate:
    """Checks an outcome against the site's rules and makes the content of the reply.

    Args:
        size: Number of federated parameters.
        share_metrics: Whether loss and accuracy on the site's held-out data may leave; each is a release.
    """

    def __init__(self, size: int, *, share_metrics: bool) -> None:
        self._size = size
        self._share_metrics = share_metrics

    def release(self, outcome: Outcome) -> RecordDict:
        """Check everything, then build the reply.

        Raises:
            Refusal: A rule is broken; nothing may be sent.
        """
        content = RecordDict({RECORD: ConfigRecord(dict(outcome.report.to_fields()))})
        if outcome.blob is not None:
            self._check_update(outcome.blob)
            array = Array(dtype="float32", shape=(self._size,), stype=STYPE, data=outcome.blob)
            content["update"] = ArrayRecord({RECORD: array})
        if outcome.evaluation is not None:
            if not self._share_metrics:
                raise Refusal("share-metrics", "the site keeps its metrics, yet an evaluation was asked for")
            measures = outcome.evaluation
            content["metrics"] = MetricRecord(
                {"loss": float(measures.loss), "metric": float(measures.metric), "count": int(measures.count)}
            )
        return content

    def _check_update(self, blob: bytes) -> None:
        limit = 4 * self._size + HEADROOM
        if len(blob) > limit:
            raise Refusal("size", f"the coded update has {len(blob)} bytes, at most {limit} may leave")
        try:
            norm = decode(blob, size=self._size).norm()
        except CodecError as exc:
            raise Refusal("well-formed", f"the coded update does not decode: {exc}") from exc
        if not math.isfinite(norm):
            raise Refusal("finite", "the update holds a value that is not finite")
