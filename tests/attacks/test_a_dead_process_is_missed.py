"""Each process that a command starts is killed, one at a time: it comes back, or all end and say so."""

import contextlib
import os
import re
import signal
import socket

import pytest
from command_line import Process, run_here, soon
from live_server import LiveServer, command
from real_federation import Federation

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with LiveServer(tmp_path_factory.mktemp("server")) as made:
        yield made


def kill(pid):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def listens(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False


def kind(pid):
    """What a process is; without numbers, which differ each time."""
    return re.sub(r"\d+", "N", command(pid))


def in_order(server):
    """Whether the server runs and starts runs; or has ended, says so, and starts again."""

    def works():
        with contextlib.suppress(Exception):  # it is about to come back, or to end
            return server.starts_runs()
        return False

    if soon(lambda: server.daemon.pid() is None, 3):
        assert soon(lambda: not server.pids()), f"half of it lives on: {[command(pid) for pid in server.pids()]}"
        assert "does not run" in run_here("server", "status", "-C", server.project.folder).out
        started = run_here("server", "start", "-C", server.project.folder)
        assert started.code == 0, started.err
    return soon(works, 60)


def test_each_process_of_an_idle_server(server):
    for name in sorted({kind(pid) for pid in server.pids()}):
        for pid in [pid for pid in server.pids() if kind(pid) == name]:
            kill(pid)
        assert in_order(server), f"nobody misses {name}"
        assert server.serves()


def test_a_server_whose_keeper_was_killed_leaves_nothing_behind(server):
    pid = server.daemon.pid()
    others = server.pids() - {pid}
    kill(pid)
    assert soon(lambda: not {other for other in others if command(other)}, 10)
    assert in_order(server)


@pytest.fixture
def project(server):
    """The server's project, of which nothing runs."""
    server.daemon.stop()
    yield server.project
    assert run_here("server", "start", "-C", server.project.folder).code == 0


def test_a_service_ends_with_each_of_its_processes(server, project):
    """What systemd sees: the process that it started has ended, with a code that says so, and left nothing behind."""
    kinds = {"fedglm.server.superlink.main", "--foreground"}
    for kind in sorted(kinds):
        with Process("server", "start", "--foreground", "-C", project.folder) as service:
            service.until(lambda: listens(project.settings.port))
            (victim,) = [pid for pid in {*server.pids(), service.pid} if kind in command(pid)]
            kill(victim)
            assert service.finish(60).code != 0
            assert soon(lambda: not server.pids(), 10), [command(pid) for pid in server.pids()]


IN_A_RUN = {
    "fedglm.server.superlink.main": 0,
    "fedglm.server.superlink.app_process": 0,
    "fedglm.cli.client.node": 1,
    "fedglm.client.supernode.worker_process": 1,
}
"""What each process runs, and whose it is: the server's or the first site's."""


@pytest.mark.timeout(1800)
def test_each_process_in_a_run(tmp_path):
    """Nobody starts anything again, and each site takes part in each round."""
    with Federation(tmp_path, 2) as federation:
        federation.start()
        with federation.run(
            "hospital", "killed", "--no-dp", "--rounds", "8", "--set", "evaluation.baselines=[]"
        ) as run:
            for module, owner in IN_A_RUN.items():
                done = len(federation.rounds("killed"))
                run.until(lambda done=done: len(federation.rounds("killed")) > done, 240)
                running = [pid for pid in federation.daemons[owner].members() if f"-m {module}" in command(pid)]
                assert running, f"no {module} runs"
                for pid in running:
                    if "fedglm.cli.process.supervisor" not in command(pid):
                        kill(pid)
            result = run.finish(timeout=600)
        assert result.code == 0, result.err
        assert [row["nodes_accepted"] for row in federation.rounds("killed")] == [2] * 8
        federation.stop()
