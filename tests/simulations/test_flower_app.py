"""`flwr run .` in the repository: Flower's own command, the simulation's bits."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import run_here

REPOSITORY = Path(__file__).parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def flwr(tmp_path):
    """Flower's command with a home of its own; the SuperLink that it starts ends with the test."""
    environment = {
        "HOME": str(tmp_path),
        "FLWR_HOME": str(tmp_path / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    mark = f"FLWR_HOME={tmp_path / 'flwr'}".encode()

    def run(*words):
        return subprocess.run(
            ["flwr", *words], env=os.environ | environment, cwd=REPOSITORY, capture_output=True, text=True, check=False
        )

    yield run
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                os.kill(int(entry.name), signal.SIGKILL)
        except OSError:  # another user's, or gone meanwhile
            continue


def test_flwr_run_in_the_repository_gets_the_simulation_s_bits(flwr, plain, tmp_path):
    expected = run_here("simulate", plain, "--nodes", "3", "--out", tmp_path / "simulated", "--json").json
    config = f'scenario="{plain}"'
    process = flwr("run", ".", "--stream", "--federation-config", "num-supernodes=3", "--run-config", config)
    output = process.stdout + process.stderr
    match = re.search(r"model ([0-9a-f]{16}); report: (\S+)", output)
    assert match, output
    assert match[1] == expected["model_sha256"][:16]
    assert Path(match[2]).is_file()
