"""Presence of the enrolled sites over the rounds of a run: who is connected, who is absent, whose keys were revoked.

    online --not connected--> offline --for offline_grace_s--> absent --connected again--> online

An offline site is awaited like any other: its link may be down for a moment. An absent one is sent no request, and no
round waits for it once most updates are accepted. Nodes that are not enrolled, as in a simulation, are always online.
"""

from dataclasses import dataclass
from typing import Final

from fedglm.server.rounds.exchange import Exchange
from fedglm.server.rounds.participants import Participant, Participants
from fedglm.server.rounds.server_log import ServerLog
from fedglm.server.run_setup import Listener, Plan

REVOKED: Final = "its keys were revoked; enrolled under new ones, it may join when the run is resumed"
"""Reason why a site that was revoked while the run went on takes no further part."""

_REVOCATIONS_S: Final = 2.0
"""Seconds between two looks at the enrolled sites."""


@dataclass(frozen=True)
class _Offline:
    """When a site was first seen offline, by the two times of the clock."""

    monotonic: float
    time: float


class Presence:
    """Keeps who is there from round to round; sets `is_absent` and `is_revoked` of the participants.

    Args:
        plan: Plan of the run.
        exchange: Exchange with the nodes.
        listener: Is called when a site is offline, absent, back or revoked.
        server_log: Log of the server.
    """

    def __init__(self, plan: Plan, exchange: Exchange, *, listener: Listener, server_log: ServerLog) -> None:
        self._plan, self._exchange, self._clock = plan, exchange, exchange.clock
        self._listener, self._server_log = listener, server_log
        self._offline: dict[str, _Offline] = {}
        self._next_revocations = float("-inf")

    def look(self, participants: Participants, server_round: int) -> set[int]:
        """Look who is connected, and whose keys were revoked since.

        Args:
            participants: Nodes of the run.
            server_round: Number of the round in progress; 0 before the first.

        Returns:
            Flower ids of the connected nodes.
        """
        if self._plan.sites is not None:
            self._drop_revoked(participants, server_round)
        online = self._exchange.get_online()
        if self._plan.sites is not None:
            for member in participants.joined:
                if member.node_id in online:
                    self.mark_online(member, server_round)
                else:
                    self._mark_offline(member, server_round)
        return online

    def is_offline(self, member: Participant) -> bool:
        """Return whether a site was not connected at the last look."""
        return member.name in self._offline

    def mark_online(self, member: Participant, server_round: int) -> None:
        """Note that a site is connected, such as one that joins again."""
        if self._offline.pop(member.name, None) is not None:
            member.is_absent = False
            self._listener.presence_changed(server_round, member.name, "online", self._clock.time())

    def _mark_offline(self, member: Participant, server_round: int) -> None:
        now = _Offline(self._clock.monotonic(), self._clock.time())
        since = self._offline.setdefault(member.name, now)
        if since is now:
            self._listener.presence_changed(server_round, member.name, "offline", since.time)
        if not member.is_absent and now.monotonic - since.monotonic >= self._plan.federation.offline_grace_s:
            member.is_absent = True
            self._listener.presence_changed(server_round, member.name, "absent", since.time)

    def _drop_revoked(self, participants: Participants, server_round: int) -> None:
        now = self._clock.monotonic()
        if now < self._next_revocations:
            return
        self._next_revocations = now + _REVOCATIONS_S
        for name in sorted(self._plan.find_revoked()):
            member = participants.find_by_name(name)
            if member is not None and not member.is_revoked:
                member.is_revoked = True
                self._offline.pop(name, None)
                self._listener.site_revoked(server_round, name, REVOKED)
                self._server_log.record_revoked(server_round, name)
