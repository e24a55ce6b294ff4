"""The outbound gate: the one door out of the node.

Whatever a node sends passes here: introductions by `introduce`, answers by `release`, what went wrong by `fault`. An
update must be well-formed, of the right length and no larger than the model itself; metrics leave only where the site
lets them; and the text of an error, which may quote a record or a path, stays at the site. On doubt the gate refuses,
names the rule, and nothing leaves.
"""

from flwr.app import ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_to_proto

from fedglm.autoglm.tasks import Evaluation
from fedglm.client.node import Outcome
from fedglm.client.precision import PrecisionError
from fedglm.client.training import TrainingError
from fedglm.compression.codec import CodecError, decode
from fedglm.compression.messages import LENGTHS, RECORD, UPDATE, Introduction, Report

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


def fault(exc: Exception, *, in_full: bool) -> str:
    """What the server is told of an error at the node.

    Args:
        exc: The error.
        in_full: Tell its text, as where node and server are one machine. Else only texts that are made of settings and
            of what the server itself sent leave; of others, their kind.
    """
    if in_full or isinstance(exc, (CodecError, PrecisionError, Refusal, TrainingError)):
        return str(exc)
    if "disk is full" in str(exc):
        return "the disk is full"
    return f"{type(exc).__name__}: the node's own log says more"


class OutboundGate:
    """Checks an outcome against the site's rules and makes the content of the reply.

    Args:
        size: Number of federated parameters.
        share_metrics: Whether loss and accuracy on the site's held-out data may leave; each is a release.
    """

    def __init__(self, size: int, *, share_metrics: bool) -> None:
        self._size = size
        self._share_metrics = share_metrics

    def introduce(self, introduction: Introduction) -> RecordDict:
        """The reply to the server's first query."""
        return RecordDict({RECORD: ConfigRecord(dict(introduction.to_fields()))})

    def release(self, outcome: Outcome) -> RecordDict:
        """Check everything, then build the reply.

        Raises:
            Refusal: A rule is broken; nothing may be sent.
        """
        if outcome.blob is not None:
            self._check_update(outcome.blob)
        if outcome.evaluation is not None and not self._share_metrics:
            raise Refusal("share-metrics", "the site keeps its metrics, yet an evaluation was asked for")
        return self._content(outcome)

    @property
    def envelope(self) -> int:
        """Most bytes that the message around a coded update takes."""
        report = Report(nonce="0" * 16)
        measures = Evaluation(loss=1.0, metric=1.0, count=2**40) if self._share_metrics else None
        return int(recorddict_to_proto(self._content(Outcome(report, b"", measures))).ByteSize()) + LENGTHS

    def _content(self, outcome: Outcome) -> RecordDict:
        blob = {} if outcome.blob is None else {UPDATE: outcome.blob}
        content = RecordDict({RECORD: ConfigRecord({**outcome.report.to_fields(), **blob})})
        if outcome.evaluation is not None:
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
            decode(blob, size=self._size)  # a value that is not finite does not decode
        except CodecError as exc:
            raise Refusal("well-formed", f"the coded update does not decode: {exc}") from exc
