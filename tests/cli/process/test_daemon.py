"""Processes that stay: started once, found again, ended with all that they started, and never mixed up with others."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from command_line import soon

from fedglm.cli.process import daemon as module
from fedglm.cli.process.daemon import Daemon, DaemonError
from fedglm.cli.process.flower_environment import make_flower_environment
from fedglm.cli.process.process_identity import read_identity

SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)",
]
# A child in a session of its own, as Flower starts its SuperExec.
PARENT = [
    sys.executable,
    "-c",
    "import subprocess, sys, time\n"
    "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)\n"
    "print('up', flush=True)\n"
    "time.sleep(600)",
]


@pytest.fixture
def daemon(tmp_path):
    made = Daemon(tmp_path / "state", "sleeper")
    yield made
    for pid in made.members():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def up(daemon):
    return lambda: "up" in daemon.tail()


def alive(pid):
    return read_identity(pid) is not None


def test_it_starts_is_found_by_another_command_and_ends(daemon, tmp_path):
    pid = daemon.start(SLEEP, {"NOTE": "x"}, ready=up(daemon))
    assert Daemon(tmp_path / "state", "sleeper").pid() == pid
    assert os.getsid(pid) == pid
    assert b"NOTE=x" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    assert Daemon(tmp_path / "state", "sleeper").stop() is True
    assert not alive(pid)
    assert daemon.pid() is None
    assert daemon.stop() is False
    assert daemon.log.stat().st_mode & 0o077 == 0


def test_it_runs_once(daemon):
    pid = daemon.start(SLEEP, {}, ready=up(daemon))
    with pytest.raises(DaemonError, match=f"runs already, as process {pid}"):
        daemon.start(SLEEP, {})
    with pytest.raises(DaemonError, match="runs already"):
        daemon.run(SLEEP, {})
    assert daemon.pid() == pid


def test_two_commands_at_once_start_one(tmp_path):
    outcomes = []

    def start():
        one = Daemon(tmp_path, "sleeper")
        try:
            outcomes.append(one.start(SLEEP, {}, ready=up(one)))
        except DaemonError as exc:
            outcomes.append(str(exc))

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    daemon = Daemon(tmp_path, "sleeper")
    assert sum(isinstance(outcome, int) for outcome in outcomes) == 1
    assert len(daemon.members()) == 1
    daemon.stop()


def test_an_end_right_after_the_start_shows_the_log(daemon, capsys):
    broken = [sys.executable, "-c", "print('port taken'); raise SystemExit(3)"]
    with pytest.raises(DaemonError, match="exit code 3") as caught:
        daemon.start(broken, {})
    assert str(daemon.log) in str(caught.value)
    assert "  port taken\n" in capsys.readouterr().err
    with pytest.raises(DaemonError, match="by signal 9"):
        daemon.start([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], {})
    with pytest.raises(DaemonError, match="No such file"):
        daemon.start(["/nowhere/program"], {})
    assert daemon.pid() is None


def test_what_is_never_ready_is_ended(daemon):
    with pytest.raises(DaemonError, match="was not up after 1 s"):
        daemon.start(PARENT, {}, ready=lambda: False, patience_s=1)
    assert daemon.members() == []


def test_what_only_ends_by_force_is_ended(daemon, monkeypatch):
    monkeypatch.setattr(module, "_GRACE_S", 0.3)
    pid = daemon.start(STUBBORN, {}, ready=up(daemon))
    assert daemon.stop(timeout_s=0.3) is True
    assert not alive(pid)


def test_no_child_outlives_it_in_whatever_session(daemon):
    daemon.start(PARENT, {}, ready=up(daemon))
    assert soon(lambda: len(daemon.members()) == 2)
    daemon.stop()
    assert daemon.members() == []


def test_after_a_kill_the_orphans_are_ended_before_the_next_start(daemon):
    pid = daemon.start(PARENT, {}, ready=up(daemon))
    assert soon(lambda: len(daemon.members()) == 2)
    os.kill(pid, signal.SIGKILL)
    assert soon(lambda: daemon.pid() is None)
    (orphan,) = daemon.members()
    again = daemon.start(SLEEP, {}, ready=lambda: daemon.tail()[-1:] == ["up"])
    assert not alive(orphan)
    assert daemon.members() == [again]
    assert daemon.stop()


def test_orphans_alone_are_something_to_stop(daemon):
    pid = daemon.start(PARENT, {}, ready=up(daemon))
    assert soon(lambda: len(daemon.members()) == 2)
    os.kill(pid, signal.SIGKILL)
    assert soon(lambda: daemon.pid() is None)
    assert daemon.stop() is True
    assert daemon.members() == []


def test_a_number_that_was_given_out_again_is_not_ours(daemon):
    bystander = subprocess.Popen(SLEEP, stdout=subprocess.DEVNULL)
    try:
        daemon.stop()  # makes the folder
        for said in (
            {"pid": bystander.pid, "identity": "another boot/1"},
            {"pid": bystander.pid},
            {"pid": 2**40, "identity": None},
            [],
        ):
            (daemon.log.parent / "sleeper.pid").write_text(json.dumps(said))
            assert daemon.pid() is None
            assert daemon.stop() is False
        (daemon.log.parent / "sleeper.pid").write_bytes(b"\xff")
        assert daemon.pid() is None
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_daemons_of_other_folders_are_left_alone(tmp_path):
    one, other = Daemon(tmp_path / "1", "x"), Daemon(tmp_path / "11", "x")
    one.start(SLEEP, {}, ready=up(one))
    other.start(SLEEP, {}, ready=up(other))
    assert one.stop()
    assert other.pid() is not None
    assert other.stop()


FOREGROUND = """
import sys
from pathlib import Path
from fedglm.cli.process.daemon import Daemon
sys.exit(Daemon(Path(sys.argv[1]), "sleeper").run(
    [sys.executable, "-c", sys.argv[2]], {}, ready=lambda: True, once_ready=lambda: print("ready", flush=True)))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_in_the_foreground_a_signal_ends_all(daemon, tmp_path, number):
    command = [sys.executable, "-c", FOREGROUND, tmp_path / "state", PARENT[2]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert {process.stdout.readline(), process.stdout.readline()} == {"ready\n", "up\n"}
        assert soon(lambda: len(daemon.members()) == 2)
        assert daemon.pid() in daemon.members()
        process.send_signal(number)
        assert process.wait(20) == 0
    assert daemon.members() == []


SIGNAL_AT_THE_PID_FILE = """
import os, signal, sys
from pathlib import Path
from fedglm.cli.process import daemon
write = daemon.write_atomically
def write_and_signal(path, *arguments, **options):
    write(path, *arguments, **options)
    os.kill(os.getpid(), signal.SIGTERM)
daemon.write_atomically = write_and_signal
sys.exit(daemon.Daemon(Path(sys.argv[1]), "sleeper").run([sys.executable, "-c", sys.argv[2]], {}, ready=lambda: False))
"""


def test_in_the_foreground_a_signal_as_soon_as_the_pid_is_published_ends_all(daemon, tmp_path):
    command = [sys.executable, "-c", SIGNAL_AT_THE_PID_FILE, tmp_path / "state", PARENT[2]]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
    assert daemon.members() == []
    assert daemon.pid() is None


def test_in_the_foreground_a_second_one_does_not_end_the_first(daemon, tmp_path):
    pid = daemon.start(SLEEP, {}, ready=up(daemon))
    command = [sys.executable, "-c", FOREGROUND, tmp_path / "state", SLEEP[2]]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert "runs already" in done.stderr
    assert daemon.pid() == pid


def test_in_the_foreground_its_exit_code_is_ours(daemon, tmp_path):
    command = [sys.executable, "-c", FOREGROUND, tmp_path / "state", "raise SystemExit(7)"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 7 or "exit code 7" in done.stderr  # ended before or after it was looked at
    assert daemon.pid() is None


def test_the_log_goes_on_and_is_kept_short(daemon, monkeypatch):
    for times in (1, 2):
        daemon.start(SLEEP, {}, ready=lambda times=times: daemon.tail().count("up") == times)
        daemon.stop()
    assert daemon.tail().count("up") == 2
    assert daemon.tail(1) == ["up"]
    monkeypatch.setattr(module, "_MAX_LOG_BYTES", 1)
    daemon.start(SLEEP, {}, ready=up(daemon))
    daemon.stop()
    assert daemon.tail().count("up") == 1
    assert daemon.log.with_suffix(".log.1").read_text().count("up") == 2


def test_without_a_sign_it_is_up_when_it_lives_for_a_while(daemon, monkeypatch):
    monkeypatch.setattr(module, "_STABLE_AFTER_S", 0.3)
    began = time.monotonic()
    daemon.start(SLEEP, {})
    assert time.monotonic() - began >= 0.3
    daemon.stop()


def test_flower_is_told_to_keep_to_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    monkeypatch.setenv("no_proxy", "intranet.example.org")
    told = make_flower_environment(tmp_path)
    assert told["FLWR_TELEMETRY_ENABLED"] == "0"
    assert told["FLWR_HOME"] == str(tmp_path)
    assert told["no_proxy"] == "127.0.0.1,localhost,intranet.example.org"
    assert told["PATH"].startswith(str(Path(sys.executable).parent) + os.pathsep)


@pytest.mark.parametrize(("writable", "named"), [(True, False), (False, True)])
def test_kernels_of_a_read_only_installation_are_kept_with_the_site(tmp_path, monkeypatch, writable, named):
    monkeypatch.setattr(os, "access", lambda *_: writable)  # root may write anywhere
    assert ("NUMBA_CACHE_DIR" in make_flower_environment(tmp_path)) == named
