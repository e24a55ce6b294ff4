"""When each site's node signed on last: one that was started again has lost the messages that it had pulled.

state/sign-ons/NAME     an empty file, whose time says when
"""

from pathlib import Path

from fedglm.core.files import storage_errors

FOLDER = "sign-ons"


class ActivationTimes:
    """Noted by the SuperLink's door, read by the process that serves a run.

    Args:
        state: The project's folder of what its processes remember.
    """

    def __init__(self, state: Path) -> None:
        self._folder = state / FOLDER

    def note(self, site: str) -> None:
        """The site's node signs on now.

        Raises:
            StorageError: It cannot be written down.
        """
        path = self._folder / site
        with storage_errors(path):
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.touch(mode=0o600)

    def last(self, site: str) -> float:
        """When it did last, as `time.time`; 0 for never."""
        try:
            return (self._folder / site).stat().st_mtime
        except OSError:
            return 0.0
