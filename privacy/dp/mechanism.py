"""The mechanism of a round: all parameters that must agree for the accounting to be correct, in one object.

Sampling rate, clipping norm, noise multiplier and steps are set together or not at all. Training reads them from here,
the accountant gets its event from here, and the ledger records these same fields.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from fedglm.privacy.errors import PrivacyError

MAX_STEPS: Final = 10**7
"""Maximum number of noised steps in one round; more must be a mistake."""


@dataclass(frozen=True, order=True)
class Event:
    """Input of the accountants: `steps` Gaussian steps, each on a Poisson sample of the units.

    Attributes:
        noise_multiplier: Standard deviation of the noise divided by the clipping norm, above 0.
        sampling_rate: Probability of each unit to be in a step's sample, above 0 and at most 1.
        steps: Number of steps, at least 1.

    Raises:
        PrivacyError: A field is out of its bounds; the message names it.
    """

    noise_multiplier: float
    sampling_rate: float
    steps: int

    def __post_init__(self) -> None:
        _check_positive("noise_multiplier", self.noise_multiplier)
        _check_positive("sampling_rate", self.sampling_rate)
        if self.sampling_rate > 1:
            raise PrivacyError(f"sampling_rate is a probability above 0 and at most 1, not {self.sampling_rate!r}")
        _check_integer("steps", self.steps)


@dataclass(frozen=True, kw_only=True)
class Mechanism:
    """DP-SGD of one round at one node. Neighbouring data sets differ by one unit, added or removed.

    The mean over a step's sample is the noised sum over `sampling_rate * units`, where `units` is a number that the
    site makes public: never the true count, and never the size of the sample.

    Attributes:
        sampling_rate: Probability of each unit to be in a step's sample, above 0 and at most 1.
        steps: Number of noised steps per round, at least 1.
        clipping_norm: Maximum L2 norm of one unit's total contribution to one step.
        noise_multiplier: Standard deviation of the noise on the clipped sum divided by the clipping norm; above 0.
        unit: Privacy unit: "record", or the name of the field with the owner of a record.
        records_per_unit: Maximum number of a unit's records in a step.

    Raises:
        PrivacyError: A field is out of its bounds; the message names it.
    """

    sampling_rate: float
    steps: int
    clipping_norm: float
    noise_multiplier: float
    unit: str
    records_per_unit: int

    def __post_init__(self) -> None:
        Event(self.noise_multiplier, self.sampling_rate, self.steps)
        _check_positive("clipping_norm", self.clipping_norm)
        if not math.isfinite(self.noise_std) or self.noise_std == 0:
            raise PrivacyError("clipping_norm times noise_multiplier is no finite number above 0")
        if type(self.unit) is not str or not 0 < len(self.unit) <= 100 or not self.unit.isprintable():
            raise PrivacyError(f"unit is a text of 1 to 100 printable characters, not {self.unit!r}"[:300])
        _check_integer("records_per_unit", self.records_per_unit)

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise on a step's clipped sum, before any division."""
        return self.noise_multiplier * self.clipping_norm

    def event(self) -> Event:
        """Make the accountants' event of one round."""
        return Event(self.noise_multiplier, self.sampling_rate, self.steps)

    def to_fields(self) -> dict[str, str | int | float]:
        """Return all fields by name; `from_fields` makes an equal mechanism of them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_fields(cls, values: Mapping[str, object]) -> "Mechanism":
        """Make a mechanism of what `to_fields` returned; the input may be untrusted.

        Raises:
            PrivacyError: A field is missing, unknown, of another type or out of bounds.
        """
        known = {field.name for field in fields(cls)}
        if values.keys() != known:
            unexpected = ", ".join(sorted(str(name)[:50] for name in known ^ values.keys())[:8])
            raise PrivacyError(f"mechanism: missing or unknown fields: {unexpected}")
        unchecked: Any = values  # the constructor checks the types
        return cls(**unchecked)


def make_metrics_mechanism(mechanism: Mechanism, noise_multiplier: float) -> Mechanism:
    """Make the mechanism of noised metrics on held-out data: one step over every unit, in the same units."""
    return replace(mechanism, sampling_rate=1.0, steps=1, clipping_norm=1.0, noise_multiplier=noise_multiplier)


def _check_positive(name: str, value: object) -> None:
    # A bool, a string or a numpy scalar would pass arithmetic, but not a round trip through JSON.
    if type(value) is not float or not math.isfinite(value) or value <= 0:
        raise PrivacyError(f"{name} is a finite float above 0, not {value!r}"[:300])


def _check_integer(name: str, value: object) -> None:
    if type(value) is not int or not 1 <= value <= MAX_STEPS:
        raise PrivacyError(f"{name} is a whole number from 1 to {MAX_STEPS}, not {value!r}"[:300])
