"""Summary of a finished deployed run: what its server knows. What is at the sites alone is not in it."""

import json
import math
from pathlib import Path
from typing import Any

from fedglm.autoglm.light.run_release.outcome import LightOutcome
from fedglm.privacy.accounting.statement import make_summary_fields
from fedglm.run_folder.names import DONE, LIGHT_RECORD, ROUNDS
from fedglm.run_folder.progress import read_view
from fedglm.run_folder.record import DEPLOYMENT
from fedglm.run_folder.rows import total_bytes
from fedglm.scenarios.deployment import BuiltModel, choose_delta, state_run_guarantees
from fedglm.scenarios.summary_fields import describe_coding, list_versions
from fedglm.server.deployment.run_evaluation import load_evaluation
from fedglm.server.deployment.run_file import RunFile, read_lines

Summary = dict[str, Any]


def summarize_deployed_run(
    built: BuiltModel, folder: Path, sites: int, superlink_bytes: tuple[int, int] | None
) -> Summary:
    """Summarize a finished run.

    Args:
        built: Model of the scenario.
        folder: Folder of the run.
        sites: Number of enrolled sites.
        superlink_bytes: The SuperLink's own count of bytes, uplink and downlink; None where it no longer answers.

    Returns:
        The content of `summary.json`. Loss and metric are there only where the server had held-out records; epsilon is
        in the sites' ledgers, so here is what it is at most.

    Raises:
        ProjectError: Files of the run are missing or damaged.
    """
    scenario = built.scenario
    rows, done = read_lines(folder / ROUNDS), json.loads((folder / DONE).read_text())
    totals, client = total_bytes(rows), scenario.client_privacy
    dense = totals["dense_uplink_bytes"] + totals["dense_downlink_bytes"]
    is_private = scenario.privacy.epsilon is not None
    summary = {
        "run": folder.name,
        "scenario": scenario.name,
        "seed": scenario.federation.seed,
        "rounds": done["rounds"],
        "sites": sites,
        "nodes": sites,
        "parameters": built.model.layout.size,
        **describe_coding(scenario),
        "metric": built.task.metric,
        "engine": DEPLOYMENT,
        "data": {"source": scenario.data.source, "task": built.task.kind, "classes": list(built.task.classes)},
        **make_summary_fields(state_run_guarantees(scenario, sites)),
        "epsilon_at_most": scenario.privacy.epsilon,
        "delta": choose_delta(scenario) if is_private else None,
        "client_epsilon": rows[-1].get("client_epsilon") if rows else None,
        "client_mechanism": rows[-1].get("client_mechanism") if rows else None,
        "client_delta": None if client.epsilon is None else client.compute_delta(sites),
        **_describe_results(built, folder, rows),
        **totals,
        "superlink_uplink_bytes": superlink_bytes and superlink_bytes[0],
        "superlink_downlink_bytes": superlink_bytes and superlink_bytes[1],
        "uplink_ratio": totals["uplink_bytes"] / (totals["dense_uplink_bytes"] or 1),
        "downlink_ratio": totals["downlink_bytes"] / (totals["dense_downlink_bytes"] or 1),
        "roundtrip_ratio": (totals["uplink_bytes"] + totals["downlink_bytes"]) / (dense or 1),
        "updates": sum(row["nodes_accepted"] for row in rows),
        "updates_left_out": sum(share == 0 for row in rows for share in row.get("counted", {}).values()),
        "participation": _count_participation(folder),
        "model_sha256": done["model_sha256"],
        "light": None,
        "wall_s": round(math.fsum(row["wall_s"] for row in rows), 1),
        "versions": list_versions(),
    }
    if scenario.model.light is not None and (outcome := LightOutcome.load(folder / LIGHT_RECORD)) is not None:
        summary["light"] = outcome.to_summary()
    return summary


def _describe_results(built: BuiltModel, folder: Path, rows: list[Summary]) -> Summary:
    """Return loss and metric before training, at the end and in the best round; nothing without held-out records."""
    evaluate, metric = load_evaluation(folder, RunFile.load(folder).evaluation_sha256), built.task.metric
    if evaluate is None or not rows:
        return {}
    initial = evaluate(built.model.initial)
    measured = [row for row in rows if row["loss"] is not None and math.isfinite(row["loss"])]
    best = min(measured, key=lambda row: row["loss"], default=None)
    return {
        "loss": rows[-1]["loss"],
        metric: rows[-1][metric],
        "initial": {"loss": initial.loss, metric: initial.metric},
        "best_round": best and {name: best[name] for name in ("round", "loss", metric)},
        "evaluated": initial.count,
    }


def _count_participation(folder: Path) -> list[Summary]:
    """Count each site's updates, by the events of the run."""
    sites = sorted(read_view(folder).sites.values(), key=lambda site: site.name)
    return [
        {"name": site.name, "accepted": site.answers, "rejected": site.rejected, "last_fault": site.last_fault}
        for site in sites
    ]
