"""A tokenizer of Hugging Face's library ``tokenizers``, from ``tokenizer.json`` and ``tokenizer_config.json``.

It does what transformers does with the same files, without transformers: `tests/inference/inputs` compares both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from fedglm.inference.errors import InferenceError
from fedglm.inference.inputs.tokenizer import Encoded, Ids

if TYPE_CHECKING:
    import tokenizers

VOCABULARY_FILE: Final = "tokenizer.json"
SETTINGS_FILE: Final = "tokenizer_config.json"


def parse_object(content: bytes, name: str) -> Mapping[str, Any]:
    """Parse the content of one of the two files.

    Raises:
        InferenceError: It is no JSON object.
    """
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as exc:
        raise InferenceError(f"{name}: not JSON ({exc})") from exc
    if not isinstance(fields, dict):
        raise InferenceError(f"{name}: no file of a tokenizer, which is a JSON object")
    return fields


class LibraryTokenizer:
    """A `Tokenizer` by the library ``tokenizers``; safe for threads.

    Args:
        vocabulary: Content of ``tokenizer.json``.
        settings: Content of ``tokenizer_config.json``.

    Attributes:
        vocab_size: Exclusive upper bound of the ids.
        bos_id: Token that begins a text; None where there is none.
        eos_id: Token that ends a text; None where there is none.

    Raises:
        InferenceError: One of them is damaged, or the library is not installed.
    """

    def __init__(self, vocabulary: bytes, settings: bytes) -> None:
        chosen = parse_object(settings, SETTINGS_FILE)
        self._inner = _load(vocabulary)
        self._lock = Lock()
        self._inner.no_padding()
        self._inner.no_truncation()
        # Whether the name of a special token within a text is the token or its letters.
        self._inner.encode_special_tokens = bool(chosen.get("split_special_tokens", False))
        self._direction = str(chosen.get("truncation_side", "right"))
        self.vocab_size: int = self._inner.get_vocab_size(with_added_tokens=True)
        self.bos_id = self._find_special(chosen, "bos_token")
        self.eos_id = self._find_special(chosen, "eos_token")

    def encode_prompt(self, text: str) -> Ids:
        """Return the text's ids behind the begin token, where there is one; end tokens behind it are taken off.

        Raises:
            InferenceError: The text is empty, and there is no begin token to start from.
        """
        with self._lock:
            ids = self._encode(text).ids
        while ids and ids[-1] == self.eos_id:
            ids = ids[:-1]
        if self.bos_id is not None and ids[:1] != [self.bos_id]:
            ids = [self.bos_id, *ids]
        if not ids:
            raise InferenceError("the text is empty, and the model's tokenizer has no token that begins one")
        return np.array(ids, dtype=np.int64)

    def encode_whole(self, text: str, length: int) -> Encoded:
        """Return the text with what special tokens the tokenizer adds, cut to `length` tokens.

        Raises:
            InferenceError: The text has no tokens.
        """
        with self._lock:  # truncation is a state of the library's tokenizer
            self._inner.enable_truncation(length, direction=self._direction)
            try:
                encoded = self._encode(text)
            finally:
                self._inner.no_truncation()
        if not encoded.ids:
            raise InferenceError("the model's tokenizer makes no tokens of the text")
        return Encoded(np.array(encoded.ids, dtype=np.int64), bool(encoded.overflowing))

    def stream(self) -> LibraryStream:
        """Start to decode ids one by one."""
        return LibraryStream(self._inner)

    def _encode(self, text: str) -> tokenizers.Encoding:
        return self._inner.encode(text, add_special_tokens=True)

    def _find_special(self, settings: Mapping[str, Any], name: str) -> int | None:
        token = settings.get(name)
        content = token.get("content") if isinstance(token, dict) else token
        return self._inner.token_to_id(content) if isinstance(content, str) else None


class LibraryStream:
    """Decodes ids one by one; a `TextStream`.

    An id can have another text behind others (the space before a word, half a character), so that the ids of the last
    piece are decoded again with each new one, and what is new in the text is the next piece.

    Args:
        inner: The library's tokenizer.
    """

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        self._inner = inner
        self._before: list[int] = []
        self._new: list[int] = []

    def feed(self, token: int) -> str:
        """Take an id; the text waits where it ends with U+FFFD, which may be half a character."""
        self._new.append(token)
        return self._take_piece(is_last=False)

    def finish(self) -> str:
        """Return what has waited."""
        return self._take_piece(is_last=True)

    def _take_piece(self, *, is_last: bool) -> str:
        before = self._inner.decode(self._before, skip_special_tokens=True)
        text = self._inner.decode([*self._before, *self._new], skip_special_tokens=True)
        if len(text) <= len(before) or (text.endswith("\N{REPLACEMENT CHARACTER}") and not is_last):
            return ""
        self._before, self._new = self._new, []
        return text[len(before) :]


def _load(content: bytes) -> tokenizers.Tokenizer:
    try:
        import tokenizers
    except ModuleNotFoundError as exc:
        raise InferenceError("the model's tokenizer needs tokenizers: pip install 'fedglm[edge]'") from exc
    try:
        return tokenizers.Tokenizer.from_buffer(content)
    except Exception as exc:  # the library raises bare exceptions
        raise InferenceError(f"{VOCABULARY_FILE}: no tokenizer ({exc})") from exc
