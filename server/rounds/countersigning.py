"""Countersigned checkpoints: at the end of a run, and now and then before, server and sites seal each other's logs.

    server                                                     site
      | -- Seal: the server's checkpoint -----------------------> |   keeps it in its own log
      | <-- Sealed: the site's checkpoint, a countersignature --- |
      | -- Seal: a newer one, and a countersignature -----------> |   keeps both

From then on neither side can rewrite what its log said: the other's log shows the root that it had.
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
"""Type of the messages."""

_PATIENCE_S = 60.0
"""Seconds to wait for the sites; one that is away is sealed another time."""

_GRACE_S = 10.0
"""The same once half have answered, or a site that never does would delay a run by a minute at each seal."""


class Countersigning:
    """Exchanges checkpoints with all sites that take part.

    Args:
        exchange: Messages to the nodes.
        plan: Of the run.
        run: Identity of the run.
        server_log: The server's log.
    """

    def __init__(self, exchange: Exchange, plan: Plan, run: str, server_log: ServerLog) -> None:
        self._exchange, self._plan, self._run, self._server_log = exchange, plan, run, server_log
        self._theirs: dict[str, SignedTreeHead] = {}

    def seal(self, participants: Participants, server_round: int) -> None:
        """One exchange, where there is a log; who does not answer well is left out.

        Raises:
            LogError: The server's log cannot be written.
            Stopped: The stop event was set.
        """
        if self._server_log.log is None:
            return
        ours, members = self._server_log.log.read_tree_head(), participants.active
        self._exchange.send(((m.node_id, self._seal(ours, m)) for m in members if m.node_id), SEAL, server_round)
        by_id = {member.node_id: member for member in members}
        for node_id, reply in self._exchange.replies(_PATIENCE_S, min(_GRACE_S, self._plan.federation.grace_s)):
            member = by_id.get(node_id)
            if member is not None:
                self._take(member, reply, ours)
        self._exchange.cancel(SEAL)
        self._server_log.flush()

    def _seal(self, ours: SignedTreeHead, member: Participant) -> RecordDict:
        theirs = self._theirs.get(member.name)
        known: dict[str, Any] = {}
        if theirs is not None:
            known = {f"your_{name}": value for name, value in theirs.to_fields().items()}
            known["your_countersignature"] = self._server_log.countersign(theirs)
        return RecordDict(
            {RECORD: ConfigRecord(dict(Seal(run=self._run, log=ours.log, **ours.to_fields(), **known).to_fields()))}
        )

    def _take(self, member: Participant, reply: Message, ours: SignedTreeHead) -> None:
        """Keep what a site says, if it is what it should be."""
        try:
            words = Sealed.from_fields(reply.content.config_records[RECORD])
            theirs, key = SignedTreeHead.from_fields(words.log, words.to_fields()), PublicKey.from_hex(words.key)
            if not is_signature(words.countersignature):
                return
        except (CodecError, KeyError, PrivacyError, ValueError):
            return
        expected = None if self._plan.sites is None else self._plan.sites.get(member.name)
        signed = theirs.is_by(key) and ours.is_countersigned(key, words.countersignature)
        if signed and expected in (None, key):
            self._theirs[member.name] = theirs
            self._server_log.sealed(member, key.hex, theirs, ours, words.countersignature)
