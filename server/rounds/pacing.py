"""Pacing of rounds: which nodes a round samples, and when it closes. Sending and receiving are in `round`."""

import math
from typing import Protocol

from fedglm.core.clock import Clock
from fedglm.server.aggregation.central_dp import ClientPrivacy
from fedglm.server.rounds.deadline import Deadline
from fedglm.server.rounds.participants import FederationError, Participant, Participants
from fedglm.server.settings import FederationSettings


class ReportingWindow(Protocol):
    """The reporting window of one round: its sampled nodes, and how long replies are accepted."""

    @property
    def sampled(self) -> list[Participant]:
        """The sampled nodes, sorted by name."""

    @property
    def min_accepted(self) -> int:
        """Minimum number of accepted updates for the round to count."""

    @property
    def is_closed(self) -> bool:
        """Whether no more replies are accepted."""

    @property
    def late_reason(self) -> str:
        """Reason why nodes that have not replied are not awaited any longer; only valid once the window is closed."""

    def start(self) -> None:
        """Start the time, once requests were sent to all sampled nodes."""

    def update(self, accepted: int) -> None:
        """Report the number of updates that were accepted so far."""


class Pacing(Protocol):
    """The pacing of a run: opens one round after the other."""

    def open(self, server_round: int, participants: Participants) -> ReportingWindow:
        """Sample the nodes of a round.

        Args:
            server_round: Number of the round, from 1.
            participants: All nodes of the run.

        Raises:
            FederationError: No active node is left.
        """


class SynchronousPacing:
    """Synchronous rounds: each samples a cohort and waits for it, until enough or most of it and a grace period.

    Args:
        federation: Participation, quorum and timeouts.
        clock: Clock of the run.
        is_enrolled: Whether nodes are enrolled sites, which may be away for long and delay the others by a grace period
            at most; other nodes are all awaited.
        client_privacy: Draws the cohort under client-level privacy, because the accounting depends on the sampling;
            None draws by the seed of the experiment.
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

    def open(self, server_round: int, participants: Participants) -> ReportingWindow:
        """Sample the cohort of a round; see `Pacing.open`."""
        active, federation, private = participants.active, self._federation, self._client_privacy
        if not active:
            raise FederationError(
                f"round {server_round}: the privacy budget of every site is spent; the last model stands"
            )
        if private is not None:
            # Whether a private round succeeds must not depend on its sample.
            return SynchronousWindow(private.sample(active), federation, self._clock, self._grace_s, min_accepted=0)
        sampled = participants.sample(federation.cohort_size(len(active)), federation.seed, server_round)
        min_accepted = federation.min_accepted(len(sampled))
        return SynchronousWindow(sampled, federation, self._clock, self._grace_s, min_accepted=min_accepted)


class SynchronousWindow:
    """The reporting window of a cohort; see `ReportingWindow`.

    Args:
        sampled: Cohort, sorted by name.
        federation: Quorum and timeouts.
        clock: Clock of the run.
        grace_s: Minimum seconds that the other nodes have once most updates were accepted.
        min_accepted: Minimum number of accepted updates for the round to count.
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
        self._grace_after = max(federation.min_accepted(len(sampled)), len(sampled) / 2)
        self._timeout_s, self._grace_s, self._clock = federation.round_timeout_s, grace_s, clock
        self._accepted = 0
        self.start()

    @property
    def is_closed(self) -> bool:
        """Whether enough updates were accepted, or the deadline has passed."""
        return self._is_goal_reached or self._deadline.is_past

    @property
    def late_reason(self) -> str:
        """Reason why the window closed: one of the two of `is_closed`."""
        if self._is_goal_reached:
            return "it was let go: enough had answered"
        return f"no reply within {round(self._deadline.duration_s, 1):g} s"

    def start(self) -> None:
        """Start the time."""
        self._deadline = Deadline(self._timeout_s, self._grace_s, self._clock)

    def update(self, accepted: int) -> None:
        """Report the number of accepted updates; once they are most, the grace period of the others starts."""
        self._accepted = accepted
        if accepted >= self._grace_after:
            self._deadline.start_grace()

    @property
    def _is_goal_reached(self) -> bool:
        return self._accepted >= self._goal
