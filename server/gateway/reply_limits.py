"""How much a site may send in answer to one message: it follows from the run, and the process that serves it says so.

    state/reply-limits/RUN      Flower's number of the run, with the number of its model's parameters in it

The file is there before the run's first message leaves. A run without one is none of ours, and nothing is taken for it.
"""

import contextlib
from pathlib import Path

from fedglm.core.files import write_atomically

FOLDER = "reply-limits"

WORDS_BYTES = 65536
"""Longest answer without an update: an introduction, a checkpoint, measures, an error; usual ones have a kilobyte."""

_BYTES_A_PARAMETER = 4  # what the node's own gate lets out at most: as float32, uncoded
_UPDATE = "train"


class ReplyLimits:
    """Written by the process that serves a run, read by the SuperLink's door.

    Args:
        state: The project's folder of what its processes remember.
    """

    def __init__(self, state: Path) -> None:
        self._folder = state / FOLDER

    def announce(self, run_id: int, parameters: int) -> None:
        """A run begins.

        Args:
            run_id: Flower's number of it.
            parameters: Number of federated parameters.

        Raises:
            StorageError: It cannot be written down.
        """
        write_atomically(self._folder / str(run_id), f"{parameters}\n", mode=0o600)

    def forget_all(self) -> None:
        """No run is under way."""
        with contextlib.suppress(FileNotFoundError):
            for path in self._folder.iterdir():
                path.unlink()

    def bytes_at_most(self, run_id: int, kind: str) -> int:
        """Longest answer to a message; 0 where the run is not under way.

        Args:
            run_id: Flower's number of the run.
            kind: The message's type, such as `train` or `query`.
        """
        try:
            parameters = int((self._folder / str(run_id)).read_text())
        except (OSError, ValueError):
            return 0
        return WORDS_BYTES + (_BYTES_A_PARAMETER * parameters if kind.partition(".")[0] == _UPDATE else 0)
