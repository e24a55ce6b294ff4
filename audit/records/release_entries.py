"""Entries about releases, of which a log has many: they are read without parsing where a similar one was read before.

The entries of a run differ only in numbers, hashes and a time. An entry that was parsed and checked yields a pattern in
which those are left open, in the only spelling that they have: whatever matches it is an entry of the same fields, in
canonical form. Whatever does not match is parsed and checked field by field.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple

from fedglm.core.canonical_json import canonical_json
from fedglm.privacy.log.entries import CHARGES, TIME, read_entry

_ROW_FIELDS: Final = ("data_set", "commitment", "purpose", "plan", "policy", "run", "mechanism")
_SHARED_FIELDS: Final = (*_ROW_FIELDS, "delta", "codec")

_INTEGER: Final = "0|[1-9][0-9]{0,17}"
_HASH: Final = "[0-9a-f]{64}"
_VARYING: Final = {
    "bytes": f"(?P<bytes>{_INTEGER})",
    "epsilon": r"(?P<epsilon>null|[0-9]{1,17}\.[0-9]{1,24})",
    "id": '"(?P<id>[0-9a-f]{32})"',
    "non_zeros": f"(?:null|{_INTEGER})",
    "number": f"(?P<number>{_INTEGER})",
    "release": f'"(?P<release>{_HASH})"',
    "round": f"(?P<round>{_INTEGER})",
    "row": f"(?P<row>{_INTEGER})",
    "row_hash": f'"(?P<row_hash>{_HASH})"',
    "time": f'"{TIME}"',
}
"""Fields in which the entries of a run differ, and the spellings of them that a pattern accepts."""

_CAPTURED: Final = ("number", "row", "row_hash", "release", "round", "epsilon")
_MAX_TEXT: Final = 2000
"""Longest text, in characters, of which a pattern is made; longer ones take longer to compile."""
_MAX_PATTERNS: Final = 8
"""Patterns that are kept, and that may be made without delay."""
_ENTRIES_EACH: Final = 1000
"""Entries to be read before each further pattern: making one takes as long as parsing about forty of them."""


class SharedFields:
    """Fields that several releases have in common.

    Args:
        entry: All fields of an entry about one of them.

    Attributes:
        fields: Data set, commitment, purpose, plan, policy, run, mechanism, delta and codec; None for a field that is
            absent.
        key: The same fields, hashable.
        purpose: The purpose, as bytes.
    """

    def __init__(self, entry: dict[str, Any]) -> None:
        self.fields = {name: entry.get(name) for name in _SHARED_FIELDS}
        self._has_id = "id" in entry
        self.purpose = bytes(entry["purpose"], "ascii")
        self.key = tuple(tuple(value.values()) if type(value) is dict else value for value in self.fields.values())

    @cached_property
    def _row_template(self) -> str:
        shared = {name: _to_json(self.fields[name]).replace("%", "%%") for name in _ROW_FIELDS}
        varying = {"number": "%(number)d", "release": '"%(release)s"', "round": "%(round)d", "time": '"'}
        varying |= {"id": '"%(id)s"'} if self._has_id else {}
        return "{" + _join_members({**shared, **varying})

    def make_row_text(self, number: int, release: str, at: int, attempt: str) -> str:
        """Make the text of the ledger's row about one of the releases, up to its time, which is its last field.

        Args:
            number: Number of the row.
            release: SHA-256 of what was released, hex.
            at: Round.
            attempt: ID of the attempt, 32 hexadecimal digits; ignored where rows have none.
        """
        return self._row_template % {"number": number, "release": release, "round": at, "id": attempt}


class ReleaseEntry(NamedTuple):
    """An entry about a release: the fields that it shares with others, and its own."""

    common: SharedFields
    number: int
    row: int
    row_hash: str
    release: str
    round: int
    epsilon: float | None
    size: int
    id: str

    @property
    def attempt(self) -> bytes:
        """Key of what the row charges for once: the attempt and its purpose; in old logs, the released bytes."""
        return bytes.fromhex(self.id or self.release) + self.common.purpose


@dataclass
class _Pattern:
    """A pattern of entries that share their fields."""

    common: SharedFields
    expression: re.Pattern[str]

    def read(self, text: str) -> ReleaseEntry | None:
        """Return the entry with that text; None if the pattern does not match it."""
        match = self.expression.fullmatch(text)
        if match is None:
            return None
        number, row, row_hash, release, at, spelled = match.group(*_CAPTURED)
        epsilon = None if spelled == "null" else float(spelled)
        if epsilon is not None and repr(epsilon) != spelled:  # a number has only one canonical spelling
            return None
        size = int(match["bytes"]) if "bytes" in self.expression.groupindex else 0
        attempt = match["id"] if "id" in self.expression.groupindex else ""
        return ReleaseEntry(self.common, int(number), int(row), row_hash, release, int(at), epsilon, size, attempt)


class EntryReader:
    """Reads the entries of a log, one after the other."""

    def __init__(self) -> None:
        self._patterns: list[_Pattern] = []
        self._read = self._made = 0

    def read(self, text: str, number: int) -> ReleaseEntry | dict[str, Any]:
        """Read an entry.

        Args:
            text: Text of the entry, possibly a stranger's.
            number: Number that it must have.

        Returns:
            The entry about a release; of other kinds than `CHARGES`, all of the fields.

        Raises:
            PrivacyError: The text is no such entry.
        """
        self._read += 1
        for place, pattern in enumerate(self._patterns):
            entry = pattern.read(text)
            if entry is not None and entry.number == number > 1:  # the first entry of a log is never a release
                if place:  # entries of one run follow each other: the last match is tried first
                    self._patterns.insert(0, self._patterns.pop(place))
                return entry
        fields = read_entry(text.encode(), number)
        if fields["kind"] not in CHARGES:
            return fields
        common = SharedFields(fields)
        self._learn(common, fields, text)
        return ReleaseEntry(
            common, number, fields["row"], fields["row_hash"], fields["release"], fields["round"], fields["epsilon"],
            fields.get("bytes", 0), fields.get("id", ""),
        )  # fmt: skip

    def _learn(self, common: SharedFields, fields: dict[str, Any], text: str) -> None:
        """Make a pattern of an entry that was parsed."""
        # A stranger's entries may have nothing in common, and then a pattern of each would be useless work.
        if len(text) > _MAX_TEXT or self._made * _ENTRIES_EACH > self._read + _MAX_PATTERNS * _ENTRIES_EACH:
            return
        self._made += 1
        spellings = {name: _VARYING.get(name) or re.escape(_to_json(value)) for name, value in fields.items()}
        pattern = _Pattern(common, re.compile(rf"\{{{_join_members(spellings)}\}}"))
        if pattern.read(text) is not None:  # else it spells a number in a way that patterns do not accept
            self._patterns = [pattern, *self._patterns[: _MAX_PATTERNS - 1]]


def _to_json(value: Any) -> str:
    return canonical_json(value).decode()


def _join_members(fields: dict[str, str]) -> str:
    """Return the inside of a canonical JSON object whose values are JSON texts already."""
    return ",".join(f'"{name}":{text}' for name, text in sorted(fields.items()))
