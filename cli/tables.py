"""Tables for the terminal, at most 100 columns wide."""

from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table


def human_bytes(count: float) -> str:
    """Bytes in the unit that reads best: `12.3 kB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} B" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError


def print_summary(summary: dict[str, Any], folder: Path) -> None:
    """The result of a run, for people."""
    console = Console(width=min(100, Console().width))
    metric = summary["metric"]
    console.print()
    table = Table(box=box.SIMPLE_HEAD, title=f"{summary['scenario']}, seed {summary['seed']}", title_justify="left")
    table.add_column("")
    for heading in ("uplink", "downlink", "both ways"):
        table.add_column(heading, justify="right")
    up, down = summary["uplink_bytes"], summary["downlink_bytes"]
    dense_up, dense_down = summary["dense_uplink_bytes"], summary["dense_downlink_bytes"]
    table.add_row("coded", human_bytes(up), human_bytes(down), human_bytes(up + down))
    table.add_row(
        "dense float32", human_bytes(dense_up), human_bytes(dense_down), human_bytes(dense_up + dense_down)
    )
    ratios = [summary[f"{way}_ratio"] for way in ("uplink", "downlink", "roundtrip")]
    table.add_row("ratio", *(f"[bold]{ratio:.2%}[/bold]" for ratio in ratios))
    table.add_row("times fewer", *(f"{1 / ratio:.0f}" for ratio in ratios))
    console.print(table)

    results = Table(box=box.SIMPLE_HEAD)
    results.add_column("model")
    for heading in ("loss", metric):
        results.add_column(heading, justify="right")
    baselines = summary["baselines"]
    lines = [
        ("before training", summary["initial"]),
        ("each site alone (mean)", baselines["alone"]),
        (f"federated, {summary['rounds']} rounds of {summary['nodes']} nodes", summary),
        ("all data pooled", baselines["pooled"]),
    ]
    for name, measured in lines:
        if measured is None:
            continue
        style = "bold" if measured is summary else ""
        shown = f"{measured[metric]:.2%}" if metric == "accuracy" else f"{measured[metric]:.3g}"
        results.add_row(name, f"{measured['loss']:.4f}", shown, style=style)
    console.print(results)
    console.print(f"[yellow]{summary['privacy']}[/yellow]")
    console.print(f"{summary['wall_s']:.0f} s; model {summary['model_sha256'][:16]}")
    console.print(f"report: {folder / 'report.html'}", soft_wrap=True)
