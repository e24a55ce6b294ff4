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
from fedglm.server.run_setup import PresenceState, Row


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

    def sites_asked(self, server_round: int, sites: list[str]) -> None:
        """Log which sites were asked for their updates."""
        self._write_event("asked", round=server_round, sites=sites)

    def presence_changed(self, server_round: int, site: str, state: PresenceState, since: float) -> None:
        """Log that a site is offline, absent or online again."""
        self._write_event(state, round=server_round, node=site, since=_format_time(since))

    def site_revoked(self, server_round: int, site: str, reason: str) -> None:
        """Log that a site was revoked."""
        self._write_event("revoked", round=server_round, node=site, reason=reason)

    def plan_refused(self, node_id: int, reason: str, site: str | None = None) -> None:
        """Log that a site's policy refuses the plan."""
        self._write_refusal("refused", node_id, reason, site)

    def rejected(self, node_id: int, reason: str, site: str | None = None) -> None:
        """Log that a node is rejected."""
        self._write_refusal("turned-away", node_id, reason, site)

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

    def _write_refusal(self, kind: str, node_id: int, reason: str, site: str | None) -> None:
        known = {} if site is None else {"site": site}
        self._write_event(kind, node=str(node_id), **known, reason=reason[:500])

    def _write_event(self, kind: str, **fields: Any) -> None:
        line = json.dumps({"time": _format_time(self._clock.time()), "event": kind, **fields})
        path = self._folder / EVENTS
        with storage_errors(path):
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(descriptor, f"{line}\n".encode())
            finally:
                os.close(descriptor)


def _format_time(moment: float) -> str:
    """Return seconds since 1970 as ISO 8601, UTC, to the millisecond."""
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds")
