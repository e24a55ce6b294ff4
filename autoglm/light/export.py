"""Handing a model to other engines: one file of standard ONNX, from a light release or from a dense model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedglm.autoglm.light.graph.formats import GraphFormat
from fedglm.autoglm.light.graph.onnx_file import write_onnx_file
from fedglm.autoglm.light.outputs import check_writable
from fedglm.autoglm.light.plan.errors import LightenError
from fedglm.autoglm.models.opening import ModelFolder, find_model
from fedglm.inference.release.reader import open_release
from fedglm.inference.release.trust import Trust
from fedglm.inference.weights.model import NumpyModel
from fedglm.inference.weights.quantized import QuantizedMatrix

SUFFIX: Final = ".onnx"


@dataclass(frozen=True, kw_only=True)
class OnnxExport:
    """A file that was written.

    Attributes:
        file: The file.
        bytes: Its length.
        format: Format of its Linears.
        quantized: Whether some of them are integers behind a DequantizeLinear.
        provenance: Who vouches for the model, in words; None for a model that is no light release.
    """

    file: Path
    bytes: int
    format: GraphFormat
    quantized: bool
    provenance: str | None


def export_onnx(model: Path, file: Path, *, form: GraphFormat | None = None, trust: Trust | None = None) -> OnnxExport:
    """Write a model as one file of standard ONNX, which `onnx.checker` has passed (`write_onnx_file`).

    Args:
        model: Folder of a light release, of a run, or of a saved model.
        file: The file, which is replaced when the new one is complete; its name ends in ``.onnx``.
        form: Format of the Linears; None takes the narrowest that the model has.
        trust: Whose signature a light release must have; None takes anybody's.

    Raises:
        LightenError: The file has another suffix or lies in the model's folder, or integers are asked for and the model
            is not quantized.
        ModelError: There is no model, or it is larger than an ONNX file may be.
        InferenceError: The release is damaged, or not signed by whom `trust` names.
        StorageError: The file cannot be written.
    """
    if file.suffix.lower() != SUFFIX or file.is_dir():
        raise LightenError(f"{file}: name a file that ends in {SUFFIX}")
    found = find_model(model)
    if file.resolve().is_relative_to(found.path.resolve()):
        raise LightenError(f"{file} lies in the model's own folder, which then is no release any more: name another")
    check_writable(file)
    opened, provenance = _read_model(found, trust)
    quantized = any(isinstance(tensor, QuantizedMatrix) for tensor in opened.tensors.values())
    if not quantized and form not in (None, "fp32"):
        raise LightenError(f"{model} is not quantized, so no file of it is {form}: fedglm lighten {model} first")
    chosen: GraphFormat = form or ("int4" if quantized else "fp32")
    write_onnx_file(file, opened.tensors, opened.config, chosen)
    return OnnxExport(
        file=file,
        bytes=file.stat().st_size,
        format=chosen,
        quantized=quantized and chosen != "fp32",
        provenance=provenance,
    )


def _read_model(found: ModelFolder, trust: Trust | None) -> tuple[NumpyModel, str | None]:
    if found.format == "light":
        release = open_release(found.path, trust=trust or Trust.unverified())
        return release.model, release.provenance
    if trust is not None:
        raise LightenError(f"{found.path}: is no light release, and so has no signature to be checked")
    # A light release needs no torch.
    from fedglm.autoglm.light.search.packaging import dense_to_numpy
    from fedglm.autoglm.models.release import load_release

    model, task = load_release(found.path)
    return dense_to_numpy(model, task), None
