"""Supervisor: `python -m fedglm.cli.process.supervisor LOG PROGRAM ...` restarts a program whenever it dies.

It is for programs that a command starts in the background; a service has systemd. The program is killed when this
process ends, however it ends. A program that exits with 0 has ended on purpose: then the supervisor ends too. It also
ends when the program fails before it has ever been stable, since it would only fail again.
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

from fedglm.core.log_rotation import rotate_log
from fedglm.core.processes.parent_process import child_env

STABLE_AFTER_S: Final = 15.0
"""Seconds after which a program counts as stable: it has read its arguments and files."""

_MIN_DELAY_S: Final = 0.5
_MAX_DELAY_S: Final = 30.0
_POLL_S: Final = 0.1
_MAX_LOG_BYTES: Final = 16 * 2**20


def make_supervised_command(argv: Sequence[str], log: Path) -> list[str]:
    """Make the command that runs a program under a supervisor.

    Args:
        argv: Program and arguments.
        log: File of the program's output; it is rotated when long.
    """
    return [sys.executable, "-m", "fedglm.cli.process.supervisor", str(log), *argv]


class Supervisor:
    """Runs a program, and restarts it when it dies.

    Args:
        argv: Program and arguments.
        log: File of the program's output.
    """

    def __init__(self, argv: Sequence[str], log: Path) -> None:
        self._argv, self._log = list(argv), log
        self._process: subprocess.Popen[bytes] | None = None
        self._is_ending = False

    def handle_signal(self, number: int, _: FrameType | None) -> None:
        """Forward a signal to the program; when it has ended, the supervisor ends too."""
        self._is_ending = True
        if self._process is not None:
            self._process.send_signal(number)

    def run(self) -> int:
        """Run until the program ends by itself, or a signal ends both; return the exit code."""
        delay, was_stable = _MIN_DELAY_S, False
        while True:
            began = time.monotonic()
            code = self._run_once()
            is_stable = time.monotonic() - began >= STABLE_AFTER_S
            was_stable = was_stable or is_stable
            if self._is_ending or code == 0:
                return 0
            cause = f"by signal {-code}" if code < 0 else f"with exit code {code}"
            if code > 0 and not was_stable:
                return code
            delay = _MIN_DELAY_S if is_stable else min(2 * delay, _MAX_DELAY_S)
            print(f"it ended {cause}, and is started again in {delay:g} s", flush=True)  # noqa: T201 - this is the log
            self._wait(delay)
            if self._is_ending:
                return 0

    def _run_once(self) -> int:
        """Run the program to its end; return its exit code, negative for a signal."""
        self._process = subprocess.Popen(self._argv, stdin=subprocess.DEVNULL, env={**os.environ, **child_env()})  # noqa: S603
        if self._is_ending:
            self._process.terminate()
        while (code := self._process.poll()) is None:
            rotate_log(self._log, _MAX_LOG_BYTES)
            time.sleep(_POLL_S)
        return code

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self._is_ending:
            time.sleep(_POLL_S)


def main() -> None:
    """Supervise the program of the command line."""
    supervisor = Supervisor(sys.argv[2:], Path(sys.argv[1]))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, supervisor.handle_signal)
    sys.exit(supervisor.run())


if __name__ == "__main__":
    main()
