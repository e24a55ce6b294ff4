"""Making a model light in one call, by name of its folder: `fedglm.lighten`, which the command calls too."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Unpack

from fedglm.autoglm.light.job import FilePath, Job, SearchOptions
from fedglm.autoglm.light.outputs import Outputs
from fedglm.autoglm.light.plan.lighten_plan import LightenPlan
from fedglm.autoglm.light.result import LightenResult
from fedglm.autoglm.light.search.lightening import lighten as run_plan
from fedglm.autoglm.light.search.pipeline import Progress
from fedglm.autoglm.light.search.record import make_record
from fedglm.autoglm.light.search.sources import DenseModel
from fedglm.core.files import write_atomically
from fedglm.privacy.keys.signing import SigningKey
from fedglm.reports.light.write import write_light_page
from fedglm.run_folder.names import SERVER_KEY
from fedglm.simulations.light.own_text import load_own
from fedglm.simulations.light.trial_store import open_cache

LOG = logging.getLogger(__name__)


def lighten(
    model: FilePath,
    target: str | Sequence[str] = (),
    tolerance: str | None = None,
    *,
    config: FilePath | None = None,
    out: FilePath | None = None,
    signing_key: FilePath | None = None,
    no_comparison: bool = False,
    cache: FilePath | None = None,
    no_cache: bool = False,
    stopped: Callable[[], bool] | None = None,
    progress: Progress | None = None,
    warn: Callable[[str], None] | None = None,
    **options: Unpack[SearchOptions],
) -> LightenResult:
    """Prune, quantize and distil a model under goals, and release it; past the tolerance nothing is written.

    Args:
        model: Folder of a run, or of a saved model.
        target: What it may cost: ``size=20x``, ``latency=5ms``, ``memory=256MB``; several hold together.
        tolerance: Greatest rise of the loss above an equally trained dense model's; 5% without it.
        config: Plan that `--plan` wrote, instead of goals and options; ``text_field``, ``label_field`` and ``device``
            may stand beside it.
        out: Folder of the release; MODEL-light without it. Beside it lie the record, ``.json``, and a page, ``.html``.
        signing_key: Key that signs the release; the run's own without it.
        no_comparison: Whether to leave out what each means alone would give.
        cache: Folder of what searches trained; the user's own without it.
        no_cache: Whether to train all anew, to the same bits.
        stopped: Asked as the work goes on whether to end with the best so far.
        progress: Called with the stage and the share of it that is done.
        warn: Called with what the user should know of the cache; the program's log without it.
        **options: ``device``, ``text``, ``text_field``, ``label_field``, ``sites_data_are_public``, ``cut_vocabulary``,
            ``steps``, ``min_cosine``, ``seed``, as on the command line.

    Returns:
        The figures, and the folder of the release where there is one.

    Raises:
        FedglmError: A goal, an option, a file or the model cannot be worked with, or the release cannot be written.
    """
    began, report = time.monotonic(), progress or (lambda *_: None)
    outputs = Outputs.choose(Path(model), None if out is None else Path(out))
    outputs.check([Path(each) for each in (config, options.get("device"), options.get("text")) if each is not None])
    trials = open_cache(None if cache is None else Path(cache), unused=no_cache, warn=warn or LOG.warning)
    job = Job.open(model, target, tolerance, config, options, report)
    key = _load_key(job.dense, signing_key)
    if config is None:
        job = job.plan(report)
    else:
        job.check_candidates(report)
    made = run_plan(
        job.dense,
        job.source,
        job.draft,
        outputs.folder,
        signing_key=key,
        left_out=job.left_out,
        compares=not no_comparison,
        cache=trials,
        stopped=stopped or (lambda: False),
        progress=report,
        device=job.device,
    )
    report("time the models of the table", 0.0)
    record = make_record(
        job.dense,
        made,
        seconds=time.monotonic() - began,
        origin=job.source.text.origin,
        own=load_own(job.dense, job.source, declared_public=job.draft.text.sites_data_are_public),
    )
    if made.folder is not None:
        write_atomically(outputs.record, json.dumps(record, indent=1) + "\n")
        write_light_page(record, outputs.page)
    return LightenResult(record, made.folder)


def plan_lightening(
    model: FilePath,
    target: str | Sequence[str],
    tolerance: str | None = None,
    *,
    progress: Progress | None = None,
    **options: Unpack[SearchOptions],
) -> LightenPlan:
    """Return the plan that `lighten` would run, without candidates where none meets the goals; nothing trains.

    Raises:
        FedglmError: As `lighten`.
    """
    report = progress or (lambda *_: None)
    return Job.open(model, target, tolerance, None, options, report).plan(report).draft


def _load_key(dense: DenseModel, path: FilePath | None) -> SigningKey | None:
    own = None if dense.run is None else dense.run / SERVER_KEY
    if path is None and own is not None and own.is_file():
        path = own
    return None if path is None else SigningKey.load(Path(path))
