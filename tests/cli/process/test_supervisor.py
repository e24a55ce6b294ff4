"""What keeps a program running: it comes back when it dies, and nothing of it outlives its keeper."""

import contextlib
import os
import re
import signal
import subprocess
import sys

import pytest
from command_line import soon

from fedglm.cli.process import supervisor as module
from fedglm.cli.process.supervisor import make_supervised_command

SLEEPER = """
import sys, time
from fedglm.core.processes.parent_process import end_with_parent
end_with_parent()
print("up", __import__("os").getpid(), flush=True)
time.sleep(600)
"""


@pytest.fixture
def keep(tmp_path):
    """Starts a keeper of a Python program; its log is a file."""
    started = []

    def start(code):
        log = tmp_path / "program.log"
        with log.open("ab") as out:
            argv = make_supervised_command([sys.executable, "-c", code], log)
            started.append(subprocess.Popen(argv, stdout=out, stderr=out))
        return started[-1], log

    yield start
    for process in started:
        process.kill()
        process.wait()


def lives(log):
    """Numbers of the processes that the program has been."""
    return [int(number) for number in re.findall(r"^up (\d+)$", log.read_text(), re.MULTILINE)]


def alive(pid):
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] not in "ZX"
    return False


def test_a_killed_program_is_started_again(keep):
    process, log = keep(SLEEPER)
    for number in (1, 2):
        assert soon(lambda number=number: len(lives(log)) == number, 20)
        os.kill(lives(log)[-1], signal.SIGKILL)
    assert soon(lambda: len(lives(log)) == 3, 20)
    assert process.poll() is None
    pauses = re.findall(r"ended by signal 9, and is started again in ([\d.]+) s", log.read_text())
    assert [float(pause) for pause in pauses] == sorted({float(pause) for pause in pauses}), "ever slower"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_both(keep, number):
    process, log = keep(SLEEPER)
    assert soon(lambda: lives(log), 20)
    process.send_signal(number)
    assert process.wait(20) == 0
    assert not alive(lives(log)[0])


def test_the_program_does_not_outlive_its_keeper(keep):
    process, log = keep(SLEEPER)
    assert soon(lambda: lives(log), 20)
    process.kill()
    assert soon(lambda: not alive(lives(log)[0]), 20)


@pytest.mark.parametrize("code", [0, 7])
def test_a_program_that_cannot_start_or_is_done_is_left_alone(keep, code):
    process, log = keep(f"print('up', 1, flush=True); raise SystemExit({code})")
    assert process.wait(20) == code
    assert lives(log) == [1]


def test_its_log_is_kept_short(tmp_path, monkeypatch):
    log = tmp_path / "program.log"
    monkeypatch.setattr(module, "_MAX_LOG_BYTES", 1000)
    code = f"""
import time
with open({str(log)!r}, "ab", buffering=0) as out:
    out.write(b"x" * 2000)
    time.sleep(1)
    out.write(b"end")
"""
    log.touch()
    assert module.Supervisor([sys.executable, "-c", code], log).run() == 0
    assert log.read_bytes() == b"end"
    assert log.with_suffix(".log.1").read_bytes() == b"x" * 2000
