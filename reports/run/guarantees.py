"""What a run's files say of its privacy: the guarantee for each unit of a site, and the one for whole nodes."""

import math
from dataclasses import dataclass
from typing import Any

from fedglm.privacy.accounting.statement import client_guarantee
from fedglm.reports.formats import ABSENT, significant
from fedglm.run_folder.record import RunRecord, count, number

_NODES = client_guarantee(1.0, 0.1).partition(":")[0] + ":"
"""How the sentence on whole nodes starts, in every run's statement."""


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
    epsilon = number(run.summary.get("client_epsilon"))
    if epsilon is None or not math.isfinite(epsilon) or epsilon < 0:
        return None
    found = run.summary.get("client_mechanism")
    mechanism: dict[str, Any] = found if isinstance(found, dict) else {}
    sigma, norm, rate = (_positive(mechanism.get(k)) for k in ("noise_multiplier", "clipping_norm", "sampling_rate"))
    nodes, delta = count(run.summary.get("nodes")), _positive(run.summary.get("client_delta"))
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


def statements(text: str) -> tuple[str, str]:
    """A run's statement in its two parts: on what the sites send, and on whole nodes; one may be empty."""
    sites, found, nodes = text.partition(_NODES)
    return sites.strip(), found + nodes
