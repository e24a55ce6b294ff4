"""One round at the server: requests to the sampled nodes, their replies as they arrive, and resends after losses.

A bad or missing reply costs a node its place in the round, and delays the others by no more than `grace_s`. Absent
sites are sent nothing; one that is back while the round goes on is asked at once.
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
from fedglm.server.rounds.participants import (
    Participant,
    Participants,
    is_lost,
    read_error_text,
    read_refused_reply,
)
from fedglm.server.rounds.presence import Presence
from fedglm.server.rounds.reply_checks import GoodReply, check_reply
from fedglm.server.rounds.requests import TRAIN, Request, Requests, RoundBytes
from fedglm.server.rounds.server_log import ServerLog, classify_fault
from fedglm.server.run_setup import Listener, Plan

LOG = logging.getLogger(__name__)

_LOOK_S = 2.0
"""Seconds between two checks of which nodes are connected."""


@dataclass(frozen=True)
class RoundContext:
    """The objects of a run that each round uses.

    Attributes:
        exchange: Exchange with the nodes.
        participants: Nodes of the run.
        admission: Admits nodes that join while the round runs.
        listener: Is called for each reply.
        server_log: Log of the server.
        presence: Presence of the enrolled sites.
    """

    exchange: Exchange
    participants: Participants
    admission: Admission
    listener: Listener
    server_log: ServerLog
    presence: Presence


class Round:
    """A round, from the first message to the last reply.

    Args:
        number: Number of the round, from 1.
        run: Identity of the run.
        plan: Plan of the run.
        versions: Published model and its deltas.
        window: Sampled nodes, and how long replies are accepted.
        aggregator: Aggregates the updates.
        context: Objects of the run.

    Attributes:
        number: Number of the round, from 1.
        accepted: Names of the nodes whose update was accepted, in order of arrival.
        faults: Reason why another's was not, by name.
        absent: Names of the sampled sites that gave none because they were not connected.
        revoked: Names of the sampled sites that gave none because their keys were revoked.
        metrics: Metrics that nodes reported of the received model.
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
        self.absent: list[str] = []
        self.revoked: list[str] = []
        self.metrics: list[dict[str, float]] = []
        self.traffic = RoundBytes()
        self._awaited = {member.name: member for member in window.sampled}
        self._requests = Requests(number, run, plan, versions, context.exchange, self.traffic)

    def conduct(self) -> None:
        """Send the requests, and handle replies until all nodes have replied or the window closes.

        Raises:
            Stopped: The stop event was set.
        """
        exchange, window = self._context.exchange, self._window
        self._ask([member for member in window.sampled if not member.is_absent])
        window.start()
        next_check = self._clock.monotonic() + _LOOK_S
        while self._awaited and not window.is_closed:
            arrived = False
            for sent, reply in exchange.poll():
                arrived = True
                if sent.message_type == QUERY:
                    self._handle_join(sent.node_id, reply)
                elif sent.message_type == TRAIN:
                    self._handle_reply(self._context.participants.find_by_id(sent.node_id), reply)
            if self._clock.monotonic() >= next_check:
                self._check_nodes()  # before the window learns who is expected: a site that is back is
                next_check = self._clock.monotonic() + _LOOK_S
            window.update(len(self.accepted), is_anybody_expected=self._is_anybody_expected())
            if not arrived:
                exchange.wait()
        exchange.cancel(TRAIN)
        for member in list(self._awaited.values()):
            if self._context.presence.is_offline(member):
                self._leave_out(member)
                continue
            request = self._requests.get(member.name)
            self._reject(member, (request and request.loss_reason) or window.late_reason, "late")

    def _ask(self, members: list[Participant]) -> None:
        """Send nodes their first requests of the round."""
        for member in members:
            self._send_request(member)
        if self._plan.sites is not None and members:
            self._context.listener.sites_asked(self.number, [member.name for member in members])

    def _is_anybody_expected(self) -> bool:
        return self._plan.sites is None or any(not member.is_absent for member in self._awaited.values())

    def _leave_out(self, member: Participant) -> None:
        """Go on without a site that is not connected."""
        del self._awaited[member.name]
        self.absent.append(member.name)
        self._context.server_log.record_absent(self.number, member.name)

    def _send_request(self, member: Participant) -> None:
        """Send a node its request and what it is missing of the model."""
        if not self._requests.send(member):
            sends = self._requests.count_sends(member.name)
            self._reject(member, f"it was asked {sends} times in this round, and gave no update", "late")

    def _handle_reply(self, member: Participant | None, reply: Message) -> None:
        if reply.has_content():
            self.traffic.uplink += recorddict_to_proto(reply.content).ByteSize()
        request = None if member is None else self._requests.get(member.name)
        if member is None or request is None or member.name not in self._awaited:
            return  # a second reply, after a resend; or of a node id that was replaced since
        plan, keys = self._plan, self._plan.sites
        if is_lost(reply):
            request.loss_reason = f"the node reports: {read_error_text(reply)}"
            return
        try:
            key, limit = None if keys is None else keys[member.name], plan.federation.norm_limit
            good = check_reply(reply, request.message, plan.layout.size, limit, plan.spec.codec, key)
            is_aggregated = self._aggregate(member, request, good)
        except CodecError as exc:
            if (refused := read_refused_reply(reply)) is not None and refused.rule == BUDGET_RULE:
                member.withdrawn = refused.text
            fault, rule = ("unsigned", None) if isinstance(exc.__cause__, PrivacyError) else classify_fault(reply)
            self._reject(member, str(exc), fault, rule)
        except StorageError:
            raise  # an error of this machine, and not of the reply
        except Exception:
            LOG.exception("round %d: the reply of %s could not be read", self.number, member.name)
            self._reject(member, "the reply could not be read: the server's log says why", "malformed")
        else:
            if is_aggregated:  # an error from here on is no fault of the reply
                self._accept(member, good)

    def _aggregate(self, member: Participant, request: Request, good: GoodReply) -> bool:
        """Add the update to the aggregator; return False where the reply has none, and the request was sent again."""
        if good.update is None:
            if member.version is None:
                raise CodecError("the node cannot rebuild the model from a snapshot")
            # After a lost reply the node holds a newer version than is recorded here: deltas from that one suffice.
            holds = good.fields.holds
            known = holds if holds is not None and holds >= 0 else None
            member.version = None if known == member.version or request.has_new_version else known
            request.has_new_version = True
            self._send_request(member)
            return False
        self._aggregator.add(member.name, member.weight, good.update, good.blob)
        return True

    def _accept(self, member: Participant, good: GoodReply) -> None:
        self.traffic.dense_uplink += 4 * self._plan.layout.size
        member.version, member.acknowledged = self._versions.version, self.number
        member.anchor = good.fields.log
        self._save_anchor(member)
        del self._awaited[member.name]
        self.accepted.append(member.name)
        if good.metrics:
            self.metrics.append(good.metrics)
        self._context.listener.reply_taken(self.number, member.name, None)
        self._context.server_log.record_accepted(self.number, member.name, **_collect_signed_fields(good))

    def _save_anchor(self, member: Participant) -> None:
        anchors, keys = self._plan.anchors, self._plan.sites
        if anchors is not None and keys is not None and member.anchor is not None:
            anchors.keep(member.name, keys[member.name], member.anchor)

    def _reject(self, member: Participant, reason: str, fault: str, rule: str | None = None) -> None:
        self._awaited.pop(member.name, None)
        self.faults[member.name] = reason
        self._context.listener.reply_taken(self.number, member.name, reason)
        self._context.server_log.record_rejected(self.number, member.name, fault, rule)

    def _handle_join(self, node_id: int, reply: Message) -> None:
        """Admit a node that joins, or rejoins under another id; if the round awaits it, send its request at once."""
        member = self._context.admission.handle_reply(self._context.participants, node_id, reply)
        if member is None:
            return
        self._context.presence.mark_online(member, self.number)
        if member.name not in self._awaited:
            return
        if self._requests.get(member.name) is None:
            self._ask([member])
        else:
            self._send_request(member)

    def _check_nodes(self) -> None:
        """Drop revoked sites; send requests to sites that are back, lost ones again, and the plan to new nodes."""
        online = self._context.presence.look(self._context.participants, self.number)
        for member in list(self._awaited.values()):
            if member.is_revoked:
                del self._awaited[member.name]
                self.revoked.append(member.name)
                continue
            if (request := self._requests.get(member.name)) is None:
                if member.node_id in online:
                    self._ask([member])
                continue
            request.loss_reason = request.loss_reason or self._detect_loss(member, request)
            if request.loss_reason and member.node_id in online:
                self._resend(member, request)
        if self._plan.sites is not None:
            self._context.admission.announce(self._context.participants, online)

    def _detect_loss(self, member: Participant, request: Request) -> str:
        """Return the reason why a request is considered lost by now; empty where it is not."""
        silence_s, waited_s = self._plan.federation.resend_after_s, self._clock.monotonic() - request.sent_at
        if waited_s >= silence_s:
            return f"no reply within {silence_s:g} s"
        if self._plan.last_activation(member.name) > self._clock.time() - waited_s:
            return "the node was started again"
        return ""

    def _resend(self, member: Participant, request: Request) -> None:
        request.losses += 1
        resends = self._plan.federation.resends
        if request.losses > resends:
            self._reject(member, f"{request.loss_reason} ({resends} times asked again)", "late")
        else:
            self._send_request(member)


def _collect_signed_fields(good: GoodReply) -> dict[str, Any]:
    """Return the fields that a site has signed with its update, for the server's log."""
    signature = None if good.fields.signature is None else base64.b64decode(good.fields.signature).hex()
    return {
        "release": hashlib.sha256(good.blob).hexdigest(),
        "bytes": len(good.blob),
        "nonce": good.fields.nonce,
        "anchor": good.fields.log,
        "measures": good.metrics or None,
        "signature": signature,
    }
