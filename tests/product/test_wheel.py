"""The wheel alone, without this checkout: what it lacks would be missed by its users first."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from command_line import write_tiny
from lock_files import LOCKS, versions
from packaging.utils import canonicalize_name
from source_tree import API, ROOT, SETTINGS, SOURCES, folder_of

from fedglm.core.code_identity import code_sha256


def data_files():
    """What the wheel takes besides sources."""
    for package, patterns in SETTINGS["tool"]["setuptools"]["package-data"].items():
        for pattern in patterns:
            yield from folder_of(package).glob(pattern)


PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
INSTALL = ["install", "--quiet", "--no-deps", "--no-index", "--no-compile"]  # what is imported is compiled then


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Its path, in a folder of its own."""
    home = tmp_path_factory.mktemp("wheel")
    # From a copy, so that no build/ of an earlier day is packed: setuptools would take what lies in it.
    for path in [API, *SOURCES, *(ROOT / name for name in ("pyproject.toml", "README.md", "LICENSE")), *data_files()]:
        target = home / "source" / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    # As pip calls it; pip itself would take as long again.
    build = f"import setuptools.build_meta as backend; backend.build_wheel({str(home)!r})"
    command = [sys.executable, "-c", build]
    subprocess.run(command, check=True, cwd=home / "source", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    (path,) = home.glob("fedglm-*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel):
    """Its command, in an environment that holds nothing else of fedglm; dependencies are those of this environment."""
    home = wheel.parent
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home / "venv"], check=True)
    python = home / "venv" / "bin" / "python"
    subprocess.run([*PIP, "--python", python, *INSTALL, wheel], check=True)
    libraries = sysconfig.get_path("purelib", vars={"base": str(home / "venv")})
    # A line of a .pth file is a folder to look in; the .pth files in that folder, an editable fedglm's, are not read.
    with open(os.path.join(libraries, "dependencies.pth"), "w") as file:
        file.write(sysconfig.get_path("purelib") + "\n")
    return home / "venv" / "bin" / "fedglm"


@pytest.fixture(scope="module")
def edge(wheel, tmp_path_factory):
    """The Python of an environment for a light model in use: its lock, and the wheel with the extra `edge`."""
    folder = tmp_path_factory.mktemp("edge") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    pip = [*PIP, "--python", python, "install", "--quiet"]
    subprocess.run([*pip, "--require-hashes", "-r", LOCKS / "edge.txt"], check=True)
    # From nowhere: what the extra asks for must be there already.
    subprocess.run([*pip, "--no-index", f"fedglm[edge] @ {wheel.as_uri()}"], check=True)
    return python


def run(installed, *arguments, folder):
    done = subprocess.run([installed, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_source_is_packed(installed):
    code = "import fedglm.core.code_identity as c; print(c.__file__); print(c.code_sha256())"
    python = installed.with_name("python")
    done = subprocess.run([python, "-c", code], cwd=installed.parent, capture_output=True, text=True, check=True)
    file, sha256 = done.stdout.splitlines()
    assert file.startswith(str(installed.parents[1]))
    assert sha256 == code_sha256()
    packed = {path.name for path in Path(file).parents[1].rglob("*") if path.suffix not in (".py", ".pyc")}
    assert {path.name for path in data_files()} <= packed


def test_it_runs_from_another_folder(installed, tmp_path):
    assert "hospital" in run(installed, "simulate", "--list", folder=tmp_path)


@pytest.mark.slow
def test_a_federation_runs_and_is_verified(installed, tmp_path):
    scenario = write_tiny(tmp_path)
    arguments = ["--epsilon", "8", "--out", "run", "--json"]
    summary = json.loads(run(installed, "simulate", str(scenario), *arguments, folder=tmp_path))
    assert summary["rounds"] == 3
    assert (tmp_path / "run" / "report.html").is_file()
    assert "nothing is wrong" in run(installed, "audit", "verify", "run", folder=tmp_path)
    run(installed, "audit", "report", "run", "--profile", "hipaa", folder=tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_light_model_needs_neither_torch_nor_flower(edge, tmp_path):
    listed = json.loads(subprocess.check_output([*PIP, "--python", edge, "list", "--format", "json"]))
    assert {canonicalize_name(each["name"]) for each in listed} == {*versions("edge"), "fedglm"}
    assert not {"torch", "flwr", "transformers"} & {*versions("edge")}
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in (ROOT / "inference").rglob("*.py")]
    code = f"""
import importlib, sys, fedglm
for module in {modules!r}:
    importlib.import_module(f"fedglm.{{module}}")
for name, (module, extra) in fedglm._PLACES.items():
    if extra in ("", "edge"):
        getattr(fedglm, name)
print(sorted({{"torch", "flwr", "transformers"}} & sys.modules.keys()))
"""
    done = subprocess.run([edge, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
    assert "simulate" in run(edge.with_name("fedglm"), "--help", folder=tmp_path)
