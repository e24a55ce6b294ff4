"""What a run asks of privacy, and what it may say of it, in words that stay within what was done."""

from pydantic import BaseModel, ConfigDict, Field

from fedglm.privacy.accounting.accountant import GREATEST_DELTA, MIN_DELTA

MIN_EPSILON = 0.05
"""The accountants are exact to 0.02, so less cannot be asked for."""

NO_GUARANTEE = (
    "No privacy guarantee: this run adds no noise. The server sees each node's update, and updates can reveal "
    "training records, coded or not."
)


class PrivacySettings(BaseModel):
    """`[privacy]`: the guarantee that a run asks for.

    Attributes:
        epsilon: Greatest privacy loss of each site over the whole run, at `delta`; None trains without noise.
        delta: Probability with which that may fail. None takes 1 / (10 x units) of the smallest site, rounded down.
        clipping_norm: Greatest L2 norm of what one unit contributes to a step.
        unit: What is protected: "record", or the field that says whose a record is. None takes `data.unit_field` where
            there is one, else "record".
        records_per_unit: Most records of a unit that a step looks at.
        noise_slack: A site whose ledger has too little left for the whole run adds up to so many times the plan's
            noise. One that would need more takes part until its budget ends.
        units: Number of units that a site declares, the smallest one's where they differ. For real sites alone, whose
            data nobody sees; a simulation counts.
        metrics_share: Share of epsilon that measures of the sites spend, where `federation.node_metrics` asks for them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epsilon: float | None = Field(default=None, ge=MIN_EPSILON, le=50)
    delta: float | None = Field(default=None, ge=MIN_DELTA, le=GREATEST_DELTA)
    clipping_norm: float = Field(default=1.0, gt=0, le=1e6)
    unit: str | None = Field(default=None, min_length=1, max_length=100)
    records_per_unit: int = Field(default=4, ge=1, le=100_000)
    noise_slack: float = Field(default=2.0, ge=1, le=100)
    units: int | None = Field(default=None, ge=1, le=2**53)
    metrics_share: float = Field(default=0.1, gt=0, le=0.9)


def guarantee(epsilon: float, delta: float, unit: str) -> str:
    """The sentence that a run with noise must show beside its figures."""
    return (
        f"Differential privacy: all that leaves a site in the run is private at epsilon {epsilon:.3g} and delta "
        f"{delta:.1g} for each {unit}, added or removed, against the server, other sites and outsiders, as long as the "
        "site's own software and host are honest. Somebody with data at several sites adds their epsilons up."
    )


def client_guarantee(epsilon: float, delta: float) -> str:
    """The sentence that a run whose server adds noise must show beside its figures."""
    return (
        f"Differential privacy of whole nodes: the models of all rounds are private at epsilon {epsilon:.3g} and delta "
        f"{delta:.1g} for all that one node holds, the node added or removed, against whoever sees the models, as long "
        "as the server is honest, which sees each update and adds the noise, and keeps to itself who took part in a "
        "round and what the run's records say. Other runs with the same nodes add up."
    )


NO_GUARANTEE_AGAINST_SERVER = (
    "No privacy guarantee against the server: the sites add no noise, and the server sees each node's update."
)
