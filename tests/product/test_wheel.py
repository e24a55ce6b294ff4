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
from source_tree import API, ROOT, SETTINGS, SOURCES, folder_of

from fedglm.core.code_identity import code_sha256


def data_files():
    """What the wheel takes besides sources."""
    for package, patterns in SETTINGS["tool"]["setuptools"]["package-data"].items():
        for pattern in patterns:
            yield from folder_of(package).glob(pattern)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Its command, in an environment that holds nothing else of fedglm; dependencies are those of this environment."""
    home = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    # From a copy, so that no build/ of an earlier day is packed: setuptools would take what lies in it.
    for path in [API, *SOURCES, *(ROOT / name for name in ("pyproject.toml", "README.md", "LICENSE")), *data_files()]:
        target = home / "source" / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    alone = ["--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "wheel", *alone, "--wheel-dir", home, home / "source"], check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home / "venv"], check=True)
    python = home / "venv" / "bin" / "python"
    (wheel,) = home.glob("fedglm-*.whl")
    subprocess.run([*pip, "--python", python, "install", "--no-deps", "--no-index", wheel], check=True)
    libraries = sysconfig.get_path("purelib", vars={"base": str(home / "venv")})
    # A line of a .pth file is a folder to look in; the .pth files in that folder, an editable fedglm's, are not read.
    with open(os.path.join(libraries, "dependencies.pth"), "w") as file:
        file.write(sysconfig.get_path("purelib") + "\n")
    return home / "venv" / "bin" / "fedglm"


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
