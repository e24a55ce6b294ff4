"""A Llama-shaped GLM as a GGUF file, for llama.cpp: the same weights, in its own formats.

A Llama is a GLM that rotates whole heads and has no biases; llama.cpp rotates neighbouring columns as GLM does. The
file needs a vocabulary to be loaded; it gets one of bytes, which nothing reads.
"""

from pathlib import Path

import gguf
import numpy as np
from transformers import GlmForCausalLM

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_gguf(path: Path, model: GlmForCausalLM, kind: gguf.GGMLQuantizationType) -> None:
    """Write a model, its matrices in `kind` (F32, Q8_0 or Q4_0) and its norms in float32."""
    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    _add_vocabulary(writer, config.vocab_size)
    values = {name: tensor.detach().float().numpy() for name, tensor in model.state_dict().items()}
    _add(writer, "token_embd.weight", values["model.embed_tokens.weight"], kind)
    _add(writer, "output_norm.weight", values["model.norm.weight"], kind)
    for layer in range(config.num_hidden_layers):
        prefix, block = f"model.layers.{layer}.", f"blk.{layer}."
        for name, theirs in NAMES.items():
            _add(writer, f"{block}{theirs}.weight", values[f"{prefix}{name}.weight"], kind)
        gate, up = np.split(values[f"{prefix}mlp.gate_up_proj.weight"], 2)
        _add(writer, f"{block}ffn_gate.weight", gate, kind)
        _add(writer, f"{block}ffn_up.weight", up, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add(writer: gguf.GGUFWriter, name: str, values: np.ndarray, kind: gguf.GGMLQuantizationType) -> None:
    if values.ndim == 1 or kind == gguf.GGMLQuantizationType.F32:
        writer.add_tensor(name, np.ascontiguousarray(values))
    else:
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)


def _add_vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    special = [b"<unk>", b"<s>", b"</s>"]
    tokens = [*special, *(f"<0x{byte:02X}>".encode() for byte in range(256))]
    tokens += [f"<{number}>".encode() for number in range(len(tokens), size)]
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    kinds += [gguf.TokenType.BYTE] * 256 + [gguf.TokenType.NORMAL] * (size - 259)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * size)
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
