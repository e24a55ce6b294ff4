"""Circumstances of an empirical audit: whose records, which device, what was left out."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:  # else `--help` would wait for torch
    from fedglm.audit.empirical.results import AttackAudit, CanaryAudit

_RECORDS = {
    "run": "made with the run's own records",
    "stand-in": "[yellow]made with stand-in records: the run's own are at its sites[/yellow]",
}


def print_circumstances(console: Console, audit: "CanaryAudit | AttackAudit") -> None:
    """Print whose records and which precision an audit used, and what it left out."""
    console.print(f"{_RECORDS[audit.records]}, in {audit.precision}")
    for reason in audit.left_out:
        console.print(f"[yellow]left out:[/yellow] {escape(reason)}")
