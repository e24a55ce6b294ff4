"""Admission of nodes: the plan is announced to each connected node, and its reply is checked."""

from collections.abc import Collection, Iterable

from flwr.app import ConfigRecord, Message, RecordDict

from fedglm.compression.codec import CodecError
from fedglm.privacy.errors import PrivacyError
from fedglm.protocol.messages import PLAN, RECORD, JoinReply
from fedglm.protocol.refusals import RefusedReply
from fedglm.protocol.signatures import check_join_reply
from fedglm.server.rounds.exchange import Exchange
from fedglm.server.rounds.participants import (
    FederationError,
    Participant,
    Participants,
    is_lost,
    read_error_text,
    read_refused_reply,
)
from fedglm.server.rounds.presence import REVOKED, Presence
from fedglm.server.rounds.server_log import ServerLog
from fedglm.server.run_setup import Listener, Plan

QUERY = "query"
_LOOK_S = 2.0
"""Seconds between two checks of which nodes are connected."""
_ASK_AGAIN_S = 60.0
"""Seconds after which the plan is announced again to a node that did not reply."""
_LOST_S = 5.0
"""Seconds after which the plan is announced again to a node whose reply is known to be lost."""


class _Rejection(FederationError):
    """A node may not take part although its reply is good.

    Attributes:
        site: Name of the site that signed the reply; None where nodes do not sign.
    """

    def __init__(self, reason: str, site: str | None) -> None:
        super().__init__(reason)
        self.site = site


