import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator
from small_glms import (
    config_of,
    everywhere,
    fill_torch,
    llama_config,
    random_classifier,
    random_glm,
    relative_error,
    small_config,
    tensors_of,
    torch_logits,
    uneven_glm,
    with_codes,
)

from fedglm.autoglm.errors import ModelError
from fedglm.autoglm.light.device.phases import PhaseFormats
from fedglm.autoglm.light.graph import onnx_file
from fedglm.autoglm.light.graph.formats import TensorFormat, choose_formats, name_kernels
from fedglm.autoglm.light.graph.model import build_graph
from fedglm.autoglm.light.graph.onnx_file import write_onnx_file
from fedglm.autoglm.light.search.packaging import build_skeletons, name_phases
from fedglm.inference.errors import InferenceError
from fedglm.inference.weights.model import NumpyModel

SCHEMES = {
    "fp32": {"low": -8, "high": 7, "block": 32},
    "int8": {"low": -128, "high": 127, "block": 128},
    "int4": {"low": 0, "high": 15, "block": 32, "zeros": (0, 15)},
}


def feeds_of(ids, config, past=None):
    """What the file's metadata say that it takes."""
    batch, length = ids.shape
    layers = range(config["num_hidden_layers"])
    names = [f"past.{layer}.{name}" for layer in layers for name in ("key", "value")]
    kv_heads, dim = config["num_key_value_heads"], config["head_dim"]
    past = past or [np.zeros((batch, kv_heads, 0, dim), np.float32) for _ in names]
    before = past[0].shape[2]
    return {
        "input_ids": ids,
        "position_ids": np.tile(np.arange(before, before + length), (batch, 1)),
        "mask": np.ones((1, 1, length, before + length), np.bool_),
        "logits_at": everywhere(ids),
    } | dict(zip(names, past, strict=True))


@pytest.mark.parametrize("kind", SCHEMES)
def test_the_file_is_standard_and_runs_by_itself(kind, tmp_path):
    model = random_glm(small_config())
    config, tensors = config_of(model), with_codes(tensors_of(model), **SCHEMES[kind])
    write_onnx_file(tmp_path / "model.onnx", tensors, config, kind)
    stored = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(stored, full_check=True)
    assert [(one.domain, one.version) for one in stored.opset_import] == [("", 24)]
    assert {node.domain for node in stored.graph.node} == {""}
    purpose = {one.key: one.value for one in stored.metadata_props}["purpose"]
    assert "TensorRT and OpenVINO" in purpose
    assert stored.doc_string == purpose
    expected = torch_logits(fill_torch(model, tensors), ids := np.random.default_rng(0).integers(3, 61, (2, 9)))
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")  # by itself it rounds activations
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", options, providers=["CPUExecutionProvider"])
    first, *past = session.run(None, feeds_of(ids[:, :5], config))
    second, *_ = session.run(None, feeds_of(ids[:, 5:], config, past))
    assert relative_error(np.concatenate([first, second], axis=1), expected) < 1e-5


@pytest.mark.parametrize("handed_off", [False, True])
def test_onnx_itself_computes_the_same(handed_off):
    # Its reference implementation of each operator, in numpy: a second reading of the standard beside ONNX Runtime's.
    model = random_glm(small_config())
    config, tensors = config_of(model), with_codes(tensors_of(model), **SCHEMES["int8"])
    graph = build_graph(config, choose_formats(tensors, config, "int8"), handed_off=handed_off)
    stored = onnx_file.fill_graph(graph, tensors, config)
    ids = np.random.default_rng(0).integers(3, 61, (2, 5))
    logits = ReferenceEvaluator(stored).run(None, feeds_of(ids, config))[0]
    assert relative_error(logits, torch_logits(fill_torch(model, tensors), ids)) < 1e-5


@pytest.mark.parametrize("make", [lambda: random_glm(llama_config()), random_classifier])
def test_every_kind_of_model_passes_the_checker(make, tmp_path):
    model = make()
    write_onnx_file(tmp_path / "model.onnx", tensors_of(model), config_of(model), "fp32")
    onnx.checker.check_model(tmp_path / "model.onnx", full_check=True)


