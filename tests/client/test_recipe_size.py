"""What a run takes is known before it is taken: a model's outline is the model, and its memory is held to the limit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_tasks import TASKS, word_tokenizer
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from fedglm.autoglm.data.tokenizer import load_tokenizer
from fedglm.autoglm.errors import ModelError
from fedglm.autoglm.models.build import build_model, outline_model
from fedglm.autoglm.models.release import save_release
from fedglm.autoglm.settings import DataSettings, ModelSettings
from fedglm.autoglm.site_data import make_public_task
from fedglm.autoglm.tasks.task import Task
from fedglm.client import recipe_size
from fedglm.client.recipe_size import ModelSize, check_memory
from fedglm.protocol.federated_model import make_layout
from fedglm.protocol.recipe import RecipeError
from fedglm.scenarios.scenario import Scenario, builtin_names, scenario_text

CPU = torch.device("cpu")
ADAPTERS = pytest.mark.parametrize("adapter", ["none", "lora"])


def assert_outlined(settings: ModelSettings, task: Task) -> None:
    outlined, built = outline_model(settings, task), build_model(settings, task, seed=1)
    assert make_layout(outlined) == make_layout(built)
    assert {parameter.device.type for parameter in outlined.parameters()} == {"meta"}
    assert ModelSize.from_model(outlined, task) == ModelSize.from_model(built, task)


@TASKS
@ADAPTERS
@pytest.mark.parametrize("preset", ["glm-0.1m", "glm-0.5m"])
def test_the_outline_of_a_preset_is_what_is_built(task: Task, adapter: str, preset: str) -> None:
    assert_outlined(ModelSettings.model_validate({"preset": preset, "adapter": adapter}), task)


@ADAPTERS
def test_so_it_is_of_a_table_and_of_folders(tmp_path: Path, adapter: str) -> None:
    table = make_public_task(DataSettings(source="breast-cancer"), ModelSettings())
    assert_outlined(ModelSettings.model_validate({"adapter": adapter}), table)
    tokenizer = word_tokenizer({"eos_token": "</s>", "pad_token": "<pad>"})
    causal = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=16, n_layer=2, n_head=2))
    encoder = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=64,
        )
    )
    asked = {"source": "./nowhere.jsonl", "length": 16}
    classes = asked | {"task": "text-classification", "label_field": "y", "class_names": ["a", "b", "c"]}
    for name, model, data in (("causal", causal, asked), ("causal", causal, classes), ("encoder", encoder, classes)):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        settings = ModelSettings.model_validate({"path": str(tmp_path / name), "adapter": adapter})
        assert_outlined(settings, make_public_task(DataSettings.model_validate(data), settings))
    task = make_public_task(DataSettings.model_validate(asked), ModelSettings())
    save_release(build_model(ModelSettings(), task, seed=1), task, tmp_path / "release")
    assert_outlined(ModelSettings.model_validate({"path": str(tmp_path / "release"), "adapter": adapter}), task)


def test_a_folder_that_holds_no_model_has_no_outline(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nothing"}')
    task = make_public_task(DataSettings(source="pydoc"), ModelSettings())
    assert load_tokenizer(None, append_end=False, length=8) is not None
    with pytest.raises(ModelError, match="could be outlined"):
        outline_model(ModelSettings(path=str(tmp_path)), task)


@pytest.mark.parametrize("name", builtin_names())
@pytest.mark.parametrize("clipped", [True, False])
def test_the_built_in_scenarios_fit_into_512_megabytes(
    monkeypatch: pytest.MonkeyPatch, name: str, clipped: bool
) -> None:
    scenario = Scenario.from_toml(scenario_text(name))
    task = make_public_task(scenario.data, scenario.model)
    size = ModelSize.from_model(outline_model(scenario.model, task), task)
    monkeypatch.setattr(recipe_size, "read_memory_limit", lambda: 512 * 10**6)
    check_memory(size, 2 * scenario.training.batch_size, CPU, clipped=clipped, evaluated=True)


@pytest.mark.parametrize(
    ("changes", "sequences", "asked"),
    [
        ({}, 4096, {}),
        ({}, 2600, {"clipped": True}),
        ({"parameters": 2 * 10**8}, 1, {}),
        ({"federated": 10**7}, 1, {}),
        ({"forward_activations": 1000, "length": 4096}, 1, {"evaluated": True}),
    ],
)
def test_each_part_counts(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, int], sequences: int, asked: dict[str, bool]
) -> None:
    monkeypatch.setattr(recipe_size, "read_memory_limit", lambda: 700 * 2**20)
    size = ModelSize(parameters=10**6, federated=10**6, backward_activations=1000, forward_activations=100, length=64)
    check_memory(size, 1, CPU, clipped=True, evaluated=True)
    with pytest.raises(RecipeError, match="and this node has less"):
        check_memory(replace(size, **changes), sequences, CPU, **asked)
