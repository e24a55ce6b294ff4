"""Child processes that end with their parent, however that ends.

Linux kills them then. The parent requests it by an environment variable, because most programs may outlive the command
that starts them. psutil has no call for this, so prctl is called directly.
"""

import ctypes
import os
import signal
import sys

PARENT = "FEDGLM_PARENT"
"""Environment variable with the id of the process that the child must not outlive."""

_PR_SET_PDEATHSIG = 1


def child_env() -> dict[str, str]:
    """Return the environment variables for a child that calls `end_with_parent`.

    The thread that starts the child must live as long as this process: the kernel watches the thread.
    """
    return {PARENT: str(os.getpid())}


def end_with_parent() -> None:
    """Have this process killed when its parent ends, where the parent requested that.

    Raises:
        OSError: The kernel refuses.
    """
    parent = os.environ.pop(PARENT, None)
    if parent is None:
        return
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "this process cannot be bound to the one that started it")
    if os.getppid() != int(parent):  # the parent has ended meanwhile
        sys.exit(1)
