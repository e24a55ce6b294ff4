"""A run of real processes whose link fails in every way that there is: all nodes come back, to the undisturbed bits."""

import os
import time

import pytest
from command_line import run_here
from misbehaving_link import WAYS, MisbehavingLink
from real_federation import Federation, fill_in, simulated, told

from fedglm.client.link.state import LinkState
from fedglm.server.project.folder import Project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

SITES = 3
ROUNDS = ("--rounds", "80", "--set", "evaluation.baselines=[]")
FAULT_S = float(os.environ.get("FEDGLM_FAULT_SECONDS", "15"))
BACK_S = 60.0


def states(federation):
    return [LinkState.read(federation.site(name) / "state") for name in federation.names]


def until(condition, timeout):
    """Seconds until the condition holds."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < timeout, "waited too long"
        time.sleep(0.1)
    return time.monotonic() - began


def test_every_node_is_back_within_a_minute_and_the_bits_are_those_of_an_undisturbed_run(tmp_path):
    wanted = simulated(tmp_path / "simulated", "--nodes", SITES, *ROUNDS)
    with Federation(tmp_path, SITES) as federation:
        project = Project.open(federation.project)
        with MisbehavingLink(project, tmp_path, project.settings.port) as link:
            for name in federation.names:
                fill_in(federation.site(name) / "site.toml", {"server": f'"127.0.0.1:{link.port}"'})
            link.misbehave("an expired certificate")  # a node may be started while there is no way
            federation.start_server()
            for name in federation.names:
                told(run_here("client", "start", federation.site(name)))
            link.heal()
            until(lambda: all(state and state.connected for state in states(federation)), BACK_S)
            with federation.run("hospital", "links", "--no-dp", *ROUNDS) as run:
                run.until(lambda: len(federation.rounds("links")) >= 1, 600)
                for way in WAYS:
                    before = len(federation.rounds("links"))
                    link.misbehave(way)
                    time.sleep(FAULT_S)
                    assert not any(state.connected for state in states(federation)), way
                    link.heal()
                    seconds = until(lambda: all(state.connected for state in states(federation)), BACK_S)
                    print(f"{way}: back after {seconds:.1f} s", flush=True)
                    until(lambda before=before: len(federation.rounds("links")) > before, 600)
                summary = run.finish(timeout=3600).json
        federation.stop()
    assert summary["model_sha256"] == wanted["model_sha256"]
