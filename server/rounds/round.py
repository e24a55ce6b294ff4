"""One round at the server: ask the nodes that were drawn, fold replies in as they come, ask again where words got lost.

A message that is sent again costs a node nothing: it answers a round that it has trained for with the very same bytes.
What a node answers, or does not, can cost it its place in the round, and nobody else more than `grace_s`.
"""

import base64
import hashlib
import logging
import math
import secrets
import time
from dataclasses import dataclass
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.serde import recorddict_to_proto

from fedglm.compression.codec import CodecError
from fedglm.compression.downlink import HEADER, ModelVersions
from fedglm.compression.layout import Layout
from fedglm.core.files import StorageError
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.ledger.ledger import BUDGET_RULE
from fedglm.protocol.messages import LENGTHS, MODEL, RECORD, TrainRequest
from fedglm.server.aggregation.folding import Folding
from fedglm.server.rounds.admission import QUERY, Admission
from fedglm.server.rounds.exchange import Exchange, Patience
from fedglm.server.rounds.participants import Participant, Participants, error_text, is_lost, refusal_of
from fedglm.server.rounds.reply_checks import GoodReply, inspect_reply
from fedglm.server.rounds.server_log import ServerLog, fault_of
from fedglm.server.run_setup import Listener, Plan

LOG = logging.getLogger(__name__)

TRAIN = "train"

_FOR_MODEL = 2
"""Messages of a round beyond the first and those sent again: what a node lacks, and then the whole model."""

_LOOK_S = 2.0
"""Seconds between two looks at who is connected."""


@dataclass
class RoundBytes:
    """Bytes of a round, as they lie in the messages, beside those of dense float32 for the same nodes."""

    uplink: int = 0
    downlink: int = 0
    dense_uplink: int = 0
    dense_downlink: int = 0


