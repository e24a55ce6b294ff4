"""Countersigning of signed tree heads: at the end of a run, and at intervals, server and sites seal each other's logs.

    server                                                            site
      | -- Seal: the server's signed tree head -------------------------> |   keeps it in its own log
      | <-- Sealed: the site's signed tree head, a countersignature ----- |
      | -- Seal: a newer signed tree head, and a countersignature ------> |   keeps both

From then on neither side can rewrite the entries before: the other's log holds the root hash over them.
"""

from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict

from fedglm.compression.codec import CodecError
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.keys.signing import PublicKey
from fedglm.privacy.log.entries import is_signature
from fedglm.privacy.log.tree_head import SignedTreeHead
from fedglm.protocol.messages import RECORD, Seal, Sealed
from fedglm.server.rounds.exchange import Exchange
from fedglm.server.rounds.participants import Participant, Participants
from fedglm.server.rounds.server_log import ServerLog
from fedglm.server.run_setup import Plan

SEAL = "query.seal"
"""Flower message type of the seals."""

_PATIENCE_S = 60.0
"""Seconds to wait for the sites; one that does not reply is sealed the next time."""

_GRACE_S = 10.0
"""Seconds to wait for the others once half have replied: else a site that never replies would delay a run by a minute
at each seal."""


class Countersigning:
    """Exchanges signed tree heads with all sites that take part.

    Args:
        exchange: Exchange with the nodes.
        plan: Plan of the run.
        run: Identity of the run.
        server_log: Log of the server.
    """

    def __init__(self, exchange: Exchange, plan: Plan, run: str, server_log: ServerLog) -> None:
        self._exchange, self._plan, self._run, self._server_log = exchange, plan, run, server_log
        self._theirs: dict[str, SignedTreeHead] = {}

    def seal(self, participants: Participants, server_round: int) -> None:
        """Exchange signed tree heads once, where the server keeps a log; absent sites are left out.

        So is one without a valid reply.

        Args:
            participants: Nodes of the run.
            server_round: Number of the last finished round.

        Raises:
            LogError: The server's log cannot be written.
            Stopped: The stop event was set.
        """
        if self._server_log.log is None:
            return
        ours = self._server_log.log.read_tree_head()
        members = [member for member in participants.active if not member.is_absent]
        self._exchange.send(((m.node_id, self._build_seal(ours, m)) for m in members if m.node_id), SEAL, server_round)
        by_id = {member.node_id: member for member in members}
        grace_s = min(_GRACE_S, self._plan.federation.grace_s)
        for node_id, reply in self._exchange.replies(_PATIENCE_S, grace_s, message_type=SEAL):
            member = by_id.get(node_id)
            if member is not None:
                self._handle_reply(member, reply, ours)
        self._exchange.cancel(SEAL)
        self._server_log.flush()

    def _build_seal(self, ours: SignedTreeHead, member: Participant) -> RecordDict:
        theirs = self._theirs.get(member.name)
        known: dict[str, Any] = {}
        if theirs is not None:
            known = {f"your_{name}": value for name, value in theirs.to_fields().items()}
            known["your_countersignature"] = self._server_log.countersign(theirs)
        return RecordDict(
            {RECORD: ConfigRecord(dict(Seal(run=self._run, log=ours.log, **ours.to_fields(), **known).to_fields()))}
        )

    def _handle_reply(self, member: Participant, reply: Message, ours: SignedTreeHead) -> None:
        """Record the reply of a site, if it is valid."""
        try:
            sealed = Sealed.from_fields(reply.content.config_records[RECORD])
            theirs, key = SignedTreeHead.from_fields(sealed.log, sealed.to_fields()), PublicKey.from_hex(sealed.key)
            if not is_signature(sealed.countersignature):
                return
        except (CodecError, KeyError, PrivacyError, ValueError):
            return
        expected = None if self._plan.sites is None else self._plan.sites.get(member.name)
        is_signed = theirs.is_by(key) and ours.is_countersigned(key, sealed.countersignature)
        if is_signed and expected in (None, key):
            self._theirs[member.name] = theirs
            self._server_log.record_seal(member, key.hex, theirs, ours, sealed.countersignature)
