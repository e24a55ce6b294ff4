import dataclasses
import gzip
import json

import numpy as np
import pytest
import torch
from tiny_glms import CLASSES, LANGUAGE, tiny_glm

from fedglm.autoglm.errors import DataError
from fedglm.autoglm.federation import load_federation
from fedglm.autoglm.light.docstrings import read_docstrings
from fedglm.autoglm.light.model_made import sample_examples
from fedglm.autoglm.light.public_text import load_public_text
from fedglm.autoglm.models.build import build_model
from fedglm.autoglm.settings import DataSettings, ModelSettings

BYTES = DataSettings(source="pydoc", length=32)


def write_rows(path, count=30, **more):
    rows = [{"text": f"answer {row} of many, and then some more text", "unit": f"d{row // 3}"} | more
            for row in range(count)]  # fmt: skip
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


@pytest.fixture(scope="module")
def language():
    task = load_federation(BYTES, nodes=1, seed=0).task
    return task, build_model(ModelSettings(), task, seed=0)


def load(source, language, settings=BYTES, **more):
    task, model = language
    return load_public_text(source, settings, task, model, **({"seed": 1, "max_sequences": 60} | more))


def units(examples):
    return set(examples.units.tolist())


def contents(examples):
    return {tuple(ids[:length].tolist()) for ids, length in zip(examples.input_ids, examples.lengths, strict=True)}


# --- where text comes from


def test_pydoc_takes_docstrings_of_which_none_is_at_a_site(language):
    text = load("auto", language)
    assert (text.kind, len(text.train) + len(text.held_out)) == ("docstrings", 60)
    again = load("auto", language)
    assert (text.sha256, contents(text.train)) == (again.sha256, contents(again.train))
    assert load("auto", language, seed=2).sha256 != text.sha256
    site = load_federation(BYTES, nodes=1, seed=0).sites[0]
    long = {ids for part in (text.train, text.held_out) for ids in contents(part) if len(ids) == 32}
    assert not long & (contents(site.train) | contents(site.held_out))


def test_docstrings_are_read_up_to_a_size():
    few, more = (read_docstrings(size, seed=5) for size in (10_000, 30_000))
    assert more.units[: len(few)] == few.units
    assert all(long.startswith(text) for text, long in zip(few.texts, more.texts, strict=False))
    assert 10_000 <= sum(map(len, few.texts)) < sum(map(len, more.texts))
    assert len(few) >= 20
    assert len(set(more.units)) == len(more)


def test_a_table_takes_the_rows_that_are_at_no_site():
    settings = DataSettings(source="breast-cancer")
    data = load_federation(settings, nodes=2, seed=0)
    text = load_public_text("auto", settings, data.task, tiny_glm(), seed=1)
    public = contents(text.train) | contents(text.held_out)
    assert (text.kind, len(text.train) + len(text.held_out)) == ("built-in", 69)
    assert not public & {row for site in data.sites for part in (site.train, site.held_out) for row in contents(part)}


def test_a_files_documents_are_on_one_side_each(language, tmp_path):
    settings = DataSettings(source=str(tmp_path / "private.jsonl"), length=32, unit_field="unit")
    for name in ("public.jsonl", "public.jsonl.gz"):
        text = load(write_rows(tmp_path / name), language, settings, max_sequences=1000)
        assert text.kind == "file"
        assert not units(text.train) & units(text.held_out)
        assert len(units(text.train) | units(text.held_out)) == 10
    without_units = settings.model_copy(update={"unit_field": "patient"})
    text = load(write_rows(tmp_path / "rows.jsonl"), language, without_units, max_sequences=1000)
    assert len(units(text.train) | units(text.held_out)) == 30


def test_a_classifier_takes_a_file_with_its_classes_only(tmp_path):
    settings = DataSettings(source=str(tmp_path / "private.jsonl"), label_field="label", length=8)
    task = load_federation(settings.model_copy(update={
        "source": write_rows(tmp_path / "some.jsonl", label="yes"), "class_names": ("no", "yes")}),
        nodes=1, seed=0).task  # fmt: skip
    text = load_public_text(write_rows(tmp_path / "public.jsonl", label="yes"), settings, task, tiny_glm(), seed=1)
    assert set(text.train.labels.tolist()) == {1}
    with pytest.raises(DataError, match="not in class_names"):
        load_public_text(write_rows(tmp_path / "other.jsonl", label="hm"), settings, task, tiny_glm(), seed=1)


# --- it fails closed


