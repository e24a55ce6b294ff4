"""One round at the server: ask the nodes that were sampled, take replies as they come, ask again where words got lost.

What a node answers, or does not, can cost it its place in the round, and nobody else more than `grace_s`.
"""

import base64
import hashlib
import logging
from dataclasses import dataclass
from typing import Any

from flwr.app import Message
from flwr.common.serde import recorddict_to_proto

from fedglm.compression.codec import CodecError
from fedglm.compression.downlink import ModelVersions
from fedglm.core.files import StorageError
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.ledger.ledger import BUDGET_RULE
from fedglm.server.aggregation.aggregator import Aggregator
from fedglm.server.rounds.admission import QUERY, Admission
from fedglm.server.rounds.exchange import Exchange
from fedglm.server.rounds.pacing import ReportingWindow
from fedglm.server.rounds.participants import Participant, Participants, error_text, is_lost, refusal_of
from fedglm.server.rounds.reply_checks import GoodReply, inspect_reply
from fedglm.server.rounds.requests import TRAIN, Request, Requests, RoundBytes
from fedglm.server.rounds.server_log import ServerLog, fault_of
from fedglm.server.run_setup import Listener, Plan

LOG = logging.getLogger(__name__)

_LOOK_S = 2.0
"""Seconds between two looks at who is connected."""


@dataclass(frozen=True)
class RoundContext:
    """What a round works with.

    Attributes:
        exchange: Messages under way.
        participants: The book of nodes.
        admission: Admits nodes that come while the round runs.
        listener: Hears of each reply.
        server_log: What the server writes down.
    """

    exchange: Exchange
    participants: Participants
    admission: Admission
    listener: Listener
    server_log: ServerLog


