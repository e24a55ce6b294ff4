"""Pacing of rounds: which nodes a round samples, and when it closes. Sending and receiving are in `round`."""

import math
from typing import Protocol

from fedglm.core.clock import Clock
from fedglm.server.aggregation.central_dp import ClientPrivacy
from fedglm.server.rounds.deadline import Deadline
from fedglm.server.rounds.participants import FederationError, Participant, Participants, draw_indices
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

    def update(self, accepted: int, *, is_anybody_expected: bool = True) -> None:
        """Report how the round stands.

        Args:
            accepted: Number of updates that were accepted so far.
            is_anybody_expected: Whether any of the nodes that have not replied may do so soon: not where all of them
                are absent.
        """


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
            cause = "the privacy budget of every site is spent"
            if participants.revoked:
                cause = "every site was revoked, or its privacy budget is spent"
            raise FederationError(f"round {server_round}: {cause}; the last model stands")
        if private is not None:
            # Whether a private round succeeds must not depend on its sample.
            return SynchronousWindow(private.sample(active), federation, self._clock, self._grace_s, min_accepted=0)
        sampled = participants.sample(federation.cohort_size(len(active)), federation.seed, server_round)
        sampled = _replace_absent(sampled, active, federation, server_round)
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
        self._is_anybody_expected = True
        self.start()

    @property
    def is_closed(self) -> bool:
        """Whether enough updates were accepted, or most and only absent nodes are left, or the deadline has passed."""
        return self._is_goal_reached or self._are_others_absent or self._deadline.is_past

    @property
    def late_reason(self) -> str:
        """Reason why the window closed for nodes that are connected."""
        if self._is_goal_reached:
            return "it was let go: enough had answered"
        return f"no reply within {round(self._deadline.duration_s, 1):g} s"

    def start(self) -> None:
        """Start the time."""
        self._deadline = Deadline(self._timeout_s, self._grace_s, self._clock)

    def update(self, accepted: int, *, is_anybody_expected: bool = True) -> None:
        """Report how the round stands; once most updates are accepted, the grace period of the others starts."""
        self._accepted, self._is_anybody_expected = accepted, is_anybody_expected
        if self._is_most_accepted:
            self._deadline.start_grace()

    @property
    def _is_goal_reached(self) -> bool:
        return self._accepted >= self._goal

    @property
    def _is_most_accepted(self) -> bool:
        return self._accepted >= self._grace_after

    @property
    def _are_others_absent(self) -> bool:
        """Whether most updates are accepted and nobody else is expected.

        Where most nodes are absent the round waits for them: else a private round, which counts with any number of
        updates, would spend its part of the budget on noise alone.
        """
        return self._is_most_accepted and not self._is_anybody_expected


def _replace_absent(
    sampled: list[Participant], active: list[Participant], federation: FederationSettings, server_round: int
) -> list[Participant]:
    """Draw present nodes in place of absent ones of a cohort, as far as there are any; only where most are present.

    A small cohort could else be of absent nodes alone, and its round would wait in vain while all others are there.
    """
    absent, chosen = [m for m in sampled if m.is_absent], {m.name for m in sampled}
    present = [m for m in active if not m.is_absent]
    spare = [m for m in present if m.name not in chosen]
    if not absent or len(present) < max(federation.min_accepted(len(active)), len(active) / 2):
        return sampled
    count = min(len(absent), len(spare))
    drawn = [spare[index] for index in draw_indices(len(spare), count, federation.seed, server_round)]
    left_out = {m.name for m in absent[:count]}
    return sorted([*(m for m in sampled if m.name not in left_out), *drawn], key=lambda m: m.name)
