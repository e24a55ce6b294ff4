"""Settings of the server: rounds, participation, aggregation, server optimizer, and client-level privacy."""

import math
from typing import Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedglm.privacy.accounting.accountant import MAX_DELTA, MIN_DELTA, choose_default_delta
from fedglm.privacy.log.tree_head import MAX_WITNESSED_HEADS
from fedglm.privacy.settings import MIN_EPSILON

CLIP_FACTOR: Final = 1.25
"""Default clip factor. Nearly all honest norms of the built-in scenarios are within it times their median. With 1.5, a
hostile site of `hospital` cost up to eleven points of accuracy (docs/log.md)."""
CLIP_FACTOR_WITH_NOISE: Final = 1.0
"""Default clip factor where nodes add noise: then norms differ by a percent."""

_MAX_PLANNED_SEALS: Final = MAX_WITNESSED_HEADS - 100
"""Maximum number of seals that a run may plan; each resume after a kill may need one more."""


class FederationSettings(BaseModel):
    """`[federation]`: rounds, participation and aggregation.

    Attributes:
        rounds: Number of rounds.
        fraction: Share of the nodes that is sampled in each round; at least one node is.
        seed: Seed of sampling, data order and initialisation. Never used for noise or keys.
        weighting: `uniform` gives each node the same weight; `declared` weights a node by the number of examples that
            it declares once, at the start, limited by `weight_cap`.
        weight_cap: Maximum ratio of two weights: counts are clamped between the median divided by its square root and
            the median times that, so that a false count neither dominates the mean nor changes other weights.
        quorum: Minimum share of the sampled nodes whose updates must be accepted for the round to count.
        aggregation: `robust` bounds the influence of one node on the model (see `server.aggregation.robust`); `mean` is
            the plain weighted mean of all updates within `norm_limit`.
        clip_factor: Under `robust`, maximum norm of an update, and maximum magnitude in it, over the median of the
            round's updates; larger ones are scaled down. None takes 1.25, or 1 where nodes add noise, which dominates
            the norm.
        reference: Where nodes add noise, records by which `robust` leaves out harmful updates (see
            `server.aggregation.reference_check`): `auto` takes those that a built-in data set sets aside, `off` none,
            else the path of a JSONL or CSV file like the sites', with records that are at no site and that nobody else
            should see.
        norm_limit: Maximum Euclidean norm of an update; the server rejects longer ones.
        enough: Share of the sampled nodes whose accepted updates close a round at once; the others are no longer
            awaited, and learn it from their next message. Below 1, the order of arrival decides whose updates are used.
        round_timeout_s: Seconds after which a round closes with the replies received so far.
        grace_s: Once the updates of half of the sampled sites, and of the quorum, are accepted, the others have as long
            again as those took, but at least this many seconds: a silent site delays a round by no more. Nodes that are
            not enrolled, as in a simulation, are all awaited.
        offline_grace_s: Seconds after which an enrolled site that is not connected is absent: once the updates of half
            of the sampled sites, and of the quorum, are accepted, no round waits for it, until it is connected again. A
            shorter interruption of its link costs no update. A resumed run waits as long for sites at its start.
        join_timeout_s: Seconds that a run waits at its start for enrolled sites to join.
        resends: Maximum number of times in a round that a lost message to a node is sent again.
        resend_after_s: Seconds without a reply after which a message is considered lost.
        seal_every: Number of rounds after which server and sites seal each other's logs; they also do at the end of a
            run. A run has at most 900 seals.
        node_metrics: Request from the nodes loss and accuracy of the received model on their own held-out data, in the
            same message. Each is a release of the site.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rounds: int = Field(default=20, ge=1, le=1_000_000)
    fraction: float = Field(default=1.0, gt=0, le=1)
    seed: int = Field(default=7, ge=0, lt=2**31)
    weighting: Literal["uniform", "declared"] = "uniform"
    weight_cap: float = Field(default=10.0, ge=1)
    quorum: float = Field(default=0.5, ge=0, le=1)
    aggregation: Literal["robust", "mean"] = "robust"
    clip_factor: float | None = Field(default=None, ge=1)
    reference: str = Field(default="auto", min_length=1, max_length=1000)
    norm_limit: float = Field(default=1e4, gt=0)
    enough: float = Field(default=1.0, gt=0, le=1)
    round_timeout_s: float = Field(default=3600.0, gt=0)
    grace_s: float = Field(default=600.0, ge=0)
    offline_grace_s: float = Field(default=120.0, ge=0)
    join_timeout_s: float = Field(default=600.0, gt=0)
    resends: int = Field(default=5, ge=0, le=1000)
    resend_after_s: float = Field(default=300.0, gt=0)
    seal_every: int = Field(default=25, ge=1)
    node_metrics: bool = False

    @model_validator(mode="after")
    def _check_seals(self) -> Self:
        if self.rounds > _MAX_PLANNED_SEALS * self.seal_every:
            min_interval = math.ceil(self.rounds / _MAX_PLANNED_SEALS)
            raise ValueError(
                f"sites keep {_MAX_PLANNED_SEALS} seals of a run: set seal_every to {min_interval} or more"
            )
        return self

    def cohort_size(self, nodes: int) -> int:
        """Return the number of nodes that a round samples of `nodes`."""
        return max(1, round(self.fraction * nodes))

    def min_accepted(self, sampled: int) -> int:
        """Return the minimum number of accepted updates for a round that samples `sampled` nodes."""
        return max(1, math.ceil(round(self.quorum * sampled, 9)))  # 0.07 * 100 is a little more than 7


class ServerOptimizerSettings(BaseModel):
    """Server optimizer, and schedule of the nodes' learning rate.

    Attributes:
        server_optimizer: `plain` steps by the mean; `nesterov` is the outer optimizer of DiLoCo (arXiv 2311.08105);
            `adam` is FedAdam (arXiv 2003.00295), as Flower computes it.
        server_learning_rate: Factor on the mean update (1 with `plain` is FedAvg), or Adam's step size. None takes
            1 for `plain`, 0.7 for `nesterov` (DiLoCo's), 0.01 for `adam`.
        server_momentum: Momentum of `nesterov`.
        schedule: Factor on the nodes' learning rate over the rounds: `constant`, or `cosine` from 1 to `final_rate`.
        final_rate: Factor on the learning rate in the last round under `cosine`.
        warmup_rounds: Number of rounds over which the learning rate rises linearly from 0.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    server_optimizer: Literal["plain", "nesterov", "adam"] = "plain"
    server_learning_rate: float | None = Field(default=None, gt=0)
    server_momentum: float = Field(default=0.6, ge=0, lt=1)
    schedule: Literal["constant", "cosine"] = "constant"
    final_rate: float = Field(default=0.1, ge=0, le=1)
    warmup_rounds: int = Field(default=0, ge=0)

    @property
    def server_rate(self) -> float:
        """The server's learning rate, or the optimizer's default where none is set."""
        return self.server_learning_rate or {"plain": 1.0, "nesterov": 0.7, "adam": 0.01}[self.server_optimizer]

    def rate_at(self, server_round: int, rounds: int) -> float:
        """Return the factor on the nodes' learning rate in round `server_round` (from 1) of `rounds`."""
        warmup = min(1.0, server_round / (self.warmup_rounds + 1))
        if self.schedule == "constant" or rounds == 1:
            return warmup
        progress = (server_round - 1) / (rounds - 1)
        return warmup * (self.final_rate + (1 - self.final_rate) * 0.5 * (1 + math.cos(math.pi * progress)))


class ClientPrivacySettings(BaseModel):
    """`[client_privacy]`: requested client-level differential privacy of a run.

    Attributes:
        epsilon: Maximum privacy loss of each node over the whole run, at `delta`, against everybody who sees the
            models; None adds no noise at the server. The accountants are exact to 0.02, so 0.05 is the minimum.
        delta: Delta of the guarantee. None takes 1 / (10 x nodes), rounded down to one digit.
        clipping_norm: Maximum L2 norm of a node's complete update of a round; longer ones are scaled down to it. The
            median norm of updates is a good initial value.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epsilon: float | None = Field(default=None, ge=MIN_EPSILON, le=50)
    delta: float | None = Field(default=None, ge=MIN_DELTA, le=MAX_DELTA)
    clipping_norm: float = Field(default=1.0, ge=1e-3, le=1e3)

    def compute_delta(self, nodes: int) -> float:
        """Return the delta for a federation of `nodes` nodes."""
        return choose_default_delta(nodes) if self.delta is None else self.delta
