"""The output layer of a model for a task, and the transformers classes that have it."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GlmForCausalLM,
    GlmForSequenceClassification,
    PreTrainedModel,
)

from fedglm.inference.inputs.task import Kind


@dataclass(frozen=True, kw_only=True)
class Head:
    """A kind of output layer.

    Attributes:
        glm: Class of a GLM with this head.
        loader: Auto class of transformers for a folder's model.
        is_new: Whether the head may start from random weights where a folder has none that fit, and then trains in full
            beside adapters. Otherwise it is the embedding, transposed, on a body that must be causal.
    """

    glm: type[PreTrainedModel]
    loader: Any
    is_new: bool

    def options(self, classes: tuple[str, ...]) -> dict[str, Any]:
        """Return the head's options in a transformers configuration.

        Args:
            classes: Class names, in the order of the output's rows; empty where tokens are predicted.
        """
        if not self.is_new:
            return {}
        return {
            "num_labels": len(classes),
            "id2label": dict(enumerate(classes)),
            "label2id": {name: i for i, name in enumerate(classes)},
        }


_TOKENS = Head(glm=GlmForCausalLM, loader=AutoModelForCausalLM, is_new=False)
_CLASSES = Head(glm=GlmForSequenceClassification, loader=AutoModelForSequenceClassification, is_new=True)
HEADS: MappingProxyType[Kind, Head] = MappingProxyType(
    {"language-model": _TOKENS, "text-classification": _CLASSES, "tabular-classification": _CLASSES}
)
"""The head that a task of each kind needs."""
