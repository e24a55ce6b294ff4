"""A comparison as JSON: the results of each codec over the seeds, and of every run."""

from typing import Any

from fedglm.reports.comparison.formats import invert_ratio
from fedglm.reports.comparison.peers import describe_method
from fedglm.reports.comparison.to_target import CodecResult, Comparison, Direction, SeedRun, Spread
from fedglm.reports.run.guarantees import read_node_guarantee

_DIRECTIONS: dict[str, Direction] = {"uplink": "up", "downlink": "down", "roundtrip": "total"}


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """Return the comparison as values that JSON can represent.

    For each codec, a plain key is the mean over the seeds, and `..._range` its minimum and maximum. Figures on the
    target (`..._to_target`, `..._times_fewer`, `rounds_of_...`) are taken over the seeds that reached it, which
    `seeds_reached` counts; `..._times_fewer` is a geometric mean. `runs` has the figures of each seed.
    """
    target = comparison.target
    return {
        "tolerance": comparison.tolerance,
        "metric": comparison.codecs[0].run.metric,
        "seeds": [seed_run.run.summary.get("seed") for seed_run in comparison.codecs[0].seed_runs],
        "baseline": comparison.codecs[0].label,
        "target_loss": target.mean if target else None,
        "codecs": [_codec_values(codec) for codec in comparison.codecs],
    }


def _codec_values(codec: CodecResult) -> dict[str, Any]:
    metric = codec.run.metric
    figures: dict[str, Spread | None] = {
        "loss": codec.over_seeds(lambda each: each.run.final.loss),
        "best_loss": codec.over_seeds(lambda each: each.best_loss),
        metric: codec.over_seeds(lambda each: each.run.final.metric),
        "uplink_bytes": codec.over_seeds(lambda each: each.run.traffic.uplink),
        "downlink_bytes": codec.over_seeds(lambda each: each.run.traffic.downlink),
        "bytes": codec.over_seeds(lambda each: each.run.traffic.total),
        "rounds_to_target": codec.rounds_to_target,
        "rounds_of_baseline_to_target": codec.over_seeds(lambda each: each.rounds_over_baseline),
        "rounds_of_baseline_run": codec.over_seeds(lambda each: each.rounds_over_baseline_run),
        "uplink_bytes_to_target": codec.bytes_to_target("up"),
        "downlink_bytes_to_target": codec.bytes_to_target("down"),
        "bytes_to_target": codec.bytes_to_target("total"),
        "epsilon": codec.over_seeds(lambda each: each.run.epsilon),
        "client_epsilon": codec.over_seeds(_client_epsilon),
        **{f"{name}_times_fewer": invert_ratio(codec.ratio(direction)) for name, direction in _DIRECTIONS.items()},
    }
    return {
        "label": codec.label,
        "codec": codec.run.text("codec"),
        "stands_for": describe_method(codec.run),
        "rounds": len(codec.run.rounds),
        "seeds_reached": codec.reached,
        **{name: spread.mean if spread else None for name, spread in figures.items()},
        **{f"{name}_range": [spread.low, spread.high] if spread else None for name, spread in figures.items()},
        "runs": [_run_values(seed_run) for seed_run in codec.seed_runs],
    }


def _run_values(seed_run: SeedRun) -> dict[str, Any]:
    run, reached = seed_run.run, seed_run.reached
    ratios = {name: seed_run.ratio(direction) for name, direction in _DIRECTIONS.items()}
    return {
        "seed": run.summary.get("seed"),
        "folder": str(seed_run.folder),
        "target_loss": seed_run.target,
        "loss": run.final.loss,
        "best_loss": seed_run.best_loss,
        run.metric: run.final.metric,
        "rounds": len(run.rounds),
        "uplink_bytes": run.traffic.uplink,
        "downlink_bytes": run.traffic.downlink,
        "bytes": run.traffic.total,
        "epsilon": run.epsilon,
        "client_epsilon": _client_epsilon(seed_run),
        "rounds_to_target": reached.round if reached else None,
        "rounds_of_baseline_to_target": seed_run.rounds_over_baseline,
        "rounds_of_baseline_run": seed_run.rounds_over_baseline_run,
        "uplink_bytes_to_target": reached.traffic.uplink if reached else None,
        "downlink_bytes_to_target": reached.traffic.downlink if reached else None,
        "bytes_to_target": reached.traffic.total if reached else None,
        **{f"{name}_times_fewer": 1 / ratio if ratio else None for name, ratio in ratios.items()},
    }


def _client_epsilon(seed_run: SeedRun) -> float | None:
    nodes = read_node_guarantee(seed_run.run)
    return nodes.epsilon if nodes else None
