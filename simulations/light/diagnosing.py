"""What each part of a model is worth, by name of its folder: `fedglm.diagnose`, which the command calls too."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from fedglm.autoglm.light.job import FilePath, TextOptions, check_options, describe_data, read_text
from fedglm.autoglm.light.outputs import check_writable
from fedglm.autoglm.light.plan.errors import LightenError
from fedglm.autoglm.light.quantization.post_training import quantize
from fedglm.autoglm.light.quantization.scheme import Scheme
from fedglm.autoglm.light.search.sources import load_dense, load_source
from fedglm.autoglm.light.sensitivity import diagnosis
from fedglm.autoglm.light.sensitivity.heat_map import save_heat_map
from fedglm.autoglm.light.sensitivity.record import describe_diagnosis
from fedglm.autoglm.light.sensitivity.table import format_diagnosis
from fedglm.reports.light.diagnosis import write_diagnosis_page

_PICTURES = (".png", ".svg", ".pdf")


@dataclass(frozen=True, repr=False)
class DiagnosisResult:
    """What `diagnose` returns.

    Attributes:
        record: All figures, as plain values: `groups`, each with the rise of the loss without it and with it
            quantized and the scores that would predict it, `redundant`, ...
        text: The same as tables.
    """

    record: dict[str, Any]
    text: str

    def __repr__(self) -> str:
        return self.text


def diagnose(
    model: FilePath,
    *,
    out: FilePath | None = None,
    progress: Callable[[str, float], None] | None = None,
    **options: Unpack[TextOptions],
) -> DiagnosisResult:
    """Measure what each layer and group of a model is worth: the loss without it and with it quantized, and scores.

    Args:
        model: Folder of a run, or of a saved model.
        out: Page (``.html``) or heat map alone (``.png``, ``.svg``, ``.pdf``) to write; None writes none.
        progress: Called with the stage and the share of it that is done.
        **options: ``text``, ``text_field``, ``label_field``, ``sites_data_are_public``, ``seed``, as of `lighten`.

    Raises:
        FedglmError: An option, a file or the model cannot be worked with, or the page cannot be written.
    """
    report = progress or (lambda *_: None)
    check_options(options, TextOptions)
    path = None if out is None else Path(out)
    if path is not None:
        _check_out(path)
    text, seed = read_text(options)
    report("load the model", 0.0)
    dense = load_dense(Path(model))
    source = load_source(dense, text, data=describe_data(dense, options), seed=seed)
    found = diagnosis.diagnose(
        source.model,
        source.task,
        source.text.held_out,
        quantize=lambda weight: quantize(weight, Scheme(codes="int4", block=128)),
        progress=lambda share: report("diagnose", share),
    )
    record = describe_diagnosis(found) | {"text": source.text.origin, "model": Path(model).resolve().name}
    if path is not None and path.suffix.lower() == ".html":
        write_diagnosis_page(record, path)
    elif path is not None:
        save_heat_map(found, path)
    return DiagnosisResult(record, format_diagnosis(found))


def _check_out(path: Path) -> None:
    if path.suffix.lower() not in (".html", *_PICTURES):
        raise LightenError(f"{path}: a diagnosis is written as a page (.html) or its heat map alone (.png, .svg, .pdf)")
    if path.is_dir():
        raise LightenError(f"{path} is a folder: name a file for the page")
    check_writable(path)
