"""How much memory this process may take at most: of the machine, and of the control groups that it is in.

It is the limit and not what is free at the moment, which others decide, and with them the records that were read.
"""

import os
from collections.abc import Iterator
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_MINE = Path("/proc/self/cgroup")


def memory_limit() -> int:
    """Bytes; the machine's memory, or less where a control group gives less."""
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_of_groups(_MINE, _GROUPS)])


def _of_groups(mine: Path, groups: Path) -> Iterator[int]:
    """Limits of the process's groups and of those around them, by either version of the kernel's interface."""
    try:
        lines = mine.read_text().splitlines()
    except OSError:  # no Linux, or hidden
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, name = groups, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = groups / "memory", "memory.limit_in_bytes"
        else:
            continue
        folder = root / path.lstrip("/")
        # In a container the group's own path may be hidden, and what it sees as the root has the limit.
        for place in (folder, *folder.parents):
            if place.is_relative_to(root) and (limit := _number(place / name)) is not None:
                yield limit


def _number(path: Path) -> int | None:
    """The number in a file; None where there is none, as for "max"."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
