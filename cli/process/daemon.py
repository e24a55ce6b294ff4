"""A process that stays when the command that started it has gone: its pid file, its log, and its end without orphans.

    state/NAME.pid    which process it is, and when that started: a number that was given out again is not ours
    state/NAME.log    what it prints
    state/NAME.lock   held while somebody starts or stops it

All that descends from it carries its mark in the environment, whatever session or group it moves to. What a killed
process left behind is therefore found, and ended before the next one starts. This needs Linux's /proc.
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

from fedglm.cli.process.process_identity import find_marked, identity
from fedglm.core.errors import FedglmError
from fedglm.core.files import storage_errors, write_atomically
from fedglm.core.locks import hold_lock
from fedglm.core.parent_process import child_env

MARK = "FEDGLM_DAEMON"
"""Environment variable that names the daemon, in it and in all that it starts."""

_TAIL_LINES = 15  # of the log, shown when a start fails
_MAX_LOG_BYTES = 16 * 2**20  # of a log that is gone on with
_SETTLED_S = 2.0  # a process that lives this long has read its arguments and its files
_GRACE_S = 3.0  # between SIGTERM and SIGKILL, for what is left over


class DaemonError(FedglmError, RuntimeError):
    """A process cannot be started or stopped; the message says why and what helps."""


class Daemon:
    """One named process of a folder.

    Attributes:
        name: What it is called in messages, and its files in the folder.
        log: Where its output goes when it is detached.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder.absolute()
        self.name = name
        self.log = self._folder / f"{name}.log"
        self._pid_file = self._folder / f"{name}.pid"
        self._mark = f"{self._folder}/{name}"

    def pid(self) -> int | None:
        """The process's number, if it runs."""
        try:
            said = json.loads(self._pid_file.read_text())
            pid, recorded = int(said["pid"]), str(said["identity"])
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return pid if identity(pid) == recorded else None

    def start(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        *,
        ready: Callable[[], bool] | None = None,
        patience_s: float = 60.0,
    ) -> int:
        """Start it in a session of its own and return once it is up; nothing of ours is left waiting.

        Args:
            argv: Program and arguments.
            env: Variables on top of this process's.
            ready: Whether it is up; without it, to live for two seconds is to be up.
            patience_s: Longest time to wait for `ready`.

        Returns:
            Its number.

        Raises:
            DaemonError: It runs already, ended, or was not ready in time; the end of its log is on standard error.
            StorageError: The folder cannot be written.
        """
        with self._locked():
            self._refuse_a_second()
            log = self._open_log()
            with os.fdopen(log, "ab", closefd=True):
                since = os.fstat(log).st_size
                process = self._spawn(argv, env, output=log)
            try:
                self._wait_until_up(process, ready, patience_s)
            except DaemonError:
                self._show_tail(since)
                self._end_all(_GRACE_S)
                raise
            except BaseException:  # Ctrl-C while waiting
                self._end_all(_GRACE_S)
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
        """Start it and stay until it ends, for a supervisor such as systemd; its output is ours.

        SIGTERM and SIGINT end it and all that it started. It ends with us, however we end, where it cares for that.

        Args:
            argv: As for `start`.
            env: As for `start`.
            ready: As for `start`.
            once_ready: What to do when it is up.
            patience_s: As for `start`.

        Returns:
            Its exit code; 0 where a signal to us ended it.

        Raises:
            DaemonError: It runs already, ended before it was up, or was not ready in time.
        """
        asked_to_end: list[int] = []
        process: subprocess.Popen[bytes] | None = None

        def end(number: int, _: FrameType | None) -> None:
            asked_to_end.append(number)
            if process is not None:
                process.terminate()

        # Before the pid file exists: whoever reads a pid there may send a signal at once, and its default action would
        # end this process without ending the other.
        with _handle_signals(end):
            with self._locked():
                self._refuse_a_second()
                process = self._spawn(argv, {**env, **child_env()}, output=None)
            try:
                if asked_to_end:  # the signal came before there was a process to pass it on to
                    process.terminate()
                self._wait_until_up(process, ready, patience_s, asked_to_end)
                if once_ready is not None and not asked_to_end:
                    once_ready()
                code = process.wait()
            finally:
                self._end_all(_GRACE_S)
        return 0 if asked_to_end else code

    def stop(self, timeout_s: float = 20.0) -> bool:
        """End it and all that it started: ask with SIGTERM, then SIGKILL.

        Args:
            timeout_s: How long it may take over its own end.

        Returns:
            Whether anything ran.
        """
        with self._locked():
            return self._end_all(timeout_s)

    def members(self) -> list[int]:
        """Numbers of the living processes that carry the mark: it, and what it started."""
        return find_marked(MARK, self._mark)

    def tail(self, lines: int = _TAIL_LINES, *, since: int = 0) -> list[str]:
        """The last lines of the log, from byte `since` on."""
        try:
            with self.log.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(since, size - 65536))
                return file.read().decode(errors="replace").splitlines()[-lines:]
        except OSError:
            return []

    def _spawn(self, argv: Sequence[str], env: Mapping[str, str], *, output: int | None) -> "subprocess.Popen[bytes]":
        self._end_all(_GRACE_S)  # what a killed one left behind
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
        said = {"pid": process.pid, "identity": identity(process.pid)}
        write_atomically(self._pid_file, json.dumps(said) + "\n", mode=0o600)
        return process

    def _wait_until_up(
        self,
        process: "subprocess.Popen[bytes]",
        ready: Callable[[], bool] | None,
        patience_s: float,
        asked_to_end: Sequence[int] = (),
    ) -> None:
        began = time.monotonic()
        while not asked_to_end:
            if (code := process.poll()) is not None:
                said = f"by signal {-code}" if code < 0 else f"with exit code {code}"
                raise DaemonError(f"{self.name} ended as soon as it started, {said}; its log is {self.log}")
            waited = time.monotonic() - began
            if ready() if ready is not None else waited >= _SETTLED_S:
                return
            if waited >= patience_s:
                raise DaemonError(f"{self.name} was not up after {patience_s:.0f} s; its log is {self.log}")
            time.sleep(0.1)

    def _refuse_a_second(self) -> None:
        if (pid := self.pid()) is not None:
            raise DaemonError(f"{self.name} runs already, as process {pid}: stop it first")

    def _end_all(self, timeout_s: float) -> bool:
        """End the process, then whatever carries its mark."""
        pid = self.pid()
        if pid is not None:
            _signal([pid], signal.SIGTERM)
            _gone(lambda: self.pid() is None, timeout_s)
        found = pid is not None
        for number in (signal.SIGTERM, signal.SIGKILL):
            if left := self.members():
                found = True
                _signal(left, number)
                _gone(lambda: not self.members(), _GRACE_S)
        if left := self.members():
            raise DaemonError(f"{self.name}: processes {', '.join(map(str, left))} do not end; end them by hand")
        self._pid_file.unlink(missing_ok=True)
        return found

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with hold_lock(self._folder / f"{self.name}.lock") as alone:
            if not alone:
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


def _gone(condition: Callable[[], bool], timeout_s: float) -> None:
    end = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
