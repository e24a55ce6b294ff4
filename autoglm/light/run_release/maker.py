"""The light release of a federation's model, made where the model is: at the server, or in a simulation.

The first release of a run is searched for (`search/lightening.py`, without its table of comparisons, which takes as
long again); later ones of the same run repeat the recipe that won, with the weights of their round. A release that
meets no goal is not made, and an earlier one stays; the run goes on either way.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fedglm.autoglm.light.plan.errors import LightenError
from fedglm.autoglm.light.run_release.outcome import LightOutcome
from fedglm.autoglm.settings import DataSettings, LightSettings
from fedglm.core.errors import FedglmError
from fedglm.inference.release.manifest import MANIFEST, VERSION
from fedglm.inference.release.trust import Signer
from fedglm.run_folder.names import LIGHT, LIGHT_PLAN, LIGHT_RECORD, MODEL

if TYPE_CHECKING:  # a server's process imports torch only once a model is to be made light
    import numpy as np
    import torch

    from fedglm.autoglm.light.plan.lighten_plan import LightenPlan
    from fedglm.autoglm.light.search.lightening import Lightened
    from fedglm.autoglm.light.search.pipeline import Source
    from fedglm.autoglm.light.search.sources import DenseModel
    from fedglm.autoglm.tasks.task import Task

LOG = logging.getLogger(__name__)

_NEEDS: Final = ("onnx", "onnxruntime")


def check_possible(settings: LightSettings, data: DataSettings) -> None:
    """Check that a run's model can be made light at its end, before any work starts.

    Args:
        settings: What is asked for.
        data: Data settings of the run.

    Raises:
        LightenError: What makes a model light is not installed; the message has the pip line.
        DataError: There is no text to make it light on.
    """
    from fedglm.autoglm.light.public_text import check_public_text

    check_installed()
    check_public_text(settings.text, data)


def check_installed() -> None:
    """Check that what makes a model light is installed.

    Raises:
        LightenError: Some of it is not; the message has the pip line.
    """
    if missing := [name for name in _NEEDS if importlib.util.find_spec(name) is None]:
        raise LightenError(f"not installed: {', '.join(missing)}; model.light needs pip install 'fedglm[light]'")


@dataclass(frozen=True, kw_only=True)
class LightMaker:
    """Makes the light releases of a run, in its folder.

    Attributes:
        settings: What is asked for.
        build: Builds the run's model and its task; called for each release, before the weights are filled in.
        data: Data settings of the run, which say what text is public.
        seed: Seed of trainings, and of what is drawn.
        folder: Folder of the run.
        key: Key of the run's server, which signs.
        describe: Returns what `summary.json` says of the run so far, for the release's facts.
        next_version: Returns the number of a new release, given that of its round; greater than of all before it.
    """

    settings: LightSettings
    build: Callable[[], tuple[torch.nn.Module, Task]]
    data: DataSettings
    seed: int
    folder: Path
    key: Signer
    describe: Callable[[], Mapping[str, Any]]
    next_version: Callable[[int], int]

    @property
    def release(self) -> Path:
        """Folder of the newest release."""
        return self.folder / LIGHT

    def make(self, vector: np.ndarray, server_round: int, model_sha256: str) -> LightOutcome:
        """Make the light release of a model, or find out why there is none; nothing that goes wrong ends the run.

        What was made already for the same round and model, by a process that was killed afterwards, is returned.

        Args:
            vector: Federated parameters, shape (n,), float32.
            server_round: Number of the round that they are of.
            model_sha256: Their hash (hex).
        """
        began = time.monotonic()
        earlier = LightOutcome.load(self.folder / LIGHT_RECORD)
        if earlier is not None and (earlier.round, earlier.model_sha256) == (server_round, model_sha256):
            return earlier
        from fedglm.autoglm.light.plan.goals import parse_tolerance

        outcome = LightOutcome(
            round=server_round, model_sha256=model_sha256, tolerance=parse_tolerance(self.settings.tolerance)
        )
        try:
            outcome = self._lighten(vector, outcome)
        except FedglmError as exc:
            outcome = replace(outcome, reason=str(exc))
        except Exception as exc:  # the trained model is worth more than its light copy
            LOG.exception("round %d: no light release", server_round)
            outcome = replace(outcome, reason=f"an unexpected {type(exc).__name__}; the log of the run has more")
        outcome = replace(outcome, wall_s=round(time.monotonic() - began, 1))
        outcome.save(self.folder / LIGHT_RECORD)
        return outcome

    def _lighten(self, vector: np.ndarray, outcome: LightOutcome) -> LightOutcome:
        from fedglm.autoglm.light.plan.lighten_plan import TextSettings
        from fedglm.autoglm.light.search.lightening import lighten
        from fedglm.autoglm.light.search.measures import find_rise_error
        from fedglm.autoglm.light.search.sources import load_source

        check_installed()
        version = self.next_version(outcome.round)
        facts = {**self.describe(), "rounds": outcome.round, "model_sha256": outcome.model_sha256, VERSION: version}
        text = TextSettings(source=self.settings.text, max_sequences=self.settings.sequences)
        with tempfile.TemporaryDirectory(prefix="fedglm-light-") as scratch:
            dense = self._open_dense(vector, Path(scratch), facts)
            source = load_source(dense, text, data=self.data, seed=self.seed)
            plan = self._plan(dense, source, text)
            made = lighten(dense, source, plan, self.release, signing_key=self.key, compares=False)
        if made.chosen is None or made.folder is None or made.size is None:
            return _describe_failure(outcome, made, source.task)
        self._keep_recipe(made)
        return replace(
            outcome,
            version=version,
            manifest=hashlib.sha256((made.folder / MANIFEST).read_bytes()).hexdigest(),
            bytes=made.size.bytes,
            size_ratio=made.size.size_ratio,
            loss_rise=made.chosen.loss_rise,
            rise_error=find_rise_error(source.task, made.chosen.quality),
            metric=source.task.metric,
            recipe=made.chosen.recipe.name,
        )

    def _open_dense(self, vector: np.ndarray, scratch: Path, facts: Mapping[str, Any]) -> DenseModel:
        """Open the model as a release of it is opened, adapters merged; its files are in `scratch`."""
        from transformers import PreTrainedModel

        from fedglm.autoglm.light.search.sources import DenseModel
        from fedglm.autoglm.models.parameters import load_vector
        from fedglm.autoglm.models.release import load_release, save_release

        module, task = self.build()
        load_vector(module, vector)
        save_release(module, task, scratch / MODEL)
        model, task = load_release(scratch / MODEL)
        assert isinstance(model, PreTrainedModel)  # noqa: S101 - what load_release returns
        return DenseModel(
            model=model, task=task, folder=self.folder / MODEL, run=self.folder, data=self.data, summary=facts
        )

    def _plan(self, dense: DenseModel, source: Source, text: Any) -> LightenPlan:
        """Make the plan of the run's releases, or read the one that was made before, for this round's weights."""
        from fedglm.autoglm.light.plan.goals import parse_goals
        from fedglm.autoglm.light.plan.lighten_plan import LightenPlan, train_for
        from fedglm.autoglm.light.plan.plan_files import read_settings_file, write_settings
        from fedglm.autoglm.light.search.lightening import make_plan

        path = self.folder / LIGHT_PLAN
        if path.is_file():
            return read_settings_file(LightenPlan, path).model_copy(update={"model_sha256": dense.sha256()})
        draft = LightenPlan(
            model_sha256=dense.sha256(),
            goals=parse_goals([f"size={self.settings.size}"], self.settings.tolerance),
            text=text,
            seed=self.seed,
            training=train_for(self.settings.steps),
        )
        plan, left_out = make_plan(dense, source, draft, vocabulary=None, progress=lambda *_: None)
        if not plan.candidates:
            nearest = min(left_out, key=lambda one: one.excess)
            raise LightenError(
                f"nothing here reaches {plan.goals.describe()}: the smallest candidate ({nearest.name}, cut as far as "
                f"may be) is {nearest.excess:.0%} above; lower model.light.size"
            )
        write_settings(plan, path)
        return plan

    def _keep_recipe(self, made: Lightened) -> None:
        """Have later releases of the run repeat the recipe that won, repaired, without a search."""
        from fedglm.autoglm.light.plan.plan_files import write_settings

        if made.chosen is not None and (len(made.plan.candidates) > 1 or made.plan.repair):
            plan = made.plan.model_copy(update={"candidates": (made.chosen.recipe,), "repair": False})
            write_settings(plan, self.folder / LIGHT_PLAN)


def _describe_failure(outcome: LightOutcome, made: Lightened, task: Task) -> LightOutcome:
    """Say how near the last candidate came that trained in full: the one that was cut to meet the size."""
    from fedglm.autoglm.light.search.measures import find_rise_error

    best = [trial for trial in made.trials if trial.in_full][-1]
    ratio = made.reference_bytes / best.bytes
    missed = "the size" if best.loss_rise <= outcome.tolerance else f"the tolerance of {outcome.tolerance:.3g}"
    return replace(
        outcome,
        bytes=best.bytes,
        size_ratio=ratio,
        loss_rise=best.loss_rise,
        rise_error=find_rise_error(task, best.quality),
        metric=task.metric,
        recipe=best.recipe.name,
        reason=f"{ratio:.1f}x was reached at {best.loss_rise:+.1%} ({best.recipe.name}), which misses {missed}",
    )
