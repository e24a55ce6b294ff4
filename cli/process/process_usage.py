"""What processes use of the machine, and what they may use at most."""

import contextlib
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import psutil

from fedglm.core.control_groups import read_core_limit, read_memory_limit


@dataclass(frozen=True)
class Process:
    """A living process.

    Attributes:
        identity: Equal for the same process alone: its number may have been another's.
        pid: Its number.
        parent: Number of the process that started it, or took it over.
        cpu_s: CPU seconds of it, and of those of its children that have ended and that it has taken note of.
        memory_bytes: What it holds; of a page that n processes share, an n-th.
    """

    identity: Hashable
    pid: int
    parent: int
    cpu_s: float
    memory_bytes: int


@dataclass(frozen=True)
class Limits:
    """What a process may use at most.

    Attributes:
        cores: CPU cores.
        memory_bytes: Memory.
    """

    cores: float
    memory_bytes: int


def read_processes(pids: Iterable[int]) -> list[Process]:
    """Look at processes; who has ended meanwhile is left out."""
    processes = []
    for pid in pids:
        with contextlib.suppress(psutil.Error, OSError):
            process = psutil.Process(pid)
            with process.oneshot():
                times = process.cpu_times()
                cpu_s = times.user + times.system + times.children_user + times.children_system
                memory = process.memory_full_info().pss
                if process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
                    processes.append(Process(process, pid, process.ppid(), cpu_s, memory))
    return processes


class CpuClock:
    """CPU seconds of processes that come and go, as a number that never falls.

    When a process ends, its seconds pass to the one that started it, if that still lives; else they are kept here. What
    a process used between the last look and its end is lost in the latter case.
    """

    def __init__(self) -> None:
        self._seen: dict[Hashable, Process] = {}
        self._kept = self._highest = 0.0

    def read(self, processes: Iterable[Process]) -> float:
        """The seconds so far.

        Args:
            processes: All that live now.
        """
        living = {process.identity: process for process in processes}
        numbers = {process.pid for process in living.values()}
        for identity, process in self._seen.items():
            if identity not in living and process.parent not in numbers:
                self._kept += process.cpu_s
        self._seen = living
        # Between its end and the moment when its parent takes note, a process counts nowhere.
        self._highest = max(self._highest, self._kept + sum(process.cpu_s for process in living.values()))
        return self._highest


def limits(pid: int) -> Limits:
    """What a process may use: the machine's, or less where its control group has less.

    Raises:
        OSError: It has ended.
    """
    return Limits(read_core_limit(pid), read_memory_limit(pid))
