"""What a run asks of privacy."""

from pydantic import BaseModel, ConfigDict, Field

from fedglm.privacy.accounting.accountant import GREATEST_DELTA, MIN_DELTA

MIN_EPSILON = 0.05
"""The accountants are exact to 0.02, so less cannot be asked for."""


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
