"""Real processes that are killed, cut off, moved and lied to: the same bits, and nothing counted twice."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from command_line import run_here, soon
from projects import free_ports
from real_federation import SHORT, SITES, fill_in, running, simulated, told

from fedglm.cli.process.flower_environment import make_flower_environment
from fedglm.server.project.folder import CONNECTION, PROJECT, Project
from fedglm.server.superlink.control import Control
from fedglm.server.superlink.start_report import delete_report, read_report

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

STRANGER = """
import json, pathlib
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

client = ClientApp()
server = ServerApp()


@client.train()
def train(message, context):
    pathlib.Path("{marker}").touch()
    return Message(RecordDict(), reply_to=message)


@server.main()
def main(grid, context):
    content = RecordDict({{"fedglm": ConfigRecord({{"round": 1}})}})
    messages = [Message(content, dst_node_id=node, message_type="train") for node in grid.get_node_ids()]
    replies = list(grid.send_and_receive(messages, timeout=120))
    pathlib.Path("{told}").write_text(json.dumps([reply.error.reason for reply in replies if reply.has_error()]))
"""


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    yield from running(tmp_path_factory.mktemp("real"))


def charged(federation, site, before):
    """Rounds of the charges since there were so many."""
    return [charge.round for charge in federation.charges(site)[before:]]


MODULES = {
    "superlink": "fedglm.server.superlink.main",
    "serverapp": "fedglm.server.superlink.app_process",
    "supernode": "fedglm.cli.client.node",
    "worker": "fedglm.client.supernode.worker_process",
    "keeper": "fedglm.cli.process.supervisor",
}
"""What each kind of process runs."""


class Killer:
    """Kills at random what a federation is made of; only where a whole part ended, it is started again."""

    def __init__(self, federation, dice):
        self._federation, self._dice = federation, dice
        self.killed = []

    def strike(self):
        kind = self._dice.choice(sorted(MODULES))
        name = self._dice.choice([None, *self._federation.names] if kind == "keeper" else self._federation.names)
        server, *nodes = self._federation.daemons
        at_server = kind in ("superlink", "serverapp") or name is None
        daemon = server if at_server else nodes[self._federation.names.index(name)]
        victims = [pid for pid in daemon.members() if self._is(pid, kind)]
        if not victims:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._dice.choice(sorted(victims)), signal.SIGKILL)
            self.killed.append(kind)
        if kind == "keeper":  # nobody is left who would
            assert soon(lambda: daemon.pid() is None)
            if at_server:
                self._federation.start_server()
            else:
                self._federation.start_site(name)

    @staticmethod
    def _is(pid, kind):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                return MODULES[kind].encode() in file.read().split(b"\0")[:3]
        except OSError:
            return False


@pytest.mark.parametrize("seed", range(int(os.environ.get("FEDGLM_KILLS", "3"))))
def test_whatever_is_killed_the_model_has_the_same_bits(federation, tmp_path, seed):
    # Each run has a seed of its own: bytes that a site has released before are not charged again.
    settings = (*SHORT, "--seed", str(100 + seed))
    expected = simulated(tmp_path / "calm", *settings)["model_sha256"]
    name, dice = f"killed-{seed}-{os.getpid()}", random.Random(seed)  # noqa: S311 - a test's order
    before = {site: len(federation.charges(site)) for site in federation.names}
    killer = Killer(federation, dice)
    with federation.run("hospital", name, "--no-dp", *settings) as process:
        strikes = dice.randint(1, 4)
        for _ in range(strikes):
            time.sleep(dice.uniform(2, 25))
            if not process.running():
                break
            killer.strike()
        result = process.finish(timeout=1500)
    print(f"seed {seed}: killed {', '.join(killer.killed) or 'nothing'}")
    assert result.code == 0, result.err
    assert result.json["model_sha256"] == expected
    rows = federation.rounds(name)
    assert [row["nodes_accepted"] for row in rows] == [SITES] * len(rows)
    for site in federation.names:
        assert charged(federation, site, before[site]) == list(range(1, len(rows) + 1)), "one charge a released update"


def test_the_power_fails_everywhere_at_once(federation, tmp_path):
    settings = (*SHORT, "--seed", "98")
    expected = simulated(tmp_path / "calm", *settings)["model_sha256"]
    before = {site: len(federation.charges(site)) for site in federation.names}
    with federation.run("hospital", "power", "--no-dp", *settings) as process:
        process.until(lambda: len(federation.rounds("power")) >= 2, 300)
        for pid in federation.processes | {process.pid}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.finish()
    assert soon(lambda: federation.processes == set())
    federation.start()
    with federation.run("hospital", "power", "--resume") as process:
        result = process.finish(timeout=900)
    assert result.code == 0, result.err
    assert result.json["model_sha256"] == expected
    for site in federation.names:
        assert charged(federation, site, before[site]) == [1, 2, 3, 4]


def test_the_server_moves_in_the_middle_of_a_run(federation, tmp_path):
    settings = (*SHORT, "--seed", "97")
    expected = simulated(tmp_path / "calm", *settings)["model_sha256"]
    port, control = free_ports(2)
    with federation.run("hospital", "moved", "--no-dp", *settings) as process:
        process.until(lambda: federation.rounds("moved"), 300)
        federation.stop()
        told(run_here("provision", federation.project, "--port", port, "--control-port", control))
        for name in federation.names:
            fill_in(federation.site(name) / "site.toml", {"server": f'"127.0.0.1:{port}"'})
        process.kill()
    federation.start()
    with federation.run("hospital", "moved", "--resume") as process:
        result = process.finish(timeout=900)
    assert result.code == 0, result.err
    assert result.json["model_sha256"] == expected


def test_a_node_that_returns_after_ten_rounds_catches_up(federation):
    site, before = federation.names[-1], len(federation.charges(federation.names[-1]))
    options = ("--rounds", "26", "--seed", "96", "--set", "federation.enough=0.8", "--set", "evaluation.baselines=[]")
    with federation.run("hospital", "away", "--no-dp", *options) as process:
        process.until(lambda: federation.rounds("away"), 300)
        told(run_here("client", "stop", federation.site(site)))
        gone = len(federation.rounds("away"))
        process.until(lambda: len(federation.rounds("away")) >= gone + 10, 600)
        told(run_here("client", "start", federation.site(site)))
        result = process.finish(timeout=600)
    assert result.code == 0, result.err
    rounds = charged(federation, site, before)
    assert max(rounds) > gone + 10, "it takes part again"
    assert not set(range(gone + 2, gone + 11)) & set(rounds)


@pytest.fixture
def stranger(tmp_path):
    """An app of somebody else's: its folder, what its client would leave behind, what its server was told."""
    app, marker, answers = tmp_path / "app", tmp_path / "ran", tmp_path / "told.json"
    app.mkdir()
    (app / "stranger.py").write_text(STRANGER.format(marker=marker, told=answers))
    (app / "pyproject.toml").write_text(
        '[project]\nname = "stranger"\nversion = "1.0.0"\nlicense = "Apache-2.0"\ndependencies = []\n'
        '[tool.flwr.app]\npublisher = "stranger"\n'
        '[tool.flwr.app.components]\nserverapp = "stranger:server"\nclientapp = "stranger:client"\n'
    )
    return app, marker, answers


