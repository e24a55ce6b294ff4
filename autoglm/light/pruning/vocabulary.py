"""Cutting a model's vocabulary to the tokens of public text: its embedding, output layer, tokenizer and task together.

The ids of what is kept become 0, 1, 2, ... in their order; the new ids travel in the tokenizer's own files and in the
task, so that nothing else has to know. Never cut to a node's text: which tokens a model has would reveal what it read.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn
from transformers import PreTrainedModel

from fedglm.autoglm.data.examples import Examples
from fedglm.autoglm.data.records import Records
from fedglm.autoglm.light.pruning.errors import PruningError
from fedglm.autoglm.light.pruning.surgery import read_shape
from fedglm.autoglm.light.pruning.tokenizer_cut import cut_tokenizer
from fedglm.autoglm.tasks.task import Task
from fedglm.autoglm.tasks.text import TextTask


class VocabularySettings(BaseModel):
    """Which tokens stay.

    Attributes:
        min_count: Least number of times that a token occurs in the public text.
        keep_alphabet: Whether all tokens of one character or byte stay, so that no text becomes unknown. A byte
            tokenizer has no others: there it must be off, and bytes that the public text lacks become unknown.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_count: int = Field(default=1, ge=1)
    keep_alphabet: bool = True


@dataclass(frozen=True, eq=False, kw_only=True)
class CutVocabulary:
    """A model with a smaller vocabulary.

    Attributes:
        model: The model, with one embedding row a kept token.
        task: Its task, with the cut tokenizer.
        kept: Old id of each new id, (tokens,), int64; -1 for an unknown token that was added.
        unknown_id: New id of the unknown token; None where every text can be spelled without.
        rows: Number of embedding rows before the cut.
    """

    model: PreTrainedModel
    task: Task
    kept: npt.NDArray[np.int64]
    unknown_id: int | None
    rows: int

    def count_unknown(self, texts: Sequence[str]) -> tuple[int, int]:
        """Return how many tokens of some texts are unknown to the cut model, and how many there are."""
        examples = _encode(self.task, texts)
        ids = _real_tokens(examples)
        return int((ids == self.unknown_id).sum()) if self.unknown_id is not None else 0, len(ids)

    def describe(self, texts: Sequence[str]) -> str:
        """Say in one line what the cut kept, and how much of some texts it cannot spell."""
        unknown, total = self.count_unknown(texts)
        share = unknown / max(total, 1)
        return f"{len(self.kept)} of {self.rows} tokens kept; {unknown} of {total} tokens unknown ({share:.4%})"


def cut_vocabulary(
    model: PreTrainedModel, task: Task, texts: Sequence[str], settings: VocabularySettings
) -> CutVocabulary:
    """Cut a model's vocabulary to the tokens of public texts; the model and task given are unchanged.

    Logits of kept tokens are the same bits. The added unknown token's row is the mean of the rows that went.

    Args:
        model: A GLM for language modelling or classification of texts.
        task: Its task.
        texts: Public or model-made texts.
        settings: Which tokens stay.

    Raises:
        PruningError: The task has no tokenizer, its tokenizer cannot be cut, nothing would go, or the model is no GLM.
    """
    if not isinstance(task, TextTask) or task.tokenizer is None:
        raise PruningError("only a vocabulary of texts can be cut: a table's tokens are its bins")
    if not texts:
        raise PruningError("no public texts to choose the vocabulary by")
    read_shape(model)
    rows = len(model.get_input_embeddings().get_parameter("weight"))
    counts = np.bincount(_real_tokens(_encode(task, texts)), minlength=rows)
    needed = {task.pad_id, task.bos_id, task.eos_id}
    used = {*np.flatnonzero(counts >= settings.min_count).tolist(), *needed}
    cut = cut_tokenizer(task.tokenizer, used, keep_alphabet=settings.keep_alphabet)
    if len(cut.kept) >= rows:
        raise PruningError(
            f"nothing would go: {len(cut.kept)} of {rows} tokens stay; raise min_count or set keep_alphabet off"
        )
    new_id = {int(old): new for new, old in enumerate(cut.kept)}
    small = _cut_rows(model, cut.kept, new_id)
    changes = {"pad_id": new_id[task.pad_id], "bos_id": new_id[task.bos_id], "eos_id": new_id[task.eos_id]}
    smaller = replace(task, vocab_size=len(cut.kept), tokenizer=cut.tokenizer, **changes)
    return CutVocabulary(model=small, task=smaller, kept=cut.kept, unknown_id=cut.unknown_id, rows=rows)


def _cut_rows(model: PreTrainedModel, kept: npt.NDArray[np.int64], new_id: dict[int, int]) -> PreTrainedModel:
    small = copy.deepcopy(model)
    embedding = small.get_input_embeddings()
    tied = not hasattr(small, "score") and small.lm_head.weight is embedding.weight
    pad = new_id.get(small.config.pad_token_id)
    smaller = nn.Embedding(len(kept), embedding.embedding_dim, padding_idx=pad, _weight=_take(embedding.weight, kept))
    small.set_input_embeddings(smaller)
    if not hasattr(small, "score"):
        head = small.lm_head
        head.weight = smaller.weight if tied else nn.Parameter(_take(head.weight, kept))
        head.out_features = small.vocab_size = len(kept)
    small.model.vocab_size = small.config.vocab_size = len(kept)
    small.model.padding_idx = pad
    for holder in (small.config, getattr(small, "generation_config", None)):
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            if holder is not None and getattr(holder, name, None) is not None:
                setattr(holder, name, _map_ids(getattr(holder, name), new_id))
    return small


def _map_ids(value: int | list[int], new_id: dict[int, int]) -> Any:
    """Map a configuration's id or list of ids; ids that no tokenizer has, as GLM's defaults, go."""
    if isinstance(value, list):
        return [new_id[number] for number in value if number in new_id] or None
    return new_id.get(value)


def _take(weight: torch.Tensor, kept: npt.NDArray[np.int64]) -> torch.Tensor:
    """Return the kept rows; that of an added token is the mean of those that went, of all where none did."""
    old = torch.from_numpy(kept)
    rows = weight.detach()[old.clamp(min=0)].clone()
    if (old < 0).any():
        gone = torch.ones(len(weight), dtype=torch.bool)
        gone[old[old >= 0]] = False
        rows[old < 0] = (weight.detach()[gone] if gone.any() else weight.detach()).mean(0)
    return rows


def _encode(task: Task, texts: Sequence[str]) -> Examples:
    count = len(texts)
    labels = list(task.classes[:1]) * count  # a text's class changes none of its tokens
    return task.examples(Records(texts=list(texts), units=[str(row) for row in range(count)], labels=labels))[0]


def _real_tokens(examples: Examples) -> npt.NDArray[np.int64]:
    """Return the ids of all tokens that are no padding, (tokens,), int64."""
    real = torch.arange(examples.input_ids.shape[1]) < examples.lengths[:, None]
    ids: npt.NDArray[np.int64] = examples.input_ids[real].numpy().astype(np.int64)
    return ids
