"""A process that ends with the one that started it, however that ends.

Linux kills it then. The parent says by an environment variable that it wants that, for most programs may outlive the
command that starts them. psutil has no call for that, so that it is prctl's own.
"""

import ctypes
import os
import signal
import sys

PARENT = "FEDGLM_PARENT"
"""Environment variable with the number of the process that the child is not to outlive."""

_PR_SET_PDEATHSIG = 1


def bond() -> dict[str, str]:
    """Variables for a child that calls `end_with_parent`.

    The thread that starts it must live as long as the process does: the kernel goes by that.
    """
    return {PARENT: str(os.getpid())}


def end_with_parent() -> None:
    """From now on this process is killed when the one that started it ends, where that one wants it so."""
    parent = os.environ.pop(PARENT, None)
    if parent is None:
        return
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "this process cannot be bound to the one that started it")
    if os.getppid() != int(parent):  # it has ended meanwhile
        sys.exit(1)
