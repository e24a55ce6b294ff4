"""A process that outlives the command that started it: its pid file, its log, and its end without orphans.

    state/NAME.pid    process id and start time: a process with a reused id is not the daemon
    state/NAME.log    output of the process
    state/NAME.lock   locked while a command starts or stops the process

All its descendants have a mark in their environment, whatever session or process group they are in. The orphans of a
killed process are therefore known, and ended before the next one starts. This needs Linux's /proc.
"""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

import typer

from fedglm.cli.process.process_identity import find_marked, read_identity
from fedglm.core.errors import FedglmError
from fedglm.core.files import storage_errors, write_atomically
from fedglm.core.locks import hold_lock
from fedglm.core.processes.parent_process import child_env

MARK = "FEDGLM_DAEMON"
"""Environment variable with the daemon's mark, in the process and its descendants."""

_TAIL_LINES = 15  # of the log, shown when a start fails
_MAX_LOG_BYTES = 16 * 2**20  # a longer log is put aside at the next start
_STABLE_AFTER_S = 2.0  # a process that lives this long has read its arguments and its files
_GRACE_S = 3.0  # between SIGTERM and SIGKILL, for remaining descendants


class DaemonError(FedglmError, RuntimeError):
    """A process cannot be started or stopped; the message names the cause and the remedy."""


