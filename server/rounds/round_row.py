"""What a round leaves in `rounds.jsonl`."""

import math
from typing import TYPE_CHECKING

from fedglm.server.aggregation.fixed_point import compute_public_weights
from fedglm.server.rounds.round import Round
from fedglm.server.run_setup import Plan, Row

if TYPE_CHECKING:  # else a server that measures nothing would wait for torch
    from fedglm.autoglm.tasks.evaluation import Evaluation


def round_row(
    plan: Plan,
    rows: list[Row],
    done: Round,
    *,
    sampled: int,
    counted: dict[str, float],
    evaluation: "Evaluation | None",
    is_step_taken: bool,
    wall_s: float,
) -> Row:
    """Describe a round.

    Args:
        plan: Of the run.
        rows: Of the rounds before.
        done: The round, conducted.
        sampled: Number of nodes that were asked.
        counted: What an update counted for, by name, where that is below 1.
        evaluation: Of the published model; None where nobody measures it.
        is_step_taken: Whether the model was changed.
        wall_s: Seconds that the round took.
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
    if counted:
        row["counted"] = counted
    if done.metrics:
        row["received_loss"] = _received_loss(done.metrics, plan.federation.weight_cap)
    if not is_step_taken:
        row["step_taken"] = False
    row |= {"client_epsilon": None} if plan.client_privacy is None else plan.client_privacy.make_row_fields(rows)
    row |= {"wall_s": round(wall_s, 3), "virtual_s": None}
    return row


def _received_loss(metrics: list[dict[str, float]], cap: float) -> float:
    """Mean over the nodes of the loss of the model that they received."""
    # By counts that are bounded like declared ones, or one node's word would be the mean.
    counts = {str(index): int(entry["count"]) for index, entry in enumerate(metrics)}
    weights = compute_public_weights(counts, cap).values()
    losses = [entry["loss"] * weight for entry, weight in zip(metrics, weights, strict=True)]
    return math.fsum(losses) / math.fsum(weights)
