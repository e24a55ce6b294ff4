"""A package index, or whoever is on the way to it, hands out other files than those that were tested.

The impostor bears the name and version of a package that a node installs. What is installed runs with the site's keys
and records in reach, so that a pin by version alone would hand it both.
"""

import json
import shutil
import subprocess
import sys

import pytest
from lock_files import LOCKS, entries, make_wheel, sha256_of

VICTIM = next(entry for entry in entries("node") if entry.name == "iterators")  # one that any machine could take


def lock_of(folder, *lines):
    path = folder / "lock.txt"
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


PIP = """
import json, os, sys
from pip._internal.cli.main import main
from pip._internal.commands import install
for line in sys.stdin:
    if not (child := os.fork()):
        os.dup2(2, 1)
        os._exit(int(main(json.loads(line))))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""What `python -m pip` runs, in a process of its own each time, but for the imports, which are most of its time."""


@pytest.fixture(scope="module")
def install():
    """`pip install --require-hashes -r LOCK` of what lies in a folder alone; returns its exit code."""
    command = [sys.executable, "-c", PIP]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, **pipes) as pip:

        def act(lock, folder, target, *options):
            given = ["install", "--no-index", "--find-links", folder, "--target", target, "--no-cache-dir"]
            given += ["--disable-pip-version-check", "--require-hashes", "-r", lock, *options]
            pip.stdin.write(json.dumps(list(map(str, given))) + "\n")
            pip.stdin.flush()
            return int(pip.stdout.readline())

        yield act
        pip.stdin.close()


@pytest.fixture
def index(tmp_path):
    folder = tmp_path / "index"
    folder.mkdir()
    return folder


@pytest.fixture
def impostor(index):
    return make_wheel(index, VICTIM.name, VICTIM.version, "print('the site\\'s keys, please')")


def test_an_impostor_is_not_installed(install, impostor, index, tmp_path):
    target = tmp_path / "installed"
    assert install(lock_of(tmp_path, VICTIM.text), index, target) == 1
    assert not target.exists()
    # Its hash is all that stands in its way.
    own = lock_of(tmp_path, f"{VICTIM.name}=={VICTIM.version} --hash=sha256:{sha256_of(impostor)}")
    assert install(own, index, target, "--no-compile") == 0
    assert "keys, please" in (target / "iterators.py").read_text()


def test_a_node_takes_nothing_from_an_index_of_impostors(install, index, tmp_path):
    for entry in entries("node"):
        make_wheel(index, entry.name, entry.version)
    target = tmp_path / "installed"
    assert install(LOCKS / "node.txt", index, target, "--no-deps") == 1
    assert not target.exists()


@pytest.mark.parametrize("altered", ["the file", pytest.param("the lock", marks=pytest.mark.slow)])
def test_one_flipped_bit_is_found(install, altered, index, tmp_path):
    wheel = make_wheel(index, "harmless", "1.0", "answer = 42")
    digest = sha256_of(wheel)
    if altered == "the file":
        content = bytearray(wheel.read_bytes())
        content[content.index(b"42")] ^= 1
        wheel.write_bytes(content)
    else:
        digest = f"{int(digest, 16) ^ 1:064x}"
    lock = lock_of(tmp_path, f"harmless==1.0 --hash=sha256:{digest}")
    assert install(lock, index, tmp_path / "installed") == 1
    assert not (tmp_path / "installed").exists()


def test_nothing_comes_along_that_the_lock_does_not_name(install, index, tmp_path):
    wheel = make_wheel(index, "harmless", "1.0", **{"Requires-Dist": "stowaway"})
    make_wheel(index, "stowaway", "6.6")
    lock = lock_of(tmp_path, f"harmless==1.0 --hash=sha256:{sha256_of(wheel)}")
    assert install(lock, index, tmp_path / "installed") == 1
    assert not (tmp_path / "installed").exists()


def test_no_source_is_built_whose_build_would_fetch_what_it_likes(install, index, tmp_path):
    source = tmp_path / f"{VICTIM.name}-{VICTIM.version}"
    source.mkdir()
    (source / "setup.py").write_text("open(__file__ + '.ran', 'w').close()\nfrom setuptools import setup\nsetup()\n")
    (source / "PKG-INFO").write_text(f"Metadata-Version: 2.1\nName: {VICTIM.name}\nVersion: {VICTIM.version}\n")
    archive = shutil.make_archive(str(index / source.name), "gztar", tmp_path, source.name)
    lines = (LOCKS / "node.txt").read_text().splitlines()
    options = [line for line in lines if line.startswith("--only-binary")]
    pin = f"{VICTIM.name}=={VICTIM.version} --hash=sha256:{sha256_of(index / archive)}"
    assert install(lock_of(tmp_path, *options, pin), index, tmp_path / "installed") == 1
    assert not (tmp_path / "installed").exists()
