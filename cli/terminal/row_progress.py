"""Progress through a file of rows, on standard error: its bytes, and the rows a second."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from fedglm.autoglm.data.reading import RowFile


class RowProgress:
    """Shows how far a file is read, where standard error is a terminal.

    Args:
        source: The file.
        quiet: Show nothing.
    """

    def __init__(self, source: RowFile, *, quiet: bool) -> None:
        console = Console(stderr=True, emoji=False)
        columns = (BarColumn(bar_width=24), TaskProgressColumn(), TimeRemainingColumn())
        count = TextColumn("{task.fields[rows]:,} rows")
        self._bars = Progress(
            *columns, count, console=console, transient=True, disable=quiet or not console.is_terminal
        )
        self._source = source
        self._task = self._bars.add_task("", total=source.size, rows=0)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bars.stop()

    def show(self, rows: int) -> None:
        """Show the number of rows so far."""
        self._bars.update(self._task, completed=self._source.position(), rows=rows)