def flwr_run(project, app):
    return subprocess.run(
        [os.path.join(os.path.dirname(sys.executable), "flwr"), "run", app, CONNECTION],
        env=os.environ | make_flower_environment(project.flower_home),
        capture_output=True,
        text=True,
        check=False,
    )


def test_an_app_that_somebody_slips_in_is_not_taken(federation, stranger):
    app, marker, answers = stranger
    done = flwr_run(Project.open(federation.project), app)
    assert done.returncode != 0
    assert "the run is not taken" in done.stdout + done.stderr
    assert not soon(lambda: marker.exists() or answers.exists(), 5)


ANY_APP = """
from fedglm.server.superlink import control_gateway
control_gateway.check_start_run = lambda _: None
from fedglm.server.superlink.main import main
main()
"""


def test_an_app_that_a_hostile_link_takes_runs_at_no_site(federation, stranger):
    app, marker, answers = stranger
    charges = {site: len(federation.charges(site)) for site in federation.names}
    project, server = Project.open(federation.project), federation.daemons[0]
    told(run_here("server", "stop", "-C", federation.project))
    environment = make_flower_environment(project.flower_home) | {PROJECT: str(project.folder)}
    delete_report(project)
    server.start([sys.executable, "-c", ANY_APP], environment, ready=lambda: read_report(project) is not None)
    with Control(project) as control:
        assert soon(lambda: [node.status for node in control.list_nodes()] == ["online"] * SITES, 60)
    done = flwr_run(project, app)
    assert done.returncode == 0, done.stdout + done.stderr
    # What this app asks is none of our messages, for whose answers the door would have no bound.
    assert soon(answers.exists, 180)
    assert json.loads(answers.read_text()) == []
    assert not marker.exists(), "a site ran code that came over the line"
    assert charges == {site: len(federation.charges(site)) for site in federation.names}
    server.stop()
    federation.start_server()
