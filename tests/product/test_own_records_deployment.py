"""Three real sites with records of their own: the bits of a simulation by `site_field`, whatever model is trained."""

import csv
import json
import shutil

import pytest
from command_line import run_here
from real_federation import Federation, fill_in, told
from transformers import LlamaConfig, LlamaForCausalLM

from fedglm.autoglm.data.tokenizer import make_byte_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

SITES = 3
ROWS = [
    {"hospital": f"site-{i % SITES}", "patient": f"p{i // 2}", "note": f"pain {'in the chest' if i % 5 < 2 else i}",
     "code": "heart" if i % 5 < 2 else "other"}
    for i in range(180)
]  # fmt: skip
SCENARIO = """
name = "notes"
[federation]
rounds = 2
[data]
source = "{source}"
text_field = "note"
label_field = "code"
unit_field = "patient"
class_names = ["heart", "other"]
length = 32
{more}
[training]
local_steps = 3
batch_size = 8
[update]
codec = "topk-fp16"
density = 0.1
"""
LORA = ("--set", "model.adapter=lora", "--set", "model.lora_rank=2")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A Hugging Face folder that is no GLM."""
    folder = tmp_path_factory.mktemp("base") / "llama"
    sizes = {"vocab_size": 256, "hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 64}
    config = LlamaConfig(**sizes, num_attention_heads=2, num_hidden_layers=2, bos_token_id=254, eos_token_id=253)
    LlamaForCausalLM(config).save_pretrained(folder)
    make_byte_tokenizer(append_end=True).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def federation(tmp_path_factory, base):
    """Each site has its own rows of the file, and its copy of the folder."""

    def prepare(home):
        with (home / "records.jsonl").open("w") as file:
            for row in ROWS:
                if row["hospital"] == home.name:
                    file.write(json.dumps({key: row[key] for key in ("patient", "note", "code")}) + "\n")
        shutil.copytree(base, home / "llama")
        fields = {"source": "records.jsonl", "text_field": "note", "label_field": "code", "unit_field": "patient"}
        values = {key: f'"{value}"' for key, value in fields.items()}
        fill_in(home / "site.toml", values | {"class_names": '["heart", "other"]', "path": '"llama"'})

    with Federation(tmp_path_factory.mktemp("own"), SITES, prepare=prepare) as made:
        made.start()
        yield made
        made.stop()


def write_scenario(folder):
    path = folder / "notes.toml"
    path.write_text(SCENARIO.format(source="./nowhere.csv", more=""))
    return path


@pytest.mark.parametrize("kind", ["preset", "preset with LoRA", "folder with LoRA"])
def test_it_ends_with_the_bits_of_the_simulation_of_the_same_rows(federation, base, tmp_path, kind):
    whole, scenario, simulated = tmp_path / "all.csv", write_scenario(tmp_path), tmp_path / "simulated.toml"
    with whole.open("w", newline="") as file:
        writer = csv.DictWriter(file, ROWS[0])
        writer.writeheader()
        writer.writerows(ROWS)
    simulated.write_text(SCENARIO.format(source=whole, more='site_field = "hospital"'))
    options = LORA if "LoRA" in kind else ()
    if "folder" in kind:
        options += ("--set", f"model.path={base}")
    expected = told(run_here("simulate", simulated, "--out", tmp_path / "run", "--json", *options)).json
    with federation.run(scenario, kind.replace(" ", "-"), *options) as process:
        summary = told(process.finish(timeout=900)).json
    assert [(row["nodes_accepted"], row["nodes_rejected"]) for row in federation.rounds(summary["run"])] == [(3, 0)] * 2
    assert summary["model_sha256"] == expected["model_sha256"]
    for name in federation.names:  # and each site holds that model, knows what it is, and can use it
        held = told(run_here("client", "model", federation.site(name), "--json")).json
        assert (held["name"], held["model_sha256"], held["verified"]) == (summary["run"], summary["model_sha256"], True)
    rows, out = tmp_path / "new.jsonl", tmp_path / "classified"
    out.mkdir()
    rows.write_text("".join(json.dumps({"note": row["note"]}) + "\n" for row in ROWS[:6]))
    run = federation.project / "runs" / summary["run"]
    for words in (("client", "predict", rows, "-C", federation.site("site-1")), ("predict", run, rows)):
        told(run_here(*words, "--text-field", "note", "--out", out / f"{words[0]}.jsonl"))
    assert (out / "client.jsonl").read_text() == (out / "predict.jsonl").read_text()
    assert len((out / "client.jsonl").read_text().splitlines()) == 6


def test_a_run_trains_on_from_the_model_that_sites_hold_or_have_lost(federation, tmp_path):
    """After the runs above: their sites know the model by its hash, and one gets it from the server."""
    first = json.loads((federation.project / "runs" / "preset" / "summary.json").read_text())
    scenario = write_scenario(tmp_path)
    for lost, name in ((False, "on"), (True, "on-again")):
        if lost:
            shutil.rmtree(federation.site("site-2") / "state" / "models")
        start = "preset" if not lost else federation.project / "runs" / "preset"
        with federation.run(scenario, name, "--start-from", start) as process:
            summary = told(process.finish(timeout=900)).json
        begun = json.loads((federation.project / "runs" / name / "run.json").read_text())
        assert begun["initial_sha256"] == first["model_sha256"]
        assert [row["nodes_accepted"] for row in federation.rounds(name)] == [3, 3]
        held = told(run_here("client", "model", federation.site("site-2"), "--json")).json
        assert held["model_sha256"] == summary["model_sha256"] != first["model_sha256"]
    both = [
        json.loads((federation.project / "runs" / name / "summary.json").read_text()) for name in ("on", "on-again")
    ]
    assert both[0]["model_sha256"] == both[1]["model_sha256"]
    refused = run_here("run", scenario, "-C", federation.project, "--start-from", "preset-with-LoRA")
    assert "has other parameters" in refused.line()
