"""What a run may say of its privacy, in words that stay within what was done."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Guarantee(StrEnum):
    """What a run guarantees; its name in summaries."""

    NONE = "none"
    NONE_AGAINST_SERVER = "none-against-server"
    UNITS = "units"
    NODES = "nodes"


TITLES: dict[str, str] = {
    Guarantee.NONE: "No privacy guarantee",
    Guarantee.NONE_AGAINST_SERVER: "No privacy guarantee against the server",
    Guarantee.UNITS: "Differential privacy",
    Guarantee.NODES: "Differential privacy of whole nodes",
}
"""How the statement of each begins."""


@dataclass(frozen=True)
class Statement:
    """A sentence that a run must show beside its figures.

    Attributes:
        code: What is guaranteed; another word in the summary of a later version.
        detail: All but the title.
    """

    code: str
    detail: str

    @property
    def text(self) -> str:
        """Title and detail."""
        title = TITLES.get(self.code)
        return f"{title}: {self.detail}" if title else self.detail


def summary_fields(statements: Sequence[Statement]) -> dict[str, Any]:
    """Statements as a run's summary holds them: in words for people, and each with its code."""
    return {
        "privacy": " ".join(statement.text for statement in statements),
        "guarantees": [{"code": str(statement.code), "detail": statement.detail} for statement in statements],
    }


NO_GUARANTEE = Statement(
    Guarantee.NONE,
    "this run adds no noise. The server sees each node's update, and updates can reveal training records, coded or "
    "not.",
)

NO_GUARANTEE_AGAINST_SERVER = Statement(
    Guarantee.NONE_AGAINST_SERVER, "the sites add no noise, and the server sees each node's update."
)


def guarantee(epsilon: float, delta: float, unit: str) -> Statement:
    """What a run with noise states."""
    return Statement(
        Guarantee.UNITS,
        f"all that leaves a site in the run is private at epsilon {epsilon:.3g} and delta {delta:.1g} for each {unit}, "
        "added or removed, against the server, other sites and outsiders, as long as the site's own software and host "
        "are honest. Somebody with data at several sites adds their epsilons up.",
    )


def client_guarantee(epsilon: float, delta: float) -> Statement:
    """What a run whose server adds noise states."""
    return Statement(
        Guarantee.NODES,
        f"the models of all rounds are private at epsilon {epsilon:.3g} and delta {delta:.1g} for all that one node "
        "holds, the node added or removed, against whoever sees the models, as long as the server is honest, which "
        "sees each update and adds the noise, and keeps to itself who took part in a round and what the run's records "
        "say. Other runs with the same nodes add up.",
    )
