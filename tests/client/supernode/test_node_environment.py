"""A node's environment, made from its lock and nothing else: no Ray, nothing that draws; and it trains."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from lock_files import LOCKS, TORCH, versions
from packaging.utils import canonicalize_name
from real_federation import Federation

ROOT = Path(__file__).parents[3]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

TEXTS = """
name = "texts"
[federation]
rounds = 2
[data]
source = "pydoc"
[model]
preset = "glm-0.1m"
[training]
local_steps = 2
batch_size = 2
[evaluation]
baselines = []
"""


def call(*command):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Its folder."""
    folder = tmp_path_factory.mktemp("node") / "environment"
    call(sys.executable, "-m", "venv", folder)
    pip = (folder / "bin" / "python", "-m", "pip", "install", "--quiet")
    call(*pip, "--require-hashes", "--no-deps", "-r", LOCKS / f"{TORCH}.txt")
    call(*pip, "--require-hashes", "-r", LOCKS / "node.txt")
    call(*pip, "--no-deps", "--no-build-isolation", "--editable", ROOT)
    return folder


def test_it_holds_what_the_lock_names(environment):
    lines = call(environment / "bin" / "python", "-m", "pip", "list", "--format", "freeze").splitlines()
    listed = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    assert {name: listed.pop(name) for name in versions("node")} == versions("node")
    assert set(listed) == {"fedglm", "pip", "torch"}
    assert "No broken requirements" in call(environment / "bin" / "python", "-m", "pip", "check")


def test_it_trains(environment, tmp_path):
    scenario = tmp_path / "texts.toml"
    scenario.write_text(TEXTS)
    command = environment / "bin" / "fedglm"
    with Federation(tmp_path, 2, source="pydoc") as federation:
        federation.start_server()
        for name in federation.names:
            call(command, "client", "check", federation.site(name))
            call(command, "client", "start", federation.site(name))
        with federation.run(scenario, "first", "--no-dp") as process:
            result = process.finish(timeout=900)
        assert result.code == 0, result.err
        loaded = {
            line.split()[-1]
            for daemon in federation.daemons[1:]
            for pid in daemon.members()
            for line in Path(f"/proc/{pid}/maps").read_text().splitlines()
            if "site-packages" in line
        }
        assert any("/torch/" in path for path in loaded), "the worker is still there"
        assert [path for path in loaded if not path.startswith(os.fspath(environment))] == []
        rows = federation.rounds("first")
        assert [(row["nodes_accepted"], row["nodes_rejected"]) for row in rows] == [(2, 0)] * 2
