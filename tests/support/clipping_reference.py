"""Small GLMs, and what clipping them must give: a loop that takes one record at a time, by autograd alone."""

import torch
from torch import nn
from transformers import GlmForCausalLM, GlmForSequenceClassification

from fedglm.autoglm.models.lora import attach_lora
from fedglm.autoglm.models.parameters import federated_parameters
from fedglm.autoglm.models.presets import Preset, make_glm_config
from fedglm.autoglm.tasks.classification import TextClassification
from fedglm.autoglm.tasks.language_modeling import LanguageModeling
from fedglm.privacy.dp.ghost_clipping import GhostClipper
from fedglm.privacy.dp.sample_clipping import SampleClipper

LENGTHS = torch.tensor([12, 5, 9, 12, 3, 7])
ALONE = torch.arange(6)
SHARED = torch.tensor([0, 0, 0, 1, 2, 2])
LEFT_BY_OPACUS = ("grad_sample", "_forward_counter", "_current_grad_sample")
CLIPPERS = {
    "ghost": GhostClipper,
    "ghost that keeps nothing": lambda *arguments: GhostClipper(*arguments, max_buffer_bytes=0),
    "hooks": SampleClipper,
}


def glm(kind, adapter="full", *, vocabulary=64, pad=0, seed=0, **changes):
    """A small GLM and its task: a language model has tied embeddings, a classifier has none."""
    labels = ("a", "b", "c") if kind == "classifier" else ()
    ids = {"pad_id": pad, "bos_id": 1, "eos_id": 2}
    preset = Preset(hidden=32, layers=2, heads=4, kv_heads=2, intermediate=48, max_length=64)
    config = make_glm_config(preset, vocab_size=vocabulary, tied=not labels, labels=labels, **ids)
    config.update({"use_cache": False, "attention_bias": True} | changes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = (GlmForSequenceClassification if labels else GlmForCausalLM)(config)
        if adapter == "lora":
            model = attach_lora(model, rank=4, alpha=8.0, classifier=bool(labels))
        for name, parameter in model.named_parameters():
            if "lora_B" in name or name.endswith("bias"):
                nn.init.normal_(parameter, std=0.1)  # at zero they would hide what is wrong with lora_A
    ids |= {"length": 64, "vocab_size": vocabulary}
    return model.train(), TextClassification(labels=labels, **ids) if labels else LanguageModeling(**ids)


def batch(vocabulary=64, lengths=LENGTHS, seed=1):
    draw = torch.Generator().manual_seed(seed)
    mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
    ids = torch.randint(3, vocabulary, mask.shape, generator=draw) * mask
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.randint(0, 3, lengths.shape, generator=draw)}


def some(data, chosen):
    return {name: values[chosen] for name, values in data.items()}


def trained(model):
    return [parameter for _, parameter in federated_parameters(model)]


def naive_units(model, task, data, owners, bf16=False):
    """(U, size) float64 gradients of units, unclipped: one forward and backward a record."""
    parameters, rows = trained(model), []
    for unit in range(int(owners[-1]) + 1):
        mine = torch.nonzero(owners == unit).flatten()
        total = 0
        for record in mine:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = task.sequence_losses(model, some(data, record[None])).sum()
            parts = torch.autograd.grad(loss, parameters, materialize_grads=True)
            total = total + torch.cat([part.flatten() for part in parts]).double() / len(mine)
        rows.append(total)
    return torch.stack(rows)


def clip(units, norm):
    norms = units.norm(dim=1, keepdim=True)
    return (units * (norm / norms).clamp(max=1)).sum(0)


def add(clipper, model, task, data, owners, bf16=False):
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        losses = task.sequence_losses(model, data)
    clipper.add(losses, owners)


def clipped_sum(clipper, model, task, data, owners, bf16=False):
    with clipper:
        clipper.begin()
        add(clipper, model, task, data, owners, bf16)
    return clipper.total.clone()


BF16_ROUNDOFF = 2.0**-8
"""Most that rounding to bfloat16 changes a number by, as a share of it: 8 significant bits, to the nearest."""
LAYER_ROUNDINGS = 8 + 7
"""To bfloat16, one after the other on the way through a layer under autocast.

Attention: its input, a weight, what it gives, queries and keys after their rotation, attention weights, their mean, the
output's weight, what that gives. Feed-forward: input, weight, what it gives, activation, product, weight, output.
"""
ADAPTER_ROUNDINGS = 4 * 6
"""And where the four linear maps on that way have adapters: two weights, two outputs, the scaled one, the sum."""
HEAD_ROUNDINGS = 3


def bf16_gap(adapter="full", layers=2):
    """The gap that two correct bfloat16 passes over the same records stay within, on any CPU.

    Products of bfloat16 are exact in float32, and every CPU sums them there, in an order that shapes and instructions
    decide: from that come differences of 2^-24, which rounding to bfloat16 turns into one of its own size or into none.
    At worst two passes round apart at each place. An error is uniform up to `BF16_ROUNDOFF`, so a third of its square
    in the mean; errors that know nothing of each other add by their squares, over all places on the way forth and back,
    and over both passes. What passes a layer by, on the residual stream, is in float32: so the gap is less in truth.
    """
    forth = layers * (LAYER_ROUNDINGS + (ADAPTER_ROUNDINGS if adapter == "lora" else 0)) + HEAD_ROUNDINGS
    return (2 * 2 * forth / 3) ** 0.5 * BF16_ROUNDOFF


def gap(result, wanted):
    return float((result - wanted).norm() / wanted.norm())


def remains(model):
    """All that hooks could have left behind."""
    return {
        "names": [name for name, _ in model.named_parameters()],
        "modules": [(name, type(module), sorted(vars(module))) for name, module in model.named_modules()],
        "hooks": [
            len(hooks)
            for module in model.modules()
            for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        ],
        "parameters": [
            [(id(parameter), type(parameter)) for parameter in module._parameters.values()]
            for module in model.modules()
        ],
        "marks": [name for parameter in model.parameters() for name in LEFT_BY_OPACUS if hasattr(parameter, name)],
        "gradients": [parameter.grad is None for parameter in model.parameters()],
    }