def test_the_sites_own_file_is_refused_under_any_name(language, tmp_path):
    own = write_rows(tmp_path / "sites.jsonl")
    settings = DataSettings(source=own, length=32)
    (tmp_path / "link.jsonl").symlink_to(own)
    (tmp_path / "copy.jsonl").write_bytes((tmp_path / "sites.jsonl").read_bytes())
    indirect = f"{tmp_path}/../{tmp_path.name}/sites.jsonl"
    for name in (own, indirect, str(tmp_path / "link.jsonl"), str(tmp_path / "copy.jsonl")):
        with pytest.raises(DataError, match="records of the run's own sites"):
            load(name, language, settings)
        assert load(name, language, settings, sites_data_are_public=True).kind == "file"
    elsewhere = DataSettings(source="/nowhere/sites.jsonl", length=32)
    with pytest.raises(DataError, match="records of the run's own sites"):
        load("/nowhere/sites.jsonl", language, elsewhere)


def test_without_public_text_nothing_is_taken(language, tmp_path):
    settings = DataSettings(source=write_rows(tmp_path / "sites.jsonl"), length=32)
    with pytest.raises(DataError, match="the sites' own are never used"):
        load("auto", language, settings)
    with pytest.raises(DataError, match="auto, model or a file, not 'pydoc'"):
        load("pydoc", language)
    with pytest.raises(DataError, match="there is no such file"):
        load(str(tmp_path / "missing.jsonl"), language)
    (tmp_path / "one.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(DataError, match="too little to hold some out"):
        load(str(tmp_path / "one.jsonl"), language)
    with pytest.raises(DataError, match="makes no text"):
        sample_examples(tiny_glm(CLASSES), CLASSES, 4, seed=0)


# --- what a model makes


def test_a_model_makes_text_by_its_own_distribution():
    model = tiny_glm(spread=8.0).eval()
    made = sample_examples(model, dataclasses.replace(LANGUAGE, length=2), 2000, seed=3)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[LANGUAGE.bos_id]])).logits[0, -1]
    logits[[LANGUAGE.pad_id, LANGUAGE.bos_id]] = -torch.inf
    counts = np.bincount(made.input_ids[:, 1].numpy(), minlength=LANGUAGE.vocab_size)

    def chi_square(temperature):
        wanted = 2000 * torch.softmax(logits / temperature, -1).numpy()
        likely = wanted >= 5
        parts = np.append(wanted[likely], wanted[~likely].sum()), np.append(counts[likely], counts[~likely].sum())
        kept = parts[0] > 0
        return float(((parts[1] - parts[0])[kept] ** 2 / parts[0][kept]).sum()), int(kept.sum()) - 1

    found, freedom = chi_square(1.0)
    # Mean k and variance 2 k under the model's own distribution: five deviations.
    assert found < freedom + 5 * np.sqrt(2 * freedom)
    found, freedom = chi_square(2.0)
    assert found > freedom + 10 * np.sqrt(2 * freedom)


def test_made_text_is_whole_and_seeded():
    model = tiny_glm(spread=8.0)
    made, again, other = (sample_examples(model, LANGUAGE, 70, seed=seed) for seed in (3, 3, 4))
    assert model.training
    assert torch.equal(made.input_ids, again.input_ids)
    assert not torch.equal(made.input_ids, other.input_ids)
    assert len(made) == len(units(made)) == 70
    for ids, length in zip(made.input_ids.tolist(), made.lengths.tolist(), strict=True):
        assert ids[0] == LANGUAGE.bos_id
        assert not {LANGUAGE.pad_id, LANGUAGE.bos_id} & set(ids[1:length])
        assert set(ids[length:]) <= {LANGUAGE.pad_id}
        assert LANGUAGE.eos_id not in ids[: length - 1]
        assert ids[length - 1] == LANGUAGE.eos_id or length == LANGUAGE.length


def test_a_model_continues_what_it_began():
    # With the cache of keys and values as without: each token is drawn from the distribution behind those before it.
    model = tiny_glm(spread=8.0).eval()
    made = sample_examples(model, LANGUAGE, 50, seed=3, temperature=1e-3)
    batch = made.batch(range(50))
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"]).logits
    logits[..., [LANGUAGE.pad_id, LANGUAGE.bos_id]] = -torch.inf
    real = batch["attention_mask"][:, 1:].bool()
    assert torch.equal(logits[:, :-1].argmax(-1)[real], batch["input_ids"][:, 1:][real])


def test_a_classifier_of_tables_labels_rows_it_is_given():
    settings = DataSettings(source="breast-cancer")
    task = load_federation(settings, nodes=1, seed=0).task
    model = build_model(ModelSettings(), task, seed=0)
    text = load_public_text("model", settings, task, model, seed=1, max_sequences=40)
    assert (text.kind, len(text.train) + len(text.held_out)) == ("model", 40)
    _, correct = task.measure(model, text.train)
    assert correct.all()
    table = task.table
    firsts = torch.arange(len(table.names)) * (table.bins + 1)
    bins = text.train.input_ids[:, :-1].long() - firsts
    assert ((bins >= 0) & (bins < table.bins)).all()
    assert (text.train.input_ids[:, -1] == table.end_id).all()
