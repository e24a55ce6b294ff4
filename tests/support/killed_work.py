"""Work of a process that is killed at it. A file of its own: each process imports what it works with."""

import os
import signal


def killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)
