"""ServerApp of real federations, which Flower's SuperLink starts for a run that `fedglm run` has prepared.

The environment (`FEDGLM_PROJECT`) names the project, and Flower's run config the run. Everything else is in the run's
folder, so that a restarted process resumes where the last one was killed.
"""

import threading
from dataclasses import replace
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedglm.privacy.errors import PrivacyError
from fedglm.run_folder.names import CHECKPOINTS
from fedglm.server.anchors import Anchors
from fedglm.server.coordinator import Coordinator
from fedglm.server.deployment.light_store import LightStore
from fedglm.server.deployment.node_names import NodeNames
from fedglm.server.deployment.run_evaluation import load_evaluation
from fedglm.server.deployment.run_file import RunFile, check_run_name
from fedglm.server.deployment.run_log import RunLog
from fedglm.server.deployment.run_reference import load_reference
from fedglm.server.deployment.serving import lock_run
from fedglm.server.errors import ProjectError
from fedglm.server.gateway.activation_times import ActivationTimes
from fedglm.server.gateway.reply_limits import ReplyLimits
from fedglm.server.project.enrolment import read_enrolled_sites
from fedglm.server.project.folder import Project, open_from_environment
from fedglm.server.project.revocations import Revocations
from fedglm.server.rounds.checkpoint import CheckpointError
from fedglm.server.rounds.participants import FederationError

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run a federation, or resume it.

    Raises:
        ProjectError, FederationError, PrivacyError: The run has failed; the reason is in its folder too.
    """
    project = open_from_environment()
    folder = project.runs / check_run_name(str(context.run_config.get("run", "")))
    with lock_run(folder):
        _serve(project, folder, grid, context.run_id)


def _serve(project: Project, folder: Path, grid: Grid, run_id: int) -> None:
    log = RunLog(folder)
    try:
        sites = {name: identity.signing for name, identity in read_enrolled_sites(project).items()}
        run = RunFile.load(folder)
        plan = run.plan(folder, key=project.signing_key, sites=sites)
        light = run.light
        plan = replace(
            plan,
            find_revoked=Revocations(project, sites).find,
            find_site=NodeNames(project).find,
            last_activation=ActivationTimes(project.state).last,
            anchors=Anchors(project.state),
            evaluate=load_evaluation(folder, run.evaluation_sha256),
            reference=load_reference(folder, run.reference_sha256),
            light=None if light is None else light.make_maker(folder, project.state, project.signing_key),
            light_store=LightStore(project.state, project.signing_key.public, folder),
        )
        ReplyLimits(project.state).record_run(run_id, plan.layout.size)
        resume = any((folder / CHECKPOINTS).glob("*.safetensors"))
        coordinator = Coordinator(plan, grid, listener=log, stop=threading.Event(), resume=resume)
        rows = coordinator.run()
    except (FederationError, PrivacyError, ProjectError, CheckpointError) as exc:
        log.failed(exc, final=True)
        raise
    except Exception as exc:
        log.failed(exc, final=False)
        raise
    log.finished(coordinator.model_sha256, rows)
