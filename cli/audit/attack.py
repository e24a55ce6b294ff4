"""`fedglm audit attack`: what the server could read from an update."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedglm.cli import options

if TYPE_CHECKING:  # else `--help` would wait for torch
    from fedglm.audit.empirical.results import AttackAudit, AttackFigures


def attack(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")],
    as_json: options.Json = False,
) -> None:
    """Attack updates of a run's first round, with and without noise and compression, side by side.

    [bold]fedglm audit attack runs/hospital-20270101-120000[/bold]

    It makes updates by the code that nodes run, on the run's model and
    records, and tries what an honest but curious server could: to tell which
    tokens a site or a record holds, and which records were trained on. Records
    of real sites are at the sites: what the scenario deals stands in for them.
    Noise is that of the run's plan, of which one round spends a part only. An
    AUC of 0.5 is a guess, 1 gives all away. Failed attacks prove nothing.
    """
    from fedglm.audit.empirical.attacks import attack_run

    audit = attack_run(run, lambda part: None if as_json else typer.echo(f"{part} ...", err=True))
    if as_json:
        typer.echo(audit.model_dump_json(indent=1))
    else:
        _print(audit)


def _print(audit: "AttackAudit") -> None:
    from rich import box
    from rich.table import Table

    from fedglm.cli.audit.circumstances import print_circumstances
    from fedglm.cli.terminal.tables import wide_console

    console = wide_console()
    names = list(dict.fromkeys(result.variant for result in audit.results))
    title = "AUC of each attack, and its 95 % interval; 0.50 is a guess"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    table.add_column("attack")
    for name in names:
        table.add_column(name, justify="right")
    for attack_name in dict.fromkeys(result.attack for result in audit.results):
        cells = {result.variant: result for result in audit.results if result.attack == attack_name}
        table.add_row(attack_name, *(_format_cell(cells.get(name)) for name in names))
    console.print(table)
    console.print(
        f"One round is attacked: its noise spends epsilon {audit.round_epsilon:.2f} of the run's {audit.epsilon:g}, at "
        f"delta {audit.delta:g}."
    )
    console.print("Attacks that fail prove nothing; compression alone is no protection.")
    print_circumstances(console, audit)


def _format_cell(result: "AttackFigures | None") -> str:
    if result is None:
        return "-"
    colour = "red" if result.low > 0.6 else "yellow" if result.low > 0.5 else "green"
    return f"[{colour}]{result.auc:.2f}[/{colour}] ({result.low:.2f}-{result.high:.2f})"
