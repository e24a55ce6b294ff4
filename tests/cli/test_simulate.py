"""`fedglm simulate` from outside: the run folder's contract, and every kind of data, model and training."""

import csv
import gzip
import hashlib
import json
import re

import numpy as np
import pytest
import torch
from command_line import rows_of
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from fedglm.autoglm.models.parameters import to_vector
from fedglm.cli.terminal.progress import Progress
from fedglm.cli.terminal.tables import print_summary
from fedglm.run_folder.folder import RunFolder
from fedglm.scenarios.scenario import Scenario

pytestmark = pytest.mark.usefixtures("unrendered")

ROUND_KEYS = {
    *("round", "loss", "uplink_bytes", "downlink_bytes", "dense_uplink_bytes", "dense_downlink_bytes"),
    *("nodes_sampled", "nodes_accepted", "nodes_rejected", "epsilon", "wall_s", "virtual_s"),
}
SUMMARY_KEYS = {
    *("scenario", "seed", "rounds", "parameters", "codec", "density", "loss", "uplink_ratio", "downlink_ratio"),
    *("roundtrip_ratio", "epsilon", "delta", "model_sha256", "wall_s"),
}


def simulate(fedglm, toml, folder, *options, **settings):
    """Summary and rows of a run with the settings, dots written as two underscores; one worker, unless told otherwise.

    The fixture `finished` has one a core, and `test_each_way_to_train_is_sound_and_repeats` shows that bits stay.
    """
    options = options if "--workers" in options else ("--workers", "1", *options)
    sets = [f"--set={key.replace('__', '.')}={json.dumps(value)}" for key, value in settings.items()]
    summary = fedglm("simulate", toml, "--out", folder, "--json", *options, *sets).json
    return summary, rows_of(folder)


def check_rows(rows, summary):
    """What holds for every run."""
    assert [row["round"] for row in rows] == list(range(1, summary["rounds"] + 1))
    for row in rows:
        assert row.keys() >= {*ROUND_KEYS, summary["metric"]}
        assert row["nodes_accepted"] + row["nodes_rejected"] == row["nodes_sampled"]
        assert row["nodes_rejected"] == 0
        assert row["rejections"] == {}
        dense = 4 * summary["parameters"] * row["nodes_sampled"]
        assert (row["dense_uplink_bytes"], row["dense_downlink_bytes"]) == (dense, dense)
        assert (row["epsilon"] is None) == (summary["epsilon"] is None)
    assert np.isfinite(summary["loss"])
    assert summary["loss"] == rows[-1]["loss"]
    for way in ("uplink", "downlink"):
        coded, dense = (sum(row[f"{kind}{way}_bytes"] for row in rows) for kind in ("", "dense_"))
        assert summary[f"{way}_ratio"] == coded / dense
    assert re.fullmatch("[0-9a-f]{64}", summary["model_sha256"])


def sha256_of_weights(model):
    return hashlib.sha256(to_vector(model).astype("<f4").tobytes()).hexdigest()


# The run folder.


def test_json_is_all_that_standard_output_holds(finished):
    assert finished.result.err == ""
    assert finished.left_running == set()
    assert json.loads(finished.result.out) == json.loads((finished.folder / "summary.json").read_text())


def test_the_folder_holds_what_it_promises(finished):
    names = {path.name for path in finished.folder.iterdir() if not path.name.startswith(".")}
    assert names == {
        "scenario.toml",
        "rounds.jsonl",
        "summary.json",
        "model",
        "audit",
        "checkpoint",
        "nodes",
        "report.html",
        "server.key",
    }
    assert {path.name for path in (finished.folder / "nodes").iterdir()} == {"site-0", "site-1"}
    page = (finished.folder / "report.html").read_text()
    assert page.lower().startswith("<!doctype html>")
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page), "the page must not load anything"


def test_rows_and_summary_hold_their_keys(finished):
    check_rows(finished.rows, finished.summary)
    assert finished.summary.keys() >= {*SUMMARY_KEYS, "accuracy"}
    assert finished.summary["epsilon"] is None
    assert finished.summary["privacy"].startswith("No privacy guarantee")
    assert finished.summary["loss"] < finished.summary["initial"]["loss"]


def test_uplink_at_density_5_percent_is_at_most_5_percent(finished):
    assert finished.summary["codec"] == "topk-fp16"
    assert finished.summary["density"] == 0.05
    assert 0.01 < finished.summary["uplink_ratio"] <= 0.05
    assert finished.summary["downlink_ratio"] < 0.1


