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
    "demo": ["--out", "made"],
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


EACH = """
import contextlib, io, json, sys
from fedglm.cli.main import main
found = []
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["fedglm", *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            main()
        except SystemExit as ended:
            code = ended.code
    found.append((code or 0, out.getvalue(), err.getvalue()))
print(json.dumps(found))
"""
"""Commands one after the other in one process, for imports are most of its time."""


@pytest.fixture(scope="module")
def on_the_base(base, tmp_path_factory):
    def run(*commands, cwd=None):
        """Exit code, output and errors of each command."""
        command = [sys.executable, "-S", "-c", EACH, json.dumps(commands)]
        env, cwd = os.environ | {"PYTHONPATH": str(base)}, cwd or tmp_path_factory.mktemp("empty")
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=cwd, env=env)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

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
    given = [["verify", "site", "--json"], ["ledger", "site", "--json"], ["prove", "site", "--entry", "1"]]
    found = on_the_base(*(["audit", *command] for command in given), cwd=tmp_path)
    for command, (code, out, err) in zip(given, found, strict=True):
        whole = fedglm("audit", *command)
        assert (code, err) == (whole.code, "")
        assert json.loads(out) == json.loads(whole.out)


WITHOUT_AN_EXTRA = [["watch", "x"], ["server", "stop", "-C", "x"], ["client", "stop", "x"], ["client", "status", "x"]]


@pytest.fixture(scope="module")
def said_on_the_base(on_the_base):
    """What each of these says, all in one process."""
    return on_the_base(*WITHOUT_AN_EXTRA)


@pytest.mark.parametrize("number", range(len(WITHOUT_AN_EXTRA)), ids=[" ".join(each) for each in WITHOUT_AN_EXTRA])
def test_commands_without_an_extra_run_on_the_base(number, said_on_the_base):
    code, _, err = said_on_the_base[number]
    assert (code, err.count("\n")) == (2, 1), err  # there is no x
    assert "not installed" not in err


def test_on_the_base_a_simulation_names_its_extra(on_the_base, tmp_path):
    (code, out, err), helped = on_the_base(["simulate", "hospital"], ["simulate", "--help"], cwd=tmp_path)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.endswith("pip install 'fedglm[simulation]'\n")
    assert not list(tmp_path.iterdir())
    assert helped[0] == 0
