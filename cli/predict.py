"""`fedglm predict`: classify the rows of a file."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedglm.cli import options
from fedglm.cli.models import Keys, ModelPath, open_model_for

if TYPE_CHECKING:
    from fedglm.autoglm.data.reading import RowFile
    from fedglm.autoglm.prediction.files import PredictionCounts
    from fedglm.autoglm.prediction.writing import PredictionWriter

INCOMPLETE_CODE = 1
"""Exit code where rows were left out; the others were classified."""
_STANDARD = Path("-")


def predict(
    model: ModelPath,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Rows: JSONL, CSV or TSV, also .gz; - reads standard input.")
    ],
    out: Annotated[
        Path, typer.Option(help="Where predictions go: .jsonl, .csv or .tsv, also .gz; - is standard output, as JSONL.")
    ] = _STANDARD,
    text_field: options.TextField = None,
    label_field: Annotated[
        str | None, typer.Option(help="Field with the true class, to tell how many are right.", rich_help_panel="Data")
    ] = None,
    prefix: Annotated[str, typer.Option(help="Put before the names of the fields that are added.")] = "",
    key: Keys = None,
    as_json: options.Json = False,
) -> None:
    """Classify the rows of a file: each is written as it was, with `label` and the probability of each class.

    A row that cannot be used is named and left out, and the exit code is then 1.

    [bold]fedglm predict runs/hospital-20270101-120000 tumours.csv --out classified.csv[/bold]
    [bold]zcat notes.jsonl.gz | fedglm predict MODEL - --text-field note > classified.jsonl[/bold]
    """
    from fedglm.autoglm.data.reading import check_file
    from fedglm.autoglm.errors import DataError
    from fedglm.autoglm.prediction.files import predict_file
    from fedglm.inference.inputs.model_inputs import DEFAULT_TEXT_FIELD

    # Mistakes are reported before torch is imported.
    if file != _STANDARD:
        check_file(file)
    if out != _STANDARD:
        _check_out(out, file)
    used = open_model_for("predict", model, key)
    if text_field is not None and used.inputs.table is not None:
        raise DataError(f"--text-field: {model} reads the fields of a table: {', '.join(used.inputs.table.names)}")

    from fedglm.cli.terminal.row_progress import RowProgress

    with (
        _open_source(file) as source,
        _open_writer(out, used.inputs.task.labels, prefix) as writer,
        RowProgress(source, quiet=as_json or out == _STANDARD) as progress,
    ):
        counts = predict_file(
            used,
            source,
            writer,
            text_field=text_field or DEFAULT_TEXT_FIELD,
            label_field=label_field,
            progress=progress.show,
        )
    _report(counts, out, label_field, used.inputs.task.length, as_json=as_json)
    if counts.left_out:
        raise typer.Exit(INCOMPLETE_CODE)


def _check_out(out: Path, file: Path) -> None:
    from fedglm.autoglm.errors import DataError
    from fedglm.autoglm.prediction.writing import check_output

    check_output(out)
    if file != _STANDARD and out.exists() and out.samefile(file):
        raise DataError(f"--out {out} is the file that is read: name another")


@contextmanager
def _open_source(file: Path) -> "Iterator[RowFile]":
    from fedglm.autoglm.data.reading import open_rows, recognize_rows

    if file == _STANDARD:
        with open(sys.stdin.fileno(), "rb", closefd=False) as stream:
            yield recognize_rows("standard input", stream)
        return
    with open_rows(file) as source:
        yield source


@contextmanager
def _open_writer(out: Path, classes: tuple[str, ...], prefix: str) -> "Iterator[PredictionWriter]":
    from fedglm.autoglm.prediction.writing import JsonWriter, open_writer

    if out == _STANDARD:
        yield JsonWriter(sys.stdout, prefix, ascii_only=True)
        return
    with open_writer(out, classes, prefix) as writer:
        yield writer


def _report(counts: "PredictionCounts", out: Path, label_field: str | None, length: int, *, as_json: bool) -> None:
    for line in counts.unusable.named:
        typer.echo(f"left out: {line}", err=True)
    if more := counts.left_out - len(counts.unusable.named):
        typer.echo(f"left out: {more} more rows", err=True)
    if counts.cut:
        typer.echo(f"{counts.cut} of {counts.rows} texts are longer than the {length} tokens that are read", err=True)
    to_errors = out == _STANDARD
    if as_json and not to_errors:
        typer.echo(json.dumps(_build_json(counts, out, label_field), indent=1))
        return
    classes = ", ".join(f"{count} {name}" for name, count in counts.labels.most_common())
    left_out = f", {counts.left_out} left out" if counts.left_out else ""
    typer.echo(f"{counts.rows} rows: {classes}{left_out}", err=to_errors)
    if label_field:
        share = f" ({counts.correct / counts.known:.2%})" if counts.known else ""
        typer.echo(f"right: {counts.correct} of {counts.known} with a class in {label_field!r}{share}", err=to_errors)
    if not to_errors:
        typer.echo(f"predictions: {out}")


def _build_json(counts: "PredictionCounts", out: Path, label_field: str | None) -> dict[str, Any]:
    known = {"known": counts.known, "correct": counts.correct} if label_field else {}
    return {
        "rows": counts.rows,
        "left_out": counts.left_out,
        "cut": counts.cut,
        "labels": dict(counts.labels.most_common()),
        **known,
        "out": str(out),
    }
