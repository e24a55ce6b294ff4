"""A deployed federation of this machine, from nothing to a verified run; whatever happens, nothing is left running."""

import contextlib
import json
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Final, cast

from fedglm.cli.demo.commands import CommandRunner, format_command
from fedglm.cli.demo.errors import DemoError
from fedglm.cli.demo.forms import fill_in, format_line
from fedglm.cli.demo.plan import ROUNDS, SITES, Command, Folders, Stage, Step, plan_steps
from fedglm.cli.demo.progress import DemoProgress
from fedglm.cli.demo.readme import write_readme
from fedglm.cli.process.daemon import Daemon, DaemonError
from fedglm.core.files import StorageError, storage_errors

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_POLL_S: Final = 0.5


def run_demo(
    folder: Path, runner: Callable[[Path], CommandRunner], progress: DemoProgress, *, keep: bool
) -> dict[str, Any]:
    """Set up a federation, start it, run it, verify its records, write its reports, and stop it.

    Args:
        folder: Folder for everything; a new or an empty one.
        runner: Makes what runs commands, with the path of its log.
        progress: Shows what happens.
        keep: Leave server and sites running at the end. After a failure they are stopped all the same.

    Returns:
        Summary: folders, model, accuracy, verdict, report, seconds by stage.

    Raises:
        DemoError: The folder holds something, or a command failed; everything that was started has ended.
        DaemonError: A process could not be ended; the message names it.
        StorageError: A file cannot be written.
        KeyboardInterrupt: Ctrl-C or SIGTERM; everything that was started has ended.
    """
    folders = Folders(folder)
    _claim(folder)
    steps = plan_steps(folders, *find_free_ports())
    write_readme(folders, steps, keep=keep)
    run = runner(folders.log)
    with _raise_on_signals() as was_stopped:
        try:
            verdict = ""
            for stage, planned in steps.items():
                if stage == "stop" and keep:
                    continue
                outputs = _run_stage(run, folders, stage, planned, progress, was_stopped)
                if stage == "verify":
                    verdict = str(json.loads(outputs[-1])["verdict"])
            if not keep:
                stop_everything(folders)
        except BaseException as exc:
            with _ignore_signals():
                progress.say("stopping all that was started")
                stop_everything(folders)
            if was_stopped():  # whatever it became on its way through a library
                raise KeyboardInterrupt from exc
            raise
    progress.finish_stage()
    return _summarize(folders, verdict, progress, steps if keep else None)


def find_free_ports() -> tuple[int, int]:
    """Find two ports of 127.0.0.1 on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        return one.getsockname()[1], other.getsockname()[1]


def list_daemons(folders: Folders) -> list[Daemon]:
    """List the processes of a demo: the sites' nodes, then the SuperLink."""
    nodes = [Daemon(folders.site(name) / "state", "supernode") for name in SITES]
    return [*nodes, Daemon(folders.server / "state", "superlink")]


def stop_everything(folders: Folders) -> None:
    """End all processes of a demo.

    Raises:
        DaemonError: A process does not end; the others have been ended.
    """
    faults = []
    for daemon in list_daemons(folders):
        try:
            if daemon.pid() is not None or daemon.members():
                daemon.stop()
        except (DaemonError, StorageError) as exc:
            faults.append(str(exc))
    if faults:
        raise DaemonError("; ".join(faults))


def _claim(folder: Path) -> None:
    """Create the folder; refuse one that holds something."""
    with storage_errors(folder):
        if folder.is_dir() and any(folder.iterdir()):
            raise DemoError(f"{folder} holds something, and the demo overwrites nothing: give --out a new folder")
        folder.mkdir(parents=True, exist_ok=True)


