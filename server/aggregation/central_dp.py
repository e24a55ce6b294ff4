"""Differential privacy of whole nodes: the server clips each update, sums, and adds noise once a round.

This is DP-FedAvg with a fixed denominator (McMahan, Ramage, Talwar and Zhang 2018, arXiv 1710.06963, algorithm 1). It
protects all that one node holds, the node added or removed, against whoever sees the models: the other nodes, and all
who are given the result. The server is trusted: it sees each update, and it makes the noise. The noise on the mean is
noise_multiplier * clipping_norm / (fraction * nodes), so this is for cohorts of hundreds of nodes, not for a few.

Who takes part in a round is drawn for each node on its own, with probability `fraction`, by the CSPRNG and never by the
seed of the experiment. The accounting counts on both: on Poisson sampling, and on the sample being secret. Those who
see the models may not learn it, so the rows of a run, which tell how many took part, are for the server alone. A round
may have few nodes or none; it is noised, published and counted like any other. A quorum would tell who was there.

What a node sends can move the sum by its own clipped update and in no other way: bad, late and missing replies count as
nothing, the divisor is public, and no bound of the sum depends on who else was drawn.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np

from fedglm.compression.codec import Update
from fedglm.privacy.accounting.accountant import compute_epsilon, is_within_budget
from fedglm.privacy.accounting.calibration import calibrate
from fedglm.privacy.dp.mechanism import Event, Mechanism
from fedglm.privacy.dp.noise import GaussianNoise
from fedglm.privacy.dp.sampling import sample_poisson
from fedglm.privacy.errors import PrivacyError
from fedglm.server.aggregation.fixed_point import FRACTION_BITS, FixedPointMean
from fedglm.server.settings import ClientPrivacySettings, FederationSettings

UNIT: Final = "node"
_GRID_BITS: Final = 12
"""The noised sum is rounded to a power of two this many places below the noise's standard deviation."""
_GREATEST_SUM: Final = 2.0**20
"""Most that all clipping norms may sum up to: the noise has to fit into the fixed-point sum beside them."""

Node = TypeVar("Node")


