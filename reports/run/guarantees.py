"""Privacy guarantees read from a run's files: for each unit of a site, and for whole nodes."""

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
    state_client_guarantee,
)
from fedglm.reports.formats import ABSENT, format_number
from fedglm.run_folder.record import RunRecord, count, epsilon_of, number


@dataclass(frozen=True)
class NodeGuarantee:
    """Guarantee for whole nodes: the server's noise protects each of them against whoever sees the models.

    Attributes:
        epsilon: Privacy loss of each node over the whole run.
        delta: Delta at which epsilon is guaranteed.
        noise_multiplier: Standard deviation of the noise on a round's sum, in clipping norms.
        clipping_norm: Maximum L2 norm of a node's update in a round.
        sampling_rate: Probability that a node takes part in a round.
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
        """Whether the guarantee holds only while nobody but the server learns who took part in a round."""
        return self.sampling_rate is None or self.sampling_rate < 1


def read_node_guarantee(run: RunRecord) -> NodeGuarantee | None:
    """Read the guarantee for whole nodes; None where there is none (an infinite epsilon is none)."""
    return _parse_node_guarantee(run.summary)


def _parse_node_guarantee(summary: Mapping[str, Any]) -> NodeGuarantee | None:
    epsilon = number(summary.get("client_epsilon"))
    if epsilon is None or not math.isfinite(epsilon) or epsilon < 0:
        return None
    recorded = summary.get("client_mechanism")
    mechanism: dict[str, Any] = recorded if isinstance(recorded, dict) else {}
    sigma, norm, rate = (_positive(mechanism.get(k)) for k in ("noise_multiplier", "clipping_norm", "sampling_rate"))
    nodes, delta = count(summary.get("nodes")), _positive(summary.get("client_delta"))
    return NodeGuarantee(epsilon, delta, sigma, norm, rate, nodes if nodes and nodes > 0 else None)


def _positive(value: object) -> float | None:
    as_float = number(value)
    return as_float if as_float is not None and math.isfinite(as_float) and as_float > 0 else None


def is_noised(run: RunRecord) -> bool:
    """Return whether nodes or server added noise, so that repeating the run gives another result."""
    return run.epsilon is not None or run.epsilon_limit is not None or read_node_guarantee(run) is not None


def format_delta(delta: float | None) -> str:
    """Format a delta as it is written in settings: 0.001, 6e-05."""
    return ABSENT if delta is None else f"{delta:g}"


def describe_epsilons(run: RunRecord) -> str:
    """Describe the epsilon spent, for each kind of guarantee; empty without noise."""
    nodes = read_node_guarantee(run)
    kinds = [
        (run.epsilon, number(run.summary.get("delta")), "each unit of a site"),
        *([(nodes.epsilon, nodes.delta, "each whole node")] if nodes else []),
    ]
    return ", ".join(
        f"epsilon {format_number(epsilon, 3)} at delta {format_delta(delta)} for {whose}"
        for epsilon, delta, whose in kinds
        if epsilon is not None
    )


def read_statements(summary: Mapping[str, Any], settings: Mapping[str, Any]) -> list[Statement]:
    """Read a run's privacy statements: on what the sites send, then on whole nodes if there is such a guarantee.

    Runs of earlier versions have one text without codes: for those, the guarantees are derived from the figures.

    Args:
        summary: Contents of the run's `summary.json`; not trusted.
        settings: Settings of its scenario, or empty.
    """
    recorded = summary.get("guarantees")
    entries = recorded if isinstance(recorded, list) else []
    coded = [Statement(each["code"], each["detail"]) for each in entries if _is_statement(each)]
    return coded or _derive_from_figures(summary, settings)


def _is_statement(entry: object) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(name), str) for name in ("code", "detail"))


def _derive_from_figures(summary: Mapping[str, Any], settings: Mapping[str, Any]) -> list[Statement]:
    nodes, stated = _parse_node_guarantee(summary), []
    text = str(summary.get("privacy") or "").removeprefix(f"{TITLES[Guarantee.UNITS]}: ")
    of_nodes = None
    if nodes is not None and nodes.delta is not None:
        of_nodes = state_client_guarantee(_configured_epsilon(settings, "client_privacy") or nodes.epsilon, nodes.delta)
    if epsilon_of(summary) is not None:
        detail = text if of_nodes is None else text.removesuffix(of_nodes.text).rstrip()
        stated = [Statement(Guarantee.UNITS, detail)] if detail else []
    elif nodes is not None:
        stated = [NO_GUARANTEE_AGAINST_SERVER]
    elif _configured_epsilon(settings, "privacy") is None:
        stated = [NO_GUARANTEE]
    return stated if of_nodes is None else [*stated, of_nodes]


def _configured_epsilon(settings: Mapping[str, Any], section: str) -> float | None:
    """Return the epsilon in a section of the scenario; None where there is none."""
    values = settings.get(section)
    return _positive(values.get("epsilon")) if isinstance(values, dict) else None


def mark_unnoised(run: RunRecord) -> str:
    """Return a note for a baseline that it was trained without noise; empty where the run has none either."""
    return ", without noise" if is_noised(run) else ""
