"""The record of a search: plain values for ``--json``, for ``light.json`` and for the page beside a release."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import torch

from fedglm.autoglm.data.examples import Examples
from fedglm.autoglm.light.search.comparison import Row
from fedglm.autoglm.light.search.costs import measure_memory
from fedglm.autoglm.light.search.lightening import Lightened
from fedglm.autoglm.light.search.measures import Loss, find_rise, find_rise_error, measure_loss
from fedglm.autoglm.light.search.packaging import name_phases, to_numpy
from fedglm.autoglm.light.search.repair import Repair
from fedglm.autoglm.light.search.sources import DenseModel
from fedglm.autoglm.light.search.trials import Control, Trial
from fedglm.inference.device.latency_table import Latency

RECORD: Final = "light.json"
PAGE: Final = "light.html"
_NOT_MEASURED: Final = ("power", "other devices than this one: fedglm validate RELEASE there")


@dataclass(frozen=True, eq=False, kw_only=True)
class OwnText:
    """The held-out records of the run that trained a model, where they may be looked at.

    Attributes:
        examples: The records; None where they may not be.
        reason: Why not, or what was left out; empty otherwise.
    """

    examples: Examples | None = None
    reason: str = ""

    @classmethod
    def without(cls, examples: Examples, text: Examples) -> Self:
        """Leave out sequences that are in another text too: what a model was fitted to measures nothing."""
        seen = set(_list_sequences(text))
        kept = [row for row, sequence in enumerate(_list_sequences(examples)) if sequence not in seen]
        gone = len(examples) - len(kept)
        if not gone:
            return cls(examples=examples)
        if not kept:
            return cls(reason="all of them are in the public text too")
        return cls(examples=examples.select(kept), reason=f"{gone} that are in the public text too were left out")


def _list_sequences(examples: Examples) -> list[bytes]:
    rows = zip(examples.input_ids.to(torch.int64), examples.lengths.tolist(), strict=True)
    return [ids[:length].numpy().tobytes() for ids, length in rows]


def measure_own(result: Lightened, own: Examples) -> dict[str, tuple[Loss, float]]:
    """Measure the dense model, the controls and the chosen model on the run's own held-out records.

    Args:
        result: What came of the search.
        own: The records.

    Returns:
        The loss of each by its name in the table, and how much worse it is than its control (`measures.find_rise`).
    """
    task, chosen, losses = result.bench.source.task, result.chosen, dict[str, Loss]()
    for row in result.rows:
        if row.model is not None:
            losses[row.name] = measure_loss(row.model, task, own, None)
        elif chosen is not None and row.light is chosen.light:
            losses[row.name] = measure_loss(chosen.light.quantized.reference, task, own, chosen.light.vocabulary)
    first, *_, last = [name for name in losses if name.startswith("control")] * 2
    return {
        name: (loss, find_rise(task, loss, losses[first if name in ("dense", first) else last]))
        for name, loss in losses.items()
    }


def make_record(
    dense: DenseModel, result: Lightened, *, seconds: float, origin: str, own: OwnText | None = None
) -> dict[str, Any]:
    """Collect what a search came to; None where something was not measured.

    Args:
        dense: The dense model.
        result: What came of it.
        seconds: Wall time of it all.
        origin: Where the text comes from, in words.
        own: The held-out records of the run; None for a model without one.
    """
    owns = measure_own(result, own.examples) if own is not None and own.examples is not None else {}
    timings = result.clock.time({row.name: to_numpy(row.light) for row in result.rows if row.light is not None})
    chosen = result.chosen
    memory = None if result.folder is None else measure_memory(result.folder)
    size, allowed = chosen and result.size, result.plan.goals.bytes_allowed(result.reference_bytes)
    return {
        "goals": result.plan.goals.describe(),
        "goal_ratio": result.reference_bytes / allowed if allowed else None,
        "tolerance": result.plan.goals.tolerance,
        "met": chosen is not None,
        "name": chosen.recipe.name if chosen else None,
        "bytes": size.bytes if size else None,
        "reference_bytes": result.reference_bytes,
        "size_ratio": size.size_ratio if size else None,
        "loss": chosen.quality.loss if chosen else None,
        "control_loss": _find_control(result).quality.loss,
        "dense_loss": result.bench.dense.loss,
        "loss_rise": chosen.loss_rise if chosen else None,
        "metric": dense.task.metric,
        "rise_error": find_rise_error(dense.task, result.bench.control.quality),
        "stages": _list_stages(chosen, repaired=result.repair.kept if result.repair else False) if chosen else [],
        "rows": [_describe_row(row, result, timings, memory, owns.get(row.name)) for row in result.rows],
        "own_records": own.reason if own is not None else None,
        "frontier": [_describe_trial(trial, result.reference_bytes) for trial in result.frontier],
        "nearest": _describe_trial(result.nearest, result.reference_bytes) if result.nearest else None,
        "left_out": [{"name": one.name, "excess": one.excess} for one in result.left_out],
        "repair": _describe_repair(result.repair) if result.repair else None,
        "layers": [layer.model_dump() for layer in chosen.light.quantized.report.layers] if chosen else [],
        "files": dict(size.files) if size else {},
        "privacy": _describe_privacy(dense.summary),
        "text": origin,
        "seed": result.plan.seed,
        "steps": result.plan.training.steps,
        "seconds": seconds,
        "interrupted": result.interrupted,
        "models_made": result.bench.cache.made,
        "models_from_cache": result.bench.cache.found,
        "device": result.clock.device,
        "times": result.clock.basis,
        "formats": _name_formats(result, chosen) if chosen else None,
        "versions": dict(result.facts.versions) if result.facts else {},
        "not_measured": list(_NOT_MEASURED),
        "limits": list(result.facts.limits) if result.facts else [],
    }


def _name_formats(result: Lightened, chosen: Trial) -> dict[str, str]:
    model = to_numpy(chosen.light)
    return name_phases(model, result.clock.choose_phases(model))


def _find_control(result: Lightened) -> Control:
    """Return the control of the chosen model, which is trained by now."""
    bench = result.bench
    return bench.control if result.chosen is None else bench.find_control(result.chosen.recipe, lambda *_: None)


def _describe_repair(found: Repair) -> dict[str, Any]:
    before, after = found.before, found.after
    return {
        "min_cosine": found.min_cosine,
        "deviating": list(found.deviating),
        "way": found.way,
        "layers": list(found.layers),
        "kept": found.kept,
        "outcome": found.outcome,
        "loss_before": before.quality.loss,
        "loss_after": after.quality.loss if after else None,
        "bytes_before": before.bytes,
        "bytes_after": after.bytes if after else None,
    }


def _list_stages(trial: Trial, *, repaired: bool) -> list[str]:
    recipe = trial.recipe
    stages = ["adapt to the public text"]
    if recipe.vocabulary is not None:
        stages.append("cut the vocabulary")
    if recipe.pruning is not None:
        stages.append("prune")
    if recipe.recovery is not None:
        stages.append("recover by distillation")
    if recipe.fold_norms:
        stages.append("fold norms")
    stages.append("quantize")
    if recipe.quantization.qat is not None:
        stages.append("train quantized, distilled from the dense model")
    if repaired:
        stages.append("repair layers that deviate")
    return [*stages, "pack", "verify"]


def _describe_row(
    row: Row,
    result: Lightened,
    timings: Mapping[str, Latency],
    memory: int | None,
    own: tuple[Loss, float] | None,
) -> dict[str, Any]:
    quality, timing = row.quality, timings.get(row.name)
    is_chosen = result.chosen is not None and row.light is result.chosen.light
    size = result.size.bytes if is_chosen and result.size else row.bytes
    return {
        "name": row.name,
        "bytes": size,
        "size_ratio": result.reference_bytes / size,
        "bits_per_weight": 8 * size / row.parameters,
        "parameters": row.parameters,
        "loss": quality.loss,
        "deviation": quality.deviation,
        "count": quality.count,
        "metric_value": quality.metric,
        "loss_rise": row.loss_rise,
        "kl_mean": quality.kl_mean,
        "kl_99": quality.kl_99,
        "agreement": quality.agreement,
        "unknown": quality.unknown,
        "own_loss": own[0].loss if own else None,
        "own_metric_value": own[0].metric if own else None,
        "own_deviation": own[0].deviation if own else None,
        "own_count": own[0].count if own else None,
        "own_loss_rise": own[1] if own else None,
        "decode_ms": timing.decode_ms if timing else None,
        "prefill_ms": timing.prefill_ms if timing else None,
        "peak_bytes": memory if is_chosen else None,
    }


def _describe_trial(trial: Trial, reference_bytes: int) -> dict[str, Any]:
    return {
        "name": trial.recipe.name,
        "bytes": trial.bytes,
        "size_ratio": reference_bytes / trial.bytes,
        "loss_rise": trial.loss_rise,
        "in_full": trial.in_full,
    }


def _describe_privacy(summary: Mapping[str, Any]) -> str:
    epsilon, delta = summary.get("epsilon"), summary.get("delta")
    if isinstance(epsilon, int | float) and isinstance(delta, int | float):
        return (
            f"The run that trained the model spent epsilon {epsilon:.3g} at delta {delta:.3g}. Making it light used no "
            "record of any site: it is post-processing and adds nothing to that."
        )
    return (
        "The model was trained without differential privacy, or its run is unknown: nothing bounds what it reveals of "
        "its training records. Making it light used none of them."
    )
