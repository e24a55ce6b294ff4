"""Identity of living processes: by id and start time, and by a mark in their environment."""

import contextlib
import os
from pathlib import Path

import psutil

_PROC = Path("/proc")


def read_identity(pid: int) -> str | None:
    """Return boot id and start time of a living process, which no other process with its id has; None if none lives.

    Pid files contain it. The start time counts from the boot; psutil's `create_time` changes with the machine's clock.
    """
    try:
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    state, started = fields[0], fields[19]  # `started` in clock ticks since the boot
    return None if state in "ZX" else f"{boot}/{started}"


def find_marked(variable: str, value: str) -> list[int]:
    """Return the ids of the other living processes that were started with an environment variable of this value."""
    pids = []
    for pid in psutil.pids():
        with contextlib.suppress(psutil.Error, OSError):  # another user's, or it has ended meanwhile
            if pid != os.getpid() and psutil.Process(pid).environ().get(variable) == value:
                pids.append(pid)
    return [pid for pid in pids if read_identity(pid) is not None]
