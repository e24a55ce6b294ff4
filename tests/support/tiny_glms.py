"""GLMs of a few thousand parameters, and random sequences for them."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from fedglm.autoglm.data.examples import Examples
from fedglm.autoglm.models.heads import HEADS
from fedglm.autoglm.models.presets import Preset, make_glm_config
from fedglm.autoglm.tasks.classification import TextClassification
from fedglm.autoglm.tasks.language_modeling import LanguageModeling
from fedglm.autoglm.tasks.task import Task

VOCABULARY = 24
LANGUAGE = LanguageModeling(length=8, vocab_size=VOCABULARY, pad_id=0, bos_id=1, eos_id=2)
CLASSES = TextClassification(
    length=8, vocab_size=VOCABULARY, pad_id=0, bos_id=1, eos_id=2, labels=("no", "perhaps", "yes")
)
SHAPE = Preset(hidden=16, layers=3, heads=4, kv_heads=2, intermediate=24, max_length=32)


def tiny_glm(task: Task = LANGUAGE, shape: Preset = SHAPE, *, seed: int = 0, spread: float = 1.0) -> PreTrainedModel:
    """A GLM in training mode; a spread above 1 makes it say something before any training."""
    head = HEADS[task.kind]
    config = make_glm_config(
        shape,
        vocab_size=task.vocab_size,
        pad_id=task.pad_id,
        bos_id=task.bos_id,
        eos_id=task.eos_id,
        tied=not head.is_new,
        labels=task.classes,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = head.glm(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(spread if parameter.dim() > 1 else 1.0)
    model.config.use_cache = False
    return model.train()


def random_examples(count: int, task: Task = LANGUAGE, *, seed: int = 0, shortest: int = 4) -> Examples:
    """Random tokens; a classifier's label follows from the first."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, task.vocab_size, (count, task.length), generator=generator)
    lengths = torch.randint(shortest, task.length + 1, (count,), generator=generator)
    ids[torch.arange(task.length) >= lengths[:, None]] = task.pad_id
    labels = ids[:, 0] % max(1, len(task.classes))
    return Examples(
        input_ids=ids.to(torch.uint8), lengths=lengths.to(torch.int32), labels=labels, units=torch.arange(count)
    )