@pytest.mark.parametrize(
    "codec", ["topk-sign", "lowrank", *(pytest.param(name, marks=pytest.mark.slow) for name in ("topk-int8", "hybrid"))]
)
def test_a_budget_holds_for_what_travels(fedglm, tiny, tmp_path, codec):
    options = {"update__max_ratio": 0.015, "downlink__codec": "lowrank"}
    summary, _ = simulate(fedglm, tiny, tmp_path / "run", "--codec", codec, "--rounds", "2", **options)
    assert 0.01 < summary["uplink_ratio"] <= 0.015
    assert summary["density"] is None


def test_a_budget_for_a_codec_of_fixed_size_is_refused(fedglm, tiny, tmp_path):
    result = fedglm(
        "simulate", str(tiny), "--codec", "int8", "--set", "update.max_ratio=0.1", "--out", str(tmp_path / "r")
    )
    assert result.code == 2
    assert "'int8' has a fixed size" in result.err


def test_the_model_is_the_one_of_the_hash(finished):
    model = AutoModelForSequenceClassification.from_pretrained(finished.folder / "model", local_files_only=True)
    assert sha256_of_weights(model) == finished.summary["model_sha256"]
    assert set(model.config.id2label.values()) == {"high", "low"}
    assert sum(parameter.numel() for parameter in model.parameters()) == finished.summary["parameters"]


def test_feeding_the_scenario_back_repeats_the_run(fedglm, finished, tmp_path):
    kept = finished.folder / "scenario.toml"
    assert Scenario.from_toml(kept.read_text()).to_toml() == kept.read_text()
    summary, rows = simulate(fedglm, kept, tmp_path / "again", "--workers", "1")
    assert (tmp_path / "again" / "scenario.toml").read_text() == kept.read_text()
    assert summary["model_sha256"] == finished.summary["model_sha256"]
    timeless = [{key: value for key, value in row.items() if key != "wall_s"} for row in rows]
    assert timeless == [{key: value for key, value in row.items() if key != "wall_s"} for row in finished.rows]
    assert {**summary, "wall_s": 0} == {**finished.summary, "wall_s": 0}


def test_another_seed_is_another_run(fedglm, finished, tmp_path):
    summary, rows = simulate(fedglm, finished.toml, tmp_path / "run", "--seed", "8", "--rounds", "1")
    assert summary["model_sha256"] != finished.summary["model_sha256"]
    assert rows[0]["loss"] != finished.rows[0]["loss"]


