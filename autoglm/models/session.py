"""A model of transformers as a `Session`: torch runs what the ONNX graph of a light release runs elsewhere."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel
from transformers.modeling_layers import GenericForSequenceClassification

from fedglm.autoglm.errors import ModelError
from fedglm.autoglm.quiet import quiet_transformers
from fedglm.inference.errors import InferenceError
from fedglm.inference.runtime.padding import cut_mask, join_masks, simplify
from fedglm.inference.runtime.session import Cache

_NO_LIMIT: Final = 2**20
"""Maximum length of a model that states none, because its positions are relative."""


@dataclass(frozen=True, eq=False, kw_only=True)
class TorchCache:
    """Keys and values of a model of transformers.

    Attributes:
        layers: Keys and values of each layer, (B, heads, length, width) each.
        length: Number of positions.
        mask: False where a position is padding, (B, length), bool; None where none is.
    """

    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    length: int
    mask: npt.NDArray[np.bool_] | None = None

    def select(self, rows: npt.NDArray[np.int64]) -> TorchCache:
        """Return a cache of these sequences of the batch, (new B,): reordered, repeated or dropped."""
        index = torch.from_numpy(rows)
        layers = tuple((keys[index], values[index]) for keys, values in self.layers)
        return TorchCache(layers=layers, length=self.length, mask=cut_mask(self.mask, rows))

    def truncate(self, length: int) -> TorchCache:
        """Return a cache of the first `length` positions.

        Raises:
            InferenceError: The cache holds fewer.
        """
        if not 0 <= length <= self.length:
            raise InferenceError(f"a cache of {self.length} positions cannot be cut to {length}")
        layers = tuple((keys[:, :, :length], values[:, :, :length]) for keys, values in self.layers)
        return TorchCache(layers=layers, length=length, mask=cut_mask(self.mask, np.s_[:, :length]))

    def skip(self, count: int) -> TorchCache:
        """Return a cache without its first `count` positions, which are padding in every sequence.

        Raises:
            InferenceError: One is not.
        """
        if not 0 <= count <= self.length or (count and (self.mask is None or self.mask[:, :count].any())):
            raise InferenceError(f"the first {count} of {self.length} positions are not all padding")
        layers = tuple((keys[:, :, count:], values[:, :, count:]) for keys, values in self.layers)
        return TorchCache(layers=layers, length=self.length - count, mask=cut_mask(self.mask, np.s_[:, count:]))

    def join(self, others: Sequence[TorchCache]) -> TorchCache:
        """Return a cache of the sequences of this and of the others, in order; the shorter are padded on the left."""
        caches = (self, *others)
        length = max(cache.length for cache in caches)
        layers = tuple(
            (_stack_right([keys for keys, _ in layer]), _stack_right([values for _, values in layer]))
            for layer in zip(*(cache.layers for cache in caches), strict=True)
        )
        shapes = [(len(cache.layers[0][0]), cache.length) for cache in caches]
        return TorchCache(layers=layers, length=length, mask=join_masks([cache.mask for cache in caches], shapes))

    def nbytes(self) -> int:
        """Return the number of bytes of its keys and values."""
        return sum(keys.nbytes + values.nbytes for keys, values in self.layers)


def _stack_right(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Stack (B, heads, length, width) along B, aligned at the end of their lengths; zeros fill up."""
    length = max(part.shape[2] for part in parts)
    return torch.cat([functional.pad(part, (0, 0, length - part.shape[2], 0)) for part in parts])


