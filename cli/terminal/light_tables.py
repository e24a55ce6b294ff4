"""The result of making a model light as tables, within 80 columns."""

from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedglm.reports.formats import format_bytes
from fedglm.reports.light.own_records import compare_on_own_records
from fedglm.reports.light.record import read_record
from fedglm.reports.light.repair import describe_repair

_WIDTH = 80


def print_light(record: dict[str, Any], folder: Path | None) -> None:
    """Print what a search came to.

    Args:
        record: The record, as ``light.json`` holds it.
        folder: Folder of the release; None where there is none.
    """
    console = Console(width=min(_WIDTH, Console().width), emoji=False, highlight=False)
    metric = record["metric"]
    quality = Table(box=box.SIMPLE_HEAD, title="loss on unseen text", title_justify="left")
    costs = Table(box=box.SIMPLE_HEAD, title="costs", title_justify="left")
    for table, headings in (
        (quality, ("loss", metric, "rise", "KL", "top-1")),
        (costs, ("size", "x", "bits", "ms/token", "prefill ms", "peak")),
    ):
        table.add_column("", overflow="fold", ratio=1)
        for heading in headings:
            table.add_column(heading, justify="right", no_wrap=True)
    for row in record["rows"]:
        style = "bold" if row["name"].startswith("chosen") else ""
        shown = "{:.2%}" if metric == "accuracy" else "{:.3f}"
        quality.add_row(
            escape(row["name"]),
            f"{row['loss']:.4f}",
            shown.format(row["metric_value"]),
            f"{row['loss_rise']:+.2%}",
            _show(row["kl_mean"], "{:.4f}"),
            _show(row["agreement"], "{:.1%}"),
            style=style,
        )
        costs.add_row(
            escape(row["name"]),
            format_bytes(row["bytes"]),
            f"{row['size_ratio']:.1f}",
            f"{row['bits_per_weight']:.2f}",
            _show(row["decode_ms"], "{:.3f}"),
            _show(row["prefill_ms"], "{:.2f}"),
            "-" if row["peak_bytes"] is None else format_bytes(row["peak_bytes"]),
            style=style,
        )
    console.print(quality)
    console.print(costs)
    first = record["rows"][0]
    rise = "share of the control's accuracy that is lost" if metric == "accuracy" else "of the loss above the control's"
    console.print(
        f"rise: {rise}. {first['count']:,} predictions; seed {record['seed']}, {record['steps']} steps each; "
        "-: not measured"
    )
    console.print(f"times: {escape(record['times'])}")
    if record["formats"] is not None:
        console.print(f"graphs: {', '.join(f'{phase} in {form}' for phase, form in record['formats'].items())}")
    if record["rise_error"] > record["tolerance"]:
        console.print(
            f"[yellow]The standard error of a rise is {record['rise_error']:.1%}: so little unseen text cannot tell "
            f"whether it is within {record['tolerance']:.1%}. Name more public text with --text.[/yellow]"
        )
    _print_own(console, record)
    _print_outcome(console, record, folder)


def _print_own(console: Console, record: dict[str, Any]) -> None:
    """Print the losses on the held-out records of the run, or why they were not looked at; nothing without a run."""
    reason = record["own_records"]
    rows = [row for row in record["rows"] if row["own_loss"] is not None]
    if reason is not None and not rows:
        console.print(f"not measured on the run's own held-out records: {reason}", markup=False)
    if not rows:
        return
    table = Table(box=box.SIMPLE_HEAD, title="loss on the run's own held-out records", title_justify="left")
    table.add_column("", overflow="fold", ratio=1)
    for heading in ("loss", record["metric"], "rise"):
        table.add_column(heading, justify="right", no_wrap=True)
    shown = "{:.2%}" if record["metric"] == "accuracy" else "{:.3f}"
    for row in rows:
        cells = (f"{row['own_loss']:.4f}", shown.format(row["own_metric_value"]), f"{row['own_loss_rise']:+.2%}")
        table.add_row(escape(row["name"]), *cells, style="bold" if row["name"].startswith("chosen") else "")
    console.print(table)
    left_out = f"; {reason}" if reason else ""
    console.print(f"{rows[0]['own_count']:,} predictions of what the simulation evaluated on{left_out}", markup=False)
    if said := compare_on_own_records(read_record(record)):
        console.print(said, markup=False)


def _print_outcome(console: Console, record: dict[str, Any], folder: Path | None) -> None:
    if record["interrupted"]:
        console.print("[yellow]stopped early: the best so far[/yellow]")
    if record["repair"] is not None:
        console.print(describe_repair(read_record(record)), markup=False)
    if record["models_from_cache"]:
        total = record["models_from_cache"] + record["models_made"]
        console.print(f"{record['models_from_cache']} of {total} trained models came from the cache")
    if folder is not None:
        console.print(
            f"[bold]{record['size_ratio']:.1f}x[/bold] smaller at [bold]{record['loss_rise']:+.2%}[/bold] loss: "
            f"{escape(record['name'])}, {record['bytes']:,} bytes, {record['seconds']:.0f} s"
        )
        console.print(f"release: {escape(str(folder))}, page: {escape(str(folder.with_name(folder.name + '.html')))}")
        return
    console.print(f"[red]Nothing is released.[/red] Goals: {escape(record['goals'])}.")
    frontier = Table(box=box.SIMPLE_HEAD, title="the frontier", title_justify="left")
    frontier.add_column("candidate", overflow="fold", ratio=1)
    for heading in ("x", "rise", "trained"):
        frontier.add_column(heading, justify="right")
    for point in record["frontier"]:
        trained = "in full" if point["in_full"] else "briefly"
        frontier.add_row(escape(point["name"]), f"{point['size_ratio']:.1f}", f"{point['loss_rise']:+.2%}", trained)
    console.print(frontier)
    smallest, nearest = record["frontier"][-1] if record["frontier"] else None, record["nearest"]
    if smallest is not None and nearest is not None:
        console.print(
            f"{smallest['size_ratio']:.1f}x reached at {smallest['loss_rise']:+.1%}; nearest within "
            f"{record['tolerance']:.1%}: {nearest['size_ratio']:.1f}x"
        )
    for one in record["left_out"]:
        console.print(f"left out: {one['name']} misses the goals by {one['excess']:.0%}, cut as far as may be")


def _show(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
