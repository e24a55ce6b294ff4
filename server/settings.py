"""What the server decides: rounds, who takes part, how the mean becomes a step, and the noise that it adds."""

import math
from typing import Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedglm.privacy.accounting.accountant import MAX_DELTA, MIN_DELTA, choose_default_delta
from fedglm.privacy.log.tree_head import MAX_WITNESSED_HEADS
from fedglm.privacy.settings import MIN_EPSILON

CLIP_FACTOR: Final = 1.25
"""Nearly all honest norms of the built-in scenarios lie within that of their median. Where a hostile site of
`hospital` may have 1.5, it took up to eleven points (docs/log.md)."""
CLIP_FACTOR_WITH_NOISE: Final = 1.0
"""Under noise, norms differ by a percent."""

_SEALS: Final = MAX_WITNESSED_HEADS - 100
"""That a run may plan; each time that it goes on after a kill it may need one more."""


class FederationSettings(BaseModel):
    """`[federation]`: the rounds and who takes part in them.

    Attributes:
        rounds: Number of rounds.
        fraction: Share of the nodes that is sampled each round; at least one is.
        seed: Orders sampling, data and initialisation. Never used for noise or keys.
        weighting: `uniform` counts each node alike; `declared` weighs a node by the number of examples it declares
            once, at the start, between the median of all and `weight_cap`.
        weight_cap: Greatest ratio of two weights: counts are taken from the median divided by its root to the median
            times its root, so that a false count neither takes the federation over nor moves others' weights.
        quorum: Least share of the sampled nodes whose updates must be good for the round to count.
        aggregation: `robust` bounds what one node can do to the model (see `server.aggregation.robust`); `mean` is the
            plain weighted mean of all updates within `norm_limit`.
        clip_factor: Under `robust`, greatest norm of an update, and greatest value in it, over the median of the
            round's; what is longer is scaled down. None takes 1.25; 1 where nodes add noise, whose norm is the noise's.
        reference: Where nodes add noise, records by which `robust` leaves out updates that do harm (see
            `server.aggregation.reference_check`): `auto` takes those that a built-in sets aside, `off` none, else the
            path of a JSONL or CSV file like the sites', whose records no site holds and nobody else should see.
        norm_limit: Greatest Euclidean norm of an update that the server takes at all.
        enough: Share of the sampled nodes whose good updates close a round at once; the others are let go, and told in
            their next message. Below 1, which of them count depends on who is quick.
        round_timeout_s: Seconds after which a round closes with the replies it has.
        grace_s: Once half of the sampled sites have answered well, and the quorum, the others have as long again as
            those took, and this many seconds at the least: a site that says nothing delays a round by no more. Nodes
            that are not enrolled, as in a simulation, are all waited for.
        join_timeout_s: Seconds that a run waits for enrolled sites to come, at its start.
        resends: How often in a round a node gets its message again that was lost on the way.
        resend_after_s: Seconds of silence after which a message counts as lost.
        seal_every: Rounds after which server and sites seal each other's logs; they do at the end of a run, too. A run
            has 900 seals at the most.
        node_metrics: Ask the nodes for loss and accuracy of the received model on their own held-out data, in the same
            message. Each is a release of the site.
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
    join_timeout_s: float = Field(default=600.0, gt=0)
    resends: int = Field(default=5, ge=0, le=1000)
    resend_after_s: float = Field(default=300.0, gt=0)
    seal_every: int = Field(default=25, ge=1)
    node_metrics: bool = False

    @model_validator(mode="after")
    def _seals(self) -> Self:
        if self.rounds > _SEALS * self.seal_every:
            least = math.ceil(self.rounds / _SEALS)
            raise ValueError(f"sites keep {_SEALS} seals of a run: set seal_every to {least} or more")
        return self

    def cohort_size(self, nodes: int) -> int:
        """Nodes that are sampled of `nodes`."""
        return max(1, round(self.fraction * nodes))

    def min_accepted(self, sampled: int) -> int:
        """Good updates that a round needs."""
        return max(1, math.ceil(round(self.quorum * sampled, 9)))  # 0.07 * 100 is a little more than 7


class ServerOptimizerSettings(BaseModel):
    """How the mean update becomes the server's step, and how the local learning rate falls.

    Attributes:
        server_optimizer: `plain` takes the mean; `nesterov` is the outer optimizer of DiLoCo (arXiv 2311.08105);
            `adam` is FedAdam (arXiv 2003.00295), as Flower computes it.
        server_learning_rate: Factor on the mean update (1 with `plain` is FedAvg), or Adam's step size. None takes
            1 for `plain`, 0.7 for `nesterov` (DiLoCo's), 0.01 for `adam`.
        server_momentum: Of `nesterov`.
        schedule: The nodes' learning rate over the rounds: `constant`, or `cosine` from 1 down to `final_rate`.
        final_rate: Share of the learning rate that is left in the last round under `cosine`.
        warmup_rounds: Rounds over which the learning rate rises linearly from nothing.
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
        """The server's learning rate, with the optimizer's own default."""
        return self.server_learning_rate or {"plain": 1.0, "nesterov": 0.7, "adam": 0.01}[self.server_optimizer]

    def rate_at(self, server_round: int, rounds: int) -> float:
        """Factor on the nodes' learning rate in round `server_round` (from 1) of `rounds`."""
        warm = min(1.0, server_round / (self.warmup_rounds + 1))
        if self.schedule == "constant" or rounds == 1:
            return warm
        progress = (server_round - 1) / (rounds - 1)
        return warm * (self.final_rate + (1 - self.final_rate) * 0.5 * (1 + math.cos(math.pi * progress)))


class ClientPrivacySettings(BaseModel):
    """`[client_privacy]`: the guarantee for whole nodes that a run asks for.

    Attributes:
        epsilon: Greatest privacy loss of each node over the whole run, at `delta`, against whoever sees the models;
            None adds no noise at the server. The accountants are exact to 0.02, so less than 0.05 cannot be asked for.
        delta: Probability with which that may fail. None takes 1 / (10 x nodes), rounded down to one digit.
        clipping_norm: Greatest L2 norm of a node's whole update of a round; longer ones are scaled down to it. The
            median of the norms of updates is a good start.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epsilon: float | None = Field(default=None, ge=MIN_EPSILON, le=50)
    delta: float | None = Field(default=None, ge=MIN_DELTA, le=MAX_DELTA)
    clipping_norm: float = Field(default=1.0, ge=1e-3, le=1e3)

    def delta_of(self, nodes: int) -> float:
        """The delta of a federation of `nodes` nodes."""
        return choose_default_delta(nodes) if self.delta is None else self.delta
