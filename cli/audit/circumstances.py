"""What must be known of an empirical audit beside its figures: whose records, which device, what was left out."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:  # else `--help` would wait for torch
    from fedglm.audit.empirical.results import AttackAudit, CanaryAudit

_RECORDS = {
    "run": "made with the run's own records",
    "stand-in": "[yellow]made with stand-in records: the run's own are at its sites[/yellow]",
}


def print_circumstances(console: Console, found: "CanaryAudit | AttackAudit") -> None:
    """Print them."""
    console.print(f"{_RECORDS[found.records]}, in {found.precision}")
    for said in found.left_out:
        console.print(f"[yellow]left out:[/yellow] {escape(said)}")
