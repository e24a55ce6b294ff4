"""A model of 74 parameters and its data: a real `Node` that trains in a millisecond."""

from types import SimpleNamespace

import torch
from torch import nn

from fedglm.autoglm.data.examples import Examples
from fedglm.autoglm.settings import LocalTrainingSettings
from fedglm.autoglm.tasks.classification import TextClassification
from fedglm.client.node import Node
from fedglm.compression.settings import DownlinkSettings, UpdateSettings
from fedglm.protocol.federated_model import FederatedModel

TASK = TextClassification(length=6, vocab_size=16, pad_id=0, bos_id=1, eos_id=2, labels=("low", "high"))


class TinyModel(nn.Module):
    """The mean of the tokens' embeddings, dropout, one linear layer."""

    def __init__(self, dropout=0.0, width=4):
        super().__init__()
        self.embedding = nn.Embedding(16, width)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, 2)

    def forward(self, input_ids, attention_mask):
        vectors = self.embedding(input_ids) * attention_mask[..., None]
        mean = vectors.sum(1) / attention_mask.sum(1, keepdim=True)
        return SimpleNamespace(logits=self.head(self.dropout(mean)))


def tiny_model(seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TinyModel(**options)


def examples(count=24, seed=0):
    """Six tokens each; the label says whether high tokens are in the majority."""
    tokens = torch.randint(3, 16, (count, 6), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Examples(
        input_ids=tokens,
        lengths=torch.full((count,), 6, dtype=torch.int32),
        labels=(tokens.float().mean(1) > 9).long(),
        units=torch.arange(count),
    )


def federated_model(**options):
    return FederatedModel(tiny_model(**options), TASK, DownlinkSettings())


def tiny_node(folder, name="a", *, model=None, update=None, data_seed=0, rows=24, envelope=0, **training):
    settings = {"local_steps": 3, "batch_size": 8, "learning_rate": 0.05, "precision": "fp32", "device": "cpu"}
    return Node(
        name,
        model or federated_model(),
        train=examples(rows, data_seed),
        held_out=examples(10, data_seed + 1000),
        training=LocalTrainingSettings(**(settings | training)),
        update=UpdateSettings(**(update or {"codec": "topk-fp16", "density": 0.1, "residual_decay": 1.0})),
        folder=folder / name,
        seed=7,
        declared=rows,
        envelope=envelope,
    )
