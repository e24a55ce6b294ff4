"""Progress of a simulation in the terminal: a bar, the figures of the latest round, and each fault once."""

from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from fedglm.cli.terminal.tables import finite
from fedglm.simulations.callbacks import SimulationCallbacks

Row = dict[str, Any]


class Progress(SimulationCallbacks):
    """Shows a simulation on standard error, so that standard output holds the result alone.

    Args:
        quiet: Show nothing.
        label: Name to show instead of the scenario's, for one of several runs.
    """

    def __init__(self, *, quiet: bool, label: str = "") -> None:
        self._console = Console(stderr=True, quiet=quiet, emoji=False)
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=self._console,
            disable=quiet,
        )
        self._label = label
        self._rounds: TaskID | None = None
        self._replies: TaskID | None = None
        self._baselines: TaskID | None = None
        self._about: Row = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bars.live.is_started:
            self._bars.stop()

    def prepared(self, about: Row) -> None:
        """Show what is about to run."""
        self._about = about
        self._bars.start()
        self._bars.console.print(
            f"[bold]{escape(self._label or about['scenario'])}[/bold]: {about['nodes']} nodes, {about['parameters']:,} "
            f"parameters, {about['coding']} up, {about['downlink_coding']} down, engine {about['engine']}"
        )
        self._bars.console.print(f"{about['precision']} on {about['device']}: {escape(about['precision_reason'])}")
        style = "yellow" if about.get("delta") is None else "green"
        self._bars.console.print(f"[{style}]{escape(about['privacy'])}[/{style}]")
        self._rounds = self._bars.add_task("rounds", total=about["rounds"], figures="")

    def resumed(self, rows: list[Row]) -> None:
        """Show the rounds that an earlier process completed."""
        if rows and self._rounds is not None:
            self._bars.console.print(f"going on after round {len(rows)}")
            self._bars.update(self._rounds, completed=len(rows))

    def round_started(self, server_round: int, sampled: int) -> None:
        """Start a bar for the replies of the round."""
        if self._replies is None:
            self._replies = self._bars.add_task("replies", total=sampled, figures="")
        self._bars.reset(self._replies, total=sampled, description="replies", figures=f"round {server_round}")

    def plan_refused(self, node_id: int, reason: str) -> None:
        """Print that a node refuses the plan, and why."""
        self._bars.console.print(f"[red]node {node_id} takes no part:[/red] {escape(reason)}")

    def rejected(self, node_id: int, reason: str) -> None:
        """Print that the server rejected a node, and why."""
        self._bars.console.print(f"[red]node {node_id} was turned away:[/red] {escape(reason)}")

    def reply_taken(self, server_round: int, node: str, fault: str | None) -> None:
        """Count a reply, and print its fault if it has one."""
        if self._replies is not None:
            self._bars.advance(self._replies)
        if fault is not None:
            who, why = escape(node), escape(fault)
            self._bars.console.print(f"[red]round {server_round}: {who} was rejected:[/red] {why}")

    def round_done(self, rows: list[Row]) -> None:
        """Show the figures of the latest round."""
        row, metric = rows[-1], self._about["metric"]
        if self._rounds is not None:
            figures = f"loss {finite(row['loss'], '.4f')}, {metric} {finite(row[metric], '.4f')}"
            if row.get("epsilon") is not None:
                figures += f", epsilon {row['epsilon']:.2f}"
            self._bars.update(self._rounds, completed=len(rows), figures=figures)
        if len(rows) == self._about["rounds"] and self._replies is not None:
            self._bars.remove_task(self._replies)
            self._replies = None

    def baseline_started(self, jobs: int) -> None:
        """Start a bar for the baselines."""
        self._baselines = self._bars.add_task("baselines", total=jobs, figures="")

    def baseline_done(self) -> None:
        """Count a finished baseline."""
        if self._baselines is not None:
            self._bars.advance(self._baselines)
