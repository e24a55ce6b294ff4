"""A light release tried on the node that is to use it, before it takes the place of the one before.

The one place where a node checks more of a release than its signature, sizes and hashes.
"""

import importlib.util
import json
import time
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np

from fedglm.inference.errors import InferenceError
from fedglm.inference.release.reader import LightRelease

_LENGTH: Final = 16


@dataclass(frozen=True, kw_only=True)
class Validation:
    """How a release works on this node. No record of the site is used.

    Attributes:
        passed: Whether the model ran as it must; None where onnxruntime is not installed, so that nobody knows.
        load_ms: Milliseconds to open it.
        run_ms: Milliseconds for a sequence of 16 tokens.
        detail: What is wrong; None where nothing is.
    """

    passed: bool | None
    load_ms: float | None = None
    run_ms: float | None = None
    detail: str | None = None

    def to_json(self) -> str:
        """Return it as JSON, without what is not known."""
        return json.dumps({name: value for name, value in asdict(self).items() if value is not None}, sort_keys=True)


def validate(release: LightRelease) -> Validation:
    """Open a release with the node's own runtime, and run it on fixed tokens twice, to the same finite logits.

    Args:
        release: The release, with its signature, sizes and hashes checked.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        return Validation(passed=None, detail="onnxruntime is not installed: pip install 'fedglm[edge]'")
    from fedglm.inference.inputs.model_inputs import make_inputs
    from fedglm.inference.runtime.phased_session import open_session

    began = time.perf_counter()
    try:
        make_inputs(release.files, release.model.config)
        session = open_session(release.skeletons, release.model.tensors, release.model.config)
        loaded = time.perf_counter()
        ids = np.arange(min(_LENGTH, session.max_length), dtype=np.int64)[None] % session.vocab_size
        logits, _ = session.run(ids)
        ran = time.perf_counter()
        again, _ = session.run(ids)
    except InferenceError as exc:
        return Validation(passed=False, detail=str(exc)[:200])
    passed = bool(np.isfinite(logits).all()) and logits.tobytes() == again.tobytes()
    return Validation(
        passed=passed,
        load_ms=round((loaded - began) * 1e3, 1),
        run_ms=round((ran - loaded) * 1e3, 2),
        detail=None if passed else "its logits are not finite, or differ from run to run",
    )
