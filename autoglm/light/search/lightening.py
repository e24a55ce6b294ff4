"""Making a model light: a release that meets the goals, or the frontier that says how near one comes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from weakref import WeakKeyDictionary

from fedglm.autoglm.light.device.target_device import TargetDevice, check_device
from fedglm.autoglm.light.plan.errors import LightenError
from fedglm.autoglm.light.plan.lighten_plan import LightenPlan
from fedglm.autoglm.light.plan.recipe import Recipe
from fedglm.autoglm.light.pruning.vocabulary import VocabularySettings
from fedglm.autoglm.light.release.writer import ReleaseSize
from fedglm.autoglm.light.search.clocks import REFERENCE, Clock, MeasuringClock, PredictingClock
from fedglm.autoglm.light.search.comparison import Row, compare
from fedglm.autoglm.light.search.costs import Costs, find_excess, measure_memory
from fedglm.autoglm.light.search.facts import Prediction, describe_release
from fedglm.autoglm.light.search.measures import Quality
from fedglm.autoglm.light.search.packaging import Package, choose_prompts, dense_to_numpy, to_numpy
from fedglm.autoglm.light.search.pipeline import LightModel, Progress, Source, run_recipe
from fedglm.autoglm.light.search.planning import LeftOut, choose_candidates
from fedglm.autoglm.light.search.repair import Repair, repair
from fedglm.autoglm.light.search.search import find_frontier, search
from fedglm.autoglm.light.search.sources import DenseModel
from fedglm.autoglm.light.search.trial_cache import TrialCache
from fedglm.autoglm.light.search.trials import Bench, Trial, prepare
from fedglm.inference.release.manifest import Facts
from fedglm.inference.release.trust import Signer

_TRAININGS: Final = ("train", "recover", "adapt to the public text", "train the dense control")


@dataclass(frozen=True, eq=False, kw_only=True)
class Lightened:
    """What came of making a model light.

    Attributes:
        plan: The plan that ran.
        bench: The dense model and its control.
        trials: All candidates that were made.
        chosen: The one that was released; None where none meets the goals.
        repair: What its verification came to; None likewise.
        rows: The table: what each means alone gives, beside the chosen one.
        left_out: Families that no cut makes small or fast enough.
        reference_bytes: Bytes of the dense model in FP32, a tied output layer counted once.
        folder: Folder of the release; None where there is none.
        size: Its bytes.
        facts: What it says of itself.
        interrupted: Whether the user ended the search early.
        clock: What tells times.
    """

    plan: LightenPlan
    bench: Bench
    trials: tuple[Trial, ...]
    chosen: Trial | None
    repair: Repair | None
    rows: tuple[Row, ...]
    left_out: tuple[LeftOut, ...]
    reference_bytes: int
    folder: Path | None
    size: ReleaseSize | None
    facts: Facts | None
    interrupted: bool
    clock: Clock

    @property
    def frontier(self) -> tuple[Trial, ...]:
        """The trials that no other beats in both bytes and loss."""
        return find_frontier(self.trials)

    @property
    def nearest(self) -> Trial | None:
        """The smallest trial within the tolerance; None where none is."""
        good = [trial for trial in self.trials if trial.loss_rise <= self.plan.goals.tolerance]
        return min(good, key=lambda trial: trial.bytes, default=None)


def make_plan(
    dense: DenseModel,
    source: Source,
    draft: LightenPlan,
    *,
    vocabulary: VocabularySettings | None,
    progress: Progress,
    device: TargetDevice | None = None,
) -> tuple[LightenPlan, tuple[LeftOut, ...]]:
    """Find the candidates that meet the goals, and return the plan that tries them; nothing trains.

    Args:
        dense: The dense model.
        source: The same, with its text.
        draft: The plan but for its candidates.
        vocabulary: Cut of the vocabulary that all candidates have; None for none.
        progress: Called as the work goes on.
        device: The device that the draft names.

    Raises:
        LightenError: It names another.
    """
    check_device(draft.device, device)
    meter = _Meter(dense, draft, source, device)
    return choose_candidates(source, draft, meter.measure_excess, vocabulary=vocabulary, progress=progress)


def check_recipe(
    dense: DenseModel, source: Source, plan: LightenPlan, recipe: Recipe, *, device: TargetDevice | None
) -> None:
    """Make the candidate of a recipe without training, and a release of it in memory.

    Raises:
        ModelError: The model cannot be cut or quantized so.
        InferenceError: No kernel runs it.
    """
    _Meter(dense, plan, source, device).measure_bytes(run_recipe(source, recipe, seed=plan.seed, train=False))


def check_model(plan: LightenPlan, dense: DenseModel) -> None:
    """Check that a plan is of a model.

    Raises:
        LightenError: It is of another.
    """
    if plan.model_sha256 != dense.sha256():
        raise LightenError(f"the plan is of another model than {dense.folder}: make a new one with --plan")


def lighten(
    dense: DenseModel,
    source: Source,
    plan: LightenPlan,
    out: Path,
    *,
    signing_key: Signer | None,
    left_out: tuple[LeftOut, ...] = (),
    compares: bool = True,
    cache: TrialCache | None = None,
    stopped: Callable[[], bool] = lambda: False,
    progress: Progress | None = None,
    device: TargetDevice | None = None,
) -> Lightened:
    """Run a plan, and write the release of the best candidate if one meets the goals; else write nothing.

    Args:
        dense: The dense model.
        source: The same, with its text.
        plan: The plan; one that ran before gives the same bits on the same machine.
        out: Folder of the release.
        signing_key: Key that signs the release; None leaves it unsigned.
        left_out: Families that the planning left out, for the report.
        compares: Whether to make what each means alone gives, too; without, the table has the chosen model alone.
        cache: What earlier searches made; None makes all anew, to the same bits.
        stopped: Asked between candidates whether to end the search with what there is.
        progress: Called as the work goes on.
        device: The device that the plan names.

    Raises:
        LightenError: The plan is of another model, or for another device.
        TrainingError: A loss or a weight is not finite.
        StorageError: The release cannot be written.
    """
    check_model(plan, dense)
    check_device(plan.device, device)
    report = _interrupting(progress or (lambda *_: None), stopped)
    meter = _Meter(dense, plan, source, device)
    bench = prepare(source, plan, meter.measure_bytes, cache=cache or TrialCache(), progress=report)
    found = search(bench, meter.measure_excess, stopped=stopped, progress=report)
    best = found.ranked[0] if found.ranked else None
    repaired = None
    if best is not None:
        repaired = repair(bench, best, meter.measure_excess, stopped=stopped, progress=report)
        best = repaired.chosen
    rows, alone = compare(bench, found.trials, best, stopped=stopped if compares else lambda: True, progress=report)
    facts, size = None, None
    if best is not None:
        report("write the release", 0.0)
        control = bench.find_control(best.recipe, report).quality
        facts = meter.describe(best.light, trial=best, control=control, repaired=repaired)
        size = meter.package(best.light, facts).write(out, signing_key)
    return Lightened(
        plan=plan,
        bench=bench,
        trials=(*found.trials, *([repaired.after] if repaired and repaired.after else []), *alone),
        chosen=best,
        repair=repaired,
        rows=rows,
        left_out=left_out,
        reference_bytes=meter.reference_bytes,
        folder=out if best is not None else None,
        size=size,
        facts=facts,
        interrupted=found.interrupted,
        clock=meter.clock,
    )


def _interrupting(progress: Progress, stopped: Callable[[], bool]) -> Progress:
    """Return a progress callback that ends a training where the search is to stop; it keeps its best weights so far."""

    def report(what: str, share: float) -> None:
        progress(what, share)
        if 0 < share < 1 and stopped() and what.endswith(_TRAININGS):
            raise KeyboardInterrupt  # `train_student` catches it

    return report


class _Meter:
    """Measures what light models cost, against a plan's goals."""

    def __init__(self, dense: DenseModel, plan: LightenPlan, source: Source, device: TargetDevice | None) -> None:
        self._dense, self._goals, self._source = dense, plan.goals, source
        self.reference_bytes = 4 * dense.parameters
        self._plan = plan
        self._device = device
        reference = dense_to_numpy(dense.model, dense.task)
        self.clock: Clock = MeasuringClock(reference)
        if device is not None:  # two graphs take the memory of both
            self.clock = PredictingClock(reference, device, one_graph=plan.goals.max_memory_bytes is not None)
        self._sizes = WeakKeyDictionary[LightModel, int]()

    def measure_bytes(self, light: LightModel) -> int:
        """Return the bytes of a light model's release, signed."""
        if light not in self._sizes:
            self._sizes[light] = self.package(light, self.describe(light)).measure()
        return self._sizes[light]

    def describe(
        self,
        light: LightModel,
        *,
        trial: Trial | None = None,
        control: Quality | None = None,
        repaired: Repair | None = None,
    ) -> Facts:
        """Return what a release says of itself; without figures, facts of the same length."""
        return describe_release(
            self._dense,
            self._plan,
            calibration_sha256=self._source.text.sha256,
            recipe=light.recipe,
            trial=trial,
            control=control,
            predicted=self._predict(light),
            repaired=repaired,
        )

    def package(self, light: LightModel, facts: Facts) -> Package:
        """Return a light model with all that its release holds."""
        return Package(
            light=light,
            facts=facts,
            reference_parameters=self._dense.parameters,
            prompts=choose_prompts(light, self._source),
            formats=self.clock.choose_phases(to_numpy(light)),
        )

    def measure_excess(self, light: LightModel) -> float:
        """Return how far a light model's costs are above the goals, as a share of them; at most 0 meets all."""
        goals, reference_ms, decode_ms, memory = self._goals, None, None, None
        if goals.latency_ratio is not None or goals.max_latency_ms is not None:
            times = self.clock.time({"light": to_numpy(light)})
            reference_ms, decode_ms = times[REFERENCE].decode_ms, times["light"].decode_ms
        if goals.max_memory_bytes is not None:
            with tempfile.TemporaryDirectory(prefix="fedglm-release-") as scratch:
                folder = Path(scratch) / "release"
                self.package(light, self.describe(light)).write(folder, None)
                memory = measure_memory(folder)
        costs = Costs(bytes=self.measure_bytes(light), decode_ms=decode_ms, memory_bytes=memory)
        return find_excess(goals, costs, reference_bytes=self.reference_bytes, reference_ms=reference_ms)

    def _predict(self, light: LightModel) -> Prediction | None:
        """Return what a release says of its times on the device; None where the plan is for none."""
        if self._device is None:
            return None
        return Prediction(device=self._device, latency=self.clock.time({"light": to_numpy(light)})["light"])
