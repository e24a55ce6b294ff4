import contextlib
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto
from small_glms import config_of, random_glm, small_config, tensors_of

from fedglm.autoglm.light.graph.formats import choose_formats
from fedglm.autoglm.light.graph.model import build_graph, build_skeleton
from fedglm.autoglm.models.presets import PRESETS, make_glm_config
from fedglm.inference.errors import InferenceError
from fedglm.inference.runtime.graph_session import GraphSession
from fedglm.inference.runtime.skeleton import MAX_BYTES, pack_skeleton, read_initializers, unpack_skeleton


@pytest.fixture(scope="module")
def small():
    model = random_glm(small_config())
    tensors, config = tensors_of(model), config_of(model)
    return tensors, config, build_graph(config, choose_formats(tensors, config, "fp32"))


def test_what_wants_filling_is_read_without_onnx(small):
    _, _, graph = small
    expected = [
        (tensor.name, tensor.data_type, tuple(tensor.dims))
        for tensor in graph.graph.initializer
        if tensor.data_location == TensorProto.EXTERNAL
    ]
    found = read_initializers(unpack_skeleton(pack_skeleton(graph.SerializeToString())))
    assert [(one.name, one.dtype, one.shape) for one in found] == expected
    rest = {one.data_type for one in graph.graph.initializer if one.data_location != TensorProto.EXTERNAL}
    assert rest == {TensorProto.INT64}, "axes and widths stand in the graph"


def test_a_skeleton_is_small_and_the_same_bytes_again(small):
    tensors, config, _ = small
    formats = choose_formats(tensors, config, "fp32")
    assert build_skeleton(config, formats) == build_skeleton(config, formats)
    preset = make_glm_config(PRESETS["glm-0.5m"], vocab_size=257, pad_id=0, bos_id=1, eos_id=2, tied=True)
    config = preset.to_dict() | {"architectures": ["GlmForCausalLM"]}
    names = ["model.embed_tokens.weight", "lm_head.weight"]
    formats = dict.fromkeys(names, formats[names[0]]) | {
        f"model.layers.{layer}.{part}.weight": formats[names[0]]
        for layer in range(3)
        for part in (*(f"self_attn.{p}_proj" for p in "qkvo"), "mlp.gate_up_proj", "mlp.down_proj")
    }
    # 16 times smaller than FP32 is 120 kB for this preset; the graph shall take no more than 3 % of that.
    assert len(build_skeleton(config, formats)) < 3600


@given(data=st.data())
def test_a_damaged_skeleton_is_refused_or_wants_what_is_not_there(small, data):
    tensors, config, graph = small
    model = bytearray(graph.SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        model[data.draw(st.integers(0, len(model) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(InferenceError):  # no other error
        read_initializers(bytes(model))
    whole = zlib.compress(bytes(model))
    with pytest.raises(InferenceError):
        GraphSession.open(whole[: data.draw(st.integers(0, len(whole) - 1))], tensors, config)


def test_a_bomb_is_not_unpacked():
    bomb = zlib.compress(bytes(8 * MAX_BYTES), 9)
    assert len(bomb) < MAX_BYTES // 64
    with pytest.raises(InferenceError, match="unpacks to more"):
        unpack_skeleton(bomb)


def test_a_file_is_never_read(small):
    tensors, config, graph = small
    stolen = type(graph)()
    stolen.CopyFrom(graph)
    stolen.graph.initializer[0].external_data[0].value = "/etc/passwd"
    with pytest.raises(InferenceError, match="must be filled in memory"):
        GraphSession.open(pack_skeleton(stolen.SerializeToString()), tensors, config)


def test_a_foreign_graph_is_refused(small):
    tensors, config, graph = small
    other = type(graph)()
    other.CopyFrom(graph)
    other.graph.node[3].op_type = "NoSuchOperator"
    with pytest.raises(InferenceError, match="does not take the graph"):
        GraphSession.open(pack_skeleton(other.SerializeToString()), tensors, config)
    with pytest.raises(InferenceError, match="nothing to fill"):
        GraphSession.open(pack_skeleton(b""), tensors, config)


def test_a_graph_cannot_ask_for_more_memory_than_its_model_takes(small):
    tensors, config, graph = small
    greedy = type(graph)()
    greedy.CopyFrom(graph)
    name = "+".join(["model.embed_tokens.weight"] * 1000)
    more = greedy.graph.initializer.add(name=name, data_type=1, dims=[61_000, 80], data_location=TensorProto.EXTERNAL)
    more.external_data.add(key="location", value=name)
    with pytest.raises(InferenceError, match=r"the graph wants 4[0-9]* values of a model of"):
        GraphSession.open(pack_skeleton(greedy.SerializeToString()), tensors, config)
