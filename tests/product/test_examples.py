"""The programs in examples/ run and come to what they say."""

import ast
import re
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from example_programs import EXAMPLES, flower_nodes, load
from flwr.app import Context, RecordDict

from fedglm.compression.codec import CodecError, make_codec
from fedglm.simulations.engines.inline_grid import RUN_ID, InlineGrid

PROGRAMS = sorted(EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_each_says_how_it_is_run_and_what_it_prints(program):
    said = ast.get_docstring(ast.parse(program.read_text()))
    assert re.search(r"^    pip install 'fedglm\[(node|simulation)\]'$", said, re.MULTILINE)
    assert f"    python examples/{program.name}" in said
    assert "\nprints " in said


def flower_app(tmp_path, capsys):
    """What the server prints."""
    app = load("flower_app")
    with InlineGrid(partial(flower_nodes, str(tmp_path)), app.NODES, workers=1) as grid:
        app.make_server_app()(grid, Context(RUN_ID, 0, {}, RecordDict(), {}))
    return capsys.readouterr().out


def check_flower_app(out):
    accuracy, dense, sent = re.search(r"accuracy ([\d.]+)%\n([\d,]+) bytes of float32, ([\d,]+) sent", out).groups()
    assert float(accuracy) > 88
    assert int(dense.replace(",", "")) / int(sent.replace(",", "")) > 90


def test_the_flower_app_learns_with_a_hundredth_of_the_bytes(tmp_path, capsys):
    check_flower_app(flower_app(tmp_path, capsys))


@pytest.mark.slow
def test_the_flower_app_runs_on_flowers_own_runtime():
    pytest.importorskip("ray")
    done = subprocess.run([sys.executable, EXAMPLES / "flower_app.py"], capture_output=True, text=True, check=True)
    check_flower_app(done.stdout)


def test_the_codec_keeps_to_the_protocol():
    module = load("own_codec")
    codec, vector = module.OneBit(), np.linspace(-1, 3, 13, dtype=np.float32)
    blob = codec.encode(vector)
    update = codec.decode(blob, 13)
    assert np.array_equal(np.sign(update.to_dense()), np.where(vector > 0, 1, -1))
    assert np.unique(np.abs(update.to_dense())) == pytest.approx([np.abs(vector).mean()])
    assert codec.encode(vector) == blob
    for wrong in (blob[:-1], blob + b"\0", bytes([*blob[:-1], blob[-1] ^ 1]), make_codec("int8").encode(vector)):
        with pytest.raises(CodecError):
            codec.decode(wrong, 13)
    with pytest.raises(CodecError):
        codec.decode(blob, 14)


def test_the_codec_solves_the_problem_with_fewer_bytes():
    module = load("own_codec")
    dense, ours = module.solve(make_codec("dense-fp32")), module.solve(module.OneBit())
    assert ours[0] < dense[0] / 25
    assert ours[1] < 0.001


@pytest.mark.slow
def test_a_run_is_plotted_by_a_script_without_a_guard(tiny, tmp_path):
    command = [sys.executable, EXAMPLES / "plot_a_run.py", tiny]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *rounds, picture = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in rounds] == ["round 1", "round 2", "round 3"]
    assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / picture).parent.parent.name == "runs"
