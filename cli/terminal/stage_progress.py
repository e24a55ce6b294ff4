"""Progress through stages of unknown number: a bar for the one under way, on standard error."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn


class StageProgress:
    """Shows the stage that is under way; where standard error is no terminal, a line a stage.

    Args:
        quiet: Show nothing.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._console = Console(stderr=True, emoji=False, quiet=quiet)
        self._draws = self._console.is_terminal and not quiet
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TaskProgressColumn(), TimeElapsedColumn())
        self._bars = Progress(*columns, console=self._console, transient=True, disable=not self._draws)
        self._task = self._bars.add_task("", total=1.0)
        self._stage = ""

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bars.stop()

    def show(self, stage: str, share: float) -> None:
        """Show a stage, and the share of it that is done, 0 to 1."""
        if stage != self._stage and not self._draws and not self._console.quiet:
            self._console.print(stage, markup=False, highlight=False)
        self._stage = stage
        self._bars.update(self._task, description=stage, completed=share)
