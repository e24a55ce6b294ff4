"""What a run of real sites leaves on the server's disk while it goes on: rounds, events, and how it ended."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedglm.core.clock import WALL_CLOCK, Clock
from fedglm.core.files import storage_errors, write_atomically
from fedglm.run_folder.names import DONE, EVENTS, FAILED, ROUNDS
from fedglm.run_folder.rows import to_lines
from fedglm.server.deployment.run_file import write_failure
from fedglm.server.run_setup import Row


class RunLog:
    """Listens to a run and writes it down; texts of nodes are cut, and no line holds anything of a site's records.

    Args:
        folder: The run's.
        clock: Tells when something happened.
    """

    def __init__(self, folder: Path, clock: Clock = WALL_CLOCK) -> None:
        self._folder, self._clock = folder, clock
        (folder / FAILED).unlink(missing_ok=True)

    def resumed(self, rows: list[Row]) -> None:
        """The run begins, or goes on."""
        self._write_rounds(rows)
        self._event("resumed" if rows else "begun", round=len(rows))

    def round_started(self, server_round: int, sampled: int) -> None:
        """A round begins."""
        self._event("round", round=server_round, sampled=sampled)

    def plan_refused(self, node_id: int, reason: str) -> None:
        """A site's policy refuses the plan."""
        self._event("refused", node=str(node_id), reason=reason[:500])

    def rejected(self, node_id: int, reason: str) -> None:
        """A node may not take part."""
        self._event("turned-away", node=str(node_id), reason=reason[:500])

    def reply_taken(self, server_round: int, node: str, fault: str | None) -> None:
        """A reply was folded in, or rejected."""
        detail = {} if fault is None else {"reason": fault[:500]}
        self._event("reply" if fault is None else "rejected", round=server_round, node=node, **detail)

    def round_done(self, rows: list[Row]) -> None:
        """A round is on disk."""
        self._write_rounds(rows)
        self._event("done", round=len(rows))

    def finished(self, model_sha256: str, rows: list[Row]) -> None:
        """The last round is through."""
        write_atomically(self._folder / DONE, json.dumps({"model_sha256": model_sha256, "rounds": len(rows)}) + "\n")

    def failed(self, exc: Exception, *, final: bool) -> None:
        """The run ends here; `final` says that trying again would end the same way. The first reason stands."""
        if not (self._folder / FAILED).is_file():
            write_failure(self._folder, type(exc).__name__, str(exc), final=final)

    def _write_rounds(self, rows: list[Row]) -> None:
        write_atomically(self._folder / ROUNDS, to_lines(rows))

    def _event(self, kind: str, **fields: Any) -> None:
        now = datetime.fromtimestamp(self._clock.time(), UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "event": kind, **fields})
        path = self._folder / EVENTS
        with storage_errors(path):
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(descriptor, f"{line}\n".encode())
            finally:
                os.close(descriptor)
