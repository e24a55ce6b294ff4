"""The auditor's commands, as they are called."""

import json
import re
import shutil
import subprocess
import sys
from typing import get_args

from audited_run import Chain
from custodies import MECHANISM, SERVER, custody
from ledgers import sha256

from fedglm.audit.report.gate import Gate, Requirement
from fedglm.privacy.custody.site_log import Release

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
for sys.argv in (["fedglm", "audit", "verify", sys.argv[1], "--json"], ["fedglm", "audit", "verify", sys.argv[2]]):
    try:
        main()
    except SystemExit as ended:
        print(ended.code)
"""


def test_a_verified_run_is_exit_code_0(fedglm, run):
    result = fedglm("audit", "verify", run)
    assert result.code == 0
    assert "verified: " in result.out
    assert "NOT HELD" not in result.out
    assert max(map(len, result.out.splitlines())) <= 100
    report = fedglm("audit", "verify", run, "--json").json
    assert report["held"] is True
    assert {log["subject"] for log in report["logs"]} == {"server", "a", "b", "c"}


def test_a_changed_run_is_exit_code_1_and_names_the_entry(fedglm, run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    chain = Chain(copy / "nodes" / "b" / "custody" / "log.sqlite")
    chain.texts[3] = chain.texts[3].replace('"round":1', '"round":2')
    chain.write(chain=False)
    result = fedglm("audit", "verify", copy)
    assert result.code == 1
    assert "not verified: " in result.out
    assert "entry 4" in result.out
    report = json.loads(fedglm("audit", "verify", copy, "--json").out)
    assert report["held"] is False
    assert [check["subject"] for check in report["checks"] if check["held"] is False] == ["b"]


def test_what_cannot_be_read_is_exit_code_2(fedglm, tmp_path, run):
    assert "holds no log" in fedglm("audit", "verify", tmp_path).line()
    assert "holds no log of a server" in fedglm("audit", "verify", run / "nodes" / "a", "--server", tmp_path).line()
    assert "64 digits" in fedglm("audit", "verify", run, "--key", "x").line()
    assert "64 digits" in fedglm("audit", "verify", run, "--key", "x" * 5000).line()
    assert "64 digits" in fedglm("audit", "verify", run, "--key", tmp_path).line()
    line = fedglm("audit", "verify", run, "--key", tmp_path / "nothere.pub").line()
    assert f"--key {tmp_path / 'nothere.pub'}: it cannot be read (No such file or directory)" in line
    (tmp_path / "binary.pub").write_bytes(b"\xff\xfe\x00")
    assert "binary.pub: it is no text" in fedglm("audit", "verify", run, "--key", tmp_path / "binary.pub").line()
    (tmp_path / "empty.pub").touch()
    assert "so no site handed it over" in fedglm("audit", "verify", run, "--key", tmp_path / "empty.pub").line()


def test_a_known_key_is_given_in_digits(fedglm, run):
    assert fedglm("audit", "verify", run, "--key", SERVER.public.hex).code == 0
    assert fedglm("audit", "verify", run, "--key", "0" * 64).code == 1


def test_it_runs_where_torch_is_not_installed(run, tmp_path):
    command = [sys.executable, "-c", WITHOUT, str(run), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    *said, of_run, of_nothing = done.stdout.splitlines()
    assert json.loads("".join(said))["held"] is True
    assert (of_run, of_nothing, done.stderr.count("\n")) == ("0", "2", 1), done.stderr


def test_names_that_strangers_chose_are_shown_as_they_are(fedglm, tmp_path):
    folder = tmp_path / "[/red]" / "custody"
    site = custody(folder, private=True)
    for number, run in enumerate(("[/x]", "[b]", "run\\"), 1):
        charge = site.make_charge(
            run, number, MECHANISM, sha256("plan"), sha256(run), purpose="update", attempt=sha256(run)[:32]
        )
        site.charge(Release(charge, 100, 7, "topk-fp16", ["bytes"]))
    result = fedglm("audit", "ledger", folder)
    assert result.code == 0, result.err
    for name in ("[/x]", "[b]", "run\\", "[/red]"):
        assert name in result.out
    assert str(folder) in result.out


def test_the_help_of_report_teaches_every_rule_and_every_word(fedglm, tmp_path):
    lines = [line.strip() for line in fedglm("audit", "report", "--help").out.splitlines()]
    rules = [line for line in lines if line.partition(" ")[0] in Gate.model_fields]
    (tmp_path / "rules.toml").write_text("\n".join(re.sub(r"   +.*", "", line) for line in rules))
    assert Gate.load(tmp_path / "rules.toml").model_fields_set == Gate.model_fields.keys()
    assert {line.partition(" ")[0] for line in lines} >= set(get_args(Requirement))
