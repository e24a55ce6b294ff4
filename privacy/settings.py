"""Settings of the privacy guarantee of a run."""

from pydantic import BaseModel, ConfigDict, Field

from fedglm.privacy.accounting.accountant import MAX_DELTA, MIN_DELTA

MIN_EPSILON = 0.05
"""Minimum epsilon of a run: the accountants are exact to 0.02."""


class PrivacySettings(BaseModel):
    """Settings of `[privacy]`, the guarantee of a run.

    Attributes:
        epsilon: Maximum privacy loss of each site over the whole run, at `delta`; None trains without noise.
        delta: Probability with which the guarantee may fail. None takes 1 / (10 x units) of the smallest site, rounded
            down.
        clipping_norm: Maximum L2 norm of one unit's contribution to a step.
        unit: Privacy unit: "record", or the field with the owner of a record. None takes `data.unit_field` where it is
            set, else "record".
        records_per_unit: Maximum number of a unit's records in a step.
        noise_slack: Factor by which a site may add more noise than the plan's where its remaining budget is too small
            for the whole run. A site that would need more takes part until its budget is spent.
        units: Number of units that a site declares, that of the smallest site where they differ. Only for real sites,
            whose data nobody sees; a simulation counts them.
        metrics_share: Share of epsilon for the sites' metrics, where `federation.node_metrics` requests them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epsilon: float | None = Field(default=None, ge=MIN_EPSILON, le=50)
    delta: float | None = Field(default=None, ge=MIN_DELTA, le=MAX_DELTA)
    clipping_norm: float = Field(default=1.0, gt=0, le=1e6)
    unit: str | None = Field(default=None, min_length=1, max_length=100)
    records_per_unit: int = Field(default=4, ge=1, le=100_000)
    noise_slack: float = Field(default=2.0, ge=1, le=100)
    units: int | None = Field(default=None, ge=1, le=2**53)
    metrics_share: float = Field(default=0.1, gt=0, le=0.9)
