"""What a light release costs on this device: times and memory of a process that opens and uses it."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

from fedglm.core.processes.parent_process import child_env
from fedglm.core.untrusted_text import clean_text
from fedglm.inference.errors import InferenceError

_PROGRAM: Final = "fedglm.inference.validation.measured_process"
_STRICT: Final = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
_Positive = Annotated[float, Field(ge=0)]
_Count = Annotated[int, Field(ge=0, lt=2**63)]


class Latency(BaseModel):
    """Times of a run, in milliseconds.

    Attributes:
        p50_ms: Median.
        p99_ms: 99th percentile (nearest rank); with fewer than 100 runs the greatest.
        n: Number of runs.
    """

    model_config = _STRICT

    p50_ms: _Positive
    p99_ms: _Positive
    n: _Count


class Use(BaseModel):
    """What a release costs.

    Attributes:
        import_ms: Time of all imports.
        load_ms: Time to check and open the release.
        prompt_tokens: Number of tokens that `prefill` reads at once.
        prefill: Times to read a prompt.
        decode: Times of a token; None for a classifier, which writes none.
        peak_bytes: Peak resident memory; None where the kernel does not tell.
        watts: Mean power of the processor packages; None where it cannot be read.
    """

    model_config = _STRICT

    import_ms: _Positive
    load_ms: _Positive
    prompt_tokens: _Count
    prefill: Latency
    decode: Latency | None
    peak_bytes: _Count | None
    watts: _Positive | None


def measure_use(folder: Path, *, manifest: str, threads: int) -> Use:
    """Measure a release in a process of its own; takes ten seconds, and on a slow device twenty and four runs more.

    Args:
        folder: Its folder.
        manifest: Hash of its manifest, by `hash_bytes`: another release is not measured.
        threads: Number of threads of a run.

    Raises:
        InferenceError: The process failed; the message has its last line.
    """
    command = [sys.executable, "-P", "-m", _PROGRAM, str(folder), manifest, str(threads)]
    env = {**os.environ, **child_env()}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)  # noqa: S603 - our own program
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason"])[-1]
        raise InferenceError(f"the release could not be used in a process of its own ({_describe_error(last)})")
    figures = json.loads(done.stdout)
    return Use(
        import_ms=_round(figures["import_ms"]),
        load_ms=_round(figures["load_ms"]),
        prompt_tokens=figures["prompt_tokens"],
        prefill=_summarize(figures["prefill_ms"]),
        decode=_summarize(figures["decode_ms"]) if figures["decode_ms"] else None,
        peak_bytes=figures["peak_bytes"],
        watts=None if figures["watts"] is None else _round(figures["watts"]),
    )


def _describe_error(line: str) -> str:
    """Describe the last line of a process that failed; other errors than ours may quote paths of this machine."""
    name, _, text = line.partition(": ")
    if not name.endswith("InferenceError") and text and name.replace(".", "").isidentifier():
        return clean_text(name, 300)
    return clean_text(line, 300)


def _summarize(times: Sequence[float]) -> Latency:
    ordered = sorted(times)
    p50, p99 = (ordered[math.ceil(share * len(ordered)) - 1] for share in (0.5, 0.99))
    return Latency(p50_ms=_round(p50), p99_ms=_round(p99), n=len(ordered))


def _round(value: float) -> float:
    return float(f"{value:.4g}")
