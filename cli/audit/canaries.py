"""`fedglm audit canaries`: a lower bound of what a run's training really gives away."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedglm.cli import options
from fedglm.cli.audit.verify import WRONG_CODE

if TYPE_CHECKING:  # else `--help` would wait for torch
    from fedglm.audit.empirical.results import CanaryAudit


def canaries(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")],
    epsilon: Annotated[
        float | None,
        typer.Option(help="The claim to audit, at most 2, and 2 without it; noise is calibrated to it."),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Audit the training code empirically: plant canaries by secret coins, and try to find them again.

    [bold]fedglm audit canaries runs/hospital-20270101-120000[/bold]

    It trains anew, on the run's model, records and clipping, by the code that
    nodes run, with noise for a claim of its own; records of real sites are at
    the sites, and what the scenario deals stands in for them. A rigorous lower
    bound above the claim, or a trial that fails, proves the code or its
    accounting wrong: exit code 1. The same code says that a trial could not be
    made, which proves nothing. The estimate is no proof. A pass is no proof of
    privacy.
    """
    from fedglm.audit.empirical.canary_run import audit_canaries

    audit = audit_canaries(run, epsilon, lambda part: None if as_json else typer.echo(f"{part} ...", err=True))
    if as_json:
        typer.echo(audit.model_dump_json(indent=1))
    else:
        _print(audit)
    if not audit.passed:
        raise typer.Exit(WRONG_CODE)


_OUTCOMES = {
    "passed": "[green]passed[/green]",
    "failed": "[bold red]FAILED[/bold red]",
    "not made": "[bold yellow]not made[/bold yellow]",
}


def _print(audit: "CanaryAudit") -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from fedglm.cli.audit.circumstances import print_circumstances
    from fedglm.cli.terminal.tables import wide_console

    console = wide_console()
    first = audit.canaries[0]
    title = f"epsilon by canaries, at delta {first.delta:g}"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    for heading in ("canaries", "planted", "claimed", "one run", "f-DP", "estimate", ""):
        table.add_column(heading, justify="left" if heading in ("canaries", "") else "right")
    for result in audit.canaries:
        word = "[green]held[/green]"
        if result.contradicts:
            word = "[bold red]CONTRADICTED[/bold red]"
        elif result.doubts:
            word = "[yellow]estimate above it[/yellow]"
        figures = (f"{value:.2f}" for value in (result.claimed, result.one_run, result.f_dp, result.estimate))
        table.add_row(result.kind, f"{result.canaries:,}", *figures, word)
    console.print(table)
    trials = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="trials", title_justify="left", show_header=False)
    for trial in audit.trials:
        trials.add_row(trial.name, _OUTCOMES[trial.outcome], escape(trial.detail))
    console.print(trials)
    console.print(
        f"one run and f-DP are rigorous lower bounds ({first.confidence:.0%}); the estimate is none; a pass proves no "
        "privacy"
    )
    print_circumstances(console, audit)
    if audit.passed:
        console.print("[green]passed[/green]")
    elif any(result.contradicts for result in audit.canaries) or any(t.outcome == "failed" for t in audit.trials):
        console.print("[bold red]the claim of privacy is wrong[/bold red]")
    else:
        console.print("[bold yellow]not passed: a trial could not be made, which proves nothing[/bold yellow]")
