"""The graphs that are measured are valid ONNX, hold the operation as often as they say, and run the n-bit kernels."""

import os

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from fedglm.autoglm.light.graph.formats import choose_formats
from fedglm.autoglm.light.graph.model import build_skeleton
from fedglm.inference.device.measurement import open_session, time_model, time_run
from fedglm.inference.device.operations import make_operation
from fedglm.inference.device.tiny_model import TINY_LAYERS, open_tiny_model, skeleton_file, tiny_config
from fedglm.inference.runtime.architecture import read_architecture
from fedglm.inference.runtime.skeleton import unpack_skeleton

OPERATIONS = [
    ("run", (), "fp32", "Identity"),
    ("linear", (64, 48), "fp32", "MatMul"),
    ("linear", (64, 48), "int8", "MatMul"),
    ("linear", (192, 48), "int8", "MatMul"),
    ("linear", (64, 48), "int4", "MatMul"),
    ("norm", (64,), "fp32", "RMSNormalization"),
    ("add", (64,), "fp32", "Add"),
    ("rotary", (2, 32), "fp32", "RotaryEmbedding"),
    ("gate", (64,), "fp32", "Split"),
    ("attention", (4, 2, 16), "fp32", "Attention"),
]


@pytest.mark.parametrize(("operation", "shape", "form", "node"), OPERATIONS)
def test_a_graph_is_standard_onnx_and_runs(operation, shape, form, node):
    made = make_operation(operation, shape, form, 1 if operation == "run" else 3)
    model = onnx.load_from_string(made.model)
    onnx.checker.check_model(model, full_check=True)
    assert {each.domain for each in model.graph.node} == {""}
    assert [each.op_type for each in model.graph.node].count(node) == made.repeats
    session = open_session(made.model, 1)
    for batch, tokens, past in ((1, 1, 0), (2, 1, 5), (1, 7, 0)):
        feeds = made.feed(batch, tokens, past)
        y = session.run(None, feeds)[0]
        assert y.shape[:2] == (batch, tokens)
        assert np.isfinite(y).all()
        assert time_run(session, feeds) > 0


@pytest.mark.parametrize("form", ["fp32", "int8", "int4"])
def test_a_linear_multiplies_by_all_its_weights(form):
    made = make_operation("linear", (64, 48), form, 2)
    tensors = {each.name: numpy_helper.to_array(each) for each in onnx.load_from_string(made.model).graph.initializer}
    weights = np.zeros((64, 48))
    for copy in range(2):
        if form == "fp32":
            weights += tensors[f"w{copy}"]
        else:
            scales = np.repeat(tensors[f"w{copy}.scales"], 64, axis=0)
            weights += tensors[f"w{copy}.codes"].astype(np.float64) * scales
    feeds = made.feed(1, 3, 0)
    y = open_session(made.model, 1).run(None, feeds)[0]
    exact = feeds["x"].astype(np.float64) @ weights
    # Level 4 rounds what is multiplied to INT8: half a step of max / 127, evenly spread, is max / (254 sqrt(3)).
    step = (
        np.abs(feeds["x"]).max() / 254 / np.sqrt(3) * np.linalg.norm(weights, axis=0).max() if form != "fp32" else 1e-5
    )
    assert np.abs(y - exact).max() < 6 * step


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_quantized_linears_run_in_the_kernels_that_read_codes(form, tmp_path):
    made = make_operation("linear", (256, 128), form, 3)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(made.model, options, providers=["CPUExecutionProvider"])
    fused = onnx.load(tmp_path / "optimized.onnx")
    assert [node.op_type for node in fused.graph.node].count("MatMulNBits") == 3


@pytest.mark.parametrize("layers", TINY_LAYERS)
def test_a_tiny_model_is_what_the_writer_of_graphs_makes(layers):
    config = tiny_config(layers)
    tensors = {name: np.zeros(shape, np.float32) for name, shape in read_architecture(config).tensor_shapes().items()}
    written = build_skeleton(config, choose_formats(tensors, config, "fp32"))
    if os.environ.get("FEDGLM_REWRITE_GOLDEN") == "1":
        skeleton_file(layers).write_bytes(written)
    assert unpack_skeleton(skeleton_file(layers).read_bytes()) == unpack_skeleton(written)  # zlib versions differ
    assert time_model(open_tiny_model(layers, 1), 1) > 0
