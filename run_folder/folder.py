"""The run folder: every file that a run writes, each replaced atomically, so that no reader sees half of one.

scenario.toml   every setting; feeding it back repeats the run
rounds.jsonl    one object a round
summary.json    the result, once the run is through
model/          the released model, as transformers saves it
checkpoint/     state from which a killed run resumes
nodes/<id>/     each node's own state; in custody/ the site's policy, privacy ledger and signed log
audit/          the server's signed log
server.key      signs the plan that the nodes check the run against
report.html     the page for people
"""

import contextlib
import fcntl
import itertools
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fedglm.core.errors import FedglmError
from fedglm.core.files import storage_errors, write_atomically
from fedglm.run_folder.names import AUDIT, CHECKPOINTS, MODEL, NODES, ROUNDS, SCENARIO, SERVER_KEY, SUMMARY
from fedglm.run_folder.rows import to_json, to_lines

LOCK = ".lock"


_LATER_DEFAULTS = ("offline_grace_s = 120.0\n",)
"""Lines of `scenario.toml` with the defaults of settings that earlier versions did not write."""


class RunFolderError(FedglmError, ValueError):
    """The folder cannot be used for this run; the message says why and what would help."""


class RunFolder:
    """Folder of one run.

    Attributes:
        path: Path of the folder, which need not exist yet.
        checkpoints: Folder of the checkpoints.
        nodes: Folder of the nodes' own state.
        model: Folder of the released model.
        audit: Folder of the server's signed log.
        server_key: File of the server's signing key.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / CHECKPOINTS
        self.nodes = path / NODES
        self.model = path / MODEL
        self.audit = path / AUDIT
        self.server_key = path / SERVER_KEY

    @contextlib.contextmanager
    def claimed(self, scenario_toml: str, *, resume: bool) -> Iterator[None]:
        """Lock the folder for this process, for a new run or, with `resume`, for one with the same scenario.

        A run that ends before `begin` leaves the folder as it was.

        Args:
            scenario_toml: Scenario of the run, every default written out.
            resume: Continue the run that an earlier process started here.

        Raises:
            RunFolderError: The folder contains other files or another run, or another process has locked it.
            StorageError: The folder cannot be written.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RunFolderError(f"{self.path} is a file: name another folder with --out")
        is_new = not self.path.exists()
        with storage_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(lock).st_nlink == 0:  # its owner unlinked it between our opening and locking it
                    raise BlockingIOError
            except BlockingIOError as exc:
                raise RunFolderError(f"another process is running in {self.path}") from exc
            try:
                self._check_contents(scenario_toml, resume=resume)
                self._remove_temporary_files()
                try:
                    yield
                finally:
                    self._remove_temporary_files()  # Ctrl-C also kills workers in the middle of a write
            finally:
                (self.path / LOCK).unlink(missing_ok=True)
                if is_new:
                    with contextlib.suppress(OSError):  # not empty: it contains a run by now
                        self.path.rmdir()
        finally:
            os.close(lock)

    def _check_contents(self, scenario_toml: str, *, resume: bool) -> None:
        """Refuse a folder that cannot be used for this run; called under the lock, so that the answer stays true."""
        scenario_file = self.path / SCENARIO
        if all(path.name == LOCK for path in self.path.iterdir()):
            return
        if not scenario_file.is_file():
            raise RunFolderError(f"{self.path} holds files that are no run: name another folder with --out")
        if not resume:
            raise RunFolderError(f"{self.path} already holds a run: add --resume to go on, or name another --out")
        begun_with = scenario_file.read_text(encoding="utf-8")
        for line in _LATER_DEFAULTS:
            if line not in begun_with:  # by an earlier version, which had no such setting
                scenario_toml = scenario_toml.replace(line, "", 1)
        if begun_with != scenario_toml:
            raise RunFolderError(f"{self.path} was begun with other settings: repeat them, or name another --out")

    def _remove_temporary_files(self) -> None:
        """Remove the temporary files that a killed process was writing."""
        for path in list(self.path.rglob(".*.????????")):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def begin(self, scenario_toml: str) -> None:
        """Write the scenario, once data and model are known to load; from here on the folder belongs to this run."""
        if not (self.path / SCENARIO).is_file():
            write_atomically(self.path / SCENARIO, scenario_toml)

    def write_rounds(self, rows: Sequence[dict[str, Any]]) -> None:
        """Replace `rounds.jsonl`; one row a round, in order."""
        write_atomically(self.path / ROUNDS, to_lines(rows))

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Replace `summary.json`."""
        write_atomically(self.path / SUMMARY, to_json(summary, indent=1) + "\n")

    def summary(self) -> dict[str, Any] | None:
        """Return the summary of a finished run; None while there is none."""
        path = self.path / SUMMARY
        if not path.is_file():
            return None
        summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return summary


def default_folder(name: str) -> Path:
    """Choose `runs/NAME-TIME` for a run without `--out`; a number is appended while that folder exists.

    Args:
        name: Name of the scenario, or the path of its file.
    """
    folder = Path("runs") / f"{Path(name).stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    others = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2))
    return next(path for path in itertools.chain([folder], others) if not path.exists())
