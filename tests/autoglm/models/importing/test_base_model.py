"""An imported Llama computes what transformers' own does; a damaged or foreign source is refused in one line."""

import contextlib
import json
import pickle
import shutil

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_models import logits_of, make_model, make_tokenizer, save_folder, save_gguf
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GlmForCausalLM

from fedglm.autoglm.errors import ModelError
from fedglm.autoglm.models.build import build_model
from fedglm.autoglm.models.importing.base_model import import_base
from fedglm.autoglm.models.importing.conversion import interleave_halves
from fedglm.autoglm.models.importing.gguf_header import read_gguf_header
from fedglm.autoglm.settings import ModelSettings
from fedglm.autoglm.tasks.language_modeling import LanguageModeling

IDS = np.random.default_rng(3).integers(0, 300, (2, 40))
SHAPES = [
    {},
    {"tied": False},
    {"heads": 4, "kv_heads": 4},
    {"head_dim": 32},
    {"biases": True},
    {"biases": True, "tied": False, "heads": 2, "kv_heads": 1},
]
"""What may differ between Llamas."""


def imported(source, folder):
    made = import_base(source, folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert type(model) is GlmForCausalLM
    assert made.parameters == sum(weight.numel() for weight in model.parameters())
    assert made.nbytes == sum(path.stat().st_size for path in folder.iterdir())
    return model


def assert_same(ours, theirs):
    scale = np.abs(theirs).max()
    assert np.abs(ours - theirs).max() < 1e-4 * scale  # 2 layers of float32, in another order


@pytest.mark.parametrize("changed", SHAPES, ids=str)
@pytest.mark.parametrize("save", [save_folder, save_gguf])
def test_a_glm_computes_what_the_llama_does(save, changed, tmp_path):
    llama = make_model(**changed)
    glm = imported(save(llama, tmp_path / "source"), tmp_path / "glm")
    assert_same(logits_of(glm, IDS), logits_of(llama, IDS))


def test_the_order_of_rows_matters(tmp_path):
    llama = make_model()
    path = save_gguf(llama, tmp_path / "source")
    glm = imported(path, tmp_path / "glm")
    for layer in glm.model.layers:
        layer.self_attn.q_proj.weight.data = torch.from_numpy(
            interleave_halves(layer.self_attn.q_proj.weight.detach().numpy(), heads=4, rotary_dim=16)
        )
    wrong, right = logits_of(glm, IDS), logits_of(llama, IDS)
    assert np.abs(wrong - right).max() > 0.01 * np.abs(right).max()


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 4), st.booleans())
@settings(max_examples=20)
def test_halves_are_interleaved_and_the_rest_of_a_head_stays(heads, half, rest, is_bias):
    rows = heads * (2 * half + rest)
    values = np.arange(rows, dtype=np.float32) if is_bias else np.arange(3.0 * rows, dtype=np.float32).reshape(rows, 3)
    done = interleave_halves(values, heads=heads, rotary_dim=2 * half).reshape(heads, 2 * half + rest, -1)
    before = values.reshape(heads, 2 * half + rest, -1)
    assert np.array_equal(done[:, 0 : 2 * half : 2], before[:, :half])
    assert np.array_equal(done[:, 1 : 2 * half : 2], before[:, half : 2 * half])
    assert np.array_equal(done[:, 2 * half :], before[:, 2 * half :])


@pytest.mark.parametrize("kind", [Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1])
def test_quantized_weights_are_what_gguf_reads(kind, tmp_path):
    path = save_gguf(make_model(), tmp_path / "source.gguf", kind=kind)
    glm = imported(path, tmp_path / "glm").state_dict()
    theirs = {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in gguf.GGUFReader(path).tensors
    }
    assert np.array_equal(glm["model.embed_tokens.weight"].numpy(), theirs["token_embd.weight"])
    fused = np.concatenate([theirs["blk.1.ffn_gate.weight"], theirs["blk.1.ffn_up.weight"]])
    assert np.array_equal(glm["model.layers.1.mlp.gate_up_proj.weight"].numpy(), fused)
    assert np.array_equal(glm["model.layers.0.self_attn.k_proj.weight"].numpy(), theirs["blk.0.attn_k.weight"])


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save_gguf(make_model(), tmp_path_factory.mktemp("gguf") / "source.gguf")


