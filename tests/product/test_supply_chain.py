"""What is installed: all of it pinned by version and hash, once, and no more than a role needs; and the list of it."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
from lock_files import EXAMPLES, LOCKS, ROLES, TORCH, entries, make_wheel, options_of, versions
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from fedglm.cli.extras import MODULES

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = {role: () if role == "audit" else (role,) for role in ROLES}
"""What each lock is made for."""
GROUPS = {"audit": ("audit",), "edge": ("edge",), "dev": ("sbom",)}
WITHOUT_TORCH = ("audit", "edge")


def asked_of_extra(extra):
    """What pyproject.toml asks for by an extra: distributions, without the extras that it includes."""
    named = map(Requirement, PYPROJECT["project"]["optional-dependencies"][extra])
    return [requirement for requirement in named if requirement.name != "fedglm"]


def included(extra):
    """An extra, and those that it includes."""
    names = [extra]
    for text in PYPROJECT["project"]["optional-dependencies"][extra]:
        requirement = Requirement(text)
        if requirement.name == "fedglm":
            names += [name for inner in sorted(requirement.extras) for name in included(inner)]
    return names


def direct(role):
    """What pyproject.toml asks for in that role."""
    wanted = [Requirement(text) for text in PYPROJECT["project"]["dependencies"]]
    for extra in EXTRAS[role]:
        wanted += [requirement for name in included(extra) for requirement in asked_of_extra(name)]
    for group in GROUPS.get(role, ()):
        wanted += [Requirement(text) for text in PYPROJECT["dependency-groups"][group]]
    return wanted


@cache
def asked_by(name, extras):
    """What an installed distribution asks for here, with a set of its extras."""
    found = map(Requirement, metadata.requires(name) or ())
    every = ("", *extras)
    return [each for each in found if each.marker is None or any(each.marker.evaluate({"extra": e}) for e in every)]


def test_locks_are_the_only_pins():
    assert {path.stem for path in LOCKS.iterdir()} == {*ROLES, TORCH, EXAMPLES}
    assert not list(ROOT.glob("*constraint*"))
    assert not list(ROOT.glob("*requirement*"))


@pytest.mark.parametrize("lock", [*ROLES, TORCH, EXAMPLES])
def test_each_entry_has_a_version_and_hashes(lock):
    assert options_of(lock) == ["--only-binary :all:"], "no index, and nothing that is built from source"
    for entry in entries(lock):
        assert entry.hashes, entry.text
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", digest) for digest in entry.hashes), entry.text


@pytest.mark.parametrize("role", ROLES)
def test_a_lock_is_complete(role):
    torch = {} if role in WITHOUT_TORCH else versions(TORCH)
    pinned = versions(role) | torch
    queue, seen = [("pyproject.toml", requirement) for requirement in direct(role)], set()
    while queue:
        who, requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        if role == "audit" and name == "torch":  # what opacus asks for, and its analysis does not use
            continue
        assert name in pinned, f"{who} asks for {requirement}: make lock"
        assert requirement.specifier.contains(pinned[name], prereleases=True), f"{who} asks for {requirement}"
        key = (name, frozenset(requirement.extras))
        if key not in seen:
            seen.add(key)
            queue += [(name, further) for further in asked_by(name, frozenset(requirement.extras))]
    assert {name for name, _ in seen} == set(pinned), "nothing is pinned that nothing asks for"


def test_tests_run_with_what_is_pinned():
    installed = {canonicalize_name(found.metadata["Name"]): found.version for found in metadata.distributions()}
    pinned = versions("dev") | versions(TORCH)
    assert {name: installed.get(name) for name in pinned} == pinned


def test_the_locks_agree():
    of_all = {}
    for entry in entries("dev"):
        of_all.setdefault(entry.name, []).append(entry)
    for role in ROLES:
        for entry in entries(role):
            # What dev needs everywhere, a role may need on some platforms alone.
            same = next(each for each in of_all[entry.name] if str(each.marker) in (str(entry.marker), "None"))
            assert (same.version, same.hashes) == (entry.version, entry.hashes), f"{role}: {entry.name}"


def test_roles_get_no_more_than_they_need():
    node, audit, edge, server, light = (set(versions(role)) for role in ("node", "audit", "edge", "server", "light"))
    assert not node & {"ray", "matplotlib", "scikit-learn", "pytest", "cyclonedx-bom"}
    assert not (audit | edge) & {"torch", "flwr", "transformers", "numba"}
    assert not (node | server) & {"onnx", "onnxruntime", "gguf"}
    assert "ray" not in light
    assert audit < node < server < light < set(versions("dev"))
    assert edge < light | {"setuptools"}
    everything = {entry.name for role in ROLES for entry in entries(role)}
    assert not [name for name in everything if name.startswith(("nvidia", "cuda", "triton"))]
    assert "torch" not in everything, "its CPU build has a lock of its own"


def test_torch_is_pinned_as_its_cpu_build():
    (pin,) = [text for text in PYPROJECT["tool"]["uv"]["constraint-dependencies"] if text.startswith("torch")]
    by_version = {entry.version: entry for entry in entries(TORCH)}
    public = Requirement(pin)
    assert all(public.specifier.contains(version) for version in by_version)
    linux = by_version[f"{next(iter(public.specifier)).version}+cpu"]
    assert len(linux.hashes) >= 2 * 4, "CPython 3.11 to 3.14 on x86_64 and arm64"
    # `make lock` is told what torch asks for, because PyPI's build of the same version asks for CUDA.
    (told,) = [table for table in PYPROJECT["tool"]["uv"]["dependency-metadata"] if table["name"] == "torch"]
    assert {str(Requirement(text)) for text in told["requires-dist"]} == {str(real) for real in asked_by("torch", ())}


def test_extras_name_the_modules_that_they_bring():
    brings = metadata.packages_distributions()
    for extra, modules in MODULES.items():
        wanted = {canonicalize_name(each.name) for name in included(extra) for each in asked_of_extra(name)}
        # Ray comes by an extra of Flower's.
        found = {canonicalize_name(brings[module][0]) for module in modules if module != "ray"}
        assert found == wanted


def test_all_that_installs_asks_for_hashes():
    for name in ("Makefile", "docs/deploy/Containerfile"):
        text = (ROOT / name).read_text().replace("\\\n", " ")
        commands = [part for line in text.splitlines() for part in re.split(r"&&|\|\|", line) if "pip install" in part]
        assert commands
        for command in commands:
            # Ourselves, with what is installed already.
            ours = {"--no-deps", "--no-build-isolation"} <= set(command.split())
            assert "--require-hashes" in command or ours, f"{name}: {command}"


def sbom(environment, *options):
    command = [Path(sys.executable).with_name("cyclonedx-py"), "environment", "--output-reproducible", *options]
    command += ["--pyproject", ROOT / "pyproject.toml", environment]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True, timeout=120)
    return done.stdout


@pytest.mark.slow
def test_the_bill_of_materials_is_valid_and_names_what_is_there(tmp_path):
    from cyclonedx.schema import SchemaVersion  # here, for the validator takes seconds to import
    from cyclonedx.validation.json import JsonStrictValidator

    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (packages,) = environment.glob("lib/python3*/site-packages")
    wheel = make_wheel(tmp_path, "harmless", "1.0", **{"License-Expression": "MIT", "Requires-Dist": "companion"})
    other = make_wheel(tmp_path, "companion", "2.5")
    for path in (wheel, other):
        shutil.unpack_archive(path, packages, "zip")
    settings = [f"BIN={Path(sys.executable).parent}", f"ENVIRONMENT={environment}"]
    command = ["make", "--silent", "--assume-old=.venv/.installed", "sbom", *settings]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, cwd=ROOT)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(done.stdout) is None
    bill = json.loads(done.stdout)
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert (bill["metadata"]["component"]["name"], bill["metadata"]["component"]["version"]) == ("fedglm", "0.1.0")
    listed = {component["name"]: component for component in bill["components"]}
    assert {name: component["purl"] for name, component in listed.items()} == {
        "harmless": "pkg:pypi/harmless@1.0",
        "companion": "pkg:pypi/companion@2.5",
    }
    assert listed["harmless"]["licenses"][0]["license"]["id"] == "MIT"
    edges = {edge["ref"]: edge.get("dependsOn", []) for edge in bill["dependencies"]}
    assert edges[listed["harmless"]["bom-ref"]] == [listed["companion"]["bom-ref"]]


def test_the_bill_of_this_environment_is_the_same_each_time_and_holds_what_is_pinned():
    once, again = sbom(sys.prefix, "--no-validate"), sbom(sys.prefix, "--no-validate")
    assert once == again
    listed = {canonicalize_name(part["name"]): part["version"] for part in json.loads(once)["components"]}
    pinned = versions("dev") | versions(TORCH)
    assert {name: listed.get(name) for name in pinned} == pinned
