"""When a round opens, whom it asks, and when it closes; how it sends and takes messages is the business of `round`."""

import math
from typing import Protocol

from fedglm.core.clock import Clock
from fedglm.server.aggregation.central_dp import ClientPrivacy
from fedglm.server.rounds.participants import FederationError, Participant, Participants
from fedglm.server.rounds.patience import Patience
from fedglm.server.settings import FederationSettings


class ReportingWindow(Protocol):
    """Of one round: who is asked, and how long replies are taken."""

    @property
    def sampled(self) -> list[Participant]:
        """The nodes that are asked, by name."""

    @property
    def min_accepted(self) -> int:
        """Good updates without which the round does not count."""

    @property
    def is_closed(self) -> bool:
        """Whether no more replies are taken."""

    @property
    def late_reason(self) -> str:
        """Why a node that has not replied is not waited for any longer; once the window is closed."""

    def start(self) -> None:
        """All nodes were asked: time runs from now on."""

    def update(self, accepted: int) -> None:
        """So many good updates have come by now."""


class Pacing(Protocol):
    """The rhythm of a run: opens one round after the other."""

    def open(self, number: int, participants: Participants) -> ReportingWindow:
        """Choose the nodes of a round.

        Args:
            number: Of the round, from 1.
            participants: All nodes of the run.

        Raises:
            FederationError: There is nobody left to ask.
        """


class SynchronousPacing:
    """Each round samples a cohort and waits for it: for enough of it, or for most of it and some time more.

    Args:
        federation: Participation, quorum and times.
        clock: Tells the time.
        is_enrolled: Nodes may be away for long, and cost the others a grace at the most; else all are waited for.
        client_privacy: Draws the cohort where whole nodes are protected, for the accounting counts on how; None draws
            by the seed of the experiment.
    """

    def __init__(
        self,
        federation: FederationSettings,
        clock: Clock,
        *,
        is_enrolled: bool,
        client_privacy: ClientPrivacy | None = None,
    ) -> None:
        self._federation, self._clock, self._client_privacy = federation, clock, client_privacy
        self._grace_s = federation.grace_s if is_enrolled else math.inf

    def open(self, number: int, participants: Participants) -> ReportingWindow:
        """Sample the cohort of a round; see `Pacing`."""
        active, federation, private = participants.active, self._federation, self._client_privacy
        if not active:
            raise FederationError(f"round {number}: the privacy budget of every site is spent; the last model stands")
        if private is not None:
            # Whether a private round ends must not depend on who was drawn for it.
            return SynchronousWindow(private.sample(active), federation, self._clock, self._grace_s, min_accepted=0)
        sampled = participants.sample(federation.cohort_size(len(active)), federation.seed, number)
        least = federation.min_accepted(len(sampled))
        return SynchronousWindow(sampled, federation, self._clock, self._grace_s, min_accepted=least)


class SynchronousWindow:
    """The window of a cohort; see `ReportingWindow`.

    Args:
        sampled: The cohort.
        federation: Quorum and times.
        clock: Tells the time.
        grace_s: Least time that the rest has once most have replied well.
        min_accepted: Good updates without which the round does not count.
    """

    def __init__(
        self,
        sampled: list[Participant],
        federation: FederationSettings,
        clock: Clock,
        grace_s: float,
        *,
        min_accepted: int,
    ) -> None:
        self.sampled, self.min_accepted = sampled, min_accepted
        self._goal = max(1, federation.enough * len(sampled))
        self._most = max(federation.min_accepted(len(sampled)), len(sampled) / 2)
        self._timeout_s, self._grace_s, self._clock = federation.round_timeout_s, grace_s, clock
        self._accepted = 0
        self.start()

    @property
    def is_closed(self) -> bool:
        """Enough have replied well, or time is up."""
        return self._is_goal_reached or self._patience.is_over

    @property
    def late_reason(self) -> str:
        """Which of the two it was."""
        if self._is_goal_reached:
            return "it was let go: enough had answered"
        return f"no reply within {round(self._patience.lasts_s, 1):g} s"

    def start(self) -> None:
        """Time runs from now on."""
        self._patience = Patience(self._timeout_s, self._grace_s, self._clock)

    def update(self, accepted: int) -> None:
        """Once most have replied well, the others have a grace."""
        self._accepted = accepted
        if accepted >= self._most:
            self._patience.most_arrived()

    @property
    def _is_goal_reached(self) -> bool:
        return self._accepted >= self._goal
