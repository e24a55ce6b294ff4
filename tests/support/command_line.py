"""The command `fedglm` from outside: in this process, or as a process of its own with all that descend from it."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from fedglm.cli.main import main

COMMAND = Path(sys.executable).with_name("fedglm")

TINY = """
name = "tiny"
[federation]
nodes = 2
rounds = 3
[data]
source = "{table}"
label_field = "class"
feature_fields = ["x", "y"]
feature_ranges = {{ x = [0, 1], y = [0, 1] }}
[training]
local_steps = 4
batch_size = 8
learning_rate = 5e-3
precision = "fp32"
device = "cpu"
[update]
codec = "topk-fp16"
density = 0.05
[downlink]
codec = "topk-fp16"
density = 0.1
"""


def write_tiny(home):
    """A scenario that trains in a second: a table of two features, two nodes, three rounds."""
    points = [((7 * i) % 100 / 100, (13 * i) % 100 / 100) for i in range(100)]
    lines = [f"{x},{y},{'high' if x + y > 1 else 'low'}" for x, y in points]
    table = home / "table.csv"
    table.write_text("\n".join(["x,y,class", *lines, ""]))
    path = home / "tiny.toml"
    path.write_text(TINY.format(table=table))
    return path


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self):
        assert self.code == 0, self.err
        return json.loads(self.out)

    def line(self):
        """The one line that a mistake is answered with."""
        assert self.code == 2, (self.code, self.err)
        assert self.out == ""
        lines = [line for line in self.err.splitlines() if line.startswith("fedglm: ")]
        assert len(lines) == 1, self.err
        assert self.err.rstrip("\n").endswith(lines[0]), self.err
        assert "Traceback" not in self.err
        assert len(lines[0]) < 600
        return lines[0]


def run_here(*arguments):
    """The command in this process: importing torch again for each call would take most of the suite's time."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch.object(sys, "argv", ["fedglm", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as exc:
            code = exc.code or 0
    return Result(code, out.getvalue(), err.getvalue())


class Process:
    """A real `fedglm` in a process group of its own; its descendants carry a mark in their environment."""

    def __init__(self, *arguments, cwd=None, prefix=()):
        self._mark = f"FEDGLM_TEST_MARK={uuid.uuid4().hex}"
        name, value = self._mark.split("=")
        # A suite that was started in the background inherits an ignored SIGINT, and so would the command.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._popen = subprocess.Popen(
            [*prefix, COMMAND, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=os.environ | {name: value, "COLUMNS": "100", "OMP_NUM_THREADS": "1"},
            cwd=cwd,
        )
        self.pid = self._popen.pid

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for pid in self.descendants() | ({self.pid} if self._popen.poll() is None else set()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._popen.communicate()

    def finish(self, timeout=240):
        out, err = self._popen.communicate(timeout=timeout)
        return Result(self._popen.returncode, out, err)

    def read_until(self, text):
        """Wait until a line of standard output contains the text; `finish` returns what comes later."""
        assert any(text in line for line in self._popen.stdout), f"ended early: {self.finish()}"

    def running(self):
        return self._popen.poll() is None

    def press_ctrl_c(self):
        os.killpg(self.pid, signal.SIGINT)

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)

    def descendants(self):
        """Living processes that carry the mark, this one's main process left out."""
        found = set()
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == self.pid:
                continue
            try:
                if self._mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.add(int(entry.name))
            except OSError:
                continue
        return found

    def workers(self):
        """Worker processes of the engine `inline`: the children of its fork server."""
        marked = self.descendants()
        servers = {
            pid for pid in marked if b"multiprocessing.forkserver" in command_of(pid) and parent_of(pid) == self.pid
        }
        return {pid for pid in marked if parent_of(pid) in servers}

    def until(self, condition, timeout=120):
        """Wait for a condition while the process runs."""
        end = time.monotonic() + timeout
        while not condition():
            assert self.running(), f"ended early: {self.finish()}"
            assert time.monotonic() < end, "waited too long"
            time.sleep(0.005)


def command_of(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def parent_of(pid):
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return -1


def soon(condition, timeout=30):
    """Whether the condition comes true within some seconds."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return condition()


def rows_of(folder):
    """The lines of `rounds.jsonl`, each of which must be an object; none where there is no file yet."""
    path = folder / "rounds.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def temporary_files(folder):
    """What should have been renamed or removed."""
    return [path for path in folder.rglob(".*") if path.name != ".lock"]


class Finished:
    """A finished run of the tiny scenario."""

    def __init__(self, home):
        self.toml = write_tiny(home)
        self.folder = home / "run"
        with Process("simulate", self.toml, "--out", self.folder, "--json") as process:
            self.result = process.finish()
            self.left_running = process.descendants()
        self.summary = self.result.json
        self.rows = rows_of(self.folder)
