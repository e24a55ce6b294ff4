"""A light model in use: its graph on ONNX Runtime, filled in memory, with neither torch nor onnx."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from fedglm.inference.errors import InferenceError
from fedglm.inference.runtime.architecture import Architecture, read_architecture
from fedglm.inference.runtime.filled_graph import INTEGER_ACTIVATIONS, open_filled_graph
from fedglm.inference.runtime.initializers import Tensors, check_sizes, fill
from fedglm.inference.runtime.key_value_cache import KeyValueCache
from fedglm.inference.runtime.session import Cache
from fedglm.inference.runtime.skeleton import read_initializers, unpack_skeleton


class GraphSession:
    """A `Session` on ONNX Runtime; safe to share between threads, as its runs keep nothing.

    Use `open`.
    """

    def __init__(self, session: onnxruntime.InferenceSession, architecture: Architecture) -> None:
        self._session, self._architecture = session, architecture
        self._past = [f"past.{n}.{name}" for n in range(len(architecture.layers)) for name in ("key", "value")]

    @classmethod
    def open(
        cls,
        skeleton: bytes,
        tensors: Tensors,
        config: Mapping[str, Any],
        *,
        threads: int = 1,
        accuracy_level: int = INTEGER_ACTIVATIONS,
        filled: Callable[[], object] | None = None,
    ) -> GraphSession:
        """Fill a skeleton with a model's tensors.

        Args:
            skeleton: As ``build_skeleton`` or a light release gives it.
            tensors: The model's, named as in the transformers state dict.
            config: Its ``config.json``.
            threads: Number of threads of a run.
            accuracy_level: `INTEGER_ACTIVATIONS` or `EXACT_ACTIVATIONS`.
            filled: Called when the tensors are not read any more, before ONNX Runtime takes memory: who has no other
                use for them may drop them then.

        Raises:
            InferenceError: The skeleton is damaged, a tensor is missing or does not fit it, or ONNX Runtime refuses it.
        """
        architecture = read_architecture(config)
        model = unpack_skeleton(skeleton)
        wanted = read_initializers(model)
        check_sizes(wanted, tensors, architecture)
        arrays = {one.name: fill(one, tensors, architecture) for one in wanted}
        if filled is not None:
            filled()
        session = open_filled_graph(model, arrays, threads=threads, accuracy_level=accuracy_level)
        names = {value.name for value in session.get_inputs()}
        opened = cls(session, architecture)
        if names != {"input_ids", "position_ids", "mask", "logits_at", *opened._past}:
            raise InferenceError("the graph's inputs are not those of this program's; fetch the release again")
        return opened

    @property
    def outputs(self) -> int:
        """Width of the output layer: the vocabulary's size, or the number of classes."""
        return self._architecture.outputs

    @property
    def max_length(self) -> int:
        """Maximum number of positions of a sequence, padding included."""
        return self._architecture.max_length

    @property
    def vocab_size(self) -> int:
        """Exclusive upper bound of token ids."""
        return self._architecture.vocab_size

    def run(
        self,
        ids: npt.NDArray[np.int64],
        cache: Cache | None = None,
        *,
        logits_at: npt.NDArray[np.int64] | None = None,
        mask: npt.NDArray[np.bool_] | None = None,
    ) -> tuple[npt.NDArray[np.float32], KeyValueCache]:
        """Read S more tokens of each of B sequences (`Session.run`).

        Raises:
            InferenceError: A shape, a token or a length does not fit the model; or the cache is of another kind of
                session, or holds padding and there is no mask that says so.
        """
        past = self._check(ids, cache, logits_at)
        batch, count = ids.shape
        length = past.length + count
        if mask is None and past.mask is None:
            positions = np.arange(past.length, length)[None].repeat(batch, axis=0)
        else:
            mask = _check_mask(mask, past, (batch, length))
            if count == 1:  # a step of many texts, which takes little longer than what is done around it
                positions = np.maximum(mask.sum(axis=1, keepdims=True) - 1, 0)
            else:
                positions = np.maximum(mask.cumsum(axis=1) - 1, 0)[:, past.length :]
        feeds = {
            "input_ids": ids,
            "position_ids": positions,
            "mask": np.ones((1, 1, count, length), np.bool_) if mask is None else _mask_each(mask, count),
            "logits_at": self._find_last(batch, count) if logits_at is None else logits_at,
        }
        feeds.update(zip(self._past, past.arrays, strict=True))
        logits, *arrays = self._session.run(None, feeds)
        return logits, KeyValueCache(tuple(arrays), mask)

    @staticmethod
    def _find_last(batch: int, count: int) -> npt.NDArray[np.int64]:
        return np.zeros((batch, 1), np.int64) if count == 1 else np.full((batch, 1), count - 1)

    def _check(
        self, ids: npt.NDArray[np.int64], cache: Cache | None, logits_at: npt.NDArray[np.int64] | None
    ) -> KeyValueCache:
        """Check what would otherwise read foreign memory or fail deep inside; return the cache, empty where none is."""
        if ids.ndim != 2 or ids.dtype != np.int64 or not ids.size:
            raise InferenceError(f"tokens are int64 of shape (B, S), not {ids.dtype} of {ids.shape}")
        if (ids.view(np.uint64) >= self._architecture.vocab_size).any():  # a negative one is far above
            raise InferenceError(
                f"token {int(ids.max() if ids.min() >= 0 else ids.min())} is not in the vocabulary of {self.vocab_size}"
            )
        batch, count = ids.shape
        past = self._empty_cache(batch) if cache is None else cache
        if not isinstance(past, KeyValueCache) or len(past.arrays) != len(self._past) or past.batch != batch:
            raise InferenceError(f"the cache is not of {batch} sequences of this model")
        if past.length + count > self.max_length:
            raise InferenceError(f"{past.length + count} tokens are more than the model reads ({self.max_length})")
        if logits_at is not None and (
            logits_at.ndim != 2
            or logits_at.dtype != np.int64
            or len(logits_at) != batch
            or not logits_at.size
            or logits_at.min() < 0
            or logits_at.max() >= count
        ):
            raise InferenceError(f"logits are asked for at positions 0 to {count - 1}, as int64 of shape ({batch}, K)")
        return past

    def _empty_cache(self, batch: int) -> KeyValueCache:
        shapes = [(batch, layer.kv_heads, 0, self._architecture.head_dim) for layer in self._architecture.layers]
        return KeyValueCache(tuple(np.zeros(shape, np.float32) for shape in shapes for _ in ("key", "value")))


def _mask_each(mask: npt.NDArray[np.bool_], count: int) -> npt.NDArray[np.bool_]:
    """Return what each of the new tokens may look at, (B, 1, S, past + S)."""
    return mask[:, None, None] if count == 1 else mask[:, None, None].repeat(count, axis=2)


def _check_mask(
    mask: npt.NDArray[np.bool_] | None, past: KeyValueCache, shape: tuple[int, int]
) -> npt.NDArray[np.bool_]:
    """Return the mask if it has this shape and says of the past what the cache was made with."""
    if mask is None:
        raise InferenceError("the cache holds padding; give the mask that says where")
    if mask.shape != shape or mask.dtype != np.bool_:
        raise InferenceError(f"the mask is bool of shape {shape}, not {mask.dtype} of {mask.shape}")
    before = mask[:, : past.length]
    if not (before if past.mask is None else before == past.mask).all():
        raise InferenceError("the mask says otherwise of earlier positions than the mask that the cache was made with")
    return mask
