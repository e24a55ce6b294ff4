"""An entropy coder with many lanes: interleaved rANS of adaptive bits, vectorised over the lanes in numpy.

Duda, "Asymmetric numeral systems" (arXiv:1311.2540, the range variant); Giesen, "Interleaved entropy coders"
(arXiv:1402.3392, section 3). Each lane is a coder of its own with a state of 40 bits; all share one stream of 16-bit
words, and read from it in the order of the lanes. So one numpy operation advances every lane by a bit, and decoding
needs no compiled code.

A model is written once, as a *walk* that asks for bits: it passes the bits themselves and their probabilities to an
encoder, and gets them back; a decoder ignores what is passed and returns what it reads. The lanes are decoded in the
order of the walk and encoded backwards. All is integer arithmetic, the same on every machine.

Layout of a stream: for each lane its state (5 bytes), then the words, all little-endian; then the raw bits, most
significant first. An encoder may start a lane at any state from 2**24 on, and a decoder ends there. So where there are
three bytes of raw bits for each lane, the last of them are not written but hidden in those first states, which are 24
bits that a lane would cost otherwise ("bits back", Frey and Hinton 1996); and raw bits are read after all others.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from fedglm.inference.errors import InferenceError

Bits = npt.NDArray[np.bool_]
Probabilities = npt.NDArray[np.int64]
Sizes = npt.NDArray[np.int64]
_Calls = tuple[Bits, npt.NDArray[np.uint16], Sizes]

PROBABILITY_BITS: Final = 16
"""Probabilities are in units of 2**-16, from 1 to 2**16 - 1."""
MAX_LANES: Final = 4096
STATE_BYTES: Final = 5
_ONE: Final = 1 << PROBABILITY_BITS
_LOW: Final = 1 << 24  # 2**8 times the unit of probability: what rounding costs is below 0.01 % of the code
_WORD: Final = 16
_HIDDEN_BYTES: Final = 3
_AT_ONCE: Final = 1 << 16
"""Bits of which an encoder holds more than a few bytes each at a time."""


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

    def code_known(self, bits: Bits, probability: Probabilities, sizes: Sizes) -> None:
        """Code bits that are known before, as so many calls of `code_bits`; an encoder's alone.

        Args:
            bits: The bits of all the calls, (n,).
            probability: Their probabilities, likewise.
            sizes: Number of bits of each call, (calls,).
        """

    def code_raw(self, bits: Bits | None, count: int) -> Bits:
        """Code bits that are one half the time, at one bit each, after all calls of `code_bits`.

        Args:
            bits: The bits, (count,); a decoder ignores them.
            count: Number of bits.

        Returns:
            The bits.
        """


class LaneEncoder:
    """Collects the bits of a walk, and encodes them at the end: rANS is last in, first out.

    Attributes:
        lanes: Number of lanes.
    """

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        self._coded: list[_Calls] = []
        self._raw: list[Bits] = []

    def code_bits(self, bits: Bits | None, probability: Probabilities) -> Bits:
        """Take one bit for each of the first lanes; see `Coder`."""
        if bits is None:
            raise TypeError("an encoder is told the bits")
        self.code_known(bits, probability, np.array([bits.size]))
        return bits

    def code_known(self, bits: Bits, probability: Probabilities, sizes: Sizes) -> None:
        """Take bits for many calls; see `Coder`."""
        self._coded.append((bits, probability.astype(np.uint16), sizes))

    def code_raw(self, bits: Bits | None, count: int) -> Bits:
        """Take raw bits; see `Coder`."""
        if bits is None or bits.size != count:
            raise TypeError("an encoder is told the bits")
        self._raw.append(bits)
        return bits

    def finish(self) -> tuple[bytes, int, int]:
        """Return the stream, its number of words, and the number of bytes of its raw bits, hidden ones included."""
        raw = np.packbits(np.concatenate(self._raw)) if self._raw else np.empty(0, np.uint8)
        written, hidden = np.split(raw, [raw.size - _count_hidden(self.lanes, raw.size)])
        states = np.full(self.lanes, _LOW, np.int64)
        if hidden.size:
            states += _from_bytes(hidden, self.lanes)
        words = [_encode(states, calls) for calls in reversed(list(_gather(self._coded)))]
        stream = np.concatenate([np.empty(0, "<u2"), *reversed(words)]).astype("<u2")
        return _to_bytes(states, STATE_BYTES).tobytes() + stream.tobytes() + written.tobytes(), stream.size, raw.size


def _gather(coded: list[_Calls]) -> Iterator[_Calls]:
    """Yield calls together, so that what takes a numpy call takes few of them."""
    some, size = list[_Calls](), 0
    for calls in coded:
        some.append(calls)
        size += calls[0].size
        if size >= _AT_ONCE:
            yield _join(some)
            some, size = [], 0
    if some:
        yield _join(some)


def _join(some: list[_Calls]) -> _Calls:
    bits, probability, sizes = zip(*some, strict=True)
    return np.concatenate(bits), np.concatenate(probability), np.concatenate(sizes)


def _encode(states: npt.NDArray[np.int64], calls: _Calls) -> npt.NDArray[np.uint16]:
    """Encode the calls into the states, the last first; return the words in the order in which a decoder reads."""
    bits, probability, sizes = calls
    one = probability.astype(np.int64)
    width, start = np.where(bits, one, _ONE - one), np.where(bits, 0, one)
    limit, rest = width << (24 + _WORD - PROBABILITY_BITS), _ONE - width
    low, full = np.empty(bits.size, np.uint16), np.empty(bits.size, np.bool_)
    end = bits.size
    for size in reversed(sizes.tolist()):
        at, state = slice(end - size, end), states[:size]
        end -= size
        low[at] = state
        np.right_shift(state, _WORD, out=state, where=np.greater_equal(state, limit[at], out=full[at]))
        whole = state // width[at]
        whole *= rest[at]  # whole << 16 | what is left of the state is the state and this
        whole += start[at]
        state += whole
    return low[full]


class LaneDecoder:
    """Decodes the bits of a walk.

    Args:
        blob: The stream.
        lanes: Number of lanes.
        words: Number of words.
        raw: Number of bytes of raw bits, hidden ones included.

    Raises:
        InferenceError: The stream has another length, or a state is none that an encoder leaves.
    """

    def __init__(self, blob: bytes, lanes: int, words: int, raw: int) -> None:
        if not 0 < lanes <= MAX_LANES or min(words, raw) < 0 or len(blob) != stream_size(lanes, words, raw):
            raise InferenceError(f"coded weights of {len(blob)} bytes are no {lanes} lanes and {words} words")
        self.lanes = lanes
        start = lanes * STATE_BYTES
        self._states = _from_bytes(np.frombuffer(blob, np.uint8, start), lanes)
        if (self._states < _LOW).any():
            raise InferenceError("coded weights begin with a state that no encoder leaves")
        self._words = np.frombuffer(blob, "<u2", words, start)
        self._read = 0
        self._raw = np.frombuffer(blob, np.uint8, offset=start + 2 * words)
        self._hidden = _count_hidden(lanes, raw)
        self._raw_read = 0

    def code_bits(self, bits: Bits | None, probability: Probabilities) -> Bits:  # noqa: ARG002 - an encoder's
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
        (empty,) = (state < _LOW).nonzero()  # not np.flatnonzero, three calls more: a tenth of opening a release
        if empty.size:
            words = self._words[self._read : self._read + empty.size]
            if words.size < empty.size:
                raise InferenceError("coded weights end before their last code")
            state[empty] = state[empty] << _WORD | words
            self._read += empty.size
        return one

    def code_known(self, bits: Bits, probability: Probabilities, sizes: Sizes) -> None:  # noqa: ARG002 - an encoder's
        """Refuse: to a decoder nothing is known; see `Coder`."""
        raise TypeError("a decoder is told no bits")

    def code_raw(self, bits: Bits | None, count: int) -> Bits:  # noqa: ARG002 - an encoder's
        """Read raw bits; see `Coder`.

        Raises:
            InferenceError: There are fewer.
        """
        if self._hidden:
            self._reveal()
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
        if self._hidden:
            self._reveal()
        rest = np.unpackbits(self._raw[self._raw_read // 8 :])[self._raw_read % 8 :]
        if self._read != self._words.size or (self._states != _LOW).any() or rest.size >= 8 or rest.any():
            raise InferenceError("coded weights go on after their last code, or are damaged")

    def _reveal(self) -> None:
        """Add the bytes that are hidden in the states at the end of the words to the raw ones."""
        hidden = self._states - _LOW
        if self._read != self._words.size or (hidden >= _LOW).any():
            raise InferenceError("coded weights go on after their last code, or are damaged")
        self._raw = np.concatenate([self._raw, _to_bytes(hidden, _HIDDEN_BYTES).reshape(-1)])
        self._states[:] = _LOW
        self._hidden = 0


def stream_size(lanes: int, words: int, raw: int) -> int:
    """Return the number of bytes of a stream; `raw` counts the hidden ones too."""
    return lanes * STATE_BYTES + 2 * words + raw - _count_hidden(lanes, raw)


def _count_hidden(lanes: int, raw: int) -> int:
    return lanes * _HIDDEN_BYTES if raw >= lanes * _HIDDEN_BYTES else 0


def _to_bytes(values: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.uint8]:
    """Return the `size` low bytes of each value, (n, size), least first."""
    return np.ascontiguousarray(values.astype("<u8").view(np.uint8).reshape(-1, 8)[:, :size])


def _from_bytes(raw: npt.NDArray[np.uint8], count: int) -> npt.NDArray[np.int64]:
    """Return the values of `_to_bytes`, (count,)."""
    wide = np.zeros((count, 8), np.uint8)
    wide[:, : raw.size // count] = raw.reshape(count, -1)
    return wide.view("<u8")[:, 0].astype(np.int64)
