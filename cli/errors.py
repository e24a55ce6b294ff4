r"""What a user is told when something goes wrong: one line that names the thing and the remedy.

Each layer has its own errors; all that a user can cause are drawn here, and only here are they caught.

    ValueError
    ├── CodecError                     compression: a blob, a codec's name or option
    │   ├── MessageError               compression: a message's fields
    │   └── VersionMismatch            compression: a node and the server hold other bits
    ├── DataError, ModelError          autoglm: records, models
    ├── PrecisionError                 client: a format that the device lacks
    ├── ScenarioError                  simulations: a scenario's key or value
    ├── RunFolderError                 simulations: a folder that cannot hold the run
    └── ReportError                    simulations: a run folder that cannot be shown
    RuntimeError
    ├── StateError, TrainingError      client: a node's memory, a diverged training
    ├── SiteError                      client: a site's folder that cannot be used as it is
    ├── PrivacyError                   privacy: a promise that cannot be made or kept
    │   ├── Refusal                    privacy: a rule of the node's policy forbids it
    │   ├── LedgerError                privacy: a ledger that is damaged, rolled back or missing
    │   ├── LogError                   privacy: the same of a signed log
    │   └── PolicyError                privacy: a policy that is malformed or not signed by the site
    ├── FederationError, CheckpointError, Stopped      server: a run
    ├── ProjectError                   server: a project's folder, certificates, sites, SuperLink
    └── DaemonError                    cli: a process that does not start or end
    OSError
    └── StorageError                   privacy: a file that could not be written
    click.ClickException               a wrong option or argument
    └── MissingExtra                   cli: a command's extra is not installed
"""

import errno

import click

INTERRUPTED = 130
"""Exit code after Ctrl-C."""


def explain(exc: BaseException) -> str | None:
    """The line for an error that a user can cause or mend; None for a bug, which deserves its traceback."""
    if isinstance(exc, click.ClickException):
        return exc.format_message()
    if isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full ({exc.filename or 'temporary files'}): free some space, then go on with --resume"
    if isinstance(exc, PermissionError):
        return f"not allowed: {exc}"
    from fedglm.cli.process.daemon import DaemonError
    from fedglm.client.site.settings import SiteError
    from fedglm.core.files import StorageError
    from fedglm.privacy.errors import PrivacyError
    from fedglm.server.errors import ProjectError

    if isinstance(exc, StorageError | PrivacyError | SiteError | ProjectError | DaemonError):
        return " ".join(str(exc).split())
    try:
        return " ".join(str(exc).split()) if _is_of_a_run(exc) else None
    except ModuleNotFoundError:  # an auditor's machine has no torch, and nothing there runs
        return None


def _is_of_a_run(exc: BaseException) -> bool:
    """Whether it is an error that only comes up where torch is loaded, or soon would be."""
    from fedglm.autoglm.errors import DataError, ModelError
    from fedglm.autoglm.training.local import TrainingError
    from fedglm.autoglm.training.precision import PrecisionError
    from fedglm.client.state.node_state import StateError
    from fedglm.compression.errors import CodecError
    from fedglm.run_folder.folder import RunFolderError
    from fedglm.run_folder.record import ReportError
    from fedglm.scenarios.scenario import ScenarioError
    from fedglm.server.rounds.checkpoint import CheckpointError
    from fedglm.server.rounds.exchange import Stopped
    from fedglm.server.rounds.participants import FederationError

    known = (
        CodecError,
        DataError,
        ModelError,
        PrecisionError,
        ScenarioError,
        RunFolderError,
        ReportError,
        StateError,
        TrainingError,
        FederationError,
        CheckpointError,
        Stopped,
    )
    return isinstance(exc, known)
