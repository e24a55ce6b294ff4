"""Two graphs of one model: one to read a prompt, one to write token by token, each in the format that is fastest at it.

To read many tokens takes arithmetic, to write one takes memory bandwidth, so a device may want float32 for the first
and INT4 for the second (a latency table of the device says). Both compute from the same codes; their caches are one
kind. ONNX Runtime copies weights into the form that each graph's kernels want: two graphs take the memory of both,
while two phases of the same graph are one session.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fedglm.inference.errors import InferenceError
from fedglm.inference.runtime.filled_graph import INTEGER_ACTIVATIONS
from fedglm.inference.runtime.graph_session import GraphSession
from fedglm.inference.runtime.initializers import Tensors
from fedglm.inference.runtime.key_value_cache import KeyValueCache
from fedglm.inference.runtime.session import Cache, Session

PREFILL, DECODE = "prefill", "decode"


class PhasedSession:
    """A `Session` whose runs of several tokens go to one graph, and those of one token to another.

    Args:
        prefill: Reads prompts.
        decode: Reads one token at a time.
    """

    def __init__(self, prefill: GraphSession, decode: GraphSession) -> None:
        self._prefill, self._decode = prefill, decode

    @property
    def outputs(self) -> int:
        """Width of the output layer: the vocabulary's size, or the number of classes."""
        return self._decode.outputs

    @property
    def max_length(self) -> int:
        """Maximum number of positions of a sequence, padding included."""
        return self._decode.max_length

    @property
    def vocab_size(self) -> int:
        """Exclusive upper bound of token ids."""
        return self._decode.vocab_size

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
            InferenceError: As `GraphSession.run` says.
        """
        session = self._decode if ids.ndim == 2 and ids.shape[1] == 1 else self._prefill
        return session.run(ids, cache, logits_at=logits_at, mask=mask)


def open_session(
    skeletons: Mapping[str, bytes],
    tensors: Tensors,
    config: Mapping[str, Any],
    *,
    threads: int = 1,
    accuracy_level: int = INTEGER_ACTIVATIONS,
    filled: Callable[[], object] | None = None,
) -> Session:
    """Open a release's graphs, "decode" and, where it differs, "prefill"; arguments as of `GraphSession.open`.

    Raises:
        InferenceError: There is no skeleton "decode"; or as `GraphSession.open` says.
    """
    if DECODE not in skeletons:
        raise InferenceError(f"the release has no graph called {DECODE!r}, only {', '.join(skeletons) or 'none'}")
    one = skeletons.get(PREFILL, skeletons[DECODE]) == skeletons[DECODE]

    def open_graph(name: str, *, is_last: bool) -> GraphSession:
        done = filled if is_last else None
        return GraphSession.open(
            skeletons[name], tensors, config, threads=threads, accuracy_level=accuracy_level, filled=done
        )

    decode = open_graph(DECODE, is_last=one)
    return decode if one else PhasedSession(open_graph(PREFILL, is_last=True), decode)
