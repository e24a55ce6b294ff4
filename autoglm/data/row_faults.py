"""What becomes of a row that cannot be used: an error, or at a real site a count.

Whoever simulates wants to hear at once what is wrong with a file. A site's node must not mind: whether it answers would
tell the server whether some record is there. So there such a row is left out, and the site's people are told how many
of each kind there are, and where the first one stands.
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
"""What rows are counted as, in words after "rows". All are left out, but for those with a number that is none."""


class RowError(DataError):
    """A row, or a value in it, cannot be used; the message names the line.

    Attributes:
        reason: In what way.
        line: Of the file, from 1.
    """

    def __init__(self, reason: Reason, place: RowPlace, message: str) -> None:
        super().__init__(f"{place.source}, line {place.line}: {message}")
        self.reason, self.line = reason, place.line


class RowPlace(NamedTuple):
    """Where a row stands: its file and the line, from 1."""

    source: str
    line: int


@dataclass
class RowFaults:
    """Counts rows that cannot be used, for readers that then leave them out.

    Args:
        line_breaks: Whether a row of a CSV file may go on in the next line, within quotes. Where it may, a quote that
            is never closed can take rows after it with it; where it may not, no row can touch another.

    Attributes:
        counts: Rows by reason.
        first: Line of the first one by reason.
    """

    line_breaks: bool = False
    counts: Counter[Reason] = field(default_factory=Counter)
    first: dict[Reason, int] = field(default_factory=dict)

    def count(self, error: RowError) -> None:
        """Take note of a row."""
        self.counts[error.reason] += 1
        self.first.setdefault(error.reason, error.line)

    def in_words(self, *, but: Collection[Reason] = ()) -> str:
        """What was counted in one line, which quotes no record; empty where there is nothing.

        Args:
            but: Reasons to pass over.
        """
        return ", ".join(self.describe(reason) for reason in sorted(self.counts) if reason not in but)

    def describe(self, reason: Reason) -> str:
        """The rows of one kind in words."""
        rows = "1 row" if self.counts[reason] == 1 else f"{self.counts[reason]} rows"
        return f"{rows} {MEANINGS[reason]} (first in line {self.first[reason]})"


def report(error: RowError, faults: RowFaults | None) -> None:
    """Count a row that cannot be used, or raise its error where nobody counts."""
    if faults is None:
        raise error
    faults.count(error)
