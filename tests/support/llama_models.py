"""Small Llamas with random weights: as folders of transformers, and as GGUF files, by the writers of both."""

import json

import gguf
import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

TEXT = ["the patient was given 250 mg of aspirin in 2019, and was well", "thé pätient has a cold and a cough"] * 20


def make_tokenizer():
    """A byte-level BPE of 300 tokens, which splits numbers into digits as SmolLM2's does."""
    backend = Tokenizer(models.BPE())
    split = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    backend.pre_tokenizer = pre_tokenizers.Sequence(split)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, **dict(zip(("unk_token", "bos_token", "eos_token"), specials, strict=True))
    )


def make_model(*, biases=False, tied=True, heads=4, kv_heads=2, seed=0, **changed):
    """A Llama, or a Qwen2, which is one with biases, whose weights are all random and none is a norm's 1."""
    kind, model = (Qwen2Config, Qwen2ForCausalLM) if biases else (LlamaConfig, LlamaForCausalLM)
    options = {
        "vocab_size": 320,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        "tie_word_embeddings": tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    made = model(kind(**options | changed)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3 + ("norm" in name))
    return made


def save_folder(model, folder):
    """The model and a tokenizer, as transformers saves them."""
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def permute(weight, heads):
    """The order of rows that llama.cpp's convert_hf_to_gguf.py (LlamaModel.permute) gives to q and k."""
    return weight.reshape(heads, 2, len(weight) // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


GGUF_NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "model.embed_tokens": "token_embd",
    "model.norm": "output_norm", "lm_head": "output",
}  # fmt: skip


def save_gguf(model, path, *, kind=gguf.GGMLQuantizationType.F32, metadata=None, tensors=None):
    """The model and a tokenizer in one file, as llama.cpp's converter writes them.

    Args:
        kind: How matrices are stored; vectors are float32.
        metadata: Called with the writer, for more metadata.
        tensors: More tensors by name.
    """
    config, tokenizer = model.config, make_tokenizer()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if getattr(config, "head_dim", None) not in (None, config.hidden_size // config.num_attention_heads):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    words = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([word for word, _ in words])
    writer.add_token_types([3 if number < 3 else 1 for _, number in words])
    writer.add_token_merges([" ".join(pair) for pair in _merges(tokenizer)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if metadata is not None:
        metadata(writer)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = weight.numpy()
        for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            values = permute(values, heads) if part in name else values
        stored = kind if values.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(gguf_name(name), gguf.quants.quantize(values, stored), raw_dtype=stored)
    for name, values in (tensors or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_name(name):
    stem, _, part = name.rpartition(".")
    if stem in GGUF_NAMES:
        return f"{GGUF_NAMES[stem]}.{part}"
    _, _, layer, inner = stem.split(".", 3)
    return f"blk.{layer}.{GGUF_NAMES[inner]}.{part}"


def _merges(tokenizer):
    return json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]


def logits_of(model, ids):
    with torch.no_grad():
        return model(input_ids=torch.from_numpy(np.asarray(ids))).logits.numpy()
