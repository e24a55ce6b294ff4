"""Tables of a comparison for the terminal, with columns narrow enough for 80 characters."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from rich import box
from rich.markup import escape
from rich.table import Table

from fedglm.cli.terminal.tables import finite, metric_form, print_report, print_statements, wide_console
from fedglm.reports.comparison.formats import (
    choose_name,
    describe_noise,
    format_in_line,
    format_rounds,
    invert_ratio,
    split_label,
)
from fedglm.reports.comparison.peers import describe_method
from fedglm.reports.comparison.to_target import CodecResult, Comparison, Direction, Spread
from fedglm.reports.formats import format_bytes, format_factor
from fedglm.reports.run.guarantees import read_statements

_DIRECTIONS: tuple[Direction, ...] = ("up", "down", "total")
Form = Callable[[float], str]
_WIDE = 96  # terminal width from which a table has a wider gap between its columns
_loss = partial(finite, form=".4f")


def print_comparison(comparison: Comparison, folder: Path) -> None:
    """Print the tables that compare several codecs."""
    console = wide_console()
    gap = 1 if console.width >= _WIDE else 0
    console.print(_build_final_table(comparison, gap))
    if comparison.target is not None:
        console.print(_build_target_table(comparison, gap))
    for line in _write_notes(comparison):
        console.print(line)
    base = comparison.codecs[0].run
    print_statements(console, read_statements(base.summary, base.settings))
    print_report(console, folder)


def _build_final_table(comparison: Comparison, gap: int) -> Table:
    """Build the table of every codec after its last round."""
    metric = comparison.codecs[0].run.metric
    seeds = f", seeds {', '.join(comparison.seeds)}" if len(comparison.seeds) > 1 else ""
    table = _make_table(
        f"to the last round{seeds}", ("rounds", "loss", "best\nloss", metric, "up", "down", "both\nways"), gap
    )
    for codec in comparison.codecs:
        _add_row(
            table,
            codec,
            [f"{len(codec.run.rounds)}"],
            [
                (codec.over_seeds(lambda each: each.run.final.loss), _loss),
                (codec.over_seeds(lambda each: each.best_loss), _loss),
                (codec.over_seeds(lambda each: each.run.final.metric), partial(finite, form=metric_form(metric))),
                (codec.over_seeds(lambda each: each.run.traffic.uplink), format_bytes),
                (codec.over_seeds(lambda each: each.run.traffic.downlink), format_bytes),
                (codec.over_seeds(lambda each: each.run.traffic.total), format_bytes),
            ],
        )
    return table


def _build_target_table(comparison: Comparison, gap: int) -> Table:
    """Build the table of rounds and bytes until the baseline's final loss, also relative to the baseline."""
    seeds = ("seeds",) if len(comparison.seeds) > 1 else ()
    headings = ("round", "x its", "x its\nrun", "up", "down", "both\nways", "fewer\nup", "fewer\nboth")
    table = _make_table(
        f"to the final loss of {choose_name(comparison, comparison.codecs[0])}", (*seeds, *headings), gap
    )
    for codec in comparison.codecs:
        reached = [f"{codec.reached} of {len(codec.seed_runs)}"] if seeds else []
        if not codec.reached:
            best = codec.over_seeds(lambda each: each.best_loss)
            result = f"[red]not reached[/red]\n  best {_loss(best.mean if best else None)}"
            table.add_row(f"{_render_label(codec)}\n  {result}", *reached)
            continue
        _add_row(
            table,
            codec,
            reached,
            [
                (codec.rounds_to_target, format_rounds),
                (codec.over_seeds(lambda each: each.rounds_over_baseline), format_factor),
                (codec.over_seeds(lambda each: each.rounds_over_baseline_run), format_factor),
                *((codec.bytes_to_target(direction), format_bytes) for direction in _DIRECTIONS),
                (invert_ratio(codec.ratio("up")), format_factor),
                (invert_ratio(codec.ratio("total")), format_factor),
            ],
        )
    return table


def _make_table(title: str, headings: tuple[str, ...], gap: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=escape(title), title_justify="left", padding=(0, gap, 0, 0))
    table.add_column("codec", overflow="fold", max_width=30, min_width=15)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _render_label(codec: CodecResult) -> str:
    """Return the label with its markup escaped, a long one in several lines."""
    return escape("\n  ".join(split_label(codec.label)))


def _add_row(table: Table, codec: CodecResult, before: list[str], figures: list[tuple[Spread | None, Form]]) -> None:
    """Add a row of means and, with several seeds, one each of the minima and the maxima."""

    def format_figures(take: Callable[[Spread], float]) -> list[str]:
        return [form(take(spread)) if spread else "-" for spread, form in figures]

    table.add_row(_render_label(codec), *before, *format_figures(lambda spread: spread.mean))
    if len(codec.seed_runs) > 1:
        empty = [""] * len(before)
        table.add_row("  least", *empty, *format_figures(lambda spread: spread.low), style="dim")
        table.add_row("  most", *empty, *format_figures(lambda spread: spread.high), style="dim")


def _write_notes(comparison: Comparison) -> list[str]:
    base, target = comparison.codecs[0], comparison.target
    label = escape(choose_name(comparison, base))
    if target is None:
        lines = [f"{label} ended without a finite loss: there is nothing to reach"]
    else:
        lines = [
            f"target: a loss of {format_in_line(target, _loss)}, which is {comparison.tolerance:g} x that of {label}; "
            "x its and x its run: rounds over those that it took to there, and over all of its run"
        ]
    if len(comparison.seeds) > 1:
        lines.append(
            "Figures are means over the seeds (factors geometric); to the target over the seeds that reached it, each "
            "against the baseline of its own seed."
        )
    if line := describe_noise(comparison):
        lines.append(f"[bold]{escape(line)}[/bold]")
    for codec in comparison.codecs:
        if line := describe_method(codec.run):
            lines.append(f"[bold]{escape(codec.label)}[/bold]: {escape(line)}")
    return lines
