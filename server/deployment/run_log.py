"""Log of a run of real sites on the server's disk: rounds, events, and the result."""

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
    """Callback that logs a run; texts of nodes are cut, and no line contains anything of a site's records.

    Args:
        folder: Folder of the run.
        clock: Clock for the events' times.
    """

    def __init__(self, folder: Path, clock: Clock = WALL_CLOCK) -> None:
        self._folder, self._clock = folder, clock
        (folder / FAILED).unlink(missing_ok=True)

    def resumed(self, rows: list[Row]) -> None:
        """Log that the run begins or resumes."""
        self._write_rounds(rows)
        self._write_event("resumed" if rows else "begun", round=len(rows))

    def round_started(self, server_round: int, sampled: int) -> None:
        """Log the start of a round."""
        self._write_event("round", round=server_round, sampled=sampled)

    def plan_refused(self, node_id: int, reason: str) -> None:
        """Log that a site's policy refuses the plan."""
        self._write_event("refused", node=str(node_id), reason=reason[:500])

    def rejected(self, node_id: int, reason: str) -> None:
        """Log that a node is rejected."""
        self._write_event("turned-away", node=str(node_id), reason=reason[:500])

    def reply_taken(self, server_round: int, node: str, fault: str | None) -> None:
        """Log that a reply was aggregated, or rejected because of `fault`."""
        detail = {} if fault is None else {"reason": fault[:500]}
        self._write_event("reply" if fault is None else "rejected", round=server_round, node=node, **detail)

    def round_done(self, rows: list[Row]) -> None:
        """Log a round that is on disk."""
        self._write_rounds(rows)
        self._write_event("done", round=len(rows))

    def finished(self, model_sha256: str, rows: list[Row]) -> None:
        """Write the result after the last round."""
        write_atomically(self._folder / DONE, json.dumps({"model_sha256": model_sha256, "rounds": len(rows)}) + "\n")

    def failed(self, exc: Exception, *, final: bool) -> None:
        """Write why the run failed, unless a reason is there; `final` if another attempt would fail in the same way."""
        if not (self._folder / FAILED).is_file():
            write_failure(self._folder, type(exc).__name__, str(exc), final=final)

    def _write_rounds(self, rows: list[Row]) -> None:
        write_atomically(self._folder / ROUNDS, to_lines(rows))

    def _write_event(self, kind: str, **fields: Any) -> None:
        now = datetime.fromtimestamp(self._clock.time(), UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "event": kind, **fields})
        path = self._folder / EVENTS
        with storage_errors(path):
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(descriptor, f"{line}\n".encode())
            finally:
                os.close(descriptor)
