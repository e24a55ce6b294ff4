"""What a light release says of itself: where it comes from, how it was made, what was measured and what was not."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final

from fedglm.autoglm.light.device.target_device import PROMPT_TOKENS, TargetDevice
from fedglm.autoglm.light.plan.lighten_plan import LightenPlan
from fedglm.autoglm.light.plan.plan_files import to_text
from fedglm.autoglm.light.plan.recipe import Recipe
from fedglm.autoglm.light.search.measures import Quality
from fedglm.autoglm.light.search.repair import Repair
from fedglm.autoglm.light.search.sources import DenseModel
from fedglm.autoglm.light.search.trials import Trial
from fedglm.inference.device.latency_table import Latency
from fedglm.inference.release.manifest import VERSION, Facts, Measure, Privacy

_VERSIONS: Final = ("fedglm", "torch", "transformers", "onnx")
_NOT_MEASURED: Final = ("power", "other languages than the text's", "harmful or biased output")
_REPAIRED: Final = "layers repaired, of those that deviate"
_WITHOUT: Final = "loss without the repair, nats"
_LIMITS: Final = ("no medical device: its output needs a person's judgement",)


@dataclass(frozen=True, eq=False, kw_only=True)
class Prediction:
    """What a device's table predicts of a model.

    Attributes:
        device: The device.
        latency: The times.
    """

    device: TargetDevice
    latency: Latency

    def list_measures(self) -> tuple[Measure, ...]:
        """Return the times as measures of a release, with no run behind them."""
        named = {"ms a token": self.latency.decode_ms, f"ms a prompt of {PROMPT_TOKENS}": self.latency.prefill_ms}
        return tuple(
            Measure(name=f"{name}, predicted", value=_round(value), n=0, seed=0) for name, value in named.items()
        )


def describe_release(
    dense: DenseModel,
    plan: LightenPlan,
    *,
    calibration_sha256: str,
    recipe: Recipe,
    trial: Trial | None,
    control: Quality | None,
    predicted: Prediction | None,
    repaired: Repair | None,
) -> Facts:
    """Collect the facts of a release.

    Args:
        dense: The model that was made light.
        plan: The plan; the release has the recipe that it came to, alone, without what is a default of its version.
        calibration_sha256: Hash (hex) of the public text.
        recipe: The recipe that it was made by.
        trial: The chosen candidate; None before there is one, which gives facts of the same length.
        control: Figures of the control; None before there are any.
        predicted: What the table of the plan's device predicts; None without a device.
        repaired: What the verification of the candidate came to; None before there was one.
    """
    measures = list(_draft_measures(dense, plan, is_repaired=_is_repaired(recipe, plan)))
    if trial is not None and control is not None:
        own = trial.quality
        measures = [
            Measure(
                name="loss, nats", value=_round(own.loss), n=own.count, seed=plan.seed, control=_round(control.loss)
            ),
            Measure(
                name=dense.task.metric,
                value=_round(own.metric),
                n=own.count,
                seed=plan.seed,
                control=_round(control.metric),
            ),
        ]
        if own.agreement is not None and own.kl_mean is not None:
            measures += [
                Measure(name="KL from dense, nats", value=_round(own.kl_mean), n=own.count, seed=plan.seed),
                Measure(name="top-1 agreement", value=_round(own.agreement), n=own.count, seed=plan.seed),
            ]
        if own.unknown:
            measures.append(Measure(name="unknown tokens", value=own.unknown, n=own.count, seed=plan.seed))
        if repaired is not None:
            measures += _measure_repair(repaired, plan)
    return Facts(
        name=f"{dense.folder.parent.name if dense.run else dense.folder.name} (light)",
        run=_describe_run(dense),
        privacy=_describe_privacy(dense.summary),
        settings=to_text(plan.model_copy(update={"candidates": (recipe,), "repair": False}), with_defaults=False),
        calibration_sha256=base64.urlsafe_b64encode(bytes.fromhex(calibration_sha256)).decode().rstrip("="),
        measures=(*measures, *(predicted.list_measures() if predicted else ())),
        not_measured=(*_NOT_MEASURED, *([f"any time on {predicted.device.name}"] if predicted else [])),
        limits=_LIMITS,
        device=f"times are {predicted.device.basis}" if predicted else None,
        versions={name: version(name) for name in _VERSIONS},
    )


def _is_repaired(recipe: Recipe, plan: LightenPlan) -> bool:
    """Return whether a recipe is what a repair makes, whose release says what that gained."""
    return bool(recipe.quantization.overrides) or recipe.steps > plan.training.steps


def _measure_repair(repaired: Repair, plan: LightenPlan) -> Iterator[Measure]:
    """Yield how many layers were repaired, of those that deviated, and what the loss was before."""
    count = len(repaired.layers) if repaired.kept else 0
    yield Measure(name=_REPAIRED, value=count, n=len(repaired.deviating), seed=plan.seed)
    if repaired.kept:
        before = repaired.before.quality
        yield Measure(name=_WITHOUT, value=_round(before.loss), n=before.count, seed=plan.seed)


def _draft_measures(dense: DenseModel, plan: LightenPlan, *, is_repaired: bool) -> Iterator[Measure]:
    """Yield measures that take as many bytes as the longest ones will, for a release's size before it is measured."""
    value = 0.123_45
    for name in ("loss, nats", dense.task.metric):
        yield Measure(name=name, value=value, n=10**9, seed=plan.seed, control=value)
    for name in ("KL from dense, nats", "top-1 agreement", *([_WITHOUT] if is_repaired else [])):
        yield Measure(name=name, value=value, n=10**9, seed=plan.seed)
    yield Measure(name=_REPAIRED, value=999, n=999, seed=plan.seed)


def _describe_run(dense: DenseModel) -> dict[str, Any]:
    known = {name: dense.summary.get(name) for name in ("scenario", "rounds", "model_sha256", VERSION)}
    facts = {name: value for name, value in known.items() if isinstance(value, str | int)}
    return facts or {"model_sha256": dense.sha256()}


def _describe_privacy(summary: Any) -> Privacy | None:
    epsilon, delta, unit = (summary.get(name) for name in ("epsilon", "delta", "privacy_unit"))
    if not isinstance(epsilon, int | float) or not isinstance(delta, int | float):
        return None
    return Privacy(epsilon=float(epsilon), delta=float(delta), unit=unit if isinstance(unit, str) else "record")


def _round(value: float) -> float:
    return float(f"{value:.5g}")
