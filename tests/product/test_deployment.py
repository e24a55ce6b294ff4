"""Real SuperLink, real SuperNodes, TLS and node authentication on: the simulation's bits, and what is told of them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import run_here, soon
from real_federation import SHORT, SITES, running, simulated, told

from fedglm.cli.process.flower_environment import make_flower_environment
from fedglm.server.project.folder import CONNECTION, Project

REPOSITORY = Path(__file__).parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    yield from running(tmp_path_factory.mktemp("real"))


def test_five_sites_get_the_bits_of_the_simulation(federation, tmp_path):
    with federation.run("hospital", "whole", "--no-dp") as process:
        result = process.finish(timeout=1800)
    assert result.code == 0, result.err
    summary = result.json
    expected = simulated(tmp_path / "simulated")
    assert summary["model_sha256"] == expected["model_sha256"]
    assert summary["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    assert summary["accuracy"] == pytest.approx(expected["accuracy"])
    assert (federation.project / "runs" / "whole" / "report.html").is_file()
    rows = federation.rounds("whole")
    assert [(row["nodes_accepted"], row["nodes_rejected"]) for row in rows] == [(SITES, 0)] * 12
    assert (federation.project / "runs" / "whole" / "model" / "config.json").is_file()
    for name in federation.names:
        assert len(federation.charges(name)) == 12


def test_the_records_of_server_and_sites_are_whole_and_sealed(federation):
    run = federation.project / "runs" / "whole"
    sites = [word for name in federation.names for word in ("--site", federation.folder / name)]
    found = told(run_here("audit", "verify", run, *sites, "--json")).json
    assert found["held"]
    checks = {(check["subject"], check["check"]): check for check in found["checks"]}
    assert checks["server", "updates"]["held"], "each update is signed by its site"
    for name in ("server", *federation.names):
        assert checks[name, "countersignature"]["held"], checks[name, "countersignature"]
    items = told(run_here("audit", "report", run, *sites, "--json")).json["items"]
    assert {item["number"] for item in items if item["status"] == "held"} >= {6, 9, 10, 11}
    assert "TLSv1.3" in str(items[9]["evidence"])


def framing(summary, way, rounds):
    """Bytes a message that the SuperLink counts, and we do not."""
    counted, theirs = summary[f"{way}_bytes"], summary[f"superlink_{way}_bytes"]
    assert counted <= theirs
    return (theirs - counted) / (SITES * (rounds + 3))  # and an introduction, and two seals


def test_our_count_of_bytes_agrees_with_flower_s_own(federation):
    """What lies in the messages, against what the SuperLink says of its traffic; the rest is framing, and reported."""
    whole = json.loads((federation.project / "runs" / "whole" / "summary.json").read_text())
    options = ("--rounds", "3", "--codec", "dense-fp32", "--set", "evaluation.baselines=[]")
    with federation.run("hospital", "dense", "--no-dp", *options) as process:
        dense = told(process.finish(timeout=600)).json
    assert dense["uplink_bytes"] > 20 * whole["uplink_bytes"] / 12 * 3, "else 2 % says little"
    assert dense["superlink_uplink_bytes"] / dense["uplink_bytes"] - 1 < 0.02
    for way in ("uplink", "downlink"):
        around = framing(whole, way, 12)
        print(f"{way}: framing {around:.0f} bytes a message")
        assert around < 1500
        assert framing(dense, way, 3) < 1500


def test_a_node_shows_its_figures(federation):
    figures = federation.figures()
    assert 'fedglm_process_up{process="supernode"} 1.0' in figures
    held = re.search(r'fedglm_process_memory_bytes{process="supernode"} (\S+)', figures)
    assert 50e6 < float(held[1]) < 2e9


def test_a_run_is_cancelled_and_gone_on_with(federation, tmp_path):
    settings = (*SHORT, "--seed", "99")
    expected = simulated(tmp_path / "calm", *settings)["model_sha256"]
    with federation.run("hospital", "cancelled", "--no-dp", *settings) as process:
        process.until(lambda: federation.rounds("cancelled"), 300)
        second = run_here("run", "hospital", "-C", federation.project, "--name", "second", "--no-dp")
        assert second.code == 2
        assert "the run cancelled is under way, and sites keep to one plan at a time" in second.err
        told(run_here("server", "cancel", "cancelled", "-C", federation.project))
        result = process.finish(timeout=60)
    assert (result.code, len(result.err.splitlines()[-1:])) == (2, 1)
    assert f"it was cancelled; fedglm run -C {federation.project} --name cancelled --resume goes on" in result.err
    assert run_here("server", "cancel", "cancelled", "-C", federation.project).code == 2
    # Flower's own command goes on with it, from the repository; ours then finds it done.
    flwr = Path(sys.executable).with_name("flwr")
    environment = os.environ | make_flower_environment(Project.open(federation.project).flower_home)
    words = [flwr, "run", REPOSITORY, CONNECTION, "--run-config", 'run="cancelled"']
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert soon((federation.project / "runs" / "cancelled" / "done.json").is_file, 300)
    with federation.run("hospital", "cancelled", "--resume") as process:
        result = process.finish(timeout=600)
    assert result.code == 0, result.err
    assert result.json["model_sha256"] == expected