def test_the_table_for_people(fedglm, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    result = fedglm("simulate", tiny, "--rounds", "1", "--workers", "1")
    assert result.code == 0
    assert "loss" in result.err
    assert "rejected" not in result.err
    for word in ("uplink", "downlink", "ratio", "accuracy", "federated, 1 rounds of 2 nodes", "No privacy guarantee"):
        assert word in result.out
    page = re.search(r"report: (runs/tiny-[0-9-]+/report\.html)", result.out)
    assert page
    assert (tmp_path / page[1]).is_file()


def test_text_of_nodes_and_scenarios_is_no_markup(capsys):
    about = {"scenario": "[/x]", "coding": "int8", "nodes": 2, "parameters": 3, "downlink_coding": "int8"}
    about |= {"engine": "inline", "precision": "fp32", "device": "cpu", "precision_reason": "[/x]", "privacy": "[/x]"}
    about |= {"rounds": 2, "metric": "accuracy"}
    with Progress(quiet=False) as progress:
        progress.prepared(about)
        progress.round_started(1, 2)
        progress.reply_taken(1, "[/north] :x:", "the [model] is [/odd]")
        for loss in (None, float("nan")):  # a run that diverged
            progress.round_done([{"loss": loss, "accuracy": loss}])
    said = " ".join(capsys.readouterr().err.split())
    assert "[/x]: 2 nodes" in said
    assert "[/north] :x: was rejected: the [model] is [/odd]" in said
    assert "loss -, accuracy -" in said


def test_a_summary_of_a_run_that_diverged_is_json_and_a_table(finished, tmp_path, capsys):
    nan = float("nan")
    summary = finished.summary | {"scenario": "[/x]", "loss": nan, "accuracy": nan, "initial": {"loss": float("inf")}}
    folder = RunFolder(tmp_path / "[model]")
    folder.write_summary(summary)
    folder.write_rounds([{"round": 1, "loss": nan}])
    assert rows_of(folder.path) == [{"round": 1, "loss": None}]
    found = json.loads((folder.path / "summary.json").read_text(), parse_constant=pytest.fail)
    assert (found["loss"], found["initial"]) == (None, {"loss": None})
    print_summary(found | {"initial": None}, folder.path)
    out = capsys.readouterr().out
    assert "[/x], seed 7" in out
    assert f"report: {folder.path}/report.html\n" in out


def test_list_and_show(fedglm):
    assert fedglm("simulate", "--list", "--json").json.keys() >= {"hospital", "iot", "text"}
    listed = fedglm("simulate", "--list")
    assert all(name in listed.out for name in ("hospital", "iot", "text"))
    shown = fedglm("simulate", "--show", "iot")
    assert Scenario.from_toml(shown.out).name == "iot"
    assert fedglm("--version").out.startswith("fedglm ")


# Codecs, training, server.


def test_dense_float32_costs_what_it_holds(fedglm, tiny, tmp_path):
    settings = {"update__codec": "dense-fp32", "downlink__codec": "dense-fp32", "downlink__grid": "fp32"}
    summary, rows = simulate(fedglm, tiny, tmp_path / "run", "--rounds", "2", **settings)
    check_rows(rows, summary)
    assert summary["density"] == 1.0
    assert 1.0 <= summary["uplink_ratio"] < 1.01
    assert rows[1]["downlink_bytes"] / rows[1]["dense_downlink_bytes"] == pytest.approx(1, abs=0.01)
    # The first model is the initialisation, which every node computes for itself.
    assert rows[0]["downlink_bytes"] < 2000


VARIANTS = {
    "topk-sign": {"update__codec": "topk-sign", "downlink__codec": "topk-sign"},
    "int8 without feedback": {"update__codec": "int8", "update__feedback": False, "downlink__feedback": False},
    "dense-fp16": {"update__codec": "dense-fp16", "downlink__codec": "int8"},
    "nesterov": {"training__server_optimizer": "nesterov"},
    "adam": {"training__server_optimizer": "adam", "training__server_learning_rate": 0.01},
    "declared weights": {"federation__weighting": "declared", "federation__weight_cap": 3.0},
    "metrics from the nodes": {"federation__node_metrics": True},
    "half of four nodes": {"federation__nodes": 4, "federation__fraction": 0.5, "federation__rounds": 3},
    "bf16": {"training__precision": "bf16"},
    "sgd": {"training__optimizer": "sgd", "training__learning_rate": 0.1, "training__momentum": 0.5},
    "warm-up and cosine": {"training__schedule": "cosine", "training__warmup_rounds": 1},
    "a node alone": {"federation__nodes": 1},
}
VARIANTS["much at once"] = {
    key: value
    for name in ("topk-sign", "nesterov", "declared weights", "metrics from the nodes", "bf16", "sgd")
    for key, value in VARIANTS[name].items()
}
QUICK = ("half of four nodes", "much at once")


@pytest.mark.parametrize(
    "settings",
    [pytest.param(v, id=k, marks=[] if k in QUICK else pytest.mark.slow) for k, v in VARIANTS.items()],
)
def test_each_way_to_train_is_sound_and_repeats(fedglm, tiny, tmp_path, settings):
    first, rows = simulate(fedglm, tiny, tmp_path / "a", "--workers", "2", **settings)
    check_rows(rows, first)
    assert first["loss"] < first["initial"]["loss"] + 0.05
    again, _ = simulate(fedglm, tiny, tmp_path / "b", "--workers", "1", **settings)
    assert again["model_sha256"] == first["model_sha256"]
    if settings.get("federation__fraction"):
        assert [row["nodes_sampled"] for row in rows] == [2] * 3
    if settings.get("federation__node_metrics"):
        # Nodes measure what they received: the model of the round before.
        assert rows[0]["received_loss"] == pytest.approx(first["initial"]["loss"], rel=1e-5)
        assert rows[1]["received_loss"] == pytest.approx(rows[0]["loss"], rel=1e-5)
    else:
        assert all("received_loss" not in row for row in rows)


def test_micro_batches_make_the_same_step_but_for_rounding(fedglm, finished, tmp_path):
    options = {"update__codec": "dense-fp32", "federation__rounds": 1, "training__optimizer": "sgd"}
    whole, _ = simulate(fedglm, finished.toml, tmp_path / "whole", **options)
    parts, _ = simulate(fedglm, finished.toml, tmp_path / "parts", training__micro_batch_size=3, **options)
    assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-4)


def test_lora_federates_the_adapters_alone(fedglm, finished, tmp_path):
    summary, rows = simulate(fedglm, finished.toml, tmp_path / "run", "--rounds", "2", model__adapter="lora")
    check_rows(rows, summary)
    assert summary["parameters"] < finished.summary["parameters"] / 2
    # What is released has the adapters merged in, and is a plain model again.
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model", local_files_only=True)
    assert sum(parameter.numel() for parameter in model.parameters()) == finished.summary["parameters"]
    assert not any("lora" in name for name, _ in model.named_parameters())


