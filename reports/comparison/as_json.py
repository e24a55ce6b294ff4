"""A comparison as JSON: for each codec what it came to over the seeds, and every run by itself."""

from typing import Any

from fedglm.reports.comparison.formats import times_fewer
from fedglm.reports.comparison.peers import stands_for
from fedglm.reports.comparison.to_target import Comparison, SeedRun, Spread, Standing, Way
from fedglm.reports.run.guarantees import node_guarantee

_WAYS: dict[str, Way] = {"uplink": "up", "downlink": "down", "roundtrip": "total"}


def comparison_json(found: Comparison) -> dict[str, Any]:
    """The comparison as plain values.

    Under each codec a plain figure is the mean over the seeds, and `..._range` holds the least and the greatest. What
    is said of the target (`..._to_target`, `..._times_fewer`, `rounds_of_...`) is over the seeds that reached it, which
    `seeds_reached` counts; `..._times_fewer` is a geometric mean. `runs` holds the same for each seed.
    """
    target = found.target
    return {
        "tolerance": found.tolerance,
        "metric": found.standings[0].run.metric,
        "seeds": [trial.run.summary.get("seed") for trial in found.standings[0].trials],
        "baseline": found.standings[0].label,
        "target_loss": target.mean if target else None,
        "codecs": [_codec(standing) for standing in found.standings],
    }


def _codec(standing: Standing) -> dict[str, Any]:
    metric = standing.run.metric
    figures: dict[str, Spread | None] = {
        "loss": standing.over_seeds(lambda trial: trial.run.final.loss),
        "best_loss": standing.over_seeds(lambda trial: trial.best_loss),
        metric: standing.over_seeds(lambda trial: trial.run.final.metric),
        "uplink_bytes": standing.over_seeds(lambda trial: trial.run.traffic.up),
        "downlink_bytes": standing.over_seeds(lambda trial: trial.run.traffic.down),
        "bytes": standing.over_seeds(lambda trial: trial.run.traffic.total),
        "rounds_to_target": standing.rounds_to_target,
        "rounds_of_baseline_to_target": standing.over_seeds(lambda trial: trial.of_rounds),
        "rounds_of_baseline_run": standing.over_seeds(lambda trial: trial.of_run),
        "uplink_bytes_to_target": standing.bytes_to_target("up"),
        "downlink_bytes_to_target": standing.bytes_to_target("down"),
        "bytes_to_target": standing.bytes_to_target("total"),
        "epsilon": standing.over_seeds(lambda trial: trial.run.epsilon),
        "client_epsilon": standing.over_seeds(_client_epsilon),
        **{f"{name}_times_fewer": times_fewer(standing.ratio(way)) for name, way in _WAYS.items()},
    }
    return {
        "label": standing.label,
        "codec": standing.run.text("codec"),
        "stands_for": stands_for(standing.run),
        "rounds": len(standing.run.rounds),
        "seeds_reached": standing.reached,
        **{name: spread.mean if spread else None for name, spread in figures.items()},
        **{f"{name}_range": [spread.low, spread.high] if spread else None for name, spread in figures.items()},
        "runs": [_run(trial) for trial in standing.trials],
    }


def _run(trial: SeedRun) -> dict[str, Any]:
    run, reached = trial.run, trial.reached
    ratios = {name: trial.ratio(way) for name, way in _WAYS.items()}
    return {
        "seed": run.summary.get("seed"),
        "folder": str(trial.folder),
        "target_loss": trial.target,
        "loss": run.final.loss,
        "best_loss": trial.best_loss,
        run.metric: run.final.metric,
        "rounds": len(run.rounds),
        "uplink_bytes": run.traffic.up,
        "downlink_bytes": run.traffic.down,
        "bytes": run.traffic.total,
        "epsilon": run.epsilon,
        "client_epsilon": _client_epsilon(trial),
        "rounds_to_target": reached.round if reached else None,
        "rounds_of_baseline_to_target": trial.of_rounds,
        "rounds_of_baseline_run": trial.of_run,
        "uplink_bytes_to_target": reached.traffic.up if reached else None,
        "downlink_bytes_to_target": reached.traffic.down if reached else None,
        "bytes_to_target": reached.traffic.total if reached else None,
        **{f"{name}_times_fewer": 1 / ratio if ratio else None for name, ratio in ratios.items()},
    }


def _client_epsilon(trial: SeedRun) -> float | None:
    nodes = node_guarantee(trial.run)
    return nodes.epsilon if nodes else None
