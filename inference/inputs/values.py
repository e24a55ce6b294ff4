"""Values of a row: what counts as a number, as missing, and as text."""

from __future__ import annotations

from fedglm.inference.errors import InferenceError

_MAX_SHOWN = 40
"""Maximum characters of a value that an error quotes."""


def parse_number(value: object) -> float:
    """Return a feature as a float; None and a blank string are missing, NaN.

    Raises:
        ValueError: The value is no number; the message continues a sentence about it.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return float("nan")
    try:
        if not isinstance(value, str | int | float):
            raise ValueError
        return float(value)
    except (ValueError, OverflowError) as exc:
        raise ValueError(f"must be a number, not {repr(value)[:_MAX_SHOWN]}") from exc


def check_unicode(value: object) -> str:
    """Return a text unchanged.

    Raises:
        InferenceError: The value is no text, or holds a lone surrogate, which JSON can write and UTF-8 cannot.
    """
    if not isinstance(value, str):
        raise InferenceError(f"a text is needed, not a {type(value).__name__}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as exc:
        raise InferenceError("the text holds half a character (a lone surrogate); mend it") from exc
    return value
