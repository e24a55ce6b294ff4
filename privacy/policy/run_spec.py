"""The definition of a run: all that is fixed from its first round to its last, and that every node enforces.

A scenario gives one `RunSpec`. The server's run, its file and the signed plan that nodes pin contain it; none of them
copies it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from fedglm.privacy.dp.mechanism import Mechanism, make_metrics_mechanism
from fedglm.privacy.errors import PrivacyError

MAX_COUNT: Final = 2**31 - 1
"""Maximum of a count in a plan."""

_MAX_RECIPE_LENGTH: Final = 20_000
_MAX_NAME_LENGTH: Final = 200


@dataclass(frozen=True, kw_only=True)
class NoisePlan:
    """The noise of every node in a run, and how often a node may take part.

    Attributes:
        max_participations: Maximum number of rounds in which one node takes part.
        mechanism: Mechanism of the noise on updates; None declares explicitly that there is none.
        max_noise_multiplier: Maximum noise multiplier that a node may use instead of the mechanism's, where its
            remaining budget is too small for all its rounds; None without a mechanism.
        metrics: Mechanism of the noise on a node's metrics on held-out data in each of its rounds; None, with a
            mechanism, means that it reports no metrics.

    Raises:
        PrivacyError: A field is out of its bounds, or contradicts another; the message names it.
    """

    max_participations: int
    mechanism: Mechanism | None = None
    max_noise_multiplier: float | None = None
    metrics: Mechanism | None = None

    def __post_init__(self) -> None:
        check_count("turns", self.max_participations)
        for name in ("mechanism", "metrics"):
            if not isinstance(getattr(self, name), Mechanism | None):
                raise PrivacyError(f"run plan: {name} is a Mechanism, or none")
        mechanism, max_noise, metrics = self.mechanism, self.max_noise_multiplier, self.metrics
        if mechanism is None:
            if max_noise is not None or metrics is not None:
                raise PrivacyError("run plan: noise_at_most and metrics are for a plan with a mechanism")
            return
        if type(max_noise) is not float or not mechanism.noise_multiplier <= max_noise < math.inf:
            raise PrivacyError("run plan: noise_at_most is a finite float, no less than the mechanism's noise")
        if metrics is not None and metrics != make_metrics_mechanism(mechanism, metrics.noise_multiplier):
            raise PrivacyError("run plan: metrics look at each unit once, and at the units of the mechanism")

    @property
    def mechanisms(self) -> tuple[Mechanism, ...]:
        """Mechanisms of the noise on updates and on metrics, those that there are."""
        return tuple(noise for noise in (self.mechanism, self.metrics) if noise is not None)


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """The definition of a run, without its model and code.

    Attributes:
        rounds: Maximum number of rounds.
        local_steps: Number of a node's optimizer steps in a round; with a mechanism, its steps.
        noise: Noise of the nodes.
        codec: Name of the codec of the updates, 1 to 200 characters.
        density: Fraction of the coordinates in an update, in (0, 1]; None where the codec has no density.
        recipe: Recipe of model and training (`protocol.recipe`), for nodes that are not configured otherwise; at most
            20,000 characters, empty where all nodes are configured.

    Raises:
        PrivacyError: A field is out of its bounds, or the steps contradict each other; the message names it.
    """

    rounds: int
    local_steps: int
    noise: NoisePlan
    codec: str
    density: float | None
    recipe: str = ""

    def __post_init__(self) -> None:
        check_name("codec", self.codec)
        check_count("rounds", self.rounds)
        check_count("local_steps", self.local_steps)
        if self.density is not None and (type(self.density) is not float or not 0 < self.density <= 1):
            raise PrivacyError("run plan: density is a number above 0 and at most 1, or none")
        if type(self.recipe) is not str or len(self.recipe) > _MAX_RECIPE_LENGTH or not _is_encodable(self.recipe):
            raise PrivacyError(f"run plan: recipe is a text of at most {_MAX_RECIPE_LENGTH} characters")
        if self.noise.max_participations > self.rounds:
            raise PrivacyError(f"run plan: {self.noise.max_participations} turns in {self.rounds} rounds")
        mechanism = self.noise.mechanism
        if mechanism is not None and mechanism.steps != self.local_steps:
            raise PrivacyError(
                f"run plan: {self.local_steps} local steps, yet the mechanism accounts for {mechanism.steps}"
            )

    def to_fields(self) -> dict[str, Any]:
        """Return the definition as names and JSON values, all on one level, as in plans and `run.json`."""
        fields = {name: getattr(self, name) for name in _RUN_FIELDS} | {
            written: getattr(self.noise, name) for name, written in _NOISE_FIELDS.items()
        }
        return fields | {name: dict(fields[name].to_fields()) for name in _MECHANISM_FIELDS if fields[name] is not None}

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> "RunSpec":
        """Make a definition of what `to_fields` returned; the input may be untrusted.

        Raises:
            PrivacyError: A field is missing, unknown or out of bounds.
        """
        if fields.keys() != FIELDS:
            unexpected = ", ".join(sorted(FIELDS ^ fields.keys()))
            raise PrivacyError(f"run plan: missing or unknown fields: {unexpected[:200]}")
        read = dict(fields)
        for name in _MECHANISM_FIELDS:
            if read[name] is not None:
                if not isinstance(read[name], dict):
                    raise PrivacyError(f"run plan: {name} is a mapping, or null")
                read[name] = Mechanism.from_fields(read[name])
        noise = NoisePlan(**{name: read[written] for name, written in _NOISE_FIELDS.items()})
        return cls(noise=noise, **{name: read[name] for name in _RUN_FIELDS})


_RUN_FIELDS: Final = ("rounds", "local_steps", "codec", "density", "recipe")
_MECHANISM_FIELDS: Final = ("mechanism", "metrics")
_NOISE_FIELDS: Final = MappingProxyType(
    {
        "max_participations": "turns",
        "mechanism": "mechanism",
        "max_noise_multiplier": "noise_at_most",
        "metrics": "metrics",
    }
)
"""Fields of `NoisePlan`, and their names in plans, logs and files, which never change."""

FIELDS: Final = frozenset((*_RUN_FIELDS, *_NOISE_FIELDS.values()))
"""Names of the fields of `RunSpec.to_fields`."""


def check_count(name: str, number: object) -> None:
    """Check that a value is an integer from 1 to 2^31 - 1; raise PrivacyError if not."""
    if type(number) is not int or not 1 <= number <= MAX_COUNT:
        raise PrivacyError(f"run plan: {name} is a whole number from 1 to {MAX_COUNT}")


def check_name(name: str, text: object) -> None:
    """Check that a value is a printable text of 1 to 200 characters; raise PrivacyError if not."""
    if type(text) is not str or not 0 < len(text) <= _MAX_NAME_LENGTH or not text.isprintable():
        raise PrivacyError(f"run plan: {name} is a text of 1 to {_MAX_NAME_LENGTH} printable characters")


def _is_encodable(text: str) -> bool:
    """Return whether the text has no lone surrogate, which no encoding can write."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
