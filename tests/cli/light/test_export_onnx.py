"""`fedglm export-onnx`: a release as one file of standard ONNX, which ONNX Runtime runs to the release's own logits."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
from saved_models import save_model
from used_releases import write_used_release

from fedglm.inference.release.reader import open_release
from fedglm.inference.release.trust import Trust
from fedglm.inference.runtime.filled_graph import EXACT_ACTIVATIONS
from fedglm.inference.runtime.phased_session import open_session
from fedglm.privacy.keys.signing import SigningKey


@pytest.fixture(scope="module")
def key():
    return SigningKey.generate()


@pytest.fixture(scope="module")
def release(key, tmp_path_factory):
    return write_used_release(tmp_path_factory.mktemp("light") / "release", key, kind="language")


def run_file(path, ids, config):
    """The logits of all positions, by ONNX Runtime alone."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")  # by itself it rounds activations
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    batch, length = ids.shape
    past = np.zeros((batch, config["num_key_value_heads"], 0, config["head_dim"]), np.float32)
    feeds = {
        "input_ids": ids,
        "position_ids": np.tile(np.arange(length), (batch, 1)),
        "mask": np.ones((1, 1, length, length), np.bool_),
        "logits_at": np.tile(np.arange(length), (batch, 1)),
    }
    feeds |= {one.name: past for one in session.get_inputs() if one.name.startswith("past.")}
    return session.run(["logits"], feeds)[0]


@pytest.mark.parametrize("form", [None, "int8", "fp32"])
def test_the_file_gives_the_releases_logits(fedglm, release, form, tmp_path):
    told = fedglm("export-onnx", release, tmp_path / "m.onnx", *(("--format", form) if form else ()), "--json")
    assert told.code == 0, told.err
    assert told.json == {
        "file": str(tmp_path / "m.onnx"),
        "bytes": (tmp_path / "m.onnx").stat().st_size,
        "format": form or "int4",
        "quantized": form != "fp32",
        "provenance": told.json["provenance"],
    }
    stored = onnx.load(tmp_path / "m.onnx")
    onnx.checker.check_model(stored, full_check=True)
    assert {node.domain for node in stored.graph.node} == {""}
    dequantizes = any(node.op_type == "DequantizeLinear" for node in stored.graph.node)
    assert dequantizes  # the embedding, at least
    opened = open_release(release, trust=Trust.unverified())
    model = opened.model
    session = open_session(opened.skeletons, model.tensors, model.config, accuracy_level=EXACT_ACTIVATIONS)
    ids = np.random.default_rng(0).integers(0, session.vocab_size, (2, 9))
    expected, _ = session.run(ids, logits_at=np.tile(np.arange(9), (2, 1)))
    found = run_file(tmp_path / "m.onnx", ids, model.config)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_it_says_what_it_is_and_what_was_not_run(fedglm, release, key, tmp_path):
    shown = fedglm("export-onnx", release, tmp_path / "m.onnx", "--key", key.public.hex)
    assert shown.code == 0, shown.err
    assert max(map(len, shown.out.replace(str(tmp_path), "").splitlines())) <= 100
    for words in ("DequantizeLinear", "onnx.checker", "TensorRT was not run", key.public.fingerprint()):
        assert words in shown.out


def test_a_dense_model_is_float32(fedglm, tmp_path):
    model = save_model("language", tmp_path / "dense")
    told = fedglm("export-onnx", model, tmp_path / "m.onnx", "--json").json
    assert (told["format"], told["quantized"], told["provenance"]) == ("fp32", False, None)
    line = fedglm("export-onnx", model, tmp_path / "n.onnx", "--format", "int4").line()
    assert "is not quantized" in line
    assert "fedglm lighten" in line
    assert not (tmp_path / "n.onnx").exists()


def test_mistakes_are_one_line_and_write_nothing(fedglm, release, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "m.onnx").write_text("old")
    damaged = write_used_release(tmp_path / "damaged", None, kind="language")
    (damaged / "config.json").write_text(json.dumps({}))
    for arguments, says in [
        ((release, tmp_path / "m.json"), "ends in .onnx"),
        ((release, tmp_path), "ends in .onnx"),
        ((release, release / "m.onnx"), "the model's own folder"),
        ((release, tmp_path / "file" / "m.onnx"), "cannot write"),
        ((tmp_path / "gone", tmp_path / "m.onnx"), "there is no such folder"),
        ((damaged, tmp_path / "m.onnx"), "config.json"),
        ((release, tmp_path / "m.onnx", "--format", "int3"), "--format int3: there are fp32, int8, int4"),
        ((release, tmp_path / "m.onnx", "--key", SigningKey.generate().public.hex), "signed by"),
    ]:
        done = fedglm("export-onnx", *arguments)
        assert done.code == 2
        assert says in done.line()
    assert (tmp_path / "m.onnx").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged", "file", "m.onnx"]


@pytest.mark.parametrize("form", ["fp32", "int8", "int4"])
def test_openvino_reads_it(fedglm, release, form, tmp_path):
    """The releases' logits, and a token after them from the cache, by another engine."""
    openvino = pytest.importorskip("openvino")
    assert fedglm("export-onnx", release, tmp_path / "m.onnx", "--format", form).code == 0
    opened = open_release(release, trust=Trust.unverified())
    model = opened.model
    session = open_session(opened.skeletons, model.tensors, model.config, accuracy_level=EXACT_ACTIVATIONS)
    ids = np.random.default_rng(0).integers(0, session.vocab_size, (2, 9))
    every = np.tile(np.arange(9), (2, 1))
    expected, _ = session.run(ids, logits_at=every)
    exact = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    compiled = openvino.Core().compile_model(tmp_path / "m.onnx", "CPU", exact)
    names = [one.any_name for one in compiled.inputs if one.any_name.startswith("past.")]
    past = [np.zeros((2, model.config["num_key_value_heads"], 0, model.config["head_dim"]), np.float32) for _ in names]
    found = []
    for first, last in ((0, 8), (8, 9)):
        feeds = {
            "input_ids": ids[:, first:last],
            "position_ids": every[:, first:last],
            "mask": np.ones((1, 1, last - first, last), np.bool_),
            "logits_at": every[:, : last - first],
        }
        given = compiled(feeds | dict(zip(names, past, strict=True)))
        past = [given[name.replace("past", "present")] for name in names]
        found.append(given["logits"])
    assert np.abs(np.concatenate(found, axis=1) - expected).max() <= 1e-5 * np.abs(expected).max()