class Admission:
    """Announces the plan, and admits nodes at the start of a run and, where sites are enrolled, at any time after.

    Args:
        exchange: Exchange with the nodes.
        plan: Plan of the run.
        run: Identity of the run.
        listener: Is called for each node that does not take part.
        server_log: Log of the server.
        presence: Presence of the enrolled sites.
    """

    def __init__(
        self,
        exchange: Exchange,
        plan: Plan,
        run: str,
        *,
        listener: Listener,
        server_log: ServerLog,
        presence: Presence,
    ) -> None:
        self._exchange, self._plan, self._run, self._listener = exchange, plan, run, listener
        self._server_log, self._presence = server_log, presence
        signed = plan.sign(run)
        self._plan_sha256 = signed.plan.sha256
        self._query = RecordDict({RECORD: ConfigRecord({PLAN: signed.to_bytes()})})
        self._announced: dict[int, float] = {}
        self._refused_ids: set[int] = set()
        self._refusals: set[str] = set()

    def admit_initial(self, *, is_resumed: bool = False) -> Participants:
        """Admit the nodes of the run: all that are connected, or those enrolled that join before the timeout.

        Args:
            is_resumed: Whether the run goes on after some rounds: then enrolled sites that do not come are absent after
                `offline_grace_s` already, as they are within a run, once most have joined.

        Returns:
            Nodes of the run; enrolled sites that have not joined yet are pending.

        Raises:
            FederationError: Too few nodes take part; the message gives the reason.
            Stopped: The stop event was set.
        """
        sites, federation = self._plan.sites, self._plan.federation
        if sites is None:
            members = self._admit_connected()
            participants = Participants(members)
        else:
            participants = Participants([Participant(name=name) for name in sites])
            self._await_enrolled(participants, is_resumed=is_resumed)
        if federation.weighting == "declared":
            participants.set_weights(federation.weight_cap)
        return participants

    def announce(self, participants: Participants, online: Iterable[int]) -> None:
        """Announce the plan to connected nodes that have not joined, and again to those that did not reply in time.

        Args:
            participants: Nodes of the run.
            online: Flower ids of the connected nodes.
        """
        now = self._exchange.clock.monotonic()
        joined = {member.node_id for member in [*participants.active, *participants.revoked]}
        due = [node for node in sorted(set(online) - joined) if now - self._announced.get(node, -1e9) >= _ASK_AGAIN_S]
        self._send_plan(node for node in due if node not in self._refused_ids)

    def handle_reply(self, participants: Participants, node_id: int, reply: Message) -> Participant | None:
        """Admit the node that replies to the plan.

        Args:
            participants: Nodes of the run.
            node_id: Flower id of the node.
            reply: Untrusted reply.

        Returns:
            The admitted node; None where it may not take part, or its reply was lost. A node that refuses the plan or
            is rejected is reported to the listener.
        """
        if (refused := read_refused_reply(reply)) is not None:
            self._refused_ids.add(node_id)  # announcing again would only fill the site's log of refusals
            self._refusals.add(refused.text)
            known = participants.find_by_id(node_id)
            self._report_refusal(node_id, refused, None if known is None else known.name)
            return None
        if is_lost(reply):
            self._announced[node_id] = self._exchange.clock.monotonic() - _ASK_AGAIN_S + _LOST_S
            return None
        try:
            candidate = self._check_reply(node_id, reply, revoked={member.name for member in participants.revoked})
        except FederationError as exc:
            self._report_rejection(node_id, exc)
            return None
        member = self._complete_admission(participants.join(candidate))
        if self._plan.federation.weighting == "declared":
            participants.set_weights(self._plan.federation.weight_cap)
        return member

    def _report_refusal(self, node_id: int, refused: RefusedReply, site: str | None = None) -> None:
        site = site or self._plan.find_site(node_id)
        self._listener.plan_refused(node_id, refused.text, site)
        self._server_log.record_refusal(node_id, refused.rule, site)

    def _report_rejection(self, node_id: int, exc: FederationError) -> None:
        signed_by = exc.site if isinstance(exc, _Rejection) else None
        self._listener.rejected(node_id, str(exc), signed_by or self._plan.find_site(node_id))

    def _send_plan(self, nodes: Iterable[int]) -> None:
        for node in nodes:
            self._announced[node] = self._exchange.clock.monotonic()
            self._exchange.send([(node, self._query)], QUERY, 0)

    def _admit_connected(self) -> list[Participant]:
        """Announce the plan to all connected nodes, and admit those with a valid reply."""
        self._send_plan(sorted(self._exchange.get_online()))
        federation = self._plan.federation
        candidates: list[Participant] = []
        refusals: list[str] = []
        faults: dict[int, str] = {}
        for node_id, reply in self._exchange.replies(federation.round_timeout_s):
            if (refused := read_refused_reply(reply)) is not None:
                refusals.append(refused.text)
                self._report_refusal(node_id, refused)
                continue
            try:
                candidates.append(self._check_reply(node_id, reply))
            except FederationError as exc:
                faults[node_id] = str(exc)
        faults |= dict.fromkeys(self._exchange.cancel(QUERY), "it did not answer the first query")
        members: dict[str, Participant] = {}
        for member in sorted(candidates, key=lambda candidate: candidate.node_id or 0):
            if member.name in members and member.node_id is not None:
                faults[member.node_id] = f"another node calls itself {member.name!r} too: names must be unique"
            else:
                members[member.name] = member
        for node_id, fault in sorted(faults.items()):
            self._listener.rejected(node_id, fault, None)
        asked = len(members) + len(faults)
        if not asked:
            raise FederationError(f"no site permits the plan: {refusals[0]}" if refusals else "no node is connected")
        if len(members) < federation.min_accepted(asked):
            reason = next(iter(faults.values()))
            raise FederationError(f"{len(members)} of {asked} nodes can take part: {reason}")
        return [self._complete_admission(member) for member in members.values()]

    def _await_enrolled(self, participants: Participants, *, is_resumed: bool) -> None:
        """Announce the plan until all enrolled sites have joined or refused, or the timeout has passed."""
        federation, clock = self._plan.federation, self._exchange.clock
        began = next_check = clock.monotonic()
        deadline = began + federation.join_timeout_s
        deadline_of_rest = min(deadline, began + federation.offline_grace_s) if is_resumed else deadline
        while (pending := participants.pending) and len(self._refused_ids) < len(pending):
            size = participants.size
            is_most_joined = size - len(pending) >= max(federation.min_accepted(size), size / 2)
            if clock.monotonic() >= (deadline_of_rest if is_most_joined else deadline):
                break
            if clock.monotonic() >= next_check:
                self.announce(participants, self._presence.look(participants, 0))
                next_check = clock.monotonic() + _LOOK_S
            arrived = False
            for sent, reply in self._exchange.poll():
                arrived = True
                self.handle_reply(participants, sent.node_id, reply)
            if not arrived:
                self._exchange.wait()
        joined, min_joined = participants.size - len(participants.pending), federation.min_accepted(participants.size)
        if joined < min_joined:
            refused = "".join(f"; {reason}" for reason in sorted(self._refusals)[:3])
            raise FederationError(
                f"{joined} of {participants.size} enrolled sites take part after {clock.monotonic() - began:.1f} s, at "
                f"least {min_joined} are needed; missing: {', '.join(participants.pending)[:200]}{refused}"
            )

    def _check_reply(self, node_id: int, reply: Message, *, revoked: Collection[str] = ()) -> Participant:
        """Check an untrusted reply to the plan.

        Args:
            node_id: Flower id of the node.
            reply: The reply.
            revoked: Names of the sites that were revoked while the run went on.

        Raises:
            FederationError: The node may not take part; the message gives the reason.
        """
        joining = _read_join_reply(reply)
        if self._plan.sites is not None:
            if joining.name not in self._plan.sites:
                raise FederationError(f"no site is enrolled under the name {joining.name!r}")
            if joining.name in revoked:  # also with keys that it was enrolled under since, which are not the run's
                raise FederationError(f"{joining.name}: {REVOKED}")
            try:
                check_join_reply(self._plan.sites[joining.name], joining.to_fields(), self._plan_sha256)
            except PrivacyError as exc:
                raise FederationError(f"{joining.name}: {exc}") from exc
        signed_by = None if self._plan.sites is None else joining.name
        if joining.layout != self._plan.layout.sha256:
            raise _Rejection(
                f"node {joining.name} builds a model of another layout: give it the server's [model] and [data]",
                signed_by,
            )
        if self._plan.federation.weighting == "declared" and joining.examples < 1:
            raise _Rejection(f"{joining.name} declares no count of examples, and weighting is 'declared'", signed_by)
        version = joining.version if joining.run == self._run and joining.version >= 0 else 0
        return Participant(name=joining.name, node_id=node_id, version=version, examples=joining.examples)

    def _complete_admission(self, member: Participant) -> Participant:
        """Take over the known anchor of the node's log, and record the admission."""
        key = None if self._plan.sites is None else self._plan.sites[member.name]
        if self._plan.anchors is not None and key is not None:
            member.anchor = self._plan.anchors.known(member.name, key) or member.anchor
        self._server_log.record_admission(member.name, None if key is None else key.hex, member.anchor)
        return member


def _read_join_reply(reply: Message) -> JoinReply:
    if reply.has_error():
        raise FederationError(f"a node cannot take part: {read_error_text(reply)}")
    try:
        return JoinReply.from_fields(reply.content.config_records[RECORD])
    except (KeyError, CodecError) as exc:
        raise FederationError(f"a node introduces itself in a way this server does not know: {exc}") from exc
