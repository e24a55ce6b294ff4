"""The tokenizer that a GGUF file's metadata describe: byte-level BPE (Sennrich et al., arXiv:1508.07909)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from fedglm.autoglm.errors import ModelError

_CONTROL, _USER_DEFINED = 3, 4  # of llama_token_type in llama.h
_BYTES: Final = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
_SPLITS: Final[Mapping[str, pre_tokenizers.PreTokenizer]] = MappingProxyType(
    {
        "gpt-2": _BYTES,
        "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _BYTES]),
    }
)
"""How texts are split before they are merged, by llama.cpp's name of it (llama-vocab.cpp)."""
_SPECIALS: Final = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
_REMEDY: Final = "import the folder with its tokenizer.json instead"


def make_gguf_tokenizer(metadata: Mapping[str, Any], *, max_length: int) -> PreTrainedTokenizerBase:
    """Make the tokenizer of a GGUF file.

    Args:
        metadata: Metadata of the file.
        max_length: Length in tokens to which ``truncation=True`` truncates.

    Raises:
        ModelError: It has no tokenizer, or one of another kind: a guess would read texts as other tokens than those the
            model was trained on.
    """
    kind, split = _get(metadata, "model", str), _get(metadata, "pre", str, "gpt-2")
    if kind != "gpt2" or split not in _SPLITS:
        known = ", ".join(f"gpt2 with {name}" for name in _SPLITS)
        raise ModelError(f"its tokenizer is {kind!r:.40} with {split!r:.40}; {known} are read: {_REMEDY}")
    tokens, merges = _get_texts(metadata, "tokens"), _get_texts(metadata, "merges")
    vocabulary = {token: number for number, token in enumerate(tokens)}
    pairs = [(first, second) for first, _, second in (merge.partition(" ") for merge in merges)]
    if len(vocabulary) != len(tokens) or any(not second or " " in second for _, second in pairs):
        raise ModelError(f"its tokenizer is damaged: a token is there twice, or a merge is no pair; {_REMEDY}")
    try:
        backend = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    except Exception as exc:  # tokenizers raises Exception itself
        raise ModelError(f"its tokenizer is damaged ({exc}); {_REMEDY}") from exc
    backend.pre_tokenizer = _SPLITS[split]
    backend.decoder = decoders.ByteLevel()
    kinds = metadata.get("tokenizer.ggml.token_type", np.zeros(0, np.int32))
    if isinstance(kinds, list):
        raise ModelError(f"its token types are no numbers; {_REMEDY}")
    of_kind = list(zip(tokens, kinds.tolist(), strict=False))
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t, k in of_kind if k == _CONTROL])
    backend.add_tokens([AddedToken(t, normalized=False) for t, k in of_kind if k == _USER_DEFINED])
    specials = {name: token for name, key in _SPECIALS.items() if (token := _find_token(metadata, key, tokens))}
    if metadata.get("tokenizer.ggml.add_bos_token", False) and "bos_token" in specials:
        bos = specials["bos_token"]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, vocabulary[bos])]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **specials,
        padding_side="right",
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
    template = metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        tokenizer.chat_template = template  # text for whoever asks for it; nothing here runs it
    return tokenizer


def _find_token(metadata: Mapping[str, Any], key: str, tokens: list[str]) -> str | None:
    number = metadata.get(f"tokenizer.ggml.{key}")
    if number is None:
        return None
    if type(number) is not int or not 0 <= number < len(tokens):
        raise ModelError(f"its tokenizer.ggml.{key} is {number!r:.40}, and it has {len(tokens)} tokens")
    return tokens[number]


def _get(metadata: Mapping[str, Any], key: str, kind: type, default: Any = None) -> Any:
    value = metadata.get(f"tokenizer.ggml.{key}", default)
    if not isinstance(value, kind):
        raise ModelError(f"it has no tokenizer.ggml.{key}; {_REMEDY}")
    return value


def _get_texts(metadata: Mapping[str, Any], key: str) -> list[str]:
    values: list[str] = _get(metadata, key, list)
    return values