class Round:
    """A round, from the first message to the last reply.

    Args:
        number: From 1.
        run: Identity of the run.
        plan: Of the run.
        versions: The model and its history, which nodes get what they lack of.
        window: Whom to ask, and for how long to take replies.
        aggregator: Takes the updates.
        context: See there.

    Attributes:
        number: See above.
        accepted: Names of the nodes whose update was taken.
        faults: Why the others' were not, by name.
        metrics: What nodes measured.
        traffic: Bytes so far.
    """

    def __init__(
        self,
        number: int,
        run: str,
        plan: Plan,
        versions: ModelVersions,
        window: ReportingWindow,
        aggregator: Aggregator,
        context: RoundContext,
    ) -> None:
        self.number, self._plan, self._versions = number, plan, versions
        self._window, self._aggregator, self._context = window, aggregator, context
        self._clock = context.exchange.clock
        self.accepted: list[str] = []
        self.faults: dict[str, str] = {}
        self.metrics: list[dict[str, float]] = []
        self.traffic = RoundBytes()
        self._open = {member.name: member for member in window.sampled}
        self._requests = Requests(number, run, plan, versions, context.exchange, self.traffic)

    def conduct(self) -> None:
        """Ask, and listen until all have answered or the window closes.

        Raises:
            Stopped: The stop event was set.
        """
        exchange, window = self._context.exchange, self._window
        for member in window.sampled:
            self._ask(member)
        window.start()
        next_look = self._clock.monotonic() + _LOOK_S
        while self._open and not window.is_closed:
            arrived = False
            for sent, reply in exchange.poll():
                arrived = True
                if sent.message_type == QUERY:
                    self._welcome(sent.node_id, reply)
                elif sent.message_type == TRAIN:
                    self._take(self._context.participants.of_node(sent.node_id), reply)
            window.update(len(self.accepted))
            if self._clock.monotonic() >= next_look:
                self._look()
                next_look = self._clock.monotonic() + _LOOK_S
            if not arrived:
                exchange.wait()
        exchange.cancel(TRAIN)
        for member in list(self._open.values()):
            request = self._requests.of(member.name)
            self._reject(member, (request and request.lost) or window.late_reason, "late")

    def _ask(self, member: Participant) -> None:
        """Send a node its request and what it lacks of the model."""
        if not self._requests.send(member):
            times = self._requests.times(member.name)
            self._reject(member, f"it was asked {times} times in this round, and gave no update", "late")

    def _take(self, member: Participant | None, reply: Message) -> None:
        if reply.has_content():
            self.traffic.uplink += recorddict_to_proto(reply.content).ByteSize()
        request = None if member is None else self._requests.of(member.name)
        if member is None or request is None or member.name not in self._open:
            return  # a second answer, after its message was sent again; or of a node whose place another took
        plan, keys = self._plan, self._plan.sites
        if is_lost(reply):
            request.lost = f"the node reports: {error_text(reply)}"
            return
        try:
            key, limit = None if keys is None else keys[member.name], plan.federation.norm_limit
            good = inspect_reply(reply, request.message, plan.layout.size, limit, plan.spec.codec, key)
            is_taken = self._aggregate(member, request, good)
        except CodecError as exc:
            if (refused := refusal_of(reply)) is not None and refused.rule == BUDGET_RULE:
                member.withdrawn = refused.text
            fault, rule = ("unsigned", None) if isinstance(exc.__cause__, PrivacyError) else fault_of(reply)
            self._reject(member, str(exc), fault, rule)
        except StorageError:
            raise  # of this machine, and not of the reply
        except Exception:
            LOG.exception("round %d: the reply of %s could not be read", self.number, member.name)
            self._reject(member, "the reply could not be read: the server's log says why", "malformed")
        else:
            if is_taken:  # what goes wrong from here on is no fault of the reply, which was taken
                self._accept(member, good)

    def _aggregate(self, member: Participant, request: Request, good: GoodReply) -> bool:
        """Give an update to the aggregator; False where there is none, and the node was asked again."""
        if good.update is None:
            if member.version is None:
                raise CodecError("the node cannot rebuild the model from a snapshot")
            # After a lost reply the node is further on than the book says: deltas from where it is will do.
            holds = good.report.holds
            known = holds if holds is not None and holds >= 0 else None
            member.version = None if known == member.version or request.has_new_version else known
            request.has_new_version = True
            self._ask(member)
            return False
        self._aggregator.add(member.name, member.weight, good.update, good.blob)
        return True

    def _accept(self, member: Participant, good: GoodReply) -> None:
        self.traffic.dense_uplink += 4 * self._plan.layout.size
        member.version, member.acknowledged = self._versions.version, self.number
        member.anchor = good.report.log
        self._keep_anchor(member)
        del self._open[member.name]
        self.accepted.append(member.name)
        if good.metrics:
            self.metrics.append(good.metrics)
        self._context.listener.reply_taken(self.number, member.name, None)
        self._context.server_log.accepted(self.number, member.name, **_signed_fields(good))

    def _keep_anchor(self, member: Participant) -> None:
        anchors, keys = self._plan.anchors, self._plan.sites
        if anchors is not None and keys is not None and member.anchor is not None:
            anchors.keep(member.name, keys[member.name], member.anchor)

    def _reject(self, member: Participant, reason: str, fault: str, rule: str | None = None) -> None:
        self._open.pop(member.name, None)
        self.faults[member.name] = reason
        self._context.listener.reply_taken(self.number, member.name, reason)
        self._context.server_log.rejected(self.number, member.name, fault, rule)

    def _welcome(self, node_id: int, reply: Message) -> None:
        """A node has come, or come back under another id; if the round waits for it, it is asked at once."""
        member = self._context.admission.take(self._context.participants, node_id, reply)
        if member is not None and member.name in self._open:
            self._ask(member)

    def _look(self) -> None:
        """Ask again where a message was lost, once the node is there; let newcomers in."""
        online = self._context.exchange.online()
        for member in list(self._open.values()):
            if (request := self._requests.of(member.name)) is None:
                continue
            request.lost = request.lost or self._loss(member, request)
            if request.lost and member.node_id in online:
                self._ask_again(member, request)
        if self._plan.sites is not None:
            self._context.admission.look(self._context.participants, online)

    def _loss(self, member: Participant, request: Request) -> str:
        """Why a request counts as lost by now; empty where it does not."""
        silence_s, waited = self._plan.federation.resend_after_s, self._clock.monotonic() - request.sent_at
        if waited >= silence_s:
            return f"no reply within {silence_s:g} s"
        if self._plan.last_activation(member.name) > self._clock.time() - waited:
            return "the node was started again"
        return ""

    def _ask_again(self, member: Participant, request: Request) -> None:
        request.losses += 1
        resends = self._plan.federation.resends
        if request.losses > resends:
            self._reject(member, f"{request.lost} ({resends} times asked again)", "late")
        else:
            self._ask(member)


def _signed_fields(good: GoodReply) -> dict[str, Any]:
    """What a site has signed with its update, as in the server's log."""
    signature = None if good.report.signature is None else base64.b64decode(good.report.signature).hex()
    return {
        "release": hashlib.sha256(good.blob).hexdigest(),
        "bytes": len(good.blob),
        "nonce": good.report.nonce,
        "anchor": good.report.log,
        "measures": good.metrics or None,
        "signature": signature,
    }
