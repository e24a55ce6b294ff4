"""How the repository hangs together: the layers and their imports, the links for type checkers, sizes and names."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from source_tree import ROOT, ROOTS, SETTINGS, SOURCES, root_of

from fedglm.core.code_identity import PACKAGES

BASE = {"autoglm", "compression", "privacy"}
MAY_IMPORT = {
    "autoglm": set(),
    "compression": set(),
    "privacy": set(),
    "client": BASE,
    "server": BASE,
    "simulations": {*BASE, "client", "server"},
    "cli": {*BASE, "client", "server", "simulations"},
}
MAY_USE_FLOWER = {"client", "server", "simulations"}


def imported(path):
    """Dotted names of all modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from ([f"fedglm.{a.name}" for a in node.names] if node.module == "fedglm" else [node.module])


def test_every_part_has_sources():
    assert {root_of(path) for path in SOURCES} == set(ROOTS) == MAY_IMPORT.keys()


@pytest.mark.parametrize("part", ROOTS)
def test_imports_run_one_way(part):
    allowed = {part, *MAY_IMPORT[part]}
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in (ROOT / part).rglob("*.py")
        for name in imported(path)
        if name.split(".")[0] == "fedglm" and name.split(".")[1] not in allowed
    ]
    assert wrong == []


def test_parts_are_imported_by_their_full_name():
    wrong = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in SOURCES
        for name in imported(path)
        if name.split(".")[0] in ROOTS
    ]
    assert wrong == []


def test_flower_stays_in_client_server_and_simulations():
    users = {root_of(path) for path in SOURCES if "flwr" in {name.split(".")[0] for name in imported(path)}}
    assert users <= MAY_USE_FLOWER


def test_compression_imports_no_torch():
    heavy = {"torch", "transformers", "flwr", "sklearn", "ray"}
    assert not {name.split(".")[0] for path in (ROOT / "compression").rglob("*.py") for name in imported(path)} & heavy


def test_decoding_needs_no_torch_at_run_time():
    code = """
import sys
import numpy as np
from fedglm.compression.codec import codec_names, decode, make_codec
from fedglm.compression.downlink import ModelVersions, Replica
vector = np.linspace(-1, 1, 100, dtype=np.float32)
for name in codec_names():
    decode(make_codec(name).encode(vector), size=100).to_dense()
versions = ModelVersions(vector, "0" * 64, make_codec("int8"))
Replica(0, versions.vector, "0" * 64).apply(versions.snapshot())
print(sorted({name.split(".")[0] for name in sys.modules} & {"torch", "transformers", "flwr", "sklearn", "ray"}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_the_command_answers_before_it_imports_torch():
    code = "import sys, fedglm.cli.main; print(sorted({'torch', 'flwr', 'transformers', 'numpy'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_no_init_file_anywhere():
    # With one in compression/, the repository's root on sys.path would shadow Python 3.14's stdlib package.
    assert [path for part in (*ROOTS, "tests") for path in (ROOT / part).rglob("__init__.py")] == []
    assert not (ROOT / "__init__.py").exists()


def test_no_module_is_named_like_one_of_the_standard_library():
    assert [path.name for path in SOURCES if path.stem in sys.stdlib_module_names] == []


def test_files_stay_readable():
    found = [*SOURCES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in found}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def folders():
    """All folders that hold sources, as paths from the root; tests, benchmarks and what is built are none."""
    others = {"tests", "benchmarks", "docs", "build"}
    holding = {path.parent.relative_to(ROOT) for path in ROOT.glob("[!.]*/**/*.py")}
    return {folder for folder in holding if folder.parts[0] not in others}


def test_packages_are_the_folders():
    # One that is not listed is not in the wheel, while an editable install still imports it.
    assert sorted(SETTINGS["tool"]["setuptools"]["packages"]) == sorted(
        ".".join(("fedglm", *folder.parts)) for folder in folders()
    )


def test_every_root_is_mapped_typed_and_hashed():
    assert {folder.parts[0] for folder in folders()} == set(ROOTS)
    assert SETTINGS["tool"]["setuptools"]["package-dir"] == {f"fedglm.{root}": root for root in ROOTS}
    assert sorted(SETTINGS["tool"]["mypy"]["packages"]) == [f"fedglm.{root}" for root in ROOTS]
    assert sorted(PACKAGES) == ROOTS, "code outside these would not be in the hash that nodes compare"


def test_links_for_type_checkers_resolve():
    links = {path.name: path for path in (ROOT / ".types" / "fedglm").iterdir()}
    assert links.keys() == set(ROOTS)
    for part, link in links.items():
        assert link.is_symlink()
        assert not Path(link.readlink()).is_absolute()
        assert link.resolve() == ROOT / part


def test_the_wheel_takes_what_is_no_python():
    data = SETTINGS["tool"]["setuptools"]["package-data"]
    for part in ROOTS:
        others = {
            path
            for path in (ROOT / part).rglob("*")
            if path.is_file() and path.suffix not in (".py", ".pyc", ".nbi", ".nbc") and "__pycache__" not in path.parts
        }
        packed = {
            path
            for package, patterns in data.items()
            for pattern in patterns
            for path in ROOT.joinpath(*package.split(".")[1:]).glob(pattern)
        }
        assert others <= packed
