"""Statements of a run's privacy guarantee, worded so that they claim no more than the run provides."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Guarantee(StrEnum):
    """Kinds of guarantees; the values are the codes in summaries."""

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
"""Title of each kind's statement."""


@dataclass(frozen=True)
class Statement:
    """A statement of the guarantee that a run must show beside its results.

    Attributes:
        code: Code of the guarantee, a `Guarantee`; the summary of a later version may have others.
        detail: Text without the title.
    """

    code: str
    detail: str

    @property
    def text(self) -> str:
        """Text of title and detail."""
        title = TITLES.get(self.code)
        return f"{title}: {self.detail}" if title else self.detail


def make_summary_fields(statements: Sequence[Statement]) -> dict[str, Any]:
    """Make the fields of a run's summary: all statements as one text, and each with its code."""
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


def state_unit_guarantee(epsilon: float, delta: float, unit: str) -> Statement:
    """Make the statement of a run whose sites add noise."""
    return Statement(
        Guarantee.UNITS,
        f"all that leaves a site in the run is private at epsilon {epsilon:.3g} and delta {delta:.1g} for each {unit}, "
        "added or removed, against the server, other sites and outsiders, as long as the site's own software and host "
        "are honest. Somebody with data at several sites adds their epsilons up.",
    )


def state_client_guarantee(epsilon: float, delta: float) -> Statement:
    """Make the statement of a run whose server adds noise."""
    return Statement(
        Guarantee.NODES,
        f"the models of all rounds are private at epsilon {epsilon:.3g} and delta {delta:.1g} for all that one node "
        "holds, the node added or removed, against whoever sees the models, as long as the server is honest, which "
        "sees each update and adds the noise, and keeps to itself who took part in a round and what the run's records "
        "say. Other runs with the same nodes add up.",
    )
