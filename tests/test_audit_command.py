"""The auditor's commands, as they are called."""

import json
import shutil
import subprocess
import sys

import pytest
from audited_run import Chain, make_run
from custodies import SERVER

BLOCKED = (
    *("torch", "transformers", "flwr", "ray", "peft", "accelerate", "sklearn", "matplotlib", "numba", "safetensors"),
    *("prometheus_client", "httpx"),
)
WITHOUT = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {BLOCKED!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
from fedglm.cli.main import main
main()
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _: None)
        return make_run(tmp_path_factory.mktemp("audited") / "run")


def test_yes_is_said_with_exit_code_0(fedglm, run):
    said = fedglm("audit", "verify", run)
    assert said.code == 0
    assert "verified: " in said.out
    assert "NOT HELD" not in said.out
    assert max(map(len, said.out.splitlines())) <= 100
    told = fedglm("audit", "verify", run, "--json").json
    assert told["held"] is True
    assert {log["subject"] for log in told["logs"]} == {"server", "a", "b", "c"}


def test_no_is_said_with_exit_code_1_and_the_entry(fedglm, run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    chain = Chain(copy / "nodes" / "b" / "custody" / "log.sqlite")
    chain.texts[3] = chain.texts[3].replace('"round":1', '"round":2')
    chain.write(chain=False)
    said = fedglm("audit", "verify", copy)
    assert said.code == 1
    assert "not verified: " in said.out
    assert "entry 4" in said.out
    told = json.loads(fedglm("audit", "verify", copy, "--json").out)
    assert told["held"] is False
    assert [check["subject"] for check in told["checks"] if check["held"] is False] == ["b"]


def test_what_cannot_be_looked_at_is_exit_code_2(fedglm, tmp_path, run):
    assert "holds no log" in fedglm("audit", "verify", tmp_path).line()
    assert "holds no log of a server" in fedglm("audit", "verify", run / "nodes" / "a", "--server", tmp_path).line()
    assert "64 digits" in fedglm("audit", "verify", run, "--key", "x").line()


def test_a_known_key_is_given_in_digits(fedglm, run):
    assert fedglm("audit", "verify", run, "--key", SERVER.public.hex).code == 0
    assert fedglm("audit", "verify", run, "--key", "0" * 64).code == 1


def test_it_runs_where_torch_is_not_installed(run, tmp_path):
    command = [sys.executable, "-c", WITHOUT, "audit", "verify", str(run), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["held"] is True
    command = [sys.executable, "-c", WITHOUT, "audit", "verify", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
