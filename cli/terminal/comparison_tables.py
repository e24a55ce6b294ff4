"""The tables of a comparison for the terminal: narrow columns, so that 80 letters will do."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from rich import box
from rich.markup import escape
from rich.table import Table

from fedglm.cli.terminal.tables import finite, metric_form, print_report, print_statements, wide_console
from fedglm.reports.comparison.formats import in_line, label_lines, name_of, noise_line, rounds, times_fewer
from fedglm.reports.comparison.peers import stands_for
from fedglm.reports.comparison.to_target import Comparison, Spread, Standing, Way
from fedglm.reports.formats import byte_count, times
from fedglm.reports.run.guarantees import statements

_WAYS: tuple[Way, ...] = ("up", "down", "total")
Form = Callable[[float], str]
_ROOMY = 96  # columns of a terminal, from which the table has two blanks between its columns
_loss = partial(finite, form=".4f")


def print_comparison(found: Comparison, folder: Path) -> None:
    """Several codecs side by side, for people."""
    console = wide_console()
    gap = 1 if console.width >= _ROOMY else 0
    console.print(_ends(found, gap))
    if found.target is not None:
        console.print(_to_target(found, gap))
    for line in _notes(found):
        console.print(line)
    base = found.standings[0].run
    print_statements(console, statements(base.summary, base.settings))
    print_report(console, folder)


def _ends(found: Comparison, gap: int) -> Table:
    """Every codec to its last round."""
    metric = found.standings[0].run.metric
    seeds = f", seeds {', '.join(found.seeds)}" if len(found.seeds) > 1 else ""
    table = _table(
        f"to the last round{seeds}", ("rounds", "loss", "best\nloss", metric, "up", "down", "both\nways"), gap
    )
    for standing in found.standings:
        _add(
            table,
            standing,
            [f"{len(standing.run.rounds)}"],
            [
                (standing.over_seeds(lambda trial: trial.run.final.loss), _loss),
                (standing.over_seeds(lambda trial: trial.best_loss), _loss),
                (standing.over_seeds(lambda trial: trial.run.final.metric), partial(finite, form=metric_form(metric))),
                (standing.over_seeds(lambda trial: trial.run.traffic.up), byte_count),
                (standing.over_seeds(lambda trial: trial.run.traffic.down), byte_count),
                (standing.over_seeds(lambda trial: trial.run.traffic.total), byte_count),
            ],
        )
    return table


def _to_target(found: Comparison, gap: int) -> Table:
    """When each codec had the baseline's final loss, and how that stands to the baseline."""
    seeds = ("seeds",) if len(found.seeds) > 1 else ()
    headings = ("round", "x its", "x its\nrun", "up", "down", "both\nways", "fewer\nup", "fewer\nboth")
    table = _table(f"to the final loss of {name_of(found, found.standings[0])}", (*seeds, *headings), gap)
    for standing in found.standings:
        reached = [f"{standing.reached} of {len(standing.trials)}"] if seeds else []
        if not standing.reached:
            best = standing.over_seeds(lambda trial: trial.best_loss)
            said = f"[red]not reached[/red]\n  best {_loss(best.mean if best else None)}"
            table.add_row(f"{_label(standing)}\n  {said}", *reached)
            continue
        _add(
            table,
            standing,
            reached,
            [
                (standing.rounds_to_target, rounds),
                (standing.over_seeds(lambda trial: trial.of_rounds), times),
                (standing.over_seeds(lambda trial: trial.of_run), times),
                *((standing.bytes_to_target(way), byte_count) for way in _WAYS),
                (times_fewer(standing.ratio("up")), times),
                (times_fewer(standing.ratio("total")), times),
            ],
        )
    return table


def _table(title: str, headings: tuple[str, ...], gap: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=escape(title), title_justify="left", padding=(0, gap, 0, 0))
    table.add_column("codec", overflow="fold", max_width=30, min_width=15)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _label(standing: Standing) -> str:
    """The label, a long one in lines."""
    return escape("\n  ".join(label_lines(standing.label)))


def _add(table: Table, standing: Standing, before: list[str], figures: list[tuple[Spread | None, Form]]) -> None:
    """A row for the means and, where there are several seeds, one each for the least and the greatest."""

    def written(take: Callable[[Spread], float]) -> list[str]:
        return [form(take(spread)) if spread else "-" for spread, form in figures]

    table.add_row(_label(standing), *before, *written(lambda spread: spread.mean))
    if len(standing.trials) > 1:
        empty = [""] * len(before)
        table.add_row("  least", *empty, *written(lambda spread: spread.low), style="dim")
        table.add_row("  most", *empty, *written(lambda spread: spread.high), style="dim")


def _notes(found: Comparison) -> list[str]:
    base, target = found.standings[0], found.target
    label = escape(name_of(found, base))
    if target is None:
        lines = [f"{label} ended without a finite loss: there is nothing to reach"]
    else:
        lines = [
            f"target: a loss of {in_line(target, _loss)}, which is {found.tolerance:g} x that of {label}; x its and "
            "x its run: rounds over those that it took to there, and over all of its run"
        ]
    if len(found.seeds) > 1:
        lines.append(
            "Figures are means over the seeds (factors geometric); to the target over the seeds that reached it, each "
            "against the baseline of its own seed."
        )
    if line := noise_line(found):
        lines.append(f"[bold]{escape(line)}[/bold]")
    for standing in found.standings:
        if line := stands_for(standing.run):
            lines.append(f"[bold]{escape(standing.label)}[/bold]: {escape(line)}")
    return lines