class ClientPrivacy:
    """Sampling, clipping, noise and accounting of a run: one object, so that they agree.

    Args:
        mechanism: A round: one noised step, in which each node is with probability `sampling_rate`.
        nodes: Public number of nodes, by which the sum is divided; never the number of those who took part.
        epsilon: Greatest privacy loss of the whole run.
        delta: The delta that it holds at.
        noise: Draws samples and noise; only tests give their own.
    """

    def __init__(
        self, mechanism: Mechanism, *, nodes: int, epsilon: float, delta: float, noise: GaussianNoise | None = None
    ) -> None:
        self.mechanism, self.nodes, self.epsilon, self.delta = mechanism, nodes, epsilon, delta
        self._noise = noise or GaussianNoise()

    def sample(self, members: Sequence[Node]) -> list[Node]:
        """Draw the nodes of a round, each on its own.

        Args:
            members: The nodes that may take part.
        """
        return [members[index] for index in sample_poisson(self._noise, len(members), self.mechanism.sampling_rate)]

    def begin(self, rows: list[dict[str, Any]], size: int, *, terms: int) -> "PrivateMean":
        """Give what takes the updates of the round after `rows`, if the budget allows for one more.

        Args:
            rows: One object a round done, with what `row` put into it.
            size: Number of federated parameters.
            terms: Nodes that may take part, drawn or not.

        Raises:
            PrivacyError: One more round would exceed the budget, or the federation is too large for the sum.
        """
        history = [*_history(rows), self.mechanism.event()]
        if not is_within_budget(history, self.epsilon, self.delta):
            raise PrivacyError(f"round {len(history)} would exceed client_privacy.epsilon = {self.epsilon:g}")
        return PrivateMean(size, terms, self.mechanism, nodes=self.nodes, noise=self._noise)

    def row(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """What the row of the round after `rows` must hold: these fields are the account, and checkpoints keep it."""
        history = [*_history(rows), self.mechanism.event()]
        return {
            "client_epsilon": compute_epsilon(history, self.delta).epsilon,
            "client_mechanism": self.mechanism.to_fields(),
        }

    def check_resumed(self, rows: list[dict[str, Any]], checkpoints: Path) -> None:
        """See that a resumed run goes on with the same account.

        A round whose checkpoint was written may have left the server. To do it again would be a second release.

        Args:
            rows: Those of the checkpoint that was loaded.
            checkpoints: The folder that it was loaded from.

        Raises:
            PrivacyError: A round was done in another way, or there is a newer checkpoint, which cannot be read.
        """
        if any(event != self.mechanism.event() for event in _history(rows)):
            raise PrivacyError("the rounds done have another client-level noise than those to come: start a new run")
        newest = max(int(path.stem.removeprefix("round-")) for path in checkpoints.glob("round-*.safetensors"))
        if newest > len(rows):
            raise PrivacyError(
                f"the checkpoint of round {newest} is damaged, and its model may have been sent: to do the round again "
                "would spend more than was counted; start a new run"
            )


class PrivateMean(FixedPointMean):
    """Clipped updates in fixed point, whose sum is noised once, and their sum over a public number.

    Args:
        size: Number of federated parameters.
        terms: Greatest number of updates that could be added, whoever was drawn.
        mechanism: Clipping norm, noise and sampling rate.
        nodes: Public number of nodes.
        noise: Draws the noise.

    Raises:
        PrivacyError: `terms` clipping norms could overflow the sum.
    """

    def __init__(self, size: int, terms: int, mechanism: Mechanism, *, nodes: int, noise: GaussianNoise) -> None:
        _check_room(terms, mechanism)
        super().__init__(size, terms)
        self._noise, self._std = noise, mechanism.noise_std
        self._expected = mechanism.sampling_rate * nodes
        # What rounding to the fixed point may add to a norm, and float64 in all that goes before.
        margin = math.sqrt(size) * 2.0 ** -(FRACTION_BITS + 1) + mechanism.clipping_norm * 2.0**-30
        self._bound = mechanism.clipping_norm - margin
        self._spent = False

    def add(self, update: Update, weight: float) -> None:
        """Fold one update in, scaled down to the clipping norm where it is longer.

        Args:
            update: Decoded update of `size` values.
            weight: Must be 1: the guarantee is for nodes that count alike.

        Raises:
            CodecError: The update is of another size or not finite.
            PrivacyError: Another weight, or the mean was taken.
        """
        if weight != 1 or self._spent:
            raise PrivacyError("a private mean takes updates of weight 1, until it is taken")
        norm = update.norm()
        super().add(update, 1.0 if norm <= self._bound else self._bound / norm)

    def mean(self) -> np.ndarray:
        """The noised sum over the expected number of nodes, float32; once, for two would average the noise away.

        The sum is rounded far coarser than the noise's own values are spaced. So their low bits, which betray what
        noise was drawn (Mironov 2012), do not leave.

        Raises:
            PrivacyError: It was taken before.
        """
        if self._spent:
            raise PrivacyError("the noised mean of a round is taken once")
        self._spent = True
        places = math.floor(math.log2(self._std)) + FRACTION_BITS - _GRID_BITS
        noise = self._noise.normal(self._std, len(self._sum)) * 2.0**FRACTION_BITS
        noised = self._sum + np.rint(noise).astype(np.int64)
        rounded = (noised + (1 << places >> 1)) >> places << places
        mean: np.ndarray = (rounded / (2.0**FRACTION_BITS * self._expected)).astype(np.float32)
        return mean


def plan_client_privacy(
    settings: ClientPrivacySettings, federation: FederationSettings, nodes: int
) -> ClientPrivacy | None:
    """The noise with which all rounds together stay within `settings.epsilon`; None where none is asked for.

    Args:
        settings: What is asked for.
        federation: Rounds and participation.
        nodes: Public number of nodes.

    Raises:
        PrivacyError: Nodes are weighted, no noise keeps to so little epsilon, or the federation is too large.
    """
    if settings.epsilon is None:
        return None
    if federation.weighting != "uniform":
        raise PrivacyError(
            "client_privacy.epsilon bounds what a node can change, and a weight would change that: "
            "set federation.weighting to 'uniform'"
        )
    delta = settings.delta_of(nodes)
    mechanism = Mechanism(
        sampling_rate=federation.fraction,
        steps=1,
        clipping_norm=settings.clipping_norm,
        noise_multiplier=calibrate(settings.epsilon, delta, federation.fraction, federation.rounds),
        unit=UNIT,
        records_per_unit=1,
    )
    _check_room(nodes, mechanism)
    return ClientPrivacy(mechanism, nodes=nodes, epsilon=settings.epsilon, delta=delta)


def _check_room(nodes: int, mechanism: Mechanism) -> None:
    """Fixed point holds 8 million: the updates take at most 1, and the noise, at most 17 deviations, as much again."""
    if nodes * mechanism.clipping_norm > _GREATEST_SUM or not 2.0**-20 <= mechanism.noise_std <= 2.0**16:
        raise PrivacyError(
            f"{nodes} updates of norm {mechanism.clipping_norm:g}, with noise of {mechanism.noise_std:g}, do not fit "
            "into the sum: client_privacy.clipping_norm must be nearer to 1"
        )


def _history(rows: list[dict[str, Any]]) -> list[Event]:
    """What the rounds in `rows` released.

    Raises:
        PrivacyError: A row does not say with which noise.
    """
    if any("client_mechanism" not in row for row in rows):
        raise PrivacyError("a round was done without client-level noise: start a new run")
    return [Mechanism.from_fields(row["client_mechanism"]).event() for row in rows]
