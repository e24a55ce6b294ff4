"""`fedglm audit canaries`: what a run's training really gives away, at the least."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedglm.cli import options
from fedglm.cli.audit_verify import NOT_HELD

if TYPE_CHECKING:  # else `--help` would wait for torch
    from fedglm.simulations.canaries import EmpiricalAudit


def canaries(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")],
    epsilon: Annotated[float, typer.Option(help="The claim to audit, at most 2; noise is calibrated to it.")] = 2.0,
    as_json: options.Json = False,
) -> None:
    """Audit the training code empirically: plant canaries by secret coins, and try to find them again.

    [bold]fedglm audit canaries runs/hospital-20270101-120000[/bold]

    It trains anew, on the run's model, records and clipping, by the code that
    nodes run, with noise for a claim of its own. A rigorous lower bound above
    the claim, or a trial that fails, proves the code or its accounting wrong:
    exit code 1. The estimate is no proof. A pass is no proof of privacy.
    """
    from fedglm.simulations.canaries import audit_canaries

    found = audit_canaries(run, epsilon, lambda what: None if as_json else typer.echo(f"{what} ...", err=True))
    if as_json:
        from fedglm.server.rows import to_json

        typer.echo(to_json(found.to_fields(), indent=1))
    else:
        _print(found)
    if not found.passed:
        raise typer.Exit(NOT_HELD)


def _print(found: "EmpiricalAudit") -> None:
    from rich import box
    from rich.table import Table

    from fedglm.cli.tables import wide_console

    console = wide_console()
    title = f"epsilon by canaries, at delta {found.canaries[0].delta:g}"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    for heading in ("canaries", "planted", "claimed", "one run", "f-DP", "estimate", ""):
        table.add_column(heading, justify="left" if heading in ("canaries", "") else "right")
    for result in found.canaries:
        word = "[green]held[/green]"
        if result.contradicts:
            word = "[bold red]CONTRADICTED[/bold red]"
        elif result.doubts:
            word = "[yellow]estimate above it[/yellow]"
        figures = (f"{value:.2f}" for value in (result.claimed, result.one_run, result.f_dp, result.estimate))
        table.add_row(result.kind, f"{result.canaries:,}", *figures, word)
    console.print(table)
    trials = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="trials", title_justify="left", show_header=False)
    for trial in found.trials:
        word = "[green]passed[/green]" if trial.passed else "[bold red]FAILED[/bold red]"
        trials.add_row(trial.name, word, trial.said)
    console.print(trials)
    console.print("one run and f-DP are rigorous lower bounds (95 %); the estimate is none; a pass proves no privacy")
    console.print("[green]passed[/green]" if found.passed else "[bold red]the claim of privacy is wrong[/bold red]")
