"""Client-level differential privacy: the server clips each update, sums, and adds noise once a round.

This is DP-FedAvg with a fixed denominator (McMahan, Ramage, Talwar and Zhang 2018, arXiv 1710.06963, algorithm 1). It
protects all data of one node (neighbouring federations differ by one node, added or removed) against everybody who
sees the models: the other nodes, and all who receive the result. The server is trusted: it sees each update, and it
draws the noise. The standard deviation of the noise on the mean is noise_multiplier * clipping_norm / (fraction *
nodes), so this is for cohorts of hundreds of nodes, not for a few.

A round samples each node independently with probability `fraction`, by the CSPRNG and never by the seed of the
experiment. The accounting depends on both: on Poisson sampling, and on the sample being secret. Those who see the
models must not learn the sample, so the rows of a run, which show how many nodes took part, are for the server alone. A
round may have few nodes or none; it is noised, published and accounted for like any other. A quorum would reveal who
took part.

A node can change the sum by its own clipped update and in no other way: bad, late and missing replies add nothing, the
divisor is public, and no bound of the sum depends on who else was sampled.
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
"""The noised sum is rounded to a power of two this many binary places below the noise's standard deviation."""
_MAX_SUM: Final = 2.0**20
"""Maximum of the sum of all clipping norms: the noise has to fit into the fixed-point sum beside them."""

Node = TypeVar("Node")


