"""State of a node's link to its server, for other processes of the site: `state/link.json`.

    {"connected": true, "since": "2026-03-01T12:00:00+00:00", "fault": null}

`since` is the time of the last change, in UTC; `fault` the code of `client/link/faults.py` while there is no link. The
node alone writes the file, when either changes. What it says holds only while the node's process runs.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import threading
from pathlib import Path
from typing import Final, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from fedglm.client.link.faults import LinkFault
from fedglm.core.errors import FedglmError
from fedglm.core.files import storage_errors, write_atomically

LOG: Final = logging.getLogger(__name__)

FILE: Final = "link.json"
_MAX_BYTES: Final = 4096


class LinkState(BaseModel):
    """Whether a node is connected.

    Attributes:
        connected: Whether the server answered the last request.
        since: Time of the last change, with its time zone.
        fault: Why not; None while connected.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    connected: bool
    since: datetime.datetime
    fault: LinkFault | None = None

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Read the state in a site's state folder; None where there is none yet, or what is there cannot be read."""
        with contextlib.suppress(OSError, ValidationError), (folder / FILE).open("rb") as file:
            return cls.model_validate_json(file.read(_MAX_BYTES))
        return None


def clear_link_state(folder: Path) -> None:
    """Forget what an earlier process of the node recorded; call it before one starts.

    Args:
        folder: Folder of the site's state.

    Raises:
        StorageError: The file cannot be removed.
    """
    with storage_errors(folder / FILE):
        (folder / FILE).unlink(missing_ok=True)


class LinkRecorder:
    """Records how requests to the server end; safe to call from several threads.

    A file that cannot be written changes nothing else: the node works on, and the log says so.

    Args:
        folder: Folder of the site's state.
        server: Address of the server, for the log.
    """

    def __init__(self, folder: Path, server: str) -> None:
        self._folder, self._server = folder, server
        self._lock = threading.Lock()
        self._last: tuple[bool, LinkFault | None] | None = None
        self._since = datetime.datetime.min

    def succeed(self) -> None:
        """Record that the server has answered."""
        self._record(None)

    def fail(self, fault: LinkFault) -> None:
        """Record that a request has failed."""
        self._record(fault)

    def _record(self, fault: LinkFault | None) -> None:
        with self._lock:
            state = fault is None, fault
            if state == self._last:
                return
            if self._last is None or self._last[0] != state[0]:
                self._since = datetime.datetime.now(datetime.UTC)
            self._last = state
            if fault is None:
                LOG.info("connected to %s", self._server)
            else:
                LOG.warning("no link to %s: %s", self._server, fault.value)
            record = LinkState(connected=state[0], since=self._since, fault=fault)
            try:
                write_atomically(self._folder / FILE, record.model_dump_json() + "\n", mode=0o600)
            except (FedglmError, OSError) as exc:
                LOG.warning("the state of the link is not recorded: %s", exc)
