"""Compiled model of low-rank factors: the number of components of a matrix, their sizes, and their integer entries.

The plain twins in the tests define these loops. A component's size is its *octave* k: its singular value is about 2**k
steps, so an entry of a factor of length d is about 2**k / sqrt(d) steps large. A reader knows that before the first
entry, and it chooses the contexts; the previous entries of the same factor, and the entries at the same place in the
previous factor, tell whether this row or column has small entries.
"""

from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from fedglm.compression.kernels import range_coder as rc
from fedglm.compression.kernels.compiled import kernel

Numbers: TypeAlias = npt.NDArray[np.int64]
Levels: TypeAlias = npt.NDArray[np.int32]

SLACK: Final = 16
"""Maximum zero bytes that a reader adds after the end of a code. A code may end with a few zeros that are not sent; one
that needs more only costs the reader time."""

MAX_OCTAVE: Final = 31
MAX_LEVEL: Final = (1 << 24) - 1

CLASSES: Final = 16
"""Number of classes of entries by expected size: class c is 2**(c / 2 - 1) steps; the last holds all larger ones."""

_STATIONARY: Final = 255
_ACTIVITIES: Final = 6
_UNARY: Final = 20
"""Number of quotients with a unary code; larger ones have an Elias gamma code."""

LEVEL_CONTEXTS: Final = CLASSES * _ACTIVITIES * _UNARY
SHAPE_CONTEXTS: Final = 4 + 4 + 64 + CLASSES
_MORE, _SAME, _FIRST, _PLAIN = 0, 4, 8, 72


@kernel
def level_class(octave: int, length: int) -> int:
    """Return the size class of the entries of a factor."""
    log = 0
    while length > 1:
        length >>= 1
        log += 1
    return max(0, min(CLASSES - 1, 2 * octave - log + 2))


