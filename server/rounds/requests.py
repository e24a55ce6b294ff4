"""What a round sends to its nodes: the request to train, with what the node lacks of the model, and the same again.

A message that is sent again costs a node nothing: it answers a round that it has trained for with the very same bytes.
"""

import secrets
from dataclasses import dataclass

from flwr.app import ConfigRecord, RecordDict
from flwr.common.serde import recorddict_to_proto

from fedglm.compression.downlink import HEADER, ModelVersions
from fedglm.compression.layout import Layout
from fedglm.protocol.messages import LENGTHS, MODEL, RECORD, TrainRequest
from fedglm.server.rounds.exchange import Exchange
from fedglm.server.rounds.participants import Participant
from fedglm.server.run_setup import Plan

TRAIN = "train"
"""Type of the messages."""

_FOR_MODEL = 2
"""Messages of a round beyond the first and those sent again: what a node lacks, and then the whole model."""


@dataclass
class RoundBytes:
    """Bytes of a round, as they lie in the messages, beside those of dense float32 for the same nodes."""

    uplink: int = 0
    downlink: int = 0
    dense_uplink: int = 0
    dense_downlink: int = 0


@dataclass
class Request:
    """What one node was asked in a round, and how that went.

    Attributes:
        message: The fields that were sent last; a reply must answer them.
        sent_at: When, by the run's clock.
        times: How often something was sent.
        losses: How often it was sent again because it was lost.
        lost: Why it counts as lost; empty while a reply is awaited.
        has_new_version: Whether it was sent again for another version of the model.
    """

    message: TrainRequest
    sent_at: float
    times: int = 0
    losses: int = 0
    lost: str = ""
    has_new_version: bool = False


class Requests:
    """The requests of one round, by name of the node.

    Args:
        number: Of the round.
        run: Identity of the run.
        plan: Of the run.
        versions: The model and its history, which nodes get what they lack of.
        exchange: Messages under way.
        traffic: Is counted up.
    """

    def __init__(
        self, number: int, run: str, plan: Plan, versions: ModelVersions, exchange: Exchange, traffic: RoundBytes
    ) -> None:
        self._number, self._run, self._plan, self._versions = number, run, plan, versions
        self._exchange, self._traffic = exchange, traffic
        self._by_name: dict[str, Request] = {}

    def of(self, name: str) -> Request | None:
        """What a node was asked; None where it was not."""
        return self._by_name.get(name)

    def times(self, name: str) -> int:
        """How often something was sent to a node."""
        request = self.of(name)
        return 0 if request is None else request.times

    def send(self, member: Participant) -> bool:
        """Ask a node for its update, for the first time or again; one that is not there is asked when it comes.

        Returns:
            Whether it may go on: False for one that was asked too often, and is asked no more.
        """
        if member.node_id is None:
            return True
        message, known, now = self._message(member), self.of(member.name), self._exchange.clock.monotonic()
        request = self._by_name.setdefault(member.name, Request(message, now))
        request.message = message
        if request.times > self._plan.federation.resends + _FOR_MODEL:
            return False
        content = _content(message, self._versions.message_since(member.version))
        self._traffic.downlink += recorddict_to_proto(content).ByteSize()
        self._traffic.dense_downlink += 0 if known else 4 * self._plan.layout.size
        request.times, request.lost, request.sent_at = request.times + 1, "", now
        self._exchange.send([(member.node_id, content)], TRAIN, self._number)
        return True

    def _message(self, member: Participant) -> TrainRequest:
        known, federation = self.of(member.name), self._plan.federation
        return TrainRequest(
            run=self._run,
            round=self._number,
            # The same each time, so that either answer counts, once.
            nonce=known.message.nonce if known else secrets.token_hex(8),
            layout=self._plan.layout.sha256,
            version=self._versions.version,
            acknowledged=member.acknowledged,
            learning_rate=self._plan.learning_rate * self._plan.optimizer.rate_at(self._number, federation.rounds),
            evaluate=federation.node_metrics,
            anchor=member.anchor,
        )


def envelope(layout: Layout) -> int:
    """Most bytes that a message takes around the delta of one version."""
    longest = TrainRequest(
        run="0" * 16,
        round=2**31 - 1,
        nonce="0" * 16,
        layout=layout.sha256,
        version=2**31 - 1,
        acknowledged=2**31 - 1,
        learning_rate=1.0,
        evaluate=True,
    )
    return int(recorddict_to_proto(_content(longest, bytes(HEADER))).ByteSize()) + LENGTHS


def _content(message: TrainRequest, blob: bytes) -> RecordDict:
    return RecordDict({RECORD: ConfigRecord({**message.to_fields(), MODEL: blob})})
