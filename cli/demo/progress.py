"""The demo in the terminal: a bar a stage, and a line a step with the command that a user would type."""

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


class DemoProgress:
    """Shows the stages on standard error; where that is no terminal, lines alone.

    The console keeps the stream that was there first: commands have their output redirected meanwhile.

    Args:
        quiet: Show nothing.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._console = Console(file=sys.stderr, emoji=False, quiet=quiet, highlight=False, soft_wrap=True)
        self._draws = self._console.is_terminal and not quiet
        columns = (
            TextColumn("{task.description:<8}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[figures]}"),
        )
        self._bars = Progress(
            *columns, console=self._console, disable=not self._draws, redirect_stdout=False, redirect_stderr=False
        )
        self._task: TaskID | None = None
        self._began = time.monotonic()
        self.seconds: dict[str, float] = {}
        """Seconds of each stage so far."""
        self._stage = ""

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.finish_stage()
        self._bars.stop()

    def begin_stage(self, stage: str, total: int) -> None:
        """Begin a stage of `total` units."""
        self.finish_stage()
        self._stage, self._began = stage, time.monotonic()
        self._task = self._bars.add_task(stage, total=total, figures="")

    def finish_stage(self) -> None:
        """Finish the stage that is under way, if any, and stop its clock."""
        if self._stage:
            self.seconds[self._stage] = round(time.monotonic() - self._began, 1)
            if self._task is not None:
                self._bars.stop_task(self._task)
            self._stage = ""

    def advance_to(self, done: int, figures: str = "") -> None:
        """Show how much of the stage is done."""
        if self._task is not None:
            self._bars.update(self._task, completed=done, figures=figures)

    def say(self, line: str, style: str | None = None) -> None:
        """Print a line above the bars."""
        (self._bars.console if self._draws else self._console).print(line, markup=False, style=style)
