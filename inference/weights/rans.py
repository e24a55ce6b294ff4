"""An entropy coder with many lanes: interleaved rANS of adaptive bits, vectorised over the lanes in numpy.

Duda, "Asymmetric numeral systems" (arXiv:1311.2540, the range variant); Giesen, "Interleaved entropy coders"
(arXiv:1402.3392, section 3). Each lane is a coder of its own with a state of 40 bits; all share one stream of 16-bit
words, and read from it in the order of the lanes. So one numpy operation advances every lane by a bit, and decoding
needs no compiled code.

A model is written once, as a *walk* that asks for bits: it passes the bits themselves and their probabilities to an
encoder, and gets them back; a decoder ignores what is passed and returns what it reads. The lanes are decoded in the
order of the walk and encoded backwards. All is integer arithmetic, the same on every machine.

Layout of a stream: for each lane its state (5 bytes), then the words, all little-endian; then the raw bits, most
significant first. The encoder starts each lane at 2**24, and a decoder checks that it ends there.
"""

from __future__ import annotations

from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from fedglm.inference.errors import InferenceError

Bits = npt.NDArray[np.bool_]
Probabilities = npt.NDArray[np.int64]

PROBABILITY_BITS: Final = 16
"""Probabilities are in units of 2**-16, from 1 to 2**16 - 1."""
MAX_LANES: Final = 4096
STATE_BYTES: Final = 5
_ONE: Final = 1 << PROBABILITY_BITS
_LOW: Final = 1 << 24  # 2**8 times the unit of probability: what rounding costs is below 0.01 % of the code
_WORD: Final = 16


class Coder(Protocol):
    """What a walk asks for its bits: an encoder or a decoder."""

    lanes: int

    def code_bits(self, bits: Bits | None, probability: Probabilities) -> Bits:
        """Code one bit in each of the first lanes.

        Args:
            bits: The bits, (n,), at most `lanes`; a decoder ignores them.
            probability: Probability that each is one, (n,), in units of 2**-16.

        Returns:
            The bits.
        """

    def code_raw(self, bits: Bits | None, count: int) -> Bits:
        """Code bits that are one half the time, at one bit each; a decoder ignores `bits`, (count,)."""


class LaneEncoder:
    """Collects the bits of a walk, and encodes them at the end: rANS is last in, first out.

    Attributes:
        lanes: Number of lanes.
    """

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        self._coded: list[tuple[Bits, npt.NDArray[np.uint16]]] = []
        self._raw: list[Bits] = []

    def code_bits(self, bits: Bits | None, probability: Probabilities) -> Bits:
        """Take one bit for each of the first lanes; see `Coder`."""
        assert bits is not None, "an encoder is told the bits"  # noqa: S101
        self._coded.append((bits, probability.astype(np.uint16)))
        return bits

    def code_raw(self, bits: Bits | None, count: int) -> Bits:
        """Take raw bits; see `Coder`."""
        assert bits is not None and bits.size == count, "an encoder is told the bits"  # noqa: S101
        self._raw.append(bits)
        return bits

    def finish(self) -> tuple[bytes, int]:
        """Return the stream and its number of words."""
        states = np.full(self.lanes, _LOW, np.int64)
        words = list[npt.NDArray[np.uint16]]()
        for bits, probability in reversed(self._coded):
            one = probability.astype(np.int64)
            width = np.where(bits, one, _ONE - one)
            state = states[: bits.size]
            full = state >= width << (24 + _WORD - PROBABILITY_BITS)
            words.append(state[full].astype(np.uint16)[::-1])  # the decoder reads them in the order of the lanes
            state = np.where(full, state >> _WORD, state)
            whole = state // width
            states[: bits.size] = (whole << PROBABILITY_BITS) + (state - whole * width) + np.where(bits, 0, one)
        stream = np.concatenate(words)[::-1].astype("<u2") if words else np.empty(0, "<u2")
        raw = np.packbits(np.concatenate(self._raw)) if self._raw else np.empty(0, np.uint8)
        heads = states.astype("<u8").view(np.uint8).reshape(-1, 8)[:, :STATE_BYTES]
        return heads.tobytes() + stream.tobytes() + raw.tobytes(), stream.size


class LaneDecoder:
    """Decodes the bits of a walk.

    Args:
        blob: The stream.
        lanes: Number of lanes.
        words: Number of words.

    Raises:
        InferenceError: The stream is shorter than its lanes and words, or a state is none that an encoder leaves.
    """

    def __init__(self, blob: bytes, lanes: int, words: int) -> None:
        start, end = lanes * STATE_BYTES, lanes * STATE_BYTES + 2 * words
        if not 0 < lanes <= MAX_LANES or words < 0 or len(blob) < end:
            raise InferenceError(f"coded weights of {len(blob)} bytes have no {lanes} lanes and {words} words")
        self.lanes = lanes
        heads = np.zeros((lanes, 8), np.uint8)
        heads[:, :STATE_BYTES] = np.frombuffer(blob, np.uint8, start).reshape(lanes, STATE_BYTES)
        self._states = heads.view("<u8")[:, 0].astype(np.int64)
        if (self._states < _LOW).any():
            raise InferenceError("coded weights begin with a state that no encoder leaves")
        self._words = np.frombuffer(blob, "<u2", words, start)
        self._read = 0
        self._raw = np.frombuffer(blob, np.uint8, offset=end)
        self._raw_read = 0

    def code_bits(self, bits: Bits | None, probability: Probabilities) -> Bits:
        """Decode one bit in each of the first lanes; see `Coder`.

        Raises:
            InferenceError: The words have come to an end.
        """
        state = self._states[: probability.size]
        slot = state & (_ONE - 1)
        one = slot < probability
        state >>= PROBABILITY_BITS
        state *= np.where(one, probability, _ONE - probability)
        state += slot
        state -= np.where(one, 0, probability)
        empty = np.flatnonzero(state < _LOW)
        if empty.size:
            words = self._words[self._read : self._read + empty.size]
            if words.size < empty.size:
                raise InferenceError("coded weights end before their last code")
            state[empty] = state[empty] << _WORD | words
            self._read += empty.size
        return one

    def code_raw(self, bits: Bits | None, count: int) -> Bits:
        """Read raw bits; see `Coder`.

        Raises:
            InferenceError: There are fewer.
        """
        first, skip = divmod(self._raw_read, 8)
        self._raw_read += count
        if self._raw_read > 8 * self._raw.size:
            raise InferenceError("coded weights end before their last raw bit")
        return np.unpackbits(self._raw[first : -(-self._raw_read // 8)])[skip : skip + count].view(np.bool_)

    def finish(self) -> None:
        """Check that the stream has come to its end.

        Raises:
            InferenceError: It has not, or it is no stream of the walk's probabilities.
        """
        rest = np.unpackbits(self._raw[self._raw_read // 8 :])[self._raw_read % 8 :]
        if self._read != self._words.size or (self._states != _LOW).any() or rest.size >= 8 or rest.any():
            raise InferenceError("coded weights go on after their last code, or are damaged")
