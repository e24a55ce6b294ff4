"""A site's node in half a gigabyte, which the kernel keeps to."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

MEMORY = Path("/sys/fs/cgroup/memory")  # version 1
SCRIPT = Path(__file__).parents[3] / "benchmarks" / "node_memory.py"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(
        not (os.geteuid() == 0 and (MEMORY / "cgroup.procs").exists() and os.access(MEMORY, os.W_OK)),
        reason="needs the right to make memory control groups",
    ),
]


@pytest.mark.parametrize("privacy", [(), ("--epsilon", "8")], ids=["without noise", "with noise"])
def test_a_node_trains_in_512_megabytes_on_one_core(privacy):
    words = [sys.executable, SCRIPT, "--rounds", "2", "--limit", "512", *privacy]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (own,) = re.findall(r"whole node .* (\d+) MiB\n", done.stdout)
    assert 100 < int(own) < 470, "MiB that no file stands behind"
