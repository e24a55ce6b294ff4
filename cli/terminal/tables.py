"""Tables for the terminal, at most 100 columns wide."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedglm.privacy.accounting.statement import Guarantee, Statement
from fedglm.reports.formats import format_bytes
from fedglm.reports.run.guarantees import read_statements


def finite(value: float | None, form: str) -> str:
    """Format a figure; a dash where it is missing or not finite."""
    return "-" if value is None or not math.isfinite(value) else format(value, form)


def print_summary(summary: dict[str, Any], folder: Path) -> None:
    """Print the result of a run as tables.

    Args:
        summary: Contents of `summary.json`.
        folder: Folder of the run.
    """
    console = wide_console()
    metric = summary["metric"]
    console.print()
    title = f"{escape(summary['scenario'])}, seed {summary['seed']}"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    table.add_column("")
    for heading in ("uplink", "downlink", "both ways"):
        table.add_column(heading, justify="right")
    up, down = summary["uplink_bytes"], summary["downlink_bytes"]
    dense_up, dense_down = summary["dense_uplink_bytes"], summary["dense_downlink_bytes"]
    table.add_row("coded", format_bytes(up), format_bytes(down), format_bytes(up + down))
    table.add_row(
        "dense float32", format_bytes(dense_up), format_bytes(dense_down), format_bytes(dense_up + dense_down)
    )
    ratios = [summary[f"{way}_ratio"] for way in ("uplink", "downlink", "roundtrip")]
    table.add_row("ratio", *(f"[bold]{finite(ratio, '.2%')}[/bold]" for ratio in ratios))
    table.add_row("times fewer", *(finite(1 / ratio if ratio else None, ".0f") for ratio in ratios))
    console.print(table)

    results = Table(box=box.SIMPLE_HEAD)
    results.add_column("model")
    for heading in ("loss", metric):
        results.add_column(heading, justify="right")
    baselines = summary["baselines"]
    noised = (summary["epsilon"], summary.get("client_epsilon")) != (None, None)
    unnoised = ", no noise" if noised else ""
    lines = [
        ("before training", summary["initial"]),
        (f"each site alone (mean){unnoised}", baselines["alone"]),
        (f"federated, {summary['rounds']} rounds of {summary['nodes']} nodes", summary),
        (f"all data pooled{unnoised}", baselines["pooled"]),
    ]
    for name, result in lines:
        if result is None:
            continue
        style = "bold" if result is summary else ""
        results.add_row(name, finite(result["loss"], ".4f"), finite(result[metric], metric_form(metric)), style=style)
    console.print(results)
    print_statements(console, read_statements(summary, {}))
    if summary["epsilon"] is not None:
        console.print(f"spent: epsilon {summary['epsilon']:.2f}, the greatest that a site's ledger shows")
    if summary.get("client_epsilon") is not None:
        console.print(f"spent: {_describe_node_epsilon(summary)}")
    if left_out := summary.get("updates_left_out"):
        of_all = f"{left_out} of {summary['updates']} updates"
        console.print(f"left out as harmful or odd: {of_all} (counted in rounds.jsonl)")
    if (light := summary.get("light")) is not None:
        console.print(describe_light(light), markup=False, highlight=False)
    console.print(f"{summary['wall_s']:.0f} s; model {summary['model_sha256'][:16]}")
    print_report(console, folder)


def describe_light(light: dict[str, Any]) -> str:
    """Describe a run's light release in one line, by the field `light` of its summary."""
    if light["reason"] is not None:
        return f"no light release: {light['reason']}"
    size = f"{format_bytes(light['bytes'])}, {light['size_ratio']:.1f}x smaller"
    lost = "accuracy lost" if light["metric"] == "accuracy" else "loss above it"
    against = f"{lost} {light['loss_rise']:+.1%} (standard error {light['rise_error']:.1%})"
    return f"light release: {size}; against an equally trained dense model, {against}"


def print_statements(console: Console, stated: Sequence[Statement]) -> None:
    """What a run states of its privacy, each guarantee by itself; yellow where there is none."""
    for statement in stated:
        style = "green" if statement.code in (Guarantee.UNITS, Guarantee.NODES) else "yellow"
        console.print(f"[{style}]{escape(statement.text)}[/{style}]")


def _describe_node_epsilon(summary: dict[str, Any]) -> str:
    """Describe the epsilon spent for whole nodes, and the noise of the server."""
    spent = f"epsilon {summary['client_epsilon']:.2f} for each whole node, against whoever sees the models"
    if (mechanism := summary.get("client_mechanism")) is None:
        return spent
    noise, norm = mechanism["noise_multiplier"], mechanism["clipping_norm"]
    return f"{spent}; noise of {noise:.3g} x the clipping norm {norm:g}, a round"


def wide_console() -> Console:
    """Return a console on standard output, at most 100 columns wide."""
    return Console(width=min(100, Console().width), emoji=False)


def metric_form(metric: str) -> str:
    """Return the format specification of a metric."""
    return ".2%" if metric == "accuracy" else ".3g"


def print_report(console: Console, folder: Path) -> None:
    """Print the path of the report page, unwrapped, so that it can be copied."""
    console.print(f"report: {folder / 'report.html'}", markup=False, highlight=False, soft_wrap=True)