@pytest.fixture(scope="module")
def glm_folder(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("glm") / "made"
    seen = []
    import_base(source, folder, progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]
    return folder


@given(text=st.text() | st.sampled_from(["12345 mg </s> x  y\n\n", "<s>the patient", ""]))
@settings(max_examples=50)
def test_the_tokenizer_of_a_gguf_reads_texts_as_the_original(text, glm_folder):
    ours, theirs = tokenizers(glm_folder)
    assert ours(text)["input_ids"] == theirs(text)["input_ids"]
    assert ours.decode(ours(text)["input_ids"]) == theirs.decode(theirs(text)["input_ids"])


_KEPT = {}


def tokenizers(folder):
    if folder not in _KEPT:
        _KEPT[folder] = (AutoTokenizer.from_pretrained(folder), make_tokenizer())
    return _KEPT[folder]


def test_special_tokens_are_kept_and_the_end_is_the_padding(glm_folder):
    ours, _ = tokenizers(glm_folder)
    assert (ours.bos_token_id, ours.eos_token_id, ours.pad_token_id) == (1, 2, 2)
    config = json.loads((glm_folder / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (1, 2, 2)


def test_texts_begin_with_the_token_that_the_file_says(tmp_path):
    import_base(save_gguf(make_model(), tmp_path / "s", metadata=lambda w: w.add_add_bos_token(True)), tmp_path / "glm")
    assert AutoTokenizer.from_pretrained(tmp_path / "glm")("aspirin")["input_ids"][0] == 1


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_it_is_a_base_model_of_a_federation(glm_folder, adapter):
    task = LanguageModeling(length=32, vocab_size=300, pad_id=2, bos_id=1, eos_id=2)
    chosen = ModelSettings.model_validate({"preset": None, "path": str(glm_folder), "adapter": adapter})
    model = build_model(chosen, task, seed=0)
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert all("lora" in name for name in trained) == (adapter == "lora")


# What is refused.


def refused(source, tmp_path):
    with pytest.raises(ModelError) as caught:
        import_base(source, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    said = str(caught.value)
    assert said.startswith(str(source))
    assert "\n" not in said
    return said


@pytest.mark.parametrize(
    ("metadata", "tensors", "said"),
    [
        (lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.YARN), {}, "scales its rotary frequencies"),
        (None, {"rope_freqs.weight": np.ones(8, np.float32)}, "rope_freqs"),
        (None, {"blk.0.attn_output.bias": np.ones(64, np.float32)}, "no place for 1 of its tensors"),
        (lambda w: w.add_rope_dimension_count(15), {}, "rotates 15 of the 16"),
        (lambda w: w.add_value_length(8), {}, "keys and its values have different"),
        (lambda w: w.add_add_bos_token(True) or w.add_unk_token_id(999), {}, "it has 300 tokens"),
    ],
)
def test_what_no_glm_represents_is_refused(metadata, tensors, said, tmp_path):
    path = save_gguf(make_model(), tmp_path / "s.gguf", metadata=metadata, tensors=tensors)
    assert said in refused(path, tmp_path)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model_type": "gpt2"}, "'gpt2'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"sliding_window": 64}, "see a window"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "scales its rotary frequencies ('llama3')"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": None}, "('linear')"),
        ({"num_hidden_layers": 10**9}, "has 1000000000 layers and holds"),
        ({"num_hidden_layers": 3}, "model.layers.2.self_attn.q_proj.weight is missing"),
        ({"num_hidden_layers": 1}, "no place for"),
        ({"intermediate_size": 97}, "has the shape (96, 64), and (97, 64) is wanted"),
        ({"hidden_size": "64"}, "no positive number"),
        ({"vocab_size": -1}, "vocab_size is -1"),
        ({"num_key_value_heads": 3}, "cannot share"),
        ({"rms_norm_eps": 2}, "out of range"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(changed, said, tmp_path):
    folder = save_folder(make_model(), tmp_path / "source")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changed))
    assert said in refused(folder, tmp_path)


def test_biases_that_a_glm_lacks_are_refused(tmp_path):
    llama = make_model(attention_bias=True)
    assert "o_proj.bias" in refused(save_folder(llama, tmp_path / "source"), tmp_path)


def test_pickles_are_not_read(tmp_path):
    folder = save_folder(make_model(), tmp_path / "source")
    (folder / "model.safetensors").unlink()

    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    assert "take safetensors" in refused(folder, tmp_path)
    (folder / "model.safetensors").write_bytes((folder / "pytorch_model.bin").read_bytes())
    assert "no safetensors file" in refused(folder, tmp_path)
    assert not (tmp_path / "sprung").exists()
    assert "no GGUF file" in refused(folder / "pytorch_model.bin", tmp_path)


def test_an_index_names_files_of_its_folder_alone(tmp_path):
    folder = save_folder(make_model(), tmp_path / "source")
    shutil.move(folder / "model.safetensors", tmp_path / "other.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": "../other.safetensors"}}))
    assert "does not name files of the folder" in refused(folder, tmp_path)


