"""`fedglm predict` from outside: every kind of file in and out, rows that cannot be used, models that do not fit."""

import csv
import gzip
import json
import shutil
import subprocess
import sys

import pytest
from light_process import light_command, pass_for_light
from saved_models import CLASSES, save_model, tasks

from fedglm.autoglm.models.opening import open_model

ROWS = [
    {"text": "slept all night", "patient": 7, "tags": ["a", "b"]},
    {"text": "coughs — 37.2 °C", "patient": 8, "tags": None},
    {"text": "slept all night", "patient": 9, "tags": None},
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    home = tmp_path_factory.mktemp("models")
    return {name: save_model(name, home / name) for name in tasks()}


@pytest.fixture
def notes(tmp_path):
    path = tmp_path / "notes.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS), encoding="utf-8")
    return path


def expected_of(model, rows=ROWS, **options):
    return [prediction.to_dict() for prediction in open_model(model).predict(rows, **options)]


def objects(text):
    return [json.loads(line) for line in text.splitlines()]


def test_rows_come_back_with_label_and_probabilities(fedglm, models, notes, tmp_path):
    out = tmp_path / "new" / "classified.jsonl"
    done = fedglm("predict", models["texts"], notes, "--out", out)
    assert done.code == 0, done.err
    assert objects(out.read_text()) == [
        row | known for row, known in zip(ROWS, expected_of(models["texts"]), strict=True)
    ]
    counts = sorted(known["label"] for known in expected_of(models["texts"]))
    assert done.out.startswith("3 rows: ")
    assert all(f"{counts.count(name)} {name}" in done.out for name in set(counts))
    assert done.out.endswith(f"predictions: {out}\n")
    shown = fedglm("predict", models["texts"], notes)
    assert objects(shown.out) == objects(out.read_text())
    assert shown.out.isascii()
    assert shown.err.startswith("3 rows: ")


def test_a_table_is_read_and_written_as_csv(fedglm, models, tmp_path):
    path, out = tmp_path / "vitals.csv", tmp_path / "out.tsv.gz"
    path.write_text('heat,name,age\n38.5,"Ö, x",20\n,"two\nlines",61\n')
    result = fedglm("predict", models["table"], path, "--out", out, "--json").json
    with gzip.open(out, "rt", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    known = expected_of(models["table"], [[20, 38.5], [61, None]])
    assert [(row["heat"], row["name"], row["age"]) for row in rows] == [
        ("38.5", "Ö, x", "20"),
        ("", "two\nlines", "61"),
    ]
    for row, prediction in zip(rows, known, strict=True):
        assert row["label"] == prediction["label"]
        assert {name: float(row[f"probability_{name}"]) for name in CLASSES} == prediction["probabilities"]
    labels = [prediction["label"] for prediction in known]
    assert result == {
        "rows": 2,
        "left_out": 0,
        "cut": 0,
        "labels": {name: labels.count(name) for name in labels},
        "out": str(out),
    }
    first = out.read_bytes()
    fedglm("predict", models["table"], path, "--out", out)
    assert out.read_bytes() == first, "the same predictions make the same file"


def test_values_of_json_go_into_csv_as_json(fedglm, models, notes, tmp_path):
    out = tmp_path / "out.csv"
    assert fedglm("predict", models["texts"], notes, "--out", out).code == 0
    rows = list(csv.DictReader(out.open(newline="")))
    assert [(row["patient"], row["tags"]) for row in rows] == [("7", '["a", "b"]'), ("8", ""), ("9", "")]
    notes.write_text('{"text": "a"}\n{"text": "b", "ward": "x"}\n')
    line = fedglm("predict", models["texts"], notes, "--out", out).line()
    assert "line 2 has a field 'ward' that the first row lacks" in line
    assert list(csv.DictReader(out.open(newline=""))) == rows, "a file is replaced as a whole or not at all"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


# Rows that cannot be used.


def test_unusable_rows_are_named_and_the_others_classified(fedglm, models, tmp_path):
    path, out = tmp_path / "notes.jsonl", tmp_path / "out.jsonl"
    lines = ['{"text": "a"}', "not json", '{"text": " "}', '{"note": "x"}', '{"text": 7}', '{"text": "\\ud83d"}', "[1]"]
    path.write_text("\n".join([*lines, *["{}"] * 9, '{"text": "b"}', ""]))
    done = fedglm("predict", models["texts"], path, "--out", out)
    assert done.code == 1
    assert [row["text"] for row in objects(out.read_text())] == ["a", "b"]
    said = done.err.splitlines()
    assert len(said) == 11
    for number, word in (
        (2, "not JSON"),
        (3, "blank"),
        (4, "no field 'text'"),
        (5, "not a int"),
        (6, "half a"),
        (7, "list"),
    ):
        assert any(f"{path}, line {number}: " in line and word in line for line in said), (number, said)
    assert said[-1] == "left out: 5 more rows"
    assert "2 rows: " in done.out
    assert "15 left out" in done.out


def test_numbers_that_are_none_are_not_taken_for_missing(fedglm, models, tmp_path):
    path = tmp_path / "vitals.csv"
    path.write_text("age,heat\n20,warm\n30,38\n40\n")
    done = fedglm("predict", models["table"], path, "--json")
    assert (done.code, len(objects(done.out))) == (1, 1)
    assert "line 2: the feature 'heat' must be a number, not 'warm'" in done.err
    assert "line 4: 1 values for 2 fields" in done.err


def test_a_quote_that_is_never_closed_swallows_no_other_row(fedglm, models, tmp_path):
    path = tmp_path / "notes.csv"
    rows = [f"{i},note {i} of the ward" for i in range(40)]
    rows[16] = '16,"quoted and never closed'
    path.write_text("\n".join(["id,text", *rows, ""]))
    done = fedglm("predict", models["texts"], path)
    assert done.code == 1
    assert [row["id"] for row in objects(done.out)] == [str(i) for i in range(40) if i != 16]
    assert f"left out: {path}, line 18: no row of such a file" in done.err


def test_a_file_without_a_usable_row_is_an_error_and_leaves_nothing(fedglm, models, tmp_path):
    path, out = tmp_path / "notes.jsonl", tmp_path / "out.csv"
    for content, said in (("", "no row can be used"), ("{}\n{}\n", "no row can be used; ")):
        path.write_text(content)
        line = fedglm("predict", models["texts"], path, "--out", out)
        assert line.code == 2
        assert said in line.err
        assert not out.exists()


def test_long_texts_are_counted(fedglm, models, tmp_path):
    path = tmp_path / "notes.jsonl"
    path.write_text(json.dumps({"text": "x" * 40}) + "\n" + json.dumps({"text": "x"}) + "\n")
    done = fedglm("predict", models["texts"], path)
    assert done.code == 0
    assert "1 of 2 texts are longer than the 32 tokens that are read\n" in done.err


# Fields.


def test_a_field_of_the_input_is_never_replaced_in_silence(fedglm, models, tmp_path):
    path, out = tmp_path / "notes.csv", tmp_path / "out.csv"
    path.write_text("text,label\nslept,well\ncoughs,ill\n?,\n")
    line = fedglm("predict", models["texts"], path, "--out", out).line()
    assert line.startswith("fedglm: line 2 has a field 'label' already")
    assert "--prefix" in line
    assert not out.exists()
    done = fedglm("predict", models["texts"], path, "--prefix", "p_", "--label-field", "label", "--out", out)
    rows = list(csv.DictReader(out.open(newline="")))
    assert list(rows[0]) == ["text", "label", "p_label", *(f"p_probability_{name}" for name in CLASSES)]
    right = sum(row["label"] == row["p_label"] for row in rows)
    assert f"right: {right} of 2 with a class in 'label' ({right / 2:.2%})" in done.out
    both = fedglm("predict", models["texts"], out, "--text-field", "text").line()
    assert "has a field 'label' already" in both


def test_another_field_may_hold_the_text(fedglm, models, notes):
    notes.write_text(notes.read_text().replace('"text"', '"note"'))
    found = objects(fedglm("predict", models["texts"], notes, "--text-field", "note").out)
    assert [row["label"] for row in found] == [known["label"] for known in expected_of(models["texts"])]


@pytest.mark.parametrize(
    ("model", "file", "options", "said"),
    [
        ("language", "notes.csv", (), "is a language model and has no classes: fedglm generate "),
        ("none", "notes.csv", (), "there is no such folder"),
        ("texts", "none.csv", (), "there is no such file"),
        ("texts", "notes.txt", (), "the name must end in .jsonl, .ndjson, .csv or .tsv"),
        ("texts", "notes.csv", ("--out", "x.parquet"), "x.parquet: the name must end in .jsonl"),
        ("texts", "notes.csv", ("--out", "notes.csv"), "is the file that is read"),
        (
            "texts",
            "notes.csv",
            ("--text-field", "txet"),
            "no field 'txet'; did you mean 'text'? there are: text, label",
        ),
        ("texts", "notes.csv", ("--label-field", "class"), "line 1: no field 'class'"),
        ("table", "notes.csv", (), "no field 'age'; there are: text, label"),
        ("table", "notes.csv", ("--text-field", "text"), "reads the fields of a table: age, heat"),
    ],
)
def test_mistakes_are_one_line(fedglm, models, tmp_path, monkeypatch, model, file, options, said):
    monkeypatch.chdir(tmp_path)
    for name in ("notes.csv", "notes.txt"):
        (tmp_path / name).write_text("text,label\nslept,well\n")
    line = fedglm("predict", models.get(model, "none"), file, *options).line()
    assert said in line


def test_the_extra_of_the_model_is_named(fedglm, models, notes, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert (
        "a model that is no light release needs pip install 'fedglm[node]'"
        in fedglm("predict", models["texts"], notes).line()
    )
    shutil.copy(models["texts"] / "task.json", tmp_path / "task.json")
    (tmp_path / "manifest.json").touch()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    line = fedglm("predict", tmp_path, notes).line()
    assert line == "fedglm: not installed: onnxruntime; a light release needs pip install 'fedglm[edge]'"


# A node without torch.


@pytest.mark.parametrize("name", ["texts", "table"])
def test_a_light_model_is_used_without_torch_flower_or_transformers(fedglm, models, tmp_path, name):
    path = tmp_path / "rows.csv"
    path.write_text("text,age,heat\nslept all night,20,38.5\n37.2 °C,,\n", encoding="utf-8")
    command, env = light_command("predict", pass_for_light(models[name], tmp_path / "light"), path)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(f"{tmp_path / 'light'}: nobody signed it\n")
    for found, expected in zip(objects(done.stdout), objects(fedglm("predict", models[name], path).out), strict=True):
        # float64 in the twin, float32 in torch.
        assert found.pop("probabilities") == pytest.approx(expected.pop("probabilities"), abs=1e-5)
        assert found == expected


@pytest.mark.parametrize(
    ("kind", "zipped"),
    [
        ("jsonl", False),
        ("csv", True),
        pytest.param("jsonl", True, marks=pytest.mark.slow),
        pytest.param("csv", False, marks=pytest.mark.slow),
    ],
)
def test_standard_input_is_recognized(models, notes, tmp_path, kind, zipped):
    content = notes.read_bytes()
    if kind == "csv":
        content = "\ufefftext,patient\nslept all night,7\ncoughs — 37.2 °C,8\nslept all night,9\n".encode()
    command, env = light_command("predict", pass_for_light(models["texts"], tmp_path / "light"), "-")
    given = gzip.compress(content) if zipped else content
    # Standard output is a terminal that knows ASCII alone.
    env |= {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(command, input=given, capture_output=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    found = objects(done.stdout.decode("ascii"))
    assert [row["text"] for row in found] == [row["text"] for row in ROWS]
    assert [row["label"] for row in found] == [known["label"] for known in expected_of(models["texts"])]
    assert [str(row["patient"]) for row in found] == ["7", "8", "9"]


def test_a_key_asks_for_a_signature(fedglm, models, notes, tmp_path):
    key = "ab" * 32
    line = fedglm("predict", models["texts"], notes, "--key", key).line()
    assert line.endswith("is no light release, and so has no signature to be checked")
    assert "64 digits" in fedglm("predict", models["texts"], notes, "--key", "ab").line()
    command, env = light_command("predict", pass_for_light(models["texts"], tmp_path / "light"), notes, "--key", key)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert (done.returncode, done.stderr.splitlines()[0][:8]) == (0, "3 rows: "), done.stderr
