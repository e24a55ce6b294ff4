"""`fedglm device`: what this machine computes with, and how fast."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedglm.cli import options

if TYPE_CHECKING:  # else `--help` would wait for ONNX Runtime
    from rich.table import Table

    from fedglm.inference.device.device_file import DeviceFile
    from fedglm.inference.device.latency_table import LatencyTable

app = typer.Typer(help="The machine that is to use a light model.", no_args_is_help=True)

_SHOWN_ROWS = (1, 8, 64)


@app.callback()
def _device() -> None: ...


@app.command()
def probe(
    out: Annotated[Path | None, typer.Option(help="Write the device file, which lighten --device reads.")] = None,
    threads: Annotated[int, typer.Option(min=1, max=1024, help="Threads of a model's run.")] = 1,
    as_json: options.Json = False,
) -> None:
    """Measure this machine: instructions, memory, latency of each operation.

    [bold]fedglm device probe --out edge.json[/bold]

    Takes about half a minute, best on a machine that does nothing else.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from fedglm.inference.device.device_file import probe_device

    columns = (TextColumn("operations"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=as_json, transient=True) as bars:
        task = bars.add_task("operations", total=None)
        device = probe_device(
            threads=threads, progress=lambda done, total: bars.update(task, completed=done, total=total)
        )
    if out is not None:
        device.save(out)
    if as_json:
        typer.echo(device.model_dump_json(indent=1))
        return
    _print_device(device)
    if out is not None:
        typer.echo(f"written to {out}")


def _print_device(device: "DeviceFile") -> None:
    """Print a device, at most 80 columns wide."""
    from rich.console import Console
    from rich.markup import escape

    from fedglm.reports.formats import format_bytes

    processor, memory = device.processor, device.memory
    slowest = min(read.bytes_per_s for read in device.latency.reads)
    console = Console(width=min(80, Console().width), emoji=False, highlight=False)
    present = [name for name, there in processor.features.items() if there]
    absent = [name for name, there in processor.features.items() if not there]
    console.print(f"[bold]{escape(processor.name or processor.architecture)}[/bold], {escape(device.system)}")
    console.print(f"  instructions  {', '.join(present) or 'none'}; not {', '.join(absent) or 'one is missing'}")
    console.print(f"  cores         {processor.cores:g}, cache {format_bytes(processor.cache_bytes)}")
    console.print(
        f"  memory        {format_bytes(memory.available_bytes)} free of {format_bytes(memory.limit_bytes)}, "
        f"weights read at {slowest / 1e9:.1f} GB/s"
    )
    power = "not measured" if device.watts is None else f"{device.watts:.1f} W, all processor packages"
    console.print(f"  power         {power}")
    console.print(f"  runtime       ONNX Runtime {escape(device.runtime)}, {device.latency.threads} thread(s)")
    console.print(_tabulate(device.latency))


def _tabulate(latency: "LatencyTable") -> "Table":
    """Tabulate the latencies of linears, by format and by the number of tokens at once."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title="microseconds of a linear, by tokens at once", title_justify="left")
    table.add_column("inputs x outputs")
    columns = [(form, rows) for form in latency.formats() for rows in _SHOWN_ROWS]
    for form, rows in columns:
        table.add_column(f"{form}\n{rows}", justify="right")
    found = {
        (entry.shape, entry.format, entry.batch * entry.tokens): entry.microseconds
        for entry in latency.entries
        if entry.operation == "linear"
    }
    for shape in sorted({shape for shape, _, _ in found}):
        figures = (found.get((shape, form, rows)) for form, rows in columns)
        table.add_row("{} x {}".format(*shape), *("-" if each is None else f"{each:.3g}" for each in figures))
    return table