class ClientPrivacy:
    """Sampling, clipping, noise and accounting of a run, in one object so that they agree.

    Args:
        mechanism: Mechanism of a round: one noised step on a sample with each node at probability `sampling_rate`.
        nodes: Public number of nodes, by which the sum is divided; never the number of those that took part.
        epsilon: Maximum privacy loss of the whole run.
        delta: Delta at which `epsilon` holds.
        noise: Source of samples and noise; only tests inject their own.
    """

    def __init__(
        self, mechanism: Mechanism, *, nodes: int, epsilon: float, delta: float, noise: GaussianNoise | None = None
    ) -> None:
        self.mechanism, self.nodes, self.epsilon, self.delta = mechanism, nodes, epsilon, delta
        self._noise = noise or GaussianNoise()

    def sample(self, members: Sequence[Node]) -> list[Node]:
        """Draw the nodes of a round, each independently of the others.

        Args:
            members: Nodes that may take part.
        """
        return [members[index] for index in sample_poisson(self._noise, len(members), self.mechanism.sampling_rate)]

    def begin(self, rows: list[dict[str, Any]], size: int, *, terms: int) -> "PrivateMean":
        """Make the mean of the round after `rows`, if the budget allows for one more round.

        Args:
            rows: Rows of the finished rounds, with the fields of `make_row_fields`.
            size: Number of federated parameters.
            terms: Number of nodes that may take part, sampled or not.

        Raises:
            PrivacyError: One more round would exceed the budget, or the federation is too large for the sum.
        """
        history = [*_read_events(rows), self.mechanism.event()]
        if not is_within_budget(history, self.epsilon, self.delta):
            raise PrivacyError(f"round {len(history)} would exceed client_privacy.epsilon = {self.epsilon:g}")
        return PrivateMean(size, terms, self.mechanism, nodes=self.nodes, noise=self._noise)

    def make_row_fields(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the fields of the row of the round after `rows`: they are the account, and checkpoints keep it."""
        history = [*_read_events(rows), self.mechanism.event()]
        return {
            "client_epsilon": compute_epsilon(history, self.delta).epsilon,
            "client_mechanism": self.mechanism.to_fields(),
        }

    def check_resumed(self, rows: list[dict[str, Any]], checkpoints: Path) -> None:
        """Check that a resumed run continues with the same account.

        The model of a round whose checkpoint was written may have left the server. To repeat the round would be a
        second release.

        Args:
            rows: Rows of the checkpoint that was loaded.
            checkpoints: Folder from which it was loaded.

        Raises:
            PrivacyError: A round was done with another mechanism, or there is a newer checkpoint, which is unreadable.
        """
        if any(event != self.mechanism.event() for event in _read_events(rows)):
            raise PrivacyError("the rounds done have another client-level noise than those to come: start a new run")
        newest = max(int(path.stem.removeprefix("round-")) for path in checkpoints.glob("round-*.safetensors"))
        if newest > len(rows):
            raise PrivacyError(
                f"the checkpoint of round {newest} is damaged, and its model may have been sent: to do the round again "
                "would spend more than was counted; start a new run"
            )


class PrivateMean(FixedPointMean):
    """Mean of clipped updates with Gaussian noise: their noised fixed-point sum over a public number.

    Args:
        size: Number of federated parameters.
        terms: Maximum number of updates that could be added, whatever the sample.
        mechanism: Clipping norm, noise and sampling rate.
        nodes: Public number of nodes.
        noise: Source of the noise.

    Raises:
        PrivacyError: `terms` clipping norms could overflow the sum.
    """

    def __init__(self, size: int, terms: int, mechanism: Mechanism, *, nodes: int, noise: GaussianNoise) -> None:
        _check_range(terms, mechanism)
        super().__init__(size, terms)
        self._noise, self._std = noise, mechanism.noise_std
        self._expected = mechanism.sampling_rate * nodes
        # Upper bound of what rounding to fixed point, and float64 before it, can add to a norm.
        margin = math.sqrt(size) * 2.0 ** -(FRACTION_BITS + 1) + mechanism.clipping_norm * 2.0**-30
        self._max_norm = mechanism.clipping_norm - margin
        self._is_released = False

    def add(self, update: Update, weight: float) -> None:
        """Add one update, clipped to the clipping norm.

        Args:
            update: Decoded update of `size` values.
            weight: Must be 1: the guarantee is for equally weighted nodes.

        Raises:
            CodecError: The update has another size or is not finite.
            PrivacyError: The weight is not 1, or the mean was already released.
        """
        if weight != 1 or self._is_released:
            raise PrivacyError("a private mean takes updates of weight 1, until it is taken")
        norm = update.norm()
        super().add(update, 1.0 if norm <= self._max_norm else self._max_norm / norm)

    def mean(self) -> np.ndarray:
        """Return the noised sum over the expected number of nodes, shape (size,), float32.

        It is released once: two draws of noise could be averaged. The sum is rounded to a grid far coarser than the
        spacing of the noise's floats, so their low bits, from which the noise could be inferred (Mironov 2012), are
        not released.

        Raises:
            PrivacyError: The mean was already released.
        """
        if self._is_released:
            raise PrivacyError("the noised mean of a round is taken once")
        self._is_released = True
        places = math.floor(math.log2(self._std)) + FRACTION_BITS - _GRID_BITS
        noise = self._noise.normal(self._std, len(self._sum)) * 2.0**FRACTION_BITS
        noised = self._sum + np.rint(noise).astype(np.int64)
        rounded = (noised + (1 << places >> 1)) >> places << places
        mean: np.ndarray = (rounded / (2.0**FRACTION_BITS * self._expected)).astype(np.float32)
        return mean


def plan_client_privacy(
    settings: ClientPrivacySettings, federation: FederationSettings, nodes: int
) -> ClientPrivacy | None:
    """Calibrate the noise so that all rounds together stay within `settings.epsilon`; None where that is None.

    Args:
        settings: Requested guarantee.
        federation: Rounds and participation.
        nodes: Public number of nodes.

    Raises:
        PrivacyError: Nodes are weighted, no noise meets so small an epsilon, or the federation is too large.
    """
    if settings.epsilon is None:
        return None
    if federation.weighting != "uniform":
        raise PrivacyError(
            "client_privacy.epsilon bounds what a node can change, and a weight would change that: "
            "set federation.weighting to 'uniform'"
        )
    delta = settings.compute_delta(nodes)
    mechanism = Mechanism(
        sampling_rate=federation.fraction,
        steps=1,
        clipping_norm=settings.clipping_norm,
        noise_multiplier=calibrate(settings.epsilon, delta, federation.fraction, federation.rounds),
        unit=UNIT,
        records_per_unit=1,
    )
    _check_range(nodes, mechanism)
    return ClientPrivacy(mechanism, nodes=nodes, epsilon=settings.epsilon, delta=delta)


def _check_range(nodes: int, mechanism: Mechanism) -> None:
    """Check that updates and noise fit into the fixed-point sum.

    Its range is 8 million: the updates take at most 1 million, and the noise, at most 17 standard deviations, as much
    again.

    Raises:
        PrivacyError: They could overflow the sum, or the noise is too small for its grid.
    """
    if nodes * mechanism.clipping_norm > _MAX_SUM or not 2.0**-20 <= mechanism.noise_std <= 2.0**16:
        raise PrivacyError(
            f"{nodes} updates of norm {mechanism.clipping_norm:g}, with noise of {mechanism.noise_std:g}, do not fit "
            "into the sum: client_privacy.clipping_norm must be nearer to 1"
        )


def _read_events(rows: list[dict[str, Any]]) -> list[Event]:
    """Read the privacy events of the rounds in `rows`.

    Raises:
        PrivacyError: A row does not record its mechanism.
    """
    if any("client_mechanism" not in row for row in rows):
        raise PrivacyError("a round was done without client-level noise: start a new run")
    return [Mechanism.from_fields(row["client_mechanism"]).event() for row in rows]