def _run_stage(
    run: CommandRunner,
    folders: Folders,
    stage: Stage,
    steps: list[Step],
    progress: DemoProgress,
    was_stopped: Callable[[], bool],
) -> list[str]:
    """Run the steps of a stage; return the outputs of its commands."""
    outputs = []
    progress.begin_stage(stage, ROUNDS if stage == "train" else len(steps))
    for number, step in enumerate(steps, start=1):
        if isinstance(step, Command):
            progress.say(f"$ {format_command(step.arguments)}")
            # What is printed changes with --json; what is done does not.
            arguments = (*step.arguments, "--json") if stage == "verify" else step.arguments
            with _watch_rounds(folders.run, progress) if stage == "train" else contextlib.nullcontext():
                code, output, cause = run.run(arguments)
            if code:
                detail = f": {cause}" if cause else f" with exit code {code}"
                raise DemoError(
                    f"{format_command(step.arguments)} failed{detail} (the output of all commands is in {folders.log}"
                    f"{_list_logs(folders)})"
                )
            outputs.append(output)
        else:
            filled = "; ".join(format_line(key, value) for key, value in step.values.items())
            progress.say(f"  edit {step.path}: {filled}")
            fill_in(step.path, step.values)
        if was_stopped():
            raise KeyboardInterrupt
        if stage != "train":
            progress.advance_to(number)
    return outputs


def _list_logs(folders: Folders) -> str:
    """List the logs of the processes that were started."""
    logs = [str(daemon.log) for daemon in list_daemons(folders) if daemon.log.is_file()]
    return f"; of the processes in {', '.join(logs)}" if logs else ""


@contextlib.contextmanager
def _watch_rounds(run: Path, progress: DemoProgress) -> Iterator[None]:
    """Show the rounds of a run while the block waits for it."""
    from fedglm.run_folder.progress import is_run, read_view

    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_POLL_S):
            with contextlib.suppress(OSError):
                if is_run(run):
                    view = read_view(run)
                    figures = "waiting for the sites" if not view.sampled else ""
                    if view.round is not None:
                        figures = f"round {view.round}: {view.replies} of {view.sampled} have answered"
                    elif view.rows and len(view.rows) == view.rounds:
                        figures = "the sites' logs are countersigned"
                    progress.advance_to(len(view.rows), figures)

    watcher = threading.Thread(target=watch, name="demo-rounds", daemon=True)
    watcher.start()
    try:
        yield
        progress.advance_to(ROUNDS)
    finally:
        ended.set()
        watcher.join()


def _summarize(
    folders: Folders, verdict: str, progress: DemoProgress, kept: dict[Stage, list[Step]] | None
) -> dict[str, Any]:
    from fedglm.run_folder.names import AUDIT, REPORT, SUMMARY

    summary = json.loads((folders.run / SUMMARY).read_text())
    stops = [step for step in (kept or {}).get("stop", []) if isinstance(step, Command)]
    return {
        "folder": str(folders.out),
        "run": str(folders.run),
        "sites": len(SITES),
        "rounds": summary["rounds"],
        "epsilon_at_most": summary["epsilon_at_most"],
        "loss": summary.get("loss"),
        "accuracy": summary.get("accuracy"),
        "model_sha256": summary["model_sha256"],
        "verdict": verdict,
        "report": str(folders.run / REPORT),
        "audit_report": str(folders.run / AUDIT / REPORT),
        "seconds": dict(progress.seconds),
        "running": kept is not None,
        "to_stop": [format_command(step.arguments) for step in stops],
    }


@contextlib.contextmanager
def _raise_on_signals() -> Iterator[Callable[[], bool]]:
    """Raise KeyboardInterrupt on Ctrl-C, SIGTERM and SIGHUP; yield whether one came."""
    received: list[int] = []

    def handle(number: int, _: FrameType | None) -> None:
        received.append(number)
        raise KeyboardInterrupt

    with _handle_signals(handle):
        yield lambda: bool(received)


@contextlib.contextmanager
def _ignore_signals() -> Iterator[None]:
    with _handle_signals(signal.SIG_IGN):
        yield


@contextlib.contextmanager
def _handle_signals(handler: Any) -> Iterator[None]:
    """Handle the signals that are not ignored already, as under nohup."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread can
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    chosen = [number for number, now in before.items() if now is not signal.SIG_IGN]
    try:
        for number in chosen:
            signal.signal(number, handler)
        yield
    finally:
        for number in chosen:
            signal.signal(number, cast("Any", before[number]))
