"""What a run's folder tells beside its log, read without trust, and held to itself."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from fedglm.core.untrusted_files import read_regular, regular_lines
from fedglm.privacy.errors import PrivacyError
from fedglm.run_folder.names import DONE, ROUNDS, SUMMARY

MAX_ROUNDS_BYTES: Final = 2**30
"""A row for each of a million rounds, the most that a run has, takes less."""
MAX_RESULT_BYTES: Final = 64 * 2**20

_MAX_ROUNDS: Final = 10**6
_MAX_ROW: Final = 16 * 2**20
"""Bytes of one: a line of it may name each node that was rejected, and why."""

COUNTS: Final = ("uplink_bytes", "downlink_bytes", "nodes_accepted", "nodes_rejected")
"""Columns of a row that the server's log counts, too."""
_SUMS: Final = ("uplink_bytes", "downlink_bytes", "dense_uplink_bytes", "dense_downlink_bytes")
_SCORES: Final = ("loss", "accuracy", "perplexity")
_NEAR: Final = 1e-4
"""By so much a score of the summary may differ from the last row's, relatively: sums of the same in another order."""


class RoundRow(NamedTuple):
    """A line of `rounds.jsonl`: what the log counts too, by `COUNTS`, and the SHA-256 (hex) of the whole line."""

    counts: tuple[int, ...]
    sha256: str


@dataclass(frozen=True)
class RunFiles:
    """What is told.

    Attributes:
        rows: Lines of `rounds.jsonl`, that of round 1 first; None where there is no such file.
        model: SHA-256 of the resulting model, as `summary.json` or `done.json` has it; None where it is not told.
        results: Which of those two are there.
        odd: What `summary.json` says otherwise than `rounds.jsonl`; empty for nothing.
        asked: Whether the folder is what was asked about, so that what it lacks is missing; else another log is held
            to its log, and the files beside that are nobody's concern.
    """

    rows: list[RoundRow] | None
    model: str | None
    results: frozenset[str] = frozenset()
    odd: str = ""
    asked: bool = False

    @classmethod
    def read(cls, folder: Path, *, asked: bool = False) -> "RunFiles":
        """Read them.

        Raises:
            PrivacyError: One of them is damaged.
        """
        try:
            table = _Table.read(folder / ROUNDS) if (folder / ROUNDS).exists() else None
            told = {name: _result(folder / name) for name in (DONE, SUMMARY) if (folder / name).exists()}
            models = {str(result["model_sha256"]) for result in told.values()}
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as exc:
            raise PrivacyError(f"a file of the run in {folder} is damaged: {exc}") from exc
        if len(models) > 1:
            raise PrivacyError(f"{DONE} and {SUMMARY} in {folder} show two models")
        odd = "" if table is None or SUMMARY not in told else next(table.odd(told[SUMMARY]), "")
        rows = None if table is None else table.rows
        return cls(rows, next(iter(models), None), frozenset(told), odd, asked)


@dataclass
class _Table:
    """`rounds.jsonl`, row by row, of which it keeps little."""

    rows: list[RoundRow] = field(default_factory=list)
    sums: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_SUMS, 0))
    epsilons: list[float] = field(default_factory=list)
    last: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "_Table":
        table = cls()
        for line in regular_lines(path, MAX_ROUNDS_BYTES, _MAX_ROW):
            table._take(line)
        return table

    def _take(self, line: bytes) -> None:
        row = json.loads(line)
        if not isinstance(row, dict) or any(type(row.get(name)) is not int for name in ("round", *COUNTS)):
            raise ValueError(f"a line of {ROUNDS} is none")
        if row["round"] != len(self.rows) + 1 or len(self.rows) >= _MAX_ROUNDS:
            raise ValueError(f"the lines of {ROUNDS} are not those of rounds 1, 2, 3 and so on")
        self.rows.append(RoundRow(tuple(row[name] for name in COUNTS), hashlib.sha256(line).hexdigest()))
        for name in _SUMS:
            self.sums[name] += row[name] if type(row.get(name)) is int else 0
        if _is_number(row.get("epsilon")):
            self.epsilons = [max([*self.epsilons, row["epsilon"]])]
        self.last = row

    def odd(self, summary: Mapping[str, Any]) -> Iterator[str]:
        """What a summary says otherwise."""
        exact = {"rounds": len(self.rows), **self.sums, "epsilon": next(iter(self.epsilons), None)}
        for name, value in exact.items():
            if name in summary and summary[name] != value:
                yield f"{name} is another in {SUMMARY} than {ROUNDS} has it"
        for name in _SCORES:
            told, shown = summary.get(name), self.last.get(name)
            if told is None or shown is None:
                continue
            numbers = _is_number(told) and _is_number(shown)
            if not numbers or abs(told - shown) > _NEAR * max(abs(shown), _NEAR):
                yield f"{name} is another in {SUMMARY} than in the last row of {ROUNDS}"


def _result(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(read_regular(path, MAX_RESULT_BYTES))
    return found


def _is_number(value: object) -> bool:
    return type(value) in (int, float)
