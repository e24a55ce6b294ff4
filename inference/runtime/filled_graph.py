"""An ONNX graph on ONNX Runtime, its initializers filled from arrays in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from fedglm.inference.errors import InferenceError

INTEGER_ACTIVATIONS, EXACT_ACTIVATIONS = 4, 0
"""Accuracy levels of ONNX Runtime's n-bit kernels: inputs of a quantized Linear rounded to INT8, block by block, or not
at all. The first is what they are fast at; the second shows that codes and scales were filled right."""


def open_filled_graph(
    model: bytes,
    arrays: Mapping[str, npt.NDArray[Any]],
    *,
    threads: int = 1,
    accuracy_level: int = INTEGER_ACTIVATIONS,
) -> onnxruntime.InferenceSession:
    """Open a serialized ONNX model whose initializers without data are filled from arrays of the same bytes.

    ONNX Runtime copies the arrays into the form that its kernels want; they need not outlive this call.

    Args:
        model: The model.
        arrays: An array for each initializer, contiguous; INT4 as packed bytes.
        threads: Number of threads of a run.
        accuracy_level: `INTEGER_ACTIVATIONS` or `EXACT_ACTIVATIONS`.

    Raises:
        InferenceError: ONNX Runtime refuses the model.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors; a warning would go to the standard error of whoever generates text
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", str(accuracy_level))
    # As files in memory, not as OrtValues: those cannot be INT4 on top of our own bytes (ONNX Runtime 1.32).
    buffers = [array.reshape(-1).view(np.uint8) for array in arrays.values()]
    options.add_external_initializers_from_files_in_memory(list(arrays), buffers, [one.nbytes for one in buffers])
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as exc:  # what it raises has no base class of its own
        reason = " ".join(str(exc).split())[:300]
        raise InferenceError(f"ONNX Runtime {onnxruntime.__version__} does not take the graph: {reason}") from exc
