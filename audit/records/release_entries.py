"""Entries about releases, of which a log has many: read without parsing them where one like them was read before.

The entries of a run differ in numbers, hashes and a time alone. One that was parsed and checked gives a pattern with
those left open, in the only spelling that they have: whatever matches it is an entry of the same fields, in canonical
form. Whatever does not is parsed and checked field by field.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple

from fedglm.core.canonical_json import canonical_json
from fedglm.privacy.log.entries import CHARGES, TIME, read_entry

_OF_ROW: Final = ("data_set", "commitment", "purpose", "plan", "policy", "run", "mechanism")
_SHARED: Final = (*_OF_ROW, "delta", "codec")

_WHOLE: Final = "0|[1-9][0-9]{0,17}"
_HASH: Final = "[0-9a-f]{64}"
_OPEN: Final = {
    "bytes": f"(?P<bytes>{_WHOLE})",
    "epsilon": r"(?P<epsilon>null|[0-9]{1,17}\.[0-9]{1,24})",
    "id": '"(?P<id>[0-9a-f]{32})"',
    "non_zeros": f"(?:null|{_WHOLE})",
    "number": f"(?P<number>{_WHOLE})",
    "release": f'"(?P<release>{_HASH})"',
    "round": f"(?P<round>{_WHOLE})",
    "row": f"(?P<row>{_WHOLE})",
    "row_hash": f'"(?P<row_hash>{_HASH})"',
    "time": f'"{TIME}"',
}
"""Fields in which the entries of a run differ, and the spellings of them that a pattern takes."""

_NUMBERS: Final = ("number", "row", "row_hash", "release", "round", "epsilon")
_LONGEST: Final = 2000
"""Text, in characters, that a pattern is made of; longer ones take longer to compile."""
_MAX_PATTERNS: Final = 8
"""That are kept, and that are made at once."""
_ENTRIES_EACH: Final = 1000
"""That were read for each further pattern: making one takes as long as parsing some forty of them."""


class Common:
    """What some releases have in common.

    Args:
        whole: Fields of an entry about one of them.

    Attributes:
        fields: Data set, commitment, purpose, plan, policy, run, mechanism, delta and codec; None for what it has not.
        key: The same, to be looked up by.
        purpose: The purpose, in bytes.
    """

    def __init__(self, whole: dict[str, Any]) -> None:
        self.fields = {name: whole.get(name) for name in _SHARED}
        self._has_id = "id" in whole
        self.purpose = bytes(whole["purpose"], "ascii")
        self.key = tuple(tuple(value.values()) if type(value) is dict else value for value in self.fields.values())

    @cached_property
    def _row(self) -> str:
        told = {name: _text(self.fields[name]).replace("%", "%%") for name in _OF_ROW}
        own = {"number": "%(number)d", "release": '"%(release)s"', "round": "%(round)d", "time": '"'}
        own |= {"id": '"%(id)s"'} if self._has_id else {}
        return "{" + _members({**told, **own})

    def row_text(self, number: int, release: str, at: int, attempt: str) -> str:
        """Text of the ledger's row about one of the releases, up to its time, which is its last field."""
        return self._row % {"number": number, "release": release, "round": at, "id": attempt}


class ReleaseEntry(NamedTuple):
    """An entry about a release: what it has in common with others, and what is its own."""

    common: Common
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
        """What its row charges for once: the attempt, for its purpose; in old logs, the bytes that left."""
        return bytes.fromhex(self.id or self.release) + self.common.purpose


@dataclass
class _Pattern:
    common: Common
    expression: re.Pattern[str]

    def read(self, text: str) -> ReleaseEntry | None:
        found = self.expression.fullmatch(text)
        if found is None:
            return None
        number, row, row_hash, release, at, told = found.group(*_NUMBERS)
        epsilon = None if told == "null" else float(told)
        if epsilon is not None and repr(epsilon) != told:  # a number has one spelling
            return None
        size = int(found["bytes"]) if "bytes" in self.expression.groupindex else 0
        attempt = found["id"] if "id" in self.expression.groupindex else ""
        return ReleaseEntry(self.common, int(number), int(row), row_hash, release, int(at), epsilon, size, attempt)


class EntryReader:
    """Reads the entries of a log, one after the other."""

    def __init__(self) -> None:
        self._patterns: list[_Pattern] = []
        self._read = self._made = 0

    def read(self, text: str, number: int) -> ReleaseEntry | dict[str, Any]:
        """An entry; of other kinds than `CHARGES`, all of its fields.

        Args:
            text: Its text, from a stranger too.
            number: That it must have.

        Raises:
            PrivacyError: It is none.
        """
        self._read += 1
        for place, pattern in enumerate(self._patterns):
            found = pattern.read(text)
            if found is not None and found.number == number > 1:  # a log's first entry opens it
                if place:  # runs follow each other: the last one's comes first
                    self._patterns.insert(0, self._patterns.pop(place))
                return found
        whole = read_entry(text.encode(), number)
        if whole["kind"] not in CHARGES:
            return whole
        common = Common(whole)
        self._learn(common, whole, text)
        return ReleaseEntry(
            common, number, whole["row"], whole["row_hash"], whole["release"], whole["round"], whole["epsilon"],
            whole.get("bytes", 0), whole.get("id", ""),
        )  # fmt: skip

    def _learn(self, common: Common, whole: dict[str, Any], text: str) -> None:
        # A stranger's entries may have nothing in common, and a pattern of each would be made for nothing.
        if len(text) > _LONGEST or self._made * _ENTRIES_EACH > self._read + _MAX_PATTERNS * _ENTRIES_EACH:
            return
        self._made += 1
        spelled = {name: _OPEN.get(name) or re.escape(_text(value)) for name, value in whole.items()}
        pattern = _Pattern(common, re.compile(rf"\{{{_members(spelled)}\}}"))
        if pattern.read(text) is not None:  # else a number in it is spelled as patterns do not take it
            self._patterns = [pattern, *self._patterns[: _MAX_PATTERNS - 1]]


def _text(value: Any) -> str:
    return canonical_json(value).decode()


def _members(fields: dict[str, str]) -> str:
    """What stands within the braces of canonical JSON, of fields whose values are texts already."""
    return ",".join(f'"{name}":{text}' for name, text in sorted(fields.items()))
