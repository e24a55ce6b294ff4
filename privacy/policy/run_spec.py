"""The definition of a run: what is fixed from its first round to its last, and what every node holds the server to.

A scenario is made into one `RunSpec`. The server's run, the file that it lies in and the signed plan that nodes pin
contain it; none of them copies it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from fedglm.privacy.dp.mechanism import Mechanism, make_metrics_mechanism
from fedglm.privacy.errors import PrivacyError

MAX_NUMBER: Final = 2**31 - 1
"""Greatest count in a plan."""

_MAX_RECIPE: Final = 20_000
_MAX_NAME: Final = 200


@dataclass(frozen=True, kw_only=True)
class NoisePlan:
    """How every node adds noise in a run, and how often it may take part.

    Attributes:
        max_participations: Most rounds that one node takes part in.
        mechanism: Noise on updates; None says in so many words that there is none.
        max_noise_multiplier: Greatest noise multiplier that a node may take instead of the mechanism's, where its
            ledger has too little left for all its rounds; None without a mechanism.
        metrics: Noise on what a node measures on its held-out data in each of its rounds; None, with a mechanism, says
            that it reports nothing.

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
        mechanism, greatest, metrics = self.mechanism, self.max_noise_multiplier, self.metrics
        if mechanism is None:
            if greatest is not None or metrics is not None:
                raise PrivacyError("run plan: noise_at_most and metrics are for a plan with a mechanism")
            return
        if type(greatest) is not float or not mechanism.noise_multiplier <= greatest < math.inf:
            raise PrivacyError("run plan: noise_at_most is a finite float, no less than the mechanism's noise")
        if metrics is not None and metrics != make_metrics_mechanism(mechanism, metrics.noise_multiplier):
            raise PrivacyError("run plan: metrics look at each unit once, and at the units of the mechanism")

    @property
    def mechanisms(self) -> tuple[Mechanism, ...]:
        """The noise on updates and on measures, as far as there is any."""
        return tuple(noise for noise in (self.mechanism, self.metrics) if noise is not None)


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """What is fixed for a whole run.

    Attributes:
        rounds: Most rounds.
        local_steps: Optimizer steps of a node in a round; with a mechanism, its steps.
        noise: How nodes add noise.
        codec: Name of the codec of the updates, 1 to 200 characters.
        density: Share of the coordinates that travel, in (0, 1]; None where the codec has no such number.
        recipe: How model and training are made (`protocol.recipe`), for nodes that are not told otherwise; at most
            20,000 characters, empty where they know.

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
        if type(self.recipe) is not str or len(self.recipe) > _MAX_RECIPE or not _is_unicode(self.recipe):
            raise PrivacyError(f"run plan: recipe is a text of at most {_MAX_RECIPE} characters")
        if self.noise.max_participations > self.rounds:
            raise PrivacyError(f"run plan: {self.noise.max_participations} turns in {self.rounds} rounds")
        mechanism = self.noise.mechanism
        if mechanism is not None and mechanism.steps != self.local_steps:
            raise PrivacyError(
                f"run plan: {self.local_steps} local steps, yet the mechanism accounts for {mechanism.steps}"
            )

    def to_fields(self) -> dict[str, Any]:
        """The definition as names and JSON values, all on one level, as plans and `run.json` hold it."""
        fields = {name: getattr(self, name) for name in _OWN} | {
            written: getattr(self.noise, name) for name, written in _NOISE.items()
        }
        return fields | {name: dict(fields[name].to_fields()) for name in _MECHANISMS if fields[name] is not None}

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> "RunSpec":
        """Read what `to_fields` gave, from a stranger too.

        Raises:
            PrivacyError: A field is missing, unknown or out of bounds.
        """
        if fields.keys() != FIELDS:
            odd = ", ".join(sorted(FIELDS ^ fields.keys()))
            raise PrivacyError(f"run plan: missing or unknown fields: {odd[:200]}")
        read = dict(fields)
        for name in _MECHANISMS:
            if read[name] is not None:
                if not isinstance(read[name], dict):
                    raise PrivacyError(f"run plan: {name} is a mapping, or null")
                read[name] = Mechanism.from_fields(read[name])
        noise = NoisePlan(**{name: read[written] for name, written in _NOISE.items()})
        return cls(noise=noise, **{name: read[name] for name in _OWN})


_OWN: Final = ("rounds", "local_steps", "codec", "density", "recipe")
_MECHANISMS: Final = ("mechanism", "metrics")
_NOISE: Final = MappingProxyType(
    {
        "max_participations": "turns",
        "mechanism": "mechanism",
        "max_noise_multiplier": "noise_at_most",
        "metrics": "metrics",
    }
)
"""Fields of `NoisePlan`, and their names in plans, logs and files, which stay what they were first."""

FIELDS: Final = frozenset((*_OWN, *_NOISE.values()))
"""Names of what `RunSpec.to_fields` gives."""


def check_count(name: str, number: object) -> None:
    """Raise PrivacyError for what is no whole number from 1 to 2^31 - 1."""
    if type(number) is not int or not 1 <= number <= MAX_NUMBER:
        raise PrivacyError(f"run plan: {name} is a whole number from 1 to {MAX_NUMBER}")


def check_name(name: str, text: object) -> None:
    """Raise PrivacyError for what is no short printable text."""
    if type(text) is not str or not 0 < len(text) <= _MAX_NAME or not text.isprintable():
        raise PrivacyError(f"run plan: {name} is a text of 1 to {_MAX_NAME} printable characters")


def _is_unicode(text: str) -> bool:
    """Whether the text has no half of a surrogate pair, which no encoding can write."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
