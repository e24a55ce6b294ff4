"""`fedglm` commands in this process, with their output in a log: importing torch for each would take a minute."""

import contextlib
import io
import shlex
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click

from fedglm.cli.errors import INTERRUPTED, explain

_BUG: Final = 1


class CommandRunner:
    """Runs commands of one command line.

    Args:
        command: The whole command line, `fedglm`.
        log: File to append all output to.
    """

    def __init__(self, command: click.Command, log: Path) -> None:
        self._command, self._log = command, log

    def run(self, arguments: Sequence[str]) -> tuple[int, str, str]:
        """Run one command.

        Args:
            arguments: Its arguments, without `fedglm`.

        Returns:
            Exit code, standard output, and the line that explains a failure.

        Raises:
            KeyboardInterrupt: The command was stopped by Ctrl-C.
        """
        output = io.StringIO()
        with self._log.open("a", encoding="utf-8", buffering=1) as log:
            log.write(f"$ {format_command(arguments)}\n")
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(log):
                code, cause = self._call(arguments)
            log.write(output.getvalue())
            if cause:
                log.write(f"{cause}\n")
            log.write(f"exit code {code}\n\n")
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        return code, output.getvalue(), cause

    def _call(self, arguments: Sequence[str]) -> tuple[int, str]:
        try:
            returned = self._command.main(list(arguments), prog_name="fedglm", standalone_mode=False)
        except SystemExit as exc:
            return (exc.code if isinstance(exc.code, int) else int(exc.code is not None)), ""
        except (KeyboardInterrupt, click.Abort):
            return INTERRUPTED, ""
        except Exception as exc:
            if (explained := explain(exc)) is None:
                traceback.print_exc()  # to the log
                return _BUG, f"{type(exc).__name__}: {exc}"
            line, code = explained
            return code, line
        return (returned if isinstance(returned, int) else 0), ""


def format_command(arguments: Sequence[str]) -> str:
    """Format a command as a user types it."""
    return shlex.join(["fedglm", *arguments])
