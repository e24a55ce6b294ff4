"""The most that fits: a code's setting by the bytes it may take."""

from collections.abc import Callable

from fedglm.compression.errors import CodecError
from fedglm.compression.layout import Layout
from fedglm.compression.positions import geometry

MIN_BYTES = 64
"""Of a budget: less is no room for a header."""
_TRIALS = 16
_CLOSE = 0.99
"""Share of the budget from which a code is near enough to it."""
_AIM = 0.996


def fill(encode: Callable[[float], bytes], limit: int, start: float, least: float, most: float) -> bytes:
    """The code of the largest setting found whose length is at most `limit` bytes.

    From `start` the setting grows or shrinks by larger and larger factors until one code fits and one does not; between
    those two it is interpolated by the lengths, on a logarithmic scale.

    Args:
        encode: from a setting to its code; deterministic, and longer for a larger setting, or nearly so.
        limit: bytes.
        start: setting to try first.
        least: smallest setting; it is what must fit.
        most: largest setting.

    Raises:
        CodecError: not even the smallest setting fits.
    """
    fits: tuple[float, bytes] | None = None
    exceeds: tuple[float, int] | None = None
    setting = min(max(start, least), most)
    factor = 1.25
    for _ in range(_TRIALS):
        code = encode(setting)
        if len(code) <= limit:
            if fits is None or len(code) >= len(fits[1]):
                fits = (setting, code)
            if len(code) >= _CLOSE * limit or setting >= most:
                break
        else:
            exceeds = (setting, len(code))
            if setting <= least:
                break
        if fits is None:
            setting = max(setting / factor, least)
        elif exceeds is None:
            setting = min(setting * factor, most)
        else:
            setting = _between(fits[0], len(fits[1]), *exceeds, _AIM * limit)
        factor *= factor
    if fits is not None:
        return fits[1]
    shortest = exceeds[1] if exceeds is not None and exceeds[0] <= least else len(code := encode(least))
    if shortest > limit:
        raise CodecError(f"a budget of {limit} bytes is too small: the shortest code of this update has {shortest}")
    return code


def _between(low: float, short: int, high: float, long: int, wanted: float) -> float:
    """The setting at which a length would be `wanted`, not too near to either end."""
    share = (wanted - short) / max(long - short, 1)
    return low * float((high / low) ** min(max(share, 0.05), 0.95))


def check_room(max_bytes: int | None, layout: Layout | None) -> None:
    """Refuse a budget that has no room for the shapes that a low-rank blob holds.

    Args:
        max_bytes: of the whole blob; None for no budget.
        layout: whose shapes they are; None for a vector that is one row.

    Raises:
        CodecError: it is too small.
    """
    if max_bytes is None or layout is None:
        return
    least = MIN_BYTES + len(geometry.pack(geometry.shapes_of(layout, layout.size)))
    if max_bytes < least:
        raise CodecError(f"a budget of {max_bytes} bytes is too small: this layout takes {least} at the least")
