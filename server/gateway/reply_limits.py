"""Maximum size of a site's reply to one message: it follows from the run's model, and the run's process records it.

    state/reply-limits/RUN_ID      contains the number of the model's parameters; RUN_ID is Flower's id of the run

The file exists before the run's first message is sent. For a run without a file no reply is accepted.
"""

import contextlib
from pathlib import Path

from fedglm.core.files import write_atomically

FOLDER = "reply-limits"

MAX_METADATA_BYTES = 65536
"""Maximum bytes of a reply beside an update: a JoinReply, a signed tree head, metrics, an error; 1 kB is usual."""

_BYTES_PER_PARAMETER = 4  # the maximum of the node's own outbound gate: uncoded float32
_UPDATE = "train"


class ReplyLimits:
    """Reply limits; written by the process that serves a run, read by the SuperLink's gateway.

    Args:
        state: The project's state folder.
    """

    def __init__(self, state: Path) -> None:
        self._folder = state / FOLDER

    def record_run(self, run_id: int, parameters: int) -> None:
        """Record a run that begins.

        Args:
            run_id: Flower's id of the run.
            parameters: Number of federated parameters.

        Raises:
            StorageError: The file cannot be written.
        """
        write_atomically(self._folder / str(run_id), f"{parameters}\n", mode=0o600)

    def clear(self) -> None:
        """Remove the limits of all runs: none is under way."""
        with contextlib.suppress(FileNotFoundError):
            for path in self._folder.iterdir():
                path.unlink()

    def max_bytes(self, run_id: int, message_type: str) -> int:
        """Return the maximum bytes of a reply to a message; 0 where the run is not under way.

        Args:
            run_id: Flower's id of the run.
            message_type: Flower's message type, such as `train` or `query`.
        """
        try:
            parameters = int((self._folder / str(run_id)).read_text())
        except (OSError, ValueError):
            return 0
        update_bytes = _BYTES_PER_PARAMETER * parameters if message_type.partition(".")[0] == _UPDATE else 0
        return MAX_METADATA_BYTES + update_bytes
