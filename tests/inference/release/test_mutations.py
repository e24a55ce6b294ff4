"""10,000 mutations of a release: none is opened under the signer's name, and none takes much memory, signed or not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

QUICK, SLOW = 120, 1000

PROGRAM = """
import json, resource, sys, tempfile, tracemalloc
from pathlib import Path
import numpy as np
from light_releases import make_small_model, read_files, rehash, trust, write, write_files
from fedglm.inference.errors import InferenceError
from fedglm.inference.release.reader import open_release
from fedglm.inference.release.trust import Trust
from fedglm.inference.weights.limits import Limits

seed, count = int(sys.argv[1]), int(sys.argv[2])
rng = np.random.default_rng(seed)
root = Path(tempfile.mkdtemp(dir=sys.argv[3]))
write(root / "light", model=make_small_model())
files = read_files(root / "light")
open_release(root / "light", trust=trust())
resource.setrlimit(resource.RLIMIT_AS, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + (1 << 32),) * 2)


def mutate(content):
    changed = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(0, len(changed) + 1))
        kind = rng.integers(0, 4)
        if kind == 0 and at < len(changed):
            changed[at] ^= int(rng.integers(1, 256))
        elif kind == 1:
            del changed[at : at + int(rng.integers(1, 40))]
        elif kind == 2:
            changed[at:at] = rng.bytes(int(rng.integers(1, 40)))
        else:
            changed[at : at + 8] = rng.choice([b"\\0" * 8, b"\\xff" * 8, b"9" * 8])
    return bytes(changed)


def change(files):
    name = str(rng.choice(sorted(files)))
    other = str(rng.choice(sorted(files)))
    kind = rng.integers(0, 8)
    if kind == 0 and name != other:
        return files | {name: files[other], other: files[name]}
    if kind == 1:
        return {each: content for each, content in files.items() if each != name}
    return files | {name: mutate(files[name])}


counts = {"refused": 0, "opened": 0, "unverified": 0}
tracemalloc.start()
limits = Limits(max_bytes=1 << 20, max_parameters=1 << 20)
for number in range(count):
    changed = change(files)
    if changed == files:
        continue
    write_files(root / "light", changed)
    try:
        open_release(root / "light", trust=trust(), limits=limits)
        counts["opened"] += 1
    except InferenceError as exc:
        assert len(str(exc)) < 1000 and "\\n" not in str(exc), exc
        counts["refused"] += 1
    # And with the hashes put right, opened by one who verifies nothing: a model or an error, in little memory.
    if "manifest.json" in changed and changed["manifest.json"] == files["manifest.json"]:
        write_files(root / "light", rehash(changed))
        try:
            open_release(root / "light", trust=Trust.unverified(), limits=limits)
            counts["unverified"] += 1
        except InferenceError as exc:
            assert len(str(exc)) < 1000 and "\\n" not in str(exc), exc
print(json.dumps(counts | {"peak": tracemalloc.get_traced_memory()[1]}))
"""


def run(seed, count, folder):
    support = Path(__file__).parents[2] / "support"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(seed), str(count), str(folder)],
        capture_output=True, text=True, check=False, env={"PYTHONPATH": str(support), "PATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def check(result):
    assert result["opened"] == 0
    assert result["refused"] > 100
    # The limits allow 2**20 parameters at 16 bytes, files of 2**20 bytes twice, and LZMA's 2**24.
    assert result["peak"] < 16 * 2**20 + 2 * 2**20 + 2**24


def test_mutations_are_refused(tmp_path):
    check(run(0, QUICK, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_ten_thousand_mutations_are_refused(seed, tmp_path):
    check(run(seed, SLOW, tmp_path))
