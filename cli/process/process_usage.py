"""CPU time and memory of processes, and the limits of both."""

import contextlib
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import psutil

from fedglm.core.processes.control_groups import read_core_limit, read_memory_limit


@dataclass(frozen=True)
class Process:
    """A living process.

    Attributes:
        identity: Equal for the same process only, although pids are reused.
        pid: Process id.
        parent: Process id of its parent.
        cpu_s: CPU seconds of the process, and of its children that have ended and that it has waited for.
        memory_bytes: Proportional set size (PSS): a page that n processes share counts as an n-th.
    """

    identity: Hashable
    pid: int
    parent: int
    cpu_s: float
    memory_bytes: int


@dataclass(frozen=True)
class Limits:
    """Limits of a process.

    Attributes:
        cores: Maximum CPU cores.
        memory_bytes: Maximum memory.
    """

    cores: float
    memory_bytes: int


def read_processes(pids: Iterable[int]) -> list[Process]:
    """Read the usage of processes; those that have ended are left out."""
    processes = []
    for pid in pids:
        with contextlib.suppress(psutil.Error, OSError):
            process = psutil.Process(pid)
            with process.oneshot():
                times = process.cpu_times()
                cpu_s = times.user + times.system + times.children_user + times.children_system
                memory_bytes = process.memory_full_info().pss
                if process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
                    processes.append(Process(process, pid, process.ppid(), cpu_s, memory_bytes))
    return processes


class CpuClock:
    """Monotonic counter of the CPU seconds of processes that start and end.

    When a process ends, its seconds are added to its parent's, if that lives; else they are added here. In the latter
    case the seconds between the last reading and its end are lost.
    """

    def __init__(self) -> None:
        self._last: dict[Hashable, Process] = {}
        self._ended_s = self._max_s = 0.0

    def read(self, processes: Iterable[Process]) -> float:
        """Return the CPU seconds so far.

        Args:
            processes: All processes that live now.
        """
        living = {process.identity: process for process in processes}
        pids = {process.pid for process in living.values()}
        for identity, process in self._last.items():
            if identity not in living and process.parent not in pids:
                self._ended_s += process.cpu_s
        self._last = living
        # Between its end and its parent's wait, the seconds of a process are counted nowhere.
        self._max_s = max(self._max_s, self._ended_s + sum(process.cpu_s for process in living.values()))
        return self._max_s


def read_limits(pid: int) -> Limits:
    """Read the limits of a process: the machine's, or those of its control group if lower.

    Raises:
        OSError: The process has ended.
    """
    return Limits(read_core_limit(pid), read_memory_limit(pid))
