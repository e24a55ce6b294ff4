"""Sequences in the tokens of a cut vocabulary, without encoding their text again."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from fedglm.autoglm.data.examples import Examples
from fedglm.autoglm.light.plan.errors import LightenError
from fedglm.autoglm.light.pruning.vocabulary import CutVocabulary
from fedglm.autoglm.tasks.task import Task
from fedglm.autoglm.tasks.text import TextTask


def map_tokens(examples: Examples, task: Task, vocabulary: CutVocabulary | None) -> Examples:
    """Return sequences in the tokens of a cut vocabulary.

    A token that went is spelled by those that stayed, so that a sequence may grow; where it cannot be spelled it
    becomes the unknown token. No sequence is cut short.

    Args:
        examples: Sequences in the tokens of the whole vocabulary.
        task: Task with the whole vocabulary's tokenizer.
        vocabulary: The cut; None returns the sequences as they are.

    Raises:
        LightenError: A token cannot be spelled, and the vocabulary has no unknown token.
    """
    if vocabulary is None:
        return examples
    spelled = _spell(examples, task, vocabulary)
    rows = [
        np.concatenate([spelled[int(token)] for token in ids[:length]] or [np.zeros(0, np.int64)])
        for ids, length in zip(examples.input_ids.numpy(), examples.lengths.tolist(), strict=True)
    ]
    lengths = np.array([len(row) for row in rows], dtype=np.int32)
    ids = np.full((len(rows), max(int(lengths.max(initial=0)), 1)), vocabulary.task.pad_id, dtype=np.int32)
    for row, line in zip(ids, rows, strict=True):
        row[: len(line)] = line
    return Examples(
        input_ids=torch.from_numpy(ids),
        lengths=torch.from_numpy(lengths),
        labels=examples.labels,
        units=examples.units,
    )


def count_unknown(examples: Examples, vocabulary: CutVocabulary | None) -> torch.Tensor:
    """Return how many tokens of each sequence in a cut vocabulary are its unknown token, (N,), int64."""
    if vocabulary is None or vocabulary.unknown_id is None:
        return torch.zeros(len(examples), dtype=torch.int64)
    real = torch.arange(examples.input_ids.shape[1]) < examples.lengths[:, None]
    return ((examples.input_ids == vocabulary.unknown_id) & real).sum(1)


def decode(task: TextTask, examples: Examples) -> list[str]:
    """Return the text of each sequence, without special tokens."""
    tokenizer = task.tokenizer
    assert tokenizer is not None  # noqa: S101 - a task of texts has one once its model is loaded
    lengths = examples.lengths.tolist()
    rows = [ids[:length].tolist() for ids, length in zip(examples.input_ids, lengths, strict=True)]
    return [str(tokenizer.decode(row, skip_special_tokens=True)) for row in rows]


def _spell(examples: Examples, task: Task, vocabulary: CutVocabulary) -> dict[int, npt.NDArray[np.int64]]:
    """Return the new ids of each token that occurs."""
    new = {int(old): number for number, old in enumerate(vocabulary.kept) if old >= 0}
    used = np.unique(examples.input_ids.numpy()).tolist()
    return {
        token: np.array([new[token]] if token in new else _spell_token(token, task, vocabulary), dtype=np.int64)
        for token in used
    }


def _spell_token(token: int, task: Task, vocabulary: CutVocabulary) -> list[int]:
    old, cut = task, vocabulary.task
    assert isinstance(old, TextTask) and isinstance(cut, TextTask)  # noqa: S101, PT018 - only texts have a vocabulary
    assert old.tokenizer is not None and cut.tokenizer is not None  # noqa: S101, PT018
    text = old.tokenizer.convert_ids_to_tokens(token)
    pieces = [piece.id for piece in cut.tokenizer.backend_tokenizer.model.tokenize(text)]
    if pieces:
        return pieces
    if vocabulary.unknown_id is None:
        raise LightenError(f"token {text!r} occurs in the text and cannot be spelled in the cut vocabulary")
    return [vocabulary.unknown_id]