def test_uneven_layers_pass_the_checker(tmp_path):
    model, config = uneven_glm()
    write_onnx_file(tmp_path / "model.onnx", tensors_of(model), config, "fp32")
    onnx.checker.check_model(tmp_path / "model.onnx", full_check=True)


def test_only_an_int4_embedding_needs_a_node_outside_of_the_standard():
    model = random_glm(small_config())
    config, tensors = config_of(model), with_codes(tensors_of(model), **SCHEMES["int4"])
    formats = choose_formats(tensors, config, "int4")
    contrib = [node for node in build_graph(config, formats).graph.node if node.domain]
    assert [(node.domain, node.op_type) for node in contrib] == [("com.microsoft", "GatherBlockQuantized")]
    assert not any(node.domain for node in build_graph(config, formats, handed_off=True).graph.node)


def test_formats_follow_from_codes():
    model = random_glm(small_config())
    config, plain = config_of(model), tensors_of(model)
    name = "model.layers.0.mlp.down_proj.weight"
    for scheme, kind, expected in [
        (SCHEMES["int8"], "int4", TensorFormat(kind="int8", block=128)),
        (SCHEMES["int4"], "int4", TensorFormat(kind="int4", block=32, zeros=True)),
        (SCHEMES["int4"], "int8", TensorFormat(kind="int8", block=32, zeros=True)),
        ({"low": 0, "high": 3, "block": 96}, "int4", TensorFormat(kind="int4", block=32)),
        ({"low": -1, "high": 1, "block": 144}, "int4", TensorFormat(kind="int4", block=128)),
        ({"low": -8, "high": 7, "block": 16}, "fp32", TensorFormat(kind="fp32")),
    ]:
        assert choose_formats(with_codes(plain, **scheme), config, kind)[name] == expected
    assert choose_formats(plain, config, "int4")[name] == TensorFormat(kind="fp32")
    with pytest.raises(InferenceError, match="blocks of 24 columns; quantize in blocks of a multiple of 16"):
        choose_formats(with_codes(plain, low=-8, high=7, block=24), config, "int4")
    with pytest.raises(InferenceError, match=r"no tensor model\.embed_tokens"):
        choose_formats({}, config, "fp32")


def test_a_graph_is_named_by_the_kernels_that_multiply_in_it():
    model = random_glm(small_config())
    config, plain = config_of(model), tensors_of(model)
    int8, int4 = with_codes(plain, **SCHEMES["int8"]), with_codes(plain, **SCHEMES["int4"])
    name = "model.layers.0.mlp.down_proj.weight"
    for tensors, kind, expected in [
        (int8, "int4", "int8"),
        (int4, "int4", "int4"),
        (int4, "fp32", "fp32"),
        (int4 | {name: int8[name]}, "int4", "int4 and int8"),
        (int4 | {name: plain[name]}, "int4", "int4"),
    ]:
        assert name_kernels(choose_formats(tensors, config, kind)) == expected


def test_phases_that_come_to_the_same_kernels_share_a_graph():
    model = random_glm(small_config())
    config, plain = config_of(model), tensors_of(model)
    wanted = PhaseFormats(prefill="int8", decode="int4")
    for scheme, phases, kernels in [
        ("int8", ["decode"], ["int8", "int8"]),
        ("int4", ["decode", "prefill"], ["int8", "int4"]),
    ]:
        light = NumpyModel(tensors=with_codes(plain, **SCHEMES[scheme]), config=config, task={})
        assert sorted(build_skeletons(light, wanted)) == phases
        assert list(name_phases(light, wanted).values()) == kernels


def test_a_file_too_large_for_protobuf_is_not_begun(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "MAX_BYTES", 40_000)
    model = random_glm(small_config())
    with pytest.raises(ModelError, match="larger than an ONNX file may be"):
        write_onnx_file(tmp_path / "model.onnx", tensors_of(model), config_of(model), "fp32")
    assert list(tmp_path.iterdir()) == []
