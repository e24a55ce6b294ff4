"""The row of a round in `rounds.jsonl`."""

import math
from typing import TYPE_CHECKING

from fedglm.server.aggregation.fixed_point import compute_public_weights
from fedglm.server.rounds.round import Round
from fedglm.server.run_setup import Plan, Row

if TYPE_CHECKING:  # else a server without evaluation would wait for the import of torch
    from fedglm.autoglm.tasks.evaluation import Evaluation


def make_round_row(
    plan: Plan,
    rows: list[Row],
    done: Round,
    *,
    sampled: int,
    contributions: dict[str, float],
    evaluation: "Evaluation | None",
    is_step_taken: bool,
    wall_s: float,
) -> Row:
    """Make the row of a finished round.

    Args:
        plan: Plan of the run.
        rows: Rows of the rounds before.
        done: Finished round.
        sampled: Number of sampled nodes.
        contributions: Share of a node's update that entered the mean, by name of the node; only those below 1.
        evaluation: Evaluation of the published model; None without one.
        is_step_taken: Whether the model was changed.
        wall_s: Duration of the round in seconds.
    """
    row: Row = {
        "round": done.number,
        "loss": evaluation.loss if evaluation else None,
        plan.metric: evaluation.metric if evaluation else None,
        "uplink_bytes": done.traffic.uplink,
        "downlink_bytes": done.traffic.downlink,
        "dense_uplink_bytes": done.traffic.dense_uplink,
        "dense_downlink_bytes": done.traffic.dense_downlink,
        "nodes_sampled": sampled,
        "nodes_accepted": len(done.accepted),
        "nodes_rejected": len(done.faults),
        "rejections": dict(sorted(done.faults.items())),
        "epsilon": plan.epsilon(),
    }
    if done.absent:
        row["absent"] = sorted(done.absent)
    if done.revoked:
        row["revoked"] = sorted(done.revoked)
    if contributions:
        row["counted"] = contributions
    if done.metrics:
        row["received_loss"] = _average_received_loss(done.metrics, plan.federation.weight_cap)
    if not is_step_taken:
        row["step_taken"] = False
    row |= {"client_epsilon": None} if plan.client_privacy is None else plan.client_privacy.make_row_fields(rows)
    row |= {"wall_s": round(wall_s, 3), "virtual_s": None}
    return row


def _average_received_loss(metrics: list[dict[str, float]], cap: float) -> float:
    """Average the nodes' losses of the received model."""
    # Weighted by counts that are bounded like declared ones: else a single node could determine the mean.
    counts = {str(index): int(entry["count"]) for index, entry in enumerate(metrics)}
    weights = compute_public_weights(counts, cap).values()
    losses = [entry["loss"] * weight for entry, weight in zip(metrics, weights, strict=True)]
    return math.fsum(losses) / math.fsum(weights)
