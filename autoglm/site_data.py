"""What one site, or a server that holds no data, makes of a federation's settings, without seeing any other's records.

What is learned must then be known without looking at rows: otherwise two sites would number the classes differently, or
place the bins elsewhere, and what they send could not be added up.
"""

from __future__ import annotations

from dataclasses import replace

from fedglm.autoglm.data import Site, load_federation, make_task
from fedglm.autoglm.errors import DataError
from fedglm.autoglm.models import ModelSettings
from fedglm.autoglm.settings import DataSettings
from fedglm.autoglm.sources import public_source
from fedglm.autoglm.tasks import Task


def task_of(settings: DataSettings, model: ModelSettings) -> Task:
    """The task of a federation whose parts share settings alone; the source's file need not be there.

    Args:
        settings: a file's must name the classes of a classifier, and the ranges of a table or a public reference;
            a built-in knows its own.
        model: whose tokenizer to use where it is a local folder.

    Raises:
        DataError: something would have to be learned from rows; the message names the setting that is missing.
        ModelError: the model's folder has no tokenizer.
    """
    return make_task(settings, *public_source(settings), model)


def load_site(
    settings: DataSettings, *, name: str, share: tuple[int, int] | None, seed: int, model: ModelSettings
) -> tuple[Task, Site]:
    """One site's records, with a share of its units held out, and the task that all sites of the federation have.

    Args:
        settings: where the site's records are, and what they mean in the whole federation.
        name: the site's.
        share: None where all records of the source are the site's own. (i, n) takes what node i of n would get of them
            from ``load_federation``, to the bit: for trials, where one machine plays several sites.
        seed: of what is held out, and of the deal where there is one.
        model: whose tokenizer to use where it is a local folder.

    Raises:
        DataError: the records cannot be used, the task would depend on them, or there is no such share.
        ModelError: the model's folder has no tokenizer.
    """
    public_source(settings)  # refuses what only rows could tell
    part, parts = share or (0, 1)
    if not 0 <= part < parts:
        raise DataError(f"there is no share {part}/{parts}: the first of {parts} is 0, the last {parts - 1}")
    if share is None:
        settings = settings.model_copy(update={"site_field": None, "split": "iid"})  # a federation of one
    data = load_federation(settings, nodes=parts, seed=seed, model=model)
    return data.task, replace(data.sites[part], name=name)