def test_shards_are_one_model(tmp_path):
    llama = make_model()
    folder = save_folder(llama, tmp_path / "source")
    (folder / "model.safetensors").unlink()
    llama.save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    assert_same(logits_of(imported(folder, tmp_path / "glm"), IDS), logits_of(llama, IDS))


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    llama = make_model()
    llama.model.layers[1].mlp.up_proj.weight.data[3, 4] = float("nan")
    assert "layers.1.mlp.up_proj.weight holds NaN" in refused(save_gguf(llama, tmp_path / "s.gguf"), tmp_path)
    folder = save_folder(make_model(), tmp_path / "source")
    weights = {name: w.to(torch.int8) for name, w in llama.state_dict().items() if name != "lm_head.weight"}
    save_file(weights, folder / "model.safetensors")
    assert "stored as torch.int8" in refused(folder, tmp_path)


def test_memory_is_asked_for_before_it_is_taken(source, tmp_path, monkeypatch):
    monkeypatch.setattr("fedglm.autoglm.models.importing.conversion.read_memory_limit", lambda: 10_000)
    assert "are free" in refused(source, tmp_path)


def test_a_folder_that_holds_something_is_left_alone(source, tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "thesis").write_text("mine")
    with pytest.raises(ModelError, match="holds something already"):
        import_base(source, tmp_path / "made")
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["thesis"]


def test_what_is_not_there_is_named(tmp_path):
    assert "nothing is ever downloaded" in refused(tmp_path / "gone.gguf", tmp_path)
    (tmp_path / "empty").mkdir()
    assert "config.json" in refused(tmp_path / "empty", tmp_path)


@given(data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_header_is_refused_or_read(data, source, tmp_path):
    whole = bytearray(source.read_bytes())
    header = read_gguf_header(source)
    start = min(tensor.offset for tensor in header.tensors.values())
    if data.draw(st.booleans(), label="cut off"):
        whole = whole[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        at = data.draw(st.integers(0, start - 1) | st.integers(0, 400))
        whole[at] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.gguf"
    path.write_bytes(whole)
    shutil.rmtree(tmp_path / "made", ignore_errors=True)
    with contextlib.suppress(ModelError):  # and nothing else is raised
        import_base(path, tmp_path / "made")


@pytest.mark.parametrize("claim", ["tensors", "entries", "text", "array"])
def test_lengths_are_checked_before_they_are_believed(claim, tmp_path):
    many = (2**60).to_bytes(8, "little")
    one = (1).to_bytes(8, "little")
    head = b"GGUF" + (3).to_bytes(4, "little")
    body = {
        "tensors": head + many + one,
        "entries": head + one + many,
        "text": head + bytes(8) + one + many + b"x",
        "array": head + bytes(8) + one + one + b"x" + (9).to_bytes(4, "little") + bytes(4) + many,
    }[claim]
    (tmp_path / "s.gguf").write_bytes(body + bytes(100))
    assert refused(tmp_path / "s.gguf", tmp_path)
