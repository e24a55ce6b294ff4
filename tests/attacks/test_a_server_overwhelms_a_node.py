"""The server that a site trusts by its certificate, turned hostile: what it makes the node do, hold, and connect to."""

import contextlib
import gzip
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from command_line import run_here, soon
from hostile_link import HostileServer, announced, compressed, endless, redirect
from live_server import memory_of
from projects import make_project
from real_federation import fill_in

from fedglm.cli.process.flower_environment import make_flower_environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def project(tmp_path):
    return make_project(tmp_path / "fl", sites=("a",))


@contextlib.contextmanager
def node_of(project, folder, server):
    """A site's real node, connected to a server; its process number."""
    site = folder / "site"
    (project.kits / "a").rename(site)
    assert run_here("client", "keygen", site).code == 0
    fill_in(site / "site.toml", {"server": f'"127.0.0.1:{server.port}"', "source": '"breast-cancer"'})
    with (folder / "node.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "fedglm.cli.client.node", site],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=os.environ | make_flower_environment(site / "state" / "flwr"),
        )
    try:
        assert soon(lambda: "/v1/fleet/activate-node" in server.asked, 60), (folder / "node.log").read_text()
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def pulls(server):
    return server.asked.count("/v1/fleet/pull-messages")


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_node_is_sent_to_another_host(project, tmp_path, scheme):
    """A port within the site's own network, which the server itself does not reach."""
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        elsewhere.settimeout(8)
        to = f"{scheme}://127.0.0.1:{elsewhere.getsockname()[1]}/x"
        with HostileServer(project, pull_messages=redirect(to)) as server, node_of(project, tmp_path, server):
            assert soon(lambda: pulls(server) >= 1, 60)
            with pytest.raises(TimeoutError):
                elsewhere.accept()


def bomb(handler):
    compressed(gzip.compress(bytes(256 * 2**20)))(handler)


@pytest.mark.parametrize("answer", [endless, announced(512 * 2**20), bomb], ids=["without end", "too long", "a bomb"])
def test_an_answer_that_fills_the_memory(project, tmp_path, answer):
    hostile = []

    def at_first_nothing(handler):
        if hostile:
            answer(handler)
        else:
            handler.send_response(200)
            handler.send_header("content-length", "0")
            handler.end_headers()

    with HostileServer(project, pull_messages=at_first_nothing) as server, node_of(project, tmp_path, server) as node:
        assert soon(lambda: pulls(server) >= 1, 60)
        before = memory_of(node.pid)
        hostile.append(True)
        asked, worst, end = pulls(server), before, time.monotonic() + 40
        while pulls(server) < asked + 3 and time.monotonic() < end:
            worst = max(worst, memory_of(node.pid))
            time.sleep(0.02)
        assert worst - before < 64, f"the node took {worst - before:.0f} MiB"


def test_a_node_whose_loop_has_ended_does_not_seem_to_work(project, tmp_path):
    """At a status that Flower's node has no use for it stops asking; then it ends, and is started again."""

    def nonsense(handler):
        handler.send_response(418)
        handler.send_header("content-length", "0")
        handler.end_headers()

    with HostileServer(project, pull_messages=nonsense) as server, node_of(project, tmp_path, server) as node:
        with contextlib.suppress(subprocess.TimeoutExpired):
            node.wait(40)
        assert node.poll() not in (None, 0), "it lives, and asks nothing any more"
