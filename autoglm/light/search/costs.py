"""What a light model costs where it runs: the bytes of its release, the time of a token, the memory of its process."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from fedglm.autoglm.light.device.phases import PhaseFormats
from fedglm.autoglm.light.device.target_device import PROMPT_TOKENS
from fedglm.autoglm.light.plan.errors import LightenError
from fedglm.autoglm.light.plan.goals import Goals
from fedglm.autoglm.light.search.packaging import build_skeletons
from fedglm.inference.device.latency_table import Latency
from fedglm.inference.runtime.phased_session import open_session
from fedglm.inference.runtime.session import Session
from fedglm.inference.weights.model import NumpyModel

_TOKENS: Final = 24
_REPEATS: Final = 5


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Costs of a model.

    Attributes:
        bytes: Bytes of all files of its release.
        decode_ms: Milliseconds a token, or a row; None where no goal asks for it.
        memory_bytes: Peak resident memory of a process that loads and uses it; None where no goal asks for it.
    """

    bytes: int
    decode_ms: float | None = None
    memory_bytes: int | None = None


def find_excess(goals: Goals, costs: Costs, *, reference_bytes: int, reference_ms: float | None) -> float:
    """Return how far costs are above the goals, as a share of the goal that is missed most; at most 0 meets all.

    Args:
        goals: The goals.
        costs: The costs.
        reference_bytes: Bytes of the dense model.
        reference_ms: Milliseconds a token of the dense model; None where no goal asks for it.
    """
    shares = []
    if (allowed := goals.bytes_allowed(reference_bytes)) is not None:
        shares.append(costs.bytes / allowed)
    if costs.decode_ms is not None:
        if goals.max_latency_ms is not None:
            shares.append(costs.decode_ms / goals.max_latency_ms)
        if goals.latency_ratio is not None and reference_ms is not None:
            shares.append(costs.decode_ms * goals.latency_ratio / reference_ms)
    if costs.memory_bytes is not None and goals.max_memory_bytes is not None:
        shares.append(costs.memory_bytes / goals.max_memory_bytes)
    return max(shares) - 1


def open_model(model: NumpyModel, formats: PhaseFormats) -> Session:
    """Open a model in memory, as a node does from its release."""
    return open_session(build_skeletons(model, formats), model.tensors, model.config)


def time_phases(sessions: Mapping[str, Session]) -> dict[str, Latency]:
    """Measure milliseconds for a prompt and for a token after it, interleaved in this process, the least of five each.

    A classifier, which decodes nothing, has the time of a row of the prompt's length twice.
    """
    best = dict.fromkeys(sessions, Latency(float("inf"), float("inf")))
    for _ in range(_REPEATS):
        for name, session in sessions.items():
            best[name] = Latency(*map(min, best[name], _time_once(session)))
    return best


def _time_once(session: Session) -> Latency:
    length = min(PROMPT_TOKENS, session.max_length // 2)
    prompt = np.arange(length, dtype=np.int64)[None] % session.vocab_size
    tokens = min(_TOKENS, session.max_length - length)
    began = time.perf_counter()
    logits, cache = session.run(prompt)
    prefill = (time.perf_counter() - began) * 1e3
    if session.outputs != session.vocab_size:
        return Latency(decode_ms=prefill, prefill_ms=prefill)
    began = time.perf_counter()
    for _ in range(tokens):
        logits, cache = session.run(logits[:, -1].argmax(-1)[:, None].astype(np.int64), cache)
    return Latency(decode_ms=(time.perf_counter() - began) * 1e3 / tokens, prefill_ms=prefill)


_USE = """
import sys
import numpy as np
from pathlib import Path
from fedglm.inference.release.reader import open_release
from fedglm.inference.release.trust import Trust
from fedglm.inference.runtime.phased_session import open_session
from fedglm.inference.validation.measured_process import read_peak

release = open_release(Path(sys.argv[1]), trust=Trust.unverified())
tensors, config, skeletons = dict(release.model.tensors), release.model.config, release.skeletons
del release  # as `open_light` does: the files' bytes are not needed while the session takes its own
session = open_session(skeletons, tensors, config, filled=tensors.clear)
length = min(64, session.max_length // 2)
logits, cache = session.run(np.arange(length, dtype=np.int64)[None] % session.vocab_size)
for _ in range(min(16, session.max_length - length) if session.outputs == session.vocab_size else 0):
    logits, cache = session.run(logits[:, -1].argmax(-1)[:, None].astype(np.int64), cache)
print(read_peak() or sys.exit("the kernel does not tell a process's peak memory"))
"""


def measure_memory(folder: Path) -> int:
    """Return the peak resident memory, in bytes, of a process that opens a release and writes 16 tokens.

    Raises:
        LightenError: The process failed; the message has its last line.
    """
    command = [sys.executable, "-c", _USE, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own program
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason"])[-1]
        raise LightenError(f"the release could not be used in a process of its own ({last})")
    return int(done.stdout)