@kernel
def is_exhausted(state: rc.State, code: rc.Code) -> bool:
    """Return whether a decoder is more than `SLACK` bytes beyond the end of its code."""
    return bool(state[2] - code.size > rc.WIDTH // 8 + SLACK)


@kernel
def encode_shapes(
    state: rc.State, out: rc.Code, model: rc.Model, counts: Numbers, octaves: Numbers, plain: Numbers
) -> None:
    """Code the components of each matrix, `counts` (T,), with their descending `octaves`, and the other classes."""
    at = 0
    last = 0
    for count in counts:
        for index in range(count):
            rc.encode_bit(state, out, model, _MORE + min(index, 3), 1, _STATIONARY)
            octave = octaves[at]
            at += 1
            if index == 0:
                node = 1
                for bit in range(4, -1, -1):
                    one = octave >> bit & 1
                    rc.encode_bit(state, out, model, _FIRST + node, one, _STATIONARY)
                    node = node << 1 | one
            else:
                for _ in range(last - octave):
                    rc.encode_bit(state, out, model, _SAME + min(index, 3), 0, _STATIONARY)
                if octave > 0:
                    rc.encode_bit(state, out, model, _SAME + min(index, 3), 1, _STATIONARY)
            last = octave
        rc.encode_bit(state, out, model, _MORE + min(count, 3), 0, _STATIONARY)
    for value in plain:
        node = 1
        for bit in range(3, -1, -1):
            one = value >> bit & 1
            rc.encode_bit(state, out, model, _PLAIN + node, one, _STATIONARY)
            node = node << 1 | one


@kernel
def decode_shapes(
    state: rc.State, code: rc.Code, model: rc.Model, limits: Numbers, counts: Numbers, octaves: Numbers, plain: Numbers
) -> bool:
    """Fill `counts`, each at most its limit, `octaves` and `plain`; return False beyond a limit or the code's end."""
    at = 0
    last = 0
    for matrix in range(counts.size):
        if is_exhausted(state, code):
            return False
        count = 0
        while rc.decode_bit(state, code, model, _MORE + min(count, 3), _STATIONARY) == 1:
            if count == limits[matrix] or is_exhausted(state, code):
                return False
            if count == 0:
                node = 1
                for _ in range(5):
                    node = node << 1 | rc.decode_bit(state, code, model, _FIRST + node, _STATIONARY)
                last = node - 32
            else:
                while last > 0 and rc.decode_bit(state, code, model, _SAME + min(count, 3), _STATIONARY) == 0:
                    last -= 1
            octaves[at] = last
            at += 1
            count += 1
        counts[matrix] = count
    for index in range(plain.size):
        if is_exhausted(state, code):
            return False
        node = 1
        for _ in range(4):
            node = node << 1 | rc.decode_bit(state, code, model, _PLAIN + node, _STATIONARY)
        plain[index] = node - 16
    return True


@kernel
def _choose_context(levels: Levels, start: int, at: int, above: int, kind: int, above_kind: int) -> int:
    """Return the context of an entry: its class, and the activity of its neighbours scaled to that class."""
    near = 0
    if at > 0:
        near += 2 * abs(int(levels[start + at - 1]))
    if at > 1:
        near += abs(int(levels[start + at - 2]))
    if above >= 0:
        near += abs(int(levels[above + at])) * 3 >> (max(0, above_kind - kind) + 1) // 2
    size = max(0, kind - 2) // 2
    scaled = near << 1 >> size
    activity = 0
    while scaled > 0 and activity < _ACTIVITIES - 1:
        scaled >>= 1
        activity += 1
    return (kind * _ACTIVITIES + activity) * _UNARY


@kernel
def encode_levels(
    state: rc.State,
    out: rc.Code,
    model: rc.Model,
    levels: Levels,
    start: int,
    length: int,
    kind: int,
    above: int,
    above_kind: int,
) -> None:
    """Code `length` entries of class `kind` from `start`; `above` is the start of the previous factor, or -1."""
    spare = max(0, (kind - 6) // 2)  # low bits that are practically random
    for at in range(length):
        context = _choose_context(levels, start, at, above, kind, above_kind)
        level = int(levels[start + at])
        size = abs(level)
        quotient = size >> spare
        for step in range(min(quotient, _UNARY)):
            rc.encode_bit(state, out, model, context + step, 1, _STATIONARY)
        if quotient < _UNARY:
            rc.encode_bit(state, out, model, context + quotient, 0, _STATIONARY)
        else:
            beyond = quotient - _UNARY + 1
            bits = 0
            while beyond >> (bits + 1) > 0:
                bits += 1
            rc.encode_raw(state, out, bits, 5)
            rc.encode_raw(state, out, beyond - (1 << bits), bits)
        if spare > 0:
            rc.encode_raw(state, out, size & ((1 << spare) - 1), spare)
        if size > 0:
            rc.encode_raw(state, out, 1 if level < 0 else 0, 1)


@kernel
def decode_levels(
    state: rc.State,
    code: rc.Code,
    model: rc.Model,
    levels: Levels,
    start: int,
    length: int,
    kind: int,
    above: int,
    above_kind: int,
) -> bool:
    """Fill `length` entries from `start`; return False beyond MAX_LEVEL, for zeros alone, or past the code's end."""
    spare = max(0, (kind - 6) // 2)
    empty = True
    for at in range(length):
        context = _choose_context(levels, start, at, above, kind, above_kind)
        quotient = 0
        while quotient < _UNARY and rc.decode_bit(state, code, model, context + quotient, _STATIONARY) == 1:
            quotient += 1
        if quotient == _UNARY:
            bits = rc.decode_raw(state, code, 5)
            if bits > 24:
                return False
            quotient += (1 << bits) + rc.decode_raw(state, code, bits) - 1
        size = quotient
        if spare > 0:
            size = quotient << spare | rc.decode_raw(state, code, spare)
        if size > MAX_LEVEL:
            return False
        if size > 0:
            empty = False
            if rc.decode_raw(state, code, 1) == 1:
                size = -size
        levels[start + at] = size
    return not empty and not is_exhausted(state, code)


@kernel
def locate_spans(shapes: Numbers, counts: Numbers, octaves: Numbers, lengths: Numbers, plain: Numbers) -> Numbers:
    """Locate the factors, and the plain tensors that are not zero, in `levels`, in the order in which they are coded.

    Returns (V, 5): start, length and class of each; start (or -1) and class of the previous factor of the same side.
    """
    spans = np.empty((2 * counts.sum() + np.count_nonzero(plain), 5), np.int64)
    at = 0
    component = 0
    span = 0
    for matrix in range(counts.size):
        rows, columns = shapes[matrix]
        for index in range(counts[matrix]):
            octave = octaves[component]
            before = octaves[component - 1] if index > 0 else 0
            for length in (columns, rows):
                spans[span, 0] = at
                spans[span, 1] = length
                spans[span, 2] = level_class(octave, length)
                spans[span, 3] = at - rows - columns if index > 0 else -1
                spans[span, 4] = level_class(before, length)
                at += length
                span += 1
            component += 1
    for index in range(plain.size):
        if plain[index] > 0:
            spans[span, 0] = at
            spans[span, 1] = lengths[index]
            spans[span, 2] = plain[index]
            spans[span, 3] = -1
            spans[span, 4] = 0
            at += lengths[index]
            span += 1
    return spans


@kernel
def encode_factors(
    shapes: Numbers, counts: Numbers, octaves: Numbers, lengths: Numbers, plain: Numbers, levels: Levels, out: rc.Code
) -> int:
    """Code all factors and plain tensors; return the code's length, above `out.size` where it does not fit.

    Args:
        shapes: Rows and columns of each matrix, (T, 2), int64.
        counts: Number of components of each matrix, (T,).
        octaves: Octave of each component, descending within a matrix, (sum of counts,).
        lengths: Number of elements of each plain tensor, (P,).
        plain: Class of each plain tensor, (P,); 0 is a tensor of zeros alone.
        levels: For each component its column factor, then its row factor; then the plain tensors that are not zero.
        out: Receives the code.
    """
    state = rc.start_encoding()
    rules = rc.new_model(SHAPE_CONTEXTS)
    encode_shapes(state, out, rules, counts, octaves, plain)
    model = rc.new_model(LEVEL_CONTEXTS)
    for start, length, kind, above, above_kind in locate_spans(shapes, counts, octaves, lengths, plain):
        encode_levels(state, out, model, levels, start, length, kind, above, above_kind)
    return rc.end_encoding(state, out)


@kernel
def read_shapes(code: rc.Code, limits: Numbers, counts: Numbers, octaves: Numbers, plain: Numbers) -> bool:
    """Run `decode_shapes` from the start of a code, to know the size of the rest before memory is allocated for it."""
    return decode_shapes(rc.start_decoding(code), code, rc.new_model(SHAPE_CONTEXTS), limits, counts, octaves, plain)


@kernel
def decode_factors(
    shapes: Numbers,
    limits: Numbers,
    counts: Numbers,
    octaves: Numbers,
    lengths: Numbers,
    plain: Numbers,
    code: rc.Code,
    levels: Levels,
) -> bool:
    """Fill `levels`, whose size `read_shapes` gave, from what `encode_factors` wrote; return False for a bad code."""
    state = rc.start_decoding(code)
    if not decode_shapes(state, code, rc.new_model(SHAPE_CONTEXTS), limits, counts, octaves, plain):
        return False
    model = rc.new_model(LEVEL_CONTEXTS)
    for start, length, kind, above, above_kind in locate_spans(shapes, counts, octaves, lengths, plain):
        if not decode_levels(state, code, model, levels, start, length, kind, above, above_kind):
            return False
    return bool(rc.is_finished(state, code))
