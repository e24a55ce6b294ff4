"""Tokenizers as transformers has them: that of a local Hugging Face folder, or the byte tokenizer.

`inference/inputs/byte_tokenizer.py` says what the byte tokenizer is.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers import models as token_models
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from fedglm.autoglm.errors import ModelError
from fedglm.autoglm.quiet import quiet_transformers
from fedglm.inference.inputs.byte_tokenizer import EOS_ID, VOCAB_SIZE, byte_vocabulary


def make_byte_tokenizer(*, append_end: bool = False, max_length: int | None = None) -> PreTrainedTokenizerFast:
    """Make the byte tokenizer: 253 byte values, ``</s>``, ``<s>`` and ``<pad>``, ids 0 to 255.

    ``decode(encode(text)) == text`` for every text (with ``skip_special_tokens=True`` where the end token is appended);
    the name of a special token inside a text is text, never the token. ``save_pretrained`` writes what
    ``AutoTokenizer.from_pretrained`` reads.

    Args:
        append_end: Whether to end every sequence with ``</s>``, as for classifiers (their head reads the last token).
        max_length: Length in tokens to which ``truncation=True`` truncates.
    """
    backend = Tokenizer(token_models.BPE(vocab=byte_vocabulary(), merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    if append_end:
        backend.post_processor = processors.TemplateProcessing(
            single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", EOS_ID)]
        )
    specials = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **specials,
        padding_side="right",
        truncation_side="right",
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
        **({"model_max_length": max_length} if max_length else {}),
    )


def is_byte_tokenizer(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether ids are bytes, by the full vocabulary, so that a reloaded tokenizer takes the fast path too."""
    return len(tokenizer) == VOCAB_SIZE and tokenizer.get_vocab() == byte_vocabulary()


def check_model_folder(path: str | Path) -> Path:
    """Check that a folder holds a model, and return its path.

    Raises:
        ModelError: The folder holds no model.
    """
    folder = Path(path).expanduser()
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder}: no local model folder (it has no config.json); nothing is ever downloaded")
    return folder


def load_tokenizer(path: str | None, *, append_end: bool, length: int) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model: the folder's own, or the byte tokenizer for a preset.

    Args:
        path: Folder of the model; None for a preset.
        append_end: Whether the byte tokenizer ends each text with the end token; other tokenizers decide themselves.
        length: Maximum sequence length in tokens.

    Raises:
        ModelError: The folder has no tokenizer, or its tokenizer has no padding token.
    """
    if path is None:
        return make_byte_tokenizer(append_end=append_end, max_length=length)
    folder = check_model_folder(path)
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as exc:  # transformers raises whatever its many loaders meet
        raise ModelError(f"{folder}: no tokenizer could be loaded ({first_line(exc)})") from exc
    if is_byte_tokenizer(tokenizer):
        return make_byte_tokenizer(append_end=append_end, max_length=length)
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise ModelError(f"{folder}: the tokenizer has neither a padding nor an end token; give it one")
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


def first_line(exc: Exception) -> str:
    """Return the first line of an exception's message; the name of its type where that is empty."""
    return next(iter(str(exc).strip().splitlines()), type(exc).__name__)