def test_a_released_model_can_be_trained_on(fedglm, finished, tmp_path):
    path = str(finished.folder / "model")
    summary, _ = simulate(fedglm, finished.toml, tmp_path / "run", "--rounds", "1", model__path=path)
    assert summary["initial"]["loss"] == pytest.approx(finished.summary["loss"], rel=1e-2)


def test_baselines_are_trained_and_told(fedglm, tiny, tmp_path):
    options = {"evaluation__baselines": ["alone", "pooled"], "training__learning_rate": 0.01}
    summary, _ = simulate(fedglm, tiny, tmp_path / "run", **options)
    assert summary["baselines"]["pooled"]["loss"] < summary["initial"]["loss"]
    assert 0 <= summary["baselines"]["alone"]["accuracy"] <= 1
    assert [site["alone"]["accuracy"] is not None for site in summary["sites"]] == [True, True]


# A user's own data.

WARDS = ("nord/ost", "süd", "..")


def notes(path, count=24):
    rows = [
        {
            "id": f"{ward}-{unit // 2}",
            "ward": ward,
            "text": f"Ward {ward}: patient {unit} {'slept' if unit % 2 else 'coughs'} all night — 37.{unit % 10} °C",
            "kind": "well" if unit % 2 else "ill",
        }
        for ward in WARDS
        for unit in range(count)
    ]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def fields(path):
    return ("--data", path, "--site-field", "ward", "--unit-field", "id", "--rounds", "2", "--set", "data.length=48")


def test_notes_of_sites_become_a_language_model(fedglm, plain, tmp_path):
    out = tmp_path / "run"
    summary, rows = simulate(fedglm, plain, out, *fields(notes(tmp_path / "notes.jsonl")))
    check_rows(rows, summary)
    assert (summary["metric"], summary["nodes"]) == ("perplexity", 3)
    assert rows[-1]["perplexity"] == pytest.approx(np.exp(rows[-1]["loss"]), rel=1e-3)
    assert {site["name"] for site in summary["sites"]} == set(WARDS)
    # Names of sites come from the data: none of them leads out of the folder.
    assert len(list((out / "nodes").iterdir())) == 3
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == ["audit", "checkpoint", "model", "nodes"]
    model = AutoModelForCausalLM.from_pretrained(out / "model", local_files_only=True)
    assert sha256_of_weights(model) == summary["model_sha256"]
    tokenizer = AutoTokenizer.from_pretrained(out / "model", local_files_only=True)
    assert tokenizer.decode(tokenizer("süd — 37 °C")["input_ids"], skip_special_tokens=True) == "süd — 37 °C"
    with torch.no_grad():
        assert torch.isfinite(model(**tokenizer("Ward", return_tensors="pt")).logits).all()


def test_notes_with_a_label_become_a_classifier(fedglm, plain, tmp_path):
    out = tmp_path / "run"
    summary, rows = simulate(fedglm, plain, out, *fields(notes(tmp_path / "n.jsonl")), "--label-field", "kind")
    check_rows(rows, summary)
    assert (summary["metric"], summary["nodes"]) == ("accuracy", 3)
    model = AutoModelForSequenceClassification.from_pretrained(out / "model", local_files_only=True)
    assert sorted(model.config.id2label.values()) == ["ill", "well"]
    assert sha256_of_weights(model) == summary["model_sha256"]


def test_a_zipped_csv_with_ranges_becomes_a_table(fedglm, plain, tmp_path):
    path = tmp_path / "table.csv.gz"
    with gzip.open(path, "wt", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["Größe, cm", "kg", "sick", "house"])
        writer.writerows(
            [150 + i % 50, "" if i % 9 == 0 else 50 + i % 40, "yn"[i % 3 == 0], "AB"[i % 2]] for i in range(80)
        )
    settings = {
        "data__feature_fields": ["Größe, cm", "kg"],
        "data__label_field": "sick",
        "data__site_field": "house",
        "federation__rounds": 1,
    }
    ranges = '--set=data.feature_ranges={"Größe, cm" = [100, 220], kg = [30, 200]}'
    summary, rows = simulate(fedglm, plain, tmp_path / "run", ranges, "--data", path, **settings)
    check_rows(rows, summary)
    assert summary["data"]["task"] == "tabular-classification"
    assert [site["name"] for site in summary["sites"]] == ["A", "B"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hospital", "iot", "text"])
def test_built_in_scenarios_run(fedglm, tmp_path, name):
    summary, rows = simulate(fedglm, name, tmp_path / "run", "--rounds", "2", evaluation__baselines=[])
    check_rows(rows, summary)
    assert summary["uplink_ratio"] < 0.05
