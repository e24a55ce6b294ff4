"""The kernels of quantized Linears add exactly: no pair of products saturates in 16 bits, with VNNI or without."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import integer_overflow
import numpy as np
import pytest

TOLERANCE = integer_overflow.COLUMNS * 2.0**-24
"""The sums are exact in integers; a float32 sum of the blocks is rounded less often than there are columns."""


def saturating(codes, x):
    """The sum of products of bytes as ``vpmaddubsw`` takes it: unsigned weights, pairs in 16 bits."""
    products = (codes.astype(np.int64) + 128) * np.rint(127 * x).astype(np.int64)
    pairs = np.clip(products[0::2] + products[1::2], -(2**15), 2**15 - 1)
    return pairs.sum() - 128 * np.rint(127 * x).astype(np.int64).sum()


def test_sums_are_exact_on_this_processor():
    errors = integer_overflow.relative_errors()
    assert {name: error for name, error in errors.items() if error > TOLERANCE} == {}


def test_the_inputs_would_show_saturation():
    codes, x = np.full(integer_overflow.COLUMNS, 127), np.ones(integer_overflow.COLUMNS)
    exact = 127 * 127 * integer_overflow.COLUMNS
    assert abs(saturating(codes, x) / exact - 1) > 0.5


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("qemu-x86_64") is None, reason="emulates a processor: install qemu-user")
@pytest.mark.parametrize(("processor", "saturates"), [("Haswell", True), ("Nehalem", None)])
def test_sums_are_exact_on_a_processor_without_vnni(processor, saturates):
    script = Path(integer_overflow.__file__)
    command = ["qemu-x86_64", "-cpu", processor, sys.executable, str(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert {name: error for name, error in found["ours"].items() if error > TOLERANCE} == {}
    if saturates:
        assert found["dynamic"] > 0.1, "the emulated processor is no proof: what saturates without VNNI did not"
