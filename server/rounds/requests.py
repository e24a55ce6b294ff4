"""Train requests of a round: sent with the part of the model that the node is missing, and sent again after a loss.

A message that is sent again costs a node nothing: for a round that it has trained for, it replies with the same bytes.
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
"""Flower message type of the requests."""

_FOR_MODEL = 2
"""Messages that a node may get in a round besides the first and the resends after a loss: deltas from the version that
it reports, and then a snapshot."""


@dataclass
class RoundBytes:
    """Bytes of a round's messages, and for comparison those of dense float32 for the same nodes.

    Attributes:
        uplink: Bytes received, as serialised records.
        downlink: Bytes sent, as serialised records, resends included.
        dense_uplink: Bytes of the accepted updates as dense float32.
        dense_downlink: Bytes of one model for each node as dense float32.
    """

    uplink: int = 0
    downlink: int = 0
    dense_uplink: int = 0
    dense_downlink: int = 0


@dataclass
class Request:
    """The request to one node in a round, and its state.

    Attributes:
        message: Fields that were sent last; a reply must match them.
        sent_at: Time of the last message in seconds, by the monotonic clock of the run.
        sends: Number of messages sent.
        losses: Number of resends after a loss.
        loss_reason: Reason why the request is considered lost; empty while a reply is awaited.
        has_new_version: Whether it was sent again with the model from another version on.
    """

    message: TrainRequest
    sent_at: float
    sends: int = 0
    losses: int = 0
    loss_reason: str = ""
    has_new_version: bool = False


class Requests:
    """The requests of one round, by name of the node.

    Args:
        server_round: Number of the round.
        run: Identity of the run.
        plan: Plan of the run.
        versions: Published model and its deltas.
        exchange: Exchange to send with.
        traffic: Counter to which the sent bytes are added.
    """

    def __init__(
        self, server_round: int, run: str, plan: Plan, versions: ModelVersions, exchange: Exchange, traffic: RoundBytes
    ) -> None:
        self._server_round, self._run, self._plan, self._versions = server_round, run, plan, versions
        self._exchange, self._traffic = exchange, traffic
        self._by_name: dict[str, Request] = {}

    def get(self, name: str) -> Request | None:
        """Return the request to a node; None where none was sent."""
        return self._by_name.get(name)

    def count_sends(self, name: str) -> int:
        """Return the number of messages sent to a node."""
        request = self.get(name)
        return 0 if request is None else request.sends

    def send(self, member: Participant) -> bool:
        """Request the update of a node, for the first time or again; nothing is sent to a node before it has joined.

        Returns:
            False where the limit of messages to the node is reached, and nothing was sent; else True.
        """
        if member.node_id is None:
            return True
        message, known, now = self._build_message(member), self.get(member.name), self._exchange.clock.monotonic()
        request = self._by_name.setdefault(member.name, Request(message, now))
        request.message = message
        if request.sends > self._plan.federation.resends + _FOR_MODEL:
            return False
        content = _build_content(message, self._versions.message_since(member.version))
        self._traffic.downlink += recorddict_to_proto(content).ByteSize()
        self._traffic.dense_downlink += 0 if known else 4 * self._plan.layout.size
        request.sends, request.loss_reason, request.sent_at = request.sends + 1, "", now
        self._exchange.send([(member.node_id, content)], TRAIN, self._server_round)
        return True

    def _build_message(self, member: Participant) -> TrainRequest:
        known, federation = self.get(member.name), self._plan.federation
        return TrainRequest(
            run=self._run,
            round=self._server_round,
            # The same for each resend, so that either reply is valid, once.
            nonce=known.message.nonce if known else secrets.token_hex(8),
            layout=self._plan.layout.sha256,
            version=self._versions.version,
            acknowledged=member.acknowledged,
            learning_rate=self._plan.learning_rate
            * self._plan.optimizer.rate_at(self._server_round, federation.rounds),
            evaluate=federation.node_metrics,
            anchor=member.anchor,
        )


def compute_envelope_size(layout: Layout) -> int:
    """Return the maximum number of bytes of a message around the delta of one version."""
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
    return int(recorddict_to_proto(_build_content(longest, bytes(HEADER))).ByteSize()) + LENGTHS


def _build_content(message: TrainRequest, blob: bytes) -> RecordDict:
    return RecordDict({RECORD: ConfigRecord({**message.to_fields(), MODEL: blob})})