class TorchSession:
    """Runs a model of transformers, on the CPU and in its own precision; a `Session`.

    A classifier that is not built on a causal model of transformers' generic kind (BERT, say) takes whole sequences
    only: its caches hold nothing, and cannot be gone on from.

    Args:
        model: Model for causal language modelling or sequence classification, in evaluation mode.

    Attributes:
        outputs: Width of the output layer.
        max_length: Maximum number of positions of a sequence.
        vocab_size: Exclusive upper bound of token ids.

    Raises:
        ModelError: The model keeps a state that is no keys and values (Mamba, say), and is to generate.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        config = model.config.get_text_config()
        self._model = model
        self._parameters = inspect.signature(model.forward).parameters
        self._classifies = model.get_output_embeddings() is None
        self._keeps_cache = not self._classifies or isinstance(model, GenericForSequenceClassification)
        if not self._classifies and (model._is_stateful or "past_key_values" not in self._parameters):
            raise ModelError(f"a {config.model_type} model keeps no keys and values, and cannot generate text here")
        self.vocab_size: int = len(model.get_input_embeddings().get_parameter("weight"))
        self.outputs: int = config.num_labels if self._classifies else self.vocab_size
        self.max_length: int = getattr(config, "max_position_embeddings", None) or _NO_LIMIT

    def run(
        self,
        ids: npt.NDArray[np.int64],
        cache: Cache | None = None,
        *,
        logits_at: npt.NDArray[np.int64] | None = None,
        mask: npt.NDArray[np.bool_] | None = None,
    ) -> tuple[npt.NDArray[np.float32], TorchCache]:
        """Read more tokens; as `Session.run` says.

        Raises:
            InferenceError: A shape, a token or a length does not fit the model; or the cache holds padding and there is
                no mask that says so.
        """
        past = self._check_cache(cache)
        positions = self._check(ids, past, logits_at, mask)
        with torch.inference_mode(), quiet_transformers():
            tokens, at = torch.from_numpy(ids), torch.from_numpy(positions)
            if self._keeps_cache:
                logits, layers = self._run_causal(tokens, at, past, mask)
            else:
                logits, layers = self._run_whole(tokens, at), ()
        length = ids.shape[1] + (past.length if past else 0)
        new = TorchCache(layers=layers, length=length, mask=None if mask is None else simplify(mask))
        return logits.float().numpy(), new

    def _run_causal(
        self, tokens: torch.Tensor, at: torch.Tensor, past: TorchCache | None, mask: npt.NDArray[np.bool_] | None
    ) -> tuple[torch.Tensor, tuple[tuple[torch.Tensor, torch.Tensor], ...]]:
        kept = DynamicCache(past.layers if past else None)
        inputs: dict[str, Any] = {"input_ids": tokens, "past_key_values": kept, "use_cache": True}
        if mask is not None:
            inputs["attention_mask"] = torch.from_numpy(mask).long()
            if "position_ids" in self._parameters:
                counted = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
                inputs["position_ids"] = counted[:, -tokens.shape[1] :]
        if self._classifies:
            body = getattr(self._model, self._model.base_model_prefix)
            hidden = body(**inputs).last_hidden_state
            picked = torch.take_along_dim(hidden, at[:, :, None], dim=1)
            logits = self._model.get_submodule("score")(picked)
        elif "logits_to_keep" in self._parameters:
            # Of all sequences' positions, so that the output layer is computed at few; then each one's own.
            union, own = torch.unique(at, return_inverse=True)
            logits = torch.take_along_dim(self._model(**inputs, logits_to_keep=union).logits, own[:, :, None], dim=1)
        else:
            logits = torch.take_along_dim(self._model(**inputs).logits, at[:, :, None], dim=1)
        return logits, tuple((layer.keys, layer.values) for layer in kept.layers)

    def _run_whole(self, tokens: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        if at.shape[1] != 1:
            raise InferenceError("this classifier has one output for a sequence, and is asked for several")
        mask = (torch.arange(tokens.shape[1]) <= at).long()
        logits: torch.Tensor = self._model(input_ids=tokens, attention_mask=mask).logits
        return logits[:, None]

    def _check_cache(self, cache: Cache | None) -> TorchCache | None:
        if cache is not None and not isinstance(cache, TorchCache):
            raise InferenceError("the cache is not one of this session's")
        if cache is not None and not self._keeps_cache:
            raise InferenceError("this classifier takes whole sequences only, and cannot go on from a cache")
        return cache

    def _check(
        self,
        ids: npt.NDArray[np.int64],
        past: TorchCache | None,
        logits_at: npt.NDArray[np.int64] | None,
        mask: npt.NDArray[np.bool_] | None,
    ) -> npt.NDArray[np.int64]:
        """Check the arguments of `run`, and return the positions of the logits, (B, K)."""
        if ids.ndim != 2 or ids.dtype != np.int64 or not ids.size:
            raise InferenceError(f"tokens are int64 in two dimensions, not {ids.dtype} of shape {ids.shape}")
        batch, size = ids.shape
        if ids.min() < 0 or ids.max() >= self.vocab_size:
            raise InferenceError(f"tokens run from {ids.min()} to {ids.max()}, and the model has {self.vocab_size}")
        if past is not None and len(past.layers[0][0]) != batch:
            raise InferenceError(f"the cache is of {len(past.layers[0][0])} sequences, and there are {batch}")
        total = size + (past.length if past else 0)
        if total > self.max_length:
            raise InferenceError(f"{total} tokens are more than the {self.max_length} that the model takes")
        if mask is None and past is not None and past.mask is not None:
            raise InferenceError("the cache holds padding: a mask must say where")
        if mask is not None and (mask.shape != (batch, total) or mask.dtype != np.bool_):
            raise InferenceError(f"the mask is bool of shape {(batch, total)}, not {mask.dtype} of {mask.shape}")
        if logits_at is None:
            return np.full((batch, 1), size - 1, dtype=np.int64)
        if logits_at.ndim != 2 or len(logits_at) != batch or logits_at.dtype != np.int64:
            raise InferenceError(f"positions of logits are int64 of shape ({batch}, K), not of {logits_at.shape}")
        if logits_at.size and (logits_at.min() < 0 or logits_at.max() >= size):
            raise InferenceError(f"positions of logits must be from 0 to {size - 1}")
        return logits_at
