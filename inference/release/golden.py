"""Golden answers of a release: what its model says to a few prompts, so that a node can check what it runs.

Packed, for each byte counts in the release's size: a byte with the width of ids, then for each answer three lengths (of
prompt, tokens and logits, a byte each), the exponent (int8), ids of the prompt and of the tokens, and the logits as
int16 in units of 2 to the exponent; little-endian, then base85 (RFC 1924's alphabet), which stands in JSON as it is.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from fedglm.inference.errors import InferenceError

MAX_CHARACTERS: Final = 4096
_UNITS: Final = 1 << 15
_HEAD: Final = 4  # lengths and exponent of an answer


@dataclass(frozen=True, kw_only=True)
class GoldenAnswer:
    """What the model says to a prompt.

    Attributes:
        prompt: Ids of a prompt from public text.
        tokens: The likeliest tokens after it, each after those before; none of a classifier.
        units: Logits at the prompt's last position, of the outputs that `choose_outputs` names, in `unit`.
        exponent: Of the unit.
    """

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    units: tuple[int, ...]
    exponent: int

    @classmethod
    def of(cls, prompt: Sequence[int], tokens: Sequence[int], logits: npt.NDArray[np.float32]) -> GoldenAnswer:
        """Make an answer of its logits, (K,), float32, rounded to a 2**-15th of a power of two above the greatest."""
        greatest = float(np.abs(logits).max(initial=0.0))
        # A hair more, so that the greatest does not round to 2**15 units, which are no int16.
        exponent = max(-128, math.frexp(greatest * (1 + 2 / _UNITS))[1] - 15) if greatest else 0
        units = np.rint(np.ldexp(logits.astype(np.float64), -exponent))
        return cls(
            prompt=tuple(map(int, prompt)),
            tokens=tuple(map(int, tokens)),
            units=tuple(map(int, units)),
            exponent=exponent,
        )

    @property
    def unit(self) -> float:
        """What a logit is rounded to; it is off by half of that at most."""
        return math.ldexp(1.0, self.exponent)

    @property
    def logits(self) -> npt.NDArray[np.float64]:
        """The logits, (K,), float64."""
        return np.array(self.units, np.float64) * self.unit


def choose_outputs(outputs: int, count: int) -> npt.NDArray[np.int64]:
    """Return the numbers of `count` of a model's outputs, spread evenly, (count,), int64."""
    return np.arange(count, dtype=np.int64) * outputs // max(1, count)


def pack_golden(answers: Sequence[GoldenAnswer], vocab_size: int) -> str:
    """Return answers as text; its length follows from their lengths and the vocabulary's size alone.

    Args:
        answers: The answers.
        vocab_size: Exclusive upper bound of ids, at most 2**24.
    """
    if not answers:
        return ""
    width = max(1, ((vocab_size - 1).bit_length() + 7) // 8)
    parts = [bytes([width])]
    for one in answers:
        lengths = bytes(map(len, (one.prompt, one.tokens, one.units)))
        ids = b"".join(token.to_bytes(width, "little") for token in (*one.prompt, *one.tokens))
        parts += [lengths, one.exponent.to_bytes(1, "little", signed=True), ids, np.array(one.units, "<i2").tobytes()]
    return base64.b85encode(b"".join(parts)).decode()


def unpack_golden(text: str) -> tuple[GoldenAnswer, ...]:
    """Read the untrusted text of `pack_golden`.

    Raises:
        InferenceError: It is none.
    """
    if not text:
        return ()
    try:
        if len(text) > MAX_CHARACTERS:
            raise ValueError
        content = base64.b85decode(text)
        width, at, answers = int.from_bytes(content[:1]), 1, list[GoldenAnswer]()
        if width not in (1, 2, 3) or len(content) == 1:
            raise ValueError
        while at < len(content):
            answer, at = _read_answer(content, at, width)
            answers.append(answer)
    except ValueError as exc:
        raise InferenceError("the golden answers are damaged; fetch the release again") from exc
    return tuple(answers)


def _read_answer(content: bytes, at: int, width: int) -> tuple[GoldenAnswer, int]:
    """Read the answer at an offset, and return it and where the next one begins."""
    if len(content) < at + _HEAD:
        raise ValueError
    prompt, tokens, logits, exponent = content[at : at + _HEAD]
    start = at + _HEAD
    middle = start + width * (prompt + tokens)
    end = middle + 2 * logits
    if end > len(content) or not prompt or not logits:
        raise ValueError
    ids = [int.from_bytes(content[first : first + width], "little") for first in range(start, middle, width)]
    answer = GoldenAnswer(
        prompt=tuple(ids[:prompt]),
        tokens=tuple(ids[prompt:]),
        units=tuple(np.frombuffer(content[middle:end], "<i2").tolist()),
        exponent=exponent - 256 * (exponent > 127),
    )
    return answer, end
