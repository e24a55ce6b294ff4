"""Validating a release in a process of its own, within a time: whatever becomes of that process, there is a result."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from fedglm.core.processes.parent_process import child_env
from fedglm.core.untrusted_text import clean_text
from fedglm.inference.release.trust import Trust
from fedglm.inference.validation.validation import MAX_BYTES, Check, Validation, conclude

LOG = logging.getLogger(__name__)

_PROGRAM: Final = "fedglm.inference.validation.validating_process"
_CHECK: Final = "process"


def validate_in_process(folder: Path, *, trust: Trust, manifest: str, limit_s: float, threads: int = 1) -> Validation:
    """Validate a release as `validate_release` does; a process that fails or takes too long is a failed check.

    Args:
        folder: Its folder.
        trust: Whose signature it must have; keys are needed.
        manifest: Hash of its manifest, by `hash_bytes`.
        limit_s: Seconds after which the process is ended.
        threads: Number of threads of a run.
    """
    keys = sorted(key.hex for key in trust.keys)
    command = [sys.executable, "-P", "-m", _PROGRAM, str(folder.absolute()), str(threads), *keys]
    found = _run(command, limit_s)
    if isinstance(found, Validation) and found.manifest_sha256 == manifest:
        return found
    fault = found if isinstance(found, str) else "it validated another release"
    checks = [Check(name=_CHECK, passed=False, detail=fault)]
    return conclude(manifest, checks, runtime=_find_runtime(), threads=threads)


def _run(command: list[str], limit_s: float) -> Validation | str:
    """Return what the process has printed, or what is wrong with that; it is ended with all that it started."""
    process = subprocess.Popen(  # noqa: S603 - our own program
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **child_env()},
        start_new_session=True,
    )
    try:
        out, errors = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        return f"it took more than {limit_s:g} s, and was ended"
    finally:
        if process.returncode is None:  # not reaped, so that its group is still its own
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if process.returncode < 0:
        return f"it was ended by {signal.Signals(-process.returncode).name}"
    if process.returncode:
        LOG.error("a light release cannot be validated: %s", clean_text(errors.decode(errors="replace")[-500:].strip()))
        return f"it ended with code {process.returncode}"  # the text may name a path of this machine
    try:
        return Validation.model_validate_json(out[:MAX_BYTES])
    except ValidationError:
        return "it told nothing that can be read"


def _find_runtime() -> str:
    """Return the version of ONNX Runtime without loading it: that may be what ended the process."""
    try:
        return version("onnxruntime")
    except PackageNotFoundError:  # a build for an accelerator, which has another name
        return "unknown"
