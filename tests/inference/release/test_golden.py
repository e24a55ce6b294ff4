"""A release that was written once stays readable, and is written so again: FEDGLM_REWRITE_GOLDEN=1 rewrites it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from light_models import make_model
from light_releases import KEY, read_files, trust, write

from fedglm.inference.release.manifest import WEIGHTS
from fedglm.inference.release.reader import open_release
from fedglm.inference.weights.container import read_index
from fedglm.inference.weights.model import same_tensors

GOLDEN = Path(__file__).parents[2] / "golden" / "light_release"

pytestmark = pytest.mark.usefixtures("unsynced")


def test_the_golden_release_is_read_and_written_again(tmp_path):
    write(tmp_path / "light")
    if os.environ.get("FEDGLM_REWRITE_GOLDEN") == "1":
        shutil.rmtree(GOLDEN, ignore_errors=True)
        shutil.copytree(tmp_path / "light", GOLDEN)
    release = open_release(GOLDEN, trust=trust())
    assert same_tensors(release.model.tensors, make_model().tensors)
    assert release.signer == KEY.public
    old, new = read_files(GOLDEN), read_files(tmp_path / "light")
    # Compressors differ between versions of zlib and XZ; all other bytes are the same on every machine.
    for name in ("config.json", "task.json"):
        assert new[name] == old[name]
    (index, data), (golden_index, golden_data) = read_index(new[WEIGHTS]), read_index(old[WEIGHTS])
    assert index == golden_index
    assert bytes(data) == bytes(golden_data), "the format changed: old releases must stay readable; then rewrite"


def test_a_release_is_opened_without_torch_or_compiled_loops():
    code = f"""
import sys
from pathlib import Path
from fedglm.inference.release.reader import open_release
from fedglm.inference.release.trust import Trust
from fedglm.privacy.keys.signing import PublicKey
open_release(Path({str(GOLDEN)!r}), trust=Trust.in_keys([PublicKey.from_hex({KEY.public.hex!r})]))
print(sorted({{name.split(".")[0] for name in sys.modules}} & {{"torch", "transformers", "numba", "onnx", "flwr"}}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
