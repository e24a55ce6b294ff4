"""Formats of figures in reports: bytes, ratios, losses, durations. An absent figure is a dash, never a zero."""

import math

ABSENT = "\N{EN DASH}"
NOT_FINITE = "not finite"
_UNITS = ("B", "kB", "MB", "GB", "TB")


def format_number(value: float | None, digits: int = 4) -> str:
    """Format a value with this many significant digits, without an exponent from 1e-4 up to 1e6."""
    if value is None:
        return ABSENT
    if not math.isfinite(value):
        return NOT_FINITE
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e6:
        return f"{value:.{digits - 1}e}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def format_integer(value: int | None) -> str:
    """Format an integer, with commas between the thousands."""
    return ABSENT if value is None else f"{value:,}"


def format_bytes(value: float | None) -> str:
    """Format bytes in decimal units: 1 kB is 1,000 bytes, 1 MB is 1,000,000 bytes."""
    if value is None:
        return ABSENT
    unit = 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value /= 1000
        unit += 1
    if unit == 0:
        return f"{value:.0f} B"
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{decimals}f} {_UNITS[unit]}"


def format_percent(ratio: float | None) -> str:
    """Format a ratio as a percentage with three significant digits."""
    if ratio is None:
        return ABSENT
    if not math.isfinite(ratio):
        return NOT_FINITE
    percent = 100 * ratio
    return f"{percent:.2f}%" if percent < 9.995 else f"{percent:.1f}%" if percent < 99.95 else f"{percent:,.0f}%"


def format_factor(factor: float) -> str:
    """Format a factor with three significant digits: 1.94, 39.6, 128."""
    return f"{factor:.2f}" if factor < 9.995 else f"{factor:.1f}" if factor < 99.95 else f"{factor:,.0f}"


def describe_saving(ratio: float | None, *, rough: bool = False) -> str:
    """Describe a ratio of bytes in words: "39.6 times fewer", "about as many", "1.20 times more".

    Args:
        ratio: Coded bytes over dense bytes.
        rough: Round a factor of 10 or more to a whole number ("40 times fewer").
    """
    if ratio is None or not math.isfinite(ratio) or ratio <= 0:
        return ABSENT
    if ratio < 0.95:
        factor = 1 / ratio
        return f"{f'{factor:,.0f}' if rough and factor >= 9.5 else format_factor(factor)} times fewer"
    return "about as many" if ratio <= 1.05 else f"{format_factor(ratio)} times more"


def format_metric(metric: str, value: float | None, digits: int = 4) -> str:
    """Format an accuracy (0 to 1) as a percentage, a perplexity with this many significant digits."""
    if metric != "accuracy" or value is None or not math.isfinite(value):
        return format_number(value, digits)
    return f"{100 * value:.1f}%"


def format_difference(metric: str, value: float | None, reference: float | None) -> str:
    """Format `value - reference` with its sign: accuracies in percentage points, perplexities as they are."""
    if value is None or reference is None or not math.isfinite(value - reference):
        return ABSENT
    gap = value - reference
    text = f"{abs(100 * gap):.1f} pt" if metric == "accuracy" else format_number(abs(gap), 3)
    sign = "\N{MINUS SIGN}" if gap < 0 else "+" if gap > 0 else ""
    return f"{sign}{text}"


def format_duration(seconds: float | None) -> str:
    """Format a duration in seconds for people: "0.8 s", "41 s", "12 min 5 s", "3 h 20 min"."""
    if seconds is None or not math.isfinite(seconds):
        return ABSENT
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def pluralize(count: int, one: str, many: str | None = None) -> str:
    """Format a number of things, in the singular for one: 1 round, 20 rounds, 3 replies.

    Args:
        count: Number of things.
        one: Noun in the singular.
        many: Noun in the plural; by default `one` with an s.
    """
    return f"{count:,} {one if count == 1 else many or one + 's'}"
