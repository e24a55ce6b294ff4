"""Sequences made by a model: text sampled from a language model, or rows of a table that a classifier labels.

Whatever is computed from a model alone is post-processing: where the model was trained under differential privacy, it
reveals nothing more (Dwork and Roth, "The Algorithmic Foundations of Differential Privacy", proposition 2.1). Data-free
distillation: Liu et al., arXiv:2305.17888, section 2.1.
"""

from __future__ import annotations

import numpy as np
import torch
from transformers import PreTrainedModel

from fedglm.autoglm.data.examples import Examples
from fedglm.autoglm.data.texts import smallest_type
from fedglm.autoglm.errors import DataError
from fedglm.autoglm.tasks.classification import TabularClassification
from fedglm.autoglm.tasks.language_modeling import LanguageModeling
from fedglm.autoglm.tasks.task import Task, compute_logits

_BATCH = 32


def sample_examples(model: PreTrainedModel, task: Task, count: int, *, seed: int, temperature: float = 1.0) -> Examples:
    """Sample sequences from a language model, or draw a table's rows and let the classifier label them.

    A language model starts from its begin token and stops at its end token or the task's length. A row's bins are drawn
    independently and evenly, from the encoder's public edges alone. Each sequence is a unit of its own.

    Args:
        model: The model, on any device; it keeps its mode.
        task: Task of the model.
        count: Number of sequences.
        seed: Seed of the draw; the same seed and model give the same sequences on one machine.
        temperature: Temperature of a language model's distribution; classifiers take the likeliest class.

    Raises:
        DataError: The model classifies texts, so it makes none.
    """
    generator = torch.Generator().manual_seed(seed)
    training = model.training
    model.eval()
    try:
        if isinstance(task, LanguageModeling):
            parts = [
                _sample_text(model, task, min(_BATCH, count - first), generator, temperature)
                for first in range(0, count, _BATCH)
            ]
            return _gather(parts, task)
        if isinstance(task, TabularClassification):
            return _draw_rows(model, task, count, generator)
    finally:
        model.train(training)
    raise DataError("a classifier of texts makes no text: name a file of public texts")


@torch.no_grad()
def _sample_text(
    model: PreTrainedModel, task: LanguageModeling, rows: int, generator: torch.Generator, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    device = next(model.parameters()).device
    ids = torch.full((rows, task.length), task.pad_id, dtype=torch.int64)
    ids[:, 0] = task.bos_id
    lengths = torch.ones(rows, dtype=torch.int32)
    going, cache = torch.ones(rows, dtype=torch.bool), None
    for position in range(1, task.length):
        output = model(input_ids=ids[:, position - 1 : position].to(device), past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        logits = output.logits[:, -1, : task.vocab_size].float().cpu() / temperature
        # A model may give padding and a second beginning some probability; no text holds them.
        logits[:, [token for token in {task.pad_id, task.bos_id} if token != task.eos_id]] = -torch.inf
        drawn = torch.multinomial(torch.softmax(logits, dim=-1), 1, generator=generator)[:, 0]
        ids[going, position] = drawn[going]
        lengths[going] += 1
        going &= drawn != task.eos_id
        if not going.any():
            break
    return ids, lengths


def _gather(parts: list[tuple[torch.Tensor, torch.Tensor]], task: Task) -> Examples:
    ids, lengths = (torch.cat(column) for column in zip(*parts, strict=True))
    return Examples(
        input_ids=torch.from_numpy(ids.numpy().astype(smallest_type(task.vocab_size))),
        lengths=lengths,
        labels=torch.zeros(len(ids), dtype=torch.int64),
        units=torch.arange(len(ids)),
    )


def _draw_rows(model: PreTrainedModel, task: TabularClassification, count: int, generator: torch.Generator) -> Examples:
    table = task.table
    bins = torch.randint(table.bins, (count, len(table.names)), generator=generator).numpy()
    firsts = np.arange(len(table.names)) * (table.bins + 1)
    ids = np.append(firsts + bins, np.full((count, 1), table.end_id), axis=1).astype(smallest_type(task.vocab_size))
    rows = Examples(
        input_ids=torch.from_numpy(ids),
        lengths=torch.full((count,), table.length, dtype=torch.int32),
        labels=torch.zeros(count, dtype=torch.int64),
        units=torch.arange(count),
    )
    with torch.no_grad():
        for first in range(0, count, _BATCH):
            chosen = range(first, min(first + _BATCH, count))
            logits, _ = compute_logits(model, rows.batch(chosen))
            rows.labels[list(chosen)] = logits.argmax(-1).cpu()
    return rows
