"""The byte tokenizer, whose vocabulary reveals nothing of any text; it needs no library.

Token id and UTF-8 byte are the same number. UTF-8 never uses the bytes 0xC0, 0xC1 and 0xF5 to 0xFF (RFC 3629,
section 1), so the three special tokens are 0xFD to 0xFF: the vocabulary has 256 ids, a sequence is stored as uint8, and
encoding copies the text's bytes. (A BPE vocabulary trained on private text would leak its words.)
"""

from __future__ import annotations

import codecs
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt

from fedglm.inference.inputs.tokenizer import Encoded, Ids

VOCAB_SIZE: Final = 256
EOS_ID, BOS_ID, PAD_ID = 0xFD, 0xFE, 0xFF
SPECIAL_TOKENS: Final = {"</s>": EOS_ID, "<s>": BOS_ID, "<pad>": PAD_ID}


@cache
def byte_vocabulary() -> dict[str, int]:
    """Return the vocabulary as the library ``tokenizers`` writes it."""
    # ByteLevel writes a printable Latin-1 byte as its own character and the rest as the characters from U+0100 on.
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in printable]
    characters = {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + i) for i, byte in enumerate(hidden)}
    vocabulary = {characters[byte]: byte for byte in range(256) if byte not in SPECIAL_TOKENS.values()}
    return vocabulary | SPECIAL_TOKENS


def encode_bytes(text: str) -> npt.NDArray[np.uint8]:
    """Return the token ids of a text without special tokens, (bytes,), uint8, read-only."""
    return np.frombuffer(text.encode("utf-8"), dtype=np.uint8)


class ByteTokenizer:
    """Token id = UTF-8 byte; a `Tokenizer`.

    Attributes:
        vocab_size: 256.
        eos_id: The end token.
    """

    vocab_size: int = VOCAB_SIZE
    eos_id: int = EOS_ID

    def encode_prompt(self, text: str) -> Ids:
        """Return the begin token and the text's bytes."""
        return np.concatenate(([BOS_ID], encode_bytes(text)), dtype=np.int64)

    def encode_whole(self, text: str, length: int) -> Encoded:
        """Return the text's first ``length - 1`` bytes and the end token."""
        content = encode_bytes(text[:length])[: length - 1]
        is_cut = len(text) > length or len(text.encode()) > len(content)
        return Encoded(np.concatenate((content, [EOS_ID]), dtype=np.int64), is_cut)

    def stream(self) -> ByteStream:
        """Start to decode bytes one by one."""
        return ByteStream()


class ByteStream:
    """Decodes bytes one by one; a `TextStream`."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token: int) -> str:
        """Take a byte; the text is that of the characters that are complete."""
        return "" if token in (EOS_ID, BOS_ID, PAD_ID) else self._decoder.decode(bytes((token,)))

    def finish(self) -> str:
        """Return U+FFFD for a character that was begun and not ended; else nothing."""
        return self._decoder.decode(b"", final=True)
