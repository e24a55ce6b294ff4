"""The task and the records of one site, or of a server without data, from the settings of a federation.

The task must then be known without looking at rows: otherwise two sites would number the classes differently, or
compute other bins, and their updates could not be added.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedglm.autoglm.data.bundled import BUNDLES
from fedglm.autoglm.data.row_faults import RowFaults
from fedglm.autoglm.data.sources import read_public_source, read_source
from fedglm.autoglm.data.splits import hash_held_out
from fedglm.autoglm.errors import DataError
from fedglm.autoglm.federation import SiteRecords, load_federation, make_task
from fedglm.autoglm.settings import DataSettings, ModelSettings
from fedglm.autoglm.tasks.task import Task


def make_public_task(settings: DataSettings, model: ModelSettings) -> Task:
    """Make the task of a federation whose members share settings alone; the source's file need not exist.

    Args:
        settings: Settings; those of a file must name the classes of a classifier, and the ranges of a table or a public
            reference; a built-in has its own.
        model: Settings of the model, whose tokenizer is used where it is a local folder.

    Raises:
        DataError: The task would depend on rows; the message names the missing setting.
        ModelError: The model's folder has no tokenizer.
    """
    return make_task(settings, *read_public_source(settings), model)


def load_site(
    settings: DataSettings,
    *,
    name: str,
    share: tuple[int, int] | None,
    seed: int,
    model: ModelSettings,
    noised: bool = True,
    faults: RowFaults | None = None,
) -> tuple[Task, SiteRecords]:
    """Load one site's records, with a share of its units held out, and the task that all sites of the federation have.

    The task follows from the settings alone. Where the file is the site's own, what is held out follows from its
    records and the seed, as in a simulation of all sites by ``site_field``. Where updates are noised, each unit is held
    out or not whatever other records there are: adding or removing one moves no other, and either side may be empty.

    Args:
        settings: Source of the site's records, and their meaning in the federation.
        name: Name of the site.
        share: None where all records of the source are the site's own. (i, n) takes the records that node i of n would
            get from ``load_federation``, to the bit: for trials, where one machine plays several sites.
        seed: Seed of the held-out units, and of the assignment where there is one.
        model: Settings of the model, whose tokenizer is used where it is a local folder.
        noised: Whether updates are noised; otherwise two units or more give at least one to each side.
        faults: Counts rows of the site's own file that cannot be used, which are then left out; without it they are
            errors.

    Raises:
        DataError: The records cannot be used, the task would depend on them, or there is no such share.
        ModelError: The model's folder has no tokenizer.
    """
    task = make_public_task(settings, model)  # raises where the task would depend on rows
    part, parts = share or (0, 1)
    if not 0 <= part < parts:
        raise DataError(f"there is no share {part}/{parts}: the first of {parts} is 0, the last {parts - 1}")
    if share is not None or settings.source in BUNDLES:
        data = load_federation(settings, nodes=parts, seed=seed, model=model, faults=faults)
        return data.task, replace(data.sites[part], name=name)
    unread = ("site_field",) if task.reads_labels else ("site_field", "label_field")
    settings = settings.model_copy(update=dict.fromkeys(unread))
    _, records, _ = read_source(settings, faults)
    examples, rows = task.examples(records)
    contents = records.unit_contents(named=settings.unit_field is not None, labelled=task.reads_labels)
    is_held_out = hash_held_out(contents, settings.held_out, seed=seed, fill=not noised)[rows]
    train, held_out = examples.select(np.flatnonzero(~is_held_out)), examples.select(np.flatnonzero(is_held_out))
    return task, SiteRecords(name=name, train=train, held_out=held_out)
