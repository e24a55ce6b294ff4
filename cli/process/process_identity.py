"""Which living processes are ours: by number and start, and by a mark in their environment."""

import contextlib
import os
from pathlib import Path

import psutil

_PROC = Path("/proc")


def identity(pid: int) -> str | None:
    """What tells a living process from every other one that ever had its number; None where none lives.

    Pid files keep it. It counts from the boot, as psutil's `create_time` does not: that moves with the machine's clock.
    """
    try:
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    state, started = fields[0], fields[19]  # `started` in clock ticks since the boot
    return None if state in "ZX" else f"{boot}/{started}"


def find_marked(variable: str, value: str) -> list[int]:
    """Numbers of the other living processes that have a variable in the environment that they were started with."""
    pids = []
    for pid in psutil.pids():
        with contextlib.suppress(psutil.Error, OSError):  # another user's, or gone meanwhile
            if pid != os.getpid() and psutil.Process(pid).environ().get(variable) == value:
                pids.append(pid)
    return [pid for pid in pids if identity(pid) is not None]
