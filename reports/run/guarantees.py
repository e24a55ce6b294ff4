"""What a run's files say of its privacy: the guarantee for each unit of a site, and the one for whole nodes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedglm.privacy.accounting.statement import (
    NO_GUARANTEE,
    NO_GUARANTEE_AGAINST_SERVER,
    TITLES,
    Guarantee,
    Statement,
    client_guarantee,
)
from fedglm.reports.formats import ABSENT, significant
from fedglm.run_folder.record import RunRecord, count, epsilon_of, number


@dataclass(frozen=True)
class NodeGuarantee:
    """The guarantee for whole nodes: the server's noise protects each of them against whoever sees the models.

    Attributes:
        epsilon: Privacy loss of each node over the whole run.
        delta: Probability with which that may fail.
        noise_multiplier: Standard deviation of the noise on a round's sum, in clipping norms.
        clipping_norm: Greatest L2 norm of a node's update of a round.
        sampling_rate: Probability of each node to be in a round.
        nodes: Public number of nodes.
    """

    epsilon: float
    delta: float | None
    noise_multiplier: float | None
    clipping_norm: float | None
    sampling_rate: float | None
    nodes: int | None

    @property
    def noise_on_mean(self) -> float | None:
        """Standard deviation of the noise on each parameter of a round's mean update."""
        sigma, norm, rate, nodes = self.noise_multiplier, self.clipping_norm, self.sampling_rate, self.nodes
        return sigma * norm / (rate * nodes) if sigma and norm and rate and nodes else None

    @property
    def counts_on_secret_samples(self) -> bool:
        """Whether it holds only as long as nobody learns who took part in a round."""
        return self.sampling_rate is None or self.sampling_rate < 1


def node_guarantee(run: RunRecord) -> NodeGuarantee | None:
    """The guarantee for whole nodes; None where the run gives none (an infinite epsilon is none)."""
    return _node_guarantee(run.summary)


def _node_guarantee(summary: Mapping[str, Any]) -> NodeGuarantee | None:
    epsilon = number(summary.get("client_epsilon"))
    if epsilon is None or not math.isfinite(epsilon) or epsilon < 0:
        return None
    found = summary.get("client_mechanism")
    mechanism: dict[str, Any] = found if isinstance(found, dict) else {}
    sigma, norm, rate = (_positive(mechanism.get(k)) for k in ("noise_multiplier", "clipping_norm", "sampling_rate"))
    nodes, delta = count(summary.get("nodes")), _positive(summary.get("client_delta"))
    return NodeGuarantee(epsilon, delta, sigma, norm, rate, nodes if nodes and nodes > 0 else None)


def _positive(value: object) -> float | None:
    found = number(value)
    return found if found is not None and math.isfinite(found) and found > 0 else None


def is_noised(run: RunRecord) -> bool:
    """Whether nodes or server added noise, so that no two such runs are alike."""
    return run.epsilon is not None or node_guarantee(run) is not None


def delta_text(delta: float | None) -> str:
    """A delta as it is asked for: 0.001, 6e-05."""
    return ABSENT if delta is None else f"{delta:g}"


def epsilons(run: RunRecord) -> str:
    """What was spent, in a few words for each kind; empty without noise."""
    found = node_guarantee(run)
    kinds = [
        (run.epsilon, number(run.summary.get("delta")), "each unit of a site"),
        *([(found.epsilon, found.delta, "each whole node")] if found else []),
    ]
    return ", ".join(
        f"epsilon {significant(epsilon, 3)} at delta {delta_text(delta)} for {whose}"
        for epsilon, delta, whose in kinds
        if epsilon is not None
    )


def statements(summary: Mapping[str, Any], settings: Mapping[str, Any]) -> list[Statement]:
    """What a run states of its privacy: of what the sites send, then of whole nodes where there is such a guarantee.

    Runs of earlier versions wrote one text without codes: for those, what is guaranteed follows from the figures.

    Args:
        summary: Of the run, from its file perhaps.
        settings: Its scenario, or empty.
    """
    given = summary.get("guarantees")
    entries = given if isinstance(given, list) else []
    read = [Statement(each["code"], each["detail"]) for each in entries if isinstance(each, dict) and _is_whole(each)]
    return read or _from_figures(summary, settings)


def _is_whole(entry: dict[str, Any]) -> bool:
    return all(isinstance(entry.get(name), str) for name in ("code", "detail"))


def _from_figures(summary: Mapping[str, Any], settings: Mapping[str, Any]) -> list[Statement]:
    nodes, stated = _node_guarantee(summary), []
    whole = Statement(Guarantee.UNITS, str(summary.get("privacy") or "").removeprefix(f"{TITLES[Guarantee.UNITS]}: "))
    of_nodes = None
    if nodes is not None and nodes.delta is not None:
        of_nodes = client_guarantee(_asked(settings, "client_privacy") or nodes.epsilon, nodes.delta)
    if epsilon_of(summary) is not None:
        mine = whole.detail if of_nodes is None else whole.detail.removesuffix(of_nodes.text).rstrip()
        stated = [Statement(Guarantee.UNITS, mine)] if mine else []
    elif nodes is not None:
        stated = [NO_GUARANTEE_AGAINST_SERVER]
    elif _asked(settings, "privacy") is None:
        stated = [NO_GUARANTEE]
    return stated if of_nodes is None else [*stated, of_nodes]


def _asked(settings: Mapping[str, Any], section: str) -> float | None:
    """The epsilon that a scenario asks for."""
    found = settings.get(section)
    return _positive(found.get("epsilon")) if isinstance(found, dict) else None