class Daemon:
    """One named process of a state folder.

    Args:
        folder: Folder of its pid file, log and lock.
        name: Name of the process.

    Attributes:
        name: Name of the process, in messages and as the name of its files.
        log: File of its output when it is detached.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder.absolute()
        self.name = name
        self.log = self._folder / f"{name}.log"
        self._pid_file = self._folder / f"{name}.pid"
        self._mark = f"{self._folder}/{name}"

    def pid(self) -> int | None:
        """Return the process id; None if the process does not run."""
        try:
            record = json.loads(self._pid_file.read_text())
            pid, identity = int(record["pid"]), str(record["identity"])
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return pid if read_identity(pid) == identity else None

    def start(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        *,
        ready: Callable[[], bool] | None = None,
        patience_s: float = 60.0,
    ) -> int:
        """Start the process in a session of its own, and return once it is up.

        Args:
            argv: Program and arguments.
            env: Environment variables in addition to this process's.
            ready: Returns whether the process is up; without it, a process that has lived for two seconds is up.
            patience_s: Maximum seconds to wait for `ready`.

        Returns:
            The process id.

        Raises:
            DaemonError: The process runs already, has ended, or was not ready in time; the end of its log is printed to
                standard error.
            StorageError: The folder cannot be written.
        """
        with self._lock():
            self._check_not_running()
            log = self._open_log()
            with os.fdopen(log, "ab", closefd=True):
                since = os.fstat(log).st_size
                process = self._spawn(argv, env, output=log)
            try:
                self._wait_until_up(process, ready, patience_s)
            except DaemonError:
                self._show_tail(since)
                self._stop_all(_GRACE_S)
                raise
            except BaseException:  # Ctrl-C while waiting
                self._stop_all(_GRACE_S)
                raise
        return process.pid

    def run(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        *,
        ready: Callable[[], bool] | None = None,
        once_ready: Callable[[], None] | None = None,
        patience_s: float = 60.0,
    ) -> int:
        """Start the process and wait until it ends, for a supervisor such as systemd; it inherits standard output.

        SIGTERM and SIGINT to this process end it and all its descendants. It is killed when this process ends, however
        it ends, if it calls `end_with_parent`.

        Args:
            argv: As for `start`.
            env: As for `start`.
            ready: As for `start`.
            once_ready: Called once the process is up.
            patience_s: As for `start`.

        Returns:
            Exit code of the process; 0 if a signal to this process ended it.

        Raises:
            DaemonError: The process runs already, ended before it was up, or was not ready in time.
        """
        stop_signals: list[int] = []
        process: subprocess.Popen[bytes] | None = None

        def end(number: int, _: FrameType | None) -> None:
            stop_signals.append(number)
            if process is not None:
                process.terminate()

        # Before the pid file exists: who reads the pid may send this process a signal at once, and its default action
        # would end this process alone.
        with _handle_signals(end):
            with self._lock():
                self._check_not_running()
                process = self._spawn(argv, {**env, **child_env()}, output=None)
            try:
                if stop_signals:  # before there was a process to forward the signal to
                    process.terminate()
                self._wait_until_up(process, ready, patience_s, stop_signals)
                if once_ready is not None and not stop_signals:
                    once_ready()
                code = process.wait()
            finally:
                self._stop_all(_GRACE_S)
        return 0 if stop_signals else code

    def stop(self, timeout_s: float = 20.0) -> bool:
        """End the process and all its descendants: by SIGTERM, then SIGKILL.

        Args:
            timeout_s: Maximum seconds between SIGTERM and SIGKILL to the process.

        Returns:
            Whether any process ran.
        """
        with self._lock():
            return self._stop_all(timeout_s)

    def members(self) -> list[int]:
        """Return the ids of the living processes with the mark: the process and its descendants, without the caller."""
        return find_marked(MARK, self._mark)

    def tail(self, lines: int = _TAIL_LINES, *, since: int = 0) -> list[str]:
        """Return the last lines of the log, from byte `since` on."""
        try:
            with self.log.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(since, size - 65536))
                return file.read().decode(errors="replace").splitlines()[-lines:]
        except OSError:
            return []

    def _spawn(self, argv: Sequence[str], env: Mapping[str, str], *, output: int | None) -> "subprocess.Popen[bytes]":
        self._stop_all(_GRACE_S)  # orphans of a killed process
        try:
            process = subprocess.Popen(  # noqa: S603 - the caller's own program
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if output is not None else None,
                start_new_session=True,
                env=os.environ | dict(env) | {MARK: self._mark},
            )
        except OSError as exc:
            raise DaemonError(f"cannot start {self.name}: {argv[0]}: {exc.strerror}") from exc
        record = {"pid": process.pid, "identity": read_identity(process.pid)}
        write_atomically(self._pid_file, json.dumps(record) + "\n", mode=0o600)
        return process

    def _wait_until_up(
        self,
        process: "subprocess.Popen[bytes]",
        ready: Callable[[], bool] | None,
        patience_s: float,
        stop_signals: Sequence[int] = (),
    ) -> None:
        began = time.monotonic()
        while not stop_signals:
            if (code := process.poll()) is not None:
                cause = f"by signal {-code}" if code < 0 else f"with exit code {code}"
                raise DaemonError(f"{self.name} ended as soon as it started, {cause}; its log is {self.log}")
            waited = time.monotonic() - began
            if ready() if ready is not None else waited >= _STABLE_AFTER_S:
                return
            if waited >= patience_s:
                raise DaemonError(f"{self.name} was not up after {patience_s:.0f} s; its log is {self.log}")
            time.sleep(0.1)

    def _check_not_running(self) -> None:
        if (pid := self.pid()) is not None:
            raise DaemonError(f"{self.name} runs already, as process {pid}: stop it first")

    def _stop_all(self, timeout_s: float) -> bool:
        """End the process, then all processes with its mark; return whether any ran."""
        pid = self.pid()
        if pid is not None:
            _signal([pid], signal.SIGTERM)
            _wait_until(lambda: self.pid() is None, timeout_s)
        has_run = pid is not None
        for number in (signal.SIGTERM, signal.SIGKILL):
            if remaining := self.members():
                has_run = True
                _signal(remaining, number)
                _wait_until(lambda: not self.members(), _GRACE_S)
        if remaining := self.members():
            raise DaemonError(f"{self.name}: processes {', '.join(map(str, remaining))} do not end; end them by hand")
        self._pid_file.unlink(missing_ok=True)
        return has_run

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        with hold_lock(self._folder / f"{self.name}.lock") as is_held:
            if not is_held:
                raise DaemonError(f"another command is starting or stopping {self.name}: wait until it is done")
            yield

    def _open_log(self) -> int:
        with storage_errors(self.log):
            with contextlib.suppress(FileNotFoundError):
                if self.log.stat().st_size > _MAX_LOG_BYTES:
                    os.replace(self.log, self.log.with_suffix(".log.1"))
            return os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def _show_tail(self, since: int) -> None:
        for line in self.tail(since=since):
            typer.echo(f"  {line}", err=True)


@contextlib.contextmanager
def _handle_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Call `handler` for SIGTERM and SIGINT while the block runs."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def _signal(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _wait_until(condition: Callable[[], bool], timeout_s: float) -> None:
    end = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
