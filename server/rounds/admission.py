"""Who may take part: the plan is announced to each node that is connected, and what it answers is checked."""

from collections.abc import Iterable

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
    error_text,
    is_lost,
    refusal_of,
)
from fedglm.server.rounds.server_log import ServerLog
from fedglm.server.run_setup import Listener, Plan

QUERY = "query"
_LOOK_S = 2.0
"""Seconds between two looks at who is connected."""
_ASK_AGAIN_S = 60.0
"""Seconds after which a node that did not answer is asked again."""
_LOST_S = 5.0
"""The same, where its answer is known to be lost."""


class Admission:
    """Announces the plan, and admits nodes at the start of a run and, where sites are enrolled, at any time after.

    Args:
        exchange: Messages to the nodes.
        plan: Of the run.
        run: Identity of the run.
        listener: Hears of each node that does not take part.
        server_log: What the server writes down.
    """

    def __init__(self, exchange: Exchange, plan: Plan, run: str, *, listener: Listener, server_log: ServerLog) -> None:
        self._exchange, self._plan, self._run, self._listener = exchange, plan, run, listener
        self._server_log = server_log
        signed = plan.signed(run)
        self._plan_sha256 = signed.plan.sha256
        self._query = RecordDict({RECORD: ConfigRecord({PLAN: signed.to_bytes()})})
        self._asked: dict[int, float] = {}
        self._settled: set[int] = set()
        self._refusals: set[str] = set()

    def open(self) -> Participants:
        """Wait for the nodes of the run: all that are connected, or all that are enrolled until time is up.

        Raises:
            FederationError: Too few nodes take part; the message says why.
        """
        sites, federation = self._plan.sites, self._plan.federation
        if sites is None:
            members = self._all_connected()
            participants = Participants(members)
        else:
            participants = Participants([Participant(name=name) for name in sites])
            self._wait_for(participants)
        if federation.weighting == "declared":
            participants.weigh(federation.weight_cap)
        return participants

    def look(self, participants: Participants, online: Iterable[int]) -> None:
        """Announce the plan to nodes that have come since, and again to those that did not answer."""
        now = self._exchange.clock.monotonic()
        known = {member.node_id for member in participants.active}
        due = [node for node in sorted(set(online) - known) if now - self._asked.get(node, -1e9) >= _ASK_AGAIN_S]
        self._ask(node for node in due if node not in self._settled)

    def take(self, participants: Participants, node_id: int, reply: Message) -> Participant | None:
        """Admit the node that answers; None where it may not take part, of which the listener is told."""
        if (refused := refusal_of(reply)) is not None:
            self._settled.add(node_id)  # asking again would only fill the site's log of refusals
            self._refusals.add(refused.text)
            self._declined(node_id, refused)
            return None
        if is_lost(reply):
            self._asked[node_id] = self._exchange.clock.monotonic() - _ASK_AGAIN_S + _LOST_S
            return None
        try:
            introduced = self._introduced(node_id, reply)
        except FederationError as exc:
            self._listener.rejected(node_id, str(exc))
            return None
        member = self._admitted(participants.join(introduced))
        if self._plan.federation.weighting == "declared":
            participants.weigh(self._plan.federation.weight_cap)
        return member

    def _declined(self, node_id: int, refused: RefusedReply) -> None:
        self._listener.plan_refused(node_id, refused.text)
        self._server_log.declined(node_id, refused.rule)

    def _ask(self, nodes: Iterable[int]) -> None:
        for node in nodes:
            self._asked[node] = self._exchange.clock.monotonic()
            self._exchange.send([(node, self._query)], QUERY, 0)

    def _all_connected(self) -> list[Participant]:
        self._ask(sorted(self._exchange.online()))
        federation = self._plan.federation
        introduced: list[Participant] = []
        refusals: list[str] = []
        faults: dict[int, str] = {}
        for node_id, reply in self._exchange.replies(federation.round_timeout_s):
            if (refused := refusal_of(reply)) is not None:
                refusals.append(refused.text)
                self._declined(node_id, refused)
                continue
            try:
                introduced.append(self._introduced(node_id, reply))
            except FederationError as exc:
                faults[node_id] = str(exc)
        faults |= dict.fromkeys(self._exchange.cancel(QUERY), "it did not answer the first query")
        members: dict[str, Participant] = {}
        for member in sorted(introduced, key=lambda one: one.node_id or 0):
            if member.name in members and member.node_id is not None:
                faults[member.node_id] = f"another node calls itself {member.name!r} too: names must be unique"
            else:
                members[member.name] = member
        for node_id, fault in sorted(faults.items()):
            self._listener.rejected(node_id, fault)
        asked = len(members) + len(faults)
        if not asked:
            raise FederationError(f"no site permits the plan: {refusals[0]}" if refusals else "no node is connected")
        if len(members) < federation.min_accepted(asked):
            reason = next(iter(faults.values()))
            raise FederationError(f"{len(members)} of {asked} nodes can take part: {reason}")
        return [self._admitted(member) for member in members.values()]

    def _wait_for(self, participants: Participants) -> None:
        federation, clock = self._plan.federation, self._exchange.clock
        began = next_look = clock.monotonic()
        deadline = began + federation.join_timeout_s
        while (pending := participants.pending) and len(self._settled) < len(pending) and clock.monotonic() < deadline:
            if clock.monotonic() >= next_look:
                self.look(participants, self._exchange.online())
                next_look = clock.monotonic() + _LOOK_S
            arrived = False
            for sent, reply in self._exchange.poll():
                arrived = True
                self.take(participants, sent.node_id, reply)
            if not arrived:
                self._exchange.wait()
        here, least = participants.size - len(participants.pending), federation.min_accepted(participants.size)
        if here < least:
            refused = "".join(f"; {reason}" for reason in sorted(self._refusals)[:3])
            raise FederationError(
                f"{here} of {participants.size} enrolled sites take part after {clock.monotonic() - began:.1f} s, at "
                f"least {least} are needed; missing: {', '.join(participants.pending)[:200]}{refused}"
            )

    def _introduced(self, node_id: int, reply: Message) -> Participant:
        words = _read(reply)
        if self._plan.sites is not None:
            if words.name not in self._plan.sites:
                raise FederationError(f"no site is enrolled under the name {words.name!r}")
            try:
                check_join_reply(self._plan.sites[words.name], words.to_fields(), self._plan_sha256)
            except PrivacyError as exc:
                raise FederationError(f"{words.name}: {exc}") from exc
        if words.layout != self._plan.layout.sha256:
            raise FederationError(
                f"node {words.name} builds a model of another layout: give it the server's [model] and [data]"
            )
        if self._plan.federation.weighting == "declared" and words.examples < 1:
            raise FederationError(f"{words.name} declares no count of examples, and weighting is 'declared'")
        held = words.version if words.run == self._run and words.version >= 0 else 0
        return Participant(name=words.name, node_id=node_id, version=held, examples=words.examples)

    def _admitted(self, member: Participant) -> Participant:
        """The node takes part, and the log says so."""
        key = None if self._plan.sites is None else self._plan.sites[member.name]
        if self._plan.anchors is not None and key is not None:
            member.anchor = self._plan.anchors.known(member.name, key) or member.anchor
        self._server_log.admitted(member.name, None if key is None else key.hex, member.anchor)
        return member


def _read(reply: Message) -> JoinReply:
    if reply.has_error():
        raise FederationError(f"a node cannot take part: {error_text(reply)}")
    try:
        return JoinReply.from_fields(reply.content.config_records[RECORD])
    except (KeyError, CodecError) as exc:
        raise FederationError(f"a node introduces itself in a way this server does not know: {exc}") from exc
