"""Memory and CPU limits of a process: those of the machine, or of its control group where they are lower.

The limit is used and not what is free at the moment, which depends on other processes, and with them on the records
that were read. psutil does not know control groups, so the kernel's files are read here.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")


def read_memory_limit(pid: int | None = None) -> int:
    """Return the memory limit of a process in bytes.

    Args:
        pid: Process id; by default this process.
    """
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *_read_memory_limits(_membership_file(pid), _GROUPS)])


def read_core_limit(pid: int | None = None) -> float:
    """Return the limit of CPU cores of a process, possibly fractional; quotas of cgroup version 1 are not read.

    Args:
        pid: Process id; by default this process.

    Raises:
        OSError: The process has ended.
    """
    cores = float(len(os.sched_getaffinity(pid or 0)))
    return min([cores, *_read_core_limits(_membership_file(pid), _GROUPS)])


def _membership_file(pid: int | None) -> Path:
    """Return the file that lists the control groups of a process."""
    return Path("/proc") / ("self" if pid is None else str(pid)) / "cgroup"


def _read_memory_limits(membership: Path, groups: Path) -> Iterator[int]:
    for version, folder in _list_groups(membership, groups):
        with suppress(OSError, ValueError):  # no such file, as in the root group, or "max"
            yield int((folder / ("memory.max" if version == 2 else "memory.limit_in_bytes")).read_text())


def _read_core_limits(membership: Path, groups: Path) -> Iterator[float]:
    for version, folder in _list_groups(membership, groups):
        if version == 2:
            with suppress(OSError, ValueError):
                quota, period = (folder / "cpu.max").read_text().split()
                yield int(quota) / int(period)


def _list_groups(membership: Path, groups: Path) -> Iterator[tuple[int, Path]]:
    """Yield cgroup version (of 1, memory alone) and folder of each group of a process and of each parent group."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:  # no Linux, or hidden, or the process has ended
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            version, root = 2, groups
        elif "memory" in controllers.split(","):
            version, root = 1, groups / "memory"
        else:
            continue
        folder = root / path.lstrip("/")
        # In a container the group's own path may be hidden, and the visible root holds the limit.
        for parent in (folder, *folder.parents):
            if parent.is_relative_to(root):
                yield version, parent
