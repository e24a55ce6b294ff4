"""Submission of a prepared run to the SuperLink, and its status there.

The submitted bundle has no code: it names the components that are installed at the server and at each site, so that
nobody runs code from the network.
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
"""File in a run's folder with Flower's ids of its submissions."""

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
    """Submit a run to the SuperLink, and record Flower's id of it in its folder.

    Args:
        project: Project of the SuperLink.
        name: Name of the run.
        environment: Environment variables for Flower's command.

    Returns:
        Flower's id of the run.

    Raises:
        ProjectError: Flower does not accept the run.
    """
    (project.runs / name / FAILED).unlink(missing_ok=True)  # from the last submission
    bundle = project.state / "bundle"
    write_atomically(bundle / "pyproject.toml", tomli_w.dumps(_BUNDLE))
    command = [str(Path(sys.executable).parent / "flwr"), "run", str(bundle), CONNECTION, "--format", "json"]
    command += ["--run-config", f'run="{name}"']
    env = {**os.environ, **environment}
    try:
        done = subprocess.run(  # noqa: S603 - Flower, from this installation
            command, env=env, capture_output=True, text=True, timeout=_TIMEOUT_S, stdin=subprocess.DEVNULL
        )
        response = json.loads(done.stdout[done.stdout.index("{") :])
    except (OSError, ValueError, subprocess.TimeoutExpired) as exc:
        raise ProjectError(f"flwr run does not answer as expected ({type(exc).__name__})") from exc
    if not response.get("success"):
        raise ProjectError(
            f"Flower does not take the run: {' '.join(str(response.get('error-message')).split())[:300]}"
        )
    run_id = int(response["run-id"])
    run_ids = [*read_submissions(project, name), run_id]
    write_atomically(project.runs / name / SUBMITTED, json.dumps({"run_ids": run_ids}) + "\n")
    return run_id


def read_submissions(project: Project, name: str) -> list[int]:
    """Read Flower's ids of the run's submissions, the latest last."""
    path = project.runs / name / SUBMITTED
    return [int(run_id) for run_id in json.loads(path.read_text())["run_ids"]] if path.is_file() else []


def count_traffic(project: Project, control: Control, name: str) -> tuple[int, int]:
    """Count the bytes from and to the sites over all submissions of the run, as measured by the SuperLink.

    Raises:
        ProjectError: The SuperLink does not respond.
    """
    run_ids = set(read_submissions(project, name))
    runs = [run for run in control.list_runs() if run.run_id in run_ids]
    return sum(run.uplink_bytes for run in runs), sum(run.downlink_bytes for run in runs)


def is_under_way(project: Project, control: Control, name: str) -> bool:
    """Return whether the SuperLink executes the run, or is about to.

    Raises:
        ProjectError: The SuperLink does not respond.
    """
    return name in list_runs_under_way(project, control)


def list_runs_under_way(project: Project, control: Control) -> list[str]:
    """List the names of the runs that the SuperLink executes, or is about to.

    A run whose process was killed after its last round is not listed: Flower would report it as running for a minute.

    Raises:
        ProjectError: The SuperLink does not respond.
    """
    active = {run.run_id for run in control.list_runs() if not run.status.startswith("finished")}
    names = sorted(path.parent.name for path in project.runs.glob(f"*/{SUBMITTED}"))
    return [name for name in names if read_submissions(project, name)[-1] in active and not _is_done(project, name)]


def _is_done(project: Project, name: str) -> bool:
    return (project.runs / name / DONE).is_file()


def stop_run(project: Project, control: Control, name: str) -> None:
    """Have the SuperLink stop a run, unless it has ended by itself."""
    with contextlib.suppress(ProjectError):
        control.stop_run(read_submissions(project, name)[-1])


def cancel_run(project: Project, control: Control, name: str) -> None:
    """Stop a run; a command that waits for it reports that, and the run can be resumed.

    Raises:
        ProjectError: The run is not under way, or the SuperLink does not respond.
    """
    if not is_under_way(project, control, name):
        raise ProjectError(f"no run {name} is under way: see fedglm server status")
    reason = f"it was cancelled; fedglm run -C {project.folder} --name {name} --resume goes on"
    # First, because a command that waits for the run would submit it again.
    write_failure(project.runs / name, "Cancelled", reason, final=True)
    try:
        control.stop_run(read_submissions(project, name)[-1])
    except ProjectError:
        (project.runs / name / FAILED).unlink(missing_ok=True)
        raise


def has_ended(folder: Path, *, is_submitted: bool) -> bool:
    """Return whether the run has completed.

    Args:
        folder: Folder of the run.
        is_submitted: Whether this command has submitted the run, so that a failure in its folder is not an older one.

    Raises:
        ProjectError: The run has failed, and would fail again.
    """
    if (folder / DONE).is_file():
        return True
    if is_submitted and (folder / FAILED).is_file():
        failed = json.loads((folder / FAILED).read_text())
        if failed["final"]:
            raise ProjectError(f"the run has ended: {failed['reason']}")
    return False
