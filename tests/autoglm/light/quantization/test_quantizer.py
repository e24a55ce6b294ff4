"""The quantizer: values equal the trained reference bit for bit, deterministic, and it says what it repaired."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from small_tasks import text_task
from tiny_glms import tiny_glm
from transformers import AutoModelForCausalLM, PreTrainedModel

import fedglm
from fedglm.autoglm.data.examples import Examples
from fedglm.autoglm.data.records import Records
from fedglm.autoglm.errors import DataError, ModelError
from fedglm.autoglm.light.distillation.settings import DistillationSettings, Stage
from fedglm.autoglm.light.quantization.quantizer import QuantizedModel, Quantizer
from fedglm.autoglm.light.quantization.scheme import Scheme
from fedglm.autoglm.light.quantization.settings import (
    MixedBitsSettings,
    QatSettings,
    QuantizationSettings,
    VerificationSettings,
)
from fedglm.autoglm.models.presets import Preset
from fedglm.autoglm.models.release import save_release
from fedglm.autoglm.tasks.task import Task
from fedglm.inference.weights.model import same_tensors
from fedglm.inference.weights.quantized import QuantizedMatrix

torch.set_num_threads(1)
SHAPE = Preset(hidden=32, layers=2, heads=4, kv_heads=2, intermediate=48, max_length=32)
TERNARY = Scheme(codes="ternary", block="row")
CLASSES = text_task(("no", "yes"))
QAT = QatSettings(training=DistillationSettings(stages=(Stage(steps=4, warmup_steps=0),), batch_size=4, keep="last"))


def examples(task: Task, count: int = 12) -> Examples:
    texts = [f"the quick brown fox number {number} jumps over the lazy dog" for number in range(count)]
    labels = [task.classes[number % 2] for number in range(count)] if task.classes else []
    return task.examples(Records(texts=texts, labels=labels, units=[str(number) for number in range(count)]))[0]


def small_model(task: Task) -> PreTrainedModel:
    """A model whose layers are little wider than a block of codes, so that the last block of some rows is not full."""
    return tiny_glm(task, SHAPE)


def quantize(settings: QuantizationSettings, task: Task | None = None, seed: int = 0) -> QuantizedModel:
    task = task or text_task()
    model = small_model(task)
    data = examples(task)
    return Quantizer(settings).quantize(model, task, data.select(range(8)), data.select(range(8, 12)), seed=seed)


def values(tensor: np.ndarray | QuantizedMatrix) -> np.ndarray:
    return tensor.dequantize() if isinstance(tensor, QuantizedMatrix) else tensor


def check_bits(result: QuantizedModel) -> None:
    parameters = dict(result.reference.named_parameters())
    assert result.model.tensors.keys() == parameters.keys()
    for name, tensor in result.model.tensors.items():
        assert values(tensor).tobytes() == parameters[name].detach().numpy().tobytes(), name
        if isinstance(tensor, np.ndarray):
            assert np.array_equal(tensor.astype(np.float16).astype(np.float32), tensor), name


INT4 = QuantizationSettings()
TRAINED = QuantizationSettings(weights=TERNARY, embedding=Scheme(codes="int8", block="row"), qat=QAT)
UNEVEN = QuantizationSettings(weights=Scheme(codes="int3", symmetric=False), method="mse", qat=QAT)


@pytest.mark.parametrize(
    ("task", "settings"),
    [
        pytest.param(text_task(), INT4, id="language-int4"),
        pytest.param(CLASSES, INT4, id="classes-int4"),
        pytest.param(text_task(), TRAINED, id="language-ternary trained"),
        pytest.param(CLASSES, UNEVEN, id="classes-int3 trained"),
        # The fast ones train either task and round by either method.
        pytest.param(CLASSES, TRAINED, id="classes-ternary trained", marks=pytest.mark.slow),
        pytest.param(text_task(), UNEVEN, id="language-int3 trained", marks=pytest.mark.slow),
    ],
)
def test_what_is_packed_has_the_values_of_the_reference(settings: QuantizationSettings, task: Task) -> None:
    result = quantize(settings, task)
    check_bits(result)
    assert result.report.trained_steps == (4 if settings.qat else 0)
    assert result.model.config["model_type"] == "glm"
    assert result.model.task["kind"] == task.kind
    again = quantize(settings, task)
    assert same_tensors(result.model.tensors, again.model.tensors)
    assert again.report == result.report


def test_another_seed_trains_otherwise_and_the_model_is_left_as_it_was() -> None:
    settings = QuantizationSettings(weights=TERNARY, qat=QAT)
    task = text_task()
    model = small_model(task)
    before = copy.deepcopy(model.state_dict())
    data = examples(task)
    results = [Quantizer(settings).quantize(model, task, data, data, seed=seed) for seed in (1, 2)]
    name = "model.layers.0.mlp.down_proj.weight"
    assert values(results[0].model.tensors[name]).tobytes() != values(results[1].model.tensors[name]).tobytes()
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_release_is_quantized_from_its_folder(tmp_path: Path) -> None:
    task = text_task()
    model = small_model(task)
    save_release(model, task, tmp_path / "release")
    data = examples(task)
    result = Quantizer().quantize_release(tmp_path / "release", data, data)
    check_bits(result)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "release")
    assert result.model.config["hidden_size"] == loaded.config.hidden_size


def test_layers_that_deviate_get_the_next_more_bits_until_they_pass_and_the_report_says_so() -> None:
    check = VerificationSettings(min_cosine=0.97, repair="bits")
    int8 = Scheme(codes="int8")
    result = quantize(QuantizationSettings(weights=TERNARY, embedding=int8, method="mse", verification=check))
    inner = [layer for layer in result.report.layers if ".layers." in layer.name]
    assert all(layer.cosine is not None and layer.cosine >= 0.97 for layer in inner)
    assert result.report.failed == ()
    repaired = [layer for layer in inner if layer.repair]
    assert repaired
    assert repaired[0].repair[0].startswith("ternary (row) -> int2 (row): cosine was 0.")
    for layer in repaired:
        assert layer.repair[-1].split(": ")[0].split(" -> ")[1] == layer.scheme
    check_bits(result)


def test_where_layers_are_only_reported_those_that_fail_are_named() -> None:
    result = quantize(QuantizationSettings(weights=TERNARY, verification=VerificationSettings(min_cosine=0.999)))
    assert {name for name in result.report.failed if ".layers." in name}
    assert not any(layer.repair for layer in result.report.layers)


def test_repair_by_training_trains_what_deviates_and_nothing_else() -> None:
    overrides = {"*.1.mlp.*": TERNARY}
    settings = QuantizationSettings(
        weights=Scheme(codes="int8"), embedding=Scheme(codes="int8"), overrides=overrides, method="mse", qat=QAT,
        verification=VerificationSettings(min_cosine=0.95, repair="train"),
    )  # fmt: skip
    result = quantize(settings)
    rounded = quantize(settings.model_copy(update={"qat": None, "verification": VerificationSettings()}))
    trained = {layer.name for layer in result.report.layers if layer.repair == ("trained",)}
    assert trained == {f"model.layers.1.mlp.{part}.weight" for part in ("gate_up_proj", "down_proj")}
    changed = {
        name for name in result.model.tensors
        if values(result.model.tensors[name]).tobytes() != values(rounded.model.tensors[name]).tobytes()
    }  # fmt: skip
    assert changed == trained
    check_bits(result)


def test_mixed_bits_stay_within_the_budget() -> None:
    mixed = MixedBitsSettings(bits_per_weight=5.0)
    result = quantize(QuantizationSettings(mixed=mixed))
    assert result.report.bits_per_weight <= 5.0
    assert len({layer.scheme for layer in result.report.layers}) > 1


def test_a_matrix_can_stay_in_float() -> None:
    result = quantize(QuantizationSettings(overrides={"model.embed_tokens.*": None}))
    assert isinstance(result.model.tensors["model.embed_tokens.weight"], np.ndarray)
    assert isinstance(result.model.tensors["model.layers.0.mlp.down_proj.weight"], QuantizedMatrix)
    check_bits(result)


def test_what_cannot_be_is_said_in_one_line() -> None:
    task = text_task()
    model = small_model(task)
    data = examples(task)
    with pytest.raises(DataError, match="examples to calibrate on and others to measure on"):
        Quantizer().quantize(model, task, data.select([]), data)
    with pytest.raises(ModelError, match="take method mse or weighted"):
        quantize(QuantizationSettings(weights=Scheme(codes="sparse-ternary", block="row")))
    with pytest.raises(ValidationError, match="needs the settings of qat"):
        QuantizationSettings(verification=VerificationSettings(repair="train"))


def test_settings_may_be_a_mapping_and_a_wrong_key_is_one_line() -> None:
    mapping = {"weights": {"codes": "ternary", "block": "row"}, "qat": {"training": {"stages": [{"steps": 4}]}}}
    settings = fedglm.Quantizer(mapping).settings
    assert settings.weights == TERNARY
    assert settings.qat is not None
    assert settings.qat.training.steps == 4
    with pytest.raises(ModelError, match=r"^quantization: unknown key weigths: did you mean weights\?$"):
        fedglm.Quantizer({"weigths": {}})


def test_progress_is_told() -> None:
    task = text_task()
    model = small_model(task)
    data = examples(task)
    told: list[tuple[str, float]] = []
    settings = QuantizationSettings(qat=QAT, mixed=MixedBitsSettings(bits_per_weight=6))
    Quantizer(settings).quantize(model, task, data, data, progress=lambda what, share: told.append((what, share)))
    assert list(dict.fromkeys(what for what, _ in told)) == ["calibrate", "allocate", "round", "train", "verify"]
    assert all(0 <= share <= 1 for _, share in told)
    assert told[-1] == ("verify", 1.0)
