"""Figures of a light model for people; one that is missing was not measured, and says so."""

from collections.abc import Callable
from typing import TypeVar

NOT_MEASURED = "not measured"

T = TypeVar("T")


def measured(value: T | None, form: Callable[[T], str]) -> str:
    """Format a value, or say that it was not measured."""
    return NOT_MEASURED if value is None else form(value)


def format_rise(share: float) -> str:
    """Format a relative rise with its sign: +4.8%."""
    percent = 100 * share
    text = f"{abs(percent):.2f}%" if abs(percent) < 10 else f"{abs(percent):,.1f}%"
    return ("\N{MINUS SIGN}" if percent < 0 else "+") + text


def format_times(ratio: float) -> str:
    """Format a size ratio: 20.3x."""
    return f"{ratio:.1f}x" if ratio < 99.95 else f"{ratio:,.0f}x"


def format_ms(milliseconds: float) -> str:
    """Format milliseconds with three significant digits."""
    return f"{milliseconds:.3g} ms"
