"""A release validated in a process of its own: whatever becomes of the process, there is a result, in time."""

import subprocess
import sys
import time

import psutil
import pytest
from checked_releases import write_checked
from light_releases import trust

from fedglm.inference.release.manifest import MANIFEST, hash_bytes
from fedglm.inference.release.trust import Trust
from fedglm.inference.validation.isolated import validate_in_process
from fedglm.inference.validation.validation import Check, conclude
from fedglm.privacy.keys.signing import SigningKey

pytestmark = pytest.mark.usefixtures("unsynced")


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    folder = tmp_path_factory.mktemp("release") / "light"
    write_checked(folder)
    return folder


def manifest_of(release):
    return hash_bytes((release / MANIFEST).read_bytes())


def validate(release, *, limit_s=60.0, trusted=None):
    return validate_in_process(release, trust=trusted or trust(), manifest=manifest_of(release), limit_s=limit_s)


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Puts a shell script in the place of Python."""

    def put(script):
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))

    return put


@pytest.mark.slow  # tests/client/light/test_validation.py has one for every day
def test_a_whole_release_passes_with_its_figures(release):
    made = validate(release)
    assert made.passed, made.checks
    assert made.first_failure is None
    assert made.verified
    assert {check.name for check in made.checks} >= {"signature and hashes", "exact logits", "fast tokens"}
    assert made.use.decode.n >= 1
    assert made.use.peak_bytes > 25e6


def test_one_that_nobody_trusted_signed_is_not_run(release):
    made = validate(release, trusted=Trust.in_keys([SigningKey.generate().public]))
    assert made.first_failure.startswith("signature and hashes: the release is signed by")
    assert (made.verified, made.use) == (False, None)


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("kill -SEGV $$", "it was ended by SIGSEGV"),
        ("echo '/home/ann/secret: no' >&2; exit 3", "it ended with code 3"),
        ("echo nonsense", "it told nothing that can be read"),
        ("exit 0", "it told nothing that can be read"),
    ],
)
def test_a_process_that_fails_is_a_failed_check_and_names_no_path(release, program, script, found):
    program(script)
    made = validate(release)
    assert not made.passed
    assert made.first_failure == f"process: {found}"
    assert made.manifest_sha256 == manifest_of(release)
    assert not made.verified
    assert "ann" not in made.model_dump_json()


def test_what_was_said_of_another_release_is_not_taken(release, program, tmp_path):
    good = conclude(manifest_of(release), [Check(name="x", passed=True, detail="")], runtime="1", threads=1)
    (tmp_path / "made.json").write_text(good.model_dump_json())
    program(f"cat {tmp_path}/made.json")
    assert validate(release).passed
    made = validate_in_process(release, trust=trust(), manifest="a" * 43, limit_s=60.0)
    assert made.first_failure == "process: it validated another release"
    assert made.manifest_sha256 == "a" * 43


def test_a_process_that_takes_too_long_is_ended_with_all_that_it_started(release, program, tmp_path):
    program(f"sleep 1000 & echo $! > {tmp_path}/pid; wait")
    began = time.monotonic()
    made = validate(release, limit_s=0.5)
    assert 0.5 <= time.monotonic() - began < 20
    assert made.first_failure == "process: it took more than 0.5 s, and was ended"
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 20
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_validation_is_read_and_signed_without_onnxruntime():
    """As on the server, and where a fleet's files are read."""
    code = """
import sys
for name in ("onnxruntime", "torch", "transformers", "safetensors", "tokenizers"):
    sys.modules[name] = None  # an import would fail
from fedglm.inference.release.trust import Trust
from fedglm.inference.validation.validation import Check, conclude, read_validation, sign_validation
from fedglm.privacy.keys.signing import SigningKey
key = SigningKey.generate()
made = conclude("a" * 43, [Check(name="x", passed=True, detail="")], runtime="1", threads=1)
print(read_validation(sign_validation(made, key), trust=Trust.in_keys([key.public])).validation == made)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
