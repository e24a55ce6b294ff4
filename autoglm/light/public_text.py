"""Text to calibrate, prune and distil on: public, or made by the model; never a node's data.

What is fitted to a record can reveal it, and no node's policy has a rule that permits it here. So it fails closed: the
records come from a built-in's own public ones, from a file that its user declares to be public by naming it, or from
the model itself. A file that is the sites' own is refused unless it is declared a second time.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from transformers import PreTrainedModel

from fedglm.autoglm.data.bundled import BUNDLES
from fedglm.autoglm.data.examples import Examples
from fedglm.autoglm.data.reading import check_file, read_rows
from fedglm.autoglm.data.records import Records
from fedglm.autoglm.data.sources import is_path, read_source
from fedglm.autoglm.data.splits import choose_held_out
from fedglm.autoglm.errors import DataError
from fedglm.autoglm.light.docstrings import read_docstrings
from fedglm.autoglm.light.model_made import sample_examples
from fedglm.autoglm.settings import DataSettings
from fedglm.autoglm.tasks.task import Task

AUTO, MODEL = "auto", "model"
MAX_SEQUENCES = 4096
"""Default number of sequences: more than a recovery of some hundred steps of 16 reads."""
HELD_OUT = 0.2
"""Share of the units that is held out, as in the built-in scenarios."""

_DOCSTRINGS_FOR = "pydoc"
"""The built-in whose public text is the standard library's docstrings."""

Kind = Literal["built-in", "docstrings", "file", "model"]


@dataclass(frozen=True, kw_only=True)
class PublicText:
    """Sequences that are public or made by the model, as training and held-out ones; no unit is on both sides.

    Attributes:
        train: Sequences to calibrate and train on.
        held_out: Sequences to choose by.
        kind: Whether they are a built-in's, docstrings, a user's file's or the model's own.
        origin: Where they come from, in words, for the model card.
        sha256: SHA-256 (hex) of tokens, lengths and labels of both sides: the calibration hash of a release.
    """

    train: Examples
    held_out: Examples
    kind: Kind
    origin: str
    sha256: str


def load_public_text(
    source: str,
    settings: DataSettings,
    task: Task,
    model: PreTrainedModel,
    *,
    seed: int,
    max_sequences: int = MAX_SEQUENCES,
    sites_data_are_public: bool = False,
) -> PublicText:
    """Load the text on which a model may be made light.

    Args:
        source: ``auto`` takes what a built-in has set aside, and for ``pydoc`` the standard library's docstrings;
            ``model`` has the model make it; else the path of a JSONL or CSV file with the fields that ``settings``
            name.
        settings: Data settings of the run that trained the model.
        task: Task of the model.
        model: The model, which makes the text for ``model``.
        seed: Seed of what is drawn and held out.
        max_sequences: Maximum number of sequences, both sides together.
        sites_data_are_public: Declares that the sites' records are public, so that a file of them may be used.

    Raises:
        DataError: There is no public text for ``auto``, the file is the sites' own and not declared public, cannot be
            read, or has too little to hold some out.
    """
    if source == MODEL:
        examples = sample_examples(model, task, max_sequences, seed=seed)
        return _split(examples, "model", f"{len(examples)} sequences that the model made (seed {seed})", seed)
    if source == AUTO:
        kind, records, origin = _find_own(settings, task, max_sequences, seed)
    elif is_path(source):
        _refuse_sites_data(source, settings, declared=sites_data_are_public)
        kind, records, origin = "file", _read_file(source, settings, task), f"the public file {Path(source).name}"
    else:
        raise DataError(f"public text is {AUTO}, {MODEL} or a file, not {source!r}")
    examples, _ = task.examples(records)
    if len(examples) > max_sequences:
        drawn = np.random.default_rng([seed, 1]).permutation(len(examples))[:max_sequences]
        examples = examples.select(np.sort(drawn))
    return _split(examples, kind, f"{len(examples)} sequences of {origin}", seed)


def check_public_text(source: str, settings: DataSettings) -> None:
    """Check that `load_public_text` will find text, before a model is trained that is to be made light on it.

    Args:
        source: As for `load_public_text`.
        settings: Data settings of the run.

    Raises:
        DataError: There is no public text for ``auto``, or the file cannot be read or is the sites' own.
    """
    if source == AUTO and settings.source != _DOCSTRINGS_FOR:
        _find_set_aside(settings)
    elif is_path(source):
        check_file(source)
        _refuse_sites_data(source, settings, declared=False)


def _find_own(settings: DataSettings, task: Task, max_sequences: int, seed: int) -> tuple[Kind, Records, str]:
    if settings.source == _DOCSTRINGS_FOR:
        origin = "docstrings of Python's standard library, at no site"
        return "docstrings", read_docstrings(max_sequences * task.length, seed=seed), origin
    return "built-in", _find_set_aside(settings), f"the public records of {settings.source}, at no site"


def _find_set_aside(settings: DataSettings) -> Records:
    public = BUNDLES[settings.source](settings.bins).public if settings.source in BUNDLES else None
    if public is None:
        raise DataError(
            f"{settings.source} has no public records: name a file of public ones, or let the model make them "
            f"({MODEL!r}); the sites' own are never used"
        )
    return public


def _read_file(source: str, settings: DataSettings, task: Task) -> Records:
    changes: dict[str, object] = {"source": source, "site_field": None, "class_names": task.classes}
    check_file(source)
    first = next(iter(read_rows(source)), (0, {}))[1]
    if settings.unit_field not in first:
        changes["unit_field"] = None  # public text seldom names units; each row is then its own
    if not task.reads_labels:
        changes["label_field"] = None
    base = DataSettings(source=source) if settings.source in BUNDLES else settings
    return read_source(base.model_copy(update=changes))[1]


def _refuse_sites_data(source: str, settings: DataSettings, *, declared: bool) -> None:
    own = Path(settings.source).expanduser()
    named = Path(source).expanduser()
    if declared or not is_path(settings.source):
        return
    same = named.resolve() == own.resolve()
    if not same and named.is_file() and own.is_file():
        same = named.samefile(own) or _hash_file(named) == _hash_file(own)
    if same:
        raise DataError(
            f"{source} holds the records of the run's own sites: name another file, let the model make text "
            f"({MODEL!r}), or declare that the sites' data are public"
        )


def _hash_file(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _split(examples: Examples, kind: Kind, origin: str, seed: int) -> PublicText:
    units = np.unique(examples.units.numpy())
    if len(units) < 2:
        raise DataError(f"{origin}: too little to hold some out; two documents or rows are the least")
    held_out_units = choose_held_out({"public": units}, HELD_OUT, np.random.default_rng([seed, 2]))
    held_out = np.isin(examples.units.numpy(), np.fromiter(held_out_units, dtype=np.int64))
    digest = hashlib.sha256()
    for tensor in (examples.input_ids, examples.lengths, examples.labels, torch.from_numpy(held_out)):
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode() + tensor.numpy().tobytes())
    return PublicText(
        train=examples.select(np.flatnonzero(~held_out)),
        held_out=examples.select(np.flatnonzero(held_out)),
        kind=kind,
        origin=origin,
        sha256=digest.hexdigest(),
    )
