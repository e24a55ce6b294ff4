"""A model, its public text and a plan for it, opened by the options of the command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Final, Self, TypedDict

from pydantic import ValidationError

from fedglm.autoglm.data.tokenizer import is_byte_tokenizer
from fedglm.autoglm.errors import ModelError
from fedglm.autoglm.light.device.target_device import TargetDevice, check_device
from fedglm.autoglm.light.plan.errors import LightenError
from fedglm.autoglm.light.plan.goals import Goals, parse_goals
from fedglm.autoglm.light.plan.lighten_plan import STEPS, LightenPlan, TextSettings, train_for
from fedglm.autoglm.light.plan.plan_files import read_settings_file
from fedglm.autoglm.light.pruning.vocabulary import VocabularySettings
from fedglm.autoglm.light.search.lightening import check_model, check_recipe, make_plan
from fedglm.autoglm.light.search.pipeline import Progress, Source
from fedglm.autoglm.light.search.planning import LeftOut
from fedglm.autoglm.light.search.sources import NO_RUN, DenseModel, load_dense, load_source
from fedglm.autoglm.settings import DataSettings
from fedglm.core.suggestions import did_you_mean
from fedglm.core.validation_errors import explain
from fedglm.inference.errors import InferenceError

FilePath = str | PathLike[str]
"""A path, as a caller may give it."""
TOLERANCE: Final = "5%"


class TextOptions(TypedDict, total=False):
    """Public text, in Python as on the command line; None takes what the run has set aside."""

    text: FilePath | None
    text_field: str | None
    label_field: str | None
    sites_data_are_public: bool
    seed: int | None


class SearchOptions(TextOptions, total=False):
    """What a plan is made from, beside its goals; None takes the default."""

    device: FilePath | None
    cut_vocabulary: bool
    steps: int | None
    min_cosine: float | None


@dataclass(frozen=True, eq=False, kw_only=True)
class Job:
    """A model with its text and a plan.

    Attributes:
        dense: The model.
        source: The same, with its text.
        draft: The plan; without candidates until `plan` has found them.
        device: The device that it names.
        vocabulary: Cut of the vocabulary of all candidates.
        min_cosine: Least cosine of each layer's outputs with the reference's, in the candidates; None leaves the usual.
        left_out: Families that no cut makes small or fast enough.
    """

    dense: DenseModel
    source: Source
    draft: LightenPlan
    device: TargetDevice | None
    vocabulary: VocabularySettings | None
    min_cosine: float | None
    left_out: tuple[LeftOut, ...] = ()

    @classmethod
    def open(
        cls,
        model: FilePath,
        target: str | Sequence[str],
        tolerance: str | None,
        config: FilePath | None,
        options: SearchOptions,
        report: Progress,
    ) -> Self:
        """Read all that is given, what can be wrong before what takes long."""
        check_options(options, SearchOptions)
        cosine = options.get("min_cosine")
        if cosine is not None and not -1 <= cosine <= 1:
            raise LightenError(f"--min-cosine {cosine}: it must be a number from -1 to 1")
        if config is None:
            planned, goals = None, _parse_goals(target, tolerance)
            device = _open_device(options.get("device"))
        else:
            _check_beside_plan(target, tolerance, options)
            planned = read_settings_file(LightenPlan, Path(config))
            goals, known = planned.goals, planned.device.path if planned.device else None
            device = _open_device(options.get("device") or known)
            check_device(planned.device, device)
        if device is not None:
            device.check_goals(goals)
        report("load the model", 0.0)
        dense = load_dense(Path(model))
        draft = planned or _draft_plan(dense, goals, device, options)
        check_model(draft, dense)
        source = load_source(dense, draft.text, data=describe_data(dense, options), seed=draft.seed)
        vocabulary = _choose_vocabulary(dense) if options.get("cut_vocabulary") else None
        return cls(
            dense=dense,
            source=source,
            draft=draft,
            device=device,
            vocabulary=vocabulary,
            min_cosine=cosine,
        )

    def check_candidates(self, report: Progress) -> None:
        """Make the candidates of a plan without training: one that cannot be made is told before the control trains.

        Raises:
            FedglmError: A candidate cannot be made; the message begins with its name.
        """
        for number, recipe in enumerate(self.draft.candidates):
            report("check the candidates", number / len(self.draft.candidates))
            try:
                check_recipe(self.dense, self.source, self.draft, recipe, device=self.device)
            except (InferenceError, ModelError) as exc:
                raise LightenError(f"candidate {recipe.name!r} of the plan: {exc}") from exc

    def plan(self, report: Progress) -> Self:
        """Find the candidates that meet the goals."""
        draft, left_out = make_plan(
            self.dense, self.source, self.draft, vocabulary=self.vocabulary, progress=report, device=self.device
        )
        if self.min_cosine is not None:
            draft = draft.with_min_cosine(self.min_cosine)
        return replace(self, draft=draft, left_out=left_out)


def check_options(options: Mapping[str, object], known: type) -> None:
    """Check that options are some of those that a typed dictionary has.

    Raises:
        LightenError: There is no such option.
    """
    names = known.__annotations__
    if unknown := sorted(options.keys() - names.keys()):
        raise LightenError(f"there is no option {unknown[0]}: {did_you_mean(unknown[0], names)}")


def read_text(options: TextOptions) -> tuple[TextSettings, int]:
    """Return the settings of the public text, and the seed.

    Raises:
        LightenError: An option has no such value.
    """
    fields: dict[str, object] = {"sites_data_are_public": bool(options.get("sites_data_are_public"))}
    if (text := options.get("text")) is not None:
        fields["source"] = str(text)
    seed = options.get("seed") or 0
    if not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise LightenError(f"--seed {seed}: it must be a whole number from 0 to 2^63 - 1")
    return TextSettings.model_validate(fields), seed


def describe_data(dense: DenseModel, options: TextOptions) -> DataSettings | None:
    """Return the settings of a file of public text; None takes those of the run."""
    fields = {"text_field": options.get("text_field"), "label_field": options.get("label_field")}
    given = {name: value for name, value in fields.items() if value is not None}
    if not given:
        return None
    base = dense.data or DataSettings(source=NO_RUN)
    return base.model_copy(update=given)


def _parse_goals(target: str | Sequence[str], tolerance: str | None) -> Goals:
    targets = [target] if isinstance(target, str) else list(map(str, target))
    if not targets:
        raise LightenError("name what the model may cost, as --target size=20x")
    return parse_goals(targets, TOLERANCE if tolerance is None else str(tolerance))


def _check_beside_plan(target: str | Sequence[str], tolerance: str | None, options: SearchOptions) -> None:
    """Check that nothing is set beside a plan that the plan sets."""
    fixed = {"target": target, "tolerance": tolerance is not None} | {
        name: value is not None and value is not False
        for name, value in options.items()
        if name not in ("device", "text_field", "label_field")
    }
    if given := [f"--{name.replace('_', '-')}" for name, value in fixed.items() if value]:
        raise LightenError(f"--config runs a plan as it is: it does not go with {', '.join(given)}")


def _open_device(path: FilePath | None) -> TargetDevice | None:
    return None if path is None else TargetDevice.open(Path(path))


def _draft_plan(dense: DenseModel, goals: Goals, device: TargetDevice | None, options: SearchOptions) -> LightenPlan:
    """Return the plan of the options, without candidates."""
    text, seed = read_text(options)
    steps = options.get("steps")
    try:
        return LightenPlan(
            model_sha256=dense.sha256(),
            goals=goals,
            device=device.planned if device else None,
            text=text,
            seed=seed,
            training=train_for(STEPS if steps is None else steps),
        )
    except ValidationError as exc:
        raise LightenError(f"--steps {steps}: {explain(exc, LightenPlan)}") from exc


def _choose_vocabulary(dense: DenseModel) -> VocabularySettings:
    """Return the cut that a model's tokenizer allows: one that spells any text without a token loses nothing by it."""
    tokenizer = getattr(dense.task, "tokenizer", None)
    return VocabularySettings(keep_alphabet=tokenizer is None or not is_byte_tokenizer(tokenizer))
