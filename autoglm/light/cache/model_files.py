"""Models of a search as files of weights, in the packing of a light release, and back to the same bits."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from transformers import GlmConfig, PreTrainedModel

from fedglm.autoglm.light.cache.store import Entry
from fedglm.autoglm.light.pruning.surgery import trim_layers
from fedglm.autoglm.light.quantization.quantizer import QuantizedModel
from fedglm.autoglm.light.quantization.report import QuantizationReport
from fedglm.inference.errors import InferenceError
from fedglm.inference.weights.container import pack_weights, unpack_weights
from fedglm.inference.weights.limits import DEFAULT_LIMITS, Limits
from fedglm.inference.weights.model import NumpyModel, Tensor
from fedglm.inference.weights.quantized import QuantizedMatrix


def pack_model(model: PreTrainedModel, facts: Mapping[str, Any]) -> Entry:
    """Make an entry of a trained model in float32.

    Args:
        model: The model.
        facts: Plain values to keep with it.
    """
    tensors: dict[str, Tensor] = {
        name: tensor.detach().cpu().numpy() for name, tensor in model.named_parameters()
    }  # a tied output layer once
    return Entry(facts=dict(facts), weights=pack_weights(tensors, compact=False))


def unpack_model(entry: Entry, like: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of a model with the weights of an entry, in evaluation mode.

    Args:
        entry: What `pack_model` made.
        like: The model whose weights were trained.

    Raises:
        InferenceError: The entry's weights are malformed, or not of such a model.
    """
    model = copy.deepcopy(like).eval()
    _fill(model, _unpack(entry, like))
    return model


def pack_quantized(quantized: QuantizedModel, facts: Mapping[str, Any]) -> Entry:
    """Make an entry of a quantized model.

    Args:
        quantized: The model.
        facts: Plain values to keep with it.
    """
    model = quantized.model
    own = {"config": dict(model.config), "task": dict(model.task), "report": quantized.report.model_dump(mode="json")}
    return Entry(facts={**facts, "model": own}, weights=pack_weights(model.tensors, compact=False))


def unpack_quantized(entry: Entry, like: PreTrainedModel) -> QuantizedModel:
    """Return the quantized model of an entry.

    Args:
        entry: What `pack_quantized` made.
        like: The dense model that it was made of, whose class and attention it has.

    Raises:
        InferenceError: The entry's weights are malformed, or not of its configuration.
        ValueError, KeyError: Its facts are.
    """
    own = entry.facts["model"]
    tensors = _unpack(entry, like)
    config = GlmConfig.from_dict(own["config"])
    config._attn_implementation = like.config._attn_implementation
    config.use_cache = like.config.use_cache
    reference = _build(type(like), config)
    _fill(reference, tensors)
    return QuantizedModel(
        model=NumpyModel(tensors=tensors, config=own["config"], task=own["task"]),
        reference=reference,
        report=QuantizationReport.model_validate(own["report"]),
    )


def _unpack(entry: Entry, like: PreTrainedModel) -> dict[str, Tensor]:
    if entry.weights is None:
        raise InferenceError("it has no weights")
    most = DEFAULT_LIMITS.max_parameters + _count(like)  # a student of other widths may have more than the model
    return unpack_weights(entry.weights, limits=Limits(max_bytes=len(entry.weights), max_parameters=most))


def _count(model: PreTrainedModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _build(kind: type[PreTrainedModel], config: GlmConfig) -> PreTrainedModel:
    """Build a model of zeros with the widths that a configuration lists, in evaluation mode."""
    model = kind(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    return trim_layers(model).eval()


def _fill(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors into a model's parameters."""
    parameters = dict(model.named_parameters())
    if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != {
        name: tuple(parameter.shape) for name, parameter in parameters.items()
    }:
        raise InferenceError("its weights are of another model")
    with torch.no_grad():
        for name, tensor in tensors.items():
            values = tensor.dequantize() if isinstance(tensor, QuantizedMatrix) else tensor
            parameters[name].copy_(torch.from_numpy(values))
