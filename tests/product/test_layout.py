"""How the repository hangs together: the layers and their imports, the links for type checkers, sizes and names."""

import subprocess
import sys
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest
from source_tree import API, ROOT, ROOTS, SETTINGS, SOURCES, folder_of, imported, imported_sources, root_of

from fedglm.core.code_identity import PACKAGES

STOREYS = (
    *("cli", "audit", "simulations", "scenarios", "client", "server", "protocol", "autoglm", "reports", "inference"),
    *("compression", "privacy", "run_folder", "core"),
)
"""From the top to the ground: a root imports only those that stand after it."""
ON_THE_GROUND = {
    "autoglm": {"inference", "compression", "run_folder"},
    "inference": {"privacy"},
    "compression": set(),
    "privacy": set(),
    "run_folder": set(),
}
"""These know `core` and little else, so that each can be taken out and used by itself: a light model is made by what
uses it, and trusts whom a signature names."""
MAY_USE_FLOWER = {"client", "server", "protocol", "simulations"}
WITHOUT_TORCH = (
    "audit/records",
    "audit/bundle",
    "audit/verify",
    "audit/report",
    "inference",
    "run_folder",
    "compression",
)
MAX_FILES = 16
"""In a folder: more are two rooms."""


def may_import(root):
    if root in ON_THE_GROUND:
        return {root, "core", *ON_THE_GROUND[root]}
    allowed = {root, *STOREYS[STOREYS.index(root) :]}
    return allowed - {"server"} if root == "client" else allowed


def test_every_root_has_its_storey_and_sources():
    assert {root_of(path) for path in SOURCES} == set(ROOTS) <= set(STOREYS)


@pytest.mark.parametrize("root", ROOTS)
def test_imports_run_one_way(root):
    wrong = [
        f"{path.relative_to(ROOT)} imports {other.relative_to(ROOT)}"
        for path in (ROOT / root).rglob("*.py")
        for other in imported_sources(path)
        if root_of(other) not in may_import(root)
    ]
    assert wrong == []


def rooms_below(folder):
    """The files and folders in a folder, each with those of them that it imports from."""

    def room(path):
        return path.relative_to(folder).parts[0] if path.is_relative_to(folder) else None

    tied = {}
    for path in SOURCES:
        if (one := room(path)) is not None:
            others = {room(other) for other in imported_sources(path)}
            tied.setdefault(one, set()).update(others - {None, one})
    return tied


@pytest.mark.parametrize("folder", sorted({path.parent.relative_to(ROOT) for path in SOURCES} | {Path()}), ids=str)
def test_no_rooms_import_each_other_in_a_circle(folder):
    try:
        TopologicalSorter(rooms_below(ROOT / folder)).prepare()
    except CycleError as exc:
        circle = exc.args[1]
        pytest.fail(f"in {folder}: " + ", ".join(f"{one} is imported by {other}" for one, other in pairwise(circle)))


def test_a_folder_holds_few_files_and_none_is_called_like_a_folder_beside_it():
    count = Counter(path.parent for path in SOURCES)
    assert {str(folder): files for folder, files in count.items() if files > MAX_FILES} == {}
    assert [path for path in SOURCES if path.with_suffix("").is_dir()] == []


def test_parts_are_imported_by_their_full_name():
    wrong = [f"{path.relative_to(ROOT)}: {name}" for path in SOURCES for name in imported(path)
             if name.split(".")[0] in ROOTS]  # fmt: skip
    assert wrong == []


def users(*modules):
    """Sources that import one of these, anywhere in them."""
    return {path for path in SOURCES if {name.split(".")[0] for name in imported(path)} & set(modules)}


def test_flower_stays_with_those_who_speak_it():
    assert {root_of(path) for path in users("flwr")} <= MAY_USE_FLOWER


def test_what_audits_shows_and_codes_is_made_without_torch():
    heavy = users("torch", "transformers", "flwr", "sklearn", "ray")
    assert [path for path in heavy for part in WITHOUT_TORCH if path.is_relative_to(ROOT / part)] == []


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


def test_the_public_api_has_the_one_init_file():
    # With one in compression/, the repository's root on sys.path would shadow Python 3.14's stdlib package.
    assert [path for part in (*ROOTS, "tests", "examples") for path in (ROOT / part).rglob("__init__.py")] == []
    assert not (ROOT / "__init__.py").exists()
    assert {path.name for path in API.parent.iterdir()} - {"__pycache__"} == {API.name, "py.typed"}


def test_no_module_is_named_like_one_of_the_standard_library():
    assert [path.name for path in SOURCES if path.stem in sys.stdlib_module_names] == []


def test_files_stay_readable():
    found = [*SOURCES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in found}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def folders():
    """All folders that hold sources, as paths from the root; tests, examples and what is built are none."""
    others = {"fedglm", "tests", "benchmarks", "examples", "docs", "build"}
    holding = {path.parent.relative_to(ROOT) for path in ROOT.glob("[!.]*/**/*.py")}
    return {folder for folder in holding if folder.parts[0] not in others}


def test_packages_are_the_folders():
    # One that is not listed is not in the wheel, while an editable install still imports it.
    packages = {".".join(("fedglm", *folder.parts)) for folder in folders()} | {"fedglm"}
    assert sorted(SETTINGS["tool"]["setuptools"]["packages"]) == sorted(packages)


def test_every_root_is_mapped_typed_and_hashed():
    assert {folder.parts[0] for folder in folders()} == set(ROOTS)
    assert SETTINGS["tool"]["setuptools"]["package-dir"] == {f"fedglm.{root}": root for root in ROOTS}
    assert SETTINGS["tool"]["mypy"]["packages"] == ["fedglm"]
    assert sorted(PACKAGES) == ROOTS, "code outside these would not be in the hash that nodes compare"


def test_links_for_type_checkers_resolve():
    links = {path.name: path for path in (ROOT / ".types" / "fedglm").iterdir() if path.name != "__pycache__"}
    assert links.keys() == {*ROOTS, API.name}
    for part, link in links.items():
        assert link.is_symlink()
        assert not Path(link.readlink()).is_absolute()
        assert link.resolve() == (API if part == API.name else ROOT / part)


def test_the_wheel_takes_what_is_no_python():
    data = SETTINGS["tool"]["setuptools"]["package-data"]
    for part in (*ROOTS, API.parent.name):
        others = {
            path
            for path in (ROOT / part).rglob("*")
            if path.is_file() and path.suffix not in (".py", ".pyc", ".nbi", ".nbc") and "__pycache__" not in path.parts
        }
        packed = {
            path
            for package, patterns in data.items()
            for pattern in patterns
            for path in folder_of(package).glob(pattern)
        }
        assert others <= packed
