"""Prefill and decode from graphs of their own, of the same codes; and all of it in a process without torch."""

import json
import subprocess
import sys

import numpy as np
import pytest
from small_glms import config_of, everywhere, random_glm, relative_error, small_config, tensors_of, with_codes

from fedglm.autoglm.light.graph.formats import choose_formats
from fedglm.autoglm.light.graph.model import build_skeleton
from fedglm.inference.errors import InferenceError
from fedglm.inference.runtime.filled_graph import EXACT_ACTIVATIONS
from fedglm.inference.runtime.graph_session import GraphSession
from fedglm.inference.runtime.phased_session import PhasedSession, open_session


@pytest.fixture(scope="module")
def ternary():
    model = random_glm(small_config())
    tensors, config = with_codes(tensors_of(model), low=-1, high=1, block=1000), config_of(model)
    skeletons = {
        kind: build_skeleton(config, choose_formats(tensors, config, kind)) for kind in ("fp32", "int8", "int4")
    }
    return skeletons, tensors, config


@pytest.mark.parametrize(("prefill", "decode"), [("fp32", "int4"), ("int8", "int4"), ("int4", "fp32")])
def test_one_format_writes_on_where_another_has_read(ternary, prefill, decode):
    skeletons, tensors, config = ternary
    ids = np.random.default_rng(0).integers(3, 61, (2, 12))
    both = {"prefill": skeletons[prefill], "decode": skeletons[decode]}
    session = open_session(both, tensors, config, accuracy_level=EXACT_ACTIVATIONS)
    assert isinstance(session, PhasedSession)
    expected, _ = GraphSession.open(skeletons["fp32"], tensors, config).run(ids, logits_at=everywhere(ids))
    logits, cache = session.run(ids[:, :8], logits_at=everywhere(ids[:, :8]))
    found = [logits]
    for at in range(8, 12):
        logits, cache = session.run(ids[:, at : at + 1], cache)
        found.append(logits)
    assert relative_error(np.concatenate(found, axis=1), expected) < 1e-5


def test_the_same_graph_twice_is_one_session(ternary):
    skeletons, tensors, config = ternary
    one = open_session({"prefill": skeletons["int4"], "decode": skeletons["int4"]}, tensors, config)
    assert isinstance(one, GraphSession)
    assert isinstance(open_session({"decode": skeletons["int4"]}, tensors, config), GraphSession)
    with pytest.raises(InferenceError, match="'decode', only prefill"):
        open_session({"prefill": skeletons["int4"]}, tensors, config)


@pytest.mark.parametrize("names", [("decode",), ("prefill", "decode")])
def test_tensors_may_be_dropped_once_they_are_filled_in(ternary, names):
    skeletons, tensors, config = ternary
    graphs = dict(zip(names, (skeletons["int8"], skeletons["int4"]), strict=False))
    ids, kept = np.arange(3, 13)[None], dict(tensors)
    session = open_session(graphs, kept, config, filled=kept.clear)
    assert kept == {}
    expected, _ = open_session(graphs, tensors, config).run(ids)
    assert np.array_equal(session.run(ids)[0], expected)


def test_the_accuracy_level_says_whether_activations_are_rounded(ternary):
    skeletons, tensors, config = ternary
    ids = np.random.default_rng(0).integers(3, 61, (1, 12))
    exact, rounded = (
        GraphSession.open(skeletons["int4"], tensors, config, accuracy_level=level).run(ids)[0] for level in (0, 4)
    )
    # Rounding to INT8 moves an input by up to 1/254 of the greatest of its block: to be seen, and no more than that.
    assert 1e-5 < relative_error(rounded, exact) < 0.1


def test_a_node_without_torch_and_onnx_runs_a_model(ternary, tmp_path):
    skeletons, tensors, config = ternary
    (tmp_path / "graph").write_bytes(skeletons["int4"])
    (tmp_path / "config.json").write_text(json.dumps(config))
    arrays = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, np.ndarray):
            arrays[name] = tensor
        else:
            arrays |= {f"{name}:codes": tensor.codes, f"{name}:scales": tensor.scales}
    np.savez(tmp_path / "tensors.npz", **arrays)
    code = """
import json, sys
from pathlib import Path
import numpy as np
from fedglm.inference.runtime.phased_session import open_session
from fedglm.inference.runtime.prefix_cache import PrefixCache
from fedglm.inference.weights.quantized import QuantizedMatrix
folder = Path(sys.argv[1])
arrays = dict(np.load(folder / "tensors.npz"))
tensors = {name: array for name, array in arrays.items() if ":" not in name}
for name in [name.split(":")[0] for name in arrays if name.endswith(":codes")]:
    codes, scales = arrays[f"{name}:codes"], arrays[f"{name}:scales"]
    tensors[name] = QuantizedMatrix(codes=codes, scales=scales, block=1000, low=-1, high=1)
config = json.loads((folder / "config.json").read_text())
session = open_session({"decode": (folder / "graph").read_bytes()}, tensors, config)
logits, cache = session.run(np.arange(3, 13)[None])
prefixes = PrefixCache(1 << 20)
prefixes.add(np.arange(3, 13), cache)
logits, cache = session.run(np.array([[20]]), prefixes.find(np.array([*range(3, 13), 20])))
heavy = {"torch", "transformers", "onnx", "flwr", "sklearn"} & {name.split(".")[0] for name in sys.modules}
print(json.dumps([sorted(heavy), logits[0, 0].tolist()]))
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    heavy, logits = json.loads(done.stdout)
    assert heavy == []
    ids = np.array([[*range(3, 13), 20]])
    expected, _ = GraphSession.open(skeletons["int4"], tensors, config).run(ids)
    # Inputs are rounded to INT8: a float32 rounding more or less may move one of them to the next.
    assert relative_error(np.array(logits), expected[0, 0]) < 0.1
