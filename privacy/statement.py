"""What a run may say of its privacy, in words that stay within what was done."""

from pydantic import BaseModel, ConfigDict, field_validator

NO_GUARANTEE = (
    "No privacy guarantee: this run adds no noise. The server sees each node's update, and updates can reveal "
    "training records, coded or not."
)


class PrivacySettings(BaseModel):
    """`[privacy]`: the guarantee that a run asks for.

    Attributes:
        epsilon: Must be None. This version adds no noise, so a run that asks for differential privacy is refused
            rather than run without it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epsilon: float | None = None

    @field_validator("epsilon")
    @classmethod
    def _no_false_promise(cls, value: float | None) -> None:
        if value is not None:
            raise ValueError(
                "this version cannot give differential privacy, so it refuses an epsilon: leave it out (--no-dp)"
            )

    def statement(self) -> str:
        """The sentence that a run's table, summary and report must show."""
        return NO_GUARANTEE
