"""Preparation of a SuperLink before its sites' port opens: register the sites' nodes, stop orphaned runs.

state/started.json      report of that, which `fedglm server start` prints
"""

import asyncio
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

from fedglm.core.files import write_atomically
from fedglm.server.gateway.asgi import Application, Scope, forward
from fedglm.server.project.folder import Project
from fedglm.server.superlink.control import Changes, Control, reconcile, stop_orphaned_runs

_FILE: Final = "started.json"


@dataclass(frozen=True)
class StartReport:
    """Result of the preparation.

    Attributes:
        changes: Changes of the SuperLink's list of nodes.
        orphans: Number of runs that were under way when the last SuperLink ended.
    """

    changes: Changes
    orphans: int


class _InProcessControl(Control):
    """Control interface of this process's own SuperLink, called from another thread than its event loop's."""

    def __init__(self, application: Application, loop: asyncio.AbstractEventLoop) -> None:
        self._application, self._loop = application, loop

    def _post(self, path: str, content: bytes) -> tuple[int, bytes]:
        media_type = PROTOBUF_MEDIA_TYPE.encode()
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "scheme": "https",
            "method": "POST",
            "path": path,
            "query_string": b"",
            "root_path": "",
            "headers": [(b"content-type", media_type), (b"accept", media_type)],
        }
        future = asyncio.run_coroutine_threadsafe(forward(self._application, scope, content), self._loop)
        response = future.result()
        return response.status, response.body


async def prepare_superlink(project: Project, application: Any) -> None:
    """Register the nodes of the enrolled sites, unregister all others, stop orphaned runs, and write the report.

    Args:
        project: Project of the SuperLink.
        application: Flower's ASGI application.

    Raises:
        ProjectError: Flower rejects a request.
        PrivacyError: A site's public keys are damaged.
        StorageError: The report cannot be written.
    """
    control = _InProcessControl(application, asyncio.get_running_loop())
    changes = await asyncio.to_thread(reconcile, project, control)
    report = StartReport(changes, await asyncio.to_thread(stop_orphaned_runs, control))
    await asyncio.to_thread(write_atomically, _report_path(project), json.dumps(asdict(report)) + "\n", mode=0o600)


def delete_report(project: Project) -> None:
    """Delete the report: no SuperLink is up."""
    _report_path(project).unlink(missing_ok=True)


def read_report(project: Project) -> StartReport | None:
    """Read the report; return None while the sites' port is not open yet."""
    try:
        values = json.loads(_report_path(project).read_text())
        changes = values["changes"]
        return StartReport(
            Changes(tuple(changes["registered"]), tuple(changes["removed"]), tuple(changes["unusable"])),
            int(values["orphans"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _report_path(project: Project) -> Path:
    return project.state / _FILE
