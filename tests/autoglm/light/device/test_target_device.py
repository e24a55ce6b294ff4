"""A device by its file: formats chosen apart where its table says so, times by the table, other devices refused."""

import hashlib
import json

import pytest
from device_law import MULTIPLY, SLOW_READER, make_device
from small_glms import config_of, random_classifier, random_glm, small_config, tensors_of, with_codes

from fedglm.autoglm.light.device.phases import DENSE, NARROWEST, PhaseFormats
from fedglm.autoglm.light.device.target_device import HELD_OUT_ERROR, PROMPT_TOKENS, TargetDevice, check_device
from fedglm.autoglm.light.plan.errors import LightenError
from fedglm.autoglm.light.plan.goals import Goals
from fedglm.inference.errors import InferenceError
from fedglm.inference.runtime.architecture import EMBEDDING, read_architecture
from fedglm.inference.weights.model import NumpyModel


def opened(folder, multiply=MULTIPLY, **changes):
    path = folder / "edge.json"
    make_device(multiply, **changes).save(path)
    return TargetDevice.open(path)


def coded(model, *, low=-8, high=7):
    return NumpyModel(
        tensors=with_codes(tensors_of(model), low=low, high=high, block=32), config=config_of(model), task={}
    )


@pytest.fixture(scope="module")
def light():
    return coded(random_glm(small_config()))


def test_formats_are_chosen_apart_where_the_table_says_so(light, tmp_path):
    device = opened(tmp_path, SLOW_READER)
    assert device.choose_phases(light, one_graph=False) == PhaseFormats(prefill="fp32", decode="int4")
    assert device.choose_phases(light, one_graph=True) == NARROWEST


def test_a_second_graph_must_be_worth_more_than_the_tables_error(light, tmp_path):
    def gain(slower):
        device = opened(tmp_path, {"fp32": 1e-4, "int8": 1e-4, "int4": slower})
        times = device.file.latency
        prefills = [times.predict(light.config, form, past=PROMPT_TOKENS).prefill_ms for form in ("int4", "fp32")]
        return prefills[0] / prefills[1] - 1, device.choose_phases(light, one_graph=False).prefill

    found = [gain(slower) for slower in (1e-4, 2e-4, 3e-4, 4e-4, 6e-4, 1e-3)]
    assert [form for more, form in found if more > HELD_OUT_ERROR.prefill_ms].count("fp32") > 0
    assert all((form != "int4") == (more > HELD_OUT_ERROR.prefill_ms) for more, form in found)


def test_a_classifier_has_one_graph_that_reads_rows_fast(tmp_path):
    device, model = opened(tmp_path, SLOW_READER), coded(random_classifier())
    assert device.choose_phases(model, one_graph=False) == DENSE
    latency = device.predict(model, DENSE)
    assert latency.decode_ms == latency.prefill_ms


def test_times_are_those_of_the_table(light, tmp_path):
    device = opened(tmp_path, SLOW_READER)
    table = device.file.latency
    apart = device.predict(light, PhaseFormats(prefill="fp32", decode="int4"))
    past = min(PROMPT_TOKENS, light.config["max_position_embeddings"] // 2)
    assert apart.decode_ms == pytest.approx(table.predict(light.config, "int4", past=past).decode_ms, rel=1e-9)
    wide = dict.fromkeys(read_architecture(light.config).linear_shapes(), "fp32") | {EMBEDDING: "int4"}
    assert apart.prefill_ms == pytest.approx(table.predict(light.config, wide, past=past).prefill_ms, rel=1e-9)


def test_layers_in_wider_codes_are_predicted_as_such(light, tmp_path):
    """A repaired layer takes what its own kernel takes: between a model all in INT4 and one all in INT8."""
    device, name = opened(tmp_path), "model.layers.0.mlp.down_proj.weight"
    wide = coded(random_glm(small_config()), low=-128, high=127)
    mixed = NumpyModel(tensors={**light.tensors, name: wide.tensors[name]}, config=light.config, task={})
    few, some, many = (device.predict(model, NARROWEST).decode_ms for model in (light, mixed, wide))
    assert few < some < many


def test_the_hash_is_that_of_the_file(tmp_path):
    device = opened(tmp_path)
    assert device.planned.sha256 == hashlib.sha256((tmp_path / "edge.json").read_bytes()).hexdigest()
    assert device.planned.path == str(tmp_path / "edge.json")
    assert "Toaster 3000" in device.basis
    assert f"{HELD_OUT_ERROR.decode_ms:.1%}" in device.basis


def test_another_device_is_refused(tmp_path):
    one = opened(tmp_path)
    other = opened(tmp_path, name="Kettle")
    check_device(one.planned, one)
    check_device(None, None)
    for planned, device, says in [
        (one.planned, other, "for another device"),
        (one.planned, None, "name its file with --device"),
        (None, one, "for this machine"),
    ]:
        with pytest.raises(LightenError, match=says):
            check_device(planned, device)


def test_no_goal_is_beyond_the_devices_memory(tmp_path):
    device = opened(tmp_path, memory=10**9)
    device.check_goals(Goals(max_memory_bytes=10**9))
    device.check_goals(Goals(size_ratio=2))
    with pytest.raises(LightenError, match="name at most 1000MB"):
        device.check_goals(Goals(max_memory_bytes=2 * 10**9))


def change(tree, path, value):
    *way, last = path
    for step in way:
        tree = tree[step]
    if value is None:
        del tree[last]
    else:
        tree[last] = value


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("version",), 2, "no device file of version 1: version"),
        (("latency", "entries"), [], "edge.json: the latency table has no"),
        (("latency", "entries", 0, "shape"), [10**400, 64], "no device file"),
        (("latency", "entries", 0, "shape"), [64], "a linear has 2 sizes, not 1"),
        (("latency", "entries", 0, "microseconds"), -1, "no device file"),
        (("latency", "entries", 0, "tokens"), "many", "no device file"),
        (("latency", "entries", 0), None, "edge.json: .* lacks some shapes"),
        (("latency", "reads", 0, "bytes_per_s"), 0, "no device file"),
        (("latency", "reads"), [], "no device file"),
        (("memory",), None, "no device file of version 1: memory"),
        (("more",), 1, "no device file of version 1: more"),
    ],
)
def test_a_damaged_file_is_said_before_any_work(path, value, says, tmp_path):
    tree = json.loads(make_device().model_dump_json())
    change(tree, path, value)
    (tmp_path / "edge.json").write_text(json.dumps(tree))
    with pytest.raises(InferenceError, match=says) as error:
        TargetDevice.open(tmp_path / "edge.json")
    assert "\n" not in str(error.value)


def test_a_table_without_any_time_is_refused(tmp_path):
    tree = json.loads(make_device().model_dump_json())
    for entry in tree["latency"]["entries"]:
        entry["microseconds"] = 0
    (tmp_path / "edge.json").write_text(json.dumps(tree))
    with pytest.raises((InferenceError, LightenError), match="probe the device again"):
        TargetDevice.open(tmp_path / "edge.json")
