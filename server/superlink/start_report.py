"""What a SuperLink does before the sites reach it: it registers who is enrolled, and ends what its last life left over.

state/started.json      what that came to, for `fedglm server start` to show
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
from fedglm.server.superlink.control import Changes, Control, end_orphans, reconcile

_FILE: Final = "started.json"


@dataclass(frozen=True)
class StartReport:
    """What was done.

    Attributes:
        changes: To the list of nodes.
        orphans: How many runs were under way when the last SuperLink ended.
    """

    changes: Changes
    orphans: int


class _Within(Control):
    """The Control interface of the SuperLink that this is, asked from another thread than its event loop's."""

    def __init__(self, application: Application, loop: asyncio.AbstractEventLoop) -> None:
        self._application, self._loop = application, loop

    def _post(self, path: str, content: bytes) -> tuple[int, bytes]:
        kind = PROTOBUF_MEDIA_TYPE.encode()
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "scheme": "https",
            "method": "POST",
            "path": path,
            "query_string": b"",
            "root_path": "",
            "headers": [(b"content-type", kind), (b"accept", kind)],
        }
        asked = asyncio.run_coroutine_threadsafe(forward(self._application, scope, content), self._loop)
        answer = asked.result()
        return answer.status, answer.body


async def bring_in_line(project: Project, application: Any) -> None:
    """Register the enrolled sites, take off the list whoever is not enrolled, end runs without a process; report it.

    Raises:
        ProjectError: Flower refuses.
        PrivacyError: What a site handed over is damaged.
        StorageError: The report cannot be written.
    """
    control = _Within(application, asyncio.get_running_loop())
    changes = await asyncio.to_thread(reconcile, project, control)
    report = StartReport(changes, await asyncio.to_thread(end_orphans, control))
    await asyncio.to_thread(write_atomically, _path(project), json.dumps(asdict(report)) + "\n", mode=0o600)


def forget(project: Project) -> None:
    """No SuperLink is up."""
    _path(project).unlink(missing_ok=True)


def read_report(project: Project) -> StartReport | None:
    """What the SuperLink did; None while it does not let the sites in yet."""
    try:
        values = json.loads(_path(project).read_text())
        changes = values["changes"]
        return StartReport(
            Changes(tuple(changes["registered"]), tuple(changes["removed"]), tuple(changes["unusable"])),
            int(values["orphans"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _path(project: Project) -> Path:
    return project.state / _FILE