@dataclass(frozen=True)
class RoundContext:
    """What a round works with.

    Attributes:
        exchange: Messages under way.
        participants: The book of nodes.
        reception: Admits nodes that come while the round runs.
        listener: Is told of each reply.
        evidence: What the server writes down.
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
        sampled: The nodes that were drawn.
        folding: Takes the updates.
        context: See there.

    Attributes:
        number: See above.
        accepted: Names of the nodes whose update was folded in.
        faults: Why the others were not, by name.
        counted: What an update counted for, by name, where that is below 1.
        metrics: What nodes measured.
        traffic: Bytes so far.
    """

    def __init__(
        self,
        number: int,
        run: str,
        plan: Plan,
        versions: ModelVersions,
        sampled: list[Participant],
        folding: Folding,
        context: RoundContext,
    ) -> None:
        self.number, self._run, self._plan, self._versions = number, run, plan, versions
        self._sampled, self._folding, self._context = sampled, folding, context
        self._instructions: dict[str, TrainRequest] = {}
        self._sent_again: set[str] = set()
        self._lost: dict[str, str] = {}
        self._asked: dict[str, float] = {}
        self._losses: dict[str, int] = {}
        self._times_asked: dict[str, int] = {}
        self.accepted: list[str] = []
        self.faults: dict[str, str] = {}
        self.counted: dict[str, float] = {}
        self.metrics: list[dict[str, float]] = []
        self.traffic = RoundBytes()

    def conduct(self) -> None:
        """Ask, and listen until all have answered, enough have, or time is up.

        Raises:
            Stopped: The stop event was set.
        """
        federation, exchange = self._plan.federation, self._context.exchange
        close_at = max(1, federation.enough * len(self._sampled))
        for member in self._sampled:
            self._ask(member)
        most = max(federation.min_accepted(len(self._sampled)), len(self._sampled) / 2)
        grace_s = federation.grace_s if self._plan.sites is not None else math.inf
        patience = Patience(federation.round_timeout_s, grace_s)
        next_look = time.monotonic() + _LOOK_S
        while self._open and len(self.accepted) < close_at and not patience.is_over:
            arrived = False
            for sent, reply in exchange.poll():
                arrived = True
                if sent.message_type == QUERY:
                    self._welcome(sent.node_id, reply)
                elif sent.message_type == TRAIN:
                    self._take(self._context.participants.of_node(sent.node_id), reply)
            if len(self.accepted) >= most:
                patience.most_arrived()
            if time.monotonic() >= next_look:
                self._look()
                next_look = time.monotonic() + _LOOK_S
            if not arrived:
                exchange.wait()
        exchange.cancel(TRAIN)
        late = "it was let go: enough had answered" if self._open and len(self.accepted) >= close_at else ""
        for member in self._open:
            reason = self._lost.get(member.name) or late or f"no reply within {round(patience.lasts_s, 1):g} s"
            self._reject(member, reason, "late")
        self.counted = self._folding.close()

    @property
    def _open(self) -> list[Participant]:
        """Those that are still awaited."""
        return [m for m in self._sampled if m.name not in self.accepted and m.name not in self.faults]

    def _ask(self, member: Participant) -> None:
        """Send a node its instruction and what it lacks of the model."""
        if member.node_id is None:
            return
        name, federation, optimizer = member.name, self._plan.federation, self._plan.optimizer
        known = self._instructions.get(name)
        instruction = self._instructions[name] = TrainRequest(
            run=self._run,
            round=self.number,
            nonce=known.nonce if known else secrets.token_hex(8),
            layout=self._plan.layout.sha256,
            version=self._versions.version,
            acknowledged=member.acknowledged,
            learning_rate=self._plan.learning_rate * optimizer.rate_at(self.number, federation.rounds),
            evaluate=federation.node_metrics,
            anchor=member.anchor,
        )
        times = self._times_asked[name] = self._times_asked.get(name, 0) + 1
        if times > 1 + federation.resends + _FOR_MODEL:
            self._reject(member, f"it was asked {times - 1} times in this round, and gave no update", "late")
            return
        content = _content(instruction, self._versions.frames_since(member.version))
        self.traffic.downlink += recorddict_to_proto(content).ByteSize()
        self.traffic.dense_downlink += 0 if known else 4 * self._plan.layout.size
        self._lost.pop(name, None)
        self._asked[name] = time.monotonic()
        self._context.exchange.send([(member.node_id, content)], TRAIN, self.number)

    def _take(self, member: Participant | None, reply: Message) -> None:
        if reply.has_content():
            self.traffic.uplink += recorddict_to_proto(reply.content).ByteSize()
        if member is None or member not in self._open:
            return  # a second answer, after its message was sent again; or of a node whose place another took
        plan, keys = self._plan, self._plan.sites
        if is_lost(reply):
            self._lost[member.name] = f"the node reports: {error_text(reply)}"
            return
        try:
            instruction, key = self._instructions[member.name], None if keys is None else keys[member.name]
            limit = plan.federation.norm_limit
            good = inspect_reply(reply, instruction, plan.layout.size, limit, plan.codec, key)
            folded = self._fold(member, good)
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
            if folded:  # what goes wrong from here on is no fault of the reply, which was taken
                self._accept(member, good)

    def _fold(self, member: Participant, good: GoodReply) -> bool:
        """Add an update to the mean; False where there is none, and the node was asked again."""
        if good.update is None:
            if member.version is None:
                raise CodecError("the node cannot rebuild the model from a snapshot")
            # After a lost reply the node is further on than the book says: deltas from where it is will do.
            holds = good.report.holds
            known = holds if holds is not None and holds >= 0 else None
            tried = known == member.version or member.name in self._sent_again
            member.version = None if tried else known
            self._sent_again.add(member.name)
            self._ask(member)
            return False
        self._folding.take(member.name, member.weight, good.update, good.blob)
        return True

    def _accept(self, member: Participant, good: GoodReply) -> None:
        self.traffic.dense_uplink += 4 * self._plan.layout.size
        member.version, member.acknowledged = self._versions.version, self.number
        member.anchor = good.report.log
        self._keep_anchor(member)
        self.accepted.append(member.name)
        if good.metrics:
            self.metrics.append(good.metrics)
        self._context.listener.reply_taken(self.number, member.name, None)
        self._context.server_log.accepted(self.number, member.name, **_told(good))

    def _keep_anchor(self, member: Participant) -> None:
        anchors, keys = self._plan.anchors, self._plan.sites
        if anchors is not None and keys is not None and member.anchor is not None:
            anchors.keep(member.name, keys[member.name], member.anchor)

    def _reject(self, member: Participant, reason: str, fault: str, rule: str | None = None) -> None:
        self.faults[member.name] = reason
        self._context.listener.reply_taken(self.number, member.name, reason)
        self._context.server_log.rejected(self.number, member.name, fault, rule)

    def _welcome(self, node_id: int, reply: Message) -> None:
        """A node has come, or come back under another id; if the round waits for it, it is asked at once."""
        member = self._context.admission.take(self._context.participants, node_id, reply)
        if member is not None and member in self._open:
            self._ask(member)

    def _look(self) -> None:
        """Ask again where a message was lost, once the node is there; let newcomers in."""
        federation, exchange = self._plan.federation, self._context.exchange
        online = exchange.online()
        now = time.monotonic()
        for member in self._open:
            waited = now - self._asked.get(member.name, now)
            if waited >= federation.resend_after_s:
                self._lost.setdefault(member.name, f"no reply within {federation.resend_after_s:g} s")
            if member.name in self._asked and self._plan.last_activation(member.name) > time.time() - waited:
                self._lost.setdefault(member.name, "the node was started again")
            if member.name not in self._lost or member.node_id not in online:
                continue
            tries = self._losses[member.name] = self._losses.get(member.name, 0) + 1
            if tries > federation.resends:
                self._reject(member, f"{self._lost[member.name]} ({federation.resends} times asked again)", "late")
            else:
                self._ask(member)
        if self._plan.sites is not None:
            self._context.admission.look(self._context.participants, online)


def _told(good: GoodReply) -> dict[str, Any]:
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


def _content(instruction: TrainRequest, blob: bytes) -> RecordDict:
    return RecordDict({RECORD: ConfigRecord({**instruction.to_fields(), MODEL: blob})})


def envelope(layout: Layout) -> int:
    """Most bytes that a message takes around the delta of one version."""
    most = TrainRequest(
        run="0" * 16,
        round=2**31 - 1,
        nonce="0" * 16,
        layout=layout.sha256,
        version=2**31 - 1,
        acknowledged=2**31 - 1,
        learning_rate=1.0,
        evaluate=True,
    )
    return int(recorddict_to_proto(_content(most, bytes(HEADER))).ByteSize()) + LENGTHS
