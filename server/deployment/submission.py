"""Handing a prepared run to the SuperLink, and knowing how it stands there.

What is handed over is a bundle without code: it names the components that are installed at the server and at each site,
so that nobody runs what came over the line.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import tomli_w

from fedglm.core.files import write_atomically
from fedglm.run_folder.names import DONE, FAILED
from fedglm.server.deployment.run_file import write_failure
from fedglm.server.errors import ProjectError
from fedglm.server.project.folder import CONNECTION, Project
from fedglm.server.superlink.control import Control

SUBMITTED = "flower.json"
"""File of a run's folder that says under which number Flower runs it."""

_BUNDLE = {
    "project": {
        "name": "fedglm-run",
        "version": "1.0.0",
        "description": "Names the fedglm that is installed; holds no code.",
        "license": "Apache-2.0",
        "dependencies": [],
    },
    "tool": {
        "flwr": {
            "app": {
                "publisher": "fedglm",
                "components": {
                    "serverapp": "fedglm.server.deployment.server_app:app",
                    "clientapp": "fedglm.client.supernode.client_app:app",
                },
                "config": {"run": ""},
            }
        }
    },
}
_TIMEOUT_S = 120.0


def submit(project: Project, name: str, environment: Mapping[str, str]) -> int:
    """Start Flower's run for a run folder, and note its number there.

    Args:
        project: Whose SuperLink.
        name: Of the run.
        environment: Variables for Flower's command.

    Returns:
        Flower's number of the run.

    Raises:
        ProjectError: Flower does not take it.
    """
    (project.runs / name / FAILED).unlink(missing_ok=True)  # of the last time
    bundle = project.state / "bundle"
    write_atomically(bundle / "pyproject.toml", tomli_w.dumps(_BUNDLE))
    command = [str(Path(sys.executable).parent / "flwr"), "run", str(bundle), CONNECTION, "--format", "json"]
    command += ["--run-config", f'run="{name}"']
    whole = {**os.environ, **environment}
    try:
        done = subprocess.run(  # noqa: S603 - Flower, from our own environment
            command, env=whole, capture_output=True, text=True, timeout=_TIMEOUT_S, stdin=subprocess.DEVNULL
        )
        answer = json.loads(done.stdout[done.stdout.index("{") :])
    except (OSError, ValueError, subprocess.TimeoutExpired) as exc:
        raise ProjectError(f"flwr run does not answer as expected ({type(exc).__name__})") from exc
    if not answer.get("success"):
        raise ProjectError(f"Flower does not take the run: {' '.join(str(answer.get('error-message')).split())[:300]}")
    run_id = int(answer["run-id"])
    numbers = [*submissions(project, name), run_id]
    write_atomically(project.runs / name / SUBMITTED, json.dumps({"run_ids": numbers}) + "\n")
    return run_id


def submissions(project: Project, name: str) -> list[int]:
    """The numbers under which the run was handed over, the last one last."""
    path = project.runs / name / SUBMITTED
    return [int(number) for number in json.loads(path.read_text())["run_ids"]] if path.is_file() else []


def traffic(project: Project, control: Control, name: str) -> tuple[int, int]:
    """Bytes from and to the sites by the SuperLink's own count, over all times that the run was handed over.

    Raises:
        ProjectError: The SuperLink does not answer.
    """
    numbers = set(submissions(project, name))
    found = [run for run in control.runs() if run.run_id in numbers]
    return sum(run.uplink_bytes for run in found), sum(run.downlink_bytes for run in found)


def is_under_way(project: Project, control: Control, name: str) -> bool:
    """Whether the SuperLink is at work on the run, or about to be.

    Raises:
        ProjectError: The SuperLink does not answer.
    """
    return name in runs_under_way(project, control)


def runs_under_way(project: Project, control: Control) -> list[str]:
    """Names of the runs that the SuperLink is at work on, or about to be.

    One whose last process was killed after its work was done is not: the SuperLink would call it running for a minute.

    Raises:
        ProjectError: The SuperLink does not answer.
    """
    going = {run.run_id for run in control.runs() if not run.status.startswith("finished")}
    names = sorted(path.parent.name for path in project.runs.glob(f"*/{SUBMITTED}"))
    return [name for name in names if submissions(project, name)[-1] in going and not _is_done(project, name)]


def _is_done(project: Project, name: str) -> bool:
    return (project.runs / name / DONE).is_file()


def stop(project: Project, control: Control, name: str) -> None:
    """Have the SuperLink end a run, if it has not ended by itself."""
    with contextlib.suppress(ProjectError):
        control.stop(submissions(project, name)[-1])


def cancel(project: Project, control: Control, name: str) -> None:
    """End a run for now; who waits for it is told, and it can be gone on with.

    Raises:
        ProjectError: It is not under way, or the SuperLink does not answer.
    """
    if not is_under_way(project, control, name):
        raise ProjectError(f"no run {name} is under way: see fedglm server status")
    reason = f"it was cancelled; fedglm run -C {project.folder} --name {name} --resume goes on"
    write_failure(project.runs / name, "Cancelled", reason, final=True)  # first: who waits would hand it over again
    try:
        control.stop(submissions(project, name)[-1])
    except ProjectError:
        (project.runs / name / FAILED).unlink(missing_ok=True)
        raise


def ended(folder: Path, *, after: bool) -> bool:
    """Whether the run is through.

    Args:
        folder: The run's.
        after: The run was handed over by now, so that what failed finally has failed this time.

    Raises:
        ProjectError: It failed, and would fail again.
    """
    if (folder / DONE).is_file():
        return True
    if after and (folder / FAILED).is_file():
        failed = json.loads((folder / FAILED).read_text())
        if failed["final"]:
            raise ProjectError(f"the run has ended: {failed['reason']}")
    return False
