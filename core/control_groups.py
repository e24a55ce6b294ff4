"""How much of the machine a process may use at most: what there is, or less where a control group gives less.

It is the limit and not what is free at the moment, which others decide, and with them the records that were read.
psutil knows nothing of control groups, so that the kernel's files are read here.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")


def memory_limit(pid: int | None = None) -> int:
    """Bytes of memory.

    Args:
        pid: Of the process; this one without it.
    """
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *_memory_limits(_membership(pid), _GROUPS)])


def core_limit(pid: int | None = None) -> float:
    """CPU cores, maybe with a fraction; quotas of version 1 of the kernel's interface are not looked at.

    Args:
        pid: Of the process; this one without it.

    Raises:
        OSError: It has ended.
    """
    cores = float(len(os.sched_getaffinity(pid or 0)))
    return min([cores, *_core_limits(_membership(pid), _GROUPS)])


def _membership(pid: int | None) -> Path:
    """The file that names the groups of a process."""
    return Path("/proc") / ("self" if pid is None else str(pid)) / "cgroup"


def _memory_limits(membership: Path, groups: Path) -> Iterator[int]:
    for version, folder in _folders(membership, groups):
        with suppress(OSError, ValueError):  # no such file, as in the root group, or "max"
            yield int((folder / ("memory.max" if version == 2 else "memory.limit_in_bytes")).read_text())


def _core_limits(membership: Path, groups: Path) -> Iterator[float]:
    for version, folder in _folders(membership, groups):
        if version == 2:
            with suppress(OSError, ValueError):
                quota, period = (folder / "cpu.max").read_text().split()
                yield int(quota) / int(period)


def _folders(membership: Path, groups: Path) -> Iterator[tuple[int, Path]]:
    """Version of the interface (of 1, memory alone) and folder of each group of a process and of those around it."""
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
        # In a container the group's own path may be hidden, and what it sees as the root has the limit.
        for place in (folder, *folder.parents):
            if place.is_relative_to(root):
                yield version, place
