"""Small GLMs with random weights, none of them at its initial zeros and ones, and byte sequences."""

from __future__ import annotations

import numpy as np
import torch
from small_tasks import text_task
from transformers import PreTrainedModel

from fedglm.autoglm.data.examples import Examples
from fedglm.autoglm.models.heads import HEADS
from fedglm.autoglm.models.presets import Preset, make_glm_config
from fedglm.autoglm.tasks.task import Task

SMALL = Preset(hidden=32, layers=3, heads=4, kv_heads=2, intermediate=24, max_length=64)


def small_glm(task: Task | None = None, *, seed: int = 0, preset: Preset = SMALL, tied: bool | None = None):
    task = task or text_task()
    head = HEADS[task.kind]
    config = make_glm_config(
        preset,
        vocab_size=task.vocab_size,
        pad_id=task.pad_id,
        bos_id=task.bos_id,
        eos_id=task.eos_id,
        tied=not head.is_new if tied is None else tied,
        labels=task.classes,
    )
    config.use_cache = False
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = head.glm(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                around = 1.0 if "norm" in name else 0.0
                parameter.copy_(around + 0.3 * torch.randn_like(parameter))
    return model


def byte_examples(count: int = 6, length: int = 12, *, seed: int = 0, classes: int = 2, low: int = 97, high: int = 123):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, length + 1, count, dtype=np.int32)
    ids = rng.integers(low, high, (count, length), dtype=np.uint8)
    ids[np.arange(length) >= lengths[:, None]] = 255
    return Examples(
        input_ids=torch.from_numpy(ids),
        lengths=torch.from_numpy(lengths),
        labels=torch.from_numpy(rng.integers(0, classes, count)),
        units=torch.arange(count),
    )


def logits(model, examples: Examples | None = None) -> torch.Tensor:
    batch = (examples or byte_examples()).batch(range(len(examples or byte_examples())))
    with torch.no_grad():
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
