"""Time of each site's last node activation: a node that was started again has lost the messages that it had pulled.

state/sign-ons/NAME     an empty file; its modification time is the time of the activation
"""

from pathlib import Path

from fedglm.core.files import storage_errors

FOLDER = "sign-ons"


class ActivationTimes:
    """Activation times; written by the SuperLink's gateway, read by the process that serves a run.

    Args:
        state: The project's state folder.
    """

    def __init__(self, state: Path) -> None:
        self._folder = state / FOLDER

    def record(self, site: str) -> None:
        """Record that the site's node is activated now.

        Raises:
            StorageError: The file cannot be written.
        """
        path = self._folder / site
        with storage_errors(path):
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.touch(mode=0o600)

    def last(self, site: str) -> float:
        """Return the time of the site's last activation in seconds, as `time.time`; 0 for none."""
        try:
            return (self._folder / site).stat().st_mtime
        except OSError:
            return 0.0
