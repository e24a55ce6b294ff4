"""Findings of the checks before a start, printed: all of them as a table, or those that a start is refused for."""

from collections.abc import Callable, Sequence

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from fedglm.cli.terminal.tables import wide_console
from fedglm.core.errors import FedglmError
from fedglm.core.findings import Finding, failures

_STYLES = {"ok": "green", "warning": "yellow", "failure": "red"}


def print_findings(findings: Sequence[Finding]) -> None:
    """Print a row for each, with its remedy in bold."""
    table = Table(box=box.SIMPLE_HEAD, show_header=False, pad_edge=False)
    for finding in findings:
        detail = escape(finding.detail) + (f"\n[bold]{escape(finding.remedy)}[/bold]" if finding.remedy else "")
        table.add_row(f"[{_STYLES[finding.level]}]{finding.level}[/]", finding.check, detail)
    wide_console().print(table)


def refuse_failures(
    findings: Sequence[Finding],
    error: type[FedglmError],
    line: Callable[[Finding], str],
    *,
    labels: tuple[str, str] = ("warning", "failure"),
) -> None:
    """Go on only where nothing forbids a start; what else is not as it should be goes to standard error.

    Args:
        findings: In the order in which they are printed.
        error: Type of the error to raise.
        line: How a finding is written.
        labels: Prefixes of a line: for a finding that permits the start, and for one that forbids it.

    Raises:
        error: The first finding that forbids a start.
    """
    first = next(iter(failures(findings)), None)
    for finding in findings:
        if finding.level != "ok" and finding is not first:
            typer.echo(f"{labels[finding.forbids_start]}: {line(finding)}", err=True)
    if first is not None:
        raise error(line(first))
