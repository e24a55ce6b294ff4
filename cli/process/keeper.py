"""Keeps a program running: `python -m fedglm.cli.process.keeper LOG PROGRAM ...` starts it again whenever it dies.

What a command starts in the background has nobody else who would; a service has systemd. The program is killed when
this process ends, however it ends. A program that ends by itself, with 0, has done so on purpose: then this ends too.
So does one that fails before it has ever lived for a while, for it would only fail again.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Final

from fedglm.core.parent_process import child_env

LIVED_S: Final = 15.0
"""A program that has lived so long has read its arguments and files."""

_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 30.0
_LOOK_S: Final = 0.1
_LOG_BYTES: Final = 16 * 2**20


def kept(argv: Sequence[str], log: Path) -> list[str]:
    """What runs a program and keeps it running.

    Args:
        argv: Program and arguments.
        log: Where its output goes; it is kept short.
    """
    return [sys.executable, "-m", "fedglm.cli.process.keeper", str(log), *argv]


class Keeper:
    """Runs a program, again and again.

    Args:
        argv: Program and arguments.
        log: The file that its output goes to.
    """

    def __init__(self, argv: Sequence[str], log: Path) -> None:
        self._argv, self._log = list(argv), log
        self._process: subprocess.Popen[bytes] | None = None
        self._asked_to_end = False

    def end(self, number: int, _: FrameType | None) -> None:
        """Pass a signal on; when the program has ended, so does this."""
        self._asked_to_end = True
        if self._process is not None:
            self._process.send_signal(number)

    def run(self) -> int:
        """Stay until the program ends by itself, or a signal ends both; returns the exit code."""
        pause, has_lived = _FIRST_PAUSE_S, False
        while True:
            began = time.monotonic()
            code = self._once()
            lived = time.monotonic() - began >= LIVED_S
            has_lived = has_lived or lived
            if self._asked_to_end or code == 0:
                return 0
            cause = f"by signal {-code}" if code < 0 else f"with exit code {code}"
            if code > 0 and not has_lived:
                return code
            pause = _FIRST_PAUSE_S if lived else min(2 * pause, _LONGEST_PAUSE_S)
            print(f"it ended {cause}, and is started again in {pause:g} s", flush=True)  # noqa: T201 - this is the log
            self._rest(pause)
            if self._asked_to_end:
                return 0

    def _once(self) -> int:
        """Run the program to its end; returns its exit code, negative for a signal."""
        self._process = subprocess.Popen(self._argv, stdin=subprocess.DEVNULL, env={**os.environ, **child_env()})  # noqa: S603
        if self._asked_to_end:
            self._process.terminate()
        while (code := self._process.poll()) is None:
            self._shorten_log()
            time.sleep(_LOOK_S)
        return code

    def _rest(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self._asked_to_end:
            time.sleep(_LOOK_S)

    def _shorten_log(self) -> None:
        """Put the log away once it is long; who writes it appends, and so begins at its start again."""
        try:
            if self._log.stat().st_size > _LOG_BYTES:
                self._log.with_suffix(".log.1").write_bytes(self._log.read_bytes())
                os.truncate(self._log, 0)
        except OSError:  # there is none, or the disk is full
            return


def main() -> None:
    """Keep the program of the command line running."""
    keeper = Keeper(sys.argv[2:], Path(sys.argv[1]))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, keeper.end)
    sys.exit(keeper.run())


if __name__ == "__main__":
    main()
