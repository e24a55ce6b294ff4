"""A federation's data, from settings to sites with training and held-out examples, deterministic for a seed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fedglm.autoglm.data.examples import Examples
from fedglm.autoglm.data.records import Records
from fedglm.autoglm.data.row_faults import RowFaults
from fedglm.autoglm.data.sources import read_source
from fedglm.autoglm.data.splits import MIN_UNITS, Indices, choose_held_out, hash_held_out, split_dirichlet, split_iid
from fedglm.autoglm.errors import DataError
from fedglm.autoglm.settings import DataSettings, ModelSettings
from fedglm.autoglm.tasks.classification import TabularClassification, TextClassification
from fedglm.autoglm.tasks.language_modeling import LanguageModeling
from fedglm.autoglm.tasks.task import Task
from fedglm.inference.inputs.tables import TableEncoder
from fedglm.inference.inputs.task import Kind

DEFAULT_NODES = 4


@dataclass(frozen=True, kw_only=True)
class SiteRecords:
    """Training and held-out examples of one site."""

    name: str
    train: Examples
    held_out: Examples


@dataclass(frozen=True, kw_only=True)
class FederatedData:
    """The task and every site's examples.

    Attributes:
        task: Task of the federation.
        sites: Examples of each site.
        source: Source of the records, as in the settings.
        split: How the records were assigned to sites: ``site``, ``iid`` or ``dirichlet``.
        notes: Remarks on the records' origin, for reports.
    """

    task: Task
    sites: tuple[SiteRecords, ...]
    source: str
    split: str
    notes: tuple[str, ...] = ()

    def describe(self) -> dict[str, Any]:
        """Return rows, units and classes of every site, as plain JSON values."""
        return {
            "source": self.source,
            "task": self.task.kind,
            "split": self.split,
            "length": self.task.length,
            "classes": list(self.task.classes),
            "notes": list(self.notes),
            "sites": [self._describe(site) for site in self.sites],
        }

    def _describe(self, site: SiteRecords) -> dict[str, Any]:
        counted = Counter(torch.cat([site.train.labels, site.held_out.labels]).tolist())
        return {
            "name": site.name,
            "train": len(site.train),
            "held_out": len(site.held_out),
            "tokens": int(site.train.lengths.sum() + site.held_out.lengths.sum()),
            "units": len(np.unique(site.train.units)) + len(np.unique(site.held_out.units)),
            "classes": {name: counted.get(i, 0) for i, name in enumerate(self.task.classes)},
        }


def load_federation(
    settings: DataSettings,
    *,
    nodes: int | None = None,
    seed: int,
    model: ModelSettings | None = None,
    faults: RowFaults | None = None,
) -> FederatedData:
    """Read the records, tokenize them, assign them to sites, and hold out a share of every site's units.

    Args:
        settings: Origin and meaning of the records.
        nodes: Number of nodes; in a split by site the number of sites; None takes 4, or the number of sites.
        seed: Seed of the assignment and of the held-out units; the same seed gives the same federation.
        model: Settings of the model, whose tokenizer is used where it is a local folder; else the byte tokenizer.
        faults: Counts rows that cannot be used, which are then left out; without it they are errors.

    Raises:
        DataError: The records cannot be used; one line that names the place and the remedy.
        ModelError: The model's folder has no tokenizer.
    """
    kind, records, table = read_source(settings, faults)
    task = make_task(settings, kind, _list_labels(settings, kind, records), table, model or ModelSettings())
    examples, row_of = task.examples(records)
    units, groups = records.unit_ids(), task.label_ids(records)
    rng = np.random.default_rng([seed, 0])
    split, sites = _assign_rows(settings, nodes, records, units, groups, rng)
    if split == "site":
        held_out_rows = _hash_held_out(settings, task, records, sites, units, seed)
    else:
        held_out_units = choose_held_out(
            {name: np.unique(units[rows]) for name, rows in sites.items()}, settings.held_out, rng
        )
        held_out_rows = np.isin(units, np.fromiter(held_out_units, dtype=np.int64))
    site_records = []
    for name, rows in sites.items():
        own_rows = np.zeros(len(records), dtype=bool)
        own_rows[rows] = True
        train = np.flatnonzero((own_rows & ~held_out_rows)[row_of])
        held_out = np.flatnonzero((own_rows & held_out_rows)[row_of])
        site_records.append(SiteRecords(name=name, train=examples.select(train), held_out=examples.select(held_out)))
    notes = [f"bins: {table.origin}"] if table else []
    if skipped := sum(records.skipped.values()):
        notes.append(f"{skipped} rows without text were left out")
    return FederatedData(task=task, sites=tuple(site_records), source=settings.source, split=split, notes=tuple(notes))


def make_task(
    settings: DataSettings, kind: Kind, labels: tuple[str, ...], table: TableEncoder | None, model: ModelSettings
) -> Task:
    """Make the task of a federation from what all its members know.

    Args:
        settings: Settings with the length of texts.
        kind: Kind of the task.
        labels: Class names; empty for language modelling.
        table: Encoder of a table's rows; None for text.
        model: Settings of the model, whose tokenizer is used where it is a local folder.

    Raises:
        DataError: A class is named twice, or there are fewer than two.
        ModelError: The model's folder has no tokenizer.
    """
    if len(set(labels)) != len(labels):
        raise DataError("class_names names a class twice")
    if len(labels) == 1:
        raise DataError(f"{settings.source}: all rows are of one class ({labels[0]!r}); there is nothing to learn")
    if table is not None:
        return TabularClassification.for_table(table, labels)
    if kind == LanguageModeling.kind:
        return LanguageModeling.for_texts(model.path, length=settings.length)
    return TextClassification.for_texts(model.path, length=settings.length, labels=labels)


def _hash_held_out(
    settings: DataSettings, task: Task, records: Records, sites: dict[str, Indices], units: Indices, seed: int
) -> np.ndarray:
    """Choose the rows to hold out, (N,), bool, as each site does from its own rows (`load_site`).

    Raises:
        DataError: A site has fewer than two units, or only the same record over and over.
    """
    contents = np.array(
        records.unit_contents(named=settings.unit_field is not None, labelled=task.reads_labels), dtype=object
    )
    held_out = np.zeros(len(records), dtype=bool)
    for name, rows in sites.items():
        if (count := len(np.unique(units[rows]))) < MIN_UNITS:
            raise DataError(f"site {name!r} has {count} unit; it needs two, one to train on and one to hold out")
        held_out[rows] = hash_held_out(contents[rows], settings.held_out, seed=seed, fill=True)
        if len(np.unique(held_out[rows])) < MIN_UNITS:
            raise DataError(f"site {name!r} has {count} rows that are all the same; none could be held out")
    return held_out


def _list_labels(settings: DataSettings, kind: Kind, records: Records) -> tuple[str, ...]:
    """Return the class names of the settings, else those that occur; none for language modelling."""
    if kind == "language-model":
        return ()
    return settings.class_names or tuple(sorted(set(records.labels)))


def _assign_rows(
    settings: DataSettings,
    nodes: int | None,
    records: Records,
    units: Indices,
    groups: Indices,
    rng: np.random.Generator,
) -> tuple[str, dict[str, Indices]]:
    """Assign the rows to sites; return the kind of split, and the row numbers of each site by name."""
    split = settings.split
    if split == "auto":
        split = "site" if records.sites else "iid"
    if split == "site":
        if not records.sites:
            raise DataError("a split by site needs a site_field: name the field that holds the site")
        names = sorted({*records.sites, *records.skipped})
        numbers_of = {name: number for number, name in enumerate(names)}
        of_row = np.array([numbers_of[name] for name in records.sites])
        sites = {name: np.flatnonzero(of_row == number) for name, number in numbers_of.items()}
        if empty := [name for name, rows in sites.items() if not len(rows)]:
            raise DataError(f"site {empty[0]!r} is empty: none of its {records.skipped[empty[0]]} rows holds text")
        if nodes not in (None, len(sites)):
            raise DataError(
                f"{nodes} nodes were asked for and {settings.site_field!r} names {len(sites)} sites; drop one"
            )
        return split, sites
    count = DEFAULT_NODES if nodes is None else nodes
    total = int(units.max(initial=-1)) + 1
    if split == "iid":
        parts = split_iid(total, count, rng)
    else:
        # A unit's group is that of most of its rows (the lowest of equals).
        table = np.zeros((total, int(groups.max(initial=0)) + 1), dtype=np.int64)
        np.add.at(table, (units, groups), 1)
        parts = split_dirichlet(table.argmax(1), count, settings.alpha, rng)
    node_of_unit = np.empty(total, dtype=np.int64)
    for node, part in enumerate(parts):
        node_of_unit[part] = node
    of_row = node_of_unit[units]
    return split, {f"site-{node}": np.flatnonzero(of_row == node) for node in range(count)}
