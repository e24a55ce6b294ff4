"""What processes use of a Linux machine, and what they may use at most: from /proc and from their control group."""

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_PROC, _CGROUP = Path("/proc"), Path("/sys/fs/cgroup")
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Process:
    """A living process.

    Attributes:
        pid: Its number.
        started: Clock ticks from the boot to its start: with the number, what tells it from every other.
        parent: Number of the process that started it, or took it over.
        cpu_s: CPU seconds of it, and of those of its children that have ended and that it has taken note of.
        memory_bytes: What it holds; of a page that n processes share, an n-th.
    """

    pid: int
    started: int
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
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()  # see proc(5)
            cpu_s = sum(map(int, fields[11:15])) / _TICKS
            found.append(Process(pid, int(fields[19]), int(fields[1]), cpu_s, proportional_bytes(pid)))
    return found


class CpuClock:
    """CPU seconds of processes that come and go, as a number that never falls.

    When a process ends, its seconds pass to the one that started it, if that still lives; else they are kept here. What
    a process used between the last look and its end is lost in the latter case.
    """

    def __init__(self) -> None:
        self._seen: dict[tuple[int, int], Process] = {}
        self._kept = self._highest = 0.0

    def read(self, processes: Iterable[Process]) -> float:
        """The seconds so far.

        Args:
            processes: All that live now.
        """
        living = {(process.pid, process.started): process for process in processes}
        numbers = {process.pid for process in living.values()}
        for identity, process in self._seen.items():
            if identity not in living and process.parent not in numbers:
                self._kept += process.cpu_s
        self._seen = living
        # Between its end and the moment when its parent takes note, a process counts nowhere.
        self._highest = max(self._highest, self._kept + sum(process.cpu_s for process in living.values()))
        return self._highest


def proportional_bytes(pid: int) -> int:
    """Memory of a process: pages that it shares with n - 1 others count a n-th.

    Raises:
        OSError: It has ended, or belongs to somebody else.
    """
    for line in (_PROC / str(pid) / "smaps_rollup").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "Pss":
            return 1024 * int(value.split()[0])
    raise OSError(f"the kernel does not say what process {pid} holds")


def limits(pid: int) -> Limits:
    """What a process may use: the machine's, or less where its control group (v2) has less.

    Raises:
        OSError: It has ended.
    """
    cores = float(len(os.sched_getaffinity(pid)))
    memory = _machine_memory()
    for group in _groups(pid):
        with contextlib.suppress(OSError):  # the root group has no such files
            quota, period = (group / "cpu.max").read_text().split()
            cores = cores if quota == "max" else min(cores, int(quota) / int(period))
        with contextlib.suppress(OSError):
            most = (group / "memory.max").read_text().strip()
            memory = memory if most == "max" else min(memory, int(most))
    return Limits(cores, memory)


def _machine_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _groups(pid: int) -> list[Path]:
    """The process's control group and those around it, where the machine has version 2 of them."""
    for line in (_PROC / str(pid) / "cgroup").read_text().splitlines():
        number, _, path = line.split(":", 2)
        if number == "0":
            group = _CGROUP / path.strip("/")
            return [group, *(parent for parent in group.parents if parent.is_relative_to(_CGROUP))]
    return []
