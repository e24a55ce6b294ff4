"""Small GLMs of torch with random weights, and their tensors as the graph takes them: plain, or of random codes."""

from copy import deepcopy

import numpy as np
import torch
from transformers import GlmConfig, GlmForCausalLM, GlmForSequenceClassification

from fedglm.inference.weights.quantized import QuantizedMatrix

VOCAB = 61


def small_config(**changes):
    """A GLM of two layers whose widths are multiples of 16 and no powers of two, so that last blocks are not full."""
    settings = {
        "vocab_size": VOCAB,
        "hidden_size": 80,
        "intermediate_size": 144,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 20,
        "max_position_embeddings": 128,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5},
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return GlmConfig(**(settings | changes))


def llama_config():
    """A Llama as a GLM: whole heads rotated, no biases."""
    rope = {"rope_type": "default", "rope_theta": 100_000.0, "partial_rotary_factor": 1.0}
    return small_config(rope_parameters=rope, attention_bias=False, rms_norm_eps=1e-5)


def random_glm(config, kind=GlmForCausalLM, seed=0):
    """A model in evaluation mode; norms, biases and weights all differ from what they start as."""
    generator = torch.Generator().manual_seed(seed)
    model = kind(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * noise if "norm" in name else noise * parameter.shape[-1] ** -0.5)
    return model


def random_classifier(seed=0, **changes):
    config = small_config(num_labels=3, tie_word_embeddings=False, **changes)
    return random_glm(config, GlmForSequenceClassification, seed)


def uneven_glm(seed=0):
    """A language model whose layers differ in width and in numbers of heads, and its configuration with those."""
    shapes = [(144, 4, 2), (48, 2, 1), (96, 6, 3)]
    names = ("intermediate_size", "num_attention_heads", "num_key_value_heads")
    model = GlmForCausalLM(small_config(num_hidden_layers=len(shapes))).eval()
    for number, shape in enumerate(shapes):
        config = deepcopy(model.config)
        for name, value in zip(names, shape, strict=True):
            setattr(config, name, value)
        model.model.layers[number] = type(model.model.layers[number])(config, number)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5)
    layers = [dict(zip(names, shape, strict=True)) for shape in shapes]
    return model.eval(), config_of(model) | {"fedglm_layers": layers}


def config_of(model):
    """What ``config.json`` would hold."""
    return model.config.to_dict() | {"architectures": [type(model).__name__]}


def tensors_of(model):
    """The state dict in numpy, without the second name of a tied output layer."""
    tensors = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    return tensors


def random_codes(shape, *, low=-8, high=7, block=32, zeros=None, seed=0):
    """A matrix of random codes, whose values have the deviation that keeps a Linear's output as large as its input."""
    generator = np.random.default_rng([seed, *shape])
    blocks = (shape[0], -(-shape[1] // block))
    deviation = ((high - low + 1) ** 2 / 12) ** 0.5
    scales = (generator.uniform(0.5, 1.5, blocks) / deviation / shape[1] ** 0.5).astype(np.float16).astype(np.float32)
    return QuantizedMatrix(
        codes=generator.integers(low, high, shape, dtype=np.int8, endpoint=True),
        scales=scales,
        zeros=None if zeros is None else generator.integers(*zeros, blocks, dtype=np.int8, endpoint=True),
        block=block,
        low=low,
        high=high,
    )


def with_codes(tensors, **scheme):
    """The tensors with all matrices of random codes, and the embedding's blocks no longer than a row."""
    return {
        name: random_codes(value.shape, seed=number, **scheme) if value.ndim == 2 else value
        for number, (name, value) in enumerate(tensors.items())
    }


def fill_torch(model, tensors):
    """Load the values that the tensors stand for into a torch model: its reference."""
    values = {
        name: tensor.dequantize() if isinstance(tensor, QuantizedMatrix) else np.asarray(tensor, np.float32)
        for name, tensor in tensors.items()
    }
    if model.config.tie_word_embeddings:
        values["lm_head.weight"] = values["model.embed_tokens.weight"]
    model.load_state_dict({name: torch.from_numpy(value) for name, value in values.items()})
    return model


def torch_logits(model, ids, mask=None):
    """Logits at all positions, or a classifier's at each, (B, S, outputs)."""
    with torch.no_grad():
        options = {} if mask is None else {"attention_mask": torch.from_numpy(mask).long()}
        if mask is not None:
            options["position_ids"] = torch.from_numpy(np.maximum(mask.cumsum(1) - 1, 0))
        hidden = model.model(torch.from_numpy(ids), **options).last_hidden_state
        head = model.lm_head if hasattr(model, "lm_head") else model.score
        return head(hidden).numpy()


def everywhere(ids):
    """Ask for the logits at all positions."""
    return np.tile(np.arange(ids.shape[1]), (len(ids), 1))


def relative_error(found, expected):
    """The greatest error, as a share of the greatest value."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())
