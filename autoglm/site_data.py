"""What one site, or a server that holds no data, makes of a federation's settings, without seeing any other's records.

What is learned must then be known without looking at rows: otherwise two sites would number the classes differently, or
place the bins elsewhere, and what they send could not be added up.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from fedglm.autoglm.data.bundled import BUNDLES
from fedglm.autoglm.data.records import Records
from fedglm.autoglm.data.row_faults import RowFaults
from fedglm.autoglm.data.sources import public_source, read_source
from fedglm.autoglm.errors import DataError
from fedglm.autoglm.federation import SiteRecords, load_federation, make_task
from fedglm.autoglm.settings import DataSettings, ModelSettings
from fedglm.autoglm.tasks.task import Task


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
    settings: DataSettings,
    *,
    name: str,
    share: tuple[int, int] | None,
    seed: int,
    model: ModelSettings,
    faults: RowFaults | None = None,
) -> tuple[Task, SiteRecords]:
    """One site's records, with a share of its units held out, and the task that all sites of the federation have.

    The task follows from the settings alone. Of a file that is all the site's own, so does the side on which a unit
    stands: one record more or less moves no other between training and held-out data, and there may be none at all.

    Args:
        settings: where the site's records are, and what they mean in the whole federation.
        name: the site's.
        share: None where all records of the source are the site's own. (i, n) takes what node i of n would get of them
            from ``load_federation``, to the bit: for trials, where one machine plays several sites.
        seed: of what is held out, and of the deal where there is one.
        model: whose tokenizer to use where it is a local folder.
        faults: counts rows of the site's own file that cannot be used, which are then left out; without it they are
            errors.

    Raises:
        DataError: the records cannot be used, the task would depend on them, or there is no such share.
        ModelError: the model's folder has no tokenizer.
    """
    task = task_of(settings, model)  # refuses what only rows could tell
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
    held = _held_out(records, settings, seed, name)[rows]
    train, held_out = examples.select(np.flatnonzero(~held)), examples.select(np.flatnonzero(held))
    return task, SiteRecords(name=name, train=train, held_out=held_out)


def _held_out(records: Records, settings: DataSettings, seed: int, name: str) -> npt.NDArray[np.bool_]:
    """Which rows are held out, (N,): by a hash of the unit's name, or of the record where each is a unit of its own.

    A draw among the units that are there would move many of them for one that comes: what a site sends would then tell
    of one record far more than its clipped gradient.
    """
    key = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    below = int(settings.held_out * 2**64)
    whose = map(str.encode, records.units) if settings.unit_field else _contents(records)
    digests = (hashlib.blake2b(content, key=key, digest_size=8).digest() for content in whose)
    return np.array([int.from_bytes(digest, "big") < below for digest in digests], dtype=np.bool_)


def _contents(records: Records) -> Iterator[bytes]:
    labels = records.labels or [""] * len(records)
    for row, label in enumerate(labels):
        content = records.texts[row].encode() if records.texts else records.values[row].tobytes()
        yield label.encode() + b"\0" + content
