"""Budgets: the setting of a code by the bytes it may take."""

from collections.abc import Callable

from fedglm.compression.errors import CodecError
from fedglm.compression.layout import Layout
from fedglm.compression.positions import geometry

MIN_BYTES = 64
"""Minimum budget in bytes: less has no room for a header."""
_MAX_TRIALS = 16
_CLOSE = 0.99
"""Share of the budget from which a code is accepted."""
_TARGET = 0.996
"""Share of the budget that the interpolation aims at."""


def fill(encode: Callable[[float], bytes], limit: int, start: float, minimum: float, maximum: float) -> bytes:
    """Search for the largest setting whose code has at most `limit` bytes, and return that code.

    From `start` the setting grows or shrinks by larger and larger factors until one code fits and one does not; between
    those two it is interpolated by the lengths, on a logarithmic scale.

    Args:
        encode: Encodes with a setting; deterministic, and (nearly) monotonic: a larger setting makes a longer code.
        limit: Maximum length of the code in bytes.
        start: First setting to try.
        minimum: Smallest setting; its code must fit.
        maximum: Largest setting.

    Raises:
        CodecError: The code of the smallest setting does not fit.
    """
    fits: tuple[float, bytes] | None = None
    exceeds: tuple[float, int] | None = None
    setting = min(max(start, minimum), maximum)
    factor = 1.25
    for _ in range(_MAX_TRIALS):
        code = encode(setting)
        if len(code) <= limit:
            if fits is None or len(code) >= len(fits[1]):
                fits = (setting, code)
            if len(code) >= _CLOSE * limit or setting >= maximum:
                break
        else:
            exceeds = (setting, len(code))
            if setting <= minimum:
                break
        if fits is None:
            setting = max(setting / factor, minimum)
        elif exceeds is None:
            setting = min(setting * factor, maximum)
        else:
            setting = _interpolate(fits[0], len(fits[1]), *exceeds, _TARGET * limit)
        factor *= factor
    if fits is not None:
        return fits[1]
    shortest = exceeds[1] if exceeds is not None and exceeds[0] <= minimum else len(code := encode(minimum))
    if shortest > limit:
        raise CodecError(f"a budget of {limit} bytes is too small: the shortest code of this update has {shortest}")
    return code


def _interpolate(low: float, short: int, high: float, long: int, wanted: float) -> float:
    """Interpolate the setting at which the length would be `wanted`, not too near to either end."""
    share = (wanted - short) / max(long - short, 1)
    return low * float((high / low) ** min(max(share, 0.05), 0.95))


def check_room(max_bytes: int | None, layout: Layout | None) -> None:
    """Check that a budget has room for the tensor shapes that a low-rank blob holds.

    Args:
        max_bytes: Budget of the whole blob in bytes; None for no budget.
        layout: Layout of the vector; None for a vector that is one row.

    Raises:
        CodecError: The budget is too small.
    """
    if max_bytes is None or layout is None:
        return
    needed = MIN_BYTES + len(geometry.pack(geometry.to_shapes(layout, layout.size)))
    if max_bytes < needed:
        raise CodecError(f"a budget of {max_bytes} bytes is too small: this layout takes {needed} at the least")
