"""Models from presets and folders, adapters, the flat vector, and releases."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_tasks import TASKS, WORDS, text_task, word_tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GlmForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
)

from fedglm.autoglm.data.records import Records
from fedglm.autoglm.errors import ModelError
from fedglm.autoglm.federation import FederatedData, load_federation
from fedglm.autoglm.models.build import build_model
from fedglm.autoglm.models.parameters import federated_parameters, load_vector, to_vector
from fedglm.autoglm.models.presets import PRESETS, make_glm_config
from fedglm.autoglm.models.release import load_release, save_release
from fedglm.autoglm.settings import DataSettings, ModelSettings
from fedglm.autoglm.tasks.task import Task
from fedglm.inference.inputs.byte_tokenizer import EOS_ID

torch.set_num_threads(1)
LORA = ModelSettings(adapter="lora", lora_rank=2)


def batch_of(task: Task, *texts: str) -> dict[str, torch.Tensor]:
    cut = task.sequences(Records(texts=list(texts)))
    mask = np.arange(task.length) < cut.lengths[:, None]
    ids = torch.from_numpy(cut.ids.astype(np.int64))
    labels = torch.arange(len(ids)) % max(len(task.classes), 1)
    return {"input_ids": ids, "attention_mask": torch.from_numpy(mask).long(), "labels": labels}


@pytest.fixture(scope="module")
def tabular() -> FederatedData:
    return load_federation(DataSettings(source="breast-cancer"), seed=0)


@pytest.mark.parametrize(
    ("name", "millions"), [("glm-0.1m", 0.09), ("glm-0.5m", 0.48), ("glm-10m", 9.77), ("glm-76m", 76.5)]
)
def test_presets_have_the_sizes_they_are_named_by(name: str, millions: float) -> None:
    preset = PRESETS[name]
    assert preset.hidden % 32 == preset.intermediate % 32 == 0
    config = make_glm_config(preset, vocab_size=256, pad_id=255, bos_id=254, eos_id=253, tied=True)
    with torch.device("meta"):
        model = GlmForCausalLM(config)
    assert sum(p.numel() for p in model.parameters()) == preset.parameter_count(256)
    assert preset.parameter_count(256) / 1e6 == pytest.approx(millions, rel=0.02)
    assert config.head_dim * config.num_attention_heads == config.hidden_size


def test_classifier_size_is_counted_too() -> None:
    model = build_model(ModelSettings(), text_task(("a", "b", "c")), seed=0)
    assert to_vector(model).size == PRESETS["glm-0.1m"].parameter_count(256, 3)


@pytest.mark.parametrize("adapter", ["none", "lora"])
@TASKS
def test_weights_depend_on_the_seed_alone(task: Task, adapter: str) -> None:
    settings = ModelSettings.model_validate({"adapter": adapter})
    before = torch.get_rng_state()
    first = to_vector(build_model(settings, task, seed=1))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert np.array_equal(first, to_vector(build_model(settings, task, seed=1)))
    assert not np.array_equal(first, to_vector(build_model(settings, task, seed=2)))


@TASKS
def test_vector_round_trip(task: Task) -> None:
    model = build_model(ModelSettings(), task, seed=1)
    vector = to_vector(model)
    assert vector.dtype == np.float32
    assert vector.size == sum(p.numel() for p in model.parameters())
    changed = np.random.default_rng(0).normal(size=vector.size).astype(np.float32)
    load_vector(model, changed)
    assert np.array_equal(to_vector(model), changed)
    for wrong in (changed[:-1], changed[None], changed.astype(np.int64), np.full_like(changed, np.nan)):
        with pytest.raises(ModelError):
            load_vector(model, wrong)
    assert np.array_equal(to_vector(model), changed)


def test_a_tied_output_layer_is_federated_once() -> None:
    model = build_model(ModelSettings(), text_task(), seed=1)
    names = [name for name, _ in federated_parameters(model)]
    assert "lm_head.weight" in model.state_dict()
    assert "lm_head.weight" not in names
    assert names[0] == "model.embed_tokens.weight"
    load_vector(model, np.zeros(to_vector(model).size, dtype=np.float32))
    assert not model.lm_head.weight.any()


def test_two_parameters_of_one_storage_are_federated_once() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    model[1].weight = torch.nn.Parameter(model[0].weight.data)
    assert [name for name, _ in federated_parameters(model)] == ["0.weight", "0.bias", "1.bias"]


@TASKS
def test_lora_federates_only_what_trains(task: Task) -> None:
    model = build_model(LORA, task, seed=1)
    names = [name for name, _ in federated_parameters(model)]
    assert all("lora_" in name or "score" in name for name in names)
    assert not any("embed" in name or "lm_head" in name for name in names)
    assert any("score" in name for name in names) == bool(task.classes)
    for layer in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"):
        assert any(layer in name for name in names)
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    task.sequence_losses(model, batch_of(task, "some text", "another")).mean().backward()
    before = to_vector(model)
    optimizer.step()
    assert not np.array_equal(before, to_vector(model))
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)


@pytest.mark.parametrize("adapter", ["none", "lora"])
@TASKS
def test_a_sequence_is_not_coupled_to_its_neighbours(task: Task, adapter: str) -> None:
    model = build_model(ModelSettings.model_validate({"adapter": adapter}), task, seed=1).eval()
    together = batch_of(task, "short", "a much longer neigh", "of another length")
    losses = task.sequence_losses(model, together)
    assert losses.shape == (3,)
    for i in range(3):
        alone = {name: tensor[i : i + 1] for name, tensor in together.items()}
        size = int(alone["attention_mask"].sum())
        cut = {name: tensor[:, :size] if tensor.ndim == 2 else tensor for name, tensor in alone.items()}
        assert losses[i].item() == pytest.approx(task.sequence_losses(model, cut).item(), abs=1e-5)
    weights = [p for p in model.parameters() if p.requires_grad]
    both = torch.autograd.grad(losses[0], weights, retain_graph=True)
    other = batch_of(task, "short", "quite something else")
    for a, b in zip(both, torch.autograd.grad(task.sequence_losses(model, other)[0], weights), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_a_classifier_reads_its_last_own_token() -> None:
    task = text_task(("no", "yes"))
    model = build_model(ModelSettings(), task, seed=1).eval()
    batch = batch_of(task, "abc", "abcdefgh")
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    hidden = model.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    assert torch.allclose(logits, model.score(hidden[torch.arange(2), torch.tensor([3, 8])]), atol=1e-6)


def test_evaluation_is_the_mean_over_tokens_or_records(tabular: FederatedData) -> None:
    for task, examples in [
        (tabular.task, tabular.sites[0].held_out),
        (text_task(length=32), load_federation(DataSettings(source="pydoc", length=32), seed=0).sites[1].held_out),
    ]:
        examples = examples.select(range(min(len(examples), 30)))
        model = build_model(ModelSettings(), task, seed=1)
        evaluation = task.evaluate(model, examples, batch_size=7)
        assert model.training
        batch = examples.batch(range(len(examples)))
        losses = task.sequence_losses(model.eval(), batch).detach().double()
        weights = torch.ones(len(examples)) if task.classes else (examples.lengths - 1).double()
        assert evaluation.loss == pytest.approx(float((losses * weights).sum() / weights.sum()), rel=1e-5)
        assert evaluation.count == int(weights.sum())
        assert evaluation == task.evaluate(model, examples, batch_size=7)
        parts = [task.evaluate(model, examples.select(part)) for part in (range(11), range(11, len(examples)))]
        assert task.pool(parts).loss == pytest.approx(evaluation.loss, rel=1e-6)
        assert task.pool(parts).metric == pytest.approx(evaluation.metric, rel=1e-5)
        if not task.classes:
            assert evaluation.metric == pytest.approx(np.exp(evaluation.loss))


@pytest.mark.parametrize("adapter", ["none", "lora"])
@TASKS
def test_a_release_loads_with_transformers_and_gives_the_same_logits(tmp_path: Path, task: Task, adapter: str) -> None:
    model = build_model(ModelSettings.model_validate({"adapter": adapter}), task, seed=1)
    rng = np.random.default_rng(0)
    load_vector(model, (to_vector(model) + 0.05 * rng.normal(size=to_vector(model).size)).astype(np.float32))
    model.eval()
    before = to_vector(model)
    for _ in range(2):  # the second replaces the first
        save_release(model, task, tmp_path / "model")
    assert np.array_equal(before, to_vector(model))
    assert os.listdir(tmp_path) == ["model"]
    batch = batch_of(task, "one text", "and another one")
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    loader = AutoModelForSequenceClassification if task.classes else AutoModelForCausalLM
    again = loader.from_pretrained(tmp_path / "model").eval()
    expected = model(**inputs).logits
    assert torch.allclose(again(**inputs).logits, expected, atol=1e-5)
    assert again.config.use_cache
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer.encode("one text") == task.tokenizer.encode("one text")
    if task.classes:
        assert list(again.config.id2label.values()) == list(task.classes)
    loaded, read = load_release(tmp_path / "model")
    assert torch.allclose(loaded(**inputs).logits, expected, atol=1e-5)
    assert read.to_json() == task.to_json()


def test_a_table_s_release_carries_its_bins(tmp_path: Path, tabular: FederatedData) -> None:
    task, examples = tabular.task, tabular.sites[0].held_out
    model = build_model(ModelSettings(), task, seed=1)
    save_release(model, task, tmp_path / "new" / "model")
    loaded, read = load_release(tmp_path / "new" / "model")
    assert read.table == task.table
    assert read.evaluate(loaded, examples) == task.evaluate(model, examples)


def test_a_folder_of_something_else_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    task = text_task()
    with pytest.raises(ModelError, match="something else"):
        save_release(build_model(ModelSettings(), task, seed=0), task, tmp_path)
    assert (tmp_path / "thesis.txt").is_file()


def test_bins_start_in_order(tabular: FederatedData) -> None:
    model, table = build_model(ModelSettings(), tabular.task, seed=1), tabular.task.table
    assert table is not None
    rows = model.get_input_embeddings().weight[: table.bins].detach()
    steps = rows.diff(dim=0)
    assert torch.allclose(steps, steps[:1].expand_as(steps), atol=1e-6)
    assert steps.norm() > 0


@pytest.mark.parametrize(
    ("settings", "task", "message"),
    [
        (ModelSettings(preset="glm-01m"), text_task(), "did you mean 'glm-0.1m'"),
        (ModelSettings(preset=None), text_task(), "a preset or a path"),
        (ModelSettings(), text_task(length=2000), "longer than glm-0.1m takes"),
        (ModelSettings(path="/nowhere/at/all"), text_task(), "no local model folder"),
    ],
)
def test_models_that_cannot_be_built(settings: ModelSettings, task: Task, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build_model(settings, task, seed=0)


def jsonl(path: Path, rows: int = 24) -> str:
    lines = [f'{{"text": "{WORDS[4 + i]} of the {WORDS[5 + i]}", "label": "{i % 3}"}}\n' for i in range(rows)]
    path.write_text("".join(lines))
    return str(path)


def test_a_folder_of_another_causal_family(tmp_path: Path) -> None:
    folder = tmp_path / "gpt2"
    GPT2LMHeadModel(
        GPT2Config(vocab_size=40, n_positions=32, n_embd=16, n_layer=2, n_head=2, bos_token_id=2, eos_token_id=3)
    ).save_pretrained(folder)
    word_tokenizer({"eos_token": "[SEP]"}).save_pretrained(folder)
    settings = ModelSettings(path=str(folder), adapter="lora")
    source = DataSettings(source=jsonl(tmp_path / "rows.jsonl"), length=8)
    data = load_federation(source, seed=0, nodes=2, model=settings)
    assert (data.task.pad_id, data.task.eos_id) == (3, 3)
    assert data.sites[0].train.lengths.tolist() == [5] * 10  # four words and the end token
    model = build_model(settings, data.task, seed=0)
    assert all("lora_" in name for name, _ in federated_parameters(model))
    plain = AutoModelForCausalLM.from_pretrained(folder)
    batch = data.sites[0].train.batch([0, 1])
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    assert torch.allclose(model.eval()(**inputs).logits, plain.eval()(**inputs).logits, atol=1e-5)
    with pytest.raises(ModelError, match="longer than the model takes"):
        build_model(settings, replace(data.task, length=64), seed=0)
    with pytest.raises(ModelError, match="40 embeddings"):
        build_model(settings, replace(data.task, vocab_size=41), seed=0)


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_a_folder_of_an_encoder_is_for_classes_alone(tmp_path: Path, adapter: str) -> None:
    shape = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(**shape, intermediate_size=16, max_position_embeddings=16)
    BertForSequenceClassification(config).save_pretrained(tmp_path / "bert")  # two classes: the head starts anew
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    word_tokenizer(special).save_pretrained(tmp_path / "bert")
    settings = ModelSettings.model_validate({"path": str(tmp_path / "bert"), "adapter": adapter})
    source = DataSettings(source=jsonl(tmp_path / "rows.jsonl"), label_field="label", length=8)
    data = load_federation(source, seed=0, nodes=2, model=settings)
    model = build_model(settings, data.task, seed=0)
    names = [name for name, _ in federated_parameters(model)]
    assert any("classifier" in name for name in names)
    assert (adapter == "lora") == (not any("embeddings" in name for name in names))
    assert data.task.sequence_losses(model, data.sites[0].train.batch(range(4))).shape == (4,)
    assert np.array_equal(to_vector(model), to_vector(build_model(settings, data.task, seed=0)))
    save_release(model, data.task, tmp_path / "release")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "release")
    assert data.task.evaluate(again, data.sites[0].held_out).loss == pytest.approx(
        data.task.evaluate(model, data.sites[0].held_out).loss, abs=1e-5
    )
    language = load_federation(DataSettings(source=source.source, length=8), seed=0, nodes=2, model=settings).task
    with pytest.raises(ModelError, match="weights are missing"):
        build_model(settings, language, seed=0)
    BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    with pytest.raises(ModelError, match="sees the token it is to predict"):
        build_model(settings, language, seed=0)


def test_a_release_is_a_start_for_another_task(tmp_path: Path) -> None:
    task = text_task()
    save_release(build_model(ModelSettings(), task, seed=1), task, tmp_path / "language")
    settings = ModelSettings(path=str(tmp_path / "language"))
    source = DataSettings(source=jsonl(tmp_path / "rows.jsonl"), label_field="label", length=16)
    data = load_federation(source, seed=0, nodes=2, model=settings)
    assert data.task.tokenizer is not None
    assert data.task.tokenizer.encode("a")[-1] == EOS_ID
    model = build_model(settings, data.task, seed=0)
    old = AutoModelForCausalLM.from_pretrained(tmp_path / "language")
    assert torch.equal(model.model.embed_tokens.weight, old.model.embed_tokens.weight)
    (tmp_path / "language" / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ModelError, match="no model could be loaded"):
        build_model(settings, data.task, seed=0)
    (tmp_path / "language" / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="no tokenizer could be loaded"):
        load_federation(source, seed=0, nodes=2, model=settings)


def test_nothing_is_said_to_the_user(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    task = text_task()
    save_release(build_model(LORA, task, seed=1), task, tmp_path / "language")
    build_model(ModelSettings(path=str(tmp_path / "language")), text_task(("a", "b")), seed=0)
    model, _ = load_release(tmp_path / "language")
    task.sequence_losses(model, batch_of(task, "text"))
    assert capfd.readouterr() == ("", "")
    assert [str(warning.message) for warning in recwarn] == []
