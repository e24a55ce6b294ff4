"""A command whose extra is not installed says so in one line, before it does anything; the base needs none."""

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from custodies import MECHANISM, custody
from lock_files import versions
from typer.main import get_command

from fedglm.cli.extras import MODULES, NEEDS
from fedglm.cli.main import app
from fedglm.privacy.custody.site_log import Release

ROOT = Path(__file__).parents[2]

ARGUMENTS = {
    "simulate": ["hospital", "--out", "made"],
    "compare": ["hospital", "--codecs", "int8", "--out", "made"],
    "run": ["hospital"],
    "import-base": ["model.gguf", "made"],
    "audit report": ["run"],
    "audit attack": ["run"],
    "audit canaries": ["run"],
    "server enrol": ["site.pub"],
    "server revoke": ["berlin"],
    "server start": [],
    "server cancel": ["first"],
    "server status": [],
    "server metrics": ["--port", "1"],
    "client sign-policy": ["."],
    "client check": ["."],
    "client start": ["."],
    "client metrics": ["."],
    "device probe": ["--out", "edge.json"],
    "lighten": ["RUN", "--target", "size=20x"],
    "export-onnx": ["RELEASE", "model.onnx"],
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder of what the base lock installs, and ourselves: all that a Python that is pointed at it can import."""
    folder = tmp_path_factory.mktemp("base")
    for name in versions("audit"):
        found = metadata.distribution(name)
        for top in {file.parts[0] for file in found.files if file.parts[0] != ".."}:
            (folder / top).symlink_to(found.locate_file(top))
    (folder / "fedglm").symlink_to(ROOT / ".types" / "fedglm")
    return folder


@pytest.fixture
def on_the_base(base, tmp_path):
    def run(*arguments):
        command = [sys.executable, "-S", "-c", "from fedglm.cli.main import main; main()", *map(str, arguments)]
        env = os.environ | {"PYTHONPATH": str(base)}
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=tmp_path, env=env)

    return run


def commands(group, path=""):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{path}{name} ")
        else:
            yield f"{path}{name}"


def test_each_command_of_the_table_exists():
    assert set(NEEDS) <= set(commands(get_command(app)))
    assert set(ARGUMENTS) == set(NEEDS)


@pytest.mark.parametrize("command", NEEDS)
def test_a_missing_extra_is_named_before_any_work(command, fedglm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    missing = "onnxruntime" if NEEDS[command] == "edge" else "numba"
    monkeypatch.setitem(sys.modules, missing, None)  # as where it is not installed
    line = fedglm(*command.split(), *ARGUMENTS[command]).line()
    assert line == (f"fedglm: not installed: {missing}; this command needs pip install 'fedglm[{NEEDS[command]}]'")
    assert not list(tmp_path.iterdir())


def test_each_module_of_an_extra_is_asked_for(fedglm, tmp_path, monkeypatch):
    for module in MODULES["server"]:
        monkeypatch.setitem(sys.modules, module, None)
    line = fedglm("simulate", "hospital", "--out", tmp_path / "made").line()
    assert line.startswith(f"fedglm: not installed: {', '.join(MODULES['server'])};")


def test_only_the_engine_ray_asks_for_ray(fedglm, tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    line = fedglm("simulate", tiny, "--engine", "ray", "--out", tmp_path / "made").line()
    assert line == "fedglm: engine ray: Ray is not installed: pip install 'fedglm[simulation]'"
    assert not (tmp_path / "made").exists()


def test_built_in_tables_name_what_they_need(monkeypatch):
    from fedglm.autoglm.data.bundled import BUNDLES
    from fedglm.autoglm.errors import DataError

    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r"pip install 'fedglm\[server\]'"):
        BUNDLES["digits"](None)


def test_the_base_says_of_records_what_the_whole_says(on_the_base, fedglm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    site = custody(tmp_path / "site" / "custody", private=True)
    charge = site.make_charge("run", 1, MECHANISM, "0" * 64, "1" * 64, purpose="update", attempt="2" * 32)
    site.charge(Release(charge, 100, 7, "topk-fp16", ["bytes"]))
    for command in (["verify", "site", "--json"], ["ledger", "site", "--json"], ["prove", "site", "--entry", "1"]):
        done, whole = on_the_base("audit", *command), fedglm("audit", *command)
        assert (done.returncode, done.stderr) == (whole.code, "")
        assert json.loads(done.stdout) == json.loads(whole.out)


@pytest.mark.parametrize(
    "command", [["watch", "x"], ["server", "stop", "-C", "x"], ["client", "stop", "x"], ["client", "status", "x"]]
)
def test_commands_without_an_extra_run_on_the_base(command, on_the_base):
    done = on_the_base(*command)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr  # there is no x


def test_on_the_base_a_simulation_names_its_extra(on_the_base, tmp_path):
    done = on_the_base("simulate", "hospital")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert done.stderr.endswith("pip install 'fedglm[simulation]'\n")
    assert not list(tmp_path.iterdir())
    assert on_the_base("simulate", "--help").returncode == 0
