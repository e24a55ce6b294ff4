"""Rows that cannot be used: an error in a simulation, a count at a real site.

In a simulation a fault in a file is reported at once. A site's node must not fail: whether it answers would tell the
server whether some record is there. So there such a row is left out, and the site's operators see how many rows of each
kind there are, and the line of the first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, NamedTuple

from fedglm.autoglm.errors import DataError

Reason = Literal["blank", "class", "encoding", "length", "number", "syntax", "text", "unit"]

MEANINGS: MappingProxyType[Reason, str] = MappingProxyType(
    {
        "blank": "without a text",
        "class": "of a class that is not named",
        "encoding": "not in UTF-8",
        "length": "longer than a row may be",
        "number": "with a feature that is no number and counts as missing",
        "syntax": "that cannot be parsed",
        "text": "with something else for a text",
        "unit": "without a unit",
    }
)
"""Text for each reason, after "rows". All such rows are left out, except those with a feature that is no number."""


class RowError(DataError):
    """A row, or a value in it, cannot be used; the message names the line.

    Attributes:
        reason: Reason, as a code.
        line: Line of the file, from 1.
    """

    def __init__(self, reason: Reason, place: RowPlace, message: str) -> None:
        super().__init__(f"{place.source}, line {place.line}: {message}")
        self.reason, self.line = reason, place.line


class RowPlace(NamedTuple):
    """Place of a row: its file and the line, from 1."""

    source: str
    line: int


@dataclass
class RowFaults:
    """Counts rows that cannot be used, for readers that then leave them out.

    Args:
        line_breaks: Whether a row of a CSV file may continue in the next line, within quotes. Where it may, a quote
            that is never closed can swallow rows after it; where it may not, no row can affect another.

    Attributes:
        counts: Number of rows by reason.
        first: Line of the first row by reason.
    """

    line_breaks: bool = False
    counts: Counter[Reason] = field(default_factory=Counter)
    first: dict[Reason, int] = field(default_factory=dict)

    def count(self, error: RowError) -> None:
        """Count a row."""
        self.counts[error.reason] += 1
        self.first.setdefault(error.reason, error.line)

    def in_words(self, *, but: Collection[Reason] = ()) -> str:
        """Describe the counts in one line, which quotes no record; empty where there are none.

        Args:
            but: Reasons to leave out.
        """
        return ", ".join(self.describe(reason) for reason in sorted(self.counts) if reason not in but)

    def describe(self, reason: Reason) -> str:
        """Describe the rows of one reason."""
        rows = "1 row" if self.counts[reason] == 1 else f"{self.counts[reason]} rows"
        return f"{rows} {MEANINGS[reason]} (first in line {self.first[reason]})"


def report(error: RowError, faults: RowFaults | None) -> None:
    """Count a row that cannot be used, or raise its error where faults are not counted."""
    if faults is None:
        raise error
    faults.count(error)
